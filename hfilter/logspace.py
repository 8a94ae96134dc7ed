"""The same posteriors with every number kept as a logarithm, for the rare rows that need it.

Kernels work in the linear domain and report rows whose evidence contradicts itself by more than the
exponent range (fields of thousands of nats against the grammar). Those rows come here: NumPy, double
precision, all nodes of a level at a time. No range is too wide, and a zero stays a zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evidence import Evidence, Outputs, Trees
from .philox import philox4x32
from .rules import RuleTable
from .tree import TreeStructure

__all__ = ["choose_logspace", "infer_logspace"]

Array = NDArray[np.float64]
_BLOCK = 1 << 22  # numbers held at a time, roughly


def _log(x: Any) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(x), np.float64)


def _log_sum(x: Array, axis: int = -1) -> Array:
    return np.asarray(np.logaddexp.reduce(x, axis=axis))


def _centre(x: Array) -> tuple[Array, Array]:
    """Messages with their maximum at 0, and what was subtracted (0 where all is zero probability)."""
    top = x.max(axis=-1, keepdims=True)
    top = np.where(np.isneginf(top), 0.0, top)
    return x - top, top[..., 0]


def _normalise(x: Array) -> Array:
    """Probabilities from logarithms; NaN where every entry has probability zero."""
    weights = np.exp(_centre(x)[0])
    with np.errstate(invalid="ignore"):
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _by_child(table: RuleTable, place: int, terms: Array) -> Array:
    """Log-sums of the rules' terms by the symbol at one place; -inf for a symbol no rule has there."""
    symbols = table.children[:, place]
    order = np.argsort(symbols, kind="stable")
    present, first = np.unique(symbols[order], return_index=True)
    out = np.full((*terms.shape[:-1], table.n_symbols), -np.inf)
    out[..., present] = np.logaddexp.reduceat(terms[..., order], first, axis=-1)
    return out


def _exclusive_sums(m: Array) -> Array:
    """Sums over all nodes (axis 1) but one, without subtracting what may be infinite."""
    return np.asarray(_sums_before(m) + _sums_before(m[:, ::-1])[:, ::-1])


def _sums_before(m: Array) -> Array:
    """Sums over the nodes (axis 1) to the left."""
    return np.concatenate([np.zeros_like(m[:, :1]), np.cumsum(m, axis=1)[:, :-1]], axis=1)


def _leaf_messages(tree: TreeStructure, evidence: Evidence) -> Array:
    if evidence.log_fields is not None:
        return np.asarray(evidence.log_fields, np.float64)
    assert evidence.tokens is not None
    seen = evidence.tokens[..., None] == np.arange(tree.vocab_size)
    hidden = evidence.tokens >= tree.vocab_size
    if evidence.mask is not None:
        hidden = hidden | (evidence.mask != 0)
    return np.asarray(np.where(seen | hidden[..., None], 0.0, -np.inf))


def _upward(
    tree: TreeStructure, evidence: Evidence, best: bool = False
) -> tuple[dict[int, Array], Array]:
    """Upward messages of the levels below the root of a star, and what was subtracted, per row.

    `best`: the largest term instead of the sum (max-product).
    """
    k, depth, s = tree.filter_level, tree.depth, tree.arity
    leaves, shift = _centre(_leaf_messages(tree, evidence))
    total = shift.sum(axis=-1)
    nu: dict[int, Array] = {depth: leaves}
    add = np.maximum if best else np.logaddexp
    for d in range(depth - 1, max(k, evidence.window) - 1, -1):
        table = tree.grammar.table(d)
        terms = _terms(table, nu[d + 1].reshape(len(leaves), -1, s, table.n_symbols))
        nu[d], taken = _centre(add.reduceat(terms, table.first[:-1], axis=-1))
        total = total + taken.sum(axis=-1)
    return nu, total


def _terms(table: RuleTable, below: Array) -> Array:
    """What every rule carries upward: ln p + the children's messages, (…, s, q) -> (…, n_rules)."""
    return np.asarray(
        _log(table.probability)
        + sum(below[..., r, :][..., table.children[:, r]] for r in range(table.arity))
    )


def _factors(channels: Array, nu: Array, best: bool = False) -> Array:
    """What the nodes of a star say of the root, (n, nodes, q_0)."""
    add = np.maximum if best else np.logaddexp
    return np.stack(
        [add.reduce(c + nu[:, i, None, :], axis=-1) for i, c in enumerate(channels)], axis=1
    )


def _star_weights(prior: Array, factors: Array, evidence: Evidence, group: int) -> Array:
    """Of the root's classes, all that is known to each node but what it says itself."""
    n, nodes, q0 = factors.shape
    apart = factors.reshape(n * (nodes // group), group, q0)
    others = _sums_before(apart) if evidence.causal else _exclusive_sums(apart)
    return np.asarray(prior + others.reshape(n, nodes, q0))


def _downward(table: RuleTable, mu: Array, below: Array, causal: bool) -> Array:
    """The children's downward messages from their parents', (n, nodes, s, q)."""
    messages = []
    for r in range(table.arity):
        terms = mu[..., table.parents] + _log(table.probability)
        for other in range(r if causal else table.arity):
            if other != r:
                terms = terms + below[:, :, other][..., table.children[:, other]]
        messages.append(_by_child(table, r, terms))
    return np.stack(messages, axis=2)


def _block(tree: TreeStructure, evidence: Evidence, out: Outputs) -> None:
    k, depth, s, window = tree.filter_level, tree.depth, tree.arity, evidence.window
    nu, total = _upward(tree, evidence)
    n = len(total)
    prior = _log(tree.root_prior)
    channels = _log(tree.channels) if k > window else None
    if channels is not None:
        factors = _factors(channels, nu[k])
    if window == 0:
        root = prior + (nu[0][:, 0] if channels is None else factors.sum(axis=1))
        if out.log_evidence is not None:
            out.log_evidence[:] = total + _log_sum(root)
        if out.root is not None:
            out.root[:] = _normalise(root)

    wanted = [d for d, belief in enumerate(out.beliefs) if belief is not None]
    if out.counts is not None:
        out.counts[:] = 0
        wanted.append(depth - 1)
    if out.star_pairs is not None:
        wanted.append(k)
    deepest = depth if out.leave_one_out is not None else max(wanted, default=0)
    if deepest == 0 and out.counts is None:
        return
    top = max(k, window)
    if channels is not None:
        weights = _star_weights(prior, factors, evidence, s ** (k - window))
        joint = channels + weights[..., None]  # (n, nodes, q_0, q_k)
        mu = _log_sum(joint, axis=-2)
        if out.star_pairs is not None:
            pairs = (joint + nu[k][:, :, None, :]).reshape(*mu.shape[:2], -1)
            out.star_pairs[:] = _normalise(pairs).reshape(joint.shape)
    elif window:
        mu = np.broadcast_to(
            _log(tree.node_laws(window)), (n, tree.n_nodes(window), tree.alphabets[window])
        )
    else:
        mu = np.broadcast_to(prior, nu[0].shape)
    for d in range(top, depth + 1):
        belief = out.beliefs[d]
        if belief is not None and d:
            belief[:] = _normalise(nu[d] + mu)
        if d == depth:
            break
        table = tree.grammar.table(d)
        below = nu[d + 1].reshape(n, -1, s, table.n_symbols)
        if out.counts is not None:
            shares = _normalise(mu[..., table.parents] + _terms(table, below)).sum(axis=1)
            first = tree.first_counts[d]
            out.counts[:, first : first + table.n_rules] += shares
        if d >= deepest:
            break
        messages = _downward(table, mu, below, evidence.causal)
        mu, _ = _centre(messages.reshape(n, -1, table.n_symbols))
    if out.leave_one_out is not None:
        out.leave_one_out[:] = _normalise(mu)


def infer_logspace(tree: TreeStructure, evidence: Evidence, out: Outputs, n: int) -> None:
    """Fill `out` for n rows of evidence, in blocks of bounded memory."""
    widest = max(tree.grammar.table(d).n_rules for d in range(tree.depth))
    rows = max(1, _BLOCK // (tree.n_leaves * max(widest, tree.vocab_size) + tree.n_classes))
    for begin in range(0, n, rows):
        part = slice(begin, min(begin + rows, n))
        _block(tree, evidence.rows(part), out.rows(part))


def choose_logspace(tree: TreeStructure, evidence: Evidence, trees: Trees, n: int) -> None:
    """Fill `trees` for n rows of evidence, one at a time."""
    for row in range(n):
        _choose_row(tree, evidence.rows(slice(row, row + 1)), trees.rows(row, row + 1))


def _choose_row(tree: TreeStructure, evidence: Evidence, trees: Trees) -> None:
    k, depth, s, draw = tree.filter_level, tree.depth, tree.arity, trees.n_samples > 0
    nu, total = _upward(tree, evidence, best=not draw)
    prior = _log(tree.root_prior)
    channels = _log(tree.channels) if k else None
    factors = None if channels is None else _factors(channels, nu[k], best=not draw)
    root = (prior + (nu[0][:, 0] if factors is None else factors.sum(axis=1)))[0]
    weight = total + (_log_sum(root) if draw else root.max())
    for out in (trees.log_evidence, trees.log_weight):
        if out is not None:
            out[:] = weight

    for j in range(trees.per_row):
        index = (trees.start + j) % 2**64

        def pick(weights: Array, purpose: int, word: int, index: int = index) -> int:
            if not draw:
                return int(weights.argmax())
            shares = np.exp(_centre(weights)[0])
            threshold = _uniform(trees.seed, index, purpose, word) * shares.sum()
            return min(int((np.cumsum(shares) <= threshold).sum()), len(shares) - 1)

        symbols = np.array([pick(root, 2, 0)])
        levels = {0: symbols}
        if channels is not None:
            law = channels[:, symbols[0]] + nu[k][0]
            symbols = levels[k] = np.array([pick(law[i], 3, i) for i in range(len(law))])
        for d in range(k, depth):
            table = tree.grammar.table(d)
            terms = _terms(table, nu[d + 1].reshape(-1, s, table.n_symbols))
            word = 1 + (len(symbols) - 1) // (s - 1)
            rules = []
            for i, a in enumerate(symbols):
                first, last = table.first[a], table.first[a + 1]
                rules.append(first + pick(terms[i, first:last], 2, word + i))
            symbols = levels[d + 1] = table.children[rules].ravel()
        for d, out in enumerate(trees.levels):
            if out is not None:
                out[0, j] = levels[d]


def _uniform(seed: int, index: int, purpose: int, word: int) -> float:
    """A word of the stream of trees given evidence as a number between 0 and 1."""
    mask = np.uint64(2**32 - 1)
    counter = [
        np.uint64(x)
        for x in (index % 2**32, index >> 32, word >> 2, purpose, seed % 2**32, seed >> 32)
    ]
    words = philox4x32(*counter)
    return float((int(words[word & 3] & mask) + 0.5) / 2**32)
