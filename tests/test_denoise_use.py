"""A trained denoiser in use: behind the interface of the exact ones, and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import hf

import hfilter
from hfilter.diffusion import ExactDenoiser, generate, u_turn
from hfilter.errors import ArgumentError, DataError, DTypeError
from hfilter.noising import GaussianChannel
from hfilter.noising.schedule import Schedule

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from hfilter.diffusion.learned import LearnedDenoiser, channel_of  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402
from hfilter.learn.train import TrainConfig, load_encoder, train  # noqa: E402

pytestmark = pytest.mark.usefixtures("inside")
SMALL = "--depth 2 --steps 6 --d-model 8 --feedforward 8 --layers 1 --n-eval 50 --train-size 30"


@pytest.fixture(scope="module")
def model() -> hfilter.TreeModel:
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)


@pytest.fixture(scope="module")
def run(model: hfilter.TreeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose noise is not the published one, with kept encoders."""
    shape = EncoderConfig(4, 4, d_model=8, n_layers=1, d_feedforward=8, readout="denoise")
    config = TrainConfig(
        steps=4, batch_size=8, n_eval=20, noise="cosine", noise_steps=40, checkpoint_at=(2,)
    )
    return train(model, shape, config, tmp_path_factory.mktemp("run"), progress=False).folder


def states(n: int = 7, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, 4, 4)).astype(np.float32)


def test_the_channel_of_a_run_by_its_noise(run: Path) -> None:
    """Not by the name of its schedule; and a schedule is no channel."""
    betas = Schedule.cosine(40).betas
    assert LearnedDenoiser(run, GaussianChannel(Schedule(betas, "mine"))).channel.n_steps == 40
    with pytest.raises(DTypeError, match=r"becomes one by GaussianChannel\(schedule\)"):
        LearnedDenoiser(run, Schedule(betas))  # type: ignore[arg-type]


def test_states_that_torch_does_not_take(run: Path) -> None:
    """Read-only, of the other byte order, of every second row."""
    denoiser, x = LearnedDenoiser(run), states()
    x.flags.writeable = False
    expected = denoiser(x, 9)
    assert np.array_equal(denoiser(x.astype(">f4"), 9), expected)
    np.testing.assert_allclose(denoiser(x[::2], 9), expected[::2], atol=1e-6)


def test_the_law_is_the_softmax_of_the_network(run: Path) -> None:
    """Arrays and tensors, one time and many, any block of rows; dropout off and then as it was."""
    denoiser = LearnedDenoiser(run)
    assert (denoiser.n_leaves, denoiser.vocab_size, denoiser.name) == (4, 4, "learned")
    x, times = states(), np.array([1, 40, 3, 7, 20, 5, 9])
    with torch.no_grad():
        logits = load_encoder(run)(torch.from_numpy(x), torch.from_numpy(times)).double()
    expected = torch.softmax(logits, -1).numpy()
    np.testing.assert_allclose(denoiser(x, times), expected, atol=1e-6)
    np.testing.assert_allclose(np.exp(denoiser.log_probabilities(x, times)), expected, atol=1e-9)
    found = denoiser(torch.from_numpy(x), torch.from_numpy(times))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(denoiser(x[3:4], 7), expected[3:4], atol=1e-6)
    np.testing.assert_allclose(denoiser(x.astype(np.float64), times), expected, atol=1e-6)
    assert denoiser(x[:0], 3).shape == (0, 4, 4)
    blocks = LearnedDenoiser(run, batch_size=2)
    np.testing.assert_allclose(blocks(x, times), expected, atol=1e-6)
    network = load_encoder(run).train()
    assert network.dropout.p > 0
    own = LearnedDenoiser(network, GaussianChannel(Schedule.cosine(40)))
    np.testing.assert_allclose(own(x, times), expected, atol=1e-6)
    assert network.training
    assert np.isfinite(denoiser(1e30 * x, 3)).all()


def test_where_the_noise_comes_from(run: Path) -> None:
    """A run folder and its files know it; a network alone does not."""
    kept = run / "checkpoints" / "step-0000002.safetensors"
    for path in (run, run / "encoder.safetensors", kept, str(kept)):
        assert LearnedDenoiser(path).channel.schedule == Schedule.cosine(40)
    assert not np.allclose(LearnedDenoiser(kept)(states(), 3), LearnedDenoiser(run)(states(), 3))
    LearnedDenoiser(run, GaussianChannel(Schedule.cosine(40)))
    with pytest.raises(ArgumentError, match="channel must be that of the run"):
        LearnedDenoiser(run, GaussianChannel())
    with pytest.raises(ArgumentError, match="channel is needed"):
        LearnedDenoiser(load_encoder(run))
    lone = Path("lone.safetensors")
    lone.write_bytes(kept.read_bytes())
    assert channel_of(lone) is None
    with pytest.raises(ArgumentError, match="channel is needed"):
        LearnedDenoiser(lone)
    Path("config.json").write_text('{"train": {"noise": "none"}}')
    with pytest.raises(DataError, match="not the configuration of a run"):
        LearnedDenoiser(lone)


def test_bad_denoisers_and_bad_questions(run: Path) -> None:
    with pytest.raises(ArgumentError, match="of the task 'denoise', got one of 'mlm'"):
        LearnedDenoiser(Encoder(EncoderConfig(4, 4, d_model=8)), GaussianChannel())
    with pytest.raises(DTypeError, match="source must be"):
        LearnedDenoiser(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="missing"):
        LearnedDenoiser(run / "nothing")
    with pytest.raises(ArgumentError, match="device must be"):
        LearnedDenoiser(run, device="abacus")
    denoiser, x = LearnedDenoiser(run), states()
    for t in (0, 41):
        with pytest.raises(ArgumentError, match="t must be"):
            denoiser(x, t)
    x[2, 1, 3] = np.nan
    with pytest.raises(ArgumentError, match="row 2 at leaf 1, symbol 3"):
        denoiser(x, 3)


def test_processes_run_on_it(run: Path, model: hfilter.TreeModel) -> None:
    """Coupled to the exact one by its noise, and the same in any number of calls."""
    denoiser = LearnedDenoiser(run)
    exact = ExactDenoiser(model, denoiser.channel)
    whole = generate(denoiser, 20, seed=3, num_threads=1).leaves
    part = generate(denoiser, 5, seed=3, start=10, num_threads=1).leaves
    assert np.array_equal(whole[10:15], part)
    leaves = model.sample(20, seed=9).leaves
    mine, theirs = (u_turn(d, leaves, [1, 30], seed=4, num_threads=1) for d in (denoiser, exact))
    assert np.array_equal(mine.times, theirs.times)
    assert mine.ends.shape == theirs.ends.shape
    assert not np.array_equal(mine.ends, theirs.ends)


def test_train_and_evaluate_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of the table are those of the library, for a network and for its training rows."""
    from hfilter.learn.denoising import all_times
    from hfilter.learn.noise import Noise
    from hfilter.learn.tasks import HeldOut

    options = f"{SMALL} --seed 1 --data-seed 5 --data-start 30 --checkpoint-at 3 --quiet"
    assert hf(f"train --preset denoise-fast --out block {options}") == 0
    assert hf("evaluate block --times 5,75 --in-sample --rows 100 --out e.json") == 0
    out = capsys.readouterr().out
    assert "none of them in the training set" in out
    said = json.loads(Path("e.json").read_text())["times"]
    assert set(said) == {"level 0 (own)", "level 1", "level 2", "in sample"}
    tree = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    train_rows = tree.sample(30, seed=5, start=30).leaves
    noise, encoder = Noise(None, 4, 5), load_encoder("block")
    for name, options_ in {
        "level 1": {"excluding": train_rows, "n": 100},
        "in sample": {"start": 30, "n": 30},
    }.items():
        source = tree.filtered(1) if name == "level 1" else tree
        for t, found in said[name].items():
            n = options_["n"]
            assert found["n_sequences"] == n
            when = all_times(n, 500) if t == "all" else int(t)
            held_out = HeldOut(source, "denoise", seed=5, noise=noise, times=when, **options_)
            scores = held_out.evaluate(encoder)
            assert found["cross_entropy"] == pytest.approx(scores.cross_entropy, rel=1e-5)
            assert found["floor"] == held_out.floor
            assert found["kl"]["2"] == pytest.approx(scores.kl[2], rel=1e-5)
            assert f"{found['cross_entropy']:.4f}" in out
    assert hf("evaluate block/checkpoints/step-0000003.safetensors --rows 50") == 0
    assert " 75 " in capsys.readouterr().out  # the run's own time


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --preset denoise --out x", "did you mean denoise-fast?"),
        ("train --preset denoise-fast --out x --noise linear", "noise must be"),
        ("train --preset denoise-fast --out x --eval-time 501", "eval_time must be at most 500"),
        ("train --preset denoise-fast --out x --mask-rate 0.2", "mask_rate hides leaves"),
        ("train --preset mlm-fast --out x --noise-steps 9", "noise_steps is for readout='denoise'"),
        ("train --preset denoise-fast --out x --train-size 1e6 --depth 2", "held-out sequences"),
        ("evaluate RUN --times 41", "--times must be from 1 to T = 40, got 41"),
        ("evaluate RUN --times 1,b", "--times: want a whole"),
        ("evaluate RUN --uniform", "--uniform: not for denoisers"),
        ("evaluate RUN --filter-level 3", "--filter-level must be at most 2"),
    ],
)
def test_refusals(
    command: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hf(command.replace("RUN", str(run))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("x").exists()


def test_a_workshop_trains_disjoint_blocks(tmp_path: Path) -> None:
    """Two blocks are two runs, found again by what they are; their kept encoders are denoisers."""
    from hfilter.experiments.lab.runs import Law, Run, Workshop

    law = Law(depth=2, vocab_size=4)
    shape = EncoderConfig(4, 4, d_model=8, n_layers=1, d_feedforward=8, readout="denoise")
    runs = []
    for i in range(2):
        config = TrainConfig(
            steps=6, batch_size=8, n_eval=20, train_size=16, data_start=16 * i, data_seed=9,
            seed=i, checkpoint_at=(2, 6), average=0.5,
        )  # fmt: skip
        runs.append(Run(law, shape, config))
    assert runs[0].name.startswith("denoise-q4-l2-k0-s0-")
    assert runs[0].digest != runs[1].digest
    workshop = Workshop(tmp_path, quiet=True)
    found = workshop.train(runs)
    again = workshop.train(runs)
    assert [one.history for one in again] == [one.history for one in found]
    held_out = {one.history[0]["floor"] for one in found}
    train_rows = {one.history[0]["train_floor"] for one in found}
    assert (len(held_out), len(train_rows)) == (1, 2)  # scored on the same, trained on other rows
    for one in found:
        assert [step for step, _ in one.kept] == [2, 6]
        last = LearnedDenoiser(one.kept[-1][1])
        assert np.array_equal(last(states(), 75), LearnedDenoiser(one.folder)(states(), 75))
