"""Predictions of a leaf from some of the others: those before it, those near it."""

from __future__ import annotations

from typing import Any

from ..checks import check_int
from .door import Door


class Contexts(Door):
    """`next_token`, `windowed`."""

    def next_token(
        self,
        leaves: Any = None,
        mask: Any = None,
        *,
        log_fields: Any = None,
        dtype: Any = "float32",
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """P(x_j | x_0 … x_{j-1}) at every position, shape (n, n_leaves, q), at any filter level.

        One upward and one downward pass answer all positions; what lies at or right of a position has no
        influence there. The exact answer to causal language modelling: the sum of ln P over the leaves that
        came is `log_prob`. With a mask, or fields, each position is predicted from what is known of
        those before it. NaN from the first position on whose context is impossible. Arguments as in
        `infer`.

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2, root_prior=[1, 0])
        >>> model.next_token([[1, 0, 0, 1]])[0, 3].tolist()  # the last bit makes the sum even
        [0.0, 1.0]

        Notes
        -----
        The downward message of node v's child r is the sum over rules of mu_v(a) p times the upward
        messages of the children left of r alone; those on the right sum to one.
        """
        question = (leaves, mask, log_fields, dtype, backend, num_threads)
        out, wrap = self._ask(*question, {"leave_one_out": True}, causal=True)
        return wrap(out.leave_one_out)

    def windowed(
        self,
        leaves: Any = None,
        height: int = 1,
        mask: Any = None,
        *,
        log_fields: Any = None,
        dtype: Any = "float32",
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """P(x_j | the other leaves of the height-h subtree around j), shape (n, n_leaves, q).

        The locality ladder W_h beside the filter ladder BP_k: `height` 0 knows nothing but the position
        (the marginal law of leaf j), `height` = depth is `leave_one_out`. The leaf's own evidence is left
        out, which at a masked leaf changes nothing. Other arguments as in `infer`.

        Parameters
        ----------
        height : int
            Levels between the top of the window and the leaves, 0 … depth: windows of arity**height leaves.

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
        >>> x = model.sample(20_000, seed=0).leaves
        >>> [round(float(model.windowed(x, h).max(axis=2).mean()), 2) for h in range(5)]
        [0.32, 0.56, 0.65, 0.69, 0.71]
        """
        height = check_int("height", height, 0, self.depth)
        question = (leaves, mask, log_fields, dtype, backend, num_threads)
        out, wrap = self._ask(*question, {"leave_one_out": True}, window=self.depth - height)
        return wrap(out.leave_one_out)
