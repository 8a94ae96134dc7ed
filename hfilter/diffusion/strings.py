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
_TABLE = 1 << 22  # values that are ranked by a table rather than by sorting
_USES = 512  # rows that share a string's sum of weights: so few float32 add up to 1e-5 at worst


def _numbers(values: Array, limit: int) -> tuple[Array, int]:
    """Each of `values`, from 0 to limit - 1, by its rank among those that occur; and how many these are."""
    if limit > _TABLE:
        found, number = np.unique(values, return_inverse=True)
        return number.reshape(-1), len(found)
    seen = np.zeros(limit, np.int64)
    seen[values] = 1
    rank = np.cumsum(seen)
    return (rank - 1)[values], int(rank[-1])


def _groups(rows: Array) -> list[tuple[int, int, Array, int]]:
    """Neighbouring groups are joined while few strings occur: (first, stop, every row's string, how many)."""
    wide = int(rows.max()) + 1
    groups = [
        (j, j + 1, *_numbers(rows[:, j].astype(np.int64), wide)) for j in range(rows.shape[1])
    ]
    changed = True
    while changed and len(groups) > 1:
        joined: list[tuple[int, int, Array, int]] = []
        changed = False
        for group in groups:
            if joined and not joined[-1][1] - joined[-1][0] > group[1] - group[0]:
                first, _, left, many = joined[-1]
                number, count = _numbers(left * group[3] + group[2], many * group[3])
                if count <= _MOST:
                    joined[-1] = (first, group[1], number, count)
                    changed = True
                    continue
            joined.append(group)
        groups = joined
    return groups


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
    groups = _groups(rows)
    first_position = np.array([first for first, *_ in groups] + [rows.shape[1]], np.int64)
    width = int(np.diff(first_position).max())
    numbers = np.stack([number for _, _, number, _ in groups], axis=1)
    held = []
    for first, stop, number, count in groups:
        row = np.empty(count, np.intp)
        row[number] = np.arange(len(rows))  # one that has the string
        held.append(rows[row, first:stop])
    numbers = numbers[np.lexsort(numbers.T[::-1])]
    first_string = np.zeros(len(groups) + 1, np.int64)
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
    head = max(len(groups) - 2, min(len(groups) - 1, 1))
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
