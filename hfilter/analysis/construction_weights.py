"""The weights of the constructed transformer, block by block, as NumPy arrays in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from hfilter.analysis.construction_plan import Plan

    Array = NDArray[np.float64]
    Columns = NDArray[np.int64]

__all__ = ["Block", "block", "embedding", "positions", "readout"]


@dataclass(frozen=True, eq=False)
class Block:
    """Weights of one layer; every bias is zero.

    Attributes
    ----------
    query, key : ndarray, shape (n_heads, d_key, d_model)
    value : ndarray, shape (n_heads, d_model / n_heads, d_model)
    out : ndarray, shape (d_model, d_model)
    gate, up : ndarray, shape (d_feedforward, d_model)
    down : ndarray, shape (d_model, d_feedforward)
    """

    query: Array
    key: Array
    value: Array
    out: Array
    gate: Array
    up: Array
    down: Array


def embedding(plan: Plan) -> Array:
    """(q + 1, d): a symbol's u_0 is one-hot, the mask's (or start's) all ones."""
    out = np.zeros((plan.vocab_size + 1, plan.d_model))
    out[:-1, plan.up(0)] = np.eye(plan.vocab_size)
    out[-1, plan.up(0)] = 1.0
    return out


def positions(plan: Plan) -> Array:
    """(L, d): R_0 = identity, and the addresses."""
    out = np.zeros((plan.n_leaves, plan.d_model))
    out[:, plan.rest(0).diagonal()] = 1.0
    leaves = np.arange(plan.n_leaves)
    for level in range(plan.depth):
        bit = (leaves >> (plan.depth - 1 - level)) & 1
        size = plan.magnitudes[level]
        out[leaves, plan.address[level, 1 - bit]] = -size
        if plan.causal:  # position j carries leaf j - 1; position 0 no leaf: closed on both sides
            out[leaves[1:], plan.carrier_address[level, 1 - bit[:-1]]] = -size
            out[0, plan.carrier_address[level]] = -size
    return out


def readout(plan: Plan) -> Array:
    """(n_outputs, d): sums over the root symbol, weighted by its prior."""
    prior, top = plan.model.root_prior, plan.depth
    if plan.task == "root":
        out = np.zeros((len(prior), plan.d_model))
        out[np.arange(len(prior)), plan.up(top)] = prior
    else:
        out = np.zeros((plan.vocab_size, plan.d_model))
        out[np.arange(plan.vocab_size), plan.rest(top)] = prior[:, None]
    return out


def block(plan: Plan, m: int, gap: float) -> Block:
    """Layer m - 1, which makes the messages of height m from those of height m - 1."""
    units = _causal_units(plan, m) if plan.causal else _units(plan, m)
    query, key = _scores(plan, m, gap)
    width = plan.d_model // plan.n_heads
    value = np.zeros((plan.n_heads, width, plan.d_model))
    out = np.zeros((plan.d_model, plan.n_heads, width))
    source = plan.up(m - 1)
    buffers = [plan.sibling(m), plan.sibling_up(m)] if plan.causal else [plan.sibling(m)]
    for head, buffer in enumerate(buffers):
        rows = np.arange(len(buffer))
        value[head, rows, source[: len(buffer)]] = 1.0
        out[buffer, head, rows] = 1.0
    arrays = (query, key, value, out.reshape(plan.d_model, -1))
    return Block(*arrays, *units.matrices(plan.d_feedforward, plan.d_model))


def _scores(plan: Plan, m: int, gap: float) -> tuple[Array, Array]:
    """Query and key maps: one feature per level, +1 in a left child and -1 in a right one.

    Products of features and gains are integers times a power of two, so that equal scores are
    equal in every precision and order of summation.
    """
    level, depth = plan.depth - m, plan.depth  # the two siblings' common parent is at this level
    gain = 2.0 ** math.ceil(math.log2(0.5 * gap * math.sqrt(depth)))
    query = np.zeros((plan.n_heads, depth, plan.d_model))
    key = np.zeros_like(query)
    for head in range(plan.n_heads):
        address = plan.carrier_address if head == 1 else plan.address
        for e in range(depth):
            (left, right), unit = address[e], 1.0 / plan.magnitudes[e]
            key[head, e, left], key[head, e, right] = unit, -unit
            own = gain  # the same side as the query's own
            if not plan.causal:
                own = gain * (e < level) - gain * (e == level)
            elif head == 1:  # the block that ends where the left sibling of mine ends
                own = gain - 2 * gain * (e == level)
            elif e > level:  # the start of my own block: left children all the way down
                query[head, e, address[e]] = -gain * unit
                continue
            query[head, e, left], query[head, e, right] = own * unit, -own * unit
    return query, key


class _Units:
    """Hidden units of a gated feed-forward block: down * (relu(gate . h) * (up . h))."""

    def __init__(self) -> None:
        self.rows: tuple[list[Mapping[int, float]], ...] = ([], [], [])

    def add(
        self,
        gate: Mapping[int, float],
        sources: Iterable[Mapping[int, float]],
        targets: Iterable[Mapping[int, float]],
    ) -> None:
        """One unit per source and target, all behind the same gate."""
        for up, down in zip(sources, targets, strict=True):
            for rows, row in zip(self.rows, (gate, up, down), strict=True):
                rows.append(row)

    def matrices(self, n: int, d: int) -> tuple[Array, Array, Array]:
        gate, up, down = np.zeros((n, d)), np.zeros((n, d)), np.zeros((n, d))
        for matrix, rows in zip((gate, up, down), self.rows, strict=True):
            for i, row in enumerate(rows):
                matrix[i, list(row)] = list(row.values())
        return gate, up, np.ascontiguousarray(down.T)


def _one(column: int, weight: float = 1.0) -> dict[int, float]:
    return {int(column): float(weight)}


def _mixed(columns: Columns, weights: Array) -> dict[int, float]:
    return {int(c): float(w) for c, w in zip(columns, weights, strict=True) if w}


def _carried(plan: Plan, m: int) -> Columns:
    """Columns (w, 1 + q) of what every position updates: u_m and R_m side by side."""
    return np.concatenate([plan.up(m)[:, None], plan.rest(m)], axis=1)


def _shut(plan: Plan, m: int, address: Columns, sides: Mapping[int, int]) -> dict[int, float]:
    """What closes a gate of layer m - 1 except where the address has these sides (level: 0, 1).

    No message exceeds one, scaled 2**E: twice that closes any gate, and an open gate adds exact
    zeros only, whatever the scale.
    """
    closing = 2.0 ** (plan.exponents[m - 1] + 1)
    return {int(address[e, side]): closing / plan.magnitudes[e] for e, side in sides.items()}


def _scale(plan: Plan, m: int) -> float:
    """Of the products of two messages of height m - 1, which make those of height m."""
    return math.ldexp(1.0, plan.exponents[m] - 2 * plan.exponents[m - 1])


def _first(plan: Plan, m: int) -> dict[int, float]:
    """A gate open in left children as far as by a message of all ones, closed in right ones."""
    level = plan.depth - m
    ones = 2.0 ** plan.exponents[m - 1] / plan.magnitudes[level]
    return _one(plan.address[level, 1], -ones)


def _pairs(plan: Plan, level: int) -> Iterable[tuple[int, int, list[tuple[int, float]]]]:
    """Pairs of children with their parents and probabilities: the rules, read from below."""
    table = plan.model.grammar.table(level)
    parents = np.repeat(np.arange(table.n_parents), np.diff(table.first))
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for a, (b, c), p in zip(parents, table.children, table.probability, strict=True):
        found.setdefault((int(b), int(c)), []).append((int(a), float(p)))
    for (b, c), above in sorted(found.items()):
        yield b, c, above


def _units(plan: Plan, m: int) -> _Units:
    """u_m and R_m of every position from its own u_{m-1}, R_{m-1} and its sibling's u_{m-1}."""
    units, level, k = _Units(), plan.depth - m, plan.filter_level
    sibling, old, new = plan.sibling(m), _carried(plan, m - 1), _carried(plan, m)
    scale = _scale(plan, m)
    sources = [[_one(c) for c in row] for row in old]
    targets = [[_one(c, scale) for c in row] for row in new]
    if level >= k:
        for b, c, above in _pairs(plan, level):
            for side, (own, other) in enumerate(((b, c), (c, b))):
                gate = _one(sibling[other]) | _shut(plan, m, plan.address, {level: side})
                sums = [{int(new[a, t]): p * scale for a, p in above} for t in range(new.shape[1])]
                units.add(gate, sources[own], sums)
    elif level == k - 1:
        for node in range(2**k):
            closed = _shut(plan, m, plan.address, plan.bits(node, k))
            mine, beside = plan.model.channel(node), plan.model.channel(node ^ 1)
            for a in range(len(new)):
                mixed = [_mixed(column, mine[a]) for column in old.T]
                units.add(_mixed(sibling, beside[a]) | closed, mixed, targets[a])
    else:  # above the filter level the tree copies the root's symbol
        for a in range(len(new)):
            units.add(_one(sibling[a]), sources[a], targets[a])
    return units


def _causal_units(plan: Plan, m: int) -> _Units:
    """The same with two roles per position: carrier of the block that ends, predictor of the next.

    Carriers make u_m where a block of height m ends, and zero elsewhere. Predictors make R_m with
    the sibling's message in right children, and with all ones in left ones, whose sibling is yet
    to come.
    """
    units, level, k = _Units(), plan.depth - m, plan.filter_level
    scale = _scale(plan, m)
    old, new = plan.rest(m - 1), plan.rest(m)
    read, carried, buffer = plan.sibling(m), plan.up(m - 1), plan.sibling_up(m)
    made = plan.up(m) if m < plan.depth else np.empty(0, np.int64)
    ended = _shut(plan, m, plan.carrier_address, dict.fromkeys(range(level, plan.depth), 1))
    first, second = _first(plan, m), _shut(plan, m, plan.address, {level: 1})
    sources = [[_one(c) for c in row] for row in old]
    targets = [[_one(c, scale) for c in row] for row in new]
    if level >= k:
        for b, c, above in _pairs(plan, level):
            sums = [{int(new[a, x]): p * scale for a, p in above} for x in range(new.shape[1])]
            units.add(_one(read[b]) | second, sources[c], sums)
            if len(made):
                up = [{int(made[a]): p * scale for a, p in above}]
                units.add(_one(buffer[b]) | ended, [_one(carried[c])], up)
        law = plan.model.grammar.table(level).marginal(0)
        for b, row in enumerate(sources):
            units.add(first, row, [_mixed(column, law[:, b] * scale) for column in new.T])
    elif level == k - 1:
        _causal_star(plan, units, m)
    else:
        for a in range(len(new)):
            units.add(_one(read[a]) | second, sources[a], targets[a])
            units.add(first, sources[a], targets[a])
            if len(made):
                up = [_one(made[a], scale)]
                units.add(_one(buffer[a]) | ended, [_one(carried[a])], up)
    return units


def _causal_star(plan: Plan, units: _Units, m: int) -> None:
    """The block that goes from the filter level to the root: each pair of nodes has its channels."""
    k, level = plan.filter_level, plan.depth - m
    scale = _scale(plan, m)
    old, new = plan.rest(m - 1), plan.rest(m)
    read, carried, buffer = plan.sibling(m), plan.up(m - 1), plan.sibling_up(m)
    below = dict.fromkeys(range(k, plan.depth), 1)
    for node in range(2**k):
        own, branches = plan.model.channel(node), plan.bits(node, k)
        closed = _shut(plan, m, plan.address, branches)
        for a in range(len(new)):
            targets = [_one(c, scale) for c in new[a]]
            mixed = [_mixed(column, own[a]) for column in old.T]
            if node % 2 == 0:
                above = {e: side for e, side in branches.items() if e != level}
                units.add(_first(plan, m) | _shut(plan, m, plan.address, above), mixed, targets)
                continue
            other = plan.model.channel(node - 1)[a]
            units.add(_mixed(read, other) | closed, mixed, targets)
            if m < plan.depth:
                up, down = _mixed(carried, own[a]), _one(plan.up(m)[a], scale)
                ended = _shut(plan, m, plan.carrier_address, branches | below)
                units.add(_mixed(buffer, other) | ended, [up], [down])
