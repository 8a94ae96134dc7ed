"""Fully seen rows under an unambiguous binary grammar, parsed up and permuted down (Python text).

There every upward message is one symbol and one number, and a downward message is the parent's, permuted and
weighed by the sibling's symbol: no sums over rules. The twin of csrc/cpu_parse.hpp. hfilter.reference multiplies
in the same order and adds zeros: the answers are its own to the last bit. Only Numba's backend comes here;
plain Python stays general, so that tests compare the two.
"""

from __future__ import annotations

from typing import Any

from .flat import Lines, Messages
from .parse_table import CHILDREN, PAIRS, TABLE_SYMBOLS, Parse, ParseTable
from .reference import store
from .scaling import ONE, UNSIGNED, ZERO, normalise

__all__ = ["NOT_PARSED", "parse_rows"]

Array = Any
NOT_PARSED = 255  # status of a row that is left to do


def mark_hidden(tokens: Array, mask: Array, q: int, status: Array) -> None:
    """Status NOT_PARSED for the rows with a hidden leaf, 0 for all others."""
    for row in range(len(status)):
        highest, hidden = 0, False
        for j in range(tokens.shape[1]):
            highest = max(highest, tokens[row, j])
        for j in range(mask.shape[1]):
            hidden |= mask[row, j]
        status[row] = NOT_PARSED if hidden | (highest >= q) else 0


def load_symbols(tokens: Array, first: int, q: int, parse: Parse) -> None:
    """The leaves' symbols; those of rows with hidden leaves may be any."""
    symbol, leaves, last = parse.symbol, tokens.shape[1], len(tokens) - 1
    for j in range(leaves):
        for lane in range(symbol.shape[1]):
            symbol[leaves + j, lane] = min(tokens[min(first + lane, last), j], q)


def parse_level(table: ParseTable, d: int, parse: Parse, at: Lines) -> None:
    """Symbols and numbers of the nodes of level d, these normalised."""
    symbol, number, bits = parse.symbol, parse.number, parse.bits
    base, pairs = table.levels[d, TABLE_SYMBOLS] + 1, table.levels[d, PAIRS]
    fraction, one = (1 << at.mantissa) - 1, at.bias << at.mantissa
    for node in range(1 << d, 2 << d):
        left, right = 2 * node, 2 * node + 1
        for lane in range(symbol.shape[1]):
            pair = UNSIGNED(pairs + symbol[left, lane] * base + symbol[right, lane])
            symbol[node, lane] = table.parents[pair]
            number[node, lane] = table.probability[pair] * number[right, lane] * number[left, lane]
        for lane in range(symbol.shape[1]):  # an impossible node weighs nothing below
            bits[node, lane] = (bits[node, lane] & fraction) | one


def child_message(
    table: ParseTable, d: int, node: int, mu: Array, above: int, out: Array, row: int, parse: Parse
) -> None:
    """The downward message of a node of level d + 1 from its parent's, not normalised."""
    symbol, number = parse.symbol, parse.number
    q, sibling, right = table.levels[d, TABLE_SYMBOLS], node ^ 1, node & 1
    for b in range(q):
        entry = table.levels[d, CHILDREN] + (right * q + b) * (q + 1)
        if right:
            for lane in range(symbol.shape[1]):
                rule = UNSIGNED(entry + symbol[sibling, lane])
                said = mu[UNSIGNED(above + table.source[rule]), UNSIGNED(lane)]
                out[row + b, lane] = said * number[sibling, lane] * table.weight[rule]
        else:
            for lane in range(symbol.shape[1]):
                rule = UNSIGNED(entry + symbol[sibling, lane])
                said = mu[UNSIGNED(above + table.source[rule]), UNSIGNED(lane)]
                out[row + b, lane] = said * (table.weight[rule] * number[sibling, lane])


def parse_rows(
    table: ParseTable,
    at: Lines,
    room: Messages,
    parse: Parse,
    tokens: Array,
    mask: Array,
    root: Array,
    one_out: Array,
    status: Array,
) -> None:
    """Root posteriors or leave-one-out predictions, as `infer_rows`; rows with hidden leaves get status NOT_PARSED.

    So does every row of a block of which most have.
    """
    depth, q0 = len(table.levels), len(table.prior)
    q, lanes = table.levels[depth - 1, TABLE_SYMBOLS], parse.symbol.shape[1]
    belief = room.belief
    mark_hidden(tokens, mask, q, status)
    for first in range(0, len(status), lanes):
        rows, hidden = min(lanes, len(status) - first), 0
        for lane in range(rows):
            hidden += 1 if status[first + lane] == NOT_PARSED else 0
        if 2 * hidden > rows:
            for lane in range(rows):
                status[first + lane] = NOT_PARSED
            continue
        load_symbols(tokens, first, q, parse)
        for d in range(depth - 1, -1, -1):
            if d > 0 or len(root):
                parse_level(table, d, parse, at)
        if len(root):
            for a in range(q0):
                for lane in range(lanes):
                    here = parse.symbol[1, lane] == a
                    belief[a, lane] = at.constants[ONE] if here else at.constants[ZERO]
            normalise(belief, 0, q0, at)
            store(belief, 0, q0, first, root, 0)
        if len(one_out):
            mu, mu_below, qp = room.mu, room.mu_below, q0
            for a in range(q0):
                for lane in range(lanes):
                    mu[a, lane] = table.prior[a]
            for d in range(depth - 1):
                qc = table.levels[d, TABLE_SYMBOLS]
                for i in range(2 << d):
                    child_message(
                        table, d, (2 << d) + i, mu, (i >> 1) * qp, mu_below, i * qc, parse
                    )
                mu, mu_below, qp = mu_below, mu, qc
            for j in range(tokens.shape[1]):
                leaf = tokens.shape[1] + j
                child_message(table, depth - 1, leaf, mu, (j >> 1) * qp, belief, 0, parse)
                normalise(belief, 0, q, at)
                store(belief, 0, q, first, one_out, j * q)
