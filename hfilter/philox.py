"""Philox4x32-10, the counter-based generator of the whole package, in Python (csrc/philox.hpp)."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["HALF", "MASK32", "philox4x32"]

MASK32 = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def philox4x32(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """One block of Philox4x32-10 (Salmon et al. 2011): four 32-bit words, held in uint64.

    >>> [hex(int(word)) for word in philox4x32(*[np.uint64(0)] * 6)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1 & MASK32, (p0 >> HALF) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + W0) & MASK32, (k1 + W1) & MASK32
    return c0, c1, c2, c3
