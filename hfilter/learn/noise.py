"""The Gaussian noise of the task ``"denoise"``: functions of counters. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.checks import check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError
from hfilter.noising.gaussian import integers, noise_leaves
from hfilter.noising.schedule import Schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NOISES", "Noise", "default_eval_time", "schedule_of"]

#: Names of noise schedules that a configuration can hold.
NOISES = ("published", "cosine")


def schedule_of(name: str, n_steps: int) -> Schedule:
    """The noise schedule of that name with T = ``n_steps``.

    Raises
    ------
    hfilter.errors.ArgumentError
        For a name that is not in ``NOISES``, or a number of steps that this schedule cannot have.

    Examples
    --------
    >>> schedule_of("published", 500).n_steps
    500
    """
    if name not in NOISES:
        raise ArgumentError(f"noise must be one of {', '.join(NOISES)}, got {name!r}")
    try:
        made: Schedule = getattr(Schedule, name)(n_steps)
    except ArgumentError as error:
        raise ArgumentError(f"noise_steps of the {name} noise: {error}") from error
    return made


def default_eval_time(n_steps: int) -> int:
    """The time at which denoisers are compared unless one is chosen: 0.15 T, as published."""
    return max(1, round(0.15 * n_steps))


class Noise:
    """Noisy leaves x_t = signal(t) onehot(x_0) + sigma(t) eps, and what they say of the leaves.

    Parameters
    ----------
    schedule : Schedule, optional
        As published unless given.
    vocab_size
        q.
    seed
        Times and noise are functions of (seed, number of the presentation or of the row).

    Examples
    --------
    >>> noise = Noise(None, vocab_size=4, seed=0)
    >>> leaves = np.zeros((3, 8), dtype=np.uint8)
    >>> x, times = noise.presentations(leaves, [(100, 3)])
    >>> x.shape, x.dtype, times.dtype
    ((3, 8, 4), dtype('float32'), dtype('int64'))
    >>> again, _ = noise.presentations(leaves[1:2], [(101, 1)])
    >>> bool((again == x[1:2]).all())
    True
    """

    def __init__(self, schedule: Schedule | None, vocab_size: int, seed: int) -> None:
        self.schedule = Schedule.published() if schedule is None else schedule
        if not isinstance(self.schedule, Schedule):
            raise DTypeError(f"schedule must be a Schedule, got {type(schedule).__name__}")
        self.vocab_size = check_int("vocab_size", vocab_size, 2)
        self.seed = check_seed("noise_seed", seed)

    def presentations(
        self, leaves: NDArray[Any], ranges: Sequence[tuple[int, int]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rows of training under noise of their own, at times of their own.

        Parameters
        ----------
        leaves : (n, L) integer array
        ranges : sequence of (first, count)
            Numbers of the presentations that the rows are, n together.

        Returns
        -------
        x : (n, L, q) float32 array
        times : (n,) int64 array
            Uniform on 1 … T.
        """
        steps = self.schedule.n_steps
        xs, found, done = [], [], 0
        for first, n in ranges:
            times = integers(self.seed, "times", 0, n, 1, steps + 1, start=first)
            xs.append(self.noisy(leaves[done : done + n], times, "train", first))
            found.append(times)
            done += n
        if len(xs) == 1:
            return xs[0], found[0]
        return np.concatenate(xs), np.concatenate(found)

    def noisy(
        self,
        leaves: NDArray[Any],
        times: NDArray[np.int64],
        purpose: str,
        first: int,
        step: int = 0,
    ) -> NDArray[np.float32]:
        """Rows under noise number ``first``, ``first + 1``, … of (purpose, step).

        Parameters
        ----------
        leaves : (n, L) integer array
        times : (n,) int64 array
            From 0 to T.
        purpose, first, step
            Which noise, see :func:`hfilter.noising.gaussian.noise_leaves`.

        Returns
        -------
        (n, L, q) float32 array
        """
        signal = self.schedule.signal(times).astype(np.float32)
        sigma = self.schedule.sigma(times).astype(np.float32)
        x: NDArray[np.float32] = noise_leaves(
            leaves, signal, sigma, self.vocab_size, self.seed, purpose, step, start=first
        )
        return x

    def log_fields(self, x: NDArray[Any], times: NDArray[np.int64]) -> NDArray[np.float64]:
        """What noisy leaves say of each symbol, for ``TreeModel.infer(log_fields=...)``.

        Parameters
        ----------
        x : (n, L, q) array
        times : (n,) int64 array
            From 1 to T.

        Returns
        -------
        (n, L, q) float64 array
            Log-likelihoods in nats, up to a number per leaf: x_t signal(t) / sigma(t)².
        """
        intensity: NDArray[np.float64] = self.schedule.intensity(times)
        return x * intensity[:, None, None]
