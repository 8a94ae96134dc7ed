"""Chance: samples against exact laws, with a stated false-alarm rate and mutants to reject.

Every test of a correct sampler alarms with probability ALPHA; the file makes fewer than 100 such
tests, so the family-wise rate is below 1e-4 over all seeds (and the seeds are fixed: a pass stays
a pass).  Each test carries a mutant, a sampler with one small fault, which it must reject.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle import Enumeration, g_test, sequence_codes

from hfilter import Grammar, TreeModel

ALPHA = 1e-6
N = 400_000


def exact(model: TreeModel) -> Enumeration:
    tensors = [model.grammar.tensor(d) for d in range(model.depth)]
    return Enumeration(tensors, np.asarray(model.root_prior), model.depth, model.filter_level)


def counts(leaves: np.ndarray, q: int) -> np.ndarray:
    return np.bincount(sequence_codes(leaves, q), minlength=q ** leaves.shape[1])


GRAMMARS = {
    "log_normal": (lambda: Grammar.log_normal(3, 1.0, 0), 2, None),
    "forbidden": (lambda: Grammar.log_normal(3, 1.0, 1, rules_per_symbol=2), 2, [0.2, 0.5, 0.3]),
    "dense": (lambda: Grammar.dense(3, 1.0, 2), 2, [0.6, 0.0, 0.4]),
    "arity3": (lambda: Grammar.log_normal(2, 1.0, 3, arity=3), 2, None),
    "levels": (
        lambda: Grammar.random_hierarchy(
            vocab_size=3, rules_per_symbol=2, depth=2, n_classes=4, seed=4
        ),
        2,
        None,
    ),
    "depth-3": (lambda: Grammar.dense(2, 1.0, 5), 3, None),
}
PAIRS = [(name, k) for name, (_, depth, _) in GRAMMARS.items() for k in range(depth + 1)]


def model_of(name: str, k: int) -> TreeModel:
    make, depth, prior = GRAMMARS[name]
    return TreeModel(make(), depth, k, root_prior=prior)


@pytest.mark.parametrize(("name", "k"), PAIRS)
def test_sequences_follow_the_exact_law(name: str, k: int) -> None:
    model = model_of(name, k)
    leaves = model.sample(N, seed=101).leaves
    assert g_test(counts(leaves, model.vocab_size), exact(model).sequence_law()) > ALPHA


@pytest.mark.parametrize("k", range(3))
def test_mutants_of_the_grammar_are_rejected(k: int) -> None:
    """Two rules exchange their probabilities, one moves by 5 %, or two columns swap."""
    model = model_of("log_normal", k)
    law = exact(model).sequence_law()
    tensor = model.grammar.tensor()
    a, b = np.argwhere(tensor[0])[:2]
    swapped = tensor.copy()
    swapped[0][tuple(a)], swapped[0][tuple(b)] = tensor[0][tuple(b)], tensor[0][tuple(a)]
    nudged = tensor.copy()
    nudged[0][np.unravel_index(tensor[0].argmax(), (3, 3))] *= 1.05
    nudged[0] /= nudged[0].sum()
    for mutant in (swapped, nudged):
        wrong = TreeModel(Grammar.from_tensor(mutant), 2, k)
        assert g_test(counts(wrong.sample(N, seed=101).leaves, 3), law) < ALPHA
    columns = model.sample(N, seed=101).leaves[:, [1, 0, 2, 3]]
    assert g_test(counts(columns, 3), law) < ALPHA


@pytest.mark.parametrize(("k", "wrong"), [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_a_wrong_filter_level_is_rejected(k: int, wrong: int) -> None:
    """The marginals are the same for every k: only correlations tell, and they must."""
    model = model_of("log_normal", k)
    leaves = model.filtered(wrong).sample(N, seed=102).leaves
    assert g_test(counts(leaves, 3), exact(model).sequence_law()) < ALPHA


def test_roots_follow_the_prior() -> None:
    prior = np.array([0.1, 0.0, 0.25, 0.65])
    model = TreeModel(Grammar.dense(4, 1.0, 0), 1, root_prior=prior)
    seen = np.bincount(model.sample(N, seed=103).roots, minlength=4)
    assert g_test(seen, prior) > ALPHA
    mutant = np.array([0.1, 0.0, 0.255, 0.645])
    wrong = TreeModel(Grammar.dense(4, 1.0, 0), 1, root_prior=mutant)
    assert g_test(np.bincount(wrong.sample(N, seed=103).roots, minlength=4), prior) < ALPHA


@pytest.mark.parametrize("k", range(4))
def test_internal_levels_follow_the_exact_law(k: int) -> None:
    """Joint law of (root, first internal node or leaf, its first child), levels as returned."""
    model = model_of("depth-3", k)
    law = exact(model)
    sample = model.sample(N, seed=104, levels=True)
    nodes = [(d, law.arity**d - 1) for d in law.levels]
    got = np.stack([np.asarray(sample.levels[d])[:, i] for d, i in nodes], axis=1)
    want = np.zeros(2 ** len(nodes))
    configurations = np.stack([law.configurations[d][:, i] for d, i in nodes], axis=1)
    probability = np.exp(law.log_prior).astype(float)
    np.add.at(want, sequence_codes(configurations, 2), probability)
    assert g_test(counts(got, 2), want) > ALPHA
    np.testing.assert_array_equal(got[:, 0], sample.roots)
    np.testing.assert_array_equal(np.asarray(sample.levels[3]), sample.leaves)
    if k < 3:
        shifted = np.concatenate([got[:, :1], np.roll(got[:, 1:], 1, axis=0)], axis=1)
        assert g_test(counts(shifted, 2), want) < ALPHA


def pairs_p_value(first: np.ndarray, second: np.ndarray, q: int) -> float:
    """Chi-square-type test that rows of two data sets are independent: G-test on pair counts."""
    cells = q ** first.shape[1]
    a, b = sequence_codes(first, q), sequence_codes(second, q)
    table = np.bincount(a * cells + b, minlength=cells**2).reshape(cells, cells)
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    law = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum() ** 2
    # Estimated margins only make the statistic smaller: the rate stays below ALPHA.
    return g_test(table.ravel(), law.ravel())


@pytest.mark.parametrize("k", range(3))
def test_disjoint_ranges_and_seeds_are_independent(k: int) -> None:
    """Rows of disjoint index ranges, of two seeds, and neighbours in one stream."""
    model = TreeModel(Grammar.log_normal(3, 1.0, 0), 2, k)
    base = model.sample(N, seed=105).leaves[:, :3]
    others = {
        "next range": model.sample(N, seed=105, start=N).leaves[:, :3],
        "far range": model.sample(N, seed=105, start=2**32).leaves[:, :3],
        "seed + 1": model.sample(N, seed=106).leaves[:, :3],
        "seed + 2**32": model.sample(N, seed=105 + 2**32).leaves[:, :3],
        "next row": np.roll(base, 1, axis=0),
    }
    for name, other in others.items():
        assert pairs_p_value(base, other, 3) > ALPHA, name
    leaky = others["next range"].copy()
    leaky[::40] = base[::40]  # a fortieth of the rows is drawn twice
    assert pairs_p_value(base, leaky, 3) < ALPHA


@pytest.mark.parametrize("k", range(3))
def test_filter_levels_of_one_seed_are_not_each_others_copy(k: int) -> None:
    """Star draws have a purpose of their own: below the root they share nothing with rule draws."""
    model = TreeModel(Grammar.log_normal(3, 1.0, 0), 2, k)
    data = model.sample(N, seed=107, levels=True)
    given = data.leaves[data.roots == 0]
    # Given the root, left and right halves are independent exactly when k >= 1.
    p = pairs_p_value(given[:, :2], given[:, 2:], 3)
    assert (p > ALPHA) == (k >= 1)
