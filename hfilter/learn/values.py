"""Checks of a configuration's values; what passes is plain Python, which JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from hfilter.errors import ArgumentError

__all__ = ["number", "several", "whole"]


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """The value as an int; NumPy's integers are integers, a bool or 2.0 is none."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise ArgumentError(f"{name} must be at least {low} and whole, got {value!r}")
    if high is not None and int(value) > high:
        raise ArgumentError(f"{name} must be at most {high}, got {value!r}")
    return int(value)


def number(name: str, value: Any) -> Any:
    """The value, if it is a real number; NumPy's become Python's, which JSON can hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentError(f"{name} must be a number, got {value!r}")
    plain: type = type(value)
    return value if plain in (int, float) else float(value)


def several(name: str, what: str, value: Any) -> tuple[Any, ...]:
    """The value as a tuple, if it is one of several things and no text."""
    try:
        if not isinstance(value, str | Mapping):
            return tuple(value)
    except TypeError:
        pass
    raise ArgumentError(f"{name} must be a tuple of {what}, got {value!r}")
