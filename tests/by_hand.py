"""The encoder once more, in NumPy and float64, written from its documentation: a judge for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

erf = np.vectorize(math.erf)


def run(encoder, tokens, edits: Mapping[str, object] | None = None):
    """Logits and all activations; ``edits`` are arrays or functions of one, by name."""
    config = encoder.config
    weights = {k: v.detach().double().numpy() for k, v in encoder.state_dict().items()}
    edits, seen = edits or {}, {}

    def site(name, x):
        if name in edits:
            edit = edits[name]
            x = np.broadcast_to(edit(x) if callable(edit) else edit, x.shape)
        seen[name] = x
        return x

    def linear(name, x):
        out = x @ weights[f"{name}.weight"].T
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    def norm(name, x):
        if config.norm == "none":
            return x
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(name, x):
        n, length, _ = x.shape
        h, dk, dv = config.n_heads, config.key_width, config.d_model // config.n_heads
        mixed = linear(f"{name}.qkv", x)
        split = (mixed[..., : h * dk], mixed[..., h * dk : 2 * h * dk], mixed[..., 2 * h * dk :])
        q, k, v = (
            part.reshape(n, length, h, width).swapaxes(1, 2)
            for part, width in zip(split, (dk, dk, dv), strict=True)
        )
        if config.positions == "rotary":
            q, k = turn(q), turn(k)
        q, k, v = site(f"{name}.queries", q), site(f"{name}.keys", k), site(f"{name}.values", v)
        scores = np.einsum("nhqd,nhkd->nhqk", q, k) / math.sqrt(dk)
        if config.causal or config.readout == "causal":
            scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        scores = site(f"{name}.scores", scores)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares = site(f"{name}.weights", shares / shares.sum(-1, keepdims=True))
        heads = site(f"{name}.heads", np.einsum("nhqk,nhkd->nhqd", shares, v))
        out = linear(f"{name}.out", heads.swapaxes(1, 2).reshape(n, length, h * dv))
        return site(f"{name}.output", out)

    def feedforward(name, x):
        up = linear(f"{name}.up", x)
        if config.activation == "reglu":
            hidden = np.maximum(linear(f"{name}.gate", x), 0) * up
        else:
            hidden = {
                "relu": lambda u: np.maximum(u, 0),
                "gelu": lambda u: u * (1 + erf(u / math.sqrt(2))) / 2,
                "relu2": lambda u: np.maximum(u, 0) ** 2,
            }[config.activation](up)
        hidden = site(f"{name}.feedforward.hidden", hidden)
        return site(f"{name}.feedforward.output", linear(f"{name}.down", hidden))

    tokens = np.asarray(tokens)
    if config.readout == "causal":
        start = np.full((len(tokens), 1), config.vocab_size)
        tokens = np.concatenate([start, tokens[:, :-1]], axis=1)
    x = weights["embedding.weight"][tokens]
    if config.positions in ("sinusoidal", "learned"):
        x = x + encoder.positions.detach().double().numpy()
    if config.pooling == "class":
        first = np.broadcast_to(weights["class_token"], (len(x), 1, config.d_model))
        x = np.concatenate([first, x], axis=1)
    x = site("embed", x)
    for i in range(config.n_layers):
        name = f"layers.{i}"
        blocks = [("norm1", lambda y, name=name: attention(f"{name}.attention", y), "middle")]
        if not config.attention_only:
            blocks.append(("norm2", lambda y, name=name: feedforward(name, y), None))
        for which, block, after in blocks:
            normed = f"{name}.{which}"
            x = x + block(norm(normed, x)) if config.norm == "pre" else norm(normed, x + block(x))
            if after:
                x = site(f"{name}.{after}", x)
        x = site(f"{name}.hidden", x)
    x = site("final", norm("final_norm", x) if config.norm == "pre" else x)
    if config.readout == "root":
        x = {"flat": x.reshape(len(x), -1), "mean": x.mean(1), "class": x[:, 0]}[config.pooling]
    if config.probe_hidden is None:
        logits = linear("readout", x)
    else:
        logits = linear("readout.2", np.maximum(linear("readout.0", x), 0))
    if config.link == "log":
        with np.errstate(divide="ignore"):
            logits = np.log(np.maximum(logits, 0))
    return logits, seen


def turn(x):
    """Rotary positions with complex numbers: pair i of row t times exp(i t 10000^(-2i/d))."""
    length, width = x.shape[-2:]
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)
