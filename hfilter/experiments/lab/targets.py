"""Targets: sampled labels against exact posteriors, and the published recipe, at equal time."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfilter.experiments.figures import styled
from hfilter.experiments.lab.panels import band, letter, log_values
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables
from hfilter.learn.train import log_spaced, train

_HEADER = ("recipe", "seed", "step", "sequences", "seconds", "cross_entropy", "kl", "floor", "parameters")  # fmt: skip
_COSTED = (8, 40)  # steps of the two runs that are timed
_COLOURS = {
    "preset": "#0072B2",
    "preset, labels": "#E69F00",
    "AdamW": "#009E73",
    "AdamW, labels": "#D55E00",
    "published recipe": "#222222",
}


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=3)
    seeds = options.seeds(1, 3)
    return [run for seed in seeds for _, run in _recipes(options, law, seed)]


def _recipes(options: Options, law: Any, seed: int) -> list[tuple[str, Run]]:
    if options.preset == "published":  # the published recipe is one of the five
        options = replace(options, preset="fast")
    base = recipe(options, law, seed=seed)
    steps, batch = base.training.steps, base.training.batch_size
    at = (0, *log_spaced(steps, 16)) if steps > 1 else (0, 1)
    # The published batch is small and its encoder wide: about the time of the preset, in steps.
    slow = options.pick(6, round(steps * batch / 32 / 10), 0)
    adam: dict[str, Any] = {"optimiser": "adamw", "muon_lr": None}
    published: dict[str, Any] = {
        "steps": slow, "batch_size": 32, "lr": 1e-4, "schedule": "constant", "warmup": 0,
        "clip": None, "train_mask_rate": None, "targets": "labels", "betas": (0.9, 0.999),
        "eval_at": (0, *log_spaced(slow, 16)), **adam,
    }  # fmt: skip
    shape = {
        "d_model": options.pick(16, 128, 128), "d_feedforward": options.pick(16, 2048, 2048),
        "n_heads": 1, "dropout": 0.1, "positions": "sinusoidal", "activation": "relu",
    }  # fmt: skip
    return [
        ("preset", recipe(options, law, seed=seed, eval_at=at)),
        ("preset, labels", recipe(options, law, seed=seed, eval_at=at, targets="labels")),
        ("AdamW", recipe(options, law, seed=seed, eval_at=at, **adam)),
        ("AdamW, labels", recipe(options, law, seed=seed, eval_at=at, targets="labels", **adam)),
        ("published recipe", recipe(options, law, seed=seed, encoder=shape, **published)),
    ]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    law = trained[0].run.law
    names = {
        run.digest: name
        for seed in options.seeds(1, 3)
        for name, run in _recipes(options, law, seed)
    }
    rows: list[tuple[Any, ...]] = []
    costs: list[float] = []
    with shop.counting(len(trained), "seconds per step") as advance:
        for one in trained:
            costs.append(shop.measured(one, "cost", {}, partial(_cost, one)))
            advance(1)
    for one, cost in zip(trained, costs, strict=True):
        k, parameters = one.run.law.filter_level, one.encoder.n_parameters()
        rows += [
            (
                names[one.run.digest], one.run.training.seed, record["step"], record["sequences"],
                record["step"] * cost, record["cross_entropy"], record["kl"][k], record["floor"],
                parameters,
            )
            for record in one.history
        ]  # fmt: skip
    return {"main": Table(_HEADER, rows)}


def _cost(one: Trained) -> float:
    """Seconds of one update: on a processor the time it worked for us, whatever ran beside us."""
    run, model = one.run, one.run.law.model
    if run.training.device != "cpu":
        last = one.history[-1]
        return float(last["elapsed"] / max(1, last["step"]))

    def spent(steps: int) -> float:
        short = replace(
            run.training, steps=steps, warmup=0, cooldown=0, schedule="constant", eval_at=(),
            checkpoint_at=(), n_eval=2, checkpoint_every=steps,
        )  # fmt: skip
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            train(model, run.encoder, short, folder, progress=False)
        return time.process_time() - began

    # The difference is free of what every run costs once; the smaller one of the less disturbed.
    few, many = _COSTED
    return float(min((spent(many) - spent(few)) / (many - few) for _ in range(2)))


@styled
def _draw(tables: Tables) -> Figure:
    table = tables["main"]
    figure = Figure(figsize=(7.2, 3.0))
    grid = figure.subplots(1, 2, sharey=True)
    for axes, x, label in zip(
        grid,
        ("seconds", "sequences"),
        ("processor seconds of training", "sequences presented"),
        strict=True,
    ):
        log_values(axes, r"KL(BP$_0$ $\|$ network) / exact floor" if x == "seconds" else "")
        for name in table.values("recipe"):
            for number, seed in enumerate(table.values("seed")):
                where = {"recipe": name, "seed": seed}
                ratio = np.array(table.column("kl", **where)) / np.array(
                    table.column("floor", **where)
                )
                band(
                    axes, np.array(table.column(x, **where))[1:], ratio[1:],
                    np.full(len(ratio) - 1, np.nan), color=_COLOURS[name], marker="o", markersize=2.5,
                    linewidth=1.2, label=None if number else name,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.axhline(0.02, color="#666666", linewidth=0.8, linestyle=":")
    grid[0].legend(loc="lower left", fontsize=7)
    letter(grid)
    return figure


def _conclude(tables: Tables) -> list[str]:
    table, lines = tables["main"], []
    budget = min(
        max(table.column("seconds", recipe=name, seed=seed))
        for name in table.values("recipe")
        for seed in table.values("seed")
    )
    for name in table.values("recipe"):
        reached = []
        for seed in table.values("seed"):
            where = {"recipe": name, "seed": seed}
            pairs = list(
                zip(*(table.column(c, **where) for c in ("seconds", "kl", "floor")), strict=True)
            )
            # At equal time: the last evaluation within the shortest run's time.
            _, kl, floor = [p for p in pairs if p[0] <= budget * 1.001][-1]
            reached.append(kl / floor)
        lines.append(f"{name}: {np.mean(reached):.2%} above the exact floor after {budget:.0f} s")
    return lines


STUDY = Study(
    name="targets",
    summary="exact-posterior targets against sampled labels, at equal time and data",
    about="""\
The same masked-leaf encoder trained towards sampled labels and towards the exact posterior, which
has the same gradient on average and none of the sampling noise, with two optimisers; and the
published recipe (wide encoder, small batches, Adam at 1e-4, single masks) for about the same time.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
