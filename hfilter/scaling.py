"""Exact scaling by powers of two, and the watch over the range of the value type (Python text).

With hfilter.philox and hfilter.reference the twin of csrc/pack.hpp, philox.hpp and tree_kernels.hpp.
"""

from __future__ import annotations

import math
from typing import Any

Array = Any

# Entries of the range watch.
DANGER, SPENT, WORST, EMPTY = range(4)
LOWEST = -(2**30)


def exponent(x: Any, value_bytes: int) -> int:
    """floor(log2 x) for normal x, the lowest exponent for subnormal x, 0 for 0."""
    if x == 0:
        return 0
    e = math.frexp(x)[1] - 1
    return max(e, -127) if value_bytes == 4 else max(e, -1023)


def watch(x: Any, tiny: Any, state: Array) -> None:
    """Note a non-zero entry so small that products with it could round to zero."""
    if 0 < x < tiny:
        state[DANGER] = 1


def next_level(state: Array) -> None:
    """Add the level's worst cancellation to what has been spent."""
    state[SPENT] -= state[WORST]
    state[WORST] = 0


def rescale(x: Array, at: int, q: int, tiny: Any, state: Array) -> int:
    """Normalise x[at : at + q] to a maximum in [1, 2); return the exponent taken out."""
    top = x[at]
    for a in range(1, q):
        top = max(top, x[at + a])
    e = exponent(top, x.itemsize)
    factor = math.ldexp(1.0, -e)
    for a in range(q):
        x[at + a] = x[at + a] * factor  # exact: rounded once, to the value type, on storing
        watch(x[at + a], tiny, state)
    state[WORST] = min(state[WORST], e)
    if top == 0:
        state[EMPTY] = 1
    return e


def multiply_wide(value: Array, power: Array, at: int, factor: Any) -> None:
    """Multiply a number that has an exponent of its own; its value stays in [1, 2), or 0."""
    value[at] = value[at] * factor
    e = exponent(value[at], value.itemsize)
    value[at] = value[at] * math.ldexp(1.0, -e)
    power[at] += e


def align(value: Array, power: Array, at: int, q: int, x: Array, tiny: Any, state: Array) -> int:
    """Bring q wide numbers to one exponent, which is returned: x[a] * 2**result."""
    lowest = -126 if value.itemsize == 4 else -1022
    top = LOWEST
    for a in range(q):
        if value[at + a] > 0:
            top = max(top, power[at + a])
    for a in range(q):
        shift = power[at + a] - top  # of a zero it may be anything
        x[a] = 0
        if value[at + a] > 0 and shift < lowest:
            state[DANGER] = 1
        elif value[at + a] > 0:
            x[a] = value[at + a] * math.ldexp(1.0, int(shift))
        watch(x[a], tiny, state)
    return 0 if top <= LOWEST else top


def normalise(x: Array, at: int, q: int, out: Array, out_at: int) -> Any:
    """Divide by the sum (NaN where there is nothing to normalise); return the sum."""
    total = x[at]
    for a in range(1, q):
        total = total + x[at + a]
    for a in range(q):
        out[out_at + a] = x[at + a] / total  # not times the inverse: certainty is exactly 1
    return total
