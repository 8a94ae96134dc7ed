"""Every option of the encoder against the same network written in NumPy, and what it promises."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import by_hand  # noqa: E402
from torch import nn  # noqa: E402

from hfilter.errors import ArgumentError  # noqa: E402
from hfilter.learn.checkpoint import load_encoder, save_encoder  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402

FIRST = {"vocab_size": 4, "n_leaves": 8, "n_classes": None, "d_model": 16, "n_layers": 2}
FIRST |= {"n_heads": 2, "d_feedforward": 24, "dropout": 0.1, "readout": "mlm"}
FIRST |= {"positions": "sinusoidal", "norm": "post"}  # all that the first files say

OPTIONS = [
    {},
    {"readout": "causal", "positions": "rotary", "norm": "pre", "activation": "gelu"},
    {"readout": "causal", "n_heads": 4, "d_key": 6, "activation": "relu2"},
    {"readout": "ancestor", "n_classes": 3, "positions": "none", "d_key": 5},
    {"readout": "ancestor", "probe_hidden": 7, "activation": "reglu", "bias": False},
    {"readout": "root", "n_classes": 3, "masked_root": True, "positions": "learned"},
    {"readout": "root", "pooling": "mean", "causal": True, "positions": "rotary"},
    {"readout": "root", "pooling": "class", "positions": "rotary", "norm": "none"},
    {"readout": "root", "pooling": "class", "positions": "learned", "norm": "pre"},
    {"attention_only": True, "norm": "pre", "causal": True},
    {"attention_only": True, "norm": "none", "bias": False, "n_heads": 1, "d_key": 40},
    {"norm": "none", "activation": "reglu", "link": "log", "positions": "learned"},
    {"readout": "root", "pooling": "mean", "link": "log", "n_layers": 0},
]


def config(**changes):
    return EncoderConfig(**(FIRST | changes))


def build(wanted, seed=0, disturb=True):
    torch.manual_seed(seed)
    encoder = Encoder(wanted).double().eval()
    if disturb:  # norms and biases start as 1 and 0: a swap or a loss of one would not show
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                nn.init.uniform_(parameter, 0.3, 1.3)
    return encoder


def tokens_for(wanted, n=4, seed=1):
    return np.random.default_rng(seed).integers(wanted.n_embedded, size=(n, wanted.n_leaves))


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_computes_what_is_written(changes):
    """Judge: tests/by_hand.py; logits of both ways, and every activation."""
    encoder = build(config(**changes))
    tokens = tokens_for(encoder.config)
    expected, activations = by_hand.run(encoder, tokens)
    with torch.no_grad():
        plain = encoder(torch.tensor(tokens))
        logits, seen = encoder.trace(torch.tensor(tokens))
    # The fixed tables of positions are float32, turned angles with them.
    near = 2e-6 if encoder.config.positions == "rotary" else 1e-11
    np.testing.assert_allclose(plain, expected, rtol=0, atol=near)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=near)
    assert tuple(seen) == tuple(activations) == encoder.sites()
    assert {k: tuple(v.shape) for k, v in seen.items()} == encoder.config.trace_shapes(4)
    for name, x in activations.items():
        np.testing.assert_allclose(seen[name], x, rtol=0, atol=near, err_msg=name)
    per_leaf = encoder.config.readout != "root"
    assert plain.shape == (4, *([8] if per_leaf else []), encoder.config.n_outputs)


class Original(nn.Module):
    """The first encoder's parameters, in the order in which it drew them."""

    def __init__(self, wanted):
        super().__init__()
        d, f = wanted.d_model, wanted.d_feedforward
        self.embedding = nn.Embedding(wanted.vocab_size + (wanted.readout == "mlm"), d)
        if wanted.positions == "learned":
            self.positions = nn.Parameter(torch.randn(wanted.n_leaves, d))
        self.layers = nn.ModuleList()
        for _ in range(wanted.n_layers):
            layer = nn.Module()
            layer.attention = nn.Module()
            layer.attention.qkv, layer.attention.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            nn.init.xavier_uniform_(layer.attention.qkv.weight)
            nn.init.zeros_(layer.attention.qkv.bias)
            nn.init.zeros_(layer.attention.out.bias)
            layer.up, layer.down = nn.Linear(d, f), nn.Linear(f, d)
            layer.norm1, layer.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.layers.append(layer)
        if wanted.norm == "pre":
            self.final_norm = nn.LayerNorm(d)
        width = d * (wanted.n_leaves if wanted.readout == "root" else 1)
        self.readout = nn.Linear(width, wanted.vocab_size)

    def forward(self, tokens, positions, drop):
        """Post-norm only. ``drop`` is the dropout, drawn in the order of use."""
        x = drop(self.embedding(tokens) + positions)
        for layer in self.layers:
            n, length, d = x.shape
            q, k, v = layer.attention.qkv(x).view(n, length, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=drop.p)
            mixed = layer.attention.out(mixed.transpose(1, 2).reshape(n, length, d))
            x = layer.norm1(x + drop(mixed))
            x = layer.norm2(x + drop(layer.down(drop(layer.up(x).relu()))))
        return self.readout(x.flatten(1) if self.readout.in_features > d else x)


@pytest.mark.parametrize("readout", ["mlm", "root"])
@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"norm": "pre"}], ids=str)
def test_the_first_encoder_is_kept_bit_for_bit(readout, changes):
    """Names, draws, and outputs with dropout (so the order of its draws too) as they ever were."""
    wanted = config(readout=readout, **changes)
    torch.manual_seed(5)
    encoder = Encoder(wanted)
    torch.manual_seed(5)
    original = Original(wanted)
    ours, theirs = encoder.state_dict(), original.state_dict()
    assert sorted(ours) == sorted(theirs)
    for name, weights in theirs.items():
        assert torch.equal(ours[name], weights), name
    if wanted.norm == "post":
        tokens = torch.tensor(tokens_for(wanted))
        torch.manual_seed(6)
        got = encoder(tokens)
        torch.manual_seed(6)
        assert torch.equal(got, original(tokens, encoder.positions, nn.Dropout(0.1)))


def test_pinned_draws():
    """A few numbers that version 0.1 drew at seed 0."""
    torch.manual_seed(0)
    weights = Encoder(EncoderConfig(4, 16)).state_dict()
    for name, first in {
        "embedding.weight": [-1.1258398, -1.1523602],
        "layers.0.attention.qkv.weight": [-0.0742446, 0.0600384],
        "layers.3.down.weight": [-0.00220616, -0.00438233],
        "readout.weight": [0.00390133, -0.0572749],
    }.items():
        torch.testing.assert_close(
            weights[name].flatten()[:2], torch.tensor(first), rtol=1e-5, atol=0
        )


def test_old_records_load_and_default_records_are_as_before(tmp_path):
    assert EncoderConfig(**json.loads(json.dumps(FIRST))).as_dict() == FIRST
    for changes in OPTIONS:
        wanted = config(**changes)
        record = json.loads(json.dumps(wanted.as_dict()))
        assert EncoderConfig(**record) == wanted
        assert set(record) == set(FIRST) | set(changes) - {"bias"} | (
            {"bias"} if "bias" in changes else set()
        )
        encoder = build(wanted)
        save_encoder(tmp_path / "encoder.safetensors", encoder)
        back = load_encoder(tmp_path)
        assert back.config == wanted
        assert {p.dtype for p in back.parameters()} == {torch.float64}
        tokens = torch.tensor(tokens_for(wanted))
        assert torch.equal(back(tokens), encoder(tokens))


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_causal_rows_see_only_what_is_before(positions, norm):
    """Exact equality: nothing of a later token may enter, not even as a rounding."""
    encoder = build(config(readout="causal", positions=positions, norm=norm)).float()
    plain = build(config(causal=True, positions=positions, norm=norm)).float()
    blind = build(config(positions=positions, norm=norm)).float()
    tokens = torch.tensor(tokens_for(encoder.config)) % 4
    for run in (lambda e, t: e(t), lambda e, t: e.trace(t)[0]):
        for j in range(8):
            changed = tokens.clone()
            changed[:, j:] = (changed[:, j:] + 1 + torch.arange(8 - j)) % 4
            with torch.no_grad():
                assert torch.equal(
                    run(encoder, tokens)[:, : j + 1], run(encoder, changed)[:, : j + 1]
                )
                assert torch.equal(run(plain, tokens)[:, :j], run(plain, changed)[:, :j])
                if j:
                    assert not torch.equal(run(blind, tokens)[:, :j], run(blind, changed)[:, :j])
        with torch.no_grad():
            early = tokens.clone()
            early[:, 0] = (early[:, 0] + 1) % 4
            moved = run(encoder, tokens) != run(encoder, early)
            assert moved[:, 1:].any(-1).all()  # every later row sees token 0
            assert not moved[:, 0].any()


def test_the_causal_readout_is_a_shift():
    encoder = build(config(readout="causal"))
    other = Encoder(config(causal=True)).double().eval()
    other.load_state_dict(encoder.state_dict())
    tokens = torch.tensor(tokens_for(encoder.config)) % 4
    shifted = torch.cat([torch.full((4, 1), 4), tokens[:, :-1]], dim=1)
    assert torch.equal(encoder(tokens), other(shifted))


def test_rotary_scores_depend_on_distance_alone():
    encoder = build(config(positions="rotary"))
    same = torch.full((1, 8), 2)
    scores = encoder.trace(same)[1]["layers.0.attention.scores"][0]
    assert torch.allclose(scores[:, 1:, 1:], scores[:, :-1, :-1], atol=2e-6)
    assert (scores[:, 0, 1:] - scores[:, 0, :-1]).abs().min() > 1e-4  # and do depend on it
    # Moving a whole sequence by two places moves its scores with it.
    tokens = torch.tensor(tokens_for(encoder.config))
    moved = tokens.roll(2, dims=1)
    first = encoder.trace(tokens)[1]["layers.0.attention.scores"]
    second = encoder.trace(moved)[1]["layers.0.attention.scores"]
    assert torch.allclose(first[..., :6, :6], second[..., 2:, 2:], atol=2e-6)
    assert not torch.allclose(first[..., :6, :6], second[..., :6, :6], atol=1e-2)


@pytest.mark.parametrize("positions", ["none", "rotary", "learned", "sinusoidal"])
def test_only_without_positions_the_order_is_not_seen(positions):
    encoder = build(config(positions=positions))
    tokens = torch.tensor(tokens_for(encoder.config))
    order = torch.tensor([3, 1, 0, 2, 7, 5, 6, 4])
    same = torch.allclose(encoder(tokens)[:, order], encoder(tokens[:, order]), atol=1e-9)
    assert same == (positions == "none")


def test_parameter_counts_of_the_options():
    base = build(config(), disturb=False).n_parameters()
    d, f = 16, 24
    counts = {
        "bias": -2 * (4 * d + f + d),
        "d_key": 2 * 2 * (2 * (3 - 8)) * (d + 1),
        "reglu": 2 * f * (d + 1),
        "attention_only": -2 * (2 * d * f + f + d + 2 * d),
        "class": (d * 4 + 4) - (d * 4 + 4) - d + d,  # no mask row, but the class vector
        "norm": -2 * 4 * d,
    }
    for name, changes in {
        "bias": {"bias": False},
        "d_key": {"d_key": 3},
        "reglu": {"activation": "reglu"},
        "attention_only": {"attention_only": True},
        "class": {"readout": "root", "pooling": "class"},
        "norm": {"norm": "none"},
    }.items():
        assert build(config(**changes), disturb=False).n_parameters() - base == counts[name], name
    probe = build(config(readout="ancestor", probe_hidden=7, n_classes=3))
    assert probe.n_parameters("readout") == 16 * 7 + 7 + 7 * 3 + 3
    masked = build(config(readout="root", masked_root=True))
    assert masked.n_parameters() - build(config(readout="root")).n_parameters() == d


def test_the_logarithmic_link():
    encoder = build(config(readout="root", pooling="mean", link="log", n_layers=0), disturb=False)
    with torch.no_grad():
        encoder.readout.weight.zero_()
        encoder.readout.bias.copy_(torch.tensor([0.5, 0.0, -1.0, 2.0]))
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    logits = encoder(tokens)[0]
    expected = [np.log(0.5), -np.inf, -np.inf, np.log(2.0)]
    np.testing.assert_allclose(logits.detach(), expected, atol=1e-15)
    nn.functional.cross_entropy(encoder(tokens), torch.tensor([3])).backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
    np.testing.assert_allclose(encoder.readout.bias.grad, [0.4, 0, 0, 0.4 - 0.5], atol=1e-12)


def test_truncated_copies():
    encoder = build(config(norm="pre"))
    tokens = torch.tensor(tokens_for(encoder.config))
    seen = encoder.trace(tokens)[1]
    encoder(tokens).sum().backward()
    for m, name in enumerate(("embed", "layers.0.hidden", "layers.1.hidden")):
        short = encoder.truncated(m)
        assert short.config == dataclasses.replace(encoder.config, n_layers=m)
        assert torch.allclose(short(tokens), encoder.decode(seen[name]), atol=1e-12)
        assert all(p.grad is None for p in short.parameters())
        with torch.no_grad():
            before = encoder(tokens)
            for parameter in short.parameters():
                parameter.add_(1.0)
            assert torch.equal(encoder(tokens), before)
    assert torch.equal(encoder.truncated(2)(tokens), encoder(tokens))
    for wrong in (-1, 3, 1.0, True):
        with pytest.raises(ArgumentError, match="n_layers"):
            encoder.truncated(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"readout": "next"},
            "readout must be one of mlm, root, causal, ancestor, denoise, got 'next'",
        ),
        ({"pooling": "max"}, "pooling must be one of flat, mean, class"),
        ({"activation": "tanh"}, "activation must be one of relu, gelu"),
        ({"link": "exp"}, "link must be one of logit, log"),
        ({"positions": "random"}, "positions must be one of sinusoidal, learned, rotary, none"),
        ({"norm": "rms"}, "norm must be one of post, pre, none"),
        ({"pooling": "mean"}, "pooling is for readout='root' only, got 'mean' with readout='mlm'"),
        ({"masked_root": True}, "masked_root is for readout='root' only.*leave it out"),
        ({"probe_hidden": 4}, "probe_hidden is for readout='ancestor' only"),
        ({"probe_hidden": 0, "readout": "ancestor"}, "probe_hidden must be an integer of at least"),
        ({"d_key": 0}, "d_key must be an integer"),
        ({"d_key": 3, "positions": "rotary"}, "d_key must be even for rotary.*got 3; give an even"),
        ({"d_model": 18, "positions": "rotary"}, "d_key must be even.*d_model / n_heads"),
        ({"readout": "root", "pooling": "class", "causal": True}, "'class' cannot be causal"),
        ({"causal": 1}, "causal must be True or False, got 1"),
        ({"bias": None}, "bias must be True or False"),
        ({"attention_only": "yes"}, "attention_only must be True or False"),
        ({"dropout": "0.1"}, "dropout"),
        ({"positions": "sinusoidal", "d_model": 15, "n_heads": 1}, "d_model must be even"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        config(**changes)


def test_tokens_by_readout():
    hidden = torch.full((1, 8), 4)
    for changes in OPTIONS:
        encoder = build(config(**changes))
        if encoder.config.n_embedded == 5:
            encoder(hidden)
        else:
            assert encoder.config.readout == "root"
            with pytest.raises(ArgumentError, match=r"0 … 3 .*root"):
                encoder(hidden)
    assert build(config(readout="root", masked_root=True))(hidden).shape == (1, 4)


def test_integers_of_numpy_are_integers():
    given = EncoderConfig(np.int64(4), np.uint8(8), d_model=np.int32(16), d_key=np.int64(4))
    assert given == EncoderConfig(4, 8, d_model=16, d_key=4)
    assert json.loads(json.dumps(given.as_dict()))["d_model"] == 16
