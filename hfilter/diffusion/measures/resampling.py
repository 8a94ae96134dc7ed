"""Error bars over models: which models a resample holds, and statistics of models and of pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_float, check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError, ShapeError

__all__ = ["Resamples", "Spread", "over_models", "resample"]

Floats = NDArray[np.float64]
Pairs = Literal["different", "same"]
Unit = Literal["blocks", "models within blocks", "none"]


@dataclass(frozen=True, eq=False)
class Resamples:
    """Bootstrap resamples of M models.

    Attributes
    ----------
    counts : (B, M) int64
        How often a resample holds each model.
    blocks : (M,) int64
        Number of the training block of each model.
    unit : str
        What was drawn: ``"blocks"`` (with all their models), ``"models within blocks"``, or ``"none"``
        where there is too little to resample and no error can be given.
    """

    counts: NDArray[np.int64]
    blocks: NDArray[np.int64]
    unit: Unit

    @property
    def n_free(self) -> int:
        """Degrees of freedom of an error: units drawn from, less one for each mean that was taken."""
        sizes = np.bincount(self.blocks)
        if self.unit == "none":
            return 0
        return int(len(sizes) - 1 if self.unit == "blocks" else (sizes - 1).sum())

    def statistic(self, values: Floats, pairs: Pairs | None = None) -> tuple[Floats, Floats]:
        """A mean over models, or over pairs of models: of all, and of every resample.

        Parameters
        ----------
        values : float array, shape (M, …), or (M, M, …) with `pairs`
        pairs : "different", "same" or None
            Blocks of the two models of a pair (both orders count, blocks count alike); None for numbers
            of single models.

        Returns
        -------
        point : float64 array, shape (…,)
        replicates : float64 array, shape (B, …)
            NaN where nothing can be said.

        Notes
        -----
        A resample in which one model is there twice has too few pairs of different models, and is nearer
        to the mean than it should be. So a mean over pairs is resampled in its linear part: the mean over
        the partners of each model, twice, stretched to what the jackknife gives (Arvesen 1969).
        """
        if pairs not in (None, "different", "same"):
            raise ArgumentError(f'pairs must be "different" or "same", got {pairs!r}')
        m, b = len(self.blocks), len(self.counts)
        if pairs is None:
            shape = values.shape[1:]
            flat: Floats = values.reshape(m, -1)
            point = _weighted(np.ones((1, m)), flat)[0]
            replicates = _weighted(self.counts.astype(np.float64), flat)
        else:
            shape = values.shape[2:]
            flat = values.reshape(m, m, -1)
            infinite = np.isinf(flat)
            work = self._across if pairs == "different" else self._inside
            point, replicates = work(np.where(infinite, 0.0, flat))
            wrong = work(infinite.astype(np.float64))[0] > 0
            point[wrong], replicates[:, wrong] = np.inf, np.inf
        return point.reshape(shape), replicates.reshape(b, *shape)

    def _members(self) -> list[NDArray[np.intp]]:
        return [np.flatnonzero(self.blocks == a) for a in range(int(self.blocks.max()) + 1)]

    def _across(self, values: Floats) -> tuple[Floats, Floats]:
        """Pairs of models of different blocks."""
        members, b = self._members(), len(self.counts)
        h = len(members)
        if h < 2:
            raise ArgumentError(
                "blocks: all models are of one training block, there is no pair of different ones; "
                'ask for pairs="same"'
            )
        both = 0.5 * (values + values.swapaxes(0, 1))
        between = np.zeros((h, h, values.shape[2]))
        for i, j in np.argwhere(~np.eye(h, dtype=bool)):
            between[i, j] = both[np.ix_(members[i], members[j])].mean(axis=(0, 1))
        partners = between.sum(axis=1) / (h - 1)
        point = partners.mean(axis=0)
        if self.unit == "none":
            return point, np.full((b, len(point)), np.nan)
        if self.unit == "models within blocks":
            replicates = np.tile(point, (b, 1))
            for mine, theirs in (members, members[::-1]):
                alone = both[np.ix_(mine, theirs)].mean(axis=1)
                weights = self.counts[:, mine].astype(np.float64)
                replicates += _weighted(weights, alone) - alone.mean(axis=0)
            return point, replicates
        if h < 3:
            return point, np.full((b, len(point)), np.nan)
        weights = self.counts[:, [mine[0] for mine in members]].astype(np.float64)
        stretch = 2.0 * (h - 1) / (h - 2)
        return point, point + stretch * (_weighted(weights, partners) - point)

    def _inside(self, values: Floats) -> tuple[Floats, Floats]:
        """Pairs of models of the same block."""
        members = [mine for mine in self._members() if len(mine) > 1]
        if not members:
            raise ArgumentError(
                "blocks: no two models are of one training block, there is no pair of the same; "
                'ask for pairs="different"'
            )
        own = [values[np.ix_(mine, mine)] for mine in members]
        alone = np.stack([v[~np.eye(len(v), dtype=bool)].mean(axis=0) for v in own])
        if self.unit != "blocks":
            return alone.mean(axis=0), np.full((len(self.counts), alone.shape[1]), np.nan)
        weights = self.counts[:, [mine[0] for mine in members]].astype(np.float64)
        return alone.mean(axis=0), _weighted(weights, alone)

    def widening(self, level: float) -> float:
        """By how much an interval from few units must be wider: Student's quantile over the normal one."""
        share = 0.5 * (1.0 + level)
        return _student(share, self.n_free) / NormalDist().inv_cdf(share) if self.n_free else 1.0


@lru_cache(64)
def _student(share: float, n_free: int) -> float:
    """Quantile of Student's law: x = sqrt(f) tan(angle) has the density cos(angle)^(f - 1)."""
    angle = np.linspace(0.0, 0.5 * np.pi, 20_001)[:-1]
    density = np.cos(angle) ** (n_free - 1)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return float(np.sqrt(n_free) * np.tan(np.interp(share - 0.5, 0.5 * mass / mass[-1], angle)))


def _weighted(weights: Floats, values: Floats) -> Floats:
    """Means with weights; infinite where something infinite has weight, NaN where nothing has."""
    infinite = np.isinf(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = weights @ np.where(infinite, 0.0, values) / weights.sum(axis=1, keepdims=True)
    mean[(weights @ infinite.astype(np.float64)) > 0] = np.inf
    return np.asarray(mean)


def resample(
    blocks: Any, n_resamples: int = 2000, seed: int = 0, *, for_pairs: bool = False
) -> Resamples:
    """Draw resamples of models, in a way that respects which of them share their training block.

    Parameters
    ----------
    blocks : int sequence, shape (M,)
        Training block of every model.
    n_resamples : int
    seed : int
    for_pairs : bool
        They are for pairs of models of different blocks.

    Returns
    -------
    Resamples

    Notes
    -----
    With three blocks or more (two, if not for pairs and no block has two models) whole blocks are drawn:
    models of one block are not independent. With fewer, models within their blocks: the error is then
    that of the training's seed alone, and says nothing of other data. Of h units h - 1 are drawn with
    replacement, so that the variance of a mean over resamples is the unbiased s²/h and not (h - 1)/h of
    it (Rao and Wu 1988), which matters for four models.

    Examples
    --------
    >>> from hfilter.diffusion.measures import resample
    >>> found = resample([0, 1, 2, 3], 100)
    >>> found.unit, found.counts.shape, set(found.counts.sum(axis=1).tolist())
    ('blocks', (100, 4), {3})
    >>> resample([0, 0, 1, 1], 100).unit
    'models within blocks'
    """
    names = check_blocks(blocks)
    n_resamples = check_int("n_resamples", n_resamples, 1, 10**6)
    rng = np.random.default_rng(check_seed("seed", seed))
    sizes = np.bincount(names)
    h, m = len(sizes), len(names)
    if h >= 3 or (h == 2 and not for_pairs and sizes.max() == 1):
        drawn = rng.multinomial(h - 1, np.full(h, 1.0 / h), size=n_resamples)
        return Resamples(drawn[:, names], names, "blocks")
    if sizes.max() < 2:
        return Resamples(np.ones((n_resamples, m), np.int64), names, "none")
    counts = np.ones((n_resamples, m), np.int64)
    for block, size in enumerate(sizes.tolist()):
        if size >= 2:
            inside = rng.multinomial(size - 1, np.full(size, 1.0 / size), size=n_resamples)
            counts[:, names == block] = inside
    return Resamples(counts, names, "models within blocks")


def check_blocks(blocks: Any) -> NDArray[np.int64]:
    """Blocks numbered 0, 1, … in the order of their names."""
    given = np.asarray(blocks)
    if given.dtype.kind not in "iu":
        raise DTypeError(f"blocks must be integers, got {given.dtype}")
    if given.ndim != 1 or not len(given):
        raise ShapeError(
            f"blocks must have shape (M,), one number per model, M >= 1, got {given.shape}"
        )
    return np.asarray(np.unique(given, return_inverse=True)[1].reshape(-1), dtype=np.int64)


def check_values(name: str, values: Any, m: int | None) -> Floats:
    """Numbers per model (M, …), without NaN."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise DTypeError(f"{name} must be real numbers, got {array.dtype}")
    if array.ndim < 1 or not len(array) or (m is not None and len(array) != m):
        raise ShapeError(
            f"{name} must have one entry per model along its first axis"
            + (f", {m} of them" if m is not None else "")
            + f", got shape {array.shape}"
        )
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise ArgumentError(
            f"{name} holds {int(np.isnan(array).sum())} NaN, the first of model "
            f"{int(np.argwhere(np.isnan(array))[0][0])}; leave that model out"
        )
    return array


@dataclass(frozen=True)
class Spread:
    """A mean over models, or over pairs of them, with its error over models.

    Attributes
    ----------
    mean : float
    error : float
        Standard deviation over resamples; NaN where `unit` is ``"none"``.
    low, high : float
        Interval at the level asked for: quantiles of the resamples, widened for the few units that there
        are by Student's quantile over the normal one.
    n_models, n_blocks : int
    unit : str
        See `Resamples`.
    """

    mean: float
    error: float
    low: float
    high: float
    n_models: int
    n_blocks: int
    unit: Unit

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return asdict(self)


def over_models(
    values: Any,
    blocks: Any = None,
    *,
    pairs: Pairs = "different",
    level: float = 0.68,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Spread:
    """Mean of a number over models, or of a number of pairs of models, and its bootstrap error.

    Parameters
    ----------
    values : float array, shape (M,) or (M, M)
        One per model, or per ordered pair of models (the diagonal is not read).
    blocks : int sequence, shape (M,), optional
        Training block of every model; each has its own by default.
    pairs : "different" or "same"
        For (M, M): models of different blocks, or of the same.
    level : float
        Of the interval.
    n_resamples, seed : int

    Returns
    -------
    Spread

    Examples
    --------
    >>> from hfilter.diffusion.measures import over_models
    >>> found = over_models([1.0, 2.0, 3.0, 4.0])  # the standard error is 0.645
    >>> found.mean, bool(abs(found.error - 0.645) < 0.05), found.unit
    (2.5, True, 'blocks')
    """
    given = np.array(values)
    if given.dtype.kind == "f" and given.ndim == 2 and len(given) == given.shape[1]:
        np.fill_diagonal(given, 0.0)  # it is not read, and may hold anything
    numbers = check_values("values", given, None)
    m = len(numbers)
    if numbers.shape not in ((m,), (m, m)):
        raise ShapeError(f"values must have shape (M,) or (M, M), got {numbers.shape}")
    names = check_blocks(np.arange(m) if blocks is None else blocks)
    if len(names) != m:
        raise ShapeError(f"blocks must have shape ({m},), one per model, got ({len(names)},)")
    check_float("level", level, 0.01, 0.999)
    drawn = resample(names, n_resamples, seed, for_pairs=numbers.ndim == 2)
    mean, replicates = drawn.statistic(numbers, pairs if numbers.ndim == 2 else None)
    n_blocks = len(np.unique(names))
    known = replicates[~np.isnan(replicates)]
    if drawn.unit == "none" or len(known) < 2 or not np.isfinite(known).all():
        return Spread(float(mean), np.nan, np.nan, np.nan, m, n_blocks, drawn.unit)
    wide = mean + drawn.widening(level) * (known - mean)
    low, high = np.quantile(wide, [(1 - level) / 2, (1 + level) / 2])
    error = float(known.std())
    return Spread(float(mean), error, float(low), float(high), m, n_blocks, drawn.unit)
