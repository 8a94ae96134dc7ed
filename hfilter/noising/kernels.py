"""Who computes noise: the compiled text, Numba's or NumPy's, all with the same bits. Arguments are checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import default_threads, get_backend
from ..checks import check_int
from ..compiled import _cpu
from ..errors import KernelError
from .text import normal_rows

__all__ = [
    "is_device_tensor",
    "is_elsewhere",
    "new_tensor",
    "noise_leaves",
    "normal",
    "reverse_step",
    "server",
]

Array = NDArray[Any]

_PIECE = 1 << 16  # numbers made at a time in NumPy: they stay in the cache
_CALL = 1 << 25  # and in a compiled call: Python sees Ctrl-C between calls


def server(backend: str | None, num_threads: int | None) -> tuple[str, int]:
    """The name of the backend that serves arrays on this processor, and threads for it."""
    most = 1024
    threads = (
        default_threads() if num_threads is None else check_int("num_threads", num_threads, 1, most)
    )
    name = get_backend(backend).name
    if name.startswith("cuda"):  # of arrays here there is nothing for a device to do
        name = get_backend("cpu" if _cpu is not None else "python").name
    return name, threads


def is_compiled(name: str) -> bool:
    """A backend of module _cpu."""
    return name not in ("numba", "python")


def _compiled(
    name: str, threads: int, seed: int, tag: int, start: int, out: Array, kind: str, *given: Any
) -> None:
    """Pieces of rows to the compiled text; arrays of one entry per row among `given` are cut likewise."""
    n = len(out)
    size = out[0].size if n else 0
    for part in _pieces(n, size, _CALL):
        cut = tuple(x[part] if isinstance(x, np.ndarray) else x for x in given)
        try:
            _cpu.noise(
                name, seed, tag, start + part.start, part.stop - part.start, size, out[part], kind,
                cut, threads,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"{name}: {error}; please report this") from error


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
    name, threads = server(backend, num_threads)
    if is_compiled(name):
        _compiled(name, threads, seed, tag, start, out, "fill")
        return
    for part in _pieces(*out.shape):
        normal_rows(seed, tag, start + part.start, out[part])


def noise_leaves(
    seed: int, tag: int, start: int, leaves: Array, signal: Array, sigma: Array, out: Array,
    backend: str | None, num_threads: int | None,
) -> None:  # fmt: skip
    """Fill `out` (n, L, q): sigma * noise, and the signal added at the leaf's symbol."""
    n, length, q = out.shape
    name, threads = server(backend, num_threads)
    if is_compiled(name):
        symbols = np.ascontiguousarray(leaves, np.uint8 if q <= 256 else np.uint16)
        _compiled(name, threads, seed, tag, start, out, "leaves", symbols, q, signal, sigma)
        return
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
    name, threads = server(backend, num_threads)
    if is_compiled(name):
        _compiled(name, threads, seed, tag, start, x, "step", x0, a, b, s)
        return
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
