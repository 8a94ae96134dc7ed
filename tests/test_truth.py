"""Truth: every posterior against enumeration of every latent configuration in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cases import FIELD_KINDS, PAIR_IDS, PAIRS, problem, random_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Answer, Enumeration, channel, token_fields

import hfilter

# Absolute error allowed in a belief, and in log_evidence relative to max(1, |log_evidence|).
TOLERANCE = {"float32": 3e-6, "float64": 1e-12}
DTYPES = tuple(TOLERANCE)
EPS64 = float(np.finfo(np.float64).eps)


def allowance(dtype: str, log_fields: np.ndarray | None = None) -> float:
    """The tolerance, plus what float64 fields of that size must cost (a logit of 5000 has ulps)."""
    if log_fields is None:
        return TOLERANCE[dtype]
    finite = np.where(np.isfinite(log_fields), log_fields, 0.0)
    span = float(np.ptp(finite, axis=2).sum(axis=1).max())
    return TOLERANCE[dtype] + EPS64 * span


def compare(got: np.ndarray, want: np.ndarray, atol: float, what: str) -> None:
    assert got.shape == want.shape, what
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, equal_nan=True, err_msg=what)


def compare_evidence(
    got: np.ndarray, want: np.ndarray, tolerance: float, offset: float, what: str
) -> None:
    """Relative to max(1, |want|); offsets of the fields that cancel cost ulps of their own size."""
    assert got.dtype == np.float64
    assert np.array_equal(np.isneginf(got), np.isneginf(want)), f"{what}: rows called impossible"
    possible = ~np.isneginf(want)
    error = np.abs(got[possible] - want[possible]) / np.maximum(1.0, np.abs(want[possible]))
    worst = error.max(initial=0.0)
    assert worst <= tolerance + 4 * EPS64 * offset, f"{what}: log_evidence off by {worst}"


def judge(
    model: hfilter.TreeModel,
    answer: Answer,
    dtype: str,
    atol: float,
    what: str = "tokens",
    **asked: Any,
) -> None:
    """Hold all five questions about one batch to the answer."""
    options = {key: asked.pop(key) for key in ("backend", "num_threads") if key in asked}
    options["dtype"] = dtype
    offset = 0.0
    if "log_fields" in asked:
        top = asked["log_fields"].max(axis=2, initial=-np.inf).astype(np.float64)
        offset = float(np.abs(np.where(np.isfinite(top), top, 0.0)).sum(axis=1).max())
    post = model.infer(**asked, levels="all", **options)
    assert post.root.dtype == post.leaves.dtype == np.dtype(dtype)
    compare_evidence(post.log_evidence, answer.log_evidence, atol, offset, what)
    compare(post.root, answer.root, atol, f"{what}: root")
    compare(post.leaves, answer.beliefs[model.depth], atol, f"{what}: leaves")
    for d in model.existing_levels:
        assert post.level(d).dtype == np.dtype(dtype)
        compare(post.level(d), answer.beliefs[d], atol, f"{what}: level {d}")
    loo = model.leave_one_out(**asked, **options)
    assert loo.dtype == np.dtype(dtype)
    compare(loo, answer.leave_one_out, atol, f"{what}: leave_one_out")
    compare(model.root_posterior(**asked, **options), answer.root, atol, f"{what}: root_posterior")
    compare_evidence(model.log_prob(**asked, **options), answer.log_evidence, atol, offset, what)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_tokens(name: str, k: int, dtype: str, backend: str) -> None:
    """Seen tokens and masks from none to all, possible and impossible rows side by side."""
    p = problem(name, k)
    e = p.tokens()
    judge(p.model, e.answer, dtype, TOLERANCE[dtype], leaves=e.leaves, mask=e.mask, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_fields(name: str, k: int, dtype: str, backend: str) -> None:
    """Soft evidence, up to logits so far apart that only exact scaling gives the answer."""
    p = problem(name, k)
    kinds = ("zeros", "offset", "spread-300") if backend == "python" else tuple(FIELD_KINDS)
    for kind in kinds:  # plain Python is slow, and Numba runs the same text over all kinds
        e = p.fields(kind)
        atol = allowance(dtype, e.log_fields)
        judge(p.model, e.answer, dtype, atol, kind, log_fields=e.log_fields, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_tokens_masks_and_fields_in_one_row(name: str, k: int, dtype: str) -> None:
    """A third of the leaves is seen, a third hidden, a third known by soft fields."""
    p = problem(name, k)
    rng = np.random.default_rng(p.seed + 2)
    leaves = p.law.draw(6, rng)
    soft = rng.normal(size=(*leaves.shape, p.q)) * 3
    seen = np.where(leaves[..., None] == np.arange(p.q), 0.0, -np.inf)
    kind = rng.integers(3, size=leaves.shape)[..., None]
    mixed = np.where(kind == 0, seen, np.where(kind == 1, 0.0, soft))
    judge(p.model, p.law.infer(mixed), dtype, allowance(dtype, mixed), log_fields=mixed)


@pytest.mark.parametrize("kind", ["soft", "zeros", "spread-300"])
def test_float32_fields(kind: str, backend: str) -> None:
    """Fields given as float32 are taken at their value: no second rounding."""
    p = problem("log_normal-q3-l3", 1)
    h = p.fields(kind).log_fields
    assert h is not None
    single = h.astype(np.float32)
    answer = p.law.infer(single)
    for dtype in DTYPES:
        atol = allowance(dtype, single)
        judge(p.model, answer, dtype, atol, log_fields=single, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_three_ways_to_hide_a_leaf(name: str, k: int, dtype: str, backend: str) -> None:
    """The mask, the mask token and a field of ones are one evidence: the same bits for tokens."""
    p = problem(name, k)
    e = p.tokens()
    assert e.leaves is not None
    assert e.mask is not None
    covered = np.where(e.mask, p.model.mask_token, e.leaves)
    half = e.mask & (np.arange(e.mask.shape[1]) % 2 == 0)
    by_mask = p.model.infer(e.leaves, e.mask, dtype=dtype, backend=backend)
    by_token = p.model.infer(covered, dtype=dtype, backend=backend)
    by_both = p.model.infer(covered, half, dtype=dtype, backend=backend)
    for other in (by_token, by_both):
        np.testing.assert_array_equal(other.leaves, by_mask.leaves)
        np.testing.assert_array_equal(other.root, by_mask.root)
        np.testing.assert_array_equal(other.log_evidence, by_mask.log_evidence)
    h = token_fields(e.leaves, e.mask, p.q)
    by_fields = p.model.infer(log_fields=h, dtype=dtype, backend=backend)
    compare(by_fields.leaves, e.answer.beliefs[p.model.depth], TOLERANCE[dtype], "leaves")
    compare(by_fields.root, e.answer.root, TOLERANCE[dtype], "root")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_a_zero_stays_a_zero(name: str, k: int, dtype: str, backend: str) -> None:
    """Nothing is clamped: where the exact belief is 0 so is the answer, and nowhere else.

    (Except where the belief itself is below the normal range of the answer's type.)
    """
    p = problem(name, k)
    e = p.tokens()
    post = p.model.infer(e.leaves, e.mask, dtype=dtype, levels="all", backend=backend)
    for d in p.model.existing_levels:
        want = e.answer.beliefs[d]
        held_to_zero(post.level(d), want, f"level {d}")
    loo = p.model.leave_one_out(e.leaves, e.mask, dtype=dtype, backend=backend)
    held_to_zero(loo, e.answer.leave_one_out, "leave_one_out")


def held_to_zero(got: np.ndarray, want: np.ndarray, what: str) -> None:
    assert (got[want == 0] == 0).all(), f"{what}: a zero was lifted"
    representable = want > 2 * np.finfo(got.dtype).tiny
    assert (got[representable] > 0).all(), f"{what}: a small probability was dropped"


@pytest.mark.parametrize(("name", "k"), [(name, k) for name, k in PAIRS if k > 0])
def test_channels(name: str, k: int) -> None:
    """channel(i) is the product of child marginals along the path (arXiv 2408.15138, Eq. 3)."""
    p = problem(name, k)
    for i in range(p.law.arity**k):
        got = p.model.channel(i)
        np.testing.assert_allclose(got, channel(p.tensors, k, i), rtol=0, atol=1e-15)


def test_impossible_evidence_spoils_its_own_row_only(backend: str) -> None:
    p = problem("log_normal-forbidden", 0)
    e = p.tokens()
    assert e.leaves is not None
    impossible = np.isneginf(e.answer.log_evidence)
    assert 2 <= impossible.sum() <= len(impossible) - 2, "the case must mix both kinds"
    post = p.model.infer(e.leaves, e.mask, levels="all", backend=backend)
    for d in p.model.existing_levels:
        assert np.isnan(post.level(d)[impossible]).all()
        assert np.isfinite(post.level(d)[~impossible]).all()


def test_leave_one_out_survives_its_own_impossible_leaf(backend: str) -> None:
    """One wrong token: its own prediction exists, every other leaf's is undefined."""
    model = hfilter.TreeModel(hfilter.Grammar.broadcast(2, 1.0), depth=2)
    loo = model.leave_one_out(np.array([[0, 0, 1, 0]]), backend=backend)
    np.testing.assert_array_equal(loo[0, 2], [1.0, 0.0])
    assert np.isnan(loo[0, [0, 1, 3]]).all()


def test_a_small_case_by_hand(backend: str) -> None:
    """Two leaves that agree with probability 1/2 + 1/2 * lam**2 (q = 2, uniform root)."""
    lam = 0.6
    model = hfilter.TreeModel(hfilter.Grammar.broadcast(2, lam), depth=1)
    post = model.infer(np.array([[0, 2], [0, 0], [0, 1]]), dtype="float64", backend=backend)
    agree = (1 + lam**2) / 2
    np.testing.assert_allclose(post.log_evidence, np.log([0.5, agree / 2, (1 - agree) / 2]))
    np.testing.assert_allclose(post.leaves[0, 1], [agree, 1 - agree], rtol=1e-14)
    np.testing.assert_allclose(post.root[0], [(1 + lam) / 2, (1 - lam) / 2], rtol=1e-14)
    np.testing.assert_allclose(post.root[2], [0.5, 0.5], rtol=1e-14)


@st.composite
def models(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray, int, int, np.random.Generator]:
    arity = draw(st.integers(2, 3))
    depth = draw(st.integers(1, 3 if arity == 2 else 2))
    largest = 2 if depth == 3 or arity == 3 else 3
    alphabets = draw(st.lists(st.integers(1, largest), min_size=depth + 1, max_size=depth + 1))
    k = draw(st.integers(0, depth))
    zeros = draw(st.sampled_from([0.0, 0.3, 0.8]))
    orders = draw(st.sampled_from([0.0, 30.0, 200.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    pairs = itertools.pairwise(alphabets)
    tensors = [random_tensor(rng, a, b, arity, zeros, orders) for a, b in pairs]
    prior = rng.dirichlet(np.ones(alphabets[0]))
    return tensors, prior, depth, k, rng


@given(
    drawn=models(), kind=st.sampled_from(["tokens", *FIELD_KINDS]), dtype=st.sampled_from(DTYPES)
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_drawn_models(drawn: Any, kind: str, dtype: str, backend: str) -> None:
    """Hypothesis draws the tree, its alphabets, its zeros and the evidence."""
    tensors, prior, depth, k, rng = drawn
    grammar = hfilter.Grammar.from_tensor(tensors)
    model = hfilter.TreeModel(grammar, depth, k, root_prior=prior)
    law = Enumeration([grammar.tensor(d) for d in range(depth)], prior, depth, k)
    q, n = law.alphabets[-1], int(rng.integers(1, 6))
    if kind == "tokens":
        leaves = rng.integers(q + 1, size=(n, law.n_leaves))
        answer = law.infer(token_fields(leaves, None, q))
        judge(model, answer, dtype, TOLERANCE[dtype], leaves=leaves, backend=backend)
    else:
        h = FIELD_KINDS[kind](rng, (n, law.n_leaves, q))
        judge(model, law.infer(h), dtype, allowance(dtype, h), log_fields=h, backend=backend)
