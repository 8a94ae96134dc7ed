"""The state of a fit, and a file it is kept in so that it can go on: a NumPy archive without pickles."""

from __future__ import annotations

import io
import itertools
import json
import os
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ArgumentError, DataError
from ..files import atomic_write
from .parameters import Array

__all__ = ["State", "read_state", "write_state"]

_FORMAT = "hfilter-fit-1"
_ARRAYS = ("at", "best_at", "memory", "fallback")


@dataclass
class State:
    """Where a fit stands: before an E-step, or done.

    A point is an array of all parameters: the rules' probabilities, then the root's law.

    Attributes
    ----------
    at : ndarray, shape (size,)
        The point to look at next.
    best_at : ndarray, shape (size,)
        That of the best restart that is done.
    memory : ndarray, shape (0 … 2, size)
        The points before, since the last extrapolation.
    fallback : ndarray, shape (0 or 1, size)
        If `at` was extrapolated: where to go on if it is no better.
    step : float
        How far an extrapolation may go.
    restart : int
        The one that runs; their number if all are done.
    rejected : int
        Its extrapolations that were no better.
    traces : list of list of float
        The objective per sequence at every point taken, for every restart begun.
    converged : list of bool
        For every restart that is done.
    best : int
        The best restart that is done; -1 if none is.
    log_likelihood : float
        Per sequence, of the best one.
    """

    at: Array
    best_at: Array
    memory: Array
    fallback: Array
    step: float = 1.0
    restart: int = 0
    rejected: int = 0
    traces: list[list[float]] = field(default_factory=list)
    converged: list[bool] = field(default_factory=list)
    best: int = -1
    log_likelihood: float = -np.inf


def write_state(path: str | os.PathLike[str], problem: dict[str, Any], state: State) -> None:
    """Write the state of the fit that `problem` describes; what stood there survives a failure."""
    header = {
        "format": _FORMAT,
        "problem": problem,
        "restart": state.restart,
        "rejected": state.rejected,
        "lengths": [len(t) for t in state.traces],
        "converged": state.converged,
        "best": state.best,
    }
    arrays = {name: getattr(state, name) for name in _ARRAYS}
    arrays["traces"] = np.array([x for t in state.traces for x in t])
    arrays["numbers"] = np.array([state.step, state.log_likelihood])
    content = io.BytesIO()
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(content, allow_pickle=False, header=text, **arrays)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def read_state(path: str | os.PathLike[str], problem: dict[str, Any], size: int) -> State | None:
    """The state in a file, or None if there is no file.

    Raises
    ------
    ArgumentError
        If it is the state of another fit.
    DataError
        If it is damaged or not ours.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {name}: {error}") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        header = json.loads(bytes(arrays["header"]))
        if header["format"] != _FORMAT:
            raise ValueError("another format")
        found = header["problem"]
        other = [key for key in problem if found.get(key) != problem[key]]
        state = None if other else _restore(header, arrays, size)
    except (
        ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, OSError,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise DataError(
            f"{name} is not a checkpoint of hfilter.fit, or is damaged; delete it to begin anew"
        ) from error
    if state is None:
        raise ArgumentError(
            f"checkpoint {name} is of another fit: it differs in {', '.join(other)}; give another "
            "name, or delete it"
        )
    return state


def _restore(header: dict[str, Any], arrays: dict[str, Any], size: int) -> State:
    ends = np.cumsum([0, *(int(n) for n in header["lengths"])])
    values = arrays["traces"].tolist()
    parts = {name: arrays[name] for name in _ARRAYS}
    for name, part in parts.items():
        shape = (size,) if name in ("at", "best_at") else (len(part), size)
        if part.dtype != np.float64 or part.shape != shape or not (part >= 0).all():
            raise ValueError(f"{name} does not fit")
    restart, best, done = int(header["restart"]), int(header["best"]), len(header["converged"])
    begun = len(header["lengths"])
    if ends[-1] != len(values) or restart != done or not done <= begun <= done + 1 or best >= done:
        raise ValueError("the parts do not fit together")
    step, log_likelihood = arrays["numbers"].tolist()
    return State(
        **parts,
        step=step,
        restart=restart,
        rejected=int(header["rejected"]),
        traces=[values[a:b] for a, b in itertools.pairwise(ends)],
        converged=[bool(x) for x in header["converged"]],
        best=best,
        log_likelihood=log_likelihood,
    )
