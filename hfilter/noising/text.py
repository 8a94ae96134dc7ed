"""THE Python text of noise: words of Philox to normal numbers; the twin of csrc/noise.hpp.

The functions take NumPy arrays, and Numba gives them scalars. Every operation on numbers is one that IEEE 754
rounds correctly (+, -, *, sqrt and conversions of integers), in float32, in this order and never fused, so that every
backend gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..philox import HALF, MASK32, philox4x32

__all__ = ["LOOPS", "box_muller", "entry_words", "normal_loops", "normal_rows"]

# -2 ln(1 + t) = t (-2 + t (1 + t P(t))) for 1 + t from sqrt(1/2) to sqrt(2), to 3e-8 of it;
# sin x = x + x z S(z) and cos x = 1 - z/2 + z^2 C(z), z = x^2, for |x| <= pi/4, to 4e-9.
# The coefficients minimise the largest relative error of the results.
_P = (-0.66667718, 0.50003493, -0.39930797, 0.33131269, -0.29753926, 0.287004143, -0.178357422)
_S = (-0.166666552, 0.008332178, -0.000195172979)
_C = (0.0416666456, -0.00138873677, 2.44384514e-05)
P0, P1, P2, P3, P4, P5, P6 = (np.float32(x) for x in _P)
S0, S1, S2 = (np.float32(x) for x in _S)
C0, C1, C2 = (np.float32(x) for x in _C)
ONE, TWO, HALF_ONE = np.float32(1), np.float32(2), np.float32(0.5)
TWO_16 = np.float32(65536)
TWO_LN2 = np.float32(1.3862943611198906)
QUARTER = np.float32(0.7853981633974483 / 2.0**31)  # signed 32-bit integers to |x| <= pi/4
ROOT_BITS = np.int32(0x3F3504F3)  # sqrt(1/2)
MANTISSA, LOW_16, SIXTEEN = np.int32(23), np.uint64(0xFFFF), np.uint64(16)
ANGLE, SWAP, SIGN = np.uint64(2), np.uint64(0x40000000), np.uint64(0x80000000)
ZERO = np.uint64(0)


def box_muller(w: Any, v: Any) -> Any:
    """Two standard normal numbers (float32) from two 32-bit words in uint64 (Box and Muller 1958).

    The radius is sqrt(-2 ln u) with u = (w + 1/2) / 2^32, at most 6.76; the angle has the 30 low bits of v within an
    octant to either side, one bit that exchanges the coordinates and one that turns by pi.
    """
    f = np.float32(np.int32(w >> SIXTEEN)) * TWO_16 + (
        np.float32(np.int32(w & LOW_16)) + HALF_ONE
    )  # rounded once: both parts are exact
    bits = np.float32(f).view(np.int32)
    e = (bits - ROOT_BITS) >> MANTISSA
    t = np.int32(bits - (e << MANTISSA)).view(np.float32) - ONE  # Numba makes sums wider
    p = ((((((P6 * t + P5) * t + P4) * t + P3) * t + P2) * t + P1) * t + P0) * t + ONE
    r = np.sqrt(np.float32(np.int32(32) - e) * TWO_LN2 + (p * t - TWO) * t)
    x = np.float32(np.int32((v << ANGLE) & MASK32)) * QUARTER
    z = x * x
    s = x + x * z * ((S2 * z + S1) * z + S0)
    c = (ONE - z * HALF_ONE) + z * z * ((C2 * z + C1) * z + C0)
    r = np.where((v & SIGN) != ZERO, -r, r)
    swap = (v & SWAP) != ZERO
    return r * np.where(swap, s, c), r * np.where(swap, c, s)


def entry_words(seed: int, tag: int, first: int, rows: int, blocks: int) -> Any:
    """Words (4 arrays (rows, blocks) of uint64) of blocks 0 … of samples first, first + 1, …"""
    sample = np.uint64(first) + np.arange(rows, dtype=np.uint64)[:, None]
    block = np.arange(blocks, dtype=np.uint64)[None, :]
    key = np.uint64(seed)
    return philox4x32(
        sample & MASK32, sample >> HALF, block, np.uint64(tag), key & MASK32, key >> HALF
    )


def normal_rows(seed: int, tag: int, first: int, out: Any) -> None:
    """Fill `out` (rows, size): entry e is number e % 4 of block e // 4, two to a pair of words."""
    rows, size = out.shape
    blocks = -(-size // 4)
    w0, w1, w2, w3 = entry_words(seed, tag, first, rows, blocks)
    z = np.empty((rows, blocks, 4), np.float32)
    z[..., 0], z[..., 1] = box_muller(w0, w1)
    z[..., 2], z[..., 3] = box_muller(w2, w3)
    out[...] = z.reshape(rows, -1)[:, :size]


def normal_loops(seed: Any, tag: Any, first: Any, out: Any) -> None:
    """`normal_rows` in loops, for Numba: a block of four numbers at a time, in uint64 scalars."""
    rows, size = out.shape
    k0, k1 = seed & MASK32, seed >> HALF
    for i in range(rows):
        sample = first + np.uint64(i)
        low, high = sample & MASK32, sample >> HALF
        whole = size // 4
        for b in range(whole):
            w0, w1, w2, w3 = philox4x32(low, high, np.uint64(b), tag, k0, k1)
            z0, z1 = box_muller(w0, w1)
            z2, z3 = box_muller(w2, w3)
            out[i, 4 * b] = z0
            out[i, 4 * b + 1] = z1
            out[i, 4 * b + 2] = z2
            out[i, 4 * b + 3] = z3
        if size > 4 * whole:
            w0, w1, w2, w3 = philox4x32(low, high, np.uint64(whole), tag, k0, k1)
            z0, z1 = box_muller(w0, w1)
            z2, _ = box_muller(w2, w3)
            out[i, 4 * whole] = z0
            if size > 4 * whole + 1:
                out[i, 4 * whole + 1] = z1
            if size > 4 * whole + 2:
                out[i, 4 * whole + 2] = z2


LOOPS = (philox4x32, box_muller, normal_loops)
"""Callees first."""
