"""What it is learned from: rows that differ, each with its weight, in groups by what is known of the root."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_numpy
from ..errors import ArgumentError, DTypeError, ShapeError
from ..evidence import check_evidence
from ..tree import TreeStructure

__all__ = ["UNKNOWN", "Group", "Rows", "check_roots", "check_tokens", "gather", "largest"]

UNKNOWN = -1  # in place of a root: it is not known
_MERGE_LEAVES = 64  # longer sequences hardly come twice, and sorting them takes long


@dataclass(frozen=True)
class Group:
    """Rows with one root symbol, or with none known.

    Attributes
    ----------
    root : int
        `UNKNOWN`, or the symbol.
    tokens : ndarray, shape (n, n_leaves)
        Hidden leaves hold the mask token.
    weights : ndarray, shape (n,), or None
        None if all are 1.
    index : ndarray, shape (n,)
        A row of the user's that each stands for.
    total : float
        Sum of the weights.
    """

    root: int
    tokens: NDArray[Any]
    weights: NDArray[np.float64] | None
    index: NDArray[np.intp]
    total: float


@dataclass(frozen=True)
class Rows:
    """All that is learned from."""

    groups: tuple[Group, ...]
    total: float
    n_rows: int

    def digest(self) -> str:
        """SHA-256 of the content."""
        found = hashlib.sha256()
        for group in self.groups:
            weights = np.empty(0) if group.weights is None else group.weights
            found.update(np.array([group.root, *group.tokens.shape], "<i8").tobytes())
            found.update(group.tokens.astype("<u2").tobytes())
            found.update(weights.astype("<f8").tobytes())
        return found.hexdigest()


def check_tokens(leaves: Any) -> NDArray[Any]:
    """Leaves as an array of integers with two axes and at least one row."""
    tokens, _ = as_numpy("leaves", leaves)
    if tokens.dtype.kind not in "iu":
        raise DTypeError(
            f"leaves must be integers (tokens), got {tokens.dtype}; convert with .astype(np.uint8)"
        )
    if tokens.ndim != 2 or not tokens.size:
        raise ShapeError(
            f"leaves must have shape (n, n_leaves) with at least one row, got {tokens.shape}"
        )
    return tokens


def check_roots(roots: Any, n: int, n_classes: int | None) -> NDArray[np.int64] | None:
    """Root symbols, -1 where one is not known."""
    if roots is None:
        return None
    given, _ = as_numpy("roots", roots)
    if given.dtype.kind not in "iu":
        raise DTypeError(f"roots must be integers, got {given.dtype}")
    if given.shape != (n,):
        raise ShapeError(f"roots must have shape ({n},), one per row of leaves, got {given.shape}")
    high = n_classes if n_classes is not None else 65535
    if int(given.min()) < UNKNOWN or int(given.max()) >= high:
        wanted = "" if n_classes is None else f" … {n_classes - 1}"
        raise ArgumentError(
            f"roots must be symbols 0{wanted}, or {UNKNOWN} where the root is not known, got values "
            f"from {given.min()} to {given.max()}"
        )
    return given.astype(np.int64)


def largest(tokens: NDArray[Any], mask: Any) -> int:
    """The largest token that is not hidden, plus one."""
    if mask is not None:
        hidden, _ = as_numpy("mask", mask)
        if hidden.shape == tokens.shape and hidden.dtype == np.bool_:
            tokens = np.where(hidden, 0, tokens)
    return int(tokens.max()) + 1


def _check_weights(weights: Any, n: int) -> NDArray[np.float64]:
    if weights is None:
        return np.ones(n)
    given, _ = as_numpy("weights", weights)
    if given.dtype.kind not in "fiu":
        raise DTypeError(f"weights must be real numbers, got {given.dtype}")
    if given.shape != (n,):
        raise ShapeError(
            f"weights must have shape ({n},), one per row of leaves, got {given.shape}"
        )
    out = given.astype(np.float64)
    if not np.isfinite(out).all() or (out < 0).any() or not out.sum() > 0:
        raise ArgumentError(
            "weights must be finite, non-negative and not all zero, got values from "
            f"{out.min():g} to {out.max():g}"
        )
    return out


def gather(
    tree: TreeStructure, leaves: Any, mask: Any, roots: NDArray[np.int64] | None, weights: Any
) -> Rows:
    """Check the rows against the shape of the tree; join those that are equal."""
    evidence, n, _ = check_evidence(tree, leaves, mask, None)
    tokens = np.asarray(evidence.tokens).astype(tree.token_dtype)
    if evidence.mask is not None:
        tokens[evidence.mask] = tree.mask_token
    given = _check_weights(weights, n)
    known = np.full(n, UNKNOWN) if roots is None else roots
    groups = []
    for root in np.unique(known).tolist():
        index = np.flatnonzero((known == root) & (given > 0))
        if len(index):
            groups.append(_group(root, tokens, given, index))
    return Rows(tuple(groups), float(sum(g.total for g in groups)), n)


def _group(
    root: int, tokens: NDArray[Any], given: NDArray[np.float64], index: NDArray[np.intp]
) -> Group:
    rows, weights = tokens[index], given[index]
    if rows.shape[1] <= _MERGE_LEAVES:
        order, first = _sort(rows)
        weights = np.add.reduceat(weights[order], first)
        index = index[order[first]]
        rows = rows[order[first]]
    rows = np.ascontiguousarray(rows)
    total = float(weights.sum())
    return Group(root, rows, None if (weights == 1).all() else weights, index, total)


def _sort(rows: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """An order in which equal rows stand together, and where each other row begins.

    By eight bytes at a time: `np.unique` compares rows byte by byte, ten times slower.
    """
    n = len(rows)
    content = rows.astype(rows.dtype.newbyteorder("<"), order="C").view(np.uint8).reshape(n, -1)
    padded = np.zeros((n, -(-content.shape[1] // 8) * 8), np.uint8)
    padded[:, : content.shape[1]] = content
    keys = padded.view("<u8")
    order = np.lexsort(keys.T)
    keys = keys[order]
    new = np.ones(n, bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return order, np.flatnonzero(new)
