"""The slow judge: enumeration of every latent configuration, and other independent computations.

Nothing here imports hfilter or shares a line with it.  A model is given as dense transition
tensors (one per level), a root prior, a depth and a filter level, exactly as in Garnier-Brun et al.
2024 (arXiv 2408.15138); everything else is derived in this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TWO32 = 2**32


def branches(index: int, level: int, arity: int) -> list[int]:
    """The branches taken from the root to node `index` of `level`: its digits in base `arity`."""
    return [index // arity ** (level - 1 - step) % arity for step in range(level)]


def child_marginal(tensor: np.ndarray, branch: int) -> np.ndarray:
    """M^(r)[a, b]: the law of child `branch` alone, shape (q_d, q_{d+1})."""
    others = tuple(axis for axis in range(1, tensor.ndim) if axis != branch + 1)
    return tensor.sum(axis=others)


def channel(tensors: Sequence[np.ndarray], level: int, index: int) -> np.ndarray:
    """P_i = M_0^(r_1) ... M_{k-1}^(r_k) (arXiv 2408.15138, Eq. 3), shape (q_0, q_level)."""
    product = np.eye(tensors[0].shape[0])
    for step, branch in enumerate(branches(index, level, tensors[0].ndim - 1)):
        product = product @ child_marginal(tensors[step], branch)
    return product


@dataclass
class Answer:
    """What exact inference must return for a batch of evidence."""

    log_evidence: np.ndarray  # (n,)
    beliefs: dict[int, np.ndarray]  # level -> (n, arity**level, q_level)
    leave_one_out: np.ndarray  # (n, n_leaves, q)

    @property
    def root(self) -> np.ndarray:
        return self.beliefs[0][:, 0]


class Enumeration:
    """All latent configurations of non-zero prior probability, one per row."""

    def __init__(
        self, tensors: Sequence[np.ndarray], prior: np.ndarray, depth: int, filter_level: int
    ) -> None:
        self.arity = tensors[0].ndim - 1
        self.depth, self.filter_level = depth, filter_level
        self.alphabets = [len(prior)] + [t.shape[-1] for t in tensors[:depth]]
        self.n_leaves = self.arity**depth
        self.levels = [0, *list(range(max(filter_level, 1), depth + 1))]
        roots = np.flatnonzero(prior)
        self._columns: dict[tuple[int, int], np.ndarray] = {(0, 0): roots}
        self.log_prior = np.log(prior[roots].astype(np.longdouble))
        if filter_level > 0:
            for i in range(self.arity**filter_level):
                self._expand((0, 0), [(filter_level, i)], channel(tensors, filter_level, i))
        for d in range(filter_level, depth):
            for i in range(self.arity**d):
                children = [(d + 1, self.arity * i + r) for r in range(self.arity)]
                self._expand((d, i), children, tensors[d])
        self.configurations = {
            d: np.stack([self._columns[d, i] for i in range(self.arity**d)], axis=1)
            for d in self.levels
        }
        self._indicators = {
            d: np.eye(self.alphabets[d])[self.configurations[d]].reshape(len(self.log_prior), -1)
            for d in self.levels
        }

    def _expand(
        self, parent: tuple[int, int], children: list[tuple[int, int]], table: np.ndarray
    ) -> None:
        """Replace every row by one row per non-zero entry of `table[symbol of the parent]`."""
        entries = [np.argwhere(row) for row in table]
        logs = [np.log(row[row > 0].astype(np.longdouble)) for row in table]
        offsets = np.concatenate([[0], np.cumsum([len(e) for e in entries])])
        symbols = self._columns[parent]
        counts = np.array([len(e) for e in entries])[symbols]
        source = np.repeat(np.arange(len(symbols)), counts)
        position = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
        picked = offsets[symbols[source]] + position
        self._columns = {node: column[source] for node, column in self._columns.items()}
        self.log_prior = self.log_prior[source] + np.concatenate(logs)[picked]
        for r, node in enumerate(children):
            self._columns[node] = np.concatenate(entries)[picked, r]

    def totals(self, log_fields: np.ndarray) -> tuple[np.ndarray, ...]:
        """Fields relative to each leaf's largest, and every configuration's log weight under them."""
        fields = np.asarray(log_fields).astype(np.longdouble)
        top = fields.max(axis=2, keepdims=True)
        top = np.where(np.isfinite(top), top, 0)
        fields = fields - top
        forbidden = np.isneginf(fields)
        fields = np.where(forbidden, 0, fields)
        leaves = self.configurations[self.depth]
        # Finite parts and the number of zeros are kept apart so that one leaf can be taken out.
        total = np.broadcast_to(self.log_prior, (len(fields), len(leaves))).copy()
        zeros = np.zeros(total.shape, dtype=np.int64)
        for j in range(self.n_leaves):
            total += fields[:, j][:, leaves[:, j]]
            zeros += forbidden[:, j][:, leaves[:, j]]
        return fields, forbidden, top, total, zeros

    def infer(self, log_fields: np.ndarray) -> Answer:
        """Posterior under log fields (n, n_leaves, q), by summing over all configurations."""
        fields, forbidden, top, total, zeros = self.totals(log_fields)
        n, n_leaves, q = fields.shape
        leaves = self.configurations[self.depth]
        peak, weights = relative_weights(total, zeros)
        norm = weights.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            log_evidence = peak + np.log(norm[:, 0]) + top.sum(axis=(1, 2))
            beliefs = {
                d: (weights @ self._indicators[d] / norm).reshape(
                    n, self.arity**d, self.alphabets[d]
                )
                for d in self.levels
            }
            loo = np.empty((n, n_leaves, q))
            for j in range(n_leaves):
                _, rest = relative_weights(
                    total - fields[:, j][:, leaves[:, j]],
                    zeros - forbidden[:, j][:, leaves[:, j]],
                )
                law = rest @ np.eye(q)[leaves[:, j]]
                loo[:, j] = law / law.sum(axis=1, keepdims=True)
        return Answer(log_evidence.astype(np.float64), beliefs, loo)

    def posterior(self, log_fields: np.ndarray) -> np.ndarray:
        """The posterior of every configuration, (n, configurations); NaN for an impossible row."""
        *_, total, zeros = self.totals(log_fields)
        _, weights = relative_weights(total, zeros)
        with np.errstate(invalid="ignore"):
            return weights / weights.sum(axis=1, keepdims=True)

    def sequence_law(self) -> np.ndarray:
        """The exact probability of every sequence, shape (q**n_leaves,), lexicographic order."""
        law = np.zeros(self.alphabets[-1] ** self.n_leaves)
        codes = sequence_codes(self.configurations[self.depth], self.alphabets[-1])
        np.add.at(law, codes, np.exp(self.log_prior).astype(np.float64))
        return law

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` leaf sequences from the model, shape (n, n_leaves)."""
        p = np.exp(self.log_prior).astype(np.float64)
        return self.configurations[self.depth][rng.choice(len(p), size=n, p=p / p.sum())]


def relative_weights(total: np.ndarray, zeros: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of the largest weight of each row and all weights relative to it (0 if impossible)."""
    logs = np.where(zeros > 0, -np.inf, total)
    peak = logs.max(axis=1)
    shift = np.where(np.isneginf(peak), 0, peak)
    return peak, np.exp((logs - shift[:, None]).astype(np.float64))


def sequence_codes(leaves: np.ndarray, q: int) -> np.ndarray:
    """Sequences as integers, first leaf most significant."""
    codes = np.zeros(len(leaves), dtype=np.int64)
    for column in np.asarray(leaves).astype(np.int64).T:
        codes = codes * q + column
    return codes


def all_sequences(q: int, n_leaves: int) -> np.ndarray:
    """Every sequence in lexicographic order, shape (q**n_leaves, n_leaves)."""
    grid = np.indices((q,) * n_leaves).reshape(n_leaves, -1)
    return np.ascontiguousarray(grid.T)


def token_fields(tokens: np.ndarray, mask: np.ndarray | None, q: int) -> np.ndarray:
    """Log fields of tokens: one-hot where seen, all ones where hidden (mask or token q)."""
    tokens = np.asarray(tokens).astype(np.int64)
    hidden = tokens == q
    if mask is not None:
        hidden = hidden | mask
    with np.errstate(divide="ignore"):
        return np.where(hidden[..., None], 0.0, np.log(np.eye(q + 1)[tokens][..., :q]))


def philox4x32(
    counter: Sequence[np.ndarray | int], key: Sequence[int], rounds: int = 10
) -> list[np.ndarray]:
    """Philox4x32 of Salmon et al. 2011, written from the paper's Sec. 3.3, vectorised."""
    c = [np.atleast_1d(np.asarray(x, dtype=np.uint64)) for x in counter]
    k = [int(x) for x in key]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(rounds):
        first = c[0] * np.uint64(0xD2511F53)
        second = c[2] * np.uint64(0xCD9E8D57)
        c = [
            (second >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            second & low,
            (first >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            first & low,
        ]
        k = [(k[0] + 0x9E3779B9) % TWO32, (k[1] + 0xBB67AE85) % TWO32]
    return c


def word(seed: int, rows: np.ndarray, t: int, purpose: int) -> np.ndarray:
    """Draw `t` of every row (uint64 indices) for a purpose: one 32-bit word each."""
    rows = np.asarray(rows, dtype=np.uint64)
    counter = [rows & np.uint64(0xFFFFFFFF), rows >> np.uint64(32), t // 4, purpose]
    return philox4x32(counter, [seed % TWO32, seed // TWO32])[t % 4]


def cut_points(probabilities: np.ndarray) -> np.ndarray:
    """Integer cut points of a discrete law: rounded cumulative sums times 2**32."""
    total, cuts = 0.0, []
    for p in probabilities:
        total += float(p)
        cuts.append(min(math.floor(total * TWO32 + 0.5), TWO32 - 1))
    return np.array(cuts[:-1], dtype=np.uint64)


def choose(words: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Positions chosen by the words: the number of cut points not above min(word, 2**32 - 2)."""
    capped = np.minimum(words, np.uint64(TWO32 - 2))
    return np.searchsorted(cut_points(probabilities), capped, side="right")


def sample_stream(
    tensors: Sequence[np.ndarray],
    prior: np.ndarray,
    depth: int,
    filter_level: int,
    rows: np.ndarray,
    seed: int,
    roots: np.ndarray | None = None,
) -> dict[int, np.ndarray]:
    """The documented sampling stream, re-done node by node: level -> (n, arity**level)."""
    arity = tensors[0].ndim - 1
    rows = np.asarray(rows, dtype=np.uint64)
    root = choose(word(seed, rows, 0, 0), prior) if roots is None else np.asarray(roots)
    levels = {0: root[:, None]}
    if filter_level > 0:
        star = np.empty((len(rows), arity**filter_level), dtype=np.int64)
        for i in range(arity**filter_level):
            words = word(seed, rows, i, 1)
            matrix = channel(tensors, filter_level, i)
            for a in np.unique(root):
                here = root == a
                star[here, i] = choose(words[here], matrix[a])
        levels[filter_level] = star
    for d in range(filter_level, depth):
        parents = levels[d]
        children = np.empty((len(rows), arity ** (d + 1)), dtype=np.int64)
        heap = sum(arity**e for e in range(d))  # heap index of the first node of the level
        for i in range(arity**d):
            words = word(seed, rows, 1 + heap + i, 0)
            for a in np.unique(parents[:, i]):
                here = parents[:, i] == a
                tuples = np.argwhere(tensors[d][a])  # lexicographic
                picked = choose(words[here], tensors[d][a][tuple(tuples.T)])
                children[here, arity * i : arity * (i + 1)] = tuples[picked]
        levels[d + 1] = children
    return levels


def log_sum(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Log of the sum of exponentials; -inf where everything is -inf."""
    peak = values.max(axis=axis, keepdims=True)
    peak = np.where(np.isneginf(peak), 0.0, peak)
    with np.errstate(divide="ignore"):
        out = np.log(np.exp(values - peak).sum(axis=axis, keepdims=True)) + peak
    return np.squeeze(out, axis=axis)


def log_domain_binary(
    tensors: Sequence[np.ndarray],
    prior: np.ndarray,
    depth: int,
    filter_level: int,
    log_fields: np.ndarray,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Messages of one sequence on a deep binary tree, all in logarithms and dense tensors.

    Returns log evidence, root posterior and the leave-one-out law of every leaf.  Slow in memory
    per node and free of any scaling trick: the judge where enumeration cannot go.
    """
    with np.errstate(divide="ignore"):
        logs = [np.log(t) for t in tensors[:depth]]
        log_prior = np.log(prior)
    up = {depth: log_fields}
    for d in reversed(range(filter_level, depth)):
        left, right = up[d + 1][0::2], up[d + 1][1::2]
        joint = logs[d][None] + left[:, None, :, None] + right[:, None, None, :]
        up[d] = log_sum(joint, axis=(2, 3))
    if filter_level == 0:
        down = {0: log_prior[None]}
        at_root = up[0][0]
    else:
        matrices = [np.eye(len(prior))[None]]
        for d in range(filter_level):
            both = [child_marginal(tensors[d], r) for r in range(2)]
            step = np.stack([matrices[-1] @ m for m in both], axis=1)
            matrices.append(step.reshape(-1, *step.shape[2:]))
        with np.errstate(divide="ignore"):
            log_channels = np.log(matrices[-1])  # (2**k, q_0, q_k)
        to_root = log_sum(log_channels + up[filter_level][:, None, :], axis=2)
        at_root = to_root.sum(axis=0)
        rest = log_prior + at_root - to_root  # finite fields only: no -inf minus -inf
        down = {filter_level: log_sum(log_channels + rest[:, :, None], axis=1)}
    for d in range(filter_level, depth):
        left, right = up[d + 1][0::2], up[d + 1][1::2]
        joint = logs[d][None] + down[d][:, :, None, None]
        to_left = log_sum(joint + right[:, None, None, :], axis=(1, 3))
        to_right = log_sum(joint + left[:, None, :, None], axis=(1, 2))
        pair = np.stack([to_left, to_right], axis=1)
        down[d + 1] = (pair - log_sum(pair, axis=2)[..., None]).reshape(-1, pair.shape[-1])
    evidence = log_sum(log_prior + at_root, axis=0)
    root = np.exp(log_prior + at_root - evidence)
    loo = np.exp(down[depth] - log_sum(down[depth], axis=1)[:, None])
    return float(evidence), root, loo


def chi2_tail(x: float, dof: float) -> float:
    """P(chi-square with `dof` degrees of freedom > x), by series or continued fraction."""
    a, x = dof / 2, x / 2
    if x <= 0:
        return 1.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        for i in range(1, 100_000):
            term *= x / (a + i)
            total += term
            if term < total * 1e-17:
                break
        return max(0.0, 1 - front * total)
    b = x + 1 - a
    c, d = 1e300, 1 / b
    h = d
    for i in range(1, 100_000):
        an = -i * (i - a)
        b += 2
        d = 1 / (an * d + b)
        c = b + an / c
        h *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return front * h


def g_test(counts: np.ndarray, law: np.ndarray) -> float:
    """p-value of observed counts under a law; 0 when an impossible cell was observed.

    Cells expected fewer than 10 times are pooled, so that the chi-square limit holds.
    """
    counts, expected = np.asarray(counts, dtype=float), law * counts.sum()
    if counts[law == 0].any():
        return 0.0
    rare = (expected < 10) & (law > 0)
    kept = (law > 0) & ~rare
    counts = np.append(counts[kept], counts[rare].sum())
    expected = np.append(expected[kept], expected[rare].sum())
    if expected[-1] < 10:  # too little even together: fold into the smallest kept cell
        smallest = int(np.argmin(expected[:-1]))
        counts[smallest] += counts[-1]
        expected[smallest] += expected[-1]
        counts, expected = counts[:-1], expected[:-1]
    seen = counts > 0
    g = 2 * float((counts[seen] * np.log(counts[seen] / expected[seen])).sum())
    return chi2_tail(g, len(counts) - 1)
