"""Exact scaling by powers of two, and the watch over the range of the value type (Python text).

With hfilter.philox and hfilter.reference the twin of csrc/pack.hpp, philox.hpp and tree_kernels.hpp.
Every innermost loop runs over lanes, rows of one block, and has no branch: Numba makes vectors of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .flat import COUNT_LINES, VALUE_LINES, Lines

Array = Any

# Lines of values: of a message its maximum or sum; a power of two; the range watch's smallest non-zero
# entry of all messages, and smallest maximum (zero: some message or belief is zero throughout).
TOP, FACTOR, SMALLEST, LEAST, REST, TERM = range(VALUE_LINES)
SIDE = VALUE_LINES  # from here on: products of siblings
# Lines of integers: exponents just taken out, and their sum over the nodes; the range watch's: whether
# something else rounded to zero, bits of cancellation summed over levels, and the present level's most
# negative exponent.
TAKEN, TOTAL, LOST, SPENT, WORST, MARK = range(COUNT_LINES)
# Entries of Lines.constants.
ZERO, ONE, LOG2_E, MAGIC, LN2_HIGH, LN2_LOW, FARTHEST, LOW = range(8)
SINGLE_TERMS = 7  # of the series, if the value type is float32
LOWEST = -(2**30)
# For indices that differ from lane to lane: Numba asks of one with a sign, each time, if it counts from the end.
UNSIGNED = np.uint64


def begin_watch(tiny: float, value: Array, count: Array) -> None:
    """Nothing has happened to any row yet."""
    for lane in range(value.shape[1]):
        # If the limit is above 1, some rule is below the range of the type: in danger from the start.
        value[SMALLEST, lane] = 0.0 if tiny > 1 else 2.0
        value[LEAST, lane] = 1.0
    for line in range(COUNT_LINES):
        for lane in range(value.shape[1]):
            count[line, lane] = 0


def next_level(count: Array) -> None:
    """Add the level's worst cancellation to what has been spent."""
    for lane in range(count.shape[1]):
        count[SPENT, lane] = count[SPENT, lane] - count[WORST, lane]
        count[WORST, lane] = 0


def exponent(bits: Any, mantissa: int, bias: int) -> Any:
    """floor(log2 x) of a normal x > 0 from its bits, the lowest exponent of a subnormal x, 0 of 0."""
    return 0 if bits == 0 else (bits >> mantissa) - bias


def take_exponent(at: Lines) -> None:
    """The exponents of line TOP into line TAKEN, and into the range watch."""
    value, bits, count = at.value, at.bits, at.integer
    # Numbers that the compiler knows, or it takes integers twice as wide.
    mantissa, bias = (23, 127) if len(at.series) == SINGLE_TERMS else (52, 1023)
    for lane in range(value.shape[1]):
        taken = exponent(bits[TOP, lane], mantissa, bias)
        count[TAKEN, lane] = taken
        count[WORST, lane] = min(count[WORST, lane], taken)
    for lane in range(value.shape[1]):
        value[LEAST, lane] = min(value[LEAST, lane], value[TOP, lane])


def rescale(x: Array, row: int, q: int, at: Lines) -> None:
    """Normalise x[row : row + q] to maxima in [1, 2); the exponents taken out are in line TAKEN."""
    value, bits, count = at.value, at.bits, at.integer
    mantissa, bias = (23, 127) if len(at.series) == SINGLE_TERMS else (52, 1023)
    lanes, zero = value.shape[1], at.constants[ZERO]
    for lane in range(lanes):
        value[TOP, lane] = x[row, lane]
    for a in range(row + 1, row + q):
        for lane in range(lanes):
            value[TOP, lane] = max(value[TOP, lane], x[a, lane])
    take_exponent(at)
    for lane in range(lanes):
        bits[FACTOR, lane] = (bias - count[TAKEN, lane]) << mantissa
    for a in range(row, row + q):
        for lane in range(lanes):
            entry = x[a, lane] * value[FACTOR, lane]  # exact
            x[a, lane] = entry
            before = value[SMALLEST, lane]
            value[SMALLEST, lane] = min(before, entry if entry > zero else before)


def normalise(x: Array, row: int, q: int, at: Lines) -> None:
    """Divide x[row : row + q] by the sums, which are in line TOP then (0 / 0 is NaN).

    One division serves all entries; certainty is exactly 1 all the same.
    """
    value, one, zero = at.value, at.constants[ONE], at.constants[ZERO]
    lanes = value.shape[1]
    for lane in range(lanes):
        value[TOP, lane] = x[row, lane]
    for a in range(row + 1, row + q):
        for lane in range(lanes):
            value[TOP, lane] = value[TOP, lane] + x[a, lane]
    for lane in range(lanes):
        inverse = one / value[TOP, lane]
        value[FACTOR, lane] = inverse
        value[REST, lane] = one if value[TOP, lane] > zero else inverse * zero
    for a in range(row, row + q):
        for lane in range(lanes):
            entry = x[a, lane]
            part = entry * value[FACTOR, lane]
            x[a, lane] = value[REST, lane] if entry == value[TOP, lane] else part


def take_sum(at: Lines) -> None:
    """`take_exponent` of the sums beliefs were divided by: one below the normal range has no inverse."""
    value, bits, count = at.value, at.bits, at.integer
    take_exponent(at)
    for lane in range(value.shape[1]):
        gone = (value[TOP, lane] > at.constants[ZERO]) & (bits[TOP, lane] >> at.mantissa == 0)
        count[LOST, lane] = 1 if gone else count[LOST, lane]


def take_count(at: Lines) -> None:
    """`take_exponent` of the sum over a node's rules.

    One rule's share is a product of one factor more than the watch has bounds for: it needs room below.
    """
    value, count = at.value, at.integer
    take_exponent(at)
    for lane in range(value.shape[1]):
        gone = (value[TOP, lane] > at.constants[ZERO]) & (value[TOP, lane] < at.constants[LOW])
        count[LOST, lane] = 1 if gone else count[LOST, lane]


def log_scaled(x: float, power: int) -> float:
    """ln(2**power * x) for x >= 0, without cancellation between the two."""
    if x == 0:
        return -math.inf
    mantissa, whole = math.frexp(x)
    if mantissa < math.sqrt(0.5):
        mantissa, whole = 2 * mantissa, whole - 1
    return (power + whole) * math.log(2.0) + math.log(mantissa)


def exp_minus(out: Array, row: int, at: Lines) -> None:
    """out[row] becomes the bits of exp(-x), to about an ulp, of what is in line REST: 0 <= x <= FARTHEST.

    For soft evidence alone: under Numba, products and sums are fused where the processor can.
    """
    value, bits, series, constants = at.value, at.bits, at.series, at.constants
    log2_e, magic = constants[LOG2_E], constants[MAGIC]
    ln2_high, ln2_low = constants[LN2_HIGH], constants[LN2_LOW]
    lanes = value.shape[1]
    for lane in range(lanes):
        x = value[REST, lane]
        rounded = magic - x * log2_e  # an integer, in the last bits of the mantissa
        whole = rounded - magic
        value[FACTOR, lane] = rounded
        value[REST, lane] = (-x - whole * ln2_high) - whole * ln2_low
    if len(series) == SINGLE_TERMS:
        c6, c5, c4, c3, c2, c1, c0 = (
            series[0], series[1], series[2], series[3], series[4], series[5], series[6],
        )  # fmt: skip
        for lane in range(lanes):
            x = value[REST, lane]
            value[TERM, lane] = (((((c6 * x + c5) * x + c4) * x + c3) * x + c2) * x + c1) * x + c0
    else:
        for lane in range(lanes):
            value[TERM, lane] = series[0]
        for term in range(1, len(series)):
            c = series[term]
            for lane in range(lanes):
                value[TERM, lane] = value[TERM, lane] * value[REST, lane] + c
    mantissa = 23 if len(series) == SINGLE_TERMS else 52
    for lane in range(lanes):
        out[row, lane] = bits[TERM, lane] + (bits[FACTOR, lane] << mantissa)


# Wide numbers, those of a star, have an exponent of their own: value * 2**power, value in [1, 2) or 0.


def set_one(number: int, value: Array, power: Array) -> None:
    """A wide number becomes 1."""
    for lane in range(value.shape[1]):
        value[number, lane] = 1.0
        power[number, lane] = 0


def multiply_wide(
    number: int, value: Array, value_bits: Array, power: Array, x: Array, row: int, at: Lines
) -> None:
    """Multiply a wide number by x[row]."""
    bits, mantissa, bias = at.bits, at.mantissa, at.bias
    lanes = value.shape[1]
    for lane in range(lanes):
        value[number, lane] = value[number, lane] * x[row, lane]
    for lane in range(lanes):
        taken = exponent(value_bits[number, lane], mantissa, bias)
        power[number, lane] = power[number, lane] + taken
        bits[FACTOR, lane] = (bias - taken) << mantissa
    for lane in range(lanes):
        value[number, lane] = value[number, lane] * at.value[FACTOR, lane]


def align(number: int, q: int, value: Array, power: Array, x: Array, at: Lines) -> None:
    """Bring q wide numbers to one exponent, which goes into line TAKEN: x[a] * 2**taken."""
    line, bits, count, mantissa, bias = at.value, at.bits, at.integer, at.mantissa, at.bias
    lanes, zero = value.shape[1], at.constants[ZERO]
    for lane in range(lanes):
        count[TAKEN, lane] = LOWEST
    for a in range(number, number + q):
        for lane in range(lanes):
            here = power[a, lane] if value[a, lane] > zero else LOWEST
            count[TAKEN, lane] = max(count[TAKEN, lane], here)
    for a in range(q):
        for lane in range(lanes):
            there = value[number + a, lane] > zero
            shift = (
                power[number + a, lane] - count[TAKEN, lane] if there else 0
            )  # a zero's may be anything
            bits[FACTOR, lane] = (shift + bias if shift > -bias else 0) << mantissa
        for lane in range(lanes):
            entry = value[number + a, lane] * line[FACTOR, lane]
            x[a, lane] = entry
            before = line[SMALLEST, lane]
            line[SMALLEST, lane] = min(before, entry if entry > zero else before)
        for lane in range(lanes):
            count[LOST, lane] = 1 if bits[FACTOR, lane] == 0 else count[LOST, lane]
    for lane in range(lanes):
        count[TAKEN, lane] = 0 if count[TAKEN, lane] <= LOWEST else count[TAKEN, lane]
