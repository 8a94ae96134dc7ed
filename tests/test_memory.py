"""Peak memory beyond what goes in and what comes out does not grow with the number of rows."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

import hfilter
from hfilter import Grammar, TreeModel

# The system's own account of a whole process: it sees what the kernels allocate, not only what Python does.
CHILD = """
import contextlib, ctypes, sys
import numpy as np
import hfilter

model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4)
kind, n = sys.argv[1], int(sys.argv[2])
results = []


def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return 1024 * int(line.split()[1])


def evidence(rows):
    shape = (rows, 16, 4) if kind == "fields" else (rows, 16)
    found = np.empty(shape, np.float32 if kind == "fields" else np.uint8)
    for i in range(0, rows, 1000):  # in parts: nothing temporary may raise the mark
        found[i : i + 1000] = i % 3
    return found


def call(x):
    if kind == "sample":
        results.append(model.sample(len(x), seed=1, out=x, num_threads=2).roots)
    elif kind == "root":
        results.append(model.root_posterior(x, num_threads=2))
    elif kind == "leave-one-out":
        results.append(model.leave_one_out(x, num_threads=2))
    else:
        post = model.infer(**{"log_fields" if kind == "fields" else "leaves": x}, num_threads=2)
        results.extend([post.root, post.leaves, post.log_evidence])
    if kind == "mutant":
        results[-1] = results[-1] + 0.0  # eight bytes a row for a moment: what this test must see


call(evidence(10_000))
results.clear()
given = evidence(n)
with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is no slack for the call
before = status("VmRSS")
call(given)
print(max(0, status("VmHWM") - before - sum(x.nbytes for x in results)))
"""


def beyond(kind: str, n: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(n)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="no /proc/self/status on this system"
)
@pytest.mark.parametrize("kind", ["sample", "root", "leave-one-out", "infer", "fields", "mutant"])
def test_resident_memory_does_not_grow_with_n(kind: str) -> None:
    """Four bytes a row would be 3.6 MB; pages and arenas come and go within less than one."""
    if hfilter.provenance()["backend"] not in ("avx512", "avx2", "portable"):
        pytest.skip("minutes without the compiled kernels, whose memory this is about")
    small, large = beyond(kind, 100_000), beyond(kind, 1_000_000)
    assert large < 16e6 or kind == "mutant"
    assert (large - small < 3e6) == (kind != "mutant"), (small, large)


@pytest.mark.parametrize("levels", [None, "all"])
def test_memory_does_not_grow_with_n(levels: str | None) -> None:
    """Peak memory beyond inputs and outputs: bounded, whatever the number of rows."""
    model = TreeModel(Grammar.published(4, 1.0, 0), 6, 2)

    def beyond_outputs(n: int) -> int:
        leaves = model.sample(n, seed=3).leaves
        tracemalloc.start()
        post = model.infer(leaves, levels=levels, num_threads=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        held = [post.log_evidence, post.root, post.leaves]
        if levels == "all":
            held += [post.level(d) for d in (2, 3, 4, 5)]
        return peak - sum(x.nbytes for x in held)

    small, large = beyond_outputs(20_000), beyond_outputs(80_000)
    assert large < 64e6
    assert large - small < 4e6 + 60_000 * 16, "scratch grows with the number of rows"


def test_sampling_memory_does_not_grow_with_n() -> None:
    model = TreeModel(Grammar.published(4, 1.0, 0), 6, 2)

    def beyond_outputs(n: int) -> int:
        tracemalloc.start()
        sample = model.sample(n, seed=3, num_threads=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - sample.leaves.nbytes - sample.roots.nbytes

    small, large = beyond_outputs(50_000), beyond_outputs(400_000)
    assert large < 64e6
    assert large - small < 4e6, "scratch grows with the number of rows"
