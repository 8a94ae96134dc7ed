"""Accuracy matrix: networks trained at each filter level on data of each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfilter.analysis.matrix import accuracy_matrix
from hfilter.experiments.figures import styled
from hfilter.experiments.lab.panels import heat, letter
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables

_HEADER = ("task", "seed", "train_level", "test_level", "measure", "value", "standard_error")
_MEASURES = ("accuracy", "cross_entropy", "exact_accuracy", "exact_cross_entropy", "kl_test", "kl_train")  # fmt: skip
_TASKS = ("mlm", "root")


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=3)
    return [
        recipe(options, replace(law, filter_level=k), task, seed=seed)
        for task in _TASKS
        for seed in options.seeds(1, 1)
        for k in range(law.depth + 1)
    ]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    rows, table = options.pick(64, 8192, 10_000), []
    groups: dict[tuple[str, int], list[Trained]] = {}
    for one in trained:
        groups.setdefault((one.run.encoder.readout, one.run.training.seed), []).append(one)
    cells = sum(len(group) * (group[0].run.law.depth + 1) for group in groups.values())
    with shop.counting(cells, "accuracy matrix") as advance:
        for (task, seed), group in groups.items():
            networks = {one.run.law.filter_level: one.encoder for one in group}
            model = group[0].run.law.model

            def tell(done: int, total: int) -> None:
                advance(1)

            found = accuracy_matrix(networks, model, rows, task, progress=tell)
            for i, k in enumerate(found.train_levels):
                for j, other in enumerate(found.test_levels):
                    for name in _MEASURES:
                        value = float(getattr(found, name)[i, j])
                        error = float(getattr(found, f"{name}_se")[i, j])
                        table.append((task, seed, k, other, name, value, error))
    return {"main": Table(_HEADER, table)}


def _matrix(table: Table, task: str, measure: str) -> np.ndarray:
    """Mean over seeds, (train level, test level)."""
    trained, tested = table.values("train_level"), table.values("test_level")

    def cell(k: Any, other: Any) -> float:
        where = {"task": task, "measure": measure, "train_level": k, "test_level": other}
        return float(np.mean(table.column("value", **where)))

    return np.array([[cell(k, other) for other in tested] for k in trained])


@styled
def _draw(tables: Tables) -> Figure:
    table = tables["main"]
    levels = [f"k = {k}" for k in table.values("test_level")]
    size = 1.0 + 0.55 * len(levels)
    figure = Figure(figsize=(2.1 * size + 1.0, 2 * size))
    grid = figure.subplots(len(_TASKS), 2)
    names = {"mlm": "one hidden leaf", "root": "root"}
    for pair, task in zip(grid, _TASKS, strict=True):
        network = _matrix(table, task, "accuracy")
        exact = _matrix(table, task, "exact_accuracy")
        low = float(min(network.min(), exact.min())) - 0.05
        for axes, values, who in ((pair[0], network, "network"), (pair[1], exact, r"BP$_k$")):
            heat(axes, values, f"{names[task]}: {who}", low, 1.0, rows=levels, columns=levels)
            axes.set_xlabel("data")
        pair[0].set_ylabel("trained on")
        pair[1].set_ylabel("law of")
    letter(grid.ravel())
    return figure


def _conclude(tables: Tables) -> list[str]:
    table, lines = tables["main"], []
    for task in _TASKS:
        gap = _matrix(table, task, "accuracy") - _matrix(table, task, "exact_accuracy")
        own = np.diag(_matrix(table, task, "kl_test"))
        lines.append(
            f"{task}: accuracies within {np.abs(gap).max():.4f} of those of BP_k, on average "
            f"{np.abs(gap).mean():.4f}; matched KL(BP_k || network) "
            + " ".join(f"{value:.4f}" for value in own)
            + " nats for k = 0 …"
        )
    return lines


STUDY = Study(
    name="accuracy-matrix",
    summary="networks trained at each filter level, tested on every other, beside BP_k",
    about="""\
Trains one encoder per filter level k and task (masked leaf, root) and measures its accuracy,
cross-entropy and KL to both exact laws on data of every k'. Expected: each network reproduces the
mismatched BP_k, on the data it was trained on and on all others.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
