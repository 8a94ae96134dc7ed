"""THE Python text: sampling and message passing for one sample at a time, in plain loops.

This is the reading copy of csrc/tree_kernels.hpp, the fallback where nothing is compiled, and, put
through Numba by `hfilter.backend`, a fast fallback. Both texts round in the same order, so for tokens
they agree to the last bit; tests hold them to it.

The functions take only arrays and integers (`FlatModel` lists them) and call only each other, which
is what Numba needs. Words: `nu` upward message, `mu` downward message, level 0 the root, k the filter
level. Every message is normalised to a maximum in [1, 2) by an exact power of two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .flat import BITS, CUTS, FIRST, PARENTS, PICKS, RULES, SYMBOLS, FlatModel
from .philox import HALF, MASK32, philox4x32
from .scaling import (
    DANGER,
    EMPTY,
    SPENT,
    WORST,
    align,
    exponent,
    multiply_wide,
    next_level,
    normalise,
    rescale,
)

__all__ = ["infer_rows", "philox4x32", "sample_rows"]

# numpy scalars and arrays of any backend's making: the text is generic in the value type.
Array = Any

LARGEST_WORD = np.uint64(0xFFFFFFFE)
PURPOSE_TREE, PURPOSE_STAR = np.uint64(0), np.uint64(1)


def word(index: Any, seed: Any, t: int, purpose: Any, words: Array, held: Array) -> Any:
    """Word t of one purpose; `words` keeps the block fetched last, `held` its number."""
    if held[0] != t >> 2:
        held[0] = t >> 2
        block = philox4x32(
            index & MASK32, index >> HALF, np.uint64(t >> 2), purpose, seed & MASK32, seed >> HALF
        )
        words[0], words[1], words[2], words[3] = block
    return words[t & 3]


def choose(cuts: Array, at: int, bits: int, w: Any) -> int:
    """How many of the 1 << bits cut points from cuts[at] on are <= the word."""
    w = min(w, LARGEST_WORD)
    position = 0
    step = 1 << bits
    while step > 1:
        step >>= 1
        if cuts[at + position + step - 1] <= w:
            position += step
    return position


def sample_rows(
    model: FlatModel,
    seed: Any,
    start: Any,
    roots: Array,
    symbols: Array,
) -> None:
    """Fill `symbols` (n, nodes of the existing levels, root first) with rows start … of the stream."""
    s, k = model.arity, model.filter_level
    words, held = np.zeros(4, np.uint64), np.zeros(1, np.int64)
    for i in range(symbols.shape[0]):
        index = start + np.uint64(i)
        out = symbols[i]
        held[0] = -1
        if len(roots):
            root = min(max(roots[i], 0), model.alphabets[0] - 1)
        else:
            root = choose(
                model.prior_cuts,
                0,
                model.prior_bits,
                word(index, seed, 0, PURPOSE_TREE, words, held),
            )
        out[0] = root
        here = 0
        if k > 0:
            here = 1
            held[0] = -1
            for node in range(s**k):
                w = word(index, seed, node, PURPOSE_STAR, words, held)
                row = (node * model.alphabets[0] + root) << model.star_bits
                out[here + node] = choose(model.star_cuts, row, model.star_bits, w)
            held[0] = -1
        for d in range(k, model.depth):
            level = model.levels[d]
            nodes = s**d
            below = here + nodes
            heap = (nodes - 1) // (s - 1)
            for node in range(nodes):
                parent = np.int64(out[here + node])
                w = word(index, seed, 1 + heap + node, PURPOSE_TREE, words, held)
                row = parent << level[BITS]
                rule = choose(model.cuts, level[CUTS] + row, level[BITS], w)
                pick = level[PICKS] + (row + rule) * s
                for r in range(s):
                    out[below + node * s + r] = model.picks[pick + r]
            here = below


def upward_level(model: FlatModel, d: int, nu: Array, below: int, at: int, state: Array) -> int:
    """nu(a) = sum over the rules of a of p * prod_r nu_child_r(b_r), for the nodes of level d."""
    s = model.arity
    level = model.levels[d]
    qp, qc = level[PARENTS], level[SYMBOLS]
    total = 0
    for i in range(s**d):
        child = below + i * s * qc
        for a in range(qp):
            acc = model.prior.dtype.type(0)
            for rule in range(model.first[level[FIRST] + a], model.first[level[FIRST] + a + 1]):
                b = (level[RULES] + rule) * s
                term = model.probability[level[RULES] + rule] * nu[child + model.children[b]]
                for r in range(1, s):
                    term = term * nu[child + r * qc + model.children[b + r]]
                acc = acc + term
            nu[at + i * qp + a] = acc
        total += rescale(nu, at + i * qp, qp, model.tiny, state)
    next_level(state)
    return total


def downward_level(
    model: FlatModel, d: int, mu: Array, nu: Array, below: int, mu_below: Array, state: Array
) -> None:
    """mu_child_r(b) = sum over rules of mu(a) * p * prod of the siblings' nu, for the nodes of level d."""
    s = model.arity
    level = model.levels[d]
    qp, qc = level[PARENTS], level[SYMBOLS]
    one = model.prior.dtype.type(1)
    right = np.empty(s + 1, nu.dtype)
    for i in range(s**d):
        up = below + i * s * qc
        out = i * s * qc
        mu_below[out : out + s * qc] = 0
        for a in range(qp):
            for rule in range(model.first[level[FIRST] + a], model.first[level[FIRST] + a + 1]):
                b = (level[RULES] + rule) * s
                left = mu[i * qp + a] * model.probability[level[RULES] + rule]
                right[s] = one
                for r in range(s - 1, 0, -1):
                    right[r] = nu[up + r * qc + model.children[b + r]] * right[r + 1]
                for r in range(s):
                    c = model.children[b + r]
                    mu_below[out + r * qc + c] += left * right[r + 1]
                    left = left * nu[up + r * qc + c]
        for r in range(s):
            rescale(mu_below, out + r * qc, qc, model.tiny, state)
    next_level(state)


def star_upward(
    model: FlatModel, nu: Array, at: int, factor: Array, value: Array, power: Array
) -> int:
    """m_i(a) = sum_c P_i[a, c] nu_i(c), and the products of those before node i, for every class a.

    Returned is the exponent of prod_i max_a m_i(a): what no single class may reach.
    """
    q0, qk = model.alphabets[0], model.alphabets[model.filter_level]
    n = model.arity**model.filter_level
    best, best_power = np.ones(1, value.dtype), np.zeros(1, np.int64)
    value[:q0] = 1
    power[:q0] = 0
    for i in range(n):
        for a in range(q0):
            acc = model.prior.dtype.type(0)
            for c in range(qk):
                acc = acc + model.star[(i * q0 + a) * qk + c] * nu[at + i * qk + c]
            factor[i * q0 + a] = acc
            value[(i + 1) * q0 + a] = value[i * q0 + a]
            power[(i + 1) * q0 + a] = power[i * q0 + a]
            multiply_wide(value, power, (i + 1) * q0 + a, acc)
        top = factor[i * q0]
        for a in range(1, q0):
            top = max(top, factor[i * q0 + a])
        multiply_wide(best, best_power, 0, top)
    return int(best_power[0])


def star_downward(
    model: FlatModel, factor: Array, value: Array, power: Array, mu: Array, state: Array
) -> None:
    """mu_i(c) = sum_a prior(a) * prod_{j != i} m_j(a) * P_i[a, c], without a division."""
    q0, qk = model.alphabets[0], model.alphabets[model.filter_level]
    n = model.arity**model.filter_level
    after, after_power = np.ones(q0, value.dtype), np.zeros(q0, np.int64)
    product, product_power = np.ones(q0, value.dtype), np.zeros(q0, np.int64)
    weight = np.zeros(q0, value.dtype)
    for a in range(q0):
        multiply_wide(after, after_power, a, model.prior[a])
    for i in range(n - 1, -1, -1):
        for a in range(q0):
            product[a], product_power[a] = after[a], after_power[a]
            multiply_wide(product, product_power, a, value[i * q0 + a])
            product_power[a] += power[i * q0 + a]
            multiply_wide(after, after_power, a, factor[i * q0 + a])
        align(product, product_power, 0, q0, weight, model.tiny, state)
        for c in range(qk):
            acc = model.prior.dtype.type(0)
            for a in range(q0):
                acc = acc + weight[a] * model.star[(i * q0 + a) * qk + c]
            mu[i * qk + c] = acc
        rescale(mu, i * qk, qk, model.tiny, state)
    next_level(state)


def load_tokens(tokens: Array, mask: Array, q: int, nu: Array, at: int) -> None:
    """Leaves' messages: one-hot where the token is seen, all ones where it is hidden."""
    for j in range(len(tokens)):
        hidden = tokens[j] >= q or (len(mask) > 0 and mask[j] != 0)
        for x in range(q):
            nu[at + j * q + x] = 1 if hidden or tokens[j] == x else 0


def load_fields(fields: Array, q: int, nu: Array, at: int, tiny: Any, state: Array) -> float:
    """Leaves' messages relative to the largest field of the leaf; the sum of those is returned."""
    lowest = -87.0 if nu.itemsize == 4 else -708.0
    shift = 0.0
    for j in range(len(fields) // q):
        top = -math.inf
        for x in range(q):
            top = max(top, np.float64(fields[j * q + x]))
        if top == -math.inf:
            top = 0.0
        shift += top
        for x in range(q):
            below = fields[j * q + x] - top
            if below < 4 * lowest and fields[j * q + x] > -math.inf:
                below = 4 * lowest  # too far for the type, but it must not pass for impossible
            h = nu.dtype.type(below)
            nu[at + j * q + x] = 0.0 if h < lowest else math.exp(np.float64(h))
            if nu[at + j * q + x] < tiny and h > -math.inf:
                state[DANGER] = 1
    return shift


def infer_rows(
    model: FlatModel,
    tokens: Array,
    mask: Array,
    fields: Array,
    log_evidence: Array,
    root_out: Array,
    beliefs: Array,
    belief_at: Array,
    one_out: Array,
    status: Array,
) -> None:
    """Posteriors of n rows.

    Evidence: `tokens` (n, L) with `mask` (n, L) or (n, 0), or `fields` (n, L * q); the other has no
    columns. Outputs: `beliefs` (n, width), level d from column belief_at[d] (-1: not wanted);
    `one_out` (n, L * q) or (n, 0).
    """
    s, k, depth = model.arity, model.filter_level, model.depth
    q0, q = model.alphabets[0], model.alphabets[depth]
    n_leaves = s**depth
    offsets = np.zeros(depth + 2, np.int64)
    widest = q0
    for d in range(k, depth + 1):
        offsets[d + 1] = offsets[d] + s**d * model.alphabets[d]
        widest = max(widest, s**d * model.alphabets[d])
    nu = np.empty(offsets[depth + 1], model.prior.dtype)
    mu, mu_below = np.empty(widest, model.prior.dtype), np.empty(widest, model.prior.dtype)
    star_size = s**k * q0 if k > 0 else 0
    factor = np.empty(star_size, model.prior.dtype)
    value, power = np.empty(star_size + q0, model.prior.dtype), np.empty(star_size + q0, np.int64)
    root = np.empty(q0, model.prior.dtype)
    scratch = np.empty(max(q0, widest), model.prior.dtype)
    state = np.zeros(4, np.int64)
    deepest = depth if one_out.shape[1] else 0
    for d in range(1, depth + 1):
        if belief_at[d] >= 0:
            deepest = max(deepest, d)

    for i in range(len(status)):
        state[:] = 0
        state[DANGER] = 1 if model.tiny > 1 else 0  # some rule is below the range of the type
        shift = 0.0
        if tokens.shape[1]:
            load_tokens(tokens[i], mask[i], q, nu, offsets[depth])
        else:
            shift = load_fields(fields[i], q, nu, offsets[depth], model.tiny, state)
        total = 0
        for d in range(depth - 1, k - 1, -1):
            total += upward_level(model, d, nu, offsets[d + 1], offsets[d], state)
        if k > 0:
            below = state[DANGER]
            best = star_upward(model, nu, offsets[k], factor, value, power)
            for a in range(q0):
                multiply_wide(value, power, star_size + a, model.prior[a])
            top = align(value, power, star_size, q0, root, model.tiny, state)
            total += top
            if below:  # what was lost below the star, its classes' disagreement brings forth
                state[SPENT] += max(best - top, 0)
        else:
            for a in range(q0):
                root[a] = nu[offsets[0] + a] * model.prior[a]
        evidence = normalise(root, 0, q0, root_out[i], 0)
        state[WORST] = min(state[WORST], exponent(evidence, nu.itemsize))
        next_level(state)

        if deepest > 0:
            if k > 0:
                star_downward(model, factor, value, power, mu, state)
            else:
                mu[:q0] = model.prior
            for d in range(k, deepest + 1):
                if d > k:
                    downward_level(model, d - 1, mu, nu, offsets[d], mu_below, state)
                    mu, mu_below = mu_below, mu
                if belief_at[d] >= 0 and d > 0:
                    qd = model.alphabets[d]
                    for node in range(s**d):
                        for a in range(qd):
                            scratch[a] = nu[offsets[d] + node * qd + a] * mu[node * qd + a]
                        z = normalise(scratch, 0, qd, beliefs[i], belief_at[d] + node * qd)
                        state[WORST] = min(state[WORST], exponent(z, nu.itemsize))
                        if z == 0:
                            state[EMPTY] = 1
                    next_level(state)
            if one_out.shape[1]:
                for j in range(n_leaves):
                    normalise(mu, j * q, q, one_out[i], j * q)

        if evidence == 0:
            state[EMPTY] = 1
            log_evidence[i] = -math.inf
        else:
            log_evidence[i] = total * math.log(2.0) + shift + math.log(np.float64(evidence))
        status[i] = 1 if state[DANGER] and (state[SPENT] > model.slack or state[EMPTY]) else 0
