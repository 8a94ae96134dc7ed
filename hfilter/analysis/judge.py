"""`Judge`: adds up blocks of predictions; the only place where scores are defined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hfilter.analysis.calibration import Calibration, QuantileSketch
from hfilter.analysis.checks import checked_rows
from hfilter.analysis.comparison import QUANTILES, Comparison
from hfilter.analysis.tally import Tally
from hfilter.checks import check_int
from hfilter.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hfilter.analysis.questions import Question
    from hfilter.exact import TreeModel

__all__ = ["Judge", "Scored", "blocks", "divergence", "normalised", "score"]

_BLOCK_VALUES = 2**22  # probabilities held at once per array (32 MB in float64)
_TIE = 1e-9  # symbols whose exact probabilities are this close are equally good choices


class Scored(NamedTuple):
    """The scored tokens of a block: m rows."""

    where: tuple[NDArray[np.int64], ...]
    rows: NDArray[np.float64]  # (m, q) of the model, normalised
    defined: NDArray[np.bool_]
    right: NDArray[np.int64] | None


class Judge:
    """Compares blocks of a predictor's answers with BP_k of every k, and adds up."""

    def __init__(
        self,
        model: TreeModel,
        question: Question,
        filter_levels: Sequence[int] | None,
        *,
        inputs: str = "own",
        n_bins: int = 15,
    ) -> None:
        levels = question.filter_levels(model, filter_levels)
        self.model, self.question, self.inputs = model, question, inputs
        self.bp = {k: model.filtered(k) for k in levels}
        bins, classes = check_int("n_bins", n_bins, 1, 1000), question.row_shape[-1]
        names = ("kl", "agreement", "absolute_error", "brier_excess")
        exact = ("exact_accuracy", "exact_cross_entropy", "exact_brier")
        self.by_level = {name: {k: Tally() for k in self.bp} for name in (*names, *exact)}
        self.own = {name: Tally() for name in ("accuracy", "cross_entropy", "brier")}
        self.calibration = {k: Calibration(classes, bins) for k in self.bp}
        self.quantiles = {k: QuantileSketch() for k in self.bp}
        self.undefined = dict.fromkeys(self.bp, 0)
        self.undefined_model = self.n_sequences = self.n_tokens = 0

    def add(
        self,
        given: NDArray[np.float64],
        leaves: NDArray[Any],
        hidden: NDArray[np.bool_] | None,
        truth: NDArray[Any] | None,
    ) -> None:
        """One block: ``given`` (b, L, q) or (b, classes), ``truth`` (b, L) or (b,)."""
        n = len(given)
        block = score(self.question, given, hidden, truth)
        sequence, q, defined, right = block.where[0], block.rows, block.defined, block.right
        choice_q = q.argmax(axis=1)
        if right is not None:
            for name, values in (
                ("accuracy", choice_q == right),
                ("cross_entropy", _nats(q, right)),
                ("brier", _brier(q, right)),
            ):
                self.own[name].add(values, sequence, defined, n)
        for k, bp in self.bp.items():
            p = normalised(self.question.posterior(bp, leaves, hidden)[block.where])
            exists = ~np.isnan(p[:, 0])
            choice, both = p.argmax(axis=1), exists & defined
            tallies = {name: tally[k] for name, tally in self.by_level.items()}
            if right is not None:
                tallies["exact_accuracy"].add(choice == right, sequence, exists, n)
                tallies["exact_cross_entropy"].add(_nats(p, right), sequence, exists, n)
                tallies["exact_brier"].add(_brier(p, right), sequence, exists, n)
            kl = divergence(p, q)
            best = p[np.arange(len(p)), choice_q] >= p.max(axis=1, initial=0.0) - _TIE
            tallies["agreement"].add(best, sequence, both, n)
            tallies["kl"].add(kl, sequence, both, n)
            tallies["absolute_error"].add(np.abs(q - p).mean(axis=1), sequence, both, n)
            tallies["brier_excess"].add(((q - p) ** 2).sum(axis=1), sequence, both, n)
            self.quantiles[k].add(kl[both])
            self.calibration[k].add(q[both], p[both], sequence[both] + self.n_sequences)
            self.undefined[k] += int((~exists).sum())
        self.undefined_model += int((~defined).sum())
        self.n_sequences += n
        self.n_tokens += len(q)

    def result(self) -> Comparison:
        """What was added, as one record."""
        if self.n_tokens == 0:
            raise ArgumentError(
                "no token to score: give at least one row, and a mask not all False"
            )
        numbers: dict[str, Any] = {}
        for name, tallies in self.by_level.items():
            numbers[name] = {k: tally.mean for k, tally in tallies.items()}
            numbers[f"{name}_se"] = {k: tally.standard_error for k, tally in tallies.items()}
        for name, tally in self.own.items():
            numbers[name], numbers[f"{name}_se"] = tally.mean, tally.standard_error
        calibration = self.calibration.items()
        return Comparison(
            task=self.question.task,
            level=self.question.level,
            inputs=self.inputs,
            n_sequences=self.n_sequences,
            n_tokens=self.n_tokens,
            undefined_model=self.undefined_model,
            undefined=dict(self.undefined),
            kl_quantiles={
                k: dict(zip(QUANTILES, sketch.quantiles(QUANTILES), strict=True))
                for k, sketch in self.quantiles.items()
            },
            calibration_error={k: c.error for k, c in calibration},
            calibration_error_se={k: c.error_se for k, c in calibration},
            grouping={k: c.grouping for k, c in calibration},
            grouping_se={k: c.grouping_se for k, c in calibration},
            **numbers,
        )


def blocks(model: TreeModel, n: int) -> list[slice]:
    """Rows 0 … n - 1 in blocks of bounded memory."""
    width = model.n_leaves * max(model.alphabets)
    size = max(1, _BLOCK_VALUES // width)
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def score(
    question: Question,
    given: NDArray[np.float64],
    hidden: NDArray[np.bool_] | None,
    truth: NDArray[Any] | None,
) -> Scored:
    """What of a block of predictions counts, checked and normalised."""
    where = question.where(len(given), hidden)
    right = None if truth is None else truth[where].astype(np.int64)
    if right is not None and right.size:
        last, name = given.shape[-1] - 1, {"root": "root", "ancestor": "ancestor"}
        if not (right.min() >= 0 and right.max() <= last):
            raise ArgumentError(
                f"a scored {name.get(question.task, 'leaf')} must be a symbol in 0 … {last}, got "
                f"{right.min()} … {right.max()}; give the true symbols, and hide leaves by mask"
            )
    rows = normalised(checked_rows(given[where]))
    return Scored(where, rows, ~np.isnan(rows[:, 0]), right)


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ p ln(p / q) per row: 0 ln 0 = 0, infinite where q excludes what p does not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p == 0.0, 0.0, p * (np.log(p) - np.log(q)))
    return np.asarray(terms.sum(axis=1))


def normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows over their sum: the same operation for model and BP, so that equals stay equal."""
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def _nats(p: NDArray[np.float64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln of the probability of the truth, per row; infinite where that is zero."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(p[np.arange(len(p)), right]))


def _brier(p: NDArray[np.float64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """Σ_b (p_b - [b = truth])² per row."""
    squares = (p * p).sum(axis=1)
    return np.asarray(squares + 1.0 - 2.0 * p[np.arange(len(p)), right])
