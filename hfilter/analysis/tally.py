"""Means over tokens with standard errors over sequences, added up block by block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Tally:
    """A ratio of sums, Σ values / Σ tokens, and its standard error.

    Tokens of one sequence are correlated, so that the sequence is the unit of the error: with S_i
    the sum of the values and m_i the number of tokens of sequence i, and R the mean, the variance
    is n / (n - 1) Σ (S_i - R m_i)² / (Σ m_i)² over the n sequences with a token. With equally many
    tokens everywhere that is the usual error over per-sequence means.

    Examples
    --------
    >>> tally = Tally()
    >>> tally.add([1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1], None, 2)
    >>> tally.mean, tally.standard_error
    (0.75, 0.25)
    """

    def __init__(self) -> None:
        self.n_sequences = 0
        self._s = self._m = self._ss = self._sm = self._mm = 0.0

    def add(self, values: Any, sequence: Any, keep: NDArray[np.bool_] | None, n: int) -> None:
        """Add a block.

        Parameters
        ----------
        values, sequence : (tokens,) arrays
            A number per token, and the index 0 … n - 1 of its sequence within the block.
        keep : (tokens,) bool array or None
            Which tokens count.
        n
            Sequences in the block.
        """
        numbers, owner = np.asarray(values, dtype=np.float64), np.asarray(sequence, dtype=np.int64)
        if keep is not None:
            numbers, owner = numbers[keep], owner[keep]
        s = np.bincount(owner, weights=numbers, minlength=n)
        m = np.bincount(owner, minlength=n).astype(np.float64)
        self.n_sequences += int((m > 0).sum())
        self._s += float(s.sum())
        self._m += float(m.sum())
        self._ss += float((s * s).sum())
        with np.errstate(invalid="ignore"):  # infinity times no token
            self._sm += float((s * m).sum())
        self._mm += float((m * m).sum())

    @property
    def n_tokens(self) -> int:
        """Tokens counted."""
        return int(self._m)

    @property
    def mean(self) -> float:
        """Σ values / Σ tokens; NaN without a token, infinite if a value is."""
        return self._s / self._m if self._m else math.nan

    @property
    def standard_error(self) -> float:
        """Over sequences; NaN for fewer than two of them or an infinite mean."""
        n, mean = self.n_sequences, self.mean
        if n < 2 or not math.isfinite(mean):
            return math.nan
        square = self._ss - 2.0 * mean * self._sm + mean * mean * self._mm
        return math.sqrt(max(square, 0.0) * n / (n - 1)) / self._m
