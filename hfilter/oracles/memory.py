"""`Memorizer`: the posterior of an observer who believes that only stored rows exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import as_numpy
from hfilter.checks import check_float, check_int
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.evidence import Evidence

from .interface import Floats, HostPredictor, Sizes, fields_of

__all__ = ["Memorizer"]

_WORK = 2**20  # numbers in one block of (questions, stored rows) or (stored rows, codes): 8 MB
_SPAN = 300.0  # nats that one exponential may cover so that nothing that counts rounds to zero


class Memorizer(HostPredictor):
    """The posterior under the empirical distribution of a data set, through a noise channel.

    Row μ of the data set weighs ``w_μ ∝ Π_j φ_j(x^μ_j)`` under the fields of the evidence, and
    ``P(x_j = b | evidence) ∝ Σ_μ w_μ [x^μ_j = b]``: what a network that memorised its training set
    would answer. All rows count, however many.

    Parameters
    ----------
    dataset : array_like of int, shape (P, L)
        The stored rows, copied; repeated rows weigh as often as they occur.
    vocab_size : int
        q; tokens of the data set are 0 … q - 1.
    roots : array_like of int, shape (P,), optional
        Root of every stored row, for `predict_root`.
    n_classes : int, optional
        One more than the largest of `roots` unless given.
    noise : float
        From 0 to 1: a token of the evidence was replaced by a uniform one with this probability
        (see `noisy_fields`). With 0 only rows that agree with every visible token count. Not
        applied to `log_fields`, which are a channel already.
    no_match : "nan" or "uniform"
        The answer where no stored row can have produced the (other) evidence, which happens with
        noise 0 or fields of -inf only.
    dtype : "float64" or "float32"

    Notes
    -----
    In one pass over the data set for all leaves: the weight without leaf j is w_μ / φ_j(x^μ_j), and
    rows that disagree with the evidence at one leaf alone count for this leaf. Questions whose
    fields span so much that this would lose digits are answered leaf by leaf. Memory is bounded for
    any number of stored rows. Probabilities below 1e-150 may come out as 0.

    Examples
    --------
    >>> memory = Memorizer([[0, 0], [0, 1], [1, 1]], 2, roots=[0, 1, 1])
    >>> memory.predict([[0, 2]]).tolist()  # the second leaf is hidden
    [[[0.6666666666666666, 0.3333333333333333], [0.5, 0.5]]]
    >>> memory.predict_root([[0, 2]]).tolist()
    [[0.5, 0.5]]
    """

    def __init__(
        self,
        dataset: Any,
        vocab_size: int,
        *,
        roots: Any = None,
        n_classes: int | None = None,
        noise: float = 0.0,
        no_match: Literal["nan", "uniform"] = "nan",
        dtype: Any = "float64",
    ) -> None:
        q = check_int("vocab_size", vocab_size, 1, 65535)
        rows = _integers("dataset", dataset, q, 2)
        if 0 in rows.shape:
            raise ShapeError(
                f"dataset must have shape (P, n_leaves), both at least 1, got {rows.shape}"
            )
        self.dataset = np.array(rows, np.uint8 if q <= 255 else np.uint16, order="C")
        self.roots: NDArray[np.uint16] | None = None
        classes = 0 if n_classes is None else check_int("n_classes", n_classes, 1, 65535)
        if roots is not None:
            given = _integers("roots", roots, classes or 65535, 1)
            if len(given) != len(rows):
                raise ShapeError(
                    f"roots must have shape ({len(rows)},), one for each row of dataset, got {given.shape}"
                )
            self.roots = given.astype(np.uint16)
            classes = classes or int(given.max()) + 1
        super().__init__(Sizes(rows.shape[1], q), classes, dtype)
        self.noise = check_float("noise", noise, 0.0, 1.0)
        if no_match not in ("nan", "uniform"):
            raise ArgumentError(f'no_match must be "nan" or "uniform", got {no_match!r}')
        self.no_match = no_match

    def predict_root(self, leaves: Any = None, mask: Any = None, *, log_fields: Any = None) -> Any:
        """P(root | evidence), shape (n, n_classes); arguments as in `predict`.

        Raises
        ------
        hfilter.errors.ArgumentError
            If the memoriser was made without `roots`.
        """
        if self.roots is None:
            raise ArgumentError("predict_root needs the roots of the stored rows: give roots=")
        return super().predict_root(leaves, mask, log_fields=log_fields)

    def _leaf_block(self, evidence: Evidence) -> Floats:
        width = self.n_leaves * self.vocab_size
        return self._in_parts(evidence, lambda f: self._leaf_law(f, width))

    def _root_block(self, evidence: Evidence) -> Floats:
        return self._in_parts(evidence, self._root_law)

    def _in_parts(self, evidence: Evidence, law: Any) -> Floats:
        fields = fields_of(evidence, self.vocab_size, self.noise)
        step = max(1, min(256, _WORK // (self.n_leaves * self.vocab_size)))
        found = [law(_Fields(fields[i : i + step])) for i in range(0, len(fields), step)]
        return np.concatenate(found)

    def _chunks(self) -> Iterator[tuple[Floats, Any]]:
        """Stored rows in turn: their one-hot codes (P', L q) and their roots."""
        width = self.n_leaves * self.vocab_size
        step = max(1, min(4096, _WORK // width))
        place = np.arange(self.n_leaves) * self.vocab_size
        for begin in range(0, len(self.dataset), step):
            rows = self.dataset[begin : begin + step]
            codes = np.zeros((len(rows), width))
            np.put_along_axis(codes, rows + place, 1.0, axis=1)
            roots = None if self.roots is None else self.roots[begin : begin + step]
            yield codes, roots

    def _leaf_law(self, f: _Fields, width: int) -> Floats:
        match, miss = _Sum(f.n, width), _Sum(f.n, width)
        low = np.full(f.n, np.inf)
        for codes, _ in self._chunks():
            score, misses = f.score(codes)
            match.add(np.where(misses == 0, score, -np.inf), codes)
            if f.any_forbidden:
                miss.add(np.where(misses == 1, score, -np.inf), codes)
                few = np.where(misses <= 1, score, np.inf)
                low = np.minimum(low, few.min(axis=1))
        peak = np.maximum(match.peak, miss.peak)
        here, elsewhere = match.relative_to(peak), miss.relative_to(peak)
        shape = (f.n, self.n_leaves, self.vocab_size)
        law = np.where(f.forbidden, elsewhere.reshape(shape), here.reshape(shape))
        law *= np.exp(np.minimum(-f.finite, 2 * _SPAN))
        wide = -f.finite.min(axis=(1, 2)) > _SPAN
        if f.any_forbidden:
            with np.errstate(invalid="ignore"):  # -inf - inf: no row at all, and nothing to mend
                wide |= peak - low > _SPAN
        again = np.flatnonzero(wide)
        for i in range(0, len(again), 16):
            law[again[i : i + 16]] = self._leaf_by_leaf(f.rows(again[i : i + 16]))
        return self._normalised(law)

    def _leaf_by_leaf(self, f: _Fields) -> Floats:
        """The law of every leaf, unnormalised, with a scale of its own for each."""
        q = self.vocab_size
        sums = [_Sum(f.n, q) for _ in range(self.n_leaves)]
        for codes, _ in self._chunks():
            for j, total in enumerate(sums):
                # Not by subtraction: where one leaf decides by far, that would leave only its rounding.
                others = codes.copy()
                others[:, j * q : (j + 1) * q] = 0.0
                score, misses = f.score(others)
                own = codes[:, j * q : (j + 1) * q]
                total.add(np.where(misses == 0, score, -np.inf), own)
        return np.stack([total.value for total in sums], axis=1)

    def _root_law(self, f: _Fields) -> Floats:
        total = _Sum(f.n, self.n_classes)
        eye = np.eye(self.n_classes)
        for codes, roots in self._chunks():
            score, misses = f.score(codes)
            total.add(np.where(misses == 0, score, -np.inf), eye[roots])
        return self._normalised(total.value)

    def _normalised(self, law: Floats) -> Floats:
        norm = law.sum(axis=-1, keepdims=True)
        empty = np.nan if self.no_match == "nan" else 1.0 / law.shape[-1]
        with np.errstate(invalid="ignore"):
            out: Floats = np.where(norm > 0.0, law / norm, empty)
        return out


class _Fields:
    """Log fields (n, L, q), finite parts and impossible entries apart: 0 times -inf is no number."""

    def __init__(self, fields: Floats) -> None:
        self.n = len(fields)
        top = fields.max(axis=2, keepdims=True)
        self.forbidden = np.isneginf(fields)
        self.any_forbidden = bool(self.forbidden.any())
        with np.errstate(invalid="ignore"):
            self.finite = np.where(self.forbidden, 0.0, fields - top)

    def rows(self, index: NDArray[np.intp]) -> _Fields:
        """The fields of some rows."""
        return _Fields(np.where(self.forbidden[index], -np.inf, self.finite[index]))

    def score(self, codes: Floats) -> tuple[Floats, Any]:
        """ln w of stored rows but for impossible entries, and how many of those, each (n, P')."""
        score = self.finite.reshape(self.n, -1) @ codes.T
        if not self.any_forbidden:
            return score, 0
        return score, self.forbidden.reshape(self.n, -1).astype(np.float64) @ codes.T


class _Sum:
    """Σ_μ exp(score_μ) code_μ over chunks of stored rows, relative to the largest term so far."""

    def __init__(self, n: int, width: int) -> None:
        self.peak = np.full(n, -np.inf)
        self.value = np.zeros((n, width))

    def add(self, score: Floats, codes: Floats) -> None:
        """Take in a chunk: scores (n, P') and codes (P', width)."""
        peak = np.maximum(self.peak, score.max(axis=1))
        self.value = self.relative_to(peak)
        self.peak = peak
        shift = np.where(np.isneginf(peak), 0.0, peak)
        self.value += np.exp(score - shift[:, None]) @ codes

    def relative_to(self, peak: Floats) -> Floats:
        """The sum with exp(peak) taken out."""
        with np.errstate(invalid="ignore"):
            scale = np.where(np.isneginf(self.peak), 0.0, np.exp(self.peak - peak))
        out: Floats = self.value * scale[:, None]
        return out


def _integers(name: str, x: Any, limit: int, axes: int) -> NDArray[Any]:
    array, _ = as_numpy(name, x)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name} must be integers, got {array.dtype}")
    if array.ndim != axes:
        shape = "(P, n_leaves)" if axes == 2 else "(P,)"
        raise ShapeError(f"{name} must have shape {shape}, got {array.shape}")
    if array.size and not (int(array.min()) >= 0 and int(array.max()) < limit):
        raise ArgumentError(
            f"{name} must be from 0 to {limit - 1}, got values from {array.min()} to {array.max()}"
        )
    return array
