"""Attention maps, and how far they are from those of belief propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.analysis.checks import as_reals
from hfilter.analysis.looking import as_tokens, check_encoder, plain, traced
from hfilter.checks import check_int
from hfilter.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from hfilter.learn.encoder import Encoder

    Floats = NDArray[np.float64]

__all__ = [
    "AttentionDistance",
    "AttentionMaps",
    "attention_distance",
    "attention_maps",
    "ideal_attention",
]

_MOST_LEAVES = 2**14


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention weights; P is L, or L + 1 with a class position (the first).

    Attributes
    ----------
    mean : ndarray, shape (layers, heads, P, P)
        Averaged over inputs; row = query.
    each : ndarray, shape (n, layers, heads, P, P), or None
        Of every input, if asked for.
    n_sequences : int
    """

    mean: Floats
    each: Floats | None
    n_sequences: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self)


def attention_maps(
    encoder: Encoder, tokens: ArrayLike, *, each: bool = False, batch_size: int = 512
) -> AttentionMaps:
    """Attention weights of every layer and head, averaged over inputs and of each.

    Parameters
    ----------
    encoder : hfilter.learn.encoder.Encoder
        Looked at without dropout; its mode is put back.
    tokens : (n, L) integer array or tensor
        n of at least 1.
    each : bool
        Keep every input's own maps.
    batch_size : int

    Raises
    ------
    hfilter.errors.ArgumentError, hfilter.errors.ShapeError, hfilter.errors.DTypeError
        For tokens that the encoder does not take, none at all, or something that is no encoder.

    Examples
    --------
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=2, n_heads=4))
    >>> maps = attention_maps(encoder, np.zeros((3, 8), dtype=int))
    >>> maps.mean.shape, bool(np.allclose(maps.mean.sum(-1), 1))
    ((2, 4, 8, 8), True)
    """
    check_encoder(encoder)
    given = _some_tokens(encoder, tokens)
    total: Any = 0.0
    kept = []
    for weights in _weights(encoder, given, batch_size):
        total = total + weights.sum(0)
        if each:
            kept.append(weights)
    return AttentionMaps(total / len(given), np.concatenate(kept) if each else None, len(given))


def ideal_attention(depth: int, height: int, *, arity: int = 2) -> Floats:
    """The map by which one block of belief propagation reads its neighbours.

    Leaf j attends uniformly to the other children of its ancestor at that height: for two children,
    to the sibling block of 2^(height - 1) leaves. Layer height - 1 of
    :class:`hfilter.analysis.construction.ConstructedTransformer` attends so.

    Parameters
    ----------
    depth : int
        Levels of the tree.
    height : int
        1 (the leaf's siblings) … depth (the other part of the sequence).
    arity : int

    Returns
    -------
    ndarray, shape (arity**depth, arity**depth)
        Rows sum to one.

    Raises
    ------
    hfilter.errors.ArgumentError
        For numbers out of range.

    Examples
    --------
    >>> ideal_attention(2, 1)
    array([[0., 1., 0., 0.],
           [1., 0., 0., 0.],
           [0., 0., 0., 1.],
           [0., 0., 1., 0.]])
    >>> ideal_attention(2, 2)[0]
    array([0. , 0. , 0.5, 0.5])

    Notes
    -----
    Source: the constructions of Garnier-Brun et al. 2024, arXiv 2408.15138, appendix.
    """
    depth, arity = check_int("depth", depth, 1), check_int("arity", arity, 2)
    height = check_int("height", height, 1, depth)
    if arity**depth > _MOST_LEAVES:
        raise ArgumentError(
            f"depth must be smaller: {arity}^{depth} leaves squared are more than 2^28 weights"
        )
    leaves = np.arange(arity**depth)
    same = [np.equal.outer(leaves // size, leaves // size) for size in _sizes(height, arity)]
    other = same[1] & ~same[0]
    return np.asarray(other / other.sum(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class AttentionDistance:
    """Distance of attention maps from ideal ones: total variation of rows, 0 … 1.

    Attributes
    ----------
    per_input, per_input_se : ndarray, shape (layers, heads, maps)
        Of every input's own rows, averaged over rows and inputs; standard error over inputs.
    averaged : ndarray, shape (layers, heads, maps)
        Of the map averaged over inputs, averaged over rows: never larger. A head that looks
        elsewhere for every input, but in the right places on average, is near here and far there.
    inside : ndarray, shape (layers, heads, maps)
        Share of attention that falls where the ideal map is not zero. 1 - inside is the least
        distance of any map with the same support: where all ideal places hold the same message,
        how attention is divided between them does not matter.
    rows : ndarray, shape (layers, heads, maps, L)
        ``per_input`` of every query row.
    uniform : ndarray, shape (maps,)
        Distance of the map that attends everywhere alike: what an untrained network has, about.
    nearest : ndarray of int, shape (layers, heads)
        Index of the map with the smallest ``per_input``: height - 1, if the maps are the default.
    n_sequences : int
    """

    per_input: Floats
    per_input_se: Floats
    averaged: Floats
    inside: Floats
    rows: Floats
    uniform: Floats
    nearest: NDArray[np.int64]
    n_sequences: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self)


def attention_distance(
    encoder: Encoder,
    tokens: ArrayLike,
    ideal: ArrayLike | None = None,
    *,
    arity: int = 2,
    batch_size: int = 512,
) -> AttentionDistance:
    """Distance of every layer's and head's attention from ideal maps, for every height.

    Parameters
    ----------
    encoder : hfilter.learn.encoder.Encoder
        A class position's own row is left out, attention to it counts as misplaced.
    tokens : (n, L) integer array or tensor
    ideal : (maps, L, L) array, optional
        Maps to compare with, rows summing to one; :func:`ideal_attention` of all heights unless
        given. Needed for causal encoders, which cannot look ahead.
    arity : int
        Of the tree, for the default maps.
    batch_size : int

    Raises
    ------
    hfilter.errors.ArgumentError, hfilter.errors.ShapeError
        For maps that are none, a length that is no power of ``arity``, or a causal encoder without
        maps of its own; and as :func:`attention_maps`.

    Examples
    --------
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=2))
    >>> found = attention_distance(encoder, np.zeros((3, 8), dtype=int))
    >>> found.per_input.shape, found.uniform
    ((2, 1, 3), array([0.875, 0.75 , 0.5  ]))
    """
    check_encoder(encoder)
    given = _some_tokens(encoder, tokens)
    length = encoder.config.n_leaves
    maps = _default_maps(encoder, arity) if ideal is None else _checked_maps(ideal, length)
    first = encoder.config.n_positions - length
    heads = (encoder.config.n_layers, encoder.config.n_heads)
    sums = np.zeros((*heads, len(maps), length))
    squares, inside = np.zeros((2, *heads, len(maps)))
    mean: Any = 0.0
    for weights in _weights(encoder, given, batch_size):
        leaves = weights[:, :, :, first:]
        mean = mean + leaves.sum(0)
        for m, ideal_map in enumerate(maps):
            # (batch, layers, heads, L)
            apart = _apart(leaves, ideal_map, first)
            sums[:, :, m] += apart.sum(0)
            squares[:, :, m] += (apart.mean(-1) ** 2).sum(0)
            inside[:, :, m] += (leaves[..., first:] * (ideal_map > 0)).sum(-1).mean(-1).sum(0)
    n = len(given)
    rows = sums / n
    per_input = rows.mean(-1)
    spread = np.maximum(squares / n - per_input**2, 0.0)
    averaged = np.stack([_apart(mean / n, m, first).mean(-1) for m in maps], axis=-1)
    return AttentionDistance(
        per_input=per_input,
        per_input_se=np.sqrt(spread / (n - 1)) if n > 1 else np.full_like(per_input, np.nan),
        averaged=averaged,
        inside=inside / n,
        rows=rows,
        uniform=np.array([np.abs(m - 1 / length).sum(-1).mean() / 2 for m in maps]),
        nearest=per_input.argmin(-1),
        n_sequences=n,
    )


def _apart(weights: Floats, ideal: Floats, first: int) -> Floats:
    """Total variation distance of rows; columns before ``first`` are no leaves."""
    leaves = np.abs(weights[..., first:] - ideal).sum(-1)
    return np.asarray((leaves + weights[..., :first].sum(-1)) / 2)


def _weights(encoder: Encoder, tokens: NDArray[Any], batch_size: int) -> Iterator[Floats]:
    """(batch, layers, heads, P, P) in float64."""
    config = encoder.config
    names = [f"layers.{i}.attention.weights" for i in range(config.n_layers)]
    shape = (config.n_heads, config.n_positions, config.n_positions)
    for rows, _, seen in traced(encoder, tokens, None, names, batch_size):
        out = np.empty((rows.stop - rows.start, config.n_layers, *shape))
        for i, name in enumerate(names):
            out[:, i] = seen[name].double().cpu().numpy()
        yield out


def _some_tokens(encoder: Encoder, tokens: ArrayLike) -> NDArray[Any]:
    given = as_tokens(encoder, "tokens", tokens)
    if not len(given):
        raise ArgumentError("tokens must have at least one row to average over, got none")
    return given


def _default_maps(encoder: Encoder, arity: int) -> Floats:
    if encoder.config.is_causal:
        raise ArgumentError(
            "ideal must be given for a causal encoder: the maps of ideal_attention look ahead"
        )
    length, depth, arity = encoder.config.n_leaves, 1, check_int("arity", arity, 2)
    while arity**depth < length:
        depth += 1
    if arity**depth != length:
        raise ArgumentError(
            f"arity must have n_leaves = {length} as a power, got {arity}; or give ideal maps"
        )
    return np.stack([ideal_attention(depth, h, arity=arity) for h in range(1, depth + 1)])


def _checked_maps(ideal: ArrayLike, length: int) -> Floats:
    maps = as_reals("ideal", ideal)
    if maps.ndim != 3 or maps.shape[1:] != (length, length) or not len(maps):
        raise ShapeError(f"ideal must have shape (maps, {length}, {length}), got {maps.shape}")
    if not (np.isfinite(maps).all() and maps.min() >= 0 and np.allclose(maps.sum(-1), 1)):
        raise ArgumentError("ideal: rows must be at least 0 and sum to 1; divide by their sums")
    return maps


def _sizes(height: int, arity: int) -> tuple[int, int]:
    return arity ** (height - 1), arity**height
