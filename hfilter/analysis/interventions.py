"""Interventions on a network: what is changed inside, and what its answers do.

Every tool takes an encoder with named activations (:meth:`Encoder.trace`). The exact effects to
hold them against are in :mod:`hfilter.analysis.mechanisms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hfilter.analysis.checks import as_reals, fetched
from hfilter.analysis.looking import (
    as_targets,
    as_tokens,
    averaged,
    check_encoder,
    divergence,
    examined,
    log_laws,
    plain,
    traced,
)
from hfilter.analysis.patching import HeadAblation, Patching, ablate_heads, patch_activations
from hfilter.checks import check_float, check_int
from hfilter.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from hfilter.analysis.looking import Edits
    from hfilter.learn.encoder import Encoder

    Floats = NDArray[np.float64]

__all__ = [
    "Effect",
    "HeadAblation",
    "LogitLens",
    "Patching",
    "ablate_heads",
    "effect",
    "logit_lens",
    "patch_activations",
    "replace_at",
    "scale_attention",
]


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What the read-out makes of the stream as it leaves the embedding and every layer.

    Attributes
    ----------
    sites : tuple of str
        ``embed``, ``layers.0.hidden``, …
    log_probabilities : ndarray, shape (sites, n, L, q) or (sites, n, n_classes)
        The last is the network's own answer. A row of NaN where a read-out excludes everything.
    """

    sites: tuple[str, ...]
    log_probabilities: Floats

    def kl(self, reference: ArrayLike) -> Floats:
        """KL(reference || lens) of every site, in nats.

        Parameters
        ----------
        reference : (n, L, q) or (n, n_classes) array of probabilities
            Such as ``model.leave_one_out``, or ``model.windowed`` of some height.

        Returns
        -------
        ndarray, shape (sites, n, L) or (sites, n)
        """
        law = as_reals("reference", reference)
        if law.shape != self.log_probabilities.shape[1:]:
            raise ShapeError(
                f"reference must have shape {self.log_probabilities.shape[1:]}, got {law.shape}"
            )
        good = law[~np.isnan(law).any(-1)]
        if good.size and not (good.min() >= 0 and np.abs(good.sum(-1) - 1.0).max() < 1e-3):
            raise ArgumentError(
                "reference must be probabilities, rows at least 0 that sum to 1 or NaN as a whole; "
                "are these logits? take the softmax first"
            )
        with np.errstate(divide="ignore"):
            return divergence(np.log(law)[None], self.log_probabilities)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self)


def logit_lens(encoder: Encoder, tokens: ArrayLike, *, batch_size: int = 512) -> LogitLens:
    """The read-out (after the final norm, if there is one) applied to every layer's output.

    A :class:`hfilter.analysis.construction.ConstructedTransformer` has no answer (NaN) before its
    last layer: what its read-out reads is not written yet.

    Parameters
    ----------
    encoder : hfilter.learn.encoder.Encoder
    tokens : (n, L) integer array or tensor
    batch_size : int

    Examples
    --------
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=2))
    >>> lens = logit_lens(encoder, np.zeros((3, 8), dtype=int))
    >>> lens.sites, lens.log_probabilities.shape
    (('embed', 'layers.0.hidden', 'layers.1.hidden'), (3, 3, 8, 4))
    """
    check_encoder(encoder)
    given = as_tokens(encoder, "tokens", tokens)
    sites = ("embed", *(f"layers.{i}.hidden" for i in range(encoder.config.n_layers)))
    parts = []
    for _, _, seen in traced(encoder, given, None, sites, batch_size):
        with examined(encoder):
            read = [encoder.decode(seen[name]).double().log_softmax(-1) for name in sites]
        parts.append(np.stack([law.cpu().numpy() for law in read]))
    return LogitLens(sites, np.concatenate(parts, axis=1))


def replace_at(site: str, positions: ArrayLike, value: Any) -> Callable[[slice], dict[str, Any]]:
    """Edits that change one activation at one position per row.

    Parameters
    ----------
    site : str
        Any activation with a position axis: all but ``.scores`` and ``.weights`` [n, P, d] or
        [n, heads, P, d]; of those two, the position is the query.
    positions : (n,) integer array
        One position per row.
    value : tensor, number, or function
        What takes the place of the (rows, …, d) numbers at those positions (broadcast), or a
        function of them.

    Returns
    -------
    function
        From a slice of rows to edits, as :func:`effect` takes.

    Examples
    --------
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=2))
    >>> tokens = np.zeros((3, 8), dtype=int)
    >>> edits = replace_at("layers.1.attention.output", [0, 1, 2], 0.0)
    >>> moved = effect(encoder, tokens, edits)
    >>> (moved.kl_each > 0).astype(int)
    array([[1, 0, 0, 0, 0, 0, 0, 0],
           [0, 1, 0, 0, 0, 0, 0, 0],
           [0, 0, 1, 0, 0, 0, 0, 0]])
    """
    where = fetched("positions", positions)
    if where.ndim != 1 or where.dtype.kind not in "iu":
        raise ShapeError(
            f"positions must be integers of shape (n,), got {where.dtype} {where.shape}"
        )

    def edits(rows: slice) -> dict[str, Any]:
        import torch

        def change(x: Any) -> Any:
            if len(where[rows]) != len(x):
                raise ShapeError(
                    f"positions must have one entry per row of tokens, got {len(where)}"
                )
            here = torch.as_tensor(where[rows], device=x.device)
            if len(x) and not (int(here.min()) >= 0 and int(here.max()) < x.shape[-2]):
                raise ArgumentError(f"positions must be in 0 … {x.shape[-2] - 1} at {site!r}")
            row = torch.arange(len(x), device=x.device)
            out = x.clone()
            old = x[row, ..., here, :]
            out[row, ..., here, :] = _fitting(value(old) if callable(value) else value, old)
            return out

        return {site: change}

    return edits


def _fitting(value: Any, old: Any) -> Any:
    """A tensor, array or number in the shape and type of what it replaces."""
    import torch

    if not isinstance(value, torch.Tensor):
        value = torch.from_numpy(as_reals("value", value).copy())
    try:
        return value.to(old).expand(old.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"value must have shape {tuple(old.shape)} or broadcast to it, got {tuple(value.shape)}"
        ) from error


def scale_attention(
    layer: int,
    where: ArrayLike,
    factor: float,
    *,
    head: int | None = None,
    what: Literal["weights", "scores"] = "weights",
    renormalise: bool = True,
) -> Callable[[slice], dict[str, Any]]:
    """Edits that multiply some attention by a factor; 0 cuts it.

    Parameters
    ----------
    layer : int
    where : (P, P) or (n, P, P) bool array
        True where attention of query (row) to key (column) is changed, such as
        ``ideal_attention(depth, height) > 0``.
    factor : float
        At least 0.
    head : int, optional
        One head; all unless given.
    what : {"weights", "scores"}
        Attention after the softmax, or the scores before it.
    renormalise : bool
        Divide changed rows of ``"weights"`` by their sum, so that the rest takes over what is
        taken away. A row without any rest stays zero.

    Returns
    -------
    function
        From a slice of rows to edits, as :func:`effect` takes.

    Raises
    ------
    hfilter.errors.ArgumentError, hfilter.errors.ShapeError
        For numbers out of range, or a ``where`` that is not bool or not square.

    Examples
    --------
    >>> from hfilter.analysis.attention import ideal_attention
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=2))
    >>> cut = scale_attention(0, ideal_attention(3, 1) > 0, 0.0)
    >>> effect(encoder, np.zeros((3, 8), dtype=int), cut).kl > 0
    True
    """
    layer = check_int("layer", layer, 0)
    chosen = fetched("where", where)
    if (
        chosen.dtype != np.bool_
        or chosen.ndim not in (2, 3)
        or chosen.shape[-1] != chosen.shape[-2]
    ):
        raise ShapeError(
            f"where must be bool of shape (P, P) or (n, P, P), got {chosen.dtype} {chosen.shape}"
        )
    factor = check_float("factor", factor, 0.0)
    if head is not None:
        head = check_int("head", head, 0)
    if what not in ("weights", "scores"):
        raise ArgumentError(f"what must be 'weights' or 'scores', got {what!r}")

    def edits(rows: slice) -> dict[str, Any]:
        import torch

        def change(x: Any) -> Any:
            part = chosen if chosen.ndim == 2 else chosen[rows][:, None]
            if part.shape[-1] != x.shape[-1] or (part.ndim > 2 and len(part) != len(x)):
                raise ShapeError(
                    f"where must fit {x.shape[-1]} positions, and have one map or one per row of "
                    f"tokens, got shape {chosen.shape}"
                )
            pick = torch.as_tensor(part, device=x.device).expand(x.shape)
            if head is not None:
                if head >= x.shape[1]:
                    raise ArgumentError(f"head must be in 0 … {x.shape[1] - 1}, got {head}")
                pick = pick & (torch.arange(x.shape[1], device=x.device) == head)[:, None, None]
            scaled = torch.where(pick, x * factor, x)
            if factor == 1 or what == "scores" or not renormalise:
                return scaled
            total = scaled.sum(-1, keepdim=True)
            touched = pick.any(-1, keepdim=True) & (total > 0)
            return torch.where(touched, scaled / torch.where(touched, total, 1.0), scaled)

        return {f"layers.{layer}.attention.{what}": change}

    return edits


@dataclass(frozen=True, eq=False)
class Effect:
    """A network's answers before and after an intervention.

    Attributes
    ----------
    before, after : ndarray, shape (n, L, q) or (n, n_classes)
        Probabilities.
    kl_each : ndarray, shape (n, L) or (n,)
        KL(before || after), nats; NaN where either excludes everything.
    kl, kl_se : float
        Mean over the targets, and its standard error over rows.
    undefined : int
        Targets left out of the mean because of NaN.
    """

    before: Floats
    after: Floats
    kl_each: Floats
    kl: float
    kl_se: float
    undefined: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self)


def effect(
    encoder: Encoder,
    tokens: ArrayLike,
    edits: Edits,
    *,
    targets: ArrayLike | None = None,
    batch_size: int = 512,
) -> Effect:
    """Run a network twice, as it is and with edits.

    Parameters
    ----------
    encoder : hfilter.learn.encoder.Encoder
    tokens : (n, L) integer array or tensor
    edits : mapping, or function from a slice of rows to a mapping
        As :meth:`Encoder.trace` takes them.
    targets : (n,) integer or (n, L) bool array, optional
        The outputs that count: one leaf per row, or a mask; all unless given. Not for the root.
    batch_size : int

    Examples
    --------
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=2))
    >>> effect(encoder, np.zeros((3, 8), dtype=int), {"layers.0.attention.output": 0.0}).kl > 0
    True
    """
    check_encoder(encoder)
    given = as_tokens(encoder, "tokens", tokens)
    counted = as_targets(encoder, len(given), targets)
    before = log_laws(encoder, given, None, batch_size)
    after = log_laws(encoder, given, edits, batch_size)
    each = divergence(before, after)
    return Effect(np.exp(before), np.exp(after), each, *averaged(each, counted))
