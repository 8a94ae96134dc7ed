"""Patching from run to run, and silencing of heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hfilter.analysis.checks import fetched
from hfilter.analysis.looking import (
    as_positions,
    as_targets,
    as_tokens,
    averaged,
    check_encoder,
    divergence,
    log_laws,
    plain,
    traced,
)
from hfilter.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike, NDArray

    from hfilter.learn.encoder import Encoder

    Floats = NDArray[np.float64]

__all__ = ["HeadAblation", "Patching", "ablate_heads", "patch_activations"]


@dataclass(frozen=True, eq=False)
class Patching:
    """Effect of putting one run's activations into another, by site and position.

    Attributes
    ----------
    sites : tuple of str
    positions : ndarray of int, shape (m,)
    kl : ndarray, shape (sites, m)
        Mean KL(base || patched) over the targets, nats: how much it moves the answer.
    restored : ndarray, shape (sites, m)
        1 - KL(donor || patched) / KL(donor || base), of means: 1 where the patch makes the answer
        the donor's, 0 where it brings it no nearer.
    distance : float
        Mean KL(donor || base).
    undefined : ndarray of int, shape (sites, m)
        Targets left out because an answer excludes everything.
    """

    sites: tuple[str, ...]
    positions: NDArray[np.int64]
    kl: Floats
    restored: Floats
    distance: float
    undefined: NDArray[np.int64]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self)


def patch_activations(
    encoder: Encoder,
    tokens: ArrayLike,
    donors: ArrayLike,
    *,
    sites: Iterable[str] | None = None,
    positions: Iterable[int] | None = None,
    targets: ArrayLike | None = None,
    batch_size: int = 512,
) -> Patching:
    """Activation patching: every site at every position takes the donor run's activation in turn.

    Parameters
    ----------
    encoder : hfilter.learn.encoder.Encoder
    tokens, donors : (n, L) integer array or tensor
        Row i of ``donors`` gives its activations to row i of ``tokens``.
    sites : list of str, optional
        The residual stream and what is added to it unless given: ``embed``, ``.attention.output``,
        ``.middle``, ``.feedforward.output``, ``.hidden``.
    positions : list of int, optional
        All unless given.
    targets : (n,) integer or (n, L) bool array, optional
        As :func:`effect`.
    batch_size : int

    Notes
    -----
    One forward pass of all rows per site and position.

    Examples
    --------
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=2))
    >>> found = patch_activations(
    ...     encoder, [[0] * 8], [[1] * 8], sites=["embed", "layers.1.hidden"], targets=[2]
    ... )
    >>> found.restored[1]
    array([0., 0., 1., 0., 0., 0., 0., 0.])
    """
    check_encoder(encoder)
    given, others = as_tokens(encoder, "tokens", tokens), as_tokens(encoder, "donors", donors)
    if given.shape != others.shape or not len(given):
        raise ShapeError(
            f"donors must have the shape of tokens, {given.shape}, and a row, got {others.shape}"
        )
    counted = as_targets(encoder, len(given), targets)
    if isinstance(sites, str):
        raise ArgumentError(f"sites must be a list of names, got the text {sites!r}")
    names = tuple(_stream_sites(encoder) if sites is None else sites)
    every = np.arange(encoder.config.n_positions)
    if positions is not None:
        every = fetched("positions", positions)
        if every.ndim != 1:
            raise ShapeError(f"positions must be a list, got shape {every.shape}")
        every = every if every.size else every.astype(np.int64)
    as_positions("positions", every, len(every), encoder.config.n_positions)
    base = log_laws(encoder, given, None, batch_size)
    moved, left, counts = np.zeros((3, len(names), len(every)))
    far = scored = 0.0
    for rows, donor, seen in traced(encoder, others, None, names, batch_size):
        pick = counted[rows]
        apart = divergence(donor, base[rows])[pick]
        far, scored = far + np.nansum(apart), scored + (~np.isnan(apart)).sum()
        for s, p in np.ndindex(counts.shape):
            edits = {names[s]: _at(int(every[p]), seen[names[s]])}
            law = log_laws(encoder, given[rows], edits, batch_size)
            # A donor without an answer says nothing of the patch either.
            to_base, to_donor = divergence(base[rows], law)[pick], divergence(donor, law)[pick]
            good = ~(np.isnan(to_base) | np.isnan(to_donor))
            moved[s, p] += to_base[good].sum()
            left[s, p] += to_donor[good].sum()
            counts[s, p] += good.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = float(far / scored) if scored else float("nan")
        kl, restored = moved / counts, 1.0 - left / counts / distance
    undefined = counted.sum() - counts.astype(np.int64)
    return Patching(names, every, kl, restored, distance, undefined)


@dataclass(frozen=True, eq=False)
class HeadAblation:
    """Effect of silencing each attention head.

    Attributes
    ----------
    how : str
    kl, kl_se : ndarray, shape (layers, heads)
        Mean KL(whole || ablated) over the targets, nats, and its standard error over rows.
    cross_entropy : ndarray, shape (layers, heads), or None
        Of the ablated network on the truth, where that was given.
    base_cross_entropy : float or None
    undefined : ndarray of int, shape (layers, heads)
        Targets left out because the ablated network excludes everything.
    """

    how: str
    kl: Floats
    kl_se: Floats
    cross_entropy: Floats | None
    base_cross_entropy: float | None
    undefined: NDArray[np.int64]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self)


def ablate_heads(
    encoder: Encoder,
    tokens: ArrayLike,
    *,
    how: Literal["zero", "mean"] = "zero",
    targets: ArrayLike | None = None,
    truth: ArrayLike | None = None,
    batch_size: int = 512,
) -> HeadAblation:
    """Replace the output of each head by zeros, or by its mean over all rows at that position.

    Parameters
    ----------
    encoder : hfilter.learn.encoder.Encoder
    tokens : (n, L) integer array or tensor
    how : {"zero", "mean"}
    targets : (n,) integer or (n, L) bool array, optional
        As :func:`effect`.
    truth : (n, L) or (n,) integer array, optional
        Leaves or roots, for the cross-entropy on the targets.
    batch_size : int

    Examples
    --------
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=2, n_heads=4))
    >>> ablate_heads(encoder, np.zeros((3, 8), dtype=int)).kl.shape
    (2, 4)
    """
    check_encoder(encoder)
    if how not in ("zero", "mean"):
        raise ArgumentError(f"how must be 'zero' or 'mean', got {how!r}")
    given = as_tokens(encoder, "tokens", tokens)
    counted = as_targets(encoder, len(given), targets)
    answers = None if truth is None else _checked_truth(truth, counted.shape, encoder)
    layers, heads = encoder.config.n_layers, encoder.config.n_heads
    names = [f"layers.{i}.attention.heads" for i in range(layers)]
    means: dict[str, Any] = dict.fromkeys(names, 0.0)
    if how == "mean":
        for _, _, seen in traced(encoder, given, None, names, batch_size):
            means = {name: means[name] + seen[name].sum(0) / len(given) for name in names}
    base = log_laws(encoder, given, None, batch_size)
    kl, error, entropy = np.empty((3, layers, heads))
    undefined = np.zeros((layers, heads), dtype=np.int64)
    for i, name in enumerate(names):
        for h in range(heads):
            law = log_laws(encoder, given, {name: _silent(h, means[name])}, batch_size)
            kl[i, h], error[i, h], undefined[i, h] = averaged(divergence(base, law), counted)
            if answers is not None:
                entropy[i, h] = averaged(_surprise(law, answers), counted)[0]
    return HeadAblation(
        how,
        kl,
        error,
        None if answers is None else entropy,
        None if answers is None else averaged(_surprise(base, answers), counted)[0],
        undefined,
    )


def _stream_sites(encoder: Encoder) -> list[str]:
    """The residual stream and what is added to it."""
    inner = ("queries", "keys", "values", "scores", "weights", "heads")
    unwanted = (*(f"attention.{name}" for name in inner), "feedforward.hidden", "final")
    return [name for name in encoder.sites() if not name.endswith(unwanted)]


def _at(position: int, donor: Any) -> Callable[[Any], Any]:
    """Take the donor's activation at one position (the query, for weights and scores)."""

    def change(x: Any) -> Any:
        out = x.clone()
        out[..., position, :] = donor[..., position, :]
        return out

    return change


def _silent(head: int, mean: Any) -> Callable[[Any], Any]:
    def change(x: Any) -> Any:
        out = x.clone()
        out[:, head] = mean if isinstance(mean, float) else mean[head]
        return out

    return change


def _checked_truth(truth: ArrayLike, shape: tuple[int, ...], encoder: Encoder) -> NDArray[Any]:
    answers = fetched("truth", truth)
    top = encoder.config.n_outputs
    if answers.shape != shape or answers.dtype.kind not in "iu":
        raise ShapeError(
            f"truth must be integers of shape {shape}, got {answers.dtype} {answers.shape}"
        )
    if answers.size and not (answers.min() >= 0 and answers.max() < top):
        raise ArgumentError(
            f"truth must be in 0 … {top - 1}, got {answers.min()} … {answers.max()}"
        )
    return answers


def _surprise(law: Floats, answers: NDArray[Any]) -> Floats:
    return np.asarray(-np.take_along_axis(law, answers[..., None].astype(np.int64), -1)[..., 0])
