"""Training runs as values: what a run is decides where it lies, and it is trained once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hfilter
from hfilter.errors import DataError
from hfilter.experiments.artefacts import plain, read_json, write_json
from hfilter.experiments.lab.workers import pool, working
from hfilter.experiments.progress import progress
from hfilter.learn.encoder import Encoder, EncoderConfig
from hfilter.learn.train import TrainConfig, load_encoder, read_log, train

__all__ = ["Asked", "Law", "Run", "Trained", "Workshop"]

_SECONDS_BETWEEN_LOOKS = 1.0  # at the logs of runs in other processes


@dataclass(frozen=True)
class Law:
    """Which model draws the sequences: a published grammar, a depth and a filter level.

    Attributes
    ----------
    depth, vocab_size, sigma, grammar_seed, rules_per_symbol
        See :meth:`hfilter.Grammar.published`.
    filter_level : int
        k of the training data.
    """

    depth: int = 4
    vocab_size: int = 4
    sigma: float = 1.0
    grammar_seed: int = 0
    rules_per_symbol: int | None = None
    filter_level: int = 0

    @property
    def model(self) -> hfilter.TreeModel:
        """The tree model itself."""
        grammar = hfilter.Grammar.published(
            self.vocab_size, self.sigma, self.grammar_seed, self.rules_per_symbol
        )
        return hfilter.TreeModel(grammar, depth=self.depth, filter_level=self.filter_level)


@dataclass(frozen=True)
class Run:
    """One training run: equal values are the same run.

    Attributes
    ----------
    law : Law
    encoder : EncoderConfig
    training : TrainConfig
    source : Run or None
        The run whose trained encoder this one begins with; the read-out is new.
    freeze : bool or int
        With a source: whether its encoder stays as it is, or how many of its first layers do.
    """

    law: Law
    encoder: EncoderConfig
    training: TrainConfig
    source: Run | None = None
    freeze: bool | int = False

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits of everything that decides the result."""
        # Threads and device decide no more than rounding: a run is found whatever made it.
        skipped = ("threads", "device")
        training = {k: v for k, v in self.training.as_dict().items() if k not in skipped}
        said = {
            "law": asdict(self.law),
            "encoder": self.encoder.as_dict(),
            "training": training,
            "source": self.source.digest if self.source else None,
            "freeze": self.freeze,
        }
        text = json.dumps(plain(said), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        law, task = self.law, self.encoder.readout
        return f"{task}-q{law.vocab_size}-l{law.depth}-k{law.filter_level}-s{self.training.seed}-{self.digest}"


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run.

    Attributes
    ----------
    run : Run
    folder : Path
    history : list of dict
        The records of its log.
    """

    run: Run
    folder: Path
    history: list[dict[str, Any]]

    @cached_property
    def encoder(self) -> Encoder:
        """The trained encoder, in evaluation mode."""
        return load_encoder(self.folder)

    @property
    def seconds(self) -> float:
        """How long it took, evaluations included, over all its sittings."""
        return float(self.history[-1]["elapsed"])

    @property
    def kept(self) -> list[tuple[int, Path]]:
        """The kept encoders along the training: (step, file), in order of the steps."""
        files = (self.folder / "checkpoints").glob("step-[0-9]*[0-9].safetensors")
        return sorted((int(path.stem.removeprefix("step-")), path) for path in files)


@dataclass(frozen=True)
class Asked:
    """A measurement that another process may make: ``work(*arguments)``, kept as :meth:`Workshop.measured` does."""

    trained: Trained
    name: str
    settings: Any
    work: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


class Workshop:
    """A folder of runs and of what was measured on them.

    Parameters
    ----------
    folder : Path
        Holds a folder for every run.
    jobs : int
        Runs trained side by side, each in a process of its own.
    quiet : bool
        Show nothing.
    """

    def __init__(self, folder: Path, jobs: int = 1, quiet: bool = False) -> None:
        self.folder = folder
        self.jobs = max(1, jobs)
        self.quiet = quiet

    def path(self, run: Run) -> Path:
        """The folder of a run."""
        return self.folder / run.name

    def train(self, runs: Iterable[Run]) -> list[Trained]:
        """Train what is not there yet, sources first, and return all in the order given.

        A run that was interrupted goes on from its last checkpoint.
        """
        wanted = list(runs)
        pending: list[Run] = []
        for run in [*_sources(wanted), *wanted]:
            if run not in pending and not self._is_done(run):
                pending.append(run)
        if pending and not self.quiet:
            steps = sum(run.training.steps for run in pending)
            many = f"{len(pending)} runs" if len(pending) > 1 else "one run"
            print(f"training {many}, {steps:,} steps together", flush=True)
        for wave in _waves(pending):
            self._train(wave)
        return [self._found(run) for run in wanted]

    def _found(self, run: Run) -> Trained:
        """A finished run, if its folder still holds what it left there."""
        one = Trained(run, self.path(run), read_log(self.path(run)))
        last = one.history[-1]["step"] if one.history else -1
        kept = {t for t in run.training.checkpoint_at if t <= last}
        ended = last == run.training.steps or (last >= 0 and run.training.stop_at is not None)
        if not ended or not kept <= {step for step, _ in one.kept}:
            raise DataError(
                f"{one.folder}: records or kept encoders of this run are lost; remove the folder, "
                "and it is trained again"
            )
        return one

    def _train(self, runs: Sequence[Run]) -> None:
        if self.jobs == 1 or len(runs) == 1:
            for number, run in enumerate(runs, start=1):
                if not self.quiet and len(runs) > 1:
                    print(f"run {number} of {len(runs)}: {run.name}", flush=True)
                _train_run(self.folder, run, not self.quiet)
            return
        steps = sum(run.training.steps for run in runs)
        with (
            progress(
                steps, f"{len(runs)} runs, {self.jobs} at a time", " steps", quiet=self.quiet
            ) as advance,
            pool(self.jobs) as workers,
        ):
            waiting = {workers.submit(_train_in_worker, self.folder, run): run for run in runs}
            finished = shown = 0
            while waiting:
                for done in wait(waiting, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done:
                    finished += waiting.pop(done).training.steps
                    done.result()
                now = finished + sum(_logged(self.path(run)) for run in waiting.values())
                advance(max(0, now - shown))
                shown = max(now, shown)

    @contextmanager
    def counting(self, total: int, what: str) -> Iterator[Callable[[int], object]]:
        """Progress of a measurement; yields what is to be called with the number done."""
        with progress(total, what, " done", quiet=self.quiet) as advance:
            yield advance

    def measured(self, trained: Trained, name: str, settings: Any, work: Callable[[], Any]) -> Any:
        """What ``work`` returns, as JSON gives it back; done once per run and settings.

        Parameters
        ----------
        trained : Trained
        name : str
            Of the measurement: the file's, in the run's folder.
        settings
            What else decides the result, as JSON can hold it.
        work : callable
            Returns something that :func:`hfilter.experiments.artefacts.plain` can write.
        """
        path = _place(trained, name, settings)
        try:
            return read_json(path)["result"]
        except (DataError, KeyError, TypeError):
            return _measure(
                path, settings, work
            )  # not measured yet, or damaged: it can be had again

    def measured_all(self, what: str, asked: Sequence[Asked]) -> list[Any]:
        """Many measurements, as many at a time as there are jobs, with a progress bar.

        Parameters
        ----------
        what : str
            What is counted.
        asked : sequence of Asked
            Each with a function of a module, so that another process can call it.

        Returns
        -------
        list
            Results in the order asked, as :meth:`measured` gives them.
        """
        missing = [one for one in asked if not _is_measured(one)]
        with self.counting(len(asked), what) as advance:
            advance(len(asked) - len(missing))
            if self.jobs > 1 and len(missing) > 1:
                with pool(min(self.jobs, len(missing))) as workers:
                    waiting = {workers.submit(_measure_asked, one) for one in missing}
                    while waiting:
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        for finished in done:
                            finished.result()
                        advance(len(done))
            else:
                for one in missing:
                    _measure_asked(one)
                    advance(1)
        return [read_json(_place(one.trained, one.name, one.settings))["result"] for one in asked]

    def _is_done(self, run: Run) -> bool:
        return (self.path(run) / "encoder.safetensors").exists()


def _place(trained: Trained, name: str, settings: Any) -> Path:
    """The file of a measurement."""
    said = json.dumps(plain([settings, hfilter.__version__]), sort_keys=True)
    key = hashlib.sha256(said.encode()).hexdigest()[:12]
    return trained.folder / "measured" / f"{name}-{key}.json"


def _measure(path: Path, settings: Any, work: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = plain(work())
    path.parent.mkdir(exist_ok=True)
    seconds = time.perf_counter() - began
    write_json(path, {"settings": settings, "seconds": seconds, "result": result})
    return json.loads(json.dumps(result))


def _is_measured(asked: Asked) -> bool:
    try:
        read_json(_place(asked.trained, asked.name, asked.settings))["result"]
    except (DataError, KeyError, TypeError):
        return False
    return True


def _measure_asked(asked: Asked) -> None:
    path = _place(asked.trained, asked.name, asked.settings)
    with working():
        _measure(path, asked.settings, lambda: asked.work(*asked.arguments))


def _train_run(folder: Path, run: Run, show: bool) -> None:
    """Train one run; in a process of its own or in ours."""
    model, target = run.law.model, folder / run.name
    if run.source is None:
        train(model, run.encoder, run.training, target, progress=show)
        return
    from hfilter.learn.transfer import transfer

    source = load_encoder(folder / run.source.name)
    moved = transfer(
        source, run.encoder.readout, freeze=run.freeze, model=model, seed=run.training.seed
    )
    training = replace(run.training, frozen=moved.frozen)
    train(model, moved.config, training, target, progress=show, start=moved.encoder)


def _logged(folder: Path) -> int:
    """The step of the latest record of a run that another process trains."""
    try:
        return int(json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 0  # not begun, or a line half written: the next look will do


def _sources(runs: Sequence[Run]) -> list[Run]:
    """Every run that another begins with, the first ones first."""
    found = [run.source for run in runs if run.source is not None]
    return [*_sources(found), *found] if found else []


def _waves(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Runs that can be trained side by side, each wave after those it begins with."""
    left = list(runs)
    while left:
        wave = [run for run in left if run.source not in left]
        yield wave
        left = [run for run in left if run not in wave]


def _train_in_worker(folder: Path, run: Run) -> None:
    with working():
        _train_run(folder, run, False)
