"""What a process changes in the tree above the leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_float, check_int
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.exact import TreeModel
from hfilter.noising.channels import host

__all__ = ["TreeOverlap", "mean_field", "parse", "tree_overlap"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class TreeOverlap:
    """Overlap of pairs of trees, level by level.

    Attributes
    ----------
    per_sample : dict of int to ndarray of float64, shape (n,)
        Of each level that exists, the fraction of its nodes with equal symbols. The leaves are
        level `depth`.
    parsed : ndarray of bool, shape (n,)
        Pairs of which the grammar can produce both sequences. In the others no node above the leaves
        counts as equal.
    """

    per_sample: dict[int, Floats]
    parsed: NDArray[np.bool_]

    @property
    def overlap(self) -> dict[int, float]:
        """Mean overlap of each level; NaN without samples."""
        return {d: float(x.mean()) if len(x) else np.nan for d, x in self.per_sample.items()}

    @property
    def error(self) -> dict[int, float]:
        """Standard error of `overlap` over samples; NaN for fewer than two."""
        return {
            d: float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else np.nan
            for d, x in self.per_sample.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        parsed = float(self.parsed.mean()) if len(self.parsed) else np.nan
        return {"overlap": self.overlap, "error": self.error, "parsed": parsed}

    def __repr__(self) -> str:
        found = ", ".join(f"level {d}: {o:.3f}" for d, o in self.overlap.items())
        return f"TreeOverlap({found}; n={len(self.parsed)})"


def parse(model: TreeModel, leaves: Any) -> dict[int, Any]:
    """Symbols of every level above (and of) the leaves: the most probable tree, the only one if unambiguous.

    Parameters
    ----------
    model : TreeModel
    leaves : array_like of int, shape (n, L)

    Returns
    -------
    dict of int to array
        Level d has shape (n, arity**d). In rows that the grammar cannot produce, symbols one past their
        alphabets above the leaves.

    Examples
    --------
    >>> import hfilter
    >>> parse(hfilter.TreeModel(hfilter.Grammar.parity(), depth=2), [[0, 1, 1, 1]])[1].tolist()
    [[1, 0]]
    """
    check_model(model)
    levels = dict(model.most_probable(leaves).levels)
    levels[model.depth] = leaves
    return levels


def tree_overlap(model: TreeModel, first: Any, second: Any) -> TreeOverlap:
    """Overlap of two sets of sequences (or trees) at every level, row by row.

    Parameters
    ----------
    model : TreeModel
        Whose tree it is.
    first, second : array_like of int, shape (n, L), or dict of int to array
        Sequences, parsed by `parse`; or symbols by level, such as ``sample.levels`` has them: draws of
        whole trees have a tree of their own.

    Returns
    -------
    TreeOverlap

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
    >>> tree_overlap(model, [[0, 1, 1, 1]], [[1, 0, 1, 1]]).overlap
    {0: 1.0, 1: 1.0, 2: 0.5}
    """
    check_model(model)
    a, b = levels_of(model, "first", first), levels_of(model, "second", second)
    shared = [d for d in model.existing_levels if d in a and d in b]
    if not shared:
        raise ArgumentError(
            f"first and second have no level in common: {sorted(a)} and {sorted(b)}"
        )
    found: dict[int, Floats] = {}
    parsed = None
    for d in shared:
        if a[d].shape != b[d].shape:
            raise ShapeError(
                f"second must have the shape of first, {a[d].shape} at level {d}, got {b[d].shape}"
            )
        known = (a[d] < model.alphabets[d]) & (b[d] < model.alphabets[d])
        found[d] = ((a[d] == b[d]) & known).mean(axis=1)
        whole: NDArray[np.bool_] = np.asarray(known.all(axis=1))
        parsed = whole if parsed is None else np.logical_and(parsed, whole)
    assert parsed is not None
    return TreeOverlap(found, parsed)


def mean_field(vocab_size: int, rules_per_symbol: int, depth: int, noise: float) -> float:
    """Belief in the true root of the large random hierarchy model with softened leaves, in a closed form.

    The mean of the posterior of the true root, if messages concentrated and every leaf spoke for its true
    symbol, with weight ``1 - noise + noise / v``: ``F`` applied `depth` times to that weight, with
    ``F(p) = (p² + f (m-1)/(m v - 1) (1 - p²)) / (p² + f (1 - p²))`` and ``f = (m v - 1)/(v² - 1)``, for
    binary trees (arXiv 2402.16991).

    Parameters
    ----------
    vocab_size, rules_per_symbol : int
        v and m ≤ v.
    depth : int
    noise : float
        From 0 to 1.

    Notes
    -----
    Leaves that are really replaced (`hfilter.noising.UniformChannel`) speak for wrong symbols too, and
    lose the root at far less noise: for v = 8, m = 2 and depth 5 at noise 0.6, exact inference believes
    in the true root with 0.31 on the mean, from softened leaves with 0.97, and this is 0.95.

    Examples
    --------
    >>> [round(mean_field(16, 8, 6, e), 3) for e in (0.05, 0.2, 0.4)]
    [0.963, 0.769, 0.243]
    """
    v = check_int("vocab_size", vocab_size, 2)
    m = check_int("rules_per_symbol", rules_per_symbol, 1, v)
    level = check_float("noise", noise, 0.0, 1.0)
    p = 1.0 - level + level / v
    f = (m * v - 1) / (v * v - 1)
    for _ in range(check_int("depth", depth, 0)):
        square = p * p
        p = (square + f * (m - 1) / (m * v - 1) * (1.0 - square)) / (square + f * (1.0 - square))
    return p


def check_model(model: Any) -> None:
    """An error for anything that is no model."""
    if not isinstance(model, TreeModel):
        raise DTypeError(f"model must be a hfilter.TreeModel, got {type(model).__name__}")


def levels_of(model: TreeModel, name: str, given: Any) -> dict[int, NDArray[Any]]:
    """Symbols by level as NumPy arrays (n, nodes)."""
    levels = given if isinstance(given, dict) else parse(model, given)
    found = {}
    for d, symbols in levels.items():
        array, _ = host(symbols, name)
        if array.dtype.kind not in "iu":
            raise DTypeError(f"{name} must be integers (symbols), got {array.dtype}")
        if array.ndim != 2 or array.shape[1] != model.n_nodes(d):
            raise ShapeError(
                f"{name} must have shape (n, {model.n_nodes(d)}) at level {d}, got {array.shape}"
            )
        found[d] = array
    return found
