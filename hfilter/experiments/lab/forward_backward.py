"""Forward and backward: how far up the tree noise reaches, and where changes are most correlated."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

import hfilter
from hfilter.diffusion import (
    ExactDenoiser,
    exact_end,
    mean_field,
    susceptibility_of,
    tree_overlap,
    u_turn,
)
from hfilter.experiments.figures import level_colour, styled
from hfilter.experiments.lab.panels import band, letter, rung_style
from hfilter.experiments.lab.runs import Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables
from hfilter.noising import GaussianChannel, Schedule, UniformChannel

_HEADER = ("depth", "noise", "measure", "index", "value", "standard_error")
_STEPS_HEADER = ("steps", "overlap", "standard_error", "exact", "exact_error")
_TURN = 0.4  # of T: where the steps are counted
_DRAWS = 4  # end points of each noisy sequence


def _runs(options: Options) -> list[Run]:
    return []  # nothing is trained


def _model(options: Options, depth: int) -> hfilter.TreeModel:
    """The random hierarchy model at a depth, by the user's changes."""
    v, m = _sizes(options)
    grammar = hfilter.Grammar.random_hierarchy(
        vocab_size=v, rules_per_symbol=m, depth=depth,
        n_classes=v, seed=options.changes.get("grammar_seed", 0),
    )  # fmt: skip
    return hfilter.TreeModel(grammar, depth)


def _sizes(options: Options) -> tuple[int, int]:
    """v and m of the random hierarchy model."""
    v = options.changes.get("vocab_size", options.pick(4, 8, 32))
    return v, options.changes.get("rules_per_symbol", max(2, v // 4))


def _depths(options: Options) -> list[int]:
    deepest = options.changes.get("depth", options.pick(3, 7, 9))
    return list(range(min(3, deepest), deepest + 1))


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    n = options.pick(64, 4000, 20_000)
    noises = np.linspace(0.0, 1.0, options.pick(5, 41, 41))[1:-1]
    depths = _depths(options)
    rows: list[tuple[Any, ...]] = []
    with shop.counting(len(depths) * len(noises), "noise levels") as advance:
        for depth in depths:
            model = _model(options, depth)
            sample = model.sample(n, seed=options.seed + 1, levels=True)
            # Survival at time t is 1 - noise: one time for each noise level.
            channel = UniformChannel(np.concatenate([[1.0], 1.0 - noises]))
            for t, noise in enumerate(noises, start=1):
                x = channel.corrupt(sample.leaves, t, model.vocab_size, seed=options.seed, step=t)
                ends = exact_end(
                    model, channel, x, t, seed=options.seed, n_samples=_DRAWS, levels="all"
                )
                first = {d: symbols[:, 0] for d, symbols in ends.levels.items()}
                found = tree_overlap(model, dict(sample.levels), first)
                rows += [
                    (depth, noise, "overlap", d, found.overlap[d], found.error[d])
                    for d in found.overlap
                ]
                chi = susceptibility_of(sample.leaves, ends.leaves)
                rows.append((depth, noise, "susceptibility", 0, chi.value, chi.error))
                shape = chi.by_height()
                rows += [
                    (depth, noise, "covariance", h, c, np.nan) for h, c in enumerate(shape.tolist())
                ]
                root = mean_field(*_sizes(options), depth, noise)
                belief = _root_belief(model, sample, noise)
                rows.append((depth, noise, "root_belief", 0, belief[0], belief[1]))
                rows.append((depth, noise, "mean_field", 0, root, 0.0))
                advance(1)
    return {"main": Table(_HEADER, rows), "steps": _count_steps(options, shop)}


def _root_belief(model: hfilter.TreeModel, sample: Any, noise: float) -> tuple[float, float]:
    """Posterior of the true root where every leaf speaks for its true symbol as well as noise lets it.

    What `mean_field` is about. With leaves that are replaced the same mean is the root's overlap.
    """
    q = model.vocab_size
    n = min(1000, len(sample.roots))
    fields = np.full((n, model.n_leaves, q), np.log(noise / q))
    truth = sample.leaves[:n, :, None].astype(np.intp)
    np.put_along_axis(fields, truth, np.log(1.0 - noise + noise / q), axis=2)
    belief = model.root_posterior(log_fields=fields)[np.arange(n), sample.roots[:n]]
    return float(belief.mean()), float(belief.std(ddof=1) / np.sqrt(n))


def _count_steps(options: Options, shop: Workshop) -> Table:
    """U-turns of T exact steps beside the end point in one shot, from the same noise."""
    n = options.pick(64, 4000, 20_000)
    model = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), options.pick(2, 4, 4))
    leaves = model.sample(n, seed=options.seed + 2).leaves
    rows: list[tuple[Any, ...]] = []
    with shop.counting(1, "chains of few and many steps") as advance:
        for steps in options.pick(
            (5, 10), (5, 10, 20, 50, 100, 200, 500), (5, 10, 20, 50, 100, 200, 500, 1000)
        ):
            channel = GaussianChannel(Schedule.cosine(steps))
            t = round(_TURN * steps)
            turn = u_turn(
                ExactDenoiser(model, channel), leaves, t, seed=options.seed, progress=False
            )
            x = channel.corrupt(leaves, t, model.vocab_size, seed=options.seed)
            ends = exact_end(model, channel, x, t, seed=options.seed).leaves[:, 0]
            same = (ends == leaves).mean(axis=1)
            rows.append(
                (steps, turn.overlap[0], turn.error[0], same.mean(), same.std(ddof=1) / np.sqrt(n))
            )
        advance(1)
    return Table(_STEPS_HEADER, rows)


def _curve(table: Table, depth: int, measure: str, index: int = 0) -> tuple[Any, Any, Any]:
    where = {"depth": depth, "measure": measure, "index": index}
    noise, value, error = (
        np.array(table.column(name, **where), dtype=float)
        for name in ("noise", "value", "standard_error")
    )
    return noise, value, error


@styled
def _draw(tables: Tables) -> Figure:
    table, steps = tables["main"], tables["steps"]
    depths = table.values("depth")
    deepest = depths[-1]
    figure = Figure(figsize=(7.4, 5.2))
    grid = figure.subplots(2, 2).ravel()
    levels, chi, shape, chain = grid
    for d in range(deepest + 1):
        x, y, error = _curve(table, deepest, "overlap", d)
        style = rung_style(deepest - d, deepest + 1) | {"marker": ""}
        name = "root" if d == 0 else "leaves" if d == deepest else f"level {d}"
        band(levels, x, y, error, label=name, **style)
    x, y, _ = _curve(table, deepest, "root_belief")
    levels.plot(x, y, color="black", linewidth=1.0, label="root, softened")
    x, y, _ = _curve(table, deepest, "mean_field")
    levels.plot(x, y, color="black", linestyle=":", linewidth=1.2, label="mean field")
    levels.legend(loc="lower left", fontsize=7, ncols=2, columnspacing=1.0, handlelength=1.4)
    levels.set_ylabel("overlap with the start")
    for i, depth in enumerate(depths):
        x, y, error = _curve(table, depth, "susceptibility")
        colour = level_colour(i, len(depths))
        band(chi, x, y, error, color=colour, label=f"{2**depth} leaves")
    chi.legend(loc="upper right")
    chi.set_ylabel("susceptibility χ")
    noises = table.values("noise")
    x, y, _ = _curve(table, deepest, "susceptibility")
    peak = int(np.argmax(y))
    chosen = sorted({len(noises) // 6, peak, (peak + len(noises)) // 2})
    for i, at in enumerate(chosen):
        values = [_curve(table, deepest, "covariance", h)[1][at] for h in range(deepest + 1)]
        colour = level_colour(i, len(chosen))
        shape.plot(
            range(deepest + 1), np.array(values) / values[0], color=colour, marker="o",
            markersize=3, label=f"noise {noises[at]:.2f}",
        )  # fmt: skip
    shape.legend(loc="upper right")
    shape.set_ylabel("covariance of changes / variance")
    shape.set_xlabel("height of the common ancestor")
    for axes in (levels, chi):
        axes.set_xlabel("noise (share of leaves replaced, or softened)")
        axes.set_xlim(0, 1)
    x = np.array(steps.column("steps"), dtype=float)
    gap = np.array(steps.column("overlap")) - np.array(steps.column("exact"))
    error = np.hypot(steps.column("standard_error"), steps.column("exact_error"))
    chain.axhline(0.0, color="black", linewidth=0.8)
    chain.errorbar(x, gap, error, color="#0072B2", marker="o", markersize=3, capsize=2)
    chain.set_xscale("log")
    chain.xaxis.set_major_locator(FixedLocator(x.tolist()))
    chain.xaxis.set_minor_locator(NullLocator())
    chain.set_xticklabels([f"{int(t)}" for t in x])
    chain.set_xlabel("steps of the chain, T")
    chain.set_ylabel("overlap, chain − one shot")
    letter(grid)
    return figure


def _conclude(tables: Tables) -> list[str]:
    table, steps = tables["main"], tables["steps"]
    lines = []
    for depth in table.values("depth"):
        x, y, error = _curve(table, depth, "susceptibility")
        peak = int(np.argmax(y))
        _, root, _ = _curve(table, depth, "overlap", 0)
        _, leaf, _ = _curve(table, depth, "overlap", depth)
        lines.append(
            f"{2**depth} leaves: susceptibility peaks at noise {x[peak]:.3f} with {y[peak]:.2f} ± "
            f"{error[peak]:.2f}; there {root[peak]:.2f} of the roots and {leaf[peak]:.2f} of the leaves stay"
        )
    deepest = table.values("depth")[-1]
    _, belief, _ = _curve(table, deepest, "root_belief")
    _, theory, _ = _curve(table, deepest, "mean_field")
    lines.append(
        f"belief in the true root from softened true leaves (none replaced), {2**deepest} leaves: mean "
        f"field differs by at most {np.abs(belief - theory).max():.3f}"
    )
    return lines + [
        f"{row[0]} steps back from t/T = {_TURN} with BP_0: overlap {row[1]:.4f} ± {row[2]:.4f}, in one "
        f"shot {row[3]:.4f} ± {row[4]:.4f}"
        for row in (steps.rows[0], steps.rows[-1])
    ]


STUDY = Study(
    name="forward-backward",
    summary="how far up the tree noise reaches, and where changes are most correlated",
    about="""\
Trains nothing. Replaces a share of the leaves of the random hierarchy model by noise and draws whole
trees from the exact posterior: the end points of exact reverse diffusion. Shows the overlap with the
start at every level of the tree, the susceptibility of the leaves' changes for several depths, their
covariance by distance in the tree, and what a chain of few steps loses against one shot (on the
grammar of biased generalization). "root, softened" and its mean field are the belief in the true root
where every leaf speaks for its true symbol, weakened by the noise, and none is replaced. Expected:
the higher the level, the steeper the fall of its overlap; the susceptibility peaks at a noise between,
higher for deeper trees (arXiv 2402.16991, 2410.13770).""",
    runs=_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
