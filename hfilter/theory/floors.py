"""The best that any predictor can do: one hidden leaf from the others, and the root from all leaves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..checks import check_float, check_int, check_seed
from ..compiled import ieee
from ..exact import TreeModel
from .entropies import entropy_of_beliefs
from .law import (
    MAX_STATES,
    Array,
    Budget,
    Estimate,
    check_model,
    conditional_entropy,
    estimate,
    law_of,
)

__all__ = [
    "MlmFloor",
    "MlmFloorEstimate",
    "mlm_floor",
    "mlm_floor_estimate",
    "root_accuracy",
    "root_accuracy_estimate",
    "root_entropy",
    "root_entropy_estimate",
]


class MlmFloor(NamedTuple):
    """Optimal masked-language modelling with one hidden leaf.

    Attributes
    ----------
    cross_entropy : float
        Nats per hidden leaf, mean over its position.
    accuracy : float
    cross_entropy_by_position, accuracy_by_position : ndarray of float64, shape (n_leaves,)
    """

    cross_entropy: float
    accuracy: float
    cross_entropy_by_position: Array
    accuracy_by_position: Array


class MlmFloorEstimate(NamedTuple):
    """Monte Carlo estimate of the optimal cross-entropy (nats per hidden leaf) and accuracy."""

    cross_entropy: Estimate
    accuracy: Estimate


@ieee()
def mlm_floor(
    model: TreeModel, *, height: int | None = None, max_states: int = MAX_STATES
) -> MlmFloor:
    """Loss and accuracy of the optimal predictor of one hidden leaf from all others.

    Parameters
    ----------
    model : TreeModel
    height : int, optional
        See only the leaves of the subtree of this height around the hidden one: 0 (none, the law of
        a leaf alone) to `depth` (all, the default).
    max_states : int
        Entries of the largest table of joint states that may be made.

    Returns
    -------
    MlmFloor

    Raises
    ------
    ArgumentError
        Where the context has more joint states than `max_states`: take `mlm_floor_estimate`.

    Notes
    -----
    The other leaves matter through the symbols of the siblings along the path to the root: at most
    q**((arity - 1) depth) states for each of the n_leaves paths. Filtered: the siblings below the
    filter level and the other symbols of that level, q**(arity**k - 1). A smaller `height` keeps the
    context that lies inside.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> floor = theory.mlm_floor(model)
    >>> round(floor.cross_entropy, 6), round(floor.accuracy, 6)
    (0.780853, 0.684818)
    >>> [round(theory.mlm_floor(model, height=h).accuracy, 3) for h in range(4)]
    [0.323, 0.558, 0.641, 0.685]
    """
    law = law_of(check_model(model))
    height = model.depth if height is None else check_int("height", height, 0, model.depth)
    remedy = "use mlm_floor_estimate(model, n)" if height == model.depth else "lower height"
    budget = Budget.of("mlm_floor", max_states, remedy)
    loss, right = np.empty(model.n_leaves), np.empty(model.n_leaves)
    for leaf, joint in law.contexts(False, budget, height):
        loss[leaf] = conditional_entropy(joint)
        right[leaf] = np.maximum.reduce(joint.T.copy(), axis=0).sum()  # along long rows: faster
    return MlmFloor(float(loss.mean()), float(right.mean()), loss, right)


def mlm_floor_estimate(
    model: TreeModel, n: int, seed: int = 0, *, mask_rate: float | None = None
) -> MlmFloorEstimate:
    """Monte Carlo estimate of the optimal loss and accuracy at hidden leaves.

    Parameters
    ----------
    model : TreeModel
        Any.
    n : int
        Rows to sample, at least 2.
    seed : int
        Of sequences and masks.
    mask_rate : float, optional
        None: one leaf hidden per row. A number in (0, 1]: each leaf with this probability, and one
        at random in a row where none fell, as `hfilter.learn.masks.draw_masks` does. The mean is
        over hidden leaves.

    Returns
    -------
    MlmFloorEstimate

    Notes
    -----
    Rao-Blackwellised twice: the entropy and the maximum of the exact belief are averaged, not the
    loss on the symbol that came, and every position of a row counts as if it were the hidden one
    while the others are hidden at random, since independent masks allow that.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> value, error = theory.mlm_floor_estimate(model, 2000, seed=1).accuracy
    >>> bool(abs(value - theory.mlm_floor(model).accuracy) < 5 * error)
    True
    """
    check_model(model)
    if mask_rate is not None:
        mask_rate = check_float("mask_rate", mask_rate, 0.0, 1.0, open_low=True)
    generator = np.random.default_rng(check_seed("seed", seed))
    length = model.n_leaves
    alone, many = 1.0, 0.0  # expected hidden leaves of a row that has one, that has drawn ones
    if mask_rate is not None:
        alone, many = (1.0 - mask_rate) ** length, length * mask_rate

    def scores(leaves: Array, mask: Array | None) -> Array:
        belief = model.leave_one_out(leaves, mask, dtype="float64")
        best = belief.max(axis=2).mean(axis=1)
        return np.stack([entropy_of_beliefs(belief).mean(axis=1), best], axis=1)

    def rows(start: int, count: int) -> Array:
        leaves = model.sample(count, seed, start=start).leaves
        out = np.zeros((count, 2))
        if mask_rate is not None:
            mask = generator.random(leaves.shape) < mask_rate
            out += many / (alone + many) * scores(leaves, mask)
        if alone > 0:
            out += alone / (alone + many) * scores(leaves, None)
        return out

    value, error = estimate(rows, n, length * model.vocab_size)
    loss, right = zip(value.tolist(), error.tolist(), strict=True)
    return MlmFloorEstimate(Estimate(*loss), Estimate(*right))


def _root_joint(model: TreeModel, name: str, max_states: int) -> Array:
    """Joint law of what the leaves determine (rows) and the root (columns)."""
    law = law_of(check_model(model))
    joint = law.joint(0, Budget.of(name, max_states, f"use {name}_estimate(model, n)"))
    return np.diag(law.prior) if joint is None else (law.prior[:, None] * joint).T


@ieee()
def root_accuracy(model: TreeModel, *, max_states: int = MAX_STATES) -> float:
    """Accuracy of the optimal guess of the root from all leaves.

    Parameters
    ----------
    model : TreeModel
    max_states : int
        Entries of the largest table of joint states that may be made.

    Returns
    -------
    float

    Raises
    ------
    ArgumentError
        Where the table would be larger than `max_states`: take `root_accuracy_estimate`.

    Notes
    -----
    Unfiltered and unambiguous: the leaves determine the root. Otherwise the sum over the states y of
    the highest level that the leaves determine of max_a π(a) P(y | a): q**(arity**level) states.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> theory.root_accuracy(model), round(theory.root_accuracy(model.filtered(1)), 6)
    (1.0, 0.820043)
    """
    return float(_root_joint(model, "root_accuracy", max_states).max(axis=1).sum())


@ieee()
def root_entropy(model: TreeModel, *, max_states: int = MAX_STATES) -> float:
    """H(root | leaves) in nats: the optimal cross-entropy of root classification.

    Arguments, errors and cost as in `root_accuracy`; the estimate is `root_entropy_estimate`.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=3, filter_level=1)
    >>> round(theory.root_entropy(model), 6)  # all of ln 2: the leaves know nothing
    0.693147
    """
    return conditional_entropy(_root_joint(model, "root_entropy", max_states))


def root_accuracy_estimate(model: TreeModel, n: int, seed: int = 0) -> Estimate:
    """Monte Carlo estimate of `root_accuracy`: mean of the largest exact belief over sampled rows.

    Parameters
    ----------
    model : TreeModel
        Any.
    n : int
        Rows to sample, at least 2.
    seed : int

    Returns
    -------
    Estimate

    Examples
    --------
    >>> import hfilter
    >>> from hfilter import theory
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3, filter_level=1)
    >>> value, error = theory.root_accuracy_estimate(model, 10_000, seed=1)
    >>> bool(abs(value - theory.root_accuracy(model)) < 5 * error)
    True
    """
    check_model(model)

    def rows(start: int, count: int) -> Array:
        leaves = model.sample(count, seed, start=start).leaves
        return np.asarray(model.root_posterior(leaves, dtype="float64").max(axis=1))

    return estimate(rows, n, model.n_leaves)


def root_entropy_estimate(model: TreeModel, n: int, seed: int = 0) -> Estimate:
    """Monte Carlo estimate of `root_entropy`: mean entropy of the exact belief over sampled rows.

    Arguments as in `root_accuracy_estimate`; in nats.
    """
    check_model(model)

    def rows(start: int, count: int) -> Array:
        leaves = model.sample(count, seed, start=start).leaves
        return entropy_of_beliefs(model.root_posterior(leaves, dtype="float64"))

    return estimate(rows, n, model.n_leaves)
