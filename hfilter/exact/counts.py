"""How often every rule is used, given the evidence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import device as _device
from ..arrays import allocate, value_type
from ..errors import DTypeError
from ..evidence import Outputs, check_evidence
from .door import Array, Door, present, runner_for

_HELD = (
    1 << 22
)  # counts held at a time: rows in blocks that depend on the model alone, and so do sums


class Counts(Door):
    """`expected_rule_counts`."""

    def expected_rule_counts(
        self,
        leaves: Any = None,
        mask: Any = None,
        *,
        log_fields: Any = None,
        per_sequence: bool = False,
        dtype: Any = "float32",
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """Expected number of uses of every rule given the evidence: the statistics of EM.

        They are the derivatives of `log_prob` by the logarithms of the rules' probabilities, each taken
        as a free number. In a filtered model the rules above the filter level act through the channels of HF
        Eq. 3: each node of that level is counted with a path of its own from the root.

        Parameters
        ----------
        per_sequence : bool
            One row per sequence instead of the sum over them, which is formed without keeping the rows.
        leaves, mask, log_fields, dtype, backend, num_threads
            As in `infer`.

        Returns
        -------
        array of float64, shape (grammar.n_rules,), or of `dtype`, shape (n, grammar.n_rules)
            Rules in the order of ``grammar.tables``, each table by parent, then children. A row of
            impossible evidence is NaN, and so is a sum with one in it.

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
        >>> x = model.sample(1000, seed=0).leaves
        >>> round(float(model.expected_rule_counts(x).sum()), 3)  # 15 nodes in each of 1000 trees
        15000.0
        """
        if not isinstance(per_sequence, bool | np.bool_):
            raise DTypeError(f"per_sequence must be True or False, got {per_sequence!r}")
        if per_sequence or _device.place_of(leaves, mask, log_fields) is not None:
            question = (leaves, mask, log_fields, dtype, backend, num_threads)
            out, wrap = self._ask(*question, **self._count_outputs)  # on a device: refused there
            kernel = out.counts if out.counts is not None else present(out.star_pairs)
            full = allocate(
                f"counts for n = {len(kernel)} rows", (len(kernel), self.grammar.n_rules), kernel.dtype,
                "pass fewer rows at a time",
            )  # fmt: skip
            full[:] = self._all_counts(out)
            return wrap(full)
        kind = value_type(dtype)
        runner, threads = runner_for(backend, num_threads)
        evidence, n, wrap = check_evidence(self, leaves, mask, log_fields)  # of all rows at once
        total = np.zeros(self.grammar.n_rules)
        width = self.grammar.n_rules + self.n_classes * self.alphabets[
            self.filter_level
        ] * self.n_nodes(self.filter_level)
        rows = max(16, _HELD // width)
        for begin in range(0, n, rows):
            part = slice(begin, min(begin + rows, n))
            out = self._outputs(part.stop - begin, kind, **self._count_outputs)
            self._run(evidence.rows(part), part.stop - begin, kind, out, runner, threads)
            sums = out.map(lambda x: x.sum(axis=0, dtype=np.float64, keepdims=True))
            total += self._all_counts(sums)[0]
        return wrap(total)

    def _moments(
        self, leaves: Any, mask: Any, log_fields: Any, *, levels: Iterable[int], **options: Any
    ) -> tuple[Any, ...]:
        """First derivatives of the log-evidence: of the root's, the rules', the star's and the leaves' weights.

        (root, counts or None, pairs or None, leaves, *levels), in the caller's library. Counts have columns for
        the rules below the filter level: those above it act through the star.
        """
        question = (
            leaves,
            mask,
            log_fields,
            *(options[x] for x in ("dtype", "backend", "num_threads")),
        )
        kept = {self.depth, *levels}
        out, wrap = self._ask(*question, root=True, levels=kept, **self._count_outputs)
        beliefs = [present(out.beliefs[d]) for d in (self.depth, *levels)]
        every = (present(out.root), out.counts, out.star_pairs, *beliefs)
        return tuple(None if x is None else wrap(x) for x in every)

    @property
    def _count_outputs(self) -> dict[str, Any]:
        """What the kernels are asked for: counts below the filter level, and what goes through the star."""
        return {"counts": self.n_counts > 0, "star_pairs": self.filter_level > 0}

    def _all_counts(self, out: Outputs) -> Array:
        """Counts of all the grammar's rules, (n, n_rules), from the kernels' outputs."""
        tables = self.grammar.tables
        starts = np.cumsum([0, *(t.n_rules for t in tables)])
        n = len(out.arrays()[0])
        full = np.zeros((n, starts[-1]))
        if out.counts is not None:
            full[:, starts[-1] - self.n_counts :] = out.counts
        if out.star_pairs is None:
            return full
        steps = self._path_steps()
        for i, pairs in enumerate(np.moveaxis(np.asarray(out.star_pairs, np.float64), 1, 0)):
            channel = self.channels[i]
            share = np.divide(pairs, channel, out=np.zeros_like(pairs), where=channel > 0)
            branches = [
                i // self.arity ** (self.filter_level - 1 - t) % self.arity
                for t in range(self.filter_level)
            ]
            laws = [steps[t][r] for t, r in enumerate(branches)]
            # Posterior of the path's step t, parent a to child b: before^T share after^T times the step's law.
            before = np.eye(self.n_classes)
            after = [np.eye(channel.shape[1])]
            for law in reversed(laws):
                after.append(law @ after[-1])
            for t, law in enumerate(laws):
                found = before.T @ share @ after[len(laws) - 1 - t].T  # over the step's law
                first = starts[0 if self.grammar.is_shared else t]
                table = self.grammar.table(t)
                uses = found[:, table.parents, table.children[:, branches[t]]] * table.probability
                full[:, first : first + table.n_rules] += uses
                before = before @ law
        return full

    def _path_steps(self) -> list[list[Array]]:
        """The law of child r given its parent, for every level above the filter level."""
        tables = [self.grammar.table(d) for d in range(self.filter_level)]
        return [[t.marginal(r) for r in range(self.arity)] for t in tables]
