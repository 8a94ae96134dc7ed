"""Closed forms of a `TreeModel`: what only a solvable model can give, without sampling.

Every function takes a model (or a grammar) and returns NumPy arrays and floats in double precision,
in nats. Where a closed form does not exist because the grammar is ambiguous, or would need a table
of more joint states than `max_states`, an error says so and names the Monte Carlo estimate, which
is always called ``…_estimate`` and returns an `Estimate` with its standard error.

======================================  ============================================================
`node_laws`                             marginal law of every node
`entropy`, `next_token_entropy`         of the leaves; the optimal causal loss at each position
`mlm_floor`                             optimal loss and accuracy with one hidden leaf
`root_accuracy`, `root_entropy`         of the root, given all leaves
`pair_law`, `mutual_information`        two leaves: by height of their ancestor and by distance
`filtering_loss`, `grammar_kl`          divergences between filter levels, between grammars
`influences`, `average_sensitivity`,    of the root as a function of the leaves
`sensitivity_exponent`
`kesten_stigum`                         is the root found again through independent channels?
`collision_probability`,                how often do sequences come twice?
`expected_duplicates`, …
======================================  ============================================================
"""

from __future__ import annotations

from .collisions import (
    collision_probability,
    expected_distinct,
    expected_distinct_estimate,
    expected_duplicates,
    log_collision_probability,
)
from .divergence import filtering_loss, grammar_kl, grammar_kl_estimate
from .entropies import entropy, entropy_estimate, next_token_entropy, next_token_entropy_estimate
from .floors import (
    MlmFloor,
    MlmFloorEstimate,
    mlm_floor,
    mlm_floor_estimate,
    root_accuracy,
    root_accuracy_estimate,
    root_entropy,
    root_entropy_estimate,
)
from .information import MutualInformation, mutual_information, pair_law
from .law import Estimate, node_laws
from .sensitivity import (
    KestenStigum,
    average_sensitivity,
    influences,
    kesten_stigum,
    sensitivity_exponent,
)

__all__ = [
    "Estimate",
    "KestenStigum",
    "MlmFloor",
    "MlmFloorEstimate",
    "MutualInformation",
    "average_sensitivity",
    "collision_probability",
    "entropy",
    "entropy_estimate",
    "expected_distinct",
    "expected_distinct_estimate",
    "expected_duplicates",
    "filtering_loss",
    "grammar_kl",
    "grammar_kl_estimate",
    "influences",
    "kesten_stigum",
    "log_collision_probability",
    "mlm_floor",
    "mlm_floor_estimate",
    "mutual_information",
    "next_token_entropy",
    "next_token_entropy_estimate",
    "node_laws",
    "pair_law",
    "root_accuracy",
    "root_accuracy_estimate",
    "root_entropy",
    "root_entropy_estimate",
    "sensitivity_exponent",
]
