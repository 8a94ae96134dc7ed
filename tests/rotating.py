"""Which evidence, value type and backend each model of `cases` is asked with: a few of all combinations.

The full product of models, evidence, types and backends would take minutes: every model takes its turn
with each of them, so that any two meet somewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from cases import FIELD_KINDS, PAIRS, Problem
from oracle import token_fields

import hfilter

TOLERANCE = {"float32": 3e-6, "float64": 1e-12}
EPS = float(np.finfo(np.float64).eps)


def allowance(dtype: str, log_fields: np.ndarray) -> float:
    """The tolerance, plus what float64 fields of that size must cost (a logit of 5000 has ulps)."""
    finite = np.where(np.isfinite(log_fields), log_fields, 0.0)
    return TOLERANCE[dtype] + EPS * float(np.ptp(finite, axis=2).sum(axis=1).max())


@dataclass
class Asked:
    """One batch: what the package gets, and what the judge gets."""

    what: str
    evidence: dict[str, Any]  # leaves and mask, or log_fields
    options: dict[str, Any]  # dtype, backend
    fields: np.ndarray  # (n, n_leaves, q)
    atol: float  # in a probability
    offset: float = 0.0  # of the fields, in nats: ln P has ulps of its size

    def atol_of_logs(self, want: np.ndarray) -> np.ndarray:
        """Error allowed in ln P: relative above 1, and the ulps of offsets that cancel."""
        size = np.maximum(1.0, np.abs(np.where(np.isfinite(want), want, 0.0)))
        return (self.atol + 4 * EPS * self.offset) * size


@cache
def available() -> tuple[str, ...]:
    """Backends on a CPU that are here, the fastest first."""
    names = ("avx512", "avx2", "portable", "numba", "python")
    infos = hfilter.backends()
    return tuple(name for name in names if name in infos and infos[name].available)


def mixed_tokens(p: Problem, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of the model, random ones (often impossible), and masks from none to nearly all."""
    rng = np.random.default_rng(p.seed + 5)
    leaves = p.law.draw(n, rng)
    leaves[1::3] = rng.integers(p.q, size=leaves[1::3].shape)
    mask = rng.random(leaves.shape) < np.resize([0.0, 0.0, 0.4, 0.7], n)[:, None]
    leaves[2::4, -1] = p.q  # and the mask token
    return leaves, mask


def asked(p: Problem, rows: int = 8) -> Iterator[Asked]:
    """Tokens in both types and one kind of fields in either, on backends in turn."""
    turn = PAIRS.index((p.name, p.model.filter_level))
    big = len(p.law.log_prior) > 5000
    rows = max(4, rows // 2) if big else rows
    leaves, mask = mixed_tokens(p, rows)
    # Numba would compile everything once more for tokens of two bytes: test_agreement_operations has it do so.
    backends = tuple(b for b in available() if b != "numba" or p.q < 255)
    fields = token_fields(leaves, mask, p.q)
    for i, dtype in enumerate(TOLERANCE):
        backend = backends[(turn + i) % len(backends)]
        options = {"dtype": dtype, "backend": backend}
        evidence = {"leaves": leaves, "mask": mask}
        yield Asked(f"tokens, {options}", evidence, options, fields, TOLERANCE[dtype])
    for i, dtype in enumerate(TOLERANCE):
        kinds = tuple(FIELD_KINDS)
        kind = kinds[(turn // 2 + 3 * i) % len(kinds)]
        rng = np.random.default_rng(p.seed + 6 + i)
        h = FIELD_KINDS[kind](rng, (rows // 2, p.law.n_leaves, p.q))
        top = np.where(np.isfinite(h.max(axis=2)), h.max(axis=2), 0.0)
        atol = allowance(dtype, h)
        options = {"dtype": dtype, "backend": backends[(turn + i + 2) % len(backends)]}
        offset = float(np.abs(top).sum(axis=1).max())
        yield Asked(f"{kind}, {options}", {"log_fields": h}, options, h, atol, offset)
