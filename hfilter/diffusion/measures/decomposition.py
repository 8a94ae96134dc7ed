"""The loss of a denoiser in two parts: what it has not learned, and what it knows of the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .asking import (
    Asked,
    Questions,
    check_channel,
    check_denoisers,
    check_model,
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

__all__ = ["LossParts", "loss_decomposition"]

_PARTS = ("loss", "distillation", "excess", "bayes", "entropy", "divergence")


@dataclass(frozen=True)
class LossParts:
    """Loss = distillation + excess, in nats per sequence, means over sequences.

    Attributes
    ----------
    loss : float
        l = -Σ ln x̂(x_0): cross-entropy with the labels.
    distillation : float
        l* = -Σ x̂_BP ln x̂: cross-entropy with the exact posterior; the expectation of l on fresh
        sequences, with less noise.
    excess : float
        l~ = l - l*: zero on average on fresh sequences, negative on those that were memorised.
    bayes : float
        The loss of BP_0.
    entropy : float
        Entropy of BP_0's laws: the smallest possible l*. ``distillation - entropy`` is D_0.
    divergence : float
        D_0 = KL(BP_0 ‖ denoiser).
    loss_error, distillation_error, excess_error, bayes_error, entropy_error, divergence_error : float
        Standard errors over sequences; NaN beside an infinite mean. `excess` is NaN where both l and l*
        are infinite.
    n_sequences : int
    """

    loss: float
    distillation: float
    excess: float
    bayes: float
    entropy: float
    divergence: float
    loss_error: float
    distillation_error: float
    excess_error: float
    bayes_error: float
    entropy_error: float
    divergence_error: float
    n_sequences: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)


def loss_decomposition(
    denoiser: Asked,
    model: TreeModel,
    channel: Channel | None,
    leaves: Any,
    t: Any,
    *,
    seed: int = 0,
    start: int = 0,
) -> LossParts:
    """Split the loss of a denoiser into distillation and excess.

    Parameters
    ----------
    denoiser, model, channel, leaves, seed, start
        As in `sequential`. Held-out and training sequences alike: their difference in `excess` is what
        was memorised, that in `distillation` is not.
    t : int or (n,) int array
        One time, or one for every row (`spread_times`) for the mean over t.

    Returns
    -------
    LossParts

    Notes
    -----
    On rows from which sequences of a training set were left out (content-disjoint ones), even the exact
    denoiser has an excess, ``bayes - entropy``: those rows are no sample of the model. Where a set holds
    a good part of what the model says, take index-disjoint rows, or compare with that. The same
    difference is what few rows of a training set owe to chance: ``excess - (bayes - entropy)`` is the
    excess beyond that of the exact denoiser on the same rows.

    The two parts of arXiv 2603.03469. The minimum of the test loss is best sought in `distillation` (or
    D_0, which differs from it by a constant on the same questions).

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion import EmpiricalDenoiser
    >>> from hfilter.diffusion.measures import loss_decomposition
    >>> from hfilter.diffusion.splits import block, held_out
    >>> from hfilter.noising import GaussianChannel, Schedule
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> channel, train = GaussianChannel(Schedule.published(100)), block(model, 300, 0)
    >>> memory = EmpiricalDenoiser(train, 4, channel, dtype="float64")
    >>> for rows in (train, held_out(model, 300)):
    ...     found = loss_decomposition(memory, model, channel, rows, t=30)
    ...     print(bool(abs(found.excess) < 3 * found.excess_error), bool(found.loss < found.bayes))
    False True
    True False
    """
    sizes = check_denoisers(denoiser=denoiser)
    check_model(model, sizes)
    if channel is not None:
        check_channel("channel", channel, denoiser.channel)
    ask = Questions(denoiser.channel, leaves, t, sizes, seed=seed, start=start)
    values = np.empty((6, len(ask.leaves)))
    for part, rows, x_t, times in ask:
        theirs = log_laws("denoiser", denoiser, x_t, times)
        (exact,) = exact_log_laws(model, ask.channel, x_t, times, (0,))
        values[0, part] = loss_per_sequence(theirs, rows)
        values[1, part] = cross_entropy_per_sequence(exact, theirs)
        values[3, part] = loss_per_sequence(exact, rows)
        values[4, part] = cross_entropy_per_sequence(exact, exact)
        values[5, part] = kl_per_sequence(exact, theirs)
    with np.errstate(invalid="ignore"):
        values[2] = values[0] - values[1]
    mean, error = mean_and_error(values)
    if not np.isfinite(values[2]).all():  # l infinite alone, l* alone, or both
        with np.errstate(invalid="ignore"):
            mean[2] = mean[0] - mean[1]
    numbers = dict(zip(_PARTS, mean.tolist(), strict=True))
    errors = {f"{name}_error": x for name, x in zip(_PARTS, error.tolist(), strict=True)}
    return LossParts(**numbers, **errors, n_sequences=values.shape[1])
