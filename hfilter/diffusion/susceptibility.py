"""How far changes of a U-turn are correlated: the susceptibility of the reverse process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.exact import TreeModel
from hfilter.noising import Channel
from hfilter.noising.channels import check_clean, host
from hfilter.noising.schedule import check_times

from .values import double_state

__all__ = ["Susceptibility", "susceptibility", "susceptibility_of"]

Floats = NDArray[np.float64]
_BLOCKS = 20  # parts of the rows for the jackknife
_WORK = 1 << 20  # numbers of one array of pair beliefs held at once


@dataclass(frozen=True, eq=False, repr=False)
class Susceptibility:
    """Covariance of the changes of leaves between a start and the end of a U-turn.

    Attributes
    ----------
    covariance : ndarray of float64, shape (L, L)
        cov(change_i, change_j) over starts and noise; change_i is 1 where leaf i is another than before.
    change : ndarray of float64, shape (L,)
        Probability that a leaf changes.
    value : float
        ``Σ_ij cov(change_i, change_j) / Σ_i mean(change_i)``: where changes are rare, the mean number of
        leaves that change with a leaf that does, itself included. Where they are common it is smaller, and
        for independent changes below 1 (1 - change, if all leaves change alike). NaN where none does.
    error : float
        Its standard error over rows (jackknife over 20 blocks; NaN below 40 rows).
    by_variance : float
        ``Σ_ij cov_ij / Σ_i cov_ii`` (arXiv 2410.13770): 1 for independent changes.
    """

    covariance: Floats
    change: Floats
    value: float
    error: float
    by_variance: float

    def by_height(self, arity: int = 2) -> Floats:
        """Mean covariance of pairs of leaves by the height of their lowest common ancestor.

        Entry h, from 0 (a leaf with itself) to the depth of the tree.
        """
        s, length = check_int("arity", arity, 2), len(self.change)
        depth = round(np.log(length) / np.log(s))
        if s**depth != length:
            raise ArgumentError(f"arity = {s} makes no tree of {length} leaves")
        leaf = np.arange(length)
        height = sum((leaf[:, None] // s**h != leaf // s**h).astype(int) for h in range(depth))
        return np.array([self.covariance[height == h].mean() for h in range(depth + 1)])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "value": self.value, "error": self.error, "by_variance": self.by_variance,
            "change": self.change.tolist(), "covariance": self.covariance.tolist(),
        }  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"Susceptibility({self.value:.4g} ± {self.error:.2g}, change {self.change.mean():.3g})"
        )


def susceptibility(
    model: TreeModel, channel: Channel, leaves: Any, t: int, *, seed: int, start: int = 0
) -> Susceptibility:
    """Of the exact reverse process, each row's end point averaged out.

    Given x_t, the end point is a draw from P(x_0 | x_t); the probability that leaves i and j both change is
    read off their exact pair marginal (Rao and Blackwell's way), so that only starts and forward noise are
    sampled.

    Parameters
    ----------
    model : TreeModel
    channel : hfilter.noising.Channel
    leaves : array_like of int, shape (n, L)
        Starts, n at least 2.
    t : int
        Time of turning, from 1 to T.
    seed, start : int
        Of the forward noise.

    Returns
    -------
    Susceptibility

    Raises
    ------
    hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
        For leaves that do not fit the model, and starts that the model cannot produce (where x_t is
        impossible).

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.noising import UniformChannel
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> channel = UniformChannel.linear(10)
    >>> found = susceptibility(model, channel, model.sample(100, seed=1).leaves, 3, seed=2)
    >>> bool(1.0 < found.by_variance < 8.0)
    True
    """
    if not isinstance(model, TreeModel):
        raise DTypeError(f"model must be a hfilter.TreeModel, got {type(model).__name__}")
    q, length = model.vocab_size, model.n_leaves
    n = check_clean("leaves", leaves, q)
    clean, _ = host(leaves, "leaves")
    if n < 2 or clean.shape[1] != length:
        raise ShapeError(f"leaves must have shape (n, {length}), n at least 2, got {clean.shape}")
    if not isinstance(channel, Channel):
        raise DTypeError(
            f"channel must be a channel of hfilter.noising, got {type(channel).__name__}"
        )
    time = check_times(t, channel.n_steps)
    if not isinstance(time, int):
        raise DTypeError("t must be one integer, the same for all rows")
    seed = check_seed("seed", seed)
    left, right = np.triu_indices(length, 1)
    pairs = np.stack([left, right], axis=1)
    step = max(1, _WORK // max(1, len(pairs) * q * q))

    def both(rows: slice) -> Floats:
        """P(leaves i and j both change | x_t), (rows, L, L); P(leaf i changes) on the diagonal."""
        x0 = clean[rows].astype(np.intp)
        x_t = channel.corrupt(clean[rows], time, q, seed=seed, start=start + rows.start)
        fields = channel.log_fields(double_state(channel, x_t), time, q)
        belief = model.infer(log_fields=fields, dtype="float64").leaves
        same = np.take_along_axis(belief, x0[..., None], axis=2)[..., 0]
        if np.isnan(same).any():
            raise ArgumentError(
                "leaves: the model cannot produce them, nor anything else that leads to x_t"
            )
        out = np.zeros((len(x0), length, length))
        if len(pairs):
            laws = model.pair_beliefs(log_fields=fields, pairs=pairs)
            each = np.arange(len(x0))[:, None], np.arange(len(pairs))
            kept = laws[(*each, x0[:, left], x0[:, right])]
            joint = 1.0 - same[:, left] - same[:, right] + kept
            out[:, left, right] = out[:, right, left] = joint
        out[:, np.arange(length), np.arange(length)] = 1.0 - same
        return out

    return collect(both, n, step)


def susceptibility_of(starts: Any, ends: Any) -> Susceptibility:
    """From starts and end points of any process: plain counting.

    Parameters
    ----------
    starts : array_like of int, shape (n, L)
    ends : array_like of int, shape (n, L) or (n, m, L)
        One or m end points for each start, such as `UTurn.ends` of one time or ``exact_end(…).leaves``.

    Returns
    -------
    Susceptibility

    Examples
    --------
    >>> import numpy as np
    >>> starts = np.zeros((4, 2), int)
    >>> round(susceptibility_of(starts, [[0, 0], [1, 1], [0, 0], [1, 1]]).by_variance, 6)  # both or none
    2.0
    """
    a, b = host(starts, "starts")[0], host(ends, "ends")[0]
    for name, array in (("starts", a), ("ends", b)):
        if array.dtype.kind not in "iu":
            raise DTypeError(f"{name} must be integers (tokens), got {array.dtype}")
    if a.ndim != 2 or len(a) < 2:
        raise ShapeError(f"starts must have shape (n, L), n at least 2, got {a.shape}")
    if b.ndim not in (2, 3) or b.shape[0] != a.shape[0] or b.shape[-1] != a.shape[1]:
        raise ShapeError(f"ends must have shape {a.shape} or (n, m, L), got {b.shape}")
    draws = b[:, None] if b.ndim == 2 else b

    def both(rows: slice) -> Floats:
        change = (draws[rows] != a[rows, None]).astype(np.float64)
        return np.asarray(np.einsum("nmi,nmj->nij", change, change) / change.shape[1])

    return collect(both, len(a), max(1, _WORK // max(1, a.shape[1] ** 2 + draws[0].size)))


def collect(both: Any, n: int, step: int) -> Susceptibility:
    """Covariance of changes from what ``both(rows)`` says of blocks of rows."""
    parts = min(_BLOCKS, n)
    edges = np.linspace(0, n, parts + 1).astype(int)
    sums, counts = [], np.diff(edges)
    for begin, end in pairwise(edges.tolist()):
        sums.append(sum(both(rows).sum(axis=0) for rows in slices(begin, end, step)))
    total = np.sum(sums, axis=0)
    covariance, change = moments(total / n)
    value = ratio(covariance.sum(), change.sum())
    error = np.nan
    if n >= 2 * _BLOCKS:
        left_out = []
        for part, count in zip(sums, counts, strict=True):
            cov, mean = moments((total - part) / (n - count))
            left_out.append(ratio(cov.sum(), mean.sum()))
        error = float(np.std(left_out) * np.sqrt(parts - 1))
    return Susceptibility(
        covariance, change, value, error, ratio(covariance.sum(), np.trace(covariance))
    )


def moments(joint: Floats) -> tuple[Floats, Floats]:
    """Covariance and mean of changes from the probabilities that two leaves both change."""
    change = np.diagonal(joint).copy()
    return joint - np.outer(change, change), change


def ratio(above: Any, below: Any) -> float:
    """A quotient, NaN over nothing."""
    return float(above / below) if below > 0.0 else float("nan")


def slices(begin: int, end: int, step: int) -> Iterator[slice]:
    """Rows from `begin` to `end` in pieces."""
    for i in range(begin, end, step):
        yield slice(i, min(i + step, end))
