"""Depth and heads: what an encoder of fewer layers than levels can reach, at each filter level."""

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
    "filter_level", "layers", "heads", "seed", "parameters",
    "accuracy", "exact_accuracy", "kl", "floor", "seconds",
)  # fmt: skip


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=3)
    base = recipe(options, law)
    steps = options.pick(6, 500, base.training.steps)
    heads = base.encoder.n_heads
    layers = [
        recipe(
            options, replace(law, filter_level=k), seed=seed, steps=steps, encoder={"n_layers": n}
        )
        for k in range(law.depth + 1)
        for n in range(1, law.depth + 2)
        for seed in options.seeds(1, 3)
    ]
    width = base.encoder.d_model
    others = [h for h in (1, 2, 4, 8) if h != heads and width % h == 0]
    return layers + [
        recipe(options, law, seed=seed, steps=steps, encoder={"n_heads": h})
        for h in others
        for seed in options.seeds(1, 3)
    ]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    rows: list[tuple[Any, ...]] = []
    for one in trained:
        k, last, config = one.run.law.filter_level, one.history[-1], one.run.encoder
        rows.append(
            (
                k, config.n_layers, config.n_heads, one.run.training.seed,
                one.encoder.n_parameters(), last["accuracy"], last["exact_accuracy"],
                last["kl"][k], last["floor"], one.seconds,
            )
        )  # fmt: skip
    return {"main": Table(_HEADER, rows)}


def _curve(table: Table, x: str, **where: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Excess over the floor as a share of it, pooled over seeds."""
    values = sorted(set(table.column(x, **where)))
    pairs = []
    for value in values:
        here = {**where, x: value}
        kls, floors = table.column("kl", **here), table.column("floor", **here)
        pairs.append(mean_and_error([a / b for a, b in zip(kls, floors, strict=True)]))
    return np.array(values), np.array([m for m, _ in pairs]), np.array([e for _, e in pairs])


@styled
def _draw(tables: Tables) -> Figure:
    table = tables["main"]
    levels, heads = table.values("filter_level"), table.column("heads")[0]
    figure = Figure(figsize=(7.0, 2.9))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for axes in (left, right):
        log_values(axes, "excess cross-entropy / exact floor")
    ends = {}
    for k in levels:
        x, mean, error = _curve(table, "layers", filter_level=k, heads=heads)
        band(left, x, mean, error, **rung_style(k, len(levels)))
        ends[f"k = {k}"] = (float(mean[-1]), level_colour(k, len(levels)))
    left.axhline(0.01, color="#666666", linewidth=0.8, linestyle=":")
    name_ends(left, ends)
    left.set_xticks(sorted(set(table.column("layers"))))
    left.set_xlabel("layers")
    depth = max(levels)
    x, mean, error = _curve(table, "heads", filter_level=0, layers=depth)
    band(right, x, mean, error, **rung_style(0, len(levels)))
    right.set_xscale("log", base=2)
    right.set_xticks(x, [str(v) for v in x])
    right.set_xlabel(f"heads ({depth} layers, k = 0)")
    letter((left, right))
    return figure


def _conclude(tables: Tables) -> list[str]:
    table = tables["main"]
    heads, lines = table.column("heads")[0], []
    for k in table.values("filter_level"):
        x, mean, _ = _curve(table, "layers", filter_level=k, heads=heads)
        said = ", ".join(f"{n}: {value:.2%}" for n, value in zip(x, mean, strict=True))
        lines.append(f"k = {k}: excess over the exact floor by number of layers, {said}")
    return lines


STUDY = Study(
    name="depth",
    summary="excess over the exact floor against the number of layers and of heads",
    about="""\
Trains masked-leaf encoders of 1 … depth + 1 layers at every filter level, and of 1 … 8 heads at
k = 0, all with the same number of steps. Expected: the fewer levels the data have (large k), the
fewer layers it takes.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
