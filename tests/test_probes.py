"""Probes and read-outs on states whose contents are known."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest

import hfilter

pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")

from hfilter.analysis import probes, readout, states  # noqa: E402
from hfilter.analysis.blocks import block_accuracy, exact_messages  # noqa: E402
from hfilter.analysis.probes import ancestor_probe, probe  # noqa: E402
from hfilter.analysis.readout import message_profile, message_readout  # noqa: E402
from hfilter.analysis.states import hidden_states  # noqa: E402
from hfilter.errors import ArgumentError, DTypeError, ShapeError  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


def top_symbols(model):
    """States after m layers: which symbol stands at the top of the own block, and which block."""

    def of(tokens, layer):
        n = len(tokens)
        belief = exact_messages(model, tokens, layer, kind="block")
        nodes = belief.shape[1]
        own = np.einsum("nvq,vw->nvwq", belief, np.eye(nodes)).reshape(n, nodes, -1)
        return np.repeat(own, model.n_leaves // nodes, axis=1)

    return of


def layered(model, rng):
    """States that hold the exact upward messages of heights 0 … m, mixed by a fixed linear map."""
    q = model.vocab_size
    maps = [rng.normal(size=((m + 1) * q, (m + 1) * q + 3)) for m in range(model.depth + 1)]

    def of(tokens, layer):
        parts = []
        for height in range(layer + 1):
            u = exact_messages(model, tokens, height)
            parts.append(np.repeat(u / u.max(), model.n_leaves // u.shape[1], axis=1))
        return np.concatenate(parts, axis=2) @ maps[layer]

    return of


# --- ancestor probes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "level", "kind"),
    [(1, 1, "linear"), (1, 0, "linear"), (2, 0, "linear"), (2, 1, "linear"), (1, 1, "two-layer")],
)
def test_probe_reaches_what_the_block_knows_and_no_more(model, layer, level, kind):
    """The arg-max of a table is linear in one-hot states: the exact accuracy, within five errors."""
    result = ancestor_probe(
        top_symbols(model), model, layer, level, kind, 3000, 2000, epochs=12, shuffled=False
    )
    oracle = block_accuracy(model, layer, level)
    assert result.oracle == tuple(block_accuracy(model, m, level) for m in range(4))
    assert result.block_oracle == oracle
    assert abs(result.accuracy - oracle) <= 5 * result.accuracy_se + 1e-12  # each 6e-7
    neighbour = result.oracle[layer - 1]
    assert abs(result.accuracy - neighbour) > 5 * result.accuracy_se
    assert result.majority < result.position_majority + 0.02 < result.accuracy
    assert math.isnan(result.shuffled)


def test_states_without_content_stay_at_chance(model):
    def noise(tokens, layer):
        return np.random.default_rng(layer).normal(size=(*tokens.shape, 4))

    result = ancestor_probe(noise, model, 0, 1, n_train=2000, n_test=1000)
    assert abs(result.accuracy - result.majority) < 0.02
    assert abs(result.shuffled - result.majority) < 0.02
    known = ancestor_probe(top_symbols(model), model, 2, 1, n_train=500, n_test=500)
    assert known.accuracy == 1.0
    assert known.shuffled < 0.5  # the same states, labels of other tokens
    assert json.loads(json.dumps(known.as_dict()))["level"] == 1


def test_two_layers_see_what_one_cannot():
    """The parent of two bits is their exclusive or."""
    model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)

    def bits(tokens, layer):
        pair = 2.0 * tokens.reshape(len(tokens), 2, 1, 2) - 1
        return np.broadcast_to(pair, (len(tokens), 2, 2, 2)).reshape(len(tokens), 4, 2)

    linear = ancestor_probe(bits, model, 1, 1, "linear", 600, 600, shuffled=False)
    deep = ancestor_probe(bits, model, 1, 1, "two-layer", 600, 600, epochs=30, lr=1e-2, hidden=16)
    assert linear.accuracy < 0.85  # a line gets three of four corners
    assert deep.accuracy == deep.oracle[1] == 1.0
    assert deep.shuffled < 0.6
    again = ancestor_probe(bits, model, 1, 1, "two-layer", 600, 600, epochs=2, shuffled=False)
    state = torch.random.get_rng_state()
    same = ancestor_probe(bits, model, 1, 1, "two-layer", 600, 600, epochs=2, shuffled=False)
    assert again == same
    assert torch.equal(state, torch.random.get_rng_state())  # nobody else's numbers are drawn


def test_test_rows_are_not_fitted_to():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=(80, 2))
    x = rng.normal(size=(80, 2, 200))  # more numbers than tokens: anything can be learned by heart
    found = probe(x, labels, 60)
    assert found.train_accuracy == 1.0
    assert found.accuracy < 0.5
    assert (found.n_train, found.n_test) == (60, 20)
    everything = probe(np.eye(4)[labels], labels, 60, max_tokens=40)
    assert everything.accuracy == 1.0


def test_majorities_by_hand():
    labels = np.array([[0, 1]] * 6 + [[0, 2]] * 2 + [[0, 1], [0, 2], [2, 1], [1, 1]])
    found = probe(np.zeros((12, 2, 1)), labels, 8, shuffled=False)
    assert found.majority == pytest.approx(2 / 8)  # 0: eight of sixteen training labels
    assert found.position_majority == pytest.approx(5 / 8)
    assert found.accuracy == found.majority
    one = probe(np.zeros((4, 2, 1)), np.ones((4, 2), int), 2)
    assert one.accuracy == 1.0


def test_hidden_leaves_are_hidden_from_the_oracle_too(model):
    def parents(tokens, layer):
        return np.repeat(exact_messages(model, tokens, 1, kind="block"), 2, axis=1)

    open_ = ancestor_probe(parents, model, 1, 2, n_train=600, n_test=600, shuffled=False)
    result = ancestor_probe(
        parents, model, 1, 2, n_train=600, n_test=600, mask_rate=0.5, shuffled=False
    )
    assert open_.accuracy == open_.oracle[1] == 1.0
    assert 0.5 < result.oracle[1] < 0.9
    assert abs(result.accuracy - result.oracle[1]) < 5 * result.accuracy_se


# --- read-outs -------------------------------------------------------------------------------


def test_messages_are_found_in_the_layers_that_hold_them(model):
    of = layered(model, np.random.default_rng(1))
    profile = message_profile(of, model, 1200, layers=range(4))
    held = np.tril(np.ones((4, 4), bool))
    assert profile.heights == (0, 1, 2, 3)
    assert (profile.r2[held] > 1 - 1e-6).all()
    assert (profile.r2[~held] < 0.9).all()
    assert np.abs(profile.shuffled).max() < 0.05
    assert (profile.position < 0.3).all()
    assert (profile.n_train, profile.n_test) == (900, 300)
    assert json.loads(json.dumps(profile.as_dict()))["kind"] == "upward"
    assert len(str(profile).splitlines()) == 8


def test_other_messages_and_hidden_leaves(model):
    def beliefs(tokens, layer):
        return np.repeat(model.infer(tokens, dtype="float64", levels=[2]).level(2), 2, axis=1)

    asked = {"n": 600, "layers": [0], "heights": [1], "mask_rate": 0.3}
    assert message_profile(beliefs, model, kind="belief", **asked).r2[0, 0] > 1 - 1e-6
    assert message_profile(beliefs, model, kind="downward", **asked).r2[0, 0] < 0.9
    assert message_profile(beliefs, model, kind="block", **asked).r2[0, 0] < 0.99
    filtered = message_profile(beliefs, model.filtered(2), 100, layers=[0])
    assert filtered.heights == (0, 1, 3)  # levels 3, 2 and 0 exist


def test_r2_by_hand():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 2, 3))
    y = x @ rng.normal(size=(3, 2)) + rng.normal(size=(60, 2, 2)) + 5.0
    y[7, 0, 0] = np.nan  # the row is left out
    found = message_readout(x, y, 40, ridge=0.0)
    keep = np.delete(np.arange(60), 7)
    a, b = x[keep].reshape(-1, 3), y[keep].reshape(-1, 2)
    a1 = np.concatenate([a, np.ones((len(a), 1))], axis=1)
    weights = np.linalg.lstsq(a1[:80], b[:80], rcond=None)[0]
    residual, spread = b[80:] - a1[80:] @ weights, b[80:] - b[:80].mean(axis=0)
    assert found.r2 == pytest.approx(1 - (residual**2).sum() / (spread**2).sum(), abs=1e-9)
    by_symbol = 1 - (residual**2).sum(axis=0) / (spread**2).sum(axis=0)
    assert np.allclose(found.r2_by_symbol, by_symbol, atol=1e-9)
    assert found.n_train + found.n_test == 59
    small = message_readout(x, y * 1e-200, 40, ridge=1e-3)
    assert small.r2 == pytest.approx(message_readout(x, y, 40, ridge=1e-3).r2, abs=1e-9)


def test_what_position_alone_explains_is_told_apart():
    rng = np.random.default_rng(3)
    by_position = np.broadcast_to(rng.normal(size=(1, 8, 2)), (200, 8, 2))
    x = np.broadcast_to(np.eye(8), (200, 8, 8))
    found = message_readout(x, by_position + 1e-3 * rng.normal(size=(200, 8, 2)))
    assert found.r2 > 0.99
    assert found.position > 0.99
    assert abs(found.shuffled) < 0.05
    constant = message_readout(rng.normal(size=(20, 2, 2)), np.ones((20, 2, 1)))
    assert math.isnan(constant.r2)


# --- networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("readout_", ["mlm", "root"])
def test_states_of_a_network(model, readout_):
    config = EncoderConfig.for_model(
        model, readout_, d_model=8, n_layers=2, d_feedforward=8, dropout=0.5
    )
    encoder = Encoder(config).train()
    tokens = model.sample(10, seed=0).leaves
    found = hidden_states(encoder, tokens, batch_size=3)
    assert encoder.training
    _, seen = encoder.eval().trace(torch.from_numpy(tokens.astype(np.int64)))
    for layer, name in enumerate(("embed", "layers.0.hidden", "layers.1.hidden")):
        assert np.allclose(found[layer], seen[name].detach().numpy(), atol=1e-5)
    named = hidden_states(encoder, tokens, ["layers.1.attention.output"])
    assert named["layers.1.attention.output"].shape == (10, 8, 8)
    with pytest.raises(ArgumentError, match="layers must lie in 0 … 2, got 3"):
        hidden_states(encoder, tokens, [3])
    with pytest.raises(ArgumentError, match=r"no activation is called 'layers.9.hidden'"):
        hidden_states(encoder, tokens, ["layers.9.hidden"])
    seen = ancestor_probe(encoder, model, 0, 2, n_train=200, n_test=100, shuffled=False)
    assert seen.accuracy < seen.oracle[1] == 1.0
    profile = message_profile(encoder, model, 100)
    assert profile.r2.shape == (3, 4)
    assert profile.r2[0, 0] > 1 - 1e-4  # the embedding holds the token


# --- manners ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": "deep"}, ArgumentError, 'kind must be "linear" or "two-layer"'),
        ({"n_train": 10}, ArgumentError, "n_train must be"),
        ({"n_classes": 2}, ArgumentError, r"labels must be in 0 … 1"),
        ({"labels": np.zeros((10, 3), int)}, ShapeError, "must match"),
        ({"labels": np.full((10, 2), -1)}, ArgumentError, "at least 0"),
        ({"labels": np.zeros((10, 2))}, DTypeError, "labels must be integers"),
        ({"states": np.full((10, 2, 3), np.nan)}, ArgumentError, "finite"),
        ({"states": np.zeros((10, 2, 3), int)}, DTypeError, "floating-point"),
    ],
)
def test_bad_probes(changes, error, message):
    given = {
        "states": np.zeros((10, 2, 3)),
        "labels": np.arange(20).reshape(10, 2) % 4,
        "n_train": 5,
    }
    with pytest.raises(error, match=message):
        probe(**(given | changes))


def test_other_bad_arguments(model):
    of = top_symbols(model)
    with pytest.raises(ArgumentError, match="level 1 does not exist at filter_level 2"):
        ancestor_probe(of, model.filtered(2), 1, 1)
    with pytest.raises(ShapeError, match=r"states must have shape \(4, 8, 'd'\)"):
        ancestor_probe(lambda tokens, layer: np.zeros((2, 8, 3)), model, 1, 1, n_train=2, n_test=2)
    with pytest.raises(DTypeError, match="encoder must be a network"):
        ancestor_probe(None, model, 1, 1, n_train=2, n_test=2)
    with pytest.raises(DTypeError, match="method trace"):
        hidden_states(torch.nn.Linear(2, 2), np.zeros((2, 8), int))
    with pytest.raises(ArgumentError, match="layers are needed"):
        message_profile(of, model)
    x = np.zeros((10, 6, 2))
    with pytest.raises(ShapeError, match="L a multiple of the nodes"):
        message_readout(x, np.zeros((10, 4, 2)))
    with pytest.raises(ArgumentError, match="at least 3 rows, got 0"):
        message_readout(x, np.full((10, 6, 2), np.nan))
    with pytest.raises(DTypeError, match="targets must be floating-point"):
        message_readout(x, np.zeros((10, 6, 2), int))
    with pytest.raises(ShapeError, match="three axes"):
        message_readout(x[0], np.zeros((10, 6, 2)))


@pytest.mark.parametrize("module", [probes, readout, states])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0
