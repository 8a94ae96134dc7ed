"""What the closed forms share: the law of a tree, which of its nodes the leaves determine, estimates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import check_int
from ..compiled import ieee
from ..errors import ArgumentError, DTypeError
from ..exact import TreeModel
from ..rules import RuleTable

__all__ = [
    "MAX_STATES",
    "Array",
    "Budget",
    "Estimate",
    "Law",
    "check_model",
    "conditional_entropy",
    "estimate",
    "law_of",
    "marginal",
    "node_laws",
    "rule_entropies",
]

Array = NDArray[np.float64]

MAX_STATES = 2**24  # entries of the largest table, 128 MB


class Estimate(NamedTuple):
    """A Monte Carlo estimate.

    Attributes
    ----------
    value : float or ndarray
        Mean over the sampled rows.
    standard_error : float or ndarray
        Standard deviation over the rows by the root of their number.
    """

    value: Any
    standard_error: Any


def estimate(blocks: Callable[[int, int], Array], n: int, row_values: int) -> Estimate:
    """Mean and standard error over rows; `blocks(start, count)` gives the rows' values.

    Blocks keep about 2**22 values; their sums of squares are joined around the running mean, so that
    a small spread on a large mean survives.
    """
    check_int("n", n, 2)
    size = max(1, 2**22 // max(row_values, 1))
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for start in range(0, n, size):
        rows = np.asarray(blocks(start, min(size, n - start)), np.float64)
        here, m = rows.mean(axis=0), len(rows)
        step = here - mean
        total = count + m
        squares = squares + ((rows - here) ** 2).sum(axis=0) + step**2 * (count * m / total)
        mean = mean + step * (m / total)
        count = total
    error = np.sqrt(squares / (count - 1) / count)
    return Estimate(_plain(mean), _plain(error))


def _plain(x: Array) -> Any:
    return float(x) if x.ndim == 0 else x


def check_model(model: Any, name: str = "model") -> TreeModel:
    """Return `model` if it is a TreeModel; else an error that says how to make one."""
    if not isinstance(model, TreeModel):
        raise DTypeError(
            f"{name} must be a hfilter.TreeModel, got {type(model).__name__}; "
            "make one from a grammar with hfilter.TreeModel(grammar, depth)"
        )
    return model


@dataclass(frozen=True)
class Budget:
    """The largest table that a function may hold, and what to tell a user who needs more."""

    name: str
    max_states: int
    otherwise: str

    @classmethod
    def of(cls, name: str, max_states: Any, otherwise: str) -> Budget:
        """Check the user's `max_states`."""
        return cls(name, check_int("max_states", max_states, 1), otherwise)

    def spend(self, *sizes: int) -> None:
        """Refuse a table of these lengths before it is made."""
        needed = 1
        for size in sizes:
            needed *= size
        if needed > self.max_states:
            shown = str(needed) if needed < 2**62 else "more than 10**18"
            raise ArgumentError(
                f"{self.name} needs a table of {shown} joint states for this model, more than "
                f"max_states = {self.max_states}; raise max_states (8 bytes a state), or "
                f"{self.otherwise}"
            )


def marginal(table: RuleTable, places: Sequence[int]) -> Array:
    """Joint law of some children given the parent, shape (n_parents, q', …), in the order of `places`."""
    q = table.n_symbols
    code = table.parents.astype(np.int64)
    for place in places:
        code = code * q + table.children[:, place]
    size = table.n_parents * q ** len(places)
    out: Array = np.bincount(code, weights=table.probability, minlength=size).astype(np.float64)
    return out.reshape((table.n_parents,) + (q,) * len(places))


def row_sums(rows: Array) -> Array:
    """Sum over the last of two axes: on short rows many times faster than `sum`."""
    return np.asarray(rows @ np.ones(rows.shape[1]))


def conditional_entropy(joint: Array) -> float:
    """H(column | row) of a joint law of two variables, shape (rows, columns)."""
    rows = row_sums(joint)[:, None]
    ratio = np.divide(joint, rows, out=np.zeros_like(joint), where=rows > 0)
    # A ratio of subnormal numbers may round to nothing: look at it, not at the law.
    logs = np.log(ratio, out=np.zeros_like(ratio), where=ratio > 0)
    return -float(np.vdot(joint, logs)) + 0.0


@dataclass(frozen=True)
class Law:
    """The law of a tree, as far as closed forms need it.

    Attributes
    ----------
    prior : ndarray, shape (q_0,)
    tables : tuple of RuleTable
        Level by level, root first.
    filter_level : int
    channels : ndarray, shape (arity**filter_level, q_0, q_k)
        Empty for filter level 0.
    cut : int
        From this level down, every node that exists is a function of the leaves below it: among the
        symbols that can occur no tuple of children has two parents. At most `depth`.
    """

    prior: Array
    tables: tuple[RuleTable, ...]
    filter_level: int
    channels: Array
    cut: int

    @property
    def depth(self) -> int:
        """Levels below the root."""
        return len(self.tables)

    @property
    def arity(self) -> int:
        """Children per node."""
        return self.tables[0].arity

    def alphabet(self, level: int) -> int:
        """Number of symbols of a level."""
        return len(self.prior) if level == 0 else self.tables[level - 1].n_symbols

    def n_states(self, level: int) -> int:
        """Joint states of what is determined of a complete subtree whose root is on `level`."""
        below = max(self.cut, level)
        nodes: int = self.arity ** (below - level)
        if level == 0 and self.filter_level:
            nodes = self.arity**below
        q = self.alphabet(below)
        return q**nodes if nodes * np.log2(q) < 62 else 2**62  # no table has that many

    def joint(self, level: int, budget: Budget) -> Array | None:
        """Law of those states given the subtree's root, (q_level, n_states); None for the identity."""
        if level == 0 and self.filter_level:
            return self._star_joint(budget)
        if level >= self.cut:
            return None
        budget.spend(self.alphabet(level), self.n_states(level))
        below = self.joint(level + 1, budget)
        table = self.tables[level]
        budget.spend(table.n_parents, *[table.n_symbols] * self.arity)
        full = marginal(table, range(self.arity))
        return replace_symbols(full, below, self.arity).reshape(table.n_parents, -1)

    def _star_joint(self, budget: Budget) -> Array:
        budget.spend(len(self.prior), self.n_states(0))
        out = np.ones((len(self.prior), 1))
        for node in self.star(budget):
            out = (out[:, :, None] * node[:, None, :]).reshape(len(out), -1)
        return out

    def star(self, budget: Budget) -> list[Array]:
        """What is determined of each node of the filter level given the root, (q_0, states) each."""
        below = self.joint(self.filter_level, budget)
        return [c if below is None else c @ below for c in self.channels]

    def contexts(
        self, causal: bool, budget: Budget, height: int | None = None
    ) -> Iterator[tuple[int, Array]]:
        """Every leaf with the joint law of its context and itself, shape (states, q).

        The context is what the leaves before it (`causal`) or all others determine, as far as they lie
        in the subtree of that height around it: the symbols of complete subtrees, from the `cut` level
        down.
        """
        k, s = self.filter_level, self.arity
        top = 0 if height is None else self.depth - height
        pieces = _Pieces(self, causal, budget)
        if top >= k:  # every subtree stands alone, its root following the marginal law
            yield from pieces.walk([(top, i, law[None]) for i, law in enumerate(self.nodes(top))])
            return
        star, window = self.star(budget), s ** (k - top)
        # Refuse before hours of work, but only where so many states are possible for sure.
        seen = star[: window - 1]
        choices = np.sum([np.log2((given > 0).sum(axis=1)) for given in seen], axis=0)
        budget.spend(2 ** min(62, int(choices[self.prior > 0].max())))
        for node in range(s**k):
            first = node - node % window
            others = range(first, node if causal else first + window)
            rows = self.prior[None]
            for i in others:
                if i != node:
                    budget.spend(len(rows), *star[i].shape)
                    rows = rows[:, None, :] * star[i].T[None]
                    rows = _possible(rows.reshape(-1, rows.shape[2]))
            yield from pieces.walk([(k, node, rows @ self.channels[node])])

    def nodes(self, level: int) -> Array:
        """Marginal law of every node of a level, shape (arity**level, q_level)."""
        laws = self.prior[None]
        for table in self.tables[:level]:
            children = [laws @ table.marginal(r) for r in range(table.arity)]
            laws = np.stack(children, axis=1).reshape(-1, table.n_symbols)
        return laws


class _Pieces:
    """Steps from a node to its children, remembering what the other children determine."""

    def __init__(self, law: Law, causal: bool, budget: Budget) -> None:
        self.law, self.causal, self.budget = law, causal, budget
        self.steps: dict[tuple[int, int], Array] = {}

    def step(self, level: int, branch: int) -> Array:
        """Law of (states of the other children, child `branch`) given the parent, (q, states, q')."""
        key = (level, branch)
        if key not in self.steps:
            law, budget = self.law, self.budget
            table = law.tables[level]
            others = [
                r for r in range(law.arity) if r < branch or (r != branch and not self.causal)
            ]
            q = table.n_symbols
            budget.spend(table.n_parents, q, *[max(law.n_states(level + 1), q)] * len(others))
            below = law.joint(level + 1, budget)
            full = marginal(table, [*others, branch])
            full = replace_symbols(full, below, len(others))
            self.steps[key] = full.reshape(table.n_parents, -1, q)
        return self.steps[key]

    def walk(self, stack: list[tuple[int, int, Array]]) -> Iterator[tuple[int, Array]]:
        law = self.law
        while stack:
            level, index, rows = stack.pop()
            if level == law.depth:
                yield index, rows
                continue
            for branch in range(law.arity):
                step = self.step(level, branch)
                self.budget.spend(len(rows), step.shape[1], step.shape[2])
                joint = rows @ step.reshape(len(step), -1)
                child = _possible(joint.reshape(-1, step.shape[2]))
                stack.append((level + 1, law.arity * index + branch, child))


def _possible(rows: Array) -> Array:
    kept = row_sums(rows) > 0
    return rows if kept.all() else rows[kept]


def replace_symbols(full: Array, below: Array | None, axes: int) -> Array:
    """Turn the first `axes` children axes of a law (parent first) into axes of determined states."""
    if below is not None:
        for _ in range(
            axes
        ):  # each contraction moves its axis to the end; in the end all have turned
            full = np.tensordot(full, below, axes=(1, 0))
        rest = full.ndim - 1 - axes
        full = np.moveaxis(full, range(1, 1 + rest), range(-rest, 0)) if rest else full
    return full


def make_law(prior: Array, tables: tuple[RuleTable, ...], k: int, channels: Array) -> Law:
    """A law with its cut level: the lowest levels whose rules are unambiguous where they can occur."""
    reach = prior > 0
    cut = k
    for level, table in enumerate(tables):
        used = reach[table.parents]
        children = table.children[used]
        if level >= k and len(np.unique(children, axis=0)) < len(children):
            cut = level + 1
        reach = np.zeros(table.n_symbols, bool)
        reach[children.ravel()] = True
    return Law(prior, tables, k, channels, cut)


def law_of(model: TreeModel) -> Law:
    """The law of a model."""
    tables = tuple(model.grammar.table(d) for d in range(model.depth))
    empty = np.empty((0, model.n_classes, 0))
    k = model.filter_level
    return make_law(model.root_prior, tables, k, model.channels if k else empty)


def totals(prior: Array, tables: Sequence[RuleTable]) -> list[Array]:
    """Marginal laws summed over the nodes of each level: expected counts of the symbols, (q_d,)."""
    out = [prior]
    for table in tables:
        out.append(out[-1] @ sum(table.marginal(r) for r in range(table.arity)))
    return out


def rule_entropies(table: RuleTable) -> Array:
    """Entropy of the choice of a rule, for each parent, shape (n_parents,)."""
    p = table.probability
    found = np.bincount(table.parents, weights=-p * np.log(p), minlength=table.n_parents)
    return found.astype(np.float64)


@ieee()
def node_laws(model: TreeModel) -> list[Array]:
    """Marginal law of every node.

    Parameters
    ----------
    model : TreeModel

    Returns
    -------
    list of ndarray of float64
        Level d (0 = root) has shape (arity**d, q_d). The laws are the same for every filter level:
        levels that a filtered model leaves out are given as they are at filter level 0.

    Notes
    -----
    HF Eq. 3. Costs one pass from the root: O(L q²).

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=3)
    >>> [law.shape for law in theory.node_laws(model)]
    [(1, 2), (2, 2), (4, 2), (8, 2)]
    """
    law = law_of(check_model(model))
    return [law.nodes(d).copy() for d in range(model.depth + 1)]
