"""A network under examination: no dropout, no gradient, batch by batch, laws in float64.

What the files about attention and interventions share. torch is imported inside functions only.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.analysis.checks import as_integers, fetched
from hfilter.checks import check_int
from hfilter.errors import ArgumentError, DTypeError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from hfilter.learn.encoder import Encoder

    Array = NDArray[Any]
    Floats = NDArray[np.float64]
    Edits = Mapping[str, Any] | Callable[[slice], Mapping[str, Any]]


def check_encoder(encoder: Any) -> None:
    """Raise unless it is an encoder with named activations."""
    if not all(hasattr(encoder, name) for name in ("trace", "sites", "decode", "config")):
        raise DTypeError(
            "encoder must be a hfilter.learn.encoder.Encoder (with trace and sites), got "
            f"{type(encoder).__name__}; a function of tokens has no inside to look at"
        )


@contextmanager
def examined(encoder: Encoder) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back afterwards."""
    import torch

    modes = [(module, module.training) for module in encoder.modules()]
    try:
        encoder.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def traced(
    encoder: Encoder,
    tokens: Array,
    edits: Edits | None = None,
    names: Iterable[str] = (),
    batch_size: int = 512,
) -> Iterator[tuple[slice, Floats, dict[str, Any]]]:
    """Rows, ln of the network's laws, and activations, batch by batch.

    ``edits`` may be a function of the rows of a batch, for edits that differ between rows.
    """
    import torch

    batch_size = check_int("batch_size", batch_size, 1)
    names = tuple(names)
    device = next(encoder.parameters()).device
    for start in range(0, max(len(tokens), 1), batch_size):  # an empty batch names wrong sites too
        rows = slice(start, min(start + batch_size, len(tokens)))
        part = torch.as_tensor(np.ascontiguousarray(tokens[rows]), device=device)
        now = edits(rows) if callable(edits) else edits
        with examined(encoder):
            logits, seen = encoder.trace(part, edits=now, names=names)
            law = logits.double().log_softmax(-1).cpu().numpy()
        yield rows, law, seen


def log_laws(
    encoder: Encoder, tokens: Array, edits: Edits | None = None, batch_size: int = 512
) -> Floats:
    """ln of the network's laws, (n, L, q) or (n, n_classes); NaN rows where it has none."""
    return np.concatenate([law for _, law, _ in traced(encoder, tokens, edits, (), batch_size)])


def as_tokens(encoder: Encoder, name: str, given: Any) -> Array:
    """Tokens as an (n, L) integer array."""
    tokens = as_integers(name, given)
    length = encoder.config.n_leaves
    if tokens.ndim != 2 or tokens.shape[1] != length:
        raise ShapeError(f"{name} must have shape (n, {length}), got {tokens.shape}")
    top = encoder.config.n_embedded - 1
    if tokens.size and not (tokens.min() >= 0 and tokens.max() <= top):
        raise ArgumentError(
            f"{name} must be in 0 … {top} (readout {encoder.config.readout!r}), got "
            f"{tokens.min()} … {tokens.max()}"
        )
    return tokens.astype(np.int64)


def as_positions(name: str, given: Any, n: int, n_leaves: int) -> Array:
    """One leaf per row, (n,)."""
    where = as_integers(name, given)
    if where.shape != (n,):
        raise ShapeError(f"{name} must have shape ({n},), one leaf per row, got {where.shape}")
    if n and not (where.min() >= 0 and where.max() < n_leaves):
        raise ArgumentError(
            f"{name} must be in 0 … {n_leaves - 1}, got {where.min()} … {where.max()}"
        )
    return where


def as_targets(encoder: Encoder, n: int, given: Any) -> NDArray[np.bool_]:
    """Which outputs count: (n, L), or (n,) for the root; all, one leaf per row, or a mask."""
    length = encoder.config.n_leaves
    if encoder.config.readout == "root":
        if given is not None:
            raise ArgumentError("targets are leaves; leave them out for readout='root'")
        return np.ones(n, dtype=bool)
    if given is None:
        return np.ones((n, length), dtype=bool)
    array = fetched("targets", given)
    if array.dtype == np.bool_:
        if array.shape != (n, length):
            raise ShapeError(f"targets, if bool, must have shape {(n, length)}, got {array.shape}")
        return array
    return np.asarray(as_positions("targets", array, n, length)[:, None] == np.arange(length))


def divergence(log_p: Floats, log_q: Floats) -> Floats:
    """KL(p || q) over the last axis, nats; infinite where q excludes what p does not, NaN of NaN."""
    with np.errstate(invalid="ignore"):
        terms = np.where(log_p > -np.inf, np.exp(log_p) * (log_p - log_q), 0.0)
    missing = np.isnan(log_p).any(-1) | np.isnan(log_q).any(-1)
    return np.asarray(np.where(missing, np.nan, terms.sum(-1)))


def averaged(values: Floats, targets: NDArray[np.bool_]) -> tuple[float, float, int]:
    """Mean over targets, its standard error over rows, and how many targets were NaN (left out)."""
    good = targets & ~np.isnan(values)
    axes = tuple(range(1, values.ndim))
    counts = good.sum(axis=axes).astype(np.float64)
    sums = np.where(good, values, 0.0).sum(axis=axes)
    total = counts.sum()
    undefined = int(targets.sum() - total)
    if total == 0:
        return float("nan"), float("nan"), undefined
    mean = float(sums.sum() / total)
    n = len(values)
    if n < 2 or not np.isfinite(mean):
        return mean, float("nan"), undefined
    error = np.sqrt(((sums - mean * counts) ** 2).sum() * n / (n - 1)) / total
    return mean, float(error), undefined


def plain(record: Any) -> dict[str, Any]:
    """Fields of a dataclass as plain numbers, lists and texts, ready for JSON."""

    def simple(x: Any) -> Any:
        if isinstance(x, (np.ndarray, np.generic)):
            return x.tolist()
        return list(x) if isinstance(x, tuple) else x

    return {field.name: simple(getattr(record, field.name)) for field in fields(record)}
