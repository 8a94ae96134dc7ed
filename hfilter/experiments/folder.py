"""The demo's folder: whose it is, what may be removed from it, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hfilter.errors import ArgumentError, DataError
from hfilter.experiments.artefacts import plain, read_json, write_csv, write_json
from hfilter.experiments.record import DemoRecord

__all__ = ["CLAIM", "FILES", "TRAINING", "claim", "write_tables"]

_FIGURES = ("tree", "filter_levels", "accuracy", "climb", "staircase", "attention", "overview")
FILES = (
    "report.html",
    "numbers.json",
    "provenance.json",
    "exact.csv",
    "training.csv",
    "frequencies.csv",
    "grammar.npz",
    *(f"figures/{name}.{kind}" for name in _FIGURES for kind in ("png", "pdf")),
)
_COLUMNS = (
    "step",
    "sequences",
    "cross_entropy",
    "floor",
    "accuracy",
    "exact_accuracy",
)
TRAINING = "training"
CLAIM = "demo.json"


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{name}.{k}")]
    return [] if old == new else [f"{name[1:]} {old} -> {new}"]


def claim(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the folder ours, or refuse.

    Raises
    ------
    DataError
        It is a file, or holds something that is not a demo.
    ArgumentError
        It holds a demo with other settings and ``overwrite`` is false.
    """
    wanted = plain(settings)
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        mark = out / CLAIM
        found = read_json(mark) if mark.is_file() else None
        if not isinstance(found, dict) or found.get("made_by") != "hfilter demo":
            raise DataError(f"--out {out} is not empty and not a demo's; name another folder")
        changes = _differences(found.get("settings"), wanted)
        if changes and not overwrite:
            raise ArgumentError(
                f"--out {out} holds a demo with other settings ({'; '.join(changes[:3])}); "
                "name another folder or say --overwrite"
            )
        if overwrite:
            _clear(out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    write_json(out / CLAIM, {"made_by": "hfilter demo", "settings": wanted})


def _clear(out: Path) -> None:
    """Remove the demo's own files, and nothing else."""
    run = out / TRAINING
    tensors = ("checkpoint.safetensors", "encoder.safetensors")
    names = ("config.json", "grammar.npz", "log.jsonl", *tensors)
    for path in [*(out / name for name in FILES), *(run / name for name in names)]:
        path.unlink(missing_ok=True)


def write_tables(record: DemoRecord, out: Path) -> None:
    """Write the numbers that a spreadsheet can use, in long form."""
    tables, climb, draw = record.tables, record.climb, record.draw
    n = len(tables.root)
    write_csv(
        out / "exact.csv",
        ("task", "measure", "data_level", "predictor_level", "value", "standard_error", "rows"),
        [
            (task, measure, k, j, table[k, j], errors[k, j], tables.rows)
            for task, measure, table, errors in (
                ("root", "accuracy", tables.root, tables.root_se),
                ("mlm", "accuracy", tables.mlm, tables.mlm_se),
                ("mlm", "nats", tables.mlm_cross_entropy, tables.mlm_cross_entropy_se),
            )
            for k in range(n)
            for j in range(n)
        ],
    )
    write_csv(
        out / "training.csv",
        (*_COLUMNS, *(f"kl_{k}" for k in range(n))),
        [
            (
                step,
                step * climb.batch_size,
                climb.cross_entropy[i],
                climb.floors[0],
                climb.accuracy[i],
                climb.exact_accuracy[0],
                *climb.divergence[i],
            )
            for i, step in enumerate(climb.steps.tolist())
        ],
    )
    write_csv(
        out / "frequencies.csv",
        ("leaf", "symbol", "observed", "exact"),
        [
            (leaf, symbol, draw.frequencies[leaf, symbol], draw.exact[leaf, symbol])
            for leaf, symbol in np.ndindex(draw.exact.shape)
        ],
    )
