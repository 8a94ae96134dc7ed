"""How far denoisers are from the exact ones and from each other, in nats per sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.errors import ArgumentError, DTypeError

from .asking import (
    Asked,
    Floats,
    Questions,
    check_channel,
    check_denoisers,
    check_filter_levels,
    check_model,
    check_several,
    check_times,
    cross_entropy_per_sequence,
    exact_log_laws,
    kl_per_sequence,
    log_laws,
    loss_per_sequence,
    mean_and_error,
)
from .records import plain

if TYPE_CHECKING:
    from hfilter.exact import TreeModel
    from hfilter.noising import Channel

__all__ = [
    "AlongTime",
    "Sequential",
    "SplitDivergence",
    "along_time",
    "sequential",
    "split_divergence",
    "split_matrix",
]


@dataclass(frozen=True, eq=False)
class Sequential:
    """D_k = KL(BP_k ‖ denoiser) for every k, in nats per sequence.

    Attributes
    ----------
    filter_levels : tuple of int
    kl, error : (K,) float64
        Mean over sequences and its standard error over sequences: what one model's number owes to the
        rows it was measured on. Those are the same for all models, so it is no error bar between them.
    n_infinite : (K,) int64
        Sequences of infinite divergence: the denoiser excludes what BP_k does not.
    n_sequences : int
    """

    filter_levels: tuple[int, ...]
    kl: Floats
    error: Floats
    n_infinite: Any
    n_sequences: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)


def sequential(
    denoiser: Asked,
    model: TreeModel,
    channel: Channel | None,
    leaves: Any,
    t: Any,
    *,
    filter_levels: Sequence[int] | None = None,
    seed: int = 0,
    start: int = 0,
) -> Sequential:
    """KL(BP_k ‖ denoiser) on noisy versions of clean sequences, for every filter level k.

    Parameters
    ----------
    denoiser : Denoiser
    model : TreeModel
        Of the data; BP_k is exact inference in ``model.filtered(k)``, in double precision.
    channel : Channel or None
        The noise; the denoiser's own for None.
    leaves : int array, shape (n, L)
        Clean sequences, held-out or of the training set.
    t : int or (n,) int array
        Time, 1 … T; one for every row (`spread_times`) for a mean over t.
    filter_levels : sequence of int, optional
        All by default.
    seed, start : int
        Of the noise: row i is sample ``start + i`` of purpose "held_out", the same for every denoiser.

    Returns
    -------
    Sequential

    Raises
    ------
    hfilter.errors.ArgumentError, hfilter.errors.ShapeError, hfilter.errors.DTypeError
        For sizes that do not fit, tokens or times out of range, an answer that is no law.

    Notes
    -----
    Sequential learning in arXiv 2603.03469. 0 ln 0 = 0; a denoiser that gives zero where BP_k gives more
    than 1e-30 is infinitely far.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion import ExactDenoiser
    >>> from hfilter.diffusion.measures import sequential
    >>> from hfilter.noising import GaussianChannel, Schedule
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> channel = GaussianChannel(Schedule.published(100))
    >>> exact = ExactDenoiser(model, channel)
    >>> found = sequential(exact, model, channel, model.sample(500, seed=1).leaves, t=30)
    >>> bool(abs(found.kl[0]) < 1e-5), bool(found.kl[2] > found.kl[1] > found.kl[0])
    (True, True)
    """
    sizes = check_denoisers(denoiser=denoiser)
    check_model(model, sizes)
    levels = check_filter_levels(model, filter_levels)
    if channel is not None:
        check_channel("channel", channel, denoiser.channel)
    ask = Questions(denoiser.channel, leaves, t, sizes, seed=seed, start=start)
    kl = np.empty((len(levels), len(ask.leaves)))
    for part, _, x_t, times in ask:
        theirs = log_laws("denoiser", denoiser, x_t, times)
        for row, exact in zip(
            kl, exact_log_laws(model, ask.channel, x_t, times, levels), strict=True
        ):
            row[part] = kl_per_sequence(exact, theirs)
    mean, error = mean_and_error(kl)
    return Sequential(levels, mean, error, np.isinf(kl).sum(axis=1), kl.shape[1])


@dataclass(frozen=True, eq=False)
class SplitDivergence:
    """KL between two denoisers both ways, in nats per sequence.

    Attributes
    ----------
    forward, backward : float
        KL(1 ‖ 2) and KL(2 ‖ 1).
    mean : float
        Of both.
    forward_error, backward_error, mean_error : float
        Standard errors over sequences.
    n_infinite : int
        Sequences where either is infinite.
    n_sequences : int
    """

    forward: float
    backward: float
    mean: float
    forward_error: float
    backward_error: float
    mean_error: float
    n_infinite: int
    n_sequences: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return asdict(self)


def split_divergence(
    first: Asked, second: Asked, leaves: Any, t: Any, *, seed: int = 0, start: int = 0
) -> SplitDivergence:
    """KL(first ‖ second) and KL(second ‖ first) on the same noisy sequences.

    Parameters
    ----------
    first, second : Denoiser
        For instance networks trained on disjoint blocks, or on one block from two seeds.
    leaves, t, seed, start
        As in `sequential`. The noise is that of ``first.channel``.

    Returns
    -------
    SplitDivergence

    Notes
    -----
    After arXiv 2603.03469: its minimum along the training marks the onset of biased
    generalisation. For more than two models: `split_matrix`, which asks each of them once.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion import ExactDenoiser
    >>> from hfilter.diffusion.measures import split_divergence
    >>> from hfilter.noising import GaussianChannel, Schedule
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> channel = GaussianChannel(Schedule.published(100))
    >>> a, b = ExactDenoiser(model, channel), ExactDenoiser(model, channel, filter_level=1)
    >>> found = split_divergence(a, b, model.sample(500, seed=1).leaves, 30)
    >>> found.forward > 0 and found.backward > 0
    True
    """
    sizes = check_denoisers(first=first, second=second)
    ask = Questions(first.channel, leaves, t, sizes, seed=seed, start=start)
    kl = np.empty((2, len(ask.leaves)))
    for part, _, x_t, times in ask:
        a, b = log_laws("first", first, x_t, times), log_laws("second", second, x_t, times)
        kl[0, part], kl[1, part] = kl_per_sequence(a, b), kl_per_sequence(b, a)
    mean, error = mean_and_error(np.vstack([kl, kl.mean(axis=0)]))
    n_infinite = int(np.isinf(kl).any(axis=0).sum())
    (there, back, both), (e_there, e_back, e_both) = mean.tolist(), error.tolist()
    return SplitDivergence(there, back, both, e_there, e_back, e_both, n_infinite, kl.shape[1])


def split_matrix(
    denoisers: Sequence[Asked], leaves: Any, t: Any, *, seed: int = 0, start: int = 0
) -> Floats:
    """KL(i ‖ j) between all denoisers, each asked once: shape (M, M), zero on the diagonal.

    Parameters
    ----------
    denoisers : sequence of Denoiser
    leaves, t, seed, start
        As in `split_divergence`.

    Returns
    -------
    float64 array, shape (M, M)
        Nats per sequence; what `over_models` and `onset` take for a statistic of pairs.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion import ExactDenoiser
    >>> from hfilter.diffusion.measures import split_matrix
    >>> from hfilter.noising import GaussianChannel, Schedule
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> channel = GaussianChannel(Schedule.published(100))
    >>> ladder = [ExactDenoiser(model, channel, filter_level=k) for k in range(3)]
    >>> split_matrix(ladder, model.sample(100, seed=1).leaves, 30).shape
    (3, 3)
    """
    named = check_several(denoisers, 2)
    sizes = check_denoisers(**named)
    ask = Questions(denoisers[0].channel, leaves, t, sizes, seed=seed, start=start)
    total = np.zeros((len(denoisers), len(denoisers)))
    for _, _, x_t, times in ask:
        laws = [log_laws(name, one, x_t, times) for name, one in named.items()]
        for i, j in np.argwhere(~np.eye(len(laws), dtype=bool)):
            total[i, j] += kl_per_sequence(laws[i], laws[j]).sum()
    return total / len(ask.leaves)


@dataclass(frozen=True, eq=False)
class AlongTime:
    """Divergences and losses at every time asked for, in nats per sequence.

    Attributes
    ----------
    times : (S,) int64
    filter_levels : tuple of int
        K of them.
    filtered, filtered_error : (S, K) float64
        KL(BP_0 ‖ BP_k) and standard errors over sequences.
    names : tuple of str
        Of the M denoisers.
    kl, kl_error : (S, M) float64
        KL(BP_0 ‖ denoiser).
    loss : (S, M) float64
        Mean of -ln of a denoiser's probability of the truth.
    bayes, bayes_error : (S,) float64
        The same for BP_0: the least possible on fresh sequences of the model.
    entropy, entropy_error : (S,) float64
        Entropy of BP_0's laws: the expectation of `bayes` given x_t on fresh sequences, with less noise.
    n_sequences : int
    """

    times: Any
    filter_levels: tuple[int, ...]
    filtered: Floats
    filtered_error: Floats
    names: tuple[str, ...]
    kl: Floats
    kl_error: Floats
    loss: Floats
    bayes: Floats
    bayes_error: Floats
    entropy: Floats
    entropy_error: Floats
    n_sequences: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)


def along_time(
    model: TreeModel,
    channel: Channel,
    leaves: Any,
    times: Any = None,
    denoisers: Mapping[str, Asked] | None = None,
    *,
    filter_levels: Sequence[int] | None = None,
    seed: int = 0,
    start: int = 0,
) -> AlongTime:
    """KL(BP_0 ‖ BP_k), KL(BP_0 ‖ denoiser) and the Bayes cross-entropy as functions of t.

    Parameters
    ----------
    model, channel, leaves, seed, start
        As in `sequential`. A row meets the same noise, more of it, at every time: curves are smooth in t,
        and their errors at neighbouring times much the same.
    times : int sequence, optional
        All of 1 … T by default.
    denoisers : mapping of str to Denoiser, optional
        By name.
    filter_levels : sequence of int, optional
        All by default.

    Returns
    -------
    AlongTime

    Notes
    -----
    Score divergence along t in arXiv 2603.03469.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion.measures import along_time
    >>> from hfilter.noising import GaussianChannel, Schedule
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> channel = GaussianChannel(Schedule.published(100))
    >>> found = along_time(model, channel, model.sample(200, seed=1).leaves, [1, 30, 100])
    >>> found.filtered.shape, bool(found.bayes[0] < found.bayes[1] < found.bayes[2])
    ((3, 3), True)
    """
    if denoisers is not None and not isinstance(denoisers, Mapping):
        raise DTypeError(
            f"denoisers must be a mapping of names to denoisers, got {type(denoisers).__name__}"
        )
    given = dict(denoisers or {})
    sizes = check_denoisers(**given) if given else None
    check_model(model, sizes)
    sizes = model.n_leaves, model.vocab_size
    check_channel("channel", channel, next(iter(given.values())).channel if given else None)
    levels = check_filter_levels(model, filter_levels)
    n_steps = channel.n_steps
    steps = np.arange(1, n_steps + 1) if times is None else np.atleast_1d(np.asarray(times))
    if not steps.size:
        raise ArgumentError("times is empty; name at least one time, or None for all")
    steps = check_times(steps, n_steps, len(steps))
    rows = []
    for t in steps.tolist():
        ask = Questions(channel, leaves, t, sizes, seed=seed, start=start)
        rows.append(_at_one_time(model, ask, levels, given))
    mean, error = (np.stack(column) for column in zip(*rows, strict=True))
    k, m = len(levels), len(given)
    return AlongTime(
        steps, levels, mean[:, 2 : 2 + k], error[:, 2 : 2 + k], tuple(given),
        mean[:, 2 + k : 2 + k + m], error[:, 2 + k : 2 + k + m], mean[:, 2 + k + m :],
        mean[:, 0], error[:, 0], mean[:, 1], error[:, 1], len(ask.leaves),
    )  # fmt: skip


def _at_one_time(
    model: TreeModel, ask: Questions, levels: tuple[int, ...], given: dict[str, Asked]
) -> tuple[Floats, Floats]:
    """Means and errors over sequences: Bayes loss, entropy, KL to BP_k, KL to denoisers, losses."""
    k, m = len(levels), len(given)
    values = np.empty((2 + k + 2 * m, len(ask.leaves)))
    for part, leaves, x_t, t in ask:
        exact, *filtered = exact_log_laws(model, ask.channel, x_t, t, (0, *levels))
        values[0, part] = loss_per_sequence(exact, leaves)
        values[1, part] = cross_entropy_per_sequence(exact, exact)
        for i, other in enumerate(filtered):
            values[2 + i, part] = kl_per_sequence(exact, other)
        for i, (name, one) in enumerate(given.items()):
            theirs = log_laws(f"denoisers[{name!r}]", one, x_t, t)
            values[2 + k + i, part] = kl_per_sequence(exact, theirs)
            values[2 + k + m + i, part] = loss_per_sequence(theirs, leaves)
    return mean_and_error(values)
