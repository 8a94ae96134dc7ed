"""What biased models draw: near their own training set, apart from each other, back to where they began."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfilter.diffusion import ExactDenoiser, generate, nearest, random_leaves, u_turn
from hfilter.diffusion.measures import mutual_distance, neighbour_divergence, over_models
from hfilter.experiments.figures import MODEL_COLOUR, level_colour, log_steps, styled
from hfilter.experiments.lab.blocks import Blocks, bias_runs
from hfilter.experiments.lab.panels import band, letter, name_ends
from hfilter.experiments.lab.runs import Asked, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, Tables

_HEADER = ("step", "model", "measure", "value", "standard_error")
_PAIRS_HEADER = ("step", "first", "second", "measure", "value", "standard_error")
_TURN_HEADER = (
    "step",
    "model",
    "inputs",
    "turn",
    "overlap",
    "standard_error",
    "exact",
    "exact_error",
)
_TURNS = (5, 15, 25, 42, 60)
_OWN, _OTHER = "#D55E00", "#0072B2"


def _chosen(steps: list[int], count: int) -> list[int]:
    """`count` of the kept steps, evenly on a logarithmic axis over the last 25-fold, where models part."""
    logs = np.log(np.array(steps))
    wanted = np.linspace(logs[-1] - np.log(25.0), logs[-1], count)
    return sorted({steps[int(np.abs(logs - x).argmin())] for x in wanted})


def _measure(options: Options, shop: Workshop, trained: list[Trained]) -> dict[str, Table]:
    all_of = Blocks(trained)
    n = options.pick(24, 400, 50_000)
    turned = options.pick(16, 200, 10_000)
    steps = _chosen(all_of.steps, options.pick(2, 5, 25))
    turns = [t for t in _TURNS if t < all_of.channel.n_steps]
    exact = ExactDenoiser(all_of.model, all_of.channel)
    main: list[tuple[Any, ...]] = []
    pairs: list[tuple[Any, ...]] = []
    turn: list[tuple[Any, ...]] = []
    starts = _starts(all_of, turned)
    reference = {
        name: u_turn(exact, rows, turns, seed=1, progress=False) for name, rows in starts.items()
    }
    fresh = all_of.fresh(max(n, 2000))
    settings = {"n": n, "turned": turned, "turns": turns, "with": [o.run.digest for o in trained]}
    asked = [
        Asked(one, f"samples-{step}", settings, _of_one,
              (all_of, i, step, n, {"training": all_of.blocks[i][:turned], **starts}, turns))
        for step in steps
        for i, one in enumerate(trained)
    ]  # fmt: skip
    found = shop.measured_all("kept networks drawn from", asked)
    for number, step in enumerate(steps):
        part = found[number * len(trained) : (number + 1) * len(trained)]
        drawn = [np.array(one["drawn"], dtype=np.uint16) for one in part]
        for index, one in enumerate(part):
            for name, values in one["turns"].items():
                known = reference["fresh" if name == "training" else name]
                turn += [
                    (step, index, name, t, *pair, known.overlap[i], known.error[i])
                    for i, (t, pair) in enumerate(zip(turns, values, strict=True))
                ]
        main += _neighbours(all_of, step, drawn, fresh)
        pairs += _mutual(all_of, step, drawn)
    perfect = generate(exact, max(n, 2000), seed=2, progress=False).leaves
    main += _neighbours(all_of, 0, [np.asarray(perfect)] * len(trained), fresh)
    return {
        "main": Table(_HEADER, main),
        "pairs": Table(_PAIRS_HEADER, pairs),
        "turns": Table(_TURN_HEADER, turn),
    }


def _starts(all_of: Blocks, n: int) -> dict[str, np.ndarray]:
    q, length = all_of.model.vocab_size, all_of.model.n_leaves
    return {"fresh": all_of.fresh(n), "random": random_leaves(n, length, q, seed=3)}


def _of_one(
    all_of: Blocks, index: int, step: int, n: int, starts: dict[str, np.ndarray], turns: list[int]
) -> dict[str, Any]:
    """Sequences that one network draws, from noise that all share, and where its U-turns end."""
    network = all_of.network(index, step)
    drawn = generate(network, n, seed=2, progress=False, num_threads=1)
    found = {}
    for name, leaves in starts.items():
        ends = u_turn(network, leaves, turns, seed=1, progress=False, num_threads=1)
        found[name] = np.stack([ends.overlap, ends.error], axis=1).tolist()
    return {"drawn": np.asarray(drawn.leaves).tolist(), "turns": found}


def _neighbours(
    all_of: Blocks, step: int, drawn: list[np.ndarray], fresh: np.ndarray
) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for index, sequences in enumerate(drawn):
        other = all_of.blocks[(index + 1) % len(all_of.blocks)]
        known = (sequences < all_of.model.vocab_size).all(axis=1)
        found = neighbour_divergence(sequences[known], fresh, all_of.blocks[index], other)
        own = found.own
        rows += [
            (step, index, "kl_own", own.kl, own.error),
            (step, index, "shift_own", own.shift, own.shift_error),
            (step, index, "copies", own.copies_generated, np.nan),
            (step, index, "copies_held_out", own.copies_held_out, np.nan),
            (step, index, "pull", found.pull, found.pull_error),
            (step, index, "repeated", found.repeated_generated, np.nan),
            (step, index, "held_out_distance", float(nearest(fresh, all_of.blocks[index]).distance.mean()), np.nan),
            (step, index, "on_law", _share_on_law(all_of, sequences), np.nan),
        ]  # fmt: skip
        if found.other is not None:
            rows.append((step, index, "kl_other", found.other.kl, found.other.error))
            rows.append((step, index, "shift_other", found.other.shift, found.other.shift_error))
    return rows


def _share_on_law(all_of: Blocks, sequences: np.ndarray) -> float:
    """Share of sequences that the grammar can produce."""
    known = (sequences < all_of.model.vocab_size).all(axis=1)
    possible = np.isfinite(all_of.model.log_prob(sequences[known]))
    return float(possible.sum() / len(sequences))


def _mutual(all_of: Blocks, step: int, drawn: list[np.ndarray]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for i, j in combinations(range(len(drawn)), 2):
        found = mutual_distance(drawn[i], drawn[j], all_of.blocks[i], all_of.blocks[j])
        rows += [
            (step, i, j, "distance", found.distance, found.distance_error),
            (step, i, j, "unpaired", found.unpaired, found.unpaired_error),
            (step, i, j, "identical", found.identical, np.nan),
            (
                step,
                i,
                j,
                "pull",
                float(np.mean(found.pull)),
                float(np.linalg.norm(found.pull_error) / 2),
            ),
        ]
    return rows


# --------------------------------------------------------------------------------------- the figure


def _line(axes: Axes, table: Table, measure: str, **style: Any) -> None:
    steps = np.array(sorted(set(table.column("step")) - {0}))
    spreads = [
        over_models(np.array(table.column("value", step=s, measure=measure)))
        for s in steps.tolist()
    ]
    mean, error = (np.array([getattr(s, name) for s in spreads]) for name in ("mean", "error"))
    band(axes, steps, mean, error, marker="o", markersize=3, linewidth=1.3, **style)


def _matrix(table: Table, step: int, measure: str) -> np.ndarray:
    """A number for each pair of models, both ways round."""
    m = 1 + max(table.column("second"))
    found = np.zeros((m, m))
    for row in table.rows:
        if row[0] == step and row[3] == measure:
            found[row[1], row[2]] = found[row[2], row[1]] = row[4]
    return found


def _pair_line(axes: Axes, table: Table, measure: str, **style: Any) -> None:
    steps = np.array(sorted(set(table.column("step"))))
    spreads = [over_models(_matrix(table, int(s), measure)) for s in steps]
    mean, error = (np.array([getattr(s, name) for s in spreads]) for name in ("mean", "error"))
    band(axes, steps, mean, error, marker="o", markersize=3, linewidth=1.3, **style)


@styled
def _draw(tables: Tables) -> Figure:
    main, pairs, turns = tables["main"], tables["pairs"], tables["turns"]
    steps = np.array(sorted(set(main.column("step")) - {0}))
    figure = Figure(figsize=(7.6, 5.2))
    grid = figure.subplots(2, 3).ravel()
    divergence, shift, mutual, pull, ratio, random = grid
    for axes in grid:
        log_steps(axes, steps)
        axes.set_xlim(0.85 * steps[0], 1.15 * steps[-1])
    for axes, measure, label in (
        (divergence, "kl", "neighbour divergence (nats)"),
        (shift, "shift", "shift of the neighbour distance"),
    ):
        _line(axes, main, f"{measure}_own", color=_OWN, label="own block")
        _line(axes, main, f"{measure}_other", color=_OTHER, label="other block")
        axes.axhline(0.0, color="black", linewidth=0.6)
        axes.set_ylabel(label)
        axes.legend(loc="best")
    if pairs.rows:
        _pair_line(mutual, pairs, "distance", color=MODEL_COLOUR, label="same noise")
        _pair_line(mutual, pairs, "unpaired", color="0.6", label="other noise")
        mutual.legend(loc="best")
    mutual.set_ylabel("distance of two models' samples")
    _line(pull, main, "pull", color=_OWN, label="pull to the own block")
    pull.axhline(0.0, color="black", linewidth=0.6)
    pull.set_ylabel("pull to the own block (leaves)")
    _draw_turns(ratio, turns)
    _draw_random(random, turns)
    letter(grid)
    return figure


def _turn_curve(table: Table, inputs: str, turn: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overlap over that of exact inference, (steps, mean, error over models)."""
    steps = np.array(table.values("step"))
    spreads = []
    for step in steps.tolist():
        where = {"step": step, "inputs": inputs, "turn": turn}
        ours, exact = (np.array(table.column(name, **where)) for name in ("overlap", "exact"))
        spreads.append(over_models(ours / exact))
    return steps, np.array([s.mean for s in spreads]), np.array([s.error for s in spreads])


def _draw_turns(axes: Axes, turns: Table) -> None:
    chosen = turns.values("turn")[-2:]
    for i, t in enumerate(chosen):
        for inputs, style in (("training", "-"), ("fresh", "--")):
            steps, mean, error = _turn_curve(turns, inputs, t)
            colour = level_colour(i, len(chosen))
            band(axes, steps, mean, error, color=colour, linestyle=style,
                 label=f"{'training' if inputs == 'training' else 'held out'}, T$_U$ = {t}")  # fmt: skip
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.set_ylabel("U-turn overlap, over BP$_0$'s")
    axes.legend(loc="best", fontsize=6.5)


def _draw_random(axes: Axes, turns: Table) -> None:
    ends = {}
    known = turns.values("turn")
    for i, t in enumerate(known):
        steps, mean, error = _turn_curve(turns, "random", t)
        colour = level_colour(i, len(known))
        band(axes, steps, mean, error, color=colour)
        ends[f"T$_U$ = {t}"] = (float(mean[-1]), colour)
    name_ends(axes, ends)
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.set_ylabel("the same from random starts")


def _conclude(tables: Tables) -> list[str]:
    main, pairs, turns = tables["main"], tables["pairs"], tables["turns"]
    steps = sorted(set(main.column("step")) - {0})

    def said(step: int, measure: str) -> str:
        found = over_models(np.array(main.column("value", step=step, measure=measure)))
        return f"{found.mean:.3f} ± {found.error:.3f}"

    lines = [
        f"step {step}: neighbour divergence {said(step, 'kl_own')} nats (other block "
        f"{said(step, 'kl_other')}), shift {said(step, 'shift_own')} leaves ({said(step, 'shift_other')}), "
        f"copies of training sequences {said(step, 'copies')} (held-out {said(step, 'copies_held_out')}), "
        f"possible sequences {said(step, 'on_law')}"
        for step in (steps[0], steps[-1])
    ]
    lines.append(
        f"exact chain, the same measures: {said(0, 'kl_own')} nats, shift {said(0, 'shift_own')}, pull "
        f"{said(0, 'pull')}"
    )
    if pairs.rows:
        for step in (steps[0], steps[-1]):
            near, far = (over_models(_matrix(pairs, step, m)) for m in ("distance", "unpaired"))
            lines.append(
                f"step {step}: samples of two models from the same noise differ in {near.mean:.2f} ± {near.error:.2f} "
                f"leaves, from other noise in {far.mean:.2f}"
            )
    last = turns.values("turn")[-1]
    for inputs in ("training", "fresh", "random"):
        _, mean, error = _turn_curve(turns, inputs, last)
        lines.append(
            f"U-turn at {last} from {inputs} starts, overlap over BP_0's: {mean[0]:.3f} ± {error[0]:.3f} at step "
            f"{steps[0]}, {mean[-1]:.3f} ± {error[-1]:.3f} at step {steps[-1]}"
        )
    return lines


STUDY = Study(
    name="biased-samples",
    summary="what biased denoisers draw, and where their U-turns end",
    about="""\
Draws from the denoisers of biased-generalization along their training, all from the same noise:
nearest-neighbour distances to the own training block and to another, against held-out sequences (a
divergence corrected for sample size, and the signed shift); distance between samples of two models;
pull of samples towards the own block; U-turns from training, held-out and random starts over those of
exact inference. Expected (arXiv 2603.03469): samples come too near to the own block and models part
while the test loss still falls. Shares its runs with biased-generalization.""",
    runs=bias_runs,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
