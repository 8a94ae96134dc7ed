"""Accuracies and messages of blocks against enumeration of all trees."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from cases import PAIR_IDS, PAIRS, problem
from oracle import relative_weights, sequence_codes, token_fields

import hfilter
from hfilter.analysis import blocks
from hfilter.analysis.blocks import (
    block_accuracy,
    block_accuracy_estimate,
    block_beliefs,
    exact_messages,
)
from hfilter.errors import ArgumentError, DTypeError, ShapeError


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)


def accuracy_by_enumeration(law, height, level):
    """Σ over blocks' leaves of the most frequent ancestor, mean over leaves."""
    weights = np.exp(law.log_prior.astype(np.float64))
    leaves, width = law.configurations[law.depth], law.arity**height
    total = 0.0
    for j in range(law.n_leaves):
        first = j // width * width
        codes = sequence_codes(leaves[:, first : first + width], law.alphabets[-1])
        _, codes = np.unique(codes, return_inverse=True)
        above = law.configurations[level][:, j // law.arity ** (law.depth - level)]
        joint = np.zeros((codes.max() + 1, law.alphabets[level]))
        np.add.at(joint, (codes, above), weights)
        total += joint.max(axis=1).sum()
    return total / law.n_leaves


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_block_accuracy_is_that_of_all_trees(name, k):
    p = problem(name, k)
    for level in p.law.levels:
        found = [
            block_accuracy(p.model, h, level, max_states=2**17) for h in range(p.law.depth + 1)
        ]
        wanted = [accuracy_by_enumeration(p.law, h, level) for h in range(p.law.depth + 1)]
        assert found == pytest.approx(wanted, abs=1e-12)


def enumerated(law, leaves, hidden, level, node):
    """Posterior of one node (n, q), and the probability of the evidence, by summing all trees."""
    *_, total, zeros = law.totals(token_fields(leaves, hidden, law.alphabets[-1]))
    peak, weights = relative_weights(total, zeros)
    joint = weights @ np.eye(law.alphabets[level])[law.configurations[level][:, node]]
    with np.errstate(invalid="ignore"):
        return joint / joint.sum(axis=1, keepdims=True), np.exp(peak) * joint.sum(axis=1)


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_messages_are_those_of_all_trees(name, k):
    p = problem(name, k)
    rng = np.random.default_rng(p.seed)
    leaves = p.law.draw(3, rng)
    leaves[2] = rng.integers(p.q, size=leaves.shape[1])  # often impossible
    mask = rng.random(leaves.shape) < np.array([[0.0], [0.5], [0.3]])
    if len(p.law.log_prior) > 5000:
        leaves, mask = leaves[1:2], mask[1:2]
    n = len(leaves)
    for level in p.law.levels:
        height = p.law.depth - level
        found = {
            kind: exact_messages(p.model, leaves, height, mask, kind)
            for kind in ("upward", "block", "downward", "belief")
        }
        same = {"atol": 1e-11, "rtol": 1e-9, "equal_nan": True}
        ratios = []
        for node in range(p.law.arity**level):
            inside = np.arange(p.law.n_leaves) // p.law.arity**height == node
            asked = np.concatenate([mask, mask | inside, mask | ~inside, np.ones_like(mask)])
            law, evidence = enumerated(p.law, np.tile(leaves, (4, 1)), asked, level, node)
            belief, rest, alone, mu = law[:n], law[n : 2 * n], law[2 * n : 3 * n], law[-1]
            assert np.allclose(found["belief"][:, node], belief, **same)
            assert np.allclose(found["downward"][:, node], rest, **same)
            assert np.allclose(found["block"][:, node], alone, **same)
            joint = evidence[2 * n : 3 * n, None] * np.nan_to_num(alone)
            up = found["upward"][:, node][:, mu > 0]
            wanted = joint[:, mu > 0] / mu[mu > 0]
            assert (wanted[up == 0] <= 1e-300).all()
            ratios.append((up[wanted > 1e-280] / wanted[wanted > 1e-280]).reshape(-1))
        ratio = np.concatenate(ratios).astype(np.float64)
        assert np.allclose(ratio, ratio[0], rtol=1e-9)  # one scale for all rows and nodes


def test_scale_of_upward_messages_is_a_power_of_two(model):
    leaves = model.sample(50, seed=0).leaves
    up = exact_messages(model, leaves, 4)
    post = model.infer(leaves, dtype="float64")
    seen = post.root > 0
    octaves = np.log2(up[:, 0][seen] / (np.exp(post.log_evidence)[:, None] * post.root * 4)[seen])
    assert np.allclose(octaves, np.round(octaves[0]), atol=1e-9)
    assert 0.25 < up.max() <= 4.0


def test_published_oracle_curve(model):
    assert [round(block_accuracy(model, 1, d), 3) for d in (3, 2, 1)] == [1.0, 0.651, 0.469]
    assert block_accuracy(model, 2, 1) == pytest.approx(0.638, abs=0.004)  # that one was sampled
    assert block_accuracy(model, 4, 0) == 1.0
    assert block_accuracy(model.filtered(1), 4, 0) == pytest.approx(0.819, abs=0.005)


def test_estimate_and_beliefs_agree_with_the_exact_value(model):
    for height, level in ((0, 3), (1, 1), (2, 1), (3, 0)):
        exact = block_accuracy(model, height, level)
        value, error = block_accuracy_estimate(model, height, level, 3000, seed=1)
        assert abs(value - exact) < 5 * error  # four numbers: 2e-6
        assert abs(value - block_accuracy(model, height + 1, level)) > 5 * error  # the mutant
    sample = model.sample(2000, seed=5, levels=[1])
    belief = block_beliefs(model, sample.leaves, 2, 1)
    hits = (belief.argmax(2) == np.repeat(sample.levels[1], 8, axis=1)).mean(axis=1)
    assert abs(hits.mean() - block_accuracy(model, 2, 1)) < 5 * hits.std() / np.sqrt(2000)
    hidden = np.ones((3, 16), bool)
    blind = block_beliefs(model, sample.leaves[:3], 4, 0, hidden)
    assert np.allclose(blind, 0.25)


def test_manners(model):
    filtered = model.filtered(2)
    with pytest.raises(ArgumentError, match=r"level 1 \(height 3\) does not exist"):
        block_accuracy(filtered, 1, 1)
    with pytest.raises(ArgumentError, match=r"level 1 \(height 3\) does not exist"):
        exact_messages(filtered, np.zeros((1, 16), int), 3)
    with pytest.raises(ArgumentError, match="height must be"):
        block_accuracy(model, 5, 0)
    dense = hfilter.TreeModel(hfilter.Grammar.dense(4, 1.0, 0), depth=4)
    with pytest.raises(ArgumentError, match=r"4\*\*16 states .* use block_accuracy_estimate"):
        block_accuracy(dense, 4, 0)
    leaves = np.zeros((2, 16), int)
    with pytest.raises(ArgumentError, match='kind must be one of "upward"'):
        exact_messages(model, leaves, 1, kind="sideways")
    with pytest.raises(ShapeError, match="leaves must have shape"):
        exact_messages(model, leaves[:, :8], 1)
    with pytest.raises(ArgumentError, match="0 … 4 "):
        exact_messages(model, leaves + 5, 1)
    with pytest.raises(DTypeError, match="leaves must be integers"):
        block_beliefs(model, leaves * 0.5, 1, 1)


def test_docstring_examples_run():
    assert doctest.testmod(blocks).failed == 0
