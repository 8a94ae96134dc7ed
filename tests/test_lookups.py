"""Upward passes from tokens: subtrees looked up and complete sets of rules have ways of their own, to the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import hfilter
from hfilter import Grammar, TreeModel

COMPILED = tuple(
    name for name in ("avx512", "avx2", "portable")
    if name in hfilter.backends() and hfilter.backends()[name].available
)  # fmt: skip
NUMBA = hfilter.backends()["numba"].available


def factorised(q: int) -> Grammar:
    left, right = np.random.default_rng(0).dirichlet(np.ones(q), (2, q))
    return Grammar.from_tensor(left[:, :, None] * right[:, None, :])


def one_rule_less() -> Grammar:
    tensor = np.random.default_rng(1).dirichlet(np.ones(16), 4)
    tensor[2, 5] = 0
    return Grammar.from_tensor((tensor / tensor.sum(1, keepdims=True)).reshape(4, 4, 4))


def uneven(least: float) -> Grammar:
    """Two rules a symbol, one of them with that probability."""
    tensor = np.zeros((3, 3, 3))
    tensor[[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0]] = [least, 1 - least] * 3
    return Grammar.from_tensor(tensor)


MODELS = {
    "complete": lambda: TreeModel(factorised(4), 4),
    "complete, one level looked up": lambda: TreeModel(factorised(4), 4, 3),
    "complete, below a star": lambda: TreeModel(factorised(4), 4, 2),
    "complete, shallow": lambda: TreeModel(Grammar.dense(4, 1.0, 3), 3),
    "complete, wide range": lambda: TreeModel(Grammar.dense(4, 0.02, 3), 4),
    "one rule less": lambda: TreeModel(one_rule_less(), 4),
    "unambiguous": lambda: TreeModel(Grammar.published(4, 1.0, 0), 4),
    "deep": lambda: TreeModel(Grammar.published(4, 1.0, 0), 7),
    "deep, complete": lambda: TreeModel(factorised(4), 7),
    "rare rules": lambda: TreeModel(Grammar.log_normal(4, 4.0, 0), 4),
    "rare rules, deep": lambda: TreeModel(Grammar.log_normal(4, 3.0, 0), 7),
    "raw messages too small": lambda: TreeModel(uneven(1e-7), 6),
    "raw messages too small, below a star": lambda: TreeModel(uneven(1e-7), 6, 4),
    "small messages": lambda: TreeModel(Grammar.log_normal(8, 3.0, 0), 5),
    "arity 8": lambda: TreeModel(Grammar.dense(2, 1.0, 0, arity=8), 2),
    "in danger": lambda: TreeModel(Grammar.dense(4, 0.1, 0), 8),
    "rarer rules": lambda: TreeModel(Grammar.log_normal(4, 9.0, 0), 4),
    "pairs of leaves": lambda: TreeModel(Grammar.log_normal(12, 1.0, 0), 4),
    "many pairs of leaves": lambda: TreeModel(Grammar.log_normal(38, 1.0, 0), 4),
    "levels": lambda: TreeModel(Grammar.random_hierarchy(5, 3, 5, n_classes=7, seed=1), 5),
    "arity 3": lambda: TreeModel(Grammar.dense(2, 1.0, 0, arity=3), 3),
    "arity 4": lambda: TreeModel(Grammar.dense(2, 1.0, 0, arity=4), 2),
}


@pytest.mark.skipif(not COMPILED, reason="no compiled backend")
@pytest.mark.parametrize("hidden", [0.0, 0.2])
@pytest.mark.parametrize("name", MODELS)
def test_looked_up_rows_are_the_computed_ones(name, hidden, rng):
    model = MODELS[name]()
    rows = model.sample(3000, seed=1).leaves.copy()
    changed = rng.random(len(rows)) < 0.2
    rows[changed, 1] = rng.integers(0, model.vocab_size, changed.sum())
    rows[::3] = rng.integers(0, model.vocab_size, rows[::3].shape)
    rows[1] = 0  # of the rarest rules, where a model is uneven
    mask = rng.random(rows.shape) < hidden if hidden else None
    few = 20
    some = rows[:few], None if mask is None else mask[:few]
    want = model.root_posterior(*some, backend="python")
    logs = model.log_prob(*some, backend="python")
    # Numba scales all messages, and looks nothing up of rows that are not fully seen.
    many = rows[:600], None if mask is None else mask[:600]
    scaled = model.root_posterior(*many, backend="numba") if NUMBA else None
    marked = np.where(mask, model.mask_token, rows) if hidden else rows
    for backend in COMPILED:
        root = model.root_posterior(rows, mask, backend=backend)  # enough rows for a table
        log = model.log_prob(rows, mask, backend=backend)
        np.testing.assert_array_equal(root[:few], want)
        if NUMBA:
            np.testing.assert_array_equal(root[:600], scaled)
        np.testing.assert_allclose(log[:few], logs, rtol=1e-14)
        for n in (2, 15, 16, 17, 33):
            part = None if mask is None else mask[:n]
            np.testing.assert_array_equal(
                model.root_posterior(rows[:n], part, backend=backend), root[:n]
            )
            np.testing.assert_array_equal(model.log_prob(rows[:n], part, backend=backend), log[:n])
        np.testing.assert_array_equal(model.root_posterior(marked, backend=backend), root)
        wide = marked.astype(np.uint16)
        np.testing.assert_array_equal(model.root_posterior(wide, backend=backend), root)
        alone = [model.log_prob(marked[i : i + 1], backend=backend)[0] for i in range(few)]
        np.testing.assert_array_equal(alone, log[:few])
