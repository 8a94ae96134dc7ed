"""A longer step along the way that EM goes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .parameters import Array

__all__ = ["extrapolate"]


def extrapolate(
    before: Array,
    between: Array,
    after: Array,
    first: NDArray[np.intp],
    longest: float,
    smallest: float,
) -> tuple[Array | None, float]:
    """Where three successive points of EM seem to lead, and how far the next such step may go.

    Parameters
    ----------
    before, between, after : ndarray, shape (size,)
        Rows of probabilities, one after the other.
    first : ndarray of int
        Where each row begins.
    longest : float
        1 or more; the length of step 1 is that of EM itself.
    smallest : float
        No probability becomes smaller.

    Returns
    -------
    point : ndarray or None
        None if it would be `after`.
    longest : float
        Four times what it was if this step was as long as it might be.

    Notes
    -----
    Scheme S3 of Varadhan and Roland (2008), on square roots of probabilities, where the distance that
    the likelihood feels is Euclid's. What would turn negative becomes a tenth of what it was; zeros
    stay, and so do rows that did not change.
    """
    a, b, c = np.sqrt(before), np.sqrt(between), np.sqrt(after)
    step, bend = b - a, (c - b) - (b - a)
    bent = float(np.sqrt((bend * bend).sum()))
    length = float(np.sqrt((step * step).sum())) / bent if bent > 0 else 1.0
    if length <= 1.0:
        return None, longest
    length, longest = min(length, longest), longest * (4.0 if length >= longest else 1.0)
    if length <= 1.0:
        return None, longest
    far = np.maximum(a + 2 * length * step + length * length * bend, 0.1 * c) ** 2
    far = np.maximum(far, np.minimum(after, smallest))
    rows = np.repeat(np.arange(len(first)), np.diff([*first, len(far)]))
    far /= np.add.reduceat(far, first)[rows]
    still = np.maximum.reduceat(np.abs(after - before), first) == 0
    far[still[rows]] = after[still[rows]]
    return far, longest
