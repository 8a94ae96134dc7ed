"""Probes: what can be read off a hidden state, beside what exact inference could know there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hfilter.analysis.asking import check_fits
from hfilter.analysis.blocks import block_accuracy, block_beliefs
from hfilter.analysis.checks import as_integers, fetched
from hfilter.analysis.fitting import fit_linear, fit_two_layer
from hfilter.analysis.questions import Question, at_leaves
from hfilter.analysis.states import Layer, states_of
from hfilter.analysis.tally import Tally
from hfilter.checks import check_float, check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.learn.masks import HELD_OUT_START, draw_masks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from hfilter.exact import TreeModel

__all__ = ["AncestorProbe", "Probe", "ancestor_probe", "probe"]

Kind = Literal["linear", "two-layer"]


@dataclass(frozen=True)
class Probe:
    """How well labels are read off states, on rows that the probe was not fitted to.

    Attributes
    ----------
    kind : str
        ``"linear"`` or ``"two-layer"``.
    n_train, n_test : int
        Sequences.
    accuracy, accuracy_se : float
        Of the test labels; the error is over sequences.
    train_accuracy : float
    majority : float
        Accuracy of always saying the most frequent training label.
    position_majority : float
        Of saying the most frequent one of the position.
    shuffled : float
        Of a probe for the same labels in random order, over all tokens: chance. NaN if not asked
        for.
    converged : bool
        Whether the fit of the linear probe reached its tolerance.
    """

    kind: str
    n_train: int
    n_test: int
    accuracy: float
    accuracy_se: float
    train_accuracy: float
    majority: float
    position_majority: float
    shuffled: float
    converged: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class AncestorProbe(Probe):
    """A probe of leaves' ancestors, beside the exact accuracies.

    Attributes
    ----------
    layer : int or str
        Whose states; m = after the first m layers.
    level : int
        Of the ancestor, 0 = root.
    oracle : tuple of float
        By height m = 0 … depth, the accuracy of the optimal guess from the leaf's own block of
        arity**m leaves: exact where nothing is hidden and the states can be enumerated, otherwise
        the mean of the largest exact belief over the test rows.
    """

    layer: Layer
    level: int
    oracle: tuple[float, ...]

    @property
    def block_oracle(self) -> float:
        """The oracle of the block that m layers have seen if each joins two blocks to one."""
        if isinstance(self.layer, str):
            return math.nan
        return self.oracle[min(self.layer, len(self.oracle) - 1)]


def ancestor_probe(
    encoder: Any,
    model: TreeModel,
    layer: Layer,
    level: int,
    kind: Kind = "linear",
    n_train: int = 2**14,
    n_test: int = 2**12,
    *,
    seed: int = 0,
    start: int = HELD_OUT_START,
    mask_rate: float | None = None,
    shuffled: bool = True,
    **options: Any,
) -> AncestorProbe:
    """Fit a probe from the states of one layer to the ancestor of each leaf at one level.

    Parameters
    ----------
    encoder
        An encoder with ``trace``, or a function from (tokens, layer) to states (n, L, d).
    model : TreeModel
        Draws the sequences and knows the oracle.
    layer
        m = after the first m layers (0: the embedding), or the name of an activation.
    level : int
        Of the ancestor, 0 (the root) … depth, one that exists at the model's filter level.
    kind
        ``"linear"``: multinomial logistic regression; ``"two-layer"``: d → 64 → q with ReLU, as
        published.
    n_train, n_test : int
        Labelled sequences; every leaf of each is one example. Disjoint rows.
    seed, start
        Rows ``start … start + n_train + n_test - 1`` of the stream of ``seed``: by default none
        that a network was trained on.
    mask_rate
        Hides leaves from the network and from the oracle; ``None`` hides none.
    shuffled
        Whether to fit a second probe to shuffled labels.
    options
        As in :func:`probe`.

    Returns
    -------
    AncestorProbe

    Raises
    ------
    hfilter.errors.ArgumentError
        For a layer or level that does not exist.

    Notes
    -----
    Source: Garnier-Brun et al. 2024, arXiv 2408.15138, section 4 (probing of ancestors).

    Examples
    --------
    Exact beliefs of the parents of pairs as states:

    >>> import hfilter, numpy as np
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> def states(tokens, layer):
    ...     return np.repeat(model.infer(tokens, levels=[1]).level(1), 2, axis=1)
    >>> result = ancestor_probe(states, model, 1, 1, n_train=200, n_test=200)
    >>> result.accuracy, result.oracle[1]
    (1.0, 1.0)
    """
    question = Question.of(model, "ancestor", level)
    if level not in model.existing_levels:
        raise ArgumentError(
            f"level {level} does not exist at filter_level {model.filter_level}; levels that do are "
            f"{model.existing_levels}"
        )
    check_fits(encoder, model, mask_rate)
    n = check_int("n_train", n_train, 2) + check_int("n_test", n_test, 1)
    sample = model.sample(n, seed=seed, start=start, levels=[level])
    leaves = np.asarray(sample.leaves)
    labels = at_leaves(np.asarray(sample.levels[level]), model.n_leaves).astype(np.int64)
    hidden = None
    if mask_rate is not None:
        hidden = draw_masks(n, model.n_leaves, seed, start, mask_rate)
        leaves = np.where(hidden, leaves.dtype.type(model.mask_token), leaves)
    (states,) = states_of(encoder, leaves, [layer])
    found = probe(
        states, labels, n_train, kind, n_classes=question.row_shape[-1],
        seed=seed, shuffled=shuffled, **options,
    )  # fmt: skip
    oracle = tuple(
        _oracle(model, height, level, leaves[n_train:], hidden is None)
        for height in range(model.depth + 1)
    )
    return AncestorProbe(**vars(found), layer=layer, level=level, oracle=oracle)


def _oracle(model: TreeModel, height: int, level: int, leaves: Any, complete: bool) -> float:
    if complete:
        try:
            return block_accuracy(model, height, level)
        except ArgumentError:  # too many states: the estimate below
            pass
    return float(np.nanmean(block_beliefs(model, leaves, height, level).max(axis=2)))


def probe(
    states: ArrayLike,
    labels: ArrayLike,
    n_train: int,
    kind: Kind = "linear",
    *,
    n_classes: int | None = None,
    shuffled: bool = True,
    seed: int = 0,
    max_tokens: int = 2**18,
    epochs: int = 100,
    hidden: int = 64,
    lr: float = 1e-3,
    batch_size: int = 1024,
    max_iter: int = 1000,
) -> Probe:
    """Fit a probe to the first `n_train` rows and judge it on the others.

    Parameters
    ----------
    states : (n, L, d) array or tensor
        Standardised with the training rows' means and deviations.
    labels : (n, L) integer array
        One symbol per token. One probe serves all positions.
    n_train : int
        Rows to fit to, at least 2 and fewer than n.
    kind
        ``"linear"`` or ``"two-layer"``.
    n_classes
        One more than the largest label by default.
    shuffled
        Whether to fit a second probe to shuffled labels.
    seed : int
        Of the two-layer probe's start and batches, of the shuffle, and of the draw of tokens.
    max_tokens : int
        Tokens to fit to, a uniform draw where there are more.
    epochs, hidden, lr, batch_size
        Of the two-layer probe: Adam, its rate going to zero along a cosine.
    max_iter
        Of the linear probe (L-BFGS, ridge 1 / tokens).

    Returns
    -------
    Probe

    Raises
    ------
    hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
        For arrays that do not match, states that are not finite, or a split without a row.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(3, size=(300, 2))
    >>> found = probe(np.eye(3)[labels], labels, 200)
    >>> found.accuracy, found.shuffled < 0.6
    (1.0, True)
    """
    if kind not in ("linear", "two-layer"):
        raise ArgumentError(f'kind must be "linear" or "two-layer", got {kind!r}')
    check_seed("seed", seed)
    sizes = {"max_tokens": max_tokens, "hidden": hidden, "batch_size": batch_size}
    for name, value in (sizes | {"epochs": epochs, "max_iter": max_iter}).items():
        check_int(name, value, 1)
    check_float("lr", lr, 0.0, open_low=True)
    x, y = _checked(states, labels)
    n, length = y.shape
    if n < 3:
        raise ShapeError(f"states must have at least 3 rows, got {n}")
    check_int("n_train", n_train, 2, n - 1)
    classes = int(y.max()) + 1 if n_classes is None else check_int("n_classes", n_classes, 1)
    if y.max() >= classes:
        raise ArgumentError(f"labels must be in 0 … {classes - 1}, got {y.max()}")
    train, target = x[:n_train].reshape(-1, x.shape[2]), y[:n_train].reshape(-1)
    test, truth = x[n_train:].reshape(-1, x.shape[2]), y[n_train:].reshape(-1)
    rng = np.random.default_rng([seed, 1])
    if len(train) > max_tokens:
        drawn = np.sort(rng.permutation(len(train))[:max_tokens])
        train, target = train[drawn], target[drawn]
    mean, spread = train.mean(axis=0), train.std(axis=0)
    spread[spread == 0] = 1.0
    train, test = (train - mean) / spread, (test - mean) / spread

    def fit(goal: NDArray[np.int64]) -> tuple[Callable[[Any], NDArray[np.int64]], bool]:
        if kind == "linear":
            return fit_linear(train, goal, max_iter)
        return fit_two_layer(train, goal, classes, seed, epochs, hidden, lr, batch_size), True

    guess, converged = fit(target)
    score = Tally()
    owner = np.repeat(np.arange(n - n_train), length)
    score.add(guess(test) == truth, owner, None, n - n_train)
    counts = np.zeros((length, classes))
    np.add.at(counts, (np.tile(np.arange(length), n_train), y[:n_train].reshape(-1)), 1.0)
    control = math.nan
    if shuffled:
        mixed = rng.permutation(np.concatenate([target, truth]))
        guess_mixed, _ = fit(mixed[: len(target)])
        control = float((guess_mixed(test) == mixed[len(target) :]).mean())
    return Probe(
        kind=kind,
        n_train=n_train,
        n_test=n - n_train,
        accuracy=score.mean,
        accuracy_se=score.standard_error,
        train_accuracy=float((guess(train) == target).mean()),
        majority=float((truth == counts.sum(axis=0).argmax()).mean()),
        position_majority=float((y[n_train:] == counts.argmax(axis=1)).mean()),
        shuffled=control,
        converged=converged,
    )


def _checked(states: Any, labels: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    x, y = fetched("states", states), as_integers("labels", labels)
    if x.dtype.kind != "f":
        raise DTypeError(f"states must be floating-point, got {x.dtype}")
    if y.ndim != 2 or x.ndim != 3 or x.shape[:2] != y.shape or 0 in x.shape[1:]:
        raise ShapeError(
            "states (n, L, d) and labels (n, L) must match, L and d be at least 1, got "
            f"{x.shape} and {y.shape}"
        )
    if not np.isfinite(x).all():
        raise ArgumentError("states must be finite numbers, got NaN or infinity among them")
    if y.size and y.min() < 0:
        raise ArgumentError(f"labels must be at least 0, got {y.min()}")
    return x, y.astype(np.int64)
