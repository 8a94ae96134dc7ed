"""What denoisers share: NumPy arrays and tensors of a device by one name, and checks of their values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import as_numpy
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.noising import Channel, GaussianChannel

__all__ = [
    "by_strength",
    "check_laws",
    "check_rows",
    "choose",
    "double",
    "double_state",
    "exp",
    "host_of",
    "like",
    "log",
    "log_softmax",
    "of_type",
    "refuse_states",
    "settle",
]

Array = NDArray[Any]
_STRONG = 16.0  # fields per unit of x_t from which float32 would round a field by more than 1e-6
_LARGEST = 1e300  # nats, of one field
_LARGEST_SINGLE = 1e37  # of x_t in float32, a sixteenth of what it holds


def settle(name: str, x: Any) -> tuple[Any, Any]:
    """`x` as a NumPy array, or as the tensor on a device that it is; and what wraps a result."""
    if type(x).__module__.partition(".")[0] == "torch" and x.device.type != "cpu":
        if x.requires_grad:
            raise ArgumentError(
                f"{name} requires grad, but none flows back: pass it with .detach()"
            )
        return x, lambda result: result
    return as_numpy(name, x)


def by_strength(channel: Channel, q: int, x_t: Any, t: Any, dtype: np.dtype[Any], ask: Any) -> Any:
    """``ask(fields)`` with fields of x_t in float64 where float32 would round them too coarsely.

    Which it is depends on a row's own time alone, so that no row's answer depends on the others. For
    answers in float64 it is so at all times.
    """
    if not isinstance(channel, GaussianChannel):
        return ask(channel.log_fields(x_t, t, q))
    strong = channel.schedule.intensity(t) > (_STRONG if dtype == np.float32 else 0.0)
    if isinstance(t, int):
        return ask(channel.log_fields(double(x_t) if strong else x_t, t))
    if strong.all() or not strong.any():
        return ask(channel.log_fields(double(x_t) if strong.all() else x_t, t))
    parts = [np.flatnonzero(~strong), np.flatnonzero(strong)]
    found = [by_strength(channel, q, x_t[rows], t[rows], dtype, ask) for rows in parts]
    out = (
        found[0].new_empty(x_t.shape)
        if hasattr(x_t, "new_empty")
        else np.empty(x_t.shape, found[0].dtype)
    )
    for rows, values in zip(parts, found, strict=True):
        out[rows] = values
    return out


def refuse_states(x: Any, intensity: float) -> None:
    """Raise if x_t is not finite, or so large that its fields would be no numbers, and say where."""
    if 0 in x.shape:
        return
    low, high = float(x.min()), float(x.max())
    limit = _LARGEST / intensity if x.dtype.itemsize == 8 else _LARGEST_SINGLE
    if low >= -limit and high <= limit:  # false for NaN
        return
    values = host_of(x).astype(np.float64)
    row, leaf, symbol = (int(i) for i in np.argwhere(~(np.abs(values) <= limit))[0])
    raise ArgumentError(
        f"x_t must be finite (and within ±{limit:.1g}), got {values[row, leaf, symbol]} in row {row} at "
        f"leaf {leaf}, symbol {symbol}"
    )


def double(x: Any) -> Any:
    """In double precision."""
    return x.astype(np.float64) if isinstance(x, np.ndarray) else x.double()


def double_state(channel: Channel, x_t: Any) -> Any:
    """x_t as fields are best computed from it."""
    return double(x_t) if channel.continuous else x_t


def log(x: Any) -> Any:
    """Natural logarithm in double precision; -inf of 0."""
    if not isinstance(x, np.ndarray):
        return x.double().log()
    with np.errstate(divide="ignore", invalid="ignore"):  # below zero: NaN, which measures refuse
        return np.log(x.astype(np.float64))


def exp(x: Any) -> Any:
    """Of a NumPy array or a tensor."""
    return np.exp(x) if isinstance(x, np.ndarray) else x.exp()


def of_type(x: Any, dtype: np.dtype[Any]) -> Any:
    """In single or double precision."""
    if isinstance(x, np.ndarray):
        return x.astype(dtype)
    return x.double() if dtype == np.float64 else x.float()


def like(x: Array, other: Any) -> Any:
    """A NumPy array as an array of the library, type and device of `other`."""
    if isinstance(other, np.ndarray):
        return x
    import torch

    return torch.from_numpy(x).to(other)


def choose(which: Any, first: Any, second: Any) -> Any:
    """Entries of the first where `which` is true, of the second elsewhere."""
    if isinstance(which, np.ndarray):
        return np.where(which, first, second)
    return first.where(which, second)


def log_softmax(x: Any) -> Any:
    """Along the last axis; NaN where every entry is -inf."""
    if not isinstance(x, np.ndarray):
        return x - x.logsumexp(-1, keepdim=True)
    with np.errstate(invalid="ignore"):
        x = x - x.max(axis=-1, keepdims=True)
        out: Array = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return out


def check_laws(name: str, x: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Probabilities of that shape which sum to 1 along the last axis."""
    given, _ = as_numpy(name, x)
    if given.dtype.kind not in "fiu":
        raise DTypeError(f"{name} must be probabilities, got {given.dtype}")
    if given.shape != shape:
        raise ShapeError(f"{name} must have shape {shape}, got {given.shape}")
    law: NDArray[np.float64] = given.astype(np.float64)
    off = np.abs(law.sum(axis=-1) - 1.0).max()
    if not (off <= 1e-6 and law.min() >= 0.0):
        raise ArgumentError(
            f"{name} must be probabilities that sum to 1 along the last axis, off by up to {off:.3g}, "
            f"smallest {law.min():.3g}"
        )
    law /= law.sum(axis=-1, keepdims=True)
    law.flags.writeable = False
    return law


def check_rows(name: str, rows: Any, q: int) -> Array:
    """Stored rows of clean tokens, (P, L), as NumPy."""
    tokens = host_of(settle(name, rows)[0])
    if tokens.dtype.kind not in "iu":
        raise DTypeError(f"{name} must be integers (tokens), got {tokens.dtype}")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ShapeError(f"{name} must have shape (P, L), both at least 1, got {tokens.shape}")
    if not (int(tokens.min()) >= 0 and int(tokens.max()) < q):
        raise ArgumentError(
            f"{name} must be tokens from 0 to {q - 1}, got values from {tokens.min()} to {tokens.max()}; "
            "data and vocab_size must belong together"
        )
    return tokens


def host_of(x: Any) -> Array:
    """Any array as NumPy, copied from a device if need be."""
    if isinstance(x, np.ndarray):
        return x
    found: Array = x.detach().cpu().numpy()
    return found
