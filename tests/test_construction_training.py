"""Training can start from the constructed transformer, damaged or whole; distances travelled."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy  # noqa: E402

from hfilter import Grammar, TreeModel  # noqa: E402
from hfilter.analysis.construction import ConstructedTransformer, perturbed  # noqa: E402
from hfilter.analysis.distance import distance  # noqa: E402
from hfilter.errors import ArgumentError  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402
from hfilter.learn.freezing import freeze_  # noqa: E402

MODEL = TreeModel(Grammar.published(4, 1.0, 0), 3)
ROWS = 64


def batch(task, step):
    """Inputs and a function from logits to the loss, for rows step * ROWS … of the model."""
    sample = MODEL.sample(ROWS, seed=5, start=step * ROWS)
    leaves = torch.as_tensor(np.array(sample.leaves).astype(np.int64))
    if task == "root":
        roots = torch.as_tensor(np.array(sample.roots).astype(np.int64))
        return leaves, lambda logits: cross_entropy(logits, roots)
    if task == "causal":
        return leaves, lambda logits: cross_entropy(logits.flatten(0, 1), leaves.flatten())
    at = torch.arange(ROWS), torch.randint(8, (ROWS,), generator=torch.manual_seed(step))
    tokens = leaves.clone()
    tokens[at] = 4
    return tokens, lambda logits: cross_entropy(logits[at], leaves[at])


def train(network, task, steps, frozen=(), **options):
    """Losses of a few steps of AdamW."""
    held = freeze_(network, frozen)
    optimiser = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), **options)
    held.attach(optimiser)
    network.train()
    losses = []
    for step in range(steps):
        tokens, loss_of = batch(task, step)
        loss = loss_of(network(tokens))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(torch.isfinite(p).all() for p in network.parameters())
    return losses


@torch.no_grad()
def exact_losses(task, steps):
    network = ConstructedTransformer(MODEL, task)
    return [loss_of(network(tokens)).item() for tokens, loss_of in (batch(task, s) for s in steps)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("task", ["mlm", "root", "causal"])
def test_training_on_its_own_wiring_is_gentle(task, dtype):
    """Zeros held: an ordinary rate moves the loss by hundredths, decay and all."""
    network = ConstructedTransformer(MODEL, task, dtype)
    start = ConstructedTransformer(MODEL, task, dtype)
    options = {"lr": 1e-3, "weight_decay": 0.01}
    losses = train(network, task, 8, frozen=["zeros"], **options)
    np.testing.assert_allclose(losses, exact_losses(task, range(8)), atol=0.03)
    assert abs(losses[0] - exact_losses(task, [0])[0]) < 1e-6
    for (name, now), before in zip(network.named_parameters(), start.parameters(), strict=True):
        assert (now[before == 0] == 0).all(), name
    travelled = distance(network, start)
    assert 0 < travelled.relative["feedforward"] < 0.05


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("task", ["mlm", "causal"])
def test_free_training_wants_a_small_rate_and_full_centring(task, dtype):
    network = ConstructedTransformer(MODEL, task, dtype, centring=1.0)
    losses = train(network, task, 8, lr=1e-7)
    np.testing.assert_allclose(losses, exact_losses(task, range(8)), atol=0.03)


def test_training_repairs_a_damaged_one():
    steps = range(100, 104)
    exact = np.mean(exact_losses("mlm", steps))

    @torch.no_grad()
    def excess(network):
        pairs = [batch("mlm", s) for s in steps]
        return np.mean([loss_of(network(tokens)).item() for tokens, loss_of in pairs]) - exact

    start = ConstructedTransformer(MODEL, "mlm", "float32")
    network = perturbed(start, 0.2, seed=0)
    damage = excess(network)
    assert damage > 0.02
    train(network, "mlm", 100, frozen=["zeros"], lr=1e-3)
    assert excess(network) < 0.6 * damage


def test_perturbed_is_a_copy_of_the_size_asked_for():
    start = ConstructedTransformer(MODEL)
    for kind in ("entries", "matrices"):
        noisy, again = perturbed(start, 0.01, 3, kind), perturbed(start, 0.01, 3, kind)
        other = perturbed(start, 0.01, 4, kind)
        assert distance(noisy, again).absolute["all"] == 0.0
        assert distance(noisy, other).absolute["all"] > 0.0
        for part in ("embedding", "attention", "feedforward"):
            assert 0.005 < distance(noisy, start).relative[part] < 0.02
        zeros = [
            (a[b == 0] == 0).all()
            for a, b in zip(noisy.parameters(), start.parameters(), strict=True)
        ]
        assert all(zeros) == (kind == "entries")
    assert distance(start, ConstructedTransformer(MODEL)).absolute["all"] == 0.0
    assert distance(perturbed(start, 0.0, 0), start).absolute["all"] == 0.0
    for scale in (-1.0, math.nan):
        with pytest.raises(ArgumentError, match="scale must be a finite number in"):
            perturbed(start, scale, 0)
    with pytest.raises(ArgumentError, match='kind must be "entries" or "matrices"'):
        perturbed(start, 0.1, 0, "rows")


def test_distance_by_part():
    config = EncoderConfig(4, 8, d_model=8, n_layers=2, d_feedforward=8, positions="learned")
    start = Encoder(config)
    moved = Encoder(config)
    moved.load_state_dict(start.state_dict())
    with torch.no_grad():
        moved.embedding.weight[0, 0] += 3.0
        moved.positions[1, 1] += 4.0
        moved.layers[1].attention.qkv.weight[2, 2] -= 2.0
        moved.layers[0].norm2.bias[0] += 1.0
        moved.readout.bias[1] += 6.0
    measured = distance(moved, start)
    want = {"embedding": 5.0, "attention": 2.0, "layers.1.attention": 2.0, "norms": 1.0}
    want |= {"layers.0.norms": 1.0, "readout": 6.0, "all": math.sqrt(25 + 4 + 1 + 36)}
    want |= {"feedforward": 0.0, "layers.0.attention": 0.0, "layers.0.feedforward": 0.0}
    for part, value in want.items():
        assert measured.absolute[part] == pytest.approx(value, abs=1e-6), part
        assert measured.relative[part] == pytest.approx(value / measured.start[part], abs=1e-6)
    assert measured.as_dict()["relative"] == measured.relative
    whole = sum(float(p.detach().double().square().sum()) for p in start.parameters())
    assert measured.start["all"] == pytest.approx(math.sqrt(whole))
    with torch.no_grad():
        start.readout.weight.zero_()
        start.readout.bias.zero_()
    assert distance(moved, start).relative["readout"] == math.inf
    with pytest.raises(ArgumentError, match="start must have the parameters of encoder"):
        distance(moved, Encoder(EncoderConfig(4, 8, d_model=8, n_layers=1, d_feedforward=8)))
