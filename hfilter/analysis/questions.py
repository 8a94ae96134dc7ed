"""The four questions one can ask of a sequence, each with its exact answer and its truth."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hfilter.analysis.checks import as_integers
from hfilter.checks import check_int
from hfilter.errors import ArgumentError, DTypeError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

__all__ = ["TASKS", "Question", "Task"]

Task = Literal["mlm", "root", "causal", "ancestor"]
TASKS = ("mlm", "root", "causal", "ancestor")


@dataclass(frozen=True)
class Question:
    """What a predictor is asked, and against which laws it is judged.

    - ``"mlm"``: the hidden leaves given the visible ones, or every leaf given all others;
    - ``"root"``: the root given the visible leaves;
    - ``"causal"``: every leaf given the visible ones before it;
    - ``"ancestor"``: at every leaf, its ancestor at `level` given the visible leaves.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> Question.of(model, "ancestor", level=2).row_shape
    (8, 4)
    >>> Question.of(model, "ancestor", level=2).filter_levels(model)
    (0, 1, 2)
    """

    task: str
    level: int | None
    row_shape: tuple[int, ...]

    @classmethod
    def of(cls, model: TreeModel, task: Any, level: Any = None) -> Question:
        """Check task and level against a model."""
        if task not in TASKS:
            names = ", ".join(f'"{name}"' for name in TASKS)
            raise ArgumentError(f"task must be one of {names}, got {task!r}")
        if task != "ancestor":
            if level is not None:
                raise ArgumentError(
                    f'level has no use under task="{task}"; leave it out, or take task="ancestor"'
                )
            wide = (model.n_leaves, model.vocab_size)
            return cls(task, None, (model.n_classes,) if task == "root" else wide)
        if level is None:
            raise ArgumentError(
                f'level (0 … {model.depth}) of the ancestor is needed under task="ancestor"'
            )
        level = check_int("level", level, 0, model.depth)
        return cls(task, level, (model.n_leaves, model.alphabets[level]))

    def filter_levels(
        self, model: TreeModel, wanted: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Which BP_k to ask, in ascending order: by default all that know the answer's node."""
        depth = model.depth
        highest = depth if not self.level else self.level  # level 0 exists at every k
        if wanted is None:
            return tuple(range(highest + 1))
        given: Any = wanted
        if isinstance(given, str) or not hasattr(given, "__iter__"):
            raise DTypeError(f"filter_levels must be a list of k, got {given!r}")
        whole = all(isinstance(k, Integral) and not isinstance(k, bool) for k in given)
        if not len(wanted) or not whole or any(not 0 <= k <= depth for k in wanted):
            raise ArgumentError(f"filter_levels must lie in 0 … {depth}, got {list(wanted)}")
        if max(wanted) > highest:
            raise ArgumentError(
                f"filter_levels must be at most level = {highest}, got {list(wanted)}: above its "
                "filter level a tree has no nodes but the root"
            )
        return tuple(sorted({int(k) for k in wanted}))

    def where(self, n: int, hidden: NDArray[np.bool_] | None) -> tuple[NDArray[np.int64], ...]:
        """Indices of what is scored among n sequences: (sequence,) or (sequence, position)."""
        if self.task == "root":
            return (np.arange(n),)
        everywhere = np.ones((n, self.row_shape[0]), bool)
        scored = hidden if self.task == "mlm" and hidden is not None else everywhere
        return np.nonzero(scored)

    def posterior(
        self, bp: TreeModel, leaves: NDArray[Any], hidden: NDArray[np.bool_] | None
    ) -> NDArray[np.float64]:
        """The exact law of everything asked, shape (n, *row_shape); NaN for impossible evidence."""
        law: Any
        if self.task == "root":
            law = bp.root_posterior(leaves, hidden, dtype="float64")
        elif self.task == "causal":
            law = bp.next_token(leaves, hidden, dtype="float64")
        elif self.task == "ancestor":
            assert self.level is not None
            found = bp.infer(leaves, hidden, dtype="float64", levels=[self.level])
            law = at_leaves(found.level(self.level), self.row_shape[0])
        elif hidden is None:
            law = bp.leave_one_out(leaves, dtype="float64")
        else:
            law = bp.infer(leaves, hidden, dtype="float64").leaves
        return np.asarray(law, dtype=np.float64)

    def truth(
        self, tokens: NDArray[Any], roots: Any, ancestors: Any, n_nodes: int
    ) -> NDArray[np.int64]:
        """What is right, shape (n, L) or (n,), from what a caller gave."""
        n, length = tokens.shape
        given = {"roots": roots, "ancestors": ancestors}
        needed = {"root": "roots", "ancestor": "ancestors"}.get(self.task)
        for name, array in given.items():
            if array is not None and name != needed:
                raise ArgumentError(
                    f'{name} have no use under task="{self.task}"; leave them out, or did you mean '
                    f'task="{name.removesuffix("s")}"?'
                )
        if needed is None:
            return tokens.astype(np.int64)
        if given[needed] is None:
            shape = "(n,)" if needed == "roots" else f"(n, {n_nodes}) of that level's nodes"
            raise ArgumentError(f'{needed} {shape} are needed under task="{self.task}"')
        truth = as_integers(needed, given[needed])
        if needed == "roots":
            if truth.shape != (n,):
                raise ShapeError(f"roots must have shape ({n},), got {truth.shape}")
            return truth.astype(np.int64)
        if truth.shape not in ((n, n_nodes), (n, length)):
            raise ShapeError(
                f"ancestors must have shape {(n, n_nodes)}, a symbol per node, or {(n, length)}, "
                f"one per leaf, got {truth.shape}"
            )
        return np.asarray(at_leaves(truth, length), dtype=np.int64)


def at_leaves(nodes: NDArray[Any], n_leaves: int) -> NDArray[Any]:
    """What belongs to the nodes of a level, (n, nodes, …), at every leaf below: (n, L, …)."""
    return np.repeat(nodes, n_leaves // nodes.shape[1], axis=1)
