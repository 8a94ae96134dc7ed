"""Beliefs where rules have a text of their own (squares, lists, all there can be): against the general text."""

from __future__ import annotations

import numpy as np
import pytest

import hfilter
from hfilter import Grammar, TreeModel

COMPILED = tuple(
    name for name in ("avx512", "avx2", "portable")
    if name in hfilter.backends() and hfilter.backends()[name].available
)  # fmt: skip
NUMBA = hfilter.backends()["numba"]
pytestmark = [
    pytest.mark.skipif(not COMPILED, reason="no compiled backend"),
    pytest.mark.skipif(not NUMBA.available, reason=f"the judge, numba: {NUMBA.reason}"),
]
ROWS = 35

# Alphabets with a text of their own, those beside them, and every remainder of a row of eight columns; a square that is
# full, one with holes, and one with too many to be laid out.
SQUARES = [
    (q, rules) for q in (2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 22)
    for rules in sorted({q, (q + 1) // 2, max(1, q // 4)})
]  # fmt: skip


def fields_of(model: TreeModel, rng: np.random.Generator) -> np.ndarray:
    """Fields that favour rows of the model; a tenth of them forbids a symbol that the row does not have."""
    leaves = model.sample(ROWS, seed=3).leaves
    own = np.eye(model.vocab_size, dtype=bool)[leaves]
    fields = 2.0 * own + 2 * rng.standard_normal(own.shape)
    fields[(rng.random(own.shape) < 0.1) & ~own] = -np.inf
    return fields


def assert_judged(model: TreeModel, rng: np.random.Generator) -> None:
    """Every level's beliefs, the leaves' alone, predictions and evidence; any number of rows, either precision."""
    fields = fields_of(model, rng)
    judge = {"backend": "numba", "dtype": "float64"}
    want = model.infer(log_fields=fields, levels="all", **judge)
    without = model.leave_one_out(log_fields=fields, **judge)
    for name in COMPILED:
        for dtype, rtol, atol in (("float32", 3e-5, 3e-7), ("float64", 1e-11, 1e-14)):
            how = {"backend": name, "dtype": dtype}
            for n in (1, 16, ROWS) if dtype == "float32" else (ROWS,):
                near = {"rtol": rtol, "atol": atol, "err_msg": f"{name}, {dtype}, {n} rows"}
                every = model.infer(log_fields=fields[:n], levels="all", **how)
                for d in model.existing_levels:
                    np.testing.assert_allclose(every.level(d), want.level(d)[:n], **near)
                np.testing.assert_allclose(every.log_evidence, want.log_evidence[:n], **near)
                alone = model.infer(log_fields=fields[:n], **how)
                np.testing.assert_allclose(alone.leaves, want.leaves[:n], **near)
                other = model.leave_one_out(log_fields=fields[:n], **how)
                np.testing.assert_allclose(other, without[:n], **near)


@pytest.mark.parametrize(("q", "rules"), SQUARES)
def test_squares_of_all_sizes(q, rules, rng):
    grammar = Grammar.log_normal(q, 1.0, q, rules_per_symbol=rules)
    assert_judged(TreeModel(grammar, 1 + q % 3), rng)


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("q", [4, 6, 8])
def test_deep_enough_for_leaves_in_several_parts(q, depth, rng):
    for k in {0, depth // 2, depth}:
        assert_judged(TreeModel(Grammar.published(q, 1.0, 1), depth, filter_level=k), rng)


def test_alphabets_that_change_with_the_level(rng):
    grammar = Grammar.random_hierarchy(
        vocab_size=5, rules_per_symbol=3, depth=4, n_classes=7, seed=4
    )
    assert_judged(TreeModel(grammar, 4), rng)
    assert_judged(TreeModel(grammar, 4, filter_level=1), rng)


def test_pairs_with_two_parents_are_no_square(rng):
    for grammar in (Grammar.dense(4, 1.0, 1), Grammar.dense(6, 0.2, 2), Grammar.broadcast(4, 0.3)):
        assert_judged(TreeModel(grammar, 3), rng)


@pytest.mark.parametrize("depth", [2, 4, 6])
@pytest.mark.parametrize("q", [4, 5, 6, 8, 16])
def test_a_row_does_not_depend_on_its_neighbours(q, depth, rng):
    """Weak, strong and contradictory fields mixed: the same bits, whatever stands beside a row."""
    model = TreeModel(Grammar.published(q, 1.0, 2), depth)
    n = 37
    own = np.eye(q)[model.sample(n, seed=5).leaves]
    other = np.eye(q)[rng.integers(q, size=(n, model.n_leaves))]  # of no sequence of the grammar
    strength = np.array([1, 3, 10, 30, 60, 85, 120])[rng.integers(7, size=(n, 1, 1))]
    mixed = np.where(rng.random((n, 1, 1)) < 0.5, own, other) * strength
    fields = (mixed + rng.standard_normal(own.shape)).astype(np.float32)
    judge = model.infer(log_fields=fields, levels="all", backend="numba", dtype="float64")
    for name in (*COMPILED, "numba"):
        want = model.infer(log_fields=fields, levels="all", backend=name)
        np.testing.assert_allclose(want.log_evidence, judge.log_evidence, rtol=1e-5)
        for d in model.existing_levels:
            np.testing.assert_allclose(want.level(d), judge.level(d), rtol=1e-3, atol=3e-6)
        leaves = model.infer(log_fields=fields, backend=name).leaves
        np.testing.assert_allclose(leaves, judge.leaves, rtol=1e-3, atol=3e-6)
        for _ in range(4):
            order = rng.permutation(n)
            got = model.infer(log_fields=fields[order], levels="all", backend=name)
            np.testing.assert_array_equal(got.log_evidence, want.log_evidence[order], name)
            for d in model.existing_levels:
                np.testing.assert_array_equal(got.level(d), want.level(d)[order], f"{name}, {d}")
            alone = model.infer(log_fields=fields[order], backend=name).leaves
            np.testing.assert_array_equal(alone, leaves[order], name)


def test_the_judge_sees_a_wrong_rule(rng):
    model = TreeModel(Grammar.published(6, 1.0, 0, rules_per_symbol=4), 3)
    other = TreeModel(Grammar.published(6, 1.0, 1, rules_per_symbol=4), 3)
    fields = rng.standard_normal((ROWS, 8, 6))
    a, b = (m.infer(log_fields=fields, backend=COMPILED[0]).leaves for m in (model, other))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-7)


# Arities with a text of their own and one beyond; enough nodes for several side by side and some left over.
@pytest.mark.parametrize(
    ("arity", "depth", "q", "rules"),
    [(3, 1, 5, 5), (3, 4, 4, 3), (4, 3, 6, 6), (5, 2, 3, 2), (6, 2, 4, 4), (7, 2, 2, 2), (8, 2, 5, 9), (9, 2, 3, 3)],
)  # fmt: skip
def test_rules_of_many_children(arity, depth, q, rules, rng):
    grammar = Grammar.log_normal(q, 1.0, q, rules_per_symbol=rules, arity=arity)
    for k in range(depth + 1):
        assert_judged(TreeModel(grammar, depth, filter_level=k), rng)


def test_many_children_of_alphabets_that_change_with_the_level(rng):
    grammar = Grammar.random_hierarchy(
        vocab_size=5, rules_per_symbol=3, depth=3, n_classes=7, arity=4, seed=4
    )
    assert_judged(TreeModel(grammar, 3), rng)
    ambiguous = Grammar.dense(3, 1.0, 2, arity=4)
    assert_judged(TreeModel(ambiguous, 2, filter_level=1), rng)


# Sums stand four to a group and one node or two beside each other: alphabets and trees with some left over.
@pytest.mark.parametrize(("q", "depth"), [(4, 3), (5, 4), (7, 2), (8, 1), (9, 3), (16, 2), (18, 2)])
def test_grammars_of_all_rules(q, depth, rng):
    """Of tokens to the last bit, as Numba walks the rules one after the other."""
    for k in range(0, depth + 1, 2):
        model = TreeModel(Grammar.dense(q, 1.0, q), depth, filter_level=k)
        assert_judged(model, rng)
        leaves = model.sample(ROWS, seed=1).leaves
        hidden = rng.random(leaves.shape) < 0.3
        want = model.infer(leaves, hidden, levels="all", backend="numba")
        without = model.leave_one_out(leaves, hidden, backend="numba")
        for name in COMPILED:
            got = model.infer(leaves, hidden, levels="all", backend=name)
            for d in model.existing_levels:
                np.testing.assert_array_equal(got.level(d), want.level(d))
            np.testing.assert_array_equal(
                model.leave_one_out(leaves, hidden, backend=name), without
            )


def test_all_rules_of_alphabets_that_change_with_the_level(rng):
    tensors = [rng.random((a, b, b)) + 0.1 for a, b in ((3, 6), (6, 5), (5, 9))]
    tensors = [t / t.sum(axis=(1, 2), keepdims=True) for t in tensors]
    assert_judged(TreeModel(Grammar.from_tensor(tensors), 3), rng)
