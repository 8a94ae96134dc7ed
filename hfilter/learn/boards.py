"""The log of a run as TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["board"]

_NUMBERS = ("loss", "cross_entropy", "floor", "accuracy", "exact_accuracy", "lr",
            "sequences_per_second")  # fmt: skip


@contextmanager
def board(
    folder: Path, step: int, wanted: bool
) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Something that writes a record into ``folder/tensorboard``; ``None`` if not wanted.

    Parameters
    ----------
    folder
        Of the run.
    step
        Where the run goes on: what an earlier sitting wrote beyond it is no longer shown.
    wanted
    """
    if not wanted:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        from hfilter.learn import missing_package

        named = ImportError(str(error), name="tensorboard")
        raise missing_package(named) from error

    def write(record: dict[str, Any]) -> None:
        now = record["step"]
        more = [n for n in record if n.startswith("train_") or n.endswith("_all_times")]
        for name in (*_NUMBERS, *(n for n in more if n != "train_kl")):
            if record[name] is not None:
                writer.add_scalar(name, record[name], now)
        for name in ("kl", "kl_window", "train_kl"):
            for rung, value in record.get(name, {}).items():
                writer.add_scalar(f"{name}/{rung}", value, now)
        writer.flush()

    writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)
    try:
        yield write
    finally:
        writer.close()
