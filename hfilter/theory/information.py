"""Two leaves: their joint law through what ties them, and how much one says about the other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..checks import check_int
from ..compiled import ieee
from ..exact import TreeModel
from .law import Array, check_model, marginal, node_laws

__all__ = ["MutualInformation", "mutual_information", "pair_law"]

_BLOCK = 2**20  # entries of pair laws held at once: they then stay in the cache


def _path(node: int, steps: int, arity: int) -> list[int]:
    """The last `steps` branches on the way from the root to a node."""
    return [node // arity**step % arity for step in reversed(range(steps))]


@ieee()
def pair_law(model: TreeModel, i: int, j: int) -> Array:
    """Joint law of two leaves.

    Parameters
    ----------
    model : TreeModel
    i, j : int
        Leaves, 0 to n_leaves - 1.

    Returns
    -------
    ndarray of float64, shape (q, q)
        ``law[x, y]`` = P(x_i = x, x_j = y); diagonal for i = j.

    Notes
    -----
    Through the lowest common ancestor of the two leaves, or, where that lies above the filter level,
    through the root, given which they are independent. O(depth q³).

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.broadcast(2, 0.5), depth=2)
    >>> theory.pair_law(model, 0, 1).tolist()
    [[0.3125, 0.1875], [0.1875, 0.3125]]
    """
    check_model(model)
    last = model.n_leaves - 1
    i, j = check_int("i", i, 0, last), check_int("j", j, 0, last)
    s, depth, grammar = model.arity, model.depth, model.grammar
    one, two = _path(i, depth, s), _path(j, depth, s)
    apart = next((d for d in range(depth) if one[d] != two[d]), depth)
    tied = apart >= model.filter_level  # by their ancestor; otherwise by the root alone
    start = apart if tied else 0
    law = model.root_prior
    for d in range(start):
        law = law @ grammar.table(d).marginal(one[d])
    below = start
    tie = np.diag(law)
    if tied and apart < depth:
        tie = np.tensordot(law, marginal(grammar.table(apart), [one[apart], two[apart]]), axes=1)
        below = apart + 1
    if i == j:
        return tie
    for d in range(below, depth):
        table = grammar.table(d)
        tie = table.marginal(one[d]).T @ tie @ table.marginal(two[d])
    return tie


@dataclass(frozen=True, eq=False)
class MutualInformation:
    """Mutual information of two leaves in nats, averaged over pairs.

    Attributes
    ----------
    heights : ndarray of int, shape (depth,)
        Height of the lowest common ancestor above the leaves: 1 (siblings) to `depth` (the root).
    by_height : ndarray of float64, shape (depth,)
        Mean over the pairs of leaves with an ancestor of that height.
    pairs_by_height : ndarray of int, shape (depth,)
    distances : ndarray of int, shape (n_leaves - 1,)
        |i - j|, from 1.
    by_distance : ndarray of float64, shape (n_leaves - 1,)
    pairs_by_distance : ndarray of int, shape (n_leaves - 1,)
    """

    heights: np.ndarray
    by_height: Array
    pairs_by_height: np.ndarray
    distances: np.ndarray
    by_distance: Array
    pairs_by_distance: np.ndarray


def _information(laws: Array) -> Array:
    """Mutual information of joint laws on the last two axes.

    Term by term p ln(p/m) - p + m with m the product of the marginals: the sum is the same, and no
    term is negative, so that little information does not drown in the rounding of larger terms.
    """
    product = laws.sum(axis=-1, keepdims=True) * laws.sum(axis=-2, keepdims=True)
    excess = np.divide(laws - product, product, out=np.zeros_like(laws), where=product > 0)
    logs = np.log1p(excess, out=np.zeros_like(excess), where=excess > -1)
    return np.asarray((product * ((1 + excess) * logs - excess)).sum(axis=(-2, -1)))


def _channels(model: TreeModel, level: int) -> Array:
    """Law of each leaf of a subtree given its root on `level`, (arity**(depth - level), q_level, q)."""
    out = np.eye(model.alphabets[level])[None]
    for d in range(level, model.depth):
        table = model.grammar.table(d)
        steps = [out @ table.marginal(r) for r in range(model.arity)]
        out = np.stack(steps, axis=1).reshape(-1, out.shape[1], table.n_symbols)
    return out


class _Tally:
    """Sums over pairs by height and distance."""

    def __init__(self, model: TreeModel) -> None:
        self.sums = np.zeros((model.depth + 1, model.n_leaves))
        self.pairs = np.zeros((model.depth + 1, model.n_leaves), np.int64)

    def count(self, laws: Array, heights: np.ndarray, distances: np.ndarray) -> None:
        """Add pair laws (…, q, q); height and distance of each, or 0 for a pair that does not count."""
        found = _information(laws)
        length = self.sums.shape[1]
        code = np.broadcast_to(heights * length + distances, found.shape).ravel()
        self.sums += np.bincount(code, found.ravel(), self.sums.size).reshape(self.sums.shape)
        self.pairs += np.bincount(code, minlength=self.sums.size).reshape(self.sums.shape)

    def through_ancestors(self, height: int, ties: Array, channels: Array, gap: int) -> None:
        """Pairs of a leaf of one child and a leaf of another, `gap` leaves further, of ties (n, q', q')."""
        width, q = len(channels), channels.shape[2]
        away = gap + np.arange(width) - np.arange(width)[:, None]
        # (n, width q, q'): second leaf and first child
        ahead = np.moveaxis(channels, 1, 0).reshape(channels.shape[1], -1)
        n_ties = max(1, _BLOCK // (width * q) ** 2)
        n_rows = max(1, _BLOCK // (width * q * q))
        for some in range(0, len(ties), n_ties):
            forward = np.swapaxes(ties[some : some + n_ties] @ ahead, 1, 2)[:, None]
            for row in range(0, width, n_rows):
                part = channels[row : row + n_rows]
                laws = (forward @ part).reshape(len(forward), len(part), width, q, q)
                self.count(laws, np.array(height), away[row : row + n_rows])

    def through_root(self, prior: Array, channels: Array, arity: int, width: int) -> None:
        """Pairs of leaves of different nodes of the filter level, each with `width` leaves below."""
        length, classes, q = channels.shape
        weighted = channels * prior[:, None]
        n_rows = max(1, _BLOCK // (length * q * q))
        for row in range(0, length, n_rows):
            one = np.arange(row, min(row + n_rows, length))[:, None]
            two = np.arange(row + 1, length)
            if not len(two):
                break
            ahead = np.moveaxis(channels[two], 2, 1).reshape(-1, classes)
            laws = (ahead @ weighted[one[:, 0]]).reshape(len(one), len(two), q, q)
            heights, span = np.zeros((len(one), len(two)), np.int64), 1
            while span < length:
                heights += one // span != two // span
                span *= arity
            counted = (one // width != two // width) & (one < two)
            self.count(laws, heights * counted, (two - one) * counted)


@ieee()
def mutual_information(model: TreeModel) -> MutualInformation:
    """Mutual information of two leaves by height of their ancestor and by distance.

    Parameters
    ----------
    model : TreeModel
        Any filter level: what remains above the cut flows through the root.

    Returns
    -------
    MutualInformation

    Notes
    -----
    All pairs, from `pair_law` in blocks: O(L² q³) operations, less than a second at L = 1024 and q = 4.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> theory.mutual_information(model).by_height.round(4).tolist()[:1]
    [0.2994]
    """
    check_model(model)
    s, depth, k = model.arity, model.depth, model.filter_level
    tally = _Tally(model)
    laws = node_laws(model)
    for d in range(k, depth):
        table, channels = model.grammar.table(d), _channels(model, d + 1)
        for r, t in combinations(range(s), 2):
            ties = np.tensordot(laws[d], marginal(table, [r, t]), axes=1)
            tally.through_ancestors(depth - d, ties, channels, (t - r) * len(channels))
    if k:
        channels = _channels(model, k)
        from_root = (model.channels[:, None] @ channels).reshape(
            -1, model.n_classes, model.vocab_size
        )
        tally.through_root(model.root_prior, from_root, s, len(channels))
    sums, pairs = tally.sums[1:], tally.pairs[1:]  # row 0: pairs that do not count
    by_height, height_pairs = sums.sum(axis=1), pairs.sum(axis=1)
    by_distance, distance_pairs = sums.sum(axis=0)[1:], pairs.sum(axis=0)[1:]
    return MutualInformation(
        np.arange(1, depth + 1),
        by_height / height_pairs,
        height_pairs,
        np.arange(1, model.n_leaves),
        by_distance / distance_pairs,
        distance_pairs,
    )
