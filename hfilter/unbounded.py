"""The same answers in numbers whose range has no end, for the rare rows that need them.

Kernels work with ordinary floats and report rows whose evidence contradicts itself by more than the
exponent range (fields of thousands of nats against the grammar). Those rows come here: NumPy, double
precision, messages of hfilter.messages. No range is too wide, and a zero stays a zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evidence import Evidence, Outputs, Trees
from .messages import (
    children,
    downward,
    from_root,
    leaf_messages,
    root_weights,
    star_downward,
    star_pairs,
    star_rest,
    star_upward,
    terms_by_parent,
    upward,
)
from .orders import Rules, plan
from .philox import HALF, MASK32, philox4x32
from .tree import TreeStructure
from .wide import Wide, chunks, known, log_sum, normalise, ordinary, times, wide

__all__ = ["choose_unbounded", "infer_unbounded"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

_BLOCK = 1 << 22  # numbers held at a time, roughly
_TREES = 1 << 20  # symbols of trees held at a time, roughly
_PURPOSE, _PURPOSE_STAR = 2, 3  # streams of Philox, as in hfilter.choosing


# ------------------------------------------------------------------------------------- inference


def infer_unbounded(tree: TreeStructure, evidence: Evidence, out: Outputs, n: int) -> None:
    """Fill `out` for n rows of evidence, in blocks of bounded memory."""
    cost = 8 * tree.n_leaves * max(tree.alphabets) + (
        tree.n_counts if out.counts is not None else 0
    )
    if out.star_pairs is not None:
        cost += 2 * tree.channels.size
    rows = max(1, _BLOCK // cost)
    for begin in range(0, n, rows):
        part = slice(begin, min(begin + rows, n))
        _block(tree, evidence.rows(part), out.rows(part))


def _block(tree: TreeStructure, evidence: Evidence, out: Outputs) -> None:
    k, window, rules = tree.filter_level, evidence.window, plan(tree)
    leaves, total = leaf_messages(tree, evidence)
    nu, taken = upward(tree, rules, leaves, stop=window)
    total = total + taken
    m = None
    if k > window:
        m, taken = star_upward(tree, nu[k])
        total = total + taken
    if window == 0:
        root = root_weights(tree, nu[k], m)
        if out.log_evidence is not None:
            out.log_evidence[:] = total + log_sum(root, 0)
        if out.root is not None:
            out.root[:] = normalise(root, 0).T

    wanted = [d for d, belief in enumerate(out.beliefs) if belief is not None]
    deepest = tree.depth if out.leave_one_out is not None else max(wanted, default=0)
    if deepest == 0 and out.counts is None and out.star_pairs is None:
        return
    top = max(k, window)
    mu = _top_messages(tree, evidence, nu, m, out, len(total))
    if out.counts is not None:
        out.counts[:] = 0
    for d in range(top, tree.depth + 1):
        belief = out.beliefs[d]
        if belief is not None and d:
            belief[:] = np.moveaxis(normalise(times(nu[d], mu), 1), -1, 0)
        if d == tree.depth:
            break
        if out.counts is not None:
            first = tree.first_counts[d]
            uses = out.counts[:, first : first + rules[d].table.n_rules]
            uses += _uses(tree, rules[d], mu, nu[d + 1]).T
        if d >= deepest and (out.counts is None or d + 1 == tree.depth):
            break
        mu, _ = downward(tree, rules[d], mu, nu[d + 1], causal=evidence.causal)
    if out.leave_one_out is not None:
        out.leave_one_out[:] = np.moveaxis(normalise(mu, 1), -1, 0)


def _top_messages(
    tree: TreeStructure, evidence: Evidence, nu: dict[int, Wide], m: Wide | None, out: Outputs, rows: int
) -> Wide:  # fmt: skip
    """Messages mu to the first level that has any: the filter level, or a window's tops below it."""
    k, window = tree.filter_level, evidence.window
    if m is not None:
        rest = star_rest(tree, m, evidence.causal, window)
        if out.star_pairs is not None:
            out.star_pairs[:] = np.moveaxis(star_pairs(tree, rest, nu[k]), -1, 0)
        return star_downward(tree, rest)[0]
    if window:
        laws = np.repeat(tree.node_laws(window)[:, :, None], rows, axis=2)
        return known(laws, tree.arity)
    return from_root(tree, None, rows, False)[0]


def _uses(tree: TreeStructure, rules: Rules, mu: Wide, below: Wide) -> Array:
    """Posterior probability of each rule, summed over the nodes of a level, (n_rules, rows)."""
    rows, items = mu.value.shape[-1], rules.by_parent
    listed = items.items < rules.table.n_rules  # the others are padding
    total, messages = np.zeros((rules.table.n_rules, rows)), children(tree, below)
    for part in chunks(len(mu.value), len(items.items) * rows):
        linear, _, top = terms_by_parent(rules, [x.at(part) for x in messages])
        said = Wide(linear, None) if top is None else wide(linear, items.spread(top))
        share = normalise(times(said, mu.at(part).take(items.group)), 1)
        total[items.items[listed]] += share.sum(axis=0)[listed]
    return total


# ----------------------------------------------------------------------------------- whole trees


def choose_unbounded(tree: TreeStructure, evidence: Evidence, trees: Trees, n: int) -> None:
    """Fill `trees` for n rows of evidence, one at a time."""
    for row in range(n):
        _choose_row(tree, evidence.rows(slice(row, row + 1)), trees.rows(row, row + 1))


def _choose_row(tree: TreeStructure, evidence: Evidence, trees: Trees) -> None:
    k, rules, best = tree.filter_level, plan(tree), trees.n_samples == 0
    leaves, total = leaf_messages(tree, evidence)
    nu, taken = upward(tree, rules, leaves, best=best)
    total, m = total + taken, None
    if k:
        m, taken = star_upward(tree, nu[k], best)
        total = total + taken
    root = root_weights(tree, nu[k], m)
    for out in (trees.log_evidence, trees.log_weight):
        if out is not None:
            out[:] = total + log_sum(root, 0, best)
    step = max(1, _TREES // (tree.n_leaves * max(tree.alphabets)))
    for begin in range(0, trees.per_row, step):
        count = min(step, trees.per_row - begin)
        _choose_trees(tree, rules, nu, root, _Stream(trees, begin, count), begin, trees)


class _Stream:
    """Random numbers of consecutive trees, or none for the most probable one."""

    def __init__(self, trees: Trees, begin: int, count: int) -> None:
        self.best, self.count, self.seed = trees.n_samples == 0, count, trees.seed
        first = np.uint64((trees.start + begin) % 2**64)
        self.index = first + np.arange(count, dtype=np.uint64)  # beyond 2**64 from the start again

    def pick(self, weights: Array, purpose: int, words: Any) -> Index:
        """Of weights (trees, nodes, entries) one entry of each, (trees, nodes): the word of node i is words[i].

        The first whose cumulated weight exceeds a random share of the sum, or the first of the largest.
        """
        if self.best:
            return np.asarray(weights.argmax(axis=-1))
        cumulated = np.cumsum(weights, axis=-1)
        threshold = self._uniform(purpose, np.asarray(words)) * cumulated[..., -1]
        passed = (cumulated <= threshold[..., None]).sum(axis=-1)
        return np.asarray(np.minimum(passed, weights.shape[-1] - 1))

    def _uniform(self, purpose: int, words: Any) -> Array:
        """Words of the stream as numbers between 0 and 1, (trees, nodes)."""
        index, block = self.index[:, None], (words.astype(np.uint64) >> np.uint64(2))[None]
        key = (np.uint64(self.seed) & MASK32, np.uint64(self.seed) >> HALF)
        drawn = philox4x32(index & MASK32, index >> HALF, block, np.uint64(purpose), *key)
        word = np.choose(words[None] & 3, drawn)
        return np.asarray((word.astype(np.float64) + 0.5) / 2.0**32)


def _choose_trees(
    tree: TreeStructure, rules: dict[int, Rules], nu: dict[int, Wide], root: Wide, stream: _Stream,
    begin: int, trees: Trees,
) -> None:  # fmt: skip
    """Some of a row's trees, from its upward messages and its root's weights."""
    k, s = tree.filter_level, tree.arity
    weights = np.repeat(ordinary(root, 0)[0].T[None], stream.count, axis=0)

    def store(d: int, symbols: Index) -> None:
        out = trees.levels[d]
        if out is not None:
            out[0, begin : begin + stream.count] = symbols

    symbols = stream.pick(weights, _PURPOSE, np.zeros(1, np.intp))
    store(0, symbols)
    if k:
        symbols = _pick_star(tree, nu[k], symbols[:, 0], stream)
        store(k, symbols)
    for d in range(k, tree.depth):
        table, word = rules[d].table, 1 + (s**d - 1) // (s - 1)
        below = children(tree, nu[d + 1])
        padded, chosen = _by_parent(rules[d]), np.empty(symbols.shape, np.intp)
        for part in chunks(s**d, stream.count * padded.shape[1] + len(rules[d].by_parent.items)):
            linear, _, _ = terms_by_parent(rules[d], [x.at(part) for x in below])
            weights = np.concatenate([linear[..., 0], np.zeros((len(linear), 1))], axis=1)
            nodes, parents = np.arange(len(linear))[None, :, None], symbols[:, part]
            words = word + np.arange(part.start, part.stop)
            place = stream.pick(weights[nodes, padded[parents]], _PURPOSE, words)
            last = table.first[parents + 1] - table.first[parents] - 1
            chosen[:, part] = table.first[parents] + np.minimum(place, last)
        symbols = table.children[chosen].reshape(stream.count, -1).astype(np.intp)
        store(d + 1, symbols)


def _by_parent(rules: Rules) -> Index:
    """Where the rules of each parent stand among the items; after the last, one past the items' end."""
    sizes, starts = np.diff(rules.table.first)[:, None], rules.by_parent.starts[:, None]
    place = np.arange(int(sizes.max()))
    return np.where(place < sizes, starts + place, len(rules.by_parent.items))


def _pick_star(tree: TreeStructure, nu: Wide, roots: Index, stream: _Stream) -> Index:
    """Symbols of the filter level's nodes given the root's, (trees, nodes)."""
    channels, symbols = tree.channels, np.empty((stream.count, len(tree.channels)), np.intp)
    for part in chunks(len(channels), stream.count * channels[0].size):
        terms = times(known(channels[part], tree.arity), Wide(*(_one_row(x) for x in nu.at(part))))
        linear, _ = ordinary(terms, 2)
        weights = np.moveaxis(linear[:, roots], 0, 1)
        words = np.arange(part.start, part.stop)
        symbols[:, part] = stream.pick(weights, _PURPOSE_STAR, words)
    return symbols


def _one_row(x: Array | None) -> Any:
    """(nodes, symbols, 1) as (nodes, 1, symbols)."""
    return None if x is None else np.moveaxis(x, 1, 2)
