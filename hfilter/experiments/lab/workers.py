"""Processes that work side by side and stop tidily."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from types import FrameType

__all__ = ["pool", "working"]


@contextmanager
def pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes with one thread each, stopped at once by whatever ends the block early."""
    # Fresh interpreters: a forked torch may hang. One thread each, for the runs share the cores.
    others = active_children()
    workers = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin_worker)
    try:
        yield workers
    except BaseException:
        # Nobody waits for hours of training after Ctrl-C: each run stops where it is, tidily.
        for child in active_children():
            if child not in others:
                child.terminate()
        workers.shutdown(wait=True, cancel_futures=True)
        raise
    workers.shutdown()


class _Worker:
    """What a process of the pool is doing, for its signal handler."""

    busy = False
    stopped = False


def _begin_worker() -> None:
    import torch

    os.environ["HFILTER_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    signal.signal(signal.SIGTERM, _stop_worker)


def _stop_worker(signum: int, frame: FrameType | None) -> None:
    if _Worker.stopped:
        return  # told twice: nothing may disturb the tidying up
    _Worker.stopped = True
    if _Worker.busy:  # otherwise the pool itself ends this process
        raise KeyboardInterrupt  # half-written files are removed on the way out


@contextmanager
def working() -> Iterator[None]:
    """Around what a process of the pool does: it is stopped there, and begins nothing once stopped."""
    # The pool's loop would go on to the next task that is queued, whatever ended the one before.
    if _Worker.stopped:
        raise KeyboardInterrupt
    _Worker.busy = True
    try:
        yield
    finally:
        _Worker.busy = False
