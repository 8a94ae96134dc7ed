"""Files that appear whole or not at all, and say what made them.

Everything goes through :func:`hfilter.files.atomic_write`: an exception, Ctrl-C among them, leaves
no half-written file. Needs NumPy only.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from hfilter.errors import ArgumentError, DataError, ShapeError
from hfilter.files import atomic_write

__all__ = [
    "NpyWriter",
    "plain",
    "read_json",
    "read_npy",
    "read_rows",
    "refuse_existing",
    "refuse_inputs",
    "sidecar_path",
    "warn_of_another_law",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_text",
]


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise where ``path`` cannot become a new file.

    Raises
    ------
    DataError
        The file exists and ``overwrite`` is false, it is a folder, or its folder is missing.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists; choose another name or say --overwrite")
    if not path.parent.is_dir():
        raise DataError(f"folder {path.parent} does not exist; create it first")


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write ``content`` atomically and return the path."""
    with atomic_write(path) as stream:
        stream.write(content)
    return Path(path)


def write_text(path: Path | str, content: str) -> Path:
    """Write UTF-8 text atomically and return the path."""
    return write_bytes(path, content.encode("utf-8"))


def plain(value: Any) -> Any:
    """Return ``value`` as what strict JSON can hold.

    Arrays become lists, dataclasses dictionaries; an infinite or missing number becomes the string
    ``"inf"``, ``"-inf"`` or ``"nan"``, because JSON has no such numbers and most readers refuse the
    usual extension.

    Examples
    --------
    >>> plain({"a": np.array([1.0, np.inf]), 2: (np.int64(3), None)})
    {'a': [1.0, 'inf'], '2': [3, None]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def write_json(path: Path | str, content: Any) -> Path:
    """Write :func:`plain` ``(content)`` as indented strict JSON, atomically."""
    return write_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises
    ------
    DataError
        The file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from error


def write_csv(path: Path | str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV table atomically; floats keep every digit (``repr``)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([plain(cell) for cell in row] for row in rows)
    return write_text(path, text.getvalue())


def sidecar_path(path: Path | str) -> Path:
    """Return the name of the provenance file beside ``path``: ``rows.npy`` has ``rows.json``."""
    return Path(path).with_suffix(".json")


class NpyWriter:
    """Write an array to ``.npy`` block by block, in bounded memory, atomically.

    Plain sequential writes and not a memory map: on a full disk a write raises ``OSError``, where a
    memory map of a sparse file would be killed by ``SIGBUS``.

    Parameters
    ----------
    path : Path or str
        The file; see :func:`hfilter.files.atomic_write`.
    shape : tuple of int
        Shape of the whole array; blocks are consecutive along the first axis.
    dtype : numpy dtype
        Element type; blocks are cast to it.

    Raises
    ------
    ShapeError
        A block does not fit, or the blocks written do not add up to ``shape``.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "x.npy"
    >>> with NpyWriter(path, (3, 2), np.uint8) as out:
    ...     out.write(np.ones((2, 2)))
    ...     out.write(np.zeros((1, 2)))
    >>> int(np.load(path).sum())
    4
    """

    def __init__(self, path: Path | str, shape: tuple[int, ...], dtype: Any) -> None:
        self.path = Path(path)
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        self.rows = 0
        self._file = atomic_write(self.path)
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> NpyWriter:
        stream = self._stream = self._file.__enter__()
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": self.shape,
        }
        np.lib.format.write_array_header_1_0(stream, header)
        return self

    def write(self, block: np.ndarray) -> None:
        """Append rows; ``block`` has shape ``(m, *shape[1:])``."""
        if self._stream is None:
            raise ShapeError("NpyWriter.write outside its with block; use `with NpyWriter(...)`")
        if block.shape[1:] != self.shape[1:] or self.rows + len(block) > self.shape[0]:
            raise ShapeError(
                f"block must have shape (m, {', '.join(map(str, self.shape[1:]))}) with "
                f"m <= {self.shape[0] - self.rows}, got {block.shape}"
            )
        self._stream.write(np.ascontiguousarray(block, dtype=self.dtype).data)
        self.rows += len(block)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.rows != self.shape[0]:
            error = ShapeError(f"{self.path}: {self.rows} of {self.shape[0]} rows were written")
            kind = type(error)
            self._file.__exit__(kind, error, None)
            raise error
        self._file.__exit__(kind, error, trace)


def read_npy(path: Path | str) -> np.ndarray:
    """Map a ``.npy`` file read-only (never a pickle).

    Raises
    ------
    DataError
        The file is missing, is not ``.npy``, is cut short, or holds pickled Python objects.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
        RecursionError,
        tokenize.TokenError,
    ) as error:
        remedy = "want a .npy file of numbers as numpy.save writes it, whole and without pickles"
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: an .npz archive; want a single array in .npy")
    return array


def read_rows(path: Path | str, mapped: np.ndarray, first: int, n: int) -> np.ndarray:
    """Rows of an array that :func:`read_npy` mapped, read and not mapped: a file that is cut short
    meanwhile gives an error, where touching the map would kill the process.

    Raises
    ------
    DataError
        The file has become shorter.
    """
    if not isinstance(mapped, np.memmap) or not mapped.flags.c_contiguous:
        return mapped[first : first + n]
    row = int(np.prod(mapped.shape[1:], dtype=np.int64))
    count = row * min(n, len(mapped) - first)
    offset = mapped.offset + first * row * mapped.dtype.itemsize
    try:
        found = np.fromfile(path, mapped.dtype, count, offset=offset)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if len(found) != count:
        raise DataError(f"{path}: became shorter while it was read; is something writing to it?")
    return found.reshape(-1, *mapped.shape[1:])


def refuse_inputs(outputs: Sequence[Path], inputs: Sequence[Path | str | None]) -> None:
    """Refuse to write over a file that the same command reads.

    Raises
    ------
    ArgumentError
        An output is one of the inputs; --overwrite is not meant for that.
    """
    read = {Path(path).resolve() for path in inputs if path is not None}
    for path in outputs:
        if path.resolve() in read:
            raise ArgumentError(
                f"{path} would be written over, and this command reads it; rename --out"
            )


def warn_of_another_law(data: Path, described: dict[str, Any]) -> str | None:
    """What to tell a user whose data file was made by another grammar or depth than the model's.

    A different filter level is a legitimate question and is not told. Files without a readable
    neighbour that says what made them are taken as they are.
    """
    try:
        made = read_json(sidecar_path(data))["model"]
        theirs, ours = made["grammar"]["fingerprint"], described["grammar"]["fingerprint"]
        depths = made["depth"], described["depth"]
    except (DataError, KeyError, TypeError):
        return None
    if theirs == ours and depths[0] == depths[1]:
        return None
    return (
        f"{data} was made by another law (grammar {theirs}, depth {depths[0]}) than the options name "
        f"(grammar {ours}, depth {depths[1]}); its grammar is described in {sidecar_path(data)}"
    )
