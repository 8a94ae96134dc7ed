"""What a fit returns, and what it tells on the way."""

from __future__ import annotations

from dataclasses import dataclass

from ..exact import TreeModel
from ..grammar import Grammar
from .parameters import Array

__all__ = ["Fit", "Progress"]


@dataclass(frozen=True)
class Progress:
    """What a callable given as `progress` is told after every E-step.

    Attributes
    ----------
    restart, restarts, iteration : int
    log_likelihood : float
        Nats per sequence (with `pseudo_count`: the objective).
    gain : float
        Over the iteration before; NaN at the first.
    seconds : float
        Since the call began.
    """

    restart: int
    restarts: int
    iteration: int
    log_likelihood: float
    gain: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Fit:
    """A grammar learned from sequences.

    Attributes
    ----------
    model : TreeModel
        The best restart's grammar, at the depth and filter level it was fitted at.
    log_likelihood : float
        Of what it was learned from under `model`, in nats per sequence; with roots, jointly of leaves
        and known roots.
    traces : tuple of ndarray of float64
        For every restart, the objective at each iteration, in nats per sequence: the log-likelihood,
        plus ``pseudo_count * sum(ln probability) / n`` if there are pseudo-counts. Never decreasing,
        up to rounding.
    best_restart : int
        The one with the highest last value; the first of equal ones.
    converged : tuple of bool
        For every restart, whether the last iteration gained less than `tolerance`.
    n_sequences : float
        Number of rows, or sum of the weights.
    supervised : bool
        Whether roots were given, so that root symbols have meanings.
    """

    model: TreeModel
    log_likelihood: float
    traces: tuple[Array, ...]
    best_restart: int
    converged: tuple[bool, ...]
    n_sequences: float
    supervised: bool

    @property
    def grammar(self) -> Grammar:
        """The best restart's grammar."""
        return self.model.grammar

    @property
    def root_prior(self) -> Array:
        """The best restart's law of the root, shape (n_classes,)."""
        return self.model.root_prior

    @property
    def n_iterations(self) -> tuple[int, ...]:
        """M-steps of every restart."""
        return tuple(len(trace) - 1 for trace in self.traces)

    def __repr__(self) -> str:
        best = self.best_restart
        how = "converged" if self.converged[best] else "not converged"
        return (
            f"Fit: {self.log_likelihood:.6f} nats per sequence, restart {best} of "
            f"{len(self.traces)} ({self.n_iterations[best]} iterations, {how}), "
            f"{self.grammar.n_rules} rules"
        )
