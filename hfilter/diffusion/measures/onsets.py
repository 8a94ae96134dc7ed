"""When a curve has its minimum along the training, how sure that is, and which of two comes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_float, check_int
from hfilter.errors import ArgumentError, DTypeError, ShapeError

from .records import plain
from .resampling import Floats, Pairs, Unit, check_blocks, check_values, resample

__all__ = ["Onset", "OnsetDifference", "onset", "onset_difference"]

Status = Literal["inside", "first", "last"]


@dataclass(frozen=True, eq=False)
class Onset:
    """Where the mean curve of several models has its minimum.

    Attributes
    ----------
    step : float
        The minimum, between the steps that were measured; NaN unless `status` is ``"inside"``.
    status : str
        ``"inside"``; ``"last"``: the curve is lowest at the last step, so that there is no onset inside
        the run; ``"first"``: lowest at the first.
    argmin : int
        The measured step where the mean curve is lowest.
    low, high : float
        Interval of `level` over resamples of models. 0 and infinity stand for "before the first step"
        and "not by the last". NaN where models cannot be resampled.
    log_error : float
        Standard deviation of ln(step) over the resamples whose minimum is inside.
    share_first, share_last : float
        Share of the resamples that are lowest at the first and the last step.
    rise, rise_error : float
        By how much the mean curve is higher at the last step than at `argmin`, and its error over
        models: a minimum without a rise is a plateau.
    curve, curve_error : (S,) float64
        The mean over models (or pairs) and its error.
    level : float
    n_models : int
    unit : str
        What was resampled; see `Resamples`.
    """

    step: float
    status: Status
    argmin: int
    low: float
    high: float
    log_error: float
    share_first: float
    share_last: float
    rise: float
    rise_error: float
    curve: Floats
    curve_error: Floats
    level: float
    n_models: int
    unit: Unit

    @property
    def is_resolved(self) -> bool:
        """Inside the run, and so in the whole interval."""
        return self.status == "inside" and 0.0 < self.low <= self.high < np.inf

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)

    def __str__(self) -> str:
        if self.status != "inside":
            where = "still falls at the last" if self.status == "last" else "rises from the first"
            return f"no minimum inside the run: the curve {where} step, {self.argmin}"
        low, high = (f"{x:.0f}" if np.isfinite(x) else str(x) for x in (self.low, self.high))
        return f"minimum at step {self.step:.0f} ({self.level:.0%}: {low} to {high})"


@dataclass(frozen=True, eq=False)
class OnsetDifference:
    """Whether one curve turns before another, on the same models.

    Attributes
    ----------
    first, second : Onset
        From the same resamples.
    ratio : float
        Step of the second over step of the first: above 1 if the first comes earlier. Infinite if only
        the second is not inside the run by its last step, NaN if nothing can be said.
    low, high : float
        Interval of the ratio over resamples, paired, widened as for `onset`.
    share_earlier : float
        Share of the widened resamples in which the first comes earlier, ties counted half. NaN where
        models cannot be resampled.
    n_undecided : int
        Resamples in which both lie at the same edge: ties.
    """

    first: Onset
    second: Onset
    ratio: float
    low: float
    high: float
    share_earlier: float
    n_undecided: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)


def onset(
    steps: Any,
    curves: Any,
    blocks: Any = None,
    *,
    pairs: Pairs = "different",
    neighbours: int = 2,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Onset:
    """The step at which a mean curve is lowest, with its uncertainty over models.

    Parameters
    ----------
    steps : int or float sequence, shape (S,)
        Steps of the checkpoints, increasing, above 0, at least 3.
    curves : float array, shape (M, S) or (M, M, S)
        A curve for every model, or for every ordered pair of models (the diagonal is not read).
    blocks : int sequence, shape (M,), optional
        Training block of every model; each has its own by default.
    pairs : "different" or "same"
        For (M, M, S): models of different blocks, or of the same.
    neighbours : int
        Points on either side of the lowest one that the parabola is fitted to; 0: the lowest point itself.
    level : float
        Of the interval.
    n_resamples, seed : int

    Returns
    -------
    Onset

    Raises
    ------
    hfilter.errors.ArgumentError, hfilter.errors.ShapeError, hfilter.errors.DTypeError
        For steps out of order, shapes that do not fit, NaN.

    Notes
    -----
    The interval holds quantiles over resamples whose distance from the mean curve is widened by Student's
    quantile over the normal one: with four models 1.6 times at 95 %.

    The minimum is that of a parabola in ln(step), fitted by least squares to the lowest point and its
    neighbours (to ln of the values where all are positive), kept between the two next to the lowest; a
    fit that is not convex leaves the lowest point. The same is done to the mean curve of every resample
    of models. What the checkpoints of one model share with each other is in the resamples; the noise of
    the evaluation should be the same for all models and checkpoints, and is then in none of them.

    Examples
    --------
    >>> import numpy as np
    >>> from hfilter.diffusion.measures import onset
    >>> steps = np.unique(np.geomspace(10, 10_000, 25).astype(int))
    >>> turns = np.array([900, 1000, 1000, 1100])
    >>> found = onset(steps, 1 + np.log(steps / turns[:, None]) ** 2)
    >>> found.status, bool(abs(np.log(found.step / 1000)) < 0.02), found.is_resolved
    ('inside', True, True)
    >>> print(onset(steps, 1 / steps[None, :]))
    no minimum inside the run: the curve still falls at the last step, 10000
    """
    x = _check_steps(steps)
    values, names, paired = _check_curves("curves", curves, blocks, len(x))
    drawn = resample(names, n_resamples, seed, for_pairs=paired)
    return _onset(x, values, drawn, pairs if paired else None, neighbours, level)[0]


def onset_difference(
    steps: Any,
    first: Any,
    second: Any,
    blocks: Any = None,
    *,
    pairs: Pairs = "different",
    neighbours: int = 2,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> OnsetDifference:
    """Compare the minima of two curves on the same resamples of the same models.

    Parameters
    ----------
    steps : shape (S,)
    first, second : float arrays, shape (M, S) or (M, M, S)
        For instance the split divergence of pairs of models, and the test loss of each.
    blocks, pairs, neighbours, level, n_resamples, seed
        As in `onset`.

    Returns
    -------
    OnsetDifference

    Notes
    -----
    What moves both minima of a model together, its seed or its data, does not count against the
    difference. A minimum that is not reached by the last step is later than any that is.

    Examples
    --------
    >>> import numpy as np
    >>> from hfilter.diffusion.measures import onset_difference
    >>> steps = np.unique(np.geomspace(10, 10_000, 25).astype(int))
    >>> turns = np.array([500, 1000, 1000, 2000])[:, None]  # of the first; the second is at twice this
    >>> first, second = (1 + np.log(steps / (f * turns)) ** 2 for f in (1, 2))
    >>> found = onset_difference(steps, first, second)
    >>> bool(abs(found.ratio - 2) < 0.05), found.share_earlier
    (True, 1.0)
    """
    x = _check_steps(steps)
    a, names, a_paired = _check_curves("first", first, blocks, len(x))
    b, other, b_paired = _check_curves("second", second, blocks, len(x))
    if len(names) != len(other):
        raise ShapeError(
            f"first and second must be of the same models, got {len(names)} and {len(other)}"
        )
    drawn = resample(names, n_resamples, seed, for_pairs=a_paired or b_paired)
    one, wide_a = _onset(x, a, drawn, pairs if a_paired else None, neighbours, level)
    two, wide_b = _onset(x, b, drawn, pairs if b_paired else None, neighbours, level)
    with np.errstate(invalid="ignore"):
        gaps = wide_b - wide_a  # NaN where both lie at the same edge
    ratio = _gap(one, two)
    if drawn.unit == "none":
        return OnsetDifference(one, two, ratio, np.nan, np.nan, np.nan, 0)
    undecided = np.isnan(gaps)
    share = float(np.mean((gaps > 0) + 0.5 * (gaps == 0) + 0.5 * undecided))
    # Two minima at one edge may be apart by anything on either side: neither bound may use them.
    low = _quantile(np.where(undecided, -np.inf, gaps), (1 - level) / 2)
    high = _quantile(np.where(undecided, np.inf, gaps), (1 + level) / 2)
    return OnsetDifference(
        one, two, ratio, float(np.exp(low)), float(np.exp(high)), share, int(undecided.sum())
    )


def _gap(one: Onset, two: Onset) -> float:
    edges = {"first": -np.inf, "last": np.inf}
    a, b = (np.log(o.step) if o.status == "inside" else edges[o.status] for o in (one, two))
    return float(np.nan if a == b and np.isinf(a) else np.exp(b - a))


def _onset(
    x: Floats, values: Floats, drawn: Any, pairs: Pairs | None, neighbours: int, level: float
) -> tuple[Onset, Floats]:
    """The onset, and ln(step) of every widened resample: -inf and inf at the first and last step."""
    check_int("neighbours", neighbours, 0)
    check_float("level", level, 0.01, 0.999)
    curve, replicates = drawn.statistic(values, pairs)
    if not np.isfinite(curve).any():
        raise ArgumentError("the mean curve is infinite at every step; it has no minimum")
    found = float(_minima(x, curve[None], neighbours)[0])
    at = int(curve.argmin())
    status: Status = "inside" if np.isfinite(found) else "first" if found < 0 else "last"
    known = ~np.isnan(replicates).any(axis=1)
    logs = np.full(len(replicates), np.nan)
    logs[known] = _minima(x, replicates[known], neighbours)
    nothing = drawn.unit == "none" or not known.any()
    inside = logs[np.isfinite(logs)]
    with np.errstate(invalid="ignore"):
        rises = replicates[:, -1] - replicates[:, at]
        rise = float(curve[-1] - curve[at])
        errors = np.full(len(x), np.nan) if nothing else replicates[known].std(axis=0)
    wide = logs.copy()
    wide[known] = _minima(x, _widened(curve, replicates[known], drawn.widening(level)), neighbours)
    low, high = (np.nan, np.nan) if nothing else (
        float(np.exp(_quantile(wide[known], p))) for p in ((1 - level) / 2, (1 + level) / 2)
    )  # fmt: skip
    return (
        Onset(
            step=float(np.exp(found)) if status == "inside" else np.nan,
            status=status,
            argmin=round(float(np.exp(x[at]))),
            low=low,
            high=high,
            log_error=np.nan if nothing or len(inside) < 2 else float(inside.std()),
            share_first=np.nan if nothing else float(np.mean(logs[known] == -np.inf)),
            share_last=np.nan if nothing else float(np.mean(logs[known] == np.inf)),
            rise=rise,
            rise_error=np.nan if nothing else float(rises[known].std()),
            curve=curve,
            curve_error=errors,
            level=level,
            n_models=len(drawn.blocks),
            unit=drawn.unit,
        ),
        wide,
    )


def _widened(curve: Floats, replicates: Floats, factor: float) -> Floats:
    """Replicates farther from the curve: by a ratio where all is positive, so that it stays so."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = curve * np.exp(factor * (np.log(replicates) - np.log(curve)))
        shift = curve + factor * (replicates - curve)
    positive = (curve > 0).all() & (replicates > 0).all(axis=1, keepdims=True)
    out = np.where(positive, ratio, shift)
    return np.where(np.isnan(out), np.inf, out)


def _minima(x: Floats, curves: Floats, neighbours: int) -> Floats:
    """ln(step) of the minimum of each of (B, S) curves; -inf, inf at the first and last step."""
    lowest = curves.argmin(axis=1)
    out = x[lowest].copy()
    last = len(x) - 1
    for i in np.unique(lowest).tolist():
        rows = np.flatnonzero(lowest == i)
        if i in (0, last):
            out[rows] = -np.inf if i == 0 else np.inf
            continue
        if not neighbours:
            continue
        part = slice(max(0, i - neighbours), i + neighbours + 1)
        y = curves[rows, part]
        positive = (y > 0).all(axis=1, keepdims=True)
        y = np.where(positive, np.log(np.where(positive, y, 1.0)), y)
        known = np.isfinite(y).all(axis=1)  # an infinite divergence leaves the lowest point
        centred = x[part] - x[i]
        _, slope, bend = np.linalg.pinv(np.vander(centred, 3, increasing=True)) @ y[known].T
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = np.where(bend > 0, -slope / (2 * bend), 0.0)
        near = np.clip(vertex, x[i - 1] - x[i], x[i + 1] - x[i])
        out[rows[known]] = x[i] + near
    return np.asarray(out)


def _quantile(values: Floats, share: float) -> float:
    """A quantile that is one of the values: between a number and infinity there is no mean."""
    return float(np.quantile(values, share, method="higher" if share > 0.5 else "lower"))


def _check_steps(steps: Any) -> Floats:
    given = np.asarray(steps)
    if given.dtype.kind not in "fiu":
        raise DTypeError(f"steps must be numbers, got {given.dtype}")
    if given.ndim != 1 or len(given) < 3:
        raise ShapeError(f"steps must have shape (S,) with S at least 3, got {given.shape}")
    values = given.astype(np.float64)
    if not (np.isfinite(values).all() and values[0] > 0 and (np.diff(values) > 0).all()):
        raise ArgumentError(
            "steps must be above 0 and increasing, because the minimum is sought on a logarithmic "
            f"axis; got {given.tolist()[:8]} …; leave step 0 out"
        )
    return np.asarray(np.log(values))


def _check_curves(
    name: str, curves: Any, blocks: Any, n_steps: int
) -> tuple[Floats, NDArray[np.int64], bool]:
    given = np.array(curves, dtype=np.float64)
    m = len(given) if given.ndim else 0
    paired = given.ndim == 3
    if given.shape not in ((m, n_steps), (m, m, n_steps)):
        raise ShapeError(
            f"{name} must have shape (M, {n_steps}) or (M, M, {n_steps}), got {given.shape}"
        )
    if paired:  # the diagonal is not read
        given[np.arange(m), np.arange(m)] = 0.0
    names = check_blocks(np.arange(m) if blocks is None else blocks)
    if len(names) != m:
        raise ShapeError(f"blocks must have shape ({m},), one per model, got ({len(names)},)")
    return check_values(name, given, m), names, paired
