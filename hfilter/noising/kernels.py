"""Who computes noise: the compiled text, Numba's or NumPy's, all with the same bits. Arguments are checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .text import normal_rows

__all__ = [
    "is_device_tensor",
    "is_elsewhere",
    "new_tensor",
    "noise_leaves",
    "normal",
    "reverse_step",
]

Array = NDArray[Any]

_PIECE = 1 << 16  # numbers made at a time in NumPy: they stay in the cache


def is_device_tensor(x: Any) -> bool:
    """A torch tensor that NumPy cannot see."""
    return type(x).__module__.partition(".")[0] == "torch" and x.device.type != "cpu"


def is_elsewhere(device: Any) -> bool:
    """A device that is not this processor."""
    return str(device).partition(":")[0] != "cpu"


def new_tensor(shape: tuple[int, ...], device: Any) -> Any:
    """An uninitialised float32 tensor on `device`."""
    import torch

    return torch.empty(shape, dtype=torch.float32, device=device)


def _pieces(n: int, size: int, most: int = _PIECE) -> Iterator[slice]:
    rows = max(1, most // max(size, 1))
    for begin in range(0, n, rows):
        yield slice(begin, min(begin + rows, n))


def normal(
    seed: int, tag: int, start: int, out: Array, backend: str | None, num_threads: int | None
) -> None:
    """Fill `out` (n, size)."""
    for part in _pieces(*out.shape):
        normal_rows(seed, tag, start + part.start, out[part])


def noise_leaves(
    seed: int, tag: int, start: int, leaves: Array, signal: Array, sigma: Array, out: Array,
    backend: str | None, num_threads: int | None,
) -> None:  # fmt: skip
    """Fill `out` (n, L, q): sigma * noise, and the signal added at the leaf's symbol."""
    n, length, q = out.shape
    flat = out.reshape(n, length * q)
    at = np.arange(length) * q
    for part in _pieces(n, length * q):
        target = flat[part]
        normal_rows(seed, tag, start + part.start, target)
        target *= sigma[part, None]
        rows = np.arange(len(target))[:, None]
        target[rows, at + leaves[part].astype(np.intp)] += signal[part, None]


def reverse_step(
    seed: int, tag: int, start: int, x: Array, x0: Array, a: float, b: float, s: float,
    backend: str | None, num_threads: int | None,
) -> None:  # fmt: skip
    """x = (a * x0 + b * x) + s * noise."""
    size = x[0].size if len(x) else 0
    flat, flat0 = x.reshape(len(x), size), x0.reshape(len(x), size)
    f, g, h = np.float32(a), np.float32(b), np.float32(s)
    noise = np.empty((max(1, _PIECE // max(size, 1)), size), np.float32)
    for part in _pieces(len(x), size):
        target = flat[part]
        target *= g
        np.add(f * flat0[part], target, out=target)
        if h != 0:
            z = noise[: len(target)]
            normal_rows(seed, tag, start + part.start, z)
            target += h * z
