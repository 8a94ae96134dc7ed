"""Rules on disk: a NumPy archive without pickles, written atomically and read with suspicion."""

from __future__ import annotations

import io
import json
import os
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import check_int
from .errors import DataError, DTypeError, GrammarError, ShapeError
from .files import atomic_write
from .rules import RuleTable

__all__ = ["read_rules", "write_rules"]

_FORMAT = "hfilter-grammar"
_FORMAT_VERSION = 1
_PARTS = ("parents", "children", "probability")
# Whatever NumPy, the archive or the header may raise on a file that is not ours.
_NOT_OURS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    MemoryError,
    RuntimeError,  # encrypted archives; RecursionError and NotImplementedError too
    SyntaxError,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)


def write_rules(
    path: str | os.PathLike[str], header: dict[str, Any], tables: Sequence[RuleTable]
) -> None:
    """Write rule tables with a header of plain JSON values; DataError if that fails."""
    text = json.dumps(
        {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "tables": [[t.n_parents, t.n_symbols] for t in tables],
            **header,
        }
    )
    arrays: dict[str, NDArray[Any]] = {"header": np.frombuffer(text.encode(), np.uint8)}
    for i, table in enumerate(tables):
        for part in _PARTS:
            arrays[f"{part}_{i}"] = getattr(table, part)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def read_rules(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[RuleTable]]:
    """Header and tables of a file made by `write_rules`; DataError if it is not one."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {name}: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        header = json.loads(bytes(arrays["header"]))
        if header["format"] != _FORMAT:
            raise KeyError("format")
    except _NOT_OURS as error:
        raise DataError(
            f"{name} is not a grammar written by Grammar.save, or it is damaged"
        ) from error
    if header.get("version") != _FORMAT_VERSION:
        raise DataError(
            f"{name} has format version {header.get('version')!r}; this hfilter reads version "
            f"{_FORMAT_VERSION}: upgrade hfilter"
        )
    try:
        tables = [
            _restore(n_parents, n_symbols, *(arrays[f"{part}_{i}"] for part in _PARTS))
            for i, (n_parents, n_symbols) in enumerate(header["tables"])
        ]
    except (*_NOT_OURS, IndexError) as error:
        raise DataError(f"{name} is damaged: {error}") from error
    return header, tables


def _restore(
    n_parents: int,
    n_symbols: int,
    parents: NDArray[Any],
    children: NDArray[Any],
    probability: NDArray[Any],
) -> RuleTable:
    """A table from arrays that may say anything."""
    n_parents = check_int("n_parents", n_parents, 1, 65535)
    n_symbols = check_int("n_symbols", n_symbols, 1, 65535)
    if (
        parents.ndim != 1
        or children.ndim != 2
        or not len(parents) == len(children) == len(probability)
    ):
        raise ShapeError("the rules' arrays do not fit together")
    if (
        parents.dtype.kind not in "iu"
        or children.dtype.kind not in "iu"
        or probability.dtype != np.float64
    ):
        raise DTypeError("the rules' arrays have wrong types")
    inside = (
        (parents >= 0)
        & (parents < n_parents)
        & ((children >= 0) & (children < n_symbols)).all(axis=1)
    )
    if not inside.all() or not (np.isfinite(probability) & (probability > 0)).all():
        raise GrammarError("a rule has a symbol or a probability out of range")
    if not 2 <= children.shape[1] <= 32:
        raise ShapeError(f"rules have {children.shape[1]} children; from 2 to 32 are supported")
    table = RuleTable.from_rules(n_parents, n_symbols, parents, children, probability)
    rules = np.column_stack([table.parents, table.children])
    if len(np.unique(rules, axis=0)) != len(parents):
        raise GrammarError("a rule is there twice")
    sums = (
        np.add.reduceat(table.probability, table.first[:-1])
        if table.n_rules
        else np.zeros(n_parents)
    )
    if (np.diff(table.first) == 0).any() or (np.abs(sums - 1) > 1e-9).any():
        raise GrammarError("a parent's rules do not sum to 1")
    return table
