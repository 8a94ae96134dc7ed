"""The held-out set of a run; for denoisers also at all times, and beside it the training rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from torch import nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.learn.data import FreshBatches
from hfilter.learn.noise import Noise
from hfilter.learn.tasks import HeldOut, Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hfilter.exact import TreeModel
    from hfilter.learn.config import TrainConfig

__all__ = ["DenoisingHeldOut", "all_times", "held_out_of"]


def held_out_of(batches: FreshBatches, config: TrainConfig) -> HeldOut:
    """The held-out set that a run is scored on: other rows of the stream its batches come from."""
    model, seed = batches.model, batches.seed
    excluding = batches.rows() if config.held_out == "content" else None
    if batches.noise is None:
        return HeldOut(
            model,
            batches.task,
            config.n_eval,
            seed=seed,
            mask_rate=config.mask_rate,
            ancestor_level=config.ancestor_level,
            excluding=excluding,
        )
    return DenoisingHeldOut(
        model,
        config.n_eval,
        # The seed of the rows: networks of other seeds and blocks are scored on the same.
        Noise(batches.noise.schedule, model.vocab_size, seed),
        config.time_of_evaluation,
        seed=seed,
        excluding=excluding,
        train_start=None if config.train_size is None else config.data_start,
        train_size=config.train_size,
    )


def all_times(n: int, n_steps: int) -> NDArray[np.int64]:
    """(n,) times evenly spread over 1 … T, so that a mean over rows is one over times.

    Examples
    --------
    >>> all_times(4, 8).tolist(), all_times(6, 3).tolist()
    ([2, 4, 6, 8], [1, 1, 2, 2, 3, 3])
    """
    return 1 + (2 * np.arange(n, dtype=np.int64) + 1) * n_steps // (2 * n)


class DenoisingHeldOut(HeldOut):
    """A held-out set under noise of one time; the same under all, and training rows under both.

    Parameters
    ----------
    model : TreeModel
    n
        Sequences of each set; of training rows no more than there are.
    noise : Noise
    time
        The one time.
    seed, excluding
        As for :class:`hfilter.learn.tasks.HeldOut`.
    train_start, train_size
        The training set: rows ``train_start …`` of the same stream. None: fresh rows at every step.

    Attributes
    ----------
    others : dict of HeldOut
        By the name that their scores have in a record: ``"all_times"``, ``"train"`` and
        ``"train_all_times"``.
    """

    def __init__(
        self,
        model: TreeModel,
        n: int,
        noise: Noise,
        time: int,
        *,
        seed: int = 0,
        excluding: NDArray[Any] | None = None,
        train_start: int | None = None,
        train_size: int | None = None,
    ) -> None:
        steps = noise.schedule.n_steps
        super().__init__(
            model, "denoise", n, seed=seed, noise=noise, times=time, excluding=excluding
        )
        self.own_level = model.filter_level
        self.others: dict[str, HeldOut] = {
            "all_times": HeldOut(
                model,
                "denoise",
                n,
                seed=seed,
                noise=noise,
                times=all_times(n, steps),
                excluding=excluding,
                filter_levels=(),
            )
        }
        if train_start is not None and train_size is not None:
            m = min(n, train_size)
            self.others["train"] = HeldOut(
                model, "denoise", m, seed=seed, start=train_start, noise=noise, times=time
            )
            self.others["train_all_times"] = HeldOut(
                model,
                "denoise",
                m,
                seed=seed,
                start=train_start,
                noise=noise,
                times=all_times(m, steps),
                filter_levels=(),
            )

    def evaluate(self, network: nn.Module, batch_size: int = 1024) -> Scores:
        """Score a network on all sets; those of the others go into ``more``."""
        scores = super().evaluate(network, batch_size)
        for name, other in self.others.items():
            found = other.evaluate(network, batch_size)
            if name == "train":
                scores.more.update(
                    train_cross_entropy=found.cross_entropy,
                    train_floor=other.floor,
                    train_accuracy=found.accuracy,
                    train_exact_accuracy=other.exact_accuracy[self.own_level],
                    train_kl=found.kl,
                )
                continue
            part = "train_" if name.startswith("train") else ""
            scores.more[f"{part}loss_all_times"] = found.cross_entropy
            scores.more[f"{part}floor_all_times"] = other.floor
            scores.more[f"{part}kl_all_times"] = found.kl[self.own_level]
        return scores
