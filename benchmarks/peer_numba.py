"""Ours without a compiler: the Python text under Numba, one thread, on fewer rows."""

from __future__ import annotations

import platform
from typing import Any

from cases import NUMBA, Case
from peer_hfilter import call
from process import Offer, Unavailable

import hfilter


def about() -> dict[str, str]:
    """Python, for the table; why not, if Numba is missing."""
    info = hfilter.backends()["numba"]
    if not info.available:
        raise Unavailable(info.reason)
    return {"python": platform.python_version()}


def offers(case: Case, evidence: Any) -> list[Offer]:
    """One contestant."""
    n = max(case.n // 10, min(case.n, 1000))
    return [Offer(NUMBA, call(case, evidence, n, num_threads=1, backend="numba"), n)]
