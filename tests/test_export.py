"""Encoders under other packages' names: the same network, by that package or by its formulas."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_encoder_options import build, config, tokens_for  # noqa: E402

import hfilter.learn.export as export  # noqa: E402
from hfilter.errors import ArgumentError  # noqa: E402
from hfilter.learn.export import to_transformer_lens  # noqa: E402

erf = np.vectorize(math.erf)

KINDS = [
    {"norm": "pre"},
    {"norm": "pre", "readout": "causal", "positions": "learned", "activation": "gelu"},
    {"norm": "none", "readout": "ancestor", "n_classes": 3, "positions": "none", "n_heads": 4},
    {"norm": "pre", "activation": "reglu", "bias": False},
    {"norm": "none", "attention_only": True, "causal": True},
    {"norm": "pre", "n_heads": 1, "bias": False},
]


def hooked(shape, w, tokens):
    """A HookedTransformer in NumPy: matrices from the right, one per head."""

    def norm(x, name):
        if shape["normalization_type"] is None:
            return x
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + shape["eps"])
        return x * w[f"{name}.w"] + w[f"{name}.b"]

    x = w["embed.W_E"][tokens] + w["pos_embed.W_pos"]
    for i in range(shape["n_layers"]):
        b, at = f"blocks.{i}", f"blocks.{i}.attn"
        y = norm(x, f"{b}.ln1")
        q, k, v = (
            np.einsum("npd,hde->nphe", y, w[f"{at}.W_{s}"]) + w[f"{at}.b_{s}"] for s in "QKV"
        )
        scores = np.einsum("nqhe,nkhe->nhqk", q, k) / math.sqrt(shape["d_head"])
        if shape["attention_dir"] == "causal":
            scores = np.where(np.tri(shape["n_ctx"], dtype=bool), scores, -np.inf)
        pattern = np.exp(scores - scores.max(-1, keepdims=True))
        pattern /= pattern.sum(-1, keepdims=True)
        z = np.einsum("nhqk,nkhe->nqhe", pattern, v)
        x = x + np.einsum("nqhe,hed->nqd", z, w[f"{at}.W_O"]) + w[f"{at}.b_O"]
        if shape["attn_only"]:
            continue
        y = norm(x, f"{b}.ln2")

        def act(u):
            return u * (1 + erf(u / math.sqrt(2))) / 2 if shape["act_fn"] == "gelu" else u * (u > 0)

        if shape["gated_mlp"]:
            hidden = act(y @ w[f"{b}.mlp.W_gate"]) * (y @ w[f"{b}.mlp.W_in"]) + w[f"{b}.mlp.b_in"]
        else:
            hidden = act(y @ w[f"{b}.mlp.W_in"] + w[f"{b}.mlp.b_in"])
        x = x + hidden @ w[f"{b}.mlp.W_out"] + w[f"{b}.mlp.b_out"]
    return norm(x, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"]


def inputs(encoder):
    """Tokens for the encoder, and for a network that does not shift by itself."""
    tokens = tokens_for(encoder.config)
    if encoder.config.readout != "causal":
        return tokens, tokens
    return tokens, np.concatenate([np.full((len(tokens), 1), 4), tokens[:, :-1]], axis=1)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_exported_weights_compute_the_same(changes):
    encoder = build(config(**changes))
    ours, theirs = inputs(encoder)
    shape, weights = to_transformer_lens(encoder)
    with torch.no_grad():
        expected = encoder(torch.tensor(ours)).numpy()
        got = hooked(shape, {k: v.numpy() for k, v in weights.items()}, theirs)
        np.testing.assert_allclose(got, expected, atol=1e-11)
        for tensor in weights.values():  # copies
            tensor.add_(1.0)
        np.testing.assert_array_equal(encoder(torch.tensor(ours)).numpy(), expected)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_package_itself(changes):
    lens = pytest.importorskip("transformer_lens")
    if int(str(getattr(lens, "__version__", "3")).split(".")[0]) > 3:
        pytest.skip("HookedTransformer is gone from version 4 on")
    encoder = build(config(**changes))
    ours, theirs = inputs(encoder)
    shape, weights = to_transformer_lens(encoder)
    network = lens.HookedTransformer(lens.HookedTransformerConfig(**shape))
    left = network.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert all(key.endswith(("attn.mask", "attn.IGNORE")) for key in left.missing_keys)
    with torch.no_grad():
        got, cache = network.run_with_cache(torch.tensor(theirs))
        expected, seen = encoder.trace(torch.tensor(ours))
    np.testing.assert_allclose(got, expected, atol=1e-11)
    for i in range(encoder.config.n_layers):
        pattern = cache[f"blocks.{i}.attn.hook_pattern"]
        np.testing.assert_allclose(pattern, seen[f"layers.{i}.attention.weights"], atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "norm must be 'pre' or 'none' for TransformerLens, got 'post'"),
        ({"norm": "pre", "readout": "root"}, "readout must be 'mlm'"),
        ({"norm": "pre", "positions": "rotary"}, "positions must be"),
        ({"norm": "pre", "activation": "relu2"}, "activation must be"),
        ({"norm": "pre", "activation": "reglu"}, "bias, with reglu, must be False"),
        ({"norm": "pre", "d_key": 4}, "d_key must be 8"),
        ({"norm": "pre", "link": "log"}, "link must be 'logit'"),
        ({"norm": "pre", "readout": "ancestor", "probe_hidden": 4}, "probe_hidden must be None"),
    ],
)
def test_what_has_no_counterpart(changes, message):
    with pytest.raises(ArgumentError, match=message):
        to_transformer_lens(build(config(**changes)))


def test_docstring_examples_run():
    assert doctest.testmod(export).failed == 0
