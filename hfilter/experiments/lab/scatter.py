"""Scatter: the network's probability against the exact one, input by input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfilter.analysis.agreement import draw_agreement
from hfilter.experiments.figures import styled
from hfilter.experiments.lab.panels import letter
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables
from hfilter.learn.train import load_encoder

_POINTS = ("step", "inputs", "rung", "position", "p_exact", "p_network")
_QUANTILES = ("step", "inputs", "rung", "tokens", "mean_kl", "q05", "q25", "q50", "q75", "q95", "q99")  # fmt: skip
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=4)
    return [recipe(options, law, seed=options.seed, keep=options.pick(3, 22, 40))]


def _rungs(depth: int) -> list[int]:
    """Filter levels that are shown: the first, a middle one, the last."""
    return sorted({depth, (depth + 1) // 2, 0}, reverse=True)


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    (one,) = trained
    model, rows, shown = (
        one.run.law.model,
        options.pick(64, 8192, 10_000),
        options.pick(16, 400, 400),
    )
    points: list[tuple[Any, ...]] = []
    quantiles: list[tuple[Any, ...]] = []
    steps = _steps(one.kept)
    for step, path in steps:
        network = load_encoder(path)
        for inputs in ("own", "uniform"):
            for k in _rungs(model.depth):
                found = draw_agreement(network, model, rows, inputs=inputs, filter_level=k)
                kl = found.kl[np.isfinite(found.kl)]
                said = [float(np.quantile(kl, share)) for share in _SHARES]
                quantiles.append((step, inputs, f"BP_{k}", len(kl), float(kl.mean()), *said))
                for i in range(min(shown, len(found.kl))):
                    points += [
                        (step, inputs, f"BP_{k}", int(found.position[i]), round(float(p), 6), round(float(q), 6))
                        for p, q in zip(found.p_exact[i], found.p_model[i], strict=True)
                    ]  # fmt: skip
    return {"main": Table(_QUANTILES, quantiles), "points": Table(_POINTS, points)}


def _steps(kept: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Three kept encoders: early, in between, the last."""
    n = len(kept)
    return [kept[i] for i in sorted({n // 2, (3 * n) // 4, n - 1})]


@styled
def _draw(tables: Tables) -> Figure:
    points, quantiles = tables["points"], tables["main"]
    steps, rungs = points.values("step"), points.values("rung")
    figure = Figure(figsize=(2.35 * len(rungs) + 0.4, 2.3 * len(steps)))
    grid = figure.subplots(len(steps), len(rungs), sharex=True, sharey=True, squeeze=False)
    for row, step in zip(grid, steps, strict=True):
        for axes, rung in zip(row, rungs, strict=True):
            for inputs, colour in (("uniform", "#D55E00"), ("own", "#0072B2")):
                where = {"step": step, "inputs": inputs, "rung": rung}
                axes.plot(
                    points.column("p_exact", **where),
                    points.column("p_network", **where),
                    ".", color=colour, markersize=1.8, alpha=0.35, markeredgewidth=0,
                    label={"own": "in sample", "uniform": "random leaves"}[inputs], rasterized=True,
                )  # fmt: skip
            axes.plot([0, 1], [0, 1], color="#666666", linewidth=0.6)
            (median,) = quantiles.column("q50", step=step, inputs="own", rung=rung)
            (mean,) = quantiles.column("mean_kl", step=step, inputs="own", rung=rung)
            axes.text(0.04, 0.95, f"KL {mean:.3f} (median {median:.3f})", va="top", fontsize=7)
            axes.set_aspect("equal")
            axes.set_xticks([0, 0.5, 1])
            axes.set_yticks([0, 0.5, 1])
        row[0].set_ylabel(f"step {step:,}\nnetwork's probability")
    for axes, rung in zip(grid[-1], rungs, strict=True):
        axes.set_xlabel(f"probability under BP$_{rung[3:]}$")
    grid[0, -1].legend(loc="lower right", markerscale=4, handletextpad=0.1)
    letter(grid.ravel())
    return figure


def _conclude(tables: Tables) -> list[str]:
    table = tables["main"]
    last = table.values("step")[-1]
    lines = []
    for inputs in ("own", "uniform"):
        row = table.rows[[r[:3] for r in table.rows].index((last, inputs, "BP_0"))]
        lines.append(
            f"step {last}, {inputs} inputs: KL(BP_0 || network) per token mean {row[4]:.4f}, "
            f"median {row[7]:.4f}, 95 % below {row[9]:.4f}, 99 % below {row[10]:.4f} nats"
        )
    return lines


STUDY = Study(
    name="scatter",
    summary="the network's probability against the exact one, input by input",
    about="""\
One masked-leaf encoder at three moments of its training (the run of the staircase): its probability
of every symbol against BP_k's, on its own data and on uniformly random leaves, and quantiles of the
KL divergence per token. Expected: the cloud is on the diagonal of BP_l first, of BP_0 last, on
random leaves too: the network runs the algorithm and does not only know the data.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
