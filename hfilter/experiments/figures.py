"""Figures of paper quality: one style, one colour per filter level, everything in nats.

Every function takes numbers and returns a :class:`matplotlib.figure.Figure`; :func:`save` writes it
as PNG and PDF and returns it as SVG. pyplot is never used: no global state, no display.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
except ImportError as error:
    from hfilter.experiments import missing_package

    raise missing_package(error) from error

from hfilter.experiments.artefacts import write_bytes

__all__ = [
    "MARKERS",
    "MODEL_COLOUR",
    "accuracy_matrices",
    "attention_maps",
    "climb",
    "draw_staircase",
    "level_colour",
    "log_steps",
    "save",
    "spread",
    "staircase",
    "styled",
]

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "hfilter",  # equal numbers, equal bytes
}

_RC: Any = {**mpl.rcParamsDefault, **_STYLE}

# Okabe and Ito's colours, which colour-blind readers tell apart; markers say the same again.
_COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
MODEL_COLOUR = "#222222"

_P = ParamSpec("_P")


def level_colour(k: int, n_levels: int = 5) -> str:
    """Return the colour that filter level ``k`` has in every figure."""
    if n_levels <= len(_COLOURS):
        return _COLOURS[k]
    return mpl.colors.to_hex(mpl.colormaps["viridis"](0.92 * k / (n_levels - 1)))


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Draw inside one style, whatever the user's matplotlibrc says."""

    @wraps(draw)
    def inside(*args: _P.args, **options: _P.kwargs) -> Figure:
        with mpl.rc_context(_RC):
            return draw(*args, **options)

    return inside


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write ``name.png`` (200 dpi) and ``name.pdf`` atomically; return the figure as SVG text.

    No dates are written, so that equal numbers give equal files.
    """
    content: dict[str, bytes] = {}
    nothing = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    with mpl.rc_context(_RC):
        # The layout is found once, and not once for every format.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for kind, metadata in nothing.items():
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, dpi=200, metadata=metadata)
            content[kind] = stream.getvalue()
    write_bytes(folder / f"{name}.png", content["png"])
    write_bytes(folder / f"{name}.pdf", content["pdf"])
    return content["svg"].decode("utf-8")


def _matrix(axes: Axes, table: np.ndarray, errors: np.ndarray, title: str, chance: float) -> None:
    n = len(table)
    axes.imshow(table, cmap="cividis", vmin=chance, vmax=1.0, aspect="equal")
    for row in range(n):
        for column in range(n):
            value = table[row, column]
            # cividis is dark below its middle: white numbers there, black above.
            colour = "black" if (value - chance) / (1 - chance) > 0.5 else "white"
            bold = "bold" if row == column else "normal"
            axes.text(
                column,
                row - 0.08,
                f"{value:.3f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=9,
                fontweight=bold,
            )
            axes.text(
                column,
                row + 0.27,
                f"±{errors[row, column]:.4f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=5.5,
            )
    axes.set_xticks(range(n), [f"BP$_{k}$" for k in range(n)])
    axes.set_yticks(range(n), [f"$k={k}$" for k in range(n)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predictor: exact for filter level")
    axes.set_title(title)


@styled
def accuracy_matrices(
    root: np.ndarray, root_se: np.ndarray, mlm: np.ndarray, mlm_se: np.ndarray, chance: float
) -> Figure:
    """Draw the exact accuracies of every BP on data of every filter level.

    Parameters
    ----------
    root, root_se, mlm, mlm_se : ndarray, shape (K, K)
        Accuracies and standard errors, ``[data level, BP level]``.
    chance : float
        Accuracy of guessing, the dark end of the colours.
    """
    figure = Figure(figsize=(7.2, 3.7))
    left, right = figure.subplots(1, 2)
    _matrix(left, root, root_se, "Root, from all leaves", chance)
    _matrix(right, mlm, mlm_se, "One hidden leaf, from the others", chance)
    left.set_ylabel("data: filter level")
    return figure


def log_steps(axes: Axes, steps: np.ndarray) -> None:
    """Make the axis of training steps logarithmic, with room for step 0."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(0, steps[-1] * 1.05)
    decades = [10**i for i in range(int(np.log10(max(steps[-1], 1))) + 1)]
    axes.set_xticks([0, *decades], ["0", *(_power(d) for d in decades)])
    axes.minorticks_off()
    axes.set_xlabel("training steps")


def _power(decade: int) -> str:
    return str(decade) if decade < 100 else f"$10^{{{len(str(decade)) - 1}}}$"


def spread(heights: Sequence[float], gap: float) -> np.ndarray:
    """Move label heights apart until neighbours are at least ``gap`` from each other."""
    order = np.argsort(heights)
    placed = np.array(heights, dtype=float)[order]
    for _ in range(200):
        close = np.diff(placed) < gap - 1e-9
        if not close.any():
            break
        for i in np.flatnonzero(close):
            middle = (placed[i] + placed[i + 1]) / 2
            placed[i], placed[i + 1] = middle - gap / 2, middle + gap / 2
    result = np.empty_like(placed)
    result[order] = placed
    return result


@styled
def climb(
    steps: np.ndarray, cross_entropy: np.ndarray, floors: Sequence[float], uniform: float
) -> Figure:
    """Draw the held-out cross-entropy of the encoder above the exact cross-entropies of BP_k.

    Parameters
    ----------
    steps, cross_entropy : ndarray, shape (T,)
        Training steps and nats per hidden leaf on held-out data.
    floors : sequence of float
        Cross-entropy of BP_0 (the floor), BP_1, ... on the same data.
    uniform : float
        ``ln q``, the cross-entropy of guessing.
    """
    figure = Figure(figsize=(5.4, 3.5))
    axes = figure.subplots()
    log_steps(axes, steps)
    n = len(floors)
    top = max(uniform, float(np.max(cross_entropy))) * 1.03
    bottom = min(floors) - 0.06 * (top - min(floors))
    axes.set_ylim(bottom, top)
    heights = spread([*floors, uniform], 0.052 * (top - bottom))
    transform = axes.get_yaxis_transform()
    for k, floor in enumerate(floors):
        axes.axhline(floor, color=level_colour(k, n), linewidth=1.1, linestyle=(0, (4, 2)))
        text = f"BP$_{{{k}}}$ {floor:.3f}" + (" (floor)" if k == 0 else "")
        axes.text(
            1.015,
            heights[k],
            text,
            transform=transform,
            va="center",
            fontsize=8,
            color=level_colour(k, n),
        )
    axes.axhline(uniform, color="#999999", linewidth=0.8, linestyle=":")
    axes.text(
        1.015,
        heights[-1],
        f"guessing {uniform:.3f}",
        transform=transform,
        va="center",
        fontsize=8,
        color="#777777",
    )
    axes.plot(
        steps,
        cross_entropy,
        color=MODEL_COLOUR,
        marker="o",
        markersize=3.5,
        zorder=3,
        clip_on=False,
    )
    middle = len(steps) // 2
    axes.annotate(
        "encoder",
        (steps[middle], cross_entropy[middle]),
        (7, 5),
        textcoords="offset points",
        color=MODEL_COLOUR,
    )
    axes.set_ylabel("held-out cross-entropy (nats per hidden leaf)")
    return figure


def draw_staircase(axes: Axes, steps: np.ndarray, divergence: np.ndarray) -> None:
    """Draw the lines of :func:`staircase`; a ring marks where each is lowest."""
    log_steps(axes, steps)
    n = divergence.shape[1]
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for k in reversed(range(n)):
        colour, marker = level_colour(k, n), MARKERS[k % len(MARKERS)]
        # BP_0 last and dashed: at the start BP_1 lies under it.
        dashes = "-" if k else (0, (3, 2))
        axes.plot(
            steps,
            divergence[:, k],
            color=colour,
            marker=marker,
            markersize=3.5 if k else 3,
            linestyle=dashes,
            clip_on=False,
        )
        lowest = int(np.argmin(divergence[:, k]))
        axes.plot(
            steps[lowest],
            divergence[lowest, k],
            marker="o",
            markersize=9,
            mfc="none",
            mec=colour,
            clip_on=False,
        )
    # Names at the ends of the lines, moved apart in the logarithm in which they are drawn.
    ends = np.log(divergence[-1])
    low, high = np.log(axes.get_ylim())
    for k, height in enumerate(np.exp(spread(ends.tolist(), 0.06 * (high - low)))):
        axes.text(
            1.02,
            height,
            f"BP$_{{{k}}}$",
            transform=axes.get_yaxis_transform(),
            va="center",
            color=level_colour(k, n),
            fontsize=9,
        )
    axes.set_ylabel(r"KL(BP$_k$ $\|$ encoder)  (nats per hidden leaf)")


@styled
def staircase(steps: np.ndarray, divergence: np.ndarray) -> Figure:
    """Draw ``KL(BP_k || model)`` along training, one line for each filter level.

    Parameters
    ----------
    steps : ndarray, shape (T,)
        Training steps, 0 among them if the untrained encoder was measured.
    divergence : ndarray, shape (T, K)
        Nats per hidden leaf, averaged over held-out data of the full hierarchy.
    """
    figure = Figure(figsize=(5.4, 3.5))
    draw_staircase(figure.subplots(), steps, divergence)
    return figure


@styled
def attention_maps(maps: np.ndarray, arity: int) -> Figure:
    """Draw the mean attention of every layer, and the blocks of the tree over it.

    Parameters
    ----------
    maps : ndarray, shape (layers, L, L)
        Attention averaged over inputs and heads, ``[layer, from, to]``; rows sum to one.
    arity : int
        Children of a node: layer m is framed in blocks of ``arity ** (m + 1)`` leaves.
    """
    layers, leaves = maps.shape[:2]
    figure = Figure(figsize=(min(1.0 + 1.75 * layers, 9.0), 2.45))
    grid = figure.subplots(1, layers, squeeze=False)[0]
    highest = float(np.quantile(maps, 0.995))
    image = None
    for layer, axes in enumerate(grid):
        image = axes.imshow(
            maps[layer], cmap="magma", vmin=0.0, vmax=highest, interpolation="nearest"
        )
        block = min(arity ** (layer + 1), leaves)
        for first in range(0, leaves, block):
            axes.add_patch(
                mpl.patches.Rectangle(
                    (first - 0.5, first - 0.5),
                    block,
                    block,
                    fill=False,
                    edgecolor="#7FDBCA",
                    linewidth=0.8,
                )
            )
        axes.set_title(f"layer {layer + 1}")
        ticks = sorted({0, leaves // 2 - 1, leaves - 1})
        axes.set_xticks(ticks, [str(t + 1) for t in ticks])
        axes.set_yticks(ticks, [str(t + 1) for t in ticks] if layer == 0 else [""] * len(ticks))
        axes.set_xlabel("attended leaf")
        axes.tick_params(length=2)
        axes.spines[:].set_visible(False)
    grid[0].set_ylabel("attending leaf")
    if image is not None:
        figure.colorbar(image, ax=list(grid), shrink=0.85, pad=0.015, label="mean weight")
    return figure
