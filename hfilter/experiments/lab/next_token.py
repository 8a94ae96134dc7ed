"""Next token: a causal encoder against the exact next-token law, position by position."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfilter.analysis.agreement import draw_agreement
from hfilter.experiments.figures import MODEL_COLOUR, level_colour, log_steps, styled
from hfilter.experiments.lab.panels import band, by_step, letter, log_values, name_ends, rung_style
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables, mean_and_error
from hfilter.theory import next_token_entropy

_POSITIONS = ("filter_level", "seed", "position", "floor", "exact", "network", "kl", "kl_se")
_STEPS = ("filter_level", "seed", "step", "sequences", "rung", "value")


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=3)
    levels = sorted({0, (law.depth + 1) // 2})
    return [
        recipe(options, replace(law, filter_level=k), "causal", seed, keep=options.pick(2, 16, 30))
        for k in levels
        for seed in options.seeds(1, 3)
    ]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    rows = options.pick(64, 8192, 50_000)
    positions: list[tuple[Any, ...]] = []
    steps: list[tuple[Any, ...]] = []
    for one in trained:
        k, seed, model = one.run.law.filter_level, one.run.training.seed, one.run.law.model
        floor = next_token_entropy(model)
        found = draw_agreement(
            one.encoder, model, rows, task="causal", max_tokens=rows * model.n_leaves
        )
        picked = np.arange(len(found.truth)), found.truth
        with np.errstate(divide="ignore"):
            exact, network = -np.log(found.p_exact[picked]), -np.log(found.p_model[picked])
        for j in range(model.n_leaves):
            here = found.position == j
            kl, error = found.kl[here].mean(), found.kl[here].std() / np.sqrt(here.sum())
            values = (floor[j], exact[here].mean(), network[here].mean(), kl, error)
            positions.append((k, seed, j, *(float(v) for v in values)))
        for record in one.history:
            for rung, value in record["kl"].items():
                row = (k, seed, record["step"], record["sequences"], f"BP_{rung}", value)
                steps.append(row)
    return {"main": Table(_POSITIONS, positions), "steps": Table(_STEPS, steps)}


@styled
def _draw(tables: Tables) -> Figure:
    table, along = tables["main"], tables["steps"]
    levels = table.values("filter_level")
    figure = Figure(figsize=(3.6 * len(levels) + 0.3, 5.0))
    grid = figure.subplots(2, len(levels), squeeze=False)
    count = len(along.values("rung"))
    for column, k in enumerate(levels):
        above, below = grid[:, column]
        places = np.array(table.values("position"))

        def line(name: str, k: int = k, places: np.ndarray = places) -> tuple[Any, Any]:
            pairs = [mean_and_error(table.column(name, filter_level=k, position=j)) for j in places]
            return np.array([m for m, _ in pairs]), np.array([e for _, e in pairs])

        floor, _ = line("floor")
        network, error = line("network")
        above.step(
            places + 1, floor, where="mid", color=level_colour(k, count), label="exact floor"
        )
        above.errorbar(
            places + 1, network, error, fmt="o", color=MODEL_COLOUR, markersize=3, label="network"
        )
        above.set_xlabel("leaf")
        above.set_ylabel("cross-entropy (nats)")
        above.set_title(f"data of filter level {k}")
        log_steps(below, np.array(sorted(set(along.column("step", filter_level=k)))))
        log_values(below, r"KL(BP$_k$ $\|$ network)  (nats per leaf)")
        ends = {}
        for rung in range(count):
            x, mean, spread = by_step(along, filter_level=k, rung=f"BP_{rung}")
            band(below, x, mean, spread, **rung_style(rung, count))
            ends[f"BP$_{rung}$"] = (float(mean[-1]), level_colour(rung, count))
        name_ends(below, ends)
    grid[0, 0].legend(loc="best")
    letter(grid.ravel())
    return figure


def _conclude(tables: Tables) -> list[str]:
    table, lines = tables["main"], []
    for k in table.values("filter_level"):
        kl = np.mean(table.column("kl", filter_level=k))
        floor = np.mean(table.column("floor", filter_level=k))
        worst = max(
            table.values("position"),
            key=lambda j: float(np.mean(table.column("kl", filter_level=k, position=j))),
        )
        lines.append(
            f"k = {k}: {kl:.4f} nats per leaf above the exact floor {floor:.4f} ({kl / floor:.2%}); "
            f"most at leaf {worst + 1}"
        )
    return lines


STUDY = Study(
    name="next-token",
    summary="a causal encoder against the exact next-token law, position by position",
    about="""\
Trains causal encoders and compares them, leaf by leaf, with the entropy of each leaf given those
before it (closed form), and along the training with the next-token laws of every filter level.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
