"""Nearest neighbours in the training set: are generated sequences nearer to it than fresh ones?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_int
from hfilter.diffusion.nearest import nearest
from hfilter.errors import ArgumentError, DTypeError, ShapeError

from .records import plain

__all__ = ["DistanceDivergence", "Neighbours", "distance_divergence", "neighbour_divergence"]

Floats = NDArray[np.float64]
_FARTHEST = 2**20  # a histogram has an entry for every distance


@dataclass(frozen=True, eq=False)
class DistanceDivergence:
    """KL(p_generated(d) ‖ p_held_out(d)) of distances d to the nearest training row, in nats.

    Attributes
    ----------
    kl : float
        Corrected for the finite number of sequences: zero on average if the two laws are equal, so it
        may come out negative.
    plug_in, bias : float
        The divergence of the two histograms as they are, and what was taken off.
    error : float
        Standard error of `kl` over sequences.
    null_error : float
        Standard deviation of `kl` if the two laws were equal: what it must exceed to be seen.
    shift, shift_error : float
        Mean distance of the generated less that of the held-out: negative if they are nearer.
    copies_generated, copies_held_out : float
        Share at distance 0.
    copies_kl : float
        The part of the divergence that lies in the share of copies alone (as counted, uncorrected);
        infinite if only the generated have any.
    novel_kl, novel_error : float
        The corrected divergence among those at distance 1 and more, and its error. NaN if there are
        none.
    counts_generated, counts_held_out : (D + 1,) int64
        Histograms.
    first_of_bin : tuple of int
        Smallest distance of each bin that `kl` was computed from.
    """

    kl: float
    plug_in: float
    bias: float
    error: float
    null_error: float
    shift: float
    shift_error: float
    copies_generated: float
    copies_held_out: float
    copies_kl: float
    novel_kl: float
    novel_error: float
    counts_generated: NDArray[np.int64]
    counts_held_out: NDArray[np.int64]
    first_of_bin: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)


def distance_divergence(
    generated: Any, held_out: Any, *, min_count: int = 10
) -> DistanceDivergence:
    """Compare two samples of distances.

    Parameters
    ----------
    generated, held_out : int array, shapes (n,) and (m,)
        Distances to the nearest training row.
    min_count : int
        Neighbouring distances are put into one bin until it holds this many of the held-out sequences.

    Returns
    -------
    DistanceDivergence

    Notes
    -----
    With K bins, n generated and m held-out sequences, the divergence of the two histograms is too large
    by ``(K - 1)/2n + (Σ p²/q / p - 1)/2m`` on average, Σ p/q in the second term, to first order (as
    Miller 1955 for entropies); with p = q that is (K - 1)/2 (1/n + 1/m). It is estimated from the
    histograms and taken off. The expansion needs a few counts in every bin, hence `min_count`; a coarser
    histogram can only lower the divergence. Its variance is that of ln(p/q) under p over n, plus
    (Σ p²/q - 1)/m, less what noise alone makes of these, plus the variance (K - 1)/2 (1/n + 1/m)² that is
    left where p = q.

    Copies are told apart by the chain rule: the divergence is that of the shares of copies, plus the
    share that are none times the divergence among those.

    Examples
    --------
    >>> import numpy as np
    >>> from hfilter.diffusion.measures import distance_divergence
    >>> rng = np.random.default_rng(0)
    >>> d, e = rng.binomial(16, 0.25, 50_000), rng.binomial(16, 0.25, 50_000)
    >>> found = distance_divergence(d, e)
    >>> bool(abs(found.kl) < 3 * found.null_error), bool(found.plug_in > found.kl)
    (True, True)
    """
    mine, theirs = _distances("generated", generated), _distances("held_out", held_out)
    check_int("min_count", min_count, 1)
    size = int(max(mine.max(), theirs.max())) + 1
    a, b = (np.bincount(d, minlength=size).astype(np.int64) for d in (mine, theirs))
    n, m = len(mine), len(theirs)
    first = _bins(b, min_count)
    plug_in, bias, error, null_error = _kl(np.add.reduceat(a, first), np.add.reduceat(b, first))
    novel = novel_error = np.nan
    if a[1:].sum() and b[1:].sum():
        inner = _bins(b[1:], min_count)
        raw, off, novel_error, _ = _kl(np.add.reduceat(a[1:], inner), np.add.reduceat(b[1:], inner))
        novel = raw - off
    shift = float(mine.mean() - theirs.mean())
    spread = mine.var() / max(1, n - 1) + theirs.var() / max(1, m - 1)
    return DistanceDivergence(
        kl=plug_in - bias,
        plug_in=plug_in,
        bias=bias,
        error=error,
        null_error=null_error,
        shift=shift,
        shift_error=float(np.sqrt(spread)),
        copies_generated=float(a[0] / n),
        copies_held_out=float(b[0] / m),
        copies_kl=_binary_kl(a[0] / n, b[0] / m),
        novel_kl=novel,
        novel_error=novel_error,
        counts_generated=a,
        counts_held_out=b,
        first_of_bin=tuple(first.tolist()),
    )


def _kl(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[float, float, float, float]:
    """KL of two histograms, its first-order bias, its standard error, and that where they are equal."""
    n, m = int(a.sum()), int(b.sum())
    p, q = a / n, b / m
    if (q[p > 0] == 0).any():
        return np.inf, np.nan, np.nan, np.nan
    some = p > 0
    log_ratio = np.log(p[some] / q[some])
    value = float((p[some] * log_ratio).sum())
    both = q > 0
    ratio, square = float((p[both] / q[both]).sum()), float((p[both] ** 2 / q[both]).sum())
    bias = (int(some.sum()) - 1) / (2 * n) + (ratio - 1.0) / (2 * m)
    left = np.sqrt(0.5 * (len(p) - 1)) * (1 / n + 1 / m)
    variance = float((p[some] * log_ratio**2).sum() - value**2) / n + (square - 1.0) / m
    # Where p = q the two terms hold nothing but noise, 2 left² of it.
    variance = max(variance - 2.0 * left**2, 0.0) + left**2
    return value, bias, float(np.sqrt(variance)), float(left)


def _bins(counts: NDArray[np.int64], min_count: int) -> NDArray[np.int64]:
    """First entry of each bin: neighbouring entries together until the bin holds `min_count`."""
    first, held = [0], 0
    for d, count in enumerate(counts.tolist()):
        if held >= min_count:
            first.append(d)
            held = 0
        held += count
    if held < min_count and len(first) > 1:  # what is left belongs to the last one
        first.pop()
    return np.array(first)


def _binary_kl(p: float, q: float) -> float:
    total = 0.0
    for x, y in ((p, q), (1.0 - p, 1.0 - q)):
        if x > 0.0:
            total += x * np.log(x / y) if y > 0.0 else np.inf
    return float(total)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distances of generated and of held-out sequences to the training set, and to another one.

    Attributes
    ----------
    own : DistanceDivergence
        To the training set.
    other : DistanceDivergence or None
        To a set that the model has not seen.
    pull, pull_error : float
        By how much generated sequences are nearer to their own training set than to the other, beyond
        what held-out sequences are: the mean of d_other - d_own over generated less that over held-out
        sequences, each a difference of one sequence, and its standard error. NaN without another set.
    repeated_generated, repeated_held_out : float
        Share of the sequences that repeat an earlier one: a generator that has collapsed repeats itself.
    n_generated, n_held_out : int
    """

    own: DistanceDivergence
    other: DistanceDivergence | None
    pull: float
    pull_error: float
    repeated_generated: float
    repeated_held_out: float
    n_generated: int
    n_held_out: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)


def neighbour_divergence(
    generated: Any,
    held_out: Any,
    own: Any,
    other: Any = None,
    *,
    min_count: int = 10,
    num_threads: int | None = None,
) -> Neighbours:
    """Nearest-neighbour divergence of generated sequences, from their own training set and another.

    Parameters
    ----------
    generated, held_out : int array, shapes (n, L) and (m, L)
        Sequences. The held-out ones index-disjoint from both sets (`held_out`): a perfect generator
        repeats training sequences as often as they do.
    own : int array, shape (P, L)
        The training set of the model that generated.
    other : int array, shape (P', L), optional
        Another block of the same law.
    min_count : int
        See `distance_divergence`.
    num_threads : int, optional

    Returns
    -------
    Neighbours

    Notes
    -----
    After arXiv 2603.03469, with the finite-sample correction, the sign and the other set added. The
    divergence from the other set is that of a biased law, `pull` that of memory: it is zero on average
    for any generator that does not know which of two sets of one law it was trained on.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion.measures import neighbour_divergence
    >>> from hfilter.diffusion.splits import block, held_out
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=3)
    >>> own, other = block(model, 500, 0), block(model, 500, 1)
    >>> perfect, memory = model.sample(2000, seed=9).leaves, own[:200]
    >>> for generated in (perfect, memory):
    ...     found = neighbour_divergence(generated, held_out(model, 2000), own, other)
    ...     print(bool(abs(found.pull) < 4 * found.pull_error), round(found.own.copies_generated, 1))
    True 0.2
    False 1.0
    """
    fresh, mine = sequences_of("held_out", held_out), sequences_of("generated", generated)
    found = {}
    for name, data in (("own", own), ("other", other)):
        if data is not None:
            rows = sequences_of(name, data)
            found[name] = [
                nearest(x, rows, num_threads=num_threads).distance for x in (mine, fresh)
            ]
    pull = pull_error = np.nan
    if other is not None:
        gaps = [b.astype(np.int64) - a for a, b in zip(found["own"], found["other"], strict=True)]
        pull = float(gaps[0].mean() - gaps[1].mean())
        pull_error = float(np.sqrt(sum(g.var() / max(1, len(g) - 1) for g in gaps)))
    return Neighbours(
        own=distance_divergence(*found["own"], min_count=min_count),
        other=distance_divergence(*found["other"], min_count=min_count)
        if "other" in found
        else None,
        pull=pull,
        pull_error=pull_error,
        repeated_generated=_repeated(mine),
        repeated_held_out=_repeated(fresh),
        n_generated=len(mine),
        n_held_out=len(fresh),
    )


def _repeated(rows: NDArray[Any]) -> float:
    return 1.0 - len(np.unique(rows, axis=0)) / len(rows)


def sequences_of(name: str, given: Any) -> NDArray[Any]:
    """Sequences as an integer array (n, L), or an error that names them."""
    if hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    rows = np.asarray(given)
    if rows.dtype.kind not in "iu":
        raise DTypeError(f"{name} must be integers (tokens), got {rows.dtype}")
    if rows.ndim != 2 or 0 in rows.shape:
        raise ShapeError(f"{name} must have shape (n, L) with n >= 1, got {rows.shape}")
    return rows


def _distances(name: str, given: Any) -> NDArray[Any]:
    array = np.asarray(given)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name} must be integers (distances), got {array.dtype}")
    if array.ndim != 1 or not len(array):
        raise ShapeError(f"{name} must have shape (n,) with n >= 1, got {array.shape}")
    if int(array.min()) < 0 or int(array.max()) > _FARTHEST:
        raise ArgumentError(
            f"{name} must be distances from 0 to {_FARTHEST}, got values from {array.min()} to {array.max()}"
        )
    return array
