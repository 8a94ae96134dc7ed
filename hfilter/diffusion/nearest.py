"""The nearest stored row in Hamming distance, over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_numpy
from ..errors import ArgumentError, DTypeError, ShapeError
from . import kernels

__all__ = ["Nearest", "nearest"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Nearest:
    """What `nearest` found for each of n rows.

    Attributes
    ----------
    distance : array (n,) of int32
        Positions at which the row differs from the nearest stored one.
    index : array (n,) of int64
        The first stored row at that distance.
    count : array (n,) of int64
        How many stored rows are at that distance.
    """

    distance: NDArray[np.int32]
    index: NDArray[np.int64]
    count: NDArray[np.int64]


def nearest(
    rows: Any, data: Any, *, exclude_same_index: bool = False, num_threads: int | None = None,
    backend: str | None = None,
) -> Nearest:  # fmt: skip
    """Find the nearest of the stored rows for each of `rows`.

    Every pair is compared: 50 000 rows with 70 000 take about a second on one core.

    Parameters
    ----------
    rows : array (n, L) of integers
        Symbols from 0 to 65535; of NumPy or torch, on the CPU.
    data : array (P, L) of integers
        The stored rows, P >= 1.
    exclude_same_index : bool
        Row i of `rows` is row i of `data` (the same array, as a rule), and is not compared with itself; other rows
        that equal it count.
    num_threads, backend
        Who computes, and on how many threads; the answer does not depend on it.

    Returns
    -------
    Nearest

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        If the arrays do not fit each other or hold no symbols.

    Examples
    --------
    >>> from hfilter.diffusion.nearest import nearest
    >>> found = nearest([[0, 1, 2, 0]], [[0, 1, 0, 1], [0, 1, 2, 1], [0, 1, 2, 2]])
    >>> found.distance.tolist(), found.index.tolist(), found.count.tolist()
    ([1], [1], [2])
    """
    asked, stored = _symbols("rows", rows), _symbols("data", data)
    if asked.shape[1] != stored.shape[1]:
        raise ShapeError(
            f"rows and data must have the same length, got {asked.shape[1]} and {stored.shape[1]}"
        )
    if len(stored) < 1 + bool(exclude_same_index):
        wanted = "two rows, as exclude_same_index leaves one out" if exclude_same_index else "a row"
        raise ShapeError(f"data must have at least {wanted}, got {len(stored)}")
    if exclude_same_index and len(asked) > len(stored):
        raise ShapeError(
            f"exclude_same_index: rows must be among data, got {len(asked)} rows and {len(stored)}"
        )
    n = len(asked)
    out = Nearest(np.empty(n, np.int32), np.empty(n, np.int64), np.empty(n, np.int64))
    kernels.nearest(
        asked,
        stored,
        exclude_same_index,
        (out.distance, out.index, out.count),
        backend,
        num_threads,
    )
    return out


def _symbols(name: str, x: Any) -> Array:
    array, _ = as_numpy(name, x)
    if array.ndim != 2 or array.shape[1] < 1:
        raise ShapeError(f"{name} must have shape (rows, L), L >= 1, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name} must be integers, got {array.dtype}")
    if array.size and (array.min() < 0 or array.max() > 65535):
        raise ArgumentError(
            f"{name} must be symbols from 0 to 65535, got {array.min()} … {array.max()}"
        )
    return array
