"""Learning a grammar from sequences: maximum likelihood, by expectation and maximisation.

`fit_grammar` learns, with roots or without, at any filter level, with hidden leaves, with known rules
or all of them. `align` gives its latent symbols the names of the truth's, `grammar_distance` says how
far it is, and `learning_curve` how many sequences it takes.
"""

from __future__ import annotations

from .alignment import Alignment, GrammarDistance, align, grammar_distance
from .curve import LearningCurve, learning_curve
from .em import fit_grammar
from .outcome import Fit, Progress

__all__ = [
    "Alignment",
    "Fit",
    "GrammarDistance",
    "LearningCurve",
    "Progress",
    "align",
    "fit_grammar",
    "grammar_distance",
    "learning_curve",
]
