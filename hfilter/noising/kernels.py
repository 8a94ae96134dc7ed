"""Who computes noise: the compiled text, Numba's or NumPy's, all with the same bits. Arguments are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import to_device
from ..backend import get_backend
from ..compiled import _cpu
from ..errors import ArgumentError, BackendUnavailable, KernelError
from ..exact.door import runner_for
from .jitting import compile_loops, over_rows
from .text import LOOPS, normal_rows

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
    runner, threads = runner_for(backend, num_threads)
    name = runner.name
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
    try:
        import torch
    except ImportError:
        to_device(device)  # says what is missing
        raise
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"device must be None (NumPy) or a torch device such as 'cpu', got {device!r}"
        ) from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"device = {device!r}: torch finds no GPU here; use 'cpu' or None")
    return torch.empty(shape, dtype=torch.float32, device=where)


def _pieces(n: int, size: int, most: int = _PIECE) -> Iterator[slice]:
    rows = max(1, most // max(size, 1))
    for begin in range(0, n, rows):
        yield slice(begin, min(begin + rows, n))


def _rows_of(name: str, threads: int) -> Callable[[int, int, int, Array], None]:
    """`normal_rows` of a backend of the Python text."""
    if name != "numba":
        return normal_rows
    loops = compile_loops(*LOOPS)

    def rows(seed: int, tag: int, first: int, out: Array) -> None:
        def part(begin: int, end: int) -> None:
            loops(np.uint64(seed), np.uint64(tag), np.uint64(first + begin), out[begin:end])

        over_rows(part, len(out), threads if out.size > _PIECE else 1)

    return rows


def normal(
    seed: int, tag: int, start: int, out: Array, backend: str | None, num_threads: int | None
) -> None:
    """Fill `out` (n, size)."""
    name, threads = server(backend, num_threads)
    if is_compiled(name):
        _compiled(name, threads, seed, tag, start, out, "fill")
        return
    fill = _rows_of(name, threads)
    n, size = out.shape
    for part in _pieces(n, size, _PIECE if fill is normal_rows else _CALL):
        fill(seed, tag, start + part.start, out[part])


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
    fill = _rows_of(name, threads)
    for part in _pieces(n, length * q):
        target = flat[part]
        fill(seed, tag, start + part.start, target)
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
    fill = _rows_of(name, threads)
    noise = np.empty((max(1, _PIECE // max(size, 1)), size), np.float32)
    for part in _pieces(len(x), size):
        target = flat[part]
        target *= g
        np.add(f * flat0[part], target, out=target)
        if h != 0:
            z = noise[: len(target)]
            fill(seed, tag, start + part.start, z)
            target += h * z
