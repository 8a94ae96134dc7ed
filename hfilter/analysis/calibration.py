"""How far probabilities are from an exact posterior on average, and token by token.

Sums over blocks of tokens whose memory does not grow with their number: class-wise calibration in
bins, and the quantiles of a non-negative quantity.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["Calibration", "QuantileSketch"]

_GROUPS = 32  # of the jackknife
_HELD = 2**22  # cells held at once, groups × classes × bins


class Calibration:
    """Class-wise calibration of probabilities against an exact posterior, in bins.

    With d = model - posterior of one symbol at one token, and the tokens put into `n_bins` equal
    bins by the model's probability of that symbol, every bin has a mean error and a spread around it:

    - `error`, ECE*: the mean over symbols of Σ_bins w |mean of d|, w a bin's share of the tokens.
      No label enters, so that the exact posterior has 0 to the last bit, whatever the sample;
    - `grouping`: Σ over symbols and bins of w times the variance of d within the bin. What of the
      mean squared distance E Σ_b d² is not miscalibration: right on average, wrong token by token.

    Standard errors are those of a jackknife that leaves out each 32nd of the sequences in turn.

    Parameters
    ----------
    n_classes, n_bins : int

    Notes
    -----
    ECE* of a model that errs at random is positive in a finite sample: a mean of m errors of size s is
    about s / √m in absolute value. It shrinks with the sample as the real one does not.

    Examples
    --------
    >>> import numpy as np
    >>> p = np.array([[0.5, 0.5], [0.7, 0.3]])
    >>> q = np.array([[0.6, 0.4], [0.6, 0.4]])  # 0.6 said, 0.6 on average: calibrated
    >>> calibration = Calibration(2)
    >>> calibration.add(q, p, np.array([0, 1]))
    >>> abs(round(calibration.error, 12)), round(calibration.grouping, 12)
    (0.0, 0.02)
    """

    def __init__(self, n_classes: int, n_bins: int = 15) -> None:
        self.n_classes, self.n_bins = n_classes, n_bins
        self.n_groups = max(2, min(_GROUPS, _HELD // max(1, n_classes * n_bins)))
        self._cells = np.zeros((3, self.n_groups, n_classes * n_bins))  # count, Σ d, Σ d²

    def add(self, q: NDArray[Any], p: NDArray[Any], sequence: NDArray[Any]) -> None:
        """Add a block: (tokens, n_classes) of the model and of the posterior, none of them NaN.

        `sequence` (tokens,) numbers the sequences through all blocks.
        """
        bins = np.minimum((q * self.n_bins).astype(np.int64), self.n_bins - 1)
        bins += np.arange(self.n_classes) * self.n_bins
        group = np.asarray(sequence, dtype=np.int64) % self.n_groups
        index = (group[:, None] * self._cells.shape[2] + bins).reshape(-1)
        d = (q - p).reshape(-1)
        size = self._cells[0].size
        for cells, weights in zip(self._cells, (None, d, d * d), strict=True):
            counts = np.bincount(index, weights=weights, minlength=size)
            cells += counts.reshape(cells.shape)

    @property
    def error(self) -> float:
        """ECE*, between 0 and 1; NaN without a token."""
        return self._error(self._cells.sum(axis=1))

    @property
    def error_se(self) -> float:
        """Its standard error; NaN for fewer than two sequences."""
        return self._jackknife(self._error)

    @property
    def grouping(self) -> float:
        """The part of E Σ_b d² that is not miscalibration; NaN without a token."""
        return self._grouping(self._cells.sum(axis=1))

    @property
    def grouping_se(self) -> float:
        """Its standard error; NaN for fewer than two sequences."""
        return self._jackknife(self._grouping)

    def _error(self, cells: NDArray[np.float64]) -> float:
        total = float(cells[0].sum())  # tokens × classes
        return float(np.abs(cells[1]).sum()) / total if total else math.nan

    def _grouping(self, cells: NDArray[np.float64]) -> float:
        count, first, second = cells
        tokens = float(count.sum()) / self.n_classes
        within = second - first**2 / np.maximum(count, 1.0)
        return float(np.maximum(within, 0.0).sum()) / tokens if tokens else math.nan

    def _jackknife(self, of: Callable[[NDArray[np.float64]], float]) -> float:
        total = self._cells.sum(axis=1)
        used = np.flatnonzero(self._cells[0].sum(axis=1))
        if len(used) < 2:
            return math.nan
        without = np.array([of(total - self._cells[:, g]) for g in used])
        spread = float(((without - without.mean()) ** 2).sum())
        return math.sqrt(spread * (len(used) - 1) / len(used))


class QuantileSketch:
    """Quantiles of non-negative numbers within 1 %, from counts in logarithmic bins.

    What is below 1e-12 counts as 0, what is above 1e4 as infinite.

    Examples
    --------
    >>> import numpy as np
    >>> sketch = QuantileSketch()
    >>> sketch.add(np.linspace(0.001, 1, 1000))
    >>> [round(x, 1) for x in sketch.quantiles([0.1, 0.5, 0.9])]
    [0.1, 0.5, 0.9]
    """

    _LOW, _HIGH, _STEP = 1e-12, 1e4, 0.02

    def __init__(self) -> None:
        inner = math.ceil(math.log(self._HIGH / self._LOW) / self._STEP)
        self._counts = np.zeros(inner + 2, dtype=np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Add numbers, infinity among them, no NaN."""
        with np.errstate(divide="ignore", invalid="ignore"):
            place = np.floor(np.log(np.maximum(values, 0.0) / self._LOW) / self._STEP) + 1
        index = np.clip(place, 0, len(self._counts) - 1).astype(np.int64)
        self._counts += np.bincount(index, minlength=len(self._counts))

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The smallest numbers below or at which these shares of all lie; NaN without a number."""
        total = int(self._counts.sum())
        if total == 0:
            return [math.nan for _ in shares]
        reached = np.cumsum(self._counts)
        found = np.searchsorted(reached, np.maximum(1, np.ceil(np.array(shares) * total - 1e-9)))
        return [self._value(int(index)) for index in found]

    def _value(self, index: int) -> float:
        if index == 0:
            return 0.0
        if index == len(self._counts) - 1:
            return math.inf
        return self._LOW * math.exp((index - 0.5) * self._STEP)
