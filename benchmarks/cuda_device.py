"""How far from the memory's speed are the CUDA kernels? ``python benchmarks/cuda_device.py`` where a GPU is.

Floor: every byte in and out once, as torch's own fill and copy do it in the same run. Nothing is timed
before it agrees with the processor.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import hfilter

ROUNDS = 20


def _milliseconds(work: Callable[[], Any]) -> float:
    """Median over rounds, by the device's own clock."""
    times = []
    for round_ in range(ROUNDS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if round_ >= 3:  # the first warm up
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _show(question: str, rows: int, bytes_per_row: int, **calls: Callable[[], Any]) -> None:
    """One line a contestant: rows and bytes per second, and the share of the last one's, the floor."""
    took = {who: _milliseconds(work) for who, work in calls.items()}
    floor = list(took.values())[-1]
    print(f"\n{question}")
    for who, t in took.items():
        rate = rows / t * 1e3
        print(f"  {who:8} {rate:10.3g} rows/s {rate * bytes_per_row:10.3g} B/s {floor / t:6.1%}")


def main() -> int:
    """Check and time; 1 if there is no device."""
    cuda = hfilter.backends()["cuda"]
    if not cuda.available:
        print(f"cuda: {cuda.reason}", file=sys.stderr)
        return 1
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4)

    n = 1 << 26
    out = torch.empty((n, 16), dtype=torch.uint8, device="cuda")
    model.sample(n, seed=1, out=out)
    for start in (0, n - 1000):
        want = model.sample(1000, seed=1, start=start).leaves
        np.testing.assert_array_equal(out[start : start + 1000].cpu().numpy(), want)
    _show(
        "Sampling, q = ℓ = 4 (16 tokens a row)", n, 17,
        hfilter=lambda: model.sample(n, seed=1, out=out), fill=lambda: out.fill_(1),
    )  # fmt: skip

    n = 1 << 22
    fields = torch.randn((n, 16, 4), device="cuda") * 2
    want = model.infer(log_fields=fields[:2000].cpu().numpy(), dtype="float64").leaves
    got = model.infer(log_fields=fields[:2000]).leaves.cpu().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6)
    target = torch.empty_like(fields)
    _show(
        "Leaf beliefs from fields, q = ℓ = 4", n, 512,
        hfilter=lambda: model.infer(log_fields=fields), copy=lambda: target.copy_(fields),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
