"""Banned compositions against a sum over all derivations, rule by rule from the dense tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from bayes import channel_fields, leaf_laws, root_laws
from cases import CASES, problem
from oracle import all_sequences

import hfilter
from hfilter.errors import ArgumentError, DTypeError, GrammarError, ShapeError
from hfilter.oracles import (
    BannedCompositions,
    ExactBP,
    Predictor,
    banned_grammar,
    draw_bans,
    list_adjacencies,
)

# Bans need a choice: two rules of some symbol. "rare-" cases have rules of 1e-250: sums lose them.
NAMES = tuple(
    case.name
    for case in CASES
    if case.depth > 1
    and not case.name.startswith("rare")
    and case.name not in ("one-symbol", "broadcast-copies", "dense-q2-l3")
)


def rules_of(tensor: np.ndarray) -> list[tuple[int, ...]]:
    """(parent, children …) in the order of a grammar's table."""
    return [tuple(entry) for entry in np.argwhere(tensor).tolist()]


def sequence_law(
    tensors: list[np.ndarray], prior: np.ndarray, depth: int, banned: set[tuple[int, int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """P(sequence, root) with and P_0 mass without normalisation: (q**L, classes) each.

    The first has the probability of each child rule normalised over those that are not banned; the
    second is the original mass of derivations that hold no banned adjacency.
    """
    q, arity = tensors[depth - 1].shape[-1], tensors[0].ndim - 1
    below = [np.eye(q**arity)[sum(c * q ** (arity - 1 - i) for i, c in enumerate(rule[1:]))]
             for rule in rules_of(tensors[depth - 1])]  # fmt: skip
    kept = below
    for d in reversed(range(depth - 1)):
        lower = rules_of(tensors[d + 1])
        here, here_kept = [], []
        for r, rule in enumerate(rules_of(tensors[d])):
            law, mass = np.ones(1), np.ones(1)
            for side, symbol in enumerate(rule[1:]):
                open_to = [
                    c for c, child in enumerate(lower)
                    if child[0] == symbol and (d, r, side, c) not in banned
                ]  # fmt: skip
                p = [float(tensors[d + 1][lower[c]]) for c in open_to]
                pairs = list(zip(p, open_to, strict=True))
                law = np.outer(law, sum(x / sum(p) * below[c] for x, c in pairs)).ravel()
                mass = np.outer(mass, sum(x * kept[c] for x, c in pairs)).ravel()
            here.append(law)
            here_kept.append(mass)
        below, kept = here, here_kept
    joint, original = np.zeros((2, len(below[0]), len(prior)))
    for r, rule in enumerate(rules_of(tensors[0])):
        p = prior[rule[0]] * float(tensors[0][rule])
        joint[:, rule[0]] += p * below[r]
        original[:, rule[0]] += p * kept[r]
    return joint, original


def bans_for(grammar: hfilter.Grammar, fraction: float, seed: int) -> np.ndarray:
    """As many bans as the grammar bears, up to a fraction."""
    while True:
        try:
            return draw_bans(grammar, fraction, seed)
        except GrammarError:
            fraction *= 0.7


def as_set(bans: np.ndarray, depth: int) -> set[tuple[int, int, int, int]]:
    if bans.shape[1] == 4:
        return {tuple(row) for row in bans.tolist()}
    return {(d, *row) for row in bans.tolist() for d in range(depth - 1)}


def unfiltered(name: str) -> tuple[Any, list[np.ndarray], np.ndarray, int]:
    case = problem(name, 0)
    return case, case.tensors, case.prior, case.model.depth


@pytest.mark.parametrize("name", NAMES)
def test_law(name: str) -> None:
    """The law of sequences and every posterior, with bans."""
    case, tensors, prior, depth = unfiltered(name)
    bans = bans_for(case.grammar, 0.3, 1)
    assert len(bans) > 0
    joint, original = sequence_law(tensors, prior, depth, as_set(bans, depth))
    assert abs(joint.sum() - 1) < 1e-12
    literal = BannedCompositions(case.model, bans)
    x = all_sequences(case.q, case.model.n_leaves)
    law = joint.sum(axis=1)
    got = np.exp(literal.model.log_prob(x, dtype="float64"))
    np.testing.assert_allclose(got, law, rtol=1e-11, atol=1e-15)
    assert ((law > 0) == (original.sum(axis=1) > 0)).all()
    evidence = case.tokens()
    assert evidence.leaves is not None
    assert evidence.mask is not None
    tokens, mask = evidence.leaves[:7], evidence.mask[:7]
    fields = channel_fields(tokens, mask, case.q, 0.0)
    want = leaf_laws(x[law > 0], law[law > 0], fields)
    np.testing.assert_allclose(literal.predict(tokens, mask), want, atol=1e-12)
    rows, roots = np.nonzero(joint)
    want = root_laws(x[rows], joint[rows, roots], roots, fields, len(prior))
    np.testing.assert_allclose(literal.predict_root(tokens, mask), want, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_without_bans_nothing_changes(name: str) -> None:
    case, _, _, _ = unfiltered(name)
    none = np.empty((0, 3 if case.grammar.is_shared else 4), int)
    literal = BannedCompositions(case.model, none)
    x = all_sequences(case.q, case.model.n_leaves)
    p0 = np.exp(case.model.log_prob(x, dtype="float64"))
    got = np.exp(literal.model.log_prob(x, dtype="float64"))
    np.testing.assert_allclose(got, p0, rtol=1e-13, atol=1e-15)
    tokens = case.tokens()
    bp = ExactBP(case.model)
    for ask in ("predict", "predict_root"):
        a = getattr(literal, ask)(tokens.leaves, tokens.mask)
        b = getattr(bp, ask)(tokens.leaves, tokens.mask)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def test_published_grammar_with_a_tenth_banned() -> None:
    """Divergence and lost mass by two roads: over all 65 536 sequences, and over derivations."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    assert len(list_adjacencies(model.grammar)) == 16 * 2 * 4
    bans = draw_bans(model.grammar, 0.1, seed=0)
    assert len(bans) == 13
    literal = BannedCompositions(model, bans)
    x = all_sequences(4, 8).astype(np.uint8)
    p0 = np.exp(model.log_prob(x, dtype="float64"))
    pb = np.exp(literal.model.log_prob(x, dtype="float64"))
    assert abs(pb.sum() - 1) < 1e-12
    tensor = model.grammar.tensor()
    joint, original = sequence_law([tensor] * 3, model.root_prior, 3, as_set(bans, 3))
    lost = p0[pb == 0].sum()
    assert abs(lost - (1 - original.sum())) < 1e-12
    assert 0.02 < lost < 0.7
    kept = pb > 0
    kl = float((pb[kept] * np.log(pb[kept] / p0[kept])).sum())
    # The same, node by node: mean of ln(1 / mass left) over both sides of each rule above rules.
    assert kl == pytest.approx(_divergence(tensor, model.root_prior, as_set(bans, 3), 3), rel=1e-10)
    assert kl > 0.01
    np.testing.assert_allclose(joint.sum(axis=1), pb, rtol=1e-11, atol=1e-16)


def _divergence(tensor: np.ndarray, prior: np.ndarray, banned: set[Any], depth: int) -> float:
    """KL(P_B || P_0): each choice of a child rule gains the factor 1 / (mass that is not banned)."""
    rules = rules_of(tensor)
    at = np.array([prior[rule[0]] * tensor[rule] for rule in rules])  # law of a node's rule
    total, nodes = 0.0, [at]
    for d in range(depth - 1):
        below = []
        for law in nodes:
            sides = [np.zeros(len(rules)) for _ in rules[0][1:]]
            for r, rule in enumerate(rules):
                for side, symbol in enumerate(rule[1:]):
                    kids = [
                        c for c, k in enumerate(rules)
                        if k[0] == symbol and (d, r, side, c) not in banned
                    ]  # fmt: skip
                    left = sum(tensor[rules[c]] for c in kids)
                    total -= law[r] * math.log(left)
                    for c in kids:
                        sides[side][c] += law[r] * tensor[rules[c]] / left
            below += sides
        nodes = below
    return float(total)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.2, 0.4])
def test_draws(fraction: float) -> None:
    """The number asked for, each rule keeps a place and a child, smaller sets are in larger ones."""
    for grammar in (
        hfilter.Grammar.published(4, 1.0, 0),
        hfilter.Grammar.random_hierarchy(6, 4, 3, n_classes=3, seed=1),
        hfilter.Grammar.log_normal(3, 1.0, 0, arity=3),
    ):
        every = list_adjacencies(grammar)
        bans = draw_bans(grammar, fraction, seed=3)
        assert len(bans) == round(fraction * len(every))
        assert (bans == draw_bans(grammar, fraction, seed=3)).all()
        gone = {tuple(b) for b in bans.tolist()}
        assert len(gone) == len(bans)
        kept = [tuple(a) for a in every.tolist() if tuple(a) not in gone]
        assert {a[:-1] for a in kept} == {tuple(a[:-1]) for a in every.tolist()}
        assert {(*a[:-3], a[-1]) for a in kept} == {(*a[:-3], a[-1]) for a in every.tolist()}
        more = {tuple(b) for b in draw_bans(grammar, fraction + 0.1, seed=3).tolist()}
        assert gone <= more
        if fraction > 0:
            assert gone != {tuple(b) for b in draw_bans(grammar, fraction, seed=4).tolist()}


def test_draws_to_the_limit() -> None:
    """Half of all adjacencies of two rules for each symbol: one child rule stays on every side."""
    grammar = hfilter.Grammar.log_normal(2, 1.0, 0)
    drawn = 0
    for seed in range(40):
        try:
            gone = draw_bans(grammar, 0.5, seed).tolist()
        except GrammarError:
            continue
        drawn += 1
        kept = [a for a in list_adjacencies(grammar).tolist() if a not in gone]
        assert len({tuple(a[:2]) for a in kept}) == len(kept) == 8
        assert {a[2] for a in kept} == {0, 1, 2, 3}, "every rule still occurs"
    assert drawn > 10


def test_a_ban_at_one_level() -> None:
    grammar = hfilter.Grammar.published(4, 1.0, 0)
    model = hfilter.TreeModel(grammar, depth=3, root_prior=[0.1, 0.2, 0.3, 0.4])
    ban = [1, *list_adjacencies(grammar)[5].tolist()]
    literal = BannedCompositions(model, [ban])
    joint, _ = sequence_law([grammar.tensor()] * 3, model.root_prior, 3, {tuple(ban)})
    got = np.exp(literal.model.log_prob(all_sequences(4, 8), dtype="float64"))
    np.testing.assert_allclose(got, joint.sum(axis=1), rtol=1e-11, atol=1e-16)


def test_samples_and_interface() -> None:
    torch = pytest.importorskip("torch")
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    literal = BannedCompositions(model, draw_bans(model.grammar, 0.2, seed=1))
    assert isinstance(literal, Predictor)
    sample = literal.sample(500, seed=4)
    assert sample.leaves.dtype == sample.roots.dtype == np.uint8
    assert np.isfinite(literal.model.log_prob(sample.leaves)).all()
    root = literal.predict_root(sample.leaves)
    assert (root.argmax(axis=1) == sample.roots).all(), "unambiguous: leaves determine the root"
    part = literal.sample(100, seed=4, start=300)
    assert (part.leaves == sample.leaves[300:400]).all()
    law = literal.predict(sample.leaves)
    tensor = literal.predict(torch.from_numpy(sample.leaves))
    assert isinstance(tensor, torch.Tensor)
    assert (tensor.numpy() == law).all()
    assert isinstance(literal.predict_root(torch.from_numpy(sample.leaves)), torch.Tensor)
    assert (literal.predict(sample.leaves[7:]) == law[7:]).all()
    single = BannedCompositions(model, draw_bans(model.grammar, 0.2, seed=1), dtype="float32")
    assert single.predict(sample.leaves).dtype == np.float32
    flat = hfilter.TreeModel(model.grammar, 1)
    plain = BannedCompositions(flat, np.empty((0, 3), int)).predict([[0, 1]])
    np.testing.assert_allclose(plain, ExactBP(flat).predict([[0, 1]]), atol=1e-15)


def test_bad_input() -> None:
    shared = hfilter.Grammar.published(4, 1.0, 0)
    levels = hfilter.Grammar.random_hierarchy(4, 2, 3, seed=0)
    model = hfilter.TreeModel(shared, depth=3)
    below = [a for a in list_adjacencies(shared).tolist() if a[:2] == [0, 0]]
    wrong: list[tuple[type[Exception], str, Any]] = [
        (DTypeError, "grammar must be", lambda: list_adjacencies(model)),  # type: ignore[arg-type]
        (DTypeError, "model must be", lambda: BannedCompositions(shared, [])),  # type: ignore[arg-type]
        (ArgumentError, "unfiltered", lambda: BannedCompositions(model.filtered(1), below[:1])),
        (ArgumentError, "depth must be given", lambda: banned_grammar(shared, below[:1])),
        (ArgumentError, "depth must be 3", lambda: banned_grammar(levels, np.empty((0, 4), int), 2)),
        (ShapeError, r"shape \(m, 3\) or \(m, 4\)", lambda: banned_grammar(shared, [0, 1], 3)),
        (ShapeError, r"shape \(m, 4\)", lambda: banned_grammar(levels, below[:1])),
        (DTypeError, "bans must be integers", lambda: banned_grammar(shared, [[0.0, 1.0, 2.0]], 3)),
        (ArgumentError, r"\[0, 2, 0\] is no adjacency", lambda: banned_grammar(shared, [[0, 2, 0]], 3)),
        (ArgumentError, "levels .* from 0 to 1", lambda: banned_grammar(shared, [[2, *below[0]]], 3)),
        (GrammarError, "rule 0 of level 0 no child rule on side 0", lambda: banned_grammar(shared, below, 3)),
        (ArgumentError, "fraction must be", lambda: draw_bans(shared, 1.2)),
        (GrammarError, "asks for 128 bans of 128", lambda: draw_bans(shared, 1.0)),
    ]  # fmt: skip
    for error, text, call in wrong:
        with pytest.raises(error, match=text):
            call()
