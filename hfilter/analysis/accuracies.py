"""The table of exact accuracies: data of every filter level against BP of every other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.analysis.tally import Tally
from hfilter.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

_BLOCK_VALUES = 2**21  # probabilities held at once


@dataclass(frozen=True, eq=False)  # == of arrays is no truth value: equal is identical
class ExactAccuracies:
    """Accuracies of BP_k' (columns) on data of filter level k (rows), with standard errors.

    Attributes
    ----------
    filter_levels : tuple of int
        The k of the rows and the k' of the columns.
    n : int
        Sequences per row.
    root, mlm : (K, K) float64 arrays
        Accuracy of the root, and of one masked leaf given all others (mean over all positions).
    mlm_cross_entropy : (K, K) float64 array
        Nats per token; infinite where BP_k' excludes a truth.
    root_se, mlm_se, mlm_cross_entropy_se : (K, K) float64 arrays
        Standard errors over sequences.
    root_undefined, mlm_undefined : (K, K) int64 arrays
        Sequences, and tokens, whose evidence is impossible under k'; left out of that cell.
    """

    filter_levels: tuple[int, ...]
    n: int
    root: NDArray[np.float64]
    root_se: NDArray[np.float64]
    mlm: NDArray[np.float64]
    mlm_se: NDArray[np.float64]
    mlm_cross_entropy: NDArray[np.float64]
    mlm_cross_entropy_se: NDArray[np.float64]
    root_undefined: NDArray[np.int64]
    mlm_undefined: NDArray[np.int64]

    def as_dict(self) -> dict[str, Any]:
        """Nested lists and numbers, ready for JSON."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in asdict(self).items()
        }

    def __str__(self) -> str:
        lines = [
            f"Accuracy of BP_k' (columns) on data of filter level k (rows), "
            f"± standard error over {self.n} sequences a row"
        ]
        for caption, means, errors in (
            ("the root, all leaves seen", self.root, self.root_se),
            ("one masked leaf, all others seen", self.mlm, self.mlm_se),
        ):
            lines += ["", f"{caption}:"]
            names = "".join(f" | {f'BP_{k}':^15}" for k in self.filter_levels)
            lines.append(f"data {names}".rstrip())
            for k, row, errors_row in zip(self.filter_levels, means, errors, strict=True):
                cells = (f"{a:.4f} ± {e:.4f}" for a, e in zip(row, errors_row, strict=True))
                lines.append(f"k = {k}" + "".join(f" | {cell:^15}" for cell in cells))
        if self.root_undefined.any() or self.mlm_undefined.any():
            lines += [
                "",
                "evidence impossible under BP_k' is left out: see root_undefined, mlm_undefined",
            ]
        return "\n".join(lines)


def exact_accuracies(
    model: TreeModel,
    n: int,
    *,
    seed: int = 0,
    start: int = 0,
    filter_levels: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExactAccuracies:
    """Root and single-mask accuracy of every BP_k' on data of every k.

    The masked-leaf figure is the mean over all positions of a sequence, which is the mean over the
    random choice of one position taken exactly: no position is drawn, and the standard error, over
    per-sequence means, is the smaller for it and honest about their correlation. Ties of the
    arg-max go to the lowest symbol.

    Parameters
    ----------
    model : TreeModel
        Grammar, depth and root prior; its own filter level plays no part.
    n, seed, start
        Rows ``start … start + n - 1`` of the stream of ``seed``, at every k: the rows of the table
        share their random numbers, so that their errors are correlated.
    filter_levels
        All of 0 … depth by default.
    progress
        ``progress(done, total)`` after each block, in sequences of one k.

    Returns
    -------
    ExactAccuracies

    Raises
    ------
    hfilter.errors.ArgumentError
        For n below 1 or a k outside 0 … depth.

    Notes
    -----
    Source: Garnier-Brun et al. 2024, arXiv 2408.15138, figures 2 and 3. Memory does not grow
    with n.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> table = exact_accuracies(model, 1000)
    >>> float(table.root[0, 0]), table.mlm.shape
    (1.0, (3, 3))
    >>> print("\\n".join(str(table).splitlines()[2:5]))
    the root, all leaves seen:
    data  |      BP_0       |      BP_1       |      BP_2
    k = 0 | 1.0000 ± 0.0000 | 0.8860 ± 0.0101 | 0.6280 ± 0.0153
    """
    levels = tuple(range(model.depth + 1) if filter_levels is None else filter_levels)
    if n < 1:
        raise ArgumentError(f"n must be at least 1, got {n}")
    if not levels or any(not 0 <= k <= model.depth for k in levels):
        raise ArgumentError(f"filter_levels must lie in 0 … {model.depth}, got {list(levels)}")
    cells = [[_Cell() for _ in levels] for _ in levels]
    models = [model.filtered(k) for k in levels]
    size = max(1, _BLOCK_VALUES // (model.n_leaves * model.vocab_size))
    done = 0
    for row, source in zip(cells, models, strict=True):
        for first in range(0, n, size):
            count = min(size, n - first)
            sample = source.sample(count, seed=seed, start=start + first)
            for cell, bp in zip(row, models, strict=True):
                cell.add(bp, np.asarray(sample.leaves), np.asarray(sample.roots))
            done += count
            if progress is not None:
                progress(done, n * len(levels))

    def table(read: Callable[[_Cell], float], dtype: Any = np.float64) -> NDArray[Any]:
        return np.array([[read(cell) for cell in row] for row in cells], dtype=dtype)

    return ExactAccuracies(
        filter_levels=levels,
        n=n,
        root=table(lambda c: c.root.mean),
        root_se=table(lambda c: c.root.standard_error),
        mlm=table(lambda c: c.mlm.mean),
        mlm_se=table(lambda c: c.mlm.standard_error),
        mlm_cross_entropy=table(lambda c: c.nats.mean),
        mlm_cross_entropy_se=table(lambda c: c.nats.standard_error),
        root_undefined=table(lambda c: n - c.root.n_tokens, np.int64),
        mlm_undefined=table(lambda c: n * model.n_leaves - c.mlm.n_tokens, np.int64),
    )


class _Cell:
    """One k on one k': running sums."""

    def __init__(self) -> None:
        self.root, self.mlm, self.nats = Tally(), Tally(), Tally()

    def add(self, bp: TreeModel, leaves: NDArray[Any], roots: NDArray[Any]) -> None:
        n, length = leaves.shape
        law = np.asarray(bp.root_posterior(leaves))
        self.root.add(law.argmax(axis=1) == roots, np.arange(n), ~np.isnan(law[:, 0]), n)
        law = np.asarray(bp.leave_one_out(leaves)).reshape(n * length, -1)
        truth = leaves.reshape(-1).astype(np.int64)
        owner, keep = np.repeat(np.arange(n), length), ~np.isnan(law[:, 0])
        self.mlm.add(law.argmax(axis=1) == truth, owner, keep, n)
        with np.errstate(divide="ignore"):
            nats = -np.log(law[np.arange(len(law)), truth], dtype=np.float64)
        self.nats.add(nats, owner, keep, n)
