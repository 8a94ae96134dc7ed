"""Probes: which ancestors and exact messages each layer holds, beside the exact limits."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfilter.analysis.blocks import MessageKind
from hfilter.analysis.probes import ancestor_probe
from hfilter.analysis.readout import message_profile
from hfilter.experiments.figures import level_colour, styled
from hfilter.experiments.lab.panels import heat, letter, name_ends
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables

_PROBES = (
    "layer", "level", "kind", "accuracy", "accuracy_se", "oracle_block", "oracle_all", "majority", "shuffled",
)  # fmt: skip
_MESSAGES = ("layer", "height", "kind", "r2", "shuffled", "position")
_STYLES = {"linear": ("o", "-"), "two-layer": ("s", (0, (4, 1.5)))}


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=4)
    return [recipe(options, law, seed=options.seed, keep=options.pick(3, 22, 40))]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    (one,) = trained
    model, network = one.run.law.model, one.encoder
    n_train, n_test = options.pick((48, 16), (1024, 2048), (2**14, 10_000))
    layers = range(network.config.n_layers + 1)
    levels = [d for d in model.existing_levels if d < model.depth]
    cells = [(m, d, kind) for m in layers for d in levels for kind in _STYLES]
    found: list[tuple[Any, ...]] = []
    with shop.counting(len(cells), "probes") as advance:
        for m, d, kind in cells:

            def work(m: int = m, d: int = d, kind: Any = kind) -> dict[str, Any]:
                probe = ancestor_probe(network, model, m, d, kind, n_train, n_test)
                return {**probe.as_dict(), "block": probe.block_oracle, "all": probe.oracle[-1]}

            sizes = {"n_train": n_train, "n_test": n_test}
            p = shop.measured(one, f"probe-{m}-{d}-{kind}", sizes, work)
            found.append(
                (
                    m, d, kind, p["accuracy"], p["accuracy_se"], p["block"], p["all"],
                    p["majority"], p["shuffled"],
                )
            )  # fmt: skip
            advance(1)
    messages: list[tuple[Any, ...]] = []
    kinds: tuple[MessageKind, ...] = ("upward", "belief")
    for name in kinds:
        rows = options.pick(64, 4096, 10_000)
        profile = message_profile(network, model, rows, kind=name)
        for (i, layer), (j, height) in (
            (a, b) for a in enumerate(profile.layers) for b in enumerate(profile.heights)
        ):
            numbers = (profile.r2[i, j], profile.shuffled[i, j], profile.position[i, j])
            messages.append((layer, height, name, *(float(x) for x in numbers)))
    return {"main": Table(_PROBES, found), "messages": Table(_MESSAGES, messages)}


@styled
def _draw(tables: Tables) -> Figure:
    table, messages = tables["main"], tables["messages"]
    levels, layers = table.values("level"), table.values("layer")
    figure = Figure(figsize=(7.4, 2.9))
    left, *maps = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    ends = {}
    for d in levels:
        colour = level_colour(d, max(levels) + 2)
        for kind, (marker, line) in _STYLES.items():
            where = {"level": d, "kind": kind}
            left.errorbar(
                table.column("layer", **where), table.column("accuracy", **where),
                table.column("accuracy_se", **where), color=colour, marker=marker, markersize=3,
                linestyle=line, linewidth=1.1,
            )  # fmt: skip
        where = {"level": d, "kind": "linear"}
        oracle = table.column("oracle_block", **where)
        left.plot(layers, oracle, color=colour, marker="_", markersize=12, linewidth=0)
        ends[f"level {d}"] = (float(table.column("accuracy", **where)[-1]), colour)
    left.set_ylim(top=1.02)
    left.set_xticks(layers)
    left.set_xlabel("layers passed")
    left.set_ylabel("accuracy of the ancestor")
    name_ends(left, ends)
    for kind, (marker, line) in _STYLES.items():
        left.plot([], [], color="#444444", marker=marker, markersize=3, linestyle=line, label=kind)
    left.plot(
        [], [], color="#444444", marker="_", markersize=12, linewidth=0, label="exact, own block"
    )
    left.legend(loc="lower right", fontsize=6.5)
    for axes, name in zip(maps, ("upward", "belief"), strict=True):
        heights = messages.values("height")
        r2 = np.array(
            [[messages.column("r2", layer=m, height=h, kind=name)[0] for h in heights] for m in layers]
        )  # fmt: skip
        heat(
            axes, r2, f"R² of {'upward messages' if name == 'upward' else 'beliefs'}", 0.0, 1.0,
            rows=[str(m) for m in layers], columns=[str(h) for h in heights],
        )  # fmt: skip
        axes.set_xlabel("height")
        axes.set_ylabel("layers passed")
    letter((left, *maps))
    return figure


def _conclude(tables: Tables) -> list[str]:
    table, lines = tables["main"], []
    for d in table.values("level"):
        where = {"level": d, "kind": "two-layer"}
        said = ", ".join(
            f"{a:.3f} ({o:.3f})"
            for a, o in zip(
                table.column("accuracy", **where),
                table.column("oracle_block", **where),
                strict=True,
            )
        )
        lines.append(
            f"ancestor at level {d}, after 0, 1 … layers (exact from the own block): {said}"
        )
    return lines


STUDY = Study(
    name="probes",
    summary="which ancestors and messages each layer holds, beside the exact limits",
    about="""\
Linear and two-layer probes read each leaf's ancestor at every level off the states after every layer
of a masked-leaf encoder (the run of the staircase), beside the exact accuracy given only the leaf's
own block of 2^m leaves; and ridge regression reads the exact messages of every height, with a
shuffled control in the CSV. Expected: layer m knows the ancestor at height m.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
