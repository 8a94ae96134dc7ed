"""Are the exact messages there to be read? Linear read-outs of belief propagation from states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.analysis.asking import check_fits
from hfilter.analysis.blocks import MessageKind, exact_messages
from hfilter.analysis.checks import fetched
from hfilter.analysis.fitting import fit_ridge
from hfilter.analysis.questions import at_leaves
from hfilter.analysis.states import Layer, count_layers, listed, states_of
from hfilter.checks import check_float, check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.learn.masks import HELD_OUT_START, draw_masks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

    from hfilter.exact import TreeModel

__all__ = ["MessageProfile", "MessageReadout", "message_profile", "message_readout"]


@dataclass(frozen=True, eq=False)  # == of arrays is no truth value: equal is identical
class MessageReadout:
    """How much of the exact numbers a linear map of the states explains, on rows not fitted to.

    Attributes
    ----------
    n_train, n_test : int
        Sequences, without those whose targets are undefined.
    r2 : float
        1 - Σ (target - read)² / Σ (target - training mean)² over test tokens and symbols; NaN where
        the targets do not vary. Below 0: worse than the mean.
    r2_by_symbol : (q,) float64 array
    shuffled : float
        The same with the targets of all tokens in random order: chance, about 0.
    position : float
        The same for the training mean of each position in place of a read-out: what needs no state.
    """

    n_train: int
    n_test: int
    r2: float
    r2_by_symbol: NDArray[np.float64]
    shuffled: float
    position: float

    def as_dict(self) -> dict[str, Any]:
        """Nested lists and numbers, ready for JSON."""
        return dict(vars(self)) | {"r2_by_symbol": self.r2_by_symbol.tolist()}


def message_readout(
    states: ArrayLike,
    targets: ArrayLike,
    n_train: int | None = None,
    *,
    ridge: float = 1e-3,
    seed: int = 0,
) -> MessageReadout:
    """Ridge regression from states to exact numbers, with controls.

    Parameters
    ----------
    states : (n, L, d) array or tensor
        Standardised with the training rows' means and deviations.
    targets : (n, L, q) array, or (n, nodes, q) for the nodes of a level
        For instance `exact_messages`; at every leaf those of its own node. Rows with a NaN are left
        out. One map serves all positions.
    n_train : int, optional
        Rows to fit to; three quarters by default. The others are the test.
    ridge : float
        Weight of the squared coefficients beside the sum over training tokens.
    seed : int
        Of the shuffle.

    Returns
    -------
    MessageReadout

    Raises
    ------
    hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
        For arrays that do not match, states that are not finite, or a split without a row.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> targets = rng.normal(size=(400, 2, 3))
    >>> states = np.repeat(targets, 4, axis=1) @ rng.normal(size=(3, 5))
    >>> found = message_readout(states, targets)
    >>> round(found.r2, 6), abs(found.shuffled) < 0.05
    (1.0, True)
    """
    x, y = _checked(states, targets)
    return _readouts(x, [y], n_train, ridge, seed)[0]


def _readouts(
    x: NDArray[Any],
    targets: list[NDArray[np.float64]],
    n_train: int | None,
    ridge: float,
    seed: int,
) -> list[MessageReadout]:
    """Read-outs of several targets (n, L, q) from the same states, all controls in one solution."""
    check_float("ridge", ridge, 0.0)
    check_seed("seed", seed)
    known = ~np.any([np.isnan(y).any(axis=(1, 2)) for y in targets], axis=0)
    x, n = x[known], int(known.sum())
    if n < 3:
        raise ArgumentError(f"targets must be defined in at least 3 rows, got {n}")
    count = 3 * n // 4 if n_train is None else check_int("n_train", n_train, 2, n - 1)
    train, test = x[:count].reshape(-1, x.shape[2]), x[count:].reshape(-1, x.shape[2])
    mean, spread = train.mean(axis=0), train.std(axis=0)
    spread[spread == 0] = 1.0
    train, test = (train - mean) / spread, (test - mean) / spread
    order = np.random.default_rng([seed, 2]).permutation(n * x.shape[1])
    columns = []
    for target in targets:
        y = target[known].reshape(n * x.shape[1], -1)
        y = y / (np.abs(y).max(initial=0.0) or 1.0)  # messages of large blocks are small numbers
        columns += [y, y[order]]
    m = len(train)
    read = fit_ridge(train, np.concatenate([y[:m] for y in columns], axis=1), test, ridge)
    parts = np.split(read, np.cumsum([y.shape[1] for y in columns])[:-1], axis=1)
    found = []
    for i in range(0, len(columns), 2):
        (y, mixed), (guess, random) = columns[i : i + 2], parts[i : i + 2]
        goal, truth, q = y[:m], y[m:], y.shape[1]
        by_position = np.tile(goal.reshape(count, -1, q).mean(axis=0), (n - count, 1))
        by_symbol = [_r2(truth[:, [b]], guess[:, [b]], goal[:, [b]]) for b in range(q)]
        found.append(
            MessageReadout(
                n_train=count,
                n_test=n - count,
                r2=_r2(truth, guess, goal),
                r2_by_symbol=np.array(by_symbol, dtype=np.float64),
                shuffled=_r2(mixed[m:], random, mixed[:m]),
                position=_r2(truth, by_position, goal),
            )
        )
    return found


@dataclass(frozen=True, eq=False)
class MessageProfile:
    """R² of exact messages of every height in the states of every layer.

    Attributes
    ----------
    kind : str
        Of the messages, see `hfilter.analysis.blocks.exact_messages`.
    layers : tuple
        Of the rows.
    heights : tuple of int
        Of the columns.
    r2, shuffled, position : (layers, heights) float64 arrays
        As in `MessageReadout`.
    n_train, n_test : int
    """

    kind: str
    layers: tuple[Layer, ...]
    heights: tuple[int, ...]
    r2: NDArray[np.float64]
    shuffled: NDArray[np.float64]
    position: NDArray[np.float64]
    n_train: int
    n_test: int

    def as_dict(self) -> dict[str, Any]:
        """Nested lists and numbers, ready for JSON."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    def __str__(self) -> str:
        lines = [
            f"R² of {self.kind} messages of height (columns) in layer (rows); last rows: shuffled "
            "targets (largest), position alone",
            "layer " + "".join(f"{h:8d}" for h in self.heights),
        ]
        rows = [*zip(self.layers, self.r2, strict=True)]
        rows += [("shuf.", self.shuffled.max(axis=0)), ("pos.", self.position[0])]
        lines += [f"{name!s:6}" + "".join(f"{x:8.4f}" for x in row) for name, row in rows]
        return "\n".join(lines)


def message_profile(
    encoder: Any,
    model: TreeModel,
    n: int = 2**12,
    *,
    layers: Iterable[Layer] | None = None,
    heights: Iterable[int] | None = None,
    kind: MessageKind = "upward",
    seed: int = 0,
    start: int = HELD_OUT_START,
    mask_rate: float | None = None,
    ridge: float = 1e-3,
) -> MessageProfile:
    """R² of the exact messages of every height, read linearly off the states of every layer.

    Parameters
    ----------
    encoder
        An encoder with ``trace``, or a function from (tokens, layer) to states (n, L, d).
    model : TreeModel
        Draws the sequences and knows the messages.
    n, seed, start
        Rows ``start … start + n - 1`` of the stream of ``seed``; three quarters are fitted to.
    layers
        0 … n_layers by default, or names of activations; needed where `encoder` is a function.
    heights
        By default all whose level exists at the model's filter level.
    kind
        See `hfilter.analysis.blocks.exact_messages`.
    mask_rate
        Hides leaves; ``None`` hides none.
    ridge
        As in `message_readout`.

    Returns
    -------
    MessageProfile

    Raises
    ------
    hfilter.errors.HFilterError
        As `message_readout` and `exact_messages`.

    Notes
    -----
    Unnormalised messages of large blocks span many orders of magnitude: their R² is that of the
    likeliest rows, and far below 0 where such a row is in the test alone.
    """
    check_int("n", n, 4)
    if layers is None:
        if not hasattr(encoder, "trace"):
            raise ArgumentError("layers are needed where encoder is a function")
        layers = range(count_layers(encoder) + 1)
    check_fits(encoder, model, mask_rate)
    rows = tuple(listed("layers", layers))
    columns = tuple(
        sorted(model.depth - d for d in model.existing_levels)
        if heights is None
        else listed("heights", heights)
    )
    leaves = np.asarray(model.sample(n, seed=seed, start=start).leaves)
    if mask_rate is not None:
        hidden = draw_masks(n, model.n_leaves, seed, start, mask_rate)
        leaves = np.where(hidden, leaves.dtype.type(model.mask_token), leaves)
    messages = [exact_messages(model, leaves, h, kind=kind) for h in columns]
    found = []
    for states in states_of(encoder, leaves, rows):
        pairs = [_checked(states, x) for x in messages]
        found.append(_readouts(pairs[0][0], [y for _, y in pairs], None, ridge, seed))

    def table(name: str) -> NDArray[np.float64]:
        return np.array([[getattr(x, name) for x in row] for row in found], dtype=np.float64)

    tables = (table("r2"), table("shuffled"), table("position"))
    counts = (found[0][0].n_train, found[0][0].n_test)
    return MessageProfile(kind, rows, columns, *tables, *counts)


def _r2(truth: NDArray[Any], read: NDArray[Any], fitted: NDArray[Any]) -> float:
    spread = float(((truth - fitted.mean(axis=0)) ** 2).sum())
    if spread == 0.0:
        return float("nan")
    return 1.0 - float(((truth - read) ** 2).sum()) / spread


def _checked(states: Any, targets: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    x, y = fetched("states", states), fetched("targets", targets)
    for name, array in (("states", x), ("targets", y)):
        if array.dtype.kind != "f":
            raise DTypeError(f"{name} must be floating-point, got {array.dtype}")
        if array.ndim != 3:
            raise ShapeError(f"{name} must have three axes, got shape {array.shape}")
    nodes = y.shape[1]
    if x.shape[0] != y.shape[0] or not nodes or x.shape[1] % nodes:
        raise ShapeError(
            "states (n, L, d) and targets (n, L or nodes, q) must match, L a multiple of the nodes, "
            f"got {x.shape} and {y.shape}"
        )
    if not (x.shape[2] and y.shape[2]):
        raise ShapeError(
            f"states and targets must have at least one column, got {x.shape} and {y.shape}"
        )
    if not np.isfinite(x).all():
        raise ArgumentError("states must be finite numbers, got NaN or infinity among them")
    if np.isinf(y).any():
        raise ArgumentError("targets must be finite numbers or NaN, got infinity among them")
    return x.astype(np.float64), at_leaves(y.astype(np.float64), x.shape[1])
