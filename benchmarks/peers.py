"""What a researcher would use instead: good vectorised torch, compiled torch, and plain NumPy.

All in the linear domain and single precision, with the transition tensor applied by `einsum` and
messages normalised at every node, as one would write it who knows both the model and the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import hfilter


class SearchSampler:
    """Ancestral sampling of whole levels: one uniform per node, looked up in its parent's row."""

    def __init__(self, model: hfilter.TreeModel) -> None:
        table = model.grammar.table(0)
        width = int(np.diff(table.first).max())
        place = np.arange(table.n_rules) - np.repeat(table.first[:-1], np.diff(table.first))
        weights = np.zeros((table.n_parents, width))
        weights[table.parents, place] = table.probability
        self.cumulative = np.cumsum(weights, axis=1)
        self.cumulative[:, -1] = 2.0
        self.cumulative = np.minimum.accumulate(self.cumulative[:, ::-1], axis=1)[:, ::-1]
        self.children = np.zeros((table.n_parents, width, 2), np.int64)
        self.children[table.parents, place] = table.children
        self.model = model
        self.torch_cumulative = torch.from_numpy(self.cumulative.astype(np.float32))
        self.torch_children = torch.from_numpy(self.children)

    def torch(self, n: int) -> Any:
        """Leaves (n, L), one `searchsorted` a level."""
        x = torch.randint(self.model.n_classes, (n, 1))
        for _ in range(self.model.depth):
            rows = self.torch_cumulative[x]
            rule = torch.searchsorted(rows, torch.rand(*x.shape, 1)).squeeze(-1)
            x = self.torch_children[x, rule].reshape(n, -1)
        return x.to(torch.uint8)

    def numpy(self, n: int) -> Any:
        """Leaves (n, L), by comparing with the whole row."""
        rng = np.random.default_rng(0)
        x = rng.integers(self.model.n_classes, size=(n, 1))
        for _ in range(self.model.depth):
            u = rng.random((*x.shape, 1))
            rule = (u >= self.cumulative[x]).sum(axis=-1)
            x = self.children[x, rule].reshape(n, -1)
        return x.astype(np.uint8)


def _messages(model: hfilter.TreeModel, einsum: Callable[..., Any], lib: Any) -> Callable[..., Any]:
    """Both passes at filter level 0 in whatever library `einsum` and `lib` are of."""
    tensor = model.grammar.tensor().astype(np.float32)
    m = torch.from_numpy(tensor) if lib is torch else tensor
    depth = model.depth

    def unit(x: Any) -> Any:
        return x / (x.sum(-1, keepdims=True) if lib is np else x.sum(-1, keepdim=True))

    def passes(leaves: Any, what: str) -> Any:
        nu = [leaves]
        for _ in range(depth):
            below = nu[-1]
            nu.append(unit(einsum("abc,nib,nic->nia", m, below[:, ::2], below[:, 1::2])))
        root = unit(nu[-1][:, 0])
        if what == "root":
            return root
        mu = lib.ones_like(nu[-1])
        for level in range(depth - 1, -1, -1):
            left, right = nu[level][:, ::2], nu[level][:, 1::2]
            to_left = einsum("nia,abc,nic->nib", mu, m, right)
            to_right = einsum("nia,abc,nib->nic", mu, m, left)
            mu = unit(lib.stack([to_left, to_right], 2).reshape(len(leaves), -1, m.shape[1]))
        return unit(mu * leaves) if what == "beliefs" else mu

    return passes


class EinsumBP:
    """Belief propagation on a batch, by `einsum`."""

    def __init__(self, model: hfilter.TreeModel) -> None:
        self.q = model.vocab_size
        self._torch = _messages(model, torch.einsum, torch)
        self._compiled = torch.compile(self._torch)
        self._numpy = _messages(model, lambda *a: np.einsum(*a, optimize=True), np)

    def torch(self, evidence: torch.Tensor, what: str, *, compiled: bool) -> torch.Tensor:
        """Evidence: log-fields (n, L, q) or tokens (n, L)."""
        if evidence.ndim == 3:
            leaves = torch.softmax(evidence, -1)
        else:
            leaves = torch.nn.functional.one_hot(evidence.long(), self.q).to(torch.float32)
        return (self._compiled if compiled else self._torch)(leaves, what)

    def numpy(self, evidence: Any, what: str) -> Any:
        """The same with NumPy arrays."""
        if evidence.ndim == 3:
            leaves = np.exp(evidence - evidence.max(axis=-1, keepdims=True))
        else:
            leaves = np.eye(self.q, dtype=np.float32)[evidence]
        return self._numpy(leaves, what)
