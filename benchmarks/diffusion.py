"""The diffusion laboratory beside the best torch version of each of its parts.

Prints JSON lines. One thread unless it says two, single precision, the grammar of BG (q = 6, four rules
a symbol, l = 4; 16 leaves). Answers are held to each other first, then the contestants take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import formulations as bp
import numpy as np
import torch

import hfilter
from hfilter.diffusion import ExactDenoiser, StoredRows, empirical_posterior, generate, nearest
from hfilter.noising import GaussianChannel, Schedule, normal, reverse_step

Q, LEAVES, STEPS = 6, 16, 500


@dataclass
class Part:
    """A call of ours and the peers', with how many things each one does."""

    name: str
    unit: str
    n: int
    ours: Callable[[], Any]
    peers: list[tuple[str, int, Callable[[], Any], float | None]]  # who, n, call, target ratio
    error: Callable[[Any, Any], float]
    limit: float
    bytes_each: float  # read and written at the least
    rounds: dict[str, list[float]] = field(default_factory=dict)


def denoiser(model: hfilter.TreeModel, channel: Any, n: int, quick: bool) -> Part:
    """E[x_0 | x_t] at t = 75."""
    t = 75
    x = channel.corrupt(model.sample(n, seed=1).leaves, t, Q, seed=2)
    exact = ExactDenoiser(model, channel)
    scale = float(channel.schedule.intensity(t))
    tensor = torch.from_numpy(x)

    def peer(passes: Any, rows: int, compiled: bool) -> Callable[[], Any]:
        call: Any = lambda x: passes(scale * x, "beliefs")  # noqa: E731
        if compiled:
            call = torch.compile(call, dynamic=False)
        parts = tensor[:rows].split(bp.batch(model, rows))

        @torch.inference_mode()
        def run() -> Any:
            return torch.cat([call(part) for part in parts]).numpy()

        return run

    few = max(n // 16, 64)
    peers = [
        ("torch, log-space (the papers' way)", few, peer(bp.log_space(model, torch), few, False), 200.0),
        ("torch.compile, einsum, linear domain", n,
         peer(bp.einsum(model, torch, torch.from_numpy), n, True), 20.0),
    ]  # fmt: skip
    if not quick:
        fastest = bp.unrolled(model, torch, torch.from_numpy)
        peers.append(
            ("torch.compile, rules unrolled (our algorithm)", n, peer(fastest, n, True), None)
        )
    return Part("Exact denoiser, t = 75", "sequences", n, lambda: exact(x, t), peers, _largest, 1e-4,
                8 * Q * LEAVES)  # fmt: skip


def gaussian(n: int) -> list[Part]:
    """Normal numbers alone, and in a step of the process."""
    size = Q * LEAVES
    out, rng = np.empty((n, size), np.float32), np.random.default_rng(0)
    numbers = torch.empty(n, size)
    noise = Part(
        "Normal numbers", "numbers", n * size,
        lambda: normal(1, "user", 0, n, size, out=out, num_threads=1),
        [("torch.randn", n * size, lambda: numbers.normal_().numpy(), None),
         ("numpy Generator", n * size, lambda: rng.standard_normal(dtype=np.float32, out=out), None)],
        lambda a, b: abs(float(a.mean())) + abs(float(b.mean())) + abs(float(a.std() / b.std()) - 1),
        0.02, 4,
    )  # fmt: skip
    x, x0 = out.copy(), np.random.default_rng(1).random((n, size), dtype=np.float32)
    y, y0 = torch.from_numpy(x.copy()), torch.from_numpy(x0)

    def theirs() -> Any:
        return (0.02 * y0 + 0.97 * y + 0.1 * torch.randn_like(y)).numpy()

    step = Part(
        "Reverse step with its noise", "numbers", n * size,
        lambda: reverse_step(x, x0, 0.02, 0.97, 0.1, 1, "reverse", 7, num_threads=1),
        [("torch, randn and three operations", n * size, theirs, None)],
        lambda a, b: abs(float(a.mean() - b.mean())), 0.05, 12,
    )  # fmt: skip
    return [noise, step]


def chain(model: hfilter.TreeModel, channel: Any, n: int, threads: int) -> Part:
    """Samples by 500 exact reverse steps, noise included."""
    schedule, exact = channel.schedule, ExactDenoiser(model, channel)
    few = max(n // 10, 16)
    passes: Any = torch.compile(bp.einsum(model, torch, torch.from_numpy), dynamic=False)

    @torch.inference_mode()
    def theirs() -> Any:
        x = torch.randn(few, LEAVES, Q)
        for t in range(schedule.n_steps, 0, -1):
            x0 = passes(float(schedule.intensity(t)) * x, "beliefs")
            a, b, s = (float(f) for f in schedule.posterior(t))
            x = a * x0 + b * x + s * torch.randn_like(x)
        return x.argmax(-1).numpy()

    def ours() -> Any:
        return generate(exact, n, seed=1, num_threads=threads).leaves

    def law(a: Any, b: Any) -> float:
        """Distance of the laws of single leaves, pooled."""
        count = [
            np.bincount(np.asarray(x).ravel(), minlength=Q) / np.asarray(x).size for x in (a, b)
        ]
        return float(np.abs(count[0] - count[1]).sum())

    return Part(f"Exact reverse chain, {STEPS} steps, {threads} threads" if threads > 1 else
                f"Exact reverse chain, {STEPS} steps", "sequences", n, ours,
                [("torch, compiled einsum and randn", few, theirs, None)] if threads == 1 else [],
                law, 0.2, 12 * STEPS * Q * LEAVES)  # fmt: skip


def neighbours(model: hfilter.TreeModel, n: int, stored: int, threads: int) -> Part:
    """Hamming distance to the nearest of many rows."""
    rows, data = model.sample(n, seed=3).leaves, model.sample(stored, seed=4).leaves
    few = max(n // 50, 16)
    eye = torch.eye(Q)
    left = eye[torch.from_numpy(rows[:few]).long()].flatten(1)
    right = eye[torch.from_numpy(data).long()].flatten(1).T.contiguous()

    @torch.inference_mode()
    def theirs() -> Any:
        best = [(left @ part).amax(1) for part in right.split(4096, dim=1)]
        return (LEAVES - torch.stack(best).amax(0)).numpy().astype(np.int32)

    return Part(f"Nearest of {stored:,} rows, {threads} threads" if threads > 1 else
                f"Nearest of {stored:,} rows", "rows", n,
                lambda: nearest(rows, data, num_threads=threads).distance,
                [("torch, one-hot matrix product", few, theirs, None)] if threads == 1 else [],
                lambda a, b: float(np.abs(a[: len(b)] - b).max()), 0.5, 8.0)  # fmt: skip


def memoriser(model: hfilter.TreeModel, channel: Any, n: int, stored: int) -> Part:
    """Posterior under the uniform law on stored rows, at t = 150."""
    t = 150
    data = model.sample(stored, seed=4).leaves
    held = StoredRows(data, Q)  # prepared once, as a denoiser does
    x = channel.corrupt(model.sample(n, seed=3).leaves, t, Q, seed=2)
    fields = np.asarray(channel.log_fields(x, t), np.float32)
    few = max(n // 8, 16)
    codes = torch.eye(Q)[torch.from_numpy(data).long()].flatten(1)
    given = torch.from_numpy(fields[:few]).flatten(1)

    @torch.inference_mode()
    def theirs() -> Any:
        peak = torch.full((few, 1), -torch.inf)
        total, norm = torch.zeros(few, Q * LEAVES), torch.zeros(few, 1)
        for part in codes.split(4096):
            score = given @ part.T
            top = torch.maximum(peak, score.amax(1, keepdim=True))
            weight, keep = (score - top).exp_(), (peak - top).exp()
            total = keep * total + weight @ part
            norm, peak = keep * norm + weight.sum(1, keepdim=True), top
        return (total / norm).unflatten(1, (LEAVES, Q)).numpy()

    def ours() -> Any:
        return empirical_posterior(fields, held, num_threads=1)[0]

    return Part(f"Memoriser of {stored:,} rows", "sequences", n, ours,
                [("torch, blocked matrix products", few, theirs, 10.0)], _largest, 1e-3,
                8 * Q * LEAVES)  # fmt: skip


def _largest(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a)[: len(b)] - b).max())


def measure(part: Part, rounds: int) -> None:
    """Check, then time in turn; one JSON line for each peer."""
    answer = part.ours()
    for who, _, call, _ in part.peers:
        error = part.error(np.array(answer), np.array(call()))
        if not error <= part.limit:
            raise SystemExit(f"{part.name}: {who} differs by {error:.3g} > {part.limit:g}")
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for who, n, call in [
            ("ours", part.n, part.ours),
            *((w, n, c) for w, n, c, _ in part.peers),
        ]:
            began = time.perf_counter()
            call()
            times.setdefault(who, []).append((time.perf_counter() - began) / n)
    best = min(times["ours"])
    about = {"part": part.name, "unit": part.unit, "n": part.n, "rate": 1 / best,
             "seconds": best * part.n, "gb_per_s": part.bytes_each / best / 1e9}  # fmt: skip
    if not part.peers:
        print(json.dumps(about), flush=True)
    for who, _, _, target in part.peers:
        ratio = statistics.median(b / a for a, b in zip(times["ours"], times[who], strict=True))
        said = about | {"peer": who, "peer_rate": 1 / min(times[who]), "ratio": ratio}
        met = None if target is None else ratio >= target
        print(json.dumps(said | {"target": target, "met": met}), flush=True)


def main() -> None:
    """All parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    model = hfilter.TreeModel(hfilter.Grammar.published(Q, 1.0, 0, 4), depth=4)
    channel = GaussianChannel(Schedule.published(STEPS))
    rounds = 3 if quick else 7
    few = 4096 if quick else 16_384
    measure(denoiser(model, channel, few, quick), rounds)
    for part in gaussian(few):
        measure(part, rounds)
    measure(chain(model, channel, 500 if quick else 2000, 1), 2 if quick else 3)
    measure(chain(model, channel, 1000 if quick else 10_000, 2), 2 if quick else 3)
    stored = 12_000 if quick else 70_000
    measure(neighbours(model, few, stored, 1), rounds)
    measure(neighbours(model, 50_000, stored, 2), 3)
    measure(memoriser(model, channel, 512 if quick else 1024, stored), rounds)


if __name__ == "__main__":
    main()
