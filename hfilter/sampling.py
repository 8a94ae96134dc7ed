"""THE Python text of sampling, in plain loops over one block of samples; see hfilter.reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from .flat import BITS, CUTS, PARENTS, SYMBOLS, FlatModel, Symbols
from .philox import HALF, MASK32, philox4x32

__all__ = ["sample_rows"]

Array = Any

FEW = 40  # places for rules that are gone through faster than looked up
LARGEST_WORD = np.uint64(0xFFFFFFFE)
PURPOSE_TREE, PURPOSE_STAR = np.uint64(0), np.uint64(1)


def fetch_words(first: Any, seed: Any, block: int, purpose: Any, words: Array) -> None:
    """Words 4 * block … 4 * block + 3 of one purpose for every lane, none of them the largest."""
    c2, k0, k1 = np.uint64(block), seed & MASK32, seed >> HALF
    for lane in range(words.shape[1]):
        index = first + np.uint64(lane)
        w0, w1, w2, w3 = philox4x32(index & MASK32, index >> HALF, c2, purpose, k0, k1)
        words[0, lane] = min(w0, LARGEST_WORD)
        words[1, lane] = min(w1, LARGEST_WORD)
        words[2, lane] = min(w2, LARGEST_WORD)
        words[3, lane] = min(w3, LARGEST_WORD)


def choose(cuts: Array, bits: int, words: Array, word: int, place: Array) -> None:
    """Add to each place how many of the 1 << bits cut points from cuts[place] on are <= the word.

    All lanes take a step before the next. Which way it goes nobody can predict, so it is not a branch:
    word - cut, shifted, is 0 where the word is not smaller, and all ones where it is.
    """
    step = 1 << bits
    while step > 1:
        step >>= 1
        for lane in range(len(place)):
            here = place[lane]
            place[lane] = here + (step & ~((int(words[word, lane]) - cuts[here + step - 1]) >> 32))


def draw_symbol(
    cuts: Array, at: int, bits: int, words: Array, word: int, node: Array, i: int, place: Array
) -> None:
    """Node i's symbol given that of node 0: a row of 1 << bits cut points for each, from cuts[at] on."""
    for lane in range(len(place)):
        place[lane] = at + (node[0, lane] << bits)
    choose(cuts, bits, words, word, place)
    for lane in range(len(place)):
        node[i, lane] = place[lane] - at - (node[0, lane] << bits)


def draw_few(
    model: FlatModel, level: Array, words: Array, word: int, node: Array, i: int, picked: Array
) -> None:
    """Node i's children, where rules are few and the children fit in a word: every rule in turn, four at a time.

    Compilers make vectors of this, but not of looking up.
    """
    lanes, bits, cuts, words4 = node.shape[1], level[BITS], model.cuts, model.picked
    for lane in range(lanes):
        picked[0, lane] = node[i, lane]
    for a in range(level[PARENTS]):
        parent, first = np.uint32(a), level[CUTS] + (a << bits)
        for rule in range(first, first + (1 << bits), 4):
            p0, p1, p2, p3 = words4[rule], words4[rule + 1], words4[rule + 2], words4[rule + 3]
            c0 = np.uint32(0 if rule == first else cuts[rule - 1])
            c1, c2, c3 = cuts[rule], cuts[rule + 1], cuts[rule + 2]
            for lane in range(lanes):
                old, w = picked[1, lane], words[word, lane]
                new = p1 if w >= c1 else p0
                new = p2 if w >= c2 else new
                new = p3 if w >= c3 else new
                picked[1, lane] = new if (picked[0, lane] == parent) & (w >= c0) else old
    for r in range(model.arity):
        for lane in range(lanes):
            node[i * model.arity + r, lane] = (picked[1, lane] >> (8 * r)) & 255


def store_symbols(node: Array, n: int, first: int, out: Array, column: int) -> None:
    """The symbols of n nodes into the columns of `out`, one row per lane."""
    lanes = min(node.shape[1], len(out) - first)
    some = out[first : first + lanes, column : column + n]
    for lane in range(lanes):
        for i in range(n):
            some[lane, i] = node[i, lane]


def sample_rows(
    model: FlatModel,
    at: Symbols,
    seed: Any,
    start: Any,
    roots: Array,
    root: Array,
    out: Array,
    column: Array,
) -> None:
    """Rows start … of the stream, a block of as many as there are lanes at a time.

    `roots` (n,) are given, or none. Outputs: `root` (n, 1), without rows if it is not wanted, and `out`
    (n, width), level d from column[d] (-1: not wanted).
    """
    s, k, q0 = model.arity, model.filter_level, model.alphabets[0]
    node, words, place = at.node, at.words, at.place
    lanes = node.shape[1]
    for first in range(0, len(out), lanes):
        index = start + np.uint64(first)
        fetch_words(index, seed, 0, PURPOSE_TREE, words)
        held = 0
        for lane in range(lanes):
            node[0, lane] = 0
        if len(roots):
            for lane in range(lanes):
                node[0, lane] = min(max(roots[min(first + lane, len(roots) - 1)], 0), q0 - 1)
        else:
            draw_symbol(model.prior_cuts, 0, model.prior_bits, words, 0, node, 0, place)
        if len(root):
            store_symbols(node, 1, first, root, 0)
        if k > 0:
            held = -1
            for i in range(s**k - 1, -1, -1):  # the root, in node 0, is overwritten last
                if held != i >> 2:
                    held = i >> 2
                    fetch_words(index, seed, held, PURPOSE_STAR, words)
                draw_symbol(
                    model.star_cuts,
                    (i * q0) << model.star_bits,
                    model.star_bits,
                    words,
                    i & 3,
                    node,
                    i,
                    place,
                )
            held = -1
            if column[k] >= 0:
                store_symbols(node, s**k, first, out, column[k])
        for d in range(k, model.depth):
            level = model.levels[d]
            cuts, bits = level[CUTS], level[BITS]
            few = (
                bits > 1
                and level[PARENTS] << bits <= FEW
                and level[SYMBOLS] <= 256
                and s <= 4
                and lanes > 1
            )
            nodes = s**d
            word = 1 + (nodes - 1) // (s - 1)
            # From the last node to the first: children overwrite symbols that no node before needs.
            for i in range(nodes - 1, -1, -1):
                if held != (word + i) >> 2:
                    held = (word + i) >> 2
                    fetch_words(index, seed, held, PURPOSE_TREE, words)
                if few:
                    draw_few(model, level, words, (word + i) & 3, node, i, at.picked)
                    continue
                for lane in range(lanes):
                    place[lane] = cuts + (node[i, lane] << bits)
                choose(model.cuts, bits, words, (word + i) & 3, place)
                for r in range(s):
                    picks = model.picks[r]
                    for lane in range(lanes):
                        node[i * s + r, lane] = picks[place[lane]]
            if column[d + 1] >= 0:
                store_symbols(node, nodes * s, first, out, column[d + 1])
