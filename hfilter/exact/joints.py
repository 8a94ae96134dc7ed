"""Joint posteriors: of pairs of nodes, and of the root with every substitution of a leaf."""

from __future__ import annotations

from typing import Any

from .. import joint
from ..arrays import value_type
from ..evidence import check_evidence
from .door import Door


class Joints(Door):
    """`pair_beliefs`, `flip_table`."""

    def pair_beliefs(
        self,
        leaves: Any = None,
        pairs: Any = None,
        mask: Any = None,
        *,
        log_fields: Any = None,
        levels: tuple[int, int] | None = None,
        dtype: Any = "float64",
    ) -> Any:
        """P(x_u = a, x_v = b | evidence) of pairs of nodes, shape (n, m, q_d, q_e).

        Any two nodes that exist, also one below the other, or a node with itself. NaN in rows of
        impossible evidence. Computed by NumPy in double precision, in blocks of bounded memory.

        Parameters
        ----------
        pairs : array_like of int, shape (m, 2)
            Indices of nodes u at level d and v at level e.
        levels : (int, int), optional
            d and e; leaves by default.
        leaves, mask, log_fields, dtype
            As in `infer`.

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2, root_prior=[1, 0])
        >>> model.pair_beliefs([[1, 0, 2, 2]], [(2, 3)])[0, 0].tolist()  # they differ: the sum is even
        [[0.0, 0.5], [0.5, 0.0]]
        """
        evidence, _, wrap = check_evidence(self, leaves, mask, log_fields)
        levels = (self.depth, self.depth) if levels is None else levels
        return wrap(joint.pair_beliefs(self, evidence, levels, pairs, value_type(dtype)))

    def flip_table(
        self,
        leaves: Any = None,
        mask: Any = None,
        *,
        log_fields: Any = None,
        dtype: Any = "float64",
    ) -> Any:
        """The root's posterior under every single substitution, shape (n, n_leaves, n_classes, q).

        Entry [i, j, a, b] is P(root = a | the evidence of row i at all leaves but j, x_j = b): a table
        of all n_leaves * q answers from one pass. NaN where substitution and evidence are impossible
        together. Arguments as in `infer`; computed as in `pair_beliefs`.

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
        >>> table = model.flip_table([[1, 0, 0, 0]])  # any flip changes the parity
        >>> table[0, 2, :, 0].tolist(), table[0, 2, :, 1].tolist()
        ([0.0, 1.0], [1.0, 0.0])
        """
        evidence, _, wrap = check_evidence(self, leaves, mask, log_fields)
        return wrap(joint.flip_table(self, evidence, value_type(dtype)))
