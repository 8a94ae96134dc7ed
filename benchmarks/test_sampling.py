"""How fast is data made? Floor: L bytes written and one 32-bit Philox word per node, per sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from peers import SearchSampler

import hfilter

MODEL = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4)
CONTESTANTS = ("hfilter, 1 thread", "hfilter, all threads", "hfilter, numba", "torch", "numpy")


def check(leaves: Any) -> None:
    """Leaf frequencies within 6 standard errors of the exact ones, and no impossible sequence."""
    exact = MODEL.infer(np.full((1, MODEL.n_leaves), MODEL.mask_token), dtype="float64").leaves[0]
    found = np.stack([(leaves == x).mean(axis=0) for x in range(MODEL.vocab_size)], axis=-1)
    error = np.abs(found - exact) / np.sqrt(exact * (1 - exact) / len(leaves))
    assert error.max() < 6
    assert np.isfinite(MODEL.log_prob(leaves[:1000])).all()


@pytest.mark.parametrize("who", CONTESTANTS)
def test_sampling(contest: Callable[..., None], size: Callable[[int], int], who: str) -> None:
    peer = SearchSampler(MODEL)
    n = size(2_000_000 if who.startswith("hfilter") else 200_000)
    calls: dict[str, Callable[[], Any]] = {
        "hfilter, 1 thread": lambda: MODEL.sample(n, seed=1, num_threads=1).leaves,
        "hfilter, all threads": lambda: MODEL.sample(n, seed=1).leaves,
        "hfilter, numba": lambda: MODEL.sample(n, seed=1, num_threads=1, backend="numba").leaves,
        "torch": lambda: peer.torch(n),
        "numpy": lambda: peer.numpy(n),
    }
    contest("Sampling, q = 4, ℓ = 4", who, n, calls[who], check)
