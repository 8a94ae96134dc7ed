"""Leave-one-out predictions and roots of fully seen rows have ways of their own: bit for bit the general answers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hfilter
from hfilter import Grammar, TreeModel, runners

COMPILED = tuple(
    name for name in ("avx512", "avx2", "portable")
    if name in hfilter.backends() and hfilter.backends()[name].available
)  # fmt: skip
compiled = pytest.mark.skipif(not COMPILED, reason="no compiled backend")
numba = pytest.mark.skipif(not hfilter.backends()["numba"].available, reason="no numba")
SIZES = (1, 2, 15, 16, 17, 33)


def rows_of(model: TreeModel, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of the model, a third of them with a symbol changed, which may make them impossible."""
    rows = model.sample(n, seed=int(rng.integers(1 << 30))).leaves.copy()
    changed = rng.random(n) < 1 / 3
    places = rng.integers(0, model.n_leaves, n)
    rows[changed, places[changed]] = rng.integers(0, model.vocab_size, changed.sum())
    return rows


def assert_same_ways(model: TreeModel, rows: np.ndarray, mask: np.ndarray | None = None) -> None:
    """A row alone goes the general way, without tables."""
    for question, name in product((model.leave_one_out, model.root_posterior), COMPILED):
        one = [
            question(rows[i : i + 1], None if mask is None else mask[i : i + 1], backend=name)
            for i in range(len(rows))
        ]
        many = 4 * (model.vocab_size + 1) ** 4 // rows.size + 1
        question(np.tile(rows, (min(many, 400), 1)), backend=name)  # large enough for tables
        for n in (*SIZES, len(rows)):
            some = question(rows[:n], None if mask is None else mask[:n], backend=name)
            bits, want = (x.view(np.uint32) for x in (some, np.concatenate(one)[:n]))  # NaN's too
            np.testing.assert_array_equal(bits, want, err_msg=f"{name}, {n} rows")


@compiled
@settings(max_examples=25, deadline=None)
@given(q=st.integers(2, 17), depth=st.integers(1, 6), seed=st.integers(0, 99), data=st.data())
def test_parsed_rows_are_the_general_ones(q, depth, seed, data):
    r = data.draw(st.integers(1, q))
    depth = min(depth, 4 if q > 8 else 6)
    model = TreeModel(Grammar.log_normal(q, 1.0, seed, rules_per_symbol=r), depth)
    assert_same_ways(model, rows_of(model, 40, np.random.default_rng(seed)))


@compiled
@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.random_hierarchy(5, 3, 3, n_classes=7, seed=1),
        Grammar.random_hierarchy(9, 4, 3, n_classes=2, seed=1),
        Grammar.random_hierarchy(4, 4, 3, n_classes=3, seed=1),
        Grammar.random_hierarchy(3, 2, 3, n_classes=3, seed=1, arity=3),
        Grammar.dense(4, 1.0, 1),
        Grammar.published(4, 1.0, 0),
        Grammar.parity(),
    ],
    ids=["levels 7-5", "levels 2-9", "levels 3-4", "arity 3", "ambiguous", "published", "parity"],
)
def test_what_cannot_be_parsed_takes_the_general_way(grammar, k, rng):
    model = TreeModel(grammar, 3, k)
    assert_same_ways(model, rows_of(model, 40, rng))


@compiled
@pytest.mark.parametrize("prior", [[0.5, 0.5, 0, 0], [1 - 3e-31, 1e-31, 1e-31, 1e-31]])
def test_roots_that_are_not_or_hardly_drawn(prior, rng):
    rows = rows_of(TreeModel(Grammar.published(4, 1.0, 0), 3), 60, rng)
    assert_same_ways(TreeModel(Grammar.published(4, 1.0, 0), 3, root_prior=prior), rows)


@compiled
@pytest.mark.parametrize("hidden", [0.01, 0.2, 1.0])
def test_rows_with_hidden_leaves_beside_rows_without(hidden, rng):
    model = TreeModel(Grammar.published(4, 1.0, 0), 4)
    rows = rows_of(model, 100, rng)
    assert_same_ways(model, rows, rng.random(rows.shape) < hidden)
    rows[rng.random(rows.shape) < hidden] = model.mask_token
    assert_same_ways(model, rows)


@compiled
def test_packs_with_hidden_leaves_between_packs_without(rng):
    model = TreeModel(Grammar.published(4, 1.0, 0), 4)
    rows = rows_of(model, 150, rng)
    mask = np.zeros(rows.shape, bool)
    for first in (0, 64, 80, 144):  # packs of all widths begin here
        mask[first : first + 5] = rng.random((5, 16)) < 0.4
    assert_same_ways(model, rows, mask)


@compiled
@pytest.mark.parametrize(("q", "depth"), [(4, 9), (4, 10), (7, 11), (13, 10), (4, 15)])
def test_roots_of_trees_parsed_in_parts(q, depth, rng):
    """Subtrees of 512 leaves, one after the other; one leaf may make a row impossible, anywhere."""
    model = TreeModel(Grammar.published(q, 1.0, 0), depth)
    rows = rows_of(model, 40, rng)
    for name in COMPILED:
        want = np.concatenate(
            [model.root_posterior(rows[i : i + 1], backend=name) for i in range(len(rows))]
        )
        assert len(np.unique(want.argmax(axis=1))) > 1
        times = max(60 >> max(depth - 10, 0), 1)  # large enough for tables
        large = np.tile(rows, (times, 1))
        got = model.root_posterior(large, backend=name)
        np.testing.assert_array_equal(got, np.tile(want, (times, 1)))


@compiled
def test_two_bytes_a_token_and_large_results(rng):
    model = TreeModel(Grammar.published(4, 1.0, 0), 4)
    rows = model.sample(20_000, seed=1).leaves  # results beyond what the caches hold
    want = model.leave_one_out(rows)
    np.testing.assert_array_equal(model.leave_one_out(rows.astype(np.uint16)), want)
    roots = model.root_posterior(rows)
    np.testing.assert_array_equal(model.root_posterior(rows.astype(np.uint16)), roots)
    np.testing.assert_array_equal(roots.argmax(axis=1), model.sample(20_000, seed=1).roots)
    for at in (0, 7_777, 19_999):
        np.testing.assert_array_equal(model.leave_one_out(rows[at : at + 1])[0], want[at])


def uneven(least: float) -> TreeModel:
    """Two rules a symbol, one of them with that probability."""
    tensor = np.zeros((3, 3, 3))
    tensor[[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0]] = [least, 1 - least] * 3
    return TreeModel(Grammar.from_tensor(tensor), 3)


@compiled
@pytest.mark.parametrize("least", [1e-3, 1e-12, 1e-29, 1e-30])
def test_probabilities_near_the_end_of_the_range(least, rng):
    model = uneven(least)
    rows = rng.integers(0, 3, (40, 8)).astype(np.uint8)
    assert_same_ways(model, np.concatenate([rows, rows_of(model, 40, rng)]))


# ------------------------------------------------------------------ the Python text under Numba


def assert_numba_agrees(
    model: TreeModel, rows: np.ndarray, mask: np.ndarray | None = None, judge: str = "python"
) -> None:
    """Plain Python knows no other than the general way."""
    for question in (model.leave_one_out, model.root_posterior):
        found = question(rows, mask, backend="numba", num_threads=1)
        np.testing.assert_array_equal(found, question(rows, mask, backend=judge))


@numba
@settings(max_examples=15, deadline=None)
@given(q=st.integers(2, 17), depth=st.integers(1, 6), seed=st.integers(0, 99), data=st.data())
def test_numba_parses_to_the_same_bits(q, depth, seed, data):
    r = data.draw(st.integers(1, q))
    n = data.draw(st.sampled_from([1, 3, 8]))
    while q * r << depth > 2000:  # rules to walk in plain Python
        depth -= 1
    model = TreeModel(Grammar.log_normal(q, 1.0, seed, rules_per_symbol=r), depth)
    rng = np.random.default_rng(seed)
    rows = rows_of(model, n, rng)
    assert_numba_agrees(model, rows)
    hidden = rng.random((n, 1)) < 0.3  # whole rows are seen all the same
    assert_numba_agrees(model, rows, hidden & (rng.random(rows.shape) < 0.3))
    rows[hidden[:, 0], -1] = model.mask_token
    assert_numba_agrees(model, rows)


@numba
@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.random_hierarchy(5, 3, 3, n_classes=7, seed=1),
        Grammar.random_hierarchy(9, 4, 3, n_classes=2, seed=1),
        Grammar.random_hierarchy(3, 2, 3, n_classes=3, seed=1, arity=3),
        Grammar.dense(4, 1.0, 1),
        Grammar.parity(),
        Grammar.log_normal(65, 1.0, 0, rules_per_symbol=2),
    ],
    ids=["levels 7-5", "levels 2-9", "arity 3", "ambiguous", "parity", "65 symbols"],
)
def test_numba_parses_what_it_can(grammar, k, rng):
    model = TreeModel(grammar, 3, k)
    assert_numba_agrees(model, rows_of(model, 5, rng))


@numba
@compiled
@pytest.mark.parametrize("n", [15, 255, 257, 700])
def test_blocks_parsed_by_numba(n, rng):
    model = TreeModel(Grammar.published(6, 1.0, 0, rules_per_symbol=4), 4)
    rows = rows_of(model, n, rng)
    for part in (0.0, 0.1, 0.9, 1.0):  # of rows with hidden leaves
        mask = (rng.random((n, 1)) < part) & (rng.random(rows.shape) < 0.2)
        assert_numba_agrees(model, rows, mask, "cpu")
    np.testing.assert_array_equal(
        model.leave_one_out(rows.astype(np.uint16), backend="numba", num_threads=3),
        model.leave_one_out(rows),
    )


@numba
@pytest.mark.parametrize("least", [1e-3, 1e-9, 1e-30])
def test_numba_near_the_end_of_the_range(least, rng):
    model = uneven(least)
    assert_numba_agrees(model, rng.integers(0, 3, (20, 8)).astype(np.uint8))


@numba
def test_which_calls_numba_parses(monkeypatch, rng):
    """Rows wholly seen never go the general way; everything else does."""
    general = []
    infer = runners.TextBackend._infer

    def spy(self, tree, evidence, dtype, out, status, num_threads):
        general.append(len(status))
        infer(self, tree, evidence, dtype, out, status, num_threads)

    monkeypatch.setattr(runners.TextBackend, "_infer", spy)

    def left(question, *args, **options):
        general.clear()
        question(*args, backend="numba", **options)
        return sum(general)

    model = TreeModel(Grammar.published(4, 1.0, 0), 3)
    rows = rows_of(model, 20, rng)
    mask = np.zeros(rows.shape, bool)
    mask[[3, 7], 2] = True
    for question in (model.leave_one_out, model.root_posterior):
        assert left(question, rows) == 0
        assert left(question, rows, np.zeros_like(mask)) == 0
        assert left(question, rows, mask) == 2
        assert left(question, rows, ~mask) == 20
        assert left(question, rows, dtype="float64") == 20
    assert left(model.next_token, rows) == 20
    assert left(model.log_prob, rows) == 20
    assert left(model.infer, rows) == 20
    assert left(model.filtered(1).leave_one_out, rows) == 20
    ambiguous = TreeModel(Grammar.dense(4, 1.0, 1), 3)
    assert left(ambiguous.leave_one_out, rows) == 20
