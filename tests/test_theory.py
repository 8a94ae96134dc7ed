"""Closed forms against full enumeration: every family, every filter level, arities 2 and 3."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from cases import PAIR_IDS, PAIRS, Problem, problem
from oracle import Enumeration, sequence_codes

import hfilter
from hfilter import theory

EXACT = {"rtol": 1e-11, "atol": 1e-12}
on_all = pytest.mark.parametrize("which", PAIRS, ids=PAIR_IDS)


def entropy_of(p: np.ndarray) -> float:
    """Entropy of a law of any shape, by definition."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


@dataclass
class Laws:
    """The law of all leaves, one axis a leaf, and the joint law of root and leaves."""

    problem: Problem
    leaves: np.ndarray
    with_root: np.ndarray


@cache
def laws(which: tuple[str, int]) -> Laws:
    case = problem(*which)
    law = case.law
    shape = (case.q,) * law.n_leaves
    codes = sequence_codes(law.configurations[law.depth], case.q)
    joint = np.zeros((len(case.prior), case.q**law.n_leaves))
    np.add.at(joint, (law.configurations[0][:, 0], codes), np.exp(law.log_prior).astype(np.float64))
    return Laws(case, law.sequence_law().reshape(shape), joint)


@on_all
def test_node_laws(which: tuple[str, int]) -> None:
    case = problem(*which)
    found = theory.node_laws(case.model)
    weights = np.exp(case.law.log_prior).astype(np.float64)
    assert [f.shape for f in found] == [
        (case.law.arity**d, q) for d, q in enumerate(case.law.alphabets)
    ]
    for d in case.law.levels:
        indicator = np.eye(case.law.alphabets[d])[case.law.configurations[d]]
        np.testing.assert_allclose(found[d], np.tensordot(weights, indicator, 1), **EXACT)
    for d in range(case.law.depth + 1):
        np.testing.assert_array_equal(found[d], theory.node_laws(case.model.filtered(0))[d])


@on_all
def test_entropy_and_its_chain(which: tuple[str, int]) -> None:
    here = laws(which)
    axes = range(here.leaves.ndim)
    prefixes = [entropy_of(here.leaves.sum(axis=tuple(axes[m:]))) for m in range(len(axes) + 1)]
    np.testing.assert_allclose(theory.entropy(here.problem.model), prefixes[-1], **EXACT)
    np.testing.assert_allclose(
        theory.next_token_entropy(here.problem.model), np.diff(prefixes), **EXACT
    )


@on_all
def test_mlm_floor(which: tuple[str, int]) -> None:
    here = laws(which)
    floor = theory.mlm_floor(here.problem.model)
    loss = [
        entropy_of(here.leaves) - entropy_of(here.leaves.sum(j)) for j in range(here.leaves.ndim)
    ]
    right = [here.leaves.max(axis=j).sum() for j in range(here.leaves.ndim)]
    np.testing.assert_allclose(floor.cross_entropy_by_position, loss, **EXACT)
    np.testing.assert_allclose(floor.accuracy_by_position, right, **EXACT)
    np.testing.assert_allclose(floor[:2], [np.mean(loss), np.mean(right)], **EXACT)


@on_all
def test_mlm_floor_of_windows(which: tuple[str, int]) -> None:
    here = laws(which)
    model, n = here.problem.model, here.leaves.ndim
    for height in range(model.depth):
        floor = theory.mlm_floor(model, height=height)
        width = model.arity**height
        for j in range(n):
            first = j - j % width
            others = tuple(a for a in range(n) if not first <= a < first + width)
            law = here.leaves.sum(axis=others)
            rest = entropy_of(law.sum(axis=j - first))
            np.testing.assert_allclose(
                floor.cross_entropy_by_position[j], entropy_of(law) - rest, **EXACT
            )
            right = law.max(axis=j - first).sum()
            np.testing.assert_allclose(floor.accuracy_by_position[j], right, **EXACT)


@on_all
def test_root(which: tuple[str, int]) -> None:
    here = laws(which)
    model = here.problem.model
    joint = here.with_root
    np.testing.assert_allclose(theory.root_accuracy(model), joint.max(axis=0).sum(), **EXACT)
    np.testing.assert_allclose(
        theory.root_entropy(model), entropy_of(joint) - entropy_of(here.leaves), **EXACT
    )


@on_all
def test_pairs(which: tuple[str, int]) -> None:
    here = laws(which)
    model, n = here.problem.model, here.leaves.ndim
    height = np.zeros(n)
    pairs_of_height = np.zeros(n, int)
    gaps: dict[int, list[float]] = {}
    for i, j in itertools.combinations_with_replacement(range(n), 2):
        others = tuple(a for a in range(n) if a not in (i, j))
        law = here.leaves.sum(axis=others)
        law = np.diag(law) if i == j else law
        np.testing.assert_allclose(theory.pair_law(model, i, j), law, **EXACT)
        np.testing.assert_allclose(theory.pair_law(model, j, i), law.T, **EXACT)
        if i != j:
            apart = entropy_of(law.sum(0)) + entropy_of(law.sum(1)) - entropy_of(law)
            up = next(h for h in range(n) if i // model.arity**h == j // model.arity**h)
            height[up - 1] += apart
            pairs_of_height[up - 1] += 1
            gaps.setdefault(j - i, []).append(apart)
    found = theory.mutual_information(model)
    depth = model.depth
    assert found.heights.tolist() == list(range(1, depth + 1))
    assert found.pairs_by_height.tolist() == pairs_of_height[:depth].tolist()
    np.testing.assert_allclose(
        found.by_height, height[:depth] / pairs_of_height[:depth], rtol=1e-9, atol=1e-13
    )
    assert found.distances.tolist() == sorted(gaps)
    assert found.pairs_by_distance.tolist() == [len(gaps[d]) for d in sorted(gaps)]
    np.testing.assert_allclose(
        found.by_distance, [np.mean(gaps[d]) for d in sorted(gaps)], rtol=1e-9, atol=1e-13
    )


@on_all
def test_filtering_loss(which: tuple[str, int]) -> None:
    case = problem(*which)
    full = problem(which[0], 0).law

    def law_of_top(law: Enumeration) -> np.ndarray:
        q = law.alphabets[case.law.filter_level]
        nodes = law.configurations[case.law.filter_level]
        size = q ** nodes.shape[1]
        codes = law.configurations[0][:, 0] * size + sequence_codes(nodes, q)
        out = np.zeros(len(case.prior) * size)
        np.add.at(out, codes, np.exp(law.log_prior).astype(np.float64))
        return out

    p, q = law_of_top(full), law_of_top(case.law)
    both = (p > 0) & (q > 0)
    expected = (p[both] * np.log(p[both] / q[both])).sum()
    np.testing.assert_allclose(theory.filtering_loss(case.model), expected, **EXACT)
    elsewhere = case.model.filtered(0)
    assert theory.filtering_loss(elsewhere, which[1]) == theory.filtering_loss(case.model)


@on_all
def test_collisions(which: tuple[str, int]) -> None:
    here = laws(which)
    model = here.problem.model
    np.testing.assert_allclose(
        theory.log_collision_probability(model), np.log((here.leaves**2).sum()), **EXACT
    )
    same = theory.collision_probability(model)
    np.testing.assert_allclose(same, (here.leaves**2).sum(), rtol=1e-11)
    np.testing.assert_allclose(theory.expected_duplicates(model, 7), 21 * same, rtol=1e-11)
    for n in (1, 2, 50):
        expected = 1 - (1 - here.leaves) ** n
        np.testing.assert_allclose(theory.expected_distinct(model, n), expected.sum(), rtol=1e-11)


def random_pair(seed: int, arity: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two grammars of three levels with the same unambiguous rules and different probabilities."""
    rng = np.random.default_rng(seed)
    first, second = [], []
    for n, q in ((2, 3), (3, 2)):
        owner = rng.permuted(np.arange(q**arity) % (n + 1))  # owner n: a forbidden tuple
        rows = owner == np.arange(n)[:, None]
        for out in (first, second):
            weights = rows * rng.exponential(size=rows.shape)
            weights /= weights.sum(axis=1, keepdims=True)
            out.append(weights.reshape((n,) + (q,) * arity))
    return first, second


@pytest.mark.parametrize("arity", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_grammar_kl(seed: int, arity: int) -> None:
    tensors = random_pair(seed, arity)
    priors = [np.array([0.3, 0.7]), np.array([0.6, 0.4])]
    one, two = (
        Enumeration(t, p, 2, 0).sequence_law() for t, p in zip(tensors, priors, strict=True)
    )
    p, q = (
        hfilter.TreeModel(hfilter.Grammar.from_tensor(t), root_prior=prior)
        for t, prior in zip(tensors, priors, strict=True)
    )
    both = one > 0
    assert (two[both] > 0).all()
    expected = (one[both] * np.log(one[both] / two[both])).sum()
    assert expected > 0.01
    np.testing.assert_allclose(theory.grammar_kl(p, q), expected, **EXACT)
    assert theory.grammar_kl(p, p) == 0.0


def test_grammar_kl_is_infinite_where_a_rule_or_a_root_is_missing() -> None:
    first, second = random_pair(0, 2)
    p, q = (hfilter.TreeModel(hfilter.Grammar.from_tensor(t)) for t in (first, second))
    fewer = [t.copy() for t in second]
    rule = tuple(np.argwhere(fewer[0][0])[0])
    fewer[0][(0, *rule)] = 0
    fewer[0][0] /= fewer[0][0].sum()
    less = hfilter.TreeModel(hfilter.Grammar.from_tensor(fewer))
    assert np.isinf(theory.grammar_kl(p, less))
    assert np.isfinite(theory.grammar_kl(less, q))
    one_root = hfilter.TreeModel(p.grammar, root_prior=[1.0, 0.0])
    assert np.isinf(theory.grammar_kl(p, one_root))
    np.testing.assert_allclose(theory.grammar_kl(one_root, p), np.log(2), rtol=1e-14)


@pytest.mark.parametrize("arity", [2, 3])
def test_a_rule_that_never_occurs_changes_nothing(arity: int) -> None:
    """Ambiguity among symbols that cannot occur leaves the closed forms exact and cheap."""
    tensor = np.zeros((3,) + (3,) * arity)
    tensor[0][(0,) * arity] = tensor[1][(1,) * arity] = 1.0
    tensor[2][(0,) * arity] = 1.0  # the tuple of symbol 0 again
    grammar = hfilter.Grammar.from_tensor(tensor)
    assert not grammar.is_unambiguous
    model = hfilter.TreeModel(grammar, depth=6, root_prior=[0.25, 0.75, 0.0])
    expected = entropy_of(np.array([0.25, 0.75]))
    np.testing.assert_allclose(theory.entropy(model, max_states=9), expected, **EXACT)
    assert theory.root_accuracy(model, max_states=9) == 1.0
    np.testing.assert_allclose(theory.collision_probability(model), 0.25**2 + 0.75**2)
