"""Sampling rows of a model's stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import device as _device
from ..arrays import allocate, to_device
from ..checks import check_int, check_seed
from ..evidence import check_levels, check_out, check_roots
from ..results import Sample
from .door import LANES, Array, Door, present, runner_for


class Sampling(Door):
    """`sample`."""

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
        runner, threads = runner_for(backend, num_threads)
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
                    (n, self.arity**d), self.token_dtype, f"n = {n} rows of level {d}",
                    "draw it in ranges, with start=",
                )
            )  # fmt: skip
        rows = max(LANES, runner.block_work // self._draw_cost)
        for begin in range(0, n, rows):  # short calls: Python sees Ctrl-C between them
            part = slice(begin, min(begin + rows, n))
            runner.sample(
                self, seed, start + begin, part.stop - begin, None if given is None else given[part],
                [None if a is None else a[part] for a in arrays], threads,
            )  # fmt: skip
        leaves = wrap(present(arrays[self.depth])) if out is None else out
        found = {d: leaves if d == self.depth else wrap(present(arrays[d])) for d in kept}
        return Sample(wrap(present(arrays[0])[:, 0]), leaves, found)
