"""How far from the memory's speed are the CUDA kernels? Floor: every byte in and out once, as a copy does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import hfilter

if not hfilter.backends()["cuda"].available:
    pytest.skip(f"cuda: {hfilter.backends()['cuda'].reason}", allow_module_level=True)

MODEL = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4)
N = 1 << 22


def timed(
    benchmark: Any, work: Callable[[], Any], question: str, who: str, n: int, bytes_per_row: float
) -> None:
    """Time with the device idle before and after; the first call is the warm-up."""

    def waited() -> None:
        work()
        torch.cuda.synchronize()

    waited()
    benchmark.group = question
    benchmark.pedantic(waited, rounds=20, warmup_rounds=3)
    rate = n / benchmark.stats.stats.median
    benchmark.extra_info.update(
        question=question, who=who, n=n, rows_per_second=rate, bytes_per_second=rate * bytes_per_row
    )


@pytest.mark.parametrize("who", ["hfilter, cuda", "torch, fill"])
def test_sampling(benchmark: Any, size: Callable[[int], int], who: str) -> None:
    n = size(16 * N)
    out = torch.empty((n, 16), dtype=torch.uint8, device="cuda")
    if who == "torch, fill":
        timed(benchmark, lambda: out.fill_(1), "CUDA: sampling, q = 4, ℓ = 4", who, n, 17)
        return
    MODEL.sample(n, seed=1, out=out)
    for start in (0, n - 1000):
        want = MODEL.sample(1000, seed=1, start=start).leaves
        np.testing.assert_array_equal(out[start : start + 1000].cpu(), want)
    timed(
        benchmark,
        lambda: MODEL.sample(n, seed=1, out=out),
        "CUDA: sampling, q = 4, ℓ = 4",
        who,
        n,
        17,
    )


@pytest.mark.parametrize("who", ["hfilter, cuda", "torch, copy"])
def test_beliefs_from_fields(benchmark: Any, size: Callable[[int], int], who: str) -> None:
    n = size(N)
    fields = torch.randn((n, 16, 4), device="cuda") * 2
    question = "CUDA: leaf beliefs from fields, q = 4, ℓ = 4"
    if who == "torch, copy":
        target = torch.empty_like(fields)
        timed(benchmark, lambda: target.copy_(fields), question, who, n, 512)
        return
    want = MODEL.infer(log_fields=fields[:2000].cpu().numpy(), dtype="float64").leaves
    got = MODEL.infer(log_fields=fields).leaves
    np.testing.assert_allclose(got[:2000].cpu(), want, rtol=0, atol=3e-6)
    del got
    timed(benchmark, lambda: MODEL.infer(log_fields=fields), question, who, n, 512)


@pytest.mark.parametrize("who", ["hfilter, cuda", "hfilter, all threads"])
@pytest.mark.parametrize("case", [(8, 6, 20_000), (4, 12, 64)], ids=["q8-l6", "q4-l12"])
def test_other_trees(
    benchmark: Any, size: Callable[[int], int], case: tuple[int, int, int], who: str
) -> None:
    q, depth, n = case
    model, n = hfilter.TreeModel(hfilter.Grammar.log_normal(q, 1.0, 0), depth), size(n)
    leaves = model.sample(n, seed=1).leaves
    tensor = torch.from_numpy(leaves).cuda()
    want = model.infer(leaves[:20], dtype="float64").leaves
    np.testing.assert_allclose(model.infer(tensor[:20]).leaves.cpu(), want, rtol=0, atol=1e-4)
    given: Any = tensor if who == "hfilter, cuda" else leaves
    question = f"CUDA: leaf beliefs from tokens, q = {q}, ℓ = {depth}"
    timed(benchmark, lambda: model.infer(given), question, who, n, model.n_leaves * (1 + 4 * q))
