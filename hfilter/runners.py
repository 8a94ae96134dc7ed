"""What runs a call: the compiled text of one instruction set, or the Python text, plain or jitted.

A runner takes NumPy arrays that `hfilter.exact` has checked and allocated.
"""

from __future__ import annotations

import functools
import hashlib
import types
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import philox, reference, scaling
from .compiled import _cpu, not_built
from .errors import HFilterError, KernelError
from .evidence import Evidence, Outputs
from .flat import FlatModel, flatten
from .tree import TreeStructure

__all__ = [
    "Backend",
    "CompiledBackend",
    "TextBackend",
    "compiled_model",
    "instruction_sets",
    "not_built",
    "numba_text",
]

Array = NDArray[Any]


def instruction_sets() -> dict[str, bool]:
    """Instruction sets of the compiled module, and whether this machine runs them."""
    return dict(_cpu.instruction_sets()) if _cpu is not None else {}


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
            _cpu.sample(self.name, compiled_model(tree), n, seed, start, roots, levels, num_threads)
        except HFilterError:  # of packing the model
            raise
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"{self.name}: {error}; please report this") from error

    def infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        try:
            _cpu.infer(
                self.name, compiled_model(tree), len(status), evidence.tokens, evidence.mask, evidence.log_fields,
                dtype.itemsize, out.log_evidence, out.root, out.beliefs, out.leave_one_out, status, num_threads,
            )  # fmt: skip
        except HFilterError:  # of packing the model
            raise
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"{self.name}: {error}; please report this") from error


class TextBackend:
    """The Python text, plain or compiled by Numba."""

    def __init__(
        self, name: str, text: Callable[[], dict[str, Any]], block_work: int, threaded: bool
    ) -> None:
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
                    wanted[begin:end] = symbols[:, at : at + tree.n_nodes(d)].reshape(
                        wanted[begin:end].shape
                    )
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
        fields = (
            np.empty((n, 0)) if evidence.log_fields is None else evidence.log_fields.reshape(n, -1)
        )
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
_flat_models: weakref.WeakKeyDictionary[TreeStructure, dict[int, FlatModel]] = (
    weakref.WeakKeyDictionary()
)


def compiled_model(tree: TreeStructure) -> Any:
    """The packed model as module _cpu holds it."""
    model = _compiled_models.get(tree)
    if model is None:
        model = _compiled_models[tree] = _cpu.Model(dict(tree.packed))
    return model


def _flat_model(tree: TreeStructure, dtype: np.dtype[Any]) -> FlatModel:
    cached = _flat_models.setdefault(tree, {})
    if dtype.itemsize not in cached:
        cached[dtype.itemsize] = flatten(tree, dtype)
    return cached[dtype.itemsize]


# Every function of the text in the order of writing, callees first.
TEXT = tuple(
    function
    for module in (philox, scaling, reference)
    for function in vars(module).values()
    if isinstance(function, types.FunctionType) and function.__module__ == module.__name__
)


@functools.cache
def numba_text() -> dict[str, Any]:
    """The Python text with every function compiled; calls between them stay inside the new namespace."""
    import numba

    # Numba keeps compiled functions by name and file, and would not notice that a callee in another file
    # has changed: the names carry a digest of the whole text.
    code = [(f.__code__.co_code, f.__code__.co_consts) for f in TEXT]
    version = hashlib.sha256(repr(code).encode()).hexdigest()[:12]
    namespace = {**vars(philox), **vars(scaling), **vars(reference)}
    for function in TEXT:
        copy = types.FunctionType(function.__code__, namespace, function.__name__)
        copy.__module__ = function.__module__
        copy.__qualname__ = f"{function.__name__}_{version}"
        try:
            jit = numba.njit(nogil=True, error_model="numpy", cache=True)
            namespace[function.__name__] = jit(copy)
        except RuntimeError:  # nowhere to keep a cache: compile anew in every process
            jit = numba.njit(nogil=True, error_model="numpy")
            namespace[function.__name__] = jit(copy)
    return namespace
