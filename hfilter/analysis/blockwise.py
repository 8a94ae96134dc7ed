"""Predictions, given or asked for, checked once and handed on block by block in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from hfilter.analysis.asking import as_predict, check_fits
from hfilter.analysis.checks import as_hidden, as_integers, as_probabilities
from hfilter.analysis.judge import blocks
from hfilter.checks import check_int
from hfilter.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hfilter.analysis.inputs import Source
    from hfilter.analysis.questions import Question
    from hfilter.exact import TreeModel

__all__ = ["ask_for", "feed"]


class Collector(Protocol):
    """Whatever adds up blocks of predictions."""

    def add(self, given: Any, leaves: Any, hidden: Any, truth: Any) -> None:
        """Probabilities, the whole sequences, what was hidden (None: nothing), what is right."""


def feed(
    collector: Collector,
    model: TreeModel,
    question: Question,
    probabilities: Any,
    leaves: Any,
    mask: Any = None,
    positions: Any = None,
    roots: Any = None,
    ancestors: Any = None,
    has_truth: bool = True,
) -> None:
    """Hand on probabilities that the caller has."""
    tokens, truth = _checked_leaves(model, question, leaves, roots, ancestors, has_truth)
    n = len(tokens)
    hidden = as_hidden(model, n, mask, positions)
    given = as_probabilities(probabilities, (n, *question.row_shape))
    for rows in blocks(model, n):
        part = None if hidden is None else hidden[rows]
        collector.add(given[rows], tokens[rows], part, None if truth is None else truth[rows])


def ask_for(
    collector: Collector,
    predict: Any,
    model: TreeModel,
    question: Question,
    source: Source,
    n: int,
    start: int,
) -> None:
    """Draw n sequences, ask a predictor, and hand on what it says."""
    n, start = check_int("n", n, 1), check_int("start", start, 0)
    check_fits(predict, model, source.mask_rate)
    ask = as_predict(predict, question.task)
    for rows in blocks(model, n):
        drawn = source.draw(rows.stop - rows.start, start + rows.start)
        given = as_probabilities(ask(drawn.tokens), (len(drawn.leaves), *question.row_shape))
        collector.add(given, drawn.leaves, drawn.hidden, drawn.truth)


def _checked_leaves(
    model: TreeModel,
    question: Question,
    leaves: Any,
    roots: Any,
    ancestors: Any,
    has_truth: bool,
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Leaves as an array, and what is right about them (None: nothing is)."""
    tokens = as_integers("leaves", leaves)
    if tokens.ndim != 2 or tokens.shape[1] != model.n_leaves:
        raise ShapeError(f"leaves must have shape (n, {model.n_leaves}), got {tokens.shape}")
    if not has_truth:
        if roots is not None or ancestors is not None:
            raise ArgumentError("roots and ancestors have no use with has_truth=False")
        return tokens, None
    n_nodes = 1 if question.level is None else model.n_nodes(question.level)
    return tokens, question.truth(tokens, roots, ancestors, n_nodes)
