"""What every measure does first: check what came in, add the noise, ask denoisers in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_int
from hfilter.diffusion.denoisers import ExactDenoiser
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.noising import Channel, GaussianChannel
from hfilter.noising.discrete import DiscreteChannel

if TYPE_CHECKING:
    from hfilter.exact import TreeModel

__all__ = ["Asked", "exact_log_laws", "kl_per_sequence", "log_laws", "spread_times"]

Floats = NDArray[np.float64]

_BLOCK_VALUES = 2**20  # probabilities of one law that are held at once: 8 MB
_SUM_TOLERANCE = 1e-3  # a float16 softmax passes, logits do not
_NEGLIGIBLE = np.log(1e-30)  # what is smaller counts as zero: 1e-30 |ln p - ln m| is nothing


@runtime_checkable
class Asked(Protocol):
    """What the measures need of a denoiser; see `hfilter.diffusion.denoisers`."""

    @property
    def channel(self) -> Any:
        """The noise that it undoes."""

    @property
    def n_leaves(self) -> int:
        """L."""

    @property
    def vocab_size(self) -> int:
        """q."""

    def log_probabilities(self, x_t: Any, t: Any) -> Any:
        """ln P(x_0 = b | x_t), shape (n, L, q)."""


class Questions:
    """Noisy versions of some clean rows, the same for whoever is asked.

    The noise of row i is a pure function of (seed, start + i) and of the purpose "held_out": every
    denoiser and every checkpoint sees the same, so that what differs between them is not noise.
    """

    def __init__(
        self,
        channel: Any,
        leaves: Any,
        t: Any,
        sizes: tuple[int, int],
        *,
        seed: int,
        start: int,
    ) -> None:
        n_leaves, q = sizes
        check_channel("channel", channel)
        self.channel, self.vocab_size = channel, q
        self.leaves = check_leaves("leaves", leaves, n_leaves, q)
        if not len(self.leaves):
            raise ArgumentError("leaves holds no row; give at least one sequence to measure on")
        self.t = check_times(t, channel.n_steps, len(self.leaves))
        self.seed = check_int("seed", seed, 0, 2**64 - 1)
        self.start = check_int("start", start, 0, 2**64 - len(self.leaves))

    def __iter__(self) -> Iterator[tuple[slice, NDArray[Any], Any, Any]]:
        """Blocks: which rows, their leaves, x_t, and their times."""
        n, n_leaves = self.leaves.shape
        step = max(1, _BLOCK_VALUES // (n_leaves * self.vocab_size))
        for begin in range(0, n, step):
            part = slice(begin, min(begin + step, n))
            t = self.t if isinstance(self.t, int) else self.t[part]
            leaves = self.leaves[part]
            yield (
                part,
                leaves,
                self.channel.corrupt(
                    leaves, t, self.vocab_size, seed=self.seed, start=self.start + begin, purpose="held_out"
                ),
                t,
            )  # fmt: skip


def check_denoisers(**denoisers: Any) -> tuple[int, int]:
    """(L, q) of denoisers that fit together, or an error that names the one that does not."""
    first_name, first = next(iter(denoisers.items()))
    for name, one in denoisers.items():
        if not isinstance(one, Asked):
            raise DTypeError(
                f"{name} must be a denoiser (channel, n_leaves, vocab_size, log_probabilities), got "
                f"{type(one).__name__}; a function becomes one as `answer` of a subclass of "
                "hfilter.diffusion.Denoiser, a model by ExactDenoiser(model, channel)"
            )
        mine = (int(one.n_leaves), int(one.vocab_size), int(one.channel.n_steps))
        wanted = (int(first.n_leaves), int(first.vocab_size), int(first.channel.n_steps))
        if mine != wanted:
            raise ArgumentError(
                f"{name} answers for {mine[0]} leaves of {mine[1]} symbols and {mine[2]} time steps, "
                f"{first_name} for {wanted[0]}, {wanted[1]} and {wanted[2]}; they must agree"
            )
        if not same_noise(one.channel, first.channel):
            raise ArgumentError(
                f"{name} takes other noise away than {first_name}, {one.channel!r} and {first.channel!r}; "
                "a time t must mean the same to all of them"
            )
    return int(first.n_leaves), int(first.vocab_size)


def check_channel(name: str, channel: Any, of: Any = None) -> None:
    """A channel; and the same noise as that of a denoiser, which reads t by its own."""
    if not isinstance(channel, Channel):
        raise DTypeError(
            f"{name} must be a channel of hfilter.noising, got {type(channel).__name__}; a Schedule "
            "becomes one by GaussianChannel(schedule)"
        )
    if of is not None and not same_noise(channel, of):
        raise ArgumentError(
            f"{name} must be the noise that the denoiser takes away, {of!r}, got {channel!r}; leave it "
            "out, or give the denoiser this channel"
        )


def same_noise(first: Any, second: Any) -> bool:
    """Whether two channels do the same at every time, whatever their schedules are called."""
    if first is second:
        return True
    if isinstance(first, GaussianChannel) and isinstance(second, GaussianChannel):
        return first.schedule == second.schedule
    if isinstance(first, DiscreteChannel) and isinstance(second, DiscreteChannel):
        return type(first) is type(second) and np.array_equal(first.survival, second.survival)
    return type(first) is type(second)


def check_several(denoisers: Any, least: int) -> dict[str, Asked]:
    """Denoisers of a sequence by the names that errors call them."""
    if not isinstance(denoisers, (list, tuple)):
        raise DTypeError(f"denoisers must be a list of denoisers, got {type(denoisers).__name__}")
    if len(denoisers) < least:
        raise ArgumentError(f"denoisers must be at least {least}, got {len(denoisers)}")
    return {f"denoisers[{i}]": one for i, one in enumerate(denoisers)}


def check_model(model: TreeModel, sizes: tuple[int, int] | None) -> None:
    """The model whose posteriors are asked for must be of the denoiser's sizes."""
    if not hasattr(model, "filtered"):
        raise DTypeError(f"model must be a TreeModel, got {type(model).__name__}")
    mine = (model.n_leaves, model.vocab_size)
    if sizes is not None and mine != sizes:
        raise ArgumentError(
            f"model has {mine[0]} leaves of {mine[1]} symbols, the denoiser {sizes[0]} of {sizes[1]}; "
            "give the model that its data come from"
        )


def check_leaves(name: str, leaves: Any, n_leaves: int, q: int) -> NDArray[Any]:
    """Clean sequences as an integer array (n, L) with symbols 0 … q - 1."""
    if hasattr(leaves, "detach"):
        leaves = leaves.detach().cpu().numpy()
    rows = np.asarray(leaves)
    if rows.dtype.kind not in "iu":
        raise DTypeError(f"{name} must be integers, got {rows.dtype}")
    if rows.ndim != 2 or rows.shape[1] != n_leaves:
        raise ShapeError(f"{name} must have shape (n, {n_leaves}), got {rows.shape}")
    if rows.size and not (int(rows.min()) >= 0 and int(rows.max()) < q):
        raise ArgumentError(
            f"{name} must be from 0 to {q - 1}, got values from {rows.min()} to {rows.max()}"
        )
    return rows


def check_times(t: Any, n_steps: int, n: int) -> Any:
    """One time as int, or a time for every row as (n,) int64; all from 1 to T."""
    if np.ndim(t) == 0:
        return check_int("t", t.item() if isinstance(t, np.generic) else t, 1, n_steps)
    times = np.asarray(t)
    if times.dtype.kind not in "iu":
        raise DTypeError(f"t must be integers, got {times.dtype}")
    if times.shape != (n,):
        raise ShapeError(f"t must be an integer or have shape ({n},), got {times.shape}")
    if not (int(times.min()) >= 1 and int(times.max()) <= n_steps):
        raise ArgumentError(
            f"t must be from 1 to {n_steps}, got values from {times.min()} to {times.max()}"
        )
    return times.astype(np.int64)


def spread_times(n: int, n_steps: int) -> NDArray[np.int64]:
    """Times for n rows, every one of 1 … T as often as any other: for means over t.

    Parameters
    ----------
    n, n_steps : int

    Returns
    -------
    int64 array, shape (n,)
        Steps of a golden section of T around the circle of times: any run of rows is spread evenly, and
        every T rows hold every time once.

    Examples
    --------
    >>> from hfilter.diffusion.measures import spread_times
    >>> spread_times(6, 5).tolist()
    [1, 4, 2, 5, 3, 1]
    """
    n, n_steps = check_int("n", n, 1), check_int("n_steps", n_steps, 1)
    stride = round(0.618 * n_steps)
    while math.gcd(stride, n_steps) != 1:
        stride += 1
    return 1 + np.arange(n) * stride % n_steps


def log_laws(name: str, denoiser: Asked, x_t: Any, t: Any) -> Floats:
    """ln of a denoiser's probabilities in double precision, normalised; -inf where it says zero.

    Raises
    ------
    hfilter.errors.ShapeError, hfilter.errors.ArgumentError
        For an answer of another shape, with NaN, or that does not sum to 1: names the denoiser.
    """
    given = denoiser.log_probabilities(x_t, t)
    if hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    logs = np.asarray(given, dtype=np.float64)
    wanted = (len(x_t), denoiser.n_leaves, denoiser.vocab_size)
    if logs.shape != wanted:
        raise ShapeError(f"{name} must answer with shape {wanted}, got {logs.shape}")
    bad = np.isnan(logs).any(axis=(1, 2)) | (logs == np.inf).any(axis=(1, 2))
    if bad.any():
        raise ArgumentError(
            f"{name} answers NaN or infinity in {int(bad.sum())} of {len(bad)} rows, the first of "
            f"them row {int(bad.argmax())} (or numbers below zero: give probabilities, not logits)"
        )
    return _normalised(name, logs)


def _normalised(name: str, logs: Floats) -> Floats:
    top = logs.max(axis=2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = top + np.log(np.exp(logs - top).sum(axis=2, keepdims=True))
        off = np.abs(np.expm1(total)).max()
    if not off <= _SUM_TOLERANCE:
        raise ArgumentError(
            f"{name} must answer with probabilities that sum to 1 within {_SUM_TOLERANCE}, they are "
            f"off by up to {off:.3g}; are these logits? take the log-softmax first"
        )
    out: Floats = logs - total
    return out


def exact_log_laws(
    model: TreeModel, channel: Any, x_t: Any, t: Any, levels: Sequence[int]
) -> list[Floats]:
    """ln BP_k(x_0 | x_t) of the given filter levels, each (n, L, q), in double precision."""
    if np.asarray(x_t).dtype.kind == "f":
        x_t = np.asarray(x_t, dtype=np.float64)  # or its fields would be in single precision
    found = []
    for k in levels:
        logs = ExactDenoiser(model, channel, filter_level=k, dtype="float64").log_probabilities(
            x_t, t
        )
        logs = np.asarray(logs, dtype=np.float64)
        impossible = np.isnan(logs).any(axis=(1, 2))
        if impossible.any():
            raise ArgumentError(
                f"leaves: row {int(impossible.argmax())} of the block (of {len(logs)}) is impossible "
                f"under BP_{k} through this channel; measure on sequences of the model"
            )
        found.append(_normalised(f"BP_{k}", logs))
    return found


def check_filter_levels(model: TreeModel, wanted: Any) -> tuple[int, ...]:
    """Filter levels to compare with; all by default."""
    if wanted is None:
        return tuple(range(model.depth + 1))
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise DTypeError(f"filter_levels must be a sequence of integers, got {wanted!r}")
    return tuple(check_int("filter_levels", k, 0, model.depth) for k in wanted)


def kl_per_sequence(log_p: Floats, log_m: Floats) -> Floats:
    """KL(p ‖ m) summed over the tokens of every sequence, shape (n,), in nats.

    0 ln 0 = 0; infinite where m is zero and p is not. A p below 1e-30 counts as zero, so that what one
    format rounds to zero and another does not makes no infinity.
    """
    some = log_p > _NEGLIGIBLE
    with np.errstate(invalid="ignore"):
        terms = np.where(some, np.exp(log_p) * (log_p - log_m), 0.0)
    out: Floats = terms.sum(axis=(1, 2))
    return out


def cross_entropy_per_sequence(log_p: Floats, log_m: Floats) -> Floats:
    """-Σ p ln m over the tokens of every sequence, shape (n,), with the same rules."""
    some = log_p > _NEGLIGIBLE
    with np.errstate(invalid="ignore"):
        terms = np.where(some, np.exp(log_p) * log_m, 0.0)
    out: Floats = -terms.sum(axis=(1, 2))
    return out


def loss_per_sequence(log_m: Floats, leaves: NDArray[Any]) -> Floats:
    """-Σ ln m(x_0) over the tokens of every sequence, shape (n,)."""
    taken = np.take_along_axis(log_m, leaves[:, :, None].astype(np.int64), axis=2)
    out: Floats = -taken.sum(axis=(1, 2))
    return out


def mean_and_error(values: Floats) -> tuple[Floats, Floats]:
    """Mean over the last axis, and its standard error over sequences: NaN for one, or with infinity."""
    n = values.shape[-1]
    finite = np.isfinite(values)
    mean = np.asarray(
        np.where(finite.all(axis=-1), np.where(finite, values, 0.0).sum(axis=-1) / n, np.inf)
    )
    if n < 2:
        return mean, np.full(mean.shape, np.nan)
    centred = np.where(finite, values, 0.0) - np.where(np.isfinite(mean), mean, 0.0)[..., None]
    error = np.sqrt((centred**2).sum(axis=-1) / (n - 1) / n)
    return mean, np.asarray(np.where(np.isfinite(mean), error, np.nan))
