"""The demo in words: tables for the terminal, and one self-contained page for a browser."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from itertools import pairwise
from string import Template
from typing import Any

import numpy as np

from hfilter.experiments.progress import human
from hfilter.experiments.record import Climb, DemoRecord

__all__ = ["html_page", "text_summary", "text_table"]


def text_table(title: str, table: np.ndarray, errors: np.ndarray, colour: bool = False) -> str:
    """Return a square table of accuracies for the terminal; the diagonal is the matched level.

    Parameters
    ----------
    title : str
        Line above the table.
    table, errors : ndarray, shape (K, K)
        Accuracies ``[data level, BP level]`` and their standard errors.
    colour : bool
        Print the diagonal bold (an ANSI terminal).

    Examples
    --------
    >>> print(text_table("root", np.array([[1.0, 0.5], [0.6, 0.7]]), np.full((2, 2), 0.001)))
    root
    ┌───────┬────────────────┬────────────────┐
    │ data  │      BP_0      │      BP_1      │
    ├───────┼────────────────┼────────────────┤
    │ k = 0 │ 1.0000 ± .0010 │  .5000 ± .0010 │
    │ k = 1 │  .6000 ± .0010 │  .7000 ± .0010 │
    └───────┴────────────────┴────────────────┘
    """
    n = len(table)
    rule = ["─" * 7, *["─" * 16] * n]
    head = ["data ", *(f"BP_{k}".center(14) for k in range(n))]
    lines = [title, f"┌{'┬'.join(rule)}┐", f"│ {' │ '.join(head)} │", f"├{'┼'.join(rule)}┤"]
    for row in range(n):
        cells = [f"k = {row}"]
        for column in range(n):
            cell = f"{_short(table[row, column]):>6} ± {_short(errors[row, column]):<5}"
            bold = colour and row == column
            cells.append(f"\033[1m{cell}\033[0m" if bold else cell)
        lines.append(f"│ {' │ '.join(cells)} │")
    lines.append(f"└{'┴'.join(rule)}┘")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0") if math.isfinite(value) else str(value)


def text_summary(record: DemoRecord, colour: bool = False) -> str:
    """Return what the demo prints when it is done."""
    tables, climb, draw = record.tables, record.climb, record.draw
    levels = range(len(climb.floors))
    rows = f"{tables.rows:,} sequences per data level"
    lines = [
        "",
        text_table(
            f"Root, from all leaves: exact accuracy ({rows})", tables.root, tables.root_se, colour
        ),
        "",
        text_table(
            f"One hidden leaf, from the others: exact accuracy ({rows})",
            tables.mlm,
            tables.mlm_se,
            colour,
        ),
        "",
        f"Encoder, {climb.parameters:,} parameters, after {int(climb.steps[-1]):,} steps of "
        f"{climb.batch_size} fresh sequences (nats per hidden leaf, {climb.held_out:,} held out)",
        f"  cross-entropy {climb.cross_entropy[-1]:.4f}   exact floor {climb.floors[0]:.4f}   "
        f"above it {climb.cross_entropy[-1] - climb.floors[0]:.4f}",
        f"  accuracy      {climb.accuracy[-1]:.4f}   exact       {climb.exact_accuracy[0]:.4f}",
        "  KL(BP_k || encoder)  "
        + "   ".join(f"k={k}: {climb.divergence[-1, k]:.4f}" for k in levels),
        "  nearest at step      "
        + "   ".join(
            f"k={k}: {climb.closest[k]}" + " (the end)" * bool(climb.closest[k] == climb.steps[-1])
            for k in levels
        ),
        "",
        f"{draw.sequences:,} sequences drawn at {human(draw.rate)}/s "
        f"({human(draw.rate * draw.leaves)} leaves/s); everything in {record.seconds:.0f} s",
    ]
    return "\n".join(lines)


def _image(svg: str, text: str) -> str:
    # An image of its own and not inline SVG: ids of two figures cannot meet.
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<img alt="{escape(text)}" src="data:image/svg+xml;base64,{data}">'


def _figure(svg: str, caption: str, text: str) -> str:
    return f"<figure>{_image(svg, text)}<figcaption>{caption}</figcaption></figure>"


def _accuracy_table(caption: str, table: np.ndarray, errors: np.ndarray) -> str:
    n = len(table)
    head = "".join(f"<th>BP<sub>{k}</sub></th>" for k in range(n))
    body = ""
    for row in range(n):
        cells = "".join(
            f"<td{' class=own' if row == column else ''}>{table[row, column]:.4f}"
            f"<small> ± {errors[row, column]:.4f}</small></td>"
            for column in range(n)
        )
        body += f"<tr><th>k = {row}</th>{cells}</tr>"
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr><th>data</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _climb_table(climb: Climb) -> str:
    body = "".join(
        f"<tr><th>BP<sub>{k}</sub></th><td>{climb.floors[k]:.4f}</td>"
        f"<td>{climb.exact_accuracy[k]:.4f}</td><td>{climb.divergence[-1, k]:.4f}</td>"
        f"<td>{climb.divergence[:, k].min():.4f}</td><td>{int(climb.closest[k]):,}</td></tr>"
        for k in range(len(climb.floors))
    )
    last = (
        f"<tr><th>encoder</th><td>{climb.cross_entropy[-1]:.4f}</td>"
        f"<td>{climb.accuracy[-1]:.4f}</td><td></td><td></td><td></td></tr>"
    )
    return (
        "<table><caption>On the held-out sequences, one hidden leaf each (nats)</caption><thead>"
        "<tr><th></th><th>cross-entropy</th><th>accuracy</th><th>KL to the encoder at the end</th>"
        f"<th>smallest KL</th><th>at step</th></tr></thead><tbody>{body}{last}</tbody></table>"
    )


def _rules_table(rules: Sequence[tuple[int, tuple[int, ...], float]]) -> str:
    parents: dict[int, list[str]] = {}
    for parent, children, probability in rules:
        text = f"<td><b>{' '.join(map(str, children))}</b><small> {probability:.3f}</small></td>"
        parents.setdefault(parent, []).append(text)
    body = "".join(f"<tr><th>{a} →</th>{''.join(cells)}</tr>" for a, cells in parents.items())
    return (
        "<table><caption>The grammar: what a symbol may turn into, and how often</caption>"
        f"<tbody>{body}</tbody></table>"
    )


def _facts(values: Mapping[str, Any], prefix: str = "") -> str:
    rows = ""
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _facts(value, f"{prefix}{key}.")
        else:
            rows += f"<tr><th>{escape(prefix + str(key))}</th><td>{escape(str(value))}</td></tr>"
    return rows


def _order(climb: Climb) -> str:
    """Say in words which exact laws the encoder has passed, and whether from short range to long.

    A law that is nearest at the last step has not been passed: the encoder was still approaching it.
    """
    closest, last = [int(step) for step in climb.closest], int(climb.steps[-1])
    levels = list(reversed(range(len(closest))))
    passed = [k for k in levels if closest[k] < last]
    ahead = [f"BP<sub>{k}</sub>" for k in levels if closest[k] == last]
    text = ""
    if passed:
        where = ", ".join(f"BP<sub>{k}</sub> at step {closest[k]:,}" for k in passed)
        text = f"The encoder was nearest to {where}, and then left it behind. "
    if len(passed) > 1 and all(b > a for a, b in pairwise(closest[k] for k in passed)):
        text += "This is the order from short range to long, as the paper found. "
    elif len(passed) > 1:
        text += "In this run this is not strictly the order from short range to long. "
    if ahead:
        text += f"It was still approaching {', '.join(ahead)} when the run ended."
    return text.strip()


def html_page(record: DemoRecord, figures: Mapping[str, str], files: Sequence[str]) -> str:
    """Return the page.

    Parameters
    ----------
    record : DemoRecord
        The numbers.
    figures : mapping of str to str
        SVG text of ``tree``, ``filter_levels``, ``accuracy``, ``climb``, ``staircase`` and
        ``attention``.
    files : sequence of str
        Names of the other files in the folder.

    Returns
    -------
    str
        HTML which refers to nothing outside itself.
    """
    draw, tables, climb = record.draw, record.tables, record.climb
    depth = len(record.tree) - 1
    vocabulary = draw.frequencies.shape[1]
    gap = climb.cross_entropy[-1] - climb.floors[0]
    values = {
        "sequences": f"{draw.sequences:,}",
        "draw_seconds": f"{draw.seconds:.2f}",
        "rate": human(draw.rate),
        "leaf_rate": human(draw.rate * draw.leaves),
        "deviation": f"{draw.largest_deviation:.1f}",
        "cells": str(draw.frequencies.size),
        "leaves": str(draw.leaves),
        "depth": str(depth),
        "vocabulary": str(vocabulary),
        "rows": f"{tables.rows:,}",
        "table_seconds": f"{tables.seconds:.0f}",
        "best_root": f"{tables.root[0, 0]:.4f}",
        "best_mlm": f"{tables.mlm[0, 0]:.4f}",
        "far_root": f"{tables.root[0, -1]:.4f}",
        "far_mlm": f"{tables.mlm[0, -1]:.4f}",
        "chance": f"{1 / vocabulary:.2f}",
        "parameters": f"{climb.parameters:,}",
        "steps": f"{int(climb.steps[-1]):,}",
        "batch": str(climb.batch_size),
        "seen": f"{int(climb.steps[-1]) * climb.batch_size:,}",
        "held_out": f"{climb.held_out:,}",
        "train_seconds": f"{climb.seconds:.0f}",
        "cross_entropy": f"{climb.cross_entropy[-1]:.4f}",
        "floor": f"{climb.floors[0]:.4f}",
        "gap": f"{gap:.4f}",
        "accuracy": f"{climb.accuracy[-1]:.4f}",
        "exact_accuracy": f"{climb.exact_accuracy[0]:.4f}",
        "order": _order(climb),
        "seconds": f"{record.seconds:.0f}",
        "rules_table": _rules_table(record.rules),
        "root_table": _accuracy_table("Root, from all leaves", tables.root, tables.root_se),
        "mlm_table": _accuracy_table("One hidden leaf, from all others", tables.mlm, tables.mlm_se),
        "climb_table": _climb_table(climb),
        "facts": _facts(record.settings) + _facts(record.provenance) + _facts(record.model),
        "files": "".join(f"<li><code>{escape(name)}</code></li>" for name in files),
        "tree": _figure(
            figures["tree"],
            "One tree, as drawn by the sampler. A reader of the data sees the bottom row only.",
            "a tree of coloured, numbered nodes",
        ),
        "filter_levels": _figure(
            figures["filter_levels"],
            "What each filter level leaves. Solid: rules of the grammar. Dashed: the node still "
            "follows the root, but independently of its neighbours.",
            "one small tree per filter level",
        ),
        "accuracy_figure": _figure(
            figures["accuracy"],
            "Share of right answers. Rows: which data. Columns: which exact predictor. Bold: the "
            "predictor that knows the law of the data; no other can do better on that row.",
            "two matrices of accuracies",
        ),
        "climb_figure": _figure(
            figures["climb"],
            "The encoder on sequences it never saw (black) and the exact predictors on the same "
            "sequences (dashed). Lower is better; below the floor is impossible on average.",
            "cross-entropy against training steps",
        ),
        "staircase_figure": _figure(
            figures["staircase"],
            "Distance between the encoder's answers and those of each exact predictor. "
            "Rings: nearest point.",
            "divergences against training steps",
        ),
        "attention_figure": _figure(
            figures["attention"],
            "Where each leaf (row) looks (column), averaged over inputs. Frames: the leaves which "
            "share an ancestor 1, 2, … levels up.",
            "attention matrices, one per layer",
        ),
    }
    page = resources.files("hfilter.experiments").joinpath("page.html").read_text(encoding="utf-8")
    return Template(page).substitute(values)
