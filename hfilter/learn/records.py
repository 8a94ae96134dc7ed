"""A run's folder: its configuration and model, and its log with one JSON line per evaluation."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfilter.errors import ArgumentError, DataError
from hfilter.exact import TreeModel
from hfilter.files import atomic_write
from hfilter.grammar import Grammar
from hfilter.learn.encoder import Encoder
from hfilter.provenance import provenance
from hfilter.tree import STREAM_VERSION

if TYPE_CHECKING:
    from hfilter.learn.architecture import EncoderConfig
    from hfilter.learn.config import TrainConfig
    from hfilter.learn.tasks import HeldOut

Record = dict[str, Any]
Callback = Callable[[Record, Encoder], None]


@dataclass
class Progress:
    """Where a run stands. All but the history goes into the checkpoint.

    ``loss_sum``, ``loss_steps`` and ``seconds`` (of training) count from the last record on.
    """

    step: int = 0
    sequences: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    history: list[Record] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """What the checkpoint keeps; JSON carries floats bit for bit."""
        return {k: v for k, v in vars(self).items() if k != "history"}

    def noted(self, record: Record) -> None:
        """The record goes into the history, and counts begin anew."""
        self.history.append(record)
        self.loss_sum, self.loss_steps, self.seconds = 0.0, 0, 0.0

    @classmethod
    def from_numbers(cls, numbers: dict[str, Any]) -> Progress:
        """The inverse of :meth:`numbers`."""
        try:
            state = cls(
                **{name: type(value)(numbers[name]) for name, value in cls().numbers().items()}
            )
            if state.step < 0 or set(numbers) != set(state.numbers()):
                raise ValueError(f"got {numbers}")
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"checkpoint: not the state of a training run ({error})") from error
        return state


def claim(
    run: Path,
    model: TreeModel,
    settings: Mapping[str, EncoderConfig | TrainConfig],
    start: str | None = None,
) -> str:
    """Make the folder this run's: say what it is, or check that what is there says the same.

    Writes ``config.json`` and, so that the model can be had back, ``grammar.npz``.

    Parameters
    ----------
    run
    model
    settings
        By name: ``"encoder"`` and ``"train"``.
    start
        Digest of the weights that the run starts from, if they are not drawn.

    Returns
    -------
    str
        A digest of the configuration and the model, which ties checkpoints to their run.

    Raises
    ------
    hfilter.errors.ArgumentError
        If the folder holds a run of another configuration; the message names the differences.
    hfilter.errors.DataError
        If it is no folder, or holds the files of a run without a readable configuration.
    """
    ours: dict[str, Any] = {
        "model": {"fingerprint": model.fingerprint},
        "stream": {"version": STREAM_VERSION},
        **{part: values.as_dict() for part, values in settings.items()},
    }
    if start is not None:
        ours["start"] = {"weights": start}
    ours = json.loads(json.dumps(ours))
    digest = hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()[:16]
    path = run / "config.json"
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            differing = _differences(theirs, ours, settings)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{path}: not the configuration of a run ({error!r})") from error
        if differing:
            raise ArgumentError(
                f"{run} holds a run of another configuration ({'; '.join(differing)}); "
                "resume with the same one, or choose another folder"
            )
        _keep_grammar(run, model)
        return digest
    for name in ("checkpoint.safetensors", "log.jsonl"):
        if (run / name).exists():
            raise DataError(f"{run} holds {name} but no config.json; choose another folder")
    ours |= {part: asdict(values) for part, values in settings.items()}
    ours["model"] |= model.describe()
    model.grammar.save(run / "grammar.npz")
    with atomic_write(path, "w") as file:
        json.dump({**ours, "made_by": provenance()}, file, indent=2)
    return digest


def _keep_grammar(run: Path, model: TreeModel) -> None:
    """Write the grammar of a run that goes on once more, if its file is lost or damaged."""
    try:
        Grammar.load(run / "grammar.npz")
    except DataError:
        model.grammar.save(run / "grammar.npz")


def _differences(
    theirs: dict[str, Any],
    ours: dict[str, Any],
    settings: Mapping[str, EncoderConfig | TrainConfig],
) -> list[str]:
    """Each setting that the folder's configuration has otherwise; what it lacks has its default."""
    found = []
    for part in dict.fromkeys([*ours, *({"start"} & set(theirs))]):
        there, now = theirs.get(part, {}), ours.get(part, {})
        if part in settings:
            now = json.loads(json.dumps(asdict(settings[part])))
            plain = {field.name: field.default for field in fields(settings[part])}
            there = {**json.loads(json.dumps(plain, default=str)), **theirs[part]}
        # A setting that this version does not know decides something all the same.
        names = sorted({*there, *now}) if part in (*settings, "start") else now
        found += [
            f"{part}.{name}: {there.get(name)!r} there, {now.get(name)!r} now"
            for name in names
            if there.get(name) != now.get(name)
        ]
    return found


def load_model(folder: str | os.PathLike[str]) -> TreeModel:
    """The model that a run was trained on, from its folder.

    Parameters
    ----------
    folder
        Of :func:`hfilter.learn.train.train`.

    Raises
    ------
    hfilter.errors.DataError
        If ``config.json`` or ``grammar.npz`` is missing, damaged, or of another model.
    """
    path = Path(folder) / "config.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))["model"]
        prior = None if about["root_prior"] == "uniform" else about["root_prior"]
        depth, level, fingerprint = about["depth"], about["filter_level"], about["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the configuration of a run ({error!r})") from error
    model = TreeModel(Grammar.load(Path(folder) / "grammar.npz"), depth, level, prior)
    if model.fingerprint != fingerprint:
        raise DataError(f"{folder}: grammar.npz is not the grammar that config.json speaks of")
    return model


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Make the folder if need be and hold it for one training: two at once would mix their logs.

    Raises
    ------
    hfilter.errors.DataError
        If it cannot be made, or another process, or another call, trains here now.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{run}: cannot make this folder ({error})") from error
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    folder = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"{run}: another run is using this folder; wait, or choose another"
            ) from error
        yield
    finally:
        os.close(folder)


def read_log(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a ``log.jsonl`` (or of the run folder that holds it).

    ``kl`` and ``train_kl`` are by integer k and ``kl_window`` by integer height.

    A last line that was cut short is left out: it is what a killed run leaves.

    Raises
    ------
    hfilter.errors.DataError
        If the file is missing, or any other line is not a record.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "log.jsonl"
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            for name in ("kl", "kl_window", "train_kl"):
                if name == "train_kl" and name not in record:
                    continue
                found = record[name] if name == "kl" else record.get(name, {})
                record[name] = {int(k): value for k, value in found.items()}
            if not isinstance(record["step"], int):
                raise TypeError(f"step is {record['step']!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise DataError(f"{file}: line {number} is not a record ({error!r})") from error
        records.append(record)
    return records


class Log:
    """Evaluates the network, and appends the record to ``log.jsonl``."""

    def __init__(
        self,
        path: Path,
        state: Progress,
        held_out: HeldOut,
        own_level: int,
        callback: Callback | None,
    ) -> None:
        self.path = path
        self.state = state
        self.held_out = held_out
        self.own_level = own_level
        self.callback = callback
        self.board: Callable[[Record], None] | None = None
        self._began = time.perf_counter() - state.elapsed

    def open(
        self, points: Collection[int], board: Callable[[Record], None] | None = None
    ) -> list[Record]:
        """Take up the records up to the checkpoint; those after it will be made again.

        Raises
        ------
        hfilter.errors.DataError
            If one of the steps ``points`` that the checkpoint has behind it is not there.
        """
        self.board = board
        state = self.state
        if state.step > 0:
            state.history = [r for r in read_log(self.path) if r["step"] <= state.step]
            lost = {t for t in points if t <= state.step} - {r["step"] for r in state.history}
            if lost:
                raise DataError(
                    f"{self.path} lacks the record of step {min(lost)}, which the checkpoint at "
                    f"step {state.step} has behind it; put the whole log back, or choose another "
                    "folder"
                )
        with atomic_write(self.path, "w") as file:
            file.writelines(json.dumps(r) + "\n" for r in state.history)
        return state.history

    def elapsed(self) -> float:
        """Seconds of the run so far, over all its sittings."""
        return time.perf_counter() - self._began

    def record(self, encoder: Encoder, lr: float) -> Record:
        """Evaluate now."""
        state, scores = self.state, self.held_out.evaluate(encoder)
        drawn = state.sequences - (state.history[-1]["sequences"] if state.history else 0)
        record: Record = {
            "step": state.step,
            "sequences": state.sequences,
            "loss": state.loss_sum / state.loss_steps if state.loss_steps else None,
            "cross_entropy": scores.cross_entropy,
            "floor": self.held_out.floor,
            "accuracy": scores.accuracy,
            "exact_accuracy": self.held_out.exact_accuracy[self.own_level],
            "kl": scores.kl,
            "kl_window": scores.kl_window,
            **scores.more,
            "lr": lr,
            "sequences_per_second": drawn / state.seconds if state.seconds > 0 else None,
            "elapsed": self.elapsed(),
        }
        state.noted(record)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())  # never behind the checkpoint that follows
        if self.board is not None:
            self.board(record)
        if self.callback is not None:
            self.callback(record, encoder)
        return record
