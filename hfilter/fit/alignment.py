"""Latent symbols have no names: find those under which two grammars agree best, and how far they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, DTypeError, GrammarError, ShapeError
from ..exact import TreeModel
from ..grammar import Grammar
from ..rules import RuleTable
from ..theory.law import totals
from .assignment import assign
from .outcome import Fit
from .parameters import Array

__all__ = ["Alignment", "GrammarDistance", "align", "grammar_distance"]

Permutation = NDArray[np.intp]
_MAX_ENTRIES = 2**26
_SWEEPS = 20


@dataclass(frozen=True, eq=False)
class Alignment:
    """A grammar whose latent symbols were renamed.

    Attributes
    ----------
    grammar : Grammar
        The fitted one in the names of the truth.
    root_prior : ndarray of float64, shape (n_classes,)
        Likewise.
    permutations : tuple of ndarray of int
        For every level, root first and leaves last, which symbol of the fitted grammar each symbol of
        the truth is. With one table for all levels every one is the identity.
    """

    grammar: Grammar
    root_prior: Array
    permutations: tuple[Permutation, ...]

    def rename_roots(self, posterior: Any) -> Any:
        """The fitted model's beliefs of the root, (n, n_classes), in the names of the truth."""
        return posterior[:, self.permutations[0]]


@dataclass(frozen=True)
class GrammarDistance:
    """How far a grammar is from the truth.

    Attributes
    ----------
    total_variation : float
        Mean over all parents' rows of half the sum of absolute differences, 0 … 1.
    rows : tuple of ndarray of float64
        That of every row, for each table.
    kl : float
        KL(truth ‖ fitted) of the laws of whole trees, in nats: an upper bound of that of the sequences.
        Infinite where a rule that occurs is missing.
    """

    total_variation: float
    rows: tuple[Array, ...]
    kl: float


@dataclass(frozen=True)
class _Side:
    """One of the two: tables and prior, dense."""

    grammar: Grammar
    prior: Array
    depth: int
    supervised: bool

    @classmethod
    def of(cls, name: str, given: Any, depth: int | None) -> _Side:
        supervised = isinstance(given, Fit) and given.supervised
        if isinstance(given, Fit):
            given = given.model
        if isinstance(given, TreeModel):
            return cls(given.grammar, given.root_prior, given.depth, supervised)
        if not isinstance(given, Grammar):
            raise DTypeError(
                f"{name} must be a Fit, a TreeModel or a Grammar, got {type(given).__name__}"
            )
        levels = given.n_levels or depth or 1
        return cls(given, np.full(given.n_classes, 1 / given.n_classes), levels, supervised)


def _pair(fitted: Any, truth: Any) -> tuple[_Side, _Side]:
    depths = [
        _Side.of(name, x, None).depth
        for name, x in (("fitted", fitted), ("truth", truth))
        if not (isinstance(x, Grammar) and x.is_shared)
    ]
    ours, theirs = (
        _Side.of(name, x, depths[0] if depths else None)
        for name, x in (("fitted", fitted), ("truth", truth))
    )
    if ours.depth != theirs.depth:
        raise ArgumentError(
            f"fitted and truth must have the same depth, got {ours.depth} and {theirs.depth}"
        )
    sizes = [(s.grammar.arity, s.grammar.alphabets(s.depth)) for s in (ours, theirs)]
    if sizes[0] != sizes[1]:
        raise ShapeError(
            "fitted and truth must have the same arity and alphabets, got arity "
            f"{sizes[0][0]} with {sizes[0][1]} and arity {sizes[1][0]} with {sizes[1][1]}"
        )
    return ours, theirs


def _dense(table: RuleTable) -> Array:
    if table.n_parents * table.n_symbols**table.arity > _MAX_ENTRIES:
        raise GrammarError(
            f"a level has {table.n_parents} x {table.n_symbols}**{table.arity} entries, more than "
            f"{_MAX_ENTRIES}: too large to compare"
        )
    return table.tensor()


def _turn_children(tensor: Array, order: Permutation) -> Array:
    for axis in range(1, tensor.ndim):
        tensor = tensor.take(order, axis)
    return tensor


def _variations(truth: Array, fitted: Array) -> Array:
    """Total variation of every row of one from every row of the other, (q, q)."""
    flat = fitted.reshape(len(fitted), -1)
    rows = [0.5 * np.abs(flat - row).sum(axis=1) for row in truth.reshape(len(truth), -1)]
    return np.stack(rows)


def align(fitted: Any, truth: Any, *, match_roots: bool | None = None) -> Alignment:
    """Rename the latent symbols of a fitted grammar so that it agrees with the truth best.

    Parameters
    ----------
    fitted, truth : Fit, TreeModel or Grammar
        Of the same arity, depth and alphabets. A `Grammar` is taken with a uniform root prior.
    match_roots : bool, optional
        Keep the root symbols' names, because they were observed; by default if `fitted` is a `Fit`
        that was given roots.

    Returns
    -------
    Alignment

    Raises
    ------
    DTypeError, ArgumentError, ShapeError, GrammarError
        For other things, or grammars that cannot be compared.

    Notes
    -----
    Leaves are observed, so their names stand. From there upwards, each level's best permutation,
    given that of its children, is a linear assignment by total variation, solved exactly: equal
    grammars are found again exactly unless two symbols of a level have the same rules. Then pairs
    of symbols are exchanged while that lowers the sum over all levels.

    One table for all levels gives latent symbols the names of the leaves' (no other naming leaves the
    law of the leaves as it is), so two such grammars are compared as they are. If only one of the two
    has one table, both are taken as one per level.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.fit import align, grammar_distance
    >>> truth = hfilter.Grammar.random_hierarchy(3, 2, depth=2, n_classes=4, seed=1)
    >>> turned = hfilter.Grammar.from_tensor([truth.tensor(0)[[2, 0, 3, 1]], truth.tensor(1)])
    >>> align(turned, truth).permutations[0].tolist()  # truth's 0 is at place 1
    [1, 3, 0, 2]
    >>> grammar_distance(turned, truth).total_variation
    0.0
    """
    ours, theirs = _pair(fitted, truth)
    sizes = ours.grammar.alphabets(ours.depth)
    if ours.grammar.is_shared and theirs.grammar.is_shared:
        names = tuple(np.arange(q) for q in sizes)
        return Alignment(ours.grammar, ours.prior, names)
    match = ours.supervised if match_roots is None else bool(match_roots)
    search = _Search(ours, theirs, 1 if match else 0)
    search.climb()
    search.exchange()
    orders = search.orders
    tables = []
    for d in range(ours.depth):
        table, places = ours.grammar.table(d), np.argsort(orders[d])
        children = np.argsort(orders[d + 1])[table.children]
        tables.append(
            RuleTable.from_rules(
                table.n_parents, table.n_symbols, places[table.parents], children, table.probability
            )
        )
    grammar = Grammar(tables, {"family": "fit"}, is_shared=False)
    return Alignment(grammar, ours.prior[orders[0]], tuple(orders))


class _Search:
    """Permutations of all levels, the leaves' fixed."""

    def __init__(self, ours: _Side, theirs: _Side, first: int) -> None:
        self.depth, self.first = ours.depth, first
        self.ours, self.theirs = (
            [_dense(s.grammar.table(d)) for d in range(self.depth)] for s in (ours, theirs)
        )
        self.prior = 0.5 * np.abs(theirs.prior[:, None] - ours.prior[None])
        self.orders: list[Permutation] = [np.arange(q) for q in ours.grammar.alphabets(self.depth)]

    def costs(self, level: int) -> Array:
        """Cost of taking a symbol for another at a level, given its children's names."""
        turned = _turn_children(self.ours[level], self.orders[level + 1])
        found = _variations(self.theirs[level], turned)
        return found + self.prior if level == 0 else found

    def climb(self) -> None:
        for level in range(self.depth - 1, self.first - 1, -1):
            self.orders[level] = assign(self.costs(level))

    def row_cost(self, level: int) -> float:
        """Sum of a level's rows as they are named now."""
        turned = _turn_children(self.ours[level][self.orders[level]], self.orders[level + 1])
        found = 0.5 * float(np.abs(turned - self.theirs[level]).sum())
        if level == 0:
            found += float(self.prior[np.arange(len(self.prior)), self.orders[0]].sum())
        return found

    def exchange(self) -> None:
        """Exchange two symbols of a level where that helps it and the level above together."""
        for _ in range(_SWEEPS):
            changed = False
            for level in range(self.first, self.depth):
                order = self.orders[level]
                above = [level - 1] if level else []
                now = sum(map(self.row_cost, [level, *above]))
                for a in range(len(order)):
                    for b in range(a + 1, len(order)):
                        if now <= 1e-12:
                            break
                        order[[a, b]] = order[[b, a]]
                        found = sum(map(self.row_cost, [level, *above]))
                        if found < now - 1e-12:
                            now, changed = found, True
                        else:
                            order[[a, b]] = order[[b, a]]
            if not changed:
                return


def grammar_distance(
    fitted: Any, truth: Any, *, aligned: bool = True, match_roots: bool | None = None
) -> GrammarDistance:
    """How far a grammar is from the truth, its latent symbols renamed at best.

    Parameters
    ----------
    fitted, truth : Fit, TreeModel or Grammar
        As in `align`.
    aligned : bool
        False compares the names as they are.
    match_roots : bool, optional
        As in `align`.

    Returns
    -------
    GrammarDistance
        `kl` compares the laws of whole unfiltered trees, for any grammars of that shape; where leaves
        determine their tree (`hfilter.theory.grammar_kl`) it is that of the sequences. For one shared
        table without a depth (two grammars) it is that of a single level.

    Raises
    ------
    DTypeError, ArgumentError, ShapeError, GrammarError
        As in `align`.
    """
    ours, theirs = _pair(fitted, truth)
    grammar, prior = ours.grammar, ours.prior
    if aligned:
        found = align(fitted, truth, match_roots=match_roots)
        grammar, prior = found.grammar, found.root_prior
    one = grammar.is_shared and theirs.grammar.is_shared
    rows, kl = [], _divergence(theirs.prior, prior)
    tables = [theirs.grammar.table(d) for d in range(theirs.depth)]
    counts = totals(theirs.prior, tables[:-1])
    for d in range(theirs.depth):
        p, q = (_dense(g.table(d)) for g in (theirs.grammar, grammar))
        p, q = p.reshape(len(p), -1), q.reshape(len(q), -1)
        if d == 0 or not one:
            rows.append(0.5 * np.abs(p - q).sum(axis=1))
        kl += sum(c * _divergence(x, y) for c, x, y in zip(counts[d], p, q, strict=True) if c > 0)
    return GrammarDistance(float(np.concatenate(rows).mean()), tuple(rows), float(kl))


def _divergence(p: Array, q: Array) -> float:
    used = p > 0
    with np.errstate(divide="ignore"):
        return float((p[used] * (np.log(p[used]) - np.log(q[used]))).sum())
