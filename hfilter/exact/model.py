"""`TreeModel`, the object users hold: the structure of `hfilter.tree` with its operations."""

from __future__ import annotations

from .contexts import Contexts
from .counts import Counts
from .joints import Joints
from .posteriors import Posteriors
from .sampling import Sampling
from .trees import WholeTrees

__all__ = ["TreeModel"]


class TreeModel(Sampling, Posteriors, Contexts, WholeTrees, Counts, Joints):
    """A grammar at a depth and a filter level: samples trees, and answers exactly what generated them.

    Parameters
    ----------
    grammar : Grammar
    depth : int, optional
        Levels below the root; may be left out if the grammar has one table of rules per level.
    filter_level : int
        k from 0 (full hierarchy) to `depth` (leaves independent given the root): the nodes of level k
        are independent given the root, with unchanged marginals (HF Eq. 3).
    root_prior : array_like of float, shape (n_classes,), optional
        Uniform by default.

    Attributes
    ----------
    n_leaves, vocab_size, n_classes, arity, depth, filter_level, mask_token : int
    alphabets : tuple of int
        Alphabet sizes of levels 0 … depth.
    existing_levels : tuple of int

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> sample = model.sample(1000, seed=1)
    >>> sample.leaves.shape, sample.leaves.dtype
    ((1000, 16), dtype('uint8'))
    >>> guess = model.root_posterior(sample.leaves).argmax(axis=1)
    >>> bool((guess == sample.roots).all())  # unfiltered leaves determine their root
    True
    """

    def filtered(self, filter_level: int) -> TreeModel:
        """The same grammar, depth and prior at another filter level."""
        return TreeModel(self.grammar, self.depth, filter_level, self.root_prior)
