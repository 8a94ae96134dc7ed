"""How a reverse process runs: rows in blocks, all steps of a block, blocks on threads.

Noise is a function of (seed, sample, step), so a block needs nothing of the others, and what one block
works on stays in a cache for all its steps.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import allocate
from hfilter.backend import default_threads
from hfilter.checks import check_int
from hfilter.noising import gaussian
from hfilter.noising.discrete import DiscreteChannel
from hfilter.philox import philox4x32

from .denoisers import Denoiser
from .values import host_of

__all__ = ["Chain", "Plan", "run"]

_CACHED = (
    3 << 15
)  # numbers of one state that leave room in a core's cache for what is computed from it
_LARGE = 1 << 23  # numbers of one state for a denoiser that has its own threads or its own device
_LEAST = 16  # rows that go through a kernel together
_DRAWS = 0x6A6F696E  # counter word of the seeds of joint draws


class Stopped(Exception):
    """Another thread failed or was interrupted."""


@dataclass(frozen=True)
class Chain:
    """A process from time t to 0, but for the states it begins with."""

    denoiser: Denoiser
    t: int
    seed: int
    start: int
    steps: list[tuple[float, float, float]]  # (a, b, s) of times 1 … t, for a Gaussian channel
    temperature: float
    joint: bool
    last: str
    kept: frozenset[int]  # times of the trajectory

    def block(
        self,
        x: Any,
        rows: slice,
        out: dict[str, Any],
        threads: int | None,
        tick: Callable[[int], None],
    ) -> None:
        """Run rows of the whole from their states x, which are overwritten, into `out`."""
        first = self.start + rows.start
        lost: NDArray[np.bool_] = np.zeros(rows.stop - rows.start, np.bool_)
        for t in range(self.t, 0, -1):
            joint = draw = None
            if self.joint:
                draw = self.denoiser.draw(
                    x, t, seed=step_seed(self.seed, t), start=first, num_threads=threads
                )
                joint = self._one_hot(draw)
            if joint is None or t in self.kept:
                answer = self.denoiser.answer(x, t, num_threads=threads)
            if t in self.kept:
                out["states"][t][rows] = x
                out["predictions"][t][rows] = answer
            law = answer if joint is None else joint
            if not self.denoiser.channel.continuous:
                lost = lost | undefined(law)
            if t > 1:
                x = self._step(x, t, law, first, threads)
            tick(len(lost))
        if draw is None:
            lost = lost | undefined(law)
            leaves = self._end(law, first)
        else:
            leaves = host_of(draw)
        leaves = np.where(lost[:, None], self.denoiser.vocab_size, leaves)
        out["leaves"][rows] = sent(
            leaves.astype(np.uint8 if self.denoiser.vocab_size <= 255 else np.uint16), out["leaves"]
        )
        out["impossible"][rows] = sent(lost, out["impossible"])
        if out["probabilities"] is not None:
            out["probabilities"][rows] = law

    def _step(self, x: Any, t: int, law: Any, first: int, threads: int | None) -> Any:
        channel = self.denoiser.channel
        if not isinstance(channel, DiscreteChannel):
            a, b, s = self.steps[t - 1]
            gaussian.reverse_step(
                x, law, a, b, s, self.seed, "reverse", t, start=first, num_threads=threads
            )
            return x
        tokens = channel.reverse_law(x, t, law)
        draw = self._choose(host_of(tokens), t, first)
        known = ~undefined(law)[:, None]  # a row that has become impossible stays as it is
        return sent(np.where(known, draw, host_of(x)).astype(host_of(x).dtype), x)

    def _end(self, law: Any, first: int) -> NDArray[Any]:
        values = host_of(law)
        if self.last == "sample":
            return self._choose(values, 0, first)
        known = np.where(np.isnan(values), 0.0, values) if np.isnan(values).any() else values
        best: NDArray[Any] = known.argmax(axis=2)
        return best

    def _choose(self, law: NDArray[Any], t: int, first: int) -> NDArray[Any]:
        """A token from each law (n, L, states), with the uniform numbers of time t."""
        if self.temperature == 0.0:
            best: NDArray[Any] = np.where(np.isnan(law), 0.0, law).argmax(axis=2)
            return best
        weights = np.where(np.isnan(law), 1.0, law).astype(np.float64)
        if self.temperature != 1.0:
            weights = (weights / weights.max(axis=2, keepdims=True)) ** (1.0 / self.temperature)
        reach = weights.cumsum(axis=2)
        draw = gaussian.uniform(self.seed, "reverse", t, *law.shape[:2], start=first)
        # Below the largest sum, so that a state of probability 0 is never drawn.
        point = np.minimum(draw * reach[..., -1], np.nextafter(reach[..., -1], 0.0))
        found: NDArray[Any] = (point[..., None] >= reach).sum(axis=2)
        return found

    def _one_hot(self, tokens: Any) -> Any:
        """Float codes (n, L, q) of drawn tokens; NaN for an impossible row."""
        q = self.denoiser.vocab_size
        if isinstance(tokens, np.ndarray):
            codes = (tokens[..., None] == np.arange(q)).astype(np.float32)
            codes[tokens[:, 0] >= q] = np.nan
            return codes
        import torch

        codes = (tokens[..., None].long() == torch.arange(q, device=tokens.device)).float()
        codes[tokens[:, 0].long() >= q] = torch.nan
        return codes


@dataclass(frozen=True)
class Plan:
    """A chain, its number of rows, and where their states come from."""

    chain: Chain
    n: int
    initial: Callable[[slice], Any]
    device: Any  # None: NumPy

    def outputs(self) -> dict[str, Any]:
        d = self.chain.denoiser
        length, q = d.n_leaves, d.vocab_size
        kind = np.uint8 if q <= 255 else np.uint16
        state = (
            ((length, q), np.dtype(np.float32))
            if d.channel.continuous
            else ((length,), np.dtype(kind))
        )
        kept = sorted(self.chain.kept)
        law = ((length, q), np.dtype(np.float32))
        return {
            "leaves": self._new((length,), np.dtype(kind)),
            "impossible": self._new((), np.dtype(np.bool_)),
            "probabilities": self._new(*law) if self.chain.last == "probabilities" else None,
            "states": {t: self._new(*state) for t in kept},
            "predictions": {t: self._new(*law) for t in kept},
        }

    def _new(self, row: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        if self.device is None:
            return allocate((self.n, *row), dtype)
        import torch

        return torch.empty((self.n, *row), dtype=getattr(torch, dtype.name), device=self.device)

    def block_rows(self, threads: int) -> int:
        """Rows of a block: as many as a cache holds, and at least a block for each thread."""
        d = self.chain.denoiser
        numbers = d.n_leaves * d.vocab_size
        if self.device is not None or not d.threaded:
            return max(_LEAST, _LARGE // numbers)
        share = -(-self.n // threads)
        return max(_LEAST, min(_CACHED // numbers, -(-share // _LEAST) * _LEAST))


def run(plan: Plan, progress: bool | None, num_threads: int | None) -> dict[str, Any]:
    """All rows of a plan; arrays by name."""
    threads = (
        default_threads() if num_threads is None else check_int("num_threads", num_threads, 1, 1024)
    )
    out = plan.outputs()
    rows = plan.block_rows(threads)
    blocks = [slice(i, min(i + rows, plan.n)) for i in range(0, plan.n, rows)]
    shared = (
        plan.device is None and plan.chain.denoiser.threaded and threads > 1 and len(blocks) > 1
    )
    stop = threading.Event()

    def one(part: slice) -> None:
        x = owned(plan.initial(part), plan.chain.denoiser)
        each = 1 if shared else None if num_threads is None else threads

        def tick(count: int) -> None:
            if stop.is_set():
                raise Stopped
            bar(count)

        plan.chain.block(x, part, out, each, tick)

    with meter(plan.n * plan.chain.t, progress) as bar:
        if not shared:
            for part in blocks:
                one(part)
            return out
        with ThreadPoolExecutor(min(threads, len(blocks))) as pool:
            jobs = [pool.submit(one, part) for part in blocks]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:  # Ctrl-C too: the others end at their next step
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return out


def owned(x: Any, denoiser: Denoiser) -> Any:
    """A copy of a state that a process may write to, in the type it runs in."""
    if isinstance(x, np.ndarray):
        if denoiser.channel.continuous:
            return np.array(x, np.float32, order="C")
        return np.array(x, np.uint8 if denoiser.vocab_size <= 255 else np.uint16)
    return x.float().contiguous().clone() if denoiser.channel.continuous else x.clone()


def undefined(law: Any) -> NDArray[np.bool_]:
    """Rows that hold a NaN."""
    if isinstance(law, np.ndarray):
        return np.asarray(np.isnan(law).any(axis=(1, 2)))
    lost: NDArray[np.bool_] = law.isnan().any(-1).any(-1).cpu().numpy()
    return lost


def sent(x: NDArray[Any], like: Any) -> Any:
    """A NumPy array as an array of the library and device of `like`."""
    if isinstance(like, np.ndarray):
        return x
    import torch

    return torch.from_numpy(x).to(like.device)


def step_seed(seed: int, t: int) -> int:
    """A seed for the joint draws of one time: 64 bits that depend on both."""
    time, zero, tag = (np.uint64(word) for word in (t, 0, _DRAWS))
    key = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)
    words = philox4x32(time, zero, zero, tag, key[0], key[1])
    return int(words[0]) | int(words[1]) << 32


class meter:
    """A progress bar with rate on standard error, and a function to advance it."""

    def __init__(self, total: int, wanted: bool | None) -> None:
        self._bar: Any = None
        self._lock = threading.Lock()
        if wanted is False or (wanted is None and not sys.stderr.isatty()):
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        delay = 0.0 if wanted else 2.0
        self._bar = tqdm(
            total=total,
            unit=" steps",
            unit_scale=True,
            delay=delay,
            desc="reverse",
            dynamic_ncols=True,
        )

    def __enter__(self) -> Callable[[int], None]:
        return self._advance

    def __exit__(self, *failure: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _advance(self, count: int) -> None:
        if self._bar is not None:
            with self._lock:
                self._bar.update(count)
