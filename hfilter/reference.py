"""THE Python text: message passing for one block of samples, in plain loops (sampling: hfilter.sampling).

This is the reading copy of csrc/tree_kernels.hpp, the fallback where nothing is compiled, and, put
through Numba by `hfilter.backend`, a fast fallback. Both texts round in the same order, so for tokens
they agree to the last bit; tests hold them to it.

A lane is a sample: `lane` is a row of the block, and every innermost loop runs over the lanes, which
Numba turns into vectors. Read them as one row at a time; plain Python runs them with one lane.

The functions take only arrays and integers (`hfilter.flat` lists them) and call only each other, which
is what Numba needs. Words: `nu` upward message, `mu` downward message, level 0 the root, k the filter
level. Every message is normalised to a maximum in [1, 2) by an exact power of two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .flat import FIRST, PARENTS, RULES, SYMBOLS, FlatModel, Lines, Messages
from .scaling import (
    LEAST,
    LOST,
    MARK,
    ONE,
    SIDE,
    SMALLEST,
    SPENT,
    TAKEN,
    TERM,
    TOO_FAR,
    TOP,
    TOTAL,
    ZERO,
    align,
    begin_watch,
    exp_nonpositive,
    log_scaled,
    multiply_wide,
    next_level,
    normalise,
    rescale,
    set_one,
    take_sum,
)

__all__ = ["infer_rows"]

# numpy scalars and arrays of any backend's making: the text is generic in the value type.
Array = Any


# ----------------------------------------------------------------------------- message passing


def upward_level(model: FlatModel, d: int, nu: Array, below: int, out: int, at: Lines) -> None:
    """nu(a) = sum over the rules of a of p * prod_r nu_child_r(b_r), for the nodes of level d."""
    s, value, count = model.arity, at.value, at.integer
    level = model.levels[d]
    qp, qc = level[PARENTS], level[SYMBOLS]
    lanes = nu.shape[1]
    for i in range(s**d):
        child = below + i * s * qc
        for a in range(qp):
            row = out + i * qp + a
            for lane in range(lanes):
                nu[row, lane] = 0.0
            for rule in range(model.first[level[FIRST] + a], model.first[level[FIRST] + a + 1]):
                b = (level[RULES] + rule) * s
                p = model.probability[level[RULES] + rule]
                x, y = child + model.children[b], child + qc + model.children[b + 1]
                if s == 2:
                    for lane in range(lanes):
                        nu[row, lane] = nu[row, lane] + p * nu[x, lane] * nu[y, lane]
                    continue
                for lane in range(lanes):
                    value[TERM, lane] = p * nu[x, lane] * nu[y, lane]
                for r in range(2, s):
                    y = child + r * qc + model.children[b + r]
                    for lane in range(lanes):
                        value[TERM, lane] = value[TERM, lane] * nu[y, lane]
                for lane in range(lanes):
                    nu[row, lane] = nu[row, lane] + value[TERM, lane]
        rescale(nu, out + i * qp, qp, at)
        for lane in range(lanes):
            count[TOTAL, lane] = count[TOTAL, lane] + count[TAKEN, lane]
    next_level(count)


def downward_level(
    model: FlatModel, d: int, mu: Array, nu: Array, below: int, mu_below: Array, at: Lines
) -> None:
    """mu_child_r(b) = sum over rules of mu(a) * p * prod of the siblings' nu, for the nodes of level d."""
    s, value = model.arity, at.value
    level = model.levels[d]
    qp, qc = level[PARENTS], level[SYMBOLS]
    lanes = nu.shape[1]
    for i in range(s**d):
        up, out = below + i * s * qc, i * s * qc
        for row in range(out, out + s * qc):
            for lane in range(lanes):
                mu_below[row, lane] = 0.0
        for a in range(qp):
            above = i * qp + a
            for rule in range(model.first[level[FIRST] + a], model.first[level[FIRST] + a + 1]):
                b = (level[RULES] + rule) * s
                p = model.probability[level[RULES] + rule]
                if s == 2:
                    x, y = model.children[b], qc + model.children[b + 1]
                    for lane in range(lanes):
                        left = mu[above, lane] * p
                        mu_below[out + x, lane] = mu_below[out + x, lane] + left * nu[up + y, lane]
                        mu_below[out + y, lane] = mu_below[out + y, lane] + left * nu[up + x, lane]
                    continue
                for lane in range(lanes):
                    value[TERM, lane] = mu[above, lane] * p
                    value[SIDE + s, lane] = 1.0
                for r in range(s - 1, 0, -1):
                    y = up + r * qc + model.children[b + r]
                    for lane in range(lanes):
                        value[SIDE + r, lane] = nu[y, lane] * value[SIDE + r + 1, lane]
                for r in range(s):
                    y = r * qc + model.children[b + r]
                    for lane in range(lanes):
                        left = value[TERM, lane]
                        mu_below[out + y, lane] = (
                            mu_below[out + y, lane] + left * value[SIDE + r + 1, lane]
                        )
                        value[TERM, lane] = left * nu[up + y, lane]
        for r in range(s):
            rescale(mu_below, out + r * qc, qc, at)
    next_level(at.integer)


def star_upward(model: FlatModel, room: Messages, at: Lines) -> None:
    """m_i(a) = sum_c P_i[a, c] nu_i(c), and the products of those before node i, for every class a.

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
    lanes, best = nu.shape[1], (n + 3) * q0
    set_one(best, value, power)
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
                    m[row, lane] = m[row, lane] + p * nu[i * qk + c, lane]
            for lane in range(lanes):
                value[row + q0, lane] = value[row, lane]
                power[row + q0, lane] = power[row, lane]
            multiply_wide(row + q0, value, bits, power, m, row, at)
        for lane in range(lanes):
            top[0, lane] = m[i * q0, lane]
        for a in range(1, q0):
            for lane in range(lanes):
                top[0, lane] = max(top[0, lane], m[i * q0 + a, lane])
        multiply_wide(best, value, bits, power, top, 0, at)


def star_downward(model: FlatModel, room: Messages, at: Lines) -> None:
    """mu_i(c) = sum_a prior(a) * prod_{j != i} m_j(a) * P_i[a, c], without a division."""
    q0, qk, n = (
        model.alphabets[0],
        model.alphabets[model.filter_level],
        model.arity**model.filter_level,
    )
    mu, weight, value, bits, power = room.mu, room.belief, room.value, room.value_bits, room.power
    lanes, after, product = mu.shape[1], (n + 1) * q0, (n + 2) * q0
    for a in range(q0):
        for lane in range(lanes):
            weight[a, lane] = model.prior[a]
        set_one(after + a, value, power)
        multiply_wide(after + a, value, bits, power, weight, a, at)
    for i in range(n - 1, -1, -1):
        for a in range(q0):
            row = i * q0 + a
            for lane in range(lanes):
                value[product + a, lane] = value[after + a, lane]
                power[product + a, lane] = power[after + a, lane]
            multiply_wide(product + a, value, bits, power, value, row, at)
            for lane in range(lanes):
                power[product + a, lane] = power[product + a, lane] + power[row, lane]
            multiply_wide(after + a, value, bits, power, room.star, row, at)
        align(product, q0, value, power, weight, at)
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


# -------------------------------------------------------------------------------- rows and lanes


def load_tokens(
    tokens: Array, mask: Array, first: int, q: int, nu: Array, row: int, at: Lines
) -> None:
    """Leaves' messages: one-hot where the token is seen, all ones where it is hidden."""
    count, lanes, last = at.integer, nu.shape[1], len(tokens) - 1
    zero, one = at.constants[ZERO], at.constants[ONE]
    for j in range(tokens.shape[1]):
        for lane in range(lanes):
            count[MARK, lane] = tokens[min(first + lane, last), j]
        if mask.shape[1]:
            for lane in range(lanes):
                count[MARK, lane] = q if mask[min(first + lane, last), j] else count[MARK, lane]
        for x in range(q):
            for lane in range(lanes):
                token = count[MARK, lane]
                nu[row + j * q + x, lane] = one if (token == x) | (token >= q) else zero


def load_fields(fields: Array, first: int, q: int, row: int, room: Messages, at: Lines) -> None:
    """Leaves' messages relative to the largest field of the leaf; `shift` is the sum of those."""
    nu, field, shift = room.nu, room.field, room.shift
    lanes, last = nu.shape[1], len(fields) - 1
    zero, too_far = at.constants[ZERO], at.constants[TOO_FAR]
    for lane in range(lanes):
        shift[0, lane] = 0.0
    for j in range(fields.shape[1] // q):
        for lane in range(lanes):
            for x in range(q):
                field[x, lane] = fields[min(first + lane, last), j * q + x]
        for lane in range(lanes):
            field[q, lane] = field[0, lane]
        for x in range(1, q):
            for lane in range(lanes):
                field[q, lane] = max(field[q, lane], field[x, lane])
        for lane in range(lanes):
            top = field[q, lane] if field[q, lane] > -math.inf else zero
            field[q, lane] = top
            shift[0, lane] = shift[0, lane] + top
        for x in range(q):
            out = row + j * q + x
            for lane in range(lanes):
                nu[out, lane] = field[x, lane] - field[q, lane]
            for lane in range(lanes):
                # A finite field may be too far below for the type: it must not pass for impossible.
                nu[out, lane] = (
                    max(nu[out, lane], too_far) if field[x, lane] > -math.inf else nu[out, lane]
                )
            exp_nonpositive(nu, out, at)


def store(x: Array, row: int, q: int, first: int, out: Array, column: int) -> None:
    """x[row : row + q] into the columns of `out`, one row per lane."""
    for lane in range(min(x.shape[1], len(out) - first)):
        for a in range(q):
            out[first + lane, column + a] = x[row + a, lane]


def infer_rows(
    model: FlatModel,
    at: Lines,
    room: Messages,
    tokens: Array,
    mask: Array,
    fields: Array,
    log_evidence: Array,
    root: Array,
    beliefs: Array,
    column: Array,
    one_out: Array,
    status: Array,
) -> None:
    """Posteriors of n rows, a block of as many as there are lanes at a time.

    Evidence: `tokens` (n, L) with `mask` (n, L) or (n, 0), or `fields` (n, L * q); the other has no
    columns. Outputs: `beliefs` (n, width), level d from column[d] (-1: not wanted); `root` (n, q_0),
    `one_out` (n, L * q), `log_evidence` (n,), each without rows if it is not wanted.
    """
    s, k, depth = model.arity, model.filter_level, model.depth
    q0, q = model.alphabets[0], model.alphabets[depth]
    offsets = np.zeros(depth + 2, np.int64)
    for d in range(k, depth + 1):
        offsets[d + 1] = offsets[d] + s**d * model.alphabets[d]
    deepest = depth if len(one_out) else 0
    for d in range(1, depth + 1):
        if column[d] >= 0:
            deepest = max(deepest, d)
    nu, belief, value, count = room.nu, room.belief, at.value, at.integer
    lanes = nu.shape[1]

    for first in range(0, len(status), lanes):
        begin_watch(model.tiny, value, count)
        if tokens.shape[1]:
            load_tokens(tokens, mask, first, q, nu, offsets[depth], at)
        else:
            load_fields(fields, first, q, offsets[depth], room, at)
        for d in range(depth - 1, k - 1, -1):
            upward_level(model, d, nu, offsets[d + 1], offsets[d], at)
        if k > 0:
            star_upward(model, room, at)
            star_root(model, room, at)
        else:
            for a in range(q0):
                for lane in range(lanes):
                    belief[a, lane] = nu[a, lane] * model.prior[a]
        normalise(belief, 0, q0, at)
        take_sum(at)
        next_level(count)
        if len(root):
            store(belief, 0, q0, first, root, 0)
        rows = min(lanes, len(status) - first)
        if len(log_evidence):
            for lane in range(rows):
                z = np.float64(value[TOP, lane])
                log_z = log_scaled(z, count[TOTAL, lane])
                log_evidence[first + lane] = log_z + room.shift[0, lane]

        if deepest > 0:
            mu, mu_below = room.mu, room.mu_below
            if k > 0:
                star_downward(model, room, at)
            else:
                for a in range(q0):
                    for lane in range(lanes):
                        mu[a, lane] = model.prior[a]
            for d in range(k, deepest + 1):
                if d > k:
                    downward_level(model, d - 1, mu, nu, offsets[d], mu_below, at)
                    mu, mu_below = mu_below, mu
                if column[d] >= 0 and d > 0:
                    qd = model.alphabets[d]
                    for i in range(s**d):
                        for a in range(qd):
                            for lane in range(lanes):
                                belief[a, lane] = (
                                    nu[offsets[d] + i * qd + a, lane] * mu[i * qd + a, lane]
                                )
                        normalise(belief, 0, qd, at)
                        take_sum(at)
                        store(belief, 0, qd, first, beliefs, column[d] + i * qd)
                    next_level(count)
            if len(one_out):
                for j in range(s**depth):
                    normalise(mu, j * q, q, at)
                    store(mu, j * q, q, first, one_out, j * q)

        for lane in range(rows):
            danger = (count[LOST, lane] != 0) | (value[SMALLEST, lane] < model.tiny)
            status[first + lane] = danger & (
                (count[SPENT, lane] > model.slack) | (value[LEAST, lane] == 0)
            )
