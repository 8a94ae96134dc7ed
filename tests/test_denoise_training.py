"""The task of denoising: batches, runs that resume, blocks that are apart."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import hfilter
from hfilter.errors import ArgumentError

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from tiny_denoiser import CONFIG, some_input, tiny  # noqa: E402

from hfilter.learn.data import FreshBatches  # noqa: E402
from hfilter.learn.denoising import held_out_of  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402
from hfilter.learn.noise import Noise  # noqa: E402
from hfilter.learn.tasks import HeldOut  # noqa: E402
from hfilter.learn.train import TrainConfig, load_encoder, read_log, train  # noqa: E402
from hfilter.noising.schedule import Schedule  # noqa: E402

CLOCK = ("sequences_per_second", "elapsed")


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0, 2), depth=2)


# --- batches ---------------------------------------------------------------------------------


def test_blocks_are_apart_and_noise_is_drawn_anew(model):
    """Two disjoint blocks of one stream: own rows, and with own seeds own noise, times, orders."""
    blocks = [
        FreshBatches(model, 10, task="denoise", seed=3, start=i * 20, train_size=20, noise_seed=i)
        for i in range(2)
    ]
    stream = model.sample(40, seed=3).leaves
    for i, block in enumerate(blocks):
        assert np.array_equal(block.rows(), stream[20 * i : 20 * i + 20])
        for epoch in range(3):
            shown = torch.cat([block.batch(2 * epoch + j).targets for j in range(2)]).numpy()
            assert sorted(map(tuple, shown)) == sorted(map(tuple, block.rows()))
    drawn = [torch.cat([block.batch(t).tokens for t in range(6)]) for block in blocks]
    noises = []
    for block, x in zip(blocks, drawn, strict=True):
        batches = [block.batch(t) for t in range(6)]
        times = torch.cat([b.times for b in batches]).numpy()
        clean = np.eye(4)[torch.cat([b.targets for b in batches]).numpy()]
        bars = np.concatenate([[1], np.cumprod(1 - Schedule.published().betas)])[times]
        signal, sigma = np.sqrt(bars)[:, None, None], np.sqrt(1 - bars)[:, None, None]
        noises.append(((x.numpy() - signal * clean) / sigma).reshape(60, -1))
        assert 1 <= times.min() < 60
        assert 440 < times.max() <= 500
    both = np.concatenate(noises)
    assert len(np.unique(both.round(3), axis=0)) == 120  # every presentation has its own
    assert abs(both.mean()) < 5 / both.size**0.5  # 5 standard errors each: 2 in a million
    assert abs((both**2).mean() - 1) < 5 * (2 / both.size) ** 0.5
    again = FreshBatches(model, 10, task="denoise", seed=3, train_size=20, noise_seed=1)
    assert not torch.equal(again.batch(0).targets, blocks[0].batch(0).targets)  # another order
    with pytest.raises(ArgumentError, match='are for the task "denoise"'):
        FreshBatches(model, 10, noise_seed=1)


def test_held_out_rows_by_content(model):
    """What is in the training set is passed over; the rest keeps its order and its noise."""
    config = dataclasses.replace(CONFIG, n_eval=60, train_size=40)
    source = FreshBatches(model, 6, task="denoise", train_size=40)
    known = set(map(tuple, source.rows().tolist()))
    by_index = held_out_of(source, dataclasses.replace(config, held_out="index"))
    by_content = held_out_of(source, config)
    rows = by_index.batch.targets.numpy()
    assert any(tuple(row) in known for row in rows.tolist())  # or there is nothing to be seen here
    new = [
        row for row in model.sample(2000, start=2**48).leaves.tolist() if tuple(row) not in known
    ]
    assert by_content.batch.targets.tolist() == new[:60]
    masked = HeldOut(model, "root", 60, excluding=source.rows())  # any task
    assert masked.batch.tokens.tolist() == new[:60]
    assert np.array_equal(by_content.others["train"].batch.targets.numpy(), source.rows()[:40])


# --- runs ------------------------------------------------------------------------------------


def test_seeds_of_one_block_train_on_other_noise(model, tmp_path):
    """From the same weights, without dropout: what the seed still decides is noise and order."""
    shape = tiny(dropout=0.0)
    first, losses = Encoder(shape), []
    for seed in (1, 2):
        config = dataclasses.replace(CONFIG, seed=seed, data_seed=0)
        result = train(
            model, shape, config, tmp_path / str(seed), progress=False, start=first
        )  # fmt: skip
        losses.append([record["loss"] for record in result.history])
        assert result.history[0]["cross_entropy"] == pytest.approx(
            result.held_out.evaluate(first).cross_entropy
        )
    assert losses[0][0] is losses[1][0] is None
    assert all(a != b for a, b in zip(losses[0][1:], losses[1][1:], strict=True))


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
    return train(model, tiny(), CONFIG, tmp_path_factory.mktemp("whole"), progress=False)


@pytest.mark.parametrize("step", [0, 6, 10])
def test_a_killed_run_resumes_bit_for_bit(model, whole, tmp_path, step):
    """Noise, times, order, dropout, kept checkpoints: as if nothing had happened."""
    with pytest.raises(Killed):
        train(model, tiny(), CONFIG, tmp_path, callback=kill_at(step), progress=False)
    resumed = train(model, tiny(), CONFIG, tmp_path, progress=False)
    assert without_clock(resumed.history) == without_clock(whole.history)
    assert without_clock(read_log(tmp_path)) == without_clock(whole.history)
    files = ("encoder", "checkpoints/step-0000001", "checkpoints/step-0000003")
    for name in (*files, "checkpoints/step-0000010"):
        path = f"{name}.safetensors"
        assert (tmp_path / path).read_bytes() == (whole.folder / path).read_bytes()


def test_a_run_with_other_noise_is_caught(model, whole, tmp_path, monkeypatch):
    """The mutant of the test above: noise that forgets which presentation it belongs to."""
    honest = Noise.noisy

    def forgetful(self, leaves, times, purpose, first, step=0):
        return honest(self, leaves, times, purpose, 0 if purpose == "train" else first, step)

    config = dataclasses.replace(CONFIG, batch_size=6)
    with pytest.raises(Killed):
        train(model, tiny(), config, tmp_path, callback=kill_at(6), progress=False)
    monkeypatch.setattr(Noise, "noisy", forgetful)
    monkeypatch.setattr("hfilter.learn.data._PREFETCH_ROWS", 6)
    resumed = train(model, tiny(), config, tmp_path, progress=False)
    assert without_clock(resumed.history) != without_clock(whole.history)


def test_the_record_of_a_run(model, whole):
    names = {"loss_all_times", "floor_all_times", "kl_all_times"}
    names |= {f"train_{name}" for name in (*names, "cross_entropy", "floor", "accuracy", "kl",
                                           "exact_accuracy")}  # fmt: skip
    for record in whole.history:
        assert names <= set(record)
        assert set(record["kl"]) == set(record["train_kl"]) == {0, 1, 2}
        assert record["kl_window"] == {}
    assert read_log(whole.folder) == whole.history
    encoder = load_encoder(whole.folder)
    x = some_input()
    assert torch.equal(encoder(x, 3), whole.encoder(x, 3))
    said = json.loads((whole.folder / "config.json").read_text())
    assert said["train"]["noise_steps"] == 40
    other = dataclasses.replace(CONFIG, noise_steps=41)
    with pytest.raises(ArgumentError, match="noise_steps: 40 there, 41 now"):
        train(model, tiny(), other, whole.folder, progress=False)


def test_training_comes_near_the_exact_denoiser(tmp_path):
    """Two leaves: far nearer to BP_0 than the law of independent leaves is, at t = 75."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0, 2), depth=1)
    shape = EncoderConfig(
        4, 2, d_model=16, n_layers=1, d_feedforward=32, dropout=0.0, readout="denoise"
    )
    config = TrainConfig(
        steps=400, batch_size=128, lr=1e-2, optimiser="muon", muon_lr=0.02, schedule="cosine",
        targets="posterior", n_eval=500,
    )  # fmt: skip
    result = train(model, shape, config, tmp_path, progress=False)
    first, last = result.history[0], result.history[-1]
    exact, star = (result.held_out.exact[k].double() for k in (0, 1))
    apart = (torch.special.xlogy(exact, exact) - torch.special.xlogy(exact, star)).sum(-1).mean()
    assert first["kl"][0] > 0.2
    assert 0 < last["kl"][0] < 0.5 * apart
    assert 0 < last["kl_all_times"] < 0.01
    assert "train_kl" not in last  # fresh rows: nothing is shown twice
    assert abs(last["loss_all_times"] - last["floor_all_times"] - last["kl_all_times"]) < 0.06


def test_the_published_rates_by_hand():
    """1 to 1/2 along a line, then 1/2 to 1/10 along half a cosine."""
    config = TrainConfig(steps=30, schedule="linear-cosine", cooldown=20, final_lr=0.1)
    found = [config.rate_factor(t) for t in (0, 5, 10, 15, 20, 30)]
    quarter = 0.1 + 0.4 * (1 + np.cos(np.pi / 4)) / 2
    assert found == pytest.approx([1.0, 0.75, 0.5, quarter, 0.3, 0.1])
    warm = TrainConfig(steps=30, schedule="linear-cosine", warmup=4, cooldown=20, final_lr=0.1)
    assert [warm.rate_factor(t) for t in (1, 4, 7)] == pytest.approx([0.5, 1.0, 0.75])
    assert config.rescaled(300).rate_factor(150) == pytest.approx(quarter)
    root = TrainConfig(steps=30, schedule="inverse-root", warmup=2, cooldown=9)
    assert [root.rate_factor(t) for t in (0, 2, 29)] == pytest.approx([0.5, 1.0, 0.5])
    with pytest.raises(ArgumentError, match="cooldown has a meaning"):
        TrainConfig(steps=30, schedule="cosine", cooldown=20)


# --- averages of the weights -----------------------------------------------------------------


def test_averages_by_hand_and_bit_for_bit(model, tmp_path):
    """What is scored, kept and returned is the average; weights go their way as without one."""
    plain = dataclasses.replace(CONFIG, checkpoint_at=tuple(range(11)))
    config = dataclasses.replace(plain, average=0.4)
    straight = train(model, tiny(), plain, tmp_path / "plain", progress=False)
    whole = train(model, tiny(), config, tmp_path / "whole", progress=False)
    expected, kept = None, "checkpoints/step-{:07d}.safetensors"
    for step in range(11):
        weights = load_encoder(tmp_path / "plain" / kept.format(step)).state_dict()
        share = 1 / max(1, 0.4 * step)
        expected = expected or weights
        expected = {name: a + share * (weights[name] - a) for name, a in expected.items()}
        found = load_encoder(tmp_path / "whole" / kept.format(step))
        for name, value in found.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
        record = next((r for r in whole.history if r["step"] == step), None)
        if record is not None:
            assert whole.held_out.evaluate(found).cross_entropy == record["cross_entropy"]
    for a, b in zip(whole.encoder.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [r["loss"] for r in whole.history] == [r["loss"] for r in straight.history]
    assert whole.history[-1]["cross_entropy"] != straight.history[-1]["cross_entropy"]
    with pytest.raises(Killed):
        train(model, tiny(), config, tmp_path / "killed", callback=kill_at(6), progress=False)
    resumed = train(model, tiny(), config, tmp_path / "killed", progress=False)
    assert without_clock(resumed.history) == without_clock(whole.history)
    last = ("encoder.safetensors", kept.format(10), "checkpoint.safetensors")
    assert all((tmp_path / "killed" / name).exists() for name in last)
    for name in last[:2]:
        there, here = tmp_path / "killed" / name, tmp_path / "whole" / name
        assert there.read_bytes() == here.read_bytes()
    for changes in ({"average": -0.1}, {"average": 1.5}, {"average": float("nan")}):
        with pytest.raises(ArgumentError, match="average must be from 0 to 1"):
            dataclasses.replace(CONFIG, **changes)
