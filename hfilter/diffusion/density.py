"""The exact density of noisy leaves and its gradient."""

from __future__ import annotations

from typing import Any

from hfilter.errors import DTypeError
from hfilter.exact import TreeModel
from hfilter.noising import Channel, GaussianChannel

from .denoisers import ExactDenoiser
from .values import double, double_state, like

__all__ = ["log_density", "score"]


def log_density(model: TreeModel, channel: Channel, x_t: Any, t: Any) -> Any:
    """ln p_t(x_t), exactly: of real numbers a density, of tokens a probability.

    Parameters
    ----------
    model : TreeModel
        Of the clean leaves, at any filter level.
    channel : hfilter.noising.Channel
    x_t : array_like
        (n, L, q) or tokens (n, L), as the channel has them.
    t : int, or array_like of int, shape (n,)
        From 1 to T.

    Returns
    -------
    array of float64, shape (n,)
        In nats; -inf for tokens that no sequence of the model leads to.

    Raises
    ------
    hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
        Naming x_t or t.

    Notes
    -----
    ``p_t(x_t) = Σ_{x_0} P(x_0) Π_j p(x_t,j | x_0,j)``: the evidence of the leaves' fields.

    Examples
    --------
    >>> import hfilter, math
    >>> from hfilter.noising import MaskingChannel
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=1)  # four pairs, equally likely
    >>> p = log_density(model, MaskingChannel.linear(4), [[0, 2]], 1)  # one seen, one hidden
    >>> bool(abs(p[0] - math.log(0.75 * 0.25 * 0.5)) < 1e-12)
    True
    """
    denoiser = ExactDenoiser(model, channel, dtype="float64")
    x, times, wrap = denoiser._checked(x_t, t)
    fields = channel.log_fields(double_state(channel, x), times, model.vocab_size)
    evidence = model.log_prob(log_fields=fields, dtype="float64")
    return wrap(evidence + channel.log_base(x, times, model.vocab_size))


def score(model: TreeModel, channel: Channel, x_t: Any, t: Any) -> Any:
    """∇ ln p_t(x_t), exactly, by Tweedie's formula ``(√ᾱ_t E[x_0 | x_t] - x_t) / (1 - ᾱ_t)``.

    Parameters
    ----------
    model, x_t, t
        As in `log_density`.
    channel : hfilter.noising.GaussianChannel

    Returns
    -------
    array of float64, shape (n, L, q)

    Raises
    ------
    hfilter.errors.DTypeError
        For a channel of tokens, which have no gradient.

    Examples
    --------
    >>> import hfilter, numpy as np
    >>> from hfilter.noising import GaussianChannel
    >>> model = hfilter.TreeModel(hfilter.Grammar.dense(2, 1.0, 0), depth=1)
    >>> score(model, GaussianChannel(), np.zeros((1, 2, 2)), 500).shape
    (1, 2, 2)
    """
    if not isinstance(channel, GaussianChannel):
        raise DTypeError(
            f"channel must be a GaussianChannel, got {type(channel).__name__}: tokens have no gradient"
        )
    denoiser = ExactDenoiser(model, channel, dtype="float64")
    x, times, wrap = denoiser._checked(x_t, t)
    signal, variance = channel.schedule.signal(times), channel.schedule.sigma(times) ** 2
    mean, state = denoiser.answer(x, times), double(x)
    if not isinstance(times, int):
        signal, variance = (like(v[:, None, None], state) for v in (signal, variance))
    return wrap((signal * mean - state) / variance)
