"""`EmpiricalDenoiser`: the posterior of one who believes that only stored rows exist."""

from __future__ import annotations

from typing import Any

import numpy as np

from hfilter.arrays import value_type
from hfilter.checks import check_int, check_seed
from hfilter.noising import Channel, gaussian

from .denoisers import Denoiser
from .empirical import StoredRows, empirical_posterior
from .values import Array, by_strength, check_rows, double, double_state, host_of, log, of_type

__all__ = ["EmpiricalDenoiser"]

_WORK = 2**20  # numbers held at once by `draw`


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
        Of the answer, and of the sums behind it where fields are weak enough for single precision.

    Attributes
    ----------
    rows : ndarray of unsigned int, shape (P, L)

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
        super().__init__(channel, tokens.shape[1], q, "empirical")
        self.dtype = value_type(dtype)
        self._stored = StoredRows(tokens, q)
        self.rows: Array = self._stored.rows

    def answer(self, x_t: Any, t: Any, *, num_threads: int | None = None) -> Any:
        def ask(fields: Any) -> Any:
            # Rows nearly tied differ by what is left of large fields: sums of those in float32 would err by 1e-4.
            strong = self.channel.continuous and str(fields.dtype).endswith("float64")
            dtype = "float64" if strong else self.dtype
            law, _ = empirical_posterior(fields, self._stored, dtype=dtype, num_threads=num_threads)
            return of_type(law, self.dtype)

        return by_strength(self.channel, self.vocab_size, x_t, t, self.dtype, ask)

    def log_answer(self, x_t: Any, t: Any) -> Any:
        return log(empirical_posterior(self._fields(x_t, t), self._stored, dtype="float64")[0])

    def _fields(self, x_t: Any, t: Any) -> Any:
        return double(self.channel.log_fields(double_state(self.channel, x_t), t, self.vocab_size))

    def draw(
        self, x_t: Any, t: int, *, seed: int, start: int = 0, num_threads: int | None = None
    ) -> Any:
        """Stored rows drawn by their posterior weights given x_t, (n, L), on the host.

        The mask token q throughout where no stored row can have led to x_t.
        """
        fields = host_of(self._fields(x_t, t))
        n, length, q = fields.shape
        _, evidence = empirical_posterior(
            fields, self._stored, dtype="float64", num_threads=num_threads
        )
        left = gaussian.uniform(check_seed("seed", seed), "user", 0, n, 1, start=start)[:, 0]
        chosen = np.full(n, -1)
        norm = np.where(np.isneginf(evidence), 0.0, evidence + np.log(len(self.rows)))
        step = max(1, _WORK // max(1, n))
        for begin in range(0, len(self.rows), step):
            part = self.rows[begin : begin + step]
            score = np.zeros((n, len(part)))
            for j in range(length):
                score += fields[:, j][:, part[:, j]]
            reach = np.exp(score - norm[:, None]).cumsum(axis=1)
            here = (left[:, None] >= reach).sum(axis=1)
            found = (chosen < 0) & (here < len(part))
            chosen[found] = begin + here[found]
            left = left - reach[:, -1]
        for row in np.flatnonzero((chosen < 0) & ~np.isneginf(evidence)):
            chosen[row] = self._best(fields[row])  # the sums' last digits left nothing to draw
        drawn: Array = self.rows[chosen].astype(np.uint8 if q <= 255 else np.uint16)
        drawn[np.isneginf(evidence)] = q
        return drawn

    def _best(self, fields: Array) -> int:
        return int(sum(fields[j][self.rows[:, j]] for j in range(self.n_leaves)).argmax())
