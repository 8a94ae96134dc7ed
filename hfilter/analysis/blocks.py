"""What the leaves of one block know: exact messages, and how well they tell their ancestors.

A block of height m is the arity**m leaves below a node of level depth - m, its top. After m layers a
network that works like belief propagation has seen exactly its own block at every leaf.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hfilter.analysis.checks import as_hidden, as_integers
from hfilter.analysis.questions import at_leaves
from hfilter.checks import check_int
from hfilter.errors import ArgumentError, ShapeError
from hfilter.exact import TreeModel
from hfilter.grammar import Grammar
from hfilter.theory.law import Estimate, estimate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "MessageKind",
    "block_accuracy",
    "block_accuracy_estimate",
    "block_beliefs",
    "exact_messages",
]

MessageKind = Literal["upward", "block", "downward", "belief"]

_BLOCK_VALUES = 2**22


def block_accuracy(model: TreeModel, height: int, level: int, *, max_states: int = 2**16) -> float:
    """Accuracy of the optimal guess of a leaf's ancestor from the leaf's own block, exactly.

    Parameters
    ----------
    model : TreeModel
    height : int
        Of the block, 0 (the leaf alone) … depth (all leaves).
    level : int
        Of the ancestor, 0 (the root) … depth, one that exists at the model's filter level.
    max_states : int
        Configurations of a block that may be enumerated.

    Returns
    -------
    float
        Mean over all leaves.

    Raises
    ------
    hfilter.errors.ArgumentError
        For a level that does not exist, or a block of too many states: then take
        `block_accuracy_estimate`.

    Notes
    -----
    Σ_y max_a P(a, y) over what the block determines: where no tuple of children has two parents,
    that is the symbol of its top (of the nodes of the filter level, where the top lies above it), so
    that the tree is cut there; otherwise y runs over the block's leaves themselves.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> [round(block_accuracy(model, 1, level), 3) for level in (3, 2, 1)]
    [1.0, 0.651, 0.469]
    >>> round(block_accuracy(model, 2, 1), 3)
    0.641
    """
    height, level = _checked(model, height, level)
    top = model.depth - height
    cut = model.depth
    while cut > max(top, model.filter_level) and model.grammar.table(cut - 1).is_unambiguous:
        cut -= 1
    if level >= cut:
        return 1.0
    short = TreeModel(_levels(model.grammar, 0, cut), cut, model.filter_level, model.root_prior)
    width, q = model.arity ** (cut - top), short.vocab_size
    check_int("max_states", max_states, 1)
    if q**width > max_states:
        raise ArgumentError(
            f"block_accuracy needs {q}**{width} states for height = {height}, more than max_states "
            f"= {max_states}; use block_accuracy_estimate(model, {height}, {level}, n)"
        )
    states = np.indices((q,) * width).reshape(width, -1).T
    rows = max(1, _BLOCK_VALUES // (short.n_leaves * max(short.alphabets)))
    total = 0.0
    for block in range(model.arity**top):
        for first in range(0, len(states), rows):
            part = states[first : first + rows]
            tokens = np.full((len(part), short.n_leaves), short.mask_token)
            tokens[:, block * width : (block + 1) * width] = part
            found = short.infer(tokens, dtype="float64", levels=[level])
            beliefs = _of_block(found.level(level), block, model.arity**top)
            weight = np.exp(found.log_evidence)
            best = np.where(weight > 0, beliefs.max(axis=2).mean(axis=1), 0.0)
            total += float(weight @ best)
    return float(total / model.arity**top)


def block_accuracy_estimate(
    model: TreeModel, height: int, level: int, n: int, seed: int = 0
) -> Estimate:
    """Monte Carlo estimate of `block_accuracy`: mean of the largest exact belief over sampled rows.

    Parameters
    ----------
    model, height, level
        As in `block_accuracy`.
    n : int
        Rows to sample, at least 2.
    seed : int

    Returns
    -------
    Estimate

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> value, error = block_accuracy_estimate(model, 1, 1, 4000)
    >>> bool(abs(value - block_accuracy(model, 1, 1)) < 5 * error)
    True
    """
    height, level = _checked(model, height, level)

    def rows(start: int, count: int) -> NDArray[np.float64]:
        leaves = model.sample(count, seed, start=start).leaves
        best = block_beliefs(model, leaves, height, level).max(axis=2)
        return np.asarray(best.mean(axis=1))

    return estimate(rows, n, model.n_leaves * max(model.alphabets))


def block_beliefs(
    model: TreeModel, leaves: ArrayLike, height: int, level: int, mask: ArrayLike | None = None
) -> NDArray[np.float64]:
    """P(ancestor at `level` | visible leaves of the own block), at every leaf.

    Parameters
    ----------
    model, height, level
        As in `block_accuracy`.
    leaves : (n, L) integer array
        Tokens; the mask token stands for a hidden leaf.
    mask : (n, L) bool array, optional
        True = hidden.

    Returns
    -------
    (n, L, q_level) float64 array
        NaN where the leaves of the block are impossible together.
    """
    height, level = _checked(model, height, level)
    tokens = _tokens(model, leaves, mask)
    count = model.arity ** (model.depth - height)
    width = model.n_leaves // count
    parts = []
    for block in range(count):
        here = slice(block * width, (block + 1) * width)
        alone = np.full_like(tokens, model.mask_token)
        alone[:, here] = tokens[:, here]
        found = model.infer(alone, dtype="float64", levels=[level]).level(level)
        parts.append(at_leaves(_of_block(np.asarray(found), block, count), width))
    return np.concatenate(parts, axis=1)


def exact_messages(
    model: TreeModel,
    leaves: ArrayLike,
    height: int,
    mask: ArrayLike | None = None,
    kind: MessageKind = "upward",
) -> NDArray[np.float64]:
    """What belief propagation computes at the nodes of one height.

    Parameters
    ----------
    model : TreeModel
    leaves : (n, L) integer array
        Tokens; the mask token stands for a hidden leaf.
    height : int
        0 (leaves) … depth (the root), of a level that exists at the model's filter level.
    mask : (n, L) bool array, optional
        True = hidden.
    kind
        ``"upward"``: P(visible leaves of the block | symbol), times a power of two common to all
        rows that brings the largest near 1 (1e-308 of that and less may become 0);
        ``"block"``: P(symbol | those leaves); ``"downward"``: P(symbol | visible leaves outside the
        block); ``"belief"``: P(symbol | all visible leaves).

    Returns
    -------
    (n, nodes, q) float64 array
        NaN where the evidence is impossible (zero under ``"upward"``).

    Raises
    ------
    hfilter.errors.ArgumentError
        For another kind, or a height whose level does not exist.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> leaves = model.sample(10, seed=0).leaves
    >>> exact_messages(model, leaves, 1, kind="block").max(axis=2).min()  # a pair has one parent
    np.float64(1.0)
    """
    height = check_int("height", height, 0, model.depth)
    level = model.depth - height
    _checked(model, height, level)
    tokens = _tokens(model, leaves, mask)
    if kind == "upward":
        return _upward(model, tokens, height)
    if kind == "belief":
        return np.asarray(model.infer(tokens, dtype="float64", levels=[level]).level(level))
    if kind not in ("block", "downward"):
        raise ArgumentError(
            f'kind must be one of "upward", "block", "downward", "belief", got {kind!r}'
        )
    width = model.arity**height
    out = np.empty((len(tokens), model.n_nodes(level), model.alphabets[level]))
    for node in range(out.shape[1]):
        outside = np.arange(model.n_leaves) // width != node
        hide = outside if kind == "block" else ~outside
        shown = np.where(hide, tokens.dtype.type(model.mask_token), tokens)
        out[:, node] = model.infer(shown, dtype="float64", levels=[level]).level(level)[:, node]
    return out


def _upward(model: TreeModel, tokens: NDArray[Any], height: int) -> NDArray[np.float64]:
    """Likelihoods of blocks by the subtree's own model, whose uniform root leaves nothing but them."""
    level = model.depth - height
    q, count = model.alphabets[level], model.n_nodes(level)
    if height == 0:
        return np.asarray(np.concatenate([np.eye(q), np.ones((1, q))])[tokens])
    below = model.filter_level if level == 0 else 0
    uniform = np.full(q, 1.0 / q)
    subtree = TreeModel(_levels(model.grammar, level, model.depth), height, below, uniform)
    blocks = tokens.reshape(len(tokens) * count, -1)
    found = subtree.infer(blocks, dtype="float64")
    logs = np.asarray(found.log_evidence)
    largest = logs.max(initial=-math.inf)
    octaves = math.floor(largest / math.log(2)) if math.isfinite(largest) else 0
    weight = np.exp(logs - octaves * math.log(2))[:, None]
    out = np.where(weight > 0, np.asarray(found.root) * weight, 0.0)
    return np.asarray(out.reshape(len(tokens), count, q))


def _levels(grammar: Grammar, first: int, last: int) -> Grammar:
    """The rules of some levels of a tree as a grammar."""
    if grammar.is_shared:
        return grammar
    return Grammar(grammar.tables[first:last], {"family": "levels"}, is_shared=False)


def _of_block(nodes: NDArray[Any], block: int, count: int) -> NDArray[Any]:
    """Of a level's nodes (n, nodes, …), the one above the block, or those in it."""
    total = nodes.shape[1]
    if total <= count:
        one = block * total // count
        return nodes[:, one : one + 1]
    width = total // count
    return nodes[:, block * width : (block + 1) * width]


def _checked(model: TreeModel, height: Any, level: Any) -> tuple[int, int]:
    height = check_int("height", height, 0, model.depth)
    level = check_int("level", level, 0, model.depth)
    if level not in model.existing_levels:
        raise ArgumentError(
            f"level {level} (height {model.depth - level}) does not exist at filter_level "
            f"{model.filter_level}; levels that do are {model.existing_levels}"
        )
    return height, level


def _tokens(model: TreeModel, leaves: Any, mask: Any) -> NDArray[np.int64]:
    tokens = as_integers("leaves", leaves).astype(np.int64)
    if tokens.ndim != 2 or tokens.shape[1] != model.n_leaves:
        raise ShapeError(f"leaves must have shape (n, {model.n_leaves}), got {tokens.shape}")
    if tokens.size and not (tokens.min() >= 0 and tokens.max() <= model.mask_token):
        raise ArgumentError(
            f"leaves must be in 0 … {model.mask_token} (the mask token), got "
            f"{tokens.min()} … {tokens.max()}"
        )
    hidden = as_hidden(model, len(tokens), mask, None)
    return tokens if hidden is None else np.where(hidden, model.mask_token, tokens)
