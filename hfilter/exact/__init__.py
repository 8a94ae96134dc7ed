"""The exact model: `TreeModel` and what its operations return."""

from __future__ import annotations

from ..results import Posterior, ProbableTree, Sample
from .model import TreeModel

__all__ = ["Posterior", "ProbableTree", "Sample", "TreeModel"]
