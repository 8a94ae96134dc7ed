"""`FlatModel`: a packed model as the Python text takes it, one array per kind of number."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .tree import TreeStructure

__all__ = ["BITS", "CUTS", "FIRST", "PARENTS", "PICKS", "RULES", "SYMBOLS", "FlatModel", "flatten"]

Array = NDArray[Any]

# Columns of FlatModel.levels, one row per level.
FIRST, RULES, PARENTS, SYMBOLS, BITS, CUTS, PICKS = range(7)


class FlatModel(NamedTuple):
    """A packed model as the Python text takes it: tables one after the other, and where each begins."""

    arity: int
    depth: int
    filter_level: int
    alphabets: Array  # (depth + 1,)
    levels: Array  # (depth, 7): offsets and sizes
    first: Array
    children: Array
    probability: Array  # of the value type, as are prior and star
    cuts: Array
    picks: Array
    prior: Array
    prior_cuts: Array
    prior_bits: int
    star: Array
    star_cuts: Array
    star_bits: int
    tiny: float
    slack: int


def flatten(tree: TreeStructure, dtype: np.dtype[Any]) -> FlatModel:
    """The packed tables end to end, each table once, with their offsets per level."""
    packed = tree.packed
    bits = 8 * dtype.itemsize
    parts: dict[str, list[Array]] = {
        "first": [],
        "children": [],
        f"prob{bits}": [],
        "cuts": [],
        "picks": [],
    }
    offsets = dict.fromkeys(parts, 0)
    rows: dict[int, list[int]] = {}
    for d, table in enumerate(packed["levels"]):
        if id(table) not in rows:
            rows[id(table)] = [
                offsets["first"], offsets[f"prob{bits}"], tree.alphabets[d], tree.alphabets[d + 1], table["cut_bits"],
                offsets["cuts"], offsets["picks"],
            ]  # fmt: skip
            for key, values in parts.items():
                values.append(table[key].ravel())
                offsets[key] += table[key].size
    joined = {key: np.concatenate(values) for key, values in parts.items()}
    return FlatModel(
        arity=tree.arity, depth=tree.depth, filter_level=tree.filter_level,
        alphabets=packed["alphabets"].astype(np.int64),
        levels=np.array([rows[id(table)] for table in packed["levels"]], np.int64),
        first=joined["first"], children=joined["children"], probability=joined[f"prob{bits}"],
        cuts=joined["cuts"], picks=joined["picks"],
        prior=packed[f"prior{bits}"], prior_cuts=packed["prior_cuts"], prior_bits=packed["prior_bits"],
        star=packed[f"star{bits}"].ravel(), star_cuts=packed["star_cuts"].ravel(), star_bits=packed["star_bits"],
        tiny=packed[f"tiny{bits}"], slack=packed[f"slack{bits}"],
    )  # fmt: skip
