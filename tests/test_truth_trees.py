"""Truth: the most probable tree against the maximum over all configurations; draws hold to the evidence."""

from __future__ import annotations

import numpy as np
import pytest
from cases import PAIR_IDS, PAIRS, Problem, problem
from enumerated import joint_logs, log_weight_of_trees
from oracle import Enumeration, all_sequences, token_fields
from rotating import TOLERANCE, Asked, asked

import hfilter
from hfilter import Grammar, TreeModel


def symbols(tree: hfilter.ProbableTree, p: Problem) -> dict[int, np.ndarray]:
    """Every existing level, root and leaves as their attributes have them."""
    levels = {d: np.asarray(x) for d, x in tree.levels.items()}
    assert tuple(sorted(levels)) == p.model.existing_levels
    for d, x in levels.items():
        assert x.dtype == p.model.token_dtype
        assert x.shape == (len(tree.roots), p.law.arity**d)
    np.testing.assert_array_equal(levels[0][:, 0], tree.roots)
    np.testing.assert_array_equal(levels[p.law.depth], tree.leaves)
    return levels


def room(p: Problem, ask: Asked, best: np.ndarray) -> np.ndarray:
    """How far below the best a tree may be that passes for the best in the value type, in nats."""
    factors = 2 * p.law.n_leaves * p.law.arity
    rounding = factors * float(np.finfo(ask.options["dtype"]).eps)
    return (
        rounding
        + (ask.atol - TOLERANCE[ask.options["dtype"]])
        + 4 * ask.atol_of_logs(best) * (ask.options["dtype"] == "float64")
    )


def judge_best(p: Problem, ask: Asked, tree: hfilter.ProbableTree) -> int:
    """Hold one batch to the maximum; the number of rows whose best tree has no rival."""
    logs = joint_logs(p.law, ask.fields)
    best = logs.max(axis=1)
    possible = ~np.isneginf(best)
    assert tree.log_prob.dtype == np.float64
    np.testing.assert_array_equal(np.isneginf(tree.log_prob), ~possible, err_msg=ask.what)
    levels = symbols(tree, p)
    for d, x in levels.items():  # one past its alphabet: no symbol at all
        assert (x[~possible] == p.law.alphabets[d]).all(), ask.what
        assert (x[possible] < p.law.alphabets[d]).all(), ask.what
    if not possible.any():
        return 0
    chosen = {d: x[possible] for d, x in levels.items()}
    k, fields = p.law.filter_level, ask.fields[possible]
    weight = log_weight_of_trees(p.tensors, p.prior, k, chosen, fields)
    best, said = best[possible], tree.log_prob[possible]
    assert np.isfinite(weight).all(), f"{ask.what}: symbols that do not fit together"
    gap = np.abs(weight - said)
    assert (gap <= 4 * ask.atol_of_logs(best)).all(), f"{ask.what}: log_prob is not the tree's"
    slack = room(p, ask, best)
    assert (best - weight <= slack).all(), f"{ask.what}: {best - weight} below the best"
    rivals = (logs[possible] > (best - slack)[:, None]).sum(axis=1)
    for row in np.flatnonzero(rivals == 1):
        winner = int(logs[possible][row].argmax())
        for d, x in chosen.items():
            np.testing.assert_array_equal(x[row], p.law.configurations[d][winner], ask.what)
    return int((rivals == 1).sum())


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_most_probable(name: str, k: int) -> None:
    """The joint maximum over all configurations, hidden leaves and soft evidence included."""
    p = problem(name, k)
    alone = sum(
        judge_best(p, ask, p.model.most_probable(**ask.evidence, **ask.options)) for ask in asked(p)
    )
    # These tie everywhere (of the second the root says nothing); elsewhere one tree must have stood alone.
    assert alone > 0 or name.startswith(("parity", "levels-arity3"))


TIES = {
    "parity": (Grammar.parity, 3, None),
    "parity-arity3": (lambda: Grammar.parity(arity=3), 2, (0.5, 0.5)),
    "equal rules": (
        lambda: Grammar.random_hierarchy(
            vocab_size=4, rules_per_symbol=2, depth=2, n_classes=2, seed=1
        ),
        2,
        None,
    ),
    "ambiguous": (lambda: Grammar.from_tensor(np.full((2, 2, 2), 0.25)), 3, None),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", TIES)
def test_ties(name: str, dtype: str, backend: str) -> None:
    """Probabilities that are exact in both types, so that ties are exact: the first in the stated order.

    Configurations are enumerated in that order: by root, then rule by rule from the top.
    """
    make, depth, prior = TIES[name]
    classes = make().tensor(0).shape[0]
    weights = np.full(classes, 1 / classes) if prior is None else np.array(prior)
    for k in range(depth + 1) if backend != "python" else (0, depth):
        model = TreeModel(make(), depth, k, root_prior=weights)
        law = law_of(model)
        rng = np.random.default_rng(k)
        leaves = law.draw(8, rng)
        mask = rng.random(leaves.shape) < np.resize([0.5, 1.0, 0.8, 0.0], 8)[:, None]
        tree = model.most_probable(leaves, mask, dtype=dtype, backend=backend)
        logs = joint_logs(law, token_fields(leaves, mask, model.vocab_size))
        close = logs >= logs.max(axis=1, keepdims=True) - 1e-12
        assert (close.sum(axis=1) > 1).any(), "the case must have ties"
        first = close.argmax(axis=1)
        for d in model.existing_levels:
            want = law.configurations[d][first]
            np.testing.assert_array_equal(tree.levels[d], want, err_msg=f"k {k}, level {d}")


def law_of(model: TreeModel) -> Enumeration:
    tensors = [model.grammar.tensor(d) for d in range(model.depth)]
    return Enumeration(tensors, np.asarray(model.root_prior), model.depth, model.filter_level)


@pytest.mark.parametrize("k", range(3))
def test_a_hidden_batch_is_the_mode(k: int, backend: str) -> None:
    """Nothing seen: the most probable of all trees; everything seen: no less probable than the truth."""
    model = TreeModel(Grammar.log_normal(3, 1.0, 0), 2, k, root_prior=[0.2, 0.5, 0.3])
    law = law_of(model)
    mode = model.most_probable(np.full((1, 4), 3), dtype="float64", backend=backend)
    assert mode.log_prob[0] == pytest.approx(float(law.log_prior.max()), abs=1e-12)
    leaves = all_sequences(3, 4)
    tree = model.most_probable(leaves, dtype="float64", backend=backend)
    np.testing.assert_array_equal(
        tree.leaves[np.isfinite(tree.log_prob)], leaves[np.isfinite(tree.log_prob)]
    )
    below = model.log_prob(leaves, dtype="float64", backend=backend) - tree.log_prob
    assert (below[np.isfinite(tree.log_prob)] >= -1e-12).all()


def test_the_judge_of_trees_sees() -> None:
    """The best symbol of every node by itself, and the best tree of another filter level, do not pass."""
    p = problem("dense-q3-l2", 0)
    ask = list(asked(p))[1]
    good = p.model.most_probable(**ask.evidence, dtype="float64")
    judge_best(p, ask, good)
    post = p.model.infer(**ask.evidence, dtype="float64", levels="all")
    levels = {d: post.level(d).argmax(axis=2).astype(np.uint8) for d in range(3)}
    levels = {d: np.where(np.isneginf(good.log_prob)[:, None], 3, x) for d, x in levels.items()}
    levels = {d: x.astype(np.uint8) for d, x in levels.items()}
    marginal = hfilter.exact.ProbableTree(levels[0][:, 0], levels[2], good.log_prob, levels)
    with pytest.raises(AssertionError):
        judge_best(p, ask, marginal)
    shifted = hfilter.exact.ProbableTree(good.roots, good.leaves, good.log_prob - 1e-6, good.levels)
    with pytest.raises(AssertionError):
        judge_best(p, ask, shifted)


# ------------------------------------------------------------------ draws


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_draws_hold_to_the_evidence(name: str, k: int) -> None:
    """Every draw is a tree of positive posterior probability; none where the evidence is impossible."""
    p = problem(name, k)
    for ask in asked(p):
        n = 3 if ask.options["backend"] == "python" else 9
        drawn = p.model.sample_posterior(**ask.evidence, n_samples=n, levels="all", **ask.options)
        possible = ~np.isneginf(joint_logs(p.law, ask.fields).max(axis=1))
        assert drawn.roots.shape == (len(possible), n)
        assert drawn.leaves.shape == (len(possible), n, p.law.n_leaves)
        np.testing.assert_array_equal(drawn.levels[0][..., 0], drawn.roots)
        np.testing.assert_array_equal(drawn.levels[p.law.depth], drawn.leaves)
        for d, x in drawn.levels.items():
            assert x.dtype == p.model.token_dtype
            assert x.shape == (len(possible), n, p.law.arity**d)
            assert (x[~possible] == p.law.alphabets[d]).all(), ask.what
        for j in range(n):
            chosen = {d: x[possible, j] for d, x in drawn.levels.items()}
            weight = log_weight_of_trees(p.tensors, p.prior, k, chosen, ask.fields[possible])
            assert np.isfinite(weight).all(), f"{ask.what}: a draw that is impossible"
