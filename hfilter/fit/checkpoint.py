"""The state of a fit in a file, so that it can go on where it stopped: a NumPy archive without pickles."""

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
_ARRAYS = ("theta", "prior", "best_theta", "best_prior")


@dataclass
class State:
    """Where a fit stands: between an M-step and the next E-step, or done.

    Attributes
    ----------
    restart : int
        The one that runs; their number if all are done.
    theta, prior : ndarray
        Its parameters.
    traces : list of list of float
        The objective per sequence at each iteration, for every restart begun.
    converged : list of bool
        For every restart that is done.
    best : int
        The best restart that is done; -1 if none is.
    best_theta, best_prior : ndarray
        Its parameters.
    log_likelihood : float
        Per sequence, of the best one.
    """

    restart: int
    theta: Array
    prior: Array
    best_theta: Array
    best_prior: Array
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
        "lengths": [len(t) for t in state.traces],
        "converged": state.converged,
        "best": state.best,
    }
    arrays = {name: getattr(state, name) for name in _ARRAYS}
    arrays["traces"] = np.array([x for t in state.traces for x in t])
    arrays["log_likelihood"] = np.array([state.log_likelihood])
    content = io.BytesIO()
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(content, allow_pickle=False, header=text, **arrays)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def read_state(path: str | os.PathLike[str], problem: dict[str, Any], n_rules: int) -> State | None:
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
        state = _restore(header, arrays, n_rules if found == problem else -1)
    except (
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        IndexError,
        OSError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(
            f"{name} is not a checkpoint of hfilter.fit, or is damaged; delete it to begin anew"
        ) from error
    if found != problem:
        other = [key for key in problem if found.get(key) != problem[key]]
        raise ArgumentError(
            f"checkpoint {name} is of another fit: it differs in {', '.join(other)}; give another "
            "name, or delete it"
        )
    return state


def _restore(header: dict[str, Any], arrays: dict[str, Any], n_rules: int) -> State:
    ends = np.cumsum([0, *(int(n) for n in header["lengths"])])
    values = arrays["traces"].tolist()
    parts = [arrays[name] for name in _ARRAYS]
    sizes_fit = all(
        a.dtype == np.float64 and a.shape == b.shape and np.isfinite(a).all() and (a >= 0).all()
        for a, b in ((parts[0], parts[2]), (parts[1], parts[3]))
    )
    restart, best = int(header["restart"]), int(header["best"])
    done = len(header["converged"])
    if (
        not sizes_fit
        or (n_rules >= 0 and parts[0].shape != (n_rules,))
        or ends[-1] != len(values)
        or restart != done
        or not done <= len(header["lengths"]) <= done + 1
        or best >= done
    ):
        raise ValueError("the parts do not fit together")
    return State(
        restart=restart,
        theta=parts[0],
        prior=parts[1],
        best_theta=parts[2],
        best_prior=parts[3],
        traces=[values[a:b] for a, b in itertools.pairwise(ends)],
        converged=[bool(x) for x in header["converged"]],
        best=best,
        log_likelihood=float(arrays["log_likelihood"][0]),
    )
