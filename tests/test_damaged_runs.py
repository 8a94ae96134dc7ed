"""Manners of a training folder: two at once, checkpoints of another run, damaged moments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from hfilter import Grammar, TreeModel  # noqa: E402
from hfilter.errors import ArgumentError, DataError, HFilterError  # noqa: E402
from hfilter.learn.checkpoint import load_encoder, read_tensors, write_tensors  # noqa: E402
from hfilter.learn.data import FreshBatches  # noqa: E402
from hfilter.learn.encoder import EncoderConfig  # noqa: E402
from hfilter.learn.masks import HELD_OUT_START  # noqa: E402
from hfilter.learn.train import TrainConfig, train  # noqa: E402

MODEL = TreeModel(Grammar.published(4, 1.0, 0), 2)
ENCODER = EncoderConfig(vocab_size=4, n_leaves=4, d_model=8, n_layers=1, d_feedforward=8)


def config(**changed: Any) -> TrainConfig:
    return TrainConfig(
        **{"steps": 4, "batch_size": 8, "n_eval": 16, "checkpoint_every": 2, **changed}
    )


def stop(folder: Path, settings: TrainConfig) -> None:
    """Train to step 2, where the checkpoint is, and be interrupted at step 3."""

    def interrupt(record: dict[str, Any], encoder: Any) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(MODEL, ENCODER, settings, folder, callback=interrupt, progress=False)


def damage(change: Callable[[dict[str, Any], dict[str, Any]], None], folder: Path) -> None:
    path = folder / "checkpoint.safetensors"
    tensors, about = read_tensors(path)
    change(tensors, about)
    write_tensors(path, tensors, about)


DAMAGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "short moments": lambda t, a: t.update(
        {k: torch.zeros(1) for k in t if k.startswith("moments.exp_avg")}
    ),
    "no moments of one": lambda t, a: t.pop(next(k for k in t if k.startswith("moments.exp_avg."))),
    "unknown moment": lambda t, a: t.update({"moments.x": torch.zeros(1)}),
    "moment of nobody": lambda t, a: t.update({"moments.exp_avg.nope": torch.zeros(1)}),
    "double moments": lambda t, a: t.update(
        {k: v.double() for k, v in t.items() if k.startswith("moments.exp_avg.")}
    ),
    "step past the end": lambda t, a: a.update(step=99),
    "negative step": lambda t, a: a.update(step=-3),
    "step in words": lambda t, a: a.update(step="two"),
    "no step": lambda t, a: a.pop("step"),
    "of another run": lambda t, a: a.update(run="0" * 16),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    settings = config(eval_every=1)
    stop(tmp_path, settings)
    damage(DAMAGES[name], tmp_path)
    with pytest.raises(DataError):
        train(MODEL, ENCODER, settings, tmp_path, progress=False)


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    first, second = config(eval_every=1), config(eval_every=1, seed=1)
    stop(tmp_path / "a", first)
    stop(tmp_path / "b", second)
    other = (tmp_path / "b" / "checkpoint.safetensors").read_bytes()
    (tmp_path / "a" / "checkpoint.safetensors").write_bytes(other)
    with pytest.raises(DataError, match="another run"):
        train(MODEL, ENCODER, first, tmp_path / "a", progress=False)


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")

    def intrude(record: dict[str, Any], encoder: Any) -> None:
        with pytest.raises(DataError, match="another run is using"):
            train(MODEL, ENCODER, config(), tmp_path, progress=False)

    result = train(MODEL, ENCODER, config(), tmp_path, callback=intrude, progress=False)
    assert [record["step"] for record in result.history] == [0, 4]


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(HFilterError, match="finite"):
        train(MODEL, ENCODER, config(steps=1, lr=1e38), tmp_path, progress=False)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize("prefetch", [1, 8])
def test_fresh_batches_end_before_the_held_out_rows(prefetch: int) -> None:
    source = FreshBatches(MODEL, 32, start=HELD_OUT_START - 32, prefetch=prefetch)
    assert source.batch(0).tokens.shape == (32, 4)
    with pytest.raises(ArgumentError, match="held-out"):
        source.batch(1)


@pytest.mark.parametrize("about", [{}, {"encoder": None}, {"encoder": {}}, {"encoder": {"x": 1}}])
def test_an_encoder_file_without_configuration(about: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    write_tensors(path, {"w": torch.from_numpy(np.zeros(1))}, about)
    with pytest.raises(DataError, match="configuration"):
        load_encoder(path)


def test_a_log_line_that_is_no_record(tmp_path: Path) -> None:
    settings = config(eval_every=1)
    stop(tmp_path, settings)
    log = tmp_path / "log.jsonl"
    log.write_text('{"kl": {}}\n' + log.read_text())
    with pytest.raises(DataError, match="step"):
        train(MODEL, ENCODER, settings, tmp_path, progress=False)
