"""Orthogonalised momentum against a singular value decomposition and against torch's own."""

from __future__ import annotations

import doctest

import pytest

torch = pytest.importorskip("torch")

import hfilter.learn.optimisers as optimisers_module  # noqa: E402
from hfilter.learn.optimisers import Muon, orthogonalised  # noqa: E402


def test_orthogonalised_matrices() -> None:
    x = torch.randn(5, 6, 9, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(orthogonalised(x).double(), full_matrices=False)
    assert s.min() > 0.5
    assert s.max() < 1.3
    a, _, b = torch.linalg.svd(x.double(), full_matrices=False)
    agreement = ((u @ v) * (a @ b)).sum((1, 2)) / 6  # 1 for the same singular vectors
    assert agreement.min() > 0.999
    assert torch.equal(orthogonalised(torch.zeros(1, 3, 3)), torch.zeros(1, 3, 3))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_that_of_torch() -> None:
    """Up to the bfloat16 of torch's own; blocks of a fused matrix are matrices of their own."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(6, 8, generator=generator) for _ in range(3)]
    fused = torch.nn.Parameter(torch.cat(parts))
    single = [torch.nn.Parameter(part.clone()) for part in parts]
    ours = Muon([(fused, (6, 6, 6))], lr=0.01, weight_decay=0.1)
    theirs = torch.optim.Muon(single, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = fused.detach().clone()
    for _ in range(4):
        gradients = [torch.randn(6, 8, generator=generator) for _ in range(3)]
        fused.grad = torch.cat(gradients)
        for p, g in zip(single, gradients, strict=True):
            p.grad = g
        ours.step()
        theirs.step()
    moved = (fused - before).norm()
    assert (fused - torch.cat(single)).norm() < 0.02 * moved


def test_docstring_examples_run() -> None:
    assert doctest.testmod(optimisers_module).failed == 0
