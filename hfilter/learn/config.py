"""`TrainConfig`: how a network is trained, as a function of the step and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from hfilter.errors import ArgumentError
from hfilter.learn.masks import HELD_OUT_START
from hfilter.learn.noise import NOISES, default_eval_time
from hfilter.learn.values import number, several, whole

__all__ = ["TrainConfig", "log_spaced"]

# Fields of the first run folders. A later one counts only where it differs from its default, so that
# the digest of an old folder stays what it was.
_FIRST_FIELDS = 19

_LARGEST_SEED = 2**64 - 1
_MOST_THREADS = 1024  # torch dies where the system cannot start as many as it is told to
_NUMBERS = (
    *("lr", "muon_lr", "clip", "stop_at", "final_lr", "weight_decay"),
    *("mask_rate", "train_mask_rate", "average"),
)
#: Schedules that ``cooldown`` has a meaning for.
COOLING = ("trapezoid", "linear-cosine", "inverse-root")
_CHOICES = {
    "schedule": (*("constant", "cosine", "linear", "trapezoid", "linear-cosine", "inverse-root"),),
    "optimiser": ("adamw", "muon"),
    "targets": ("labels", "posterior"),
    "precision": ("float32", "bfloat16", "float16"),
    "noise": NOISES,
    "held_out": ("index", "content"),
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; learning rate, batch and constant schedule default to the published ones.

    Parameters
    ----------
    steps
        Number of updates.
    batch_size
        Sequences per update; with several processes, of all of them together.
    optimiser, lr, muon_lr, betas, weight_decay
        ``"adamw"``, or ``"muon"``: orthogonalised momentum for the matrices inside the layers, at
        the peak rate ``muon_lr`` (``lr`` unless given; its updates have the size of AdamW's), and
        AdamW at the peak rate ``lr`` for everything else. A decay of 0 makes AdamW Adam.
    schedule, warmup, cooldown, final_lr
        The rates climb linearly over ``warmup`` steps, then stay (``"constant"``), or fall to
        ``final_lr`` times their peak at the last step: along half a cosine (``"cosine"``), along
        a line (``"linear"``), or along a line over the last ``cooldown`` steps (``"trapezoid"``).
        ``"linear-cosine"``: along a line to half their peak, and from there along half a cosine to
        ``final_lr`` times it over the last ``cooldown`` steps. ``"inverse-root"``: as 1 / sqrt(1 +
        s / ``cooldown``), s steps after the warm-up, whenever the run ends.
    average
        Above 0: the network that is evaluated, kept and returned has running averages of the
        weights, over about this part of the steps done so far (see
        :class:`hfilter.learn.averaging.Average`); 0: the weights themselves.
    clip
        Bound on the gradient's norm (``None``: no bound).
    mask_rate
        For masked leaves. ``None``: one hidden leaf per sequence; see
        :func:`hfilter.learn.masks.draw_masks`. The held-out set is masked likewise.
    train_mask_rate
        Another rate for the training batches only, ``mask_rate`` unless given.
    ancestor_level
        For the task ``"ancestor"``, and needed there: level of the ancestors to be named.
    targets, target_level
        ``"labels"``: what was drawn. ``"posterior"``: the exact law of each scored token given what
        the network sees, by BP of filter level ``target_level`` (the data's own unless given).
    train_size
        ``None``: fresh sequences at every step. P: the same P sequences over and over, each epoch
        in an order of its own; masks are drawn anew at every presentation.
    seed, data_seed, data_start
        ``seed`` decides initial weights and dropout, and for the task ``"denoise"`` times, noise
        and the order of the rows; rows and masks are rows ``data_start …`` of the stream of
        ``data_seed`` (``seed`` unless given). Block i of P rows: ``data_start = i * train_size``.
    init_gamma
        Initial weights from N(0, d_in^(-2 gamma)), one gamma or one by part of the encoder, see
        :func:`hfilter.learn.initial.init_gamma_`; ``None``: the encoder's own, as published.
    frozen
        Names of parameters that stay as they are, see :mod:`hfilter.learn.freezing`.
    eval_every, eval_at
        Evaluate every so many steps, or at exactly these (see :func:`log_spaced`); step 0 and the
        last always.
    n_eval
        Sequences of the held-out set.
    stop_at
        Stop at the first evaluation where KL(BP || network) is below this fraction of the exact
        floor, BP being that of the data: 0.01 asks for an excess cross-entropy below 1 %.
    checkpoint_every, checkpoint_at
        Steps between checkpoints to resume from, of which the latest stays and the last step always
        has one; and steps whose encoder is kept for good, as ``checkpoints/step-0000100.safetensors``.
    tensorboard
        Write the log as TensorBoard's event files too (needs the package tensorboard).
    precision, compile
        ``"bfloat16"`` and ``"float16"`` (with a loss scale) run the matrix products in that type;
        weights stay float32. ``compile`` sends the encoder through ``torch.compile``.
    noise, noise_steps, eval_time
        For the task ``"denoise"``: the schedule of the noise, ``"published"`` or ``"cosine"``, with
        T = ``noise_steps`` times, of which each presentation draws one; and the time at which the
        network is scored (0.15 T unless given).
    held_out
        ``"content"`` leaves sequences out of the held-out set that are in the training set of
        ``train_size`` rows too; ``"index"``: other rows of the stream, whatever they hold.
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
    batches of 32). Muon: Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982 (size of updates).
    """

    steps: int
    batch_size: int = 32
    lr: float = 1e-4
    schedule: Literal[
        "constant", "cosine", "linear", "trapezoid", "linear-cosine", "inverse-root"
    ] = "constant"
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
    optimiser: Literal["adamw", "muon"] = "adamw"
    muon_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    cooldown: int = 0
    ancestor_level: int | None = None
    targets: Literal["labels", "posterior"] = "labels"
    target_level: int | None = None
    train_size: int | None = None
    frozen: tuple[str, ...] = ()
    init_gamma: float | Mapping[str, float] | None = None
    stop_at: float | None = None
    checkpoint_at: tuple[int, ...] = ()
    tensorboard: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    noise: Literal["published", "cosine"] = "published"
    noise_steps: int = 500
    eval_time: int | None = None
    held_out: Literal["index", "content"] = "index"
    average: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "n_eval", "checkpoint_every",
                     "noise_steps"):  # fmt: skip
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        for name in ("warmup", "cooldown", "data_start"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 0))
        object.__setattr__(self, "seed", whole("seed", self.seed, 0, _LARGEST_SEED))
        for name, low, high in (
            ("data_seed", 0, _LARGEST_SEED),
            ("threads", 1, _MOST_THREADS),
            ("train_size", 1, None),
            ("ancestor_level", 0, None),
            ("target_level", 0, None),
            ("eval_time", 1, self.noise_steps),
        ):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), low, high))
        for name in ("tensorboard", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.device, str):
            raise ArgumentError(
                f"device must be the name of a torch device, such as 'cpu' or 'cuda', got "
                f"{self.device!r}"
            )
        self._check_numbers()
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                wanted = ", ".join(f'"{a}"' for a in allowed)
                raise ArgumentError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
        for name in ("eval_at", "checkpoint_at"):
            self._check_steps(name)
        if self.cooldown and self.schedule not in COOLING:
            wanted = ", ".join(f'"{name}"' for name in COOLING)
            raise ArgumentError(
                f"cooldown has a meaning for the schedules {wanted} only, got {self.schedule!r}"
            )
        within = self.schedule != "inverse-root"
        if within and self.warmup + self.cooldown > self.steps and self.cooldown:
            raise ArgumentError(
                f"warmup + cooldown must be at most steps = {self.steps}, "
                f"got {self.warmup} + {self.cooldown}"
            )
        if self.muon_lr is not None and self.optimiser != "muon":
            raise ArgumentError('muon_lr has a meaning for optimiser="muon" only; leave it out')
        if self.target_level is not None and self.targets != "posterior":
            raise ArgumentError('target_level needs targets="posterior"; leave it out, or say so')
        if self.held_out == "content" and self.train_size is None:
            raise ArgumentError(
                'held_out="content" leaves out what is in the training set; give its train_size'
            )
        frozen = several("frozen", "names", self.frozen)
        if not all(isinstance(f, str) for f in frozen):
            raise ArgumentError(f"frozen must be a tuple of names, got {self.frozen!r}")
        object.__setattr__(self, "frozen", frozen)
        if self.init_gamma is not None:
            self._check_gamma()
        end = self.data_start + (self.train_size or self.steps * self.batch_size)
        if end > HELD_OUT_START:
            raise ArgumentError(
                f"training rows must end before the held-out rows (2^48), they end at {end}; "
                "use fewer steps or another data_seed"
            )

    def _check_numbers(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None or name in ("lr", "final_lr", "weight_decay", "average"):
                object.__setattr__(self, name, number(name, value))
        for name in ("lr", "muon_lr", "clip", "stop_at"):
            value = getattr(self, name)
            if value is None and name != "lr":
                continue
            if not (value > 0 and (math.isfinite(value) or name == "clip")):
                raise ArgumentError(f"{name} must be positive and finite, got {value}")
        for name in ("final_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ArgumentError(
                    f"{name} must be at least 0 and finite, got {getattr(self, name)}"
                )
        if not 0.0 <= self.average <= 1.0:
            raise ArgumentError(f"average must be from 0 to 1, got {self.average}")
        for name in ("mask_rate", "train_mask_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0.0 < rate <= 1.0:
                raise ArgumentError(f"{name} must be None or in (0, 1], got {rate}")
        betas = tuple(number("betas", b) for b in several("betas", "numbers", self.betas))
        if len(betas) != 2 or not all(0.0 <= b < 1.0 for b in betas):
            raise ArgumentError(f"betas must be two numbers in [0, 1), got {betas}")
        object.__setattr__(self, "betas", betas)

    def _check_gamma(self) -> None:
        given: Any = self.init_gamma
        parts = dict(given) if isinstance(given, Mapping) else {"": given}
        for part, value in parts.items():
            real = isinstance(value, int | float) and not isinstance(value, bool)
            if not (real and math.isfinite(value)):
                where = f" of {part}" if part else ""
                raise ArgumentError(f"init_gamma{where} must be a finite number, got {value!r}")
        object.__setattr__(self, "init_gamma", parts if "" not in parts else given)

    def _check_steps(self, name: str) -> None:
        given = getattr(self, name)
        if given is None and name == "eval_at":
            return
        steps = several(name, "steps", given)
        object.__setattr__(self, name, tuple(whole(f"{name}: a step", t, 0) for t in steps))
        if any(not 0 <= t <= self.steps for t in getattr(self, name)):
            raise ArgumentError(f"{name} must lie in 0 … {self.steps}, got {given}")

    def as_dict(self) -> dict[str, Any]:
        """What identifies a run: the first options always, later ones where they were chosen.

        Examples
        --------
        >>> list(TrainConfig(steps=5, train_size=64).as_dict())[-3:]
        ['threads', 'device', 'train_size']
        """
        later = {field.name: field.default for field in fields(self)[_FIRST_FIELDS:]}
        values = asdict(self)
        return {k: v for k, v in values.items() if k not in later or v != later[k]}

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
        return self.lr * self.rate_factor(step)

    def rate_factor(self, step: int) -> float:
        """The part of its peak that every learning rate has at update ``step``.

        Examples
        --------
        >>> config = TrainConfig(steps=8, schedule="trapezoid", warmup=2, cooldown=4)
        >>> [config.rate_factor(t) for t in range(9)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "inverse-root":
            return 1.0 / math.sqrt(1.0 + (step - self.warmup) / max(1, self.cooldown))
        if self.schedule == "linear-cosine":
            return self._two_phases(step)
        first = self.steps - self.cooldown if self.schedule == "trapezoid" else self.warmup
        done = max(0.0, (step - first) / max(1, self.steps - first))
        left = 0.5 * (1.0 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0 - done
        return self.final_lr + (1.0 - self.final_lr) * left

    def _two_phases(self, step: int) -> float:
        """A line from 1 to 1/2, then half a cosine from there to ``final_lr``."""
        knee = self.steps - self.cooldown
        if step < knee:
            return 1.0 - 0.5 * (step - self.warmup) / max(1, knee - self.warmup)
        done = min(1.0, (step - knee) / max(1, self.cooldown))
        return self.final_lr + (0.5 - self.final_lr) * 0.5 * (1.0 + math.cos(math.pi * done))

    @property
    def time_of_evaluation(self) -> int:
        """The time at which a denoiser is scored: ``eval_time``, or 0.15 T."""
        return self.eval_time or default_eval_time(self.noise_steps)

    def rescaled(self, steps: int) -> TrainConfig:
        """The same run stretched or shrunk to ``steps`` updates: every step number in proportion.

        Examples
        --------
        >>> config = TrainConfig(steps=1000, warmup=100, eval_at=(1, 10, 1000), checkpoint_at=(500,))
        >>> short = config.rescaled(100)
        >>> short.warmup, short.eval_at, short.checkpoint_at
        (10, (1, 100), (50,))
        """
        part = whole("steps", steps, 1) / self.steps
        if part == 1:
            return self

        def moved(points: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(sorted({min(steps, max(min(t, 1), round(t * part))) for t in points}))

        warmup = min(round(self.warmup * part), steps)
        return replace(
            self,
            steps=steps,
            warmup=warmup,
            cooldown=min(round(self.cooldown * part), max(0, steps - warmup)),
            eval_at=None if self.eval_at is None else moved(self.eval_at),
            eval_every=max(1, round(self.eval_every * part)),
            checkpoint_at=moved(self.checkpoint_at),
            checkpoint_every=max(1, min(self.checkpoint_every, steps)),
        )


def log_spaced(steps: int, n: int) -> tuple[int, ...]:
    """At most ``n`` steps from 1 to ``steps``, evenly spaced on a logarithmic axis.

    Examples
    --------
    >>> log_spaced(1000, 7)
    (1, 3, 10, 32, 100, 316, 1000)
    """
    steps, n = whole("steps", steps, 1), whole("n", n, 2)
    return tuple(sorted({round(steps ** (i / (n - 1))) for i in range(n)}))
