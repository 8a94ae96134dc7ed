"""What the operations of a `TreeModel` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .errors import ArgumentError

__all__ = ["Posterior", "ProbableTree", "Sample"]


@dataclass(frozen=True, eq=False, repr=False)
class Sample:
    """Sampled trees.

    Attributes
    ----------
    roots : array of unsigned int, shape (n,)
    leaves : array of unsigned int, shape (n, n_leaves)
    levels : dict of int to array
        With ``levels=True``: level ``d`` has shape (n, arity**d), for the levels that exist.
    """

    roots: Any
    leaves: Any
    levels: dict[int, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        levels = f", levels={sorted(self.levels)}" if self.levels else ""
        return f"Sample(roots={_shape(self.roots)}, leaves={_shape(self.leaves)}{levels})"


@dataclass(frozen=True, eq=False, repr=False)
class ProbableTree:
    """The most probable tree of n rows of evidence.

    Attributes
    ----------
    roots : array of unsigned int, shape (n,)
    leaves : array of unsigned int, shape (n, n_leaves)
    log_prob : array of float64, shape (n,)
        ln P(tree, evidence) in nats.
    levels : dict of int to array
        Level ``d`` has shape (n, arity**d), for the levels that were asked for.
    """

    roots: Any
    leaves: Any
    log_prob: Any
    levels: dict[int, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept = f"leaves={_shape(self.leaves)}, levels={sorted(self.levels)}"
        return f"ProbableTree(roots={_shape(self.roots)}, {kept})"


@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """Exact posterior marginals of n rows.

    Attributes
    ----------
    log_evidence : array of float64, shape (n,)
        ``ln P(evidence)`` in nats; -inf where the grammar cannot produce the evidence.
    root : array, shape (n, n_classes)
        Belief of the root symbol.
    leaves : array, shape (n, n_leaves, q)
        Belief of every leaf.

    In a row of impossible evidence every belief is NaN.
    """

    log_evidence: Any
    root: Any
    leaves: Any
    _levels: dict[int, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        kept = (
            f"root={_shape(self.root)}, leaves={_shape(self.leaves)}, levels={sorted(self._levels)}"
        )
        return f"Posterior(log_evidence={_shape(self.log_evidence)}, {kept})"

    def level(self, d: int) -> Any:
        """Beliefs of level `d`, shape (n, arity**d, q_d); internal levels must have been asked for."""
        if d in self._levels:
            return self._levels[d]
        raise ArgumentError(
            f"level {d} is not here: it was not asked for with infer(..., levels=), or it does not exist "
            f"at this filter level and depth; here are levels {sorted(self._levels)}"
        )


def _shape(x: Any) -> str:
    return f"<{x.dtype} {tuple(x.shape)}>"
