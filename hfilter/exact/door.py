"""The single door to the kernels: checks once for all backends, allocates, dispatches.

`Door` is what the operations of a `TreeModel` share; each room of them stands in a file of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import device as _device
from ..arrays import Wrap, allocate, value_type
from ..backend import default_threads, get_backend
from ..checks import check_int
from ..compiled import ieee
from ..evidence import (
    Evidence,
    Outputs,
    Trees,
    check_evidence,
    kernel_layout,
    new_outputs,
    refuse_fields,
)
from ..runners import ROW_NAN, Backend
from ..tree import TreeStructure, computed_once
from ..unbounded import choose_unbounded, infer_unbounded

__all__ = ["LANES", "Door", "present", "runner_for"]

Array = NDArray[Any]
LANES = 16  # rows that go through a kernel together: never fewer, however deep the tree


class Door(TreeStructure):
    """A tree with the way to its kernels."""

    @computed_once
    def _row_cost(self) -> int:
        """Rule updates of one row, roughly: how much work a block of rows is."""
        cost = self.n_leaves * self.vocab_size
        if self.filter_level:
            cost += (
                self.arity**self.filter_level * self.n_classes * self.alphabets[self.filter_level]
            )
        for d in range(self.filter_level, self.depth):
            cost += self.arity**d * self.grammar.table(d).n_rules
        return int(cost)

    @computed_once
    def _draw_cost(self) -> int:
        """The same of drawing a row, which looks at few of the rules: a node costs about as much as two updates."""
        return 2 * sum(self.n_nodes(d) for d in self.existing_levels)

    def _ask(
        self,
        leaves: Any,
        mask: Any,
        log_fields: Any,
        dtype: Any,
        backend: str | None,
        num_threads: int | None,
        wanted: dict[str, Any],
        causal: bool = False,
        window: int = 0,
    ) -> tuple[Outputs, Wrap]:
        """Check the evidence, allocate what is `wanted` of `new_outputs`, and fill it.

        `causal` and `window` say what leave-one-out predictions are made from: see `Evidence`.
        """
        kind = value_type(dtype)
        place = _device.place_of(leaves, mask, log_fields)
        if place is not None:
            question = (self, place, leaves, mask, log_fields, kind, backend, causal, window)
            return _device.infer_tensors(*question, **wanted), lambda x: x
        runner, threads = runner_for(backend, num_threads)
        evidence, n, wrap = check_evidence(self, leaves, mask, log_fields, runner.finds_nan)
        evidence.causal, evidence.window = causal, window
        out = new_outputs(self, n, kind, allocate, **wanted)
        self._run(evidence, n, kind, out, runner, threads)
        return out, wrap

    def _run(
        self, evidence: Evidence, n: int, kind: np.dtype[Any], out: Outputs, runner: Backend, threads: int
    ) -> None:  # fmt: skip
        if n == 0:
            return
        rows = max(LANES, runner.block_work // self._row_cost)
        if n <= rows:
            self._run_block(runner, threads, kernel_layout(self, evidence), n, kind, out, 0)
            return
        for begin in range(0, n, rows):  # short calls: Python sees Ctrl-C between them
            part = slice(begin, min(begin + rows, n))
            self._run_block(
                runner,
                threads,
                kernel_layout(self, evidence.rows(part)),
                part.stop - begin,
                kind,
                out.rows(part),
                begin,
            )

    def _run_block(
        self,
        runner: Backend,
        threads: int,
        evidence: Evidence,
        n: int,
        kind: np.dtype[Any],
        out: Outputs,
        first: int,
    ) -> None:
        """Rows `first` … of the call, those that leave the range of `kind` in a wider one."""
        status = np.empty(n, np.uint8)
        runner.infer(self, evidence, kind, out, status, threads)
        if not (
            status.any() if n > 64 else any(status.tolist())
        ):  # NumPy takes its time over a few
            return
        if evidence.log_fields is not None and int(status.max()) == ROW_NAN:
            refuse_fields(evidence.log_fields, first)
        self._run_again(runner, threads, evidence, np.flatnonzero(status), kind, out, first)

    @ieee()
    def _run_again(
        self,
        runner: Backend,
        threads: int,
        evidence: Evidence,
        again: Array,
        kind: np.dtype[Any],
        out: Outputs,
        first: int,
    ) -> None:
        part, double = evidence.rows(again), np.dtype(np.float64)
        wider = new_outputs(
            self, len(again), double, allocate, evidence=out.log_evidence is not None,
            root=out.root is not None, levels=[d for d, b in enumerate(out.beliefs) if b is not None],
            leave_one_out=out.leave_one_out is not None, counts=out.counts is not None,
            star_pairs=out.star_pairs is not None,
        )  # fmt: skip
        if kind != double:
            self._run_block(runner, threads, part, len(again), double, wider, first)
        else:
            infer_unbounded(self, part, wider, len(again))
        for target, source in zip(out.arrays(), wider.arrays(), strict=True):
            target[again] = source

    @ieee()
    def _choose(
        self, evidence: Evidence, n: int, kind: np.dtype[Any], trees: Trees, runner: Backend, threads: int
    ) -> None:  # fmt: skip
        """Fill `trees` for n rows."""
        rows = max(LANES, runner.block_work // (self._row_cost * (1 + 2 * trees.per_row)))
        for begin in range(0, n, rows):  # short calls: Python sees Ctrl-C between them
            end = min(begin + rows, n)
            part = kernel_layout(self, evidence.rows(slice(begin, end)))
            self._choose_block(runner, threads, part, kind, trees.rows(begin, end), begin)

    def _choose_block(
        self,
        runner: Backend,
        threads: int,
        evidence: Evidence,
        kind: np.dtype[Any],
        trees: Trees,
        first: int,
    ) -> None:
        """As `_run_block`: rows that leave the range of `kind` are done again in a wider one, one by one."""
        assert trees.log_evidence is not None
        n = len(trees.log_evidence)
        status = np.empty(n, np.uint8)
        runner.choose(self, evidence, kind, trees, status, threads)
        if evidence.log_fields is not None and status.max(initial=0) == ROW_NAN:
            refuse_fields(evidence.log_fields, first)
        double = np.dtype(np.float64)
        for row in np.flatnonzero(status).tolist():
            part = kernel_layout(self, evidence.rows(slice(row, row + 1)))
            again = trees.rows(row, row + 1)
            if kind != double:
                self._choose_block(runner, threads, part, double, again, first + row)
            else:
                choose_unbounded(self, part, again, 1)


def present(x: Array | None) -> Array:
    """An output that was asked for, which is therefore there."""
    assert x is not None
    return x


def runner_for(backend: str | None, num_threads: int | None) -> tuple[Backend, int]:
    """The backend that serves a call, and on how many threads."""
    threads = (
        default_threads() if num_threads is None else check_int("num_threads", num_threads, 1, 1024)
    )
    return get_backend(backend), threads
