"""Posteriors of single nodes, and the evidence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..evidence import check_levels
from ..results import Posterior
from .door import Door, present


class Posteriors(Door):
    """`infer`, `root_posterior`, `leave_one_out`, `log_prob`."""

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
        double precision and, at last, with logarithms: never clamped. Given fields, a belief below the
        smallest normal number (1.2e-38 in float32) may come as 0.

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
        >>> post = model.infer([[1, 0, 0, 2]])  # three leaves seen, one hidden
        >>> post.root.tolist(), post.leaves[0, 3].tolist()
        ([[0.5, 0.5]], [0.5, 0.5])
        """
        kept = {self.depth, *check_levels(self, levels)}
        question = (leaves, mask, log_fields, dtype, backend, num_threads)
        wanted = {"evidence": True, "root": True, "levels": kept}
        out, wrap = self._ask(*question, wanted)
        found = {d: wrap(out.beliefs[d] if d else present(out.root)[:, None]) for d in kept}
        return Posterior(wrap(out.log_evidence), wrap(out.root), found[self.depth], found)

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
        out, wrap = self._ask(*question, {"root": True})
        return wrap(out.root)

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
        out, wrap = self._ask(*question, {"leave_one_out": True})
        return wrap(out.leave_one_out)

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
        out, wrap = self._ask(*question, {"evidence": True})
        return wrap(out.log_evidence)
