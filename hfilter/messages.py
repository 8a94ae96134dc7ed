"""Messages of one block of rows, upward and downward, in numbers of any range (hfilter.wide).

Rows are the last axis of every array, nodes of a level the first: ``(nodes, symbols, rows)``. One
NumPy call works on all rows of a block and on many nodes. Words as in hfilter.reference: `nu` upward
message, `mu` downward message.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evidence import Evidence
from .orders import Rules
from .tree import TreeStructure
from .wide import (
    Wide,
    chunks,
    expand,
    finite,
    join,
    known,
    normalise,
    ordinary,
    ratio,
    settle,
    shifted,
    times,
    wide,
)

__all__ = [
    "children",
    "downward",
    "from_root",
    "leaf_messages",
    "root_weights",
    "star_downward",
    "star_kernels",
    "star_pairs",
    "star_rest",
    "star_upward",
    "terms_by_parent",
    "upward",
]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_LN2 = math.log(2.0)
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")  # its product with a whole number below 2**21 is exact
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")


def leaf_messages(tree: TreeStructure, evidence: Evidence) -> tuple[Wide, Array]:
    """The leaves' messages (n_leaves, q, rows), and the log (rows,) of a factor taken out of them."""
    if evidence.log_fields is not None:
        h = np.moveaxis(np.asarray(evidence.log_fields, np.float64), 0, -1)
        top = finite(h.max(axis=1, keepdims=True))
        h = h - top
        possible = h > -np.inf
        h = np.where(possible, h, 0.0)
        whole = np.rint(h * _LOG2_E)
        # Beyond 2**53 nats the rest is rounding error alone.
        rest = np.clip(h - whole * _LN2_HIGH - whole * _LN2_LOW, -0.5, 0.5)
        value = np.where(possible, np.exp(rest), 0.0)
        leaves, powers = settle(value, whole, tree.arity)
        return leaves, top.sum(axis=(0, 1)) + _LN2 * powers.sum(axis=0)
    assert evidence.tokens is not None
    tokens = evidence.tokens.T
    seen = tokens[:, None] == np.arange(tree.vocab_size)[:, None]
    hidden = tokens >= tree.vocab_size
    if evidence.mask is not None:
        hidden = hidden | (evidence.mask != 0).T
    value = np.where(seen | hidden[:, None], 1.0, 0.0)
    return Wide(value, None), np.zeros(tokens.shape[1])


def terms_by_parent(rules: Rules, below: list[Wide]) -> tuple[Array, Array, Array | None]:
    """All rules' shares in their parents' messages: (nodes, items, rows), aligned by parent.

    `below` are the messages of the children, a place each, (nodes, symbols, rows). Also the sums over
    each parent's rules, and the power they have in common.
    """
    term = rules.p
    for symbols, message in zip(rules.symbols, below, strict=True):
        term = times(term, message.take(symbols))
    linear, top = term.value, None
    if term.power is not None:
        top = finite(rules.by_parent.reduce(np.maximum, term.power))
        linear = shifted(linear, term.power - rules.by_parent.spread(top))
    return linear, rules.by_parent.reduce(np.add, linear), top


def children(tree: TreeStructure, below: Wide) -> list[Wide]:
    """A level's messages by place: for each, those of all nodes of the level above."""
    return [below.at(slice(r, None, tree.arity)) for r in range(tree.arity)]


def upward(
    tree: TreeStructure, rules: dict[int, Rules], leaves: Wide, stop: int = 0, best: bool = False
) -> tuple[dict[int, Wide], Array]:
    """Messages nu of the levels from the filter level, or `stop` below it, to the leaves.

    Arrays (nodes, symbols, rows). Also the log (rows,) of a factor taken out of them. If `best`, each
    is the largest of the rules' terms instead of their sum (max-product).
    """
    nu, taken = {tree.depth: leaves}, np.zeros(leaves.value.shape[-1])
    for d in range(tree.depth - 1, max(tree.filter_level, stop) - 1, -1):
        below, parts = children(tree, nu[d + 1]), []
        for part in chunks(tree.n_nodes(d), len(rules[d].by_parent.items) * len(taken)):
            linear, total, top = terms_by_parent(rules[d], [x.at(part) for x in below])
            if best:
                total = rules[d].by_parent.reduce(np.maximum, linear)
            message, powers = settle(total, top, tree.arity)
            parts.append(message)
            taken += powers.sum(axis=0)
        nu[d] = join(parts)
    return nu, _LN2 * taken


def downward(
    tree: TreeStructure,
    rules: Rules,
    mu: Wide,
    below: Wide,
    state: Array | None = None,
    causal: bool = False,
) -> tuple[Wide, Array | None]:
    """Messages mu to the next level, of all evidence but that below the node, from those `mu` to this.

    `below` are the next level's messages nu; if `causal`, only those of siblings to the left count.
    Also the next `state`: from (nodes, states, symbols, rows), laws of something above given the symbol
    at the node and all evidence but that below it, the same for the children.
    """
    s, q, messages = tree.arity, rules.table.n_symbols, children(tree, below)
    n, rows, states, parts = len(mu.value), mu.value.shape[-1], 0, []
    new: Array | None = None
    if state is not None:
        states = state.shape[1]
        new = np.empty((n, s, states, q, rows))
    for part in chunks(n, max(len(rules.by_parent.items), states * q) * rows):
        above, here = mu.at(part), [x.at(part) for x in messages]
        placed = []
        for r, place in enumerate(rules.places):
            pairs, total, top = place.terms(above, here, causal)
            placed.append(settle(total, top, s)[0])
            if new is not None:
                # P(parent | child, all evidence but that below the child)
                back = ratio(pairs, place.by_symbol.spread(total))
                assert state is not None
                new[part, r] = place.pull(state[part], back)
        out = join([x.reshape(len(x.value), 1, q, rows) for x in placed])
        parts.append(_interleaved(out, s))
    return join(parts), None if new is None else new.reshape(n * s, states, q, rows)


def _interleaved(x: Wide, s: int) -> Wide:
    """Messages (s * nodes, 1, symbols, rows), place by place, in the order of the children."""

    def turn(y: Array) -> Array:
        y = y.reshape(s, -1, *y.shape[2:])
        return np.swapaxes(y, 0, 1).reshape(-1, *y.shape[2:])

    return Wide(turn(x.value), None if x.power is None else turn(x.power))


# ---------------------------------------------------------------------------------- filtered root


def _products(x: Wide, s: int) -> list[tuple[Array, Array]]:
    """Values and powers of x, of products over s neighbours, over s of those, … to a single one."""
    exact = wide(x.value, 0.0 if x.power is None else x.power)
    assert exact.power is not None
    levels = [(exact.value, exact.power)]
    while len(levels[-1][0]) > 1:
        value, power = (y.reshape(-1, s, *y.shape[1:]) for y in levels[-1])
        product = wide(value.prod(axis=1), power.sum(axis=1))
        assert product.power is not None
        levels.append((product.value, product.power))
    return levels


def star_upward(tree: TreeStructure, nu: Wide, best: bool = False) -> tuple[Wide, Array]:
    """m_i(a) = sum_c P_i[a, c] nu_i(c) (HF Eq. 3), (nodes, classes, rows).

    Also the log (rows,) of a factor taken out of them. If `best`, the largest term instead of the sum.
    """
    n, qk, rows = nu.value.shape
    parts, taken = [], np.zeros(rows)
    for part in chunks(n, tree.n_classes * qk * rows):
        linear, top = ordinary(_star_terms(tree, nu, part), 2)
        common = None if top is None else top[:, :, 0]
        total = linear.max(axis=2) if best else linear.sum(axis=2)
        message, powers = settle(total, common, tree.arity)
        parts.append(message)
        taken += powers.sum(axis=0)
    return join(parts), _LN2 * taken


def _star_terms(tree: TreeStructure, nu: Wide, nodes: Any) -> Wide:
    """P_i[a, c] nu_i(c) of some nodes, (nodes, classes, symbols, rows)."""
    return times(_channels(tree, nodes), expand(nu.at(nodes), 1))


def _channels(tree: TreeStructure, nodes: Any) -> Wide:
    return known(tree.channels[nodes][..., None], tree.arity)


def star_kernels(tree: TreeStructure, nu: Wide, nodes: Index) -> Array:
    """P(x_i | root, evidence) of some nodes of the filter level, (nodes, classes, symbols, rows)."""
    linear, _ = ordinary(_star_terms(tree, nu, nodes), 2)
    return ratio(linear, linear.sum(axis=2, keepdims=True))


def root_weights(tree: TreeStructure, nu: Wide, m: Wide | None) -> Wide:
    """Prior times all messages to the root, (classes, rows): those of `star_upward`, or nu of the root."""
    prior = wide(tree.root_prior[:, None])
    if m is None:
        return times(nu.at(0), prior)
    value, power = _products(m, tree.arity)[-1]
    return times(Wide(value[0], power[0]), prior)


def from_root(
    tree: TreeStructure, m: Wide | None, rows: int, with_state: bool
) -> tuple[Wide, Array | None]:
    """Messages mu to the nodes of the filter level, and the law of the root given each one's symbol."""
    if m is not None:
        return star_downward(tree, star_rest(tree, m), with_state)
    mu = wide(np.repeat(tree.root_prior[None, :, None], rows, axis=2))
    certain = np.eye(tree.n_classes)[None, :, :, None]
    return mu, np.repeat(certain, rows, axis=3) if with_state else None


def star_rest(tree: TreeStructure, m: Wide, causal: bool = False, window: int = 0) -> Wide:
    """Prior times what the other nodes of the filter level say of the root, (nodes, classes, rows).

    The others are those below the same node of level `window`, and to the left alone if `causal`. No
    factor is divided out: products over all nodes but one are put together from products over groups of
    neighbours, groups of those, and so on.
    """
    s, rows = tree.arity, m.value.shape[-1]
    prior = np.repeat(tree.root_prior[:, None], rows, axis=1)
    rest = wide(np.repeat(prior[None], s**window, axis=0))
    for values, powers in reversed(_products(m, s)[: tree.filter_level - window]):
        value, power = (y.reshape(-1, s, *y.shape[1:]) for y in (values, powers))
        others = []
        for r in range(s):
            kept = [i for i in range(s) if i < r or (i > r and not causal)]
            product = Wide(value[:, kept].prod(axis=1), power[:, kept].sum(axis=1))
            product = times(product, rest)
            others.append(wide(product.value, product.power))
        rest = _interleaved(join([expand(x, 1) for x in others]), s)
    return rest


def star_downward(
    tree: TreeStructure, rest: Wide, with_state: bool = False
) -> tuple[Wide, Array | None]:
    """Messages mu to the filter level, and the law of the root given each node's symbol.

    `rest` is what `star_rest` returns.
    """
    n, q0, rows = rest.value.shape
    qk, parts = tree.alphabets[tree.filter_level], []
    state = np.empty((n, q0, qk, rows)) if with_state else None
    for part in chunks(n, q0 * qk * rows):
        linear, top = ordinary(times(_channels(tree, part), expand(rest.at(part), 2)), 1)
        total = linear.sum(axis=1)
        parts.append(settle(total, None if top is None else top[:, 0], tree.arity)[0])
        if state is not None:
            state[part] = ratio(linear, total[:, None])
    return join(parts), state


def star_pairs(tree: TreeStructure, rest: Wide, nu: Wide) -> Array:
    """P(root, x_i | evidence) of every node of the filter level, (nodes, classes, symbols, rows)."""
    out = np.empty((*tree.channels.shape, nu.value.shape[-1]))
    for part in chunks(len(out), out[0].size):
        terms = times(_star_terms(tree, nu, part), expand(rest.at(part), 2))
        shape = terms.value.shape
        joint = normalise(terms.reshape(shape[0], -1, shape[-1]), 1)
        out[part] = joint.reshape(shape)
    return out
