"""Any model's probabilities beside the exact posteriors of every filter level.

Takes arrays from anywhere and knows no torch: a network, an oracle and a table of numbers are
judged by the same lines. Arg-max ties go to the lowest symbol throughout.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hfilter.analysis.accuracies import ExactAccuracies, exact_accuracies
from hfilter.analysis.checks import (
    as_hidden,
    as_integers,
    as_probabilities,
    checked_rows,
)
from hfilter.analysis.tally import Tally
from hfilter.errors import ArgumentError, ShapeError
from hfilter.learn.masks import HELD_OUT_START, draw_masks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from hfilter.exact import TreeModel

__all__ = ["Comparison", "ExactAccuracies", "compare", "evaluate", "exact_accuracies"]

_BLOCK_VALUES = 2**22  # probabilities held at once per array (32 MB in float64)


@dataclass(frozen=True)
class Comparison:
    """A model's predictions beside those of BP_k, per scored token, in nats.

    Attributes
    ----------
    task : str
        ``"mlm"`` or ``"root"``.
    n_sequences, n_tokens : int
        Sequences, and scored tokens in them (one per sequence for the root).
    accuracy, cross_entropy : float
        Of the model, on the given truth. Infinite where it gave the truth probability zero.
    exact_accuracy, exact_cross_entropy : dict of float, by k
        The same of BP_k.
    kl : dict of float, by k
        Mean KL(BP_k || model); infinite where the model excludes what BP_k does not.
    agreement : dict of float, by k
        Fraction of tokens where the two choose the same symbol.
    accuracy_se, … : float or dict of float
        Standard error of each, over sequences (tokens of one sequence are correlated): the
        linearised error of the ratio of sums. NaN for an infinite mean or fewer than two sequences.
    undefined : dict of int, by k
        Scored tokens where BP_k does not exist, the evidence being impossible under k. They are
        left out of every number of that k, and nothing else is.
    undefined_model : int
        Scored tokens where the model's own row is NaN; left out of every number of the model.

    Notes
    -----
    Source: Garnier-Brun et al. 2024, arXiv 2408.15138, section 4 (KL along training).
    """

    task: str
    n_sequences: int
    n_tokens: int
    accuracy: float
    accuracy_se: float
    cross_entropy: float
    cross_entropy_se: float
    undefined_model: int
    exact_accuracy: dict[int, float]
    exact_accuracy_se: dict[int, float]
    exact_cross_entropy: dict[int, float]
    exact_cross_entropy_se: dict[int, float]
    kl: dict[int, float]
    kl_se: dict[int, float]
    agreement: dict[int, float]
    agreement_se: dict[int, float]
    undefined: dict[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        scored = f"{self.n_tokens} tokens of " if self.task == "mlm" else ""
        unit = "tokens" if self.task == "mlm" else "sequences"
        head = (
            f"{self.task}: {scored}{self.n_sequences} sequences; "
            f"accuracy {self.accuracy:.4f} ± {self.accuracy_se:.4f}, "
            f"cross-entropy {self.cross_entropy:.4f} ± {self.cross_entropy_se:.4f}"
        )
        if self.undefined_model:
            head += f" (undefined for {self.undefined_model} {unit})"
        lines = [head, "  k  KL(BP_k || model)  agreement  BP_k accuracy  BP_k cross-entropy"]
        for k in self.kl:
            note = f"  undefined for {self.undefined[k]} {unit}" if self.undefined[k] else ""
            lines.append(
                f"{k:3d}  {self.kl[k]:8.4f} ± {self.kl_se[k]:.4f}  {self.agreement[k]:9.4f}"
                f"  {self.exact_accuracy[k]:13.4f}  {self.exact_cross_entropy[k]:18.4f}{note}"
            )
        return "\n".join(lines)


def compare(
    model: TreeModel,
    probabilities: ArrayLike,
    leaves: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    positions: ArrayLike | None = None,
    roots: ArrayLike | None = None,
    task: Literal["mlm", "root"] | None = None,
    filter_levels: Sequence[int] | None = None,
) -> Comparison:
    """Judge probabilities from anywhere against the truth and against every BP_k.

    Parameters
    ----------
    model : TreeModel
        Grammar, depth and root prior; its own filter level plays no part.
    probabilities : (n, L, q) or (n, n_classes) array or torch tensor
        What the model believes of each leaf (``"mlm"``; only scored leaves are read) or of the root
        (``"root"``). Rows are normalised once more in float64.
    leaves : (n, L) integer array
        The true leaves, unmasked.
    mask : (n, L) bool array, optional
        True = hidden from the model. ``"mlm"``: exactly these are scored, against the posterior
        given all others; without it every leaf is scored against its leave-one-out law.
        ``"root"``: hidden from BP too.
    positions : (n,) integer array, optional
        In place of ``mask``: the one hidden leaf of each sequence.
    roots : (n,) integer array
        The true root symbols, for ``"root"``.
    task
        ``"mlm"`` or ``"root"``; unless given, ``"root"`` where ``roots`` are and ``"mlm"`` otherwise.
    filter_levels
        Which k; all of 0 … depth by default.

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
    >>> result.kl[1], result.agreement[1], result.kl[0] > 0
    (0.0, 1.0, True)

    The root, from the true roots and any (n, n_classes) probabilities:

    >>> guesses = model.root_posterior(sample.leaves, dtype="float64")
    >>> compare(model, guesses, sample.leaves, roots=sample.roots).accuracy
    1.0
    """
    if task is None:
        task = "mlm" if roots is None else "root"
    if task not in ("mlm", "root"):
        raise ArgumentError(f'task must be "mlm" or "root", got {task!r}')
    judge = _Judge(model, task, filter_levels)
    tokens = as_integers("leaves", leaves)
    if tokens.ndim != 2 or tokens.shape[1] != model.n_leaves:
        raise ShapeError(f"leaves must have shape (n, {model.n_leaves}), got {tokens.shape}")
    n = len(tokens)
    hidden = as_hidden(model, n, mask, positions)
    shape = (n, *judge.row_shape)
    given = as_probabilities(probabilities, shape)
    if task == "mlm":
        if roots is not None:
            raise ArgumentError(
                'roots have no use under task="mlm"; leave them out, or did you mean task="root"?'
            )
        truth = tokens
    else:
        if roots is None:
            raise ArgumentError('roots (n,) are needed under task="root"')
        truth = as_integers("roots", roots)
        if truth.shape != (n,):
            raise ShapeError(f"roots must have shape ({n},), got {truth.shape}")
    for rows in judge.blocks(n):
        judge.add(given[rows], tokens[rows], None if hidden is None else hidden[rows], truth[rows])
    return judge.result()


def evaluate(
    predict: Callable[[NDArray[Any]], ArrayLike],
    model: TreeModel,
    n: int,
    *,
    task: Literal["mlm", "root"] = "mlm",
    seed: int = 0,
    start: int = HELD_OUT_START,
    mask_rate: float | None = None,
    filter_levels: Sequence[int] | None = None,
) -> Comparison:
    """Draw sequences, ask a predictor, and compare; any n, in blocks of bounded memory.

    Parameters
    ----------
    predict
        From (m, L) tokens, with the mask token where a leaf is hidden, to probabilities (m, L, q)
        or (m, n_classes).
    model : TreeModel
        Draws the sequences, at its own filter level.
    n, seed, start
        Rows ``start … start + n - 1`` of the stream of ``seed``; by default those of the held-out
        sets of training.
    task, filter_levels
        As in :func:`compare`; the roots are drawn, so that ``"root"`` must be asked for.
    mask_rate
        See :func:`hfilter.learn.masks.draw_masks`; ``None`` hides one leaf per sequence.

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
    """
    if n < 1:
        raise ArgumentError(f"n must be at least 1, got {n}")
    judge = _Judge(model, task, filter_levels)
    for rows in judge.blocks(n):
        count, first = rows.stop - rows.start, start + rows.start
        sample = model.sample(count, seed=seed, start=first)
        hidden = None
        tokens = np.asarray(sample.leaves)
        if task == "mlm":
            hidden = draw_masks(count, model.n_leaves, seed, first, mask_rate)
            tokens = np.where(hidden, tokens.dtype.type(model.mask_token), tokens)
        given = as_probabilities(predict(tokens.copy()), (count, *judge.row_shape))
        truth = sample.leaves if task == "mlm" else sample.roots
        judge.add(given, sample.leaves, hidden, np.asarray(truth))
    return judge.result()


class _Judge:
    """Adds up blocks of predictions; the only place where scores are defined."""

    def __init__(self, model: TreeModel, task: str, filter_levels: Sequence[int] | None) -> None:
        levels = range(model.depth + 1) if filter_levels is None else filter_levels
        if not levels or any(not 0 <= k <= model.depth for k in levels):
            raise ArgumentError(f"filter_levels must lie in 0 … {model.depth}, got {list(levels)}")
        self.model = model
        self.task = task
        self.bp = {k: model.filtered(k) for k in sorted(set(levels))}
        self.row_shape = (model.n_leaves, model.vocab_size) if task == "mlm" else (model.n_classes,)
        names = ("kl", "agreement", "exact_accuracy", "exact_cross_entropy")
        self.by_level = {name: {k: Tally() for k in self.bp} for name in names}
        self.accuracy, self.cross_entropy = Tally(), Tally()
        self.undefined = dict.fromkeys(self.bp, 0)
        self.undefined_model = self.n_sequences = self.n_tokens = 0

    def blocks(self, n: int) -> list[slice]:
        size = max(1, _BLOCK_VALUES // (self.model.n_leaves * self.model.vocab_size))
        return [slice(first, min(first + size, n)) for first in range(0, n, size)]

    def add(
        self,
        given: NDArray[np.float64],
        leaves: NDArray[Any],
        hidden: NDArray[np.bool_] | None,
        truth: NDArray[Any],
    ) -> None:
        """One block: ``given`` (b, L, q) or (b, classes), ``truth`` (b, L) or (b,)."""
        n = len(given)
        if self.task == "mlm":
            where = np.nonzero(np.ones(leaves.shape, bool) if hidden is None else hidden)
        else:
            where = (np.arange(n),)
        sequence, right = where[0], truth[where].astype(np.int64)
        if right.size and not (right.min() >= 0 and right.max() < given.shape[-1]):
            raise ArgumentError(
                f"a scored {'leaf' if self.task == 'mlm' else 'root'} must be a symbol in "
                f"0 … {given.shape[-1] - 1}, got {right.min()} … {right.max()}; "
                "give the true symbols, and hide leaves by mask"
            )
        q = _normalised(checked_rows(given[where]))
        defined = ~np.isnan(q[:, 0])
        self.accuracy.add(q.argmax(axis=1) == right, sequence, defined, n)
        self.cross_entropy.add(_nats(q, right), sequence, defined, n)
        for k, bp in self.bp.items():
            p = _normalised(self._posterior(bp, leaves, hidden)[where])
            exists = ~np.isnan(p[:, 0])
            choice = p.argmax(axis=1)
            tallies = {name: tally[k] for name, tally in self.by_level.items()}
            tallies["exact_accuracy"].add(choice == right, sequence, exists, n)
            tallies["exact_cross_entropy"].add(_nats(p, right), sequence, exists, n)
            tallies["agreement"].add(choice == q.argmax(axis=1), sequence, exists & defined, n)
            tallies["kl"].add(_kl(p, q), sequence, exists & defined, n)
            self.undefined[k] += int((~exists).sum())
        self.undefined_model += int((~defined).sum())
        self.n_sequences += n
        self.n_tokens += right.size

    def _posterior(
        self, bp: TreeModel, leaves: NDArray[Any], hidden: NDArray[np.bool_] | None
    ) -> NDArray[np.float64]:
        if self.task == "root":
            law = bp.root_posterior(leaves, hidden, dtype="float64")
        elif hidden is None:
            law = bp.leave_one_out(leaves, dtype="float64")
        else:
            law = bp.infer(leaves, hidden, dtype="float64").leaves
        return np.asarray(law, dtype=np.float64)

    def result(self) -> Comparison:
        if self.n_tokens == 0:
            raise ArgumentError(
                "no token to score: give at least one row, and a mask not all False"
            )
        numbers: dict[str, dict[int, float]] = {}
        for name, tallies in self.by_level.items():
            numbers[name] = {k: tally.mean for k, tally in tallies.items()}
            numbers[f"{name}_se"] = {k: tally.standard_error for k, tally in tallies.items()}
        return Comparison(
            task=self.task,
            n_sequences=self.n_sequences,
            n_tokens=self.n_tokens,
            accuracy=self.accuracy.mean,
            accuracy_se=self.accuracy.standard_error,
            cross_entropy=self.cross_entropy.mean,
            cross_entropy_se=self.cross_entropy.standard_error,
            undefined_model=self.undefined_model,
            undefined=dict(self.undefined),
            **numbers,
        )


def _nats(p: NDArray[np.float64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln of the probability of the truth, per row; infinite where that is zero."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(p[np.arange(len(p)), right]))


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ p ln(p / q) per row: 0 ln 0 = 0, infinite where q excludes what p does not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p == 0.0, 0.0, p * (np.log(p) - np.log(q)))
    return np.asarray(terms.sum(axis=1))


def _normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows over their sum: the same operation for model and BP, so that equals stay equal."""
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))
