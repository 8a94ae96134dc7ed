"""The root as a function of the leaves, and whether it is found again through independent channels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..compiled import ieee
from ..errors import ArgumentError, DTypeError, GrammarError
from ..exact import TreeModel
from ..grammar import Grammar
from ..rules import RuleTable
from .law import Array, check_model

__all__ = [
    "KestenStigum",
    "average_sensitivity",
    "influences",
    "kesten_stigum",
    "sensitivity_exponent",
]

_MAX_PAIRS_ALPHABET = 64  # the matrix of the pair chain has (q (q - 1) / 2)**2 entries


class _Function:
    """A full, unambiguous table as a function of the children."""

    def __init__(self, table: RuleTable, name: str) -> None:
        q, s = table.n_symbols, table.arity
        if not table.is_unambiguous:
            raise GrammarError(
                f"{name} is ambiguous: a tuple of children has two parents, so the root is no function "
                "of the leaves"
            )
        if table.n_rules != q**s:
            raise GrammarError(
                f"{name} gives a parent to {table.n_rules} of {q**s} tuples of children; the uniform "
                "measure needs a full table: rules for all tuples"
            )
        self.parent = np.empty((q,) * s, np.int64)
        self.parent[tuple(table.children.T)] = table.parents
        self.n_parents, self.arity, self.q = table.n_parents, s, q

    def push(self, law: Array) -> Array:
        """Law of the parent when the children are independent, each of this law.

        Normalised: an excess in the sum would grow as its power arity**depth.
        """
        weights = np.ones(())
        for _ in range(self.arity):
            weights = weights[..., None] * law
        out = np.bincount(self.parent.ravel(), weights.ravel(), self.n_parents)
        return np.asarray(out / out.sum(), np.float64)

    def pull(self, values: Array, law: Array, branch: int) -> Array:
        """Mean over the siblings of values[parent, other parent] when child `branch` is exchanged.

        From (n, q_d, q_d) to (n, q', q'): the pair chain T_r of the siblings' law.
        """
        parents = np.moveaxis(self.parent, branch, 0).reshape(self.q, -1)
        weights = np.ones(())
        for _ in range(self.arity - 1):
            weights = weights[..., None] * law
        out = np.zeros((len(values), self.q, self.q))
        for column, weight in zip(parents.T, weights.ravel(), strict=True):
            if weight > 0:
                out += weight * values[:, column[:, None], column]
        return out


@ieee()
def influences(model: TreeModel) -> Array:
    """Probability that exchanging one leaf changes the root, for every leaf.

    Leaves are uniform and independent, and the new symbol is another one, uniformly.

    Parameters
    ----------
    model : TreeModel
        Unfiltered, unambiguous, each tuple of children with a parent. The probabilities of its rules
        play no part.

    Returns
    -------
    ndarray of float64, shape (n_leaves,)

    Raises
    ------
    ArgumentError
        For a filtered model: its leaves do not determine the root.
    GrammarError
        For an ambiguous table or one that is not full.

    Notes
    -----
    A pair of symbols (b, b') of a child becomes the pair (f(b, c), f(b', c)) of the parent, averaged
    over the symbols c of the siblings; the chain is followed from the root to all leaves at once:
    O(L q**(arity + 1)).

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> theory.influences(hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    check_model(model)
    if model.filter_level:
        raise ArgumentError(
            f"model must have filter_level 0, got {model.filter_level}: only then do the leaves "
            "determine the root; use model.filtered(0)"
        )
    functions = [
        _Function(model.grammar.table(d), f"the table of level {d}") for d in range(model.depth)
    ]
    laws = [np.full(model.vocab_size, 1.0 / model.vocab_size)]
    for function in reversed(functions[1:]):
        laws.append(function.push(laws[-1]))
    q = model.n_classes
    values = (1.0 - np.eye(q))[None]
    for function, law in zip(functions, reversed(laws), strict=True):
        branches = [function.pull(values, law, r) for r in range(model.arity)]
        values = np.stack(branches, axis=1).reshape(-1, function.q, function.q)
    pairs = max(model.vocab_size * (model.vocab_size - 1), 1)
    return np.asarray(values.sum(axis=(1, 2)) / pairs)  # the diagonal is zero


def average_sensitivity(model: TreeModel) -> float:
    """Mean number of leaves whose exchange changes the root: the sum of `influences`.

    Arguments and errors as there. For two symbols the average sensitivity of a Boolean function.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> round(theory.average_sensitivity(model), 6)
    4.015625
    """
    return float(influences(model).sum())


def _only_table(grammar: Grammar, remedy: str) -> RuleTable:
    if not isinstance(grammar, Grammar):
        raise DTypeError(
            f"grammar must be a hfilter.Grammar, got {type(grammar).__name__}; "
            "of a model it is model.grammar"
        )
    if not grammar.is_shared:
        raise GrammarError(
            f"grammar must have one table that serves any depth, got one per level; {remedy}"
        )
    return grammar.table()


@ieee()
def sensitivity_exponent(grammar: Grammar) -> float:
    """Exponent α with which the average sensitivity grows: like n**α in the number n of leaves.

    Parameters
    ----------
    grammar : Grammar
        One table for all levels, unambiguous and full, at most 64 symbols.

    Returns
    -------
    float
        log_s of the spectral radius of the sum over branches of the pair chains on distinct pairs, s
        the arity. 1 for parity, 0 for a dictator, -inf where the sensitivity dies out faster than any
        power.

    Raises
    ------
    GrammarError
        For a table that is ambiguous, not full, too large, or under which the law of the symbols does
        not settle far above uniform leaves.

    Notes
    -----
    The siblings follow the law of nodes far above uniform leaves; it is uniform itself if all
    symbols have equally many rules. Costs O(q⁶): a second at q = 32, a minute at 64.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> theory.sensitivity_exponent(hfilter.Grammar.parity())
    1.0
    >>> round(theory.sensitivity_exponent(hfilter.Grammar.published(4, 1.0, 0)), 3)
    0.672
    """
    remedy = "for a model of several, take np.log(average_sensitivity(model)) / np.log(n_leaves)"
    function = _Function(_only_table(grammar, remedy), "grammar")
    q, s = function.q, function.arity
    if q > _MAX_PAIRS_ALPHABET:
        raise GrammarError(
            f"grammar has {q} symbols, more than {_MAX_PAIRS_ALPHABET}: the matrix of its pair chain "
            "would be too large; compare average_sensitivity at two depths"
        )
    law, settled = np.full(q, 1.0 / q), 0
    for _ in range(100_000):
        before, law = law, function.push(law)
        settled = settled + 1 if np.abs(law - before).max() < 1e-15 else 0
        if settled > 64:  # what dies out has become zero by then
            break
    else:
        raise GrammarError(
            "the law of the symbols does not settle far above uniform leaves, so the sensitivity has "
            "no single exponent; compare average_sensitivity at two depths"
        )
    first, second = np.triu_indices(q, 1)
    one_pair = np.zeros((len(first), q, q))
    one_pair[np.arange(len(first)), first, second] = 1.0
    one_pair[np.arange(len(first)), second, first] = 1.0
    chain = np.zeros((len(first), len(first)))
    for branch in range(s):
        chain += function.pull(one_pair, law, branch)[:, first, second]
    # Eigenvalues of a nilpotent matrix come out as roots of the rounding, not as zero.
    if not np.linalg.matrix_power(chain > 0, len(chain)).any():
        return -np.inf
    return float(np.log(np.abs(np.linalg.eigvals(chain)).max()) / np.log(s))


class KestenStigum(NamedTuple):
    """The criterion of Kesten and Stigum.

    Attributes
    ----------
    value : float
        Σ_r |λ_r|², with λ_r the second eigenvalue in modulus of the channel to child r.
    above : bool
        Whether it exceeds 1: the counts of leaf symbols then keep a trace of the root at any depth.
    eigenvalues : ndarray of complex128, shape (arity, q)
        Of each channel, largest modulus first; the first is 1.
    """

    value: float
    above: bool
    eigenvalues: np.ndarray


@ieee()
def kesten_stigum(grammar: Grammar) -> KestenStigum:
    """Criterion of reconstruction for the children's channels taken as independent.

    Parameters
    ----------
    grammar : Grammar
        One table for all levels.

    Returns
    -------
    KestenStigum

    Raises
    ------
    GrammarError
        For a grammar with a table per level.

    Notes
    -----
    For equal channels s λ² against 1 (Kesten and Stigum 1966), for unequal ones with common
    eigenvectors the sum. It speaks of the grammar in which children are independent given their
    parent; correlated children, as rules have them, can only be told by inference: see
    `root_accuracy`.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> found = theory.kesten_stigum(hfilter.Grammar.broadcast(2, 0.5))
    >>> round(found.value, 6), found.above
    (0.5, False)
    """
    table = _only_table(grammar, "the criterion is about one channel applied again and again")
    found = [np.linalg.eigvals(table.marginal(r)).astype(complex) for r in range(table.arity)]
    values = np.stack([x[np.argsort(-np.abs(x), kind="stable")] for x in found])
    value = float((np.abs(values[:, 1:2]) ** 2).sum())
    return KestenStigum(value, value > 1.0, values)
