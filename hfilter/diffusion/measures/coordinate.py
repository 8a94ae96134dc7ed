"""Between inference and memory: where a denoiser lies from the exact to the empirical posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hfilter.errors import ArgumentError

from .asking import (
    Asked,
    Floats,
    Questions,
    check_denoisers,
    check_times,
    kl_per_sequence,
    log_laws,
    mean_and_error,
)
from .records import plain

__all__ = ["MemoryCoordinate", "memory_coordinate"]

_NEGLIGIBLE = np.log(1e-30)
_FLAT = 1e-12  # nats of curvature below which the two ends are the same law


@dataclass(frozen=True, eq=False)
class MemoryCoordinate:
    """λ(t), 0 at the exact posterior and 1 at the empirical one, and how far from all of the path.

    Attributes
    ----------
    times : (S,) int64
    value : (S,) float64
        The λ in [0, 1] that minimises the mean of KL(denoiser ‖ exact^(1-λ) empirical^λ / Z). NaN where
        the two ends do not differ, or where no λ is at a finite distance.
    error : (S,) float64
        Standard error over sequences; NaN at the ends of [0, 1].
    kl, kl_error : (S,) float64
        Mean KL to the nearest mixture, in nats per sequence: what no mixture explains. Where it is hardly
        below `kl_exact` the denoiser is off the path, and a λ above zero is no memory, however small
        `error` is: an early network has one.
    kl_exact, kl_memory : (S,) float64
        Mean KL to the two ends.
    curvature : (S,) float64
        Second derivative of the mean KL there, never negative: where it is small, λ means little.
    n_sequences : int
    """

    times: Any
    value: Floats
    error: Floats
    kl: Floats
    kl_error: Floats
    kl_exact: Floats
    kl_memory: Floats
    curvature: Floats
    n_sequences: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)


def memory_coordinate(
    denoiser: Asked,
    exact: Asked,
    memory: Asked,
    leaves: Any,
    times: Any,
    *,
    seed: int = 0,
    start: int = 0,
) -> MemoryCoordinate:
    """Find the geometric mixture of inference and memory that is nearest to a denoiser.

    Parameters
    ----------
    denoiser : Denoiser
        The one in question.
    exact, memory : Denoiser
        The two ends: `ExactDenoiser` of the model, `EmpiricalDenoiser` of the training set, both with
        ``dtype="float64"``, lest a small probability be rounded to an impossible one.
    leaves : int array, shape (n, L)
        Clean sequences, held-out or of the training set. The laws of all of them are held at once:
        3 n L q numbers of 8 bytes.
    times : int or int sequence
        λ is found for each by itself.
    seed, start : int
        Of the noise, as in `sequential`.

    Returns
    -------
    MemoryCoordinate

    Notes
    -----
    The mixture is taken leaf by leaf. The mean is convex in λ, because ln Z is: its derivative, the mean
    of E_mixture[d] - E_denoiser[d] with d = ln empirical - ln exact, is brought to zero by Newton steps
    inside a bracket, so that the λ found is the only one. The error is that of an M-estimate: the spread
    of the sequences' derivatives over the mean second derivative. A denoiser that gives more than 1e-30
    to what an end excludes is infinitely far from all mixtures with it.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion import EmpiricalDenoiser, ExactDenoiser
    >>> from hfilter.diffusion.measures import memory_coordinate
    >>> from hfilter.diffusion.splits import block, held_out
    >>> from hfilter.noising import GaussianChannel, Schedule
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> channel = GaussianChannel(Schedule.published(100))
    >>> exact = ExactDenoiser(model, channel, dtype="float64")
    >>> memory = EmpiricalDenoiser(block(model, 300, 0), 4, channel, dtype="float64")
    >>> rows = held_out(model, 200)
    >>> [memory_coordinate(one, exact, memory, rows, 15).value.tolist() for one in (exact, memory)]
    [[0.0], [1.0]]
    """
    sizes = check_denoisers(denoiser=denoiser, exact=exact, memory=memory)
    steps = np.atleast_1d(np.asarray(times))
    if not steps.size:
        raise ArgumentError("times is empty; name at least one time")
    steps = check_times(steps, denoiser.channel.n_steps, len(steps))
    found, n = [], 0
    for t in steps.tolist():
        ask = Questions(denoiser.channel, leaves, t, sizes, seed=seed, start=start)
        n = len(ask.leaves)
        laws = np.empty((3, n, *sizes))
        for part, _, x_t, now in ask:
            for law, name, one in zip(
                laws, ("denoiser", "exact", "memory"), (denoiser, exact, memory), strict=True
            ):
                law[part] = log_laws(name, one, x_t, now)
        found.append(_fit(*laws))
    value, error, kl, kl_error, kl_exact, kl_memory, bend = np.array(found).T
    return MemoryCoordinate(steps, value, error, kl, kl_error, kl_exact, kl_memory, bend, n)


def _fit(target: Floats, exact: Floats, memory: Floats) -> tuple[float, ...]:
    """λ, its error, KL there and its error, KL to the ends, curvature; of ln laws (n, L, q)."""
    ends = np.stack([kl_per_sequence(target, exact), kl_per_sequence(target, memory)])
    (kl_exact, kl_memory), (e_exact, e_memory) = mean_and_error(ends)
    both = (exact > -np.inf) & (memory > -np.inf)
    weight = np.where(target > _NEGLIGIBLE, np.exp(target), 0.0)
    nearer = (0.0, kl_exact, e_exact) if kl_exact <= kl_memory else (1.0, kl_memory, e_memory)
    if (weight[~both] > 0.0).any() or not both.any(
        axis=2
    ).all():  # no mixture is at a finite distance
        lam = nearer[0] if np.isfinite(nearer[1]) else np.nan
        return (lam, np.nan, nearer[1], nearer[2], kl_exact, kl_memory, np.nan)
    start = np.where(both, exact, -np.inf)
    step = np.where(both, memory, 0.0) - np.where(both, exact, 0.0)
    wanted = (weight * step).sum(axis=(1, 2))

    def slopes(lam: float) -> tuple[Floats, float]:
        """Derivative of each sequence's KL, and the mean of the second derivatives."""
        logs = start + lam * step
        mixture = np.exp(logs - logs.max(axis=2, keepdims=True))
        mixture /= mixture.sum(axis=2, keepdims=True)
        mean = (mixture * step).sum(axis=2)
        bend = (mixture * (step - mean[..., None]) ** 2).sum(axis=(1, 2))
        return mean.sum(axis=1) - wanted, float(bend.mean())

    lam, (slope, bend) = _minimum(slopes)
    if max(bend, slopes(0.0)[1], slopes(1.0)[1]) < _FLAT and abs(kl_exact - kl_memory) < _FLAT:
        return (np.nan, np.nan, kl_exact, e_exact, kl_exact, kl_memory, bend)
    if lam in (0.0, 1.0):
        # At an end its own law counts, with what it alone allows.
        kl, e_kl = (kl_exact, e_exact) if lam == 0.0 else (kl_memory, e_memory)
        return (lam, np.nan, kl, e_kl, kl_exact, kl_memory, bend)
    logs = start + lam * step
    top = logs.max(axis=2, keepdims=True)
    logs -= top + np.log(np.exp(logs - top).sum(axis=2, keepdims=True))
    (kl,), (e_kl,) = mean_and_error(kl_per_sequence(target, logs)[None])
    if nearer[1] < kl:  # what one end alone allows can make the path jump there
        return (*nearer[:1], np.nan, *nearer[1:], kl_exact, kl_memory, bend)
    n = len(slope)
    error = float(slope.std(ddof=1) / np.sqrt(n) / bend) if n > 1 and bend > 0.0 else np.nan
    return (lam, error, kl, e_kl, kl_exact, kl_memory, bend)


def _minimum(slopes: Any) -> tuple[float, tuple[Floats, float]]:
    """Where the mean slope vanishes on [0, 1], or the end that it points to."""
    low, high = 0.0, 1.0
    for end, sign in ((low, 1.0), (high, -1.0)):
        now = slopes(end)
        if sign * now[0].mean() >= -1e-15:
            return end, now
    lam = 0.5
    for _ in range(200):  # Newton, or bisection where it leaves the bracket
        now = slopes(lam)
        first = float(now[0].mean())
        low, high = (lam, high) if first < 0.0 else (low, lam)
        new = lam - first / now[1] if now[1] > 0.0 else np.nan
        if not low < new < high:
            new = 0.5 * (low + high)
        if abs(new - lam) < 1e-13:
            break
        lam = new
    return lam, now
