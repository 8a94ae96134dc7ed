"""Message passing from level to level, and what the rules of a level are used for (Python text).

The twin of csrc/tree_messages.hpp; hfilter.reference says how to read it.
"""

from __future__ import annotations

from typing import Any

from .flat import COUNTS, FIRST, PARENTS, RULES, SUMS, SYMBOLS, FlatModel, Lines, Messages
from .scaling import (
    FACTOR,
    ONE,
    SIDE,
    TAKEN,
    TERM,
    TOP,
    TOTAL,
    UNSIGNED,
    next_level,
    rescale,
    take_count,
)

__all__ = ["carry_node", "count_level", "downward_level", "upward_level"]

Array = Any


def carry_node(
    model: FlatModel, level: Array, nu: Array, child: int, out: Array, at_row: int, at: Lines
) -> None:
    """out(a) = sum over the rules of a of p * prod_r nu_child_r(b_r), of the node whose first child is there."""
    s, value = model.arity, at.value
    qp, qc = level[PARENTS], level[SYMBOLS]
    lanes = nu.shape[1]
    for a in range(qp):
        row = at_row + a
        for lane in range(lanes):
            out[row, lane] = 0.0
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
                    out[row, lane] = out[row, lane] + value[TERM, lane] * nu[child + shared, lane]
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
                out[row, lane] = out[row, lane] + value[TERM, lane]
            rule += 1


def add_products(
    model: FlatModel, first: int, n: int, x: Array, at_x: int, y: Array, at_y: int, out: Array, row: int
) -> None:  # fmt: skip
    """out[row : row + n] become n sums of the model, of entries of x and y.

    For soft evidence alone: under Numba, products and sums are fused where the processor can. A weight comes before
    the second small number: two of them may lose each other's digits.
    """
    terms, weights = model.terms, model.weights
    left, right = UNSIGNED(at_x), UNSIGNED(at_y)
    for entry in range(n):
        begin, end = model.sums[first + entry], model.sums[first + entry + 1]
        to = UNSIGNED(row + entry)
        for four in range(begin, end):
            at = UNSIGNED(four)
            term, weight = terms[at], weights[at]
            p0, p1, p2, p3 = weight[0], weight[1], weight[2], weight[3]
            x0, x1, x2, x3 = left + term[0], left + term[1], left + term[2], left + term[3]
            y0, y1, y2, y3 = right + term[4], right + term[5], right + term[6], right + term[7]
            if four == begin:
                for lane in range(out.shape[1]):
                    low = p0 * y[y0, lane] * x[x0, lane] + p1 * y[y1, lane] * x[x1, lane]
                    high = p2 * y[y2, lane] * x[x2, lane] + p3 * y[y3, lane] * x[x3, lane]
                    out[to, lane] = low + high
            else:
                for lane in range(out.shape[1]):
                    low = p0 * y[y0, lane] * x[x0, lane] + p1 * y[y1, lane] * x[x1, lane]
                    high = p2 * y[y2, lane] * x[x2, lane] + p3 * y[y3, lane] * x[x3, lane]
                    out[to, lane] = out[to, lane] + (low + high)


def upward_level(
    model: FlatModel, d: int, nu: Array, below: int, out: int, soft: bool, at: Lines
) -> None:
    """The upward messages of the nodes of level d, normalised."""
    level, count = model.levels[d], at.integer
    qp, children = level[PARENTS], model.arity * level[SYMBOLS]
    lanes = nu.shape[1]
    for i in range(model.arity**d):
        child = below + i * children
        if soft and model.arity == 2:
            add_products(model, level[SUMS], qp, nu, child, nu, child, nu, out + i * qp)
        else:
            carry_node(model, level, nu, child, nu, out + i * qp, at)
        rescale(nu, out + i * qp, qp, at)
        for lane in range(lanes):
            count[TOTAL, lane] = count[TOTAL, lane] + count[TAKEN, lane]
    next_level(count)


def downward_level(
    model: FlatModel,
    d: int,
    mu: Array,
    nu: Array,
    below: int,
    mu_below: Array,
    causal: bool,
    soft: bool,
    at: Lines,
) -> None:
    """mu_child_r(b) = sum over rules of mu(a) * p * prod of the siblings' nu, for the nodes of level d.

    If `causal`, of the siblings to the left alone.
    """
    one = at.constants[ONE]
    s, value = model.arity, at.value
    level = model.levels[d]
    qp, qc = level[PARENTS], level[SYMBOLS]
    lanes = nu.shape[1]
    for i in range(s**d):
        up, out = below + i * s * qc, i * s * qc
        general = causal or not soft or s != 2
        if not general:
            first = level[SUMS] + qp
            add_products(model, first, 2 * qc, mu, i * qp, nu, up, mu_below, out)
        for row in range(out, out + s * qc if general else out):
            for lane in range(lanes):
                mu_below[row, lane] = 0.0
        for a in range(qp if general else 0):
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
                            said = one if causal else nu[up + y, lane]
                            value[TERM, lane] = value[TERM, lane] + p * said
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
                        said = one if causal else nu[y, lane]
                        value[SIDE + r, lane] = said * value[SIDE + r + 1, lane]
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


def count_level(model: FlatModel, d: int, mu: Array, below: int, room: Messages, at: Lines) -> None:
    """Add the posterior probability of every rule at each node of level d to `counts`."""
    s, nu, value, count = model.arity, room.nu, at.value, at.integer
    counts, level = room.counts, model.levels[d]
    qp, qc, column = level[PARENTS], level[SYMBOLS], level[COUNTS]
    lanes = nu.shape[1]
    for i in range(s**d):
        child = below + i * s * qc
        carry_node(model, level, nu, child, room.belief, 0, at)
        for lane in range(lanes):
            value[TOP, lane] = 0.0
        for a in range(qp):
            for lane in range(lanes):
                value[TOP, lane] = value[TOP, lane] + mu[i * qp + a, lane] * room.belief[a, lane]
        take_count(at)
        for lane in range(lanes):
            value[FACTOR, lane] = at.constants[ONE] / value[TOP, lane]
        for a in range(qp):
            for rule in range(model.first[level[FIRST] + a], model.first[level[FIRST] + a + 1]):
                b = (level[RULES] + rule) * s
                p, row = model.probability[level[RULES] + rule], column + rule
                for lane in range(lanes):
                    value[TERM, lane] = mu[i * qp + a, lane] * p
                for r in range(s):
                    y = child + r * qc + model.children[b + r]
                    for lane in range(lanes):
                        value[TERM, lane] = value[TERM, lane] * nu[y, lane]
                for lane in range(lanes):
                    share = value[TERM, lane] * value[FACTOR, lane]
                    counts[row, lane] = counts[row, lane] + share
    next_level(count)
