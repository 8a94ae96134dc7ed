"""Names of latent symbols are found again, distances are what they say, and more data teach more."""

from __future__ import annotations

import itertools
from typing import Any

import cases
import numpy as np
import pytest

from hfilter import Grammar, TreeModel, theory
from hfilter.errors import ArgumentError, DTypeError, GrammarError, ShapeError
from hfilter.fit import align, fit_grammar, grammar_distance, learning_curve
from hfilter.fit.assignment import assign

QUIET: dict[str, Any] = {"progress": False, "num_threads": 1}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_assignment_is_the_best_of_all(n: int) -> None:
    rng = np.random.default_rng(n)
    for trial in range(40):
        cost = rng.normal(size=(n, n)) if trial % 2 else rng.integers(0, 3, (n, n)).astype(float)
        chosen = assign(cost)
        assert sorted(chosen) == list(range(n))
        best = min(cost[np.arange(n), list(p)].sum() for p in itertools.permutations(range(n)))
        assert abs(cost[np.arange(n), chosen].sum() - best) < 1e-12


def test_large_assignments_are_found_again() -> None:
    rng = np.random.default_rng(0)
    truth = rng.permutation(150)
    cost = rng.random((150, 150)) + 1.0
    cost[np.arange(150), truth] = 0.5
    assert (assign(cost) == truth).all()


def turned(
    grammar: Grammar, depth: int, seed: int, roots: bool
) -> tuple[Grammar, list[np.ndarray]]:
    """The grammar with other names: symbol a of level d is called orders[d][a]."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(q) for q in grammar.alphabets(depth)]
    orders[-1] = np.arange(grammar.vocab_size)
    if not roots:
        orders[0] = np.arange(grammar.n_classes)
    tensors = []
    for d in range(depth):
        old = grammar.tensor(d)
        new = np.zeros_like(old)
        for a, *children in itertools.product(*map(range, old.shape)):
            place = (orders[d][a], *(orders[d + 1][c] for c in children))
            new[place] = old[(a, *children)]
        tensors.append(new)
    return Grammar.from_tensor(tensors), orders


FAMILIES = [
    c.name
    for c in cases.CASES
    if cases.problem(c.name, 0).grammar.n_rules <= 60 and c.name != "wide-alphabet"
]


@pytest.mark.parametrize("name", FAMILIES)
def test_random_names_are_undone_exactly(name: str) -> None:
    problem = cases.problem(name, 0)
    depth, grammar = problem.model.depth, problem.grammar
    levels = Grammar.from_tensor([grammar.tensor(d) for d in range(depth)])
    for seed, roots in ((0, True), (1, True), (2, False)):
        other, orders = turned(grammar, depth, seed, roots)
        prior = np.empty(len(problem.prior))
        prior[orders[0]] = problem.prior
        names = TreeModel(other, depth, root_prior=prior)
        found = align(names, problem.model, match_roots=not roots)
        assert found.grammar == levels, "the very tables"
        assert np.array_equal(found.root_prior, problem.model.root_prior)
        distance = grammar_distance(names, problem.model, match_roots=not roots)
        assert distance.total_variation == 0
        assert abs(distance.kl) < 1e-12
        for d in range(depth):
            rows = levels.tensor(d).reshape(len(levels.tensor(d)), -1)
            if len(np.unique(rows.round(9), axis=0)) == len(rows):
                assert (found.permutations[d] == orders[d]).all()
        x = problem.model.sample(20, seed=1).leaves
        beliefs = names.root_posterior(x, dtype="float64")
        wanted = problem.model.root_posterior(x, dtype="float64")
        if len(np.unique(levels.tensor(0).reshape(len(prior), -1), axis=0)) == len(prior):
            assert np.abs(found.rename_roots(beliefs) - wanted).max() < 1e-12


def test_noisy_names_are_undone() -> None:
    """At wider alphabets and with noise on every row, where only the best match is right."""
    rng = np.random.default_rng(5)
    grammar = Grammar.random_hierarchy(9, 3, depth=3, n_classes=7, seed=2)
    other, orders = turned(grammar, 3, 8, True)
    noisy = []
    for d in range(3):
        noise = rng.exponential(size=other.tensor(d).shape)
        noise /= noise.reshape(len(noise), -1).sum(axis=1).reshape(-1, 1, 1)
        noisy.append(0.6 * other.tensor(d) + 0.4 * noise)
    found = align(Grammar.from_tensor(noisy), grammar)
    assert all((a == b).all() for a, b in zip(found.permutations, orders, strict=True))
    with_names = grammar_distance(Grammar.from_tensor(noisy), grammar).total_variation
    assert 0.3 < with_names < 0.4
    unaligned = grammar_distance(Grammar.from_tensor(noisy), grammar, aligned=False)
    assert unaligned.total_variation > 0.8


def test_exchanges_mend_what_the_climb_got_wrong() -> None:
    """Two symbols with the same rules differ only in who uses them: the level above tells."""
    below = np.zeros((3, 2, 2))
    below[0, 0, 0] = below[1, 0, 0] = below[2, 1, 1] = 1.0
    above = np.zeros((1, 3, 3))
    above[0, 0, 2], above[0, 1, 2] = 0.9, 0.1
    truth = Grammar.from_tensor([above, below])
    other, _ = turned(truth, 2, 0, False)
    for seed in range(6):
        other, _ = turned(truth, 2, seed, False)
        assert grammar_distance(other, truth).total_variation == 0.0


def test_one_table_has_the_leaves_names() -> None:
    grammar = Grammar.published(4, 1.0, 0)
    moved = Grammar.from_tensor(grammar.tensor()[[1, 0, 2, 3]])
    found = align(TreeModel(moved, 3), TreeModel(grammar, 3))
    assert found.grammar == moved
    assert all((p == np.arange(4)).all() for p in found.permutations)
    assert len(found.permutations) == 4
    distance = grammar_distance(moved, grammar)
    assert distance.total_variation == 0.5
    assert [r.tolist() for r in distance.rows] == [[1.0, 1.0, 0.0, 0.0]]
    assert distance.kl == np.inf
    # one table against one per level: any names
    levels, _ = turned(grammar, 3, 0, True)
    assert grammar_distance(levels, grammar).total_variation == 0
    assert grammar_distance(grammar, levels).total_variation == 0


def test_divergence_is_that_of_the_theory() -> None:
    p = TreeModel(Grammar.published(3, 1.0, 0), 3, root_prior=[0.2, 0.5, 0.3])
    tensor = p.grammar.tensor()
    other = tensor**0.5
    other /= other.sum(axis=(1, 2), keepdims=True)
    q = TreeModel(Grammar.from_tensor(other), 3, root_prior=[0.3, 0.3, 0.4])
    wanted = theory.grammar_kl(p, q)
    assert wanted > 0.1
    assert abs(grammar_distance(q, p).kl - wanted) < 1e-12


def test_a_fit_finds_the_names_of_its_roots() -> None:
    truth = TreeModel(Grammar.random_hierarchy(3, 2, depth=2, n_classes=3, seed=3), 2)
    sample = truth.sample(1500, seed=0)
    known = fit_grammar(
        sample.leaves, 2, roots=sample.roots, n_classes=3, shared=False, restarts=3, **QUIET
    )
    assert align(known, truth).permutations[0].tolist() == [0, 1, 2]
    assert grammar_distance(known, truth).total_variation < 0.1
    assert abs(known.log_likelihood - (truth.log_prob(sample.leaves)).mean()) < 0.05


@pytest.mark.parametrize(
    ("fitted", "truth", "error", "words"),
    [
        (3, Grammar.parity(), DTypeError, "fitted must be a Fit"),
        (Grammar.parity(), None, DTypeError, "truth must be a Fit"),
        (Grammar.parity(), Grammar.parity(3), ShapeError, "arity 2 with"),
        (Grammar.parity(), Grammar.dense(3), ShapeError, "same arity and alphabets"),
        (
            TreeModel(Grammar.parity(), 2), TreeModel(Grammar.parity(), 3), ArgumentError,
            "same depth, got 2 and 3",
        ),
        (Grammar.log_normal(500, 1.0), Grammar.log_normal(500, 1.0), GrammarError, "too large"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_named(
    fitted: Any, truth: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        grammar_distance(fitted, truth)


def test_more_sequences_teach_more() -> None:
    model = TreeModel(Grammar.published(3, 1.0, 3), 2)
    arguments: dict[str, Any] = {"repeats": 2, "test_size": 2000, "restarts": 2, "num_threads": 1}
    curve = learning_curve(model, [20, 200, 2000], **arguments)
    assert curve.excess.shape == (3, 2)
    assert (np.diff(curve.excess.mean(axis=1)) < 0).all()
    assert not curve.impossible.any()
    # 24 free numbers cost about half a nat each, shared by the rows.
    assert np.abs(curve.excess[2]).max() < 24 / 2 / 2000 + 0.01
    assert curve.optimal_root_accuracy == 1.0
    assert abs(curve.entropy - theory.entropy(model)) < 1e-12
    again = learning_curve(model, [20], **arguments)
    assert again.entropy == curve.entropy
    arguments["restarts"] = 6
    seen = learning_curve(model, [20, 200, 2000], supervised=True, **arguments)
    assert (np.diff(seen.total_variation.mean(axis=1)) < 0).all()
    assert seen.root_accuracy[2].min() > 0.99
    known = learning_curve(model, [20, 200], known_structure=True, **arguments)
    assert (known.excess.mean(axis=1) < curve.excess[:2].mean(axis=1)).all()


def test_nobody_is_judged_on_what_they_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TreeModel(Grammar.random_hierarchy(20, 5, depth=3, seed=0), 3)
    given = []

    def spy(leaves: np.ndarray, depth: int, **options: Any) -> Any:
        given.append(leaves)
        return fit_grammar(leaves, depth, max_iterations=0, restarts=1, **options)

    monkeypatch.setattr("hfilter.fit.curve.fit_grammar", spy)
    curve = learning_curve(
        model, [5, 20], repeats=2, test_size=30, known_structure=True, num_threads=1
    )
    assert curve.sizes.tolist() == [5, 20]
    assert [len(x) for x in given] == [5, 20] * 2
    assert (given[0] == given[1][:5]).all(), "smaller sets are the first rows of larger ones"
    rows = np.concatenate([model.sample(30, 0).leaves, given[1], given[3]])
    assert len(np.unique(rows, axis=0)) == 70, "all different: two equal ones have chance 1e-9"


def test_the_learner_may_know_more_or_less() -> None:
    model = TreeModel(Grammar.published(3, 1.0, 3), 2, filter_level=1)
    arguments: dict[str, Any] = {"repeats": 1, "test_size": 500, "num_threads": 1, "restarts": 1}
    hard = learning_curve(model, [3], pseudo_count=0.0, shared=False, **arguments)
    assert hard.impossible[0, 0] > 0
    assert hard.excess[0, 0] == np.inf
    assert np.isnan(hard.excess_error[0, 0])
    near = learning_curve(
        model, [3], pseudo_count=0.0, shared=False, start_near_truth=True, **arguments
    )
    assert near.log_likelihood[0, 0] >= hard.log_likelihood[0, 0]
    seen = learning_curve(model, [400], supervised=True, shared=False, **arguments)
    assert seen.root_accuracy[0, 0] > seen.optimal_root_accuracy - 0.1
    assert seen.optimal_root_accuracy < 1.0


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": Grammar.parity()}, DTypeError, "model must be a hfilter.TreeModel"),
        ({"sizes": []}, ArgumentError, "sizes must name"),
        ({"sizes": [0]}, ArgumentError, "sizes must be"),
        ({"sizes": 10}, DTypeError, "sizes must be a list"),
        ({"test_size": 1}, ArgumentError, "test_size"),
        ({"repeats": 0}, ArgumentError, "repeats"),
        ({"roots": [1]}, ArgumentError, "roots: learning_curve sets that itself"),
    ],
)
def test_curves_refuse_what_cannot_be_meant(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    arguments: dict[str, Any] = {"model": TreeModel(Grammar.parity(), 2), "sizes": [5], **change}
    with pytest.raises(error, match=words):
        learning_curve(**arguments)
