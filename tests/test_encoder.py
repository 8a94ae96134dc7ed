from __future__ import annotations

import dataclasses
import doctest
import math

import pytest

torch = pytest.importorskip("torch")

import hfilter  # noqa: E402
import hfilter.learn.encoder as encoder_module  # noqa: E402
from hfilter.errors import ArgumentError, DTypeError, ShapeError  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig, sinusoidal_positions  # noqa: E402


def small(**changes):
    base = EncoderConfig(4, 8, d_model=16, n_layers=2, n_heads=2, d_feedforward=24, dropout=0.1)
    return dataclasses.replace(base, **changes)


def build(config, seed=0):
    torch.manual_seed(seed)
    return Encoder(config)


def tokens_for(config, n=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.n_embedded, (n, config.n_leaves), generator=generator)


def test_published_parameter_counts():
    root = Encoder(EncoderConfig(vocab_size=4, n_leaves=16, readout="root"))
    assert root.n_parameters("readout") == 8196
    assert root.n_parameters("encoder") == 2_372_608  # 2.37 million
    mlm = Encoder(EncoderConfig(vocab_size=4, n_leaves=16, readout="mlm"))
    assert mlm.n_parameters("readout") == 128 * 4 + 4
    assert mlm.n_parameters("encoder") - root.n_parameters("encoder") == 128  # the mask token
    assert mlm.n_parameters() == mlm.n_parameters("encoder") + mlm.n_parameters("readout")


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("n_heads", [1, 4])
def test_torch_own_layers_compute_the_same(norm, n_heads):
    """Judge: nn.TransformerEncoder with our weights copied in."""
    config = small(norm=norm, n_heads=n_heads)
    ours = build(config).eval()
    layer = torch.nn.TransformerEncoderLayer(
        config.d_model,
        n_heads,
        config.d_feedforward,
        batch_first=True,
        norm_first=norm == "pre",
    )
    judge = torch.nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False).eval()
    names = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.out.",
        "linear1.": "up.",
        "linear2.": "down.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    for mine, theirs in zip(ours.layers, judge.layers, strict=True):
        # Norms start as the identity; disturb them so that a swap would show.
        for parameter in (*mine.norm1.parameters(), *mine.norm2.parameters()):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        source = mine.state_dict()
        ends = ("weight", "bias")
        theirs.load_state_dict({a + e: source[b + e] for a, b in names.items() for e in ends})
    tokens = tokens_for(config)
    with torch.no_grad():
        x = ours.embedding(tokens) + ours.positions
        expected = ours.readout(ours.final_norm(judge(x)))
        assert torch.allclose(ours(tokens), expected, atol=2e-5)
        ours.layers[1].up.bias[0] += 1.0
        assert not torch.allclose(ours(tokens), expected, atol=2e-5)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("readout", ["mlm", "root"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_trace_agrees_and_has_the_written_shapes(norm, readout, positions):
    config = small(norm=norm, readout=readout, positions=positions, n_classes=3)
    encoder = build(config).eval()
    tokens = tokens_for(config)
    with torch.no_grad():
        logits, seen = encoder.trace(tokens)
        plain = encoder(tokens)
    assert plain.shape == ((5, 8, 4) if readout == "mlm" else (5, 3))
    assert torch.allclose(logits, plain, atol=1e-5)
    assert {name: tuple(t.shape) for name, t in seen.items()} == config.trace_shapes(5)
    for i in range(config.n_layers):
        weights = seen[f"layers.{i}.attention.weights"]
        assert torch.allclose(weights.sum(-1), torch.ones(5, 2, 8), atol=1e-6)
        assert weights.min() >= 0


def test_trace_holds_what_the_network_uses():
    config = small(n_layers=1, n_heads=1)
    encoder = build(config).eval()
    with torch.no_grad():
        logits, seen = encoder.trace(tokens_for(config))
        layer = encoder.layers[0]
        values = layer.attention.qkv(seen["embed"])[..., 2 * config.d_model :]
        mixed = seen["layers.0.attention.weights"][:, 0] @ values
        attended = layer.attention.out(mixed)
        assert torch.allclose(attended, seen["layers.0.attention.output"], atol=1e-5)
        middle = layer.norm1(seen["embed"] + attended)
        hidden = layer.norm2(middle + seen["layers.0.feedforward.output"])
        assert torch.allclose(hidden, seen["layers.0.hidden"], atol=1e-5)
        assert torch.equal(encoder.readout(seen["final"]), logits)


def test_gradients_agree_between_forward_and_trace():
    config = small(dropout=0.0)
    encoder = build(config)
    tokens = tokens_for(config)
    gradients = []
    for run in (lambda: encoder(tokens), lambda: encoder.trace(tokens)[0]):
        encoder.zero_grad()
        run().square().mean().backward()
        gradients.append(encoder.layers[0].attention.qkv.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)
    assert gradients[0].abs().max() > 0


def test_layers_start_from_different_weights():
    encoder = build(small())
    first, second = encoder.layers
    for name, weights in first.named_parameters():
        if name.endswith("weight") and "norm" not in name:
            assert not torch.equal(weights, second.get_parameter(name)), name


def test_dropout_is_on_in_training_and_off_in_evaluation():
    config = small(dropout=0.5)
    encoder = build(config)
    tokens = tokens_for(config)
    assert not torch.equal(encoder(tokens), encoder(tokens))
    encoder.eval()
    assert torch.equal(encoder(tokens), encoder(tokens))


def test_sinusoidal_positions_by_hand():
    table = sinusoidal_positions(10, 6)
    assert table.shape == (10, 6)
    assert table.dtype == torch.float32
    for t, i in [(0, 0), (3, 1), (9, 2)]:
        angle = t / 10000 ** (2 * i / 6)
        assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
        assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_every_integer_dtype_and_batch_size():
    config = small()
    encoder = build(config).eval()
    tokens = tokens_for(config)
    with torch.no_grad():
        expected = encoder(tokens)
        for dtype in (torch.uint8, torch.int16, torch.int32):
            assert torch.equal(encoder(tokens.to(dtype)), expected)
        assert encoder(tokens[:0]).shape == (0, 8, 4)


def test_positions_are_part_of_the_weights_only_when_learned():
    assert "positions" in build(small(positions="learned")).state_dict()
    assert "positions" not in build(small(positions="sinusoidal")).state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 1}, "vocab_size must be an integer of at least 2"),
        ({"n_leaves": 0}, "n_leaves"),
        ({"n_layers": -1}, "n_layers"),
        ({"d_model": 2.5}, "d_model"),
        ({"n_heads": 3}, "n_heads must divide d_model = 16"),
        ({"d_model": 15, "n_heads": 1}, "d_model must be even"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"n_classes": 0}, "n_classes"),
        ({"readout": "next"}, "readout must be one of mlm, root"),
        ({"positions": "odd"}, "positions"),
        ({"norm": "middle"}, "norm"),
    ],
)
def test_configuration_errors(changes, message):
    with pytest.raises(ArgumentError, match=message):
        small(**changes)


def test_token_errors():
    encoder = Encoder(small())
    with pytest.raises(ShapeError, match=r"\(n, 8\), got \(2, 7\)"):
        encoder(torch.zeros(2, 7, dtype=torch.int64))
    with pytest.raises(ShapeError):
        encoder(torch.zeros(8, dtype=torch.int64))
    with pytest.raises(DTypeError, match="float32"):
        encoder(torch.zeros(2, 8))
    with pytest.raises(ArgumentError, match=r"0 … 4 .*got 0 … 5"):
        encoder(torch.tensor([[0, 1, 2, 3, 4, 5, 0, 0]]))
    with pytest.raises(ArgumentError, match="-1"):
        encoder(torch.full((1, 8), -1))
    with pytest.raises(ArgumentError, match=r"0 … 3 .*root"):  # no mask token here
        Encoder(small(readout="root"))(torch.full((1, 8), 4))


def test_a_configuration_takes_its_sizes_from_a_model():
    grammar = hfilter.Grammar.random_hierarchy(5, 3, 3, n_classes=2, seed=1)
    model = hfilter.TreeModel(grammar, depth=3)
    config = EncoderConfig.for_model(model, readout="root", d_model=16, n_layers=1)
    assert (config.vocab_size, config.n_leaves, config.n_outputs) == (5, 8, 2)
    assert (config.readout, config.d_model, config.n_layers) == ("root", 16, 1)
    assert Encoder(config)(torch.zeros(3, 8, dtype=torch.int64)).shape == (3, 2)
    assert EncoderConfig.for_model(model).n_outputs == 5
    with pytest.raises(ArgumentError, match="n_heads"):
        EncoderConfig.for_model(model, n_heads=7)


def test_docstring_examples_run():
    assert doctest.testmod(encoder_module).failed == 0
