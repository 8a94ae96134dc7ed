"""Enumerated answers to the questions that `oracle.Answer` does not hold: contexts, rule counts, trees.

Nothing here imports hfilter: everything is summed over all latent configurations of `oracle.Enumeration`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from oracle import Enumeration, relative_weights


def left_of(law: Enumeration) -> np.ndarray:
    """Contexts (L, L) of next-token prediction: leaf j is predicted from the leaves i < j."""
    return np.tri(law.n_leaves, k=-1, dtype=bool)


def window_of(law: Enumeration, level: int) -> np.ndarray:
    """Contexts of the locality ladder: the other leaves below the same node of a level."""
    block = np.arange(law.n_leaves) // law.arity ** (law.depth - level)
    return (block[:, None] == block) & ~np.eye(law.n_leaves, dtype=bool)


def context_laws(law: Enumeration, log_fields: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """P(x_j | the leaves i where contexts[j, i]), (n, L, q); NaN where that context is impossible."""
    leaves, (n, length, q) = law.configurations[law.depth], log_fields.shape
    out = np.empty((n, length, q))
    for j in range(length):
        seen = np.where(contexts[j][:, None], log_fields, 0.0)
        *_, total, zeros = law.totals(seen)
        _, weights = relative_weights(total, zeros)
        sums = weights @ np.eye(q)[leaves[:, j]]
        with np.errstate(invalid="ignore"):
            out[:, j] = sums / sums.sum(axis=1, keepdims=True)
    return out


def rule_uses(law: Enumeration, tensor: np.ndarray, level: int) -> np.ndarray:
    """How often every configuration uses each rule of a level, (configurations, rules).

    Rules are the non-zero entries of the tensor in lexicographic order.
    """
    index = np.full(tensor.shape, -1)
    index[tuple(np.argwhere(tensor).T)] = np.arange(np.count_nonzero(tensor))
    above, below = law.configurations[level], law.configurations[level + 1]
    uses = np.zeros((len(above), np.count_nonzero(tensor)))
    for node in range(above.shape[1]):
        children = below[:, node * law.arity : (node + 1) * law.arity]
        uses[np.arange(len(above)), index[(above[:, node], *children.T)]] += 1
    return uses


def counts_below(
    law: Enumeration, tensors: Sequence[np.ndarray], log_fields: np.ndarray
) -> list[np.ndarray]:
    """Expected uses of the rules of each level from the filter level on, (n, rules of the level)."""
    posterior = law.posterior(log_fields)
    levels = range(law.filter_level, law.depth)
    return [posterior @ rule_uses(law, tensors[d], d) for d in levels]


def root_pairs(law: Enumeration, log_fields: np.ndarray) -> np.ndarray:
    """P(root, x_i) of each node of the filter level, (n, nodes, q_0, q_k)."""
    posterior, k = law.posterior(log_fields), law.filter_level
    q0, qk = law.alphabets[0], law.alphabets[k]
    roots = law.configurations[0][:, 0]
    pairs = [posterior @ np.eye(q0 * qk)[roots * qk + x] for x in law.configurations[k].T]
    return np.stack(pairs, axis=1).reshape(len(log_fields), -1, q0, qk)


def tree_weights(
    law: Enumeration, log_fields: np.ndarray, levels: dict[int, np.ndarray]
) -> np.ndarray:
    """ln P(tree, evidence) of one given tree per row; -inf for one that is no configuration."""
    fields, _, top, total, zeros = law.totals(log_fields)
    out = np.full(len(fields), -np.inf)
    rows = np.concatenate([law.configurations[d] for d in law.levels], axis=1)
    places = {tuple(row): i for i, row in enumerate(rows.tolist())}
    given = np.concatenate([levels[d].reshape(len(fields), -1) for d in law.levels], axis=1)
    for row, symbols in enumerate(given.tolist()):
        found = places.get(tuple(symbols))
        if found is not None and not zeros[row, found]:
            out[row] = total[row, found] + top[row].sum()
    return out


def best_weights(law: Enumeration, log_fields: np.ndarray) -> np.ndarray:
    """ln P(tree, evidence) of the most probable tree of every row; -inf where none is possible."""
    _, _, top, total, zeros = law.totals(log_fields)
    peak, _ = relative_weights(total, zeros)
    return np.asarray(peak + top.sum(axis=(1, 2)), np.float64)
