"""``hfilter train`` and ``hfilter evaluate``: what options mean, what is written, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import hf, names

import hfilter
from hfilter.cli.command import build_parser
from hfilter.cli.train import settings
from hfilter.learn.presets import PRESETS, preset

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from hfilter.analysis.compare import evaluate  # noqa: E402
from hfilter.analysis.ladders import ladders  # noqa: E402
from hfilter.experiments.artefacts import plain  # noqa: E402
from hfilter.learn.encoder import Encoder  # noqa: E402
from hfilter.learn.train import load_encoder, read_log, train  # noqa: E402

pytestmark = pytest.mark.usefixtures("inside")

SMALL = "--depth 2 --steps 6 --d-model 8 --heads 1 --feedforward 8 --layers 1 --n-eval 50 --quiet"
CLOCK = ("sequences_per_second", "elapsed")


def model(depth: int = 2, k: int = 0, seed: int = 0) -> hfilter.TreeModel:
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, seed), depth, k)


def parsed(text: str) -> tuple[Any, Any]:
    parser, _ = build_parser()
    arguments = parser.parse_args(["train", *text.split()])
    encoder, config, _ = settings(arguments, model())
    return encoder, config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small run of every task."""
    folder = tmp_path_factory.mktemp("runs")
    for task in ("mlm", "root", "causal", "ancestor"):
        more = "--filter-level 1 --checkpoint-at 3" if task == "mlm" else ""
        assert hf(f"train --preset {task}-fast --out {folder / task} {SMALL} {more}") == 0
    return folder


# --- train -----------------------------------------------------------------------------------


def test_train_is_the_library(runs: Path) -> None:
    parser, _ = build_parser()
    arguments = parser.parse_args(f"train --preset mlm-fast --out x {SMALL}".split())
    arguments.checkpoint_at = "3"
    encoder, config, _ = settings(arguments, model(2, 1))
    result = train(model(2, 1), encoder, config, "own", progress=False)
    log = read_log(runs / "mlm")
    for ours, theirs in zip(result.history, log, strict=True):
        assert all(ours[k] == theirs[k] for k in ours if k not in CLOCK)
    assert names(Path("own")) == names(runs / "mlm")
    assert (runs / "mlm/encoder.safetensors").read_bytes() == Path(
        "own/encoder.safetensors"
    ).read_bytes()


def test_train_again_goes_on(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "root", "root")
    before = Path("root/log.jsonl").read_text()
    assert hf(f"train --preset root-fast --out root {SMALL}".replace(" --quiet", "")) == 0
    assert "exact floor" in capsys.readouterr().out
    assert Path("root/log.jsonl").read_text() == before
    assert hf(f"train --preset root-fast --out root {SMALL} --seed 2") == 2
    assert "train.seed: 0 there, 2 now" in capsys.readouterr().err


OPTIONS = {
    "--seed 3 --data-seed 4": {"seed": 3, "data_seed": 4},
    "--batch-size 8 --lr 0.5 --clip 2 --weight-decay 0.25": {
        "batch_size": 8, "lr": 0.5, "clip": 2.0, "weight_decay": 0.25},
    "--train-size 1e3 --targets posterior --target-level 2": {
        "train_size": 1000, "targets": "posterior", "target_level": 2},
    "--train-size 0 --train-mask-rate 0": {"train_size": None, "train_mask_rate": None},
    "--mask-rate 0.5": {"mask_rate": 0.5},
    "--optimiser muon --muon-lr 0.125": {"optimiser": "muon", "muon_lr": 0.125},
    "--optimiser adamw --targets labels": {
        "optimiser": "adamw", "muon_lr": None, "targets": "labels"},
    "--schedule linear --warmup 7": {"schedule": "linear", "warmup": 7},
    "--eval-every 9 --n-eval 5 --stop-at 0.25": {
        "eval_every": 9, "eval_at": None, "n_eval": 5, "stop_at": 0.25},
    "--checkpoint-every 8 --checkpoint-at 1,1e1,500": {
        "checkpoint_every": 8, "checkpoint_at": (1, 10, 500)},
    "--precision bfloat16 --compile --tensorboard": {
        "precision": "bfloat16", "compile": True, "tensorboard": True},
    "--threads 2 --device cuda:1": {"threads": 2, "device": "cuda:1"},
    "--init-gamma 0.75": {"init_gamma": 0.75},
    "--init-gamma readout=0.5,embedding=1": {"init_gamma": {"readout": 0.5, "embedding": 1.0}},
    "--schedule inverse-root --cooldown 50 --average 0.25": {
        "schedule": "inverse-root", "cooldown": 50, "average": 0.25},
    "--train-size 100 --data-start 200 --held-out content": {
        "train_size": 100, "data_start": 200, "held_out": "content"},
    "--noise cosine --noise-steps 100 --eval-time 9": {
        "noise": "cosine", "noise_steps": 100, "eval_time": 9},
    "--frozen embedding,layers.0": {"frozen": ("embedding", "layers.0")},
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_options_change_what_they_name(option: str) -> None:
    """And nothing else."""
    encoder, config = parsed(f"--preset mlm-fast --out x {option}")
    plain_encoder, plain_config = parsed("--preset mlm-fast --out x")
    assert encoder == plain_encoder
    expected = replace(plain_config, **OPTIONS[option])
    assert config == expected


def test_lists_in_a_file_are_lists_with_commas(tmp_path: Path) -> None:
    """And only of options that are such lists: a number must be one number."""
    file = tmp_path / "train.toml"
    file.write_text(
        'preset = "mlm-fast"\nsteps = 9\ncheckpoint_at = [1, 9]\nfrozen = ["layers.0"]\n'
    )
    out = tmp_path / "run"
    assert hf(f"train --config {file} --out {out} {SMALL.replace('--steps 6', '')} --quiet") == 0
    settings = json.loads((out / "config.json").read_text())["train"]
    assert settings["checkpoint_at"] == [1, 9]
    assert settings["frozen"] == ["layers.0"]
    file.write_text('preset = "mlm-fast"\nsteps = [9]\n')
    assert hf(f"train --config {file} --out {tmp_path / 'other'}") == 2


def test_an_early_stop_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loud = SMALL.replace("--quiet", "--eval-every 2")
    assert hf(f"train --preset mlm-fast --out {tmp_path / 'a'} {loud} --stop-at 100") == 0
    out = capsys.readouterr().out
    assert "stopped before step 6: within 10000 % of the floor\nstep 0: " in out
    assert hf(f"train --preset mlm-fast --out {tmp_path / 'b'} {loud}") == 0
    assert "stopped" not in capsys.readouterr().out


def test_fewer_steps_shrink_the_schedule() -> None:
    _, config = parsed("--preset mlm-fast --out x --steps 34 --warmup 3")
    expected = preset("mlm-fast", model())[1].rescaled(34)
    assert config == replace(expected, warmup=3)
    assert max(config.eval_points()) == 34


def test_options_of_the_encoder() -> None:
    encoder, _ = parsed("--preset root-fast --out x --d-model 12 --heads 3 --layers 5 "
                        "--feedforward 7 --dropout 0.5 --positions none --norm pre --pooling mean")  # fmt: skip
    found = (encoder.d_model, encoder.n_heads, encoder.n_layers, encoder.d_feedforward)
    assert found == (12, 3, 5, 7)
    assert (encoder.dropout, encoder.positions, encoder.norm) == (0.5, "none", "pre")
    assert encoder.pooling == "mean"
    assert parsed("--preset root-fast --out x --mask-rate 0.3")[0].masked_root
    encoder, config = parsed("--preset ancestor-fast --out x --ancestor-level 0")
    assert (encoder.n_classes, config.ancestor_level) == (4, 0)


MODELS = {
    "published": lambda: model(4),
    "filtered": lambda: model(4, 3),
    "flat": lambda: model(3, 3),
    "one level": lambda: model(1),
    "classes": lambda: hfilter.TreeModel(hfilter.Grammar.random_hierarchy(5, 3, 3, 7), depth=3),
}


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_every_model(name: str, which: str) -> None:
    """The task can be asked of the model, and the encoder answers in the shape that is scored."""
    from hfilter.learn.data import FreshBatches
    from hfilter.learn.tasks import scored

    tree = MODELS[which]()
    encoder, config, description = preset(name, tree)
    assert len(description) > 20
    assert "\n" not in description
    assert encoder.readout == name.split("-")[0]
    batch = FreshBatches(tree, 3, task=encoder.readout, ancestor_level=config.ancestor_level).batch(
        0
    )
    small = Encoder(type(encoder)(**{**vars(encoder), "d_model": 8, "n_heads": 1}))
    logits, labels = scored(small(*batch.inputs), batch)
    assert len(logits) == len(labels)
    assert int(labels.max()) < logits.shape[1]
    assert max(config.eval_points()) == config.steps
    assert config.rescaled(10).steps == 10


def test_published_presets_are_as_published() -> None:
    """Sequences, epochs, batches, rate, shape: PAPERS A; parameters: 2.37 M and 8 196."""
    encoder, config, _ = preset("root-published", model(4))
    assert (config.train_size, config.batch_size, config.lr) == (2**17, 32, 1e-4)
    assert (config.steps, config.schedule, config.weight_decay) == (200 * 4096, "constant", 0.0)
    epochs = [step // 4096 for step in config.checkpoint_at]
    assert epochs == [1, 2, 4, 6, 11, 17, 29, 47, 76, 123, 200]
    network = Encoder(encoder)
    assert network.n_parameters("readout") == 8196
    assert network.n_parameters("encoder") == pytest.approx(2.37e6, rel=2e-3)
    encoder, config, _ = preset("mlm-published", model(4))
    assert (config.train_size, config.steps) == (2**18, 2000 * 8192)
    assert config.mask_rate is config.train_mask_rate is None
    assert (encoder.dropout, encoder.positions, encoder.norm) == (0.1, "sinusoidal", "post")


def test_published_denoisers_are_as_published() -> None:
    """PAPERS B: sizes, steps, batches, rates, kept encoders; the size of the network elsewhere."""
    tree = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=4)
    sizes = {"": (5000, 200_000), "-12k": (12_000, 720_000), "-70k": (70_000, 4_800_000)}
    for end, (size, steps) in sizes.items():
        encoder, config, _ = preset(f"denoise-published{end}", tree)
        assert (config.train_size, config.steps, config.batch_size) == (size, steps, 512)
        assert (config.lr, config.noise, config.noise_steps) == (3e-4, "published", 500)
        assert (config.optimiser, config.weight_decay, config.targets) == ("adamw", 0.0, "labels")
        epoch = size / 512
        assert config.rate_factor(0) == 1.0
        assert config.rate_factor(round(25 * epoch)) == pytest.approx(0.75, abs=1e-3)
        assert config.rate_factor(round(50 * epoch)) == pytest.approx(0.5, abs=1e-3)
        assert config.rate_factor(steps) == pytest.approx(0.1)
        assert len(config.checkpoint_at) == 25
        assert (encoder.d_model, encoder.n_layers, encoder.n_heads) == (512, 8, 4)
        assert (encoder.d_feedforward, encoder.activation, encoder.norm) == (1024, "relu", "post")
        assert (encoder.dropout, encoder.positions, encoder.time_embedding) == (0.1, "learned", 32)
    tree = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=3)
    assert Encoder(preset("denoise-fast", tree)[0]).n_parameters() == 103_878


# --- evaluate --------------------------------------------------------------------------------


def test_evaluate_is_the_library(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of data; the first is the run's own law, and the judge is its model throughout."""
    argv = f"evaluate {runs / 'mlm'} --rows 60 --uniform --other-seed 5 --out e.json"
    assert hf(argv) == 0
    table = capsys.readouterr().out.splitlines()
    found = json.loads(Path("e.json").read_text())
    own = model(2, 1)
    kinds: dict[str, Any] = {"level 1 (own)": "own", "level 0": own.filtered(0),
                             "level 2": own.filtered(2), "grammar seed 5": model(2, 1, 5),
                             "uniform": "uniform"}  # fmt: skip
    assert list(found["comparisons"]) == list(kinds)
    encoder = load_encoder(runs / "mlm")
    for row, (name, source) in zip(table[2:], kinds.items(), strict=False):
        expected = plain(evaluate(encoder, own, 60, inputs=source).as_dict())
        got = found["comparisons"][name]
        assert {k: v for k, v in got.items() if k != "inputs"} == {
            k: v for k, v in expected.items() if k != "inputs"
        }
        assert row.startswith(name)
        assert f"{got['kl']['1']:.4f}" in row
    climb = ladders(encoder, own, 60)
    assert found["windows"]["kl"] == climb.window_kl.tolist()
    assert table[-2].endswith("".join(f"{value:8.4f}" for value in climb.window_kl))
    assert found["model"]["fingerprint"] == own.fingerprint
    assert (found["rows"], found["seed"], found["mask_rate"]) == (60, 0, None)


def test_evaluate_in_sample(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of the training itself, and no more of them than it showed."""
    assert (
        hf(f"evaluate {runs / 'mlm'} --rows 100000 --filter-level 1 --in-sample --out i.json") == 0
    )
    found = json.loads(Path("i.json").read_text())["comparisons"]["in sample"]
    settings = json.loads((runs / "mlm" / "config.json").read_text())["train"]
    shown = settings["steps"] * settings["batch_size"]
    expected = evaluate(load_encoder(runs / "mlm"), model(2, 1), shown, seed=0, start=0)
    assert found["n_sequences"] == shown
    assert found["kl"]["1"] == expected.kl[1]
    assert "in sample" in capsys.readouterr().out
    # An encoder kept along the way has seen what was shown by then.
    kept = sorted((runs / "mlm" / "checkpoints").glob("step-*.safetensors"))[-1]
    assert (
        hf(f"evaluate {kept} --rows 100000 --filter-level 1 --in-sample --quiet --out k.json") == 0
    )
    steps = int(kept.stem.removeprefix("step-"))
    found = json.loads(Path("k.json").read_text())["comparisons"]["in sample"]
    assert found["n_sequences"] == steps * settings["batch_size"] < shown
    lone = Path("lone.safetensors")
    lone.write_bytes((runs / "mlm" / "encoder.safetensors").read_bytes())
    assert hf(f"evaluate {lone} --depth 2 --rows 20 --in-sample") == 2
    assert "run folder only" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["root", "causal", "ancestor"])
def test_evaluate_every_task(runs: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hf(f"evaluate {runs / task} --rows 40 --seed 7 --out e.json --quiet") == 0
    assert capsys.readouterr().out == ""
    got = json.loads(Path("e.json").read_text())["comparisons"]
    level = 1 if task == "ancestor" else None
    assert list(got) == ["level 0 (own)", "level 1", *(["level 2"] * (level is None))]
    expected = evaluate(load_encoder(runs / task), model(), 40, task=task, level=level, seed=7)  # type: ignore[arg-type]
    assert got["level 0 (own)"] == plain(expected.as_dict()) | {
        "inputs": got["level 0 (own)"]["inputs"]
    }


def test_evaluate_files_of_a_run_and_lone_ones(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs / "mlm/checkpoints/step-0000003.safetensors"
    assert hf(f"evaluate {path} --rows 30 --filter-level 2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    shutil.copy(path, "lone.safetensors")
    assert hf("evaluate lone.safetensors --rows 30 --depth 2 --filter-level 2 --quiet") == 0
    assert hf("evaluate lone.safetensors --rows 30") == 2
    assert "reads 4 leaves of 4 symbols, the model has 16 of 4" in capsys.readouterr().err


REFUSED = {
    "train --out x": "required (here or in --config FILE): --preset",
    "train --preset mlm-fats --out x": "did you mean mlm-fast?",
    f"train --preset mlm-fast --out x {SMALL} --optimiser sgd": 'must be "adamw", "muon"',
    f"train --preset mlm-fast --out x {SMALL} --checkpoint-at 1,b": "--checkpoint-at: want a whole",
    f"train --preset mlm-fast --out x {SMALL} --checkpoint-at 7": "must lie in 0 … 6",
    f"train --preset mlm-fast --out x {SMALL} --heads 3": "n_heads must divide",
    f"train --preset mlm-fast --out x {SMALL} --frozen layer.0": "frozen: no parameter",
    f"train --preset mlm-fast --out x {SMALL} --start RUNS/root": "start must be an encoder",
    f"train --preset root-fast --out x {SMALL} --stop-at 0.1": "fraction of the exact floor",
    f"train --preset ancestor-fast --out x {SMALL} --ancestor-level 2": "one of [0, 1]",
    f"train --preset ancestor-fast --out x {SMALL} --ancestor-level 9": "below --depth = 2",
    f"train --preset mlm-fast --out x {SMALL} --device abacus": "torch device",
    "evaluate nowhere": "missing",
    "evaluate RUNS/mlm --depth 2": "--depth: RUNS/mlm knows its model",
    "evaluate RUNS/mlm --filter-level 3": "--filter-level must be at most 2",
    "evaluate RUNS/ancestor --filter-level 2": "no level 1",
    "evaluate RUNS/mlm --out e.csv": "want a file named .json",
}  # fmt: skip


@pytest.mark.parametrize("call", REFUSED)
def test_refusals_are_one_line(
    call: str, runs: Path, capsys: pytest.CaptureFixture[str], inside: Path
) -> None:
    assert hf(call.replace("RUNS", str(runs))) == 2
    error = capsys.readouterr().err
    assert REFUSED[call].replace("RUNS", str(runs)) in error
    assert "Traceback" not in error
    assert names(inside) == set()


def test_evaluate_does_not_write_over_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert hf(f"train --preset mlm-fast --out run {SMALL}") == 0
    before = Path("run/config.json").read_bytes()
    for path in ("run", "run/encoder.safetensors"):
        assert hf(f"evaluate {path} --rows 9 --out run/config.json --overwrite --quiet") == 2
        assert "this command reads it" in capsys.readouterr().err
    assert Path("run/config.json").read_bytes() == before


def test_evaluate_of_foreign_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert hf(f"train --preset mlm-fast --out run {SMALL}") == 0
    assert hf(f"train --preset root-fast --out root {SMALL}") == 0
    about = json.loads(Path("run/config.json").read_text())
    shutil.copy("root/encoder.safetensors", "run/encoder.safetensors")
    assert hf("evaluate run --rows 9") == 2
    assert "copied from another run" in capsys.readouterr().err
    for train_settings, words in ((5, "not the configuration"), ({"seed": "a"}, "train.seed must")):
        Path("root/config.json").write_text(
            json.dumps(about | {"train": train_settings, "encoder": {"readout": "root"}})
        )
        assert hf("evaluate root --rows 9") == 2
        assert words in capsys.readouterr().err
    Path("root/config.json").unlink()
    assert hf("evaluate root --rows 9") == 2
    assert "has no config.json" in capsys.readouterr().err
    assert hf("evaluate root --rows 9 --depth 2 --quiet") == 0
