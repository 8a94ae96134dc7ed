"""`MixtureK`: the Bayes posterior when rows come from several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.evidence import Evidence
from hfilter.exact import TreeModel

from .bp import check_model
from .interface import BLOCK_VALUES, Floats, HostPredictor, hidden_leaves

__all__ = ["MixtureK"]

_RARE = -600.0  # ln of a probability above which a quotient of probabilities loses nothing


class MixtureK(HostPredictor):
    """The posterior of an observer who knows only with what probability a row is of which model.

    The optimum for training sets that mix filter levels: with Z_k the probability of the evidence
    under model k, ``P(y | x) = Σ_k w_k Z_k(x) P_k(y | x) / Σ_k w_k Z_k(x)``. For the law of a leaf
    x is the evidence of all others.

    Parameters
    ----------
    models : sequence of TreeModel
        With as many leaves, leaf symbols and classes each; e.g. ``[model.filtered(k) for k in …]``.
    weights : array_like of float, shape (len(models),), optional
        Probability w_k of each model; equal by default.
    dtype : "float64" or "float32"

    Notes
    -----
    Z_k without leaf j is Z_k / P_k(x_j | the others), from one pair of passes for all leaves; where
    that quotient is zero by zero, a further upward pass with leaf j hidden gives it.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> levels = MixtureK([model.filtered(k) for k in range(4)])
    >>> leaves = model.filtered(3).sample(3, seed=0).leaves
    >>> levels.predict(leaves).shape, levels.predict_component(leaves).shape
    ((3, 8, 4), (3, 4))
    """

    def __init__(
        self, models: Sequence[TreeModel], weights: Any = None, *, dtype: Any = "float64"
    ) -> None:
        if not isinstance(models, (list, tuple)) or not models:
            raise ArgumentError(
                f"models must be a non-empty list or tuple of TreeModel, got {type(models).__name__}"
            )
        self.models = tuple(check_model(f"models[{i}]", m) for i, m in enumerate(models))
        first = self.models[0]
        super().__init__(first, first.n_classes, dtype)
        wanted = (self.n_leaves, self.vocab_size, self.n_classes)
        for i, m in enumerate(self.models):
            got = (m.n_leaves, m.vocab_size, m.n_classes)
            if got != wanted:
                raise ArgumentError(
                    f"models must agree in (n_leaves, vocab_size, n_classes); models[0] has {wanted}, "
                    f"models[{i}] has {got}"
                )
        self.weights = _check_weights(weights, len(self.models))
        with np.errstate(divide="ignore"):
            self._log_weights = np.log(self.weights)

    def predict_component(
        self, leaves: Any = None, mask: Any = None, *, log_fields: Any = None
    ) -> Any:
        """P(model k | evidence), shape (n, len(models)): how far a row tells its filter level.

        Arguments as in `predict`; NaN where no model can produce the evidence.
        """
        question = (leaves, mask, log_fields)
        return self._answer(question, (len(self.models),), self._component_block)

    def _component_block(self, evidence: Evidence) -> Floats:
        evidence = _centred(evidence)
        joint = [m.log_prob(**_asked(evidence), dtype="float64") for m in self.models]
        return _normalised(np.stack(joint) + self._log_weights[:, None]).T

    def _root_block(self, evidence: Evidence) -> Floats:
        share = self._component_block(evidence).T
        laws = [m.root_posterior(**_asked(evidence), dtype="float64") for m in self.models]
        return _mixed(share, laws)

    def _leaf_block(self, evidence: Evidence) -> Floats:
        evidence = _centred(evidence)
        laws, joint = [], []
        for model in self.models:
            law = model.leave_one_out(**_asked(evidence), dtype="float64")
            laws.append(law)
            joint.append(_evidence_of_others(model, evidence, law))
        return _mixed(_normalised(np.stack(joint) + self._log_weights[:, None, None]), laws)


def _asked(evidence: Evidence) -> dict[str, Any]:
    return {"leaves": evidence.tokens, "mask": evidence.mask, "log_fields": evidence.log_fields}


def _centred(evidence: Evidence) -> Evidence:
    """Fields with their largest value at 0: an offset is the same for all models, and costs digits."""
    if evidence.log_fields is None:
        return evidence
    fields = evidence.log_fields.astype(np.float64)
    top = fields.max(axis=2, keepdims=True)
    return Evidence(log_fields=fields - np.where(np.isneginf(top), 0.0, top))


def _normalised(joint: Floats) -> Floats:
    """Logs over their sum along the first axis; NaN where all are -inf."""
    peak = joint.max(axis=0)
    with np.errstate(invalid="ignore"):
        weights = np.exp(joint - peak)
        out: Floats = weights / weights.sum(axis=0)
    return out


def _mixed(share: Floats, laws: list[Floats]) -> Floats:
    """Σ_k share_k law_k, where a law that is NaN has no share, unless all are."""
    total = np.zeros(laws[0].shape)
    for part, law in zip(share, laws, strict=True):
        total += part[..., None] * np.where(part[..., None] == 0.0, 0.0, law)
    return total


def _evidence_of_others(model: TreeModel, evidence: Evidence, law: Floats) -> Floats:
    """ln P(evidence but that of leaf j) for every leaf, (n, L), given the leave-one-out law."""
    with np.errstate(divide="ignore"):
        if evidence.tokens is not None:
            hidden = hidden_leaves(evidence, model.mask_token)
            token = np.where(hidden, 0, evidence.tokens).astype(np.intp)
            seen = np.take_along_axis(law, token[..., None], axis=2)[..., 0]
            own = np.log(np.where(hidden, 1.0, seen))
        else:
            assert evidence.log_fields is not None
            own = np.log((law * np.exp(evidence.log_fields)).sum(axis=2))
    rare = own < _RARE
    impossible = np.isnan(law[..., 0])  # the other leaves are
    row, leaf = np.nonzero(rare & ~impossible)
    out: Floats = np.full(own.shape, -np.inf)
    plain = ~rare & ~impossible
    whole = np.broadcast_to(model.log_prob(**_asked(evidence), dtype="float64")[:, None], own.shape)
    out[plain] = whole[plain] - own[plain]
    step = max(1, BLOCK_VALUES // (model.n_leaves * model.vocab_size))
    for begin in range(0, len(row), step):
        part = slice(begin, begin + step)
        some = _without(evidence.rows(row[part]), leaf[part])
        out[row[part], leaf[part]] = model.log_prob(**_asked(some), dtype="float64")
    return out


def _without(evidence: Evidence, leaf: NDArray[np.intp]) -> Evidence:
    """Copies of rows, each with the evidence of one leaf taken out."""
    each = np.arange(len(leaf))
    if evidence.log_fields is not None:
        fields = evidence.log_fields.copy()
        fields[each, leaf] = 0.0
        return Evidence(log_fields=fields)
    assert evidence.tokens is not None
    mask = np.zeros(evidence.tokens.shape, np.bool_) if evidence.mask is None else evidence.mask
    mask = mask.copy()
    mask[each, leaf] = True
    return Evidence(tokens=evidence.tokens, mask=mask)


def _check_weights(weights: Any, n: int) -> Floats:
    if weights is None:
        return np.full(n, 1.0 / n)
    try:
        out = np.array(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DTypeError(f"weights must be {n} probabilities: {error}") from error
    if out.shape != (n,):
        raise ShapeError(f"weights must have shape ({n},), one for each model, got {out.shape}")
    if not (np.isfinite(out).all() and out.min() >= 0.0 and abs(out.sum() - 1.0) <= 1e-6):
        raise ArgumentError(
            f"weights must be non-negative and sum to 1, got {out.tolist()}; divide by their sum"
        )
    out /= out.sum()
    return out
