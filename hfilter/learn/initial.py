"""Initial weights of a chosen scale, part by part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise ModuleNotFoundError(
        f"hfilter.learn.initial needs torch ({error}); install it with: pip install '.[learn]'",
        name=error.name,
    ) from error

from hfilter.errors import ArgumentError
from hfilter.learn.architecture import is_number
from hfilter.learn.encoder import Encoder, EncoderLayer

PARTS = ("embedding", "attention_qk", "attention_vo", "feedforward", "readout")


def init_gamma_(
    encoder: Encoder,
    gamma: float | Mapping[str, float],
    parts: Iterable[str] | None = None,
    generator: torch.Generator | None = None,
) -> Encoder:
    """Draw the weight matrices anew from N(0, d_in^(-2 gamma)), and set their biases to 0.

    d_in is the number of inputs a matrix sums over: its columns, for the token embedding its rows
    (of which a one-hot token picks one), for learned positions the number of positions (the class
    vector, its own position, is drawn with them). The code of a denoiser's times counts as
    embedding. The matrices that write into the residual stream, ``attention.out`` and ``down``, are
    divided by sqrt(2 n_layers) in addition. Norms stay as they are.

    Parameters
    ----------
    encoder
        Changed in place.
    gamma
        About 0.5 is customary; larger means smaller weights. One number, or one by part:
        ``"embedding"`` (tokens, positions), ``"attention_qk"``, ``"attention_vo"`` (values and
        output), ``"feedforward"``, ``"readout"``; a part that is not named keeps its weights.
    parts
        With one number: the parts to draw; all unless given.
    generator
        Source of randomness; torch's own unless given.

    Returns
    -------
    Encoder
        The same encoder.

    Raises
    ------
    hfilter.errors.ArgumentError
        For an unknown part, or a gamma that is not a finite number.

    Notes
    -----
    Source: Zhang et al. 2024, arXiv 2405.05409, section 3 (one gamma for all matrices).

    Examples
    --------
    >>> from hfilter.learn.encoder import EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=16, d_model=64))
    >>> _ = init_gamma_(encoder, 0.5, generator=torch.Generator().manual_seed(0))
    >>> round(float(encoder.layers[0].up.weight.detach().std()) * 64**0.5, 2)
    1.0
    """
    if isinstance(gamma, Mapping):
        if parts is not None:
            raise ArgumentError("parts is for one gamma; leave it out where gamma names its parts")
        chosen = dict(gamma)
    else:
        chosen = dict.fromkeys(PARTS if parts is None else parts, gamma)
    for part, value in chosen.items():
        if part not in PARTS:
            raise ArgumentError(f"a part must be one of {', '.join(PARTS)}, got {part!r}")
        if not is_number(value):
            raise ArgumentError(f"gamma of {part} must be a finite number, got {value!r}")
    with torch.no_grad():
        for part, weight, bias, d_in, shrink in _matrices(encoder):
            if part in chosen:
                weight.normal_(0.0, _scale(part, d_in, chosen[part]) * shrink, generator=generator)
                if bias is not None:
                    bias.zero_()
    return encoder


def _scale(part: str, d_in: int, gamma: float) -> float:
    try:
        return math.pow(d_in, -gamma)
    except OverflowError:
        raise ArgumentError(
            f"gamma of {part} makes weights of size {d_in}^{-gamma:g}, more than a number holds; "
            "about 0.5 is customary"
        ) from None


def _matrices(encoder: Encoder) -> Iterator[tuple[str, Tensor, Tensor | None, int, float]]:
    """(part, weight, bias, d_in, additional factor) of every matrix."""
    config = encoder.config
    table = encoder.embedding
    offset = table.bias if isinstance(table, nn.Linear) else None
    yield "embedding", table.weight, offset, config.n_embedded, 1.0
    if offset is not None:
        yield "embedding", encoder.time.weight, encoder.time.bias, config.time_embedding, 1.0
    if isinstance(encoder.positions, nn.Parameter):
        yield "embedding", encoder.positions, None, config.n_positions, 1.0
    if config.pooling == "class":
        yield "embedding", encoder.class_token, None, config.n_positions, 1.0
    shrink = 1 / math.sqrt(2 * max(config.n_layers, 1))
    d, keys = config.d_model, 2 * config.n_heads * config.key_width
    for layer in encoder.layers:
        assert isinstance(layer, EncoderLayer)
        qkv, out = layer.attention.qkv, layer.attention.out
        for part, rows in (
            ("attention_qk", slice(None, keys)),
            ("attention_vo", slice(keys, None)),
        ):
            bias = qkv.bias[rows] if config.bias else None
            yield part, qkv.weight[rows], bias, d, 1.0
        yield "attention_vo", out.weight, out.bias, d, shrink
        if not config.attention_only:
            for linear in (layer.up, layer.gate) if config.activation == "reglu" else (layer.up,):
                yield "feedforward", linear.weight, linear.bias, d, 1.0
            yield "feedforward", layer.down.weight, layer.down.bias, config.d_feedforward, shrink
    for module in encoder.readout.modules():
        if isinstance(module, nn.Linear):
            yield "readout", module.weight, module.bias, module.in_features, 1.0
