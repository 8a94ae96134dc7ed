"""`Grammar`: which children a symbol may have, and how likely they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import families, view
from .checks import check_int
from .errors import DataError, GrammarError, ShapeError
from .rules import RuleTable, digest
from .rules_file import read_rules, write_rules

__all__ = ["Grammar"]


class Grammar:
    """Production rules of a tree: one table that serves every level, or one table per level.

    Build one with a class method, `log_normal` to `load`. A grammar is immutable.

    Attributes
    ----------
    tables : tuple of RuleTable
        One table (shared by all levels) or one per level, root first.
    is_shared : bool
        Whether one table serves every level, so that the depth is free.
    spec : dict
        Family and parameters that drew it, as plain JSON values.

    Examples
    --------
    >>> import hfilter
    >>> grammar = hfilter.Grammar.log_normal(vocab_size=4, sigma=1.0, seed=0)
    >>> grammar
    Grammar.log_normal(vocab_size=4, sigma=1.0, seed=0): 4 symbols, arity 2, 16 rules, unambiguous
    >>> float(grammar.tensor()[0].sum())
    1.0
    """

    __slots__ = ("_fingerprint", "is_shared", "spec", "tables")

    tables: tuple[RuleTable, ...]
    spec: Mapping[str, Any]
    is_shared: bool
    _fingerprint: str | None

    def __init__(
        self, tables: Sequence[RuleTable], spec: dict[str, Any], *, is_shared: bool = True
    ) -> None:
        put = object.__setattr__
        put(self, "tables", tuple(tables))
        put(self, "spec", MappingProxyType(dict(spec)))
        put(self, "is_shared", is_shared)
        put(self, "_fingerprint", None)
        if not self.tables or (is_shared and len(self.tables) != 1):
            raise GrammarError(
                f"a grammar needs one table for all levels or one per level, got {len(self.tables)}"
            )
        if is_shared and self.tables[0].n_parents != self.tables[0].n_symbols:
            raise GrammarError("one table for all levels needs as many parents as children symbols")
        arity = self.tables[0].arity
        for level, table in enumerate(self.tables):
            if table.arity != arity:
                raise GrammarError(
                    f"every level must have the same arity; level 0 has {arity}, level {level} has {table.arity}"
                )
            if level and table.n_parents != self.tables[level - 1].n_symbols:
                raise GrammarError(
                    f"level {level} must have {self.tables[level - 1].n_symbols} parents, as many as level "
                    f"{level - 1} has children symbols, got {table.n_parents}"
                )
            if max(table.n_parents, table.n_symbols) > 65535:
                raise GrammarError("alphabets hold at most 65535 symbols (tokens are 16 bits)")

    @classmethod
    def log_normal(
        cls,
        vocab_size: int,
        sigma: float = 1.0,
        seed: int = 0,
        rules_per_symbol: int | None = None,
        arity: int = 2,
    ) -> Grammar:
        """Unambiguous grammar with log-normal weights (HF section 2, BG section 2).

        The ``vocab_size**arity`` tuples are shuffled and dealt out to the parents; a rule's weight
        is ``exp(sigma * N(0, 1))``, normalised per parent.

        Parameters
        ----------
        vocab_size : int
            Number of symbols q, from 2.
        sigma : float
            Spread of the log-weights, in nats; 0 makes a parent's rules equally likely.
        seed : int
            From 0 to 2**64 - 1.
        rules_per_symbol : int, optional
            Rules of each parent (BG's q_eff); the other tuples are forbidden. Default: all,
            ``vocab_size**(arity - 1)``.
        arity : int
            Children per node, from 2 to 32.

        References
        ----------
        Garnier-Brun et al., arXiv 2408.15138 (HF); Garnier-Brun et al., arXiv 2603.03469 (BG).

        Examples
        --------
        >>> Grammar.log_normal(6, sigma=1.0, seed=3, rules_per_symbol=4).n_rules
        24
        """
        tables = families.log_normal(vocab_size, sigma, seed, rules_per_symbol, arity)
        return cls(
            tables,
            families.spec("log_normal", vocab_size=vocab_size, sigma=sigma, seed=seed,
                  rules_per_symbol=rules_per_symbol, arity=arity),
        )  # fmt: skip

    @classmethod
    def published(
        cls,
        vocab_size: int = 4,
        sigma: float = 1.0,
        seed: int = 0,
        rules_per_symbol: int | None = None,
    ) -> Grammar:
        """The very grammars of HF and BG: the tensors their public code draws for this seed.

        Parameters
        ----------
        vocab_size, sigma, rules_per_symbol
            As in `log_normal`.
        seed : int
            From 0 to 2**32 - 1, of NumPy's legacy stream.

        Examples
        --------
        >>> grammar = Grammar.published(6, 1.0, 0, rules_per_symbol=4)
        >>> [(int(b), int(c)) for b, c in zip(*grammar.tensor()[0].nonzero())]
        [(2, 4), (3, 2), (5, 0), (5, 1)]
        """
        tables = families.published(vocab_size, sigma, seed, rules_per_symbol)
        return cls(
            tables,
            families.spec("published", vocab_size=vocab_size, sigma=sigma, seed=seed,
                  rules_per_symbol=rules_per_symbol),
        )  # fmt: skip

    @classmethod
    def random_hierarchy(
        cls,
        vocab_size: int,
        rules_per_symbol: int,
        depth: int,
        n_classes: int | None = None,
        arity: int = 2,
        seed: int = 0,
    ) -> Grammar:
        """The random hierarchy model (RHM): equally likely rules, drawn afresh for each level.

        Parameters
        ----------
        vocab_size : int
            Symbols v of every level but the root's.
        rules_per_symbol : int
            Tuples m of each parent; ``vocab_size * m`` may not exceed ``vocab_size**arity``.
        depth : int
            Number of levels of rules.
        n_classes : int, optional
            Symbols of the root; default `vocab_size`.
        arity, seed : int

        References
        ----------
        Cagnetta et al., arXiv 2307.02129.

        Examples
        --------
        >>> Grammar.random_hierarchy(vocab_size=8, rules_per_symbol=2, depth=3, n_classes=10).n_rules
        52
        """
        classes = vocab_size if n_classes is None else n_classes
        tables = families.random_hierarchy(
            vocab_size, rules_per_symbol, depth, classes, arity, seed
        )
        return cls(
            tables,
            families.spec("random_hierarchy", vocab_size=vocab_size, rules_per_symbol=rules_per_symbol,
                  depth=depth, n_classes=n_classes, arity=arity, seed=seed),
            is_shared=False,
        )  # fmt: skip

    @classmethod
    def dense(
        cls, vocab_size: int, concentration: float = 1.0, seed: int = 0, arity: int = 2
    ) -> Grammar:
        """Ambiguous grammar: each parent's row from a symmetric Dirichlet law over all tuples.

        Parameters
        ----------
        vocab_size, seed, arity : int
        concentration : float
            Of the Dirichlet law, above 0; 1 is uniform on the simplex, small is nearly sparse.
        """
        tables = families.dense(vocab_size, concentration, seed, arity)
        return cls(
            tables,
            families.spec(
                "dense", vocab_size=vocab_size, concentration=concentration, seed=seed, arity=arity
            ),
        )

    @classmethod
    def broadcast(cls, vocab_size: int, eigenvalue: float, arity: int = 2) -> Grammar:
        """Broadcasting on a tree: children independent given the parent, through a Potts channel.

        A child copies its parent with probability ``λ + (1 - λ)/q`` and is otherwise another symbol,
        uniformly. The root can be reconstructed from ever deeper leaves when ``arity * λ**2 > 1``
        (Kesten and Stigum).

        Parameters
        ----------
        vocab_size, arity : int
        eigenvalue : float
            Second eigenvalue λ of the channel, from -1/(q - 1) to 1.
        """
        tables = families.broadcast(vocab_size, eigenvalue, arity)
        return cls(
            tables,
            families.spec("broadcast", vocab_size=vocab_size, eigenvalue=eigenvalue, arity=arity),
        )

    @classmethod
    def parity(cls, arity: int = 2) -> Grammar:
        """Two symbols; a node is the exclusive or of its children: PARITY of the leaves as a tree."""
        return cls(families.parity(arity), families.spec("parity", arity=arity))

    @classmethod
    def from_tensor(cls, tensor: Any) -> Grammar:
        """A grammar of one's own.

        Parameters
        ----------
        tensor : array_like, or list of array_like
            ``M[a, b_1, …, b_s]``: probability that symbol ``a`` has children ``b_1 … b_s``, shape
            (q, q', …, q'), each row summing to 1. One tensor serves all levels and then q = q'; a
            list has one tensor per level, root first, and the alphabets must fit together.

        Raises
        ------
        ShapeError, DTypeError, GrammarError
            For a wrong shape, or negative, unnormalised or non-finite entries.

        Examples
        --------
        >>> import numpy as np
        >>> copy = np.zeros((2, 2, 2))
        >>> copy[0, 0, 0] = copy[1, 1, 1] = 1.0
        >>> Grammar.from_tensor(copy).n_rules
        2
        """
        if isinstance(tensor, (list, tuple)) and all(getattr(t, "ndim", 0) >= 3 for t in tensor):
            if not tensor:
                raise GrammarError(
                    "tensor must be an array or a non-empty list of arrays, got an empty list"
                )
            tables = tuple(
                RuleTable.from_tensor(t, f"tensor of level {i}") for i, t in enumerate(tensor)
            )
            return cls(tables, {"family": "tensor"}, is_shared=False)
        table = RuleTable.from_tensor(tensor)
        if table.n_parents != table.n_symbols:
            raise ShapeError(
                "one tensor for all levels must have as many parents as children symbols, got "
                f"{table.n_parents} and {table.n_symbols}; give a list of tensors, one per level"
            )
        return cls((table,), {"family": "tensor"})

    @property
    def n_levels(self) -> int | None:
        """Number of levels that have rules of their own; None if one table serves any depth."""
        return None if self.is_shared else len(self.tables)

    @property
    def arity(self) -> int:
        """Children per node."""
        return self.tables[0].arity

    @property
    def n_classes(self) -> int:
        """Number of root symbols."""
        return self.tables[0].n_parents

    @property
    def vocab_size(self) -> int:
        """Number of leaf symbols."""
        return self.tables[-1].n_symbols

    @property
    def n_rules(self) -> int:
        """Number of rules, summed over the tables."""
        return sum(table.n_rules for table in self.tables)

    @property
    def is_unambiguous(self) -> bool:
        """Whether at every level each tuple of children has at most one parent."""
        return all(table.is_unambiguous for table in self.tables)

    def table(self, level: int = 0) -> RuleTable:
        """The rules by which nodes of `level` (0 = root) produce their children."""
        level = check_int("level", level, 0, None if self.is_shared else len(self.tables) - 1)
        return self.tables[0 if self.is_shared else level]

    def tensor(self, level: int = 0) -> NDArray[np.float64]:
        """Dense transition tensor of a level, shape (q_d, q_{d+1}, …, q_{d+1})."""
        table = self.table(level)
        entries = table.n_parents * table.n_symbols**table.arity
        if entries > 2**30:
            raise GrammarError(
                f"the dense tensor would have {entries} entries; use grammar.table({level}), which lists the rules"
            )
        return table.tensor()

    def alphabets(self, depth: int) -> tuple[int, ...]:
        """Alphabet sizes of levels 0 … `depth`."""
        return (self.n_classes, *(self.table(d).n_symbols for d in range(depth)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the rules, 16 hexadecimal digits: equal for equal laws, however they were made."""
        if self._fingerprint is None:
            object.__setattr__(self, "_fingerprint", digest(self.tables, self.is_shared))
        return str(self._fingerprint)

    def describe(self) -> dict[str, Any]:
        """What an artefact should record: family, parameters, sizes, fingerprint; plain JSON values."""
        return {
            **self.spec,
            "vocab_size": self.vocab_size,
            "n_classes": self.n_classes,
            "arity": self.arity,
            "n_rules": self.n_rules,
            "unambiguous": self.is_unambiguous,
            "fingerprint": self.fingerprint,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grammar) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Grammar is immutable: cannot set {name}; make another one")

    def __reduce__(self) -> Any:
        return partial(Grammar, is_shared=self.is_shared), (self.tables, dict(self.spec))

    def __repr__(self) -> str:
        return view.summary(self)

    def _repr_html_(self) -> str:
        return view.html(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the grammar to `path` (a NumPy archive without pickles), replacing it atomically.

        Raises
        ------
        DataError
            If the file cannot be written; what stood there before is untouched.
        """
        header = {"spec": dict(self.spec), "shared": self.is_shared}
        write_rules(path, header, self.tables)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Grammar:
        """Read a grammar written by `save`. Nothing is ever unpickled.

        Raises
        ------
        DataError
            If the file is missing, is not ours, is of a newer version, or is damaged.
        """
        header, tables = read_rules(path)
        try:
            return cls(tables, dict(header["spec"]), is_shared=bool(header["shared"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{os.fspath(path)} is damaged: {error}") from error
