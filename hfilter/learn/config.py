"""`TrainConfig`: how a network is trained, as a function of the step and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hfilter.errors import ArgumentError
from hfilter.learn.masks import HELD_OUT_START

__all__ = ["TrainConfig", "log_spaced"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; learning rate, batch and constant schedule default to the published ones.

    Parameters
    ----------
    steps
        Number of updates.
    batch_size, lr
        Sequences per update and peak learning rate.
    schedule, warmup, final_lr
        The rate climbs linearly over ``warmup`` steps, then stays (``"constant"``) or falls along
        half a cosine to ``final_lr * lr`` at the last step (``"cosine"``).
    weight_decay, clip
        AdamW's decay (0 makes it Adam) and the bound on the gradient's norm (``None``: no bound).
    mask_rate
        ``None``: one hidden leaf per sequence; see :func:`hfilter.learn.data.draw_masks`. The
        held-out set is masked likewise.
    train_mask_rate
        Another rate for the training batches only, ``mask_rate`` unless given.
    seed, data_seed, data_start
        ``seed`` decides initial weights and dropout; rows and masks are rows ``data_start …`` of
        the stream of ``data_seed`` (``seed`` unless given).
    eval_every, eval_at
        Evaluate every so many steps, or at exactly these (see :func:`log_spaced`); step 0 and the
        last always.
    n_eval
        Sequences of the held-out set.
    checkpoint_every
        Steps between checkpoints; the last step always has one.
    threads, device
        torch's threads and the device to train on. One thread is right for encoders as small as
        these: more gain little, and lose tenfold on a busy machine. Raise it on idle cores for
        the published width or large batches (``None``: torch's own choice).

    Raises
    ------
    hfilter.errors.ArgumentError
        For any value outside its range.

    Notes
    -----
    Source of the defaults: Garnier-Brun et al. 2024, arXiv 2408.15138, appendix (Adam, rate 1e-4,
    batches of 32).
    """

    steps: int
    batch_size: int = 32
    lr: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    final_lr: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    mask_rate: float | None = None
    train_mask_rate: float | None = None
    seed: int = 0
    data_seed: int | None = None
    data_start: int = 0
    eval_every: int = 100
    eval_at: tuple[int, ...] | None = None
    n_eval: int = 4096
    checkpoint_every: int = 1000
    threads: int | None = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "n_eval", "checkpoint_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("warmup", "seed", "data_start", "final_lr", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ArgumentError(f"lr must be positive and finite, got {self.lr}")
        for name in ("mask_rate", "train_mask_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0.0 < rate <= 1.0:
                raise ArgumentError(f"{name} must be None or in (0, 1], got {rate}")
        if self.clip is not None and not self.clip > 0:
            raise ArgumentError(f"clip must be None or positive, got {self.clip}")
        if self.schedule not in ("constant", "cosine"):
            raise ArgumentError(f'schedule must be "constant" or "cosine", got {self.schedule!r}')
        if self.threads is not None:
            _at_least("threads", self.threads, 1)
        if self.eval_at is not None:
            object.__setattr__(self, "eval_at", tuple(int(t) for t in self.eval_at))
            if any(not 0 <= t <= self.steps for t in self.eval_points()):
                raise ArgumentError(f"eval_at must lie in 0 … {self.steps}, got {self.eval_at}")
        end = self.data_start + self.steps * self.batch_size
        if end > HELD_OUT_START:
            raise ArgumentError(
                f"training rows must end before the held-out rows (2^48), they end at {end}; "
                "use fewer steps or another data_seed"
            )

    def eval_points(self) -> set[int]:
        """Steps after which the network is evaluated."""
        chosen = self.eval_at
        if chosen is None:
            chosen = tuple(range(0, self.steps + 1, self.eval_every))
        return {0, self.steps, *chosen}

    def learning_rate(self, step: int) -> float:
        """The rate of update ``step`` = 0 … steps - 1: a function of the step alone.

        Examples
        --------
        >>> config = TrainConfig(steps=100, lr=1.0, schedule="cosine", warmup=10)
        >>> [round(config.learning_rate(t), 3) for t in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        fall = 0.5 * (1.0 + math.cos(math.pi * done))
        return self.lr * (self.final_lr + (1.0 - self.final_lr) * fall)


def log_spaced(steps: int, n: int) -> tuple[int, ...]:
    """At most ``n`` steps from 1 to ``steps``, evenly spaced on a logarithmic axis.

    Examples
    --------
    >>> log_spaced(1000, 7)
    (1, 3, 10, 32, 100, 316, 1000)
    """
    if steps < 1 or n < 2:
        raise ArgumentError(f"steps must be at least 1 and n at least 2, got {steps} and {n}")
    return tuple(sorted({round(steps ** (i / (n - 1))) for i in range(n)}))


def _at_least(name: str, value: float, low: int) -> None:
    if not value >= low:
        raise ArgumentError(f"{name} must be at least {low}, got {value}")
