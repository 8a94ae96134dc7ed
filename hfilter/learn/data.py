"""Training batches as a pure function of (seed, step): no files, no worker processes.

Batch ``t`` is the rows ``start + t B … start + (t + 1) B - 1`` of the model's sampling stream,
and the masks are a function of (mask seed, row) likewise. A run that resumes at step ``t`` asks
for batch ``t`` and has what the uninterrupted run had.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

try:
    import torch
    from torch import Tensor
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import ArgumentError
from hfilter.learn.masks import HELD_OUT_START, draw_masks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

TaskName = Literal["mlm", "root"]

_PREFETCH_ROWS = (
    8192  # a call of the sampler costs far less than these rows, which still fit a cache
)


@dataclass(frozen=True, eq=False)  # == of tensors is no truth value: equal is identical
class Batch:
    """What a task needs for one step.

    Attributes
    ----------
    tokens : (B, L) int64
        What the network sees; hidden leaves hold the mask token q.
    mask : (B, L) bool
        True where a leaf is hidden and to be predicted; all False for the root task.
    targets : int64
        (B, L) true leaves for ``"mlm"``, (B,) root symbols for ``"root"``.
    roots : (B,) int64
        Root symbols, whatever the task.
    """

    tokens: Tensor
    mask: Tensor
    targets: Tensor
    roots: Tensor

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        tensors = (self.tokens, self.mask, self.targets, self.roots)
        return Batch(*(t.to(device) for t in tensors))


class FreshBatches:
    """An endless (or bounded) source of batches straight from the sampler.

    Parameters
    ----------
    model : TreeModel
        Where the rows come from, at its own filter level.
    batch_size
        Rows per batch, B.
    task
        ``"mlm"`` or ``"root"``.
    seed, start
        Seed and first row of the sampling stream.
    mask_rate, mask_seed
        See :func:`draw_masks`; ``mask_seed`` is ``seed`` unless given.
    n_batches
        Number of batches; ``None`` for an endless source.
    prefetch
        Batches drawn per call of the sampler. Batches do not depend on it; by default enough for
        about 8 192 rows.
    device
        Where the batches are put.

    Raises
    ------
    hfilter.errors.ArgumentError
        For a value outside its range.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> batches = FreshBatches(model, batch_size=32, seed=7)
    >>> batch = batches.batch(1000)          # any step, in any order
    >>> batch.tokens.shape, batch.mask.sum().item()
    (torch.Size([32, 8]), 32)
    """

    def __init__(
        self,
        model: TreeModel,
        batch_size: int,
        *,
        task: TaskName = "mlm",
        seed: int = 0,
        start: int = 0,
        mask_rate: float | None = None,
        mask_seed: int | None = None,
        n_batches: int | None = None,
        prefetch: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
        if task not in ("mlm", "root"):
            raise ArgumentError(f'task must be "mlm" or "root", got {task!r}')
        if n_batches is not None and n_batches < 0:
            raise ArgumentError(f"n_batches must be None or at least 0, got {n_batches}")
        if prefetch is not None and prefetch < 1:
            raise ArgumentError(f"prefetch must be None or at least 1, got {prefetch}")
        if start < 0:
            raise ArgumentError(f"start must be at least 0, got {start}")
        self.model = model
        self.batch_size = batch_size
        self.task = task
        self.seed = seed
        self.start = start
        self.mask_rate = mask_rate
        self.mask_seed = seed if mask_seed is None else mask_seed
        self.n_batches = n_batches
        self.prefetch = prefetch or max(1, _PREFETCH_ROWS // batch_size)
        self.device = device
        self._chunk: tuple[int, Any, NDArray[np.bool_] | None] | None = None
        if task == "mlm":
            draw_masks(0, model.n_leaves, self.mask_seed, 0, mask_rate)  # fail now, not at step 0

    def __len__(self) -> int:
        if self.n_batches is None:
            raise TypeError("an endless FreshBatches has no length; give n_batches")
        return self.n_batches

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate()

    def iterate(self, first_step: int = 0) -> Iterator[Batch]:
        """Batches ``first_step``, ``first_step + 1``, … in order, up to ``n_batches``."""
        step = first_step
        while self.n_batches is None or step < self.n_batches:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Batch:
        """Batch number ``step``: the same whatever was asked before.

        Raises
        ------
        hfilter.errors.ArgumentError
            For a negative step, or one beyond a bounded source.
        """
        if step < 0 or (self.n_batches is not None and step >= self.n_batches):
            bound = "" if self.n_batches is None else f" and below {self.n_batches}"
            raise ArgumentError(f"step must be at least 0{bound}, got {step}")
        end = self.start + (step + 1) * self.batch_size
        if self.start < HELD_OUT_START < end:
            raise ArgumentError(
                f"batch {step} would reach row {end}, and the held-out rows begin at 2^48; "
                "use another seed"
            )
        number, within = divmod(step, self.prefetch)
        chunk = self._chunk
        if chunk is None or chunk[0] != number:
            chunk = (number, *self._draw(number))
            self._chunk = chunk
        rows = slice(within * self.batch_size, (within + 1) * self.batch_size)
        _, sample, masks = chunk
        mask = None if masks is None else masks[rows]
        batch = make_batch(
            sample.leaves[rows], sample.roots[rows], mask, self.model.mask_token, self.task
        )
        return batch if str(self.device) == "cpu" else batch.to(self.device)

    def _draw(self, number: int) -> tuple[Any, NDArray[np.bool_] | None]:
        n_batches = self.prefetch
        if self.n_batches is not None:
            n_batches = min(n_batches, self.n_batches - number * self.prefetch)
        n = n_batches * self.batch_size
        first = self.start + number * self.prefetch * self.batch_size
        if self.start < HELD_OUT_START < first + n:
            n = (HELD_OUT_START - first) // self.batch_size * self.batch_size  # see `batch`
        sample = self.model.sample(n, seed=self.seed, start=first)
        if self.task == "root":
            return sample, None
        return sample, draw_masks(n, self.model.n_leaves, self.mask_seed, first, self.mask_rate)


def make_batch(
    leaves: NDArray[Any],
    roots: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    mask_token: int,
    task: TaskName,
) -> Batch:
    """A :class:`Batch` from NumPy rows; ``mask`` is ignored by the root task."""
    truth = torch.from_numpy(leaves.astype(np.int64))
    root = torch.from_numpy(roots.astype(np.int64))
    if task == "root" or mask is None:
        return Batch(truth, torch.zeros(truth.shape, dtype=torch.bool), root, root)
    hidden = torch.from_numpy(np.ascontiguousarray(mask))
    return Batch(truth.masked_fill(hidden, mask_token), hidden, truth, root)
