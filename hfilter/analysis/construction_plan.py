"""Where the constructed transformer keeps what: slots of the residual stream, scales, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from hfilter.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

__all__ = ["TASKS", "MessageSlots", "Plan", "Task"]

Task = Literal["mlm", "root", "causal"]
TASKS = ("mlm", "root", "causal")

_MAX_PARAMETERS = 2**27  # 1 GB in double precision


@dataclass(frozen=True)
class MessageSlots:
    """Columns of the residual stream that hold the messages of one height.

    Attributes
    ----------
    height : int
        m: the messages are complete from the output of layer m - 1 on (``layers.{m-1}.hidden``;
        height 0 from ``embed`` on) and stay in place to the end.
    up : slice
        u_m (w): P(evidence in the block | the block's top symbol), times ``2.0**exponent``. Empty
        for the whole sequence under the task ``"causal"``, where nothing comes after it. There it
        is that of the block that ends with leaf j - 1, and zero where none does (the start token's
        u_0 is all ones).
    rest : slice
        R_m (w, q) in row-major order: P(leaf = x, evidence of the other leaves of its block | top
        symbol = a), times ``2.0**exponent``.
    sibling : slice
        u_{m-1} of the sibling block, written by the attention of layer m - 1; empty at height 0.
    sibling_up : slice
        Causal only: the buffer of the carrier, u_{m-1} of the block left of the one that ends.
    width, vocab_size : int
        w (alphabet of the block's top: that of the root above the filter level) and q.
    exponent : int
    """

    height: int
    up: slice
    rest: slice
    sibling: slice
    sibling_up: slice
    width: int
    vocab_size: int
    exponent: int


class Plan:
    """Slots, scales and sizes of a constructed transformer; knows no weights yet.

    Parameters
    ----------
    model : hfilter.TreeModel
        Of arity 2.
    task : {"mlm", "root", "causal"}
    centring : float
        See :class:`hfilter.analysis.construction.ConstructedTransformer`.
    """

    def __init__(self, model: TreeModel, task: Task, centring: float) -> None:
        if task not in TASKS:
            raise ArgumentError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        if model.arity != 2:
            raise ArgumentError(
                f"model must have arity 2, got {model.arity}: attention averages over what it "
                "reads, and only with one sibling is an average a message; use model.infer"
            )
        self.model, self.task = model, task
        self.depth, self.filter_level = model.depth, model.filter_level
        self.n_leaves, self.vocab_size = model.n_leaves, model.vocab_size
        self.causal = task == "causal"
        self.n_heads = 2 if self.causal else 1
        levels = [self.depth - m for m in range(self.depth + 1)]
        top = self.filter_level
        self.widths = tuple(model.alphabets[d if d >= top else 0] for d in levels)
        laws = model.node_laws(self.depth)
        with np.errstate(divide="ignore", invalid="ignore"):
            bits = -np.where(laws > 0, laws * np.log2(laws), 0.0).sum() / self.n_leaves
        blocks = [2**m - 1 for m in range(self.depth + 1)]
        self.exponents = tuple(round(centring * bits * n) for n in blocks)
        self._lay_out()
        self.d_feedforward = max(self._hidden_units(m) for m in range(1, self.depth + 1))
        d, q, outputs = self.d_model, self.vocab_size, self.vocab_size
        if task == "root":
            outputs = model.n_classes
        maps = 2 * self.n_heads * self.depth + 2 * d + 3 * self.d_feedforward
        ends = d * (self.n_leaves + q + 1) + (d + 1) * outputs
        self.n_parameters = self.depth * d * maps + ends
        if self.n_parameters > _MAX_PARAMETERS:
            raise ArgumentError(
                f"model (q = {self.vocab_size}, depth {self.depth}, filter level "
                f"{self.filter_level}) needs d_model = {self.d_model} and d_feedforward = "
                f"{self.d_feedforward}: {self.n_parameters} weights, more than {_MAX_PARAMETERS}; "
                "take a smaller alphabet, depth or filter level"
            )

    def _lay_out(self) -> None:
        """Assign the columns: messages height by height, buffers, addresses."""
        q, column = self.vocab_size, 0

        def take(n: int) -> slice:
            nonlocal column
            column += n
            return slice(column - n, column)

        slots = []
        for m, width in enumerate(self.widths):
            whole, below = m == self.depth, 0 if m == 0 else self.widths[m - 1]
            up = take(0 if self.causal and whole else width)
            rest, sibling = take(width * q), take(below)
            sibling_up = take(below if self.causal and not whole else 0)
            exponent = self.exponents[m]
            slots.append(MessageSlots(m, up, rest, sibling, sibling_up, width, q, exponent))
        self.slots = tuple(slots)
        # Two numbers per level, (0, -A) in a left child and (-A, 0) in a right one. A gate closed by
        # C has a weight C / A: the square root of C for both is least upset by small changes.
        exponents = reversed(self.exponents[:-1])
        self.magnitudes = tuple(2.0 ** ((exponent + 2) // 2) for exponent in exponents)
        self.address = np.arange(2 * self.depth).reshape(self.depth, 2) + column
        column += 2 * self.depth
        self.carrier_address = self.address
        if self.causal:
            self.carrier_address = self.address + 2 * self.depth
            column += 2 * self.depth
        self.d_model = column + column % self.n_heads

    def _hidden_units(self, m: int) -> int:
        level, k, q = self.depth - m, self.filter_level, self.vocab_size
        carriers = int(m < self.depth)
        if level >= k:
            pairs = len(np.unique(self.model.grammar.table(level).children, axis=0))
            if self.causal:
                return pairs * (carriers + q) + self.widths[m - 1] * q
            return 2 * pairs * (1 + q)
        nodes = 2**k if level == k - 1 else 1
        if self.causal:
            return self.widths[m] * max(nodes // 2, 1) * (carriers + 2 * q)
        return self.widths[m] * nodes * (1 + q)

    # ---------------------------------------------------------------- columns, as index arrays

    def up(self, m: int) -> NDArray[np.int64]:
        """Columns of u_m, shape (w,); (0,) where it does not exist."""
        return np.arange(self.slots[m].up.start, self.slots[m].up.stop)

    def rest(self, m: int) -> NDArray[np.int64]:
        """Columns of R_m, shape (w, q)."""
        part = self.slots[m].rest
        return np.arange(part.start, part.stop).reshape(-1, self.vocab_size)

    def sibling(self, m: int) -> NDArray[np.int64]:
        """Columns of the buffer of layer m - 1."""
        return np.arange(self.slots[m].sibling.start, self.slots[m].sibling.stop)

    def sibling_up(self, m: int) -> NDArray[np.int64]:
        """Columns of the carrier's buffer of layer m - 1 (causal)."""
        return np.arange(self.slots[m].sibling_up.start, self.slots[m].sibling_up.stop)

    def bits(self, node: int, level: int) -> dict[int, int]:
        """Branches from the root to a node of a level, by level: 0 = left, 1 = right."""
        return {e: (node >> (level - 1 - e)) & 1 for e in range(level)}
