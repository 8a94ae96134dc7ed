"""How often the same sequence comes twice."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..checks import check_int
from ..compiled import ieee
from ..exact import TreeModel
from ..rules import RuleTable
from .law import MAX_STATES, Array, Budget, Estimate, Law, check_model, estimate, law_of

__all__ = [
    "collision_probability",
    "expected_distinct",
    "expected_distinct_estimate",
    "expected_duplicates",
    "log_collision_probability",
]

_BLOCK = 2**20


def _log(x: Array) -> Array:
    return np.log(x, out=np.full_like(x, -np.inf), where=x > 0)


def _log_sum(x: Array, axis: int) -> Array:
    """Logarithm of the sum of exponentials; -inf where all are."""
    peak = x.max(axis=axis, keepdims=True)
    peak = np.where(np.isneginf(peak), 0.0, peak)
    return np.asarray(np.squeeze(peak, axis) + _log(np.exp(x - peak).sum(axis=axis)))


def _log_matmul(a: Array, b: Array) -> Array:
    """Matrix product of (n, m) and (m, p), all in logarithms."""
    rows = max(1, _BLOCK // b.size)
    blocks = [a[i : i + rows, :, None] + b for i in range(0, len(a), rows)]
    return np.concatenate([_log_sum(block, 1) for block in blocks])


def _log_single(table: RuleTable, below: Array) -> Array:
    """One level up when two copies that agree on the leaves agree on all symbols: (q',) to (q_d,)."""
    terms = 2 * np.log(table.probability) + below[table.children].sum(axis=1)
    return _sum_rules(terms, table)


def _sum_rules(terms: Array, table: RuleTable) -> Array:
    """Log-sum over the rules of each parent on the last axis; every parent has one at least."""
    starts = table.first[:-1]
    peak = np.maximum.reduceat(terms, starts, axis=-1)
    peak = np.where(np.isneginf(peak), 0.0, peak)
    scaled = np.exp(terms - np.repeat(peak, np.diff(table.first), axis=-1))
    return np.asarray(peak + _log(np.add.reduceat(scaled, starts, axis=-1)))


def _rule_pairs(table: RuleTable, below: Array, parent: int) -> Array:
    """One row of `_log_double`: all rules of a parent beside all rules."""
    logs = np.log(table.probability)
    step = max(1, _BLOCK // table.n_rules)
    parts = []
    for begin in range(int(table.first[parent]), int(table.first[parent + 1]), step):
        own = slice(begin, min(begin + step, int(table.first[parent + 1])))
        terms = logs[own, None] + logs
        for r in range(table.arity):
            terms = terms + below[table.children[own, r, None], table.children[:, r]]
        parts.append(_log_sum(_sum_rules(terms, table), 0))
    return _log_sum(np.stack(parts), 0)


def _log_double(table: RuleTable, below: Array) -> Array:
    """One level up of the doubled chain: pairs of symbols (q', q') to pairs (q_d, q_d)."""
    n, q, s = table.n_parents, table.n_symbols, table.arity
    if s * table.n_rules**2 <= n * q**s * (s * q + n):
        return np.stack([_rule_pairs(table, below, a) for a in range(n)])
    full = _log(table.tensor())
    pairs = full
    for _ in range(s):  # contract the first child's axis; its partner comes last
        rest = np.moveaxis(pairs, 1, -1)
        pairs = _log_matmul(rest.reshape(-1, q), below).reshape(rest.shape)
    return _log_matmul(pairs.reshape(n, -1), full.reshape(n, -1).T)


def _log_collision(law: Law) -> float:
    k = law.filter_level
    single = np.zeros(law.alphabet(law.depth))
    for table in reversed(law.tables[law.cut :]):
        single = _log_single(table, single)
    double = np.full((len(single), len(single)), -np.inf)
    np.fill_diagonal(double, single)
    for table in reversed(law.tables[k : law.cut]):
        double = _log_double(table, double)
    if k:
        top = np.zeros((len(law.prior), len(law.prior)))
        for channel in law.channels:
            logs = _log(channel)
            top += _log_matmul(_log_matmul(logs, double), np.ascontiguousarray(logs.T))
        double = top
    prior = _log(law.prior)
    return float(_log_sum((prior[:, None] + prior + double).ravel(), 0))


@ieee()
def log_collision_probability(model: TreeModel) -> float:
    """ln of `collision_probability`, which deep trees need: it is minus the Rényi entropy of order 2.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=12)
    >>> round(theory.log_collision_probability(model) / model.n_leaves, 6)  # -ln 2
    -0.693147
    """
    return _log_collision(law_of(check_model(model)))


def collision_probability(model: TreeModel) -> float:
    """Probability that two independent draws are the same sequence: Σ_x P(x)².

    Parameters
    ----------
    model : TreeModel
        Any: every filter level, ambiguous or not, any depth.

    Returns
    -------
    float
        Zero where it is below 1e-308: see `log_collision_probability`.

    Notes
    -----
    Two copies of the tree are grown together. C_v(a, a') is the probability that they agree on the
    leaves below v given their symbols there; at a leaf it is 1 for a = a' and 0 otherwise, above it
    the sum over pairs of rules of p p' Π_r C(b_r, b'_r). Where tuples of children have one parent
    only a = a' survives and the cost is O(n_rules) a level; elsewhere it is O(n_rules²), or
    O(q**(arity + 2)) with dense tables. A filtered root: the product over the nodes of its level.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> theory.collision_probability(hfilter.TreeModel(hfilter.Grammar.parity(), depth=3)) * 2**8
    1.0...
    """
    return math.exp(log_collision_probability(model))


def expected_duplicates(model: TreeModel, n: int) -> float:
    """Expected number of pairs of equal sequences among `n` draws: n (n - 1) / 2 Σ_x P(x)².

    While it is small it is also the expected number of rows that repeat an earlier one; for that
    number in general see `expected_distinct`.

    Parameters
    ----------
    model : TreeModel
    n : int

    Returns
    -------
    float

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> 0 < theory.expected_duplicates(model, 1000) < 1
    True
    """
    check_model(model)
    n = check_int("n", n, 0)
    if n < 2:
        return 0.0
    logs = math.log(n) + math.log(n - 1) - math.log(2) + log_collision_probability(model)
    return math.exp(logs) if logs < 709 else math.inf


def _distinct(p: Array, n: int) -> Array:
    """1 - (1 - p)**n: probability that a sequence of probability p is among n draws."""
    return np.asarray(-np.expm1(n * np.log1p(-np.minimum(p, 1.0 - 2.0**-53))))


def _log_size_if_uniform(law: Law) -> float | None:
    """ln of the number of sequences where all are equally likely and the tree is determined."""
    if law.cut:
        return None
    support = law.prior > 0
    size = np.where(support, math.log(support.sum()), 0.0)
    if np.ptp(law.prior[support]) > 1e-12:
        return None
    total, nodes = float(size.max()), 1
    for table in law.tables:
        used = support[table.parents]
        p = table.probability[used]
        if np.ptp(p) > 1e-12 * p.max():
            return None
        total -= nodes * math.log(p.mean())
        nodes *= law.arity
        support = np.zeros(table.n_symbols, bool)
        support[table.children[used].ravel()] = True
    return total


@ieee()
def expected_distinct(model: TreeModel, n: int, *, max_states: int = MAX_STATES) -> float:
    """Expected number of different sequences among `n` draws.

    Parameters
    ----------
    model : TreeModel
    n : int
        At least 1.
    max_states : int
        Largest number of sequences to enumerate, times the number of root symbols.

    Returns
    -------
    float
        Σ_x 1 - (1 - P(x))**n. The expected share of repeated rows is one minus this over n.

    Raises
    ------
    ArgumentError
        Where there are more sequences than that: take `expected_distinct_estimate`.

    Notes
    -----
    In a grammar whose rules are equally likely and unambiguous, as in the random hierarchy model, all
    sequences are, and nothing is enumerated.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
    >>> round(theory.expected_distinct(model, 16), 4)  # 16 (1 - (15/16)**16)
    10.3028
    """
    law = law_of(check_model(model))
    n = check_int("n", n, 1)
    size = _log_size_if_uniform(law)
    if size is not None and size < 700:
        return float(math.exp(size) * _distinct(np.array(math.exp(-size)), n))
    remedy = "use expected_distinct_estimate(model, n, rows)"
    budget = Budget.of("expected_distinct", max_states, remedy)
    joint = replace(law, cut=law.depth).joint(0, budget)
    assert joint is not None
    return float(_distinct(law.prior @ joint, n).sum())


def expected_distinct_estimate(model: TreeModel, n: int, rows: int, seed: int = 0) -> Estimate:
    """Monte Carlo estimate of `expected_distinct`: n draws of which `rows` are looked at.

    Parameters
    ----------
    model : TreeModel
        Any.
    n : int
        Size of the data set in question, at least 1; it is not drawn.
    rows : int
        Rows to sample, at least 2.
    seed : int

    Returns
    -------
    Estimate
        Mean of (1 - (1 - P(x))**n) / P(x), which lies between 1 and n.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.dense(2, 1.0, 0), depth=3)
    >>> value, error = theory.expected_distinct_estimate(model, 100, 1000)
    >>> bool(abs(value - theory.expected_distinct(model, 100)) < 5 * error)
    True
    """
    check_model(model)
    n = check_int("n", n, 1)

    def values(start: int, count: int) -> Array:
        leaves = model.sample(count, seed, start=start).leaves
        logs = np.asarray(model.log_prob(leaves, dtype="float64"))
        # Below 1e-300 the quotient is n to all digits; there p itself would leave the range.
        p = np.exp(np.maximum(logs, -690.0))
        return np.asarray(_distinct(p, n) / p)

    return estimate(values, rows, model.n_leaves)
