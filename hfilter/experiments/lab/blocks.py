"""Denoisers of disjoint blocks of one stream: their runs, data, noise and kept networks."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from hfilter.diffusion import EmpiricalDenoiser
from hfilter.diffusion.learned import LearnedDenoiser, channel_of
from hfilter.diffusion.splits import block, held_out
from hfilter.errors import ArgumentError
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Law, Run, Trained
from hfilter.experiments.lab.study import Options
from hfilter.learn.train import load_model

__all__ = ["Blocks", "bias_runs", "law_of"]


def law_of(options: Options) -> Law:
    """The grammar of arXiv 2603.03469; with the fast preset one level less."""
    depth = options.pick(2, 3, 4)
    return replace(Law(depth=depth, vocab_size=6, rules_per_symbol=4), **options.changes)


def bias_runs(options: Options) -> list[Run]:
    """A run for each disjoint block of one stream, each with a seed of its own."""
    rows = options.train_size or options.pick(32, 200, 5000)
    models = options.n_seeds or options.pick(2, 8, 15)
    if models < 2:
        raise ArgumentError(
            f"n_seeds (--seeds) must be at least 2, got {models}: models of different blocks are compared"
        )
    longer: dict[str, Any] = {}
    if options.preset == "published":  # as many steps as the paper took for this many sequences
        steps = {12_000: 720_000, 70_000: 4_800_000}.get(rows, 200_000)
        longer = {"steps": steps, "cooldown": steps - round(50 * rows / 512)}
    return [
        recipe(
            options, law_of(options), "denoise", seed=seed, keep=options.pick(4, 41, 25),
            data_seed=options.seed, data_start=index * rows, train_size=rows, held_out="content",
            **longer,
        )
        for index, seed in enumerate(range(options.seed, options.seed + models))
    ]  # fmt: skip


class Blocks:
    """Models of disjoint blocks: their data, noise, and kept networks step by step."""

    def __init__(self, trained: list[Trained]) -> None:
        self.trained = trained
        training = trained[0].run.training
        self.model = load_model(trained[0].folder)
        channel = channel_of(trained[0].folder)
        assert channel is not None
        self.channel = channel
        self.time = training.time_of_evaluation
        self.seed = 0 if training.data_seed is None else training.data_seed
        self.rows = training.train_size or 0

    @cached_property
    def blocks(self) -> list[np.ndarray]:
        """Training set of each model."""
        return [
            block(self.model, self.rows, (one.run.training.data_start or 0) // self.rows, self.seed)
            for one in self.trained
        ]

    def fresh(self, n: int) -> np.ndarray:
        """Held-out sequences: other rows of the stream, a sample of the law.

        Some of them are in a block by content: what the law has often is seldom new. Without them the
        rest would be no sample of the law, and even exact inference would have an excess loss on it.
        """
        return held_out(self.model, n, self.seed)

    @property
    def steps(self) -> list[int]:
        """Steps at which every model was kept, without the first."""
        kept = [{step for step, _ in one.kept} for one in self.trained]
        return sorted(set.intersection(*kept) - {0})

    def network(self, index: int, step: int) -> LearnedDenoiser:
        """The network of one model at one step."""
        return LearnedDenoiser(dict(self.trained[index].kept)[step], self.channel)

    def memory(self, index: int) -> EmpiricalDenoiser:
        """What knows one model's training set and nothing else."""
        return EmpiricalDenoiser(self.blocks[index], self.model.vocab_size, self.channel)
