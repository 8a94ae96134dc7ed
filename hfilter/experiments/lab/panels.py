"""What the figures of several studies share: lines with bands, names at their ends, letters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hfilter.experiments.figures import MARKERS, level_colour, spread
from hfilter.experiments.lab.study import Table

__all__ = ["band", "by_step", "heat", "letter", "log_values", "name_ends", "rung_style"]


def letter(axes: Iterable[Axes]) -> None:
    """Mark panels a, b, c …"""
    for name, one in zip("abcdefghijkl", axes, strict=False):
        one.text(-0.02, 1.04, name, transform=one.transAxes, ha="right", va="bottom", weight="bold")


def by_step(
    table: Table, x: str = "step", **where: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values against steps, pooled over seeds: (steps, mean, standard error over seeds).

    The error is NaN where there is one seed.
    """
    steps = np.array(sorted(set(table.column(x, **where))))
    if not len(steps):
        return steps, np.array([]), np.array([])
    rows = [np.array(table.column("value", **{**where, x: step}), dtype=float) for step in steps]
    mean = np.array([row.mean() for row in rows])
    error = np.array(
        [row.std(ddof=1) / np.sqrt(len(row)) if len(row) > 1 else np.nan for row in rows]
    )
    return steps, mean, error


def band(axes: Axes, x: np.ndarray, mean: np.ndarray, error: np.ndarray, **style: Any) -> None:
    """A line, and a band of one standard error around it where there is one."""
    axes.plot(x, mean, **style)
    if np.isfinite(error).any():
        low = mean - error
        if axes.get_yscale() == "log":  # a band that reaches zero has no lower edge there
            low = np.maximum(low, 0.2 * mean)
        axes.fill_between(x, low, mean + error, color=style["color"], alpha=0.2, linewidth=0)


def rung_style(index: int, count: int) -> dict[str, Any]:
    """Colour and marker of one rung of a ladder, the same in every figure."""
    return {
        "color": level_colour(index, count),
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3,
        "linewidth": 1.3,
    }


def log_values(axes: Axes, label: str) -> None:
    """A logarithmic axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(label)


def name_ends(axes: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write names behind the ends of lines, moved apart: name to (value, colour)."""
    known = {name: end for name, end in ends.items() if np.isfinite(end[0])}
    if not known:
        return
    logarithmic = axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    heights = np.array([value for value, _ in known.values()], dtype=float)
    if logarithmic:
        heights, low, high = np.log(np.maximum(heights, low)), np.log(low), np.log(high)
    placed = spread(heights.tolist(), 0.075 * (high - low))
    for (name, (_, colour)), height in zip(known.items(), placed, strict=True):
        y = np.exp(height) if logarithmic else height
        axes.text(
            1.02,
            y,
            name,
            transform=axes.get_yaxis_transform(),
            va="center",
            color=colour,
            fontsize=8,
        )


def heat(
    axes: Axes,
    table: np.ndarray,
    title: str,
    low: float,
    high: float,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    colours: str = "cividis",
) -> Any:
    """A matrix with its numbers written in; infinite and missing cells are said to be so."""
    shown = np.where(np.isfinite(table), table, np.nan)
    image = axes.imshow(shown, cmap=colours, vmin=low, vmax=high, aspect="equal")
    for row, column in np.ndindex(table.shape):
        value = table[row, column]
        text = f"{value:.3f}".replace("0.", ".", 1) if np.isfinite(value) else str(value)
        dark = np.isfinite(value) and (value - low) / (high - low) < 0.5
        axes.text(
            column, row, text, ha="center", va="center", fontsize=7.5,
            color="white" if dark else "black",
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    return image
