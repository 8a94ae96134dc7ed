"""The interface of all predictors, and what those that compute in NumPy share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import Wrap, allocate, as_numpy, value_type
from hfilter.checks import check_float, check_int
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.evidence import Evidence, check_evidence
from hfilter.tree import TreeStructure

__all__ = ["HostPredictor", "Predictor", "Sizes", "fields_of", "include_evidence", "noisy_fields"]

Floats = NDArray[np.float64]

BLOCK_VALUES = 2**20  # numbers of one array held at once: 8 MB


@runtime_checkable
class Predictor(Protocol):
    """What an analysis asks of a predictor, be it an oracle or a trained network.

    A leaf is hidden where `mask` is true or the token is ``vocab_size`` (the mask token).

    - At a hidden leaf the prediction is its law given the visible leaves.
    - At a visible leaf it is the *leave-one-out* law, given the other visible leaves: its own token
      plays no part. Without a mask this is single-mask language modelling at every position.

    Both are one formula, "given all evidence but that of the leaf itself". `include_evidence` turns
    it into the posterior with that evidence. A row of NaN means that the evidence is impossible
    for this predictor.
    """

    def predict(self, leaves: Any, mask: Any = None) -> Any:
        """P(x_j | visible leaves other than j), shape (n, L, q), of the library of `leaves`."""
        ...

    def predict_root(self, leaves: Any, mask: Any = None) -> Any:
        """P(root | visible leaves), shape (n, n_classes)."""
        ...


@dataclass(frozen=True)
class Sizes:
    """As much of a tree as a question about leaves needs."""

    n_leaves: int
    vocab_size: int

    @property
    def mask_token(self) -> int:
        return self.vocab_size


class HostPredictor(ABC):
    """Checks a question once, answers it block by block in NumPy, and wraps what comes out.

    Results for tensors of a device are computed on the host and sent back there. Peak memory beyond
    arguments and results does not grow with the number of rows.
    """

    def __init__(self, sizes: TreeStructure | Sizes, n_classes: int, dtype: Any) -> None:
        self._sizes = cast(TreeStructure, sizes)
        self.n_leaves = sizes.n_leaves
        self.vocab_size = sizes.vocab_size
        self.n_classes = n_classes
        self.dtype = value_type(dtype)

    def predict(self, leaves: Any = None, mask: Any = None, *, log_fields: Any = None) -> Any:
        """P(x_j | all evidence but that of leaf j), shape (n, L, q); see `Predictor`.

        Parameters
        ----------
        leaves : array_like of int, shape (n, L)
            Tokens; ``vocab_size`` stands for a hidden leaf.
        mask : array_like of bool, shape (n, L), optional
            True = hidden.
        log_fields : array_like of float, shape (n, L, q)
            Instead of `leaves`: ln of the likelihood of every symbol at every leaf, in nats.

        Returns
        -------
        array, shape (n, L, q)
            Of the library the evidence came in; NaN where the other evidence is impossible.

        Raises
        ------
        hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
            For evidence that is none.
        """
        return self._answer(
            (leaves, mask, log_fields), (self.n_leaves, self.vocab_size), self._leaf_block
        )

    def predict_root(self, leaves: Any = None, mask: Any = None, *, log_fields: Any = None) -> Any:
        """P(root | evidence), shape (n, n_classes); arguments as in `predict`."""
        return self._answer((leaves, mask, log_fields), (self.n_classes,), self._root_block)

    def _answer(self, question: tuple[Any, Any, Any], row: tuple[int, ...], block: Any) -> Any:
        evidence, n, wrap = host_evidence(self._sizes, *question)
        out = allocate((n, *row), self.dtype)
        step = max(1, BLOCK_VALUES // (self.n_leaves * self.vocab_size))
        for begin in range(0, n, step):
            part = slice(begin, min(begin + step, n))
            out[part] = block(evidence.rows(part))
        return wrap(out)

    @abstractmethod
    def _leaf_block(self, evidence: Evidence) -> NDArray[Any]:
        """The answer of `predict` for some rows."""

    @abstractmethod
    def _root_block(self, evidence: Evidence) -> NDArray[Any]:
        """The answer of `predict_root` for some rows."""


def host_evidence(
    sizes: TreeStructure | Sizes, leaves: Any, mask: Any, log_fields: Any
) -> tuple[Evidence, int, Wrap]:
    """Checked evidence as NumPy arrays, and what sends a result to where the evidence was."""
    device = None
    arrays = []
    for x in (leaves, mask, log_fields):
        if type(x).__module__.partition(".")[0] == "torch" and x.device.type != "cpu":
            device, x = x.device, x.cpu()
        arrays.append(x)
    evidence, n, wrap = check_evidence(cast(TreeStructure, sizes), *arrays)
    if device is None:
        return evidence, n, wrap
    return evidence, n, lambda result: wrap(result).to(device)


def hidden_leaves(evidence: Evidence, mask_token: int) -> NDArray[np.bool_]:
    """Which leaves of a question in tokens are hidden, (n, L)."""
    assert evidence.tokens is not None
    hidden: NDArray[np.bool_] = evidence.tokens == mask_token
    return hidden if evidence.mask is None else hidden | evidence.mask


def fields_of(evidence: Evidence, q: int, noise: float = 0.0) -> Floats:
    """Any evidence as log fields (n, L, q) in double precision, tokens through the noise channel."""
    if evidence.log_fields is not None:
        return evidence.log_fields.astype(np.float64)
    assert evidence.tokens is not None
    hidden = hidden_leaves(evidence, q)
    with np.errstate(divide="ignore"):
        here, other = np.log(1.0 - noise + noise / q), np.log(np.float64(noise / q))
    seen = evidence.tokens[..., None] == np.arange(q)
    return np.where(hidden[..., None], 0.0, np.where(seen, here, other))


def noisy_fields(leaves: Any, vocab_size: int, noise: float, mask: Any = None) -> Any:
    """Log fields of tokens that were seen through uniform noise.

    With probability `noise` the token was replaced by a uniform one: the likelihood of symbol b is
    ``(1 - noise) [b = token] + noise / q``. A hidden leaf has equal fields.

    Parameters
    ----------
    leaves : array_like of int, shape (n, L)
        Tokens; `vocab_size` stands for a hidden leaf.
    vocab_size : int
    noise : float
        From 0 (tokens are certain: fields 0 and -inf) to 1 (they say nothing).
    mask : array_like of bool, shape (n, L), optional

    Returns
    -------
    array of float64, shape (n, L, q)
        In nats, of the library of `leaves`: `log_fields` for `TreeModel` and the oracles.

    Examples
    --------
    >>> import numpy as np
    >>> np.exp(noisy_fields([[1, 2]], 2, 0.25)).round(3).tolist()
    [[[0.125, 0.875], [1.0, 1.0]]]
    """
    q = check_int("vocab_size", vocab_size, 1)
    level = check_float("noise", noise, 0.0, 1.0)
    shape = getattr(leaves, "shape", None) or np.shape(leaves)
    if len(shape) != 2:
        raise ShapeError(f"leaves must have shape (n, n_leaves), got {tuple(shape)}")
    evidence, _, wrap = host_evidence(Sizes(int(shape[1]), q), leaves, mask, None)
    return wrap(fields_of(evidence, q, level))


def include_evidence(law: Any, log_fields: Any) -> Any:
    """The posterior of every leaf with its own evidence: law times field, normalised.

    Parameters
    ----------
    law : array_like of float, shape (…, q)
        What `Predictor.predict` gives.
    log_fields : array_like of float, shape (…, q)
        The evidence in nats; for tokens see `noisy_fields`.

    Returns
    -------
    array of float64, shape (…, q)
        NaN where law and evidence exclude each other, or the law is NaN.

    Examples
    --------
    The belief of a leaf is its leave-one-out law times its own field:

    >>> import hfilter, numpy as np
    >>> model = hfilter.TreeModel(hfilter.Grammar.dense(3, 1.0, 0), depth=2)
    >>> fields = noisy_fields([[0, 1, 2, 3]], 3, 0.2)
    >>> law = model.leave_one_out(log_fields=fields, dtype="float64")
    >>> belief = model.infer(log_fields=fields, dtype="float64").leaves
    >>> bool(np.allclose(include_evidence(law, fields), belief, atol=1e-14))
    True
    """
    p, wrap = float_rows("law", law)
    fields, _ = float_rows("log_fields", log_fields)
    if p.shape != fields.shape:
        raise ShapeError(f"log_fields must have the shape of law, {p.shape}, got {fields.shape}")
    with np.errstate(divide="ignore"):
        return wrap(softmax(np.log(p) + fields))


def float_rows(name: str, x: Any) -> tuple[Floats, Wrap]:
    """Floating-point numbers of shape (…, q) in double precision."""
    device = None
    if type(x).__module__.partition(".")[0] == "torch" and x.device.type != "cpu":
        device, x = x.device, x.cpu()
    array, wrap = as_numpy(name, x)
    if array.dtype.kind != "f":
        raise DTypeError(f"{name} must be floating-point, got {array.dtype}")
    if array.ndim < 1 or array.shape[-1] < 1:
        raise ShapeError(f"{name} must have shape (…, q), got {array.shape}")
    values = array.astype(np.float64)
    return (values, wrap) if device is None else (values, lambda r: wrap(r).to(device))


def probability_rows(name: str, x: Any) -> tuple[Floats, Wrap]:
    """As `float_rows`, of numbers that are probabilities: each row sums to 1, or is NaN."""
    p, wrap = float_rows(name, x)
    known = ~np.isnan(p).any(axis=-1)
    if p[known].size:
        off = np.abs(p[known].sum(axis=-1) - 1.0).max()
        if not (p[known].min() >= 0.0 and off <= 1e-3):
            raise ArgumentError(
                f"{name} must hold probabilities that sum to 1 along the last axis (off by up to "
                f"{off:.3g}, smallest {p[known].min():.3g}); take the softmax of logits first"
            )
    return p, wrap


def softmax(logits: Floats) -> Floats:
    """Along the last axis; NaN where every entry is -inf."""
    top = logits.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weights = np.exp(logits - top)
        out: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return out
