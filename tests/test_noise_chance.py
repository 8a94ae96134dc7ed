"""Chance: the noise is standard normal, to the tails, and independent wherever it should be.

Every test of right numbers alarms with probability ALPHA (a z-score beyond LIMIT, or a G-test's p-value below ALPHA).
The file makes about 150 such tests, so the rate of the whole is below 2e-4 over all seeds; the seeds are fixed. Each
test carries mutants, noise with a small fault, which it must reject.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from oracle import g_test

from hfilter import backends
from hfilter.noising.gaussian import PURPOSES, integers, normal, uniform
from hfilter.noising.text import box_muller

ALPHA = 1e-6
LIMIT = NormalDist().inv_cdf(1 - ALPHA / 2)
COMPILED = backends()["portable"].available
N = 1 << (20 if COMPILED else 18)
MOMENTS = {1: 0, 2: 1, 3: 0, 4: 3, 5: 0, 6: 15, 8: 105}
SPREAD = {1: 1, 2: 2, 3: 15, 4: 96, 5: 945, 6: 10170, 8: 2027025 - 105**2}  # variances of powers


def drawn() -> np.ndarray:
    return np.asarray(normal(11, "user", 5, N // 64, 64)).ravel().astype(np.float64)


def moment_scores(z: np.ndarray) -> list[float]:
    scores, power = [], np.ones_like(z)
    for p in range(1, 9):
        power *= z
        if p in MOMENTS:
            scores.append(float((power.mean() - MOMENTS[p]) * np.sqrt(len(z) / SPREAD[p])))
    return scores


def law_of_bins(z: np.ndarray) -> float:
    """G-test over 256 cells of equal probability, cut once more where the tails are."""
    law = NormalDist()
    tails = [sign * x for sign in (-1, 1) for x in (3.5, 4.0, 4.5)]
    edges = np.array(sorted([*(law.inv_cdf(i / 256) for i in range(1, 256)), *tails]))
    below = np.diff([0.0, *(law.cdf(x) for x in edges[edges < 0]), 0.5])
    above = np.diff([0.0, *(law.cdf(-x) for x in edges[edges > 0][::-1]), 0.5])[::-1]
    edges = edges[edges != 0]
    half = len(below)
    cells = np.bincount(np.searchsorted(np.insert(edges, half - 1, 0), z), minlength=2 * half)
    return g_test(cells, np.concatenate([below, above]))


def test_moments_and_bins() -> None:
    z = drawn()
    assert max(abs(s) for s in moment_scores(z)) < LIMIT
    assert law_of_bins(z) > ALPHA


MUTANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "a percent wide": lambda z: z * 1.01,
    "off by a hundredth": lambda z: z + 0.01,
    "two hundred steps": lambda z: np.round(z * 32) / 32,
    "cut at 3.5": lambda z: np.clip(z, -3.5, 3.5),
    "a sum of twelve": lambda z: uniform(1, "user", 0, len(z) // 4, 12).sum(axis=1) - 6,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_faults_of_the_law_are_rejected(name: str) -> None:
    z = MUTANTS[name](drawn())
    assert max(abs(s) for s in moment_scores(z)) > LIMIT or law_of_bins(z) < ALPHA


def test_every_word_has_its_radius() -> None:
    """Not by chance but by enumeration: the smallest and the largest words and some of each size, against float64.

    The tail is as long as 32 bits make it, and no word but the last few hundred gives 0.
    """
    few = np.arange(1 << 12, dtype=np.uint64)
    spread = (np.arange(1 << 14, dtype=np.uint64) << np.uint64(18)) + np.uint64(12345)
    w = np.concatenate([few, np.uint64(2**32 - 1) - few, spread])
    z0, z1 = box_muller(w, np.zeros_like(w))  # the angle is 0
    assert not z1.any()
    wanted = -2 * np.log((w.astype(np.float64) + 0.5) / 2.0**32)
    got = z0.astype(np.float64) ** 2
    # near u = 1 the word itself is rounded to 24 bits: 2^-25 of 1 - u either way, twice in the square
    assert (abs(got - wanted) <= 1e-6 * wanted + 2.0**-23).all()
    assert 6.7 < z0.max() < 6.77
    assert np.count_nonzero(z0 == 0) < 512
    angles = (np.arange(1 << 14, dtype=np.uint64) << np.uint64(18)) + np.uint64(1 << 17)
    x, y = box_muller(np.full_like(angles, 2**31), angles)
    radius = np.hypot(x.astype(np.float64), y)
    np.testing.assert_allclose(radius, np.sqrt(2 * np.log(2)), rtol=1e-6)
    turn = np.sort(np.arctan2(y.astype(np.float64), x))
    # 2^14 angles at equal steps, all around the circle: cells of 2^18 words by their middle
    np.testing.assert_allclose(np.diff(turn), 2 * np.pi / 2**14, atol=2e-6)


def together(a: np.ndarray, b: np.ndarray) -> list[float]:
    """z-scores of correlations: of the numbers, their squares, signs with squares."""
    pairs = [
        (a, b),
        (a * a - 1, b * b - 1),
        (a, b * b - 1),
        (a * a - 1, b),
        (np.sign(a), np.sign(b)),
    ]
    return [float((x * y).sum() / np.sqrt((x * x * y * y).sum())) for x, y in pairs]


def joint(a: np.ndarray, b: np.ndarray) -> float:
    """G-test of 16 by 16 cells of equal probability."""
    cuts = [NormalDist().inv_cdf(i / 16) for i in range(1, 16)]
    code = 16 * np.searchsorted(cuts, a) + np.searchsorted(cuts, b)
    return g_test(np.bincount(code, minlength=256), np.full(256, 1 / 256))


def other(**change: int | str) -> np.ndarray:
    """A million numbers of one column of entries, with one thing another than usual."""
    given = {"seed": 7, "purpose": "reverse", "step": 100, "start": 0, "entry": 8} | change
    entry, n = int(given.pop("entry")), N >> 3
    size = entry + 1
    z = normal(
        given["seed"], str(given["purpose"]), int(given["step"]), n, size, start=given["start"]
    )
    return np.asarray(z)[:, entry].astype(np.float64)


CHANGES: dict[str, dict[str, int | str]] = {
    **{f"entry {e}": {"entry": e} for e in (9, 10, 11, 12, 16, 7, 0)},
    **{f"step {s}": {"step": s} for s in (101, 99, 100 + 2**20)},
    **{f"purpose {p}": {"purpose": p} for p in PURPOSES if p != "reverse"},
    "next sample": {"start": 1},
    "sample + 2^32": {"start": 2**32},
    "seed + 1": {"seed": 8},
    "seed + 2^32": {"seed": 7 + 2**32},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_should_be_independent_is(name: str) -> None:
    a, b = other(), other(**CHANGES[name])
    assert max(abs(s) for s in together(a, b)) < LIMIT
    assert joint(a, b) > ALPHA


def test_dependence_is_rejected() -> None:
    """Pairs that share a radius, an angle, a sign, or a hundredth of their variance."""
    a, b, c = other(), other(entry=12), other(entry=16)
    radius = np.hypot(a, other(entry=9))
    mutants = {
        "a radius": radius * np.cos(2 * np.pi * uniform(1, "user", 0, len(a), 1)[:, 0]),
        "a sign": np.abs(b) * np.sign(a),
        "a hundredth": 0.1 * a + np.sqrt(0.99) * c,
        "the same": a,
    }
    for name, mutant in mutants.items():
        assert max(abs(s) for s in together(a, mutant)) > LIMIT or joint(a, mutant) < ALPHA, name


def test_noise_along_a_trajectory_is_white() -> None:
    """One sample's noise over 4096 steps: means of products at all lags up to 8, and of the sum."""
    z = np.stack([normal(3, "reverse", t, 1, 96)[0] for t in range(4096)]).astype(np.float64)
    for lag in range(1, 9):
        x = z[lag:] * z[:-lag]
        assert abs(x.sum() / np.sqrt(x.size)) < LIMIT, lag
    assert abs(z.sum() / np.sqrt(z.size)) < LIMIT
    # and the reverse steps do not see what the start or the forward noise was
    for purpose in ("start", "forward"):
        first = normal(3, purpose, 0, 1, 96)[0].astype(np.float64)
        assert np.abs(z @ first / np.sqrt((first**2).sum())).max() < NormalDist().inv_cdf(
            1 - ALPHA / 8192
        )


def test_integers_and_uniform_numbers() -> None:
    t = integers(5, "times", 0, N >> 3, 1, 501)
    assert g_test(np.bincount(t - 1, minlength=500), np.full(500, 1 / 500)) > ALPHA
    wrong = np.where(t == 1, 2, t)  # one value never comes
    assert g_test(np.bincount(wrong - 1, minlength=500), np.full(500, 1 / 500)) < ALPHA
    u = uniform(5, "user", 0, N >> 4, 3)
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        assert (
            g_test(np.bincount((column * 256).astype(int), minlength=256), np.full(256, 1 / 256))
            > ALPHA
        )
        low = (column * 2.0**45) % 1  # the low bits too
        assert (
            g_test(np.bincount((low * 64).astype(int), minlength=64), np.full(64, 1 / 64)) > ALPHA
        )
    assert abs(together(*(np.sqrt(12) * (u.T[:2] - 0.5)))[0]) < LIMIT
