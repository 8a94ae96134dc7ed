"""Staircase: along its training a network aligns with BP_ℓ first, then with decreasing k."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfilter.analysis.compare import evaluate
from hfilter.analysis.ladders import ladders
from hfilter.experiments.figures import MODEL_COLOUR, level_colour, log_steps, styled
from hfilter.experiments.lab.panels import band, by_step, letter, log_values, name_ends, rung_style
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables
from hfilter.learn.train import load_encoder

_HEADER = ("seed", "step", "sequences", "inputs", "measure", "rung", "value", "standard_error")
_WINDOW_COLOURS = ("#882255", "#CC6677", "#DDCC77", "#44AA99", "#332288", "#88CCEE", "#117733")


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=4)
    keep = options.pick(3, 22, 40)
    return [recipe(options, law, seed=seed, keep=keep) for seed in options.seeds(3, 3)]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    rows = options.pick(64, 2048, 10_000)
    table: list[tuple[Any, ...]] = []
    with shop.counting(sum(len(one.kept) for one in trained), "kept encoders") as advance:
        for one in trained:
            seed = one.run.training.seed
            for step, path in one.kept:

                def work(one: Trained = one, path: Path = path) -> list[tuple[Any, ...]]:
                    return _along(one, path, rows)

                found = shop.measured(one, f"staircase-{step}", {"rows": rows}, work)
                sequences = step * one.run.training.batch_size
                table += [(seed, step, sequences, *row) for row in found]
                advance(1)
    return {"main": Table(_HEADER, table)}


def _along(one: Trained, path: Path, rows: int) -> list[tuple[Any, ...]]:
    """What one kept encoder makes of every kind of input."""
    model, network = one.run.law.model, load_encoder(path)
    found: list[tuple[Any, ...]] = []
    for k in range(model.depth + 1):
        own = k == model.filter_level
        c = evaluate(network, model, rows, inputs="own" if own else model.filtered(k))
        name = f"k = {k}"
        found += [
            (name, "accuracy", "network", c.accuracy, c.accuracy_se),
            (name, "accuracy", "matched", c.exact_accuracy[k], c.exact_accuracy_se[k]),
            (name, "cross_entropy", "network", c.cross_entropy, c.cross_entropy_se),
        ]
        for j, kl in c.kl.items():
            exact, error = c.exact_cross_entropy[j], c.exact_cross_entropy_se[j]
            found.append((name, "cross_entropy", f"BP_{j}", exact, error))
            if own:
                found.append((name, "kl", f"BP_{j}", kl, c.kl_se[j]))
    c = evaluate(network, model, rows, inputs="uniform")
    found += [("uniform", "kl", f"BP_{j}", kl, c.kl_se[j]) for j, kl in c.kl.items()]
    climb = ladders(network, model, rows)
    windows = zip(climb.window_kl.tolist(), climb.window_kl_se.tolist(), strict=True)
    found += [("own", "kl", f"W_{h}", *pair) for h, pair in enumerate(windows)]
    return found


@styled
def _draw(tables: Tables) -> Figure:
    table = tables["main"]
    depth = sum(name.startswith("W_") for name in table.values("rung")) - 1
    count = depth + 1
    steps = np.array(sorted(set(table.column("step"))))
    figure = Figure(figsize=(7.4, 5.2))
    grid = figure.subplots(2, 3).ravel()
    loss, accuracy, sample, uniform, windows, ladder = grid
    for axes in grid:
        log_steps(axes, steps)
    for seed in table.values("seed"):
        x, mean, _ = by_step(
            table, seed=seed, inputs="k = 0", measure="cross_entropy", rung="network"
        )
        loss.plot(x, mean, color=MODEL_COLOUR, linewidth=0.9)
    ends = {}
    for k in range(count):
        floor = np.mean(
            table.column("value", inputs="k = 0", measure="cross_entropy", rung=f"BP_{k}")
        )
        loss.axhline(floor, color=level_colour(k, count), linestyle=(0, (3, 2)), linewidth=1)
        ends[f"BP$_{k}$"] = (float(floor), level_colour(k, count))
    name_ends(loss, ends)
    loss.set_ylabel("cross-entropy (nats)")
    ends = {}
    for k in range(count):
        where = {"inputs": f"k = {k}", "measure": "accuracy"}
        x, mean, error = by_step(table, **where, rung="network")
        band(accuracy, x, mean, error, **rung_style(k, count))
        best = float(np.mean(table.column("value", **where, rung="matched")))
        accuracy.axhline(best, color=level_colour(k, count), linestyle=(0, (3, 2)), linewidth=0.8)
        ends[f"k = {k}"] = (best, level_colour(k, count))
    name_ends(accuracy, ends)
    accuracy.set_ylabel("accuracy on k-filtered data")
    for axes, inputs, title in (
        (sample, "k = 0", "in sample"),
        (uniform, "uniform", "random leaves"),
    ):
        log_values(axes, r"KL(BP$_k$ $\|$ network)  (nats)")
        axes.set_title(title)
        _rungs(
            axes,
            table,
            inputs,
            [(f"BP_{k}", f"BP$_{k}$", rung_style(k, count)) for k in range(count)],
        )
    log_values(windows, r"KL(W$_h$ $\|$ network)  (nats)")
    windows.set_title("in sample, windows")
    _rungs(
        windows, table, "own",
        [(f"W_{h}", f"W$_{h}$", {**rung_style(h, count), "color": _window_colour(h)}) for h in range(count)],
    )  # fmt: skip
    log_values(ladder, "KL from the nearest rung (nats)")
    for letter_, inputs, name, colour in (
        ("BP_", "k = 0", "filter levels", "#0072B2"),
        ("W_", "own", "windows", "#882255"),
    ):
        x, mean, error = _nearest(table, inputs, letter_, count)
        band(ladder, x, mean, error, color=colour, label=name, linewidth=1.4)
    ladder.legend(loc="lower left")
    letter(grid)
    return figure


def _window_colour(h: int) -> str:
    return _WINDOW_COLOURS[h % len(_WINDOW_COLOURS)]


def _rungs(
    axes: Any, table: Table, inputs: str, rungs: list[tuple[str, str, dict[str, Any]]]
) -> None:
    ends = {}
    for rung, name, style in rungs:
        x, mean, error = by_step(table, inputs=inputs, measure="kl", rung=rung)
        band(axes, x, mean, error, **style)
        ends[name] = (float(mean[-1]), style["color"])
    name_ends(axes, ends)


def _nearest(
    table: Table, inputs: str, ladder: str, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smallest KL over the rungs of a ladder, seed by seed, then pooled."""
    lines = []
    for seed in table.values("seed"):
        values = [
            by_step(table, seed=seed, inputs=inputs, measure="kl", rung=f"{ladder}{i}")[1]
            for i in range(count)
        ]
        lines.append(np.min(values, axis=0))
    steps = np.array(sorted(set(table.column("step"))))
    stack = np.array(lines)
    error = (
        stack.std(axis=0, ddof=1) / np.sqrt(len(stack))
        if len(stack) > 1
        else np.full(len(steps), np.nan)
    )
    return steps, stack.mean(axis=0), error


def _conclude(tables: Tables) -> list[str]:
    table = tables["main"]
    depth = sum(name.startswith("W_") for name in table.values("rung")) - 1
    last = max(table.column("step"))
    lines = []
    for inputs, words in (("k = 0", "in sample"), ("uniform", "on random leaves")):
        nearest = []
        for k in reversed(range(depth + 1)):
            x, mean, _ = by_step(table, inputs=inputs, measure="kl", rung=f"BP_{k}")
            nearest.append((k, int(x[int(mean.argmin())]), float(mean.min())))
        said = ", ".join(f"BP_{k} at step {step} ({kl:.3f} nats)" for k, step, kl in nearest)
        ordered = all(a[1] < b[1] for a, b in pairwise(nearest[:-1])) and (
            nearest[-2][1] <= nearest[-1][1]  # both may still be approached at the end
        )
        lines.append(
            f"{words}, mean over seeds: nearest to {said}: "
            f"{'the order of the staircase' if ordered else 'not the order of the staircase'}"
        )
    x, mean, error = by_step(table, inputs="k = 0", measure="kl", rung="BP_0")
    floor = np.mean(
        table.column("value", inputs="k = 0", measure="cross_entropy", rung="BP_0", step=last)
    )
    spread = f" ± {error[-1]:.4f}" if np.isfinite(error[-1]) else ""
    lines.append(
        f"at step {last}: KL(BP_0 || network) = {mean[-1]:.4f}{spread} nats, "
        f"{mean[-1] / floor:.2%} of the exact floor {floor:.4f}"
    )
    _, filters, _ = _nearest(table, "k = 0", "BP_", depth + 1)
    _, windows, _ = _nearest(table, "own", "W_", depth + 1)
    share = float(np.mean(windows[1:] < filters[1:]))
    lines.append(
        f"the nearest window is nearer than the nearest filter level at {share:.0%} of the steps"
    )
    return lines


STUDY = Study(
    name="staircase",
    summary="how a network climbs from BP_l to BP_0 along its training",
    about="""\
Trains masked-leaf encoders on k = 0 data and asks every kept one for its accuracy and cross-entropy
on data of every filter level, and for KL(BP_k || network) on its own data and on uniformly random
leaves, beside the ladder of windows W_h. Expected: nearest to BP_l first, then to decreasing k.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
