"""What the operations beyond `infer` must return, by enumeration: `oracle.Enumeration` goes on here.

Nothing here imports hfilter. Evidence comes as log fields (n, n_leaves, q); `oracle.token_fields` makes
them of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from oracle import Enumeration, branches, channel, relative_weights

LONG = np.longdouble


def sequence_logs(law: Enumeration) -> tuple[np.ndarray, np.ndarray]:
    """Every sequence of non-zero probability, (S, n_leaves), and its ln probability, (S,)."""
    rows, place = np.unique(law.configurations[law.depth], axis=0, return_inverse=True)
    place = place.ravel()
    peak = np.full(len(rows), -np.inf, LONG)
    np.maximum.at(peak, place, law.log_prior)
    total = np.zeros(len(rows), LONG)
    np.add.at(total, place, np.exp(law.log_prior - peak[place]))
    return rows, peak + np.log(total)


def prefixes(length: int) -> np.ndarray:
    """``[j, i]``: leaf i lies left of leaf j."""
    return np.tri(length, k=-1, dtype=bool)


def windows(length: int, arity: int, height: int) -> np.ndarray:
    """``[j, i]``: leaf i is another leaf of the subtree of that height above leaf j."""
    block = np.arange(length) // arity**height
    return (block[:, None] == block) & ~np.eye(length, dtype=bool)


def finite_and_zeros(log_fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fields relative to each leaf's largest with 0 for -inf, and where they are -inf."""
    fields = np.asarray(log_fields).astype(LONG)
    top = fields.max(axis=2, keepdims=True)
    fields = fields - np.where(np.isfinite(top), top, 0)
    zeros = np.isneginf(fields)
    return np.where(zeros, 0, fields), zeros


def context_laws(law: Enumeration, log_fields: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """P(x_j | fields of the leaves i where ``contexts[j, i]``), (n, n_leaves, q); NaN if impossible."""
    rows, logs = sequence_logs(law)
    fields, zeros = finite_and_zeros(log_fields)
    n, length, q = fields.shape
    seen = np.stack([fields[:, i][:, rows[:, i]] for i in range(length)])  # (L, n, S)
    never = np.stack([zeros[:, i][:, rows[:, i]] for i in range(length)])
    out = np.empty((n, length, q))
    for j in range(length):
        inside = contexts[j]
        total = logs + seen[inside].sum(axis=0)
        _, weights = relative_weights(
            np.broadcast_to(total, (n, len(rows))), never[inside].sum(axis=0)
        )
        found = weights @ np.eye(q)[rows[:, j]]
        with np.errstate(invalid="ignore"):
            out[:, j] = found / found.sum(axis=1, keepdims=True)
    return out


def log_weight_of_trees(
    tensors: Sequence[np.ndarray],
    prior: np.ndarray,
    filter_level: int,
    levels: dict[int, np.ndarray],
    log_fields: np.ndarray,
) -> np.ndarray:
    """ln P(tree, evidence), rule by rule, of one tree for every row: levels[d] (n, arity**d)."""
    depth, arity = max(levels), tensors[0].ndim - 1
    x = {d: np.asarray(symbols).astype(np.int64) for d, symbols in levels.items()}
    with np.errstate(divide="ignore"):
        total = np.log(prior.astype(LONG))[x[0][:, 0]]
        if filter_level > 0:
            for i in range(arity**filter_level):
                logs = np.log(channel(tensors, filter_level, i).astype(LONG))
                total = total + logs[x[0][:, 0], x[filter_level][:, i]]
        for d in range(filter_level, depth):
            logs = np.log(tensors[d].astype(LONG))
            for i in range(arity**d):
                children = tuple(x[d + 1][:, arity * i + r] for r in range(arity))
                total = total + logs[(x[d][:, i], *children)]
    fields = np.asarray(log_fields).astype(LONG)
    for j in range(arity**depth):
        total = total + fields[np.arange(len(fields)), j, x[depth][:, j]]
    return total


def joint_logs(law: Enumeration, log_fields: np.ndarray) -> np.ndarray:
    """ln P(configuration, evidence) of all configurations, (n, configurations)."""
    _, _, top, total, zeros = law.totals(log_fields)
    return np.where(zeros > 0, -np.inf, total) + top.sum(axis=(1, 2))[:, None]


def rule_numbers(tensors: Sequence[np.ndarray], shared: bool) -> tuple[list[np.ndarray], int]:
    """The number of every rule in tensors of its level (-1 where there is none), and how many there are.

    Level after level, or one table for all of them; in each by parent, then children.
    """
    numbers, first = [], 0
    for tensor in tensors:
        if shared and numbers:
            numbers.append(numbers[0])
            continue
        number = np.full(tensor.shape, -1)
        used = tensor > 0
        number[used] = first + np.arange(used.sum())
        first += int(used.sum())
        numbers.append(number)
    return numbers, first


def paths(
    tensors: Sequence[np.ndarray], numbers: Sequence[np.ndarray], level: int, index: int
) -> list[tuple[int, int, np.longdouble, list[int]]]:
    """Every chain of rules from the root to a node: its ends, its probability, the rules' numbers."""
    found = [(a, a, LONG(1), []) for a in range(tensors[0].shape[0])]  # type: list
    for step, branch in enumerate(branches(index, level, tensors[0].ndim - 1)):
        rules = [(tuple(r), LONG(tensors[step][tuple(r)])) for r in np.argwhere(tensors[step])]
        found = [
            (a, rule[1 + branch], p * weight, [*chain, int(numbers[step][rule])])
            for a, b, p, chain in found
            for rule, weight in rules
            if rule[0] == b
        ]
    return found


def rule_counts(
    law: Enumeration, tensors: Sequence[np.ndarray], shared: bool, log_fields: np.ndarray
) -> np.ndarray:
    """Expected uses of every rule given the evidence, (n, n_rules); NaN for an impossible row.

    Above the filter level every node of that level has a chain of rules of its own from the root.
    """
    posterior = law.posterior(log_fields)
    numbers, n_rules = rule_numbers(tensors, shared)
    counts = np.zeros((len(posterior), n_rules), LONG)
    k, arity, x = law.filter_level, law.arity, law.configurations
    for d in range(k, law.depth):
        for i in range(arity**d):
            children = tuple(x[d + 1][:, arity * i + r] for r in range(arity))
            used = numbers[d][(x[d][:, i], *children)]
            for row in range(len(posterior)):
                counts[row] += np.bincount(used, posterior[row], minlength=n_rules)
    for i in range(arity**k if k else 0):
        chains = paths(tensors, numbers, k, i)
        ends = np.zeros((law.alphabets[0], law.alphabets[k]), LONG)
        for a, c, p, _ in chains:
            ends[a, c] += p
        code = x[0][:, 0] * law.alphabets[k] + x[k][:, i]
        for row in range(len(posterior)):
            joint = np.bincount(code, posterior[row], minlength=ends.size).reshape(ends.shape)
            for a, c, p, chain in chains:
                if p > 0:
                    # (a rule may stand in a chain more than once)
                    np.add.at(counts[row], chain, joint[a, c] * p / ends[a, c])
    counts[np.isnan(posterior).any(axis=1)] = np.nan
    return counts.astype(np.float64)
