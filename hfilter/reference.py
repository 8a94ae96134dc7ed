"""THE Python text: exact inference on one block of samples, in plain loops (sampling: hfilter.sampling).

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

from .flat import FlatModel, Lines, Messages
from .passing import count_level, downward_level, upward_level
from .scaling import (
    LEAST,
    LOST,
    MARK,
    ONE,
    SMALLEST,
    SPENT,
    TOO_FAR,
    TOP,
    TOTAL,
    UNSIGNED,
    ZERO,
    begin_watch,
    exp_nonpositive,
    log_scaled,
    next_level,
    normalise,
    take_sum,
)
from .star import star_downward, star_root, star_upward, star_windows

__all__ = ["infer_rows"]

# numpy scalars and arrays of any backend's making: the text is generic in the value type.
Array = Any


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


def load_leaves(
    tokens: Array, mask: Array, fields: Array, first: int, q: int, row: int, room: Messages, at: Lines
) -> None:  # fmt: skip
    """The leaves' messages, from whichever evidence has columns."""
    if tokens.shape[1]:
        load_tokens(tokens, mask, first, q, room.nu, row, at)
    else:
        load_fields(fields, first, q, row, room, at)


def store_status(model: FlatModel, first: int, rows: int, at: Lines, status: Array) -> None:
    """Which rows' evidence left the range of the type."""
    value, count = at.value, at.integer
    for lane in range(rows):
        danger = (count[LOST, lane] != 0) | (value[SMALLEST, lane] < model.tiny)
        status[first + lane] = danger & (
            (count[SPENT, lane] > model.slack) | (value[LEAST, lane] == 0)
        )


def store_log(first: int, rows: int, room: Messages, at: Lines, out: Array) -> None:
    """ln of line TOP, with all that was taken out of the messages, in nats."""
    for lane in range(rows):
        z = np.float64(at.value[TOP, lane])
        out[first + lane] = log_scaled(z, at.integer[TOTAL, lane]) + room.shift[0, lane]


def weigh_root(model: FlatModel, room: Messages, at: Lines) -> None:
    """Prior times the root's message, into `belief`."""
    if model.filter_level > 0:
        star_root(model, room, at)
        return
    for a in range(model.alphabets[0]):
        for lane in range(room.nu.shape[1]):
            room.belief[a, lane] = room.nu[a, lane] * model.prior[a]


def store(x: Array, row: int, q: int, first: int, out: Array, column: int) -> None:
    """x[row : row + q] into the columns of `out`, one row per lane."""
    for lane in range(min(x.shape[1], len(out) - first)):
        to = UNSIGNED(first + lane)
        for a in range(q):
            out[to, UNSIGNED(column + a)] = x[UNSIGNED(row + a), UNSIGNED(lane)]


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
    counts: Array,
    pairs: Array,
    causal: bool,
    window: int,
    laws: Array,
    status: Array,
) -> None:
    """Posteriors of n rows, a block of as many as there are lanes at a time.

    Evidence: `tokens` (n, L) with `mask` (n, L) or (n, 0), or `fields` (n, L * q); the other has no
    columns. Outputs: `beliefs` (n, width), level d from column[d] (-1: not wanted); `root` (n, q_0),
    `one_out` (n, L * q), `counts` (n, rules), `pairs` (n, s^k * q_0 * q_k), `log_evidence` (n,), each
    without rows if it is not wanted. `one_out` is made from leaves to the left if `causal`, from those
    below the ancestor at level `window` if above 0; `laws` are those of its nodes, end to end.
    """
    s, k, depth = model.arity, model.filter_level, model.depth
    q0, q = model.alphabets[0], model.alphabets[depth]
    offsets = np.zeros(depth + 2, np.int64)
    for d in range(k, depth + 1):
        offsets[d + 1] = offsets[d] + s**d * model.alphabets[d]
    deepest = depth - 1 if len(counts) else 0
    deepest = depth if len(one_out) else max(deepest, 1) if len(pairs) else deepest
    for d in range(1, depth + 1):
        if column[d] >= 0:
            deepest = max(deepest, d)
    group = s ** (k - window) if window < k else 1
    nu, belief, value, count = room.nu, room.belief, at.value, at.integer
    lanes = nu.shape[1]

    for first in range(0, len(status), lanes):
        rows = min(lanes, len(status) - first)
        begin_watch(model.tiny, value, count)
        load_leaves(tokens, mask, fields, first, q, offsets[depth], room, at)
        for d in range(depth - 1, max(k, window) - 1, -1):
            upward_level(model, d, nu, offsets[d + 1], offsets[d], at)
        if k > window:
            star_upward(model, room, group, False, at)
            if window > 0:
                star_windows(model, room, group, at)
        if window == 0:
            weigh_root(model, room, at)
            normalise(belief, 0, q0, at)
            take_sum(at)
            next_level(count)
            if len(root):
                store(belief, 0, q0, first, root, 0)
            if len(log_evidence):
                store_log(first, rows, room, at, log_evidence)

        if deepest > 0 or len(counts):
            mu, mu_below = room.mu, room.mu_below
            top = k
            if window >= max(k, 1):
                top = window
                for row in range(s**window * model.alphabets[window]):
                    for lane in range(lanes):
                        mu[row, lane] = laws[row]
            elif k > 0:
                star_downward(model, room, group, causal, len(pairs) > 0, at)
                for row in range(pairs.shape[1] if len(pairs) else 0):
                    for lane in range(rows):
                        pairs[first + lane, row] = room.pairs[row, lane]
            else:
                for a in range(q0):
                    for lane in range(lanes):
                        mu[a, lane] = model.prior[a]
            if len(counts):
                for row in range(counts.shape[1]):
                    for lane in range(lanes):
                        room.counts[row, lane] = 0.0
            for d in range(top, depth + 1):
                if d > top:
                    if d > deepest:
                        break
                    downward_level(model, d - 1, mu, nu, offsets[d], mu_below, causal, at)
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
                if len(counts) and d < depth:
                    count_level(model, d, mu, offsets[d + 1], room, at)
            if len(counts):
                store(room.counts, 0, counts.shape[1], first, counts, 0)
            if len(one_out):
                for j in range(s**depth):
                    normalise(mu, j * q, q, at)
                    store(mu, j * q, q, first, one_out, j * q)
        store_status(model, first, rows, at, status)
