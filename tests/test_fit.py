"""Learning a grammar: each step against an independent derivative, and what no step may break."""

from __future__ import annotations

from collections.abc import Sequence

import cases
import numpy as np
import pytest
from oracle import all_sequences, token_fields

import hfilter
from hfilter import Grammar, TreeModel
from hfilter.fit import fit_grammar
from hfilter.fit.parameters import Structure

QUIET = {"progress": False, "num_threads": 1}


def smallest(grammar: Grammar) -> float:
    return min(float(t.probability.min()) for t in grammar.tables)


SMALL = [
    (name, k)
    for name, k in cases.PAIRS
    if cases.problem(name, k).grammar.n_rules <= 60
    and smallest(cases.problem(name, k).grammar) > 1e-50
    and name not in ("rare-root", "rarer-root", "wide-alphabet")
]
IDS = [f"{name}-k{k}" for name, k in SMALL]


def likelihoods(
    tensors: Sequence[np.ndarray], prior: np.ndarray, k: int, fields: np.ndarray
) -> np.ndarray:
    """P(evidence) of every row as a polynomial of the tensors' entries, which may be complex."""
    depth, arity = len(tensors), tensors[0].ndim - 1
    nodes = [fields[:, j].astype(complex) for j in range(fields.shape[1])]
    for d in reversed(range(k, depth)):
        above = []
        for i in range(arity**d):
            grown = tensors[d][None]
            for r in range(arity):
                shape = (len(fields), 1) + (1,) * r + (-1,) + (1,) * (arity - 1 - r)
                grown = grown * nodes[arity * i + r].reshape(shape)
            above.append(grown.sum(axis=tuple(range(2, arity + 2))))
        nodes = above
    if k:
        top = np.ones((len(fields), len(prior)), complex)
        for i, node in enumerate(nodes):
            law = np.eye(len(prior), dtype=complex)
            for d in range(k):
                r = i // arity ** (k - 1 - d) % arity
                others = tuple(a for a in range(1, arity + 1) if a != r + 1)
                law = law @ tensors[d].sum(axis=others)
            top = top * (node @ law.T)
        nodes = [top]
    return nodes[0] @ prior


def growth(
    grammar: Grammar, depth: int, prior: np.ndarray, k: int, fields: np.ndarray, weights: np.ndarray
) -> list[np.ndarray]:
    """p dlnL/dp normalised per parent (Baum and Eagon), by the complex step: no difference is taken."""
    base = [grammar.tensor(d).astype(complex) for d in range(depth if not grammar.is_shared else 1)]
    out = []
    for which, tensor in enumerate(base):
        found = np.zeros(tensor.shape)
        for place in zip(*np.nonzero(tensor), strict=True):
            moved = [t.copy() for t in base]
            moved[which][place] += 1e-40j
            levels = moved * depth if grammar.is_shared else moved
            ratio = likelihoods(levels, prior, k, fields)
            slope = np.log1p(1j * (ratio.imag / ratio.real)).imag / 1e-40
            found[place] = tensor[place].real * (weights * slope).sum()
        total = found.reshape(len(found), -1).sum(axis=1).reshape((-1,) + (1,) * (found.ndim - 1))
        out.append(np.where(total > 0, found / np.where(total > 0, total, 1), tensor.real))
    return out


@pytest.mark.parametrize(("name", "k"), SMALL, ids=IDS)
def test_one_step_is_the_growth_transform(name: str, k: int) -> None:
    problem, depth = cases.problem(name, k), cases.problem(name, k).model.depth
    rng = np.random.default_rng(3)
    leaves = problem.law.draw(12, rng)
    leaves[6:9] = leaves[0]
    mask = rng.random(leaves.shape) < 0.3
    mask[6:9] = mask[0]
    weights = rng.integers(1, 4, len(leaves)).astype(float)
    fields = np.exp(token_fields(leaves, mask, problem.q))
    logs = token_fields(leaves, mask, problem.q)
    start = problem.grammar
    law = likelihoods([t.astype(complex) for t in problem.tensors], problem.prior, k, fields).real
    assert (law > 0).all()
    assert np.abs(np.log(law) - problem.law.infer(logs).log_evidence).max() < 1e-11
    found = fit_grammar(
        leaves, depth, mask=mask, weights=weights, init=start, root_prior=problem.prior,
        filter_level=k, max_iterations=1, tolerance=0.0, **QUIET,
    )  # fmt: skip
    assert abs(found.traces[0][0] - (weights * np.log(law)).sum() / weights.sum()) < 1e-11
    wanted = growth(start, depth, problem.prior, k, fields, weights)
    for d, tensor in enumerate(wanted):
        assert np.abs(found.grammar.tensor(d) - tensor).max() < 1e-10


ENUMERABLE = [(n, k) for n, k in SMALL if np.prod([cases.problem(n, k).law.n_leaves]) <= 9]


@pytest.mark.parametrize(("name", "k"), ENUMERABLE, ids=[f"{n}-k{k}" for n, k in ENUMERABLE])
def test_the_truth_is_a_fixed_point_of_its_own_law(name: str, k: int) -> None:
    """All sequences, weighted by their probabilities: what infinitely many would teach."""
    problem = cases.problem(name, k)
    law = problem.law.sequence_law()
    leaves = all_sequences(problem.q, problem.law.n_leaves)
    found = fit_grammar(
        leaves, problem.model.depth, weights=law.astype(float), init=problem.grammar,
        filter_level=k, root_prior=problem.prior, learn_prior=True, max_iterations=1,
        tolerance=0.0, **QUIET,
    )  # fmt: skip
    for d in range(problem.model.depth if not problem.grammar.is_shared else 1):
        assert np.abs(found.grammar.tensor(d) - problem.grammar.tensor(d)).max() < 1e-11
    assert np.abs(found.root_prior - problem.prior).max() < 1e-12
    entropy = -(law[law > 0] * np.log(law[law > 0])).sum()
    assert abs(found.log_likelihood + entropy) < 1e-11


def rising(trace: np.ndarray) -> bool:
    """No decrease beyond rounding: 1e-9 relative."""
    return bool((np.diff(trace) >= -1e-9 * np.abs(trace[1:])).all())


def some_fit(name: str, k: int, how: str, seed: int = 0) -> hfilter.fit.Fit:
    problem = cases.problem(name, k)
    sample = problem.model.sample(24, seed=5)
    leaves, roots = np.asarray(sample.leaves), np.asarray(sample.roots).astype(int)
    rules = sum(
        a * b**problem.model.arity
        for a, b in zip(problem.model.alphabets, problem.model.alphabets[1:], strict=False)
    )
    # Structures that allow all rules, where those are not too many to be quick.
    every = {"structure": problem.grammar} if rules > 400 else {
        "n_classes": problem.model.n_classes, "vocab_size": problem.q,
        "alphabets": problem.model.alphabets[1:-1],
    }  # fmt: skip
    arguments: dict[str, object] = {
        "leaves": {**every},
        "masked": {**every, "mask": np.random.default_rng(1).random(leaves.shape) < 0.4},
        "roots": {**every, "roots": np.where(np.arange(24) % 4, roots, -1), "learn_prior": True},
        "levels": {"structure": problem.grammar, "shared": False, "learn_prior": True},
    }[how]
    return fit_grammar(
        leaves, problem.model.depth, filter_level=k, restarts=1, max_iterations=6, tolerance=0.0,
        seed=seed, **arguments, **QUIET,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["leaves", "masked", "roots", "levels"])
def test_the_likelihood_never_falls(how: str) -> None:
    for name, k in cases.PAIRS:
        fit = some_fit(name, k, how)
        assert rising(fit.traces[0]), f"{name}, k = {k}: {np.diff(fit.traces[0]).min()}"
        for table in fit.grammar.tables:
            sums = np.add.reduceat(table.probability, table.first[:-1])
            assert np.abs(sums - 1).max() < 1e-12


def test_the_judge_of_rising_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step twice too long falls somewhere: it is found."""
    right = Structure.normalise

    def mutant(
        self: Structure, counts: np.ndarray, before: np.ndarray, pseudo: float
    ) -> np.ndarray:
        return right(self, counts**4, before, pseudo)

    monkeypatch.setattr(Structure, "normalise", mutant)
    fits = [some_fit("dense-q3-l2", 0, "leaves", seed) for seed in range(8)]
    assert not all(rising(fit.traces[0]) for fit in fits)


def test_the_best_of_some_starts_is_as_likely_as_the_truth() -> None:
    truth = TreeModel(Grammar.published(3, 1.0, 3), 3)
    leaves = truth.sample(3000, seed=0).leaves
    fit = fit_grammar(leaves, 3, restarts=2, **QUIET)
    assert fit.grammar.is_shared
    assert fit.grammar.n_rules <= 27
    assert fit.converged[fit.best_restart]
    assert fit.log_likelihood > truth.log_prob(leaves, dtype="float64").mean() - 1e-3
    # What it learned holds on others: KL of 18 free numbers is about 18 / 2 / 3000.
    others = truth.sample(20_000, seed=1).leaves
    lost = truth.log_prob(others, dtype="float64") - fit.model.log_prob(others, dtype="float64")
    assert -0.001 < lost.mean() < 0.012


def test_filtered_sequences_are_learned_at_their_level() -> None:
    truth = TreeModel(Grammar.published(3, 1.0, 3), 2, filter_level=2)
    leaves = truth.sample(2000, seed=0).leaves
    fit = fit_grammar(leaves, 2, filter_level=2, restarts=5, **QUIET)
    assert fit.log_likelihood > truth.log_prob(leaves, dtype="float64").mean() - 1e-3
    assert fit.model.filter_level == 2


def test_known_roots_of_an_unfiltered_grammar_are_counted() -> None:
    """Depth 1 with roots: maximum likelihood is counting."""
    rng = np.random.default_rng(0)
    leaves, roots = rng.integers(3, size=(500, 2)), rng.integers(4, size=500)
    fit = fit_grammar(leaves, 1, roots=roots, learn_prior=True, vocab_size=3, **QUIET)
    tensor = np.zeros((4, 3, 3))
    np.add.at(tensor, (roots, *leaves.T), 1)
    assert np.abs(fit.root_prior - np.bincount(roots) / 500).max() < 1e-14
    wanted = tensor / tensor.sum(axis=(1, 2), keepdims=True)
    assert np.abs(fit.grammar.tensor() - wanted).max() < 1e-14
    # with a pseudo-count on every rule
    fit = fit_grammar(leaves, 1, roots=roots, pseudo_count=0.5, vocab_size=3, **QUIET)
    wanted = (tensor + 0.5) / (tensor + 0.5).sum(axis=(1, 2), keepdims=True)
    assert np.abs(fit.grammar.tensor() - wanted).max() < 1e-14
    assert fit.root_prior.tolist() == [0.25] * 4


def test_pseudo_counts_raise_their_own_objective() -> None:
    leaves = TreeModel(Grammar.published(3, 1.0, 0), 2).sample(60, seed=2).leaves
    fit = fit_grammar(leaves, 2, pseudo_count=0.3, restarts=2, max_iterations=60, **QUIET)
    assert all(rising(trace) for trace in fit.traces)
    assert smallest(fit.grammar) > 0.3 / (60 * 3 + 27 * 0.3)
    assert fit.grammar.n_rules == 27
    prior = 0.3 * np.log(fit.grammar.tensor()).sum() / 60
    assert abs(fit.traces[fit.best_restart][-1] - fit.log_likelihood - prior) < 1e-12


def test_roots_are_evidence() -> None:
    """The trace with roots is the joint law of leaves and roots; unknown ones are summed over."""
    problem = cases.problem("random_hierarchy-many-classes", 1)
    sample = problem.model.sample(30, seed=1)
    roots = np.asarray(sample.roots).astype(int)
    roots[::3] = -1
    fit = fit_grammar(
        sample.leaves, 2, roots=roots, filter_level=1, init=problem.grammar,
        root_prior=problem.prior, max_iterations=0, **QUIET,
    )  # fmt: skip
    beliefs = problem.model.infer(sample.leaves, dtype="float64")
    wanted = beliefs.log_evidence.copy()
    known = roots >= 0
    wanted[known] += np.log(beliefs.root[known, roots[known]])
    assert abs(fit.log_likelihood - wanted.mean()) < 1e-12
    assert fit.grammar == problem.grammar
    assert fit.supervised
    assert fit.n_iterations == (0,)
    assert fit.converged == (False,)


def test_hidden_leaves_however_they_are_said() -> None:
    leaves = np.asarray(TreeModel(Grammar.published(3, 1.0, 0), 2).sample(50, seed=3).leaves)
    mask = np.random.default_rng(0).random(leaves.shape) < 0.4
    one = fit_grammar(leaves, 2, mask=mask, vocab_size=3, restarts=1, **QUIET)
    two = fit_grammar(np.where(mask, 3, leaves), 2, vocab_size=3, restarts=1, **QUIET)
    wild = np.where(mask, 1, leaves)
    three = fit_grammar(wild, 2, mask=mask, vocab_size=3, restarts=1, **QUIET)
    assert one.grammar == two.grammar == three.grammar
    all_hidden = fit_grammar(leaves, 2, mask=np.ones_like(mask), vocab_size=3, **QUIET)
    assert abs(all_hidden.log_likelihood) < 1e-12


@pytest.mark.parametrize("k", [0, 1, 2])
def test_zeros_stay_and_dead_parents_keep_their_rules(k: int) -> None:
    start = cases.problem("tensor-missing-symbol", 0).grammar
    leaves = TreeModel(start, 2, k, [0.5, 0.5, 0.0]).sample(200, seed=0).leaves
    fit = fit_grammar(leaves, 2, init=start, filter_level=k, root_prior=[0.5, 0.5, 0.0], **QUIET)
    before, after = start.tensor(), fit.grammar.tensor()
    assert not after[before == 0].any()
    assert (after[2] == before[2]).all(), "symbol 2 never occurs"


def test_vanishing_rules_end_as_zeros() -> None:
    """A rule that the data speak against shrinks by a factor each time and must not break channels."""
    leaves = np.zeros((50, 8), int)
    leaves[:25] = 1
    for k, accelerate in ((0, False), (3, False), (1, True), (3, True)):
        fit = fit_grammar(
            leaves, 3, vocab_size=2, filter_level=k, tolerance=0.0, max_iterations=300, restarts=1,
            accelerate=accelerate, **QUIET,
        )  # fmt: skip
        assert np.isfinite(fit.log_likelihood)
        assert all(rising(trace) for trace in fit.traces)
        assert smallest(fit.grammar) >= 1e-100
    assert fit.model.sample(10, seed=0).leaves.shape == (10, 8)
