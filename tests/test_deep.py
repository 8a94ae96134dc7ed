"""Truth on deep trees: no underflow, no overflow."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from hfilter import Grammar, TreeModel

BELIEF = 1e-4  # float32 against float64, absolute
EVIDENCE = 1e-5  # relative


def masked_batch(model: TreeModel, n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    leaves = model.sample(n, seed=12).leaves
    mask = np.random.default_rng(12).random(leaves.shape) < share
    return leaves, mask


def independent(model: TreeModel, log_fields: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    tensors = [model.grammar.tensor(d) for d in range(model.depth)]
    prior = np.asarray(model.root_prior)
    return oracle.log_domain_binary(tensors, prior, model.depth, model.filter_level, log_fields)


@pytest.mark.parametrize("k", range(4))
def test_the_log_domain_judge_agrees_with_enumeration(k: int) -> None:
    """The judge of this file is itself judged where enumeration can go."""
    model = TreeModel(Grammar.dense(2, 1.0, 0), 3, k)
    tensors = [model.grammar.tensor()] * 3
    law = oracle.Enumeration(tensors, np.asarray(model.root_prior), 3, k)
    h = np.random.default_rng(k).normal(size=(1, 8, 2))
    want = law.infer(h)
    evidence, root, loo = independent(model, h[0])
    np.testing.assert_allclose(evidence, want.log_evidence[0], rtol=1e-13)
    np.testing.assert_allclose(root, want.root[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(loo, want.leave_one_out[0], rtol=0, atol=1e-13)


GRAMMARS = {
    "published": lambda: Grammar.published(4, 1.0, 0),
    "forbidden": lambda: Grammar.published(6, 1.0, 0, rules_per_symbol=4),
    "dense": lambda: Grammar.dense(4, 0.5, 3),
    "broadcast": lambda: Grammar.broadcast(4, 0.8),
}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("k", [0, 3, 8, 16])
@pytest.mark.parametrize("name", ["published", "dense"])
def test_float32_against_float64_at_depth_16(name: str, k: int, share: float) -> None:
    model = TreeModel(GRAMMARS[name](), 16, k)
    leaves, mask = masked_batch(model, 2, share)
    single = model.infer(leaves, mask, dtype="float32")
    double = model.infer(leaves, mask, dtype="float64")
    np.testing.assert_allclose(single.leaves, double.leaves, rtol=0, atol=BELIEF)
    np.testing.assert_allclose(single.root, double.root, rtol=0, atol=BELIEF)
    np.testing.assert_allclose(single.log_evidence, double.log_evidence, rtol=EVIDENCE, atol=0)
    loo = model.leave_one_out(leaves, mask, dtype="float32")
    loo64 = model.leave_one_out(leaves, mask, dtype="float64")
    np.testing.assert_allclose(loo, loo64, rtol=0, atol=BELIEF)
    assert np.isfinite(double.log_evidence).all()
    np.testing.assert_allclose(single.root.sum(axis=1), 1.0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("k", [0, 6, 12])
def test_depth_12_against_logarithms(name: str, k: int) -> None:
    """Soft fields on 4096 leaves against messages in the log domain; k = 12 is one big star."""
    model = TreeModel(GRAMMARS[name](), 12, k)
    rng = np.random.default_rng(1)
    tokens = model.sample(1, seed=1).leaves[0].astype(np.int64)
    h = rng.normal(size=(1, 4096, model.vocab_size))
    h[0, np.arange(4096), tokens] += 3.0
    evidence, root, loo = independent(model, h[0])
    # Logarithms of thousands lose four digits of the judge's own sixteen.
    got = model.infer(log_fields=h, dtype="float64")
    np.testing.assert_allclose(got.log_evidence[0], evidence, rtol=1e-12)
    np.testing.assert_allclose(got.root[0], root, rtol=0, atol=1e-10)
    double = model.leave_one_out(log_fields=h, dtype="float64")[0]
    np.testing.assert_allclose(double, loo, rtol=0, atol=1e-10)
    single = model.infer(log_fields=h, dtype="float32")
    np.testing.assert_allclose(single.log_evidence[0], evidence, rtol=EVIDENCE)
    np.testing.assert_allclose(single.root[0], root, rtol=0, atol=BELIEF)
    single_loo = model.leave_one_out(log_fields=h, dtype="float32")[0]
    np.testing.assert_allclose(single_loo, loo, rtol=0, atol=BELIEF)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_star_of_4096_tokens(dtype: str) -> None:
    """The product of 4096 channel entries is near 1e-2000: done naively it is zero."""
    model = TreeModel(Grammar.published(4, 1.0, 0), 12, 12)
    leaves = model.sample(4, seed=2).leaves
    tensor = model.grammar.tensor()
    log_channels = np.stack([np.log(oracle.channel([tensor] * 12, 12, i)) for i in range(4096)])
    terms = log_channels[np.arange(4096), :, leaves.astype(np.int64)]  # (4, 4096, q)
    joint = np.log(0.25) + terms.sum(axis=1)
    want = oracle.log_sum(joint, axis=1)
    assert (want < -2000).all(), "the case must be one that underflows"
    got = model.infer(leaves, dtype=dtype)
    tight = 1e-12 if dtype == "float64" else EVIDENCE
    np.testing.assert_allclose(got.log_evidence, want, rtol=tight)
    root = np.exp(joint - want[:, None])
    atol = 1e-10 if dtype == "float64" else BELIEF
    np.testing.assert_allclose(got.root, root, rtol=0, atol=atol)
    rest = joint[:, None] - terms  # all leaves but one
    weights = np.exp(rest - rest.max(axis=2, keepdims=True))
    loo = np.einsum("nia,iax->nix", weights, np.exp(log_channels))
    loo /= loo.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(model.leave_one_out(leaves, dtype=dtype), loo, rtol=0, atol=atol)


def test_star_with_zeros_in_its_channels() -> None:
    """Messages that exclude each other: impossible, except from the one leaf at fault."""
    copies = np.zeros((2, 2, 2))
    copies[0, 0, 0] = copies[1, 1, 1] = 1.0
    model = TreeModel(Grammar.from_tensor(copies), 10, 10)
    leaves = np.zeros((3, 1024), dtype=np.uint8)
    leaves[1, 500] = 1
    leaves[2, 100:102] = 1
    post = model.infer(leaves)
    np.testing.assert_allclose(post.log_evidence, [np.log(0.5), -np.inf, -np.inf])
    loo = model.leave_one_out(leaves)
    np.testing.assert_array_equal(loo[0], np.tile([1.0, 0.0], (1024, 1)))
    np.testing.assert_array_equal(loo[1, 500], [1.0, 0.0])
    assert np.isnan(np.delete(loo[1], 500, axis=0)).all()
    assert np.isnan(loo[2]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_star_whose_first_leaf_rules_a_class_out(dtype: str, backend: str) -> None:
    """One class is dead from the start while the other halves with every leaf that is seen."""
    copies = np.zeros((2, 2, 2))
    copies[0, 0, 0] = copies[1, 1, 1] = 1.0
    last = copies.copy()
    last[1] = 0.25  # class 0 writes zeros only, class 1 both symbols alike
    model = TreeModel(Grammar.from_tensor([copies] * 10 + [last]), 11, 11)
    seen = [1, 2, 20, 126, 127, 128, 129, 130, 255, 256, 257, 500, 1022, 1023, 1024, 1025, 2048]
    if backend == "python":
        seen = [2, 128, 1025]
    leaves = np.zeros((len(seen), 2048), dtype=np.uint8)
    leaves[:, 0] = 1
    mask = np.arange(2048) >= np.array(seen)[:, None]
    post = model.infer(leaves, mask, dtype=dtype, backend=backend)
    want = -np.log(2) * (1 + np.array(seen))
    np.testing.assert_allclose(post.log_evidence, want, rtol=1e-12)
    upward_only = model.log_prob(leaves, mask, dtype=dtype, backend=backend)
    np.testing.assert_allclose(upward_only, want, rtol=1e-12)
    root = model.root_posterior(leaves, mask, dtype=dtype, backend=backend)
    np.testing.assert_array_equal(root, post.root)
    np.testing.assert_array_equal(post.root, np.tile([0.0, 1.0], (len(seen), 1)))
    np.testing.assert_array_equal(post.leaves[mask], 0.5)
    loo = model.leave_one_out(leaves, mask, dtype=dtype, backend=backend)
    np.testing.assert_array_equal(loo[:, 1:], 0.5)
    # Without the first leaf the two classes weigh 1 and 2**(1 - seen): that leaf could be 1 still.
    ones = 0.5 / (1 + np.exp2(np.minimum(np.array(seen) - 1.0, 1000.0)))
    np.testing.assert_allclose(loo[:, 0, 1], ones, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("eps", [1e-8, 1e-30, 1e-60, 1e-300])
def test_tiny_rule_probabilities_at_depth(eps: float) -> None:
    """Rare rules compound to eps**256 and beyond; alone they may be below what float32 holds."""
    tensor = np.zeros((2, 2, 2))
    tensor[0, 0, 0] = tensor[1, 1, 1] = 1 - eps
    tensor[0, 1, 1] = tensor[1, 0, 0] = eps
    model = TreeModel(Grammar.from_tensor(tensor), 10, root_prior=[0.7, 0.3])
    leaves = np.zeros((4, 1024), dtype=np.uint8)
    leaves[1, 2::4] = leaves[1, 3::4] = 1  # siblings agree, cousins never: 256 rare rules
    leaves[2, 512:] = 1
    leaves[3, 700] = 1  # no rule at all makes siblings that differ
    mask = np.zeros(leaves.shape, dtype=bool)
    mask[:2, 512:] = True
    for k in (0, 5):
        filtered = model.filtered(k)
        single = filtered.infer(leaves, mask, dtype="float32")
        double = filtered.infer(leaves, mask, dtype="float64")
        for row in range(3):
            h = oracle.token_fields(leaves[row], mask[row], 2)
            evidence, root, _ = independent(filtered, h)
            assert np.isfinite(evidence)
            np.testing.assert_allclose(double.log_evidence[row], evidence, rtol=1e-12)
            # 1 - eps rounds in each of 1023 float32 rules; the judge's logarithms in their ulps
            got = single.log_evidence[row]
            np.testing.assert_allclose(got, evidence, rtol=EVIDENCE, atol=1023 * 2.0**-24)
            ulps = 4 * np.spacing(abs(evidence))
            np.testing.assert_allclose(double.root[row], root, rtol=0, atol=1e-12 + ulps)
            np.testing.assert_allclose(single.root[row], root, rtol=0, atol=BELIEF)
            np.testing.assert_allclose(single.leaves[row], double.leaves[row], rtol=0, atol=BELIEF)
        assert np.isneginf(single.log_evidence[3])
        assert np.isneginf(double.log_evidence[3])
