"""Fine-tuning: a masked-leaf encoder learns the root from few labels, and the other way round."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfilter.experiments.figures import styled
from hfilter.experiments.lab.panels import band, letter
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Law, Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables, mean_and_error

_HEADER = (
    "task", "way", "labels", "seed", "accuracy", "exact_accuracy", "kl", "final_accuracy", "chance",
)  # fmt: skip
_WAYS = {"from scratch": "#222222", "fine-tuned": "#0072B2", "frozen": "#D55E00"}
_OTHER = {"root": "mlm", "mlm": "root"}


def _sizes(options: Options) -> list[int]:
    return [2**e for e in options.pick(range(4, 6), range(5, 15, 3), range(6, 18, 2))]


def _run(options: Options, law: Law, task: str, way: str, size: int, seed: int) -> Run:
    steps = options.pick(6, 400, 20_000)
    training: dict[str, Any] = {
        "steps": steps,
        "train_size": size,
        "targets": "labels",
        "batch_size": options.pick(16, 128, 32),
        "eval_at": tuple(sorted({round(steps * i / 10) for i in range(11)})),
        "n_eval": options.pick(64, 2048, 10_000),
        # Another stream than the source's: it has not seen these sequences.
        "data_seed": 1_000_000 + seed,
    }
    if way == "from scratch":
        return recipe(options, law, task, seed, **training)
    source = recipe(options, law, _OTHER[task], seed)
    # A trained encoder is moved gently; a new read-out alone may learn as fast as ever.
    if way == "fine-tuned":
        config = recipe(options, law, task, seed).training
        training["lr"] = config.lr / 4
        training["muon_lr"] = None if config.muon_lr is None else config.muon_lr / 4
    return recipe(options, law, task, seed, source=source, freeze=way == "frozen", **training)


def _runs(options: Options) -> list[Run]:
    law = options.choose_law(depth=3)
    return [
        _run(options, law, task, way, size, seed)
        for task in _OTHER
        for way in _WAYS
        for size in _sizes(options)
        for seed in options.seeds(1, 3)
    ]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    rows: list[tuple[Any, ...]] = []
    for one in trained:
        run, k = one.run, one.run.law.filter_level
        way = "from scratch" if run.source is None else "frozen" if run.freeze else "fine-tuned"
        best = min(one.history, key=lambda record: record["kl"][k])
        chance = 1 / (run.law.vocab_size)
        rows.append(
            (
                run.encoder.readout, way, run.training.train_size, run.training.seed,
                best["accuracy"], best["exact_accuracy"], best["kl"][k],
                one.history[-1]["accuracy"], chance,
            )
        )  # fmt: skip
    return {"main": Table(_HEADER, rows)}


def _curve(table: Table, task: str, way: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = sorted(set(table.column("labels")))
    pairs = [
        mean_and_error(table.column("accuracy", task=task, way=way, labels=size)) for size in sizes
    ]
    return np.array(sizes), np.array([m for m, _ in pairs]), np.array([e for _, e in pairs])


@styled
def _draw(tables: Tables) -> Figure:
    table = tables["main"]
    figure = Figure(figsize=(7.0, 2.9))
    grid = figure.subplots(1, 2)
    titles = {"root": "masked leaves → root", "mlm": "root → masked leaves"}
    for axes, task in zip(grid, _OTHER, strict=True):
        for way, colour in _WAYS.items():
            band(axes, *_curve(table, task, way), color=colour, marker="o", markersize=3, label=way)
        best = float(np.mean(table.column("exact_accuracy", task=task)))
        axes.axhline(best, color="#666666", linewidth=0.8, linestyle=(0, (3, 2)))
        axes.text(
            0.02, best, "exact", transform=axes.get_yaxis_transform(), va="bottom", fontsize=7
        )
        axes.axhline(table.column("chance")[0], color="#666666", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("training sequences")
        axes.set_ylabel("held-out accuracy")
        axes.set_title(titles[task])
    grid[1].legend(loc="lower right")
    letter(grid)
    return figure


def _conclude(tables: Tables) -> list[str]:
    table, lines = tables["main"], []
    for task in _OTHER:
        for way in _WAYS:
            sizes, mean, _ = _curve(table, task, way)
            said = ", ".join(f"{n}: {a:.3f}" for n, a in zip(sizes, mean, strict=True))
            lines.append(f"{task}, {way}: accuracy by number of sequences {said}")
    return lines


STUDY = Study(
    name="finetune",
    summary="masked-leaf encoder to root and back, against the number of labels",
    about="""\
Takes an encoder that was trained on masked leaves and teaches it the root from P labelled sequences
it has not seen, with its layers trainable or truly frozen (no gradient, no dropout), beside training
from scratch; and the reverse. Expected: the frozen encoder knows the root already, and a few hundred
labels suffice.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
