"""What a network is given at one step, as tensors, and how it is made of drawn rows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import torch
    from torch import Tensor
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import ArgumentError
from hfilter.learn.laws import TaskName

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Batch", "make_batch", "task_targets"]


@dataclass(frozen=True, eq=False)  # == of tensors is no truth value: equal is identical
class Batch:
    """What a task needs for one step.

    Attributes
    ----------
    tokens : (B, L) int64
        What the network sees; hidden leaves hold the mask token q. For ``"denoise"``: (B, L, q)
        float32, the noisy one-hot leaves.
    mask : (B, L) bool
        True where a leaf is scored: the hidden ones for ``"mlm"``, none for ``"root"``, all for
        the other tasks.
    targets : int64
        (B, L) true leaves, or their ancestors for ``"ancestor"``; (B,) roots for ``"root"``.
    roots : (B,) int64
        Root symbols, whatever the task.
    labels : (m,) int64
        The targets that are scored, in row-major order.
    where : (m,) int64 or None
        Their places in the flattened batch; ``None``: all of them.
    law : (m, q) float32 or None
        Exact law of each of them, where that is the target; rows of zeros where it does not exist.
    times : (B,) int64 or None
        The step of the noise of each sequence, for ``"denoise"``.
    """

    tokens: Tensor
    mask: Tensor
    targets: Tensor
    roots: Tensor
    labels: Tensor
    where: Tensor | None = None
    law: Tensor | None = None
    times: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network is called with: the tokens, and the times where there are any."""
        return (self.tokens,) if self.times is None else (self.tokens, self.times)

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if t is None else t.to(device) for t in tensors))  # type: ignore[arg-type]


def task_targets(task: TaskName, sample: Any, ancestor_level: int | None) -> NDArray[Any]:
    """What is to be named: (n, L) leaves or ancestors, or (n,) roots, of a drawn sample."""
    if task == "root":
        return np.asarray(sample.roots)
    if task != "ancestor":
        return np.asarray(sample.leaves)
    nodes = sample.levels[ancestor_level]
    return np.repeat(nodes, sample.leaves.shape[1] // nodes.shape[1], axis=1)


def make_batch(
    leaves: NDArray[Any],
    roots: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    mask_token: int,
    task: TaskName,
    targets: NDArray[Any] | None = None,
    noisy: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> Batch:
    """A :class:`Batch` from NumPy rows.

    Parameters
    ----------
    leaves, roots : (n, L) and (n,) integer arrays
        The truth.
    mask : (n, L) bool array, optional
        Leaves to hide; needed for ``"mlm"``, where they are what is scored.
    mask_token
        q.
    task
    targets : (n, L) integer array, optional
        The ancestors, for ``"ancestor"``; the other tasks take theirs from the truth.
    noisy : (n, L, q) float32 and (n,) int64 arrays, optional
        Noisy leaves and their times, for ``"denoise"``.
    """
    tokens = torch.from_numpy(leaves.astype(np.int64))
    root = torch.from_numpy(roots.astype(np.int64))
    truth = tokens
    if mask is not None:
        hidden = torch.from_numpy(np.ascontiguousarray(mask))
        tokens = tokens.masked_fill(hidden, mask_token)
    if task == "root":
        return Batch(tokens, torch.zeros_like(truth, dtype=torch.bool), root, root, root)
    if task == "ancestor":
        if targets is None:
            raise ArgumentError('the task "ancestor" needs targets, the ancestors (n, L)')
        truth = torch.from_numpy(targets.astype(np.int64))
    if task == "mlm":
        if mask is None:
            raise ArgumentError('the task "mlm" needs a mask: its hidden leaves are what is asked')
        where = hidden.flatten().nonzero().squeeze(1)
        return Batch(tokens, hidden, truth, root, truth.flatten()[where], where)
    everywhere = torch.ones_like(truth, dtype=torch.bool)
    if task == "denoise":
        if noisy is None:
            raise ArgumentError('the task "denoise" needs noisy leaves (n, L, q) and their times')
        seen, times = (torch.from_numpy(part) for part in noisy)
        return Batch(seen, everywhere, truth, root, truth.flatten(), times=times)
    return Batch(tokens, everywhere, truth, root, truth.flatten())
