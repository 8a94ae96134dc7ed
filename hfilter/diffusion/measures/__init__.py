"""What denoisers are measured by: against exact inference, against each other, against memory."""

from __future__ import annotations

from .asking import spread_times
from .coordinate import MemoryCoordinate, memory_coordinate
from .decomposition import LossParts, loss_decomposition
from .divergence import (
    AlongTime,
    Sequential,
    SplitDivergence,
    along_time,
    sequential,
    split_divergence,
    split_matrix,
)
from .mutual import Mutual, coupled_samples, mutual_distance
from .neighbours import DistanceDivergence, Neighbours, distance_divergence, neighbour_divergence
from .onsets import Onset, OnsetDifference, onset, onset_difference
from .resampling import Resamples, Spread, over_models, resample

__all__ = [
    "AlongTime",
    "DistanceDivergence",
    "LossParts",
    "MemoryCoordinate",
    "Mutual",
    "Neighbours",
    "Onset",
    "OnsetDifference",
    "Resamples",
    "Sequential",
    "SplitDivergence",
    "Spread",
    "along_time",
    "coupled_samples",
    "distance_divergence",
    "loss_decomposition",
    "memory_coordinate",
    "mutual_distance",
    "neighbour_divergence",
    "onset",
    "onset_difference",
    "over_models",
    "resample",
    "sequential",
    "split_divergence",
    "split_matrix",
    "spread_times",
]
