"""The root of a filtered tree, whose nodes at the filter level are independent given it (Python text).

The twin of csrc/tree_star.hpp.
"""

from __future__ import annotations

from typing import Any

from .flat import FlatModel, Lines, Messages
from .scaling import (
    LOST,
    LOWEST,
    MARK,
    SMALLEST,
    SPENT,
    TAKEN,
    TOP,
    TOTAL,
    WORST,
    align,
    multiply_wide,
    next_level,
    normalise,
    rescale,
    set_one,
    take_count,
    take_exponent,
)

__all__ = ["star_downward", "star_root", "star_upward", "star_windows"]

Array = Any


def star_upward(model: FlatModel, room: Messages, group: int, best: bool, at: Lines) -> None:
    """m_i(a) = sum_c P_i[a, c] nu_i(c), and the products of those before node i, for every class a.

    If `best`, m_i(a) is the largest term instead of the sum. Products begin anew with every `group` of nodes.

    Wide numbers: node i's products from i * q0 on, those of all nodes last, then scratch, and as the
    last of all prod_i max_a m_i(a), what no single class may reach.
    """
    q0, qk, n = (
        model.alphabets[0],
        model.alphabets[model.filter_level],
        model.arity**model.filter_level,
    )
    nu, m, top, value, bits, power = (
        room.nu, room.star, room.belief, room.value, room.value_bits, room.power,
    )  # fmt: skip
    lanes, most = nu.shape[1], (n + 3) * q0
    set_one(most, value, power)
    for a in range(q0):
        set_one(a, value, power)
    for i in range(n):
        for a in range(q0):
            row = i * q0 + a
            for lane in range(lanes):
                m[row, lane] = 0.0
            for c in range(qk):
                p = model.star[row * qk + c]
                for lane in range(lanes):
                    x = p * nu[i * qk + c, lane]
                    m[row, lane] = max(m[row, lane], x) if best else m[row, lane] + x
            if i % group == 0:
                set_one(row, value, power)
            for lane in range(lanes):
                value[row + q0, lane] = value[row, lane]
                power[row + q0, lane] = power[row, lane]
            multiply_wide(row + q0, value, bits, power, m, row, at)
        for lane in range(lanes):
            top[0, lane] = m[i * q0, lane]
        for a in range(1, q0):
            for lane in range(lanes):
                top[0, lane] = max(top[0, lane], m[i * q0 + a, lane])
        for lane in range(lanes):
            at.value[TOP, lane] = top[0, lane]
        take_exponent(at)
        multiply_wide(most, value, bits, power, top, 0, at)
    next_level(at.integer)


def star_downward(
    model: FlatModel, room: Messages, group: int, causal: bool, pairs: bool, at: Lines
) -> None:
    """mu_i(c) = sum_a prior(a) * prod_{j != i} m_j(a) * P_i[a, c], without a division.

    The other nodes are those of node i's group, and to its left if `causal`. With `pairs` also the joint
    posterior of the root and node i.
    """
    q0, qk, n = (
        model.alphabets[0],
        model.alphabets[model.filter_level],
        model.arity**model.filter_level,
    )
    mu, weight, value, bits, power = room.mu, room.belief, room.value, room.value_bits, room.power
    lanes, after, product = mu.shape[1], (n + 1) * q0, (n + 2) * q0
    for i in range(n - 1, -1, -1):
        if (i + 1) % group == 0:
            for a in range(q0):
                for lane in range(lanes):
                    weight[a, lane] = model.prior[a]
                set_one(after + a, value, power)
                multiply_wide(after + a, value, bits, power, weight, a, at)
        for a in range(q0):
            row = i * q0 + a
            for lane in range(lanes):
                value[product + a, lane] = value[after + a, lane]
                power[product + a, lane] = power[after + a, lane]
            multiply_wide(product + a, value, bits, power, value, row, at)
            for lane in range(lanes):
                power[product + a, lane] = power[product + a, lane] + power[row, lane]
            if not causal:
                multiply_wide(after + a, value, bits, power, room.star, row, at)
        align(product, q0, value, power, weight, at)
        if pairs:
            pair_with_root(model, room, i, at)
        for c in range(qk):
            out = i * qk + c
            for lane in range(lanes):
                mu[out, lane] = 0.0
            for a in range(q0):
                p = model.star[(i * q0 + a) * qk + c]
                for lane in range(lanes):
                    mu[out, lane] = mu[out, lane] + weight[a, lane] * p
        rescale(mu, i * qk, qk, at)
    next_level(at.integer)


def pair_with_root(model: FlatModel, room: Messages, i: int, at: Lines) -> None:
    """The joint posterior of the root and node i, from the classes' weights in `belief`."""
    q0, qk = model.alphabets[0], model.alphabets[model.filter_level]
    lanes, pairs = room.nu.shape[1], room.pairs
    for a in range(q0):
        for c in range(qk):
            row = (i * q0 + a) * qk + c
            p = model.star[row]
            for lane in range(lanes):
                pairs[row, lane] = room.belief[a, lane] * p * room.nu[i * qk + c, lane]
    normalise(pairs, i * q0 * qk, q0 * qk, at)
    take_count(at)


def star_windows(model: FlatModel, room: Messages, group: int, at: Lines) -> None:
    """Count what was lost below the star and the disagreement of a window's classes brings forth.

    `star_root` for windows, each of which is a star: the largest of them counts.
    """
    q0, n = model.alphabets[0], model.arity**model.filter_level
    m, top, value, bits, power, count = (
        room.star, room.belief, room.value, room.value_bits, room.power, at.integer,
    )  # fmt: skip
    lanes, scratch, best = top.shape[1], (n + 2) * q0, (n + 3) * q0
    for lane in range(lanes):
        danger = (count[LOST, lane] != 0) | (at.value[SMALLEST, lane] < model.tiny)
        count[MARK, lane] = 1 if danger else 0
        count[TAKEN, lane] = 0
    for end in range(group, n + 1, group):
        set_one(best, value, power)
        for i in range(end - group, end):
            for lane in range(lanes):
                top[0, lane] = m[i * q0, lane]
            for a in range(1, q0):
                for lane in range(lanes):
                    top[0, lane] = max(top[0, lane], m[i * q0 + a, lane])
            multiply_wide(best, value, bits, power, top, 0, at)
        for lane in range(lanes):
            count[WORST, lane] = LOWEST
        for a in range(q0):
            row = (end - 1) * q0 + a
            for lane in range(lanes):
                value[scratch, lane] = value[row, lane]
                power[scratch, lane] = power[row, lane]
                top[0, lane] = model.prior[a]
            multiply_wide(scratch, value, bits, power, m, row, at)
            multiply_wide(scratch, value, bits, power, top, 0, at)
            for lane in range(lanes):
                here = power[scratch, lane] if value[scratch, lane] > 0 else LOWEST
                count[WORST, lane] = max(count[WORST, lane], here)
        for lane in range(lanes):
            beyond = power[best, lane] - count[WORST, lane]
            count[TAKEN, lane] = max(count[TAKEN, lane], beyond)
    for lane in range(lanes):
        count[WORST, lane] = 0
        count[SPENT, lane] = count[SPENT, lane] + count[MARK, lane] * count[TAKEN, lane]


def star_root(model: FlatModel, room: Messages, at: Lines) -> None:
    """Prior times the product of all m_i, up to a common factor, into `belief`."""
    q0, n = model.alphabets[0], model.arity**model.filter_level
    belief, value, power, count = room.belief, room.value, room.power, at.integer
    lanes, best = belief.shape[1], (n + 3) * q0
    for lane in range(lanes):
        danger = (count[LOST, lane] != 0) | (at.value[SMALLEST, lane] < model.tiny)
        count[MARK, lane] = 1 if danger else 0
    for a in range(q0):
        for lane in range(lanes):
            belief[a, lane] = model.prior[a]
        multiply_wide(n * q0 + a, value, room.value_bits, power, belief, a, at)
    align(n * q0, q0, value, power, belief, at)
    for lane in range(lanes):
        count[TOTAL, lane] = count[TOTAL, lane] + count[TAKEN, lane]
        # What was lost below the star, its classes' disagreement brings forth.
        beyond = max(power[best, lane] - count[TAKEN, lane], 0)
        count[SPENT, lane] = count[SPENT, lane] + count[MARK, lane] * beyond
