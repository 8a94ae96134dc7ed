"""Joint posteriors of pairs and all single substitutions, against enumeration and each other."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from cases import FIELD_KINDS, PAIR_IDS, PAIRS, Problem, problem, random_tensor
from oracle import Enumeration, log_domain_binary, relative_weights, token_fields

import hfilter
from hfilter import orders, wide
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.evidence import Evidence
from hfilter.joint import flip_table, leaf_root_joint, pair_beliefs

TOLERANCE = 1e-12
EPS = float(np.finfo(np.float64).eps)
KINDS = ("zeros", "offset", "spread-300", "spread-5000")
FEW = ("zeros", "spread-5000")


def allowance(log_fields: np.ndarray) -> float:
    """The tolerance, plus what float64 fields of that size must cost (a logit of 5000 has ulps)."""
    finite = np.where(np.isfinite(log_fields), log_fields, 0.0)
    return TOLERANCE + EPS * float(np.ptp(finite, axis=2).sum(axis=1).max())


def compare(got: np.ndarray, want: np.ndarray, atol: float, what: str) -> None:
    assert got.shape == want.shape, what
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, equal_nan=True, err_msg=what)


def tokens(p: Problem, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of the model and, every second, impossible ones as a rule; leaves hidden in most."""
    leaves = p.law.draw(n, rng)
    leaves[1::2] = rng.integers(p.q, size=leaves[1::2].shape)
    return leaves, rng.random(leaves.shape) < np.resize([0.3, 0.0, 0.6, 0.3], n)[:, None]


def questions(
    p: Problem, kinds: tuple[str, ...] = KINDS
) -> Iterator[tuple[str, Evidence, np.ndarray, float]]:
    """Evidence of every kind: as the package takes it, as log fields, and the error allowed."""
    n = max(2, min(8, 4_000 // (len(p.law.log_prior) + p.q**2)))  # what enumeration has time for
    rng = np.random.default_rng(p.seed + 1)
    leaves, mask = tokens(p, n, rng)
    yield "tokens", Evidence(leaves, mask), token_fields(leaves, mask, p.q), TOLERANCE
    for kind in kinds if n > 2 else FEW:
        h = FIELD_KINDS[kind](rng, (max(1, n // 2), p.law.n_leaves, p.q))
        yield kind, Evidence(log_fields=h), h, allowance(h)


def some_pairs(p: Problem, d: int, e: int, n: int = 3) -> np.ndarray:
    """Pairs of levels d and e: random ones, the ends, a line of descent; a node itself if d = e."""
    rng = np.random.default_rng(p.seed + 100 * d + e)
    s = p.law.arity
    nodes = np.stack([rng.integers(s**d, size=n), rng.integers(s**e, size=n)], axis=1)
    nodes[0] = 0, s**e - 1
    low = int(rng.integers(s ** max(d, e)))
    nodes[1] = low // s ** (max(d, e) - d), low // s ** (max(d, e) - e)
    return nodes


def enumerated_pairs(
    law: Enumeration, posterior: np.ndarray, levels: tuple[int, int], pairs: np.ndarray
) -> np.ndarray:
    """P(x_u = a, x_v = b | evidence) of nodes u, v of the two levels, (n, m, q_d, q_e)."""
    (d, e), n = levels, len(posterior)
    shape = (law.alphabets[d], law.alphabets[e])
    out = np.zeros((n, len(pairs), shape[0] * shape[1]))
    for j, (u, v) in enumerate(pairs):
        code = law.configurations[d][:, u] * shape[1] + law.configurations[e][:, v]
        for i in range(n):
            out[i, j] = np.bincount(code, posterior[i], shape[0] * shape[1])
    out[np.isnan(posterior[:, 0])] = np.nan  # also cells of no configuration
    return out.reshape(n, len(pairs), *shape)


def enumerated_flips(law: Enumeration, log_fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(root = a | leaf j is b, the other evidence) and P(root = a, leaf j is b | the others).

    Both (n, n_leaves, n_classes, q); the first with each column relative to its own largest weight.
    """
    fields, forbidden, _, total, zeros = law.totals(log_fields)
    n, n_leaves, q = fields.shape
    leaves, roots = law.configurations[law.depth], law.configurations[0][:, 0]
    indicator = np.eye(law.alphabets[0])[roots]
    given = np.full((n, n_leaves, law.alphabets[0], q), np.nan)
    joint = np.zeros_like(given)
    for j in range(n_leaves):
        logs = total - fields[:, j][:, leaves[:, j]]
        without = zeros - forbidden[:, j][:, leaves[:, j]]
        _, weights = relative_weights(logs, without)
        for b in range(q):
            here = leaves[:, j] == b
            if not here.any():
                continue
            joint[:, j, :, b] = weights[:, here] @ indicator[here]
            _, alone = relative_weights(logs[:, here], without[:, here])
            column = alone @ indicator[here]
            with np.errstate(invalid="ignore"):
                given[:, j, :, b] = column / column.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        joint /= joint.sum(axis=(2, 3), keepdims=True)
    return given, joint


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_pairs(name: str, k: int) -> None:
    """All pairs of levels; impossible rows are NaN, and they alone."""
    p = problem(name, k)
    for kind, evidence, h, atol in questions(p, FEW):
        posterior = p.law.posterior(h)
        for d in p.model.existing_levels:
            for e in [e for e in p.model.existing_levels if e >= d]:  # turned round: below
                nodes = some_pairs(p, d, e)
                got = pair_beliefs(p.model, evidence, (d, e), nodes)
                compare(
                    got,
                    enumerated_pairs(p.law, posterior, (d, e), nodes),
                    atol,
                    f"{kind}: levels {d}, {e}",
                )


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_flips(name: str, k: int) -> None:
    """Every column of every substitution, also those that the other columns dwarf."""
    p = problem(name, k)
    for kind, evidence, h, atol in questions(p):
        given, joint = enumerated_flips(p.law, h)
        compare(flip_table(p.model, evidence), given, atol, f"{kind}: flip_table")
        compare(leaf_root_joint(p.model, evidence), joint, atol, f"{kind}: leaf_root_joint")


@pytest.mark.parametrize(("name", "k"), PAIRS[:-2:3], ids=PAIR_IDS[:-2:3])
def test_numbers_with_powers_and_without(
    name: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text for ordinary floats and that for any range give the same; so do ragged groups."""
    p = problem(name, k)
    evidence = Evidence(*tokens(p, 20, np.random.default_rng(p.seed)))
    nodes = some_pairs(p, p.model.depth, p.model.depth, 6)

    def answers() -> list[np.ndarray]:
        pairs = pair_beliefs(p.model, evidence, (p.model.depth, p.model.depth), nodes)
        return [flip_table(p.model, evidence), leaf_root_joint(p.model, evidence), pairs]

    plain = answers()
    monkeypatch.setattr(wide, "_least", lambda arity: 2.0)
    monkeypatch.setattr(orders, "_SPARE", -(10**9))  # never pad
    monkeypatch.setattr(wide, "_CHUNK", 7)
    for got, want in zip(answers(), plain, strict=True):
        compare(got, want, 1e-14, "every number with its own power")


def test_the_judge_notices_lost_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain floats alone columns get lost: what test_flips holds is not held by chance."""
    p = problem("random_hierarchy", 0)
    h = FIELD_KINDS["spread-5000"](np.random.default_rng(8), (4, p.law.n_leaves, p.q))
    monkeypatch.setattr(wide, "_least", lambda arity: 0.0)
    with np.errstate(all="ignore"):
        got = flip_table(p.model, Evidence(log_fields=h))
    with pytest.raises(AssertionError):
        compare(got, enumerated_flips(p.law, h)[0], allowance(h), "plain floats")


# ------------------------------------------------------------------ relations, on larger trees


def larger(k: int, arity: int = 2) -> hfilter.TreeModel:
    """A tree beyond enumeration, alphabets and rules of its own on every level, some forbidden."""
    rng = np.random.default_rng(40 + arity)
    alphabets, depth = ([3, 5, 4, 6, 3, 4, 5, 4], 7) if arity == 2 else ([3, 4, 2, 5], 3)
    steps = itertools.pairwise(alphabets)
    tensors = [random_tensor(rng, a, b, arity, 0.4) for a, b in steps]
    grammar = hfilter.Grammar.from_tensor(tensors)
    return hfilter.TreeModel(grammar, depth, k, root_prior=[0.6, 0.3, 0.1])


def observed(model: hfilter.TreeModel, n: int, hidden: float) -> Evidence:
    leaves = model.sample(n, seed=3).leaves
    mask = np.random.default_rng(4).random(leaves.shape) < hidden
    return Evidence(leaves, mask)


LARGER = [(k, 2) for k in range(8)] + [(k, 3) for k in range(4)]


@pytest.mark.parametrize(("k", "arity"), LARGER)
def test_pairs_and_beliefs(k: int, arity: int) -> None:
    """Sums over one node are the other's belief; the pair turned round is the transpose."""
    model = larger(k, arity)
    e = observed(model, 9, 0.4)
    post = model.infer(e.tokens, e.mask, dtype="float64", levels="all")
    rng = np.random.default_rng(5)
    for d in model.existing_levels:
        for f in (0, model.existing_levels[len(model.existing_levels) // 2], model.depth):
            nodes = np.stack(
                [rng.integers(model.n_nodes(d), size=5), rng.integers(model.n_nodes(f), size=5)], 1
            )
            joint = pair_beliefs(model, e, (d, f), nodes)
            compare(joint.sum(axis=3), post.level(d)[:, nodes[:, 0]], TOLERANCE, f"{d}, {f}: first")
            compare(
                joint.sum(axis=2), post.level(f)[:, nodes[:, 1]], TOLERANCE, f"{d}, {f}: second"
            )
            turned = pair_beliefs(model, e, (f, d), nodes[:, ::-1])
            compare(turned, np.swapaxes(joint, 2, 3), TOLERANCE, f"{d}, {f}: turned round")
        same = np.repeat(np.arange(model.n_nodes(d))[:, None], 2, axis=1)
        joint = pair_beliefs(model, e, (d, d), same)
        belief = post.level(d)
        compare(joint, belief[..., None] * np.eye(belief.shape[-1]), TOLERANCE, f"{d}: itself")


@pytest.mark.parametrize(("k", "arity"), LARGER)
def test_flips_are_substitutions(k: int, arity: int) -> None:
    """Against the compiled kernels, run again on every substituted sequence."""
    model = larger(k, arity)
    e = observed(model, 4, 0.3)
    assert e.tokens is not None
    assert e.mask is not None
    table = flip_table(model, e)
    seen = np.take_along_axis(
        table, np.asarray(e.tokens, np.intp)[:, :, None, None].repeat(3, 2), 3
    )[..., 0]
    root = model.root_posterior(e.tokens, e.mask, dtype="float64")
    want = np.where(e.mask[..., None], seen, root[:, None])  # hidden: it may be another symbol
    compare(seen, want, TOLERANCE, "at the observed token")
    for j in range(0, model.n_leaves, 5):
        for b in range(model.vocab_size):
            leaves, mask = np.array(e.tokens), np.array(e.mask)
            leaves[:, j], mask[:, j] = b, False
            want = model.root_posterior(leaves, mask, dtype="float64")
            compare(table[:, j, :, b], want, TOLERANCE, f"leaf {j} := {b}")
    joint = leaf_root_joint(model, e)
    law = model.leave_one_out(e.tokens, e.mask, dtype="float64")
    compare(joint.sum(axis=2), law, TOLERANCE, "leave_one_out")
    mixed = np.nansum(table * law[:, :, None], axis=3)
    compare(mixed, joint.sum(axis=3), TOLERANCE, "the root without one leaf")


def test_columns_that_others_dwarf() -> None:
    """Fields of a million nats that contradict each other: every column still has its law."""
    model = larger(0)
    rng = np.random.default_rng(6)
    full = hfilter.Grammar.dense(3, 1.0, 9)
    model = hfilter.TreeModel(full, 6, root_prior=[0.5, 0.3, 0.2])
    h = rng.normal(size=(2, 64, 3)) + 1e6 * rng.integers(-1, 2, size=(2, 64, 3))
    table = flip_table(model, Evidence(log_fields=h))
    tensors = [full.tensor(d) for d in range(6)]
    atol = allowance(h)
    for j in (0, 31, 63):
        for b in range(3):
            other = h.copy()
            other[:, j] = -np.inf
            other[:, j, b] = 0.0
            for row in range(2):
                _, want, _ = log_domain_binary(tensors, model.root_prior, 6, 0, other[row])
                compare(table[row, j, :, b], want, atol, f"leaf {j} := {b}")


def test_one_common_rule_and_many_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent with many rules among parents with one: groups that are not worth padding."""
    tensor = np.zeros((40, 40, 40))
    tensor[0] = np.random.default_rng(7).random((40, 40))
    tensor[0] /= tensor[0].sum()
    tensor[np.arange(1, 40), np.arange(1, 40), np.arange(1, 40)] = 1.0
    grammar = hfilter.Grammar.from_tensor(tensor)
    model = hfilter.TreeModel(grammar, 2)
    assert orders.Rules(grammar.table(0)).by_parent.width == 0
    e = observed(model, 3, 0.5)
    table = flip_table(model, e)
    for j in range(4):
        for b in range(0, 40, 7):
            leaves, mask = np.array(e.tokens), np.array(e.mask)
            leaves[:, j], mask[:, j] = b, False
            want = model.root_posterior(leaves, mask, dtype="float64")
            compare(table[:, j, :, b], want, TOLERANCE, f"leaf {j} := {b}")
    post = model.infer(e.tokens, e.mask, dtype="float64")
    joint = pair_beliefs(model, e, (2, 2), [[0, 3], [1, 2]])
    compare(joint.sum(axis=3), post.leaves[:, [0, 1]], TOLERANCE, "pairs")


# --------------------------------------------------------------------------------- small print


def test_impossible_rows_alone_are_nan() -> None:
    model = hfilter.TreeModel(hfilter.Grammar.broadcast(2, 1.0), 2)
    e = Evidence(np.array([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 2], [0, 1, 1, 0]], np.uint8))
    joint = pair_beliefs(model, e, (1, 2), [[0, 1], [1, 0]])
    assert np.isnan(joint[[1, 3]]).all()
    assert joint[0].tolist() == [[[1, 0], [0, 0]]] * 2
    assert joint[2].tolist() == [[[0, 0], [0, 1]]] * 2
    table = flip_table(model, e)
    assert table[0, 0, :, 0].tolist() == [1, 0]
    assert np.isnan(table[0, 0, :, 1]).all()
    assert table[1, 1, :, 0].tolist() == [1, 0]  # put right by that substitution
    assert np.isnan(table[1, 0]).all()
    assert np.isnan(table[3]).all()


def test_types_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single precision is the double result rounded; blocks and empty questions change nothing."""
    model = larger(2)
    e = observed(model, 11, 0.4)
    nodes = np.stack([np.arange(128), np.arange(128)[::-1]], axis=1)
    table, joint = flip_table(model, e), pair_beliefs(model, e, (7, 7), nodes)
    single = flip_table(model, e, np.float32)
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, table.astype(np.float32))
    np.testing.assert_array_equal(
        pair_beliefs(model, e, [7, 7], nodes, np.float32), joint.astype(np.float32)
    )
    monkeypatch.setattr("hfilter.joint._BLOCK", 5000)
    compare(flip_table(model, e), table, 1e-14, "blocks of few rows")
    compare(pair_beliefs(model, e, (7, 7), nodes), joint, 1e-14, "blocks of few pairs")
    assert pair_beliefs(model, e, (0, 7), np.empty((0, 2), int)).shape == (11, 0, 3, 4)
    assert flip_table(model, e.rows(slice(0, 0))).shape == (0, 128, 3, 4)


def test_memory_is_bounded() -> None:
    """Beside the result, blocks of rows: not messages of all of them."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4)
    e = observed(model, 20_000, 0.2)
    tracemalloc.start()
    table = flip_table(model, e)
    joint = pair_beliefs(model, e, (4, 4), [[0, 1], [3, 12]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - table.nbytes - joint.nbytes < 60e6


def test_refusals() -> None:
    model = larger(3)
    e = observed(model, 1, 0.0)
    with pytest.raises(ArgumentError, match="level 2 does not exist"):
        pair_beliefs(model, e, (2, 7), [[0, 0]])
    with pytest.raises(ArgumentError, match="two levels"):
        pair_beliefs(model, e, (7,), [[0, 0]])
    with pytest.raises(ArgumentError, match=r"pairs\[:, 1\] must be nodes 0 … 7 of level 3"):
        pair_beliefs(model, e, (7, 3), [[0, 8]])
    with pytest.raises(ArgumentError, match=r"pairs\[:, 0\]"):
        pair_beliefs(model, e, (7, 3), [[-1, 0]])
    with pytest.raises(DTypeError, match="pairs must be integers"):
        pair_beliefs(model, e, (7, 3), [[0.0, 1.0]])
    with pytest.raises(ShapeError, match=r"\(m, 2\)"):
        pair_beliefs(model, e, (7, 3), [0, 1])


def test_the_oracle_agrees_with_itself() -> None:
    """The enumeration's new questions, against its old ones."""
    p = problem("levels-4-2-3-2", 0)
    h = p.fields("zeros").log_fields
    assert h is not None
    assert isinstance(p.law, Enumeration)
    answer = p.law.infer(h)
    pairs = enumerated_pairs(p.law, p.law.posterior(h), (1, 3), np.array([[0, 5], [1, 2]]))
    compare(pairs.sum(axis=3), answer.beliefs[1][:, [0, 1]], TOLERANCE, "first")
    compare(
        enumerated_flips(p.law, h)[1].sum(axis=2), answer.leave_one_out, TOLERANCE, "leave-one-out"
    )
