"""Overlaps per level of the tree and susceptibility, against counting and enumeration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import problem
from diffused import all_of, gaussian_logs, uniform_logs, weights

import hfilter
from hfilter.diffusion import (
    UTurn,
    exact_end,
    mean_field,
    parse,
    susceptibility,
    susceptibility_of,
    tree_overlap,
)
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.noising import GaussianChannel, MaskingChannel, UniformChannel

SMALL = problem("published-q6-forbidden", 0)
PLAIN = hfilter.provenance()["backend"] == "python"  # some hundred times slower: fewer rows
DEEP = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


def test_overlap_is_counting() -> None:
    """Trees of given symbols, and parses; what the grammar cannot produce has no symbols above."""
    a, b = (DEEP.sample(200, seed=s, levels=True) for s in (1, 2))
    found = tree_overlap(DEEP, a.leaves, b.leaves)
    for d in range(4):
        want = (a.levels[d] == b.levels[d]).mean(axis=1)
        np.testing.assert_array_equal(found.per_sample[d], want)  # leaves determine the tree
        assert found.overlap[d] == pytest.approx(want.mean())
    assert found.parsed.all()
    mixed = tree_overlap(DEEP, a.levels, b.leaves)
    assert mixed.overlap == found.overlap
    assert tree_overlap(DEEP, {0: a.levels[0]}, {0: a.levels[0]}).overlap == {0: 1.0}
    wrong = SMALL.law.draw(6, np.random.default_rng(0))
    wrong[2, :2] = np.argwhere(SMALL.tensors[1].sum(axis=0) == 0)[0]
    lost = tree_overlap(SMALL.model, wrong, wrong)
    assert lost.parsed.tolist() == [True, True, False, True, True, True]
    assert [lost.per_sample[d][2] for d in range(3)] == [0, 0, 1]
    filtered = SMALL.model.filtered(2)
    assert sorted(parse(filtered, wrong)) == [0, 2]


def test_one_shot_law_of_uniform_noise() -> None:
    """CAPABILITIES §7.6: overlap of root and leaves after noise .1 … .5 and back, in one shot.

    Draws against the exact posteriors of the truth (16 tests at 4.5 standard errors: false alarms 1e-4), and
    both against the published numbers, which are off by up to .013 (a sample of about 2000).
    """
    n = 400 if PLAIN else 8000
    clean = DEEP.sample(n, seed=3, levels=True)
    for noise, root, leaf in (
        (0.1, 0.712, 0.881),
        (0.2, 0.581, 0.77),
        (0.3, 0.482, 0.672),
        (0.5, 0.35, 0.494),
    ):
        channel = UniformChannel([1.0, 1.0 - noise])
        x = channel.corrupt(clean.leaves, 1, 4, seed=4)
        end = exact_end(DEEP, channel, x, 1, seed=5, levels="all")
        found = tree_overlap(DEEP, clean.levels, {d: s[:, 0] for d, s in end.levels.items()})
        post = DEEP.infer(log_fields=channel.log_fields(x, 1, 4), levels="all")
        for d in range(4):
            truth = np.take_along_axis(post.level(d), clean.levels[d][..., None].astype(int), 2)[
                ..., 0
            ]
            gap = found.per_sample[d] - truth.mean(axis=1)
            assert abs(gap.mean()) < 4.5 * gap.std() / np.sqrt(n)
        assert abs(found.overlap[0] - root) < 0.013 + 4 * found.error[0]
        assert abs(found.overlap[3] - leaf) < 0.007 + 4 * found.error[3]


def test_mean_field() -> None:
    """The values of arXiv 2402.16991 for v = 16, m = 8, six levels, as the issue's sources give them."""
    got = [mean_field(16, 8, 6, e) for e in (0.05, 0.2, 0.4)]
    np.testing.assert_allclose(got, [0.963, 0.769, 0.243], atol=5e-4)
    assert mean_field(16, 8, 6, 0.0) == pytest.approx(1.0)
    assert mean_field(16, 8, 6, 1.0) == pytest.approx(1 / 16, abs=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_susceptibility_is_enumeration(kind: str) -> None:
    """P(leaves i and j both change | x_t) from the posterior of every sequence."""
    if kind == "gaussian":
        channel: Any = GaussianChannel()
        t = 100
    else:
        channel, t = UniformChannel.linear(10), 4
    starts = SMALL.law.draw(50, np.random.default_rng(1))
    found = susceptibility(SMALL.model, channel, starts, t, seed=9, start=3)
    x = channel.corrupt(starts, t, 6, seed=9, start=3)
    rows, logs = all_of(SMALL.law)
    kept = channel.schedule.alpha_bars[t] if kind == "gaussian" else channel.survival[t]
    told = (
        gaussian_logs(x, np.full(50, kept))
        if kind == "gaussian"
        else uniform_logs(x.astype(int), np.full(50, kept), 6)
    )
    post = weights(rows, logs, told)[0].astype(float)
    change = (rows[None] != starts[:, None]).astype(float)  # (n, S, L)
    joint = np.einsum("ns,nsi,nsj->ij", post, change, change) / 50
    mean = np.diagonal(joint)
    np.testing.assert_allclose(found.change, mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance, joint - np.outer(mean, mean), atol=1e-9)
    cov = joint - np.outer(mean, mean)
    assert found.value == pytest.approx(cov.sum() / mean.sum())
    assert found.by_variance == pytest.approx(cov.sum() / np.trace(cov))
    by_height = [np.trace(cov) / 4, (cov[0, 1] + cov[2, 3]) / 2, cov[:2, 2:].mean()]
    np.testing.assert_allclose(found.by_height(), by_height, atol=1e-9)
    assert found.error > 0


def test_susceptibility_by_counting() -> None:
    """Plain counting meets the exact pair marginals within 4 standard errors, and errors are what they say."""
    channel, n = UniformChannel.linear(10), 400 if PLAIN else 4000
    starts = DEEP.sample(n, seed=1).leaves
    x = channel.corrupt(starts, 3, 4, seed=2)
    ends = exact_end(DEEP, channel, x, 3, seed=3, n_samples=2).leaves
    plain, two = susceptibility_of(starts, ends[:, 0]), susceptibility_of(starts, ends)
    exact = susceptibility(DEEP, channel, starts[: n // 4], 3, seed=2)
    assert abs(plain.value - exact.value) < 4 * np.hypot(plain.error, exact.error)
    assert abs(two.value - exact.value) < 4 * np.hypot(two.error, exact.error)
    change = (ends[:, 0] != starts).astype(float)
    np.testing.assert_allclose(plain.covariance, np.cov(change.T, bias=True), atol=1e-12)
    parts = [susceptibility_of(starts[i::8], ends[i::8, 0]).value for i in range(8)]
    assert 0.4 < np.std(parts, ddof=1) / np.sqrt(8) / plain.error < 2.5
    heights = exact.by_height()
    assert (np.diff(heights) < 0).all(), "the farther apart, the less together"
    independent = susceptibility_of(
        np.zeros((9999, 4), int), np.random.default_rng(0).integers(2, size=(9999, 4))
    )
    assert independent.by_variance == pytest.approx(1.0, abs=0.06)
    assert np.isnan(susceptibility_of(starts[:5], starts[:5]).value), "nothing changes"


def test_u_turn_report() -> None:
    turn = UTurn((3, 5), np.array([[1.0, 0.5], [0.0, 1.0]]), np.zeros((2, 2, 4), int))
    assert turn.as_dict() == {"times": [3, 5], "overlap": [0.75, 0.5], "error": [0.25, 0.5], "n": 2}
    assert "3: 0.750" in repr(turn)


LEAVES = SMALL.law.draw(4, np.random.default_rng(0))
REFUSALS: tuple[tuple[Callable[[], Any], type[Exception], str], ...] = (
    (lambda: tree_overlap(SMALL.model, LEAVES, LEAVES[:2]), ShapeError, "second must have the shape of first"),
    (lambda: tree_overlap(SMALL.model, LEAVES, {0: LEAVES}), ShapeError, r"second must have shape \(n, 1\) at level 0"),
    (lambda: tree_overlap(SMALL.model, {1: LEAVES[:, :2]}, {2: LEAVES}), ArgumentError, "no level in common"),
    (lambda: tree_overlap(SMALL.model, {2: LEAVES * 0.5}, LEAVES), DTypeError, "first must be integers"),
    (lambda: parse(None, LEAVES), DTypeError, "model must be"),  # type: ignore[arg-type]
    (lambda: susceptibility(SMALL.model, GaussianChannel(), LEAVES[:, :3], 3, seed=0), ShapeError, "leaves must"),
    (lambda: susceptibility(SMALL.model, GaussianChannel(), LEAVES + 6, 3, seed=0), ArgumentError, "clean tokens"),
    (lambda: susceptibility(SMALL.model, GaussianChannel(), LEAVES, [3] * 4, seed=0), DTypeError, "t must be one"),  # type: ignore[arg-type]
    (lambda: susceptibility_of(LEAVES, LEAVES[:2]), ShapeError, "ends must have shape"),
    (lambda: susceptibility_of(LEAVES[0], LEAVES), ShapeError, "starts must have shape"),
    (lambda: susceptibility_of(LEAVES, LEAVES).by_height(3), ArgumentError, "arity = 3 makes no tree of 4"),
    (lambda: mean_field(4, 5, 2, 0.1), ArgumentError, "rules_per_symbol"),
    (lambda: mean_field(4, 4, 2, 1.5), ArgumentError, "noise"),
)  # fmt: skip


@pytest.mark.parametrize("row", range(len(REFUSALS)))
def test_refusals(row: int) -> None:
    call, error, message = REFUSALS[row]
    with pytest.raises(error, match=message):
        call()


def test_starts_that_the_model_cannot_produce() -> None:
    wrong = LEAVES.copy()
    wrong[2, :2] = np.argwhere(SMALL.tensors[1].sum(axis=0) == 0)[0]
    with pytest.raises(ArgumentError, match="leaves: the model cannot produce them"):
        susceptibility(SMALL.model, MaskingChannel([1.0, 0.99]), wrong, 1, seed=0)
