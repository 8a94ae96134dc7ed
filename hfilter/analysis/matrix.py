"""Models trained at every filter level, tried on data of every other; several seeds at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.analysis.compare import evaluate
from hfilter.analysis.questions import Question
from hfilter.checks import check_int
from hfilter.errors import ArgumentError
from hfilter.learn.masks import HELD_OUT_START

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hfilter.analysis.comparison import Comparison
    from hfilter.exact import TreeModel

__all__ = ["AccuracyMatrix", "OverSeeds", "accuracy_matrix", "over_seeds"]


@dataclass(frozen=True, eq=False)  # == of arrays is no truth value: equal is identical
class AccuracyMatrix:
    """Predictors of training level k (rows) on data of filter level k' (columns).

    All entries are over the same sequences and masks for each column, those of the exact predictors
    included, so that rows may be compared with errors smaller than the stated ones.

    Attributes
    ----------
    task : str
    train_levels, test_levels : tuple of int
        The k of the rows and the k' of the columns.
    n : int
        Sequences per column.
    accuracy, cross_entropy : (K, K') float64 arrays
        Of the predictors, on the truth; nats per scored token.
    exact_accuracy, exact_cross_entropy : (K, K') float64 arrays
        Of BP_k in place of the predictor trained at k.
    best_accuracy, best_cross_entropy : (K',) float64 arrays
        Of BP_k', which nobody beats on data of k' on average.
    kl_test : (K, K') float64 array
        Mean KL(BP_k' || predictor): distance to what is right for these data.
    kl_train : (K, K') float64 array
        Mean KL(BP_k || predictor): distance to what the predictor was trained to be. Small beside
        `kl_test`: it runs the algorithm of its training law on foreign data.
    …_se : arrays of the same shapes
        Standard errors over sequences.

    Notes
    -----
    Source: Garnier-Brun et al. 2024, arXiv 2408.15138, figures 2 and 3.
    """

    task: str
    train_levels: tuple[int, ...]
    test_levels: tuple[int, ...]
    n: int
    accuracy: NDArray[np.float64]
    accuracy_se: NDArray[np.float64]
    cross_entropy: NDArray[np.float64]
    cross_entropy_se: NDArray[np.float64]
    exact_accuracy: NDArray[np.float64]
    exact_accuracy_se: NDArray[np.float64]
    exact_cross_entropy: NDArray[np.float64]
    exact_cross_entropy_se: NDArray[np.float64]
    best_accuracy: NDArray[np.float64]
    best_accuracy_se: NDArray[np.float64]
    best_cross_entropy: NDArray[np.float64]
    best_cross_entropy_se: NDArray[np.float64]
    kl_test: NDArray[np.float64]
    kl_test_se: NDArray[np.float64]
    kl_train: NDArray[np.float64]
    kl_train_se: NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        """Nested lists and numbers, ready for JSON."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    def __str__(self) -> str:
        lines = [
            f"{self.task}: accuracy of models trained at k (rows) on data of k' (columns), "
            f"± standard error over {self.n} sequences; below each, that of BP_k"
        ]
        lines.append("train  " + "".join(f" | {f'data k = {k}':^15}" for k in self.test_levels))
        for k, *row in zip(
            self.train_levels,
            self.accuracy,
            self.accuracy_se,
            self.exact_accuracy,
            self.exact_accuracy_se,
            strict=True,
        ):
            for name, means, errors in ((f"k = {k}", *row[:2]), (f"BP_{k}", *row[2:])):
                cells = (f"{a:.4f} ± {e:.4f}" for a, e in zip(means, errors, strict=True))
                lines.append(f"{name:7}" + "".join(f" | {cell:^15}" for cell in cells))
        return "\n".join(lines)


def accuracy_matrix(
    predictors: Mapping[int, Any],
    model: TreeModel,
    n: int,
    task: Any = "mlm",
    *,
    test_levels: Sequence[int] | None = None,
    level: int | None = None,
    seed: int = 0,
    start: int = HELD_OUT_START,
    mask_rate: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AccuracyMatrix:
    """Train-k × test-k' accuracy, cross-entropy and KL, beside the exact matrix on the same rows.

    Parameters
    ----------
    predictors : mapping of int to predictor
        By the filter level each was trained at: networks, oracles or functions of tokens, as in
        :func:`hfilter.analysis.compare.evaluate`.
    model : TreeModel
        Grammar, depth and root prior; its own filter level plays no part.
    n, seed, start, mask_rate
        As in :func:`hfilter.analysis.compare.evaluate`, at every k'.
    task, level
        As in :func:`hfilter.analysis.compare.compare`.
    test_levels
        The k' of the columns; all of 0 … depth by default, for ancestors those with that level.
    progress
        ``progress(done, total)`` after each entry.

    Returns
    -------
    AccuracyMatrix

    Raises
    ------
    hfilter.errors.ArgumentError
        Without a predictor, or for a k outside 0 … depth.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> exact = {k: hfilter.oracles.ExactBP(model.filtered(k)) for k in (0, 2)}
    >>> table = accuracy_matrix(exact, model, 1000, "root")
    >>> table.accuracy.shape, bool((table.accuracy == table.exact_accuracy).all())
    ((2, 4), True)
    """
    question = Question.of(model, task, level)
    given: Any = predictors
    if not isinstance(given, Mapping) or not given:
        raise ArgumentError(
            "predictors must be a mapping from the filter level of training to a predictor, got "
            f"{predictors!r}"
        )
    n = check_int("n", n, 1)
    trained = question.filter_levels(model, list(predictors))
    tested = question.filter_levels(model, test_levels)
    cells: list[list[Comparison]] = []
    for i, k in enumerate(trained):
        row = []
        for j, other in enumerate(tested):
            source = model.filtered(other)
            row.append(
                evaluate(
                    predictors[k], source, n, task=task, level=level, seed=seed, start=start,
                    mask_rate=mask_rate, filter_levels=sorted({k, other}),
                )
            )  # fmt: skip
            if progress is not None:
                progress(i * len(tested) + j + 1, len(trained) * len(tested))
        cells.append(row)

    def table(name: str, by: str = "") -> NDArray[np.float64]:
        def read(result: Comparison, k: int, other: int) -> float:
            value = getattr(result, name)
            return float(value[k if by == "train" else other] if by else value)

        return np.array(
            [
                [read(x, k, other) for x, other in zip(row, tested, strict=True)]
                for k, row in zip(trained, cells, strict=True)
            ]
        )

    numbers: dict[str, NDArray[np.float64]] = {}
    for end in ("", "_se"):
        for name in ("accuracy", "cross_entropy"):
            numbers[name + end] = table(name + end)
            numbers[f"exact_{name}{end}"] = table(f"exact_{name}{end}", "train")
            numbers[f"best_{name}{end}"] = table(f"exact_{name}{end}", "test")[0]
        numbers["kl_test" + end] = table("kl" + end, "test")
        numbers["kl_train" + end] = table("kl" + end, "train")
    return AccuracyMatrix(
        task=question.task, train_levels=trained, test_levels=tested, n=n,
        **numbers,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class OverSeeds:
    """The same numbers from several runs.

    Attributes
    ----------
    n_seeds : int
    mean, standard_error
        Of the structure of one result: dicts by name, arrays for numbers and nested lists of them.
        The error is the standard deviation over the runs by the root of their number, NaN for one.
        What is no number (names, None) is taken over where it is the same in all runs.
    """

    n_seeds: int
    mean: Any
    standard_error: Any


def over_seeds(results: Sequence[Any]) -> OverSeeds:
    """Mean and standard error over runs that differ in their seed.

    Parameters
    ----------
    results
        One result per run: anything with ``as_dict()`` (a Comparison, Ladders, AccuracyMatrix …),
        or dicts, arrays and numbers, nested at will and alike.

    Returns
    -------
    OverSeeds

    Raises
    ------
    hfilter.errors.ArgumentError
        Without a result, or for results that differ in names, shapes or words.

    Notes
    -----
    The error is that of the mean over runs: it holds what differs between seeds, and of the sampling
    error of the measurement only what is drawn anew in each run.

    Examples
    --------
    >>> spread = over_seeds([{"kl": {0: 0.1}, "task": "mlm"}, {"kl": {0: 0.3}, "task": "mlm"}])
    >>> round(spread.mean["kl"][0], 12), round(spread.standard_error["kl"][0], 12)
    (0.2, 0.1)
    >>> spread.mean["task"]
    'mlm'
    """
    given: Any = results
    if not isinstance(given, Sequence) or not given:
        raise ArgumentError(f"results must be a sequence of at least one run, got {results!r}")
    plain = [x.as_dict() if hasattr(x, "as_dict") else x for x in results]
    return OverSeeds(len(plain), *_pooled("results", plain))


def _pooled(name: str, runs: list[Any]) -> tuple[Any, Any]:
    first = runs[0]
    if isinstance(first, Mapping):
        if any(not isinstance(x, Mapping) or list(x) != list(first) for x in runs):
            raise ArgumentError(f"{name}: runs must have the same names in the same order")
        pairs = {k: _pooled(f"{name}[{k!r}]", [x[k] for x in runs]) for k in first}
        return {k: m for k, (m, _) in pairs.items()}, {k: e for k, (_, e) in pairs.items()}
    if first is None or isinstance(first, str | bool):
        if any(x != first for x in runs):
            raise ArgumentError(f"{name}: runs differ, {runs!r}; pool only runs of one kind")
        return first, first
    if any(x is None or isinstance(x, str | bool | Mapping) for x in runs):
        raise ArgumentError(f"{name}: runs differ in kind, {runs!r}; pool only runs of one kind")
    try:
        shapes = [np.shape(x) for x in runs]
        values = [np.asarray(x, dtype=np.float64) for x in runs]
    except (TypeError, ValueError) as reason:
        raise ArgumentError(f"{name}: runs must hold numbers, got {first!r} ({reason})") from reason
    if any(shape != shapes[0] for shape in shapes):
        raise ArgumentError(f"{name}: runs must have the same shape, got {shapes}")
    stack = np.stack(values)
    count = len(runs)
    with np.errstate(invalid="ignore"):
        mean = stack.mean(axis=0)
        error = np.full_like(mean, math.nan)
        if count > 1:
            error = stack.std(axis=0, ddof=1) / math.sqrt(count)
    if mean.ndim == 0:
        return float(mean), float(error)
    return mean, error
