"""Explanatory pictures: a drawn tree with its symbols, and what each filter level leaves of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    from hfilter.experiments import missing_package

    raise missing_package(error) from error

from hfilter.experiments.figures import draw_staircase, level_colour, styled

__all__ = ["example_tree", "filter_levels", "overview"]

# Paul Tol's light scheme: fills on which black letters can be read; symbols are numbered as well.
_FILLS = ("#77AADD", "#EE8866", "#EEDD88", "#99DDFF", "#FFAABB", "#44BB99", "#BBCC33", "#DDDDDD")


def _x(level: int, index: int, arity: int, depth: int) -> float:
    width: int = arity ** (depth - level)
    return index * width + (width - 1) / 2


def _node(axes: Axes, x: float, y: float, symbol: int, radius: float) -> None:
    fill = _FILLS[symbol % len(_FILLS)]
    axes.add_patch(
        mpl.patches.Circle(
            (x, y), radius, facecolor=fill, edgecolor="#333333", linewidth=0.8, zorder=3
        )
    )
    axes.text(x, y, str(symbol), ha="center", va="center_baseline", fontsize=8, zorder=4)


def _tree_axes(axes: Axes, levels: Sequence[np.ndarray], arity: int) -> None:
    depth = len(levels) - 1
    leaves = len(levels[-1])
    step = 1.9
    for level in range(depth):
        for index in range(len(levels[level])):
            for branch in range(arity):
                child = arity * index + branch
                axes.plot(
                    [_x(level, index, arity, depth), _x(level + 1, child, arity, depth)],
                    [-step * level, -step * (level + 1)],
                    color="#888888",
                    linewidth=1.1,
                    zorder=1,
                )
    for level, symbols in enumerate(levels):
        band = level_colour(level, depth + 1)
        axes.axhspan(
            -step * level - 0.55,
            -step * level + 0.55,
            color=band,
            alpha=0.10,
            zorder=0,
            linewidth=0,
        )
        for index, symbol in enumerate(symbols):
            _node(axes, _x(level, index, arity, depth), -step * level, int(symbol), 0.40)
        name = "root" if level == 0 else "leaves" if level == depth else "hidden"
        axes.text(
            leaves - 0.2,
            -step * level,
            f"level {level}\n{name}",
            va="center",
            fontsize=7.5,
            color="#333333",
            linespacing=1.15,
        )
    axes.set_xlim(-0.8, leaves + 1.9)
    axes.set_ylim(-step * depth - 0.7, 0.7)
    axes.set_aspect("equal")
    axes.axis("off")


@styled
def example_tree(levels: Sequence[np.ndarray], arity: int) -> Figure:
    """Draw one sampled tree.

    Parameters
    ----------
    levels : sequence of ndarray, level d of shape (arity ** d,)
        The symbols, from the root to the leaves.
    arity : int
        Children of a node.
    """
    figure = Figure(figsize=(7.2, 3.25))
    _tree_axes(figure.subplots(), levels, arity)
    return figure


def _skeleton(axes: Axes, depth: int, k: int, arity: int) -> None:
    colour = level_colour(k, depth + 1)
    heights = -np.arange(depth + 1) * (arity**depth - 1) * 0.85 / depth
    existing = [0, *range(max(k, 1), depth + 1)]
    for upper, lower in pairwise(existing):
        star = k > 0 and upper == 0
        ratio = arity ** (lower - upper)
        for index in range(arity**lower):
            axes.plot(
                [_x(upper, index // ratio, arity, depth), _x(lower, index, arity, depth)],
                [heights[upper], heights[lower]],
                color=colour if star else "#777777",
                linewidth=0.9 if star else 1.0,
                linestyle=(0, (3, 1.5)) if star else "-",
                zorder=1,
            )
    for level in existing:
        x = [_x(level, i, arity, depth) for i in range(arity**level)]
        axes.scatter(
            x,
            [heights[level]] * len(x),
            s=16 if level else 26,
            color="#333333",
            zorder=3,
            linewidths=0,
        )
    axes.set_title(f"$k={k}$", color=colour, fontsize=10)
    axes.set_xlim(-0.7, arity**depth - 0.3)
    axes.set_ylim(heights[-1] - 0.8, 1.0)
    axes.set_aspect("equal")
    axes.axis("off")


@styled
def filter_levels(depth: int, arity: int) -> Figure:
    """Draw what is left of the tree at every filter level; dashed: independent given the root."""
    figure = Figure(figsize=(min(1.75 * (depth + 1), 9.0), 1.95))
    for k, axes in enumerate(figure.subplots(1, depth + 1, squeeze=False)[0]):
        _skeleton(axes, depth, k, arity)
    return figure


@styled
def overview(
    levels: Sequence[np.ndarray], arity: int, steps: np.ndarray, divergence: np.ndarray
) -> Figure:
    """Draw the picture of the README: a sampled tree, the filter levels, the staircase."""
    depth = len(levels) - 1
    figure = Figure(figsize=(9.6, 4.0))
    left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1.0), wspace=0.02, squeeze=False)[0]
    top, bottom = left.subfigures(2, 1, height_ratios=(1.75, 1.0), squeeze=False)[:, 0]
    _tree_axes(top.subplots(), levels, arity)
    top.suptitle("a grammar grows a tree; a model sees its leaves", fontsize=10)
    for k, axes in enumerate(bottom.subplots(1, depth + 1, squeeze=False)[0]):
        _skeleton(axes, depth, k, arity)
    axes = right.subplots()
    draw_staircase(axes, steps, divergence)
    axes.set_title("an encoder learns correlations by range", fontsize=10)
    return figure
