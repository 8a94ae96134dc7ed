"""Any model's probabilities beside the exact posteriors of every filter level.

Takes arrays from anywhere and knows no torch: a network, an oracle and a table of numbers are
judged by the same lines. Arg-max ties go to the lowest symbol throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfilter.analysis.accuracies import ExactAccuracies, exact_accuracies
from hfilter.analysis.agreement import AgreementTable, agreement_table, draw_agreement
from hfilter.analysis.blockwise import ask_for, feed
from hfilter.analysis.comparison import Comparison
from hfilter.analysis.inputs import Inputs, Source
from hfilter.analysis.judge import Judge
from hfilter.analysis.questions import Question, Task
from hfilter.learn.masks import HELD_OUT_START

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from hfilter.exact import TreeModel

__all__ = [
    "AgreementTable",
    "Comparison",
    "ExactAccuracies",
    "agreement_table",
    "compare",
    "draw_agreement",
    "evaluate",
    "exact_accuracies",
]


def compare(
    model: TreeModel,
    probabilities: ArrayLike,
    leaves: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    positions: ArrayLike | None = None,
    roots: ArrayLike | None = None,
    ancestors: ArrayLike | None = None,
    task: Task | None = None,
    level: int | None = None,
    filter_levels: Sequence[int] | None = None,
    n_bins: int = 15,
    has_truth: bool = True,
) -> Comparison:
    """Judge probabilities from anywhere against the truth and against every BP_k.

    Parameters
    ----------
    model : TreeModel
        Grammar, depth and root prior; its own filter level plays no part.
    probabilities : (n, L, q) or (n, n_classes) array or torch tensor
        What the model believes of each leaf (``"mlm"``: only scored leaves are read, and the model
        must not have seen them, which cannot be checked here; ``"causal"``:
        given the leaves before it), of each leaf's ancestor (``"ancestor"``, (n, L, q_level)) or of
        the root (``"root"``). Rows are normalised once more in float64.
    leaves : (n, L) integer array
        The true leaves, unmasked.
    mask : (n, L) bool array, optional
        True = hidden from the model. ``"mlm"``: exactly these are scored, against the posterior
        given all others; without it every leaf is scored against its leave-one-out law.
        Otherwise: hidden from BP too, and everything is scored.
    positions : (n,) integer array, optional
        In place of ``mask``: the one hidden leaf of each sequence.
    roots : (n,) integer array
        The true root symbols, for ``"root"``.
    ancestors : (n, nodes) integer array
        The true symbols of the nodes of `level` (as in ``sample(levels=[level])``), or (n, L), those
        above each leaf, for ``"ancestor"``.
    task
        ``"mlm"``, ``"root"``, ``"causal"`` or ``"ancestor"``; unless given, ``"root"`` where
        ``roots`` are and ``"mlm"`` otherwise.
    level
        Of the ancestors, 0 (the root) … depth.
    filter_levels
        Which k; by default all of 0 … depth, for ancestors those at which the level exists.
    n_bins
        Bins of the calibration.
    has_truth
        False where nothing is right, as in random sequences: what needs a truth is then NaN.

    Returns
    -------
    Comparison

    Raises
    ------
    hfilter.errors.ShapeError, hfilter.errors.DTypeError
        For arrays of another shape or kind.
    hfilter.errors.ArgumentError
        For negative, infinite or unnormalised probabilities, partly NaN rows, no scored token, a
        scored token outside the alphabet, or a k outside 0 … depth.

    Examples
    --------
    Exact predictions of BP_1 as the "model":

    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> sample = model.sample(200, seed=1)
    >>> exact = model.filtered(1).leave_one_out(sample.leaves, dtype="float64")
    >>> result = compare(model, exact, sample.leaves)
    >>> result.kl[1], result.agreement[1], result.calibration_error[1], result.kl[0] > 0
    (0.0, 1.0, 0.0, True)

    The root, from the true roots and any (n, n_classes) probabilities:

    >>> guesses = model.root_posterior(sample.leaves, dtype="float64")
    >>> compare(model, guesses, sample.leaves, roots=sample.roots).accuracy
    1.0
    """
    if task is None:
        task = "mlm" if roots is None else "root"
    question = Question.of(model, task, level)
    inputs = "own" if has_truth else "without truth"
    judge = Judge(model, question, filter_levels, n_bins=n_bins, inputs=inputs)
    feed(
        judge, model, question, probabilities, leaves, mask, positions, roots, ancestors, has_truth
    )
    return judge.result()


def evaluate(
    predict: Any,
    model: TreeModel,
    n: int,
    *,
    task: Task = "mlm",
    level: int | None = None,
    seed: int = 0,
    start: int = HELD_OUT_START,
    mask_rate: float | None = None,
    filter_levels: Sequence[int] | None = None,
    inputs: Inputs = "own",
    n_bins: int = 15,
) -> Comparison:
    """Draw sequences, ask a predictor, and compare; any n, in blocks of bounded memory.

    Parameters
    ----------
    predict
        From (m, L) tokens, with the mask token where a leaf is hidden, to probabilities (m, L, q)
        or (m, n_classes); or a torch network from such tokens (int64) to logits; or an
        oracle. The mask token is q: an embedding of masked leaves needs q + 1 rows. See
        :func:`hfilter.analysis.asking.as_predict`.
    model : TreeModel
        Draws the sequences, at its own filter level, and judges.
    n, seed, start
        Rows ``start … start + n - 1`` of the stream of ``seed``; by default those of the held-out
        sets of training.
    task, level, filter_levels, n_bins
        As in :func:`compare`; the roots are drawn, so that ``"root"`` must be asked for.
    mask_rate
        See :func:`hfilter.learn.masks.draw_masks`. ``None`` hides one leaf per sequence under
        ``"mlm"`` and none under the other tasks.
    inputs
        Who draws the sequences instead: ``"uniform"``, every leaf any symbol, with no truth to be
        right about (accuracy, cross-entropy and Brier score are NaN); or another TreeModel of the
        same shape, for instance ``model.filtered(2)`` or one of another grammar. The judge stays
        `model`.

    Returns
    -------
    Comparison

    Raises
    ------
    hfilter.errors.HFilterError
        As :func:`compare`.

    Examples
    --------
    >>> import hfilter, numpy as np
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> know_nothing = lambda tokens: np.full((*tokens.shape, 4), 0.25)
    >>> bool(np.isclose(evaluate(know_nothing, model, 500).cross_entropy, np.log(4)))
    True
    >>> window = hfilter.oracles.Window(model, 1)
    >>> random = evaluate(window, model, 500, inputs="uniform")
    >>> random.accuracy, random.kl[0] > random.kl[2] > 0
    (nan, True)
    """
    question = Question.of(model, task, level)
    source = Source(model, question, inputs, seed, mask_rate)
    judge = Judge(model, question, filter_levels, n_bins=n_bins, inputs=source.name)
    ask_for(judge, predict, model, question, source, n, start)
    return judge.result()
