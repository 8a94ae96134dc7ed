"""Which backends exist, why one does not, and which one serves a call.

A backend runs the kernels on NumPy arrays that `hfilter.exact` has checked and allocated. There are
two kinds: the compiled text, once per instruction set, and the Python text, plain or under Numba.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import types
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import reference
from .checks import check_int
from .errors import ArgumentError, BackendUnavailable, KernelError
from .reference import FlatModel
from .tree import TreeStructure

try:
    from . import _cpu
except ImportError as error:
    _cpu = None  # type: ignore[assignment]
    _cpu_reason = (
        f"module _cpu was not built ({error}); install hfilter where a C++17 compiler is, without HFILTER_PURE"
    )
else:
    _cpu_reason = ""

__all__ = ["Backend", "BackendInfo", "Evidence", "Outputs", "backends", "default_threads", "get_backend"]

NAMES = ("avx512", "avx2", "portable", "numba", "python", "cuda")
Array = NDArray[Any]


@dataclass(frozen=True)
class BackendInfo:
    """One row of `hfilter.backends()`."""

    name: str
    available: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {'available' if self.available else self.reason}"


@dataclass
class Evidence:
    """What is known of n rows: tokens (n, L) and mask (n, L) or None, or log_fields (n, L, q)."""

    tokens: Array | None = None
    mask: Array | None = None
    log_fields: Array | None = None

    def rows(self, index: Any) -> Evidence:
        """The evidence of some of the rows."""
        return Evidence(*(None if x is None else x[index] for x in (self.tokens, self.mask, self.log_fields)))


@dataclass
class Outputs:
    """Arrays to fill, one row per sample; None = not wanted."""

    log_evidence: Array | None
    root: Array | None
    beliefs: list[Array | None]
    leave_one_out: Array | None

    def rows(self, index: Any) -> Outputs:
        """Views of some of the rows (copies for a fancy index)."""

        def pick(x: Array | None) -> Array | None:
            return None if x is None else x[index]

        return Outputs(
            pick(self.log_evidence), pick(self.root), [pick(b) for b in self.beliefs], pick(self.leave_one_out)
        )

    def arrays(self) -> list[Array]:
        """Those that are wanted."""
        every = [self.log_evidence, self.root, *self.beliefs, self.leave_one_out]
        return [x for x in every if x is not None]


class Backend(Protocol):
    """What `hfilter.exact` asks of a backend."""

    name: str
    block_work: int  # rule updates in a call of about a tenth of a second on one thread

    def sample(
        self, tree: TreeStructure, seed: int, start: int, n: int, roots: Array | None, levels: list[Array | None],
        num_threads: int,
    ) -> None: ...  # fmt: skip

    def infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None: ...  # fmt: skip


class CompiledBackend:
    """The C++ text for one instruction set."""

    block_work = 1 << 27

    def __init__(self, name: str) -> None:
        self.name = name

    def sample(
        self, tree: TreeStructure, seed: int, start: int, n: int, roots: Array | None, levels: list[Array | None],
        num_threads: int,
    ) -> None:  # fmt: skip
        try:
            _cpu.sample(self.name, _compiled_model(tree), n, seed, start, roots, levels, num_threads)
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"{self.name}: {error}; please report this") from error

    def infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        try:
            _cpu.infer(
                self.name, _compiled_model(tree), len(status), evidence.tokens, evidence.mask, evidence.log_fields,
                dtype.itemsize, out.log_evidence, out.root, out.beliefs, out.leave_one_out, status, num_threads,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"{self.name}: {error}; please report this") from error


class TextBackend:
    """The Python text, plain or compiled by Numba."""

    def __init__(self, name: str, text: Callable[[], dict[str, Any]], block_work: int, threaded: bool) -> None:
        self.name = name
        self.block_work = block_work
        self._text = text
        self._threaded = threaded

    def sample(
        self, tree: TreeStructure, seed: int, start: int, n: int, roots: Array | None, levels: list[Array | None],
        num_threads: int,
    ) -> None:  # fmt: skip
        model = _flat_model(tree, np.dtype(np.float64))
        kernel = self._text()["sample_rows"]
        given = np.empty(0, np.int32) if roots is None else roots
        existing = tree.existing_levels
        width = sum(tree.n_nodes(d) for d in existing)

        def rows(begin: int, end: int) -> None:
            symbols = np.empty((end - begin, width), tree.token_dtype)
            kernel(model, np.uint64(seed), np.uint64(start + begin), given[begin:end], symbols)
            at = 0
            for d in existing:
                wanted = levels[d]
                if wanted is not None:
                    wanted[begin:end] = symbols[:, at : at + tree.n_nodes(d)].reshape(wanted[begin:end].shape)
                at += tree.n_nodes(d)

        self._over_threads(rows, n, num_threads)

    def infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        model = _flat_model(tree, dtype)
        kernel = self._text()["infer_rows"]
        n = len(status)
        none = np.empty((n, 0), np.uint8)
        tokens = none if evidence.tokens is None else evidence.tokens
        mask = none if evidence.mask is None else evidence.mask.view(np.uint8)
        fields = np.empty((n, 0)) if evidence.log_fields is None else evidence.log_fields.reshape(n, -1)
        belief_at = np.full(tree.depth + 1, -1)
        width = 0
        for d, wanted in enumerate(out.beliefs):
            if wanted is not None:
                belief_at[d] = width
                width += wanted[0].size if n else 0

        def rows(begin: int, end: int) -> None:
            count = end - begin
            log_evidence = np.empty(count)
            root = np.empty((count, tree.n_classes), dtype)
            beliefs = np.empty((count, width), dtype)
            size = tree.n_leaves * tree.vocab_size if out.leave_one_out is not None else 0
            one_out = np.empty((count, size), dtype)
            kernel(model, tokens[begin:end], mask[begin:end], fields[begin:end], log_evidence, root, beliefs,
                   belief_at, one_out, status[begin:end])  # fmt: skip
            target = out.rows(slice(begin, end))
            if target.log_evidence is not None:
                target.log_evidence[:] = log_evidence
            if target.root is not None:
                target.root[:] = root
            for d, wanted in enumerate(target.beliefs):
                if wanted is not None:
                    at = int(belief_at[d])
                    wanted[:] = beliefs[:, at : at + wanted[0].size].reshape(wanted.shape)
            if target.leave_one_out is not None:
                target.leave_one_out[:] = one_out.reshape(target.leave_one_out.shape)

        self._over_threads(rows, n, num_threads)

    def _over_threads(self, rows: Callable[[int, int], None], n: int, num_threads: int) -> None:
        if n == 0:
            return

        def quietly(begin: int, end: int) -> None:
            with np.errstate(all="ignore"):
                rows(begin, end)

        threads = min(num_threads, n) if self._threaded else 1
        if threads <= 1:
            quietly(0, n)
            return
        cuts = [n * t // threads for t in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(quietly, cuts[t], cuts[t + 1]) for t in range(threads)]:
                done.result()


# A model is packed once per backend and forgotten with it.
_compiled_models: weakref.WeakKeyDictionary[TreeStructure, Any] = weakref.WeakKeyDictionary()
_flat_models: weakref.WeakKeyDictionary[TreeStructure, dict[int, FlatModel]] = weakref.WeakKeyDictionary()


def _compiled_model(tree: TreeStructure) -> Any:
    model = _compiled_models.get(tree)
    if model is None:
        model = _compiled_models[tree] = _cpu.Model(dict(tree.packed))
    return model


def _flat_model(tree: TreeStructure, dtype: np.dtype[Any]) -> FlatModel:
    """The packed tables end to end, each table once, with their offsets per level."""
    cached = _flat_models.setdefault(tree, {})
    if dtype.itemsize in cached:
        return cached[dtype.itemsize]
    packed = tree.packed
    bits = 8 * dtype.itemsize
    parts: dict[str, list[Array]] = {"first": [], "children": [], f"prob{bits}": [], "cuts": [], "picks": []}
    offsets = dict.fromkeys(parts, 0)
    rows: dict[int, list[int]] = {}
    for d, table in enumerate(packed["levels"]):
        if id(table) not in rows:
            rows[id(table)] = [
                offsets["first"], offsets[f"prob{bits}"], tree.alphabets[d], tree.alphabets[d + 1], table["cut_bits"],
                offsets["cuts"], offsets["picks"],
            ]  # fmt: skip
            for key, values in parts.items():
                values.append(table[key].ravel())
                offsets[key] += table[key].size
    joined = {key: np.concatenate(values) for key, values in parts.items()}
    cached[dtype.itemsize] = FlatModel(
        arity=tree.arity, depth=tree.depth, filter_level=tree.filter_level,
        alphabets=packed["alphabets"].astype(np.int64),
        levels=np.array([rows[id(table)] for table in packed["levels"]], np.int64),
        first=joined["first"], children=joined["children"], probability=joined[f"prob{bits}"],
        cuts=joined["cuts"], picks=joined["picks"],
        prior=packed[f"prior{bits}"], prior_cuts=packed["prior_cuts"], prior_bits=packed["prior_bits"],
        star=packed[f"star{bits}"].ravel(), star_cuts=packed["star_cuts"].ravel(), star_bits=packed["star_bits"],
        tiny=packed[f"tiny{bits}"], slack=packed[f"slack{bits}"],
    )  # fmt: skip
    return cached[dtype.itemsize]


@functools.cache
def _numba_text() -> dict[str, Any]:
    """The Python text with every function compiled; calls between them stay inside the new namespace."""
    import numba

    namespace = dict(vars(reference))
    for function in reference.TEXT:
        copy = types.FunctionType(function.__code__, namespace, function.__name__)
        copy.__module__ = reference.__name__
        options = {"nogil": True, "error_model": "numpy"}
        try:
            namespace[function.__name__] = numba.njit(cache=True, **options)(copy)
        except RuntimeError:  # nowhere to keep a cache: compile anew in every process
            namespace[function.__name__] = numba.njit(**options)(copy)
    return namespace


@functools.cache
def _registry() -> dict[str, Backend | str]:
    """Every name with its backend, or with the reason why there is none."""
    found: dict[str, Backend | str] = {}
    sets = dict(_cpu.instruction_sets()) if _cpu is not None else {}
    for name in ("avx512", "avx2", "portable"):
        if _cpu is None:
            found[name] = _cpu_reason
        elif name not in sets:
            found[name] = f"not built for {platform.machine()} by the compiler that built module _cpu"
        else:
            found[name] = CompiledBackend(name) if sets[name] else f"this processor has no {name}"
    if importlib.util.find_spec("numba") is None:
        found["numba"] = "numba is not installed (pip install 'hfilter[numba]')"
    else:
        found["numba"] = TextBackend("numba", _numba_text, 1 << 25, threaded=True)
    found["python"] = TextBackend("python", lambda: vars(reference), 1 << 15, threaded=False)
    found["cuda"] = "this version of hfilter has no CUDA kernels"
    return found


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
        for entry in [_registry()[name]]
    }


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
        name = os.environ.get("HFILTER_BACKEND") or None
        source = "HFILTER_BACKEND"
    registry = _registry()
    here = ", ".join(n for n in NAMES if not isinstance(registry[n], str))
    if name is None or name == "cpu":
        wanted = NAMES[:3] if name == "cpu" else NAMES[:5]
        for candidate in wanted:
            entry = registry[candidate]
            if not isinstance(entry, str):
                return entry
        raise BackendUnavailable(f"cpu: {registry['portable']}; available: {here}")
    entry = registry.get(name) if isinstance(name, str) else None
    if entry is None:
        raise BackendUnavailable(f"{source} must be one of cpu, {', '.join(NAMES)}, got {name!r}; available: {here}")
    if isinstance(entry, str):
        raise BackendUnavailable(f"{name}: {entry}; available: {here}")
    return entry


def default_threads() -> int:
    """HFILTER_NUM_THREADS, or the processors this process may use."""
    text = os.environ.get("HFILTER_NUM_THREADS")
    if text:
        try:
            return check_int("HFILTER_NUM_THREADS", int(text), 1, 1024)
        except ValueError:
            raise ArgumentError(f"HFILTER_NUM_THREADS must be an integer from 1 to 1024, got {text!r}") from None
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
