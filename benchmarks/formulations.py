"""Belief propagation as a researcher would write it: four formulations, in torch, JAX or NumPy.

All in the linear domain and single precision, whole levels at a time, messages normalised at every
node; the last is torch's usual log-space. Each gives `passes(evidence, what)` for log-fields (n, L, q)
or tokens (n, L), opened inside so that a compiler can fuse it. `lib` is torch, jax.numpy or numpy:
they agree on the names used here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import hfilter

Passes = Callable[[Any, str], Any]


def tensor(model: hfilter.TreeModel) -> Any:
    """The transition tensor in single precision."""
    return model.grammar.tensor().astype(np.float32)


def _unit(x: Any) -> Any:
    return x / x.sum(-1)[..., None]


def _node_major(
    model: hfilter.TreeModel, lib: Any, array: Any, up: Any, to_left: Any, to_right: Any
) -> Passes:
    """Arrays (n, nodes, q); the three contractions differ."""
    depth, q = model.depth, model.vocab_size
    symbols = array(np.arange(q, dtype=np.uint8))

    def passes(evidence: Any, what: str) -> Any:
        leaves = _opened(evidence, symbols, lib)
        nu = [leaves]
        for _ in range(depth):
            nu.append(_unit(up(nu[-1][:, ::2], nu[-1][:, 1::2])))
        if what == "root":
            return nu[-1][:, 0]
        mu = lib.ones_like(nu[-1])
        for level in range(depth - 1, -1, -1):
            left, right = nu[level][:, ::2], nu[level][:, 1::2]
            pair = [to_left(mu, right), to_right(mu, left)]
            mu = _unit(lib.stack(pair, 2).reshape(len(leaves), -1, q))
        return _unit(mu * leaves) if what == "beliefs" else mu

    return passes


def einsum(model: hfilter.TreeModel, lib: Any, array: Any, contract: Any = None) -> Passes:
    """`einsum` with the transition tensor."""
    m, es = array(tensor(model)), contract or lib.einsum
    return _node_major(
        model, lib, array,
        lambda left, right: es("abc,nib,nic->nia", m, left, right),
        lambda mu, right: es("nia,abc,nic->nib", mu, m, right),
        lambda mu, left: es("nia,abc,nib->nic", mu, m, left),
    )  # fmt: skip


def matrix_product(model: hfilter.TreeModel, lib: Any, array: Any) -> Passes:
    """Outer products of two messages times a (q q, q) matrix."""
    m, q = tensor(model), model.vocab_size
    # Sum over (b, c), (a, c) and (a, b).
    up, left, right = (array(np.ascontiguousarray(m.transpose(p).reshape(q * q, q)))
                       for p in ((1, 2, 0), (0, 2, 1), (0, 1, 2)))  # fmt: skip

    def times(matrix: Any) -> Any:
        def apply(x: Any, y: Any) -> Any:
            return (x[..., :, None] * y[..., None, :]).reshape(*x.shape[:2], q * q) @ matrix

        return apply

    return _node_major(model, lib, array, times(up), times(left), times(right))


def symbol_major(model: hfilter.TreeModel, lib: Any, array: Any) -> Passes:
    """The matrix product with arrays (q, nodes, n): batches contiguous, no gather in any sum."""
    m, q, depth = tensor(model), model.vocab_size, model.depth
    up, left, right = (array(np.ascontiguousarray(m.transpose(p).reshape(q, q * q)))
                       for p in ((0, 1, 2), (1, 0, 2), (2, 0, 1)))  # fmt: skip

    def unit(x: Any) -> Any:
        return x / x.sum(0)

    def apply(matrix: Any, x: Any, y: Any) -> Any:
        return (matrix @ (x[:, None] * y[None]).reshape(q * q, -1)).reshape(x.shape)

    symbols = array(np.arange(q, dtype=np.uint8))[:, None, None]

    def passes(evidence: Any, what: str) -> Any:
        if len(evidence.shape) == 3:
            x = _axes(evidence, (2, 1, 0))
            nu = [lib.exp(x - lib.amax(x, 0))]
        else:
            nu = [1.0 * (symbols == evidence.T)]
        for _ in range(depth):
            nu.append(unit(apply(up, nu[-1][:, ::2], nu[-1][:, 1::2])))
        if what == "root":
            return nu[-1][:, 0].T
        mu = lib.ones_like(nu[-1])
        for level in range(depth - 1, -1, -1):
            pair = [apply(left, mu, nu[level][:, 1::2]), apply(right, mu, nu[level][:, ::2])]
            mu = unit(lib.stack(pair, 2).reshape(q, -1, len(evidence)))
        return _axes(unit(mu * nu[0]) if what == "beliefs" else mu, (2, 1, 0))

    return passes


def unrolled(model: hfilter.TreeModel, lib: Any, array: Any) -> Passes:
    """Rule by rule, arrays (nodes, q, n): hfilter's own algorithm, for a compiler that fuses loops."""
    table, q, depth = model.grammar.table(0), model.vocab_size, model.depth
    rules = [(int(a), int(b), int(c), float(p))
             for a, (b, c), p in zip(table.parents, table.children, table.probability, strict=True)]  # fmt: skip

    def collect(terms: list[tuple[int, Any]]) -> Any:
        sums: list[Any] = [None] * q
        for symbol, term in terms:
            sums[symbol] = term if sums[symbol] is None else sums[symbol] + term
        zero = lib.zeros_like(terms[0][1])
        x = lib.stack([zero if s is None else s for s in sums], 1)
        return x / x.sum(1)[:, None]

    symbols = array(np.arange(q, dtype=np.uint8))[:, None]

    def passes(evidence: Any, what: str) -> Any:
        if len(evidence.shape) == 3:
            x = _axes(evidence, (1, 2, 0))
            nu = [lib.exp(x - lib.amax(x, 1)[:, None])]
        else:
            nu = [1.0 * (evidence.T[:, None] == symbols)]
        for _ in range(depth):
            x, y = nu[-1][::2], nu[-1][1::2]
            nu.append(collect([(a, p * x[:, b] * y[:, c]) for a, b, c, p in rules]))
        if what == "root":
            return nu[-1][0].T
        mu = lib.ones_like(nu[-1])
        for level in range(depth - 1, -1, -1):
            x, y = nu[level][::2], nu[level][1::2]
            to_left = collect([(b, p * mu[:, a] * y[:, c]) for a, b, c, p in rules])
            to_right = collect([(c, p * mu[:, a] * x[:, b]) for a, b, c, p in rules])
            mu = lib.stack([to_left, to_right], 1).reshape(-1, q, len(evidence))
        if what == "beliefs":
            mu = mu * nu[0]
            mu = mu / mu.sum(1)[:, None]
        return _axes(mu, (2, 0, 1))

    return passes


def log_space(model: hfilter.TreeModel, torch: Any) -> Passes:
    """torch with logarithms throughout: what is usually written for fear of underflow."""
    m, q, depth = torch.from_numpy(tensor(model)).log(), model.vocab_size, model.depth

    def unit(x: Any) -> Any:
        return x - x.logsumexp(-1, keepdim=True)

    symbols = torch.arange(q, dtype=torch.uint8)

    def passes(evidence: Any, what: str) -> Any:
        nu = [evidence if evidence.ndim == 3 else (1.0 * (evidence[..., None] == symbols)).log()]
        for _ in range(depth):
            x, y = nu[-1][:, ::2, None, :, None], nu[-1][:, 1::2, None, None, :]
            nu.append(unit((m + x + y).flatten(-2).logsumexp(-1)))
        if what == "root":
            return nu[-1][:, 0].exp()
        mu = torch.zeros_like(nu[-1])
        for level in range(depth - 1, -1, -1):
            x, y = nu[level][:, ::2, None, :, None], nu[level][:, 1::2, None, None, :]
            above = mu[..., :, None, None] + m
            pair = [(above + y).logsumexp((-3, -1)), (above + x).logsumexp((-3, -2))]
            mu = unit(torch.stack(pair, 2).reshape(len(evidence), -1, q))
        return (unit(mu + nu[0]) if what == "beliefs" else mu).exp()

    return passes


def _opened(evidence: Any, symbols: Any, lib: Any) -> Any:
    """Likelihoods of the symbols at the leaves, (n, L, q)."""
    if len(evidence.shape) == 3:
        return lib.exp(evidence - lib.amax(evidence, -1)[..., None])
    return 1.0 * (evidence[..., None] == symbols)


def _axes(x: Any, order: tuple[int, int, int]) -> Any:
    """Transposed, and laid out anew: `transpose` of NumPy and JAX is torch's `permute`."""
    if hasattr(x, "permute"):
        return x.permute(order).contiguous()
    return x.transpose(order)


def batch(model: hfilter.TreeModel, n: int) -> int:
    """Rows whose messages stay in a core's cache (half a megabyte of leaves), dividing n."""
    most = max(1, (1 << 17) // (model.n_leaves * model.vocab_size))
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)
