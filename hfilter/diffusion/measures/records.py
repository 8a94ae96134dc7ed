"""Results as plain Python values, for JSON."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

__all__ = ["plain"]


def plain(record: Any) -> dict[str, Any]:
    """Fields of a frozen record: arrays as lists, NumPy numbers as Python's, records inside too."""
    return {field.name: _value(getattr(record, field.name)) for field in fields(record)}


def _value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return [_value(one) for one in value]
    return value.as_dict() if hasattr(value, "as_dict") else value
