"""The slow judge of diffusion: Bayes' rule over every clean sequence, in long double.

Nothing here imports hfilter. A law of clean sequences is (rows (S, L), their ln probability (S,)), as
`enumerated.sequence_logs` gives it; a channel is ln P(x_t,j | x_0,j = b) in full, (n, L, q).
"""

from __future__ import annotations

import numpy as np
from enumerated import sequence_logs
from oracle import Enumeration

LONG = np.longdouble


def gaussian_logs(x: np.ndarray, alpha_bar: np.ndarray) -> np.ndarray:
    """ln of the density of x_t,j (q numbers) given x_0,j = b, (n, L, q); one ᾱ for each row."""
    kept = np.asarray(alpha_bar, LONG).reshape(-1, 1, 1)
    q = x.shape[2]
    square = ((x.astype(LONG)[:, :, None, :] - np.sqrt(kept)[..., None] * np.eye(q)) ** 2).sum(
        axis=3
    )
    return -square / (2 * (1 - kept)) - q / LONG(2) * np.log(2 * LONG(np.pi) * (1 - kept))


def masking_logs(tokens: np.ndarray, survival: np.ndarray, q: int) -> np.ndarray:
    """ln P(token | clean symbol) where a token is hidden with probability 1 - survival."""
    kept = np.asarray(survival, LONG).reshape(-1, 1, 1)
    table = np.where((tokens == q)[..., None], 1 - kept, kept * (tokens[..., None] == np.arange(q)))
    with np.errstate(divide="ignore"):
        return np.log(table)


def uniform_logs(tokens: np.ndarray, survival: np.ndarray, q: int) -> np.ndarray:
    """ln P(token | clean symbol) where a token is replaced by a uniform one with probability 1 - survival."""
    kept = np.asarray(survival, LONG).reshape(-1, 1, 1)
    with np.errstate(divide="ignore"):
        return np.log(kept * (tokens[..., None] == np.arange(q)) + (1 - kept) / q)


def weights(
    rows: np.ndarray, logs: np.ndarray, channel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior of every sequence, (n, S), NaN where none is possible; and ln P(x_t), (n,)."""
    total = np.broadcast_to(logs.astype(LONG), (len(channel), len(rows))).copy()
    for j in range(rows.shape[1]):
        total += channel[:, j][:, rows[:, j]]
    peak = total.max(axis=1, keepdims=True)
    shift = np.where(np.isneginf(peak), 0, peak)
    found = np.exp(total - shift)
    norm = found.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return found / norm, (np.log(norm) + shift)[:, 0]


def marginals(rows: np.ndarray, posterior: np.ndarray, q: int) -> np.ndarray:
    """P(x_0,j = b | x_t), (n, L, q)."""
    return np.stack(
        [posterior @ np.eye(q, dtype=LONG)[rows[:, j]] for j in range(rows.shape[1])], axis=1
    )


def all_of(law: Enumeration) -> tuple[np.ndarray, np.ndarray]:
    """The law of clean sequences of a model."""
    return sequence_logs(law)
