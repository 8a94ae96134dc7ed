"""`ExactBP` and `Window`: what belief propagation knows, from all leaves or from those nearby."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from hfilter.arrays import value_type
from hfilter.checks import check_float, check_int
from hfilter.errors import ArgumentError, DTypeError
from hfilter.evidence import Evidence
from hfilter.exact import TreeModel

from .interface import HostPredictor, fields_of

__all__ = ["ExactBP", "Window", "check_model"]


class ExactBP(HostPredictor):
    """The exact posterior of a model; ``ExactBP(model.filtered(k))`` is BP_k.

    Parameters
    ----------
    model : TreeModel
    noise : float
        From 0 to 1: tokens are taken as seen through uniform noise (see `noisy_fields`). The
        counterpart of a `Memorizer` with the same noise.
    dtype : "float64" or "float32"

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> leaves = model.sample(5, seed=1).leaves
    >>> ExactBP(model.filtered(1)).predict(leaves).shape
    (5, 8, 4)
    >>> ExactBP(model).predict_root(leaves).max(axis=1).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, model: TreeModel, *, noise: float = 0.0, dtype: Any = "float64") -> None:
        super().__init__(check_model("model", model), model.n_classes, dtype)
        self.model = model
        self.noise = check_float("noise", noise, 0.0, 1.0)

    def predict(self, leaves: Any = None, mask: Any = None, *, log_fields: Any = None) -> Any:
        """P(x_j | all evidence but that of leaf j), shape (n, L, q); see `HostPredictor.predict`."""
        if self.noise and log_fields is None:
            return super().predict(leaves, mask)
        return self.model.leave_one_out(leaves, mask, log_fields=log_fields, dtype=self.dtype)

    def predict_root(self, leaves: Any = None, mask: Any = None, *, log_fields: Any = None) -> Any:
        """P(root | evidence), shape (n, n_classes); arguments as in `predict`."""
        if self.noise and log_fields is None:
            return super().predict_root(leaves, mask)
        return self.model.root_posterior(leaves, mask, log_fields=log_fields, dtype=self.dtype)

    def _leaf_block(self, evidence: Evidence) -> NDArray[Any]:
        fields = fields_of(evidence, self.vocab_size, self.noise)
        law: NDArray[Any] = self.model.leave_one_out(log_fields=fields, dtype=self.dtype)
        return law

    def _root_block(self, evidence: Evidence) -> NDArray[Any]:
        fields = fields_of(evidence, self.vocab_size, self.noise)
        law: NDArray[Any] = self.model.root_posterior(log_fields=fields, dtype=self.dtype)
        return law


class Window:
    """The exact posterior from nearby leaves: those of the subtree of some height around each leaf.

    W_0 knows the marginals of the leaves, W_1 the siblings besides, W_depth everything: a ladder
    from local to global beside that of the filter levels, in which correlations of long range are
    not absent from the data but unseen.

    Parameters
    ----------
    model : TreeModel
        Of any filter level.
    height : int
        From 0 to the depth.
    dtype : "float64" or "float32"

    Examples
    --------
    >>> import hfilter, numpy as np
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> leaves = model.sample(5, seed=1).leaves
    >>> whole = Window(model, 3).predict(leaves)
    >>> bool(np.allclose(whole, ExactBP(model).predict(leaves), atol=1e-12))
    True
    """

    def __init__(self, model: TreeModel, height: int, *, dtype: Any = "float64") -> None:
        self.model = check_model("model", model)
        self.height = check_int("height", height, 0, model.depth)
        self.dtype = value_type(dtype)
        self.n_leaves, self.vocab_size = model.n_leaves, model.vocab_size
        self.n_classes = model.n_classes

    def predict(self, leaves: Any = None, mask: Any = None, *, log_fields: Any = None) -> Any:
        """P(x_j | the other evidence of its window), shape (n, L, q); see `HostPredictor.predict`."""
        return self.model.windowed(
            leaves, self.height, mask=mask, log_fields=log_fields, dtype=self.dtype
        )

    def predict_root(self, leaves: Any = None, mask: Any = None, *, log_fields: Any = None) -> Any:
        """P(root | evidence), shape (n, n_classes), for the window that is the whole tree.

        Raises
        ------
        hfilter.errors.ArgumentError
            For a lower window: none holds the root, and its law from all blocks is BP_k's.
        """
        if self.height < self.model.depth:
            raise ArgumentError(
                f"predict_root needs a window of height {self.model.depth}, the whole tree, got "
                f"{self.height}; the root from blocks of that height, independent given it, is "
                f"ExactBP(model.filtered({self.model.depth - self.height}))"
            )
        return self.model.root_posterior(leaves, mask, log_fields=log_fields, dtype=self.dtype)


def check_model(name: str, model: Any) -> TreeModel:
    """`model` if it is one."""
    if not isinstance(model, TreeModel):
        raise DTypeError(f"{name} must be a hfilter.TreeModel, got {type(model).__name__}")
    return model
