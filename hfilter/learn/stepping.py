"""One update of an encoder: batch, loss, gradients of all processes, optimiser."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import torch
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import HFilterError
from hfilter.learn.averaging import Average
from hfilter.learn.parallel import SharedGradients, Team
from hfilter.learn.tasks import n_scored, task_loss

if TYPE_CHECKING:
    from hfilter.learn.config import TrainConfig
    from hfilter.learn.data import FreshBatches
    from hfilter.learn.encoder import Encoder
    from hfilter.learn.optimisers import Optimiser
    from hfilter.learn.records import Progress

__all__ = ["Stepper", "check_finite", "key"]

_STEP_STREAM = 0x73746570  # "step" in ASCII: keys of initial weights and dropout
_KEYS = 1024  # drawn at once: a generator costs more than a word
_LOOK_EVERY = 64  # steps between looks at the loss on a GPU, where looking means waiting


class Stepper:
    """Does steps. Rows, masks, dropout and learning rate are functions of (seed, step) alone.

    Parameters
    ----------
    encoder, optimiser, batches, config
    team
        Whose gradients are added.
    device
    """

    def __init__(
        self,
        encoder: Encoder,
        optimiser: Optimiser,
        batches: FreshBatches,
        config: TrainConfig,
        team: Team,
        device: torch.device,
    ) -> None:
        self.optimiser, self.batches, self.config = optimiser, batches, config
        self.team, self.device = team, device
        self.forward: Any = torch.compile(encoder) if config.compile else encoder
        self.average = Average(encoder, config.average) if config.average else None
        self.shared = SharedGradients(optimiser.parameters) if team.world > 1 else None
        self._random = encoder.config.dropout > 0
        self._keys: tuple[int, list[int]] = (-1, [])
        self._waits = device.type != "cpu"
        self._unseen = torch.zeros((), dtype=torch.float64, device=device)
        half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.precision)
        self._autocast: Any = (
            nullcontext() if half is None else torch.autocast(device.type, dtype=half)
        )

    def step(self, state: Progress) -> None:
        """One update; ``state`` moves on by one step."""
        optimiser, config = self.optimiser, self.config
        batch = self.batches.batch(state.step)
        if self._random:
            self._seed(state.step + 1)
        optimiser.set_rates(config.rate_factor(state.step))
        with self._autocast:
            logits = self.forward(*batch.inputs)
        loss = task_loss(logits, batch)
        if self.shared is None:
            optimiser.forget_gradients()
        else:
            self.shared.flat.zero_()
        optimiser.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.shared is not None:
            loss = self.shared.average(self.team, loss, n_scored(batch))
        if self._waits:
            self._unseen += loss.detach()
        else:
            self._add(loss.item(), state)
        optimiser.step(config.clip)
        state.loss_steps += 1
        state.sequences += config.batch_size
        state.step += 1
        if self.average is not None:
            self.average.follow(state.step)
        if self._waits and state.step % _LOOK_EVERY == 0:
            self.look(state)

    def averaged(self) -> AbstractContextManager[None]:
        """For as long as it lasts, the encoder is the one that counts: of averages, if there are."""
        return nullcontext() if self.average is None else self.average.instead()

    def look(self, state: Progress) -> None:
        """Bring the losses of the latest steps home from a GPU."""
        if self._waits:
            self._add(self._unseen.item(), state)
            self._unseen.zero_()

    def _add(self, value: float, state: Progress) -> None:
        if not math.isfinite(value):
            raise HFilterError(
                f"the training loss became {value} at step {state.step}; lower lr or set clip, "
                "and start in another folder"
            )
        state.loss_sum += value

    def _seed(self, number: int) -> None:
        """Seed torch's generators; ``torch.manual_seed`` does it too, a hundred times slower."""
        block, within = divmod(number, _KEYS)
        if self._keys[0] != block:
            self._keys = (block, _key_block(self.config.seed, block * _KEYS, _KEYS))
        seed = self._keys[1][within] + self.team.rank
        torch.default_generator.manual_seed(seed)
        if self._waits and self.device.type == "cuda":
            torch.cuda.manual_seed(seed)


def check_finite(encoder: Encoder, step: int) -> None:
    """What is written can be resumed from: never weights that are not numbers."""
    if not all(bool(torch.isfinite(p).all()) for p in encoder.parameters()):
        raise HFilterError(
            f"the weights are no longer finite at step {step}; lower lr or set clip, and start in "
            "another folder"
        )


def key(seed: int, number: int) -> int:
    """Seed of torch's generator for the initial weights (number 0) and for each step (1 …)."""
    return _key_block(seed, number, 1)[0]


def _key_block(seed: int, first: int, count: int) -> list[int]:
    """The first of the four words at each of ``count`` counters."""
    philox = np.random.Philox(counter=first, key=np.array([seed, _STEP_STREAM], dtype=np.uint64))
    words = philox.random_raw(4 * count)[::4] >> np.uint64(1)
    return [int(word) for word in words]
