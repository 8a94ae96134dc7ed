"""`Schedule`: how much noise there is at every time of a Gaussian diffusion."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import as_numpy
from hfilter.checks import check_float, check_int
from hfilter.errors import ArgumentError, DTypeError, ShapeError

__all__ = ["Schedule", "check_times"]

Floats = NDArray[np.float64]
_MAX_STEPS = 2**20  # a step has 20 bits of a random number's counter
_LARGEST_BETA = 0.999  # of the cosine schedule, whose last would be 1: nothing of x_t would be left


class Schedule:
    """Variances of the noise that is added from one time to the next, t = 1 … T.

    ``x_t = signal(t) x_0 + sigma(t) eps`` with ``signal² = ᾱ_t = Π_{s ≤ t} (1 - β_s)`` and
    ``sigma² = 1 - ᾱ_t``. Time 0 is the clean data. Everything is in float64.

    Parameters
    ----------
    betas : array_like of float, shape (T,)
        β_1 … β_T, each above 0 and below 1.
    name : str
        What the schedule is called in `describe` and in files.

    Attributes
    ----------
    n_steps : int
        T.
    betas : ndarray of float64, shape (T,)
        β_t is ``betas[t - 1]``.
    alpha_bars : ndarray of float64, shape (T + 1,)
        ᾱ_t is ``alpha_bars[t]``; ᾱ_0 = 1.

    Raises
    ------
    hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
        For numbers that are no variances.

    Examples
    --------
    >>> schedule = Schedule.published()
    >>> schedule.n_steps, round(float(schedule.intensity(1)), 1), round(float(schedule.intensity(75)), 3)
    (500, 4999.5, 4.213)
    """

    def __init__(self, betas: Any, name: str = "custom") -> None:
        given, _ = as_numpy("betas", betas)
        if given.dtype.kind not in "fiu":
            raise DTypeError(f"betas must be numbers, got {given.dtype}")
        if given.ndim != 1 or not 1 <= len(given) <= _MAX_STEPS:
            raise ShapeError(
                f"betas must have shape (T,) with T from 1 to {_MAX_STEPS}, got {given.shape}"
            )
        values = given.astype(np.float64)
        if not ((values > 0.0) & (values < 1.0)).all():  # NaN too
            at = int(np.flatnonzero(~((values > 0.0) & (values < 1.0)))[0])
            raise ArgumentError(
                f"betas must be above 0 and below 1, got {values[at]:g} for the step to t = {at + 1}"
            )
        values.flags.writeable = False
        self.name, self.betas = str(name), values
        self.n_steps = len(values)

    @classmethod
    def published(cls, n_steps: int = 500) -> Schedule:
        """β_t linear from 1000/T · 1e-4 to 1000/T · 0.02 (BG): 2e-4 to 0.04 for T = 500.

        Raises
        ------
        hfilter.errors.ArgumentError
            For fewer than 21 steps, of which the last would have to take more than everything.
        """
        steps = check_int("n_steps", n_steps, 21, _MAX_STEPS)
        return cls(np.linspace(1e-4 * 1000.0 / steps, 0.02 * 1000.0 / steps, steps), "published")

    @classmethod
    def cosine(cls, n_steps: int = 500, offset: float = 0.008) -> Schedule:
        """ᾱ_t = f(t)/f(0), f(t) = cos²(π/2 (t/T + offset)/(1 + offset)) (arXiv 2102.09672), β at most .999."""
        steps = check_int("n_steps", n_steps, 1, _MAX_STEPS)
        shift = check_float("offset", offset, 0.0)
        grid = (np.arange(steps + 1) / steps + shift) / (1.0 + shift)
        kept = np.cos(0.5 * math.pi * grid) ** 2
        return cls(np.minimum(1.0 - kept[1:] / kept[:-1], _LARGEST_BETA), "cosine")

    @classmethod
    def custom(cls, betas: Any, name: str = "custom") -> Schedule:
        """A schedule of one's own: the same as ``Schedule(betas, name)``."""
        return cls(betas, name)

    @cached_property
    def alpha_bars(self) -> Floats:
        kept: Floats = np.concatenate([[1.0], np.cumprod(1.0 - self.betas)])
        kept.flags.writeable = False
        return kept

    @cached_property
    def _variances(self) -> Floats:
        """1 - ᾱ_t, without the digits that the difference loses where ᾱ_t is close to 1."""
        lost: Floats = -np.expm1(np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas))]))
        lost.flags.writeable = False
        return lost

    def signal(self, t: Any) -> Any:
        """√ᾱ_t, a float for an int, an array for an array of times; t from 0 to T."""
        return self._at(t, 0, lambda i: np.sqrt(self.alpha_bars[i]))

    def sigma(self, t: Any) -> Any:
        """√(1 - ᾱ_t), the standard deviation of the noise; t from 0 to T."""
        return self._at(t, 0, lambda i: np.sqrt(self._variances[i]))

    def intensity(self, t: Any) -> Any:
        """√ᾱ_t / (1 - ᾱ_t), the field in nats of a unit of x_t; t from 1 to T."""
        return self._at(t, 1, lambda i: np.sqrt(self.alpha_bars[i]) / self._variances[i])

    def posterior(self, t: Any) -> Any:
        """(a, b, s) of q(x_{t-1} | x_t, x_0) = N(a x_0 + b x_t, s²); t from 1 to T.

        s² is the small one of the two variances of DDPM, the exact one given x_0. At t = 1 it is
        (1, 0, 0): x_0 itself.
        """

        def each(i: Any) -> tuple[Any, Any, Any]:
            beta, left, lost = self.betas[i - 1], self._variances[i - 1], self._variances[i]
            return (
                np.sqrt(self.alpha_bars[i - 1]) * beta / lost,
                np.sqrt(1.0 - beta) * left / lost,
                np.sqrt(beta * left / lost),
            )

        return self._each(t, 1, each)

    def deterministic(self, t: Any) -> Any:
        """(a, b) of the step x_{t-1} = a x_0 + b x_t that keeps the direction of the noise; t from 1 to T.

        ``x_{t-1} = √ᾱ_{t-1} x_0 + sigma(t-1) eps`` with the eps that leads from x_0 to x_t: the step of
        DDIM with η = 0 (arXiv 2010.02502), a discretised probability flow.
        """

        def each(i: Any) -> tuple[Any, Any]:
            b = np.sqrt(self._variances[i - 1] / self._variances[i])
            return np.sqrt(self.alpha_bars[i - 1]) - b * np.sqrt(self.alpha_bars[i]), b

        return self._each(t, 1, each)

    def _at(self, t: Any, low: int, value: Callable[[Any], Any]) -> Any:
        return self._each(t, low, lambda i: (value(i),))[0]

    def _each(self, t: Any, low: int, values: Callable[[Any], tuple[Any, ...]]) -> Any:
        times = check_times(t, self.n_steps, low=low)
        found = values(times)
        return tuple(float(x) for x in found) if isinstance(times, int) else found

    def as_dict(self) -> dict[str, Any]:
        """What makes the schedule, as plain numbers: ``Schedule(**schedule.as_dict())`` is equal to it."""
        return {"name": self.name, "betas": self.betas.tolist()}

    def describe(self) -> str:
        """One line on it."""
        return (
            f"{self.name} schedule of {self.n_steps} steps, beta from {self.betas[0]:.3g} to "
            f"{self.betas[-1]:.3g}, signal at the end {math.sqrt(self.alpha_bars[-1]):.3g}"
        )

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that tell schedules of different betas apart, whatever their names."""
        return hashlib.blake2b(self.betas.astype("<f8").tobytes(), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and np.array_equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Schedule({self.describe()})"


def check_times(t: Any, n_steps: int, n: int | None = None, *, low: int = 1) -> Any:
    """Times as an int, or as an array of int64 of shape (n,): integers from `low` to `n_steps`.

    Raises
    ------
    hfilter.errors.DTypeError, hfilter.errors.ArgumentError, hfilter.errors.ShapeError
        Naming t.
    """
    if isinstance(t, (int, np.integer)) or not (hasattr(t, "__len__") or hasattr(t, "ndim")):
        return check_int("t", t, low, n_steps)
    if type(t).__module__.partition(".")[0] == "torch":
        t = t.cpu()
    times, _ = as_numpy("t", t)
    if times.dtype.kind not in "iu" and times.size:  # an empty list has no type
        raise DTypeError(
            f"t must be an integer or an array of integers from {low} to {n_steps}, got {times.dtype}"
        )
    if times.ndim == 0:
        return check_int("t", times.item(), low, n_steps)
    if times.ndim != 1 or (n is not None and len(times) != n):
        wanted = "(n,)" if n is None else f"({n},), one time for each row,"
        raise ShapeError(f"t must be an integer or have shape {wanted} got {times.shape}")
    if times.size and not (int(times.min()) >= low and int(times.max()) <= n_steps):
        raise ArgumentError(
            f"t must be from {low} to {n_steps}, got values from {times.min()} to {times.max()}"
        )
    return times.astype(np.int64)
