"""Evidence and results: what the kernels read and write, and the checks of what users pass in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Wrap, as_numpy
from .checks import check_int
from .compiled import _cpu, ieee
from .errors import ArgumentError, DTypeError, ShapeError
from .tree import TreeStructure

__all__ = [
    "Evidence",
    "Outputs",
    "Trees",
    "check_evidence",
    "check_levels",
    "check_out",
    "check_roots",
    "kernel_layout",
    "new_outputs",
    "refuse_fields",
]

Array = NDArray[Any]
_DOUBLE = np.dtype(np.float64)
_MAX_FIELD = 1e300  # sums over all leaves stay finite


@dataclass
class Evidence:
    """What is known of n rows: tokens (n, L) and mask (n, L) or None, or log_fields (n, L, q).

    And which leaves a leave-one-out prediction is made from, its own excepted: all of them, those to the
    left (`causal`), or those below its ancestor at level `window` (if above 0).
    """

    tokens: Array | None = None
    mask: Array | None = None
    log_fields: Array | None = None
    causal: bool = False
    window: int = 0

    def map(self, change: Callable[[Array], Any]) -> Evidence:
        """The same with every array changed."""
        tokens, mask, fields = (
            None if x is None else change(x) for x in (self.tokens, self.mask, self.log_fields)
        )
        return Evidence(tokens, mask, fields, self.causal, self.window)

    def rows(self, index: Any) -> Evidence:
        """The evidence of some of the rows."""
        return self.map(lambda x: x[index])


@dataclass
class Outputs:
    """Arrays to fill, one row per sample; None = not wanted."""

    log_evidence: Array | None
    root: Array | None
    beliefs: list[Array | None]
    leave_one_out: Array | None
    counts: Array | None = None
    star_pairs: Array | None = None

    def map(self, change: Callable[[Array], Any]) -> Outputs:
        """The same with every array that is wanted changed."""

        def each(x: Array | None) -> Any:
            return None if x is None else change(x)

        return Outputs(
            each(self.log_evidence), each(self.root), [each(b) for b in self.beliefs],
            each(self.leave_one_out), each(self.counts), each(self.star_pairs),
        )  # fmt: skip

    def rows(self, index: Any) -> Outputs:
        """Views of some of the rows (copies for a fancy index)."""
        return self.map(lambda x: x[index])

    def arrays(self) -> list[Array]:
        """Those that are wanted."""
        every = [
            self.log_evidence, self.root, *self.beliefs, self.leave_one_out, self.counts, self.star_pairs,
        ]  # fmt: skip
        return [x for x in every if x is not None]


@dataclass
class Trees:
    """Whole trees to choose given evidence, and the arrays to fill; None = not wanted."""

    n_samples: int  # draws per row; 0: the most probable tree
    seed: int
    start: int  # stream index of the first draw of row 0
    levels: list[Array | None]  # (n, draws or 1, n_nodes) of the token type
    log_evidence: Array | None  # (n,)
    log_weight: Array | None  # (n,): ln P(tree, evidence) of the most probable one

    @property
    def per_row(self) -> int:
        return max(self.n_samples, 1)

    def rows(self, begin: int, end: int) -> Trees:
        """Views of rows begin … end, with the stream indices that are theirs."""
        part = slice(begin, end)
        return Trees(
            self.n_samples, self.seed, (self.start + begin * self.per_row) % 2**64,
            [None if x is None else x[part] for x in self.levels],
            None if self.log_evidence is None else self.log_evidence[part],
            None if self.log_weight is None else self.log_weight[part],
        )  # fmt: skip


def new_outputs(
    tree: TreeStructure, n: int, kind: np.dtype[Any], empty: Callable[[tuple[int, ...], Any], Any], *,
    evidence: bool = False, root: bool = False, levels: Iterable[int] = (), leave_one_out: bool = False,
    counts: bool = False, star_pairs: bool = False,
) -> Outputs:  # fmt: skip
    """Arrays for what is wanted, made by ``empty(shape, dtype)``."""
    beliefs: list[Array | None] = [None] * (tree.depth + 1)
    for d in levels:
        if d > 0:
            beliefs[d] = empty((n, tree.arity**d, tree.alphabets[d]), kind)
    return Outputs(
        empty((n,), _DOUBLE) if evidence else None,
        empty((n, tree.n_classes), kind) if root else None,
        beliefs,
        empty((n, tree.n_leaves, tree.vocab_size), kind) if leave_one_out else None,
        empty((n, tree.n_counts), kind) if counts else None,
        empty((n, *tree.channels.shape), kind) if star_pairs else None,
    )


def kernel_layout(tree: TreeStructure, evidence: Evidence) -> Evidence:
    """One block in the types and the layout kernels take; no copy if it has them already."""
    tokens, mask, fields = evidence.tokens, evidence.mask, evidence.log_fields
    if tokens is not None:
        tokens = np.ascontiguousarray(tokens, tree.token_dtype)
    if mask is not None:
        mask = np.ascontiguousarray(mask)
    if fields is not None:
        wanted = np.float32 if fields.dtype.itemsize < 8 else np.float64
        if fields.dtype != wanted:
            with ieee():
                fields = fields.astype(wanted)
        fields = np.ascontiguousarray(fields)
    if tokens is evidence.tokens and mask is evidence.mask and fields is evidence.log_fields:
        return evidence
    return Evidence(tokens, mask, fields, evidence.causal, evidence.window)


def check_evidence(
    tree: TreeStructure, leaves: Any, mask: Any, log_fields: Any, finds_nan: bool = False
) -> tuple[Evidence, int, Wrap]:
    """Evidence a user gave, checked; the number of rows; and what turns results into his arrays.

    Values of fields in single precision are left to the kernel if it `finds_nan` (see `refuse_fields`).
    """
    if (leaves is None) == (log_fields is None):
        raise ArgumentError(
            "give exactly one of leaves (tokens) and log_fields, got "
            + ("neither" if leaves is None else "both; a hidden token in leaves is mask_token")
        )
    if log_fields is not None:
        if mask is not None:
            raise ArgumentError(
                "mask goes with leaves; in log_fields a hidden leaf has equal fields, e.g. zeros"
            )
        fields, wrap = as_numpy("log_fields", log_fields)
        if fields.dtype.kind != "f":
            raise DTypeError(f"log_fields must be floating-point, got {fields.dtype}")
        _check_shape("log_fields", fields, (tree.n_leaves, tree.vocab_size))
        if not (finds_nan and fields.dtype.itemsize <= 4):
            refuse_fields(fields)
        return Evidence(log_fields=fields), len(fields), wrap
    tokens, wrap = as_numpy("leaves", leaves)
    if tokens.dtype.kind not in "iu":
        raise DTypeError(
            f"leaves must be integers (tokens), got {tokens.dtype}; convert with .astype(np.uint8)"
        )
    _check_shape("leaves", tokens, (tree.n_leaves,))
    if tokens.size and not _are_tokens(tokens, tree.mask_token):
        bad = np.argwhere((tokens < 0) | (tokens > tree.mask_token))[0]
        raise ArgumentError(
            f"leaves must be tokens 0 … {tree.vocab_size - 1}, or {tree.mask_token} for a hidden one, "
            f"got {int(tokens[tuple(bad)])} in row {int(bad[0])} at leaf {int(bad[1])}"
        )
    hidden = None
    if mask is not None:
        hidden, _ = as_numpy("mask", mask)
        if hidden.dtype != np.bool_:
            raise DTypeError(
                f"mask must be boolean (True = hidden), got {hidden.dtype}; convert with .astype(bool)"
            )
        if hidden.shape != tokens.shape:
            raise ShapeError(
                f"mask must have the shape of leaves, {tokens.shape}, got {hidden.shape}"
            )
    return Evidence(tokens, hidden), len(tokens), wrap


def _are_tokens(tokens: Array, largest: int) -> bool:
    if tokens.size <= 64:  # where NumPy's reductions take longer than the kernel
        values = tokens.tobytes() if tokens.dtype.char == "B" else tokens.ravel().tolist()
        return max(values) <= largest and (tokens.dtype.kind == "u" or min(values) >= 0)
    return int(tokens.max()) <= largest and (tokens.dtype.kind == "u" or int(tokens.min()) >= 0)


def _check_shape(name: str, x: Array, row: tuple[int, ...]) -> None:
    if x.shape[1:] != row:
        wanted = ", ".join(map(str, row))
        raise ShapeError(f"{name} must have shape (n, {wanted}), got {x.shape}")


def _extremes(fields: Array) -> tuple[float, float, bool]:
    """Smallest and largest value, and whether any is NaN."""
    plain = fields.flags.c_contiguous and fields.flags.aligned and fields.dtype.isnative
    if _cpu is not None and plain and fields.dtype.char in "fd":
        found: tuple[float, float, bool] = _cpu.extremes(fields)
        return found
    low, high = float(fields.min()), float(fields.max())
    return low, high, bool(np.isnan(low))


def refuse_fields(fields: Array, first_row: int = 0) -> None:
    """Raise if a field is NaN, +inf or too large, and say where."""
    for begin in range(0, len(fields), 65536):
        _check_fields(fields[begin : begin + 65536], first_row + begin)


def _check_fields(fields: Array, first_row: int) -> None:
    if not fields.size:
        return
    low, high, nan = _extremes(fields)
    if low < -_MAX_FIELD or high > _MAX_FIELD:
        finite = np.where(np.isfinite(fields), fields, 0)
        if float(finite.max()) > _MAX_FIELD or float(finite.min()) < -_MAX_FIELD:
            raise ArgumentError(
                f"log_fields must be -inf or within ±{_MAX_FIELD:g} nats, got values from "
                f"{finite.min():g} to {finite.max():g}; subtract from each leaf its largest field"
            )
    if nan or high == np.inf:
        row, leaf, symbol = (int(i) for i in np.argwhere(np.isnan(fields) | (fields == np.inf))[0])
        raise ArgumentError(
            f"log_fields must be finite or -inf, got {fields[row, leaf, symbol]} in row {first_row + row} "
            f"at leaf {leaf}, symbol {symbol}"
        )


def check_levels(tree: TreeStructure, levels: Any) -> tuple[int, ...]:
    """Levels to keep, all of which exist: none, "all" (or True), or those listed."""
    if levels is None or levels is False:
        return ()
    if levels is True or (isinstance(levels, str) and levels == "all"):
        return tree.existing_levels
    if isinstance(levels, str) or not isinstance(levels, Iterable):
        raise ArgumentError(f'levels must be None, "all" or a list of levels, got {levels!r}')
    kept = tuple(check_int("levels", d, 0, tree.depth) for d in levels)
    for d in kept:
        if d not in tree.existing_levels:
            raise ArgumentError(
                f"levels: level {d} does not exist at filter_level {tree.filter_level}; "
                f"those that do are {tree.existing_levels}"
            )
    return kept


def check_roots(tree: TreeStructure, roots: Any, n: int) -> Array:
    """Given root symbols, as the kernels take them."""
    given, _ = as_numpy("roots", roots)
    if given.dtype.kind not in "iu":
        raise DTypeError(f"roots must be integers, got {given.dtype}")
    if given.shape != (n,):
        raise ShapeError(f"roots must have shape ({n},), got {given.shape}")
    if n and (int(given.min()) < 0 or int(given.max()) >= tree.n_classes):
        raise ArgumentError(
            f"roots must be from 0 to {tree.n_classes - 1}, got values from {given.min()} to {given.max()}"
        )
    return np.ascontiguousarray(given, np.int32)


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A caller's array to write into, viewed as NumPy."""
    array, _ = as_numpy("out", out)
    if not (isinstance(out, np.ndarray) or hasattr(out, "__dlpack__")):
        raise DTypeError(f"out must be an array that can be written into, got {type(out).__name__}")
    if array.shape != shape:
        raise ShapeError(f"out must have shape {shape}, got {array.shape}")
    if array.dtype != dtype:
        raise DTypeError(f"out must have type {dtype}, got {array.dtype}")
    if not array.flags.c_contiguous or not array.flags.writeable:
        raise ArgumentError("out must be C-contiguous and writable; make one with np.empty")
    return array
