"""The network of the task of denoising, and what is exactly known of its answers."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from oracle import all_sequences

import hfilter
from hfilter.errors import ArgumentError, DTypeError, ShapeError

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from tiny_denoiser import CONFIG, some_input, tiny  # noqa: E402

from hfilter.learn.data import FreshBatches  # noqa: E402
from hfilter.learn.denoising import DenoisingHeldOut, all_times  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402
from hfilter.learn.export import to_transformer_lens  # noqa: E402
from hfilter.learn.initial import init_gamma_  # noqa: E402
from hfilter.learn.noise import Noise  # noqa: E402
from hfilter.learn.tasks import n_scored, predict, task_loss  # noqa: E402
from hfilter.learn.train import TrainConfig, train  # noqa: E402
from hfilter.learn.transfer import transfer  # noqa: E402
from hfilter.noising.gaussian import noise_leaves  # noqa: E402
from hfilter.noising.schedule import Schedule  # noqa: E402

PUBLISHED = {"d_model": 512, "n_layers": 8, "n_heads": 4, "d_feedforward": 1024}


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0, 2), depth=2)


# --- network ---------------------------------------------------------------------------------


def test_the_published_network_has_its_size():
    config = EncoderConfig(6, 16, readout="denoise", positions="learned", **PUBLISHED)
    encoder = Encoder(config)
    assert encoder.n_parameters() == 16_854_022
    assert config.as_dict() == EncoderConfig(**config.as_dict()).as_dict()
    assert "time_embedding" not in config.as_dict()


def test_forward_by_hand():
    """Embedding and code of the time written out; the layers are those of every other task."""
    encoder = Encoder(tiny()).eval().double()
    x, times = some_input().double(), torch.tensor([1, 7, 500])
    code = np.zeros((3, 6))
    for i, t in enumerate(times.tolist()):
        for j in range(3):
            code[i, 2 * j] = np.sin(t * 10000.0 ** (-2 * j / 6))
            code[i, 2 * j + 1] = np.cos(t * 10000.0 ** (-2 * j / 6))
    p = {name: value.detach().numpy() for name, value in encoder.named_parameters()}
    stream = x.numpy() @ p["embedding.weight"].T + p["embedding.bias"] + p["positions"]
    stream += (code.astype(np.float32) @ p["time.weight"].T + p["time.bias"])[:, None]
    hidden = torch.from_numpy(stream)
    for layer in encoder.layers:
        hidden = layer(hidden)
    expected = (hidden @ encoder.readout.weight.T + encoder.readout.bias).detach()
    found = encoder(x, times).detach()
    assert found.shape == (3, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(encoder(x, 7)[1], encoder(x, times)[1])
    logits, seen = encoder.trace(x, times)
    torch.testing.assert_close(logits.detach(), found, rtol=1e-9, atol=1e-9)
    assert {k: tuple(v.shape) for k, v in seen.items()} == encoder.config.trace_shapes(3)


@pytest.mark.parametrize(
    ("x", "times", "error", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), 3, DTypeError, "noisy one-hot leaves"),
        (np.zeros((2, 4, 4)), 3, DTypeError, "got ndarray"),
        (torch.zeros(2, 4), 3, ShapeError, r"\(n, 4, 4\)"),
        (torch.zeros(2, 5, 4), 3, ShapeError, r"\(2, 5, 4\)"),
        (torch.zeros(2, 4, 4), None, ArgumentError, "got no times"),
        (torch.zeros(2, 4, 4), 3.0, DTypeError, "times must be an int"),
        (torch.zeros(2, 4, 4), True, DTypeError, "times must be an int"),
        (torch.zeros(2, 4, 4), torch.zeros(2), DTypeError, "times must be an int"),
        (torch.zeros(2, 4, 4), torch.tensor([1]), ShapeError, r"times must have shape \(2,\)"),
        (torch.zeros(2, 4, 4), -1, ArgumentError, "times must be at least 0"),
        (torch.full((2, 4, 4), torch.nan), 3, ArgumentError, "finite"),
        (torch.full((2, 4, 4), torch.inf), 3, ArgumentError, "finite"),
    ],
)
def test_bad_input_of_the_network(x, times, error, message):
    with pytest.raises(error, match=message):
        Encoder(tiny())(x, times)


def test_bad_configurations(model, tmp_path):
    with pytest.raises(ArgumentError, match="time_embedding must be even"):
        tiny(time_embedding=7)
    with pytest.raises(ArgumentError, match="time_embedding is for readout='denoise' only"):
        EncoderConfig(4, 4, time_embedding=8)
    with pytest.raises(ArgumentError, match="times are for readout='denoise' only"):
        Encoder(EncoderConfig(4, 4, d_model=8))(torch.zeros(1, 4, dtype=torch.int64), 3)
    for changes, message in [
        ({"noise": "linear"}, 'noise must be "published", "cosine"'),
        ({"noise_steps": 0}, "noise_steps must be at least 1"),
        ({"eval_time": 41}, "eval_time must be at most 40"),
        ({"eval_time": 0}, "eval_time must be at least 1"),
        ({"train_size": None}, "give its train_size"),
        ({"held_out": "none"}, "held_out must be"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            dataclasses.replace(CONFIG, **changes)
    for config, shape, message in [
        (dataclasses.replace(CONFIG, mask_rate=0.3), tiny(), "mask_rate hides leaves"),
        (TrainConfig(steps=2, eval_time=3), tiny(readout="mlm", time_embedding=32), "eval_time is"),
        (TrainConfig(steps=2, noise_steps=5), tiny(), "noise_steps of the published noise"),
        (
            dataclasses.replace(CONFIG, train_size=100_000, n_eval=2000),
            tiny(),
            "held-out sequences",
        ),
    ]:
        with pytest.raises(ArgumentError, match=message):
            train(model, shape, config, tmp_path / "bad", progress=False)
    assert not (tmp_path / "bad").exists()


def test_initial_weights_and_exports():
    encoder = Encoder(tiny(d_model=64, time_embedding=32, n_heads=1))
    init_gamma_(encoder, 0.5, generator=torch.Generator().manual_seed(0))
    for linear, d_in in ((encoder.embedding, 4), (encoder.time, 32)):
        size = linear.weight.detach().square().mean().item() * d_in
        assert abs(size - 1) < 5 * (2 / linear.weight.numel()) ** 0.5
        assert not linear.bias.any()
    positions = Encoder(tiny(d_model=64)).positions.detach()
    assert abs(positions.square().mean() * 64 - 1) < 5 * (2 / positions.numel()) ** 0.5
    with pytest.raises(ArgumentError, match=r"readout must be .* got 'denoise'"):
        to_transformer_lens(Encoder(tiny(norm="pre")))


def test_what_old_runs_said_they_still_say():
    """New settings count only where they are chosen, so that the digest of an old folder stays."""
    assert not {"noise", "noise_steps", "eval_time", "held_out"} & set(TrainConfig(5).as_dict())
    assert "time_embedding" not in EncoderConfig(4, 16).as_dict()
    said = CONFIG.as_dict()
    assert (said["noise"], said["noise_steps"], said["held_out"]) == ("cosine", 40, "content")


# --- exact answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 2])
def test_floor_and_laws_by_enumeration(k):
    """Bayes over all q^L sequences, from the density of the noise; at one time and at all of them."""
    own = hfilter.TreeModel(hfilter.Grammar.published(3, 1.0, 1, 2), depth=2, filter_level=k)
    schedule = Schedule.published(30)
    noise = Noise(schedule, 3, seed=4)
    held_out = DenoisingHeldOut(own, 40, noise, 5, seed=4, train_start=7, train_size=25)
    rows = all_sequences(3, 4)
    with np.errstate(divide="ignore"):
        prior = {j: own.filtered(j).log_prob(rows, dtype="float64") for j in range(3)}
    spread = {"": (40, 5), "all_times": (40, None), "train": (25, 5), "train_all_times": (25, None)}
    for name, (n, t) in spread.items():
        found = held_out if not name else held_out.others[name]
        x = found.batch.tokens.double().numpy()
        times = found.batch.times.numpy()
        assert np.array_equal(times, np.full(n, t) if t else all_times(n, 30))
        truth = own.sample(n, seed=4, start=7 if "train" in name else 2**48).leaves
        assert np.array_equal(found.batch.targets.numpy(), truth)
        first = 7 if "train" in name else 2**48  # noise of its own, which no training meets
        signal, sigma = (f(times).astype(np.float32) for f in (schedule.signal, schedule.sigma))
        own_noise = noise_leaves(truth, signal, sigma, 3, 4, "held_out", 0, start=first)
        assert np.array_equal(found.batch.tokens.numpy(), own_noise)
        bars = np.cumprod(1 - schedule.betas)[times - 1]
        means = np.sqrt(bars)[:, None, None, None] * np.eye(3)[rows]
        nats = -((x[:, None] - means) ** 2).sum((2, 3)) / (2 * (1 - bars))[:, None]
        assert set(found.exact) == ({0, 1, 2} if t else {k})
        for level, law in found.exact.items():
            weights = nats + prior[level]
            weights = np.exp(weights - weights.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            expected = np.einsum("nr,rlb->nlb", weights, np.eye(3)[rows])
            np.testing.assert_allclose(law.numpy().reshape(n, 4, 3), expected, atol=2e-6)
            floor = -np.log(np.take_along_axis(expected, truth[..., None].astype(int), 2)).mean()
            assert found.exact_cross_entropy[level] == pytest.approx(floor, rel=1e-5)
    assert set(all_times(60, 30)) == set(range(1, 31))


def test_scores_are_means_over_the_right_rows(model):
    """The record of a network, recomputed from its predictions."""
    noise = Noise(Schedule.published(50), 4, seed=1)
    held_out = DenoisingHeldOut(model, 33, noise, 7, seed=1, train_start=5, train_size=21)
    encoder = Encoder(tiny()).eval()
    scores = held_out.evaluate(encoder, batch_size=8)
    parts = {"": held_out, **held_out.others}
    got = {"": scores.cross_entropy, "train": scores.more["train_cross_entropy"],
           "all_times": scores.more["loss_all_times"],
           "train_all_times": scores.more["train_loss_all_times"]}  # fmt: skip
    kl = {"": scores.kl[0], "train": scores.more["train_kl"][0],
          "all_times": scores.more["kl_all_times"],
          "train_all_times": scores.more["train_kl_all_times"]}  # fmt: skip
    for name, part in parts.items():
        logits = predict(encoder, part.batch.tokens, 1000, part.batch.times).double()
        log_q = torch.log_softmax(logits, -1).flatten(0, 1)
        nats = -log_q[torch.arange(len(log_q)), part.batch.labels]
        assert got[name] == pytest.approx(nats.mean().item())
        law = part.exact[0].double()
        terms = torch.special.xlogy(law, law) - law * log_q
        assert kl[name] == pytest.approx(terms.sum(-1).mean().item())
    assert scores.more["train_floor"] == held_out.others["train"].floor
    assert scores.more["floor_all_times"] == held_out.others["all_times"].floor
    assert scores.more["train_floor_all_times"] == held_out.others["train_all_times"].floor
    assert len({round(value, 9) for value in got.values()}) == 4


def test_targets_of_the_exact_denoiser_have_the_mean_of_the_labels(model):
    """Averaged over 4000 sequences, within 5 standard errors; and the same minimum of the loss."""
    source = FreshBatches(model, 4000, task="denoise", targets="posterior", seed=3)
    batch = source.batch(0)
    law = batch.law.view(4000, 4, 4).double()
    one_hot = torch.nn.functional.one_hot(batch.targets, 4).double()
    for where in (slice(None), (batch.times < 50)):
        gap = (one_hot - law)[where]
        error = gap.std(0) / len(gap) ** 0.5
        assert (gap.mean(0).abs() <= 5 * error + 1e-9).all()
    exact = torch.where(batch.law > 0, batch.law, torch.full_like(batch.law, 1e-30)).log()
    best = task_loss(exact.view(4000, 4, 4), batch)
    assert task_loss(exact.view(4000, 4, 4) * 0.9, batch) > best
    assert n_scored(batch).item() == 16_000


# --- to and from other tasks -----------------------------------------------------------------


def test_transfer_keeps_what_clean_leaves_look_like():
    tokens = torch.tensor(list(itertools.product(range(4), repeat=2))).repeat(1, 2)
    source = Encoder(tiny(readout="mlm", time_embedding=32, dropout=0.0)).eval()
    moved = transfer(source, "denoise", time_embedding=6)
    assert moved.config.time_embedding == 6
    assert moved.drawn == ("time.weight", "time.bias", "readout.weight", "readout.bias")
    assert "time" not in moved.frozen
    with torch.no_grad():
        moved.encoder.time.weight.zero_()
        moved.encoder.time.bias.zero_()
    clean = torch.nn.functional.one_hot(tokens, 4).float()
    _, there = source.trace(tokens, names=["embed"])
    _, here = moved.encoder.trace(clean, 0, names=["embed"])
    torch.testing.assert_close(here["embed"], there["embed"])
    back = transfer(moved.encoder, "mlm")
    assert "embedding.weight[4:]" in back.drawn
    torch.testing.assert_close(back.encoder.embedding.weight[:4], source.embedding.weight[:4])
    same = transfer(moved.encoder, "denoise")
    assert not same.drawn
    assert "time" in same.frozen
    assert torch.equal(same.encoder(clean, 3), moved.encoder(clean, 3))
