"""`RuleTable`: the rules of one level, stored by parent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import ieee
from .errors import DTypeError, GrammarError, ShapeError

__all__ = ["RuleTable", "digest"]

_ROW_TOLERANCE = 1e-6  # a row further from 1 is not a probability distribution in anyone's rounding
_ROW_EXACT = 1e-12  # a row nearer to 1 is taken as it is, so that a tensor survives a round trip


@dataclass(frozen=True, eq=False)
class RuleTable:
    """Rules of one level, sorted by parent and then by children.

    Attributes
    ----------
    n_parents, n_symbols : int
        Sizes of the parents' and the children's alphabets.
    first : ndarray of int32, shape (n_parents + 1,)
        The rules of parent ``a`` are rows ``first[a]`` to ``first[a + 1]``.
    children : ndarray of int32, shape (n_rules, arity)
    probability : ndarray of float64, shape (n_rules,)
        Sums to 1 over the rules of each parent.
    """

    n_parents: int
    n_symbols: int
    first: NDArray[np.int32]
    children: NDArray[np.int32]
    probability: NDArray[np.float64]

    @classmethod
    @ieee()
    def from_rules(
        cls,
        n_parents: int,
        n_symbols: int,
        parents: NDArray[Any],
        children: NDArray[Any],
        probability: NDArray[np.float64],
    ) -> RuleTable:
        """Sort rules given in any order; zero probabilities are not rules and are dropped."""
        kept = probability > 0
        parents, children, probability = parents[kept], children[kept], probability[kept]
        keys = [children[:, r] for r in reversed(range(children.shape[1]))]
        order = np.lexsort([*keys, parents])
        first = np.searchsorted(parents[order], np.arange(n_parents + 1)).astype(np.int32)
        arrays = (
            first,
            np.ascontiguousarray(children[order], np.int32),
            np.ascontiguousarray(probability[order], np.float64),
        )
        for array in arrays:
            array.flags.writeable = False
        return cls(n_parents, n_symbols, *arrays)

    @classmethod
    @ieee()
    def from_tensor(cls, tensor: Any, name: str = "tensor") -> RuleTable:
        """Read a dense transition tensor (q, q', …, q') whose rows sum to 1.

        Raises
        ------
        ShapeError, DTypeError, GrammarError
            Naming `name`, what was wanted and what came.
        """
        try:
            array = np.asarray(tensor)
        except Exception as error:
            raise DTypeError(f"{name} must be an array of probabilities: {error}") from error
        if isinstance(tensor, np.ma.MaskedArray):
            raise DTypeError(
                f"{name} is a NumPy masked array; fill its holes with zeros: .filled(0)"
            )
        if array.dtype.kind not in "fiu":
            raise DTypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
        if array.ndim < 3:
            raise ShapeError(
                f"{name} must have shape (q, q', …, q') with at least two children axes, got {array.shape}"
            )
        n_parents, n_symbols = array.shape[0], array.shape[1]
        if len(set(array.shape[1:])) != 1 or n_parents < 1 or n_symbols < 1:
            raise ShapeError(
                f"{name} must have the same number of symbols on every children axis, got shape {array.shape}"
            )
        if array.ndim - 1 > 32:
            raise ShapeError(
                f"{name} has arity {array.ndim - 1}; at most 32 children are supported"
            )
        values = array.astype(np.float64, order="C")  # the rows below are views of it
        if not np.isfinite(values).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise GrammarError(f"{name} must be finite, got {values[where]} at {where}")
        if (values < 0).any():
            where = tuple(int(i) for i in np.argwhere(values < 0)[0])
            raise GrammarError(f"{name} must be non-negative, got {values[where]:g} at {where}")
        rows = values.reshape(n_parents, -1).sum(axis=1)
        worst = int(np.argmax(np.abs(rows - 1)))
        if abs(rows[worst] - 1) > _ROW_TOLERANCE:
            raise GrammarError(
                f"{name} must sum to 1 over the children of every parent, but parent {worst} sums to "
                f"{rows[worst]:.9g}; divide each row by its sum"
            )
        flat = values.reshape(n_parents, -1)
        off = np.abs(rows - 1) > _ROW_EXACT
        flat[off] /= rows[off, None]
        index = np.argwhere(values > 0)
        return cls.from_rules(
            n_parents, n_symbols, index[:, 0], index[:, 1:], values[tuple(index.T)]
        )

    @property
    def n_rules(self) -> int:
        """Number of rules."""
        return len(self.probability)

    @property
    def arity(self) -> int:
        """Children of each rule."""
        return int(self.children.shape[1])

    @property
    def parents(self) -> NDArray[np.int32]:
        """Parent of each rule, shape (n_rules,)."""
        return np.repeat(np.arange(self.n_parents, dtype=np.int32), np.diff(self.first))

    @property
    def is_unambiguous(self) -> bool:
        """Whether no tuple of children has two parents."""
        return len(np.unique(self.children, axis=0)) == self.n_rules

    def tensor(self) -> NDArray[np.float64]:
        """Dense view, shape (n_parents, n_symbols, …, n_symbols)."""
        dense = np.zeros((self.n_parents,) + (self.n_symbols,) * self.arity)
        dense[(self.parents, *self.children.T)] = self.probability
        return dense

    def marginal(self, place: int) -> NDArray[np.float64]:
        """Law of child `place` given the parent, shape (n_parents, n_symbols) (HF Eq. 3)."""
        out = np.zeros((self.n_parents, self.n_symbols))
        np.add.at(out, (self.parents, self.children[:, place]), self.probability)
        return out


def digest(tables: Iterable[RuleTable], is_shared: bool) -> str:
    """SHA-256 of the rules, 16 hexadecimal digits, on every machine."""
    found = hashlib.sha256(f"hfilter-grammar {is_shared}".encode())
    for table in tables:
        sizes = np.array([table.n_parents, table.n_symbols, table.arity], "<i8")
        found.update(sizes.tobytes())
        found.update(table.first.astype("<i8").tobytes())
        found.update(table.children.astype("<i8").tobytes())
        found.update(table.probability.astype("<f8").tobytes())
    return found.hexdigest()[:16]
