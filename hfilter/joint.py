"""Joint posteriors of pairs of nodes, and the root posterior under every single-site substitution.

Both walk the tree with conditional laws given evidence, which never leave the range of a float: the
messages that they are made of (hfilter.wide) may.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import allocate, as_numpy
from .compiled import ieee
from .errors import ArgumentError, DTypeError, ShapeError
from .evidence import Evidence, check_levels
from .messages import (
    children,
    downward,
    from_root,
    leaf_messages,
    root_weights,
    star_kernels,
    star_upward,
    terms_by_parent,
    upward,
)
from .orders import Rules, plan
from .tree import TreeStructure
from .wide import Wide, normalise, ordinary, ratio

__all__ = ["flip_table", "leaf_root_joint", "pair_beliefs"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

_BLOCK = 1 << 21  # numbers held at a time, roughly
_MOST_ROWS = 512  # measured: longer rows leave the cache, shorter ones cost calls


def _parts(n: int, cost: int) -> Iterator[slice]:
    """Rows of a call in blocks of bounded memory, a row being `cost` numbers."""
    step = min(max(1, _BLOCK // cost), _MOST_ROWS)
    for begin in range(0, n, step):
        yield slice(begin, min(begin + step, n))


def _n_rows(evidence: Evidence) -> int:
    given = evidence.tokens if evidence.log_fields is None else evidence.log_fields
    assert given is not None
    return len(given)


def _result(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    return allocate(shape, np.dtype(dtype))


# ------------------------------------------------------------------------- single substitutions


@ieee()
def flip_table(tree: TreeStructure, evidence: Evidence, dtype: Any = np.float64) -> NDArray[Any]:
    """The root's posterior under every substitution of one leaf.

    Element ``[i, j, a, b]`` is P(root = a | leaf j is b, all evidence of row i but that of leaf j).

    Parameters
    ----------
    tree : TreeStructure
    evidence : Evidence
        Checked, n rows.
    dtype : dtype
        Of the result; everything is computed in float64.

    Returns
    -------
    ndarray, shape (n, n_leaves, n_classes, q)
        Sums to 1 over the classes. NaN throughout a column ``[i, j, :, b]`` where the leaf's being b
        and the rest of the evidence are impossible together.

    Notes
    -----
    P(root | x_v, evidence outside v's subtree) is carried from each node v to its children, as a mean
    over their parent's symbols. The work is linear in the leaves: classes times rules a node. At
    filter level k the walk begins with P_v of HF Eq. 3 times the messages of the other nodes of level k.

    Examples
    --------
    >>> import hfilter, numpy as np
    >>> from hfilter.evidence import Evidence
    >>> tree = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
    >>> table = flip_table(tree, Evidence(np.array([[0, 1, 1, 0]])))
    >>> table[0, 3].tolist()  # the root is the parity of the leaves
    [[1.0, 0.0], [0.0, 1.0]]
    """
    shape = (_n_rows(evidence), tree.n_leaves, tree.n_classes, tree.vocab_size)
    out = _result(shape, dtype)
    for part, _, state in _from_outside(tree, evidence):
        with np.errstate(invalid="ignore"):
            out[part] = np.moveaxis(state / state.sum(axis=1, keepdims=True), -1, 0)
    return out


@ieee()
def leaf_root_joint(
    tree: TreeStructure, evidence: Evidence, dtype: Any = np.float64
) -> NDArray[Any]:
    """The joint law of the root and each leaf given the other leaves.

    Element ``[i, j, a, b]`` is P(root = a, leaf j is b | all evidence of row i but that of leaf j).

    Parameters
    ----------
    tree, evidence, dtype
        As in `flip_table`.

    Returns
    -------
    ndarray, shape (n, n_leaves, n_classes, q)
        Sums to 1 over both symbols; NaN at a leaf where the other leaves are impossible together.

    Notes
    -----
    The sum over classes is `TreeModel.leave_one_out`, the law of one column is that of `flip_table`
    (which does not lose a column that is below the range of floats beside the others).

    Examples
    --------
    >>> import hfilter, numpy as np
    >>> from hfilter.evidence import Evidence
    >>> tree = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
    >>> leaf_root_joint(tree, Evidence(np.array([[0, 1, 1, 0]])))[0, 3].tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    shape = (_n_rows(evidence), tree.n_leaves, tree.n_classes, tree.vocab_size)
    out = _result(shape, dtype)
    for part, mu, state in _from_outside(tree, evidence):
        law = normalise(mu, 1)
        out[part] = np.moveaxis(state * law[:, None], -1, 0)
    return out


def _from_outside(tree: TreeStructure, evidence: Evidence) -> Iterator[tuple[slice, Wide, Array]]:
    """Blocks of rows: leaves' messages from outside, and P(root | leaf, all evidence but the leaf's).

    Shapes (n_leaves, q, rows) and (n_leaves, n_classes, q, rows); zeros for an impossible leaf symbol.
    """
    rules = plan(tree)
    cost = tree.n_leaves * max(tree.alphabets) * (tree.n_classes + 8)
    for part in _parts(_n_rows(evidence), cost):
        leaves, _ = leaf_messages(tree, evidence.rows(part))
        nu, _ = upward(tree, rules, leaves)
        k = tree.filter_level
        m = star_upward(tree, nu[k])[0] if k else None
        mu, state = from_root(tree, m, leaves.value.shape[-1], True)
        for d in range(k, tree.depth):
            mu, state = downward(tree, rules[d], mu, nu[d + 1], state)
        assert state is not None
        yield part, mu, state


# ------------------------------------------------------------------------------ pairs of nodes


@ieee()
def pair_beliefs(
    tree: TreeStructure, evidence: Evidence, levels: Any, pairs: Any, dtype: Any = np.float64
) -> NDArray[Any]:
    """Joint posteriors of pairs of nodes.

    Element ``[i, j, a, b]`` is P(x_u = a, x_v = b | evidence of row i) for the nodes u, v of pair j.

    Parameters
    ----------
    tree : TreeStructure
    evidence : Evidence
        Checked, n rows.
    levels : (int, int)
        Levels d and e of the pairs' first and second nodes; they must exist at the filter level.
    pairs : array_like of int, shape (m, 2)
        Nodes, counted from the left within their levels. Any two: one may be an ancestor of the
        other, or the same node (then the joint is its belief on the diagonal).
    dtype : dtype
        Of the result; everything is computed in float64.

    Returns
    -------
    ndarray, shape (n, m, q_d, q_e)
        NaN throughout the rows whose evidence is impossible.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError

    Notes
    -----
    The posterior is a Markov chain along the tree: from the deepest common ancestor's belief (or its
    rules' beliefs, if both nodes are below it), laws of each child given its parent and the evidence
    lead to both nodes. With a filtered root, the nodes of level k are independent given the root.

    Examples
    --------
    >>> import hfilter, numpy as np
    >>> from hfilter.evidence import Evidence
    >>> tree = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
    >>> evidence = Evidence(np.array([[0, 2, 1, 2]]))  # two leaves seen, two hidden
    >>> pair_beliefs(tree, evidence, (0, 2), [[0, 1]])[0, 0].tolist()
    [[0.25, 0.25], [0.25, 0.25]]
    """
    ends, nodes = _check_pairs(tree, levels, pairs)
    (d, e), m = ends, len(nodes)
    widths = (tree.alphabets[d], tree.alphabets[e])
    out = _result((_n_rows(evidence), m, *widths), dtype)
    if not out.size:
        return out
    rules, needed = plan(tree), _needed(tree, ends, nodes)
    widest = max(tree.alphabets)
    cost = tree.n_leaves * widest * 4
    for t, there in needed.items():
        cost += len(there) * widest**2
        cost += len(there) * len(rules[t].by_parent.items) if t in rules else 0
    for part in _parts(len(out), cost + min(m, _BLOCK // widest**2 + 1) * widest**2):
        walk = _Walk(tree, rules, needed, evidence.rows(part))
        rows = len(walk.possible)
        step = max(1, _BLOCK // (rows * widest**2))
        for first in range(0, m, step):
            few = slice(first, min(first + step, m))
            out[part, few] = walk.pairs(ends, nodes[few])
        out[part][~walk.possible] = np.nan
    return out


def _check_pairs(tree: TreeStructure, levels: Any, pairs: Any) -> tuple[tuple[int, int], Index]:
    kept = check_levels(tree, levels)
    if len(kept) != 2:
        raise ArgumentError(f"levels must be two levels (d, e), got {levels!r}")
    given, _ = as_numpy("pairs", pairs)
    if given.dtype.kind not in "iu":
        raise DTypeError(f"pairs must be integers (nodes), got {given.dtype}")
    if given.ndim != 2 or given.shape[1] != 2:
        raise ShapeError(f"pairs must have shape (m, 2), got {given.shape}")
    for column, level in enumerate(kept):
        there, n = given[:, column], tree.n_nodes(level)
        if len(there) and (int(there.min()) < 0 or int(there.max()) >= n):
            raise ArgumentError(
                f"pairs[:, {column}] must be nodes 0 … {n - 1} of level {level}, "
                f"got values from {there.min()} to {there.max()}"
            )
    return (kept[0], kept[1]), given.astype(np.intp)


def _needed(tree: TreeStructure, ends: tuple[int, int], nodes: Index) -> dict[int, Index]:
    """Nodes on the ways from the root to both ends of all pairs, by level."""
    needed = {}
    for t in tree.existing_levels:
        ways = [nodes[:, i] // tree.arity ** (end - t) for i, end in enumerate(ends) if t <= end]
        if ways:
            needed[t] = np.unique(np.concatenate(ways))
    return needed


class _Walk:
    """Conditional laws on the ways from the root to the pairs' nodes, for one block of rows.

    By level: `beliefs` (rows, nodes, q), `kernels` (rows, nodes, q_above, q), the law of a node
    given its parent and the evidence, and `choices` (parents, items, rows), the law of the rule
    that a node of the level above takes, given its symbol and the evidence.
    """

    def __init__(
        self,
        tree: TreeStructure,
        rules: dict[int, Rules],
        needed: dict[int, Index],
        given: Evidence,
    ) -> None:
        self.tree, self.rules, self.needed = tree, rules, needed
        leaves, _ = leaf_messages(tree, given)
        nu, _ = upward(tree, rules, leaves)
        k = tree.filter_level
        m = star_upward(tree, nu[k])[0] if k else None
        linear, _ = ordinary(root_weights(tree, nu[k], m), 0)
        total = linear.sum(axis=0)
        self.possible = total > 0
        self.beliefs = {0: ratio(linear, total).T[:, None]}
        self.kernels: dict[int, Array] = {}
        self.choices: dict[int, Array] = {}
        above = 0
        for t in list(needed)[1:]:
            if above < k:
                self.kernels[t] = np.moveaxis(star_kernels(tree, nu[k], needed[k]), -1, 0)
            else:
                self.choices[above] = self._choices(above, nu)
                self.kernels[t] = self._from_parent(above)
            parents = self._index(above, needed[t] // tree.arity ** (t - above))
            before = self.beliefs[above][:, parents, None]
            self.beliefs[t] = (before @ self.kernels[t])[:, :, 0]
            above = t

    def _index(self, level: int, nodes: Index) -> Index:
        """Where nodes stand among those needed."""
        return np.searchsorted(self.needed[level], nodes)

    def _choices(self, level: int, nu: dict[int, Wide]) -> Array:
        below = [x.at(self.needed[level]) for x in children(self.tree, nu[level + 1])]
        linear, total, _ = terms_by_parent(self.rules[level], below)
        return ratio(linear, self.rules[level].by_parent.spread(total))

    def _from_parent(self, level: int) -> Array:
        rules, s, nodes = self.rules[level], self.tree.arity, self.needed[level + 1]
        table, choices = rules.table, self.choices[level]
        shape = (choices.shape[-1], len(nodes), table.n_parents, table.n_symbols)
        out = np.empty(shape)
        for r in range(s):
            there = np.flatnonzero(nodes % s == r)
            code = rules.by_parent.group * table.n_symbols + rules.symbols[r]
            law = _summed(choices[self._index(level, nodes[there] // s)], code, shape[2:])
            out[:, there] = law
        return out

    def pairs(self, ends: tuple[int, int], nodes: Index) -> Array:
        """Joint beliefs of some pairs, (rows, pairs, q_d, q_e)."""
        tree, (d, e) = self.tree, ends
        shape = (len(self.possible), len(nodes), tree.alphabets[d], tree.alphabets[e])
        out = np.empty(shape)
        u, v = nodes.T
        meet = np.zeros(len(nodes), np.intp)
        for t in self.needed:
            if t <= min(ends):
                same = u // tree.arity ** (d - t) == v // tree.arity ** (e - t)
                meet[same] = t
        for t in np.unique(meet).tolist():
            here = np.flatnonzero(meet == t)
            if t in ends or t < tree.filter_level:
                out[:, here] = self._lead(
                    ends, u[here], v[here], t, self._at_node(ends, u[here], t)
                )
                continue
            s = tree.arity
            turn_u, turn_v = u // s ** (d - t - 1), v // s ** (e - t - 1)
            turns = turn_u % s * s + turn_v % s
            for turn in np.unique(turns[here]).tolist():
                few = here[turns[here] == turn]
                start = self._at_rules(t, turn_u[few] // s, divmod(turn, s))
                out[:, few] = self._lead(ends, u[few], v[few], t + 1, start)
        return out

    def _at_node(self, ends: tuple[int, int], u: Index, level: int) -> Array:
        """Beliefs of the pairs' common ancestors, on the diagonal."""
        ancestors = self._index(level, u // self.tree.arity ** (ends[0] - level))
        return self.beliefs[level][:, ancestors, :, None] * np.eye(self.tree.alphabets[level])

    def _at_rules(self, level: int, nodes: Index, places: tuple[int, int]) -> Array:
        """Joint beliefs of two children of each node."""
        rules = self.rules[level]
        index = self._index(level, nodes)
        belief = np.moveaxis(self.beliefs[level][:, index], 0, -1)
        weights = self.choices[level][index] * rules.by_parent.spread(belief)
        first, second = (rules.symbols[r] for r in places)
        q = rules.table.n_symbols
        return _summed(weights, first * q + second, (q, q))

    def _lead(self, ends: tuple[int, int], u: Index, v: Index, level: int, joint: Array) -> Array:
        """From the joint law of two ancestors of one level down to the pair."""
        for t in self.kernels:
            if level < t <= ends[1]:
                way = self._index(t, v // self.tree.arity ** (ends[1] - t))
                joint = joint @ self.kernels[t][:, way]
            if level < t <= ends[0]:
                way = self._index(t, u // self.tree.arity ** (ends[0] - t))
                joint = np.swapaxes(self.kernels[t][:, way], -1, -2) @ joint
        return joint


def _summed(weights: Array, code: Index, shape: tuple[int, ...]) -> Array:
    """Sums over items of one code: from (nodes, items, rows) to (rows, nodes, *shape)."""
    order = np.argsort(code, kind="stable")
    present, first = np.unique(code[order], return_index=True)
    dense = np.zeros((len(weights), shape[0] * shape[1], weights.shape[-1]))
    dense[:, present] = np.add.reduceat(weights[:, order], first, axis=1)
    return np.moveaxis(dense, -1, 0).reshape(weights.shape[-1], len(weights), *shape)
