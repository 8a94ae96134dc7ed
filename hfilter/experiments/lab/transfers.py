"""Transfer: what an encoder of another filter level or grammar is worth on a new law."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfilter.experiments.figures import MODEL_COLOUR, level_colour, styled
from hfilter.experiments.lab.panels import band, log_values
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Law, Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables, mean_and_error

_HEADER = ("source", "sequences", "seed", "accuracy", "exact_accuracy", "kl", "floor")
_SCRATCH, _FOREIGN = "from scratch", "another grammar"


def _sizes(options: Options) -> list[int]:
    return [2**e for e in options.pick(range(4, 6), range(7, 14, 2), range(7, 18, 2))]


def _sources(options: Options, law: Law, seed: int) -> dict[str, Run | None]:
    """Finished trainings by name: every filter level of this grammar, and k = 0 of another."""
    foreign = replace(law, grammar_seed=law.grammar_seed + 1)
    return {
        _SCRATCH: None,
        **{
            f"k = {k}": recipe(options, replace(law, filter_level=k), "mlm", seed)
            for k in range(law.depth + 1)
        },
        _FOREIGN: recipe(options, foreign, "mlm", seed),
    }


def _named(options: Options) -> list[tuple[str, Run]]:
    law, steps = options.choose_law(depth=3), options.pick(6, 400, 20_000)
    named = []
    for seed in options.seeds(1, 3):
        rates = recipe(options, law, "mlm", seed).training
        for name, source in _sources(options, law, seed).items():
            gentle = 1 if source is None else 4
            training: dict[str, Any] = {
                "steps": steps,
                "targets": "labels",
                "batch_size": options.pick(16, 128, 32),
                "eval_at": tuple(sorted({round(steps * i / 10) for i in range(11)})),
                "n_eval": options.pick(64, 2048, 10_000),
                "data_seed": 1_000_000 + seed,
                "lr": rates.lr / gentle,
                "muon_lr": None if rates.muon_lr is None else rates.muon_lr / gentle,
            }
            named += [
                (
                    name,
                    recipe(options, law, "mlm", seed, source=source, train_size=size, **training),
                )
                for size in _sizes(options)
            ]
    return named


def _runs(options: Options) -> list[Run]:
    return [run for _, run in _named(options)]


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    rows: list[tuple[Any, ...]] = []
    for (name, _), one in zip(_named(options), trained, strict=True):
        k = one.run.law.filter_level
        best = min(one.history, key=lambda record: record["kl"][k])
        rows.append(
            (
                name, one.run.training.train_size, one.run.training.seed, best["accuracy"],
                best["exact_accuracy"], best["kl"][k], best["floor"],
            )
        )  # fmt: skip
    return {"main": Table(_HEADER, rows)}


def _curve(table: Table, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = sorted(set(table.column("sequences")))
    pairs = [mean_and_error(table.column("kl", source=source, sequences=size)) for size in sizes]
    return np.array(sizes), np.array([m for m, _ in pairs]), np.array([e for _, e in pairs])


@styled
def _draw(tables: Tables) -> Figure:
    table = tables["main"]
    sources = table.values("source")
    levels = [name for name in sources if name.startswith("k = ")]
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.subplots()
    log_values(axes, r"KL(BP$_0$ $\|$ network)  (nats)")
    for name in sources:
        dashed = name in (_SCRATCH, _FOREIGN)
        colour = MODEL_COLOUR if dashed else level_colour(levels.index(name), len(levels))
        style = {_SCRATCH: "-", _FOREIGN: (0, (4, 1.5))}.get(name, "-")
        label = name if dashed else f"from {name}"
        band(
            axes,
            *_curve(table, name),
            color=colour,
            linestyle=style,
            marker="o",
            markersize=3,
            label=label,
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("training sequences of the new law (k = 0)")
    figure.legend(loc="outside right upper")
    return figure


def _conclude(tables: Tables) -> list[str]:
    table = tables["main"]
    lines = []
    for name in table.values("source"):
        sizes, kl, _ = _curve(table, name)
        said = ", ".join(f"{n}: {value:.3f}" for n, value in zip(sizes, kl, strict=True))
        lines.append(f"{name}: KL(BP_0 || network) in nats by number of sequences {said}")
    return lines


STUDY = Study(
    name="transfer",
    summary="what an encoder of another filter level or grammar is worth on a new law",
    about="""\
Takes masked-leaf encoders trained at every filter level, and at k = 0 of another grammar, over to
k = 0 data of this grammar, and trains all of them on P new sequences with sampled labels, beside a
fresh encoder. Expected: the more of the hierarchy the source has seen, the fewer sequences it takes;
another grammar's encoder has the right attention and the wrong rules.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
