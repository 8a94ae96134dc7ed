"""Plain NumPy, whole levels at a time, on fewer rows."""

from __future__ import annotations

import functools
from typing import Any

import formulations as bp
import numpy as np
from cases import Case
from process import Offer

import hfilter


def about() -> dict[str, str]:
    """Versions, for the table."""
    return {"numpy": np.__version__}


def padded(model: hfilter.TreeModel, level: int) -> tuple[Any, Any, Any, Any]:
    """Rules of a level by parent: cumulative rows and children padded to the longest; the same flat.

    Flat, parent a's rules end at a + cumulative: one sorted array serves all parents at once.
    """
    table = model.grammar.table(level)
    counts = np.diff(table.first)
    place = np.arange(table.n_rules) - np.repeat(table.first[:-1], counts)
    weights = np.zeros((table.n_parents, counts.max()))
    weights[table.parents, place] = table.probability
    cumulative = np.cumsum(weights, axis=1)
    children = np.zeros((table.n_parents, counts.max(), 2), np.int64)
    children[table.parents, place] = table.children
    past = np.arange(counts.max())[None] >= counts[:, None] - 1
    flat = (cumulative + np.arange(table.n_parents)[:, None])[table.parents, place]
    flat[table.first[1:] - 1] = np.arange(1, table.n_parents + 1)
    cumulative[past] = 2.0
    return cumulative, children, flat, table.children.astype(np.int64)


def offers(case: Case, evidence: Any) -> list[Offer]:
    """Comparison with whole rows of cut points; `einsum`."""
    model, what = case.tree(), case.question
    n = max(case.n // 10, min(case.n, 100))
    if what == "sample":
        tables = [padded(model, d)[:2] for d in range(model.depth)]
        rng = np.random.default_rng(0)

        def sample() -> Any:
            x = rng.integers(model.n_classes, size=(n, 1))
            for cumulative, children in tables:
                rule = (rng.random((*x.shape, 1)) >= cumulative[x]).sum(axis=-1)
                x = children[x, rule].reshape(n, -1)
            return x.astype(np.uint8)

        return [Offer("numpy", sample, n)]

    def contract(*of: Any) -> Any:
        return np.einsum(*of, optimize=True)

    forms = {"einsum": bp.einsum(model, np, np.asarray, contract),
             "matrix product": bp.matrix_product(model, np, np.asarray)}  # fmt: skip
    return [
        Offer("numpy", functools.partial(form, evidence[:n], what), n, name)
        for name, form in forms.items()
    ]
