"""Divergences of denoisers: against sums over all sequences, and on denoisers with known answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from cases import CASES, problem

import hfilter
from hfilter.diffusion import EmpiricalDenoiser, ExactDenoiser, TokenPrior
from hfilter.diffusion.measures import (
    along_time,
    sequential,
    split_divergence,
    split_matrix,
    spread_times,
)
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.noising import GaussianChannel, MaskingChannel, Schedule

CHANNEL = GaussianChannel(Schedule.published(40))
MODEL = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
LEAVES = MODEL.sample(200, seed=3).leaves


class Tilted:
    """exp(h) more weight on symbol 0 than another denoiser gives, and the law of its own choosing."""

    def __init__(self, base: Any, h: float) -> None:
        self.base, self.h = base, h
        self.channel, self.n_leaves, self.vocab_size = base.channel, base.n_leaves, base.vocab_size

    def log_probabilities(self, x_t: Any, t: Any) -> Any:
        logs = self.base.log_probabilities(x_t, t).astype(np.float64)
        logs[..., 0] += self.h
        return logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))


class Says(Tilted):
    """Whatever a function makes of the law of another denoiser."""

    def __init__(self, base: Any, change: Any) -> None:
        super().__init__(base, 0.0)
        self.change = change

    def log_probabilities(self, x_t: Any, t: Any) -> Any:
        return self.change(self.base.log_probabilities(x_t, t))


def by_hand(p: np.ndarray, m: np.ndarray) -> float:
    """KL per sequence, term by term, over (n, L, q)."""
    total = 0.0
    for a, b in zip(p.ravel().tolist(), m.ravel().tolist(), strict=True):
        if a > 0:
            total += a * math.log(a / b) if b > 0 else math.inf
    return total / len(p)


NAMES = [case.name for case in CASES if case.name != "wide-alphabet"]


@pytest.mark.parametrize("name", NAMES)
def test_sequential_is_the_sum_over_all_trees(name: str) -> None:
    levels = range(problem(name, 0).model.depth + 1)
    model, q = problem(name, 0).model, problem(name, 0).q
    other = Tilted(TokenPrior(model.n_leaves, q, CHANNEL, dtype="float64"), 0.3)
    leaves = model.sample(5, seed=5).leaves
    for t in (2, 12, 40):
        x_t = CHANNEL.corrupt(leaves, t, q, seed=9, start=7, purpose="held_out")
        fields = CHANNEL.log_fields(x_t.astype(np.float64), t)
        laws = [problem(name, k).law.infer(fields).beliefs[model.depth] for k in levels]
        laws = [np.where(law > 1e-30, law, 0.0) for law in laws]
        theirs = np.exp(other.log_probabilities(x_t, t))
        found = sequential(other, model, CHANNEL, leaves, t, seed=9, start=7)
        want = [by_hand(law, theirs) for law in laws]
        np.testing.assert_allclose(found.kl, want, rtol=1e-7, atol=1e-9)
        along = along_time(model, CHANNEL, leaves, [t], {"other": other}, seed=9, start=7)
        filtered = [
            by_hand(laws[0], problem(name, k).law.infer(fields).beliefs[model.depth])
            for k in levels
        ]
        np.testing.assert_allclose(along.filtered[0], filtered, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(along.kl[0], want[0], rtol=1e-7, atol=1e-9)
        picked = np.take_along_axis(laws[0], leaves[:, :, None].astype(int), axis=2)
        np.testing.assert_allclose(along.bayes, -np.log(picked).sum() / 5, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            along.entropy[0], by_hand(laws[0], np.ones_like(laws[0])) * -1, atol=1e-9
        )
        assert along.loss.shape == (1, 1)


@pytest.mark.parametrize("t", [1, 5, 12, 40])
def test_known_answers(t: int) -> None:
    exact = ExactDenoiser(MODEL, CHANNEL)
    found = sequential(exact, MODEL, None, LEAVES, t)
    assert abs(found.kl[0]) < 1e-5  # the denoiser is in single precision
    for k in range(3):
        # BP_k answers for itself: the diagonal of the ladder is zero, and its row 0 is along_time's.
        one = ExactDenoiser(MODEL, CHANNEL, filter_level=k, dtype="float64")
        rung = sequential(one, MODEL, CHANNEL, LEAVES, t)
        assert abs(rung.kl[k]) < 1e-12
        along = along_time(MODEL, CHANNEL, LEAVES, [t], {"one": one})
        np.testing.assert_allclose(along.filtered[0, k], rung.kl[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(along.kl[0, 0], rung.kl[0], rtol=1e-6, atol=1e-9)
        assert along.loss[0, 0] >= 0.0


def test_a_tilt_costs_what_it_must() -> None:
    """KL(p ‖ p tilted by h on symbol 0) = ln(1 - p_0 + p_0 e^h) - h p_0, leaf by leaf."""
    exact = ExactDenoiser(MODEL, CHANNEL, dtype="float64")
    x_t = CHANNEL.corrupt(LEAVES, 12, 4, seed=0, purpose="held_out")
    p = exact(x_t, 12)[..., 0]
    for h in (-2.0, 0.1, 1.0):
        want = (np.log1p(p * np.expm1(h)) - h * p).sum(axis=1)
        found = sequential(Tilted(exact, h), MODEL, CHANNEL, LEAVES, 12, filter_levels=[0])
        assert found.filter_levels == (0,)
        np.testing.assert_allclose(found.kl, want.mean(), rtol=1e-7)
        np.testing.assert_allclose(found.error, want.std(ddof=1) / np.sqrt(200), rtol=1e-5)
        both = split_divergence(exact, Tilted(exact, h), LEAVES, 12)
        np.testing.assert_allclose(both.forward, want.mean(), rtol=1e-7)
        back = split_divergence(Tilted(exact, h), exact, LEAVES, 12)
        assert (back.forward, back.backward) == (both.backward, both.forward)
        assert both.mean == pytest.approx(0.5 * (both.forward + both.backward), rel=1e-12)


def test_matrix_is_made_of_pairs() -> None:
    exact = ExactDenoiser(MODEL, CHANNEL)
    several = [exact, Tilted(exact, 0.5), ExactDenoiser(MODEL, CHANNEL, filter_level=2)]
    times = spread_times(200, 40)
    found = split_matrix(several, LEAVES, times, seed=4)
    assert (np.diag(found) == 0).all()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pair = split_divergence(several[i], several[j], LEAVES, times, seed=4)
        np.testing.assert_allclose(
            [found[i, j], found[j, i]], [pair.forward, pair.backward], rtol=1e-10
        )


def test_a_mean_over_times_is_one() -> None:
    """A time for each row is the same as asking time by time: and every time occurs once in T rows."""
    other = Tilted(TokenPrior(4, 4, CHANNEL), 0.3)
    times = spread_times(200, 40)
    assert (np.bincount(times)[1:] == 5).all()
    whole = sequential(other, MODEL, CHANNEL, LEAVES, times)
    parts = [
        sequential(other, MODEL, CHANNEL, LEAVES[i : i + 1], int(times[i]), start=i).kl
        for i in range(200)
    ]
    np.testing.assert_allclose(whole.kl, np.mean(parts, axis=0), rtol=1e-6, atol=1e-7)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Tilted(TokenPrior(4, 4, CHANNEL), 0.3)
    whole = sequential(other, MODEL, CHANNEL, LEAVES, 12, seed=1, start=3)
    monkeypatch.setattr("hfilter.diffusion.measures.asking._BLOCK_VALUES", 16 * 7)
    parts = sequential(other, MODEL, CHANNEL, LEAVES, 12, seed=1, start=3)
    np.testing.assert_allclose(whole.kl, parts.kl, rtol=1e-12)
    # Another seed and other samples are other noise, other times are other noise levels.
    for changed in ({"seed": 2, "start": 3}, {"seed": 1, "start": 4}):
        assert sequential(other, MODEL, CHANNEL, LEAVES, 12, **changed).kl[0] != whole.kl[0]


def test_zeros_are_zeros_and_infinities_are_said() -> None:
    exact = ExactDenoiser(MODEL, CHANNEL, dtype="float64")

    def never_two(logs: np.ndarray) -> np.ndarray:
        logs = logs.copy()
        logs[..., 2] = -np.inf
        return logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))

    blind = Says(exact, never_two)
    found = sequential(blind, MODEL, CHANNEL, LEAVES, 12)
    assert np.isinf(found.kl).all()
    assert (found.n_infinite > 0).all()
    assert np.isnan(found.error).all()
    both = split_divergence(blind, exact, LEAVES, 12)
    assert np.isfinite(both.forward)  # what says zero is not asked about where it says zero
    assert np.isinf(both.backward)
    assert both.n_infinite > 0
    # The memoriser of few rows excludes what inference does not.
    memory = EmpiricalDenoiser(LEAVES[:2], 4, CHANNEL)
    assert np.isinf(sequential(memory, MODEL, CHANNEL, LEAVES, 12).kl[0])
    # Leaves that are seen are certain, for all: zeros of both make nothing.
    masked = MaskingChannel.linear(10)
    ladder = along_time(MODEL, masked, LEAVES, [1, 5, 10])
    assert np.isfinite(ladder.filtered).all()
    assert ladder.as_dict()["times"] == [1, 5, 10]


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (DTypeError, "denoiser must be a denoiser", {"denoiser": None}),
        (DTypeError, "model must be a TreeModel", {"model": None}),
        (ArgumentError, "model has 8 leaves", {"model": hfilter.TreeModel(MODEL.grammar, depth=3)}),
        (DTypeError, "leaves must be integers", {"leaves": LEAVES / 2}),
        (ShapeError, "leaves must have shape", {"leaves": LEAVES[:, :3]}),
        (ArgumentError, "leaves must be from 0 to 3", {"leaves": LEAVES + 1}),
        (ArgumentError, "leaves holds no row", {"leaves": LEAVES[:0]}),
        (ArgumentError, "t must be", {"t": 0}),
        (ArgumentError, "t must be", {"t": 41}),
        (ShapeError, "t must be an integer or have shape", {"t": [1, 2]}),
        (ArgumentError, "t must be from 1 to 40", {"t": np.arange(200)}),
        (DTypeError, "t must be integers", {"t": np.ones(200)}),
        (ArgumentError, "filter_levels must be", {"filter_levels": [3]}),
        (ArgumentError, "seed must be", {"seed": -1}),
    ],
)
def test_bad_input_is_named(error: type[Exception], words: str, changes: dict[str, Any]) -> None:
    arguments = {
        "denoiser": ExactDenoiser(MODEL, CHANNEL), "model": MODEL, "channel": CHANNEL, "leaves": LEAVES,
        "t": 12, **changes,
    }  # fmt: skip
    with pytest.raises(error, match=words):
        sequential(**arguments)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("NaN or infinity in 1 of 200 rows, the first of them row 7", "nan"),
        ("sum to 1", lambda logs: logs + 0.1),
        ("must answer with shape", lambda logs: logs[:, :2]),
    ],
)
def test_bad_answers_are_named(words: str, change: Any) -> None:
    def broken(logs: np.ndarray) -> np.ndarray:
        logs = logs.copy()
        logs[7, 1, 2] = np.nan
        return logs

    exact = ExactDenoiser(MODEL, CHANNEL)
    bad = Says(exact, broken if change == "nan" else change)
    with pytest.raises((ArgumentError, ShapeError), match=f"second.*{words}|second {words}"):
        split_divergence(exact, bad, LEAVES, 12)
    with pytest.raises(ArgumentError, match="at least 2"):
        split_matrix([exact], LEAVES, 12)
    other = ExactDenoiser(MODEL, GaussianChannel(Schedule.published(41)))
    with pytest.raises(ArgumentError, match=r"second answers for .* 41 time steps"):
        split_divergence(exact, other, LEAVES, 12)
