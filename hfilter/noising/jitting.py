"""Loops of the Python text compiled by Numba, kept on disk by the digest of all of them (as hfilter.runners does)."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["compile_loops", "over_rows"]


@functools.cache
def compile_loops(*functions: Callable[..., Any]) -> Callable[..., None]:
    """The last of `functions`, which calls those before it, compiled."""
    import numba

    code = [(f.__code__.co_code, f.__code__.co_consts) for f in functions]
    version = hashlib.sha256(repr(code).encode()).hexdigest()[:12]
    namespace: dict[str, Any] = {}
    for function in functions:
        namespace.update(function.__globals__)
    made: Any = None
    for i, function in enumerate(functions):
        copy = types.FunctionType(function.__code__, namespace, function.__name__)
        copy.__module__ = function.__module__
        copy.__qualname__ = f"{function.__name__}_{version}"
        entry = i == len(functions) - 1
        options: Any = {"nogil": True, "error_model": "numpy", "forceinline": not entry}
        try:
            made = numba.njit(cache=entry, **options)(copy)
        except RuntimeError:  # nowhere to keep it: compiled anew in every process
            made = numba.njit(**options)(copy)
        namespace[function.__name__] = made
    return made  # type: ignore[no-any-return]


def over_rows(work: Callable[[int, int], None], n: int, threads: int) -> None:
    """Call work(begin, end) on as many parts of n rows as there are threads."""
    threads = max(1, min(threads, n))
    cuts = [n * t // threads for t in range(threads + 1)]
    if threads == 1:
        work(0, n)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, cuts[t], cuts[t + 1]) for t in range(threads)]:
            done.result()
