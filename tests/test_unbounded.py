"""The last rung: every question in numbers whose range has no end, against enumeration.

`infer_unbounded` and `choose_unbounded` are called directly for evidence of any kind, and through the
public methods for evidence that no kernel can hold.
"""

from __future__ import annotations

import numpy as np
import pytest
import questions
from cases import FIELD_KINDS, PAIR_IDS, PAIRS, Problem, problem
from oracle import Enumeration, g_test, token_fields
from test_truth import EPS64, allowance, compare, compare_evidence

import hfilter
from hfilter import orders, unbounded, wide
from hfilter.evidence import Evidence, Outputs, Trees, new_outputs
from hfilter.unbounded import choose_unbounded, infer_unbounded

DOUBLE = np.dtype(np.float64)
KINDS = ("tokens", "zeros", "spread-5000")


def given(p: Problem, kind: str) -> tuple[Evidence, np.ndarray]:
    """Evidence of a few rows, and the log fields that say the same."""
    if kind == "tokens":
        e = p.tokens()
        assert e.leaves is not None
        assert e.mask is not None
        leaves, mask = e.leaves[1:8:2], e.mask[1:8:2]
        return Evidence(leaves, mask), token_fields(leaves, mask, p.q)
    rng = np.random.default_rng(p.seed + 1)
    rows = 3 if len(p.law.log_prior) < 5000 else 1
    h = FIELD_KINDS[kind](rng, (rows, p.law.n_leaves, p.q))
    return Evidence(log_fields=h), h


def answer(model: hfilter.TreeModel, asked: Evidence, n: int, **wanted: object) -> Outputs:
    out = new_outputs(model, n, DOUBLE, np.empty, **wanted)
    infer_unbounded(model, asked, out, n)
    return out


def tolerance(h: np.ndarray) -> float:
    return allowance("float64", h)


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_posteriors(name: str, k: int) -> None:
    p = problem(name, k)
    for kind in KINDS[1:]:
        evidence, h = given(p, kind)
        want = p.law.infer(h)
        levels = list(p.model.existing_levels)
        out = answer(
            p.model, evidence, len(h), evidence=True, root=True, levels=levels, leave_one_out=True
        )
        top = h.max(axis=2)
        offset = float(np.abs(np.where(np.isfinite(top), top, 0.0)).sum(axis=1).max())
        compare_evidence(out.log_evidence, want.log_evidence, tolerance(h), offset, kind)
        compare(out.root, want.root, tolerance(h), kind)
        compare(out.leave_one_out, want.leave_one_out, tolerance(h), kind)
        for d in levels[1:]:
            compare(out.beliefs[d], want.beliefs[d], tolerance(h), f"{kind}: level {d}")


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_contexts(name: str, k: int) -> None:
    """Next-token predictions, windows of every height, and both at once."""
    p = problem(name, k)
    before = questions.left_of(p.law)
    for kind in KINDS if len(p.law.log_prior) < 2000 else ("zeros", "spread-5000"):
        evidence, h = given(p, kind)
        for window in range(p.model.depth + 1):
            around = questions.window_of(p.law, window)
            for causal in (False, True):
                if (kind != "zeros" or window > 1) and causal == (window > 0):
                    continue
                asked = Evidence(
                    evidence.tokens, evidence.mask, evidence.log_fields, causal, window
                )
                got = answer(p.model, asked, len(h), leave_one_out=True).leave_one_out
                want = questions.context_laws(p.law, h, around & before if causal else around)
                compare(got, want, tolerance(h), f"{kind}, window {window}, causal {causal}")


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_counts_and_pairs(name: str, k: int) -> None:
    p = problem(name, k)
    for kind in KINDS:
        evidence, h = given(p, kind)
        out = answer(
            p.model, evidence, len(h), counts=k < p.model.depth, star_pairs=k > 0, evidence=True
        )
        if k:
            compare(out.star_pairs, questions.root_pairs(p.law, h), tolerance(h), kind)
        if k == p.model.depth:
            continue
        want = np.zeros((len(h), p.model.n_counts))
        for d, uses in enumerate(questions.counts_below(p.law, p.tensors, h), start=k):
            first = p.model.first_counts[d]
            want[:, first : first + uses.shape[1]] += uses
        compare(out.counts, want, p.law.n_leaves * tolerance(h), kind)


def choose(
    model: hfilter.TreeModel, evidence: Evidence, n: int, samples: int, seed: int = 0, start: int = 0
) -> Trees:  # fmt: skip
    levels = [
        np.empty((n, max(samples, 1), model.n_nodes(d)), model.token_dtype) if d in model.existing_levels else None
        for d in range(model.depth + 1)
    ]  # fmt: skip
    trees = Trees(samples, seed, start, levels, np.empty(n), None if samples else np.empty(n))
    choose_unbounded(model, evidence, trees, n)
    return trees


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_most_probable(name: str, k: int) -> None:
    """Its weight is the largest of all configurations, and the tree that it comes with has it."""
    p = problem(name, k)
    for kind in KINDS:
        evidence, h = given(p, kind)
        trees = choose(p.model, evidence, len(h), 0)
        want = questions.best_weights(p.law, h)
        possible = np.isfinite(want)
        assert trees.log_weight is not None
        assert (np.isneginf(trees.log_weight) == ~possible).all()
        found = {d: x[:, 0] for d, x in enumerate(trees.levels) if x is not None}
        exact = questions.tree_weights(p.law, h, found)
        size = 1 + np.abs(np.where(np.isfinite(h), h, 0.0)).max(axis=2).sum(axis=1)[possible]
        for got in (trees.log_weight, exact):
            assert (np.abs(got[possible] - want[possible]) <= 16 * EPS64 * size + 1e-12).all(), kind


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_draws_are_those_of_the_kernels(name: str, k: int) -> None:
    """The same words of the stream pick the same trees: a sum's last place hardly ever decides."""
    p = problem(name, k)
    for kind in ("tokens", "zeros"):
        evidence, h = given(p, kind)
        rows = np.isfinite(questions.best_weights(p.law, h))
        asked = {"leaves": evidence.tokens, "mask": evidence.mask}
        if evidence.tokens is None:
            asked = {"log_fields": h}
        want = p.model.sample_posterior(
            **asked, n_samples=3, seed=9, start=2**64 - 3 * len(h), levels="all", dtype="float64"
        )
        for row in np.flatnonzero(rows):  # one by one, as the door sends them
            one = evidence.rows(slice(row, row + 1))
            drawn = choose(p.model, one, 1, 3, 9, 2**64 - 3 * (len(h) - int(row)))
            for d in p.model.existing_levels:
                got = drawn.levels[d]
                assert got is not None
                held = want.levels[d][row].reshape(got[0].shape)
                np.testing.assert_array_equal(got[0], held, err_msg=f"{kind}, row {row}, level {d}")


# A family of 8 p-values: a fair sampler fails one test of all with probability 8e-6.
LEAST_P = 1e-6
CONTRADICTORY = [
    ("log_normal-q3-l3", 0), ("log_normal-q3-l3", 2), ("dense-arity3", 0), ("dense-arity3", 1),
    ("levels-2-4-3", 1), ("parity-l3", 0), ("random_hierarchy", 3), ("levels-4-2-3-2", 2),
]  # fmt: skip


def posterior_of_draws(
    law: Enumeration, h: np.ndarray, trees: Trees
) -> tuple[np.ndarray, np.ndarray]:
    """How often each configuration was drawn for the one row, and its exact probability."""
    rows = np.concatenate([law.configurations[d] for d in law.levels], axis=1)
    places = {tuple(row): i for i, row in enumerate(rows.tolist())}
    drawn = np.concatenate([trees.levels[d][0] for d in law.levels], axis=1)
    counts = np.bincount([places[tuple(x)] for x in drawn.tolist()], minlength=len(rows))
    return counts, law.posterior(h)[0]


def contradiction(p: Problem) -> np.ndarray:
    """Fields 10^6 nats apart that let several trees stand: the first two symbols tie almost."""
    h = np.full((1, p.law.n_leaves, p.q), -1e6)
    h[:, :, :2] = np.random.default_rng(p.seed).choice([0.0, 0.5], size=(1, p.law.n_leaves, 2))
    return h


@pytest.mark.parametrize(("name", "k"), CONTRADICTORY)
def test_draws_follow_the_posterior(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(name, k)
    h = contradiction(p)
    trees = choose(p.model, Evidence(log_fields=h), 1, 4000, seed=5)
    counts, law = posterior_of_draws(p.law, h, trees)
    assert g_test(counts, law) > LEAST_P
    fair = unbounded._Stream._uniform  # a mutant, whose random numbers are too small
    monkeypatch.setattr(unbounded._Stream, "_uniform", lambda *x: fair(*x) ** 1.5)
    counts, law = posterior_of_draws(p.law, h, choose(p.model, Evidence(log_fields=h), 1, 4000))
    assert g_test(counts, law) < LEAST_P


@pytest.mark.parametrize(("name", "k"), PAIRS[::3], ids=PAIR_IDS[::3])
def test_numbers_with_powers_and_without(
    name: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text for ordinary floats and that for any range give the same; so do ragged groups."""
    p = problem(name, k)
    evidence, h = given(p, "tokens")

    def answers() -> list[np.ndarray]:
        asked = [
            Evidence(evidence.tokens, evidence.mask, None, c, w) for c, w in ((True, 0), (False, 1))
        ]
        found = [answer(p.model, e, len(h), leave_one_out=True).leave_one_out for e in asked]
        out = answer(p.model, evidence, len(h), counts=k < p.model.depth, star_pairs=k > 0)
        trees = [choose(p.model, evidence, len(h), samples) for samples in (0, 5)]
        return [*found, *out.arrays(), *(x for t in trees for x in t.levels if x is not None)]

    plain = answers()
    monkeypatch.setattr(wide, "_least", lambda arity: 2.0)
    monkeypatch.setattr(orders, "_SPARE", -(10**9))  # never pad
    monkeypatch.setattr(wide, "_CHUNK", 7)
    monkeypatch.setattr(unbounded, "_TREES", 3)
    for got, want in zip(answers(), plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


# ------------------------------------------------------- through the public methods


def conflict(p: Problem, scale: float = 1e6) -> np.ndarray:
    """Fields that prefer a symbol of their own at every leaf, by up to a million nats either way."""
    rng = np.random.default_rng(p.seed + 7)
    shape = (6, p.law.n_leaves, p.q)
    h = rng.normal(size=shape) + scale * rng.integers(-1, 2, size=shape)
    h[0, 0] = -np.inf  # nothing is possible there: only contexts without it have an answer
    h[1, :, 0] = -np.inf if p.q > 1 else 0.0
    return h


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_rows_out_of_range_reach_it(name: str, k: int) -> None:
    dtype = ("float32", "float64")[k % 2]  # both go through double precision
    p = problem(name, k)
    model, h = p.model, conflict(p)[: 4 if len(p.law.log_prior) < 5000 else 2]
    atol = allowance(dtype, h)
    compare(
        model.next_token(log_fields=h, dtype=dtype),
        questions.context_laws(p.law, h, questions.left_of(p.law)),
        atol, "next_token",
    )  # fmt: skip
    for height in range(1, model.depth + 1):
        around = questions.window_of(p.law, model.depth - height)
        got = model.windowed(log_fields=h, height=height, dtype=dtype)
        compare(got, questions.context_laws(p.law, h, around), atol, f"height {height}")

    want = questions.best_weights(p.law, h)
    counts = model.expected_rule_counts(log_fields=h, dtype=dtype, per_sequence=True)
    starts = np.cumsum([0, *(t.n_rules for t in model.grammar.tables)])
    below = questions.counts_below(p.law, p.tensors, h)
    uses = np.zeros_like(counts, dtype=np.float64)
    for d, x in enumerate(below, start=k):
        first = starts[0 if model.grammar.is_shared else d]
        uses[:, first : first + x.shape[1]] += x
    columns = slice(starts[0 if model.grammar.is_shared else k], None)
    if k == 0:  # above the filter level counts are the door's, from pairs with the root
        compare(counts[:, columns], uses[:, columns], p.law.n_leaves * atol, "counts")
    assert (np.isnan(counts).all(axis=1) == np.isneginf(want)).all()
    np.testing.assert_allclose(
        counts.sum(axis=1)[np.isfinite(want)], _paths(model), rtol=max(atol, 1e-5)
    )

    tree = model.most_probable(log_fields=h, dtype=dtype)
    assert (np.isneginf(tree.log_prob) == np.isneginf(want)).all()
    possible = np.isfinite(want)
    size = 1e6 * p.law.n_leaves * (EPS64 if dtype == "float64" else 2.0**-20)
    np.testing.assert_allclose(tree.log_prob[possible], want[possible], rtol=0, atol=size + 1e-3)
    drawn = model.sample_posterior(log_fields=h, n_samples=4, levels="all", dtype=dtype)
    for j in range(4):
        levels = {d: x.reshape(len(h), 4, -1)[:, j] for d, x in drawn.levels.items()}
        weights = questions.tree_weights(p.law, h, levels)
        # What is a thousand nats less probable than the best tree is never drawn.
        assert (weights[possible] > want[possible] - 1000).all()
        assert all((x[~possible] == model.alphabets[d]).all() for d, x in levels.items())


def _paths(model: hfilter.TreeModel) -> float:
    """Rules that a tree uses; above the filter level each of its nodes counts a path of its own."""
    k, s = model.filter_level, model.arity
    return k * s**k + sum(s**d for d in range(k, model.depth))
