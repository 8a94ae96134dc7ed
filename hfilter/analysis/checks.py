"""What may come in: arrays of anybody, checked once, in the caller's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.arrays import as_numpy
from hfilter.errors import ArgumentError, DTypeError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

_ROW_SUM_TOLERANCE = 1e-3  # a float16 softmax passes, logits do not


def checked_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows that are probabilities, or NaN as a whole."""
    missing = np.isnan(rows)
    if np.any(missing.any(axis=1) != missing.all(axis=1)):
        raise ArgumentError("probabilities: a row must be NaN as a whole or not at all")
    good = rows[~missing[:, 0]] if rows.shape[1] else rows
    if good.size and not (np.isfinite(good).all() and good.min() >= 0.0):
        raise ArgumentError(
            f"probabilities must be finite and at least 0, got {good.min()} … {good.max()}; "
            "are these logits? take the softmax first"
        )
    if good.size:
        worst = float(np.abs(good.sum(axis=1) - 1.0).max())
        if worst > _ROW_SUM_TOLERANCE:
            raise ArgumentError(
                f"probabilities: rows must sum to 1 within {_ROW_SUM_TOLERANCE}, "
                f"one is off by {worst:.3g}; are these logits? take the softmax first"
            )
    return rows


def fetched(name: str, array: Any) -> NDArray[Any]:
    """A NumPy array of anything array-like; a torch tensor is detached and fetched first."""
    if hasattr(array, "detach"):
        try:
            array = array.detach().cpu()
        except NotImplementedError as error:  # a meta tensor
            raise DTypeError(f"{name} holds no numbers ({error})") from error
    return as_numpy(name, array)[0]


def as_reals(name: str, given: Any) -> NDArray[np.float64]:
    """Real numbers in double precision."""
    array = fetched(name, given)
    if array.dtype.kind not in "fiub":
        raise DTypeError(f"{name} must be real numbers, got {array.dtype}")
    return np.asarray(array, dtype=np.float64)


def as_probabilities(given: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A model's probabilities in double precision, or an error that says what is wrong with them."""
    array = as_reals("probabilities", given)
    if array.shape != shape:
        raise ShapeError(f"probabilities must have shape {shape}, got {array.shape}")
    return array


def as_integers(name: str, given: Any) -> NDArray[Any]:
    """Tokens, roots or positions as an integer array."""
    array = fetched(name, given)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name} must be integers, got {array.dtype}")
    return array


def as_hidden(model: TreeModel, n: int, mask: Any, positions: Any) -> NDArray[np.bool_] | None:
    """Which leaves are hidden: from a mask, or from one position per sequence."""
    if mask is not None and positions is not None:
        raise ArgumentError("give mask or positions, not both")
    if positions is not None:
        where = as_integers("positions", positions)
        if where.shape != (n,):
            raise ShapeError(f"positions must have shape ({n},), got {where.shape}")
        if n and not (where.min() >= 0 and where.max() < model.n_leaves):
            raise ArgumentError(
                f"positions must be in 0 … {model.n_leaves - 1}, got {where.min()} … {where.max()}"
            )
        return np.asarray(where[:, None] == np.arange(model.n_leaves))
    if mask is None:
        return None
    hidden = fetched("mask", mask)
    if hidden.dtype != np.bool_:
        raise DTypeError(f"mask must be bool, got {hidden.dtype}")
    if hidden.shape != (n, model.n_leaves):
        raise ShapeError(f"mask must have shape {(n, model.n_leaves)}, got {hidden.shape}")
    return hidden
