"""Biased generalization: models of disjoint blocks part before the test loss turns."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfilter.diffusion import ExactDenoiser
from hfilter.diffusion.measures import (
    along_time,
    loss_decomposition,
    memory_coordinate,
    onset,
    onset_difference,
    over_models,
    sequential,
    split_matrix,
    spread_times,
)
from hfilter.experiments.figures import MODEL_COLOUR, level_colour, log_steps, styled
from hfilter.experiments.lab.blocks import Blocks, bias_runs
from hfilter.experiments.lab.panels import band, letter, log_values, name_ends, rung_style
from hfilter.experiments.lab.runs import Asked, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables

_HEADER = ("model", "step", "inputs", "measure", "index", "value", "standard_error")
_PAIRS_HEADER = ("step", "first", "second", "split_divergence")
_ONSETS_HEADER = (
    "curve",
    "step",
    "low",
    "high",
    "status",
    "rise",
    "rise_error",
    "resolved",
    "from_step",
)
_TIME_HEADER = ("t", "who", "step", "value", "standard_error")
_SPLIT, _D0, _LOSS = "#882255", "#0072B2", "#D55E00"


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    n = options.pick(64, 2000, 10_000)
    all_of = Blocks(trained)
    fresh = all_of.fresh(n)
    main: list[tuple[Any, ...]] = []
    pairs: list[tuple[Any, ...]] = []
    settings = {"rows": n, "with": [one.run.digest for one in trained]}
    steps, models = all_of.steps, range(len(trained))
    alone = [
        Asked(trained[i], f"bias-{step}", settings, _one_model, (all_of, i, step, fresh))
        for step in steps
        for i in models
    ]
    together = [
        Asked(trained[0], f"split-{step}", settings, _between, (all_of, step, fresh))
        for step in steps
    ]
    found = shop.measured_all("measurements", [*alone, *together])
    for one, rows in zip(alone, found, strict=False):
        main += [(one.arguments[1], one.arguments[2], *row) for row in rows]
    for step, matrix in zip(steps, found[len(alone) :], strict=True):
        pairs += [(step, i, j, matrix[i][j]) for i in models for j in models if i != j]
    tables = {"main": Table(_HEADER, main), "pairs": Table(_PAIRS_HEADER, pairs)}
    tables["onsets"] = _onsets(tables)
    tables["time"] = _along_time(options, shop, all_of, tables, fresh)
    return tables


def _between(all_of: Blocks, step: int, fresh: np.ndarray) -> list[list[float]]:
    """KL between every two networks of one step."""
    networks = [all_of.network(i, step) for i in range(len(all_of.trained))]
    matrix: list[list[float]] = split_matrix(networks, fresh, all_of.time).tolist()
    return matrix


def _one_model(
    all_of: Blocks, index: int, step: int, fresh: np.ndarray
) -> list[tuple[str, str, int, float, float]]:
    """What one network says of fresh sequences and of its own training set."""
    model, channel, t = all_of.model, all_of.channel, all_of.time
    network = all_of.network(index, step)
    rows: list[tuple[str, str, int, float, float]] = []
    ladder = sequential(network, model, channel, fresh, t)
    rows += [
        ("fresh", "divergence", k, *pair)
        for k, *pair in zip(ladder.filter_levels, ladder.kl, ladder.error, strict=True)
    ]
    own = all_of.blocks[index][: len(fresh)]
    for inputs, leaves in (("fresh", fresh), ("training", own)):
        for measure, times in (("", t), ("_all_times", spread_times(len(leaves), channel.n_steps))):
            parts = loss_decomposition(network, model, channel, leaves, times)
            rows += [
                (
                    inputs,
                    f"{name}{measure}",
                    0,
                    getattr(parts, name),
                    getattr(parts, f"{name}_error"),
                )
                for name in ("loss", "distillation", "excess", "bayes", "entropy", "divergence")
                if (name, measure) != ("divergence", "")
            ]
    exact = ExactDenoiser(model, channel)
    found = memory_coordinate(network, exact, all_of.memory(index), fresh, t)
    rows.append(
        ("fresh", "lambda", 0, float(np.ravel(found.value)[0]), float(np.ravel(found.error)[0]))
    )
    return rows


def _curves(table: Table, measure: str, inputs: str = "fresh", index: int = 0) -> np.ndarray:
    """Values (models, steps) of one measure."""
    where = {"measure": measure, "inputs": inputs, "index": index}
    return np.array(
        [table.column("value", model=m, **where) for m in table.values("model")], dtype=float
    )


def _split(tables: Tables) -> np.ndarray:
    """Split divergence (models, models, steps)."""
    table, m = tables["pairs"], len(tables["main"].values("model"))
    found = np.zeros((m, m, len(table.values("step"))))
    at = {step: i for i, step in enumerate(table.values("step"))}
    for step, i, j, value in table.rows:
        found[i, j, at[step]] = value
    return found


def _onset_curves(tables: Tables) -> dict[str, np.ndarray]:
    main = tables["main"]
    levels = [
        k for k in main.values("index") if main.column("value", measure="divergence", index=k)
    ]
    return {
        "split divergence": _split(tables),
        "test loss": _curves(main, "loss"),
        "test loss, all times": _curves(main, "loss_all_times"),
        **{f"D_{k}": _curves(main, "divergence", index=k) for k in levels},
    }


def _window(tables: Tables) -> int:
    """Where to look for the turn of the split divergence: from the peak of its largest fall before D_0's minimum.

    Networks that have not begun to learn agree: the curve has its lowest values there, climbs to a peak while
    single leaves and their neighbours are learnt, and only then falls.
    """
    curve = np.log(np.maximum(over_pairs(_split(tables)), 1e-12))
    end = int(_curves(tables["main"], "divergence").mean(axis=0).argmin()) + 1
    inner = range(1, min(end, len(curve) - 3))
    falls = {
        i: curve[i] - curve[i:end].min() for i in inner if curve[i - 1] < curve[i] >= curve[i + 1]
    }
    return max(falls, key=falls.__getitem__, default=0)


def over_pairs(matrix: np.ndarray) -> np.ndarray:
    """Mean over different models."""
    m = len(matrix)
    mean: np.ndarray = matrix.sum(axis=(0, 1)) / (m * (m - 1))
    return mean


def _onsets(tables: Tables) -> Table:
    steps = tables["main"].values("step")
    rows = []
    if len(steps) >= 3:
        window = _window(tables)
        for name, curves in _onset_curves(tables).items():
            first = window if name == "split divergence" else 0
            found = onset(steps[first:], curves[..., first:])
            rows.append(
                (
                    name, found.step, found.low, found.high, found.status, found.rise,
                    found.rise_error, found.is_resolved, steps[first],
                )
            )  # fmt: skip
    return Table(_ONSETS_HEADER, rows)


def _along_time(
    options: Options, shop: Workshop, all_of: Blocks, tables: Tables, fresh: np.ndarray
) -> Table:
    """KL(BP_0 || network)(t) of the first model at the onsets and at the end, beside KL(BP_0 || BP_k)(t)."""
    n_steps = all_of.channel.n_steps
    times = np.unique(np.linspace(1, n_steps, options.pick(4, 41, 126)).astype(int))
    steps = np.array(all_of.steps)
    marks = {"last": int(steps[-1])}
    for name, curve in (("split", "split divergence"), ("loss", "test loss")):
        where = tables["onsets"].column("step", curve=curve)
        if where and np.isfinite(where[0]):
            marks[name] = int(steps[np.abs(np.log(steps / where[0])).argmin()])
    marks["peak"] = int(steps[_window(tables)])
    chosen = sorted(set(marks.values()))

    def work() -> list[tuple[Any, ...]]:
        networks = {str(step): all_of.network(0, step) for step in chosen}
        found = along_time(all_of.model, all_of.channel, fresh[:1000], times, networks)
        rows: list[tuple[Any, ...]] = []
        for i, t in enumerate(found.times.tolist()):
            rows += [
                (t, f"BP_{k}", 0, found.filtered[i, j], found.filtered_error[i, j])
                for j, k in enumerate(found.filter_levels)
                if k
            ]
            rows += [
                (t, "network", int(name), found.kl[i, j], found.kl_error[i, j])
                for j, name in enumerate(found.names)
            ]
            rows.append((t, "bayes", 0, found.entropy[i], found.entropy_error[i]))
        return rows

    settings = {
        "steps": chosen,
        "times": times.tolist(),
        "with": [o.run.digest for o in all_of.trained],
    }
    rows = shop.measured(all_of.trained[0], "along-time", settings, work)
    return Table(_TIME_HEADER, [tuple(row) for row in rows])


# --------------------------------------------------------------------------------------- the figure


@styled
def _draw(tables: Tables) -> Figure:
    main = tables["main"]
    steps = np.array(main.values("step"))
    figure = Figure(figsize=(7.8, 5.2))
    grid = figure.subplots(2, 3).ravel()
    ladder, onsets, losses, excess, memory, along = grid
    for axes in grid[:-1]:
        log_steps(axes, steps[_shown(steps)])
        axes.set_xlim(0.9 * steps[_shown(steps)][0], 1.1 * steps[-1])
    _draw_ladder(ladder, tables, steps)
    _draw_onsets(onsets, tables, steps)
    for inputs, colour, name in (
        ("fresh", _LOSS, "held out"),
        ("training", MODEL_COLOUR, "training"),
    ):
        _line(losses, steps, _curves(main, "loss", inputs), color=colour, label=name)
        _line(excess, steps, _curves(main, "excess", inputs), color=colour, label=name)
        floor, entropy = (float(np.mean(_curves(main, m, inputs))) for m in ("bayes", "entropy"))
        losses.axhline(floor, color=colour, linestyle=(0, (3, 2)), linewidth=0.8)
        # What exact inference has on the same rows: chance, not memory.
        excess.axhline(floor - entropy, color=colour, linestyle=(0, (3, 2)), linewidth=0.8)
    losses.set_ylabel("loss (nats per sequence)")
    losses.legend(loc="upper right")
    excess.axhline(0.0, color="black", linewidth=0.6)
    excess.set_ylabel(r"excess loss $\tilde\ell$ (nats per sequence)")
    excess.legend(loc="lower left")
    _line(memory, steps, _curves(main, "lambda"), color=_SPLIT)
    memory.set_ylabel("λ (0 inference, 1 memory)")
    _mark(tables, losses, excess, memory)
    _draw_along(along, tables)
    letter(grid)
    return figure


def _shown(steps: np.ndarray) -> np.ndarray:
    """The last three decades of steps: before, nothing is learnt."""
    late: np.ndarray = steps >= steps[-1] / 1000
    return late


def _line(axes: Axes, steps: np.ndarray, curves: np.ndarray, **style: Any) -> None:
    spreads = [over_models(curves[..., i]) for i in np.flatnonzero(_shown(steps))]
    mean, error = (np.array([getattr(s, name) for s in spreads]) for name in ("mean", "error"))
    band(axes, steps[_shown(steps)], mean, error, linewidth=1.4, **style)


def _draw_ladder(axes: Axes, tables: Tables, steps: np.ndarray) -> None:
    curves = {k: v for k, v in _onset_curves(tables).items() if k.startswith("D_")}
    log_values(axes, r"$D_k$ = KL(BP$_k$ $\|$ network)  (nats per sequence)")
    ends = {}
    for k, (_, values) in enumerate(curves.items()):
        style = rung_style(k, len(curves)) | {"marker": ""}
        mean = values.mean(axis=0)
        axes.plot(steps[_shown(steps)], mean[_shown(steps)], **style)
        axes.plot(steps[mean.argmin()], mean.min(), "o", color=style["color"], markersize=4)
        ends[f"k = {k}"] = (float(mean[-1]), style["color"])
    name_ends(axes, ends)


def _draw_onsets(axes: Axes, tables: Tables, steps: np.ndarray) -> None:
    log_values(axes, "nats per sequence")
    _line(axes, steps, _split(tables), color=_SPLIT, label="split divergence")
    _line(axes, steps, _curves(tables["main"], "divergence"), color=_D0, label=r"$D_0$")
    _mark(tables, axes)
    axes.legend(loc="upper right")


def _mark(tables: Tables, *many: Axes) -> None:
    """The onsets, with their intervals."""
    for name, colour in (("split divergence", _SPLIT), ("test loss", _LOSS), ("D_0", _D0)):
        rows = [row for row in tables["onsets"].rows if row[0] == name]
        if not rows or not np.isfinite(rows[0][1]):
            continue
        _, step, low, high, *_ = rows[0]
        for axes in many:
            left, right = axes.get_xlim()
            axes.axvline(step, color=colour, linestyle=":", linewidth=1)
            if np.isfinite([low, high]).any():
                axes.axvspan(
                    max(low, left), min(high, right), color=colour, alpha=0.08, linewidth=0
                )
            axes.set_xlim(left, right)


def _draw_along(axes: Axes, tables: Tables) -> None:
    table = tables["time"]
    n_steps = max(table.column("t"))
    levels = [who for who in table.values("who") if who.startswith("BP_")]
    log_values(axes, "KL from BP$_0$ (nats per sequence)")
    for i, who in enumerate(levels, start=1):
        x, y = (np.array(table.column(name, who=who), dtype=float) for name in ("t", "value"))
        colour = level_colour(i, len(levels) + 1)
        axes.plot(x / n_steps, y, color=colour, linewidth=1, label=f"BP$_{i}$")
    marks = sorted(set(table.column("step", who="network")))
    for i, step in enumerate(marks):
        x, y = (
            np.array(table.column(name, who="network", step=step), dtype=float)
            for name in ("t", "value")
        )
        shade = 0.75 - 0.75 * i / max(1, len(marks) - 1)
        axes.plot(x / n_steps, y, color=str(shade), linewidth=1.4, label=f"step {step}")
    top = max(table.column("value", who=levels[-1])) if levels else 1.0
    axes.set_ylim(1e-3 * top, 12 * top)
    axes.set_xlim(0, 1)
    axes.set_xlabel("t / T")
    axes.legend(loc="upper right", fontsize=6.5, ncols=2, columnspacing=1.0, handlelength=1.4)


# ----------------------------------------------------------------------------------- what it says


def _conclude(tables: Tables) -> list[str]:
    main, onsets = tables["main"], tables["onsets"]
    steps = main.values("step")
    if len(steps) < 3:
        return ["too few kept networks for an onset"]
    lines = []
    curves, window = _onset_curves(tables), _window(tables)
    for name in ("split divergence", "D_0", "test loss", "test loss, all times"):
        first = window if name == "split divergence" else 0
        found = onset(steps[first:], curves[name][..., first:])
        since = f" from step {steps[first]}, its peak, on" if first else ""
        lines.append(
            f"{name}{since}: {found}; at the last step {found.rise:+.3f} ± {found.rise_error:.3f} nats above it"
        )
    for later in ("test loss", "D_0"):
        both = (curves[name][..., window:] for name in ("split divergence", later))
        gap = onset_difference(steps[window:], *both)
        lines.append(
            f"split divergence before {later}: by a factor {gap.ratio:.2f} (95%: {gap.low:.2f} to "
            f"{gap.high:.2f}); earlier in {gap.share_earlier:.1%} of the resamples of "
            f"{len(main.values('model'))} models"
        )
    order = {row[0]: row[1] for row in onsets.rows if row[0].startswith("D_")}
    said = ", ".join(
        f"{name} {'at ' + format(step, '.0f') if np.isfinite(step) else 'not inside the run'}"
        for name, step in reversed(order.items())
    )
    lines.append(f"minima of D_k, coarse to fine: {said}")
    for inputs, words in (("fresh", "held-out"), ("training", "training")):
        last = over_models(_curves(main, "excess", inputs)[:, -1])
        lines.append(
            f"excess loss on {words} sequences at the last step: {last.mean:.3f} ± {last.error:.3f} nats"
        )
    middle, end = (over_models(_curves(main, "lambda")[:, i]) for i in (len(steps) // 2, -1))
    lines.append(
        f"coordinate between inference and memory: {middle.mean:.3f} ± {middle.error:.3f} at step "
        f"{steps[len(steps) // 2]}, {end.mean:.3f} ± {end.error:.3f} at step {steps[-1]}"
    )
    return lines


STUDY = Study(
    name="biased-generalization",
    summary="models of disjoint blocks part before the test loss turns",
    about="""\
Trains denoisers on disjoint blocks of sequences (eight models with the fast preset; --seeds N for more,
--train-size N for other blocks) and follows, from kept network to kept network at t/T = 0.15, D_k =
KL(BP_k || network), the divergence between models of different blocks, losses on held-out and training
sequences split into distillation and excess, the coordinate between exact inference and the memory of
the training set, and KL(BP_0 || network) along t. Expected (arXiv 2603.03469): coarse levels are learnt
first; the split divergence, which climbs from zero to a peak and falls again, turns while D_0 and the
test loss still fall: generalisation goes on, already biased towards the block; then they turn too.
Onsets come with intervals over models; that of the split divergence is sought from the peak on.""",
    runs=bias_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
