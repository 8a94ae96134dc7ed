"""Bayes' rule over a list of rows with weights, written out: the judge of the oracle predictors.

Nothing here imports hfilter. The rows are all sequences with their probabilities, or a data set.
"""

from __future__ import annotations

import numpy as np

LONG = np.longdouble


def log_weights(rows: np.ndarray, weights: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """ln of weight times likelihood under log fields (L, q), for every row."""
    with np.errstate(divide="ignore"):
        total = np.log(weights.astype(LONG))
    for j in range(rows.shape[1]):
        total = total + fields[j].astype(LONG)[rows[:, j]]
    return total


def law_of(symbols: np.ndarray, logs: np.ndarray, q: int) -> np.ndarray:
    """Law of a symbol given ln weights of the rows it stands in; NaN if all are -inf."""
    peak = logs.max()
    if np.isneginf(peak):
        return np.full(q, np.nan)
    out = np.bincount(symbols, weights=np.exp(logs - peak).astype(np.float64), minlength=q)
    return out / out.sum()


def leaf_laws(
    rows: np.ndarray, weights: np.ndarray, fields: np.ndarray, windows: np.ndarray | None = None
) -> np.ndarray:
    """P(x_j | evidence of the others) for fields (n, L, q), by summing over all rows.

    With `windows` (L, L) only the leaves i where ``windows[j, i]`` count for leaf j.
    """
    n, length, q = fields.shape
    out = np.empty((n, length, q))
    for r in range(n):
        for j in range(length):
            own = fields[r].copy()
            own[j] = 0.0
            if windows is not None:
                own[~windows[j]] = 0.0
            out[r, j] = law_of(rows[:, j], log_weights(rows, weights, own), q)
    return out


def root_laws(
    rows: np.ndarray, weights: np.ndarray, roots: np.ndarray, fields: np.ndarray, n_classes: int
) -> np.ndarray:
    """P(root | evidence) for fields (n, L, q), given the root of every row."""
    return np.stack([law_of(roots, log_weights(rows, weights, f), n_classes) for f in fields])


def channel_fields(tokens: np.ndarray, mask: np.ndarray | None, q: int, noise: float) -> np.ndarray:
    """Log fields of tokens through uniform noise, entry by entry."""
    out = np.zeros((*tokens.shape, q))
    for place in np.ndindex(*tokens.shape):
        if tokens[place] == q or (mask is not None and mask[place]):
            continue
        for b in range(q):
            p = noise / q + (1 - noise if b == tokens[place] else 0.0)
            out[(*place, b)] = np.log(p) if p > 0 else -np.inf
    return out
