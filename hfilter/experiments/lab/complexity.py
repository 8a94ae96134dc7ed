"""Sample complexity: how many distinct sequences a network needs at each filter level."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfilter.experiments.figures import level_colour, styled
from hfilter.experiments.lab.panels import band, letter, log_values, name_ends, rung_style
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables, mean_and_error

_HEADER = (
    "task", "filter_level", "sequences", "seed", "best_step",
    "accuracy", "exact_accuracy", "chance", "kl", "final_kl", "floor",
)  # fmt: skip
SHARE = 0.9  # of the way from chance to the exact accuracy: a task is learnt


def _sizes(options: Options) -> list[int]:
    exponents = options.pick(range(4, 6), range(8, 15, 2), range(7, 20))
    return [2**e for e in exponents]


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=3)
    tasks = options.pick(("mlm",), ("root", "mlm"), ("root", "mlm"))
    steps = options.pick(6, 500, 50_000)
    return [
        recipe(
            options,
            replace(law, filter_level=k),
            task,
            seed=seed,
            steps=steps,
            train_size=size,
            targets="labels",
            batch_size=options.pick(16, 128, 32),
            eval_at=tuple(sorted({0, *(round(steps * i / 12) for i in range(1, 13))})),
            n_eval=options.pick(64, 2048, 10_000),
        )
        for task in tasks
        for k in range(law.depth + 1)
        for size in _sizes(options)
        for seed in options.seeds(1, 3)
    ]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    rows: list[tuple[Any, ...]] = []
    for one in trained:
        k, encoder = one.run.law.filter_level, one.run.encoder
        chance = 1 / encoder.n_outputs
        # The best moment of the run: what early stopping on held-out data would have kept.
        best = min(one.history, key=lambda record: record["kl"][k])
        rows.append(
            (
                one.run.encoder.readout, k, one.run.training.train_size, one.run.training.seed,
                best["step"], best["accuracy"], best["exact_accuracy"], chance, best["kl"][k],
                one.history[-1]["kl"][k], best["floor"],
            )
        )  # fmt: skip
    return {"main": Table(_HEADER, rows)}


def _curve(table: Table, task: str, k: int, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = table.values("sequences")
    pairs = [
        mean_and_error(table.column(name, task=task, filter_level=k, sequences=size))
        for size in sizes
    ]
    return np.array(sizes), np.array([m for m, _ in pairs]), np.array([e for _, e in pairs])


@styled
def _draw(tables: Tables) -> Figure:
    table = tables["main"]
    tasks, levels = table.values("task"), table.values("filter_level")
    figure = Figure(figsize=(3.6 * len(tasks) + 0.3, 5.0))
    grid = figure.subplots(2, len(tasks), squeeze=False)
    names = {"mlm": "one hidden leaf", "root": "root"}
    for column, task in enumerate(tasks):
        above, below = grid[0, column], grid[1, column]
        log_values(below, r"KL(BP$_k$ $\|$ network)  (nats)")
        ends_above, ends_below = {}, {}
        for k in levels:
            style = rung_style(k, len(levels))
            sizes, accuracy, error = _curve(table, task, k, "accuracy")
            band(above, sizes, accuracy, error, **style)
            best = float(np.mean(table.column("exact_accuracy", task=task, filter_level=k)))
            above.axhline(best, color=style["color"], linestyle=(0, (3, 2)), linewidth=0.8)
            ends_above[f"k = {k}"] = (best, level_colour(k, len(levels)))
            sizes, kl, error = _curve(table, task, k, "kl")
            band(below, sizes, np.maximum(kl, 1e-6), error, **style)
            ends_below[f"k = {k}"] = (float(kl[-1]), level_colour(k, len(levels)))
        for axes, ends in ((above, ends_above), (below, ends_below)):
            axes.set_xscale("log", base=2)
            axes.set_xlabel("distinct training sequences")
            name_ends(axes, ends)
        above.set_ylabel("held-out accuracy")
        above.set_title(names[task])
    letter(grid.ravel())
    return figure


def complexity(table: Table, task: str, k: int) -> float:
    """P*: where the accuracy has come `SHARE` of the way from chance to the exact one.

    On a line between measured sizes, on a logarithmic axis; the smallest size if it is there already,
    NaN if it is reached nowhere.
    """
    sizes, accuracy, _ = _curve(table, task, k, "accuracy")
    where = {"task": task, "filter_level": k}
    chance = float(np.mean(table.column("chance", **where)))
    target = chance + SHARE * (float(np.mean(table.column("exact_accuracy", **where))) - chance)
    above = np.flatnonzero(accuracy >= target)
    if not len(above):
        return float("nan")
    i = int(above[0])
    if i == 0:
        return float(sizes[0])
    share = (target - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
    return float(sizes[i - 1] * (sizes[i] / sizes[i - 1]) ** share)


def _conclude(tables: Tables) -> list[str]:
    table, lines = tables["main"], []
    for task in table.values("task"):
        said = []
        for k in table.values("filter_level"):
            size = complexity(table, task, k)
            said.append(f"k = {k}: " + (f"{size:,.0f}" if np.isfinite(size) else "not reached"))
        lines.append(
            f"{task}: sequences for {SHARE:.0%} of the way from chance to the exact accuracy: "
            + ", ".join(said)
        )
    return lines


STUDY = Study(
    name="sample-complexity",
    summary="held-out accuracy against the number of training sequences, for every filter level",
    about="""\
Trains encoders on fixed sets of P sequences with sampled labels, for the root and for masked leaves
at every filter level, and keeps the best moment of each run on held-out data. Expected: the more
levels of the hierarchy the data have (small k), the more sequences it takes.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
