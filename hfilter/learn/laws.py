"""What is asked of each scored token, and its exact answer. NumPy alone; knows no torch.

Five tasks: ``"mlm"`` names the hidden leaves from the others; ``"root"`` names the root;
``"causal"`` names every leaf from those before it; ``"ancestor"`` names, at every leaf, its ancestor
at one level, from all leaves; ``"denoise"`` names every leaf from all of them under Gaussian noise.
Scored tokens are always in row-major order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from hfilter.checks import check_int
from hfilter.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

__all__ = ["TASKS", "TaskName", "check_task", "exact_law", "exact_levels", "window_law"]

TaskName = Literal["mlm", "root", "causal", "ancestor", "denoise"]

#: The five tasks by name.
TASKS: tuple[str, ...] = get_args(TaskName)

_BLOCK_ROWS = 8192  # rows per inference call: enough to be fast, few enough to fit a cache


def check_task(model: TreeModel, task: str, ancestor_level: int | None) -> None:
    """Refuse a task that there is not, or an ancestor that the model's trees do not have.

    Raises
    ------
    hfilter.errors.ArgumentError
    """
    if task not in TASKS:
        names = ", ".join(f'"{name}"' for name in TASKS)
        raise ArgumentError(f"task must be one of {names}, got {task!r}")
    if task != "ancestor":
        if ancestor_level is not None:
            raise ArgumentError(
                f'ancestor_level has a meaning for the task "ancestor" only, not for "{task}"'
            )
        return
    levels = [d for d in model.existing_levels if d < model.depth]
    if ancestor_level not in levels:
        raise ArgumentError(
            f"ancestor_level must be one of {levels}, the levels above the leaves that exist at "
            f"depth {model.depth} and filter level {model.filter_level}, got {ancestor_level!r}"
        )


def exact_levels(model: TreeModel, ancestor_level: int | None) -> tuple[int, ...]:
    """The k of 0 … depth for which BP_k can answer: those whose trees have the level asked for."""
    if not ancestor_level:
        return tuple(range(model.depth + 1))
    return tuple(range(ancestor_level + 1))  # level d > 0 exists under k <= d alone


def exact_law(
    model: TreeModel,
    task: TaskName,
    leaves: NDArray[Any],
    mask: NDArray[np.bool_] | None = None,
    *,
    ancestor_level: int | None = None,
    log_fields: NDArray[Any] | None = None,
    dtype: str = "float64",
) -> NDArray[Any]:
    """The exact posterior of every scored token, by BP at the model's filter level.

    Parameters
    ----------
    model : TreeModel
    task
    leaves : (n, L) integer array
        True leaves.
    mask : (n, L) bool array, optional
        Leaves hidden from BP; under ``"mlm"``, where it is needed, the scored ones.
    ancestor_level
        For ``"ancestor"``.
    log_fields : (n, L, q) array, optional
        For ``"denoise"``, and needed there: log-likelihood of each symbol at each leaf, as noise
        leaves it, see :meth:`hfilter.learn.noise.Noise.log_fields`.
    dtype
        ``"float32"`` or ``"float64"``.

    Returns
    -------
    (m, q) array
        m hidden leaves for ``"mlm"``, n sequences for ``"root"``, n L leaves otherwise; NaN rows
        where the evidence is impossible.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
    >>> leaves = model.sample(3, seed=0).leaves
    >>> exact_law(model, "causal", leaves).shape, exact_law(model, "root", leaves).max()
    ((12, 2), np.float64(1.0))
    """
    if task == "mlm" and mask is None:
        raise ArgumentError('the task "mlm" needs a mask: its hidden leaves are what is asked')
    if (task == "denoise") != (log_fields is not None):
        raise ArgumentError(
            'log_fields, what the noise lets through, are needed for the task "denoise" and for no '
            f'other; got {"none" if log_fields is None else "some"} for "{task}"'
        )
    parts = []
    for first in range(0, max(1, len(leaves)), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        seen, hidden = leaves[rows], None if mask is None else mask[rows]
        if task == "root":
            law = model.root_posterior(seen, hidden, dtype=dtype)
        elif task == "causal":
            law = model.next_token(seen, hidden, dtype=dtype)
        elif log_fields is not None:
            law = model.infer(log_fields=log_fields[rows], dtype=dtype).leaves
        elif task == "ancestor":
            level = check_int("ancestor_level", ancestor_level, 0, model.depth)
            nodes = model.infer(seen, hidden, dtype=dtype, levels=[level]).level(level)
            law = np.repeat(nodes, model.n_leaves // nodes.shape[1], axis=1)
        else:
            law = model.infer(seen, hidden, dtype=dtype).leaves[hidden]
        parts.append(law.reshape(-1, law.shape[-1]))
    return np.concatenate(parts)


def window_law(
    model: TreeModel, height: int, leaves: NDArray[Any], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """W_h: (m, q) law of every hidden leaf given what is seen in its own subtree of that height.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> leaves, mask = model.sample(2).leaves, np.eye(2, 4, dtype=bool)
    >>> bool(np.allclose(window_law(model, 2, leaves, mask), exact_law(model, "mlm", leaves, mask)))
    True
    """
    parts = []
    for first in range(0, max(1, len(leaves)), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        law = model.windowed(leaves[rows], height, mask[rows], dtype="float64")
        parts.append(law[mask[rows]])
    return np.concatenate(parts)
