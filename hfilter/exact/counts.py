"""How often every rule is used, given the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from .. import device as _device
from ..arrays import allocate, value_type
from ..errors import DTypeError
from ..evidence import Outputs, check_evidence, new_outputs
from .door import Array, Door, present, runner_for

_HELD = 1 << 22  # counts at a time: rows in blocks that depend on the model alone, and so do sums
_DEVICE_HELD = 1 << 26  # the same on a device


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
        place = _device.place_of(leaves, mask, log_fields)
        on = _Host() if place is None else _device.Constants(self, place)
        if per_sequence:
            question = (leaves, mask, log_fields, dtype, backend, num_threads)
            out, wrap = self._ask(*question, self._count_outputs)
            kernel = out.counts if out.counts is not None else present(out.star_pairs)
            return wrap(on.rounded(self._all_counts(out, on), kernel.dtype))
        kind = value_type(dtype)
        total = on.zeros((self.grammar.n_rules,))
        width = self.grammar.n_rules + self.n_classes * self.alphabets[
            self.filter_level
        ] * self.n_nodes(self.filter_level)
        rows = max(16, (_HELD if place is None else _DEVICE_HELD) // width)
        if place is not None:
            asked = (self, place, leaves, mask, log_fields, kind, backend, rows)
            for out in _device.infer_in_parts(*asked, **self._count_outputs):
                total += self._all_counts(out.map(on.sum_rows), on)[0]
            return total
        runner, threads = runner_for(backend, num_threads)
        evidence, n, wrap = check_evidence(self, leaves, mask, log_fields)  # of all rows at once
        for begin in range(0, n, rows):
            part = slice(begin, min(begin + rows, n))
            out = new_outputs(self, part.stop - begin, kind, allocate, **self._count_outputs)
            self._run(evidence.rows(part), part.stop - begin, kind, out, runner, threads)
            total += self._all_counts(out.map(on.sum_rows), on)[0]
        return wrap(total)

    def _moments(
        self,
        leaves: Any,
        mask: Any,
        log_fields: Any,
        *,
        levels: Iterable[int],
        counts: bool,
        **options: Any,
    ) -> tuple[Any, ...]:
        """First derivatives of the log-evidence: of the root's, the rules', the star's and the leaves' weights.

        (root, counts or None, pairs or None, leaves, *levels), in the caller's library. Counts, if they are
        asked for, have columns for the rules below the filter level: those above it act through the star.
        """
        question = (
            leaves,
            mask,
            log_fields,
            options["dtype"],
            options["backend"],
            options["num_threads"],
        )
        kept = {self.depth, *levels}
        more = self._count_outputs if counts else {}
        out, wrap = self._ask(*question, {"root": True, "levels": kept, **more})
        beliefs = [present(out.beliefs[d]) for d in (self.depth, *levels)]
        every = (present(out.root), out.counts, out.star_pairs, *beliefs)
        return tuple(None if x is None else wrap(x) for x in every)

    @property
    def _count_outputs(self) -> dict[str, Any]:
        """What the kernels are asked for: counts below the filter level, and what goes through the star."""
        return {"counts": self.n_counts > 0, "star_pairs": self.filter_level > 0}

    def _all_counts(self, out: Outputs, on: Any) -> Any:
        """Counts of all the grammar's rules, (n, n_rules), from the kernels' outputs."""
        tables = self.grammar.tables
        starts = np.cumsum([0, *(t.n_rules for t in tables)]).tolist()
        full = on.zeros((len(out.arrays()[0]), starts[-1]))
        if out.counts is not None:
            full[:, starts[-1] - self.n_counts :] = on.double(out.counts)
        if out.star_pairs is None:
            return full
        k, steps, pairs = self.filter_level, self._path_steps(on), on.double(out.star_pairs)
        channels = on.keep("channels", lambda: np.where(self.channels > 0, self.channels, 1.0))
        identities = [on.keep(("eye", d), lambda d=d: np.eye(self.alphabets[d])) for d in (0, k)]
        for i in range(len(channels)):
            share = pairs[:, i] / channels[i]
            branches = [i // self.arity ** (k - 1 - t) % self.arity for t in range(k)]
            laws = [steps[t][r].law for t, r in enumerate(branches)]
            # Posterior of the path's step t, parent a to child b: before^T share after^T times the step's law.
            before, after = identities[0], [identities[1]]
            for law in reversed(laws):
                after.append(law @ after[-1])
            for t, r in enumerate(branches):
                step = steps[t][r]
                found = before.T @ share @ after[k - 1 - t].T  # over the step's law
                first = starts[0 if self.grammar.is_shared else t]
                uses = found[:, step.parents, step.children] * step.probability
                full[:, first : first + len(step.probability)] += uses
                before = before @ step.law
        return full

    def _path_steps(self, on: Any) -> list[list[_Step]]:
        """From a node to its child r, for every level above the filter level."""

        def step(t: int, r: int) -> _Step:
            table = self.grammar.table(t)
            return _Step(
                on.keep(("law", t, r), lambda: table.marginal(r)),
                on.keep(("parents", t), lambda: table.parents.astype(np.int64)),
                on.keep(("children", t, r), lambda: table.children[:, r].astype(np.int64)),
                on.keep(("probability", t), lambda: table.probability),
            )

        return [[step(t, r) for r in range(self.arity)] for t in range(self.filter_level)]


class _Step(NamedTuple):
    """The law of a child given its parent, and the rules that it is made of."""

    law: Any
    parents: Any
    children: Any
    probability: Any


class _Host:
    """The twin of `hfilter.device.Constants` for NumPy arrays, whose constants need no keeping."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        out = allocate(shape, np.dtype(np.float64), f"counts for n = {shape[0]} rows")
        out[...] = 0
        return out

    def double(self, x: Array) -> Array:
        return np.asarray(x, np.float64)

    def rounded(self, x: Array, kind: Any) -> Array:
        return x.astype(kind, copy=False)

    def sum_rows(self, x: Array) -> Array:
        out: Array = x.sum(axis=0, dtype=np.float64, keepdims=True)
        return out

    def keep(self, name: Any, make: Callable[[], Array]) -> Array:
        return make()
