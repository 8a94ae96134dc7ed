"""The same posteriors with every number kept as a logarithm, for the rare rows that need it.

Kernels work in the linear domain and report rows whose evidence contradicts itself by more than the
exponent range (fields of thousands of nats against the grammar). Those rows come here: NumPy, double
precision, all nodes of a level at a time. No range is too wide, and a zero stays a zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evidence import Evidence, Outputs
from .rules import RuleTable
from .tree import TreeStructure

__all__ = ["infer_logspace"]

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
    zero = np.zeros_like(m[:, :1])
    before = np.concatenate([zero, np.cumsum(m, axis=1)[:, :-1]], axis=1)
    after = np.concatenate([np.cumsum(m[:, ::-1], axis=1)[:, ::-1][:, 1:], zero], axis=1)
    return np.asarray(before + after)


def _leaf_messages(tree: TreeStructure, evidence: Evidence) -> Array:
    if evidence.log_fields is not None:
        return np.asarray(evidence.log_fields, np.float64)
    assert evidence.tokens is not None
    seen = evidence.tokens[..., None] == np.arange(tree.vocab_size)
    hidden = evidence.tokens >= tree.vocab_size
    if evidence.mask is not None:
        hidden = hidden | (evidence.mask != 0)
    return np.asarray(np.where(seen | hidden[..., None], 0.0, -np.inf))


def _block(tree: TreeStructure, evidence: Evidence, out: Outputs) -> None:
    k, depth, s = tree.filter_level, tree.depth, tree.arity
    leaves, shift = _centre(_leaf_messages(tree, evidence))
    total = shift.sum(axis=-1)
    nu: dict[int, Array] = {depth: leaves}
    for d in range(depth - 1, k - 1, -1):
        table = tree.grammar.table(d)
        below = nu[d + 1].reshape(len(leaves), -1, s, table.n_symbols)
        terms = _log(table.probability) + sum(
            below[:, :, r][..., table.children[:, r]] for r in range(s)
        )
        nu[d], taken = _centre(np.logaddexp.reduceat(terms, table.first[:-1], axis=-1))
        total = total + taken.sum(axis=-1)
    prior = _log(tree.root_prior)
    channels = _log(tree.channels) if k else None
    if channels is not None:
        factors = np.stack(
            [_log_sum(channels[i] + nu[k][:, i, None, :]) for i in range(len(channels))], axis=1
        )
        root = prior + factors.sum(axis=1)
    else:
        root = prior + nu[0][:, 0]
    if out.log_evidence is not None:
        out.log_evidence[:] = total + _log_sum(root)
    if out.root is not None:
        out.root[:] = _normalise(root)

    wanted = [d for d, belief in enumerate(out.beliefs) if belief is not None]
    deepest = depth if out.leave_one_out is not None else max(wanted, default=0)
    if deepest == 0:
        return
    if channels is not None:
        weights = prior + _exclusive_sums(factors)
        mu = np.stack(
            [_log_sum(channels[i] + weights[:, i, :, None], axis=-2) for i in range(len(channels))],
            axis=1,
        )
    else:
        mu = np.broadcast_to(prior, nu[0].shape)
    for d in range(k, deepest + 1):
        if d > k:
            table = tree.grammar.table(d - 1)
            below = nu[d].reshape(len(leaves), -1, s, table.n_symbols)
            messages = []
            for r in range(s):
                terms = mu[..., table.parents] + _log(table.probability)
                for other in range(s):
                    if other != r:
                        terms = terms + below[:, :, other][..., table.children[:, other]]
                messages.append(_by_child(table, r, terms))
            mu, _ = _centre(np.stack(messages, axis=2).reshape(len(leaves), -1, table.n_symbols))
        belief = out.beliefs[d]
        if belief is not None and d:
            belief[:] = _normalise(nu[d] + mu)
    if out.leave_one_out is not None:
        out.leave_one_out[:] = _normalise(mu)


def infer_logspace(tree: TreeStructure, evidence: Evidence, out: Outputs, n: int) -> None:
    """Fill `out` for n rows of evidence, in blocks of bounded memory."""
    widest = max(tree.grammar.table(d).n_rules for d in range(tree.depth))
    rows = max(1, _BLOCK // (tree.n_leaves * max(widest, tree.vocab_size) + tree.n_classes))
    for begin in range(0, n, rows):
        part = slice(begin, min(begin + rows, n))
        _block(tree, evidence.rows(part), out.rows(part))
