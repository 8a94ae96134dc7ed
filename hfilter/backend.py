"""Which backends exist, why one does not, and which one serves a call.

There are two kinds: the compiled text, once per instruction set, and the Python text, plain or under
Numba (`hfilter.runners`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import warnings
from dataclasses import dataclass

from . import cuda
from .checks import check_int
from .compiled import getenv
from .errors import ArgumentError, BackendUnavailable
from .runners import (
    Backend,
    CompiledBackend,
    TextBackend,
    instruction_sets,
    not_built,
    numba_text,
    plain_text,
)

__all__ = ["BackendInfo", "backends", "default_threads", "get_backend"]

NAMES = ("avx512", "avx2", "portable", "numba", "python", "cuda")


@dataclass(frozen=True)
class BackendInfo:
    """A value of `hfilter.backends()`: whether a backend is here, and if not, why."""

    name: str
    available: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {'available' if self.available else self.reason}"


@functools.cache
def _registry() -> dict[str, Backend | str]:
    """Every name with its backend, or with the reason why there is none."""
    found: dict[str, Backend | str] = {}
    sets = instruction_sets()
    for name in ("avx512", "avx2", "portable"):
        if not_built:
            found[name] = not_built
        elif name not in sets:
            found[name] = (
                f"not built for {platform.machine()} by the compiler that built module _cpu"
            )
        else:
            found[name] = CompiledBackend(name) if sets[name] else f"this processor has no {name}"
    if importlib.util.find_spec("numba") is None:
        found["numba"] = "numba is not installed (pip install 'hfilter[numba]')"
    else:
        found["numba"] = TextBackend("numba", numba_text, 1 << 23, compiled=True)
    found["python"] = TextBackend("python", plain_text, 1 << 15, compiled=False)
    return found


def _entry(name: str) -> Backend | str:
    """One name's backend or reason. CUDA is asked for only by name: to look for a device starts its driver."""
    if name == "cuda":
        return cuda.unavailable() or cuda.CudaBackend("cuda")
    if name == "cuda-host":  # the device's kernels in a loop on the host: for tests, and not listed
        return cuda.CudaBackend("cuda-host")
    return _registry()[name]


def backends() -> dict[str, BackendInfo]:
    """What is here, and why what is not here is not.

    Returns
    -------
    dict of str to BackendInfo
        Fastest first; each has `name`, `available` and `reason` (empty when available).

    Examples
    --------
    >>> import hfilter
    >>> hfilter.backends()["python"].available
    True
    """
    return {
        name: BackendInfo(name, not isinstance(entry, str), entry if isinstance(entry, str) else "")
        for name in NAMES
        for entry in [_entry(name)]
    }


@functools.cache
def _fastest(name: str | None) -> Backend:
    """The first backend that is here, or the first instruction set for "cpu".

    If it is plain Python, which takes a millisecond a sequence and nobody chose, says so once.
    """
    for candidate in NAMES[:3] if name == "cpu" else NAMES[:5]:
        entry = _entry(candidate)
        if not isinstance(entry, str):
            if candidate == "python":
                warnings.warn(
                    f"plain Python serves hfilter here, thousands of times slower than compiled: {not_built}; "
                    "numba would do too; HFILTER_BACKEND=python says this is meant",
                    RuntimeWarning,
                    stacklevel=4,
                )
            return entry
    raise BackendUnavailable(f"cpu: {_entry('portable')}; available: {_here()}")


def _here() -> str:
    return ", ".join(name for name in NAMES if not isinstance(_entry(name), str))


def get_backend(name: str | None = None) -> Backend:
    """The backend of that name; by default HFILTER_BACKEND, or else the fastest there is.

    ``"cpu"`` is the best compiled instruction set.

    Raises
    ------
    BackendUnavailable
        With the reason and the names that are available.
    """
    source = "backend"
    if name is None:
        name = getenv("HFILTER_BACKEND") or None
        source = "HFILTER_BACKEND"
    if name is None or name == "cpu":
        return _fastest(name)
    if name not in (*NAMES, "cuda-host"):
        raise BackendUnavailable(
            f"{source} must be one of cpu, {', '.join(NAMES)}, got {name!r}; available: {_here()}"
        )
    entry = _entry(name)
    if isinstance(entry, str):
        raise BackendUnavailable(f"{name}: {entry}; available: {_here()}")
    return entry


def default_threads() -> int:
    """HFILTER_NUM_THREADS, or the processors this process may use."""
    text = getenv("HFILTER_NUM_THREADS")
    if text:
        try:
            return check_int("HFILTER_NUM_THREADS", int(text), 1, 1024)
        except ValueError:
            raise ArgumentError(
                f"HFILTER_NUM_THREADS must be an integer from 1 to 1024, got {text!r}"
            ) from None
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
