"""The rules of a level in the orders that messages need: by parent, by the symbol at each place.

Rows are the last axis of every array, items (rules, pairs of symbols) the one before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rules import RuleTable
from .tree import TreeStructure
from .wide import Wide, finite, known, shifted, times

__all__ = ["Groups", "Place", "Rules", "plan"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

_SPARE = 64  # items that padding may add, besides as many as there are


class Groups:
    """Items put in order by the group that each belongs to.

    Groups are padded to one width with an item that is none (index: the number of items), unless
    their sizes are so unequal that this would cost more than it saves. No group is left empty.
    """

    def __init__(self, group: NDArray[Any], n_groups: int) -> None:
        n = len(group)
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group, minlength=n_groups)
        room = np.maximum(sizes, 1)
        self.width = int(room.max())
        if self.width * n_groups > 2 * n + _SPARE:
            self.width = 0  # ragged
        else:
            room = np.full(n_groups, self.width)
        self.starts = np.concatenate([[0], np.cumsum(room)[:-1]])
        self.group = np.repeat(np.arange(n_groups), room)
        self.items: Index = np.full(len(self.group), n, np.intp)
        place = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.items[self.starts[group[order]] + place] = order

    def reduce(self, operation: np.ufunc, x: Array) -> Array:
        """One number for each group, on axis 1."""
        if self.width == 1:
            return x
        if self.width:
            shape = (len(x), len(self.starts), self.width, *x.shape[2:])
            return np.asarray(operation.reduce(x.reshape(shape), axis=2))
        return np.asarray(operation.reduceat(x, self.starts, axis=1))

    def spread(self, x: Array) -> Array:
        """Each item its group's number, on axis 1."""
        return x if self.width == 1 else x.take(self.group, axis=1)


class Place:
    """The rules by the symbol at one place, and those of one symbol by their parent."""

    def __init__(self, table: RuleTable, place: int) -> None:
        self.place = place
        parents, symbols = table.parents.astype(np.intp), table.children[:, place].astype(np.intp)
        pairs, pair = np.unique(symbols * table.n_parents + parents, return_inverse=True)
        self.by_symbol = Groups(pairs // table.n_parents, table.n_symbols)
        listed = self.by_symbol.items
        position = np.empty(len(pairs) + 1, np.intp)
        position[listed] = np.arange(len(listed))
        self.by_pair = Groups(position[pair], len(listed))
        self.pair_parents: Index = np.append(pairs % table.n_parents, 0)[listed]
        rules = self.by_pair.items
        self.parents: Index = np.append(parents, 0)[rules]
        self.p = _rule_weights(table, rules)
        self.others: list[tuple[int, Index]] = [
            (r, np.append(table.children[:, r], 0)[rules].astype(np.intp))
            for r in range(table.arity)
            if r != place
        ]

    def terms(
        self, mu: Wide, below: list[Wide], causal: bool = False
    ) -> tuple[Array, Array, Array | None]:
        """Shares of the pairs (symbol, parent) in the symbols' messages, (nodes, items, rows).

        Also their sums over each symbol's parents, and the power they have in common. If `causal`,
        only siblings to the left have a say.
        """
        term = times(self.p, mu.take(self.parents))
        for r, symbols in self.others:
            if r < self.place or not causal:
                term = times(term, below[r].take(symbols))
        linear, top = term.value, None
        if term.power is not None:
            best = self.by_pair.reduce(np.maximum, term.power)
            top = finite(self.by_symbol.reduce(np.maximum, best))
            common = self.by_pair.spread(self.by_symbol.spread(top))
            linear = shifted(linear, term.power - common)
        pairs = self.by_pair.reduce(np.add, linear)
        return pairs, self.by_symbol.reduce(np.add, pairs), top

    def pull(self, state: Array, back: Array) -> Array:
        """new[:, x, b] = sum over parents c of state[:, x, c] * back[c, b]."""
        groups, back = self.by_symbol, back[:, None]
        if not groups.width:
            terms = state.take(self.pair_parents, axis=2) * back
            return np.asarray(np.add.reduceat(terms, groups.starts, axis=2))
        parents = self.pair_parents.reshape(-1, groups.width)
        back = back.reshape(len(state), 1, *parents.shape, -1)
        out = state.take(parents[:, 0], axis=2) * back[:, :, :, 0]
        for i in range(1, groups.width):
            out += state.take(parents[:, i], axis=2) * back[:, :, :, i]
        return np.asarray(out)


class Rules:
    """One level's table, put in the orders that the messages need."""

    def __init__(self, table: RuleTable) -> None:
        self.table = table
        self.by_parent = Groups(table.parents.astype(np.intp), table.n_parents)
        items = self.by_parent.items
        self.p = _rule_weights(table, items)
        self.symbols: list[Index] = [
            np.append(table.children[:, r], 0)[items].astype(np.intp) for r in range(table.arity)
        ]
        self.places = [Place(table, r) for r in range(table.arity)]


def _rule_weights(table: RuleTable, items: Index) -> Wide:
    return known(np.append(table.probability, 0.0)[items][None, :, None], table.arity)


def plan(tree: TreeStructure) -> dict[int, Rules]:
    """The rules of every level from the filter level on."""
    tables = {d: tree.grammar.table(d) for d in range(tree.filter_level, tree.depth)}
    made = {id(table): Rules(table) for table in {id(t): t for t in tables.values()}.values()}
    return {d: made[id(table)] for d, table in tables.items()}
