"""Runs that begin from given weights, in part frozen: what `train` makes of a transfer."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import hfilter  # noqa: E402
from hfilter.analysis.construction import ConstructedTransformer, perturbed  # noqa: E402
from hfilter.analysis.distance import distance  # noqa: E402
from hfilter.errors import ArgumentError  # noqa: E402
from hfilter.learn.encoder import EncoderConfig  # noqa: E402
from hfilter.learn.freezing import weights_digest  # noqa: E402
from hfilter.learn.train import TrainConfig, load_encoder, train  # noqa: E402
from hfilter.learn.transfer import transfer  # noqa: E402

MODEL = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 3)
SMALL = {"d_model": 8, "n_layers": 2, "d_feedforward": 8, "dropout": 0.1}


def settings(steps=6, **options):
    options = {"lr": 1e-2, "batch_size": 16, "n_eval": 64, "weight_decay": 0.1} | options
    return TrainConfig(steps=steps, **options)


def run(model, config, options, folder, **more):
    return train(model, config, options, folder, progress=False, **more)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlm")
    run(MODEL, EncoderConfig.for_model(MODEL, **SMALL), settings(), folder)
    return folder


def test_masked_leaves_to_root_and_back(source, tmp_path):
    there = transfer(source, "root", model=MODEL)
    options = settings(frozen=there.frozen)
    root = run(MODEL, there.config, options, tmp_path / "root", start=there.encoder)
    moved = distance(root.encoder, there.encoder).absolute
    assert moved["embedding"] == moved["attention"] == moved["feedforward"] == moved["norms"] == 0
    assert moved["readout"] > 0
    about = json.loads((tmp_path / "root" / "config.json").read_text(encoding="utf-8"))
    assert weights_digest(there.encoder) in json.dumps(about)
    back = transfer(tmp_path / "root", "mlm")
    options = settings(frozen=back.frozen)
    mlm = run(MODEL, back.config, options, tmp_path / "mlm", start=back.encoder)
    old, new = back.encoder.embedding.weight, mlm.encoder.embedding.weight
    assert torch.equal(new[:4], old[:4])
    assert not torch.equal(new[4], old[4])
    assert distance(mlm.encoder, back.encoder).absolute["feedforward"] == 0


def test_a_frozen_run_resumes_bit_for_bit(source, tmp_path):
    start = transfer(source, "root", freeze=1, model=MODEL)
    options = settings(checkpoint_every=3, frozen=start.frozen)
    whole = run(MODEL, start.config, options, tmp_path / "whole", start=start.encoder)

    class Stop(Exception):
        pass

    def interrupt(record, encoder):
        if record["step"] == 4:
            raise Stop

    options = settings(checkpoint_every=3, frozen=start.frozen, eval_every=2)
    with pytest.raises(Stop):
        run(MODEL, start.config, options, tmp_path / "cut", start=start.encoder, callback=interrupt)
    cut = run(MODEL, start.config, options, tmp_path / "cut", start=start.encoder)
    assert distance(cut.encoder, whole.encoder).absolute["all"] == 0
    assert distance(cut.encoder, start.encoder).absolute["layers.0.feedforward"] == 0
    assert distance(cut.encoder, start.encoder).absolute["layers.1.feedforward"] > 0
    other = transfer(source, "root", freeze=1, model=MODEL, seed=1)
    with pytest.raises(ArgumentError):
        run(MODEL, start.config, options, tmp_path / "cut", start=other.encoder)


def test_start_must_fit(source, tmp_path):
    config = EncoderConfig.for_model(MODEL, "root", **SMALL)
    with pytest.raises(ArgumentError, match="transfer"):
        run(MODEL, config, settings(), tmp_path, start=load_encoder(source))


def test_training_goes_on_from_belief_propagation(tmp_path):
    """Started at BP the divergence is rounding; a damaged one comes back part of the way."""
    exact = ConstructedTransformer(MODEL, dtype="float32")
    options = settings(steps=2, lr=1e-4, weight_decay=0.0, frozen=("zeros",), n_eval=256)
    result = run(MODEL, exact.config, options, tmp_path / "exact", start=exact)
    assert abs(result.history[0]["kl"][0]) < 1e-5
    assert result.history[-1]["kl"][0] < 1e-3
    damaged = perturbed(exact, 0.2, seed=0)
    options = settings(
        steps=60, lr=1e-3, batch_size=64, weight_decay=0.0, frozen=("zeros",), n_eval=256
    )
    result = run(MODEL, exact.config, options, tmp_path / "damaged", start=damaged)
    divergence = [record["kl"][0] for record in result.history]
    assert divergence[0] > 0.05
    assert divergence[-1] < 0.6 * divergence[0]
    before = dict(exact.named_parameters())
    for name, now in result.encoder.named_parameters():
        assert (now[before[name] == 0] == 0).all(), name
