"""What an experiment is, and how one is performed: runs, tables, a figure, and what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import torch
from matplotlib.figure import Figure

import hfilter
from hfilter.errors import ArgumentError, DataError
from hfilter.experiments import figures
from hfilter.experiments.artefacts import plain, read_json, write_csv, write_json
from hfilter.experiments.lab.runs import Law, Run, Trained, Workshop

__all__ = ["Options", "Preset", "Study", "Table", "Tables", "perform"]

Preset = Literal["smoke", "fast", "published"]
PRESETS: tuple[Preset, ...] = ("smoke", "fast", "published")


@dataclass(frozen=True)
class Table:
    """Numbers with names: what a CSV file holds and a figure is drawn from."""

    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def column(self, name: str, **where: Any) -> list[Any]:
        """One column, of the rows where other columns have the values given."""
        at = self.header.index(name)
        tests = [(self.header.index(key), value) for key, value in where.items()]
        return [row[at] for row in self.rows if all(row[i] == value for i, value in tests)]

    def values(self, name: str) -> list[Any]:
        """The distinct values of a column, in the order they appear."""
        return list(dict.fromkeys(self.column(name)))


Tables = Mapping[str, Table]


@dataclass(frozen=True)
class Options:
    """What the user may choose; every study reads what concerns it.

    Attributes
    ----------
    preset : str
        ``"fast"``: minutes on two cores. ``"published"``: the paper's sizes, for a GPU. ``"smoke"``:
        seconds, numbers without meaning: does it work here?
    changes : dict
        Fields of :class:`Law` (grammar, depth) that differ from the study's own choice.
    n_seeds : int or None
        Runs that differ in their seed alone.
    seed : int
        The first seed.
    train_size : int or None
        Sequences of each training set, for studies that fix them; the study's own unless given.
    device : str
        Of training.
    """

    preset: Preset = "fast"
    changes: Mapping[str, Any] = field(default_factory=dict)
    n_seeds: int | None = None
    seed: int = 0
    train_size: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ArgumentError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if self.n_seeds is not None and self.n_seeds < 1:
            raise ArgumentError(f"n_seeds must be at least 1, got {self.n_seeds}")
        if self.train_size is not None and self.train_size < 1:
            raise ArgumentError(f"train_size must be at least 1, got {self.train_size}")

    def choose_law(self, **fast: Any) -> Law:
        """The law of the preset, the study's own under ``"fast"``, with the user's changes."""
        law = {"smoke": Law(depth=2), "fast": Law(**fast), "published": Law()}[self.preset]
        return replace(law, **self.changes)

    def seeds(self, fast: int = 1, published: int = 3) -> range:
        """Seeds of the runs."""
        count = {"smoke": 1, "fast": fast, "published": published}[self.preset]
        return range(self.seed, self.seed + (self.n_seeds or count))

    def pick(self, smoke: Any, fast: Any, published: Any) -> Any:
        """A value by preset."""
        return {"smoke": smoke, "fast": fast, "published": published}[self.preset]


@dataclass(frozen=True)
class Study:
    """One experiment.

    Attributes
    ----------
    name, summary : str
        How it is called, and one line on what it shows.
    about : str
        A paragraph for ``--help``: what is trained and measured, and what is expected.
    runs : callable
        From options to the runs it needs.
    measure : callable
        From (options, workshop, trained runs in that order) to tables.
    draw : callable
        From tables to a figure: nothing else is read, so that the CSV files say all of it.
    conclude : callable
        From tables to lines of text: what the numbers say.
    """

    name: str
    summary: str
    about: str
    runs: Callable[[Options], list[Run]]
    measure: Callable[[Options, Workshop, list[Trained]], dict[str, Table]]
    draw: Callable[[Tables], Figure]
    conclude: Callable[[Tables], list[str]]


def perform(
    study: Study,
    options: Options,
    out: Path,
    *,
    runs: Path | None = None,
    jobs: int = 1,
    quiet: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Do a study from beginning to end and leave its files.

    Parameters
    ----------
    study : Study
    options : Options
    out : Path
        Folder of ``NAME.png``, ``NAME.pdf``, ``NAME.json`` (what made it) and ``NAME*.csv``.
    runs : Path, optional
        Folder of the training runs, ``out / "runs"`` unless given: found there, or trained.
    jobs, quiet
        See :class:`Workshop`.
    overwrite : bool
        Replace a figure that was made with other options.

    Returns
    -------
    list of str
        What the numbers say.

    Raises
    ------
    hfilter.errors.ArgumentError
        If the folder holds the figure with other options and `overwrite` is false.
    hfilter.errors.DataError
        If `out` is a file.
    """
    began = time.perf_counter()
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    about = out / f"{study.name}.json"
    if about.exists() and not overwrite:
        theirs = read_json(about)
        if not isinstance(theirs, dict) or theirs.get("options") != plain(options):
            raise ArgumentError(
                f"{about} was made with other options; name another folder or say --overwrite"
            )
    shop = Workshop(runs or out / "runs", jobs, quiet)
    wanted = [_on(run, options.device) for run in study.runs(options)]
    trained = shop.train(wanted)
    if not quiet:
        print(f"{study.name}: measuring", flush=True)
    tables = study.measure(options, shop, trained)
    for name, table in tables.items():
        stem = study.name if name == "main" else f"{study.name}-{name}"
        write_csv(out / f"{stem}.csv", table.header, table.rows)
    figures.save(study.draw(tables), out, study.name)
    lines = study.conclude(tables)
    write_json(
        about,
        {
            "study": study.name,
            "options": options,
            "says": lines,
            "compute": {
                "training_seconds": sum(t.seconds for t in set(trained)),
                "this_call_seconds": time.perf_counter() - began,
                "device": options.device,
                "runs": {t.run.name: round(t.seconds, 1) for t in trained},
            },
            "made_by": {
                **hfilter.provenance(hfilter=hfilter.__version__),
                "torch": torch.__version__,
                "matplotlib": matplotlib.__version__,
            },
        },
    )
    return lines


def _on(run: Run, device: str) -> Run:
    """The same run, its sources too, on a device."""
    source = None if run.source is None else _on(run.source, device)
    return replace(run, training=replace(run.training, device=device), source=source)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard error over the values (NaN for one)."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else np.nan
    return float(array.mean()), float(error)
