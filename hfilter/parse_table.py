"""What the Python text looks up to parse fully seen rows: `ParseTable`, for unambiguous binary grammars.

With hfilter.parsing the twin of csrc/parse_table.hpp and cpu_parse.hpp.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .evidence import Evidence, Outputs
from .tree import TreeStructure

__all__ = [
    "CHILDREN",
    "PAIRS",
    "TABLE_SYMBOLS",
    "Parse",
    "ParseTable",
    "parse_scratch",
    "parse_table",
    "parse_table_for",
]

Array = NDArray[Any]

TABLE_SYMBOLS, PAIRS, CHILDREN = range(
    3
)  # columns of ParseTable.levels: of a child; where the tables begin

_WIDEST = 64  # symbols: tables grow with their square, and so do rules
_LOWEST = 1e-30  # a row's least probable parse, so that nothing need be scaled on the way down


class ParseTable(NamedTuple):
    """By pairs of children's symbols; symbol q: the node is impossible."""

    levels: Array  # (depth, 3)
    parents: Array  # per level (q + 1, q + 1): of a left and a right child
    probability: Array  # of that rule
    # Per level (2, q, q + 1), of a left and of a right child: by its symbol and its sibling's the parent's, and the
    # probability of the rule; 0 if there is none.
    source: Array
    weight: Array
    prior: Array


class Parse(NamedTuple):
    """Scratch of parsing: node i of level d is in line 2**d + i."""

    symbol: Array  # (2 * n_leaves, lanes)
    number: Array  # upward messages have one entry each
    bits: Array  # the same memory as integers


def parse_scratch(tree: TreeStructure, lanes: int) -> Parse:
    """Scratch of parsing for a block of that many rows."""
    number = np.ones((2 * tree.n_leaves, lanes), np.float32)  # those of leaves stay 1
    return Parse(np.zeros(number.shape, np.uint32), number, number.view(np.int32))


def parse_table(tree: TreeStructure) -> ParseTable | None:
    """The tables for single precision.

    None unless every pair of symbols has one parent at most and no number can leave the range of the type.
    """
    if tree.arity != 2 or tree.filter_level or max(tree.alphabets) > _WIDEST:
        return None
    packed = tree.packed
    least, ratio = 1.0, 1.0
    for x in (packed["prior32"], *(table["prob32"] for table in packed["levels"])):
        low, high = float(x.min()), float(x.max())
        least, ratio = least * low, ratio * low / high
    tiny = float(packed["tiny32"])
    if least < _LOWEST or not float(np.float32(ratio / 2)) >= tiny or tiny > 1:
        return None

    parts: tuple[list[Array], ...] = ([], [], [], [])
    rows: dict[int, list[int]] = {}
    for d, table in enumerate(packed["levels"]):
        if id(table) in rows:
            continue
        qp, q = tree.alphabets[d], tree.alphabets[d + 1]
        rows[id(table)] = [q, sum(x.size for x in parts[0]), sum(x.size for x in parts[2])]
        parent = np.repeat(np.arange(qp, dtype=np.uint32), np.diff(table["first"][: qp + 1]))
        left, right = table["children"].reshape(-1, 2).T
        if len(np.unique(left.astype(np.int64) * q + right)) < len(parent):
            return None
        parents = np.full((q + 1, q + 1), qp, np.uint32)
        probability = np.ones((q + 1, q + 1), np.float32)
        source = np.zeros((2, q, q + 1), np.uint32)
        weight = np.zeros((2, q, q + 1), np.float32)
        parents[left, right] = source[0, left, right] = source[1, right, left] = parent
        probability[left, right] = weight[0, left, right] = weight[1, right, left] = table["prob32"]
        for part, x in zip(parts, (parents, probability, source, weight), strict=True):
            part.append(x.ravel())
    levels = np.array([rows[id(table)] for table in packed["levels"]], np.int64)
    parents, probability, source, weight = (np.concatenate(part) for part in parts)
    return ParseTable(levels, parents, probability, source, weight, packed["prior32"].copy())


_tables: weakref.WeakKeyDictionary[TreeStructure, ParseTable | None] = weakref.WeakKeyDictionary()


def parse_table_for(
    tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs
) -> ParseTable | None:
    """The tables if the call asks for nothing but roots, or leaves from all other leaves, given tokens."""
    other = [x for x in out.arrays() if x is not out.root and x is not out.leave_one_out]
    if (
        other
        or evidence.tokens is None
        or evidence.causal
        or evidence.window
        or dtype.itemsize != 4
    ):
        return None
    if tree not in _tables:  # made once, and forgotten with the model
        _tables[tree] = parse_table(tree)
    return _tables[tree]
