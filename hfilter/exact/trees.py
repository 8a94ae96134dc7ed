"""Whole trees given the evidence: the most probable one, and draws."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import device as _device
from ..arrays import Wrap, allocate, value_type
from ..checks import check_int, check_seed
from ..evidence import Trees, check_evidence, check_levels
from ..results import ProbableTree, Sample
from .door import Array, Door, present, runner_for


class WholeTrees(Door):
    """`most_probable`, `sample_posterior`."""

    def most_probable(
        self,
        leaves: Any = None,
        mask: Any = None,
        *,
        log_fields: Any = None,
        levels: str | bool | Iterable[int] | None = "all",
        dtype: Any = "float32",
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> ProbableTree:
        """The jointly most probable tree given the evidence (max-product, Viterbi), of every row.

        Not the tree of the most probable symbols: its symbols fit together. Of trees that are equally
        probable in the value type the one with the smaller root, then the earlier rules (by children, in
        lexicographic order), is taken: the same on every backend. In a row of impossible evidence
        `log_prob` is -inf and every symbol is one past its alphabet. Arguments as in `infer`.

        Returns
        -------
        ProbableTree
            `roots` (n,), `leaves` (n, n_leaves), `levels`, and `log_prob` (n,): ln P(tree, evidence).

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
        >>> sample = model.sample(100, seed=0, levels=True)
        >>> tree = model.most_probable(sample.leaves)  # seen leaves determine the tree
        >>> bool((tree.roots == sample.roots).all() and (tree.levels[2] == sample.levels[2]).all())
        True
        """
        question = (leaves, mask, log_fields, dtype, backend, num_threads)
        kept = check_levels(self, levels)
        trees, wrap = self._trees(*question, kept, 0, 0, 0)
        found = {d: wrap(present(trees.levels[d])[:, 0]) for d in kept}
        roots: Any = present(trees.levels[0])[:, 0, 0]
        if isinstance(roots, np.ndarray):
            roots = np.ascontiguousarray(roots)
        last = present(trees.levels[self.depth])[:, 0]
        return ProbableTree(wrap(roots), wrap(last), wrap(present(trees.log_weight)), found)

    def sample_posterior(
        self,
        leaves: Any = None,
        mask: Any = None,
        n_samples: int = 1,
        seed: int = 0,
        *,
        log_fields: Any = None,
        start: int = 0,
        levels: str | bool | Iterable[int] | None = None,
        dtype: Any = "float32",
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> Sample:
        """Exact draws of whole trees given the evidence.

        Draw j of row i is a pure function of (model, evidence of the row, seed, start + i * n_samples + j):
        the same for any batch split and number of threads, and on every backend where the evidence is
        tokens. A row of impossible evidence has symbols one past their alphabets.

        Parameters
        ----------
        n_samples : int
            Draws per row.
        seed, start : int
            As in `sample`; ``start + n * n_samples`` at most 2**64.
        levels : None, "all" (or True), or list of int
            Also return the symbols of these levels.

        Returns
        -------
        Sample
            `roots` (n, n_samples), `leaves` (n, n_samples, n_leaves), `levels[d]` (n, n_samples, n_nodes).

        Notes
        -----
        Probabilities are kept to 2**-23 in float32 and 2**-32 in float64 (`dtype`).

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
        >>> x = model.sample_posterior([[1, 0, 0, 2]], n_samples=1000, seed=3)
        >>> x.leaves.shape, bool((x.leaves[..., :3] == [1, 0, 0]).all())
        ((1, 1000, 4), True)
        >>> bool(((x.leaves.sum(axis=2) & 1) == x.roots).all())
        True
        """
        n_samples = check_int("n_samples", n_samples, 1, 2**40)
        seed = check_seed("seed", seed)
        start = check_int("start", start, 0, 2**64 - 1)
        question = (leaves, mask, log_fields, dtype, backend, num_threads)
        kept = check_levels(self, levels)
        trees, wrap = self._trees(*question, kept, n_samples, seed, start)
        arrays = {d: wrap(present(trees.levels[d])) for d in {0, self.depth, *kept}}
        return Sample(arrays[0][..., 0], arrays[self.depth], {d: arrays[d] for d in kept})

    def _trees(
        self,
        leaves: Any,
        mask: Any,
        log_fields: Any,
        dtype: Any,
        backend: str | None,
        num_threads: int | None,
        kept: tuple[int, ...],
        n_samples: int,
        seed: int,
        start: int,
    ) -> tuple[Trees, Wrap]:
        """Check the evidence, choose trees, and mark those of impossible evidence."""
        kind = value_type(dtype)
        place = _device.place_of(leaves, mask, log_fields)
        if place is not None:
            asked = (self, place, leaves, mask, log_fields, kind, backend, {0, self.depth, *kept})
            return _device.choose_tensors(*asked, n_samples, seed, start), lambda x: x
        runner, threads = runner_for(backend, num_threads)
        evidence, n, wrap = check_evidence(self, leaves, mask, log_fields, runner.finds_nan)
        wanted = {0, self.depth, *kept}
        trees = Trees(n_samples, seed, start, [None] * (self.depth + 1), np.empty(n), None)
        if n_samples == 0:
            trees.log_weight = np.empty(n)
        for d in wanted:
            trees.levels[d] = allocate(
                (n, trees.per_row, self.n_nodes(d)), self.token_dtype, f"trees for n = {n} rows",
                "pass fewer rows at a time, or draw fewer samples",
            )  # fmt: skip
        check_int("start", start, 0, 2**64 - n * n_samples)
        self._choose(evidence, n, kind, trees, runner, threads)
        impossible = np.isneginf(present(trees.log_evidence))
        if impossible.any():
            for d in wanted:
                self._level(trees, d)[impossible] = self.alphabets[d]
        return trees, wrap

    def _level(self, trees: Trees, d: int) -> Array:
        return present(trees.levels[d])
