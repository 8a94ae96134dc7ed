"""Training batches as a pure function of (seed, step): no files, no worker processes.

Presentation ``i`` = 0, 1, 2, … is row ``start + i`` of the model's sampling stream, or of a fixed
set of P rows number ``i mod P`` in the order of epoch ``i // P``; its mask is a function of (mask
seed, ``start + i``), its noise of (noise seed, ``i``). Batch ``t`` is presentations ``t B …
(t + 1) B - 1``. A run that resumes at step ``t`` asks for batch ``t`` and has what the uninterrupted
run had, and so has each of several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

try:
    import torch
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.checks import check_int
from hfilter.errors import ArgumentError
from hfilter.learn.batches import Batch, make_batch, task_targets
from hfilter.learn.laws import TaskName, check_task, exact_law
from hfilter.learn.masks import HELD_OUT_START, draw_masks, epoch_order
from hfilter.learn.noise import Noise
from hfilter.noising.schedule import Schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

__all__ = ["Batch", "FreshBatches", "TaskName", "make_batch"]

# A call of the sampler costs far less than so many rows, which still fit a cache.
_PREFETCH_ROWS = 8192
_PREFETCH_TOKENS = 1 << 20  # noisy leaves count for as many as there are symbols


class FreshBatches:
    """An endless (or bounded) source of batches straight from the sampler.

    Parameters
    ----------
    model : TreeModel
        Where the rows come from, at its own filter level.
    batch_size
        Rows per batch, B.
    task
        ``"mlm"``, ``"root"``, ``"causal"``, ``"ancestor"`` or ``"denoise"``.
    seed, start
        Seed and first row of the sampling stream.
    mask_rate, mask_seed
        See :func:`hfilter.learn.masks.draw_masks`; ``mask_seed`` is ``seed`` unless given. The
        tasks that need no mask hide nothing without a rate, and leaves at this rate with one.
    n_batches
        Number of batches; ``None`` for an endless source.
    prefetch
        Batches drawn per call of the sampler. Batches do not depend on it; by default enough for
        about 8 192 rows.
    device
        Where the batches are put.
    ancestor_level
        Level of the ancestors, for ``"ancestor"``.
    targets, target_level
        ``"posterior"`` computes the exact law of every scored token, by BP of filter level
        ``target_level`` (the model's own unless given).
    train_size
        P, to present the same P rows over and over, each epoch in an order of its own.
    schedule, noise_seed
        For ``"denoise"``: the noise by time (as published unless given); and the seed of times,
        noise and of the order of the epochs (``seed`` unless given), which are drawn anew at every
        presentation: times uniformly from 1 … T.
    rank, world
        Of several processes: rows ``rank B / world …`` of each batch of B are this one's.

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
    >>> exact = FreshBatches(model, batch_size=32, seed=7, targets="posterior")
    >>> exact.batch(1000).law.shape          # BP's law of the 32 hidden leaves
    torch.Size([32, 4])
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
        ancestor_level: int | None = None,
        targets: Literal["labels", "posterior"] = "labels",
        target_level: int | None = None,
        train_size: int | None = None,
        schedule: Schedule | None = None,
        noise_seed: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        batch_size = check_int("batch_size", batch_size, 1)
        check_task(model, task, ancestor_level)
        if n_batches is not None:
            check_int("n_batches", n_batches, 0)
        if prefetch is not None:
            check_int("prefetch", prefetch, 1)
        check_int("start", start, 0)
        if targets not in ("labels", "posterior"):
            raise ArgumentError(f'targets must be "labels" or "posterior", got {targets!r}')
        if train_size is not None:
            check_int("train_size", train_size, 1)
            if start < HELD_OUT_START < start + train_size:
                raise ArgumentError(
                    f"start + train_size must be at most 2^48, where the held-out rows begin, got "
                    f"{start} + {train_size}; use another seed"
                )
        if not 0 <= rank < world or batch_size % world:
            raise ArgumentError(
                f"batch_size must be a multiple of the {world} processes, whose rank is below "
                f"their number; got batch_size {batch_size} and rank {rank}"
            )
        self.model = model
        self.batch_size = batch_size
        self.task: TaskName = task
        self.seed = seed
        self.start = start
        self.mask_rate = mask_rate
        self.mask_seed = seed if mask_seed is None else mask_seed
        self.n_batches = n_batches
        self.noise: Noise | None = None
        self.order_seed = seed
        numbers = model.n_leaves
        if task == "denoise":
            self.order_seed = seed if noise_seed is None else noise_seed
            self.noise = Noise(schedule, model.vocab_size, self.order_seed)
            numbers *= model.vocab_size
        elif schedule is not None or noise_seed is not None:
            raise ArgumentError(f'schedule and noise_seed are for the task "denoise", not "{task}"')
        if task == "denoise" and mask_rate is not None:
            raise ArgumentError(
                f'mask_rate hides leaves, and the task "denoise" shows all of them under noise; '
                f"leave it out, got {mask_rate!r}"
            )
        widest = min(_PREFETCH_ROWS, max(1, _PREFETCH_TOKENS // numbers))
        self.prefetch = prefetch or max(1, widest // batch_size)
        self.device = torch.device(device)
        self.ancestor_level = ancestor_level
        self.train_size = train_size
        self.rank, self.world = rank, world
        self.judge: TreeModel | None = None
        if targets == "posterior":
            level = check_int("target_level", model.filter_level if target_level is None
                              else target_level, 0, model.depth)  # fmt: skip
            self.judge = model.filtered(level)
            check_task(self.judge, task, ancestor_level)
        self._chunk: tuple[int, Batch, list[int]] | None = None
        self._fixed: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None
        self._order: tuple[int, NDArray[np.int64]] | None = None
        if self._masked:
            draw_masks(0, model.n_leaves, self.mask_seed, 0, mask_rate)  # fail now, not at step 0

    @property
    def _masked(self) -> bool:
        return self.task == "mlm" or self.mask_rate is not None

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
        if self._chunk is None or self._chunk[0] != number:
            self._chunk = None  # the old one may go before the new one comes
            self._chunk = (number, *self._draw(number))
        _, chunk, bounds = self._chunk
        size = self.batch_size // self.world
        rows = slice(within * size, (within + 1) * size)
        tokens = slice(bounds[within], bounds[within + 1])
        return Batch(
            chunk.tokens[rows],
            chunk.mask[rows],
            chunk.targets[rows],
            chunk.roots[rows],
            chunk.labels[tokens],
            None if chunk.where is None else chunk.where[tokens],
            None if chunk.law is None else chunk.law[tokens],
            None if chunk.times is None else chunk.times[rows],
        )

    def _draw(self, number: int) -> tuple[Batch, list[int]]:
        """The batches of one chunk as one, and where the scored tokens of each begin."""
        n_batches = self.prefetch
        first = number * self.prefetch
        if self.n_batches is not None:
            n_batches = min(n_batches, self.n_batches - first)
        if self.start < HELD_OUT_START:  # see `batch`
            n_batches = min(n_batches, (HELD_OUT_START - self.start) // self.batch_size - first)
        size = self.batch_size // self.world
        if self.world == 1:
            ranges = [(first * size, n_batches * size)]
        else:
            steps = range(first, first + n_batches)
            ranges = [(t * self.batch_size + self.rank * size, size) for t in steps]
        rows = [self._rows(i, n) for i, n in ranges]
        leaves, roots, targets = (np.concatenate(part) for part in zip(*rows, strict=True))
        hidden = None
        if self._masked:
            length, rate = self.model.n_leaves, self.mask_rate
            hidden = np.concatenate(
                [draw_masks(n, length, self.mask_seed, self.start + i, rate) for i, n in ranges]
            )
        noisy = None if self.noise is None else self.noise.presentations(leaves, ranges)
        chunk = make_batch(leaves, roots, hidden, self.model.mask_token, self.task, targets, noisy)
        bounds = [0, *(chunk.mask.view(n_batches, -1).sum(1).cumsum(0).tolist())]
        where = chunk.where
        if where is not None:
            where = where % (size * self.model.n_leaves)
        if self.task == "root":
            bounds = [i * size for i in range(n_batches + 1)]
        law = None
        if self.judge is not None:
            fields = None if self.noise is None or noisy is None else self.noise.log_fields(*noisy)
            found = exact_law(self.judge, self.task, leaves, hidden, log_fields=fields,
                              ancestor_level=self.ancestor_level, dtype="float32")  # fmt: skip
            law = torch.from_numpy(np.nan_to_num(found, copy=False, nan=0.0))
        chunk = replace(chunk, where=where, law=law)
        return (chunk if self.device.type == "cpu" else chunk.to(self.device)), bounds

    def _rows(self, first: int, n: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Leaves, roots and targets of presentations ``first … first + n - 1``."""
        if self.train_size is None:
            return self._sample(self.start + first, n)
        picks = []
        while n:
            epoch, within = divmod(first, self.train_size)
            if self._order is None or self._order[0] != epoch:
                self._order = (epoch, epoch_order(self.train_size, self.order_seed, epoch))
            picks.append(self._order[1][within : within + n])
            first, n = first + len(picks[-1]), n - len(picks[-1])
        chosen = np.concatenate(picks)
        leaves, roots, targets = self._all()
        return leaves[chosen], roots[chosen], targets[chosen]

    def rows(self) -> NDArray[Any]:
        """(P, L) leaves of the training set.

        Raises
        ------
        hfilter.errors.ArgumentError
            Without a ``train_size``.
        """
        if self.train_size is None:
            raise ArgumentError("fresh rows at every step are no set; give train_size")
        return self._all()[0]

    def _all(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        if self._fixed is None:
            self._fixed = self._sample(self.start, self.train_size or 0)
        return self._fixed

    def _sample(self, first: int, n: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        level = self.ancestor_level
        sample = self.model.sample(
            n, seed=self.seed, start=first, levels=None if level is None else [level]
        )
        return sample.leaves, sample.roots, task_targets(self.task, sample, level)
