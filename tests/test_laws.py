"""Laws: what mathematics demands of any exact posterior, whatever the grammar."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from cases import PAIR_IDS, PAIRS, problem

import hfilter
from hfilter import Grammar, TreeModel


def batch(model: TreeModel, n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Possible sequences and random masks."""
    leaves = model.sample(n, seed=seed).leaves
    mask = np.random.default_rng(seed).random(leaves.shape) < 0.3
    return leaves, mask


def test_rows_sum_to_one(backend: str) -> None:
    model = TreeModel(Grammar.published(4, 1.0, 0), 4)
    leaves, mask = batch(model, 50)
    for k in range(5):
        for dtype, atol in (("float32", 1e-6), ("float64", 1e-14)):
            m = model.filtered(k)
            post = m.infer(leaves, mask, levels="all", dtype=dtype, backend=backend)
            laws = [post.level(d) for d in m.existing_levels]
            laws += [post.root, post.leaves, m.leave_one_out(leaves, mask, dtype=dtype)]
            for law in laws:
                assert (law >= 0).all()
                np.testing.assert_allclose(law.sum(axis=-1), 1.0, rtol=0, atol=atol)


def test_seen_leaves_are_certain(backend: str) -> None:
    """The belief of a seen leaf is its token, exactly."""
    model = TreeModel(Grammar.published(4, 1.0, 0), 3, 1)
    leaves, mask = batch(model, 40)
    post = model.infer(leaves, mask, backend=backend)
    np.testing.assert_array_equal(post.leaves[~mask], np.eye(4, dtype=np.float32)[leaves[~mask]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_order_of_the_batch_is_immaterial(dtype: str, backend: str) -> None:
    """A permuted batch gives permuted bits; so does a row on its own, and repeated rows."""
    model = TreeModel(Grammar.published(6, 1.0, 0, rules_per_symbol=4), 3)
    leaves, mask = batch(model, 37)
    leaves[3] = 0  # most likely impossible: it must not touch its neighbours in the lanes
    order = np.random.default_rng(0).permutation(37)
    straight = model.infer(leaves, mask, dtype=dtype, backend=backend)
    shuffled = model.infer(leaves[order], mask[order], dtype=dtype, backend=backend)
    np.testing.assert_array_equal(shuffled.leaves, straight.leaves[order])
    np.testing.assert_array_equal(shuffled.log_evidence, straight.log_evidence[order])
    for i in (0, 3, 36):
        alone = model.infer(leaves[i : i + 1], mask[i : i + 1], dtype=dtype, backend=backend)
        np.testing.assert_array_equal(alone.leaves[0], straight.leaves[i])
    twice = model.infer(np.repeat(leaves, 2, axis=0), np.repeat(mask, 2, axis=0), dtype=dtype,
                        backend=backend)  # fmt: skip
    np.testing.assert_array_equal(twice.leaves[::2], twice.leaves[1::2])


@pytest.mark.parametrize("k", range(4))
def test_relabelling_symbols_commutes(k: int, backend: str) -> None:
    """Rename the symbols in the grammar and in the data: the posterior is renamed, no more."""
    rng = np.random.default_rng(5)
    grammar = Grammar.dense(4, 1.0, 2)
    rename = rng.permutation(4)
    tensor = np.empty((4, 4, 4))
    tensor[np.ix_(rename, rename, rename)] = grammar.tensor()
    prior = rng.dirichlet(np.ones(4))
    new_prior = np.empty(4)
    new_prior[rename] = prior
    model = TreeModel(grammar, 3, k, root_prior=prior)
    renamed = TreeModel(Grammar.from_tensor(tensor), 3, k, root_prior=new_prior)
    leaves, mask = batch(model, 20)
    a = model.infer(leaves, mask, dtype="float64", backend=backend, levels="all")
    b = renamed.infer(rename[leaves], mask, dtype="float64", backend=backend, levels="all")
    np.testing.assert_allclose(b.log_evidence, a.log_evidence, rtol=1e-12)
    for d in model.existing_levels:
        np.testing.assert_allclose(b.level(d)[..., rename], a.level(d), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", range(4))
def test_reflection(k: int, backend: str) -> None:
    """Reverse the children of every rule and the sequence: every level is reversed."""
    grammar = Grammar.dense(3, 1.0, 4)
    mirrored = Grammar.from_tensor(np.ascontiguousarray(grammar.tensor().transpose(0, 2, 1)))
    model, mirror = TreeModel(grammar, 3, k), TreeModel(mirrored, 3, k)
    leaves, mask = batch(model, 20)
    a = model.infer(leaves, mask, dtype="float64", backend=backend, levels="all")
    b = mirror.infer(leaves[:, ::-1], mask[:, ::-1], dtype="float64", backend=backend, levels="all")
    np.testing.assert_allclose(b.log_evidence, a.log_evidence, rtol=1e-12)
    for d in model.existing_levels:
        np.testing.assert_allclose(b.level(d)[:, ::-1], a.level(d), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_all_sequences_have_probability_one(name: str, k: int) -> None:
    """Sum of exp(log_prob) over every sequence there is; and each one against the exact law."""
    p = problem(name, k)
    if p.q**p.law.n_leaves > 100_000:
        pytest.skip("too many sequences")
    sequences = oracle.all_sequences(p.q, p.law.n_leaves)
    probability = np.exp(p.model.log_prob(sequences, dtype="float64"))
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=0, atol=1e-11)
    np.testing.assert_allclose(probability, p.law.sequence_law(), rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_belief_is_leave_one_out_times_field(name: str, k: int, backend: str) -> None:
    p = problem(name, k)
    h = p.fields("soft").log_fields
    assert h is not None
    belief = p.model.infer(log_fields=h, dtype="float64", backend=backend).leaves
    loo = p.model.leave_one_out(log_fields=h, dtype="float64", backend=backend)
    product = loo * np.exp(h)
    product /= product.sum(axis=2, keepdims=True)
    possible = np.isfinite(p.fields("soft").answer.log_evidence)
    np.testing.assert_allclose(belief[possible], product[possible], rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", range(4))
def test_evidence_chain_rule(k: int, backend: str) -> None:
    """P(x) = P(x_j | rest) P(rest): leave-one-out ties two log_evidences together."""
    model = TreeModel(Grammar.dense(3, 1.0, 9), 3, k)
    leaves, _ = batch(model, 10)
    whole = model.log_prob(leaves, dtype="float64", backend=backend)
    loo = model.leave_one_out(leaves, dtype="float64", backend=backend)
    for j in range(model.n_leaves):
        mask = np.zeros(leaves.shape, dtype=bool)
        mask[:, j] = True
        rest = model.log_prob(leaves, mask, dtype="float64", backend=backend)
        conditional = np.log(loo[np.arange(len(leaves)), j, leaves[:, j]])
        np.testing.assert_allclose(rest + conditional, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", range(4))
def test_evidence_gradient_is_the_belief(k: int, backend: str) -> None:
    """d log_evidence / d log_field = belief, by central differences."""
    model = TreeModel(Grammar.dense(3, 1.0, 10), 3, k)
    h = np.random.default_rng(3).normal(size=(1, 8, 3))
    post = model.infer(log_fields=h, dtype="float64", backend=backend)
    step = 1e-5
    bumps = step * np.eye(24).reshape(24, 8, 3)
    up = model.log_prob(log_fields=h + bumps, dtype="float64", backend=backend)
    down = model.log_prob(log_fields=h - bumps, dtype="float64", backend=backend)
    slope = ((up - down) / (2 * step)).reshape(8, 3)
    np.testing.assert_allclose(slope, post.leaves[0], rtol=0, atol=1e-8)


def test_siblings_agree_on_their_parent(backend: str) -> None:
    """Unambiguous and fully seen: each parent's belief is the indicator of its children's rule."""
    grammar = Grammar.published(4, 1.0, 0)
    tensor = grammar.tensor()
    parent_of = tensor.argmax(axis=0)
    model = TreeModel(grammar, 4)
    sample = model.sample(30, seed=2, levels=True)
    post = model.infer(sample.leaves, levels="all", backend=backend)
    for d in range(4):
        below = post.level(d + 1).argmax(axis=2)
        parent = parent_of[below[:, 0::2], below[:, 1::2]]
        np.testing.assert_array_equal(post.level(d), np.eye(4, dtype=np.float32)[parent])
        np.testing.assert_array_equal(parent, sample.levels[d])


@pytest.mark.parametrize("k", range(5))
def test_average_posterior_is_the_prior(k: int) -> None:
    """E over data of P(root | data) is the prior, and single-leaf marginals are those of k = 0."""
    model = TreeModel(Grammar.published(4, 1.0, 3), 4)
    data = model.filtered(k).sample(20_000, seed=4)
    root = model.filtered(k).root_posterior(data.leaves)
    np.testing.assert_allclose(root.mean(axis=0), 0.25, rtol=0, atol=5 * 0.5 / np.sqrt(20_000))
    nothing = np.ones((1, 16), dtype=bool)
    marginal = model.filtered(k).infer(data.leaves[:1], nothing, dtype="float64").leaves
    reference = model.infer(data.leaves[:1], nothing, dtype="float64").leaves
    np.testing.assert_allclose(marginal, reference, rtol=0, atol=1e-14)


def test_filtered_is_the_same_model_seen_twice() -> None:
    model = TreeModel(Grammar.dense(3, 1.0, 1), 3, root_prior=[0.5, 0.25, 0.25])
    twice = model.filtered(2).filtered(1).filtered(0)
    assert twice.filter_level == 0
    assert twice.fingerprint == model.fingerprint
    assert model.filtered(2).fingerprint != model.fingerprint
    np.testing.assert_array_equal(model.filtered(2).root_prior, model.root_prior)
    np.testing.assert_array_equal(twice.sample(9, seed=3).leaves, model.sample(9, seed=3).leaves)


def test_existing_levels_and_names() -> None:
    """The attributes that every later room reads."""
    grammar = Grammar.random_hierarchy(
        vocab_size=5, rules_per_symbol=2, depth=3, n_classes=7, seed=0
    )
    for k in range(4):
        model = TreeModel(grammar, 3, k)
        assert model.existing_levels == (0, *range(max(k, 1), 4))
        assert (model.depth, model.filter_level, model.arity, model.n_leaves) == (3, k, 2, 8)
        assert (model.vocab_size, model.mask_token, model.n_classes) == (5, 5, 7)
        assert model.alphabets == (7, 5, 5, 5)
        assert model.token_dtype == np.uint8
        assert isinstance(model.describe(), dict)
    assert isinstance(hfilter.__version__, str)
