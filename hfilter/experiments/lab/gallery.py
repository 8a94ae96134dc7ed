"""All studies by name."""

from __future__ import annotations

from hfilter.experiments.lab import accuracies, complexity, depth, scatter, staircase, targets
from hfilter.experiments.lab.study import Study

__all__ = ["STUDIES"]

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (staircase, accuracies, scatter, depth, complexity, targets)
}
