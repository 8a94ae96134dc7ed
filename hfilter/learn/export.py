"""Encoders for other people's tools."""

from __future__ import annotations

from typing import Any

try:
    from torch import Tensor, nn
except ImportError as error:
    raise ModuleNotFoundError(
        f"hfilter.learn.export needs torch ({error}); install it with: pip install '.[learn]'",
        name=error.name,
    ) from error

from hfilter.errors import ArgumentError
from hfilter.learn.encoder import Encoder, EncoderLayer

_NORMS = {"pre": "LN", "none": None}


def to_transformer_lens(encoder: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the same network as a ``HookedTransformer`` of TransformerLens.

    Use them as ``network = HookedTransformer(HookedTransformerConfig(**config))`` and
    ``network.load_state_dict(weights, strict=False)`` (what is missing are its buffers). Versions
    before 4 have that class; 3.9 gives the same logits and attention to 2e-15.

    Parameters
    ----------
    encoder : Encoder
        With ``norm`` ``"pre"`` or ``"none"`` (that package knows no norm after a block, as the
        published encoder has it), ``positions`` ``"learned"``, ``"sinusoidal"`` or ``"none"``,
        values as wide as keys, one linear read-out per leaf, ``link="logit"``, and ``activation``
        ``"relu"``, ``"gelu"`` or, without biases, ``"reglu"``.

    Returns
    -------
    config : dict
        Keyword arguments of ``HookedTransformerConfig``.
    weights : dict of Tensor
        Copies, under that package's names.

    Raises
    ------
    hfilter.errors.ArgumentError
        For an encoder that it cannot express; the message names the option.

    Notes
    -----
    A causal encoder shifts its tokens by itself, the other does not: give that one the start token
    q, x_0 … x_{L-2}. BERT of the package ``transformers`` cannot hold these encoders at all: it
    norms the sum of embedding and position, and its read-out has a further layer.

    Examples
    --------
    >>> from hfilter.learn.encoder import EncoderConfig
    >>> shape = EncoderConfig(vocab_size=4, n_leaves=8, d_model=16, n_layers=1, norm="pre")
    >>> config, weights = to_transformer_lens(Encoder(shape))
    >>> config["d_head"], config["attention_dir"], weights["blocks.0.attn.W_Q"].shape
    (16, 'bidirectional', torch.Size([1, 16, 16]))
    """
    shape = encoder.config
    _check(encoder)
    readout = encoder.readout
    assert isinstance(readout, nn.Linear)
    config = {
        "n_layers": shape.n_layers,
        "d_model": shape.d_model,
        "n_ctx": shape.n_leaves,
        "d_head": shape.value_width,
        "n_heads": shape.n_heads,
        "d_mlp": shape.d_feedforward,
        "act_fn": "gelu" if shape.activation == "gelu" else "relu",
        "gated_mlp": shape.activation == "reglu",
        "attn_only": shape.attention_only,
        "d_vocab": shape.n_embedded,
        "d_vocab_out": shape.n_outputs,
        "normalization_type": _NORMS[shape.norm],
        "eps": 1e-5,
        "attention_dir": "causal" if shape.is_causal else "bidirectional",
        "positional_embedding_type": "standard",
        "default_prepend_bos": False,
        "init_weights": False,
        "dtype": encoder.embedding.weight.dtype,
        "device": str(encoder.embedding.weight.device),
    }
    table = encoder.embedding.weight
    none = table.new_zeros(shape.n_leaves, shape.d_model)
    found = {
        "embed.W_E": table,
        "pos_embed.W_pos": none if encoder.positions is None else encoder.positions,
        "unembed.W_U": readout.weight.T,
        "unembed.b_U": readout.bias,
    }
    for i, layer in enumerate(encoder.layers):
        assert isinstance(layer, EncoderLayer)
        found |= {f"blocks.{i}.{name}": x for name, x in _layer(encoder, layer).items()}
    if isinstance(encoder.final_norm, nn.LayerNorm):
        found |= {"ln_final.w": encoder.final_norm.weight, "ln_final.b": encoder.final_norm.bias}
    return config, {name: x.detach().clone().contiguous() for name, x in found.items()}


def _layer(encoder: Encoder, layer: EncoderLayer) -> dict[str, Any]:
    """Weights of one layer: matrices act on rows from the right there, heads have their own axis."""
    shape, zeros = encoder.config, encoder.embedding.weight.new_zeros
    d, heads, width = shape.d_model, shape.n_heads, shape.value_width
    qkv, out = layer.attention.qkv, layer.attention.out
    three = (3, heads, width)
    found: dict[str, Any] = {}
    for name, rows in zip("QKV", qkv.weight.view(*three, d), strict=True):
        found[f"attn.W_{name}"] = rows.transpose(1, 2)
        found[f"attn.b_{name}"] = zeros(heads, width)
    found["attn.W_O"] = out.weight.T.reshape(heads, width, d)
    found["attn.b_O"] = zeros(d)
    if shape.bias:
        found |= {f"attn.b_{n}": b for n, b in zip("QKV", qkv.bias.view(three), strict=True)}
        found["attn.b_O"] = out.bias
    if not shape.attention_only:
        found |= {"mlp.W_in": layer.up.weight.T, "mlp.W_out": layer.down.weight.T}
        found["mlp.b_in"] = layer.up.bias if shape.bias else zeros(shape.d_feedforward)
        found["mlp.b_out"] = layer.down.bias if shape.bias else zeros(d)
        if shape.activation == "reglu":
            found["mlp.W_gate"] = layer.gate.weight.T
    if shape.norm == "pre":
        found |= {"ln1.w": layer.norm1.weight, "ln1.b": layer.norm1.bias}
        if not shape.attention_only:
            found |= {"ln2.w": layer.norm2.weight, "ln2.b": layer.norm2.bias}
    return found


def _check(encoder: Encoder) -> None:
    """Raise for what that package has no place for."""
    shape = encoder.config
    wanted: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("norm", shape.norm, ("pre", "none")),
        ("positions", shape.positions, ("learned", "sinusoidal", "none")),
        ("readout", shape.readout, ("mlm", "causal", "ancestor")),
        ("probe_hidden", shape.probe_hidden, (None,)),
        ("link", shape.link, ("logit",)),
        ("activation", shape.activation, ("relu", "gelu", "reglu")),
        ("d_key", shape.key_width, (shape.value_width,)),
    ]
    if shape.activation == "reglu" and not shape.attention_only:
        wanted.append(("bias, with reglu,", shape.bias, (False,)))
    for name, value, allowed in wanted:
        if value not in allowed:
            raise ArgumentError(
                f"{name} must be {' or '.join(map(repr, allowed))} for TransformerLens, got "
                f"{value!r}; such an encoder has no counterpart there"
            )
