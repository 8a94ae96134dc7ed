from __future__ import annotations

import dataclasses
import doctest
import json
import shutil

import pytest

import hfilter
from hfilter.errors import ArgumentError, BackendUnavailable, DataError, HFilterError

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import hfilter.learn.checkpoint as checkpoint_module  # noqa: E402
import hfilter.learn.presets as presets_module  # noqa: E402
import hfilter.learn.train as train_module  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402
from hfilter.learn.train import (  # noqa: E402
    TrainConfig,
    load_encoder,
    log_spaced,
    read_log,
    train,
)

CLOCK = ("sequences_per_second", "elapsed")


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)


def tiny(**changes):
    base = EncoderConfig(4, 4, d_model=8, n_layers=2, d_feedforward=12, dropout=0.2)
    return dataclasses.replace(base, **changes)


CONFIG = TrainConfig(
    steps=10,
    batch_size=6,
    lr=3e-3,
    schedule="cosine",
    warmup=3,
    weight_decay=0.1,
    clip=0.5,
    eval_every=3,
    n_eval=40,
    checkpoint_every=4,
    threads=1,
)


class Killed(Exception):
    pass


def kill_at(step):
    def callback(record, encoder):
        if record["step"] == step:
            raise Killed

    return callback


def without_clock(records):
    return [{k: v for k, v in r.items() if k not in CLOCK} for r in records]


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The uninterrupted run that every resumed run is held against."""
    return train(model, tiny(), CONFIG, tmp_path_factory.mktemp("whole"), progress=False)


# --- resuming --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3, 6, 9, 10])
def test_a_killed_run_resumes_bit_for_bit(model, whole, tmp_path, step):
    """Dropout, rows, masks, moments and learning rate all go on as if nothing had happened."""
    with pytest.raises(Killed):
        train(model, tiny(), CONFIG, tmp_path, callback=kill_at(step), progress=False)
    assert (tmp_path / "checkpoint.safetensors").exists() == (step >= 4)
    assert not (tmp_path / "encoder.safetensors").exists()
    torch.rand(step + 1)  # the caller's random state must not matter
    resumed = train(model, tiny(), CONFIG, tmp_path, progress=False)
    assert without_clock(resumed.history) == without_clock(whole.history)
    assert without_clock(read_log(tmp_path)) == without_clock(whole.history)
    for name in ("encoder.safetensors",):
        assert (tmp_path / name).read_bytes() == (whole.folder / name).read_bytes()
    for a, b in zip(resumed.encoder.parameters(), whole.encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_resume_that_forgets_the_moments_is_caught(model, whole, tmp_path, monkeypatch):
    """The mutant of the test above: it must see a checkpoint that leaves something out."""
    with pytest.raises(Killed):
        train(model, tiny(), CONFIG, tmp_path, callback=kill_at(6), progress=False)
    unpack = train_module.unpack_state

    def forgetful(tensors, network, optimiser):
        unpack(tensors, network, optimiser)
        for part in optimiser.parts:
            for moments in part.state.values():
                moments.update({k: torch.zeros_like(m) for k, m in moments.items() if k != "step"})

    monkeypatch.setattr(train_module, "unpack_state", forgetful)
    resumed = train(model, tiny(), CONFIG, tmp_path, progress=False)
    assert without_clock(resumed.history) != without_clock(whole.history)


def test_a_finished_run_is_read_back(model, whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    called = []
    again = train(
        model, tiny(), CONFIG, tmp_path, callback=lambda *a: called.append(a), progress=False
    )
    assert not called
    assert again.history == whole.history
    assert (tmp_path / "log.jsonl").read_text() == (whole.folder / "log.jsonl").read_text()


def test_a_log_line_cut_short_is_made_again(model, whole, tmp_path):
    with pytest.raises(Killed):
        train(model, tiny(), CONFIG, tmp_path, callback=kill_at(6), progress=False)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text()[:-20])
    resumed = train(model, tiny(), CONFIG, tmp_path, progress=False)
    assert without_clock(resumed.history) == without_clock(whole.history)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"lr": 1e-3}, "train.lr: 0.003 there, 0.001 now"), ({"steps": 12}, "train.steps"),
     ({"seed": 1}, "train.seed")],
)  # fmt: skip
def test_another_configuration_is_refused(model, whole, change, name):
    before = (whole.folder / "log.jsonl").read_bytes()
    other = dataclasses.replace(CONFIG, **change)
    with pytest.raises(ArgumentError, match=name):
        train(model, tiny(), other, whole.folder, progress=False)
    assert (whole.folder / "log.jsonl").read_bytes() == before


def test_another_encoder_or_model_is_refused(model, whole):
    with pytest.raises(ArgumentError, match=r"encoder\.d_model: 8 there, 16 now"):
        train(model, tiny(d_model=16), CONFIG, whole.folder, progress=False)
    with pytest.raises(ArgumentError, match=r"model\.fingerprint"):
        train(model.filtered(1), tiny(), CONFIG, whole.folder, progress=False)


def test_damaged_files_are_refused(model, whole, tmp_path):
    for name, damage, message in [
        ("checkpoint.safetensors", lambda b: b[: len(b) // 2], "cut short"),
        ("config.json", lambda b: b[: len(b) // 2], "not the configuration"),
        ("config.json", lambda b: b"[1, 2]", "not the configuration"),
        ("log.jsonl", lambda b: b"nonsense\n" + b, "line 1 is not a record"),
    ]:
        folder = tmp_path / f"{name}-{len(message)}-{len(damage(b'1234'))}"
        shutil.copytree(whole.folder, folder)
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        with pytest.raises(DataError, match=message):
            train(model, tiny(), CONFIG, folder, progress=False)
    shutil.copytree(whole.folder, tmp_path / "headless")
    (tmp_path / "headless" / "config.json").unlink()
    with pytest.raises(DataError, match=r"no config\.json"):
        train(model, tiny(), CONFIG, tmp_path / "headless", progress=False)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    checkpoint_module.write_tensors(path, {"a": torch.ones(2)}, {"step": 1})

    def fails(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(DataError, match="disk full"):
        checkpoint_module.write_tensors(path, {"a": torch.zeros(2)}, {"step": 2})
    tensors, about = checkpoint_module.read_tensors(path)
    assert about == {"step": 1}
    assert torch.equal(tensors["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# --- what a run leaves -----------------------------------------------------------------------


def test_the_run_folder(model, whole):
    names = {p.name for p in whole.folder.iterdir()}
    assert names == {
        "config.json",
        "grammar.npz",
        "log.jsonl",
        "checkpoint.safetensors",
        "encoder.safetensors",
    }
    config = json.loads((whole.folder / "config.json").read_text())
    assert config["model"]["fingerprint"] == model.fingerprint
    assert config["encoder"] == dataclasses.asdict(tiny())
    assert config["train"]["steps"] == 10
    assert config["stream"]["version"] == hfilter.STREAM_VERSION
    assert set(hfilter.provenance()) <= set(config["made_by"])
    assert [r["step"] for r in whole.history] == [0, 3, 6, 9, 10]
    assert [r["sequences"] for r in whole.history] == [0, 18, 36, 54, 60]
    assert read_log(whole.folder) == whole.history
    assert whole.history[0]["loss"] is None
    assert all(set(r["kl"]) == {0, 1, 2} for r in whole.history)


def test_an_encoder_comes_back(whole, tmp_path):
    loaded = load_encoder(whole.folder)
    tokens = torch.randint(5, (7, 4), generator=torch.Generator().manual_seed(0))
    assert not loaded.training
    assert torch.equal(loaded(tokens), whole.encoder(tokens))
    with pytest.raises(DataError, match="no encoder configuration"):
        load_encoder(whole.folder / "checkpoint.safetensors")
    with pytest.raises(DataError, match="missing"):
        load_encoder(tmp_path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="was it written by hfilter"):
        load_encoder(tmp_path / "other.safetensors")
    tensors, about = checkpoint_module.read_tensors(whole.folder / "encoder.safetensors")
    about["encoder"]["d_model"] = 16
    checkpoint_module.write_tensors(tmp_path / "wrong.safetensors", tensors, about)
    with pytest.raises(DataError, match="do not fit"):
        load_encoder(tmp_path / "wrong.safetensors")


def test_when_and_how_often_one_looks_changes_nothing(model, whole, tmp_path):
    """Evaluations, callbacks that draw random numbers and checkpoints leave the run alone."""
    other = dataclasses.replace(CONFIG, eval_at=(1, 7), checkpoint_every=3)
    result = train(
        model, tiny(), other, tmp_path, callback=lambda *a: torch.rand(100), progress=False
    )
    assert [r["step"] for r in result.history] == [0, 1, 7, 10]
    for a, b in zip(result.encoder.parameters(), whole.encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_callers_torch_is_left_alone(model, tmp_path):
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    config = TrainConfig(steps=2, batch_size=4, n_eval=8, threads=threads + 1)
    train(model, tiny(), config, tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_bar_shows_loss_and_floor(model, tmp_path, capsys):
    config = TrainConfig(steps=2, batch_size=4, n_eval=8)
    result = train(model, tiny(), config, tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert f"floor {result.held_out.floor:.4f}" in shown


@pytest.mark.parametrize("task", ["mlm", "root"])
def test_training_comes_near_the_exact_posterior(task, tmp_path):
    """Two leaves: a small network must find BP_0 (KL below 0.02 nats), and start far from it."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=1)
    config = TrainConfig(
        steps=150, batch_size=128, lr=1e-2, schedule="cosine", warmup=10, n_eval=1000
    )
    encoder = EncoderConfig(
        4, 2, d_model=16, n_layers=1, d_feedforward=32, dropout=0.0, readout=task
    )
    result = train(model, encoder, config, tmp_path, progress=False)
    first, last = result.history[0], result.history[-1]
    assert first["kl"][0] > 0.2
    assert last["kl"][0] < 0.02
    assert last["kl"][1] > 0.1  # it has left the law of independent leaves behind
    assert abs(last["cross_entropy"] - last["floor"] - last["kl"][0]) < 0.05


# --- configuration ---------------------------------------------------------------------------


def test_learning_rates_by_hand():
    cosine = TrainConfig(steps=12, lr=2.0, schedule="cosine", warmup=4, final_lr=0.1)
    rates = [cosine.learning_rate(t) for t in (0, 1, 3, 4, 8, 12)]
    assert rates == pytest.approx([0.5, 1.0, 2.0, 2.0, 1.1, 0.2])
    constant = TrainConfig(steps=12, lr=2.0)
    assert {constant.learning_rate(t) for t in range(12)} == {2.0}


def test_log_spaced_steps():
    assert log_spaced(200, 11)[0] == 1
    assert log_spaced(200, 11)[-1] == 200
    assert log_spaced(3, 50) == (1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"mask_rate": 1.1}, "mask_rate"),
        ({"train_mask_rate": 0.0}, "train_mask_rate"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"clip": 0.0}, "clip"),
        ({"schedule": "staircase"}, "schedule"),
        ({"warmup": -1}, "warmup"),
        ({"final_lr": float("nan")}, "final_lr"),
        ({"eval_at": (11,)}, "eval_at"),
        ({"n_eval": 0}, "n_eval"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"threads": 0}, "threads"),
        ({"seed": -1}, "seed"),
        ({"steps": 2**47}, "held-out rows"),
    ],
)
def test_configuration_errors(changes, message):
    with pytest.raises(ArgumentError, match=message):
        TrainConfig(**({"steps": 10} | changes))


def test_a_folder_that_is_not_a_run_is_left_alone(model, tmp_path):
    (tmp_path / "log.jsonl").write_text("somebody's notes")
    with pytest.raises(DataError, match=r"log\.jsonl but no config\.json"):
        train(model, tiny(), CONFIG, tmp_path, progress=False)
    assert (tmp_path / "log.jsonl").read_text() == "somebody's notes"
    with pytest.raises(DataError, match="cannot make this folder"):
        train(model, tiny(), CONFIG, tmp_path / "log.jsonl", progress=False)


def test_a_diverging_run_stops(model, tmp_path):
    wild = TrainConfig(steps=50, batch_size=4, lr=1e30, n_eval=8)
    with pytest.raises(HFilterError, match=r"the training loss became .* lower lr"):
        train(model, tiny(norm="pre"), wild, tmp_path, progress=False)


def test_devices_that_are_not_there(model, tmp_path):
    with pytest.raises(ArgumentError, match="torch device"):
        train(model, tiny(), dataclasses.replace(CONFIG, device="abacus"), tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="no GPU"):
            train(model, tiny(), dataclasses.replace(CONFIG, device="cuda"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_does_not_fit_is_refused(model, tmp_path):
    for config in (tiny(vocab_size=5), tiny(n_leaves=8), tiny(readout="root", n_classes=3)):
        with pytest.raises(ArgumentError, match="must fit the model"):
            train(model, config, CONFIG, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_presets_fit_their_model(model):
    encoder, config = presets_module.fast_mlm(model)
    assert (encoder.vocab_size, encoder.n_leaves) == (4, 4)
    assert Encoder(encoder)(torch.zeros(2, 4, dtype=torch.int64)).shape == (2, 4, 4)
    assert config.steps >= 1


@pytest.mark.parametrize("module", [train_module, presets_module, checkpoint_module])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0
