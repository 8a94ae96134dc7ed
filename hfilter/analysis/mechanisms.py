"""What an intervention should do: exact effects of the same cut, mask or softening by BP.

The laws are those of leaf j given all evidence but its own, as a masked language model gives at a
hidden leaf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.analysis.attention import ideal_attention
from hfilter.analysis.checks import as_hidden, as_integers, fetched
from hfilter.analysis.looking import as_positions, plain
from hfilter.checks import check_float, check_int
from hfilter.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from hfilter.exact import TreeModel

    Array = NDArray[Any]
    Floats = NDArray[np.float64]

__all__ = [
    "Mechanisms",
    "as_evidence",
    "local_and_global",
    "sibling_block",
    "soften",
    "with_sibling",
]


def sibling_block(model: TreeModel, positions: ArrayLike, height: int = 1) -> NDArray[np.bool_]:
    """Which leaves a leaf reads at a height: the other children of its ancestor there.

    Parameters
    ----------
    model : TreeModel
    positions : (n,) integer array
    height : int
        1 (the leaf's siblings) … depth.

    Returns
    -------
    ndarray of bool, shape (n, L)

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> sibling_block(model, [0, 5], height=2).astype(int)
    array([[0, 0, 1, 1, 0, 0, 0, 0],
           [0, 0, 0, 0, 0, 0, 1, 1]])
    """
    height = check_int("height", height, 1, model.depth)
    where = as_integers("positions", positions)
    where = as_positions("positions", where, where.size, model.n_leaves)
    reads = ideal_attention(model.depth, height, arity=model.arity) > 0
    return np.asarray(reads[where])


def soften(
    model: TreeModel,
    leaves: ArrayLike,
    where: ArrayLike,
    alpha: float,
    mask: ArrayLike | None = None,
) -> Floats:
    """Evidence that is partly taken back: (1 - alpha) + alpha [x = token] at some of the leaves.

    Parameters
    ----------
    model : TreeModel
    leaves : (n, L) integer array
        The mask token is allowed.
    where : (n, L) bool array
        Leaves to soften; hidden ones stay hidden.
    alpha : float
        1: evidence as it is; 0: as if hidden.
    mask : (n, L) bool array, optional
        True = hidden.

    Returns
    -------
    ndarray, shape (n, L, q)
        ``log_fields`` for any question to a model.

    Raises
    ------
    hfilter.errors.ArgumentError, hfilter.errors.ShapeError, hfilter.errors.DTypeError
        For an alpha outside [0, 1], tokens out of range, or arrays of other shapes.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=1)
    >>> fields = soften(model, [[1, 2]], [[True, True]], 0.5)
    >>> np.exp(fields).tolist()
    [[[0.5, 1.0], [1.0, 1.0]]]

    Notes
    -----
    The softened sibling is the exact dose-response that scaled attention to it is compared with.
    """
    alpha = check_float("alpha", alpha, 0.0, 1.0)
    tokens, hidden = as_evidence(model, leaves, mask)
    chosen = fetched("where", where)
    if chosen.dtype != np.bool_ or chosen.shape != tokens.shape:
        raise ShapeError(
            f"where must be bool of shape {tokens.shape}, got {chosen.dtype} {chosen.shape}"
        )
    seen = np.arange(model.vocab_size) == tokens[..., None]
    weak = np.where(chosen, alpha, 1.0)[..., None]
    with np.errstate(divide="ignore"):
        return np.where(hidden[..., None], 0.0, np.log((1.0 - weak) + weak * seen))


def with_sibling(
    model: TreeModel,
    leaves: ArrayLike,
    height: int,
    *,
    mask: ArrayLike | None = None,
    instead: ArrayLike | None = None,
) -> Floats:
    """Laws of every leaf, its own sibling block of a height being hidden or other than it is.

    The exact effect of cutting, or patching, the message that query j receives in block ``height``
    of a network that computes like BP: on a
    :class:`hfilter.analysis.construction.ConstructedTransformer`, of replacing its attention output
    of layer ``height - 1`` by the all-ones message, or by that of another run.

    Parameters
    ----------
    model : TreeModel
    leaves : (n, L) integer array
        The mask token is allowed.
    height : int
        1 … depth.
    mask : (n, L) bool array, optional
        True = hidden.
    instead : (n, L) integer array, optional
        Tokens (or mask tokens) that the block holds in place of its own; all hidden unless given.

    Returns
    -------
    ndarray, shape (n, L, q)
        Row j: given all leaves but j, those of its sibling block replaced. NaN where impossible.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> x = model.sample(5, seed=1).leaves
    >>> cut = with_sibling(model, x, height=2)
    >>> bool(np.allclose(cut, model.windowed(x, 1, dtype="float64")))
    True
    """
    height = check_int("height", height, 1, model.depth)
    tokens, hidden = as_evidence(model, leaves, mask)
    other = np.full_like(tokens, model.vocab_size)
    if instead is not None:
        other, _ = as_evidence(model, instead, None)
        if other.shape != tokens.shape:
            raise ShapeError(f"instead must have shape {tokens.shape}, got {other.shape}")
    tokens = np.where(hidden, model.vocab_size, tokens)
    reads = ideal_attention(model.depth, height, arity=model.arity) > 0
    out = np.empty((*tokens.shape, model.vocab_size))
    for block in np.unique(reads, axis=0):
        readers = (reads == block).all(axis=1)
        changed = np.where(block, other, tokens)
        out[:, readers] = model.leave_one_out(changed, dtype="float64")[:, readers]
    return out


@dataclass(frozen=True, eq=False)
class Mechanisms:
    """Two ways to predict a leaf: from its siblings alone, and from everything.

    Attributes
    ----------
    local : ndarray, shape (n, L, q)
        W_1: given the leaf's siblings.
    full : ndarray, shape (n, L, q)
        BP at the model's own filter level: given all other leaves.
    lift : ndarray, shape (n, L, q)
        full / local: what the rest of the sequence multiplies the local law by. In an unambiguous
        grammar it depends on a candidate only through the parent that it would give: it is
        U_v / mu_v of that parent, the law of the ancestor given the leaves outside over its
        marginal law, up to a factor. NaN where the local law excludes the candidate.
    local_choice, global_choice : ndarray of int, shape (n, L)
        Most probable symbols of the two; ties to the lowest; -1 where there is no law.
    conflict : ndarray of bool, shape (n, L)
        Where they differ.
    """

    local: Floats
    full: Floats
    lift: Floats
    local_choice: NDArray[np.int64]
    global_choice: NDArray[np.int64]
    conflict: NDArray[np.bool_]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self)


def local_and_global(
    model: TreeModel, leaves: ArrayLike, mask: ArrayLike | None = None
) -> Mechanisms:
    """The exact competition of the local law with the rest of the sequence, at every leaf.

    Parameters
    ----------
    model : TreeModel
    leaves : (n, L) integer array
    mask : (n, L) bool array, optional
        True = hidden.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> found = local_and_global(model, model.sample(20_000, seed=1).leaves)
    >>> round(float(found.conflict[:, ::2].mean()), 2)              # left children
    0.26
    """
    tokens, hidden = as_evidence(model, leaves, mask)
    local = model.windowed(tokens, 1, hidden, dtype="float64")
    full = model.leave_one_out(tokens, hidden, dtype="float64")
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = np.where(local > 0, full / local, np.nan)
    near, far = (np.where(np.isnan(law).any(-1), -1, law.argmax(-1)) for law in (local, full))
    return Mechanisms(local, full, lift, near, far, (near >= 0) & (far >= 0) & (near != far))


def as_evidence(
    model: TreeModel, leaves: ArrayLike, mask: ArrayLike | None
) -> tuple[Array, NDArray[np.bool_]]:
    """Tokens, and which leaves are hidden by the mask or by the mask token."""
    tokens = as_integers("leaves", leaves)
    if tokens.ndim != 2 or tokens.shape[1] != model.n_leaves:
        raise ShapeError(f"leaves must have shape (n, {model.n_leaves}), got {tokens.shape}")
    q = model.vocab_size
    if tokens.size and not (tokens.min() >= 0 and tokens.max() <= q):
        raise ArgumentError(
            f"leaves must be in 0 … {q} ({q} = hidden), got {tokens.min()} … {tokens.max()}"
        )
    hidden = as_hidden(model, len(tokens), mask, None)
    own = tokens == q
    return tokens.astype(np.int64), own if hidden is None else own | hidden
