"""Stored rows as a few numbers each: positions are cut into groups, and each group's strings are numbered."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Strings", "number_strings"]

Array = NDArray[Any]
Strings = tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.uint16],
    NDArray[np.int64],
    int,
]

_MOST = 1536  # strings of a group: two packs each, of all groups, should stay in the second cache
_USES = (
    512  # rows that share a string's sum of weights: so few float32 numbers add up to 1e-5 at worst
)


def _codes(left: Array, right: Array) -> tuple[Array, int]:
    """Numbers of the pairs that occur."""
    pairs = left.astype(np.int64) * (int(right.max()) + 1) + right
    found, number = np.unique(pairs, return_inverse=True)
    return number.reshape(-1), len(found)


def _groups(rows: Array) -> list[tuple[int, int]]:
    """Neighbouring groups are joined, smallest result first, while few strings occur: (first, stop)."""
    cuts = [(j, j + 1) for j in range(rows.shape[1])]
    codes = [
        np.unique(rows[:, j], return_inverse=True)[1].reshape(-1) for j in range(rows.shape[1])
    ]
    while len(cuts) > 1:
        joined = []
        i = 0
        changed = False
        while i < len(cuts):
            if i + 1 < len(cuts):
                number, count = _codes(codes[i], codes[i + 1])
                if count <= _MOST:
                    joined.append(((cuts[i][0], cuts[i + 1][1]), number))
                    i += 2
                    changed = True
                    continue
            joined.append((cuts[i], codes[i]))
            i += 1
        cuts, codes = [c for c, _ in joined], [x for _, x in joined]
        if not changed:
            break
    return cuts


def number_strings(rows: Array) -> Strings:
    """Number the strings that occur in each group of positions of `rows` (P, L).

    Returns
    -------
    first_position : array (groups + 1,)
    first_string : array (groups + 1,)
        Strings of group g are numbered from first_string[g] on.
    strings : array (P, groups) of int32
        Every row's strings, in the order of these: like rows follow each other.
    symbols : array (strings, widest group) of uint16
    runs : array (runs + 1,)
        Rows runs[r] … runs[r + 1] share the strings of their first groups.
    head : int
        How many groups these are: all but the last one or two.
    """
    cuts = _groups(rows)
    first_position = np.array([c[0] for c in cuts] + [rows.shape[1]], np.int64)
    width = int(np.diff(first_position).max())
    numbers = np.empty((len(rows), len(cuts)), np.int64)
    held = []
    for g, (begin, stop) in enumerate(cuts):
        found, number = np.unique(rows[:, begin:stop], axis=0, return_inverse=True)
        numbers[:, g] = number.reshape(-1)
        held.append(found)
    numbers = numbers[np.lexsort(numbers.T[::-1])]
    first_string = np.zeros(len(cuts) + 1, np.int64)
    symbols = []
    for g, found in enumerate(held):
        # A string that many rows have gets a number for every so many of them.
        order = np.argsort(numbers[:, g], kind="stable")
        uses = np.bincount(numbers[:, g], minlength=len(found))
        starts = np.cumsum(uses) - uses
        copy = np.empty(len(rows), np.int64)
        copy[order] = (np.arange(len(rows)) - np.repeat(starts, uses)) // _USES
        copies = -(-uses // _USES)
        base = np.cumsum(copies) - copies
        numbers[:, g] = first_string[g] + base[numbers[:, g]] + copy
        first_string[g + 1] = first_string[g] + copies.sum()
        padded = np.zeros((int(copies.sum()), width), np.uint16)
        padded[:, : found.shape[1]] = np.repeat(found, copies, axis=0)
        symbols.append(padded)
    head = max(len(cuts) - 2, min(len(cuts) - 1, 1))
    begins = np.arange(len(rows)) % _USES == 0
    begins[1:] |= (numbers[1:, :head] != numbers[:-1, :head]).any(axis=1)
    return (
        first_position,
        first_string,
        np.ascontiguousarray(numbers, np.int32),
        np.ascontiguousarray(np.concatenate(symbols)),
        np.append(np.flatnonzero(begins), len(rows)),
        head,
    )
