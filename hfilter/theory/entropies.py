"""Entropies of the leaves: of whole sequences, and of each leaf given those before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compiled import ieee
from ..exact import TreeModel
from .law import (
    MAX_STATES,
    Array,
    Budget,
    Estimate,
    Law,
    check_model,
    conditional_entropy,
    estimate,
    law_of,
    rule_entropies,
    totals,
)

__all__ = [
    "entropy",
    "entropy_estimate",
    "entropy_of_beliefs",
    "entropy_of_law",
    "next_token_entropy",
    "next_token_entropy_estimate",
]


def entropy_of_law(law: Law, budget: Budget) -> float:
    """Entropy of the leaves: of the determined symbols of the cut level, and of what hangs below."""
    below = np.zeros(law.alphabet(law.depth))
    for table in reversed(law.tables[law.cut :]):
        below = rule_entropies(table) + sum(table.marginal(r) @ below for r in range(table.arity))
    joint = law.joint(0, budget)
    top = law.prior[None] if joint is None else law.prior[None] @ joint
    return conditional_entropy(top) + float(totals(law.prior, law.tables[: law.cut])[-1] @ below)


@ieee()
def entropy(model: TreeModel, *, max_states: int = MAX_STATES) -> float:
    """Entropy of the leaves, in nats.

    Parameters
    ----------
    model : TreeModel
    max_states : int
        Entries of the largest table of joint states that may be made.

    Returns
    -------
    float

    Raises
    ------
    ArgumentError
        Where the symbols of the cut level have more than `max_states` joint states: take
        `entropy_estimate`.

    Notes
    -----
    Unfiltered and unambiguous: the leaves determine the tree, so H = H(root) plus, summed over all
    nodes, the entropy of the choice of a rule; O(l n_rules) at any depth. Otherwise H = H(y) plus
    that sum below y, where y are the symbols of the highest level that the leaves determine (the
    filter level, or lower where tuples of children have several parents), and the joint law of y is
    enumerated: q**(arity**level) states.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> round(theory.entropy(model), 6)
    8.77678
    """
    law = law_of(check_model(model))
    return entropy_of_law(law, Budget.of("entropy", max_states, "use entropy_estimate(model, n)"))


def entropy_estimate(model: TreeModel, n: int, seed: int = 0) -> Estimate:
    """Monte Carlo estimate of `entropy`: mean of ``-model.log_prob`` over sampled rows.

    Parameters
    ----------
    model : TreeModel
        Any: every filter level, ambiguous or not.
    n : int
        Rows to sample, at least 2.
    seed : int

    Returns
    -------
    Estimate
        In nats.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> value, error = theory.entropy_estimate(model, 10_000, seed=1)
    >>> bool(abs(value - theory.entropy(model)) < 5 * error)
    True
    """
    check_model(model)

    def rows(start: int, count: int) -> Array:
        leaves = model.sample(count, seed, start=start).leaves
        return np.asarray(-model.log_prob(leaves, dtype="float64"))

    return estimate(rows, n, model.n_leaves)


@ieee()
def next_token_entropy(model: TreeModel, *, max_states: int = MAX_STATES) -> Array:
    """Optimal causal loss at each position: H(x_j | x_0 … x_{j-1}), in nats.

    Parameters
    ----------
    model : TreeModel
    max_states : int
        Entries of the largest table of joint states that may be made.

    Returns
    -------
    ndarray of float64, shape (n_leaves,)
        Its sum is the entropy of the sequence.

    Raises
    ------
    ArgumentError
        Where a prefix determines more joint states than `max_states`.

    Notes
    -----
    A prefix is a set of complete subtrees, at most ``(arity - 1) * depth``, and matters through the
    symbols at their roots alone. The joint law of those and the next leaf is carried down the tree:
    at most q**((arity - 1) depth) states, 4096 at q = 4, depth 6 and 10**6 at depth 10. Filtered:
    the symbols of the filter level to the left, q**(arity**k), and complete subtrees below.
    Ambiguous subtrees count with all the states of their leaves.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> theory.next_token_entropy(model)[:4].round(5).tolist()
    [1.29687, 1.05447, 1.24161, 0.86415]
    """
    law = law_of(check_model(model))
    otherwise = "use next_token_entropy_estimate(model, n)"
    budget = Budget.of("next_token_entropy", max_states, otherwise)
    out = np.empty(model.n_leaves)
    for leaf, joint in law.contexts(True, budget):
        out[leaf] = conditional_entropy(joint)
    return out


def entropy_of_beliefs(beliefs: Any) -> Array:
    """Entropy of the last axis, which sums to 1."""
    p = np.asarray(beliefs, np.float64)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(-(p * logs).sum(axis=-1))


def next_token_entropy_estimate(model: TreeModel, n: int, seed: int = 0) -> Estimate:
    """Monte Carlo estimate of `next_token_entropy`.

    The entropy of the exact prediction is averaged over sampled prefixes, which varies less than
    minus the log-probability of the token that came (Rao and Blackwell).

    Parameters
    ----------
    model : TreeModel
    n : int
        Rows to sample, at least 2.
    seed : int

    Returns
    -------
    Estimate
        Of arrays of shape (n_leaves,).

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.dense(4, 1.0, 0), depth=4)
    >>> theory.next_token_entropy_estimate(model, 100).value.shape
    (16,)
    """
    check_model(model)

    def rows(start: int, count: int) -> Array:
        leaves = model.sample(count, seed, start=start).leaves
        return entropy_of_beliefs(model.next_token(leaves, dtype="float64"))

    return estimate(rows, n, model.n_leaves * model.vocab_size)
