"""The three figures of docs/theory.md. Needs matplotlib (pip install 'hfilter[learn]').

python examples/theory_figures.py            # writes docs/figures/theory_*.svg, a few seconds
python examples/theory_figures.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import hfilter
from hfilter import theory
from hfilter.errors import ArgumentError
from hfilter.experiments.figures import level_colour, styled

GRAMMAR = hfilter.Grammar.published(4, 1.0, 0)


@styled
def information(depth: int) -> Figure:
    """Mutual information of two leaves at every filter level: above the cut it drops."""
    figure = Figure(figsize=(7.2, 3.1))
    left, right = figure.subplots(1, 2, sharey=True)
    for k in range(depth + 1):
        found = theory.mutual_information(hfilter.TreeModel(GRAMMAR, depth, k))
        style = {"color": level_colour(k, depth + 1), "label": f"$k={k}$"}
        # What is above the cut coincides below it: larger markers first, smaller ones on top.
        left.semilogy(found.heights, found.by_height, marker="o", ms=7 - 4 * k / depth, **style)
        right.loglog(found.distances, found.by_distance, lw=1.2, **style)
    left.set_xticks(range(1, depth + 1))
    left.set_xlabel("height of the common ancestor")
    left.set_ylabel("mutual information of two leaves (nats)")
    right.set_xscale("log", base=2)
    right.set_xlabel("distance $|i-j|$")
    right.set_xticks([2**h for h in range(depth)], [str(2**h) for h in range(depth)])
    right.legend(loc="upper right", ncols=2)
    return figure


@styled
def next_token(depth: int) -> Figure:
    """Optimal causal loss at every position."""
    figure = Figure(figsize=(7.2, 3.1))
    axes = figure.subplots()
    for k in range(depth + 1):
        model = hfilter.TreeModel(GRAMMAR, depth, k)
        try:
            loss, name = theory.next_token_entropy(model), f"$k={k}$"
        except ArgumentError:  # too many joint states
            loss = theory.next_token_entropy_estimate(model, 10_000, seed=1).value
            name = f"$k={k}$ (sampled)"
        positions = np.arange(len(loss))
        # Filter levels agree at first: larger markers below, smaller ones on top.
        style = {"marker": "o", "ms": 8 - 1.4 * k, "lw": 2.4 - 0.4 * k}
        axes.plot(positions, loss, color=level_colour(k, depth + 1), label=name, **style)
    axes.set_xticks(positions)
    axes.set_xlabel("position $j$")
    axes.set_ylabel("$H(x_j\\,|\\,x_0\\ldots x_{j-1})$ (nats)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def filtered_loss(model: hfilter.TreeModel, k: int, n: int) -> float:
    """Loss at one hidden leaf of who believes in filter level k, on the data of `model`, sampled."""
    leaves = model.sample(n, seed=1).leaves
    belief = model.filtered(k).leave_one_out(leaves, dtype="float64")
    return float(-np.log(np.take_along_axis(belief, leaves[..., None].astype(int), 2)).mean())


@styled
def ladders(depth: int) -> Figure:
    """Who sees less of the sequence, who knows less of the law, and data that hold less."""
    model = hfilter.TreeModel(GRAMMAR, depth)
    figure = Figure(figsize=(7.2, 3.1))
    rungs = range(depth + 1)
    window = [theory.mlm_floor(model, height=h).cross_entropy for h in reversed(rungs)]
    blind = [filtered_loss(model, k, 100_000) for k in rungs]
    floors = []
    for k in rungs:
        try:
            floors.append(theory.mlm_floor(model.filtered(k)).cross_entropy)
        except ArgumentError:
            estimate = theory.mlm_floor_estimate(model.filtered(k), 20_000, seed=1)
            floors.append(estimate.cross_entropy.value)
    columns = (
        ("window of height $h$", [f"$W_{h}$" for h in reversed(rungs)], window),
        ("belief in filter level $k$", [f"BP$_{k}$" for k in rungs], blind),
        ("data of filter level $k$", [f"$k={k}$" for k in rungs], floors),
    )
    for axes, (title, names, values) in zip(
        figure.subplots(1, 3, sharey=True), columns, strict=True
    ):
        colours = [level_colour(k, depth + 1) for k in rungs]
        axes.hlines(values, np.arange(depth + 1) - 0.38, np.arange(depth + 1) + 0.38, colours, lw=3)
        for k, value in enumerate(values):
            axes.text(k, value + 0.012, f"{value:.3f}", ha="center", va="bottom", fontsize=7)
        axes.axhline(values[0], color="#999999", lw=0.7, ls=":", zorder=0)
        axes.set_xticks(rungs, names)
        axes.set_title(title)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("nats at one hidden leaf")
    return figure


def main(folder: Path) -> None:
    """Write all figures."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"information": information(6), "next_token": next_token(4), "floors": ladders(4)}
    for name, figure in figures.items():
        target = folder / f"theory_{name}.svg"
        # No date: the same numbers give the same file.
        figure.savefig(target, metadata={"Date": None}, facecolor="white")
        print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures"))
