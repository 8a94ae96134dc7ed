"""The interface of the channels of diffusion, and Gaussian noise on one-hot codes.

A channel is a law of noisy leaves given clean ones, leaf by leaf, and nothing more. What it says of the
clean leaves is a field, which `hfilter.TreeModel` takes as evidence.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import as_numpy
from hfilter.checks import check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError, ShapeError

from . import gaussian
from .schedule import Schedule, check_times

__all__ = ["Channel", "GaussianChannel", "check_clean", "described", "host"]


_LARGEST = 1e300  # nats, of one field


class Channel(ABC):
    """A law of noisy leaves x_t given clean ones x_0, at times t = 1 … T; time 0 is clean.

    Attributes
    ----------
    n_steps : int
        T.
    continuous : bool
        Whether x_t is real numbers (n, L, q) rather than tokens (n, L).
    """

    n_steps: int
    continuous: bool

    @abstractmethod
    def corrupt(
        self,
        leaves: Any,
        t: Any,
        vocab_size: int,
        *,
        seed: int,
        start: int = 0,
        purpose: str = "forward",
        step: int | None = None,
    ) -> Any:
        """Noisy leaves x_t, a pure function of the leaves, t and (seed, purpose, step, start + row).

        Parameters
        ----------
        leaves : array_like of int, shape (n, L)
            Clean tokens 0 … q - 1.
        t : int, or array_like of int, shape (n,)
            From 0 (nothing happens) to T; one for each row, or one for all.
        vocab_size : int
            q.
        seed, start : int
            Row i belongs to sample ``start + i``.
        purpose : str
            One of `hfilter.noising.gaussian.PURPOSES`: streams that share nothing.
        step : int, optional
            Another number of the stream; 0 by default, whatever t: a row meets the same noise, more of it,
            at every time.

        Returns
        -------
        array
            float32 (n, L, q) for a continuous channel, tokens (n, L) otherwise, of the library of `leaves`.
        """

    @abstractmethod
    def log_fields(self, x_t: Any, t: Any, vocab_size: int | None = None) -> Any:
        """What x_t says of the clean leaves: ln P(x_t,j | x_0,j = b) but for `log_base`, (n, L, q), nats."""

    @abstractmethod
    def log_base(self, x_t: Any, t: Any, vocab_size: int | None = None) -> Any:
        """What the fields leave out, summed over the leaves, shape (n,), float64.

        ``log p_t(x_t) = model.log_prob(log_fields=channel.log_fields(x_t, t)) + channel.log_base(x_t, t)``.
        """

    @abstractmethod
    def check_state(self, x_t: Any, vocab_size: int | None, n_leaves: int | None = None) -> int:
        """Number of rows of `x_t`, or an error that names it and what is wrong with its shape or type."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """What makes the channel, as plain values."""


class GaussianChannel(Channel):
    """x_t = signal(t) one-hot(x_0) + sigma(t) eps, eps independent standard normal numbers (BG).

    Parameters
    ----------
    schedule : Schedule
        `Schedule.published` by default.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=4)
    >>> channel = GaussianChannel()
    >>> x = channel.corrupt(model.sample(5, seed=1).leaves, 75, 6, seed=2)
    >>> x.shape, x.dtype, model.infer(log_fields=channel.log_fields(x, 75)).leaves.shape
    ((5, 16, 6), dtype('float32'), (5, 16, 6))
    """

    continuous = True

    def __init__(self, schedule: Schedule | None = None) -> None:
        if schedule is None:
            schedule = Schedule.published()
        if not isinstance(schedule, Schedule):
            raise DTypeError(
                f"schedule must be a hfilter.noising.Schedule, got {type(schedule).__name__}"
            )
        self.schedule = schedule
        self.n_steps = schedule.n_steps

    def corrupt(
        self,
        leaves: Any,
        t: Any,
        vocab_size: int,
        *,
        seed: int,
        start: int = 0,
        purpose: str = "forward",
        step: int | None = None,
    ) -> Any:
        q = check_int("vocab_size", vocab_size, 1, 65535)
        n = check_clean("leaves", leaves, q)
        times = check_times(t, self.n_steps, n, low=0)
        signal, sigma = self.schedule.signal(times), self.schedule.sigma(times)
        if not isinstance(times, int):
            signal, sigma = signal.astype(np.float32), sigma.astype(np.float32)
        return gaussian.noise_leaves(
            leaves, signal, sigma, q, check_seed("seed", seed), purpose, step or 0, start=start
        )

    def log_fields(self, x_t: Any, t: Any, vocab_size: int | None = None) -> Any:
        """``√ᾱ_t / (1 - ᾱ_t) x_t``, of the type of x_t (`intensity` says when float32 is too short for it).

        Raises
        ------
        hfilter.errors.ArgumentError
            If a field would be larger than 1e300 nats, or than its type holds (NumPy's arrays only: a
            tensor's values are not looked at).
        """
        n = self.check_state(x_t, vocab_size)
        times = check_times(t, self.n_steps, n)
        scale = self.schedule.intensity(times)
        if type(x_t).__module__.partition(".")[0] == "torch":
            if isinstance(times, int):
                return x_t * scale
            import torch

            return x_t * torch.from_numpy(scale).to(x_t)[:, None, None]
        view, wrap = as_numpy("x_t", x_t)
        factor = scale if isinstance(times, int) else scale.astype(view.dtype)[:, None, None]
        with np.errstate(over="ignore"):
            fields = view * factor
        if fields.size and not max(-float(fields.min()), float(fields.max())) <= _LARGEST:
            raise ArgumentError(
                f"x_t must be finite and its fields x_t √ᾱ / (1 - ᾱ) numbers of its type, "
                f"{view.dtype}, got values of x_t from {view.min()} to {view.max()}"
            )
        return wrap(fields)

    def log_base(self, x_t: Any, t: Any, vocab_size: int | None = None) -> Any:
        n = self.check_state(x_t, vocab_size)
        times = check_times(t, self.n_steps, n)
        array, send = host(x_t, "x_t")
        variance = self.schedule.sigma(times) ** 2
        power = np.einsum("nlq,nlq->n", array, array, dtype=np.float64)
        length, q = array.shape[1:]
        shared = length * (0.5 * q * np.log(2.0 * math.pi * variance))
        return send(
            -shared - (power + length * self.schedule.signal(times) ** 2) / (2.0 * variance)
        )

    def check_state(self, x_t: Any, vocab_size: int | None, n_leaves: int | None = None) -> int:
        shape, kind = described("x_t", x_t)
        length, q = (
            "L" if n_leaves is None else n_leaves,
            "q" if vocab_size is None else vocab_size,
        )
        if (
            len(shape) != 3
            or (n_leaves is not None and shape[1] != n_leaves)
            or (vocab_size is not None and shape[2] != vocab_size)
        ):
            raise ShapeError(f"x_t must have shape (n, {length}, {q}), got {shape}")
        if kind not in ("float32", "float64"):
            raise DTypeError(
                f"x_t must be float32 or float64 in a Gaussian channel, got {kind}; "
                "noisy leaves are made by channel.corrupt"
            )
        return shape[0]

    def as_dict(self) -> dict[str, Any]:
        return {"channel": "gaussian", "schedule": self.schedule.as_dict()}

    def __repr__(self) -> str:
        return f"GaussianChannel({self.schedule!r})"


def host(x: Any, name: str) -> tuple[NDArray[Any], Callable[[NDArray[Any]], Any]]:
    """Any array as NumPy, tensors of a device copied, and what sends a result back to where it was."""
    if type(x).__module__.partition(".")[0] == "torch" and x.device.type != "cpu":
        device = x.device
        array, wrap = as_numpy(name, x.cpu())
        return array, lambda result: wrap(np.ascontiguousarray(result)).to(device)
    array, wrap = as_numpy(name, x)
    return array, lambda result: wrap(np.ascontiguousarray(result))


def described(name: str, x: Any) -> tuple[tuple[int, ...], str]:
    """Shape and name of the type of any array, without touching its values."""
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        x, _ = as_numpy(name, x)
    kind = x.dtype.name if isinstance(x, np.ndarray) else str(x.dtype).removeprefix("torch.")
    return tuple(int(i) for i in x.shape), kind


def check_clean(name: str, leaves: Any, q: int) -> int:
    """Number of rows of clean tokens (n, L), 0 … q - 1; values on a device are not looked at."""
    shape, kind = described(name, leaves)
    if "int" not in kind:
        raise DTypeError(f"{name} must be integers (tokens), got {kind}")
    if len(shape) != 2:
        raise ShapeError(f"{name} must have shape (n, L), got {shape}")
    if type(leaves).__module__.partition(".")[0] == "torch" and leaves.device.type != "cpu":
        return shape[0]
    tokens, _ = as_numpy(name, leaves)
    if tokens.size and not (int(tokens.min()) >= 0 and int(tokens.max()) < q):
        raise ArgumentError(
            f"{name} must be clean tokens from 0 to {q - 1}, got values from {tokens.min()} to "
            f"{tokens.max()}; vocab_size and the data must belong together"
        )
    return shape[0]
