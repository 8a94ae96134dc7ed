"""Manners of a training folder: two at once, checkpoints of another run, damaged moments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from hfilter import Grammar, TreeModel  # noqa: E402
from hfilter.errors import ArgumentError, DataError, DTypeError, HFilterError  # noqa: E402
from hfilter.learn.checkpoint import load_encoder, read_tensors, write_tensors  # noqa: E402
from hfilter.learn.data import FreshBatches  # noqa: E402
from hfilter.learn.encoder import EncoderConfig  # noqa: E402
from hfilter.learn.masks import HELD_OUT_START  # noqa: E402
from hfilter.learn.train import TrainConfig, load_model, train  # noqa: E402

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


@pytest.mark.parametrize("content", ["", '{"step": 0'], ids=["empty", "cut short"])
def test_a_log_that_lost_what_the_checkpoint_has_behind_it(content: str, tmp_path: Path) -> None:
    train(MODEL, ENCODER, config(), tmp_path, progress=False)
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(DataError, match="lacks the record of step 0"):
        train(MODEL, ENCODER, config(), tmp_path, progress=False)
    assert (tmp_path / "log.jsonl").read_text() == content


@pytest.mark.parametrize("change", [None, b"PK"], ids=["lost", "damaged"])
def test_the_grammar_of_a_run_is_written_again(change: bytes | None, tmp_path: Path) -> None:
    stop(tmp_path, config(eval_every=1))
    (tmp_path / "grammar.npz").unlink()
    if change is not None:
        (tmp_path / "grammar.npz").write_bytes(change)
    train(MODEL, ENCODER, config(eval_every=1), tmp_path, progress=False)
    assert load_model(tmp_path).fingerprint == MODEL.fingerprint


def test_a_setting_that_this_version_does_not_know(tmp_path: Path) -> None:
    stop(tmp_path, config(eval_every=1))
    path = tmp_path / "config.json"
    about = json.loads(path.read_text())
    about["train"]["of_tomorrow"] = 3
    path.write_text(json.dumps(about))
    with pytest.raises(ArgumentError, match="of_tomorrow: 3 there"):
        train(MODEL, ENCODER, config(eval_every=1), tmp_path, progress=False)


def test_training_does_not_depend_on_the_callers_torch(tmp_path: Path) -> None:
    """Default dtype, default device and gradient mode are the caller's; the run is the same."""
    settings = config(optimiser="muon", frozen=("embedding.weight[:2]",), targets="posterior")

    def weights(name: str) -> bytes:
        result = train(MODEL, ENCODER, settings, tmp_path / name, progress=False)
        assert result.encoder.embedding.weight.dtype == torch.float32
        return (tmp_path / name / "encoder.safetensors").read_bytes()

    plain = weights("plain")
    try:
        torch.set_default_dtype(torch.float64)
        assert weights("dtype") == plain
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert weights("device") == plain
    with torch.no_grad():
        assert weights("no gradient") == plain
    with torch.inference_mode():
        assert weights("inference") == plain


@pytest.mark.parametrize(
    ("argument", "value"),
    [("model", None), ("encoder_config", {}), ("config", {"steps": 3})],
)
def test_what_is_no_model_or_configuration(argument: str, value: Any, tmp_path: Path) -> None:
    given = {"model": MODEL, "encoder_config": ENCODER, "config": config()} | {argument: value}
    with pytest.raises(DTypeError, match=f"{argument} must be an? "):
        train(**given, folder=tmp_path, progress=False)


@pytest.mark.parametrize("device", ["meta", "mps", "gpu"])
def test_devices_that_cannot_train(device: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="device must be"):
        train(MODEL, ENCODER, config(device=device), tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()
