"""Ctrl-C in the middle of a training: it stops between two steps, and goes on bit for bit."""

from __future__ import annotations

import doctest
import signal
from pathlib import Path
from typing import Any

import pytest

import hfilter

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import hfilter.learn.interruption as interruption  # noqa: E402
from hfilter.learn.checkpoint import read_tensors  # noqa: E402
from hfilter.learn.encoder import EncoderConfig  # noqa: E402
from hfilter.learn.interruption import BetweenSteps  # noqa: E402
from hfilter.learn.train import TrainConfig, train  # noqa: E402

MODEL = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
SHAPE = EncoderConfig(4, 4, d_model=8, n_layers=1, d_feedforward=8)
CONFIG = TrainConfig(steps=9, batch_size=8, lr=3e-3, n_eval=32, eval_every=4, checkpoint_every=1000)
CLOCK = ("sequences_per_second", "elapsed")


def at_step(step: int, number: signal.Signals) -> Any:
    def callback(record: dict[str, Any], encoder: Any) -> None:
        if record["step"] == step:
            signal.raise_signal(number)

    return callback


def test_an_interrupted_run_leaves_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    whole = train(MODEL, SHAPE, CONFIG, tmp_path / "whole", progress=False)
    parts = tmp_path / "parts"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(MODEL, SHAPE, CONFIG, parts, at_step(4, signal.SIGINT), progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    _, numbers = read_tensors(parts / "checkpoint.safetensors")
    assert numbers["step"] == 4  # and not every thousand steps
    assert not (parts / "encoder.safetensors").exists()
    resumed = train(MODEL, SHAPE, CONFIG, parts, progress=False)
    for a, b in zip(resumed.encoder.parameters(), whole.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    shown = [
        [{k: v for k, v in r.items() if k not in CLOCK} for r in run.history]
        for run in (resumed, whole)
    ]
    assert shown[0] == shown[1]


def test_a_handler_that_returns_does_not_make_a_run_look_finished(tmp_path: Path) -> None:
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            train(MODEL, SHAPE, CONFIG, tmp_path, at_step(0, signal.SIGTERM), progress=False)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [signal.SIGTERM]
    assert not (tmp_path / "encoder.safetensors").exists()


def test_a_second_signal_is_not_held_back() -> None:
    with pytest.raises(KeyboardInterrupt), BetweenSteps() as signals:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        assert signals.waiting
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was held back")


def test_an_error_inside_is_not_replaced() -> None:
    with pytest.raises(ValueError, match="mine"), BetweenSteps():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise ValueError("mine")


def test_inactive_holds_nothing_back() -> None:
    with pytest.raises(KeyboardInterrupt), BetweenSteps(active=False):  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        pytest.fail("held back")


def test_docstring_examples_run() -> None:
    assert doctest.testmod(interruption).failed == 0
