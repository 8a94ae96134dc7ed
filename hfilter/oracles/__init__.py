"""Predictors whose answers are known: what every analysis is tried on before it meets a network.

All have two methods (`Predictor`): ``predict(leaves, mask=None)`` gives probabilities (n, L, q) of
every leaf given the visible ones, its own evidence left out, and ``predict_root(leaves, mask=None)``
those of the root, (n, n_classes).

- ``ExactBP``, ``Window``: the exact posterior, and that from the leaves of a subtree only;
- ``MixtureK``: the Bayes posterior when rows come from several models, e.g. filter levels;
- ``Memorizer``: the posterior under a data set of stored rows, through a noise channel;
- ``BannedCompositions``: the posterior of a grammar in which some rules never meet, with
  ``draw_bans``, ``list_adjacencies`` and ``banned_grammar``;
- ``GeometricMixture``, ``NoisyLogits``: known mistakes on top of other predictors, with
  ``geometric_mixture``, ``failure_probability``, and ``coordinate``, which finds a mixture again;
- ``noisy_fields``, ``include_evidence``: evidence through a noise channel, and the posterior of a
  leaf with its own evidence taken in.
"""

from __future__ import annotations

from .banned import BannedCompositions, banned_grammar, draw_bans, list_adjacencies
from .bp import ExactBP, Window
from .geometric import Coordinate, GeometricMixture, coordinate, geometric_mixture
from .interface import Predictor, include_evidence, noisy_fields
from .memory import Memorizer
from .mixture import MixtureK
from .noise import NoisyLogits, failure_probability

__all__ = [
    "BannedCompositions",
    "Coordinate",
    "ExactBP",
    "GeometricMixture",
    "Memorizer",
    "MixtureK",
    "NoisyLogits",
    "Predictor",
    "Window",
    "banned_grammar",
    "coordinate",
    "draw_bans",
    "failure_probability",
    "geometric_mixture",
    "include_evidence",
    "list_adjacencies",
    "noisy_fields",
]
