"""The linear assignment problem: who takes which task, at least cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["assign"]


def assign(cost: NDArray[np.float64]) -> NDArray[np.intp]:
    """For every row of a square matrix a column of its own, so that their sum is least.

    Parameters
    ----------
    cost : ndarray of float64, shape (n, n)
        Finite.

    Returns
    -------
    ndarray of int, shape (n,)
        A permutation: the column of each row. The same for the same costs on every machine.

    Notes
    -----
    Rows enter one by one, each along a path of least reduced cost to a free column (Kuhn 1955; Jonker
    and Volgenant 1987): O(n³). SciPy has the same as `linear_sum_assignment`; the core does without.

    Examples
    --------
    >>> assign(np.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])).tolist()
    [1, 0, 2]
    """
    n = len(cost)
    row_of = np.full(n + 1, -1)  # the row that has a column; column n is where each new row stands
    price_row, price = np.zeros(n), np.zeros(n + 1)
    for new in range(n):
        row_of[n] = new
        at, done = n, np.zeros(n + 1, bool)
        reach, came = np.full(n, np.inf), np.full(n, n)
        while row_of[at] >= 0:
            done[at] = True
            row = row_of[at]
            reduced = cost[row] - price_row[row] - price[:n]
            nearer = ~done[:n] & (reduced < reach)
            reach[nearer], came[nearer] = reduced[nearer], at
            open_ = np.flatnonzero(~done[:n])
            following = open_[np.argmin(reach[open_])]
            step = reach[following]
            visited = np.flatnonzero(done)
            price_row[row_of[visited]] += step
            price[visited] -= step
            reach[open_] -= step
            at = following
        while at != n:
            row_of[at] = row_of[came[at]]
            at = came[at]
        row_of[n] = -1
    out = np.empty(n, np.intp)
    out[row_of[:n]] = np.arange(n)
    return out
