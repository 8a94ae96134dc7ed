"""What `TreeModel.sample` and `TreeModel.infer` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .errors import ArgumentError

__all__ = ["Posterior", "Sample"]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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

    def level(self, d: int) -> Any:
        """Beliefs of level `d`, shape (n, arity**d, q_d); internal levels must have been asked for."""
        if d in self._levels:
            return self._levels[d]
        raise ArgumentError(
            f"beliefs of level {d} were not computed or do not exist; here are levels {sorted(self._levels)}; "
            'ask with infer(..., levels="all")'
        )
