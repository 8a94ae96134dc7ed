"""All studies by name."""

from __future__ import annotations

from hfilter.experiments.lab import (
    accuracies,
    attention,
    bias,
    biased_samples,
    complexity,
    depth,
    diffusion_reference,
    finetune,
    forward_backward,
    next_token,
    probes,
    scatter,
    staircase,
    targets,
    transfers,
)
from hfilter.experiments.lab.study import Study

__all__ = ["STUDIES"]

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        staircase, scatter, probes, accuracies, attention, finetune, transfers, depth, complexity, targets,
        next_token, bias, biased_samples, diffusion_reference, forward_backward,
    )
}  # fmt: skip
