"""How far apart: a model from its filtered form, a grammar from another."""

from __future__ import annotations

import math

import numpy as np

from ..checks import check_int
from ..compiled import ieee
from ..errors import ArgumentError, GrammarError
from ..exact import TreeModel
from ..rules import RuleTable
from .entropies import entropy_of_beliefs, entropy_of_law
from .law import (
    MAX_STATES,
    Array,
    Budget,
    Estimate,
    check_model,
    estimate,
    law_of,
    make_law,
    totals,
)

__all__ = ["filtering_loss", "grammar_kl", "grammar_kl_estimate"]


@ieee()
def filtering_loss(
    model: TreeModel, k: int | None = None, *, max_states: int = MAX_STATES
) -> float:
    """KL(P_0 ‖ P_k) on the root and the symbols of level k: the correlations that filtering removes.

    Parameters
    ----------
    model : TreeModel
    k : int, optional
        Filter level, 0 to `depth`; by default the model's own. P_0 is the unfiltered law whatever the
        model's filter level.
    max_states : int
        Entries of the largest table of joint states that may be made.

    Returns
    -------
    float
        In nats, never infinite.

    Raises
    ------
    ArgumentError
        Where the grammar is ambiguous above level k and the table is larger than `max_states`.

    Notes
    -----
    Given the root, P_k is the product of the marginals of P_0, so the divergence is the sum of
    H(y_j | root) less H(y | root). The first comes from the channels, the second from the entropy
    recursion stopped at level k. Both laws grow the leaves from level k in the same way.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> [round(theory.filtering_loss(model, k), 4) for k in (0, 1)]
    [0.0, 0.4563]
    """
    check_model(model)
    k = model.filter_level if k is None else check_int("k", k, 0, model.depth)
    budget = Budget.of("filtering_loss", max_states, "take a smaller k")
    if k == 0:
        return 0.0
    tables = tuple(model.grammar.table(d) for d in range(k))
    alone = np.asarray(entropy_of_beliefs(model.filtered(k).channels)).sum(axis=0)
    loss = 0.0
    for a in np.flatnonzero(model.root_prior):
        given = np.zeros(model.n_classes)
        given[a] = 1.0
        law = make_law(given, tables, 0, np.empty((0, 0, 0)))
        loss += float(model.root_prior[a] * (alone[a] - entropy_of_law(law, budget)))
    return loss


def _divergence(p: Array, q: Array) -> Array:
    """Terms p ln(p/q) of a divergence: infinite where p is not and q is zero."""
    out = np.zeros_like(p)
    out[(p > 0) & (q == 0)] = np.inf
    both = (p > 0) & (q > 0)
    out[both] = p[both] * np.log(p[both] / q[both])
    return out


def _matching(table: RuleTable, other: RuleTable) -> Array:
    """The probability that `other` gives to each rule of `table`, 0 where it has no such rule."""
    mine = np.column_stack([table.parents, table.children])
    theirs = np.column_stack([other.parents, other.children])
    _, index = np.unique(np.concatenate([mine, theirs]), axis=0, return_inverse=True)
    index = index.reshape(-1)
    found = np.zeros(len(index))
    found[index[len(mine) :]] = other.probability
    return found[index[: len(mine)]]


def _check_pair(p: TreeModel, q: TreeModel) -> None:
    check_model(p, "p")
    check_model(q, "q")
    if (p.arity, p.alphabets) != (q.arity, q.alphabets):
        raise ArgumentError(
            "p and q must have the same arity and alphabets, got arity "
            f"{p.arity} with alphabets {p.alphabets} and arity {q.arity} with {q.alphabets}"
        )


@ieee()
def grammar_kl(p: TreeModel, q: TreeModel) -> float:
    """KL(P ‖ Q) between two unfiltered models of unambiguous grammars.

    Parameters
    ----------
    p, q : TreeModel
        Of the same arity, depth and alphabets; `filter_level` 0.

    Returns
    -------
    float
        In nats; infinite where a symbol or rule that occurs under `p` does not exist under `q`.

    Raises
    ------
    ArgumentError
        For models of different shape, or filtered ones.
    GrammarError
        Where the leaves do not determine the tree, under `p` or under `q`: take
        `grammar_kl_estimate`.

    Notes
    -----
    KL of the root priors plus, over all nodes and symbols, P(symbol) times the KL of the choices of a
    rule. That is the divergence of the laws of whole trees. Where `q` has the rules of `p` it is that
    of the sequences too; where it has not, `q` may still produce the sequences by other trees, and
    the divergence of the sequences, unlike this one, may be finite.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> p, q = (
    ...     hfilter.TreeModel(hfilter.Grammar.parity(), depth=2, root_prior=prior)
    ...     for prior in ([0.5, 0.5], [0.25, 0.75])
    ... )
    >>> round(theory.grammar_kl(p, q), 6)  # that of the root priors alone
    0.143841
    """
    _check_pair(p, q)
    for name, model in (("p", p), ("q", q)):
        if model.filter_level:
            raise ArgumentError(
                f"{name} must have filter_level 0, got {model.filter_level}; use {name}.filtered(0), or "
                "grammar_kl_estimate(p, q, n)"
            )
        if law_of(model).cut:
            raise GrammarError(
                f"{name}: the leaves do not determine the tree, because tuples of children have several "
                "parents; use grammar_kl_estimate(p, q, n)"
            )
    out = float(_divergence(p.root_prior, q.root_prior).sum())
    tables = [p.grammar.table(d) for d in range(p.depth)]
    reach = p.root_prior > 0
    for d, counts in enumerate(totals(p.root_prior, tables[:-1])):
        table = tables[d]
        terms = _divergence(table.probability, _matching(table, q.grammar.table(d)))
        used = reach[table.parents]
        out += float((counts[table.parents][used] * terms[used]).sum())
        reach = np.zeros(table.n_symbols, bool)
        reach[table.children[used].ravel()] = True
    return out


def grammar_kl_estimate(p: TreeModel, q: TreeModel, n: int, seed: int = 0) -> Estimate:
    """Monte Carlo estimate of KL(P ‖ Q) between the laws of the leaves, for any two models.

    Parameters
    ----------
    p, q : TreeModel
        Of the same arity, depth and alphabets; any filter levels, ambiguous or not.
    n : int
        Rows to sample from `p`, at least 2.
    seed : int

    Returns
    -------
    Estimate
        In nats: mean of ln P - ln Q over rows of `p`. Infinite, with the error NaN, if one of them is
        impossible under `q`.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> value, error = theory.grammar_kl_estimate(model.filtered(2), model.filtered(3), 1000)
    >>> bool(value > 0)
    True
    """
    _check_pair(p, q)

    impossible = False

    def rows(start: int, count: int) -> Array:
        nonlocal impossible
        leaves = p.sample(count, seed, start=start).leaves
        ours, theirs = (np.asarray(m.log_prob(leaves, dtype="float64")) for m in (p, q))
        impossible |= bool(np.isneginf(theirs).any())
        return ours - np.where(np.isneginf(theirs), 0.0, theirs)

    found = estimate(rows, n, p.n_leaves)
    return Estimate(math.inf, math.nan) if impossible else found
