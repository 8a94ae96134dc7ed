"""Training blocks, held-out sets, and how many sequences they share by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.learn.masks import HELD_OUT_START

from .measures.records import plain

if TYPE_CHECKING:
    from hfilter.exact import TreeModel

__all__ = ["Duplicates", "block", "duplicates", "held_out"]

_SPARE = 100  # rows that may be drawn for each one that is wanted


def block(model: TreeModel, n: int, index: int, seed: int = 0) -> NDArray[Any]:
    """Block `index` of a stream: its rows n · index … n · (index + 1), a training set.

    Parameters
    ----------
    model : TreeModel
    n : int
        Rows of a block. Blocks of one size and different index share no row.
    index : int
    seed : int

    Returns
    -------
    array of unsigned int, shape (n, L)

    Raises
    ------
    hfilter.errors.ArgumentError
        If the block would reach into the rows that are held out.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion.splits import block
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> both = model.sample(200, seed=7).leaves
    >>> bool((block(model, 100, 1, seed=7) == both[100:]).all())
    True
    """
    check_model(model)
    n, index = check_int("n", n, 1), check_int("index", index, 0)
    if n * (index + 1) > HELD_OUT_START:
        raise ArgumentError(
            f"index must be below {HELD_OUT_START // n} for blocks of {n} rows, got {index}: rows from "
            f"{HELD_OUT_START} on are held out"
        )
    leaves = model.sample(n, seed=check_seed("seed", seed), start=n * index).leaves
    return np.asarray(leaves)


def held_out(model: TreeModel, n: int, seed: int = 0, excluding: Any = None) -> NDArray[Any]:
    """Sequences that no block of the stream of `seed` holds, by index or by content.

    Parameters
    ----------
    model : TreeModel
    n : int
    seed : int
    excluding : int array, shape (P, L), optional
        Sequences that are to be skipped: the set is then disjoint from them by content, and not by index
        alone. Several training sets: ``np.concatenate`` them.

    Returns
    -------
    array of unsigned int, shape (n, L)
        Rows of the held-out part of the stream, in its order.

    Raises
    ------
    hfilter.errors.ArgumentError
        If next to nothing is left when `excluding` is taken out.

    Notes
    -----
    A perfect generator repeats sequences of the training set as often as index-disjoint rows do. For the
    distance to the training set, those are the standard to measure generated sequences by;
    content-disjoint rows would make it look as if it memorised. A test loss on index-disjoint rows is one on
    the law; content-disjoint rows hold nothing that was trained on, but are no sample of the law: where
    repeats are common even exact inference has an excess loss on them.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion.splits import block, duplicates, held_out
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> train = block(model, 200, 0)
    >>> shares = (duplicates(held_out(model, 500, excluding=x), train).share for x in (None, train))
    >>> [round(share, 2) for share in shares]
    [0.71, 0.0]
    """
    check_model(model)
    n, seed = check_int("n", n, 1), check_seed("seed", seed)
    if excluding is None:
        return np.asarray(model.sample(n, seed=seed, start=HELD_OUT_START).leaves)
    known = _keys("excluding", excluding, model.n_leaves)
    found: list[NDArray[Any]] = []
    have = drawn = 0
    while have < n:
        if drawn > _SPARE * n + 10_000:
            raise ArgumentError(
                f"excluding leaves too little: of {drawn} rows of the model {have} are not in it, "
                f"{n} are wanted; exclude less, or take a grammar with more sequences"
            )
        rows = max(1024, n - have)
        leaves = np.asarray(model.sample(rows, seed=seed, start=HELD_OUT_START + drawn).leaves)
        fresh = leaves[~np.isin(_keys("leaves", leaves, model.n_leaves), known)]
        found.append(fresh)
        drawn, have = drawn + rows, have + len(fresh)
    return np.concatenate(found)[:n]


@dataclass(frozen=True)
class Duplicates:
    """How many of some rows occur among others, and among themselves.

    Attributes
    ----------
    n_rows, n_others : int
    n_distinct : int
        Different sequences among the rows.
    repeated : float
        Share of the rows that repeat an earlier one of them.
    n_found : int
        Rows that occur among the others.
    share : float
        The same as a share of the rows.
    expected, expected_error : float
        The share to expect by chance, if the others are independent draws from `model`: the mean of
        ``1 - (1 - p(row))^n_others``, with its standard error over rows. NaN without a model.
    """

    n_rows: int
    n_others: int
    n_distinct: int
    repeated: float
    n_found: int
    share: float
    expected: float
    expected_error: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)


def duplicates(rows: Any, others: Any, model: TreeModel | None = None) -> Duplicates:
    """Count the rows that occur among others, and compare with chance.

    Parameters
    ----------
    rows : int array, shape (n, L)
        For instance a held-out set, or generated sequences.
    others : int array, shape (P, L)
        For instance a training set.
    model : TreeModel, optional
        The law that the others were drawn from, for `Duplicates.expected`.

    Returns
    -------
    Duplicates

    Examples
    --------
    >>> from hfilter.diffusion.splits import duplicates
    >>> found = duplicates([[0, 1], [0, 1], [1, 1]], [[0, 0], [0, 1]])
    >>> found.n_found, found.n_distinct, round(found.repeated, 3)
    (2, 2, 0.333)
    """
    mine = _keys("rows", rows)
    theirs = _keys("others", others, np.shape(rows)[1])
    n_found, distinct = int(np.isin(mine, theirs).sum()), len(np.unique(mine))
    expected = error = np.nan
    if model is not None:
        check_model(model)
        log_p = np.asarray(model.log_prob(np.asarray(rows), dtype="float64"), dtype=np.float64)
        with np.errstate(
            divide="ignore"
        ):  # a sequence that is certain may come out a digit above 1
            chance = -np.expm1(len(theirs) * np.log1p(-np.exp(np.minimum(log_p, 0.0))))
        expected = float(chance.mean())
        error = float(chance.std(ddof=1) / np.sqrt(len(mine))) if len(mine) > 1 else np.nan
    return Duplicates(
        len(mine), len(theirs), distinct, 1.0 - distinct / len(mine), n_found, n_found / len(mine),
        expected, error,
    )  # fmt: skip


def check_model(model: Any) -> None:
    """An error for anything that is no model."""
    if not (hasattr(model, "sample") and hasattr(model, "n_leaves")):
        raise DTypeError(f"model must be a hfilter.TreeModel, got {type(model).__name__}")


def _keys(name: str, rows: Any, n_leaves: int | None = None) -> NDArray[Any]:
    """A number for the content of each row that is one byte string: equal rows, equal keys."""
    if hasattr(rows, "detach"):
        rows = rows.detach().cpu().numpy()
    given = np.asarray(rows)
    if given.dtype.kind not in "iu":
        raise DTypeError(f"{name} must be integers, got {given.dtype}")
    if given.ndim != 2 or 0 in given.shape or (n_leaves is not None and given.shape[1] != n_leaves):
        wanted = "L" if n_leaves is None else n_leaves
        raise ShapeError(f"{name} must have shape (n, {wanted}) with n >= 1, got {given.shape}")
    if not (int(given.min()) >= 0 and int(given.max()) <= 65535):
        raise ArgumentError(
            f"{name} must be symbols from 0 to 65535, got values from {given.min()} to {given.max()}"
        )
    packed = np.ascontiguousarray(given, dtype=np.uint16)
    return packed.view(np.dtype((np.void, packed.shape[1] * 2)))[:, 0]
