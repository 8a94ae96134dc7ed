"""What denoisers are measured by: against exact inference, against each other, against memory."""

from __future__ import annotations

from .asking import spread_times
from .divergence import (
    AlongTime,
    Sequential,
    SplitDivergence,
    along_time,
    sequential,
    split_divergence,
    split_matrix,
)
from .onsets import Onset, OnsetDifference, onset, onset_difference
from .resampling import Resamples, Spread, over_models, resample

__all__ = [
    "AlongTime",
    "Onset",
    "OnsetDifference",
    "Resamples",
    "Sequential",
    "SplitDivergence",
    "Spread",
    "along_time",
    "onset",
    "onset_difference",
    "over_models",
    "resample",
    "sequential",
    "split_divergence",
    "split_matrix",
    "spread_times",
]
