"""Noise that is a function of an index: schedules, channels, and the numbers they are made of.

A channel turns clean leaves into noisy ones (`Channel.corrupt`) and noisy ones into the evidence that
a `hfilter.TreeModel` takes (`Channel.log_fields`). Nothing here needs torch, unless tensors come in.
"""

from __future__ import annotations

from .channels import Channel, GaussianChannel
from .discrete import MaskingChannel, UniformChannel
from .gaussian import PURPOSES, integers, noise_leaves, normal, reverse_step, uniform
from .schedule import Schedule

__all__ = [
    "PURPOSES",
    "Channel",
    "GaussianChannel",
    "MaskingChannel",
    "Schedule",
    "UniformChannel",
    "integers",
    "noise_leaves",
    "normal",
    "reverse_step",
    "uniform",
]
