"""Contestants in processes of their own: the parent's handle, and what the child runs.

A child answers one JSON line with one JSON line and is otherwise asleep, so that at any time one
contestant computes and all can take turns within a round.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
ONE_THREAD = {
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")},
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_COMPILATION_CACHE_DIR": str(BUILD / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor"),
}


class Unavailable(RuntimeError):
    """A group of contestants cannot run here; the text is the reason."""


@dataclass(frozen=True)
class Offer:
    """A contestant as its process offers it; `call` answers the first `rows` questions."""

    who: str
    call: Callable[[], Any]
    rows: int
    variant: str = ""  # formulations of one contestant: the fastest is taken
    threads: int = 1
    seconds: Callable[[int], float] | None = (
        None  # a contestant that times itself, in `repeat` calls
    )


class Child:
    """A group of contestants in its own process.

    Parameters
    ----------
    group : str
        Name of the module in this folder that offers them.
    path : str, optional
        Where this child finds hfilter, if not where the parent does.
    """

    def __init__(self, group: str, path: str | None = None) -> None:
        self.group = group
        env = {**os.environ, **ONE_THREAD}
        env.pop("PYTHONSAFEPATH", None)  # the child imports its neighbours in this folder
        if path:
            env["PYTHONPATH"] = path
        command = [sys.executable, str(HERE / "process.py"), group]
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def about(self) -> dict[str, str]:
        """Its versions: to be asked once, first; `Unavailable` says why it cannot run."""
        found: dict[str, str] = self._reply()
        return found

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.group} ended ({self._process.wait()})")
        reply = json.loads(line)
        if isinstance(reply, dict) and "unavailable" in reply:
            self.close()
            raise Unavailable(reply["unavailable"])
        if isinstance(reply, dict) and "error" in reply:
            raise RuntimeError(f"{self.group}: {reply['error']}")
        return reply

    def ask(self, do: str, **what: Any) -> Any:
        """One question, one answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()


# ------------------------------------------------------------------------------ inside the child


class Server:
    """The child's side: offers of the group's module for one case at a time."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.offers: list[Offer] = []
        self.everywhere = os.sched_getaffinity(0)

    def load(self, case: dict[str, Any], folder: str) -> Any:
        """Build the contestants of a case; gives [who, variant, rows] of each."""
        import cases

        self.offers = []
        chosen = cases.Case(**case)
        path = Path(folder) / "evidence.npy"
        evidence = np.load(path) if path.exists() else None
        self.offers = [
            offer
            for offer in self.module.offers(chosen, evidence)
            if not chosen.only or offer.who.startswith(tuple(chosen.only))
        ]
        return [[o.who, o.variant, o.rows] for o in self.offers]

    def answer(self, index: int, path: str) -> Any:
        """Write the answer of one; this is its warm-up too."""
        self._pin(self.offers[index])
        np.save(path, np.asarray(self.offers[index].call()))
        return True

    def round(self, index: int, seconds: float) -> Any:
        """Time one for about so long: seconds a call, and the share of its cores that it got."""
        offer = self.offers[index]
        self._pin(offer)
        if offer.seconds is not None:
            once = offer.seconds(1)
            return [offer.seconds(max(1, round(seconds / once))), 1.0]
        began, repeat = time.perf_counter(), 0
        cpu = time.process_time()
        while repeat == 0 or time.perf_counter() - began < seconds:
            offer.call()
            repeat += 1
        wall = time.perf_counter() - began
        return [wall / repeat, (time.process_time() - cpu) / wall]

    def _pin(self, offer: Offer) -> None:
        one = {max(self.everywhere)}
        os.sched_setaffinity(0, one if offer.threads == 1 else self.everywhere)


def serve(group: str) -> None:
    """Answer questions from standard input until it closes."""
    wire = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print does not belong on the wire

    def send(reply: Any) -> None:
        wire.write(json.dumps(reply) + "\n")
        wire.flush()

    everywhere = os.sched_getaffinity(0)
    if group != "hfilter":  # thread pools that are sized at import have room for one
        os.sched_setaffinity(0, {max(everywhere)})
    try:
        module = importlib.import_module(f"peer_{group}")
        about = module.about()
    except (ImportError, Unavailable) as error:
        send({"unavailable": str(error)})
        return
    server = Server(module)
    server.everywhere = everywhere
    send(about)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            send(getattr(server, question.pop("do"))(**question))
        except Exception as error:
            send({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    sys.modules["process"] = sys.modules["__main__"]  # groups import it by this name
    serve(sys.argv[1])
