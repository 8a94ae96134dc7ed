"""Token by token: what the model says beside what exact inference says, for scatter plots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.analysis.blockwise import ask_for, feed
from hfilter.analysis.inputs import Inputs, Source
from hfilter.analysis.judge import divergence, normalised, score
from hfilter.analysis.questions import Question
from hfilter.checks import check_int
from hfilter.errors import ArgumentError
from hfilter.learn.masks import HELD_OUT_START

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from hfilter.exact import TreeModel

__all__ = ["AgreementTable", "agreement_table", "draw_agreement"]


@dataclass(frozen=True, eq=False)  # == of arrays is no truth value: equal is identical
class AgreementTable:
    """Scored tokens where both laws exist, or a uniform draw of them, in the order of the rows.

    Attributes
    ----------
    filter_level : int
        The k of BP_k.
    p_exact, p_model : (m, q) float64 arrays
        BP_k and the model.
    kl : (m,) float64 array
        KL(BP_k || model) in nats.
    sequence, position : (m,) int64 arrays
        Which row, and which leaf of it (0 for the root).
    truth : (m,) int64 array
        The symbol that was right; -1 where nothing is.
    n_tokens : int
        Tokens that the m were drawn from.
    """

    filter_level: int
    p_exact: NDArray[np.float64]
    p_model: NDArray[np.float64]
    kl: NDArray[np.float64]
    sequence: NDArray[np.int64]
    position: NDArray[np.int64]
    truth: NDArray[np.int64]
    n_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Nested lists and numbers, ready for JSON."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }


def agreement_table(
    model: TreeModel,
    probabilities: ArrayLike,
    leaves: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    positions: ArrayLike | None = None,
    roots: ArrayLike | None = None,
    ancestors: ArrayLike | None = None,
    task: Any = None,
    level: int | None = None,
    filter_level: int | None = None,
    max_tokens: int = 2**14,
    seed: int = 0,
    has_truth: bool = True,
) -> AgreementTable:
    """Every scored token with the law of BP_k and that of a model, at most `max_tokens` of them.

    Parameters
    ----------
    model, probabilities, leaves, mask, positions, roots, ancestors, task, level, has_truth
        As in :func:`hfilter.analysis.compare.compare`.
    filter_level
        The k of BP_k; the model's own by default.
    max_tokens
        Where there are more, a uniform draw without replacement.
    seed
        Of that draw.

    Returns
    -------
    AgreementTable

    Raises
    ------
    hfilter.errors.HFilterError
        As :func:`hfilter.analysis.compare.compare`.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> leaves = model.sample(100, seed=1).leaves
    >>> says = model.filtered(1).leave_one_out(leaves, dtype="float64")
    >>> table = agreement_table(model, says, leaves, filter_level=1, max_tokens=500)
    >>> table.p_model.shape, bool((table.p_model == table.p_exact).all()), table.n_tokens
    ((500, 4), True, 800)
    """
    if task is None:
        task = "mlm" if roots is None else "root"
    question = Question.of(model, task, level)
    collector = _Collector(model, question, filter_level, max_tokens, seed)
    feed(
        collector, model, question, probabilities, leaves, mask, positions, roots, ancestors,
        has_truth,
    )  # fmt: skip
    return collector.result()


def draw_agreement(
    predict: Any,
    model: TreeModel,
    n: int,
    *,
    task: Any = "mlm",
    level: int | None = None,
    seed: int = 0,
    start: int = HELD_OUT_START,
    mask_rate: float | None = None,
    inputs: Inputs = "own",
    filter_level: int | None = None,
    max_tokens: int = 2**14,
) -> AgreementTable:
    """As :func:`agreement_table`, on sequences drawn as :func:`hfilter.analysis.compare.evaluate` does.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> window = hfilter.oracles.Window(model, 1)
    >>> table = draw_agreement(window, model, 1000)
    >>> len(table.kl), bool((table.kl > 0).mean() > 0.9)
    (1000, True)
    """
    question = Question.of(model, task, level)
    source = Source(model, question, inputs, seed, mask_rate)
    collector = _Collector(model, question, filter_level, max_tokens, seed)
    ask_for(collector, predict, model, question, source, n, start)
    return collector.result()


class _Collector:
    """Keeps a uniform draw of tokens: those with the smallest of one random number each."""

    def __init__(
        self, model: TreeModel, question: Question, filter_level: Any, most: Any, seed: int
    ) -> None:
        k = model.filter_level if filter_level is None else filter_level
        self.filter_level = question.filter_levels(model, [k])[0]
        self.bp, self.question = model.filtered(self.filter_level), question
        self.most = check_int("max_tokens", most, 1)
        self.random = np.random.Generator(np.random.Philox(key=np.array([seed, 1], np.uint64)))
        self.kept: list[NDArray[Any]] | None = None
        self.n_sequences = self.n_tokens = 0

    def add(self, given: Any, leaves: Any, hidden: Any, truth: Any) -> None:
        block = score(self.question, given, hidden, truth)
        p = normalised(self.question.posterior(self.bp, leaves, hidden)[block.where])
        both = block.defined & ~np.isnan(p[:, 0])
        p, q = p[both], block.rows[both]
        sequence = block.where[0][both] + self.n_sequences
        position = block.where[1][both] if len(block.where) > 1 else np.zeros_like(sequence)
        right = np.full(len(p), -1) if block.right is None else block.right[both]
        self.n_sequences += len(given)
        self.n_tokens += len(p)
        new = [self.random.random(len(p)), p, q, divergence(p, q), sequence, position, right]
        if self.kept is not None:
            new = [np.concatenate(pair) for pair in zip(self.kept, new, strict=True)]
        if len(new[0]) > self.most:
            best = np.sort(np.argpartition(new[0], self.most - 1)[: self.most])
            new = [x[best] for x in new]
        self.kept = new

    def result(self) -> AgreementTable:
        if self.kept is None or not self.n_tokens:
            raise ArgumentError(
                "no token to show: give at least one row, a mask not all False, and evidence that "
                "is possible"
            )
        _, p, q, kl, sequence, position, right = self.kept
        return AgreementTable(self.filter_level, p, q, kl, sequence, position, right, self.n_tokens)
