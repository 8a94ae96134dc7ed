"""What the demo measured, as plain numbers: the one thing its tables, figures and page read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Climb", "DemoRecord", "Draw", "Tables"]


@dataclass(frozen=True)
class Draw:
    """The drawn sequences.

    Attributes
    ----------
    sequences, leaves : int
        How many sequences, and leaves in each.
    seconds : float
        Time in the sampler alone.
    frequencies, exact : ndarray, shape (L, q)
        Observed and exact probability of every symbol at every leaf.
    largest_deviation : float
        Largest ``|observed - exact|`` in standard errors, over the ``L q`` cells.
    """

    sequences: int
    leaves: int
    seconds: float
    frequencies: np.ndarray
    exact: np.ndarray
    largest_deviation: float

    @property
    def rate(self) -> float:
        """Sequences per second."""
        return self.sequences / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Tables:
    """Exact accuracies, arrays of shape (K, K): ``[data level, level of the exact predictor]``.

    Attributes
    ----------
    rows : int
        Sequences per data level.
    root, root_se, mlm, mlm_se : ndarray
        Accuracies and standard errors for the root and for one hidden leaf.
    mlm_cross_entropy, mlm_cross_entropy_se : ndarray
        Nats per hidden leaf; infinite where the predictor excludes a truth.
    seconds : float
        Time spent.
    """

    rows: int
    root: np.ndarray
    root_se: np.ndarray
    mlm: np.ndarray
    mlm_se: np.ndarray
    mlm_cross_entropy: np.ndarray
    mlm_cross_entropy_se: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Climb:
    """An encoder along its training, on held-out sequences with one hidden leaf each.

    Attributes
    ----------
    steps, cross_entropy, accuracy : ndarray, shape (T,)
        Update counts and what was measured after them; nats per hidden leaf.
    divergence : ndarray, shape (T, K)
        ``KL(BP_k || encoder)`` in nats per hidden leaf.
    floors, exact_accuracy : ndarray, shape (K,)
        Cross-entropy and accuracy of ``BP_k`` on the same sequences.
    attention : ndarray, shape (layers, L, L)
        Attention of the trained encoder, averaged over inputs and heads.
    held_out, batch_size, parameters : int
        Sequences of the held-out set, sequences per update, trainable numbers.
    seconds : float
        Duration of the training, evaluations included, over all its parts if it was resumed.
    """

    steps: np.ndarray
    cross_entropy: np.ndarray
    accuracy: np.ndarray
    divergence: np.ndarray
    floors: np.ndarray
    exact_accuracy: np.ndarray
    attention: np.ndarray
    held_out: int
    batch_size: int
    parameters: int
    seconds: float

    @property
    def closest(self) -> np.ndarray:
        """The step at which the encoder was nearest to ``BP_k``, for every k."""
        return np.asarray(self.steps[np.argmin(self.divergence, axis=0)])


@dataclass(frozen=True)
class DemoRecord:
    """Everything on the page.

    Attributes
    ----------
    settings, provenance, model : dict
        What was asked for, what made it, and which model (its ``describe()``).
    rules : list of (parent, children, probability)
        The grammar's rules at the root.
    tree : list of ndarray
        The levels of one sampled tree, from the root down.
    draw, tables, climb
        The three parts of the demo.
    seconds : float
        Duration of the whole.
    """

    settings: dict[str, Any]
    provenance: dict[str, Any]
    model: dict[str, Any]
    rules: list[tuple[int, tuple[int, ...], float]]
    tree: list[np.ndarray]
    draw: Draw
    tables: Tables
    climb: Climb
    seconds: float
