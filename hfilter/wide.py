"""Numbers whose range has no end, for messages (NumPy, double precision).

A number is ``value * 2**power``, the power a whole number kept as a float (-inf with the value 0).
So no evidence is too contradictory and a zero stays a zero; what is lost in a sum was below 2**-1022
of it. Powers of two cost no accuracy. Where the messages of a level are all within such a range that
no product of theirs underflows, which is the rule, they are ordinary floats: power None.

Messages are arrays (nodes, symbols, rows).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FAR",
    "Wide",
    "chunks",
    "expand",
    "finite",
    "join",
    "known",
    "log_sum",
    "normalise",
    "ordinary",
    "ratio",
    "settle",
    "shifted",
    "times",
    "wide",
]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

_CHUNK = 1 << 14  # numbers in an array of one step: a few such arrays stay in the cache
_LN2 = math.log(2.0)
FAR = -2100.0  # 2**FAR times anything in range is zero


class Wide(NamedTuple):
    """Numbers ``value * 2**power``, elementwise; power None: as if it were 0 everywhere."""

    value: Array
    power: Array | None

    def at(self, index: Any) -> Wide:
        """Some of the numbers."""
        return Wide(self.value[index], None if self.power is None else self.power[index])

    def take(self, index: Index) -> Wide:
        """Entries of axis 1."""
        power = None if self.power is None else self.power.take(index, axis=1)
        return Wide(self.value.take(index, axis=1), power)

    def reshape(self, *shape: int) -> Wide:
        """The numbers in another shape."""
        power = None if self.power is None else self.power.reshape(shape)
        return Wide(self.value.reshape(shape), power)


def wide(x: Any, power: Any = 0.0) -> Wide:
    """The numbers ``x * 2**power`` for finite x >= 0, with values in [1/2, 1) or 0."""
    value, exponent = np.frexp(x)
    return Wide(value, np.where(value > 0, exponent + power, -np.inf))


def times(x: Wide, y: Wide) -> Wide:
    """Products; values are not brought back to [1/2, 1), a few in a row do not underflow."""
    value = x.value * y.value
    if x.power is not None and y.power is not None:
        return Wide(value, x.power + y.power)
    power = y.power if x.power is None else x.power
    # A zero has no power, not that of its other factor.
    return Wide(value, None if power is None else np.where(value > 0, power, -np.inf))


def finite(top: Array) -> Array:
    """Largest powers, 0 where there is none because all numbers are zero."""
    return np.where(top == -np.inf, 0.0, top)


def shifted(value: Array, power: Array) -> Array:
    """``value * 2**power`` for power <= 0, as ordinary floats."""
    return np.asarray(np.ldexp(value, np.maximum(power, FAR).astype(np.int32)))


def ordinary(x: Wide, axis: int) -> tuple[Array, Array | None]:
    """Floats y and powers (of size 1 along the axis) with ``x = y * 2**power``, the largest y near 1."""
    if x.power is None:
        return x.value, None
    top = finite(x.power.max(axis=axis, keepdims=True))
    return shifted(x.value, x.power - top), top


def _least(arity: int) -> float:
    """The smallest number that as many as meet in a node can all be without underflow."""
    return float(2.0 ** (-1000 // (arity + 2)))


def known(x: Array, arity: int) -> Wide:
    """Given probabilities as factors of messages."""
    return Wide(x, None) if np.where(x > 0, x, 1.0).min() >= _least(arity) else wide(x)


def settle(x: Array, power: Array | None, arity: int) -> tuple[Wide, Array]:
    """Messages ``x * 2**power`` with their largest (of axis 1) in [1/2, 1), and the powers taken out."""
    least = _least(arity)
    if power is None:
        top = np.frexp(x.max(axis=1, keepdims=True))[1]
        value = np.ldexp(x, -top)
        if np.where(value > 0, value, 1.0).min() >= least:
            return Wide(value, None), top[:, 0].astype(np.float64)
    exact = wide(x, 0.0 if power is None else power)
    assert exact.power is not None
    highest = finite(exact.power.max(axis=1, keepdims=True))
    value = shifted(exact.value, exact.power - highest)
    if np.where(exact.value > 0, value, 1.0).min() >= least:
        return Wide(value, None), highest[:, 0]
    return Wide(exact.value, exact.power - highest), highest[:, 0]


def join(parts: list[Wide]) -> Wide:
    """Messages of all nodes of a level from those of some at a time."""
    if len(parts) == 1:
        return parts[0]
    value = np.concatenate([x.value for x in parts])
    if all(x.power is None for x in parts):
        return Wide(value, None)
    return Wide(value, np.concatenate([_explicit(x) for x in parts]))


def _explicit(x: Wide) -> Array:
    """Powers, written out."""
    return np.where(x.value > 0, 0.0, -np.inf) if x.power is None else x.power


def ratio(x: Array, total: Array) -> Array:
    """x / total for parts x of a total; 0 where the total is."""
    return x / np.where(total > 0, total, 1.0)


def log_sum(x: Wide, axis: int, best: bool = False) -> Array:
    """Natural logarithms of sums along an axis, or of the largest numbers."""
    linear, top = ordinary(x, axis)
    with np.errstate(divide="ignore"):
        out = np.log(linear.max(axis=axis) if best else linear.sum(axis=axis))
    return np.asarray(out if top is None else out + _LN2 * np.squeeze(top, axis))


def normalise(x: Wide, axis: int) -> Array:
    """Probabilities along an axis; NaN where all are zero."""
    linear, _ = ordinary(x, axis)
    with np.errstate(invalid="ignore"):
        return np.asarray(linear / linear.sum(axis=axis, keepdims=True))


def chunks(n_nodes: int, cost: int) -> Iterator[slice]:
    """The nodes of a level in parts, for steps that make `cost` numbers a node."""
    step = max(1, _CHUNK // cost)
    for begin in range(0, n_nodes, step):
        yield slice(begin, min(begin + step, n_nodes))


def expand(x: Wide, axis: int) -> Wide:
    """The numbers with one more axis, of size 1."""
    power = None if x.power is None else np.expand_dims(x.power, axis)
    return Wide(np.expand_dims(x.value, axis), power)
