"""BEAGLE (libhmsbeagle), the phylogeneticists' library, through our own program beside this file."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, _factorised
from process import BUILD, Offer, Unavailable

PROGRAM = BUILD / "beagle_peer"
CACHED = 2000  # patterns whose partials (half a megabyte) stay in a core's cache


def about() -> dict[str, str]:
    """Nothing yet: the program says its version when it runs."""
    if not PROGRAM.exists():
        raise Unavailable(
            "build/beagle_peer is missing: its library was not found when `make bench` looked "
            "(Debian and Ubuntu: libhmsbeagle-dev)"
        )
    return {}


def offers(case: Case, evidence: Any) -> list[Offer]:
    """The partials alone, and with the patterns' log-likelihoods, in either precision."""
    found = []
    for precision in ("single", "double"):
        for block in (case.n, CACHED):
            with tempfile.TemporaryDirectory() as name:
                program, answer, version = _start(case, evidence, block, precision, Path(name))
            for who, what in (("BEAGLE, partials", "partials"),
                              ("BEAGLE, with log-likelihoods", "likelihood")):  # fmt: skip
                found.append(
                    Offer(who, lambda a=answer: a, len(answer), f"{version}, {block} patterns",
                          seconds=functools.partial(_seconds, program, what))
                )  # fmt: skip
    return found


def _start(case: Case, evidence: Any, block: int, precision: str, folder: Path) -> Any:
    model = case.tree()
    tensor = _factorised().tensor()
    left, right = tensor.sum(axis=2), tensor.sum(axis=1)
    sizes = f"{model.vocab_size} {model.depth} {case.n} {block} {precision}\n"
    values = np.concatenate([left.ravel(), right.ravel(), model.root_prior])
    (folder / "spec").write_text(sizes + " ".join(f"{x:.17g}" for x in values))
    (folder / "states").write_bytes(np.ascontiguousarray(evidence, np.uint8).tobytes())
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the program inherits it
    program = subprocess.Popen(
        [PROGRAM, folder / "spec", folder / "states", folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None
    version = program.stdout.readline().strip()
    if not version:
        raise RuntimeError("beagle_peer ended before it answered")
    return program, np.fromfile(folder / "log_likelihoods.f64"), version


def _seconds(program: Any, what: str, repeat: int) -> float:
    program.stdin.write(f"{what} {repeat}\n")
    program.stdin.flush()
    return float(program.stdout.readline())
