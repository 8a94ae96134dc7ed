"""Two processes that train together do what one does with the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hfilter
from hfilter.errors import ArgumentError

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from hfilter.learn.encoder import EncoderConfig  # noqa: E402
from hfilter.learn.train import TrainConfig, load_encoder, read_log, train  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)

MODEL = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
SHAPE = EncoderConfig(4, 4, d_model=8, n_layers=2, d_feedforward=12, dropout=0.0)
CONFIG = TrainConfig(
    steps=12, batch_size=6, lr=1e-3, clip=0.5, train_mask_rate=0.4, eval_every=4, n_eval=200,
    checkpoint_every=4, train_size=20, targets="posterior", stop_at=1e-9,
)  # fmt: skip
DENOISER = replace(SHAPE, readout="denoise")
NOISY = replace(CONFIG, train_mask_rate=None, targets="labels", average=0.3)


def work(folder: Path) -> None:
    """What each process does: a run, the rest of one that a single process began, two refusals."""

    def callback(record: dict[str, Any], encoder: object) -> None:
        (folder / f"called-by-{os.environ['RANK']}").touch()

    for name in ("run", "resumed"):
        result = train(MODEL, SHAPE, CONFIG, folder / name, callback=callback, progress=False)
        assert [r["step"] for r in result.history] == [0, 4, 8, 12]  # everywhere, not just where it
        assert not result.encoder.training  # was written
    train(MODEL, DENOISER, NOISY, folder / "denoiser", progress=False)
    with pytest.raises(ArgumentError, match="another configuration"):
        train(MODEL, SHAPE, replace(CONFIG, steps=3), folder / "run", progress=False)
    with pytest.raises(ArgumentError, match="multiple of the 2 processes"):
        train(MODEL, SHAPE, replace(CONFIG, batch_size=5), folder / "odd", progress=False)


def start(folder: Path) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    here |= {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-P", __file__, str(folder)],
            env=os.environ | here | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        return [child.wait(timeout=100) for child in children]
    finally:
        for child in children:
            child.kill()


class Killed(Exception):
    pass


def interrupt(record: dict[str, Any], encoder: object) -> None:
    if record["step"] == 8:
        raise Killed


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Losses, divergences and predictions; begun by one, too. A rank's wrong rows are 1e-2 off."""
    alone = train(MODEL, SHAPE, CONFIG, tmp_path / "alone", progress=False)
    with pytest.raises(Killed):
        train(MODEL, SHAPE, CONFIG, tmp_path / "resumed", callback=interrupt, progress=False)
    denoiser = train(MODEL, DENOISER, NOISY, tmp_path / "alone-too", progress=False)
    assert start(tmp_path) == [0, 0]
    assert (tmp_path / "called-by-0").exists()
    assert not (tmp_path / "called-by-1").exists()
    tokens = torch.randint(5, (50, 4), generator=torch.Generator().manual_seed(0))
    for folder in ("run", "resumed"):
        for one, two in zip(alone.history, read_log(tmp_path / folder), strict=True):
            for name in ("loss", "cross_entropy", "floor"):
                assert one[name] == pytest.approx(two[name], abs=2e-6), (one["step"], name)
            assert one["kl"] == pytest.approx(two["kl"], abs=2e-6)
        with torch.no_grad():
            found = load_encoder(tmp_path / folder)(tokens)
            assert torch.allclose(found, alone.encoder(tokens), atol=2e-5)
    for one, two in zip(denoiser.history, read_log(tmp_path / "denoiser"), strict=True):
        for name in ("loss", "cross_entropy", "floor", "loss_all_times", "train_cross_entropy"):
            assert one[name] == pytest.approx(two[name], abs=2e-6), (one["step"], name)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
