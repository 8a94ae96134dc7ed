"""Geometric mixtures, the coordinate between two predictors, and noisy logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import hfilter
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.oracles import (
    ExactBP,
    GeometricMixture,
    Memorizer,
    NoisyLogits,
    Predictor,
    coordinate,
    failure_probability,
    geometric_mixture,
)

MODEL = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
LAMS = (0.0, 1e-4, 0.3, 0.5, 0.999, 1.0)


class Fixed:
    """The same law everywhere; knows nothing of vocabularies."""

    def __init__(self, p: Any) -> None:
        self.p = np.asarray(p)

    def predict(self, leaves: Any, mask: Any = None) -> Any:
        return np.broadcast_to(self.p, (*np.shape(leaves), len(self.p))).copy()

    def predict_root(self, leaves: Any, mask: Any = None) -> Any:
        return np.broadcast_to(self.p, (len(leaves), len(self.p))).copy()


def laws(n: int, q: int, zeros: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    p = rng.exponential(size=(n, q)) ** 3 * (rng.random((n, q)) >= zeros)
    p[:, 0] += 1e-3
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def brute_kl(p: np.ndarray, p0: np.ndarray, p1: np.ndarray, lam: float) -> float:
    """Mean KL(p || mixture), term by term."""
    total = 0.0
    for a, b, c in zip(p, p0, p1, strict=True):
        if lam in (0.0, 1.0):
            mixed = (b, c)[int(lam)]
        else:
            mixed = b ** (1 - lam) * c**lam
            mixed = mixed / mixed.sum()
        for x, y in zip(a.tolist(), mixed.tolist(), strict=True):
            if x > 0:
                total += x * math.log(x / y) if y > 0 else math.inf
    return total / len(p)


# ----------------------------------------------------------------------------- geometric mixtures


@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_mixture_is_what_it_says(zeros: float) -> None:
    p0, p1 = laws(50, 5, zeros, 1), laws(50, 5, zeros, 2)
    for lam in LAMS[1:-1]:
        want = p0 ** (1 - lam) * p1**lam
        want /= want.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(geometric_mixture(p0, p1, lam), want, rtol=1e-13)
    assert (geometric_mixture(p0, p1, 0) == p0).all()
    assert (geometric_mixture(p0, p1, 1) == p1).all()
    assert np.isnan(geometric_mixture(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5)).all()
    tiny = np.array([1.0, 1e-300])
    assert geometric_mixture(tiny, tiny[::-1].copy(), 0.5).tolist() == [0.5, 0.5]


def test_mixture_of_predictors() -> None:
    leaves = MODEL.sample(30, seed=0).leaves
    mask = np.random.default_rng(0).random(leaves.shape) < 0.4
    stored = MODEL.sample(200, seed=1)
    p0 = ExactBP(MODEL, noise=0.1)
    p1 = Memorizer(stored.leaves, 4, roots=stored.roots, noise=0.1)
    mixed = GeometricMixture(p0, p1, 0.3)
    assert isinstance(mixed, Predictor)
    want = geometric_mixture(p0.predict(leaves, mask), p1.predict(leaves, mask), 0.3)
    assert (mixed.predict(leaves, mask) == want).all()
    want = geometric_mixture(p0.predict_root(leaves), p1.predict_root(leaves), 0.3)
    assert (mixed.predict_root(leaves) == want).all()
    ends = p0.predict(leaves, mask), p1.predict(leaves, mask)
    for p, lam in ((p0, 0.0), (p1, 1.0), (mixed, 0.3)):
        found = coordinate(p.predict(leaves, mask), *ends, where=mask)
        assert abs(found.value - lam) < 1e-6
        assert abs(found.kl) < 1e-12
        assert found.n_scored == mask.sum()


@pytest.mark.parametrize("zeros", [0.0, 0.3])
@pytest.mark.parametrize("lam", LAMS)
def test_coordinate_of_a_mixture(lam: float, zeros: float) -> None:
    p0, p1 = laws(40, 4, zeros, 3), laws(40, 4, zeros, 4)
    found = coordinate(geometric_mixture(p0, p1, lam), p0, p1)
    assert abs(found.value - lam) < 1e-6
    assert abs(found.kl) < 1e-12


def test_coordinate_minimises() -> None:
    """Against a grid: no other lam is better, for targets on and far off the path."""
    grid = np.linspace(0, 1, 201)
    for seed in range(12):
        zeros = 0.3 * (seed % 2)
        p0, p1, p = (laws(7, 3, zeros, 10 * seed + i) for i in range(3))
        found = coordinate(p, p0, p1)
        values = [brute_kl(p, p0, p1, lam) for lam in grid]
        assert found.kl_p0 == pytest.approx(values[0], rel=1e-12)
        assert found.kl_p1 == pytest.approx(values[-1], rel=1e-12)
        if not np.isfinite(values).any():
            assert np.isnan(found.value)
            assert found.kl == np.inf
            continue
        assert found.kl == pytest.approx(brute_kl(p, p0, p1, found.value), rel=1e-10)
        assert found.kl <= min(values) + 1e-12
        assert abs(found.value - grid[int(np.argmin(values))]) <= 0.0051


def test_coordinate_at_the_ends_of_the_world() -> None:
    p0, p1 = np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])
    assert coordinate(p0, p0, p1).value == 0.0
    assert coordinate(p1, p0, p1).value == 1.0
    assert coordinate(np.array([[0.9, 0.1]]), p0, p1).value == 0.0, "p1 excludes the second symbol"
    same = coordinate(np.array([[0.9, 0.1]]), p0, p0)
    assert np.isnan(same.value), "no path from p0 to itself"
    assert same.kl == same.kl_p0 == same.kl_p1 > 0
    nowhere = coordinate(p0, p1, p1[:, ::-1].copy())
    assert np.isnan(nowhere.value)
    assert nowhere.kl == np.inf
    holes = np.array([[0.5, 0.5], [np.nan, np.nan]])
    part = coordinate(holes, np.array([[0.5, 0.5]] * 2), np.array([[0.8, 0.2]] * 2))
    assert (part.n_scored, part.n_undefined, part.value) == (1, 1, 0.0)


# ---------------------------------------------------------------------------------- noisy logits


def test_failure_probability_by_plain_quadrature() -> None:
    """Φ from the standard library, the trapezoidal rule on a grid of 4 000 points."""
    z = np.linspace(-12, 12, 4001)
    phi = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
    for q, zeros in ((2, 0.0), (4, 0.0), (5, 0.5), (9, 0.0)):
        for tau in (0.05, 0.3, 2.0, 50.0):
            p = laws(4, q, zeros, q)
            got = failure_probability(p, tau)
            for row, value in zip(p, got, strict=True):
                j = int(row.argmax())
                inside = phi.copy()
                for c in range(q):
                    if c != j and row[c] > 0:
                        inside *= cdf(math.log(row[j] / row[c]) / tau + z)
                assert abs(value - (1 - inside.sum() * (z[1] - z[0]))) < 1e-12


@pytest.mark.parametrize("q", [1, 2, 3, 16, 64, 256])
def test_failure_probability_of_equals(q: int) -> None:
    """Nothing to tell them apart: any of q wins alike."""
    p = np.full((2, q), 1 / q)
    np.testing.assert_allclose(failure_probability(p, 0.7), 1 - 1 / q, rtol=0, atol=1e-13)
    assert (failure_probability(p, 0.0) == 0.0).all()


def test_failure_probability_shapes() -> None:
    torch = pytest.importorskip("torch")
    p = laws(6, 4).reshape(2, 3, 4)
    p[1, 1] = np.nan
    got = failure_probability(p, 0.5)
    assert got.shape == (2, 3)
    assert np.isnan(got[1, 1])
    assert np.isfinite(got).sum() == 5
    assert isinstance(failure_probability(torch.from_numpy(p), 0.5), torch.Tensor)
    assert failure_probability(np.array([0.9, 0.1, 0.0]), 0.5) == failure_probability(
        np.array([0.9, 0.1]), 0.5
    )


def distinct_rows(n: int) -> np.ndarray:
    return np.arange(n)[:, None] // 4 ** np.arange(8) % 4


def test_noise_fails_as_often_as_computed() -> None:
    """False alarm: |z| > 5, probability 6e-7 for each of 4. Mutant: tau wrong by 5 % is caught."""
    leaves = distinct_rows(20_000)
    for p in ([0.4, 0.3, 0.2, 0.1], [0.7, 0.3, 0.0, 0.0]):
        p = np.array(p)
        for root in (False, True):
            noisy = NoisyLogits(Fixed(p), 0.5, seed=7)
            law = noisy.predict_root(leaves) if root else noisy.predict(leaves)
            failed = law.argmax(axis=-1) != p.argmax()
            rate = float(failure_probability(p, 0.5))
            z = (failed.mean() - rate) / math.sqrt(rate * (1 - rate) / failed.size)
            assert abs(z) < 5
            if not root:
                wrong = float(failure_probability(p, 0.5 * 1.05))
                assert abs(failed.mean() - wrong) > 5 * math.sqrt(rate * (1 - rate) / failed.size)


def test_noise_is_normal_and_independent() -> None:
    """Moments, and correlations between symbols, leaves, rows and seeds, of 320 000 numbers.

    Differences of two logits are sqrt(2) tau N(0, 1). False alarm: 5 standard errors, eight times.
    """
    p = np.array([0.25] * 4)
    leaves = distinct_rows(20_000)

    def differences(seed: int, rows: np.ndarray = leaves) -> np.ndarray:
        logs = np.log(NoisyLogits(Fixed(p), 0.5, seed).predict(rows))
        return np.stack([logs[..., 0] - logs[..., 1], logs[..., 2] - logs[..., 3]]) / math.sqrt(0.5)

    z = differences(1)
    count = z.size
    assert abs(z.mean()) < 5 / math.sqrt(count)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / count)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / count)
    changed = leaves.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 4
    pairs = (
        (z[0], z[1]),
        (z[:, :, 0], z[:, :, 1]),
        (z[:, 1:], z[:, :-1]),
        (z, differences(2)),
        (z, differences(1, changed)),
    )
    for a, b in pairs:
        assert abs((a * b).mean()) < 5 / math.sqrt(a.size)


def test_noise_is_a_function_of_what_is_visible() -> None:
    bp = ExactBP(MODEL)
    leaves = MODEL.sample(40, seed=2).leaves
    mask = np.random.default_rng(0).random(leaves.shape) < 0.3
    noisy = NoisyLogits(bp, 0.3, seed=5)
    law, root = noisy.predict(leaves, mask), noisy.predict_root(leaves, mask)
    order = np.random.default_rng(1).permutation(40)
    assert (noisy.predict(leaves[order], mask[order]) == law[order]).all()
    assert (noisy.predict(np.where(mask, 4, leaves)) == law).all(), "two spellings of one question"
    assert (noisy.predict_root(np.where(mask, 4, leaves)) == root).all()
    assert (noisy.predict(leaves.astype(np.int64), mask) == law).all()
    assert (NoisyLogits(bp, 0.3, seed=5 + 2**32).predict(leaves, mask) != law).any()
    np.testing.assert_allclose(law.sum(axis=2), 1.0, atol=1e-14)
    assert (NoisyLogits(bp, 0.0).predict(leaves) == bp.predict(leaves)).all()
    torch = pytest.importorskip("torch")
    tensor = noisy.predict(torch.from_numpy(leaves), torch.from_numpy(mask))
    assert isinstance(tensor, torch.Tensor)
    assert (tensor.numpy() == law).all()


def test_zeros_and_nan_stay() -> None:
    model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2, root_prior=[1.0, 0.0])
    law = NoisyLogits(ExactBP(model), 1.0).predict([[0, 0, 0, 0], [0, 1, 0, 2]])
    assert law[0].tolist() == [[1.0, 0.0]] * 4
    blind = Memorizer([[1, 1]], 2)
    assert np.isnan(NoisyLogits(blind, 1.0).predict([[0, 0]])).all()


def test_bad_input() -> None:
    p = laws(3, 4)
    fixed = Fixed(p[0])
    wrong: list[tuple[type[Exception], str, Any]] = [
        (ArgumentError, "lam must be", lambda: geometric_mixture(p, p, 1.1)),
        (ShapeError, r"p1 must have the shape of p0, \(3, 4\)", lambda: geometric_mixture(p, p[:2], 0.5)),
        (ArgumentError, "p0 must hold probabilities", lambda: geometric_mixture(p - 1, p, 0.5)),
        (ArgumentError, "softmax of logits", lambda: coordinate(np.log(p), p, p)),
        (DTypeError, "p_hat must be floating", lambda: coordinate(np.ones((2, 2), int), p, p)),
        (ShapeError, r"where must have shape \(3,\)", lambda: coordinate(p, p, p, np.ones(4, bool))),
        (DTypeError, "where must be boolean", lambda: coordinate(p, p, p, np.ones(3))),
        (ArgumentError, "nothing to score", lambda: coordinate(p, p, p, np.zeros(3, bool))),
        (DTypeError, "p1 must have the methods", lambda: GeometricMixture(fixed, p, 0.5)),  # type: ignore[arg-type]
        (DTypeError, "predictor must have the methods", lambda: NoisyLogits(p, 0.5)),  # type: ignore[arg-type]
        (ArgumentError, "tau must be", lambda: NoisyLogits(fixed, -1.0)),
        (ArgumentError, "seed must be", lambda: NoisyLogits(fixed, 1.0, seed=-1)),
        (ArgumentError, "tau must be", lambda: failure_probability(p, -0.1)),
        (ArgumentError, "p must hold", lambda: failure_probability(2 * p, 0.1)),
    ]  # fmt: skip
    for error, text, call in wrong:
        with pytest.raises(error, match=text):
            call()
