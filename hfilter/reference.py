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
    begin_watch,
    exp_nonpositive,
    log_scaled,
    next_level,
    normalise,
    rescale,
    take_sum,
)
from .star import star_downward, star_root, star_upward

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
            rule = model.first[level[FIRST] + a]
            end = model.first[level[FIRST] + a + 1]
            while rule < end:
                b = (level[RULES] + rule) * s
                if s == 2:  # of rules that share their first child its message comes in once
                    shared = model.children[b]
                    for lane in range(lanes):
                        value[TERM, lane] = 0.0
                    while model.children[b] == shared:
                        p, y = (
                            model.probability[level[RULES] + rule],
                            child + qc + model.children[b + 1],
                        )
                        for lane in range(lanes):
                            value[TERM, lane] = value[TERM, lane] + p * nu[y, lane]
                        rule, b = rule + 1, b + 2
                        if rule == end:
                            break
                    for lane in range(lanes):
                        nu[row, lane] = nu[row, lane] + value[TERM, lane] * nu[child + shared, lane]
                    continue
                p = model.probability[level[RULES] + rule]
                x, y = child + model.children[b], child + qc + model.children[b + 1]
                for lane in range(lanes):
                    value[TERM, lane] = p * nu[x, lane] * nu[y, lane]
                for r in range(2, s):
                    y = child + r * qc + model.children[b + r]
                    for lane in range(lanes):
                        value[TERM, lane] = value[TERM, lane] * nu[y, lane]
                for lane in range(lanes):
                    nu[row, lane] = nu[row, lane] + value[TERM, lane]
                rule += 1
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
            rule = model.first[level[FIRST] + a]
            end = model.first[level[FIRST] + a + 1]
            while rule < end:
                b = (level[RULES] + rule) * s
                if s == 2:  # as upward, rules that share their first child together
                    shared = model.children[b]
                    for lane in range(lanes):
                        value[TERM, lane] = 0.0
                        value[SIDE, lane] = mu[above, lane] * nu[up + shared, lane]
                    while model.children[b] == shared:
                        p, y = model.probability[level[RULES] + rule], qc + model.children[b + 1]
                        for lane in range(lanes):
                            mu_below[out + y, lane] = (
                                mu_below[out + y, lane] + value[SIDE, lane] * p
                            )
                            value[TERM, lane] = value[TERM, lane] + p * nu[up + y, lane]
                        rule, b = rule + 1, b + 2
                        if rule == end:
                            break
                    for lane in range(lanes):
                        before = mu_below[out + shared, lane]
                        mu_below[out + shared, lane] = before + mu[above, lane] * value[TERM, lane]
                    continue
                p = model.probability[level[RULES] + rule]
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
                rule += 1
        for r in range(s):
            rescale(mu_below, out + r * qc, qc, at)
    next_level(at.integer)


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
