"""`EmpiricalDenoiser`: the posterior of one who believes that only stored rows exist."""

from __future__ import annotations

from typing import Any

import numpy as np

from hfilter.arrays import value_type
from hfilter.checks import check_int
from hfilter.noising import Channel

from .denoisers import Denoiser
from .values import Array, by_strength, check_rows, of_type

__all__ = ["EmpiricalDenoiser"]

_WORK = 2**21  # numbers held at once


class EmpiricalDenoiser(Denoiser):
    """The memoriser: a softmax over *all* stored rows of ``-‖x_t - √ᾱ x^μ‖² / 2(1 - ᾱ)`` (BG).

    What a network that reached the minimum of its training loss would answer. Repeated rows weigh as
    often as they occur. Memory is bounded for any number of rows.

    Parameters
    ----------
    rows : array_like of int, shape (P, L)
        Copied.
    vocab_size : int
    channel : hfilter.noising.Channel
    dtype : "float32" or "float64"
        Of the answer.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.noising import GaussianChannel
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=4)
    >>> rows = model.sample(1000, seed=1).leaves
    >>> denoiser = EmpiricalDenoiser(rows, 6, GaussianChannel())
    >>> x = denoiser.channel.corrupt(rows[:10], 20, 6, seed=2)
    >>> bool((denoiser(x, 20).argmax(axis=2) == rows[:10]).all())
    True
    """

    threaded = True

    def __init__(
        self, rows: Any, vocab_size: int, channel: Channel, *, dtype: Any = "float32"
    ) -> None:
        q = check_int("vocab_size", vocab_size, 1, 65534)
        tokens = check_rows("rows", rows, q)
        self.rows = np.array(tokens, np.uint8 if q <= 255 else np.uint16, order="C")
        self.rows.flags.writeable = False
        super().__init__(channel, tokens.shape[1], q, "empirical")
        self.dtype = value_type(dtype)

    def answer(self, x_t: Any, t: Any, *, num_threads: int | None = None) -> Any:
        return of_type(
            by_strength(self.channel, self.vocab_size, x_t, t, lambda f: posterior(f, self.rows)),
            self.dtype,
        )


def posterior(fields: Any, rows: Array) -> Array:
    """Posterior marginals of every leaf under the uniform law on rows, (n, L, q), float64."""
    n, length, q = fields.shape
    flat = fields.astype(np.float64).reshape(n, -1)
    forbidden = np.isneginf(flat)
    flat = np.where(forbidden, 0.0, flat)
    any_forbidden = bool(forbidden.any())
    peak, total = np.full(n, -np.inf), np.zeros((n, length * q))
    place = np.arange(length) * q
    for begin in range(0, len(rows), max(1, _WORK // (length * q))):
        part = rows[begin : begin + max(1, _WORK // (length * q))]
        codes = np.zeros((len(part), length * q))
        np.put_along_axis(codes, part + place, 1.0, axis=1)
        score = flat @ codes.T
        if any_forbidden:
            score[forbidden.astype(np.float64) @ codes.T > 0.0] = -np.inf
        top = np.maximum(peak, score.max(axis=1))
        shift = np.where(np.isneginf(top), 0.0, top)
        total *= np.exp(np.where(np.isneginf(peak), -np.inf, peak - shift))[:, None]
        total += np.exp(score - shift[:, None]) @ codes
        peak = top
    law = total.reshape(n, length, q)
    with np.errstate(invalid="ignore"):
        out: Array = law / law.sum(axis=2, keepdims=True)
    return out
