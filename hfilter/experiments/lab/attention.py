"""Attention: where each layer looks, at every filter level, and how far that is from the ideal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfilter.analysis.attention import attention_distance, attention_maps
from hfilter.experiments.figures import styled
from hfilter.experiments.lab.panels import heat
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables
from hfilter.learn.masks import HELD_OUT_START, draw_masks

_DISTANCES = (
    "filter_level", "layer", "head", "height", "per_input", "per_input_se", "averaged", "inside", "uniform",
)  # fmt: skip
_MAPS = ("filter_level", "layer", "query", "key", "weight")


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=3)
    return [
        recipe(options, replace(law, filter_level=k), seed=options.seed)
        for k in range(law.depth + 1)
    ]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    rows = options.pick(64, 4096, 10_000)
    distances: list[tuple[Any, ...]] = []
    maps: list[tuple[Any, ...]] = []
    for one in trained:
        model, k = one.run.law.model, one.run.law.filter_level
        leaves = np.asarray(model.sample(rows, seed=options.seed, start=HELD_OUT_START).leaves)
        hidden = draw_masks(rows, model.n_leaves, options.seed, HELD_OUT_START)
        tokens = np.where(hidden, model.mask_token, leaves)
        mean = attention_maps(one.encoder, tokens).mean.mean(axis=1)  # over heads
        maps += [
            (k, int(layer), int(i), int(j), round(float(mean[layer, i, j]), 6))
            for layer, i, j in np.ndindex(mean.shape)
        ]
        found = attention_distance(one.encoder, tokens)
        for layer, head, height in np.ndindex(found.per_input.shape):
            at = (layer, head, height)
            numbers = (
                found.per_input[at], found.per_input_se[at], found.averaged[at], found.inside[at],
                found.uniform[height],
            )  # fmt: skip
            distances.append((k, layer, head, height + 1, *(float(x) for x in numbers)))
    return {"main": Table(_DISTANCES, distances), "maps": Table(_MAPS, maps)}


def _map(table: Table, k: int, layer: int) -> np.ndarray:
    weights = table.column("weight", filter_level=k, layer=layer)
    size = int(np.sqrt(len(weights)))
    return np.array(weights).reshape(size, size)


def _inside(table: Table, k: int) -> np.ndarray:
    """Share of attention on the sibling block of each height, mean over heads: (layer, height)."""
    layers, heights = table.values("layer"), table.values("height")
    return np.array(
        [
            [np.mean(table.column("inside", filter_level=k, layer=i, height=h)) for h in heights]
            for i in layers
        ]
    )


def _frames(axes: Axes, leaves: int, k: int, depth: int) -> None:
    """The blocks of leaves whose correlations filter level k keeps."""
    block = leaves >> k
    for first in range(0, leaves, block):
        axes.add_patch(
            mpl.patches.Rectangle(
                (first - 0.5, first - 0.5), block, block,
                fill=False, edgecolor="#7FDBCA", linewidth=0.8,
            )
        )  # fmt: skip


@styled
def _draw(tables: Tables) -> Figure:
    table, maps = tables["main"], tables["maps"]
    levels, layers, heights = (table.values(n) for n in ("filter_level", "layer", "height"))
    columns = len(layers) + 1
    figure = Figure(figsize=(1.65 * columns + 0.6, 1.6 * len(levels) + 0.3))
    grid = figure.subplots(len(levels), columns, squeeze=False)
    for row, k in zip(grid, levels, strict=True):
        for axes, layer in zip(row, layers, strict=False):
            weights = _map(maps, k, layer)
            axes.imshow(weights, cmap="magma", vmin=0.0, vmax=0.5, interpolation="nearest")
            _frames(axes, len(weights), k, len(heights))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if k == levels[0]:
                axes.set_title(f"layers.{layer}")
        row[0].set_ylabel(f"k = {k}\nfrom leaf")
        names = [str(h) for h in heights]
        heat(
            row[-1], _inside(table, k), "share inside" if k == levels[0] else "", 0.0, 1.0,
            rows=[str(i) for i in layers], columns=names,
        )  # fmt: skip
        row[-1].set_ylabel("layers.")
        if k == levels[-1]:
            row[-1].set_xlabel("sibling block of height")
    return figure


def _conclude(tables: Tables) -> list[str]:
    table, lines = tables["main"], []
    for k in table.values("filter_level"):
        inside = _inside(table, k)
        best = inside.argmax(axis=0)
        said = ", ".join(
            f"height {h + 1} in layers.{best[h]} ({inside[best[h], h]:.2f})"
            for h in range(inside.shape[1])
        )
        lines.append(f"k = {k}: most attention on the sibling block of {said}")
    return lines


STUDY = Study(
    name="attention",
    summary="where each layer looks, and how far that is from the ideal",
    about="""\
Attention maps of masked-leaf encoders trained at each filter level (the runs of accuracy-matrix),
averaged over heads and inputs, and for every layer and head the distance of each input's map from
the ideal one of every height, where a leaf looks at its sibling block. Expected: at filter level k
attention stays inside blocks of 2^(depth - k) leaves, and range grows from layer to layer.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
