"""Diffusion on trees: denoisers with known answers, processes that run on them, and what is measured.

Time t is an integer from 1 to T; t = 0 is the clean data. A denoiser is a function (x_t, t) -> (n, L, q).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .denoisers import Denoiser, ExactDenoiser, MarginalPrior, TokenPrior
from .density import log_density, score
from .empirical import StoredRows, empirical_posterior
from .memorising import EmpiricalDenoiser
from .nearest import Nearest, nearest
from .reverse import Reverse, exact_end, generate, reverse
from .susceptibility import Susceptibility, susceptibility, susceptibility_of
from .trees import TreeOverlap, mean_field, parse, tree_overlap
from .uturn import UTurn, random_leaves, u_turn

if TYPE_CHECKING:
    from .learned import LearnedDenoiser as LearnedDenoiser

__all__ = [
    "Denoiser",
    "EmpiricalDenoiser",
    "ExactDenoiser",
    "MarginalPrior",
    "Nearest",
    "Reverse",
    "StoredRows",
    "Susceptibility",
    "TokenPrior",
    "TreeOverlap",
    "UTurn",
    "empirical_posterior",
    "exact_end",
    "generate",
    "log_density",
    "mean_field",
    "nearest",
    "parse",
    "random_leaves",
    "reverse",
    "score",
    "susceptibility",
    "susceptibility_of",
    "tree_overlap",
    "u_turn",
]


def __getattr__(name: str) -> Any:
    if name == "LearnedDenoiser":  # the one name here that needs torch
        from .learned import LearnedDenoiser

        return LearnedDenoiser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
