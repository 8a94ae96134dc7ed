"""Schedules and channels: numbers of the paper, laws of the noise, exact reverse laws, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracle import g_test

from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.noising import GaussianChannel, MaskingChannel, Schedule, UniformChannel, gaussian


def test_published_schedule() -> None:
    s = Schedule.published()
    betas = np.linspace(2e-4, 0.04, 500)
    np.testing.assert_allclose(s.betas, betas, rtol=1e-13)
    np.testing.assert_allclose(
        s.alpha_bars, np.concatenate([[1], np.cumprod(1 - betas)]), rtol=1e-12
    )
    assert [round(s.intensity(t), 3) for t in (1, 75, 150)] == [4999.5, 4.213, 1.043]
    long = np.cumprod(1 - betas.astype(np.longdouble))
    want = (np.sqrt(long) / (1 - long)).astype(float)
    np.testing.assert_allclose(s.intensity(np.arange(1, 501)), want, rtol=1e-12)
    half = Schedule.published(250)
    np.testing.assert_allclose(half.betas[[0, -1]], [4e-4, 0.08])


@pytest.mark.parametrize(
    "s", [Schedule.published(40), Schedule.cosine(30), Schedule([0.5, 0.1, 0.9])], ids=str
)
def test_coefficients(s: Schedule) -> None:
    """q(x_{t-1} | x_t, x_0) from the joint Gaussian of x_{t-1} and x_t, and DDIM's step from its definition."""
    for t in range(1, s.n_steps + 1):
        now, before, beta = s.alpha_bars[t], s.alpha_bars[t - 1], s.betas[t - 1]
        cov, var = np.sqrt(1 - beta) * (1 - before), 1 - now
        a, b, s_t = s.posterior(t)
        gain = cov / var
        np.testing.assert_allclose(b, gain, atol=1e-12)
        np.testing.assert_allclose(a, np.sqrt(before) - gain * np.sqrt(now), atol=1e-12)
        np.testing.assert_allclose(s_t**2, (1 - before) - gain * cov, atol=1e-12)
        a, b = s.deterministic(t)
        eps = 0.7
        x = np.sqrt(now) * 0.3 + np.sqrt(1 - now) * eps
        want = np.sqrt(before) * 0.3 + np.sqrt(1 - before) * eps
        np.testing.assert_allclose(a * 0.3 + b * x, want, atol=1e-12)
    np.testing.assert_allclose(s.posterior(1), (1, 0, 0), atol=1e-14)
    many = s.posterior(np.arange(1, s.n_steps + 1))
    assert many[0][-1] == s.posterior(s.n_steps)[0]


def test_schedules_are_values() -> None:
    a, b = Schedule.published(100), Schedule.custom(Schedule.published(100).betas, "mine")
    assert a == b
    assert hash(a) == hash(b)
    assert a.digest == b.digest
    assert a != Schedule.cosine(100)
    assert Schedule(**a.as_dict()) == a
    assert "100 steps" in repr(a)
    with pytest.raises(ValueError, match="read-only"):
        a.betas[0] = 0.5


def test_gaussian_noise_is_the_stream() -> None:
    """signal one-hot + sigma eps with eps of `gaussian.normal`, for one time and for one of each row."""
    channel = GaussianChannel()
    leaves = np.random.default_rng(0).integers(5, size=(30, 7))
    times = np.arange(30) * 17
    x = channel.corrupt(leaves, times, 5, seed=3, start=100, purpose="user", step=9)
    eps = gaussian.normal(3, "user", 9, 30, 35, start=100).reshape(30, 7, 5)
    kept = channel.schedule.alpha_bars[times][:, None, None]
    want = np.sqrt(kept) * np.eye(5)[leaves] + np.sqrt(1 - kept) * eps
    np.testing.assert_allclose(x, want, atol=1e-6)
    assert (x[0] == np.eye(5)[leaves[0]]).all(), "nothing happens by time 0"
    for i in (3, 29):
        one = channel.corrupt(
            leaves[i : i + 1], int(times[i]), 5, seed=3, start=100 + i, purpose="user", step=9
        )
        assert (one[0] == x[i]).all()
    assert (channel.corrupt(leaves, 9, 5, seed=3) != channel.corrupt(leaves, 9, 5, seed=4)).all()


def law_of(make: Any, clean: int, survival: float, q: int = 3) -> np.ndarray:
    law = np.zeros(q + 1)
    if make is MaskingChannel:
        law[q] = 1 - survival
    else:
        law[:q] = (1 - survival) / q
    law[clean] += survival
    return law


@pytest.mark.parametrize("make", [MaskingChannel, UniformChannel])
def test_discrete_noise(make: Any) -> None:
    """Frequencies of every state after every clean symbol: 12 tests at 1e-5 each, false alarms 1.2e-4.

    The mutant: a survival that is off by .03.
    """
    channel, n = make.linear(5), 40_000
    leaves = np.tile([0, 1, 2, 2], (n, 1))
    for t in range(6):
        x = channel.corrupt(leaves, t, 3, seed=t)
        assert x.dtype == np.uint8
        survival = 1 - t / 5
        for j, clean in ((0, 0), (1, 1), (3, 2)):
            counts = np.bincount(x[:, j], minlength=4)
            if t in (0, 5) and make is MaskingChannel:
                assert counts[clean if t == 0 else 3] == n
            elif t > 0:
                assert g_test(counts, law_of(make, clean, survival)) > 1e-5
                assert g_test(counts, law_of(make, clean, abs(survival - 0.03))) < 1e-5
            else:
                assert counts[clean] == n
        i = slice(7, 9)
        assert (channel.corrupt(leaves[i], np.full(2, t), 3, seed=t, start=7) == x[i]).all()


@pytest.mark.parametrize("make", [MaskingChannel, UniformChannel])
def test_reverse_laws(make: Any) -> None:
    """Against the chain's transition matrices, multiplied out, for every pair of states and every time."""
    q = 3
    channel = make.cosine(6)
    states = q + (make is MaskingChannel)
    step, upto = [np.eye(states)], [np.eye(states)]  # step[t][z, x_t], upto[t][x_0, x_t]
    for t in range(1, 7):
        stay = channel.survival[t] / channel.survival[t - 1]
        matrix = stay * np.eye(states)
        if make is MaskingChannel:
            matrix[:, q] += 1 - stay
        else:
            matrix += (1 - stay) / q
        step.append(matrix)
        upto.append(upto[-1] @ matrix)
    rng = np.random.default_rng(1)
    for t in range(1, 7):
        for seen in range(states):
            possible = upto[t][:q, seen] > 0
            if not possible.any():
                continue
            law = rng.random(q) * possible
            law /= law.sum()
            want = np.zeros(states)
            for x0 in np.flatnonzero(possible):
                joint = upto[t - 1][x0] * step[t][:, seen]
                want += law[x0] * joint / joint.sum()
            got = channel.reverse_law(np.array([[seen]]), t, law[None, None])[0, 0]
            np.testing.assert_allclose(got, want, atol=1e-13, err_msg=f"t = {t}, x_t = {seen}")
    lost = channel.reverse_law([[0]], 2, np.full((1, 1, q), np.nan))
    assert np.isnan(lost).all()


GAUSSIAN, MASKING = GaussianChannel(), MaskingChannel.linear(4)
REFUSALS: tuple[tuple[Callable[[], Any], type[Exception], str], ...] = (
    (lambda: Schedule([0.1, 1.0]), ArgumentError, "betas must be above 0 and below 1, got 1 for the step to t = 2"),
    (lambda: Schedule([0.1, np.nan]), ArgumentError, "betas must be above 0"),
    (lambda: Schedule([]), ShapeError, "betas must have shape"),
    (lambda: Schedule([[0.1]]), ShapeError, "betas must have shape"),
    (lambda: Schedule(["a"]), DTypeError, "betas must be numbers"),
    (lambda: Schedule.published(20), ArgumentError, "n_steps must be an integer from 21"),
    (lambda: Schedule.published(50.0), DTypeError, "n_steps"),  # type: ignore[arg-type]
    (lambda: Schedule.cosine(0), ArgumentError, "n_steps"),
    (lambda: GAUSSIAN.schedule.intensity(0), ArgumentError, "t must be an integer from 1 to 500, got 0"),
    (lambda: GAUSSIAN.schedule.signal(-1), ArgumentError, "t must be an integer from 0 to 500"),
    (lambda: GAUSSIAN.schedule.posterior(2.5), DTypeError, "t must be an integer"),
    (lambda: GAUSSIAN.schedule.posterior(True), DTypeError, "t must be an integer"),
    (lambda: GaussianChannel("cosine"), DTypeError, "schedule must be"),  # type: ignore[arg-type]
    (lambda: GAUSSIAN.corrupt([[0, 3]], 1, 3, seed=0), ArgumentError, "leaves must be clean tokens from 0 to 2"),
    (lambda: GAUSSIAN.corrupt([[0.0]], 1, 3, seed=0), DTypeError, "leaves must be integers"),
    (lambda: GAUSSIAN.corrupt([0], 1, 3, seed=0), ShapeError, "leaves must have shape"),
    (lambda: GAUSSIAN.corrupt([[0]], 501, 3, seed=0), ArgumentError, "t must be an integer from 0 to 500"),
    (lambda: GAUSSIAN.corrupt([[0]], [1, 2], 3, seed=0), ShapeError, r"t must .* shape \(1,\)"),
    (lambda: GAUSSIAN.corrupt([[0]], 1, 3, seed=-1), ArgumentError, "seed"),
    (lambda: GAUSSIAN.corrupt([[0]], 1, 3, seed=0, purpose="x"), ArgumentError, "purpose must be one of"),
    (lambda: MaskingChannel([0.9, 0.5]), ArgumentError, "survival must begin with 1"),
    (lambda: MaskingChannel([1.0, 0.5, 0.6]), ArgumentError, "survival must begin with 1"),
    (lambda: MaskingChannel([1.0, np.nan]), ArgumentError, "survival must begin with 1"),
    (lambda: UniformChannel([1.0]), ShapeError, "survival must have shape"),
    (lambda: UniformChannel.of_schedule(None), DTypeError, "schedule must be"),  # type: ignore[arg-type]
    (lambda: MASKING.corrupt([[3]], 1, 3, seed=0), ArgumentError, "leaves must be clean tokens"),
    (lambda: MASKING.log_fields([[0]], 1), ArgumentError, "vocab_size must be given"),
    (lambda: MASKING.log_fields([[4]], 1, 3), ArgumentError, "x_t must hold tokens from 0 to 3"),
    (lambda: MASKING.log_fields([[0]], 5, 3), ArgumentError, "t must be an integer from 1 to 4"),
    (lambda: MASKING.log_fields([[0.5]], 1, 3), DTypeError, "x_t must be tokens"),
)  # fmt: skip


@pytest.mark.parametrize("row", range(len(REFUSALS)))
def test_refusals(row: int) -> None:
    call, error, message = REFUSALS[row]
    with pytest.raises(error, match=message):
        call()
