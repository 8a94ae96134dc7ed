"""Every exception that hfilter raises on purpose.

All derive from `HFilterError` and from the built-in a caller would expect, so both
``except hfilter.errors.HFilterError`` and ``except ValueError`` work. A message names the argument,
what was wanted, what came, and the remedy.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BackendUnavailable",
    "DTypeError",
    "DataError",
    "GrammarError",
    "HFilterError",
    "KernelError",
    "ShapeError",
]


class HFilterError(Exception):
    """Base of all errors of this package."""


class ArgumentError(HFilterError, ValueError):
    """A value is outside its range (a depth, a filter level, a token, a count)."""


class ShapeError(HFilterError, ValueError):
    """An array has the wrong number of axes or the wrong lengths."""


class DTypeError(HFilterError, TypeError):
    """An array or argument has a type that cannot be meant."""


class GrammarError(HFilterError, ValueError):
    """A tensor is not a grammar, or the parameters of a family contradict each other."""


class BackendUnavailable(HFilterError, RuntimeError):
    """A backend was asked for that this installation or machine does not have."""


class DataError(HFilterError, OSError):
    """A file is not ours, is damaged, or cannot be written."""


class KernelError(HFilterError, RuntimeError):
    """A compiled kernel refused its arguments: a defect of hfilter, please report it."""
