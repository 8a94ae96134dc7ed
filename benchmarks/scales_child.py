"""What scales.py asks of processes of their own: the peak memory of one call, torch's steps beside ours."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import hfilter

PEAKS = {
    "sample": "Sampling into `out`",
    "root": "Root posterior from tokens",
    "infer": "Posterior from tokens",
    "fields": "Posterior from fields",
}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__)), *arguments]


def _environment(threads: int) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    return env | {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}


def peak_of(kind: str, n: int) -> float:
    """Bytes beyond evidence and results that one call on n rows holds at its peak."""
    run = subprocess.run(_command("peak", kind, str(n)), env=_environment(1), capture_output=True,
                         text=True, check=True)  # fmt: skip
    return float(run.stdout)


class TorchChild:
    """A process with torch on so many threads; `ask` gives seconds a step.

    Parameters
    ----------
    threads : int
        Of torch.
    """

    def __init__(self, threads: int) -> None:
        self._process = subprocess.Popen(_command("torch", str(threads)), env=_environment(threads),
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip

    def ask(self, do: str, work: str, seconds: float) -> float:
        """`do` is alone, after, during (hfilter's calls) or during torch (its own, on another thread)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([do, work, seconds]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def __enter__(self) -> TorchChild:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.communicate()


# ------------------------------------------------------------------------------ inside the child


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"no {name} in /proc/self/status")


def peak(kind: str, n: int) -> float:
    """The high-water mark of resident memory over what lies there before, less the results."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4)
    rng = np.random.default_rng(0)
    results: list[Any] = []

    def call(evidence: Any) -> None:
        if kind == "sample":
            model.sample(len(evidence), seed=1, num_threads=2, out=evidence)
        elif kind == "root":
            results.append(model.root_posterior(evidence, num_threads=2))
        else:
            asked = {"log_fields": evidence} if kind == "fields" else {"leaves": evidence}
            post = model.infer(**asked, num_threads=2)
            results.extend([post.root, post.leaves, post.log_evidence])

    def evidence(rows: int) -> Any:
        shape = (rows, 16, 4) if kind == "fields" else (rows, 16)
        found = np.empty(shape, np.float32 if kind == "fields" else np.uint8)
        for begin in range(0, rows, 4096):  # in parts: nothing temporary may raise the mark
            part = found[begin : begin + 4096]
            part[...] = (
                rng.random(part.shape, np.float32)
                if kind == "fields"
                else rng.integers(0, 4, part.shape)
            )
        return found

    for _ in range(2):
        call(evidence(20_000))  # tables, code, arenas of the threads
    results.clear()
    given = evidence(n)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is no slack for the call
    before = _status("VmRSS")
    call(given)
    roots = n if kind == "sample" else 0
    return max(0, _status("VmHWM") - before - sum(x.nbytes for x in results) - roots)


def serve(threads: int) -> None:
    """Answer `TorchChild.ask` until the input closes."""
    import torch

    from hfilter.learn.encoder import Encoder
    from hfilter.learn.presets import fast_mlm

    torch.set_num_threads(threads)
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4)
    encoder = Encoder(fast_mlm(model)[0])
    tokens = torch.randint(4, (64, 16))
    a, b = torch.randn(512, 512), torch.randn(512, 512)

    def step() -> None:
        encoder.zero_grad()
        encoder(tokens).square().mean().backward()

    works: dict[str, Callable[[], Any]] = {"matrix product": lambda: a @ b, "encoder step": step}
    leaves = np.zeros((2_000_000, 16), np.uint8)

    def sample(num_threads: int) -> None:
        model.sample(len(leaves), seed=1, num_threads=num_threads, out=leaves)

    c, product = torch.randn(1024, 1024), torch.empty(1024, 1024)
    neighbours: dict[str, Callable[[], Any]] = {
        "during": lambda: sample(1), "during torch": lambda: torch.mm(c, c, out=product),
    }  # fmt: skip
    for line in sys.stdin:
        do, work, seconds = json.loads(line)
        if do == "after":
            sample(2)
            model.infer(leaves[:20_000], num_threads=2)
        elif do == "alone":
            for _ in range(4):  # as long at work: the system's scheduler favours who was asleep
                torch.mm(c, c, out=product)
        stop = threading.Event()
        other = threading.Thread(target=_busy, args=(neighbours.get(do), stop))
        other.start()
        print(_typical(works[work], seconds), flush=True)
        stop.set()
        other.join()


def _busy(work: Callable[[], Any] | None, stop: threading.Event) -> None:
    while work is not None and not stop.is_set():
        work()


def _typical(work: Callable[[], Any], seconds: float) -> float:
    """The faster quartile of single runs, after one to warm up: other programs slow many of them."""
    work()
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.quantile(times, 0.25))


if __name__ == "__main__":
    if sys.argv[1] == "peak":
        print(peak(sys.argv[2], int(sys.argv[3])))
    else:
        serve(int(sys.argv[2]))
