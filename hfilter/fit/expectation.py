"""The E-step: likelihood and expected counts of the rows under one grammar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compiled import ieee
from ..errors import GrammarError
from ..exact import TreeModel
from ..grammar import Grammar
from .data import UNKNOWN, Group, Rows
from .parameters import Array

__all__ = ["Engine", "Expected"]

_BLOCK = 2**21  # counts held at a time: 16 MB; fixed, as the rounding of sums depends on it


@dataclass(frozen=True)
class Expected:
    """Sums over all rows, by weight: ln P, uses of every rule, and of every symbol at the root."""

    log_likelihood: float
    rules: Array
    roots: Array


@dataclass(frozen=True)
class Engine:
    """The tree's shape and how its kernels are called.

    Attributes
    ----------
    depth, filter_level : int
    options : dict
        `dtype`, `backend` and `num_threads` of every call.
    """

    depth: int
    filter_level: int
    options: dict[str, Any]

    def model(self, grammar: Grammar, prior: Array) -> TreeModel:
        """A model of that shape."""
        return TreeModel(grammar, self.depth, self.filter_level, prior)

    @ieee()
    def expect(self, grammar: Grammar, prior: Array, rows: Rows, count_roots: bool) -> Expected:
        """Likelihood and counts. A known root is evidence: its group's prior is that symbol alone.

        Raises
        ------
        GrammarError
            If a row is impossible.
        """
        logs, roots = 0.0, np.zeros(len(prior))
        rules = np.zeros(grammar.n_rules)
        for group in rows.groups:
            if group.root == UNKNOWN:
                model = self.model(grammar, prior)
            elif prior[group.root] > 0:
                model = self.model(grammar, np.eye(len(prior))[group.root])
                logs += group.total * float(np.log(prior[group.root]))
                roots[group.root] += group.total
            else:
                _refuse(group, 0, f"root_prior excludes root {group.root}")
            found = np.asarray(model.log_prob(group.tokens, **self.options))
            if not np.isfinite(found).all():
                _refuse(
                    group, int(np.argmin(found)), "no tree of the allowed rules has these leaves"
                )
            logs += float(found.sum() if group.weights is None else (found * group.weights).sum())
            rules += self._rules(model, group)
            if count_roots and group.root == UNKNOWN:
                beliefs = np.asarray(model.root_posterior(group.tokens, **self.options), np.float64)
                roots += _weigh(beliefs, group.weights)
        return Expected(logs, rules, roots)

    def _rules(self, model: TreeModel, group: Group) -> Array:
        total = np.zeros(model.grammar.n_rules)
        size = max(16, min(4096, _BLOCK // len(total)))
        if group.weights is None and size == 4096:
            return np.asarray(model.expected_rule_counts(group.tokens, **self.options))
        for begin in range(0, len(group.tokens), size):
            part = slice(begin, begin + size)
            if group.weights is None:
                total += model.expected_rule_counts(group.tokens[part], **self.options)
                continue
            counts = model.expected_rule_counts(
                group.tokens[part], per_sequence=True, **self.options
            )
            total += _weigh(np.asarray(counts, np.float64), group.weights[part])
        return total


def _weigh(values: NDArray[Any], weights: Array | None) -> Array:
    """Weighted sum over rows: not by BLAS, whose rounding depends on its threads."""
    if weights is not None:
        values = values * weights[:, None]
    return np.asarray(values.sum(axis=0, dtype=np.float64))


def _refuse(group: Group, row: int, why: str) -> None:
    known = "" if group.root == UNKNOWN else f" with root {group.root}"
    raise GrammarError(
        f"row {int(group.index[row])} of leaves{known} is impossible: {why}; allow more in structure, "
        "init or root_prior, or leave the row out"
    )
