"""Geometric mixtures of two predictors, and the coordinate of a third one between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import as_numpy
from hfilter.checks import check_float
from hfilter.errors import ArgumentError, DTypeError, ShapeError

from .interface import Floats, Predictor, probability_rows, softmax

__all__ = ["Coordinate", "GeometricMixture", "coordinate", "geometric_mixture"]


def geometric_mixture(p0: Any, p1: Any, lam: float) -> Any:
    """p0^(1 - lam) p1^lam / Z along the last axis: p0 at 0, p1 at 1.

    Parameters
    ----------
    p0, p1 : array_like of float, shape (…, q)
        Probabilities; equal shapes.
    lam : float
        From 0 to 1.

    Returns
    -------
    array of float64, shape (…, q)
        Of the library of `p0`. For 0 < lam < 1 what either excludes is excluded, and a row is NaN
        where that is everything.

    Examples
    --------
    >>> import numpy as np
    >>> geometric_mixture(np.array([0.5, 0.5]), np.array([0.8, 0.2]), 0.5).round(4).tolist()
    [0.6667, 0.3333]
    """
    share = check_float("lam", lam, 0.0, 1.0)
    first, wrap = probability_rows("p0", p0)
    second, _ = probability_rows("p1", p1)
    if first.shape != second.shape:
        raise ShapeError(f"p1 must have the shape of p0, {first.shape}, got {second.shape}")
    if share in (0.0, 1.0):  # where 0 * ln 0 would be in the way
        return wrap(second if share else first)
    with np.errstate(divide="ignore"):
        return wrap(softmax((1.0 - share) * np.log(first) + share * np.log(second)))


class GeometricMixture:
    """Between two predictors: their geometric mixture, whose `coordinate` is `lam`.

    Parameters
    ----------
    p0, p1 : Predictor
        For instance inference (`ExactBP`) and memory (`Memorizer`) through the same noise.
    lam : float
        From 0 to 1.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> leaves = model.sample(50, seed=0).leaves
    >>> p0, p1 = hfilter.oracles.ExactBP(model), hfilter.oracles.ExactBP(model.filtered(2))
    >>> p = GeometricMixture(p0, p1, 0.3).predict(leaves)
    >>> round(coordinate(p, p0.predict(leaves), p1.predict(leaves)).value, 6)
    0.3
    """

    def __init__(self, p0: Predictor, p1: Predictor, lam: float) -> None:
        for name, p in (("p0", p0), ("p1", p1)):
            if not isinstance(p, Predictor):
                raise DTypeError(
                    f"{name} must have the methods predict and predict_root, got {type(p).__name__}"
                )
        self.p0, self.p1 = p0, p1
        self.lam = check_float("lam", lam, 0.0, 1.0)
        self.vocab_size = getattr(p0, "vocab_size", None)

    def predict(self, leaves: Any, mask: Any = None) -> Any:
        """The mixture of both laws of every leaf, shape (n, L, q); see `Predictor`."""
        return geometric_mixture(
            self.p0.predict(leaves, mask), self.p1.predict(leaves, mask), self.lam
        )

    def predict_root(self, leaves: Any, mask: Any = None) -> Any:
        """The mixture of both laws of the root, shape (n, n_classes)."""
        return geometric_mixture(
            self.p0.predict_root(leaves, mask), self.p1.predict_root(leaves, mask), self.lam
        )


@dataclass(frozen=True)
class Coordinate:
    """Where a predictor lies between two others, in nats per prediction.

    Attributes
    ----------
    value : float
        The lam of the nearest geometric mixture: 0 at p0, 1 at p1. NaN if p0 and p1 do not differ
        on what was scored, or no mixture is at a finite distance.
    kl : float
        Mean KL(p_hat || mixture) there: what of p_hat no mixture explains.
    kl_p0, kl_p1 : float
        Mean KL to the two ends; infinite where an end excludes what p_hat does not.
    n_scored, n_undefined : int
        Predictions scored, and those left out because one of the three is NaN.
    """

    value: float
    kl: float
    kl_p0: float
    kl_p1: float
    n_scored: int
    n_undefined: int


def coordinate(p_hat: Any, p0: Any, p1: Any, where: Any = None) -> Coordinate:
    """The lam in [0, 1] that minimises the mean of KL(p_hat || p0^(1 - lam) p1^lam / Z).

    With p0 the exact posterior and p1 a memoriser's, it says how far a network has gone from
    inference to memory.

    Parameters
    ----------
    p_hat, p0, p1 : array_like of float, shape (…, q)
        Probabilities of the predictor in question and of the two ends.
    where : array_like of bool, shape (…), optional
        Which predictions to score, e.g. the mask; all by default.

    Returns
    -------
    Coordinate

    Raises
    ------
    hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
        For arrays that do not match or are no probabilities, or nothing to score.

    Notes
    -----
    The mean is convex in lam, since ln Z is; its derivative, the mean of E_mix[d] - E_p_hat[d] with
    d = ln p1 - ln p0, is brought to zero by Newton steps kept inside a bracket. Zeros count: if
    p_hat gives weight to what p1 excludes, only lam = 0 is at a finite distance.

    Examples
    --------
    >>> import numpy as np
    >>> p0, p1 = np.array([[0.5, 0.5]]), np.array([[0.8, 0.2]])
    >>> round(coordinate(geometric_mixture(p0, p1, 0.25), p0, p1).value, 12)
    0.25
    """
    target, first, second, undefined = _scored(p_hat, p0, p1, where)
    n = len(target)
    kl0, kl1 = _kl(target, first), _kl(target, second)
    both = (first > 0) & (second > 0)
    inside = not (target[~both] > 0).any() and bool(both.any(axis=1).all())
    value, kl = (0.0, kl0) if kl0 <= kl1 else (1.0, kl1)
    if inside:
        with np.errstate(divide="ignore"):
            start = np.where(both, np.log(first), -np.inf)
            step = np.log(second, where=both, out=np.zeros_like(second))
            step -= np.where(both, start, 0.0)
        spread = np.where(both, step, np.nan)
        if not (np.nanmax(spread, axis=1) > np.nanmin(spread, axis=1)).any():
            # One point inside; the ends differ from it by what they alone allow.
            return Coordinate(*_constant(kl0, kl1, first, second), kl0, kl1, n, undefined)
        lam = _root_of_slope(target, start, step)
        if 0.0 < lam < 1.0:
            value, kl = lam, _kl(target, softmax(start + lam * step))
    elif not np.isfinite(kl):
        value = np.nan
    return Coordinate(value, kl, kl0, kl1, n, undefined)


def _constant(kl0: float, kl1: float, first: Floats, second: Floats) -> tuple[float, float]:
    if np.array_equal(first, second) or kl0 == kl1:
        return np.nan, kl0
    return (0.0, kl0) if kl0 < kl1 else (1.0, kl1)


def _root_of_slope(target: Floats, start: Floats, step: Floats) -> float:
    """Where the derivative of the mean KL vanishes, or the end that it points to."""
    wanted = float((target * step).sum(axis=1).mean())

    def slope(lam: float) -> tuple[float, float]:
        mixture = softmax(start + lam * step)
        mean = (mixture * step).sum(axis=1)
        variance = (mixture * (step - mean[:, None]) ** 2).sum(axis=1)
        return float(mean.mean()) - wanted, float(variance.mean())

    low, high = 0.0, 1.0
    if slope(low)[0] >= 0.0:
        return low
    if slope(high)[0] <= 0.0:
        return high
    lam = 0.5
    for _ in range(200):  # Newton, or bisection where it leaves the bracket
        first, second = slope(lam)
        low, high = (lam, high) if first < 0.0 else (low, lam)
        new = lam - first / second if second > 0.0 else np.nan
        if not low < new < high:
            new = 0.5 * (low + high)
        if abs(new - lam) < 1e-14 or first == 0.0:
            return float(lam if first == 0.0 else new)
        lam = new
    return float(lam)


def _scored(p_hat: Any, p0: Any, p1: Any, where: Any) -> tuple[Floats, Floats, Floats, int]:
    names = ("p_hat", "p0", "p1")
    arrays = [probability_rows(name, p)[0] for name, p in zip(names, (p_hat, p0, p1), strict=True)]
    shape = arrays[0].shape
    for name, p in zip(names[1:], arrays[1:], strict=True):
        if p.shape != shape:
            raise ShapeError(f"{name} must have the shape of p_hat, {shape}, got {p.shape}")
    rows = [p.reshape(-1, shape[-1]) for p in arrays]
    if where is not None:
        kept = _where(where, shape[:-1])
        rows = [p[kept] for p in rows]
    known = np.asarray(~np.isnan(rows[0] + rows[1] + rows[2]).any(axis=1))
    if not known.any():
        raise ArgumentError(
            f"nothing to score: {len(known)} predictions, all of them NaN; give at least one"
        )
    return rows[0][known], rows[1][known], rows[2][known], int((~known).sum())


def _where(where: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if hasattr(where, "cpu"):
        where = where.cpu()
    kept, _ = as_numpy("where", where)
    if kept.dtype != np.bool_:
        raise DTypeError(f"where must be boolean (True = scored), got {kept.dtype}")
    if kept.shape != shape:
        raise ShapeError(f"where must have shape {shape}, got {kept.shape}")
    return np.asarray(kept.reshape(-1))


def _kl(p: Floats, q: Floats) -> float:
    """Mean of Σ p ln(p / q): 0 ln 0 = 0, infinite where q excludes what p does not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p == 0.0, 0.0, p * (np.log(p) - np.log(q)))
    return float(terms.sum(axis=1).mean())
