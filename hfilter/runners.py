"""What runs a call: the compiled text of one instruction set, or the Python text, plain or jitted.

A runner takes NumPy arrays that `hfilter.exact` has checked and allocated.
"""

from __future__ import annotations

import functools
import hashlib
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import choosing, parsing, passing, philox, reference, sampling, scaling, star
from .compiled import _cpu, ieee, not_built
from .errors import KernelError
from .evidence import Evidence, Outputs, Trees
from .flat import FlatModel, flatten, row_bytes, scratch, symbols
from .parse_table import ParseTable, parse_scratch, parse_table_for
from .tree import TreeStructure

__all__ = [
    "ROW_NAN",
    "Backend",
    "CompiledBackend",
    "TextBackend",
    "instruction_sets",
    "not_built",
    "numba_text",
    "plain_text",
]

Array = NDArray[Any]
ROW_NAN = 2  # status of a row with a field that is NaN or +inf (csrc/hfilter.h: hf_row_status)

_CACHE = 1 << 21  # bytes of scratch that a cache holds: long loops over lanes, but not from memory
_MEMORY = 1 << 26  # bytes of scratch at most, if there is room for one row
_ROWS = 1024  # rows that several levels' outputs are buffered for


def instruction_sets() -> dict[str, bool]:
    """Instruction sets of the compiled module, and whether this machine runs them."""
    return dict(_cpu.instruction_sets()) if _cpu is not None else {}


class Backend(Protocol):
    """What `hfilter.exact` asks of a backend; `infer` sees to it that numbers are IEEE's (see `ieee`)."""

    name: str
    finds_nan: bool  # `infer` marks rows whose fields are NaN or +inf with ROW_NAN
    block_work: int  # rule updates in a call of about a tenth of a second on one thread

    def sample(
        self, tree: TreeStructure, seed: int, start: int, n: int, roots: Array | None, levels: list[Array | None],
        num_threads: int,
    ) -> None: ...  # fmt: skip

    def infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None: ...  # fmt: skip

    def choose(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], trees: Trees, status: Array,
        num_threads: int,
    ) -> None: ...  # fmt: skip


class CompiledBackend:
    """The C++ text for one instruction set."""

    finds_nan = True
    block_work = 1 << 27

    def __init__(self, name: str) -> None:
        self.name = name

    def _call(self, kernel: Callable[..., None], *arguments: Any) -> None:
        try:
            kernel(self.name, *arguments)
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"{self.name}: {error}; please report this") from error

    def sample(
        self, tree: TreeStructure, seed: int, start: int, n: int, roots: Array | None, levels: list[Array | None],
        num_threads: int,
    ) -> None:  # fmt: skip
        self._call(_cpu.sample, tree.compiled, n, seed, start, roots, levels, num_threads)

    def infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        laws = window_laws(tree, evidence, dtype)
        self._call(
            _cpu.infer, tree.compiled, len(status), evidence.tokens, evidence.mask, evidence.log_fields,
            dtype.itemsize, out.log_evidence, out.root, out.beliefs, out.leave_one_out, out.counts, out.star_pairs,
            evidence.causal, evidence.window, laws, status, num_threads,
        )  # fmt: skip

    def choose(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], trees: Trees, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        self._call(
            _cpu.choose, tree.compiled, len(status), evidence.tokens, evidence.mask, evidence.log_fields,
            dtype.itemsize, trees.log_evidence, trees.log_weight, trees.n_samples, trees.seed, trees.start,
            trees.levels, status, num_threads,
        )  # fmt: skip


class TextBackend:
    """The Python text: plain, a row at a time, or compiled by Numba, a block of rows at a time."""

    finds_nan = False

    def __init__(
        self, name: str, text: Callable[[], dict[str, Any]], block_work: int, compiled: bool
    ) -> None:
        self.name = name
        self.block_work = block_work
        self._text = text
        self._compiled = compiled

    def sample(
        self, tree: TreeStructure, seed: int, start: int, n: int, roots: Array | None, levels: list[Array | None],
        num_threads: int,
    ) -> None:  # fmt: skip
        model = _flat_model(tree, np.dtype(np.float64), not self._compiled)
        kernel = self._text()["sample_rows"]
        given = (
            np.empty(0, np.int32)
            if roots is None
            else np.require(roots, requirements=("C", "A", "W"))
        )
        root, below = levels[0], [None, *levels[1:]]
        none = np.empty((0, 1), tree.token_dtype)

        def rows(begin: int, end: int) -> None:
            at = symbols(tree, self._lanes(end - begin, 4 * tree.n_leaves), np.uint32)
            for part, out, column in _side_by_side(below, begin, end, tree.token_dtype):
                first = np.uint64(start + part.start)
                kernel(model, at, np.uint64(seed), first, given[part], none if root is None else root[part],
                       out, column)  # fmt: skip

        self._over_threads(rows, n, num_threads)

    @ieee()
    def infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        table = parse_table_for(tree, evidence, dtype, out) if self._compiled else None
        if table is not None:
            self._parse(table, tree, evidence, out, status, num_threads)
            left = np.flatnonzero(status)
            if 0 < len(left) < len(status):
                some, rest = out.rows(left), status[left]
                self._infer(tree, evidence.rows(left), dtype, some, rest, num_threads)
                status[left] = rest
                for to, found in zip(out.arrays(), some.arrays(), strict=True):
                    to[left] = found
            if len(left) < len(status):
                return
        self._infer(tree, evidence, dtype, out, status, num_threads)

    def _parse(
        self, table: ParseTable, tree: TreeStructure, evidence: Evidence, out: Outputs, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        kernel, dtype = self._text()["parse_rows"], np.dtype(np.float32)
        tokens, mask, _ = _as_rows(evidence, len(status))
        none = np.empty((0, 1), dtype)

        def rows(begin: int, end: int) -> None:
            lanes = self._lanes(end - begin, 2 * row_bytes(tree, dtype))
            at, room = scratch(tree, dtype, dtype, lanes)
            part = slice(begin, end)
            root, one_out = (
                none if x is None else x[part].reshape(end - begin, -1)
                for x in (out.root, out.leave_one_out)
            )
            walk = parse_scratch(tree, lanes)
            kernel(table, at, room, walk, tokens[part], mask[part], root, one_out, status[part])

        self._over_threads(rows, len(status), num_threads)

    def _infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        model = _flat_model(tree, dtype, not self._compiled)
        kernel = self._text()["infer_rows"]
        tokens, mask, fields = _as_rows(evidence, len(status))
        laws = window_laws(tree, evidence, dtype)
        laws = np.empty(0, dtype) if laws is None else laws.ravel()
        no_numbers, no_rows = np.empty(0), np.empty((0, 1), dtype)
        counts, pairs = out.counts is not None, out.star_pairs is not None

        def flat(x: Array | None) -> Array:
            return no_rows if x is None else x.reshape(len(x), -1)

        def rows(begin: int, end: int) -> None:
            lanes = self._lanes(end - begin, row_bytes(tree, dtype, counts=counts, pairs=pairs))
            at, room = scratch(tree, dtype, fields.dtype, lanes, counts=counts, pairs=pairs)
            for part, beliefs, column in _side_by_side(out.beliefs, begin, end, dtype):
                target = out.rows(part)
                kernel(
                    model, at, room, tokens[part], mask[part], fields[part],
                    no_numbers if target.log_evidence is None else target.log_evidence,
                    flat(target.root), beliefs, column, flat(target.leave_one_out), flat(target.counts),
                    flat(target.star_pairs), evidence.causal, evidence.window, laws, status[part],
                )  # fmt: skip

        self._over_threads(rows, len(status), num_threads)

    def choose(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], trees: Trees, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        model = _flat_model(tree, dtype, not self._compiled)
        kernel = self._text()["choose_rows"]
        tokens, mask, fields = _as_rows(evidence, len(status))
        no_numbers, no_tokens = np.empty(0), np.empty((0, 1), tree.token_dtype)

        def rows(begin: int, end: int) -> None:
            lanes = self._lanes(end - begin, row_bytes(tree, dtype) + 8 * tree.n_leaves)
            at, room = scratch(tree, dtype, fields.dtype, lanes)
            drawn, every, width = symbols(tree, lanes), trees.rows(begin, end), trees.per_row
            flat = [None if x is None else x.reshape(-1, x.shape[-1]) for x in every.levels]
            root, below = flat[0], [None, *flat[1:]]
            part = slice(begin, end)
            for piece, out, column in _side_by_side(
                below, 0, (end - begin) * width, tree.token_dtype, width
            ):
                first, last = piece.start // width, piece.stop // width
                here, to = slice(begin + first, begin + last), every.rows(first, last)
                kernel(
                    model, at, room, drawn, tokens[here], mask[here], fields[here], to.n_samples, np.uint64(to.seed),
                    np.uint64(to.start), no_numbers if to.log_evidence is None else to.log_evidence,
                    no_numbers if to.log_weight is None else to.log_weight,
                    no_tokens if root is None else root[piece], out, column, status[part][first:last],
                )  # fmt: skip

        self._over_threads(rows, len(status), num_threads)

    def _lanes(self, rows: int, row_bytes: int) -> int:
        """How many rows to walk together: about as many as the cache holds, all blocks alike."""
        if not self._compiled:
            return 1
        most = min(max(_CACHE // row_bytes, 16), 256)
        most = max(min(most, _MEMORY // row_bytes), 1)
        blocks = -(-rows // most)
        lanes = -(-rows // blocks)
        return lanes if lanes <= 16 else min(-(-lanes // 16) * 16, most)

    def _over_threads(self, rows: Callable[[int, int], None], n: int, num_threads: int) -> None:
        if n == 0:
            return

        def quietly(begin: int, end: int) -> None:
            with np.errstate(all="ignore"):
                rows(begin, end)

        threads = min(num_threads, n) if self._compiled else 1
        if threads <= 1:
            quietly(0, n)
            return
        cuts = [n * t // threads for t in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(quietly, cuts[t], cuts[t + 1]) for t in range(threads)]:
                done.result()


def window_laws(tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any]) -> Array | None:
    """Laws of the nodes on top of the windows, if these are not above the filter level."""
    if evidence.window == 0 or evidence.window < tree.filter_level:
        return None
    with ieee():
        return np.ascontiguousarray(tree.node_laws(evidence.window), dtype)


def _as_rows(evidence: Evidence, n: int) -> tuple[Array, Array, Array]:
    """Tokens, mask and fields as the text takes them.

    Arrays that are not there have a type all the same, the commonest, and so do read-only ones: every
    combination of types is compiled anew.
    """
    tokens, mask, fields = (
        np.empty((n, 0), kind) if x is None else np.require(x, requirements=("C", "A", "W")).reshape(n, -1)
        for x, kind in (
            (evidence.tokens, np.uint8), (evidence.mask, np.bool_), (evidence.log_fields, np.float32),
        )
    )  # fmt: skip
    return tokens, mask, fields


def _side_by_side(
    levels: list[Array | None], begin: int, end: int, dtype: np.dtype[Any], whole: int = 1
) -> Iterator[tuple[slice, Array, Array]]:
    """Parts of rows begin … end with an array to fill for them: level d from column[d] on.

    A part has a multiple of `whole` rows.
    A single level is filled in place; several are copied, a few rows at a time, into theirs.
    """
    column = np.full(len(levels), -1)
    flat = {d: x[begin:end].reshape(end - begin, -1) for d, x in enumerate(levels) if x is not None}
    if len(flat) == 1:
        ((d, target),) = flat.items()
        column[d] = 0
        yield slice(begin, end), target, column
        return
    width = 0
    for d, target in flat.items():
        column[d] = width
        width += target.shape[1]
    most = max(_ROWS // whole, 1) * whole
    buffer = np.empty((min(end - begin, most if flat else end - begin), width), dtype)
    for first in range(begin, end, len(buffer)):
        part = slice(first, min(first + len(buffer), end))
        filled = buffer[: part.stop - first]
        yield part, filled, column
        for d, target in flat.items():
            at = int(column[d])
            target[first - begin : part.stop - begin] = filled[:, at : at + target.shape[1]]


# A model is flattened once per type and forgotten with it.
_flat_models: weakref.WeakKeyDictionary[TreeStructure, dict[tuple[int, bool], FlatModel]] = (
    weakref.WeakKeyDictionary()
)


def _flat_model(tree: TreeStructure, dtype: np.dtype[Any], lists: bool) -> FlatModel:
    cached = _flat_models.setdefault(tree, {})
    key = (dtype.itemsize, lists)
    if key not in cached:
        cached[key] = flatten(tree, dtype, lists)
    return cached[key]


# Every function of the text in the order of writing, callees first.
MODULES = (philox, sampling, scaling, star, passing, reference, choosing, parsing)
TEXT = tuple(
    function
    for module in MODULES
    for function in vars(module).values()
    if isinstance(function, types.FunctionType) and function.__module__ == module.__name__
)


def plain_text() -> dict[str, Any]:
    """The Python text as it stands."""
    return {function.__name__: function for function in TEXT}


@functools.cache
def numba_text() -> dict[str, Any]:
    """The Python text with every function compiled; calls between them stay inside the new namespace."""
    import numba

    # Numba keeps compiled functions by name and file, and would not notice that a callee in another file
    # has changed: the names carry a digest of the whole text.
    code = [(f.__code__.co_code, f.__code__.co_consts) for f in TEXT]
    version = hashlib.sha256(repr(code).encode()).hexdigest()[:12]
    namespace = {name: x for module in MODULES for name, x in vars(module).items()}
    for function in TEXT:
        copy = types.FunctionType(function.__code__, namespace, function.__name__)
        copy.__module__ = function.__module__
        copy.__qualname__ = f"{function.__name__}_{version}"
        entry = function.__name__ in (
            "sample_rows",
            "infer_rows",
            "choose_rows",
            "parse_rows",
        )  # what Python calls
        options: Any = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": not entry,
                   "no_cfunc_wrapper": True,
                   "forceinline": function.__name__ in ("philox4x32", "exponent")}  # fmt: skip
        if function.__name__ in ("add_products", "exp_minus"):
            options["fastmath"] = {"contract"}
        try:
            namespace[function.__name__] = numba.njit(cache=entry, **options)(copy)
        except RuntimeError:  # nowhere to keep a cache: compile anew in every process
            namespace[function.__name__] = numba.njit(**options)(copy)
    return namespace
