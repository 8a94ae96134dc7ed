"""How many sequences does the optimal learner need?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_float, check_int, check_seed
from ..errors import ArgumentError, DTypeError
from ..exact import TreeModel
from ..grammar import Grammar
from ..rules import RuleTable
from ..theory import entropy
from .alignment import align, grammar_distance
from .em import fit_grammar
from .outcome import Fit
from .parameters import Array

__all__ = ["LearningCurve", "learning_curve"]


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """What maximum likelihood reaches against the number of sequences.

    Arrays have shape (sizes, repeats).

    Attributes
    ----------
    sizes : ndarray of int, shape (sizes,)
    excess : ndarray
        KL(truth ‖ fitted) of the sequences in nats, estimated on the test rows: mean of ln P_truth -
        ln P_fitted. Infinite where a test row is impossible under the fitted grammar.
    excess_error : ndarray
        Its standard error over the test rows.
    impossible : ndarray
        Share of test rows that are impossible under the fitted grammar.
    root_accuracy : ndarray
        Share of test rows whose root is the fitted model's first guess, roots named as by `align`.
    total_variation : ndarray
        `grammar_distance` of the grammars.
    log_likelihood : ndarray
        Of the training rows, nats per sequence.
    converged : ndarray of bool
        The best restart.
    entropy : float
        Of the truth, nats per sequence: what cross-entropy is left at ``excess`` 0. In closed form if
        there is one, else from the test rows.
    optimal_root_accuracy : float
        Of the truth on the same test rows.
    """

    sizes: NDArray[np.int64]
    excess: Array
    excess_error: Array
    impossible: Array
    root_accuracy: Array
    total_variation: Array
    log_likelihood: Array
    converged: NDArray[np.bool_]
    entropy: float
    optimal_root_accuracy: float


def learning_curve(
    model: TreeModel,
    sizes: Iterable[int],
    *,
    test_size: int = 10_000,
    repeats: int = 3,
    seed: int = 0,
    supervised: bool = False,
    known_structure: bool = False,
    start_near_truth: bool = False,
    pseudo_count: float = 0.1,
    shared: bool | None = None,
    **options: Any,
) -> LearningCurve:
    """Fit grammars to more and more sequences of a model, and judge them on others.

    Parameters
    ----------
    model : TreeModel
        The truth; its depth, filter level, alphabets and root prior are known to the learner.
    sizes : iterable of int
        Numbers of sequences; smaller sets are the first rows of larger ones.
    test_size : int
        Rows to judge on, never trained on.
    repeats : int
        Independent training sets for each size.
    seed : int
        Of sequences and starts.
    supervised : bool
        Whether the learner sees the roots.
    known_structure : bool
        Whether it knows which rules exist.
    start_near_truth : bool
        One more start, from the truth mixed with a tenth of equal weights: the best that a learner
        without trouble of search would find.
    pseudo_count, shared, **options
        As in `fit_grammar`. With `pseudo_count` 0, a sequence with a rule that was not seen is
        impossible, and the excess infinite. `shared` is as in the model's grammar by default.

    Returns
    -------
    LearningCurve

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.fit import learning_curve
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(3, 1.0, 0), depth=2)
    >>> curve = learning_curve(model, [30, 3000], repeats=1, test_size=1000, known_structure=True)
    >>> bool(curve.excess[0, 0] > curve.excess[1, 0])
    True
    """
    if not isinstance(model, TreeModel):
        raise DTypeError(f"model must be a hfilter.TreeModel, got {type(model).__name__}")
    try:
        counts = [check_int("sizes", n, 1) for n in sizes]
    except TypeError:
        raise DTypeError(f"sizes must be a list of numbers of sequences, got {sizes!r}") from None
    if not counts:
        raise ArgumentError("sizes must name at least one number of sequences, got none")
    test_size = check_int("test_size", test_size, 2)
    repeats = check_int("repeats", repeats, 1)
    seed = check_seed("seed", seed)
    taken = {
        "roots",
        "root_prior",
        "structure",
        "depth",
        "init",
        "filter_level",
        "checkpoint",
        "mask",
        "weights",
    }
    if taken & options.keys():
        raise ArgumentError(
            f"{', '.join(sorted(taken & options.keys()))}: learning_curve sets that itself; "
            "call fit_grammar for a single fit of your own"
        )
    shared = model.grammar.is_shared if shared is None else shared
    options = {
        "pseudo_count": check_float("pseudo_count", pseudo_count, 0.0), "progress": False,
        "shared": shared, "filter_level": model.filter_level, "root_prior": model.root_prior,
        "n_classes": model.n_classes, "vocab_size": model.vocab_size,
        "alphabets": model.alphabets[1:-1], **options,
    }  # fmt: skip
    if known_structure:
        options["structure"] = model.grammar
    test = model.sample(test_size, seed)
    ours = np.asarray(model.log_prob(test.leaves, dtype="float64"))
    guess = np.asarray(model.root_posterior(test.leaves, dtype="float64")).argmax(axis=1)
    found = np.empty((7, len(counts), repeats))
    for r in range(repeats):
        rows = model.sample(max(counts), seed, start=test_size + r * max(counts))
        for i, n in enumerate(counts):
            args: dict[str, Any] = {**options, "seed": (seed + r) % 2**64}
            if supervised:
                args["roots"] = rows.roots[:n]
            fit = fit_grammar(rows.leaves[:n], model.depth, **args)
            if start_near_truth:
                args |= {
                    "init": _near(model, fit.grammar.is_shared, known_structure),
                    "restarts": 1,
                }
                other = fit_grammar(rows.leaves[:n], model.depth, **args)
                if other.traces[0][-1] > fit.traces[fit.best_restart][-1]:
                    fit = other
            found[:, i, r] = _judge(fit, model, test, ours)
    return LearningCurve(
        sizes=np.array(counts), excess=found[0], excess_error=found[1], impossible=found[2],
        root_accuracy=found[3], total_variation=found[4], log_likelihood=found[5],
        converged=found[6].astype(bool), entropy=_entropy(model, ours),
        optimal_root_accuracy=float((guess == np.asarray(test.roots)).mean()),
    )  # fmt: skip


def _judge(fit: Fit, truth: TreeModel, test: Any, ours: Array) -> tuple[float, ...]:
    theirs = np.asarray(fit.model.log_prob(test.leaves, dtype="float64"))
    possible = np.isfinite(theirs)
    excess, error = np.inf, np.nan
    if possible.all():
        difference = ours - theirs
        excess = float(difference.mean())
        error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    beliefs = align(fit, truth).rename_roots(
        np.asarray(fit.model.root_posterior(test.leaves, dtype="float64"))
    )
    right = (beliefs.argmax(axis=1) == np.asarray(test.roots)) & possible
    return (
        excess, error, float(1 - possible.mean()), float(right.mean()),
        grammar_distance(fit, truth).total_variation, fit.log_likelihood,
        float(fit.converged[fit.best_restart]),
    )  # fmt: skip


def _near(model: TreeModel, is_shared: bool, known_structure: bool) -> Grammar:
    """The truth with a tenth of its probability spread over the allowed rules."""
    tables = []
    for d in range(1 if is_shared else model.depth):
        given = model.grammar.table(d).tensor()
        flat = given.reshape(len(given), -1)
        allowed = (flat > 0) if known_structure else np.ones(flat.shape, bool)
        mixed = 0.9 * flat + 0.1 * allowed / allowed.sum(axis=1, keepdims=True)
        tables.append(RuleTable.from_tensor(mixed.reshape(given.shape)))
    return Grammar(tables, {"family": "fit"}, is_shared=is_shared)


def _entropy(model: TreeModel, ours: Array) -> float:
    try:
        return float(entropy(model))
    except ArgumentError:
        return -float(ours.mean())
