"""Attention maps and their distance from ideal ones."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_encoder_options import build, config, tokens_for  # noqa: E402

import hfilter  # noqa: E402
from hfilter.analysis.attention import (  # noqa: E402
    attention_distance,
    attention_maps,
    ideal_attention,
)
from hfilter.errors import ArgumentError, DTypeError, ShapeError  # noqa: E402

KINDS = [{}, {"n_heads": 4, "positions": "none"}, {"readout": "root", "pooling": "class"}]


@pytest.mark.parametrize(("depth", "arity"), [(1, 2), (3, 2), (2, 3)])
def test_ideal_maps_by_their_definition(depth, arity):
    n = arity**depth
    for height in range(1, depth + 1):
        expected = np.zeros((n, n))
        for j in range(n):
            block = j // arity**height * arity**height
            own = j // arity ** (height - 1) * arity ** (height - 1)
            size = arity ** (height - 1)
            for i in range(block, block + arity**height):
                if not own <= i < own + size:
                    expected[j, i] = 1 / ((arity - 1) * size)
        np.testing.assert_allclose(ideal_attention(depth, height, arity=arity), expected)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_maps_are_what_the_layers_use(changes):
    encoder = build(config(**changes, dropout=0.5)).train()
    encoder.layers[0].eval()  # a part that is held still
    tokens = tokens_for(encoder.config, 7)
    maps = attention_maps(encoder, tokens, each=True, batch_size=3)
    assert encoder.training
    assert not encoder.layers[0].training
    assert encoder.layers[1].training
    seen = encoder.eval().trace(torch.tensor(tokens))[1]
    for i in range(2):
        weights = seen[f"layers.{i}.attention.weights"].detach().numpy()
        np.testing.assert_allclose(maps.each[:, i], weights, atol=1e-12)
        np.testing.assert_allclose(maps.mean[i], weights.mean(0), atol=1e-12)
    assert attention_maps(encoder, tokens).each is None
    assert json.dumps(maps.as_dict())


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_distances_by_loops(changes):
    encoder = build(config(**changes))
    tokens = tokens_for(encoder.config, 5)
    each = attention_maps(encoder, tokens, each=True).each
    first = encoder.config.n_positions - 8
    found = attention_distance(encoder, tokens, batch_size=2)
    n, layers, heads = each.shape[:3]
    for layer, head, height in np.ndindex(layers, heads, 3):
        ideal = np.zeros((8, 8 + first))
        ideal[:, first:] = ideal_attention(3, height + 1)
        rows = np.array(
            [
                [np.abs(each[i, layer, head, first + j] - ideal[j]).sum() / 2 for j in range(8)]
                for i in range(n)
            ]
        )
        at = (layer, head, height)
        np.testing.assert_allclose(found.rows[at], rows.mean(0), atol=1e-12)
        assert found.per_input[at] == pytest.approx(rows.mean(), abs=1e-12)
        spread = rows.mean(1).std(ddof=1) / np.sqrt(n)
        assert found.per_input_se[at] == pytest.approx(spread, abs=1e-9)
        mean = each[:, layer, head, first:].mean(0)
        assert found.averaged[at] == pytest.approx(np.abs(mean - ideal).sum(-1).mean() / 2)
        inside = (mean * (ideal > 0)).sum(-1).mean()
        assert found.inside[at] == pytest.approx(inside)
        assert found.averaged[at] <= found.per_input[at] + 1e-12
        assert 1 - inside <= found.averaged[at] + 1e-12
    assert (found.averaged < found.per_input - 1e-4).any()
    assert (found.nearest == found.per_input.argmin(-1)).all()
    assert found.n_sequences == 5
    assert json.dumps(found.as_dict())


def test_uniform_attention_is_at_the_uniform_distance():
    encoder = build(config())
    with torch.no_grad():
        for layer in encoder.layers:
            layer.attention.qkv.weight[:16] = 0
            layer.attention.qkv.bias[:16] = 0
    found = attention_distance(encoder, tokens_for(encoder.config))
    np.testing.assert_allclose(found.uniform, [7 / 8, 6 / 8, 4 / 8])
    for per in (found.per_input, found.averaged):
        np.testing.assert_allclose(per, np.broadcast_to(found.uniform, (2, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(found.inside, 1 - np.broadcast_to(found.uniform, (2, 2, 3)))


def test_maps_of_ones_own_and_causal_encoders():
    encoder = build(config(readout="causal"))
    tokens = tokens_for(encoder.config)
    with pytest.raises(ArgumentError, match="ideal must be given for a causal encoder"):
        attention_distance(encoder, tokens)
    first = np.zeros((1, 8, 8))
    first[..., 0] = 1.0
    found = attention_distance(encoder, tokens, first)
    weights = attention_maps(encoder, tokens).mean
    np.testing.assert_allclose(found.per_input[..., 0], 1 - weights[..., 0].mean(-1))
    assert found.per_input[..., 0].max() > 0.1
    assert (found.rows[..., 0] == 0).all()  # the first position sees itself alone


@pytest.mark.parametrize("filter_level", [0, 1, 3])
def test_the_constructed_transformer_attends_ideally(filter_level):
    construction = pytest.importorskip("hfilter.analysis.construction")
    model = hfilter.TreeModel(hfilter.Grammar.log_normal(3, 1.0, 0), 3, filter_level)
    network = construction.ConstructedTransformer(model)
    tokens = np.random.default_rng(0).integers(4, size=(6, 8))
    found = attention_distance(network, tokens)
    for layer in range(3):
        for height in range(3):
            wanted = 0.0 if layer == height else 1.0
            assert found.per_input[layer, 0, height] == pytest.approx(wanted, abs=1e-12)
            assert found.averaged[layer, 0, height] == pytest.approx(wanted, abs=1e-12)
            assert found.inside[layer, 0, height] == pytest.approx(1 - wanted, abs=1e-12)
    assert found.nearest[:, 0].tolist() == [0, 1, 2]
    assert found.rows[0, 0, 0].max() < 1e-12


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e, t: attention_maps(lambda x: x, t), DTypeError, "encoder must be a hfilter"),
        (lambda e, t: attention_maps(e, t[:, :7]), ShapeError, r"tokens must have shape \(n, 8\)"),
        (lambda e, t: attention_maps(e, t + 4), ArgumentError, "tokens must be in 0 … 4"),
        (lambda e, t: attention_maps(e, t * 1.0), DTypeError, "tokens must be integers"),
        (lambda e, t: attention_maps(e, t[:0]), ArgumentError, "at least one row"),
        (lambda e, t: attention_maps(e, t, batch_size=0), ArgumentError, "batch_size"),
        (lambda e, t: attention_distance(e, t, arity=3), ArgumentError, "arity must have n_leaves"),
        (lambda e, t: attention_distance(e, t, arity=1), ArgumentError, "arity"),
        (lambda e, t: attention_distance(e, t, np.eye(8)), ShapeError, r"\(maps, 8, 8\)"),
        (lambda e, t: attention_distance(e, t, np.ones((1, 8, 8))), ArgumentError, "sum to 1"),
        (
            lambda e, t: ideal_attention(3, 4),
            ArgumentError,
            "height must be an integer from 1 to 3",
        ),
        (lambda e, t: ideal_attention(0, 1), ArgumentError, "depth"),
        (lambda e, t: ideal_attention(2, 1.5), DTypeError, "height"),
    ],
)
def test_manners(call, error, message):
    encoder = build(config())
    with pytest.raises(error, match=message):
        call(encoder, tokens_for(encoder.config))


def test_no_torch_is_needed_to_import_them():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import hfilter.analysis.compare, hfilter.analysis.attention\n"
        "import hfilter.analysis.interventions, hfilter.analysis.competition\n"
        "print(hfilter.analysis.attention.ideal_attention(1, 1).tolist())"
    )
    done = subprocess.run(
        [sys.executable, *sys.flags.safe_path * ["-P"], "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[[0.0, 1.0], [1.0, 0.0]]"
