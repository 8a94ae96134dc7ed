"""The single door to the kernels: checks once for all backends, allocates, dispatches.

`TreeModel` is the object users hold: the structure of `hfilter.tree` with its operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import device as _device
from .arrays import Wrap, allocate, to_device, value_type
from .backend import default_threads, get_backend
from .checks import check_int, check_seed
from .compiled import ieee
from .evidence import (
    Evidence,
    Outputs,
    check_evidence,
    check_levels,
    check_out,
    check_roots,
    kernel_layout,
    new_outputs,
    refuse_fields,
)
from .logspace import infer_logspace
from .results import Posterior, Sample
from .runners import ROW_NAN, Backend
from .tree import TreeStructure, computed_once

__all__ = ["Posterior", "Sample", "TreeModel"]

Array = NDArray[Any]


class TreeModel(TreeStructure):
    """A grammar at a depth and a filter level: samples trees, and answers exactly what generated them.

    Parameters
    ----------
    grammar : Grammar
    depth : int, optional
        Levels below the root; may be left out if the grammar has one table of rules per level.
    filter_level : int
        k from 0 (full hierarchy) to `depth` (leaves independent given the root): the nodes of level k
        are independent given the root, with unchanged marginals (HF Eq. 3).
    root_prior : array_like of float, shape (n_classes,), optional
        Uniform by default.

    Attributes
    ----------
    n_leaves, vocab_size, n_classes, arity, depth, filter_level, mask_token : int
    alphabets : tuple of int
        Alphabet sizes of levels 0 … depth.
    existing_levels : tuple of int

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> sample = model.sample(1000, seed=1)
    >>> sample.leaves.shape, sample.leaves.dtype
    ((1000, 16), dtype('uint8'))
    >>> guess = model.root_posterior(sample.leaves).argmax(axis=1)
    >>> bool((guess == sample.roots).all())  # unfiltered leaves determine their root
    True
    """

    def filtered(self, filter_level: int) -> TreeModel:
        """The same grammar, depth and prior at another filter level."""
        return TreeModel(self.grammar, self.depth, filter_level, self.root_prior)

    # -------------------------------------------------------------------------------- sampling

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        start: int = 0,
        roots: Any = None,
        levels: str | bool | Iterable[int] | None = None,
        backend: str | None = None,
        num_threads: int | None = None,
        device: Any = None,
        out: Any = None,
    ) -> Sample:
        """Draw rows `start` … `start + n` of the model's stream.

        Row i of seed s is a pure function of (model, s, i): the same on every backend, for every
        thread count and batch split. Disjoint ranges are independent data sets.

        Parameters
        ----------
        n : int
        seed : int
            From 0 to 2**64 - 1.
        start : int
            Index of the first row; ``start + n`` at most 2**64.
        roots : array_like of int, shape (n,), optional
            Root symbols to condition on, instead of draws from the prior.
        levels : None, "all" (or True), or list of int
            Also return the symbols of these levels, as `Sample.levels`.
        backend : str, optional
            One of `hfilter.backends()`, or "cpu".
        num_threads : int, optional
        device : optional
            None for NumPy arrays, a torch device for torch tensors.
        out : array, shape (n, n_leaves), optional
            C-contiguous array of the token type to write the leaves into.

        Returns
        -------
        Sample

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=3)
        >>> a, b = model.sample(10, seed=7).leaves, model.sample(6, seed=7, start=4).leaves
        >>> bool((a[4:] == b).all())
        True
        """
        n = check_int("n", n, 0, 2**62)
        seed = check_seed("seed", seed)
        start = check_int("start", start, 0, 2**64 - n)
        place = _device.place_of(roots, out, device=device)
        if place is not None:
            return _device.sample_tensors(self, place, n, seed, start, roots, levels, backend, out)
        runner, threads = _runner(backend, num_threads)
        wrap = to_device(device)
        given = None if roots is None else check_roots(self, roots, n)
        kept = check_levels(self, levels)
        wanted = sorted({0, self.depth, *kept})
        arrays: list[Array | None] = [None] * (self.depth + 1)
        for d in wanted:
            arrays[d] = (
                check_out(out, (n, self.n_leaves), self.token_dtype)
                if d == self.depth and out is not None
                else allocate(
                    f"n = {n} rows of level {d}", (n, self.n_nodes(d)), self.token_dtype,
                    "draw it in ranges, with start=",
                )
            )  # fmt: skip
        rows = max(1, runner.block_work // self._row_cost)
        for begin in range(0, n, rows):  # short calls: Python sees Ctrl-C between them
            part = slice(begin, min(begin + rows, n))
            runner.sample(
                self, seed, start + begin, part.stop - begin, None if given is None else given[part],
                [None if a is None else a[part] for a in arrays], threads,
            )  # fmt: skip
        leaves = wrap(_present(arrays[self.depth])) if out is None else out
        found = {d: leaves if d == self.depth else wrap(_present(arrays[d])) for d in kept}
        return Sample(wrap(_present(arrays[0])[:, 0]), leaves, found)

    # ------------------------------------------------------------------------------- inference

    def infer(
        self,
        leaves: Any = None,
        mask: Any = None,
        *,
        log_fields: Any = None,
        dtype: Any = "float32",
        levels: str | bool | Iterable[int] | None = None,
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> Posterior:
        """Exact posterior of every node given the leaves that are seen.

        Parameters
        ----------
        leaves : array_like of int, shape (n, n_leaves)
            Tokens; `mask_token` stands for a hidden leaf.
        mask : array_like of bool, shape (n, n_leaves), optional
            True = hidden, whatever the token.
        log_fields : array_like of float, shape (n, n_leaves, q)
            Instead of `leaves`: ln of the likelihood of every symbol at every leaf, in nats; -inf
            excludes a symbol, any finite size and offset is fine.
        dtype : "float32" or "float64"
            Of messages and beliefs; `log_evidence` is float64 always.
        levels : None, "all" (or True), or list of int
            Internal levels whose beliefs to keep, for `Posterior.level`.
        backend, num_threads
            As in `sample`.

        Returns
        -------
        Posterior
            Arrays of the library the evidence came in: NumPy, torch, or any with an array namespace
            that speaks DLPack; NumPy for a bare DLPack object.

        Notes
        -----
        HF section 2 and appendix; errors against enumeration are below 3e-6 in float32 and 1e-12 in
        float64. Evidence so contradictory that it leaves the range of the type is computed again in
        double precision and, at last, with logarithms: never clamped.

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
        >>> post = model.infer([[1, 0, 0, 2]])  # three leaves seen, one hidden
        >>> post.root.tolist(), post.leaves[0, 3].tolist()
        ([[0.5, 0.5]], [0.5, 0.5])
        """
        kept = check_levels(self, levels)
        question = (leaves, mask, log_fields, dtype, backend, num_threads)
        out, wrap = self._ask(*question, evidence=True, root=True, levels={self.depth, *kept})
        found = {d: wrap(b) for d, b in enumerate(out.beliefs) if b is not None}
        if 0 in kept:
            found[0] = wrap(_present(out.root)[:, None])
        return Posterior(
            wrap(_present(out.log_evidence)), wrap(_present(out.root)), found[self.depth], found
        )

    def root_posterior(
        self,
        leaves: Any = None,
        mask: Any = None,
        *,
        log_fields: Any = None,
        dtype: Any = "float32",
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """P(root | evidence), shape (n, n_classes), by the upward pass alone; arguments as in `infer`."""
        question = (leaves, mask, log_fields, dtype, backend, num_threads)
        out, wrap = self._ask(*question, root=True)
        return wrap(_present(out.root))

    def leave_one_out(
        self,
        leaves: Any = None,
        mask: Any = None,
        *,
        log_fields: Any = None,
        dtype: Any = "float32",
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """P(x_j | all evidence but that of leaf j) for every leaf, shape (n, n_leaves, q).

        The exact answer to single-mask language modelling at all positions at once. NaN at a leaf
        exactly where the other leaves are impossible together. Arguments as in `infer`.
        """
        question = (leaves, mask, log_fields, dtype, backend, num_threads)
        out, wrap = self._ask(*question, leave_one_out=True)
        return wrap(_present(out.leave_one_out))

    def log_prob(
        self,
        leaves: Any = None,
        mask: Any = None,
        *,
        log_fields: Any = None,
        dtype: Any = "float32",
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """ln P(evidence) in nats, shape (n,), float64, by the upward pass alone; arguments as in `infer`.

        Examples
        --------
        >>> import hfilter, math
        >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
        >>> bool(abs(model.log_prob([[0, 1, 1, 0]])[0] - 4 * math.log(0.5)) < 1e-6)
        True
        """
        question = (leaves, mask, log_fields, dtype, backend, num_threads)
        out, wrap = self._ask(*question, evidence=True)
        return wrap(_present(out.log_evidence))

    # ---------------------------------------------------------------------------------- inside

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

    def _outputs(self, n: int, kind: np.dtype[Any], **wanted: Any) -> Outputs:
        def empty(shape: tuple[int, ...], dtype: Any) -> Array:
            return allocate(
                f"the result for n = {n} rows", shape, dtype, "pass fewer rows at a time"
            )

        return new_outputs(self, n, kind, empty, **wanted)

    def _ask(
        self,
        leaves: Any,
        mask: Any,
        log_fields: Any,
        dtype: Any,
        backend: str | None,
        num_threads: int | None,
        **wanted: Any,
    ) -> tuple[Outputs, Wrap]:
        """Check the evidence, allocate what is wanted (see `_outputs`), and fill it."""
        kind = value_type(dtype)
        place = _device.place_of(leaves, mask, log_fields)
        if place is not None:
            question = (self, place, leaves, mask, log_fields, kind, backend)
            return _device.infer_tensors(*question, **wanted), lambda x: x
        runner, threads = _runner(backend, num_threads)
        evidence, n, wrap = check_evidence(self, leaves, mask, log_fields, runner.finds_nan)
        out = self._outputs(n, kind, **wanted)
        self._run(evidence, n, kind, out, runner, threads)
        return out, wrap

    @ieee()
    def _run(
        self, evidence: Evidence, n: int, kind: np.dtype[Any], out: Outputs, runner: Backend, threads: int
    ) -> None:  # fmt: skip
        if n == 0:
            return
        rows = max(1, runner.block_work // self._row_cost)
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
        """Rows `first` … of the call: those that leave the range of `kind` are computed again in a wider one."""
        status = np.empty(n, np.uint8)
        runner.infer(self, evidence, kind, out, status, threads)
        if not (
            status.any() if n > 64 else any(status.tolist())
        ):  # NumPy takes its time over a few
            return
        if evidence.log_fields is not None and int(status.max()) == ROW_NAN:
            refuse_fields(evidence.log_fields, first)
        again = np.flatnonzero(status)
        part, double = evidence.rows(again), np.dtype(np.float64)
        wider = self._outputs(
            len(again), double, evidence=out.log_evidence is not None, root=out.root is not None,
            levels=[d for d, b in enumerate(out.beliefs) if b is not None],
            leave_one_out=out.leave_one_out is not None,
        )  # fmt: skip
        if kind != double:
            self._run_block(runner, threads, part, len(again), double, wider, first)
        else:
            infer_logspace(self, part, wider, len(again))
        for target, source in zip(out.arrays(), wider.arrays(), strict=True):
            target[again] = source


def _present(x: Array | None) -> Array:
    assert x is not None
    return x


def _runner(backend: str | None, num_threads: int | None) -> tuple[Backend, int]:
    threads = (
        default_threads() if num_threads is None else check_int("num_threads", num_threads, 1, 1024)
    )
    return get_backend(backend), threads
