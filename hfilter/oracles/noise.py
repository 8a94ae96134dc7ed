"""`NoisyLogits`: a predictor that errs at random, by a rate that is known."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_float, check_seed
from hfilter.errors import DTypeError
from hfilter.philox import HALF, MASK32, philox4x32

from .interface import (
    Floats,
    Predictor,
    Sizes,
    hidden_leaves,
    host_evidence,
    probability_rows,
    softmax,
)

__all__ = ["NoisyLogits", "failure_probability"]

_KEY, _LEAF, _ROOT = np.uint64(0x6B6579), np.uint64(0x6C656166), np.uint64(0x726F6F74)  # purposes
_HIDDEN = np.uint64(2**32)  # no token is as large


class NoisyLogits:
    """Softmax of ln p + tau N(0, 1): a predictor's logits with independent noise on each.

    How often its arg-max differs from that of p is `failure_probability`.

    Parameters
    ----------
    predictor : Predictor
    tau : float
        Standard deviation of the noise, in nats, from 0.
    seed : int
        From 0 to 2**64 - 1.

    Notes
    -----
    The noise is a pure function of the seed and of what is visible in the row, so that, as with a
    network, equal questions get equal answers, in any batch and any order. Rows that differ in one
    visible token have independent noise. A symbol of probability 0 stays excluded. Draws are
    Philox4x32-10 (Salmon et al. 2011), made normal by the method of Box and Muller; they are the
    same on every machine but for the rounding of its logarithm.

    A hidden leaf may be given by the mask or by the mask token; for a predictor that has no
    attribute ``vocab_size`` the root's noise tells the two apart.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> noisy = NoisyLogits(hfilter.oracles.ExactBP(model), tau=0.3, seed=1)
    >>> leaves = model.sample(6, seed=0).leaves
    >>> bool((noisy.predict(leaves)[2:] == noisy.predict(leaves[2:])).all())
    True
    """

    def __init__(self, predictor: Predictor, tau: float, seed: int = 0) -> None:
        if not isinstance(predictor, Predictor):
            raise DTypeError(
                f"predictor must have the methods predict and predict_root, got {type(predictor).__name__}"
            )
        self.predictor = predictor
        self.tau = check_float("tau", tau, 0.0)
        self.seed = check_seed("seed", seed)
        self.vocab_size = getattr(predictor, "vocab_size", None)

    def predict(self, leaves: Any, mask: Any = None) -> Any:
        """The noisy law of every leaf, shape (n, L, q); see `Predictor`."""
        return self._noisy(self.predictor.predict(leaves, mask), leaves, mask, _LEAF)

    def predict_root(self, leaves: Any, mask: Any = None) -> Any:
        """The noisy law of the root, shape (n, n_classes)."""
        return self._noisy(self.predictor.predict_root(leaves, mask), leaves, mask, _ROOT)

    def _noisy(self, law: Any, leaves: Any, mask: Any, purpose: np.uint64) -> Any:
        p, wrap = probability_rows("the predictor's result", law)
        if self.tau == 0.0:
            return wrap(p)
        q = self.vocab_size
        if q is None:
            q = p.shape[-1] if purpose == _LEAF else 65535
        length = p.shape[1] if purpose == _LEAF else np.shape(leaves)[-1]
        evidence, n, _ = host_evidence(Sizes(length, q), leaves, mask, None)
        assert evidence.tokens is not None
        seen = np.where(hidden_leaves(evidence, q), _HIDDEN, evidence.tokens.astype(np.uint64))
        out = np.empty_like(p)
        step = max(1, 2**18 // max(1, p[:1].size))
        for i in range(0, n, step):
            rows = slice(i, i + step)
            noise = _normals(seen[rows], p[0].size, self.seed, purpose).reshape(p[rows].shape)
            with np.errstate(divide="ignore"):
                out[rows] = softmax(np.log(p[rows]) + self.tau * noise)
        return wrap(out)


def _normals(seen: NDArray[np.uint64], count: int, seed: int, purpose: np.uint64) -> Floats:
    """`count` standard normal numbers for every row of `seen`, functions of (seed, row's content)."""
    key = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)
    place = np.arange(seen.shape[1], dtype=np.uint64)[None]
    words = philox4x32(seen & MASK32, seen >> HALF, place, _KEY, *key)
    row = [np.bitwise_xor.reduce(np.broadcast_to(w, seen.shape), axis=1)[:, None] for w in words]
    pair = np.arange((count + 1) // 2, dtype=np.uint64)[None]
    # Two words of the row's key go into the counter, two into the generator's own key.
    words = philox4x32(row[0], row[1], pair, purpose, row[2] ^ key[0], row[3] ^ key[1])
    radius = np.sqrt(-2.0 * np.log(_uniform(words[0], words[1])))
    angle = 2.0 * np.pi * _uniform(words[2], words[3])
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return both.reshape(len(seen), -1)[:, :count]


def _uniform(high: Any, low: Any) -> Floats:
    """Numbers in (0, 1) from two words: 52 bits and a half, so that neither end is reached."""
    bits = ((high << HALF) | low) >> np.uint64(12)
    out: Floats = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return out


def failure_probability(p: Any, tau: float) -> Any:
    """P(argmax of ln p + tau N(0, 1) differs from argmax p), exactly.

    Parameters
    ----------
    p : array_like of float, shape (…, q)
        Probabilities; a tie is decided for the lowest symbol.
    tau : float
        Standard deviation of the noise on each logit, in nats.

    Returns
    -------
    array of float64, shape (…)
        Absolute error below 1e-13 for up to 256 symbols; NaN where p is.

    Notes
    -----
    With j the arg-max and d_c = (ln p_j - ln p_c) / tau it is
    ``1 - ∫ φ(z) Π_{c ≠ j} Φ(d_c + z) dz``, φ and Φ density and distribution function of a standard
    normal number, by the trapezoidal rule, which converges exponentially for such an integrand.

    Examples
    --------
    Two symbols: Φ of minus their distance over the noise of a difference.

    >>> import math, numpy as np
    >>> exact = math.erfc(math.log(3) / 0.5 / 2) / 2
    >>> bool(abs(failure_probability(np.array([0.75, 0.25]), 0.5) - exact) < 1e-13)
    True
    """
    law, wrap = probability_rows("p", p)
    width = check_float("tau", tau, 0.0)
    rows = law.reshape(-1, law.shape[-1])
    unknown = np.asarray(np.isnan(rows).any(axis=1))
    out = np.where(unknown, np.nan, 0.0)
    if width > 0.0 and rows.shape[1] > 1:
        step = max(1, 2**20 // rows.shape[1])
        for i in range(0, len(rows), step):
            part = np.flatnonzero(~unknown[i : i + step]) + i
            out[part] = _failures(rows[part], width)
    return wrap(out.reshape(law.shape[:-1]))


def _failures(rows: Floats, tau: float) -> Floats:
    each = np.arange(len(rows))
    best = rows.argmax(axis=1)
    with np.errstate(divide="ignore"):
        logs = np.log(rows)
    distance = (logs[each, best][:, None] - logs) / tau
    distance[each, best] = np.inf  # Φ = 1: not one of the rivals
    success = np.zeros(len(rows))
    for z in np.arange(-9.0, 9.01, _NODE):
        density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        success += _NODE * density * _normal_cdf(distance + z).prod(axis=1)
    out: Floats = np.clip(1.0 - success, 0.0, 1.0)
    return out


_NODE = 0.125  # at this step halving it changes nothing, at twice it 1e-11 for 64 equal symbols
_GRID = 64  # entries of the table per unit
_END = 9.0  # Φ(-9) is 1e-19


@functools.cache
def _cdf_table() -> tuple[Floats, Floats]:
    """Grid points and Φ there."""
    x = np.arange(-_END * _GRID, _END * _GRID + 1) / _GRID
    return x, np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in x.tolist()])


def _normal_cdf(x: Floats) -> Floats:
    """Φ within 1e-14: Taylor's series about the nearest entry of a table (NumPy has no erf)."""
    grid, value = _cdf_table()
    x = np.clip(x, -_END, _END)
    near = np.rint((x + _END) * _GRID).astype(np.intp)
    a, h = grid[near], x - grid[near]
    density = np.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi)
    # Derivatives of φ: Hermite polynomials times φ, with alternating signs.
    series = 1.0 + h / 2 * (
        -a + h / 3 * (a * a - 1 + h / 4 * (-(a**3) + 3 * a + h / 5 * (a**4 - 6 * a * a + 3)))
    )
    out: Floats = value[near] + h * density * series
    return out
