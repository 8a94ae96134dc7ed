"""Who searches and who weighs stored rows: the compiled text, Numba's or NumPy's. Arguments are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compiled import _cpu
from ..errors import KernelError
from ..noising.jitting import compile_loops, over_rows
from ..noising.kernels import is_compiled, server

__all__ = ["empirical", "nearest"]

Array = NDArray[Any]

_PAIRS = 1 << 20  # pairs of rows compared at a time in NumPy
_CALL = 1 << 34  # symbols compared in a compiled call: Python sees Ctrl-C between calls
_WEIGHED = 1 << 28  # and pairs of a question and a stored row weighed
_GROUP = 64  # stored rows that lie together (csrc/cpu_nearest.hpp)


def _lane_type(rows: Array, data: Array) -> Any:
    """The narrowest type that holds every symbol and every distance but its own largest value."""
    largest = max([int(x.max()) for x in (rows, data) if x.size], default=0)
    for kind in (np.uint8, np.uint16):
        most = int(np.iinfo(kind).max)
        if largest <= most and data.shape[1] < most:
            return kind
    return np.uint32


def nearest(
    rows: Array, data: Array, exclude: bool, out: tuple[Array, Array, Array],
    backend: str | None, num_threads: int | None,
) -> None:  # fmt: skip
    """Fill distance, index and count of the nearest of `data` for each of `rows`."""
    name, threads = server(backend, num_threads)
    kind = _lane_type(rows, data)
    asked = np.ascontiguousarray(rows, kind)
    if not is_compiled(name):
        columns = np.ascontiguousarray(data.T, kind)
        if name == "numba":
            loops = compile_loops(nearest_loops)

            def rows_of(begin: int, end: int) -> None:
                answers = (x[begin:end] for x in out)
                loops(asked[begin:end], columns, begin if exclude else -1, *answers)

            over_rows(rows_of, len(asked), threads)
        else:
            nearest_in_numpy(asked, columns, exclude, out)
        return
    n, length = asked.shape
    stored = len(data)
    groups = -(-stored // _GROUP)
    together = np.zeros((groups * _GROUP, length), kind)
    together[:stored] = data
    together = np.ascontiguousarray(together.reshape(groups, _GROUP, length).transpose(0, 2, 1))
    step = max(4, _CALL // (stored * length))
    for begin in range(0, n, step):
        part = slice(begin, min(begin + step, n))
        answers = tuple(x[part] for x in out)
        first = begin if exclude else -1
        rows = asked[part]
        try:
            _cpu.nearest(name, rows, together, len(rows), stored, length, first, *answers, threads)
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"{name}: {error}; please report this") from error


def nearest_in_numpy(
    rows: Array, columns: Array, exclude: bool, out: tuple[Array, Array, Array]
) -> None:
    """`columns` (L, P) are the stored rows, transposed."""
    n, stored = len(rows), columns.shape[1]
    distance, index, count = out
    step = max(1, _PAIRS // stored)
    for begin in range(0, n, step):
        part = rows[begin : begin + step]
        far = np.zeros((len(part), stored), rows.dtype)
        for j in range(columns.shape[0]):
            far += part[:, j, None] != columns[j]
        if exclude:
            own = np.arange(len(part))
            far[own, own + begin] = np.iinfo(rows.dtype).max
        low = far.min(axis=1)
        to = slice(begin, begin + len(part))
        distance[to], index[to] = low, far.argmin(axis=1)
        count[to] = np.count_nonzero(far == low[:, None], axis=1)


def nearest_loops(
    rows: Any, columns: Any, exclude_from: int, distance: Any, index: Any, count: Any
) -> None:
    """`nearest_in_numpy` in loops, for Numba; row i leaves out stored row exclude_from + i (-1: none)."""
    length, stored = columns.shape
    far = np.empty(min(stored, 4096), rows.dtype)
    for i in range(len(rows)):
        best, found, many = length + 1, 0, 0
        for begin in range(0, stored, 4096):
            here = min(4096, stored - begin)
            for m in range(here):
                far[m] = 0
            for j in range(length):
                symbol = rows[i, j]
                for m in range(here):
                    far[m] += columns[j, begin + m] != symbol
            own = exclude_from + i - begin if exclude_from >= 0 else -1
            for m in range(here):
                d = int(far[m])
                if d > best or m == own:
                    continue
                if d < best:
                    best, found, many = d, begin + m, 0
                many += 1
        distance[i], index[i], count[i] = best, found, many


def empirical(
    fields: Array, stored: Any, marginals: Array, log_evidence: Array, backend: str | None,
    num_threads: int | None,
) -> None:  # fmt: skip
    """Fill marginals (n, L, q) and log-evidence (n,)."""
    name, threads = server(backend, num_threads)
    if not is_compiled(name):
        empirical_in_numpy(fields, stored.rows, marginals, log_evidence)
        return
    n, length, q = fields.shape
    fields = np.ascontiguousarray(fields)
    strings = stored.strings
    mass, shift = np.empty(n), np.empty(n)
    step = max(64, _WEIGHED // len(stored))
    for begin in range(0, n, step):
        part = slice(begin, min(begin + step, n))
        here = fields[part]
        try:
            _cpu.empirical(
                name,
                len(here),
                length,
                q,
                strings,
                here,
                marginals[part],
                mass[part],
                shift[part],
                threads,
            )
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"{name}: {error}; please report this") from error
    with np.errstate(divide="ignore"):
        log_evidence[...] = np.log(mass) + shift - np.log(len(stored))


def empirical_in_numpy(fields: Array, rows: Array, marginals: Array, log_evidence: Array) -> None:
    """In float64: sums by look-up, since fields may be -inf; marginals by a product with one-hot rows."""
    n, length, q = fields.shape
    stored = len(rows)
    block = min(stored, 4096)
    step = max(1, _PAIRS // block)
    places = rows.astype(np.intp) + np.arange(length) * q

    def sums(f: Array, begin: int) -> Array:
        total = np.zeros((len(f), min(begin + block, stored) - begin))
        for j in range(length):
            total += f[:, places[begin : begin + block, j]]
        return total

    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        f = fields[part].reshape(-1, length * q).astype(np.float64)
        best = np.full(len(f), -np.inf)
        for begin in range(0, stored, block):
            np.maximum(best, sums(f, begin).max(axis=1), out=best)
        shift = np.where(best > -np.inf, best, 0.0)
        total = np.zeros_like(f)
        mass = np.zeros(len(f))
        for begin in range(0, stored, block):
            weight = np.exp(sums(f, begin) - shift[:, None])
            mass += weight.sum(axis=1)
            here = places[begin : begin + block]
            one_hot = np.zeros((len(here), length * q))
            one_hot[np.arange(len(here))[:, None], here] = 1.0
            total += weight @ one_hot
        with np.errstate(divide="ignore", invalid="ignore"):
            marginals[part] = (total / mass[:, None]).reshape(-1, length, q)
            log_evidence[part] = np.log(mass) + shift - np.log(stored)
