"""Diffusion reference: what no network enters into, the exact numbers that networks are held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import hfilter
from hfilter.diffusion import EmpiricalDenoiser, ExactDenoiser, random_leaves, u_turn
from hfilter.diffusion.measures import along_time, loss_decomposition, spread_times
from hfilter.diffusion.nearest import nearest
from hfilter.diffusion.splits import block, duplicates, held_out
from hfilter.experiments.figures import level_colour, styled
from hfilter.experiments.lab.panels import band, letter, log_values, rung_style
from hfilter.experiments.lab.runs import Law, Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables
from hfilter.noising import GaussianChannel, Schedule

_HEADER = ("t", "noise", "batch", "measure", "index", "value", "standard_error")
_TURNS = ("denoiser", "start", "t", "overlap", "standard_error", "sequences")
_DATA = (
    "training_rows", "block", "held_out", "found", "share_found", "expected", "expected_error",
    "mean_distance", "standard_error",
)  # fmt: skip
_DISTANCES = ("training_rows", "distance", "share")
_BATCHES = 4  # of sequences, each with its own curve along t: the errors of the peaks
_TOKEN, _NATS, _ALL = "cross_entropy", "kl", "cross_entropy_all_times"
_SIZE_COLOURS = ("#88CCEE", "#44AA99", "#332288", "#882255")


def _runs(options: Options) -> list[Run]:
    return []  # nothing is trained


def _model(options: Options) -> hfilter.TreeModel:
    """The grammar of biased generalization, by the user's changes."""
    law = Law(depth=options.pick(2, 4, 4), vocab_size=6, rules_per_symbol=4)
    return replace(law, **options.changes).model


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    model = _model(options)
    channel = GaussianChannel(Schedule.published(options.pick(40, 500, 500)))
    sizes = options.pick((40, 80), (5_000, 12_000, 70_000), (5_000, 12_000, 70_000))
    data, distances = _data(options, shop, model, sizes)
    return {
        "main": _along(options, shop, model, channel),
        "u-turn": _turns(options, shop, model, channel, sizes),
        "data": data,
        "distances": distances,
    }


def _along(
    options: Options, shop: Workshop, model: hfilter.TreeModel, channel: GaussianChannel
) -> Table:
    """Divergences and the Bayes cross-entropy at every time, batch by batch, and more closely at two."""
    total = channel.n_steps
    grid = np.unique(np.linspace(1, total, options.pick(8, 101, total)).round().astype(int))
    few, many = options.pick(16, 600, 5_000), options.pick(64, 20_000, 100_000)
    fixed = [_time(channel, share) for share in (0.15, 0.3)]
    fresh = held_out(model, max(_BATCHES * few, many), options.seed)
    rows: list[tuple[Any, ...]] = []

    def add(batch: str, leaves: Any, start: int, times: Iterable[int]) -> None:
        for t in times:
            found = along_time(model, channel, leaves, [t], seed=options.seed, start=start)
            about = (t, t / total, batch)
            for k, kl, error in zip(
                found.filter_levels, found.filtered[0], found.filtered_error[0], strict=True
            ):
                rows.append((*about, _NATS, k, float(kl), float(error)))
            rows.append(
                (*about, _TOKEN, 0, *(float(x) / model.n_leaves for x in (found.bayes[0], found.bayes_error[0])))
            )  # fmt: skip
            rows.append((*about, "intensity", 0, float(channel.schedule.intensity(t)), 0.0))
            advance(1)

    with shop.counting(_BATCHES * len(grid) + 2, "times") as advance:
        for i in range(_BATCHES):
            add(str(i), fresh[i * few : (i + 1) * few], i * few, grid.tolist())
        add("all", fresh[:many], 0, fixed)
    everywhere = loss_decomposition(
        ExactDenoiser(model, channel), model, channel, fresh[:many], spread_times(many, total),
        seed=options.seed,
    )  # fmt: skip
    mean, error = (x / model.n_leaves for x in (everywhere.bayes, everywhere.bayes_error))
    rows.append((0, 0.0, "all", _ALL, 0, mean, error))
    return Table(_HEADER, rows)


def _time(channel: GaussianChannel, share: float) -> int:
    return max(1, round(share * channel.n_steps))


def _turns(
    options: Options, shop: Workshop, model: hfilter.TreeModel, channel: GaussianChannel, sizes: Any
) -> Table:
    """U-turns from fresh, from training and from random sequences."""
    n, n_memory = options.pick(32, 4_000, 20_000), options.pick(16, 1_000, 4_000)
    times = (
        5,
        15,
        25,
        31,
        37,
        42,
        43,
        50,
        60,
    )  # of 500: those of the paper, and where BP_0 gives way
    paper = (5, 15, 25, 42, 60)
    steps, few = (sorted({_time(channel, t / 500) for t in group}) for group in (times, paper))
    fresh = held_out(model, n, options.seed)
    noise = random_leaves(n, model.n_leaves, model.vocab_size, seed=options.seed)
    jobs: list[tuple[Any, str, Any, list[int]]] = []
    for k in range(model.depth + 1):
        exact = ExactDenoiser(model, channel, filter_level=k)
        jobs += [(exact, "held-out", fresh, steps), (exact, "random", noise, steps)]
    for size in sizes:
        train = block(model, size, 0, options.seed)
        memory = EmpiricalDenoiser(train, model.vocab_size, channel)
        memory.name = f"empirical {size}"
        for start, leaves in (("held-out", fresh), ("training", train), ("random", noise)):
            jobs.append((memory, start, leaves[:n_memory], few))
    rows: list[tuple[Any, ...]] = []
    with shop.counting(len(jobs), "U-turns") as advance:
        for denoiser, start, leaves, at in jobs:
            found = u_turn(denoiser, leaves, at, seed=options.seed, progress=False)
            rows += [
                (denoiser.name, start, t, float(overlap), float(error), len(leaves))
                for t, overlap, error in zip(found.times, found.overlap, found.error, strict=True)
            ]
            advance(1)
    return Table(_TURNS, rows)


def _data(
    options: Options, shop: Workshop, model: hfilter.TreeModel, sizes: Any
) -> tuple[Table, Table]:
    """Held-out sequences that occur in training sets, and their distances to the nearest row."""
    n, n_blocks = options.pick(200, 50_000, 50_000), options.pick(2, 4, 15)
    fresh = held_out(model, n, options.seed)
    rows: list[tuple[Any, ...]] = []
    shares: list[tuple[Any, ...]] = []
    with shop.counting(len(sizes) * n_blocks, "training sets") as advance:
        for size in sizes:
            counts = np.zeros(model.n_leaves + 1)
            for i in range(n_blocks):
                train = block(model, size, i, options.seed)
                same = duplicates(fresh, train, model)
                distance = nearest(fresh, train).distance
                counts += np.bincount(distance, minlength=len(counts))
                error = float(distance.std(ddof=1) / np.sqrt(n))
                rows.append(
                    (
                        size, i, n, same.n_found, same.share, same.expected, same.expected_error,
                        float(distance.mean()), error,
                    )
                )  # fmt: skip
                advance(1)
            shares += [(size, d, float(count / counts.sum())) for d, count in enumerate(counts)]
    return Table(_DATA, rows), Table(_DISTANCES, shares)


def _curve(table: Table, measure: str, index: int) -> tuple[Any, Any, Any, Any]:
    """Noise, mean and standard error over batches, and the batches themselves (batches, times)."""
    batches = [b for b in table.values("batch") if b != "all"]
    where = {"measure": measure, "index": index}
    values = np.array([table.column("value", batch=b, **where) for b in batches])
    x = np.array(table.column("noise", batch=batches[0], **where))
    return x, values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values)), values


def _peak(table: Table, k: int) -> tuple[float, float, float, float]:
    """Where KL(BP_0 || BP_k) is largest and how large, each with its error over batches."""
    x, mean, error, batches = _curve(table, _NATS, k)
    at = [_vertex(x, curve) for curve in batches]
    top = int(mean.argmax())
    place = float(np.std(at, ddof=1) / np.sqrt(len(at)))
    return _vertex(x, mean), place, float(mean[top]), float(error[top])


def _vertex(x: Any, y: Any) -> float:
    """The maximum of the parabola through the highest points of a curve."""
    i = int(np.clip(y.argmax(), 1, len(x) - 2))
    part = slice(max(0, i - 2), i + 3)
    bend, slope, _ = np.polyfit(x[part] - x[i], y[part], 2)
    if bend >= 0.0:
        return float(x[y.argmax()])
    return float(np.clip(x[i] - slope / (2 * bend), x[i - 1], x[i + 1]))


@styled
def _draw(tables: Tables) -> Figure:
    table, turns = tables["main"], tables["u-turn"]
    levels = sorted(set(table.column("index", measure=_NATS)))
    figure = Figure(figsize=(7.4, 4.6))
    grid = figure.subplots(2, 3).ravel()
    strength, kl, entropy, held, random, near = grid
    x, y, _, _ = _curve(table, "intensity", 0)
    strength.plot(x, y, color="#222222")
    strength.set_yscale("log")
    strength.set_ylabel(r"field intensity $\sqrt{\bar\alpha_t}/(1-\bar\alpha_t)$")
    largest, curves = 0.0, []
    for k in levels[1:]:
        x, y, error, _ = _curve(table, _NATS, k)
        style = rung_style(k, len(levels)) | {"marker": ""}
        band(kl, x, y, error, **style)
        place, _, top, _ = _peak(table, k)
        kl.plot([place], [top], color=style["color"], marker="v", markersize=4)
        curves.append((f"BP$_{k}$", x, y, style["color"]))
        largest = max(largest, top)
    log_values(kl, r"KL(BP$_0$ $\|$ BP$_k$) (nats)")
    kl.set_ylim(2e-3 * largest, 2.5 * largest)
    for name, x, y, colour in curves:  # beside the lines, where they leave the panel
        there = x[np.flatnonzero(y > 3e-3 * largest)[-1]]
        kl.text(there + 0.02, 3e-3 * largest, name, color=colour, fontsize=7)
    x, y, error, _ = _curve(table, _TOKEN, 0)
    band(entropy, x, y, error, color=level_colour(0, len(levels)))
    (mean,) = table.column("value", measure=_ALL)
    entropy.axhline(mean, color="#666666", linestyle=":", linewidth=1)
    entropy.text(1.0, mean, "mean over t", ha="right", va="top", fontsize=7, color="#666666")
    entropy.set_ylabel("Bayes loss (nats per token)")
    for axes in (strength, kl, entropy):
        axes.set_xlabel("t / T")
        axes.set_xlim(0, 1)
    for axes, start in ((held, "held-out"), (random, "random")):
        _draw_turns(axes, turns, start, len(levels))
    bottom = min(held.get_ylim()[0], random.get_ylim()[0])
    held.set_ylim(bottom, 1.02)
    random.set_ylim(bottom, 1.02)
    held.legend(loc="lower left", fontsize=6.5, ncols=2, columnspacing=1.0, handlelength=1.6)
    distances = tables["distances"]
    for i, size in enumerate(distances.values("training_rows")):
        share = np.array(distances.column("share", training_rows=size))
        d = np.array(distances.column("distance", training_rows=size))
        style = {"color": _SIZE_COLOURS[i % len(_SIZE_COLOURS)], "marker": "o", "markersize": 3}
        near.plot(d[share > 0], share[share > 0], label=f"n = {size:,}", **style)
    near.set_yscale("log")
    near.xaxis.set_major_locator(MaxNLocator(integer=True))
    near.set_ylabel("share of held-out sequences")
    near.set_xlabel("distance to training set")
    near.legend(loc="lower center", fontsize=6.5)
    letter(grid)
    return figure


def _draw_turns(axes: Any, turns: Table, start: str, n_levels: int) -> None:
    sizes = [name for name in turns.values("denoiser") if name.startswith("empirical")]
    for name in turns.values("denoiser"):
        if name.startswith("BP_"):
            k = int(name[3:])
            style = rung_style(k, n_levels) | {"label": f"BP$_{k}$"}
        else:
            colour = _SIZE_COLOURS[sizes.index(name) % len(_SIZE_COLOURS)]
            style = {"color": colour, "linestyle": "--", "linewidth": 1.0, "label": "_" + name}
            if name == sizes[-1]:
                style["label"] = "empirical, as in f"
        where = {"denoiser": name, "start": start}
        t, y, error = (
            np.array(turns.column(c, **where), dtype=float)
            for c in ("t", "overlap", "standard_error")
        )
        band(axes, t, y, error, **style)
    axes.set_xlabel("time of turning")
    axes.set_ylabel("overlap with the start")
    axes.set_title(f"{start} sequences")


def _conclude(tables: Tables) -> list[str]:
    table, turns, data = tables["main"], tables["u-turn"], tables["data"]
    levels = sorted(set(table.column("index", measure=_NATS)))[1:]
    lines = []
    for t in sorted(set(table.column("t", batch="all")) - {0}):
        where = {"t": t, "batch": "all"}
        kl = ", ".join(
            f"{table.column('value', measure=_NATS, index=k, **where)[0]:.3f} ± "
            f"{table.column('standard_error', measure=_NATS, index=k, **where)[0]:.3f}"
            for k in levels
        )
        (strength,) = table.column("value", measure="intensity", **where)
        (token,) = table.column("value", measure=_TOKEN, **where)
        (error,) = table.column("standard_error", measure=_TOKEN, **where)
        lines.append(
            f"t = {t}: intensity {strength:.4g}; KL(BP_0 || BP_k) for k = 1 ...: {kl} nats per sequence; "
            f"Bayes cross-entropy {token:.4f} ± {error:.4f} per token"
        )
    (mean,), (error,) = (table.column(c, measure=_ALL) for c in ("value", "standard_error"))
    lines.append(f"Bayes cross-entropy averaged over t: {mean:.4f} ± {error:.4f} per token")
    peaks = ", ".join(
        "BP_{}: {:.4f} ± {:.4f} with {:.3f} ± {:.3f}".format(k, *_peak(table, k)) for k in levels
    )
    lines.append(f"KL(BP_0 || BP_k) is largest at t/T = {peaks} nats")
    for name in turns.values("denoiser"):
        for start in ("held-out", "training", "random"):
            where = {"denoiser": name, "start": start}
            said = ", ".join(
                f"{t}: {y:.3f} ± {e:.3f}"
                for t, y, e in zip(
                    *(turns.column(c, **where) for c in ("t", "overlap", "standard_error")),
                    strict=True,
                )
            )
            if said:
                lines.append(f"U-turn overlap of {name} from {start} sequences at {said}")
    for size in data.values("training_rows"):
        share, expected, distance = (
            np.array(data.column(c, training_rows=size))
            for c in ("share_found", "expected", "mean_distance")
        )
        own = np.array(data.column("standard_error", training_rows=size))[0]
        lines.append(
            f"{size} training rows ({len(share)} blocks): {share.mean():.2%} of the held-out sequences are "
            f"among them ({share.min():.2%} to {share.max():.2%}; by chance {expected.mean():.2%}), mean "
            f"distance {distance.mean():.3f} (blocks {distance.std(ddof=1):.3f}, sequences {own:.3f})"
        )
    return lines


STUDY = Study(
    name="diffusion-reference",
    summary="exact numbers of diffusion that no network enters into",
    about="""\
Trains nothing. On the grammar of biased generalization (q = 6, four rules per symbol, depth 4) and the
published schedule: the intensity of the fields, KL(BP_0 || BP_k) and the Bayes cross-entropy along t,
U-turns by exact, filtered and empirical denoisers from held-out, training and random sequences, and the
held-out sequences that training sets of 5 000, 12 000 and 70 000 rows hold by chance, with the distances
of the others (arXiv 2603.03469). Expected: the divergences peak where an eighth to a sixth of the time is gone,
and the exact denoiser stays on the grammar however far from it it starts.""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
