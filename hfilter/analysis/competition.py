"""Local against global: which of two exact mechanisms a network follows, and how it gives way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hfilter.analysis.asking import check_fits
from hfilter.analysis.interventions import logit_lens, replace_at, scale_attention
from hfilter.analysis.looking import (
    as_positions,
    averaged,
    check_encoder,
    divergence,
    log_laws,
    plain,
)
from hfilter.analysis.mechanisms import as_evidence, local_and_global, sibling_block, soften
from hfilter.checks import check_float, check_int
from hfilter.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from hfilter.exact import TreeModel
    from hfilter.learn.encoder import Encoder

    Array = NDArray[Any]
    Floats = NDArray[np.float64]

__all__ = ["AttentionDoses", "Competition", "attention_doses", "competition"]


@dataclass(frozen=True, eq=False)
class Competition:
    """Which mechanism a network follows where they differ, layer by layer.

    Attributes
    ----------
    sites : tuple of str
        As :class:`hfilter.analysis.interventions.LogitLens`; the last is the answer.
    difference, difference_se : ndarray, shape (sites,)
        Mean log-odds of the local against the global choice, ln p(t_loc) - ln p(t_glob), over rows
        where both are finite.
    exact_difference : float
        The same of BP; negative by construction.
    local_difference : float
        The same of W_1; positive by construction (0 for ties).
    won_local, won_global : ndarray, shape (sites,)
        Fraction of rows where the lens' most probable symbol is the local, or the global choice.
    n_conflicts, n_rows : int
        Rows counted, and given.
    undefined : ndarray of int, shape (sites,)
        Rows left out of ``difference``.
    heads : ndarray, shape (layers, heads), or None
        Change of the answer's mean log-odds when what a head brings to the asked leaf is replaced
        by zeros: negative for heads that speak for the local choice.
    """

    sites: tuple[str, ...]
    difference: Floats
    difference_se: Floats
    exact_difference: float
    local_difference: float
    won_local: Floats
    won_global: Floats
    n_conflicts: int
    n_rows: int
    undefined: NDArray[np.int64]
    heads: Floats | None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self)


def competition(
    encoder: Encoder,
    model: TreeModel,
    leaves: ArrayLike,
    positions: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    heads: bool = False,
    batch_size: int = 512,
) -> Competition:
    """Read the network layer by layer at leaves where the local and the global choice differ.

    Parameters
    ----------
    encoder : hfilter.learn.encoder.Encoder
        With ``readout="mlm"``.
    model : TreeModel
    leaves : (n, L) integer array
    positions : (n,) integer array
        The leaf asked for in each row; it is hidden from the network.
    mask : (n, L) bool array, optional
        Other leaves that are hidden.
    heads : bool
        Silence each head in turn as well: one more pass for each.
    batch_size : int

    Raises
    ------
    hfilter.errors.ArgumentError, hfilter.errors.ShapeError
        For an encoder of another read-out or size, or positions out of range.

    Notes
    -----
    Source of the question: Ortu et al. 2024, arXiv 2402.11655 (competition of mechanisms), asked
    there of facts against copies; on a tree both sides are exact.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> encoder = Encoder(EncoderConfig.for_model(model, n_layers=2))
    >>> x = model.sample(100, seed=1).leaves
    >>> found = competition(encoder, model, x, np.zeros(100, dtype=int))
    >>> found.difference.shape, found.exact_difference < 0 <= found.local_difference
    ((3,), True)
    """
    tokens, where, laws, rows = _conflicts(encoder, model, leaves, positions, mask)
    choices = np.stack([law.argmax(-1) for law in laws], axis=-1)
    lens = logit_lens(encoder, tokens, batch_size=batch_size)
    read = lens.log_probabilities[:, np.arange(len(tokens)), where]
    odds = [_log_odds(law, choices) for law in read]
    scores = [averaged(o, np.isfinite(o)) for o in odds]
    best = np.where(np.isnan(read).any(-1), -1, read.argmax(-1))
    with np.errstate(divide="ignore"):
        local, full = (_log_odds(np.log(law), choices) for law in laws)
    won = [_mean(best == choices[:, side], axis=1) for side in (0, 1)]
    return Competition(
        sites=lens.sites,
        difference=np.array([s[0] for s in scores]),
        difference_se=np.array([s[1] for s in scores]),
        exact_difference=averaged(full, np.isfinite(full))[0],
        local_difference=averaged(local, np.isfinite(local))[0],
        won_local=won[0],
        won_global=won[1],
        n_conflicts=len(tokens),
        n_rows=rows,
        undefined=np.array([(~np.isfinite(o)).sum() for o in odds]),
        heads=_silenced(encoder, tokens, where, choices, batch_size) if heads else None,
    )


@dataclass(frozen=True, eq=False)
class AttentionDoses:
    """A network under scaled attention to the sibling block, beside BP under softened evidence.

    Attributes
    ----------
    factors : ndarray, shape (f,)
    difference, exact_difference : ndarray, shape (f,)
        Mean log-odds of the local against the global choice, of the network whose attention from
        the asked leaf to its sibling block is multiplied by the factor, and of BP with the block's
        evidence softened to that dose; over rows where both are finite.
    kl : ndarray, shape (f,)
        Mean KL(BP at the dose || network at the factor), nats.
    moved, exact_moved : ndarray, shape (f,)
        Mean KL(undisturbed || at the factor) of the network, and of BP.
    n_conflicts : int
        Rows; only those count where local and global choice differ.
    undefined : ndarray of int, shape (f,)
        Rows without a law, left out.
    """

    factors: Floats
    difference: Floats
    exact_difference: Floats
    kl: Floats
    moved: Floats
    exact_moved: Floats
    n_conflicts: int
    undefined: NDArray[np.int64]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self)


def attention_doses(
    encoder: Encoder,
    model: TreeModel,
    leaves: ArrayLike,
    positions: ArrayLike,
    factors: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    height: int = 1,
    layers: Sequence[int] | None = None,
    what: Literal["weights", "scores"] = "weights",
    renormalise: bool = True,
    mask: ArrayLike | None = None,
    batch_size: int = 512,
) -> AttentionDoses:
    """Turn down the attention from a leaf to its sibling block, and the exact evidence alike.

    Parameters
    ----------
    encoder : hfilter.learn.encoder.Encoder
        With ``readout="mlm"``.
    model : TreeModel
    leaves, positions, mask, batch_size
        As :func:`competition`.
    factors : sequence of float
        From 0 (cut; block hidden) to 1 (undisturbed).
    height : int
        Of the sibling block: 1 is the leaf's sibling.
    layers : sequence of int, optional
        Where attention is scaled; all layers unless given.
    what, renormalise
        As :func:`hfilter.analysis.interventions.scale_attention`.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> encoder = Encoder(EncoderConfig.for_model(model, n_layers=2))
    >>> x = model.sample(100, seed=1).leaves
    >>> doses = attention_doses(encoder, model, x, np.zeros(100, dtype=int), (0.0, 1.0))
    >>> float(doses.moved[1]), bool(doses.exact_moved[0] > 0)
    (0.0, True)
    """
    tokens, where, laws, _ = _conflicts(encoder, model, leaves, positions, mask)
    if np.ndim(factors) != 1 or (layers is not None and np.ndim(layers) != 1):
        raise ShapeError(f"factors and layers must be lists, got {factors!r} and {layers!r}")
    doses = np.array([check_float("factors", f, 0.0, 1.0) for f in factors])
    chosen = range(encoder.config.n_layers) if layers is None else layers
    chosen = [check_int("layers", i, 0, encoder.config.n_layers - 1) for i in chosen]
    choices = np.stack([law.argmax(-1) for law in laws], axis=-1)
    block = sibling_block(model, where, height)
    row = np.arange(len(tokens))
    queries = np.zeros((len(tokens), model.n_leaves, model.n_leaves), dtype=bool)
    queries[row, where] = block
    base = log_laws(encoder, tokens, None, batch_size)[row, where]
    with np.errstate(divide="ignore"):
        exact_base = np.log(laws[1])
    found: dict[str, list[float]] = {
        name: [] for name in ("difference", "exact_difference", "kl", "moved", "exact_moved")
    }
    undefined = []
    for dose in doses:
        edits = [
            scale_attention(i, queries, float(dose), what=what, renormalise=renormalise)
            for i in chosen
        ]
        law = log_laws(
            encoder,
            tokens,
            lambda rows, edits=edits: {k: v for edit in edits for k, v in edit(rows).items()},
            batch_size,
        )[row, where]
        fields = soften(model, tokens, block, float(dose))
        with np.errstate(divide="ignore"):
            exact = np.log(model.leave_one_out(log_fields=fields, dtype="float64"))[row, where]
        odds, exact_odds = _log_odds(law, choices), _log_odds(exact, choices)
        finite = np.isfinite(odds) & np.isfinite(exact_odds)
        found["difference"].append(averaged(odds, finite)[0])
        found["exact_difference"].append(averaged(exact_odds, finite)[0])
        every = np.ones(len(tokens), dtype=bool)
        found["kl"].append(averaged(divergence(exact, law), every)[0])
        found["moved"].append(averaged(divergence(base, law), every)[0])
        found["exact_moved"].append(averaged(divergence(exact_base, exact), every)[0])
        undefined.append(int(np.isnan(divergence(exact, law)).sum()))
    arrays = {name: np.array(values) for name, values in found.items()}
    return AttentionDoses(
        factors=doses, **arrays, n_conflicts=len(tokens), undefined=np.array(undefined)
    )


def _conflicts(
    encoder: Encoder,
    model: TreeModel,
    leaves: ArrayLike,
    positions: ArrayLike,
    mask: ArrayLike | None,
) -> tuple[Array, Array, tuple[Floats, Floats], int]:
    """Rows where the choices differ: tokens (the asked leaf hidden), leaf, W_1 and BP there."""
    check_encoder(encoder)
    config = encoder.config
    if config.readout != "mlm":
        raise ArgumentError(f"encoder must have readout='mlm', got {config.readout!r}")
    check_fits(encoder, model)
    tokens, hidden = as_evidence(model, leaves, mask)
    where = as_positions("positions", positions, len(tokens), model.n_leaves)
    hidden = hidden | (where[:, None] == np.arange(model.n_leaves))
    tokens = np.where(hidden, model.vocab_size, tokens)
    found = local_and_global(model, tokens)
    row = np.arange(len(tokens))
    keep = found.conflict[row, where]
    row, at = row[keep], where[keep]
    return tokens[keep], at, (found.local[row, at], found.full[row, at]), len(tokens)


def _silenced(
    encoder: Encoder, tokens: Array, where: Array, choices: Array, batch_size: int
) -> Floats:
    """Mean change of the log-odds at the asked leaves, by (layer, head) taken away there."""
    row = np.arange(len(tokens))
    before = _log_odds(log_laws(encoder, tokens, None, batch_size)[row, where], choices)
    out = np.empty((encoder.config.n_layers, encoder.config.n_heads))
    for layer, head in np.ndindex(out.shape):
        kept = np.arange(encoder.config.n_heads) != head
        edits = replace_at(f"layers.{layer}.attention.heads", where, _times(kept[:, None]))
        law = log_laws(encoder, tokens, edits, batch_size)[row, where]
        change = _log_odds(law, choices) - before
        out[layer, head] = averaged(change, np.isfinite(change))[0]
    return out


def _times(factors: Array) -> Callable[[Any], Any]:
    return lambda x: x * x.new_tensor(factors.astype(np.float64))


def _log_odds(law: Floats, choices: Array) -> Floats:
    """ln p(first choice) - ln p(second choice), per row."""
    with np.errstate(invalid="ignore"):
        picked = np.take_along_axis(law, choices, -1)
        return np.asarray(picked[:, 0] - picked[:, 1])


def _mean(values: Array, axis: int) -> Floats:
    """NaN, not a warning, of nothing."""
    n = values.shape[axis]
    return np.asarray(values.sum(axis) / n if n else np.full(values.sum(axis).shape, np.nan))
