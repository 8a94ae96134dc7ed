"""Noise that is a pure function of (seed, purpose, step, sample, entry).

Entry e of sample i is made from block e // 4 of Philox4x32-10 (Salmon et al. 2011) at counter (i, e // 4, purpose and
step) under the key `seed`. Nothing else enters: any split into calls, any number of threads and every backend give the
same bits, so that processes started from the same seed share their noise whatever model drives them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..arrays import allocate, as_numpy, to_device
from ..checks import check_float, check_int, check_seed
from ..compiled import ieee
from ..errors import ArgumentError, DTypeError, ShapeError
from . import kernels
from .text import entry_words

__all__ = ["MAX_STEP", "PURPOSES", "integers", "noise_leaves", "normal", "reverse_step", "uniform"]

Array = NDArray[Any]

PURPOSES: Final = ("start", "reverse", "forward", "train", "times", "held_out", "user")
"""What noise may be for; streams of different purpose never meet, nor do they meet those that draw trees."""

MAX_STEP: Final = 2**26 - 1
"""The largest `step`."""

_NORMAL, _INTEGER, _UNIFORM = 0, 1, 2  # kinds of numbers: they do not share words either
_FEWER = "ask for fewer samples at a time"


def _tag(purpose: str, step: int, kind: int = _NORMAL) -> int:
    """The last counter word: purpose in bits 28-31 (trees have 0 there), kind in 26-27, step below."""
    if purpose not in PURPOSES:
        raise ArgumentError(f"purpose must be one of {', '.join(PURPOSES)}, got {purpose!r}")
    step = check_int("step", step, 0, MAX_STEP)
    return (PURPOSES.index(purpose) + 1) << 28 | kind << 26 | step


def _rows(n: int, start: int) -> tuple[int, int]:
    n = check_int("n", n, 0, 2**62)
    return n, check_int("start", start, 0, 2**64 - n)


def normal(
    seed: int, purpose: str, step: int, n: int, size: int, *, start: int = 0, out: Any = None,
    device: Any = None, backend: str | None = None, num_threads: int | None = None,
) -> Any:  # fmt: skip
    """Standard normal numbers for samples `start` … `start + n`.

    Parameters
    ----------
    seed : int
        From 0 to 2**64 - 1.
    purpose : str
        One of `PURPOSES`.
    step : int
        From 0 to `MAX_STEP`; a time of a process, or 0.
    n, size : int
        How many samples, and how many numbers for each (at most 2**33).
    start : int
        Index of the first sample.
    out : array, optional
        What to fill: (n, size) float32, contiguous; an array or tensor of NumPy or torch, on any device.
    device : str or torch.device, optional
        None for NumPy; otherwise a torch tensor there is returned.
    backend, num_threads
        Who computes, and on how many threads; the numbers do not depend on it.

    Returns
    -------
    array (n, size) of float32
        Box and Muller's numbers (1958) from all 32 bits of two words; none exceeds 6.77 in magnitude.

    Raises
    ------
    ArgumentError, DTypeError
        If an argument is out of range or of the wrong type.
    ShapeError
        If `out` has another shape.

    Examples
    --------
    >>> from hfilter.noising.gaussian import normal
    >>> a, b = normal(1, "user", 0, 10, 6), normal(1, "user", 0, 4, 6, start=6)
    >>> a.shape, bool((a[6:] == b).all())
    ((10, 6), True)
    """
    seed, tag = check_seed("seed", seed), _tag(purpose, step)
    n, start = _rows(n, start)
    size = check_int("size", size, 0, 2**33)
    if out is None:
        if device is not None and kernels.is_elsewhere(device):
            out = kernels.new_tensor((n, size), device)
        else:
            wrap = to_device(device)
            fresh = allocate((n, size), np.dtype(np.float32), "the noise", _FEWER)
            kernels.normal(seed, tag, start, fresh, backend, num_threads)
            return wrap(fresh)
    elif device is not None:
        raise ArgumentError("give out or device, not both: the result lies where out does")
    if kernels.is_device_tensor(out):
        from . import tensors

        tensors.check("out", out, (n, size))
        tensors.normal(seed, tag, start, out)
        return out
    kernels.normal(seed, tag, start, _writable("out", out, (n, size)), backend, num_threads)
    return out


def _writable(name: str, x: Any, shape: tuple[int, ...]) -> Array:
    """`x` as a float32 array of this shape that can be written in place."""
    array, _ = as_numpy(name, x)
    if array is not x and not hasattr(x, "__dlpack__"):
        raise DTypeError(f"{name} must be an array to write to, got {type(x).__name__}")
    if array.dtype != np.float32:
        raise DTypeError(f"{name} must be float32, got {array.dtype}")
    if array.shape != shape:
        raise ShapeError(f"{name} must have shape {shape}, got {array.shape}")
    if not array.flags.c_contiguous or not array.flags.writeable or not array.flags.aligned:
        raise ArgumentError(f"{name} must be contiguous and writable; pass a copy of it")
    return array


def _words(seed: int, purpose: str, step: int, kind: int, n: int, start: int, blocks: int) -> Any:
    """The words of n samples in pieces: (slice of samples, four arrays (rows, blocks))."""
    seed, tag = check_seed("seed", seed), _tag(purpose, step, kind)
    n, start = _rows(n, start)
    rows = max(1, (1 << 14) // max(blocks, 1))
    for begin in range(0, n, rows):
        part = slice(begin, min(begin + rows, n))
        yield part, entry_words(seed, tag, start + begin, part.stop - begin, blocks)


def integers(
    seed: int, purpose: str, step: int, n: int, low: int, high: int, *, start: int = 0
) -> NDArray[np.int64]:
    """One integer from `low` to `high - 1` for each of the samples `start` … `start + n`.

    A word w of 64 bits gives low + floor(w (high - low) / 2**64): no value is favoured by more than 2**-32 of its
    probability. There may be 2**32 values at most.

    Returns
    -------
    array (n,) of int64

    Examples
    --------
    >>> from hfilter.noising.gaussian import integers
    >>> t = integers(1, "times", 0, 1000, 1, 501)
    >>> int(t.min()) >= 1, int(t.max()) <= 500
    (True, True)
    """
    low = check_int("low", low, -(2**62), 2**62)
    high = check_int("high", high, low + 1, low + 2**32)
    n, start = _rows(n, start)
    out = allocate((n,), np.dtype(np.int64), "the integers", _FEWER)
    span, half = np.uint64(high - low), np.uint64(32)
    for part, w in _words(seed, purpose, step, _INTEGER, n, start, 1):
        value = (w[1] * span + (w[0] * span >> half)) >> half
        out[part] = value[:, 0].astype(np.int64) + low
    if n == 0:
        next(_words(seed, purpose, step, _INTEGER, 0, start, 1), None)
    return out


def uniform(
    seed: int, purpose: str, step: int, n: int, size: int, *, start: int = 0
) -> NDArray[np.float64]:
    """Numbers uniform in [0, 1), multiples of 2**-53, for samples `start` … `start + n`.

    Returns
    -------
    array (n, size) of float64

    Examples
    --------
    >>> from hfilter.noising.gaussian import uniform
    >>> u = uniform(1, "user", 0, 1000, 3)
    >>> u.shape, bool((u >= 0).all() and (u < 1).all())
    ((1000, 3), True)
    """
    size = check_int("size", size, 0, 2**33)
    n, start = _rows(n, start)
    out = allocate((n, size), np.dtype(np.float64), "the numbers", _FEWER)
    blocks = -(-size // 2)
    high, low = np.uint64(5), np.uint64(6)
    for part, w in _words(seed, purpose, step, _UNIFORM, n, start, blocks):
        pairs = [(w[i] >> high) * 2.0**26 + (w[i + 1] >> low) for i in (0, 2)]
        numbers = np.stack(pairs, -1).reshape(len(w[0]), -1)[:, :size]
        out[part] = numbers * 2.0**-53
    return out


@ieee()
def noise_leaves(
    leaves: Any, signal: Any, sigma: Any, vocab_size: int, seed: int, purpose: str, step: int, *,
    start: int = 0, out: Any = None, backend: str | None = None, num_threads: int | None = None,
) -> Any:  # fmt: skip
    """Leaves under Gaussian noise: ``signal * onehot(leaves) + sigma * normal``.

    Parameters
    ----------
    leaves : array (n, L) of integers
        Symbols 0 … vocab_size - 1; of NumPy or torch, on any device.
    signal, sigma : float or array (n,)
        Factors of the symbol and of the noise, taken as float32; one for all rows or one each.
    vocab_size : int
        q.
    seed, purpose, step, start
        Which noise: row i has that of `normal` for sample start + i and size L q.
    out : array (n, L, q) of float32, optional
        What to fill.

    Returns
    -------
    array (n, L, q) of float32
        Of the library and device of `leaves`.

    Examples
    --------
    >>> import numpy as np
    >>> from hfilter.noising.gaussian import noise_leaves
    >>> x = noise_leaves(np.array([[0, 2]]), 1.0, 0.0, 3, 1, "forward", 5)
    >>> np.abs(x).tolist()
    [[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]
    """
    seed, tag = check_seed("seed", seed), _tag(purpose, step)
    q = check_int("vocab_size", vocab_size, 1, 65535)
    if kernels.is_device_tensor(leaves):
        from . import tensors

        n, start = _rows(len(leaves), start)
        return tensors.noise_leaves(seed, tag, start, leaves, signal, sigma, q, out)
    symbols, wrap = as_numpy("leaves", leaves)
    if symbols.ndim != 2:
        raise ShapeError(f"leaves must have shape (n, L), got {symbols.shape}")
    if symbols.dtype.kind not in "iu":
        raise DTypeError(f"leaves must be integers, got {symbols.dtype}")
    if symbols.size and (symbols.min() < 0 or symbols.max() >= q):
        raise ArgumentError(
            f"leaves must be symbols from 0 to {q - 1} (vocab_size = {q}), got "
            f"{symbols.min()} … {symbols.max()}"
        )
    n, start = _rows(len(symbols), start)
    shape = (*symbols.shape, q)
    if out is None:
        target = allocate(
            shape, np.dtype(np.float32), "the noised leaves", "pass fewer rows at once"
        )
        result = wrap(target)
    else:
        result, target = out, _writable("out", out, shape)
    f, g = _factor("signal", signal, n), _factor("sigma", sigma, n)
    kernels.noise_leaves(seed, tag, start, symbols, f, g, target, backend, num_threads)
    return result


def _factor(name: str, x: Any, n: int) -> NDArray[np.float32]:
    """One finite float32 for each row."""
    array, _ = as_numpy(name, x)
    if array.dtype.kind not in "fiu":
        raise DTypeError(f"{name} must be a number or an array of numbers, got {array.dtype}")
    if array.shape not in ((), (n,)):
        raise ShapeError(f"{name} must be a number or have shape ({n},), got {array.shape}")
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single).all():
        raise ArgumentError(
            f"{name} must be finite in float32, got {array[~np.isfinite(single)].flat[0]}"
        )
    return np.ascontiguousarray(np.broadcast_to(single, (n,)))


@ieee()
def reverse_step(
    x: Any, x0: Any, a: float, b: float, s: float, seed: int, purpose: str, step: int, *,
    start: int = 0, backend: str | None = None, num_threads: int | None = None,
) -> Any:  # fmt: skip
    """One step of a process, in place: ``x = (a * x0 + b * x) + s * normal``, every operation rounded by itself.

    Parameters
    ----------
    x : array (n, …) of float32
        Overwritten; contiguous; of NumPy or torch, on any device.
    x0 : array of the shape of `x`
        float32, or converted.
    a, b, s : float
        Taken as float32; with s = 0 nothing is drawn and nothing added.
    seed, purpose, step, start
        Which noise: row i has that of `normal` for sample start + i, its entries in the order of memory.

    Returns
    -------
    array
        `x` itself.

    Examples
    --------
    >>> import numpy as np
    >>> from hfilter.noising.gaussian import reverse_step
    >>> x = np.ones((2, 3, 4), np.float32)
    >>> bool((reverse_step(x, np.zeros_like(x), 0.5, 0.25, 0, 1, "reverse", 3) == 0.25).all())
    True
    """
    seed, tag = check_seed("seed", seed), _tag(purpose, step)
    a, b = (check_float(name, f, -3e38, 3e38) for name, f in (("a", a), ("b", b)))
    s = check_float("s", s, 0.0, 3e38)
    if kernels.is_device_tensor(x):
        from . import tensors

        start = _rows(len(x), start)[1]
        return tensors.reverse_step(seed, tag, start, x, x0, a, b, s)
    target = _writable("x", x, np.shape(x))
    if target.ndim < 1:
        raise ShapeError("x must have shape (n, …), got ()")
    given, _ = as_numpy("x0", x0)
    if given.shape != target.shape:
        raise ShapeError(f"x0 must have the shape of x, {target.shape}, got {given.shape}")
    if given.dtype.kind not in "fiu":
        raise DTypeError(f"x0 must be float32, got {given.dtype}")
    start = _rows(len(target), start)[1]
    given = np.ascontiguousarray(given, np.float32)
    kernels.reverse_step(seed, tag, start, target, given, a, b, s, backend, num_threads)
    return x
