"""How the laboratory trains: the presets of `hfilter.learn.presets`, cut to each study's needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hfilter.experiments.lab.runs import Law, Run
from hfilter.experiments.lab.study import Options
from hfilter.learn.encoder import EncoderConfig
from hfilter.learn.presets import PRESETS
from hfilter.learn.train import TrainConfig, log_spaced

__all__ = ["recipe"]


def recipe(
    options: Options,
    law: Law,
    task: str = "mlm",
    seed: int = 0,
    *,
    keep: int = 0,
    encoder: dict[str, Any] | None = None,
    source: Run | None = None,
    freeze: bool | int = False,
    **training: Any,
) -> Run:
    """A run of a task under a law, by the preset of the options.

    Parameters
    ----------
    options : Options
    law : Law
    task : str
        ``"mlm"``, ``"root"``, ``"causal"`` or ``"ancestor"``.
    seed : int
    keep : int
        Encoders kept along the training, evenly on a logarithmic axis, the first and last among
        them; evaluated there too.
    encoder, training
        Fields of :class:`EncoderConfig` and :class:`TrainConfig` that differ from the preset's.
    source, freeze
        See :class:`Run`.
    """
    model = law.model
    kind = "published" if options.preset == "published" else "fast"
    name = f"{task}-{kind}" if f"{task}-{kind}" in PRESETS else f"{task}-fast"
    shape, config, _ = PRESETS[name](model)
    if options.preset == "smoke":
        shape, config = _smoke(shape, config)
    shape = replace(shape, **(encoder or {}))
    steps = training.pop("steps", config.steps)
    # Everything that is said in steps, for the number of steps that is asked for.
    config = replace(
        config,
        steps=steps,
        warmup=min(config.warmup, steps // 5),
        cooldown=min(config.cooldown, steps),
        seed=seed,
        checkpoint_every=max(1, min(config.checkpoint_every, steps)),
        eval_at=tuple(t for t in config.eval_at or () if t <= steps) or None,
        checkpoint_at=(),
    )
    if keep:
        at = (0, *log_spaced(steps, keep)) if steps > 1 and keep > 1 else (0, steps)
        config = replace(config, eval_at=at, checkpoint_at=at)
    return Run(law, shape, replace(config, **training), source, freeze)


def _smoke(shape: EncoderConfig, config: TrainConfig) -> tuple[EncoderConfig, TrainConfig]:
    shape = replace(shape, d_model=8, n_heads=1, d_feedforward=8)
    return shape, replace(
        config, steps=6, warmup=0, cooldown=min(config.cooldown, 6), batch_size=16, n_eval=64,
        eval_at=(0, 3, 6), checkpoint_at=(), checkpoint_every=6,
    )  # fmt: skip
