"""How fast are exact posteriors? Floor: fields read once and beliefs written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peers import EinsumBP

import hfilter

CONTESTANTS = (
    "hfilter, 1 thread", "hfilter, all threads", "hfilter, numba", "torch, compiled", "torch", "numpy",
)  # fmt: skip
GRAMMARS = {
    "q = 4, ℓ = 4": (hfilter.Grammar.published(4, 1.0, 0), 4, 50_000),
    "q = 6, ℓ = 4, forbidden rules": (
        hfilter.Grammar.published(6, 1.0, 0, rules_per_symbol=4),
        4,
        20_000,
    ),
    "q = 8, ℓ = 6": (hfilter.Grammar.log_normal(8, 1.0, 0), 6, 4_000),
    "q = 16, ℓ = 6": (hfilter.Grammar.log_normal(16, 1.0, 0), 6, 1_000),
}
QUESTIONS = {
    "beliefs": "Leaf beliefs from fields",
    "root": "Root posterior from tokens",
    "mlm": "Leave-one-out at all positions from tokens",
}


@pytest.mark.parametrize("who", CONTESTANTS)
@pytest.mark.parametrize("what", QUESTIONS)
@pytest.mark.parametrize("case", GRAMMARS)
def test_inference(
    contest: Callable[..., None], size: Callable[[int], int], case: str, what: str, who: str
) -> None:
    grammar, depth, n = GRAMMARS[case]
    model = hfilter.TreeModel(grammar, depth)
    n = size(n)
    evidence: Any = model.sample(n, seed=1).leaves
    asked: dict[str, Any] = {"leaves": evidence}
    if what == "beliefs":
        noise = np.random.default_rng(0).standard_normal((n, model.n_leaves, model.vocab_size))
        seen = np.eye(model.vocab_size)[evidence]
        evidence = (2.0 * seen + noise).astype(np.float32)
        asked = {"log_fields": evidence}
    peer = EinsumBP(model)
    tensor = torch.from_numpy(evidence)

    def ours(**options: Any) -> Any:
        if what == "beliefs":
            return model.infer(**asked, **options).leaves
        call = model.root_posterior if what == "root" else model.leave_one_out
        return call(**asked, **options)

    calls: dict[str, Callable[[], Any]] = {
        "hfilter, 1 thread": lambda: ours(num_threads=1),
        "hfilter, all threads": ours,
        "hfilter, numba": lambda: ours(num_threads=1, backend="numba"),
        "torch, compiled": lambda: peer.torch(tensor, what, compiled=True),
        "torch": lambda: peer.torch(tensor, what, compiled=False),
        "numpy": lambda: peer.numpy(evidence, what),
    }
    exact = ours(dtype="float64")

    def check(answer: Any) -> None:
        np.testing.assert_allclose(
            answer, exact, rtol=0, atol=1e-4 if who.startswith(("torch", "numpy")) else 3e-6
        )

    contest(f"{QUESTIONS[what]}, {case}", who, n, calls[who], check)
