"""Writing files so that a reader never sees half of one and a failure destroys nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DataError

__all__ = ["atomic_write"]


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` for writing and move it into place on success.

    Parameters
    ----------
    path : path-like
        The file to create or replace. Its folder must exist.
    mode : {"wb", "w"}
        Binary, or text in UTF-8.

    Yields
    ------
    file object
        If the block raises, or is interrupted, the temporary file is removed and whatever stood at
        `path` before is untouched.

    Raises
    ------
    DataError
        If `path` is a folder or cannot be written.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with atomic_write(folder / "numbers.txt", "w") as file:
    ...     _ = file.write("1 2 3")
    >>> [p.name for p in folder.iterdir()]
    ['numbers.txt']
    """
    target = Path(path)
    if target.is_dir():
        raise DataError(f"cannot write {target}: it is a folder; give the name of a file")
    encoding = None if "b" in mode else "utf-8"
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".part", dir=target.parent
        )
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        try:
            with os.fdopen(handle, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files private; give the permissions an ordinary open() would.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
            os.replace(name, target)
        except OSError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
