"""Closed forms against published numbers, known facts, sensitivity by enumeration; and refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracle import all_sequences

import hfilter
from hfilter import Grammar, TreeModel, errors, theory
from hfilter.theory import collisions

PUBLISHED = Grammar.published(4, 1.0, 0)


def published(depth: int, k: int = 0) -> TreeModel:
    return TreeModel(PUBLISHED, depth, k)


NUMBERS: list[tuple[str, Callable[[], float], float, int]] = [
    ("entropy", lambda: theory.entropy(published(3)), 8.776780, 6),
    ("mlm loss", lambda: theory.mlm_floor(published(3)).cross_entropy, 0.780853, 6),
    ("mlm accuracy", lambda: theory.mlm_floor(published(3)).accuracy, 0.684818, 6),
    ("mlm loss k=1", lambda: theory.mlm_floor(published(3, 1)).cross_entropy, 0.794532, 6),
    ("root k=0", lambda: theory.root_accuracy(published(3)), 1.0, 15),
    ("root k=1", lambda: theory.root_accuracy(published(3, 1)), 0.820043, 6),
    ("siblings", lambda: theory.mutual_information(published(4)).by_height[0], 0.2994, 4),
    ("filtering", lambda: theory.filtering_loss(published(4), 1), 0.4563, 4),
    ("sensitivity", lambda: theory.average_sensitivity(published(3)), 4.015625, 9),
    ("exponent", lambda: theory.sensitivity_exponent(PUBLISHED), 0.672, 3),
    *[
        (f"next token {j}", lambda j=j: theory.next_token_entropy(published(4))[j], value, 5)
        for j, value in enumerate((1.29687, 1.05447, 1.24161, 0.86415))
    ],
    *[
        (f"floor of k={k}", lambda k=k: theory.root_accuracy(published(3, k)), value, 3)
        for k, value in ((1, 0.820), (2, 0.728), (3, 0.637))
    ],
]


@pytest.mark.parametrize(("name", "ask", "value", "digits"), NUMBERS, ids=[n[0] for n in NUMBERS])
def test_numbers_of_the_published_grammar(
    name: str, ask: Callable[[], float], value: float, digits: int
) -> None:
    assert abs(ask() - value) <= 0.5000001 * 10.0**-digits, name


def test_parity() -> None:
    """Leaves are fair coins at every filter level; only the unfiltered leaves know the root."""
    for k in range(4):
        model = TreeModel(Grammar.parity(), 3, k)
        np.testing.assert_allclose(theory.next_token_entropy(model), math.log(2), rtol=1e-14)
        np.testing.assert_allclose(theory.entropy(model), 8 * math.log(2), rtol=1e-14)
        np.testing.assert_allclose(theory.root_entropy(model), math.log(2) * (k > 0), atol=1e-14)
        assert np.abs(theory.mutual_information(model).by_distance).max() < 1e-15
        np.testing.assert_allclose(theory.collision_probability(model), 2.0**-8, rtol=1e-13)
    np.testing.assert_allclose(theory.influences(TreeModel(Grammar.parity(), 3)), 1.0)
    np.testing.assert_allclose(theory.sensitivity_exponent(Grammar.parity(arity=3)), 1.0)


def table_of(function: Callable[..., int], q: int, arity: int) -> Grammar:
    """The grammar whose parent is a function of the children, all its tuples equally likely."""
    tensor = np.zeros((q,) * (arity + 1))
    for children in itertools.product(range(q), repeat=arity):
        tensor[(function(*children), *children)] = 1.0
    rows = tensor.reshape(q, -1).sum(axis=1)
    return Grammar.from_tensor(tensor / rows.reshape((q,) + (1,) * arity))


def latin(*children: int) -> int:
    """A cyclic Latin square."""
    return (sum(children) + 1) % 3


FUNCTIONS: list[tuple[str, Grammar, float, float]] = [
    ("xnor", table_of(lambda a, b: 1 - (a ^ b), 2, 2), 8.0, 1.0),
    ("left", table_of(lambda a, b: a, 2, 2), 1.0, 0.0),
    ("right", table_of(lambda a, b: b, 2, 2), 1.0, 0.0),
    ("and", table_of(lambda a, b: a & b, 2, 2), 0.0625, -math.inf),
    ("latin", table_of(latin, 3, 2), 8.0, 1.0),
]


@pytest.mark.parametrize(("name", "grammar", "mean", "exponent"), FUNCTIONS)
def test_sensitivity_of_known_functions(
    name: str, grammar: Grammar, mean: float, exponent: float
) -> None:
    np.testing.assert_allclose(theory.average_sensitivity(TreeModel(grammar, 3)), mean, rtol=1e-13)
    np.testing.assert_allclose(theory.sensitivity_exponent(grammar), exponent, atol=1e-13)


def random_functions(seed: int, alphabets: list[int], arity: int) -> list[np.ndarray]:
    """For each level the parent of every tuple of children, every symbol having one at least."""
    rng = np.random.default_rng(seed)
    out = []
    for n, q in itertools.pairwise(alphabets):
        owner = rng.integers(n, size=q**arity)
        owner[rng.choice(q**arity, n, replace=False)] = np.arange(n)
        out.append(owner.reshape((q,) * arity))
    return out


def root_of(functions: list[np.ndarray], leaves: np.ndarray, arity: int) -> np.ndarray:
    """The root of every row of leaves, level by level."""
    for function in reversed(functions):
        groups = leaves.reshape(len(leaves), -1, arity)
        leaves = function[tuple(np.moveaxis(groups, 2, 0))]
    return leaves[:, 0]


@pytest.mark.parametrize(
    ("alphabets", "arity"),
    [([3, 2, 3], 2), ([2, 3, 2, 2], 2), ([4, 4, 4], 2), ([2, 3, 2], 3), ([3, 4], 3)],
)
@pytest.mark.parametrize("seed", range(3))
def test_influences_are_those_of_all_flips(seed: int, alphabets: list[int], arity: int) -> None:
    functions = random_functions(seed, alphabets, arity)
    tensors = []
    for n, function in zip(alphabets, functions, strict=False):
        tensor = (function == np.arange(n).reshape((n,) + (1,) * arity)).astype(float)
        tensors.append(tensor / tensor.sum(axis=tuple(range(1, arity + 1)), keepdims=True))
    model = TreeModel(Grammar.from_tensor(tensors))
    q = alphabets[-1]
    leaves = all_sequences(q, model.n_leaves)
    roots = root_of(functions, leaves, arity)
    expected = np.zeros(model.n_leaves)
    for j in range(model.n_leaves):
        for step in range(1, q):
            other = leaves.copy()
            other[:, j] = (other[:, j] + step) % q
            expected[j] += (root_of(functions, other, arity) != roots).mean() / (q - 1)
    assert expected.max() > 0
    np.testing.assert_allclose(theory.influences(model), expected, atol=1e-13)
    np.testing.assert_allclose(theory.average_sensitivity(model), expected.sum(), atol=1e-12)


def test_the_exponent_is_the_growth_of_the_sensitivity() -> None:
    for grammar in (
        PUBLISHED,
        Grammar.log_normal(3, 1.0, 4),
        Grammar.log_normal(2, 1.0, 1, arity=3),
    ):
        deep = [theory.average_sensitivity(TreeModel(grammar, d)) for d in (9, 10)]
        slope = np.log(deep[1] / deep[0]) / np.log(grammar.arity)
        np.testing.assert_allclose(theory.sensitivity_exponent(grammar), slope, atol=1e-3)


def test_mean_sensitivity_of_random_tables() -> None:
    """Tables dealt out anew at every level: n (q / (q + 1))**depth on average over grammars.

    6 standard errors: 2e-9 false alarms; a survival of 3/4 a level, instead of 4/5, is refused.
    """
    values = [
        theory.average_sensitivity(
            TreeModel(Grammar.random_hierarchy(4, 4, depth=4, n_classes=4, seed=seed))
        )
        for seed in range(300)
    ]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - 16 * 0.8**4) < 6 * error
    assert abs(np.mean(values) - 16 * 0.75**4) > 6 * error


@pytest.mark.parametrize("flip", [0.05, 0.1464, 0.1465, 0.25])
def test_kesten_stigum_of_binary_symmetric_channels(flip: float) -> None:
    found = theory.kesten_stigum(Grammar.broadcast(2, 1 - 2 * flip))
    np.testing.assert_allclose(found.value, 2 * (1 - 2 * flip) ** 2, rtol=1e-12)
    assert found.above == (flip < (1 - 0.5**0.5) / 2)
    np.testing.assert_allclose(found.eigenvalues[:, 0], 1.0)
    np.testing.assert_allclose(theory.kesten_stigum(Grammar.parity(arity=3)).value, 0, atol=1e-30)


@pytest.mark.parametrize(
    ("flip", "values"), [(0.05, (0.95, 0.94347, 0.94089)), (0.25, (0.75, 0.67188, 0.61981))]
)
def test_root_of_a_broadcast_tree(flip: float, values: tuple[float, ...]) -> None:
    """An ambiguous grammar: the leaves are enumerated, and the error says what else to do."""
    for depth, value in enumerate(values, start=1):
        model = TreeModel(Grammar.broadcast(2, 1 - 2 * flip), depth)
        assert abs(theory.root_accuracy(model) - value) < 6e-6
    with pytest.raises(errors.ArgumentError, match=r"root_accuracy_estimate\(model, n\)"):
        theory.root_accuracy(TreeModel(Grammar.broadcast(2, 0.5), 6))


def test_deep_trees() -> None:
    """Recursions stay exact where nothing can be enumerated."""
    deep = published(14)
    np.testing.assert_allclose(theory.entropy(deep), theory.entropy(published(13)) * 2, rtol=1e-3)
    chain = theory.next_token_entropy(published(9))
    np.testing.assert_allclose(chain.sum(), theory.entropy(published(9)), rtol=1e-13)
    assert theory.collision_probability(deep) == 0.0
    assert -theory.log_collision_probability(deep) < theory.entropy(deep)
    uniform = TreeModel(Grammar.random_hierarchy(8, 4, depth=10, n_classes=8, seed=0))
    np.testing.assert_allclose(
        [theory.entropy(uniform), -theory.log_collision_probability(uniform)],
        math.log(8) + (2**10 - 1) * math.log(4),
        rtol=1e-13,
    )
    information = theory.mutual_information(published(8, 5))
    assert (information.by_height > 0).all()
    assert information.pairs_by_height.sum() == 256 * 255 // 2


def test_collisions_of_symbols_that_drift_apart() -> None:
    """One symbol certain, the other astronomically unlikely to repeat: neither drowns the other."""
    tensor = np.zeros((2, 2, 2))
    tensor[0, 0, 0] = 1.0
    tensor[1, 1, 1] = tensor[1, 0, 1] = 0.5
    for prior in ([0.0, 1.0], [1e-200, 1.0]):
        model = TreeModel(Grammar.from_tensor(tensor), 12, root_prior=prior)
        c, d = 0.0, 0.0  # ln of the collision probability below symbols 0 and 1
        for _ in range(12):
            d = np.logaddexp(2 * d, c + d) - math.log(4)
        found = theory.log_collision_probability(model)
        np.testing.assert_allclose(found, np.logaddexp(d, 2 * math.log(max(prior[0], 1e-300))))


@pytest.mark.parametrize("arity", [2, 3])
def test_both_ways_of_growing_pairs_agree(arity: int) -> None:
    for seed in range(3):
        table = Grammar.dense(3, 0.3, seed, arity=arity).table()
        below = np.log(np.random.default_rng(seed).random((3, 3)))
        below[0, 1] = -np.inf
        pairs = np.stack([collisions._rule_pairs(table, below, a) for a in range(3)])
        np.testing.assert_allclose(collisions._log_double(table, below), pairs, rtol=1e-12)


def test_duplicates_of_a_uniform_language() -> None:
    """The random hierarchy model: P(x) = 1 / P_max for every sequence."""
    model = TreeModel(Grammar.random_hierarchy(4, 2, depth=4, n_classes=4, seed=1))
    size = 4 * 2.0**15
    n = 20_000
    np.testing.assert_allclose(
        theory.expected_distinct(model, n, max_states=1), size * -np.expm1(n * np.log1p(-1 / size))
    )
    np.testing.assert_allclose(theory.expected_duplicates(model, n), n * (n - 1) / 2 / size)
    assert theory.expected_duplicates(model, 1) == 0.0
    seen = model.sample(n, seed=3).leaves
    different = len(np.unique(seen, axis=0))
    # The variance of that number is at most the expected number of equal pairs (as for filled boxes);
    # 6 deviations, 2e-9 false alarms. The mutant: no duplicates at all.
    allowed = 6 * math.sqrt(theory.expected_duplicates(model, n))
    assert abs(different - theory.expected_distinct(model, n)) < allowed
    assert n - different > allowed


REFUSALS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: theory.entropy(PUBLISHED), errors.DTypeError, "model must be a hfilter.TreeModel"),
    (lambda: theory.entropy(published(4, 4)), errors.ArgumentError, "entropy_estimate"),
    (lambda: theory.entropy(published(3), max_states=0), errors.ArgumentError, "max_states must"),
    (lambda: theory.next_token_entropy(published(4, 4)), errors.ArgumentError, "raise max_states"),
    (lambda: theory.mlm_floor(TreeModel(PUBLISHED, 13)), errors.ArgumentError, "mlm_floor_est"),
    (
        lambda: theory.entropy(TreeModel(Grammar.dense(4, 1.0, 0), 20)),
        errors.ArgumentError,
        r"more than 10\*\*18 joint states",
    ),
    (lambda: theory.root_entropy(published(4, 4)), errors.ArgumentError, "root_entropy_estimate"),
    (lambda: theory.expected_distinct(published(4), 9), errors.ArgumentError, "distinct_estimate"),
    (lambda: theory.expected_distinct(published(2), 0), errors.ArgumentError, "n must be"),
    (lambda: theory.pair_law(published(2), 0, 4), errors.ArgumentError, "j must be .* 0 to 3"),
    (lambda: theory.filtering_loss(published(2), 3), errors.ArgumentError, "k must be"),
    (lambda: theory.influences(published(3, 1)), errors.ArgumentError, r"filtered\(0\)"),
    (
        lambda: theory.influences(TreeModel(Grammar.dense(3, 1.0, 0), 2)),
        errors.GrammarError,
        "ambiguous",
    ),
    (
        lambda: theory.influences(TreeModel(Grammar.published(4, 1.0, 0, rules_per_symbol=2), 2)),
        errors.GrammarError,
        "8 of 16 tuples",
    ),
    (lambda: theory.sensitivity_exponent(published(2)), errors.DTypeError, "hfilter.Grammar"),
    (
        lambda: theory.kesten_stigum(Grammar.random_hierarchy(4, 2, depth=2, n_classes=4, seed=0)),
        errors.GrammarError,
        "one table",
    ),
    (
        lambda: theory.sensitivity_exponent(Grammar.log_normal(65, 1.0, 0)),
        errors.GrammarError,
        "more than 64",
    ),
    (
        lambda: theory.grammar_kl(published(2, 1), published(2)),
        errors.ArgumentError,
        r"p must have filter_level 0, got 1; use p.filtered\(0\)",
    ),
    (lambda: theory.grammar_kl(published(2), published(3)), errors.ArgumentError, "alphabets"),
    (
        lambda: theory.grammar_kl(published(2), TreeModel(Grammar.dense(4, 1.0, 0), 2)),
        errors.GrammarError,
        r"grammar_kl_estimate\(p, q, n\)",
    ),
    (lambda: theory.entropy_estimate(published(2), 1), errors.ArgumentError, "n must be"),
    (
        lambda: theory.mlm_floor_estimate(published(2), 10, mask_rate=0.0),
        errors.ArgumentError,
        "mask_rate",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS)
def test_refusals(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_one_symbol() -> None:
    model = hfilter.TreeModel(Grammar.from_tensor(np.ones((1, 1, 1))), 3)
    assert theory.influences(model).tolist() == [0.0] * 8
    assert theory.sensitivity_exponent(model.grammar) == -math.inf
    assert theory.kesten_stigum(model.grammar).value == 0.0
    assert theory.collision_probability(model) == 1.0
    assert theory.expected_distinct(model, 5) == 1.0
