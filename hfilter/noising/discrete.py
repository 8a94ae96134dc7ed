"""Discrete diffusion: masking (absorbing) and uniform noise, with their exact reverse laws."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import Wrap, as_numpy
from hfilter.checks import check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError, ShapeError

from . import gaussian
from .channels import Channel, check_clean, described, host
from .schedule import Schedule, check_times

__all__ = ["DiscreteChannel", "MaskingChannel", "UniformChannel"]

Floats = NDArray[np.float64]
_MAX_STEPS = 2**20


class DiscreteChannel(Channel):
    """What masking and uniform noise share: every token is left untouched with some probability.

    Parameters
    ----------
    survival : array_like of float, shape (T + 1,)
        Probability that a token has not been touched by time t: 1 at t = 0, never rising.

    Attributes
    ----------
    survival : ndarray of float64, shape (T + 1,)
    """

    continuous = False
    _name: str
    _extra: int  # states beyond the q symbols

    def __init__(self, survival: Any) -> None:
        given, _ = as_numpy("survival", survival)
        if given.dtype.kind not in "fiu":
            raise DTypeError(f"survival must be numbers, got {given.dtype}")
        if given.ndim != 1 or not 2 <= len(given) <= _MAX_STEPS + 1:
            raise ShapeError(f"survival must have shape (T + 1,), T at least 1, got {given.shape}")
        kept = given.astype(np.float64)
        falls = (np.diff(kept) <= 0.0).all() and kept[0] == 1.0 and kept[-1] >= 0.0
        if not falls:  # NaN too
            raise ArgumentError(
                "survival must begin with 1 at t = 0 and never rise or go below 0, got "
                f"{np.array2string(kept, threshold=6, precision=4)}"
            )
        kept.flags.writeable = False
        self.survival: Floats = kept
        self.n_steps = len(kept) - 1

    @classmethod
    def linear(cls, n_steps: int) -> Any:
        """Survival 1 - t/T."""
        return cls(1.0 - np.arange(check_int("n_steps", n_steps, 1, _MAX_STEPS) + 1) / n_steps)

    @classmethod
    def cosine(cls, n_steps: int) -> Any:
        """Survival cos²(π t / 2T)."""
        grid = np.arange(check_int("n_steps", n_steps, 1, _MAX_STEPS) + 1) / n_steps
        kept = np.cos(0.5 * math.pi * grid) ** 2
        kept[-1] = 0.0
        return cls(kept)

    @classmethod
    def of_schedule(cls, schedule: Schedule) -> Any:
        """Survival ᾱ_t."""
        if not isinstance(schedule, Schedule):
            raise DTypeError(
                f"schedule must be a hfilter.noising.Schedule, got {type(schedule).__name__}"
            )
        return cls(schedule.alpha_bars)

    def kept(self, t: Any) -> Any:
        """Survival at checked times, shaped to stand beside tokens (n, L)."""
        return float(self.survival[t]) if isinstance(t, int) else self.survival[t][:, None]

    def _touched(self, n: int, length: int, t: Any, stream: tuple[int, str, int, int]) -> Any:
        """Which tokens have been touched by time t, (n, L), and another uniform number for each."""
        seed, purpose, step, start = stream
        draws = gaussian.uniform(seed, purpose, step, n, 2 * length, start=start)
        return draws[:, :length] >= self.kept(t), draws[:, length:]

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
        q = check_int("vocab_size", vocab_size, 1, 65534)
        n = check_clean("leaves", leaves, q)
        times = check_times(t, self.n_steps, n, low=0)
        tokens, send = host(leaves, "leaves")
        stream = (check_seed("seed", seed), purpose, step or 0, start)
        touched, draw = self._touched(n, tokens.shape[1], times, stream)
        found = np.where(touched, self._instead(draw, q), tokens)
        return send(found.astype(np.uint8 if q <= 255 else np.uint16))

    @abstractmethod
    def _instead(self, draw: Floats, q: int) -> Any:
        """What stands in the place of touched tokens."""

    @abstractmethod
    def reverse_law(self, x_t: Any, t: int, law: Any) -> Any:
        """Law of each token of x_{t-1} given x_t and the law of the clean token, float64.

        ``Σ_{x_0} law(x_0) q(x_{t-1} | x_t, x_0)`` of every leaf by itself: the factorised reverse step.
        With a one-hot `law` it is the law given x_0.

        Parameters
        ----------
        x_t : array_like of int, shape (n, L)
        t : int
            From 1 to T.
        law : array_like of float, shape (n, L, q)
            P(x_0,j | x_t), what a denoiser gives. NaN makes the token's law NaN.

        Returns
        -------
        ndarray of float64, shape (n, L, n_states)
            n_states is q, with the mask token q + 1.
        """

    def check_state(self, x_t: Any, vocab_size: int | None, n_leaves: int | None = None) -> int:
        shape, kind = described("x_t", x_t)
        if len(shape) != 2 or (n_leaves is not None and shape[1] != n_leaves):
            raise ShapeError(
                f"x_t must have shape (n, {'L' if n_leaves is None else n_leaves}), got {shape}"
            )
        if "int" not in kind:
            raise DTypeError(f"x_t must be tokens (integers) in a {self._name} channel, got {kind}")
        return shape[0]

    def _tokens(self, x_t: Any, vocab_size: int | None) -> tuple[NDArray[Any], Wrap, int]:
        if vocab_size is None:
            raise ArgumentError(
                "vocab_size must be given: tokens alone do not say how many symbols there are"
            )
        q = check_int("vocab_size", vocab_size, 1, 65534)
        self.check_state(x_t, q)
        tokens, send = host(x_t, "x_t")
        limit = q - 1 + self._extra
        if tokens.size and not (int(tokens.min()) >= 0 and int(tokens.max()) <= limit):
            raise ArgumentError(
                f"x_t must hold tokens from 0 to {limit} in a {self._name} channel of {q} symbols, got "
                f"values from {tokens.min()} to {tokens.max()}"
            )
        return tokens, send, q

    def _reverse(self, x_t: Any, t: Any, law: Any) -> tuple[Any, int, Any]:
        """The arguments of `reverse_law`, checked: the law, the time, and what `_tokens` gives."""
        clean, _ = host(law, "law")
        shape, _ = described("x_t", x_t)
        if clean.ndim != 3 or clean.shape[:2] != shape:
            wanted = ", ".join(str(i) for i in shape)
            raise ShapeError(f"law must have shape ({wanted}, q) for this x_t, got {clean.shape}")
        time = check_times(t, self.n_steps)
        if not isinstance(time, int):
            raise DTypeError("t must be one integer, the same for all rows")
        return clean, time, self._tokens(x_t, clean.shape[2])

    def as_dict(self) -> dict[str, Any]:
        return {"channel": self._name, "survival": self.survival.tolist()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n_steps} steps, survival {self.survival[-1]:.3g} at the end)"


class MaskingChannel(DiscreteChannel):
    """Absorbing diffusion: a touched token is hidden, its symbol the mask token q from then on.

    Parameters
    ----------
    survival : array_like of float, shape (T + 1,)
        Probability that a token is still seen at time t.

    Examples
    --------
    >>> channel = MaskingChannel.linear(4)
    >>> channel.corrupt([[0, 1, 1, 0]], 4, 2, seed=0).tolist()
    [[2, 2, 2, 2]]
    >>> channel.log_fields([[0, 2]], 1, 2).tolist()
    [[[0.0, -inf], [0.0, 0.0]]]
    """

    _name, _extra = "masking", 1

    def _instead(self, draw: Floats, q: int) -> Any:
        return q

    def log_fields(self, x_t: Any, t: Any, vocab_size: int | None = None) -> Any:
        """0 for what a token may have been, -inf for what it was not, float64."""
        tokens, send, q = self._tokens(x_t, vocab_size)
        check_times(t, self.n_steps, len(tokens))
        hidden = (tokens == q)[..., None]
        return send(np.where(hidden | (tokens[..., None] == np.arange(q)), 0.0, -np.inf))

    def reverse_law(self, x_t: Any, t: int, law: Any) -> Any:
        clean, time, (tokens, send, q) = self._reverse(x_t, t, law)
        now, before = self.survival[time], self.survival[time - 1]
        # While nothing can have been hidden, nothing is shown.
        shown = (before - now) / (1.0 - now) if now < 1.0 else 0.0
        out = np.zeros((*tokens.shape, q + 1))
        hidden = tokens == q
        out[..., :q] = np.where(hidden[..., None], shown * clean, tokens[..., None] == np.arange(q))
        out[..., q] = np.where(hidden, 1.0 - shown, 0.0)
        out[np.isnan(clean).any(axis=-1)] = np.nan
        return send(out)

    def log_base(self, x_t: Any, t: Any, vocab_size: int | None = None) -> Any:
        tokens, send, q = self._tokens(x_t, vocab_size)
        times = check_times(t, self.n_steps, len(tokens))
        hidden = tokens == q
        with np.errstate(divide="ignore"):
            lost, kept = np.log1p(-self.kept(times)), np.log(self.kept(times))
        return send(np.where(hidden, lost, kept).sum(axis=1))


class UniformChannel(DiscreteChannel):
    """A touched token is replaced by a uniform one, its own included.

    Parameters
    ----------
    survival : array_like of float, shape (T + 1,)
        Probability that a token has not been replaced by time t: ``1 - noise`` of `noisy_fields`.

    Examples
    --------
    >>> import numpy as np
    >>> np.exp(UniformChannel([1.0, 0.75]).log_fields([[1]], 1, 2)).round(12).tolist()
    [[[0.125, 0.875]]]
    """

    _name, _extra = "uniform", 0

    def _instead(self, draw: Floats, q: int) -> Any:
        return np.minimum((draw * q).astype(np.int64), q - 1)

    def log_fields(self, x_t: Any, t: Any, vocab_size: int | None = None) -> Any:
        """ln of ``survival [b = x_t] + (1 - survival) / q``, float64."""
        tokens, send, q = self._tokens(x_t, vocab_size)
        kept = self.kept(check_times(t, self.n_steps, len(tokens)))
        with np.errstate(divide="ignore"):
            here, other = np.log(kept + (1.0 - kept) / q), np.log(np.float64((1.0 - kept) / q))
        if not isinstance(kept, float):
            here, other = here[..., None], other[..., None]
        return send(np.where(tokens[..., None] == np.arange(q), here, other))

    def reverse_law(self, x_t: Any, t: int, law: Any) -> Any:
        clean, time, (tokens, send, q) = self._reverse(x_t, t, law)
        now, before = self.survival[time], self.survival[time - 1]
        step = now / before if before > 0.0 else 0.0
        seen = tokens[..., None] == np.arange(q)
        # q(z | x_t, x_0) = q(x_t | z) q(z | x_0) / q(x_t | x_0), summed over x_0 under its law.
        reach = np.where(seen, step + (1.0 - step) / q, (1.0 - step) / q)  # q(x_t | z)
        norm = np.where(seen, now + (1.0 - now) / q, (1.0 - now) / q)  # q(x_t | x_0)
        with np.errstate(invalid="ignore", divide="ignore"):
            weight = np.where(clean == 0.0, 0.0, clean / norm)
            mixed = before * weight + (1.0 - before) / q * weight.sum(axis=-1, keepdims=True)
            out = reach * mixed
            return send(out / out.sum(axis=-1, keepdims=True))

    def log_base(self, x_t: Any, t: Any, vocab_size: int | None = None) -> Any:
        """Zero: the fields leave nothing out."""
        tokens, send, _ = self._tokens(x_t, vocab_size)
        check_times(t, self.n_steps, len(tokens))
        return send(np.zeros(len(tokens)))
