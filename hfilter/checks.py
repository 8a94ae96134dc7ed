"""Checks of single arguments, shared by every public door: one wording for one mistake."""

from __future__ import annotations

import math
import operator
from typing import Any

from .errors import ArgumentError, DTypeError

__all__ = ["check_float", "check_int", "check_seed"]


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high], or raise an error that names `name`."""
    if type(value) is int and low <= value and (high is None or value <= high):
        return value  # before any words are made
    wanted = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool):
        raise DTypeError(f"{name} must be {wanted}, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise DTypeError(
            f"{name} must be {wanted}, got {value!r} of type {type(value).__name__}"
        ) from None
    if number < low or (high is not None and number > high):
        raise ArgumentError(f"{name} must be {wanted}, got {number}")
    return number


def check_float(
    name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return `value` as a finite float in [low, high] (or (low, high]), or raise an error."""
    bracket = "(" if open_low else "["
    upper = "infinity)" if high == math.inf else f"{high:g}]"
    wanted = f"a finite number in {bracket}{low:g}, {upper}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DTypeError(
            f"{name} must be {wanted}, got {value!r} of type {type(value).__name__}"
        ) from None
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        raise ArgumentError(f"{name} must be {wanted}, got {number!r}")
    return number


def check_seed(name: str, value: Any) -> int:
    """Return a seed: an integer from 0 to 2**64 - 1."""
    return check_int(name, value, 0, 2**64 - 1)
