"""What the Python text takes: `FlatModel`, a packed model with one array per kind of number, and the
scratch of one block of rows, in which a row of the block is a lane: the last axis of every array.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .tree import TreeStructure

__all__ = [
    "BITS",
    "COUNTS",
    "COUNT_LINES",
    "CUTS",
    "FIRST",
    "PARENTS",
    "RULES",
    "SUMS",
    "SYMBOLS",
    "TOGETHER",
    "VALUE_LINES",
    "FlatModel",
    "Lines",
    "Messages",
    "Symbols",
    "flatten",
    "row_bytes",
    "scratch",
    "symbols",
]

Array = NDArray[Any]

# Columns of FlatModel.levels, one row per level.
FIRST, RULES, PARENTS, SYMBOLS, BITS, CUTS, COUNTS, SUMS = range(8)
VALUE_LINES, COUNT_LINES = 6, 6  # of Lines, besides a line for every child
TOGETHER = 32  # values of a row that are read or written together: two lines of memory, which are fetched in pairs


class FlatModel(NamedTuple):
    """A packed model as the Python text takes it: tables one after the other, and where each begins."""

    arity: int
    depth: int
    filter_level: int
    alphabets: Any  # (depth + 1,)
    levels: Any  # (depth, 8): offsets and sizes
    first: Any
    children: Any
    probability: Array  # of the value type, as are prior and star
    cuts: Any
    picks: Any  # (arity, cut points): the children's symbols
    picked: Array  # (cut points,): of four children at most, eight bits each
    prior: Array
    prior_cuts: Any
    prior_bits: int
    star: Array
    star_cuts: Any
    star_bits: int
    tiny: float
    slack: int
    # Of arity 2, each entry of a message as a sum of products weight * x * y: first a level's upward sums, of
    # left and right entries, then its downward ones to the left and to the right child, of those from above and
    # beside. Four terms at a time; some weigh 0.
    sums: Any  # (sums + 1,): where the fours of a sum begin
    terms: Array  # (fours, 8): entries x, then entries y
    weights: Array  # (fours, 4), of the value type


def flatten(tree: TreeStructure, dtype: np.dtype[Any], lists: bool = False) -> FlatModel:
    """The packed tables end to end, each table once, with their offsets per level.

    With `lists` the integers are lists, which plain Python reads several times faster than arrays.
    """
    packed = tree.packed
    bits = 8 * dtype.itemsize
    parts: dict[str, list[Array]] = {
        "first": [],
        "children": [],
        f"prob{bits}": [],
        "cuts": [],
        "picks": [],
    }
    sums = Sums(np.zeros(1, np.int64), np.zeros((0, 8), np.uint64), np.zeros((0, 4), dtype))
    offsets = dict.fromkeys(parts, 0)
    rows: dict[int, list[int]] = {}
    for d, table in enumerate(packed["levels"]):
        if id(table) not in rows:
            rows[id(table)] = [
                offsets["first"], offsets[f"prob{bits}"], tree.alphabets[d], tree.alphabets[d + 1], table["cut_bits"],
                offsets["cuts"], len(sums.first) - 1,
            ]  # fmt: skip
            if tree.arity == 2:
                sums = _with_sums(sums, table, table[f"prob{bits}"], tree.alphabets[d + 1])
            for key, values in parts.items():
                values.append(table[key].ravel())
                offsets[key] += table[key].size
    joined = {key: np.concatenate(values) for key, values in parts.items()}

    def integers(x: Any) -> Any:
        return x.tolist() if lists else np.ascontiguousarray(x)

    return FlatModel(
        arity=tree.arity, depth=tree.depth, filter_level=tree.filter_level,
        alphabets=integers(packed["alphabets"].astype(np.int64)),
        levels=integers(
            np.array(
                [[*rows[id(t)][:-1], c, rows[id(t)][-1]]
                 for t, c in zip(packed["levels"], tree.first_counts, strict=True)], np.int64)
        ),
        first=integers(joined["first"]), children=integers(joined["children"]),
        probability=joined[f"prob{bits}"], cuts=integers(joined["cuts"]),
        picks=integers(joined["picks"].reshape(-1, tree.arity).T),
        picked=_words(joined["picks"].reshape(-1, tree.arity)),
        prior=packed[f"prior{bits}"].copy(), prior_cuts=integers(packed["prior_cuts"]),
        prior_bits=packed["prior_bits"], star=packed[f"star{bits}"].ravel().copy(),
        star_cuts=integers(packed["star_cuts"].ravel()), star_bits=packed["star_bits"],
        tiny=packed[f"tiny{bits}"], slack=packed[f"slack{bits}"],
        sums=integers(sums.first), terms=sums.terms, weights=sums.weights,
    )  # fmt: skip


class Sums(NamedTuple):
    """The sums of FlatModel."""

    first: Array
    terms: Array
    weights: Array


def _with_sums(sums: Sums, table: Any, probability: Array, q: int) -> Sums:
    """And those of a level."""
    counts = np.diff(table["first"])
    above = np.repeat(np.arange(len(counts)), counts)
    left, right = table["children"].reshape(-1, 2).astype(np.int64).T
    first, terms, weights = [sums.first], [sums.terms], [sums.weights]
    for into, x, y, n in (
        (above, left, q + right, len(counts)),
        (left, above, q + right, q),
        (right, above, left, q),
    ):
        order = np.argsort(into, kind="stable")
        size = np.bincount(into, minlength=n)
        fours = np.maximum(-(-size // 4), 1)
        begin = np.cumsum(fours) - fours
        place = (
            4 * begin[into[order]] + np.arange(len(into)) - np.repeat(np.cumsum(size) - size, size)
        )
        entries, weight = (
            np.zeros((2, 4 * fours.sum()), np.uint64),
            np.zeros(4 * fours.sum(), probability.dtype),
        )
        entries[0, place], entries[1, place], weight[place] = x[order], y[order], probability[order]
        terms.append(entries.reshape(2, -1, 4).transpose(1, 0, 2).reshape(-1, 8))
        weights.append(weight.reshape(-1, 4))
        first.append(first[-1][-1] + np.cumsum(fours))
    return Sums(np.concatenate(first), np.concatenate(terms), np.concatenate(weights))


def _words(picks: Array) -> Array:
    """The first four children of each rule in a word, as far as eight bits hold them."""
    few = picks[:, :4].astype(np.uint32)
    shifts = np.arange(0, 8 * few.shape[1], 8, dtype=np.uint32)
    joined: Array = np.bitwise_or.reduce(few << shifts, axis=1)
    return joined


class Symbols(NamedTuple):
    """Scratch of sampling."""

    node: Array  # (n_leaves, lanes): symbols of one level, in place
    words: Array  # (4, lanes): the block of random words fetched last
    place: Array  # (lanes,): where in a table
    picked: Array  # (2, lanes): a parent's symbol, and its children's


def symbols(tree: TreeStructure, lanes: int, kind: Any = np.int64) -> Symbols:
    """Scratch of sampling for a block of that many rows, symbols and words of that type."""
    return Symbols(
        np.zeros((tree.n_leaves, lanes), kind),
        np.zeros((4, lanes), kind),
        np.zeros(lanes, np.int64),
        np.zeros((2, lanes), kind),
    )


class Lines(NamedTuple):
    """Scratch of a line each, (lines, lanes), and the format of the value type; see hfilter.scaling."""

    value: Array  # of the value type
    bits: Array  # the same memory as integers
    integer: Array  # integers as wide
    constants: Array
    series: Any  # of exp, the highest power first: a tuple, whose length the compiler knows
    mantissa: int  # bits of the mantissa
    bias: int  # of the exponent


class Messages(NamedTuple):
    """Scratch of message passing, (entries, lanes), of the value type unless something else is said."""

    nu: Array  # of all existing levels
    nu_bits: Array  # the same memory as integers
    mu: Array  # as wide as the widest level, as is mu_below
    mu_below: Array
    belief: Array  # of one node
    # The star: per node and class m_i(a), and numbers with an exponent of their own.
    star: Array  # (nodes * classes, lanes)
    value: Array  # (nodes * classes + 3 * classes + 1, lanes)
    value_bits: Array  # the same memory as integers
    power: Array  # integers as wide
    counts: Array  # of the rules
    pairs: Array  # of the root and the star's nodes
    field: Array  # (symbols of a few leaves + 1, lanes), of the wider of value and field type
    shift: Array  # (1, lanes), float64: sum of the largest fields of the leaves


def _entries(tree: TreeStructure) -> tuple[int, int, int]:
    """Entries of all existing levels, of the widest one, and of the star's tables."""
    k, classes = tree.filter_level, tree.n_classes
    sizes = [tree.arity**d * tree.alphabets[d] for d in range(k, tree.depth + 1)]
    return sum(sizes), max(*sizes, classes), tree.arity**k * classes if k else 0


def row_bytes(
    tree: TreeStructure, dtype: np.dtype[Any], *, counts: bool = False, pairs: bool = False
) -> int:
    """Memory of one lane of `scratch`, roughly."""
    every, widest, star = _entries(tree)
    more = (tree.n_counts if counts else 0) + (tree.channels.size if pairs else 0)
    return (every + 2 * widest + 3 * star + more) * dtype.itemsize


# By whether the value type is float32. Constants: zero, one, what an exponential needs (`Format` in
# csrc/pack.hpp), and 2**24 times the lowest normal number.
_INTEGER = (np.dtype(np.int64), np.dtype(np.int32))
_CONSTANTS = (
    np.array([0, 1, 1.44269504088896340736, 6755399441055744.0, 6.93147180369123816490e-01,
              1.90821492927058770002e-10, 708.0498449419841, 2.0**-998]),
    np.array([0, 1, 1.44269504088896340736, 12582912.0, 0.693359375, -2.12194440e-4,
              86.9899673, 2.0**-102], np.float32),
)  # fmt: skip
# The single one is of degree 6, nearest to exp in relative error (3e-9).
_SERIES: tuple[tuple[Any, ...], tuple[Any, ...]] = (
    tuple(np.float64(1 / math.factorial(n)) for n in range(13, -1, -1)),
    tuple(
        np.array(
            [1.3814599e-3, 8.3687166e-3, 4.1668389e-2, 1.6666521e-1, 4.9999994e-1, 1, 1], np.float32
        )
    ),
)


def scratch(
    tree: TreeStructure, dtype: np.dtype[Any], field_dtype: np.dtype[Any], lanes: int, *,
    counts: bool = False, pairs: bool = False,
) -> tuple[Lines, Messages]:  # fmt: skip
    """Scratch of message passing for a block of that many rows."""
    every, widest, star = _entries(tree)
    classes, q = tree.n_classes, tree.vocab_size
    single = dtype.itemsize == 4
    integer = _INTEGER[single]

    def new(entries: int, kind: np.dtype[Any] = dtype) -> Array:
        return np.zeros((entries, lanes), kind)

    line = new(VALUE_LINES + tree.arity + 1)
    nu = new(every)
    value = new(star + 3 * classes + 1 if star else 0)
    return Lines(
        value=line, bits=line.view(integer), integer=new(COUNT_LINES, integer),
        constants=_CONSTANTS[single], series=_SERIES[single],
        mantissa=23 if single else 52, bias=127 if single else 1023,
    ), Messages(
        nu=nu, nu_bits=nu.view(integer), mu=new(widest), mu_below=new(widest), belief=new(max(tree.alphabets)),
        star=new(star), value=value, value_bits=value.view(integer), power=new(len(value), integer),
        counts=new(tree.n_counts if counts else 0), pairs=new(tree.channels.size if pairs else 0),
        field=new(max(TOGETHER, q) + 1, np.result_type(dtype, field_dtype)), shift=new(1, np.dtype(np.float64)),
    )  # fmt: skip
