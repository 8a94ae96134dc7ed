"""What is learned: the probabilities of allowed rules, as one flat array, and where it may start."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_int
from ..errors import ArgumentError, DTypeError, GrammarError, ShapeError
from ..grammar import Grammar
from ..rules import RuleTable

__all__ = ["Array", "Structure", "find_arity", "find_structure"]

Array = NDArray[np.float64]
_MAX_RULES = 2**26  # 0.5 GB for one array of their probabilities; EM holds several
_CONCENTRATION = 20.0  # of starts: nearly equal weights end in fewer local maxima than wild ones
_STREAM = 0x666974  # so that starts share no draws with anything else made from the same seed


class Structure:
    """The rules that may be used, their probabilities left open.

    Parameters
    ----------
    grammar : Grammar
        Whose rules are allowed.
    filter_level : int
        Of the model; says how small a probability may be before it is zero.
    """

    def __init__(self, grammar: Grammar, filter_level: int) -> None:
        self.tables = grammar.tables
        self.is_shared = grammar.is_shared
        self.n_rules = grammar.n_rules
        offsets = np.cumsum([0, *(t.n_parents for t in self.tables)])
        self.rows = np.concatenate(
            [t.parents + o for t, o in zip(self.tables, offsets, strict=False)]
        )
        self.first = np.searchsorted(self.rows, np.arange(offsets[-1]))
        # A channel is a product of `filter_level` marginals and must not leave the range of float64.
        # A rule this unlikely is used with that probability in no sequence: it is not missed.
        self.smallest = 10.0 ** (-300.0 / max(filter_level, 3))

    def grammar(self, theta: Array) -> Grammar:
        """The grammar with these probabilities; a zero is no rule."""
        tables, begin = [], 0
        for table in self.tables:
            part = theta[begin : begin + table.n_rules]
            begin += table.n_rules
            kept = part > 0
            arrays = (table.first, table.children, part.copy())
            if not kept.all():
                ends = np.concatenate([[0], np.cumsum(kept)])
                arrays = (ends[table.first].astype(np.int32), table.children[kept], part[kept])
            for array in arrays:
                array.flags.writeable = False
            tables.append(RuleTable(table.n_parents, table.n_symbols, *arrays))
        return Grammar(tables, {"family": "fit"}, is_shared=self.is_shared)

    def normalise(self, counts: Array, before: Array, pseudo_count: float) -> Array:
        """The M-step: each parent's counts over their sum; a parent without counts keeps its row."""
        weights = counts + pseudo_count
        total = np.add.reduceat(weights, self.first)
        dead = ~(total > 1e-250)
        total[dead] = 1.0
        theta = weights / total[self.rows]
        theta[theta < self.smallest] = 0.0
        kept = dead[self.rows]
        theta[kept] = before[kept]
        return np.asarray(theta)

    def starts(self) -> NDArray[np.intp]:
        """Where each row begins in a point: those of the rules, then the root's law."""
        return np.concatenate([self.first, [self.n_rules]])

    def draw(self, seed: int, restart: int) -> Array:
        """A Dirichlet law around equal weights for every parent: a function of (seed, restart)."""
        sequence = np.random.SeedSequence([_STREAM, seed, restart])
        stream = np.random.RandomState(np.random.MT19937(sequence))
        weights = np.maximum(stream.standard_gamma(_CONCENTRATION, size=self.n_rules), 1e-12)
        return np.asarray(weights / np.add.reduceat(weights, self.first)[self.rows])

    def probabilities(self, grammar: Grammar, name: str) -> Array:
        """The probabilities of another grammar's rules, all of which must be allowed here."""
        if grammar.arity != self.tables[0].arity:
            raise ShapeError(f"{name} must have arity {self.tables[0].arity}, got {grammar.arity}")
        if self.is_shared and not grammar.is_shared:
            raise GrammarError(f"{name} has one table per level; fit with shared=False")
        if grammar.n_levels not in (None, len(self.tables)):
            raise ShapeError(
                f"{name} must have rules for {len(self.tables)} levels, got {grammar.n_levels}"
            )
        theta, begin = np.zeros(self.n_rules), 0
        for level, table in enumerate(self.tables):
            given = grammar.table(level)
            sizes = (table.n_parents, table.n_symbols)
            if (given.n_parents, given.n_symbols) != sizes:
                raise ShapeError(
                    f"{name} must have {sizes[0]} parents and {sizes[1]} children symbols at level "
                    f"{level}, got {given.n_parents} and {given.n_symbols}"
                )
            place = _find(given, table)
            if (place < 0).any():
                rule = int(np.argmax(place < 0))
                raise GrammarError(
                    f"{name} has the rule {given.parents[rule]} -> "
                    f"{tuple(given.children[rule].tolist())} at level {level}, which structure does "
                    "not allow; leave structure out, or take the rule out"
                )
            theta[begin + place] = given.probability
            begin += table.n_rules
        return theta


def _find(wanted: RuleTable, among: RuleTable) -> NDArray[np.intp]:
    """Where the rules of one table stand in another; -1 for those that are not there."""
    both = np.concatenate(
        [np.column_stack([t.parents, t.children]) for t in (among, wanted)]
    )  # fmt: skip
    _, codes = np.unique(both, axis=0, return_inverse=True)
    codes = codes.ravel()
    place = np.full(len(both), -1)
    place[codes[: among.n_rules]] = np.arange(among.n_rules)
    return np.asarray(place[codes[among.n_rules :]])


def find_arity(n_leaves: int, depth: int) -> int:
    """The arity of a tree from its number of leaves."""
    arity: int = round(float(n_leaves) ** (1.0 / depth))
    for s in (arity - 1, arity, arity + 1):
        if s >= 2 and s**depth == n_leaves:
            return s
    raise ShapeError(
        f"leaves must have shape (n, arity**depth) for an arity from 2 to 32; at depth {depth}, "
        f"{n_leaves} leaves are no such power; give another depth, or pad with hidden leaves"
    )


def find_structure(
    structure: Any, init: Any, shared: bool | None, depth: int, arity: int, *,
    n_classes: int | None, vocab_size: int | None, alphabets: Any, seen: tuple[int, int],
) -> Grammar:  # fmt: skip
    """The grammar whose rules are allowed: the one given, or that with all rules.

    `seen` holds the largest token and the largest root that occur, plus one.
    """
    for name, given in (("structure", structure), ("init", init)):
        if given is not None and not isinstance(given, Grammar):
            raise DTypeError(
                f"{name} must be a hfilter.Grammar, got {type(given).__name__}; wrap a tensor with "
                "hfilter.Grammar.from_tensor"
            )
    if shared is not None and not isinstance(shared, (bool, np.bool_)):
        raise DTypeError(f"shared must be True, False or None, got {shared!r}")
    model = structure if structure is not None else init
    if model is not None:
        # With a start alone its rules are the structure: EM leaves zeros at zero.
        known = _as_levels(model, depth, shared)
        if known.arity != arity:
            raise ShapeError(
                f"leaves must have {known.arity}**{depth} = {known.arity**depth} columns for this "
                f"grammar, got {arity**depth}"
            )
        _agree(known, depth, n_classes, vocab_size, alphabets)
        return known
    q = seen[0] if vocab_size is None else check_int("vocab_size", vocab_size, 1, 65535)
    q = max(q, 1)
    inner = _inner(alphabets, depth, q)
    equal = all(size == q for size in inner) and (n_classes is None or n_classes == q)
    if shared is None:
        shared = equal and seen[1] <= q
    classes = n_classes if n_classes is not None else q if shared else max(seen[1], 1)
    if n_classes is None and not seen[1]:
        classes = q
    classes = check_int("n_classes", classes, 1, 65535)
    if shared and (not equal or classes != q):
        raise ArgumentError(
            f"shared=True needs one alphabet for all levels, got n_classes = {classes}, alphabets "
            f"{inner} and vocab_size {q}; fit with shared=False"
        )
    sizes = [q, q] if shared else [classes, *inner, q]
    total = sum(a * b**arity for a, b in itertools.pairwise(sizes))
    if total > _MAX_RULES:
        raise GrammarError(
            f"all rules of alphabets {sizes} at arity {arity} would be {total}, more than "
            f"{_MAX_RULES}; give the rules that are allowed as structure, or smaller alphabets"
        )
    tables = [_full_table(a, b, arity) for a, b in itertools.pairwise(sizes)]
    return Grammar(tables, {"family": "fit"}, is_shared=bool(shared))


def _full_table(n_parents: int, n_symbols: int, arity: int) -> RuleTable:
    shape = (n_symbols,) * arity
    children = np.indices(shape, np.int32).reshape(arity, -1).T
    parents = np.repeat(np.arange(n_parents), len(children))
    probability = np.full(len(parents), 1.0 / len(children))
    tiled = np.tile(children, (n_parents, 1))
    return RuleTable.from_rules(n_parents, n_symbols, parents, tiled, probability)


def _inner(alphabets: Any, depth: int, q: int) -> list[int]:
    """Alphabets of levels 1 … depth - 1."""
    if alphabets is None:
        return [q] * (depth - 1)
    if isinstance(alphabets, Iterable):
        sizes = [check_int("alphabets", a, 1, 65535) for a in alphabets]
        if len(sizes) != depth - 1:
            raise ShapeError(
                f"alphabets must name the sizes of levels 1 to {depth - 1} (the root's is n_classes, "
                f"the leaves' vocab_size): {depth - 1} of them, got {len(sizes)}"
            )
        return sizes
    return [check_int("alphabets", alphabets, 1, 65535)] * (depth - 1)


def _as_levels(grammar: Grammar, depth: int, shared: bool | None) -> Grammar:
    """The grammar with one table for all levels, or one per level, as it is wanted."""
    if grammar.n_levels is not None and grammar.n_levels != depth:
        raise ArgumentError(
            f"depth must be {grammar.n_levels}, the number of levels of the grammar given, got {depth}"
        )
    if shared is None or bool(shared) == grammar.is_shared:
        return grammar
    if shared:
        raise GrammarError(
            "shared=True needs one table for all levels, but the grammar given has one per level; "
            "leave shared out"
        )
    t = grammar.table(0)
    tables = [
        RuleTable(t.n_parents, t.n_symbols, t.first, t.children, t.probability)
        for _ in range(depth)
    ]
    return Grammar(tables, {"family": "fit"}, is_shared=False)


def _agree(
    grammar: Grammar, depth: int, n_classes: int | None, vocab_size: int | None, alphabets: Any
) -> None:
    sizes = grammar.alphabets(depth)
    inner = None if alphabets is None else _inner(alphabets, depth, sizes[-1])
    for name, wanted, given in (
        ("n_classes", sizes[0], n_classes),
        ("vocab_size", sizes[-1], vocab_size),
        ("alphabets", list(sizes[1:-1]), inner),
    ):
        if given is not None and given != wanted:
            raise ArgumentError(f"{name} must be {wanted} as in the grammar given, got {given}")
