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

from .flat import TOGETHER, FlatModel, Lines, Messages
from .passing import count_level, downward_level, upward_level
from .scaling import (
    FARTHEST,
    LEAST,
    LOST,
    MARK,
    ONE,
    REST,
    SMALLEST,
    SPENT,
    TERM,
    TOP,
    TOTAL,
    UNSIGNED,
    ZERO,
    begin_watch,
    exp_minus,
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


def read_fields(fields: Array, first: int, begin: int, width: int, field: Array) -> None:
    """So many values of every row, from `begin` on."""
    last, fours = len(fields) - 1, width // 4 * 4
    for lane in range(field.shape[1]):
        row, to = UNSIGNED(min(first + lane, last)), UNSIGNED(lane)
        for x in range(0, fours, 4):  # not to be made into a vector: what it writes lies far apart
            y, z = UNSIGNED(x), UNSIGNED(begin + x)
            field[y, to] = fields[row, z]
            field[y + UNSIGNED(1), to] = fields[row, z + UNSIGNED(1)]
            field[y + UNSIGNED(2), to] = fields[row, z + UNSIGNED(2)]
            field[y + UNSIGNED(3), to] = fields[row, z + UNSIGNED(3)]
        for x in range(fours, width):
            field[UNSIGNED(x), to] = fields[row, UNSIGNED(begin + x)]


def load_leaf(q: int, begin: int, out: int, careful: bool, room: Messages, at: Lines) -> None:
    """A leaf's message relative to its largest field; of the distances from it, the largest goes into line TOP."""
    field, value, nu, shift = room.field, at.value, room.nu, room.shift
    lanes, best = nu.shape[1], len(field) - 1
    zero, farthest = at.constants[ZERO], at.constants[FARTHEST]
    for lane in range(lanes):
        field[best, lane] = field[begin, lane]
    for x in range(begin + 1, begin + q):
        for lane in range(lanes):
            field[best, lane] = max(field[best, lane], field[x, lane])
    for lane in range(lanes):
        top = field[best, lane] if field[best, lane] > -math.inf else zero
        field[best, lane] = top
        shift[0, lane] = shift[0, lane] + top
    for x in range(q):
        if careful:
            for lane in range(lanes):
                here = field[begin + x, lane]
                value[REST, lane] = min(field[best, lane] - here, farthest)
                finite = here if here > -math.inf else field[best, lane]
                value[TOP, lane] = max(value[TOP, lane], field[best, lane] - finite)
        else:
            for lane in range(lanes):
                distance = field[best, lane] - field[begin + x, lane]
                value[REST, lane] = distance
                value[TOP, lane] = max(value[TOP, lane], distance)
        exp_minus(room.nu_bits, out + x, at)
        if careful:
            for lane in range(lanes):
                near = field[best, lane] - field[begin + x, lane] <= farthest
                nu[out + x, lane] = nu[out + x, lane] if near else zero


def load_fields(fields: Array, first: int, q: int, row: int, room: Messages, at: Lines) -> None:
    """Leaves' messages relative to the largest field of the leaf; `shift` is the sum of those."""
    value, count = at.value, at.integer
    lanes, n, farthest = value.shape[1], fields.shape[1], at.constants[FARTHEST]
    together = max(TOGETHER // q, 1) * q
    for attempt in range(2):
        for lane in range(lanes):
            value[TOP, lane] = 0.0
            room.shift[0, lane] = 0.0
        for begin in range(0, n, together):
            width = min(together, n - begin)
            read_fields(fields, first, begin, width, room.field)
            for x in range(0, width, q):
                load_leaf(q, x, row + begin + x, attempt > 0, room, at)
        far = 0
        for lane in range(lanes):
            far = far + (value[TOP, lane] > farthest)
        if far == 0:
            break  # nothing became zero, as with few exceptions
    for lane in range(lanes):
        # A finite field may be too far below for the type: it must not pass for impossible.
        count[LOST, lane] = 1 if value[TOP, lane] > farthest else count[LOST, lane]
        value[REST, lane] = min(value[TOP, lane], farthest)
    exp_minus(at.bits, TERM, at)
    for lane in range(lanes):
        value[SMALLEST, lane] = min(value[SMALLEST, lane], value[TERM, lane])


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
    for begin in range(0, q, TOGETHER):
        width = min(TOGETHER, q - begin)
        fours = width // 4 * 4
        for lane in range(min(x.shape[1], len(out) - first)):
            to, of = UNSIGNED(first + lane), UNSIGNED(lane)
            for a in range(0, fours, 4):  # as in `read_fields`
                y, z = UNSIGNED(column + begin + a), UNSIGNED(row + begin + a)
                out[to, y] = x[z, of]
                out[to, y + UNSIGNED(1)] = x[z + UNSIGNED(1), of]
                out[to, y + UNSIGNED(2)] = x[z + UNSIGNED(2), of]
                out[to, y + UNSIGNED(3)] = x[z + UNSIGNED(3), of]
            for a in range(fours, width):
                out[to, UNSIGNED(column + begin + a)] = x[UNSIGNED(row + begin + a), of]


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
    lanes, soft = nu.shape[1], fields.shape[1] > 0

    for first in range(0, len(status), lanes):
        rows = min(lanes, len(status) - first)
        begin_watch(model.tiny, value, count)
        load_leaves(tokens, mask, fields, first, q, offsets[depth], room, at)
        for d in range(depth - 1, max(k, window) - 1, -1):
            upward_level(model, d, nu, offsets[d + 1], offsets[d], soft, at)
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
                    downward_level(model, d - 1, mu, nu, offsets[d], mu_below, causal, soft, at)
                    mu, mu_below = mu_below, mu
                if column[d] >= 0 and d > 0:
                    qd = model.alphabets[d]
                    for i in range(
                        s**d
                    ):  # the next level's messages are still to come: there is room
                        for a in range(i * qd, i * qd + qd):
                            for lane in range(lanes):
                                mu_below[a, lane] = nu[offsets[d] + a, lane] * mu[a, lane]
                        normalise(mu_below, i * qd, qd, at)
                        take_sum(at)
                    store(mu_below, 0, s**d * qd, first, beliefs, column[d])
                    next_level(count)
                if len(counts) and d < depth:
                    count_level(model, d, mu, offsets[d + 1], room, at)
            if len(counts):
                store(room.counts, 0, counts.shape[1], first, counts, 0)
            if len(one_out):
                for j in range(s**depth):
                    normalise(mu, j * q, q, at)
                store(mu, 0, s**depth * q, first, one_out, 0)
        store_status(model, first, rows, at, status)
