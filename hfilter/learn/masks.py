"""Which leaves to hide, which row comes when: functions of seeds. NumPy alone; knows no torch."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.checks import check_int, check_seed
from hfilter.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: First row of every held-out set: further along the stream than any run will train.
HELD_OUT_START = 2**48

_MASK_STREAM = 0x6D61736B  # "mask" in ASCII: keeps the key apart from other uses of a seed
_ORDER_STREAM = 0x65706F63  # "epoc"


def draw_masks(
    n: int, n_leaves: int, seed: int = 0, start: int = 0, rate: float | None = None
) -> NDArray[np.bool_]:
    """Masks for rows ``start … start + n - 1``: a pure function of (seed, row).

    Parameters
    ----------
    n, n_leaves, seed, start
        Rows, leaves per row, seed (0 … 2^64 - 1) and first row.
    rate
        ``None`` hides exactly one leaf per row, uniformly (as published). A number in (0, 1] hides
        each leaf with this probability, and in a row where none fell the one that came closest.

    Returns
    -------
    (n, n_leaves) bool array
        True = hidden. Rows come from the raw words of NumPy's Philox4x64-10, which are the same in
        every NumPy release; the uniform choice is biased by less than ``n_leaves / 2^32``.

    Raises
    ------
    hfilter.errors.ArgumentError
        For a rate outside (0, 1], a negative count or start, or a seed outside its range.

    Notes
    -----
    Source of the single-mask task: Garnier-Brun et al. 2024, arXiv 2408.15138, section 4.

    Examples
    --------
    >>> masks = draw_masks(5, 16, seed=3)
    >>> masks.sum(1).tolist()
    [1, 1, 1, 1, 1]
    >>> bool((draw_masks(2, 16, seed=3, start=3) == masks[3:]).all())
    True
    """
    check_int("n", n, 0)
    check_int("n_leaves", n_leaves, 1)
    check_int("start", start, 0)
    check_seed("seed", seed)
    given: Any = rate
    number = isinstance(given, Real) and not isinstance(given, bool)
    if rate is not None and not (number and 0.0 < rate <= 1.0):
        raise ArgumentError(f"rate must be None (one leaf per row) or in (0, 1], got {rate!r}")
    if rate is None:
        words = _philox_words(seed, start, n)
        hidden = ((words >> np.uint64(32)) * np.uint64(n_leaves)) >> np.uint64(32)
        return np.asarray(hidden[:, None] == np.arange(n_leaves, dtype=np.uint64))
    words = _philox_words(seed, start * n_leaves, n * n_leaves).reshape(n, n_leaves)
    uniform = (words >> np.uint64(11)) * 2.0**-53
    masks = uniform < rate
    empty = np.flatnonzero(~masks.any(axis=1))
    masks[empty, uniform[empty].argmin(axis=1)] = True
    return np.asarray(masks)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of ``n`` rows in an epoch: a permutation that (n, seed, epoch) decide alone.

    Examples
    --------
    >>> order = epoch_order(5, seed=1, epoch=3)
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4]
    """
    check_int("n", n, 1)
    check_int("epoch", epoch, 0)
    words = _philox_words(check_seed("seed", seed), epoch * n, n, _ORDER_STREAM)
    return np.argsort(words, kind="stable")  # two equal words of 64 bits: fewer than n^2 / 2^65


def _philox_words(
    seed: int, first: int, count: int, stream: int = _MASK_STREAM
) -> NDArray[np.uint64]:
    """Words ``first … first + count - 1`` of the stream of ``seed``: four words per counter."""
    skip = first % 4
    key = np.array([seed, stream], dtype=np.uint64)
    generator = np.random.Philox(counter=first // 4, key=key)
    return np.asarray(generator.random_raw(skip + count)[skip:], dtype=np.uint64)
