"""Whole trees given the evidence, drawn or the most probable, for one block of samples (Python text).

The twin of csrc/tree_choose.hpp and cpu_choose.hpp; hfilter.reference says how to read it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .flat import FIRST, PARENTS, RULES, SYMBOLS, FlatModel, Lines, Messages, Symbols
from .passing import upward_level
from .philox import HALF, MASK32, philox4x32
from .reference import load_leaves, store_log, store_status, weigh_root
from .scaling import (
    FACTOR,
    ONE,
    REST,
    TAKEN,
    TERM,
    TOP,
    TOTAL,
    begin_watch,
    next_level,
    rescale,
    take_sum,
)
from .star import star_upward

__all__ = ["choose_rows"]

Array = Any

PURPOSE_POSTERIOR, PURPOSE_POSTERIOR_STAR = np.uint64(2), np.uint64(3)
UNIFORM, PICKED = REST, TERM  # lines: the random number of the node; what has been cumulated


def carry_rule(model: FlatModel, level: Array, nu: Array, child: int, rule: int, at: Lines) -> None:
    """What a rule carries upward, p * prod_r nu_child_r(b_r), into line FACTOR."""
    value, lanes = at.value, nu.shape[1]
    b = (level[RULES] + rule) * model.arity
    p, x = model.probability[level[RULES] + rule], child + model.children[b]
    for lane in range(lanes):
        value[FACTOR, lane] = p * nu[x, lane]
    for r in range(1, model.arity):
        x = child + r * level[SYMBOLS] + model.children[b + r]
        for lane in range(lanes):
            value[FACTOR, lane] = value[FACTOR, lane] * nu[x, lane]


def best_level(model: FlatModel, d: int, nu: Array, below: int, out: int, at: Lines) -> None:
    """Max-product: nu(a) = the largest of the terms whose sum upward_level takes."""
    level, value, count = model.levels[d], at.value, at.integer
    qp, lanes = level[PARENTS], nu.shape[1]
    for i in range(model.arity**d):
        child = below + i * model.arity * level[SYMBOLS]
        for a in range(qp):
            row = out + i * qp + a
            for lane in range(lanes):
                nu[row, lane] = 0.0
            for rule in range(model.first[level[FIRST] + a], model.first[level[FIRST] + a + 1]):
                carry_rule(model, level, nu, child, rule, at)
                for lane in range(lanes):
                    nu[row, lane] = max(nu[row, lane], value[FACTOR, lane])
        rescale(nu, out + i * qp, qp, at)
        for lane in range(lanes):
            count[TOTAL, lane] = count[TOTAL, lane] + count[TAKEN, lane]
    next_level(count)


def random_numbers(
    index: Array, seed: Any, word: int, held: int, purpose: Any, words: Array, at: Lines
) -> int:
    """A word for every lane as a number between 0 and 1 in line UNIFORM; returns the block of words held."""
    value, lanes = at.value, at.value.shape[1]
    if held != word >> 2:
        held = word >> 2
        c2, k0, k1 = np.uint64(held), seed & MASK32, seed >> HALF
        for lane in range(lanes):
            at_row = index[lane]
            w0, w1, w2, w3 = philox4x32(at_row & MASK32, at_row >> HALF, c2, purpose, k0, k1)
            words[0, lane] = w0
            words[1, lane] = w1
            words[2, lane] = w2
            words[3, lane] = w3
    spare = 9 if at.mantissa == 23 else 0
    scale = at.constants[ONE] / (1 << (32 - spare))
    half = at.constants[ONE] / 2
    for lane in range(lanes):
        value[UNIFORM, lane] = words[word & 3, lane] >> spare
    for lane in range(lanes):
        value[UNIFORM, lane] = (value[UNIFORM, lane] + half) * scale
    return held


def begin_pick(draw: bool, at: Lines) -> None:
    """Before `pick`: drawing, line TOP holds the sum of the weights, and becomes the threshold."""
    value = at.value
    for lane in range(value.shape[1]):
        value[TOP, lane] = value[UNIFORM, lane] * value[TOP, lane] if draw else -1.0
        value[PICKED, lane] = 0.0


def pick(draw: bool, j: int, first: int, last: int, place: Array, at: Lines) -> None:
    """Entry j, whose weight is in line FACTOR, of first … last - 1, one after the other, into `place`.

    Drawing, place becomes the first whose cumulated weight exceeds the threshold; otherwise the first of
    the largest.
    """
    value = at.value
    for lane in range(value.shape[1]):
        place[lane] = first if j == first else place[lane]
    if draw:
        for lane in range(value.shape[1]):
            cumulated = value[PICKED, lane] + value[FACTOR, lane]
            value[PICKED, lane] = cumulated
            step = 1 if cumulated <= value[TOP, lane] else 0
            place[lane] = min(place[lane] + step, last - 1)
        return
    for lane in range(value.shape[1]):
        x = value[FACTOR, lane]
        place[lane] = j if x > value[TOP, lane] else place[lane]
        value[TOP, lane] = max(value[TOP, lane], x)


def pick_rule(
    model: FlatModel, d: int, draw: bool, nu: Array, child: int, x: Array, place: Array, at: Lines
) -> None:
    """Rules of one node whose symbols are x, into line 1 of `place`; line 0 is room."""
    level, value = model.levels[d], at.value
    lanes = nu.shape[1]
    for a in range(level[PARENTS]):
        first, last = model.first[level[FIRST] + a], model.first[level[FIRST] + a + 1]
        if draw:
            for lane in range(lanes):
                value[TOP, lane] = 0.0
            for rule in range(first, last):
                carry_rule(model, level, nu, child, rule, at)
                for lane in range(lanes):
                    value[TOP, lane] = value[TOP, lane] + value[FACTOR, lane]
        begin_pick(draw, at)
        for rule in range(first, last):
            carry_rule(model, level, nu, child, rule, at)
            pick(draw, rule, first, last, place[0], at)
        for lane in range(lanes):
            place[1, lane] = place[0, lane] if x[lane] == a else place[1, lane]


def pick_root(model: FlatModel, draw: bool, root: Array, place: Array, at: Lines) -> None:
    """The root's symbol in proportion to its weights, into `place`."""
    value, lanes, q0 = at.value, at.value.shape[1], model.alphabets[0]
    if draw:
        for lane in range(lanes):
            value[TOP, lane] = root[0, lane]
        for a in range(1, q0):
            for lane in range(lanes):
                value[TOP, lane] = value[TOP, lane] + root[a, lane]
    begin_pick(draw, at)
    for a in range(q0):
        for lane in range(lanes):
            value[FACTOR, lane] = root[a, lane]
        pick(draw, a, 0, q0, place, at)


def pick_star(
    model: FlatModel, i: int, draw: bool, nu: Array, x: Array, place: Array, at: Lines
) -> None:
    """Symbols of the star's node i whose roots' symbols are x, into line 1 of `place`; line 0 is room."""
    value, lanes = at.value, at.value.shape[1]
    q0, qk = model.alphabets[0], model.alphabets[model.filter_level]
    for a in range(q0):
        channel = (i * q0 + a) * qk
        if draw:
            for lane in range(lanes):
                value[TOP, lane] = 0.0
            for c in range(qk):
                p = model.star[channel + c]
                for lane in range(lanes):
                    value[TOP, lane] = value[TOP, lane] + p * nu[i * qk + c, lane]
        begin_pick(draw, at)
        for c in range(qk):
            p = model.star[channel + c]
            for lane in range(lanes):
                value[FACTOR, lane] = p * nu[i * qk + c, lane]
            pick(draw, c, 0, qk, place[0], at)
        for lane in range(lanes):
            place[1, lane] = place[0, lane] if x[lane] == a else place[1, lane]


def choose_tree(
    model: FlatModel,
    draw: bool,
    seed: Any,
    index: Array,
    room: Messages,
    offsets: Array,
    at: Lines,
    symbols: Symbols,
    place: Array,
    row: int,
    step: int,
    rows: int,
    root_out: Array,
    out: Array,
    column: Array,
) -> None:
    """One tree for every lane, from upward messages and the root's weights in `belief`, into rows of the
    outputs: lane by lane from `row` on, `step` apart."""
    s, k, nu, node, words = model.arity, model.filter_level, room.nu, symbols.node, symbols.words
    lanes = nu.shape[1]
    top = symbols.place
    held = -1
    if draw:
        held = random_numbers(index, seed, 0, held, PURPOSE_POSTERIOR, words, at)
    pick_root(model, draw, room.belief, top, at)
    for lane in range(lanes):
        node[0, lane] = top[lane]
    if len(root_out):
        for lane in range(rows):
            root_out[row + lane * step, 0] = top[lane]
    if k > 0:
        held = -1
        for i in range(s**k):
            if draw:
                held = random_numbers(index, seed, i, held, PURPOSE_POSTERIOR_STAR, words, at)
            pick_star(model, i, draw, nu, top, place, at)
            for lane in range(lanes):
                node[i, lane] = place[1, lane]
        held = -1
    for d in range(k, model.depth + 1):
        if d > k:
            level = model.levels[d - 1]
            nodes = s ** (d - 1)
            word = 1 + (nodes - 1) // (s - 1)
            for i in range(nodes - 1, -1, -1):  # children overwrite what no node before needs
                if draw:
                    held = random_numbers(index, seed, word + i, held, PURPOSE_POSTERIOR, words, at)
                child = offsets[d] + i * s * level[SYMBOLS]
                pick_rule(model, d - 1, draw, nu, child, node[i], place, at)
                for r in range(s):
                    for lane in range(lanes):
                        b = (level[RULES] + place[1, lane]) * s
                        node[i * s + r, lane] = model.children[b + r]
        if column[d] >= 0 and d > 0:
            for lane in range(rows):
                for i in range(s**d):
                    out[row + lane * step, column[d] + i] = node[i, lane]


def choose_rows(
    model: FlatModel,
    at: Lines,
    room: Messages,
    symbols: Symbols,
    tokens: Array,
    mask: Array,
    fields: Array,
    n_samples: int,
    seed: Any,
    start: Any,
    log_evidence: Array,
    log_weight: Array,
    root_out: Array,
    out: Array,
    column: Array,
    status: Array,
) -> None:
    """Trees of n rows given their evidence: n_samples draws each, or the most probable one (0).

    Evidence and status as in infer_rows; outputs as in sample_rows, with max(n_samples, 1) rows to a row.
    """
    s, k, depth, q0 = model.arity, model.filter_level, model.depth, model.alphabets[0]
    offsets = np.zeros(depth + 2, np.int64)
    for d in range(k, depth + 1):
        offsets[d + 1] = offsets[d] + s**d * model.alphabets[d]
    nu, belief, value, count = room.nu, room.belief, at.value, at.integer
    lanes, draw, trees = nu.shape[1], n_samples > 0, max(n_samples, 1)
    place = np.zeros((2, lanes), np.int64)
    index = np.zeros(lanes, np.uint64)
    for first in range(0, len(status), lanes):
        rows = min(lanes, len(status) - first)
        begin_watch(model.tiny, value, count)
        load_leaves(tokens, mask, fields, first, model.alphabets[depth], offsets[depth], room, at)
        for d in range(depth - 1, k - 1, -1):
            if draw:
                upward_level(model, d, nu, offsets[d + 1], offsets[d], fields.shape[1] > 0, at)
            else:
                best_level(model, d, nu, offsets[d + 1], offsets[d], at)
        if k > 0:
            star_upward(model, room, 1 << 62, not draw, at)
        weigh_root(model, room, at)
        for lane in range(lanes):
            value[TOP, lane] = belief[0, lane]
        for a in range(1, q0):
            for lane in range(lanes):
                x = belief[a, lane]
                value[TOP, lane] = value[TOP, lane] + x if draw else max(value[TOP, lane], x)
        take_sum(at)
        next_level(count)
        if len(log_weight):
            store_log(first, rows, room, at, log_weight)
        if len(log_evidence):
            store_log(first, rows, room, at, log_evidence)
        store_status(model, first, rows, at, status)
        for j in range(trees):
            for lane in range(lanes):
                at_row = np.uint64((first + lane) * trees + j)
                index[lane] = start + at_row
            choose_tree(
                model, draw, seed, index, room, offsets, at, symbols, place, first * trees + j, trees, rows,
                root_out, out, column,
            )  # fmt: skip
