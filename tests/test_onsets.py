"""Error bars over models and onsets: coverage by simulation, with mutants that must be rejected."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from hfilter.diffusion.measures import onset, onset_difference, over_models, resample
from hfilter.errors import ArgumentError, DTypeError, HFilterError, ShapeError

STEPS = np.unique(np.geomspace(100, 50_000, 25).astype(int))
X = np.log(STEPS)


def valleys(turns: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A lopsided valley for each turn, steep before it and shallow after: (…, S), minimum at turns."""
    d = X - np.log(turns)[..., None]
    y = 0.3 + np.where(d < 0, np.exp(-d) - 1 + d, 0.3 * d**2)
    return y * np.exp(noise * np.random.default_rng(seed).normal(size=y.shape))


# ------------------------------------------------------------------------------- error bars


@pytest.mark.parametrize("m", [4, 8])
@pytest.mark.parametrize("pairs", [False, True])
def test_intervals_cover(m: int, pairs: bool) -> None:
    """68 % intervals of 200 means over models: false alarm below 1e-4 (binomial, 4 standard errors).

    Pairs of models are allowed a coverage 8 % off: their error is the jackknife's linear part. The mutant
    is the bootstrap of m from m without Student's factor, which covers less than 60 % for four models.
    """
    rng = np.random.default_rng(m)
    hits = plain = 0
    errors, means = [], []
    for r in range(200):
        a = rng.normal(size=m)
        values = a[:, None] + a + 0.3 * rng.normal(size=(m, m)) if pairs else a
        found = over_models(values, level=0.68, n_resamples=300, seed=r)
        hits += found.low <= 0.0 <= found.high
        errors.append(found.error)
        means.append(found.mean)
        naive = rng.choice(a, (300, m)).mean(axis=1)
        low, high = np.quantile(naive, [0.16, 0.84])
        plain += low <= 0.0 <= high
    allowed = 4 * math.sqrt(0.68 * 0.32 / 200)
    assert abs(hits / 200 - 0.68) < allowed + 0.08 * pairs
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.25)
    if m == 4:
        assert plain / 200 < 0.60


def test_error_is_the_standard_error() -> None:
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    found = over_models(values, n_resamples=20_000)
    assert found.mean == pytest.approx(2.8)
    # 20 000 resamples: the error of the error is 0.5 %; that of m draws of m would be 10 % lower.
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(5), rel=0.03)
    pairs = values[:, None] + values
    twice = over_models(pairs, n_resamples=20_000)
    assert twice.mean == pytest.approx(5.6)
    assert twice.error == pytest.approx(2 * values.std(ddof=1) / math.sqrt(5), rel=0.03)
    assert json.loads(json.dumps(twice.as_dict()))["unit"] == "blocks"


def test_blocks_are_what_is_drawn() -> None:
    """Seeds of one block are no independent models: the error is that of the means over blocks."""
    by_block = np.array([1.0, 2.0, 4.0])
    values, blocks = np.repeat(by_block, 4), np.repeat([7, 5, 9], 4)
    found = over_models(values, blocks, n_resamples=20_000)
    assert (found.unit, found.n_models, found.n_blocks) == ("blocks", 12, 3)
    assert found.error == pytest.approx(by_block.std(ddof=1) / math.sqrt(3), rel=0.03)
    # Two blocks: nothing is known of other blocks, and the unit says so.
    two = np.array([1.0, 3.0, 10.0, 14.0])
    within = over_models(two, [0, 0, 1, 1], n_resamples=20_000)
    assert within.unit == "models within blocks"
    variance = (two[:2].var(ddof=1) / 2 + two[2:].var(ddof=1) / 2) / 4
    assert within.error == pytest.approx(math.sqrt(variance), rel=0.03)
    across = over_models(two[:, None] + two, [0, 0, 1, 1], n_resamples=20_000)
    assert across.mean == pytest.approx(14.0)
    assert across.error == pytest.approx(2 * math.sqrt(variance), rel=0.03)
    inside = over_models(two[:, None] + two, [0, 0, 1, 1], pairs="same")
    assert inside.mean == pytest.approx(14.0)
    assert math.isnan(inside.error)
    alone = over_models([1.0])
    assert (alone.mean, alone.unit) == (1.0, "none")
    assert math.isnan(alone.error)
    assert over_models([1.0, 2.0]).unit == "blocks"
    assert math.isnan(over_models(np.ones((2, 2))).error)  # one pair


def test_infinity_stays_infinite() -> None:
    found = over_models([1.0, np.inf, 2.0])
    assert found.mean == np.inf
    assert math.isnan(found.error)
    pairs = np.ones((3, 3))
    pairs[0, 1] = np.inf
    assert over_models(pairs).mean == np.inf
    assert over_models(pairs, [0, 0, 1]).mean == 1.0  # the infinite pair is of one block
    pairs[0, 1], pairs[1, 1] = 1.0, np.inf
    assert over_models(pairs).mean == 1.0  # the diagonal is not read


# ----------------------------------------------------------------------------------- onsets


@pytest.mark.parametrize("turn", [300, 1000, 4321, 20_000])
def test_the_minimum_of_a_parabola(turn: int) -> None:
    curve = np.exp(0.1 * (X - np.log(turn)) ** 2)
    found = onset(STEPS, curve[None])
    assert found.step == pytest.approx(turn, rel=1e-9)
    assert found.status == "inside"
    assert (found.unit, math.isnan(found.low), found.is_resolved) == ("none", True, False)
    assert onset(STEPS, curve[None], neighbours=0).step == pytest.approx(found.argmin)
    assert found.rise == pytest.approx(curve[-1] - curve.min())


def test_edges_are_said() -> None:
    falling = onset(STEPS, np.stack([1 / X, 2 / X, 3 / X]))
    assert (falling.status, falling.share_last, falling.argmin) == ("last", 1.0, 50_000)
    assert math.isnan(falling.step)
    assert falling.low == falling.high == np.inf
    assert not falling.is_resolved
    assert "no minimum inside the run" in str(falling)
    rising = onset(STEPS, np.stack([X, 2 * X]))
    assert (rising.status, rising.share_first, rising.low, rising.high) == ("first", 1.0, 0.0, 0.0)
    # Half of the models turn inside the run, half do not: the interval has no upper end.
    mixed = onset(STEPS, np.concatenate([valleys(np.full(4, 15_000)), 20 / X[None].repeat(4, 0)]))
    assert 0.0 < mixed.share_last < 1.0
    assert mixed.high == np.inf
    assert not mixed.is_resolved


def test_intervals_of_onsets_cover() -> None:
    """95 % intervals for four models, 120 times: at least 85 % hold the truth (false alarm 1e-5).

    The mutant, the spread of a single evaluation's grid, is caught by log_error: it must follow the
    spread that the models have.
    """
    rng = np.random.default_rng(0)
    hits, errors, found_at = 0, [], []
    for r in range(120):
        turns = 5000 * np.exp(0.3 * rng.normal(size=4))
        found = onset(STEPS, valleys(turns, 0.03, r), n_resamples=200, seed=r)
        hits += found.low <= 5000 <= found.high
        errors.append(found.log_error)
        found_at.append(math.log(found.step))
    assert hits >= 0.85 * 120
    assert np.mean(errors) == pytest.approx(np.std(found_at), rel=0.25)
    assert abs(np.mean(found_at) - math.log(5000)) < 0.1  # the mean valley is not quite the valley


def test_a_difference_is_paired() -> None:
    """Turns that vary by a factor e between models, the second always 1.5 times the first."""
    turns = 3000 * np.exp(np.array([-1.0, -0.4, 0.0, 0.4, 1.0]))
    first, second = valleys(turns, 0.002, 1), valleys(1.5 * turns, 0.002, 2)
    found = onset_difference(STEPS, first, second)
    assert found.low < 1.5 < found.high
    assert found.share_earlier > 0.99
    assert found.low > 1.0  # though the two intervals overlap by far
    assert found.first.high > found.second.low
    back = onset_difference(STEPS, second, first)
    assert back.ratio == pytest.approx(1 / found.ratio)
    assert back.share_earlier == pytest.approx(1 - found.share_earlier)
    # A pair statistic beside one of single models, as split divergence beside test loss.
    pairs = 0.5 * (first[:, None] + first)
    across = onset_difference(STEPS, pairs, second)
    assert across.ratio == pytest.approx(found.ratio, rel=0.05)
    assert json.loads(json.dumps(across.as_dict()))["first"]["status"] == "inside"


def test_equal_onsets_are_not_told_apart() -> None:
    """Four models, pairs against singles, 60 times: at most 7 claims that the first is earlier or later.

    5 % are allowed, 7 or fewer of 60 then happen but for 1e-3. The mutant compares the two minima of
    the mean curves alone and claims an order every time.
    """
    rng = np.random.default_rng(3)
    claims = 0
    for r in range(60):
        turns = 5000 * np.exp(0.3 * rng.normal(size=4))
        pairs = valleys(np.sqrt(turns[:, None] * turns), 0.05, 2 * r)
        found = onset_difference(
            STEPS, pairs, valleys(turns, 0.05, 2 * r + 1), n_resamples=200, seed=r
        )
        claims += not found.low <= 1.0 <= found.high
        assert found.ratio != 1.0
    assert claims <= 7


def test_differences_at_the_edge() -> None:
    inside = valleys(np.array([900.0, 1000.0, 1100.0]))
    falling = np.stack([1 / X, 2 / X, 3 / X])
    found = onset_difference(STEPS, inside, falling)
    assert (found.ratio, found.low, found.high, found.share_earlier) == (
        np.inf,
        np.inf,
        np.inf,
        1.0,
    )
    assert onset_difference(STEPS, falling, inside).share_earlier == 0.0
    neither = onset_difference(STEPS, falling, falling)
    assert math.isnan(neither.ratio)
    assert (neither.low, neither.high, neither.share_earlier) == (0.0, np.inf, 0.5)
    one = onset_difference(STEPS, inside[:1], falling[:1])
    assert math.isnan(one.share_earlier)


def test_infinite_steps_are_no_minimum() -> None:
    curves = valleys(np.array([900.0, 1000.0, 1100.0]))
    want = onset(STEPS, curves)
    curves[1, :4] = np.inf  # early on one model excludes what is possible
    found = onset(STEPS, curves)
    assert found.step == pytest.approx(want.step)
    curves[1] = np.inf
    with pytest.raises(ArgumentError, match="infinite at every step"):
        onset(STEPS, curves)


@pytest.mark.parametrize(
    ("error", "words", "steps", "curves", "options"),
    [
        (ArgumentError, "leave step 0 out", [0, 1, 2], np.ones((2, 3)), {}),
        (ArgumentError, "increasing", [1, 3, 2], np.ones((2, 3)), {}),
        (ShapeError, "S at least 3", [1, 2], np.ones((2, 2)), {}),
        (DTypeError, "steps must be numbers", ["a", "b", "c"], np.ones((2, 3)), {}),
        (ShapeError, "curves must have shape", [1, 2, 3], np.ones((2, 4)), {}),
        (ArgumentError, "1 NaN, the first of model 1", [1, 2, 3], [[1, 2, 3], [1, np.nan, 3]], {}),
        (ShapeError, "blocks must have shape", [1, 2, 3], np.ones((2, 3)), {"blocks": [1]}),
        (DTypeError, "blocks must be integers", [1, 2, 3], np.ones((2, 3)), {"blocks": [0.5, 1]}),
        (ArgumentError, "level must be", [1, 2, 3], np.ones((2, 3)), {"level": 1.0}),
        (ArgumentError, "of one training block", [1, 2, 3], np.ones((2, 2, 3)), {"blocks": [1, 1]}),
        (ArgumentError, "no two models", [1, 2, 3], np.ones((2, 2, 3)), {"pairs": "same"}),
    ],
)
def test_bad_input_is_named(
    error: type[HFilterError], words: str, steps: Any, curves: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=words):
        onset(steps, curves, **options)


def test_bad_values_are_named() -> None:
    with pytest.raises(ShapeError, match="values must have shape"):
        over_models(np.ones((2, 3)))
    with pytest.raises(ArgumentError, match="NaN"):
        over_models([1.0, np.nan])
    with pytest.raises(ShapeError, match="same models"):
        onset_difference(STEPS, valleys(np.ones(2) * 900), valleys(np.ones(3) * 900))
    assert (resample([0, 1, 2], 5, seed=1).counts == resample([0, 1, 2], 5, seed=1).counts).all()
