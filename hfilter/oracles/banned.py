"""Grammars in which some rules never meet, as tree models on states that are rules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import as_numpy
from hfilter.checks import check_float, check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError, GrammarError, ShapeError
from hfilter.evidence import Evidence
from hfilter.exact import TreeModel
from hfilter.grammar import Grammar
from hfilter.philox import HALF, philox4x32
from hfilter.results import Sample
from hfilter.rules import RuleTable

from .bp import check_model
from .interface import Floats, HostPredictor

__all__ = ["BannedCompositions", "banned_grammar", "draw_bans", "list_adjacencies"]

_MAX_RULES = 2**24
_MAX_ADJACENCIES = 2**26
_STREAM = np.uint64(0x62616E)


def list_adjacencies(grammar: Grammar) -> NDArray[np.int64]:
    """Every way in which one rule can stand below another.

    Parameters
    ----------
    grammar : Grammar

    Returns
    -------
    ndarray of int64, shape (m, 3) or (m, 4)
        Columns ``(rule, side, child rule)`` for a grammar of one table for all levels: the symbol
        at place `side` of `rule` is the parent of `child rule`. For one table per level
        ``(level, rule, side, child rule)``, `level` that of `rule`. Rules are numbered as in
        ``grammar.table(level)``. Such rows are bans.

    Examples
    --------
    >>> import hfilter
    >>> list_adjacencies(hfilter.Grammar.parity()).shape  # 4 rules, 2 sides, 2 rules each
    (16, 3)
    """
    _check_grammar(grammar)
    if grammar.is_shared:
        return np.argwhere(_meeting(grammar.table(), grammar.table()))
    found = []
    for level, tables in enumerate(itertools.pairwise(grammar.tables)):
        meeting = np.argwhere(_meeting(*tables))
        found.append(np.insert(meeting, 0, level, axis=1))
    return np.concatenate([np.empty((0, 4), np.int64), *found])


def draw_bans(grammar: Grammar, fraction: float, seed: int = 0) -> NDArray[np.int64]:
    """Choose adjacencies to ban so that every symbol can still be expanded and every rule occurs.

    Parameters
    ----------
    grammar : Grammar
    fraction : float
        Share of all adjacencies to ban, from 0 to 1; their number is rounded to the nearest.
    seed : int
        From 0 to 2**64 - 1; the choice is a pure function of (grammar, fraction, seed), and those
        of smaller fractions are among those of larger ones.

    Returns
    -------
    ndarray of int64
        Rows of `list_adjacencies`, in their order.

    Raises
    ------
    hfilter.errors.GrammarError
        If fewer can be banned: below each rule one child rule must stay for every side, and each
        rule must stay below some other.

    Examples
    --------
    >>> import hfilter
    >>> draw_bans(hfilter.Grammar.published(4, 1.0, 0), 0.1, seed=0).shape
    (13, 3)
    """
    every = list_adjacencies(grammar)
    wanted = round(check_float("fraction", fraction, 0.0, 1.0) * len(every))
    key = check_seed("seed", seed)
    words = philox4x32(
        np.arange(len(every), dtype=np.uint64), np.uint64(0), np.uint64(0), _STREAM,
        np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32),
    )  # fmt: skip
    order = np.argsort((words[0] << HALF) | words[1], kind="stable")
    # What must keep one adjacency: (level, rule, side) above, (level, child rule) below.
    above = np.unique(every[:, :-1], axis=0, return_inverse=True)[1].ravel()
    below = np.unique(
        np.delete(every, (-3, -2), axis=1), axis=0, return_inverse=True
    )[1].ravel()  # fmt: skip
    left_above, left_below = np.bincount(above), np.bincount(below)
    chosen: list[int] = []
    for i in order.tolist():
        if len(chosen) == wanted:
            break
        if left_above[above[i]] > 1 and left_below[below[i]] > 1:
            left_above[above[i]] -= 1
            left_below[below[i]] -= 1
            chosen.append(i)
    if len(chosen) < wanted:
        raise GrammarError(
            f"fraction = {fraction:g} asks for {wanted} bans of {len(every)} adjacencies, but with "
            f"seed = {seed} only {len(chosen)} leave every rule a place and a child; lower it"
        )
    return every[np.sort(chosen)] if chosen else every[:0]


def banned_grammar(grammar: Grammar, bans: Any, depth: int | None = None) -> Grammar:
    """The grammar in which banned adjacencies do not occur, on states that are rules.

    A node above the leaves has for its state the rule by which it produces its children. A child at
    place `side` of rule r takes rule r' of its symbol b with probability ``p(r' | b)``, normalised
    again over those that are not banned below (r, side).

    Parameters
    ----------
    grammar : Grammar
    bans : array_like of int, shape (m, 3) or (m, 4)
        Rows ``(rule, side, child rule)`` hold at every level (a grammar of one table only), rows
        ``(level, rule, side, child rule)`` at one; see `list_adjacencies`.
    depth : int, optional
        As for `TreeModel`.

    Returns
    -------
    Grammar
        With one table per level. Its root symbols are the rules of the root, its leaf symbols those
        of `grammar`.

    Raises
    ------
    hfilter.errors.GrammarError
        If a rule is left without any child rule on some side, or the states are too many.
    hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
        If `bans` are not adjacencies of the grammar.

    Examples
    --------
    >>> import hfilter, numpy as np
    >>> grammar = hfilter.Grammar.parity()
    >>> banned_grammar(grammar, np.empty((0, 3), int), depth=2).n_classes
    4
    """
    _check_grammar(grammar)
    if depth is None and grammar.n_levels is None:
        raise ArgumentError("depth must be given: this grammar has one table that serves any depth")
    levels = check_int("depth", grammar.n_levels if depth is None else depth, 1, 62)
    if grammar.n_levels is not None and levels != grammar.n_levels:
        raise ArgumentError(
            f"depth must be {grammar.n_levels}, the number of levels of this grammar, got {levels}"
        )
    by_level = _check_bans(grammar, bans, levels)
    tables: list[RuleTable] = []
    for d, banned in enumerate(by_level):
        same = grammar.is_shared and d > 0 and np.array_equal(banned, by_level[d - 1])
        tables.append(tables[-1] if same else _meeting_rules(grammar, d, banned))
    last = grammar.table(levels - 1)
    count = last.n_rules
    tables.append(
        RuleTable.from_rules(
            count, last.n_symbols, np.arange(count), last.children, np.ones(count)
        )
    )  # fmt: skip
    spec = {"family": "banned", "of": grammar.fingerprint, "n_bans": len(np.asarray(bans))}
    return Grammar(tables, spec, is_shared=False)


class BannedCompositions(HostPredictor):
    """The exact posterior of a model some of whose rules never meet.

    The literal reading of a training set from which compositions were withheld; that of `ExactBP`
    for the model without bans is the compositional one.

    Parameters
    ----------
    model : TreeModel
        Unfiltered.
    bans : array_like of int
        See `banned_grammar` and `draw_bans`.
    dtype : "float64" or "float32"

    Attributes
    ----------
    original : TreeModel
        The model without bans.
    model : TreeModel
        The model on rule states; ``model.log_prob(x)`` is -inf for what only banned meetings make.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> literal = BannedCompositions(model, draw_bans(model.grammar, 0.1, seed=0))
    >>> leaves = literal.sample(1000, seed=1).leaves
    >>> bool((literal.model.log_prob(leaves) > model.log_prob(leaves) - 1e-5).all())
    True
    """

    def __init__(self, model: TreeModel, bans: Any, *, dtype: Any = "float64") -> None:
        self.original = check_model("model", model)
        if model.filter_level:
            raise ArgumentError(
                f"model must be unfiltered, since its states become rules, got filter_level = "
                f"{model.filter_level}; give model.filtered(0)"
            )
        super().__init__(model, model.n_classes, dtype)
        grammar = banned_grammar(model.grammar, bans, model.depth)
        top = model.grammar.table(0)
        self._symbol = np.asarray(top.parents)
        prior = model.root_prior[self._symbol] * top.probability
        self.model = TreeModel(grammar, model.depth, root_prior=prior)

    def predict(self, leaves: Any = None, mask: Any = None, *, log_fields: Any = None) -> Any:
        """P(x_j | all evidence but that of leaf j), shape (n, L, q); see `HostPredictor.predict`."""
        return self.model.leave_one_out(leaves, mask, log_fields=log_fields, dtype=self.dtype)

    def sample(self, n: int, seed: int = 0, *, start: int = 0) -> Sample:
        """Rows `start` … `start + n` of sequences without banned meetings, and their root symbols.

        As `TreeModel.sample`: row i is a pure function of (model, bans, seed, i).
        """
        drawn = self.model.sample(n, seed, start=start)
        kind = self.original.token_dtype
        return Sample(self._symbol[drawn.roots].astype(kind), drawn.leaves.astype(kind))

    def _leaf_block(self, evidence: Evidence) -> NDArray[Any]:
        raise NotImplementedError  # predict asks the model directly

    def _root_block(self, evidence: Evidence) -> Floats:
        rules = self.model.root_posterior(
            evidence.tokens, evidence.mask, log_fields=evidence.log_fields, dtype="float64"
        )
        first = self.original.grammar.table(0).first[:-1]
        out: Floats = np.add.reduceat(rules, first, axis=1)
        return out


def _check_grammar(grammar: Any) -> None:
    if not isinstance(grammar, Grammar):
        raise DTypeError(f"grammar must be a hfilter.Grammar, got {type(grammar).__name__}")


def _meeting(upper: RuleTable, lower: RuleTable) -> NDArray[np.bool_]:
    """Whether a rule can stand below another on a side, shape (R, arity, R')."""
    size = upper.n_rules * upper.arity * lower.n_rules
    if size > _MAX_ADJACENCIES:
        raise GrammarError(
            f"{upper.n_rules} rules above {lower.n_rules} are too many for states that are rules "
            f"({size} pairs, at most {_MAX_ADJACENCIES}); use a smaller alphabet or fewer rules"
        )
    return np.asarray(upper.children[:, :, None] == np.asarray(lower.parents)[None, None])


def _check_bans(grammar: Grammar, bans: Any, depth: int) -> list[NDArray[np.bool_]]:
    """For every level but the last whether (rule, side, child rule) is banned."""
    rows, _ = as_numpy("bans", bans)
    wanted = "(m, 3) or (m, 4)" if grammar.is_shared else "(m, 4)"
    if rows.ndim != 2 or rows.shape[1] not in ((3, 4) if grammar.is_shared else (4,)):
        raise ShapeError(
            f"bans must have shape {wanted}, rows as list_adjacencies gives them, got {rows.shape}"
        )
    if rows.dtype.kind not in "iu":
        raise DTypeError(f"bans must be integers, got {rows.dtype}")
    rows = rows.astype(np.int64)
    out = []
    for d in range(depth - 1):
        meeting = _meeting(grammar.table(d), grammar.table(d + 1))
        here = rows if rows.shape[1] == 3 else rows[rows[:, 0] == d, 1:]
        for row in here:
            if not ((row >= 0).all() and (row < meeting.shape).all() and meeting[tuple(row)]):
                raise ArgumentError(
                    f"bans: {row.tolist()} is no adjacency (rule, side, child rule) of level {d}; "
                    "see list_adjacencies"
                )
        banned = np.zeros(meeting.shape, np.bool_)
        banned[tuple(here.T)] = True
        out.append(banned)
    if (
        rows.shape[1] == 4
        and len(rows)
        and not 0 <= rows[:, 0].min() <= rows[:, 0].max() < depth - 1
    ):
        raise ArgumentError(
            f"bans: levels (first column) must be from 0 to {depth - 2}, got values from "
            f"{rows[:, 0].min()} to {rows[:, 0].max()}"
        )
    return out


def _meeting_rules(grammar: Grammar, level: int, banned: NDArray[np.bool_]) -> RuleTable:
    """A[r, r_1, …, r_s] = Π_side p(r_side | symbol there, not banned) of one level."""
    upper, lower = grammar.table(level), grammar.table(level + 1)
    allowed = _meeting(upper, lower) & ~banned
    law = np.where(allowed, lower.probability, 0.0)
    total = law.sum(axis=2)
    if not (total > 0).all():
        rule, side = (int(i) for i in np.argwhere(total <= 0)[0])
        raise GrammarError(
            f"bans leave rule {rule} of level {level} no child rule on side {side}; take one back"
        )
    touched = banned.any(axis=2)
    law[touched] /= total[touched][:, None]  # others are normalised already, to the last bit
    choices = [[np.flatnonzero(side) for side in rule] for rule in law > 0]
    size = sum(math.prod(len(c) for c in rule) for rule in choices)
    if size > _MAX_RULES:
        raise GrammarError(
            f"the grammar on rule states would have {size} rules at level {level}, more than "
            f"{_MAX_RULES}; use a smaller alphabet or fewer rules"
        )
    parents, children, probability = [], [], []
    for r, sides in enumerate(choices):
        grid = _tuples(sides)
        parents.append(np.full(len(grid), r))
        children.append(grid)
        probability.append(law[r, np.arange(len(sides)), grid].prod(axis=1))
    return RuleTable.from_rules(
        upper.n_rules, lower.n_rules, np.concatenate(parents), np.concatenate(children),
        np.concatenate(probability),
    )  # fmt: skip


def _tuples(sides: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """All combinations of one entry of each array, shape (n, len(sides))."""
    grids = np.meshgrid(*sides, indexing="ij")
    return np.stack([g.ravel() for g in grids], axis=1)
