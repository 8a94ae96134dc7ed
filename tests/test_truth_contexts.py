"""Truth: predictions from part of the leaves, and rule counts, against enumeration in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cases import FIELD_KINDS, PAIR_IDS, PAIRS, Problem, problem
from enumerated import context_laws, prefixes, rule_counts, windows
from oracle import Enumeration, token_fields
from rotating import TOLERANCE, allowance, asked

from hfilter import Grammar, TreeModel


def compare(got: np.ndarray, want: np.ndarray, atol: float, what: str) -> None:
    assert got.shape == want.shape, what
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, equal_nan=True, err_msg=what)


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_next_token(name: str, k: int) -> None:
    """P(x_j | what is known left of j), NaN exactly from the first impossible position on."""
    p = problem(name, k)
    for ask in asked(p):
        want = context_laws(p.law, ask.fields, prefixes(p.law.n_leaves))
        got = p.model.next_token(**ask.evidence, **ask.options)
        assert got.dtype == np.dtype(ask.options["dtype"])
        compare(got, want, ask.atol, f"next_token, {ask.what}")


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_windowed(name: str, k: int) -> None:
    """Every height: windows whose top is above the filter level, at it, and below it."""
    p = problem(name, k)
    for height in range(p.law.depth + 1):
        contexts = windows(p.law.n_leaves, p.law.arity, height)
        for ask in list(asked(p, 4))[height % 2 :: 2]:
            want = context_laws(p.law, ask.fields, contexts)
            got = p.model.windowed(**ask.evidence, height=height, **ask.options)
            assert got.dtype == np.dtype(ask.options["dtype"])
            compare(got, want, ask.atol, f"windowed, height {height}, {ask.what}")


@pytest.mark.parametrize("k", range(4))
def test_the_ends_of_the_ladder(k: int, backend: str) -> None:
    """Height 0 is the law of the leaf itself, the depth is leave_one_out."""
    p = problem("levels-4-2-3-2", k)
    leaves = p.law.draw(9, np.random.default_rng(0))
    alone = p.model.windowed(leaves, 0, dtype="float64", backend=backend)
    nothing = p.model.infer(np.full((1, 8), p.q), dtype="float64", backend=backend).leaves
    compare(alone, np.repeat(nothing, 9, axis=0), 1e-15, "height 0")
    for dtype in TOLERANCE:
        whole = p.model.windowed(leaves, 3, dtype=dtype, backend=backend)
        want = p.model.leave_one_out(leaves, dtype=dtype, backend=backend)
        np.testing.assert_array_equal(whole, want)


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_logs_of_predictions_sum_to_log_prob(name: str, k: int) -> None:
    p = problem(name, k)
    ask = next(a for a in asked(p, 12) if a.options["dtype"] == "float64")
    leaves = np.where(ask.evidence["leaves"] == p.q, 0, ask.evidence["leaves"])
    backend = ask.options["backend"]
    laws = p.model.next_token(leaves, dtype="float64", backend=backend)
    of_token = np.take_along_axis(laws, leaves[:, :, None], axis=2)[:, :, 0]
    log_prob = p.model.log_prob(leaves, dtype="float64", backend=backend)
    possible = np.isfinite(log_prob)
    # The first impossible token has probability 0, what comes after it has none.
    for row in of_token[~possible]:
        first = int(np.flatnonzero(row == 0)[0])
        assert np.isfinite(row[:first]).all()
        assert (row[:first] > 0).all()
        assert np.isnan(row[first + 1 :]).all()
    kept = possible & (of_token > 1e-290).all(axis=1)
    assert kept.any()
    total = np.log(of_token[kept]).sum(axis=1)
    np.testing.assert_allclose(total, log_prob[kept], rtol=1e-12, atol=1e-12)


def test_what_lies_right_changes_no_bit(backend: str) -> None:
    """A prediction does not depend on its own leaf or later ones, however impossible they are."""
    p = problem("log_normal-forbidden", 1)
    rng = np.random.default_rng(1)
    leaves = p.law.draw(5, rng)
    for dtype in TOLERANCE:
        want = p.model.next_token(leaves, dtype=dtype, backend=backend)
        for j in range(8):
            other = leaves.copy()
            other[:, j:] = rng.integers(p.q, size=other[:, j:].shape)
            got = p.model.next_token(other, dtype=dtype, backend=backend)
            np.testing.assert_array_equal(got[:, : j + 1], want[:, : j + 1])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("k", [2, 3])
def test_windows_whose_classes_disagree(k: int, dtype: str, backend: str) -> None:
    """What a root of a window all but excludes is what its leaves ask for, hundreds of orders below."""
    p = problem("rare-root", k)
    h = FIELD_KINDS["spread-300"](np.random.default_rng(1), (12, 8, 2))
    for height in range(1, 4):
        want = context_laws(p.law, h, windows(8, 2, height))
        got = p.model.windowed(log_fields=h, height=height, dtype=dtype, backend=backend)
        compare(got, want, allowance(dtype, h), f"height {height}")


def mirrored(p: Problem, fields: np.ndarray) -> np.ndarray:
    return context_laws(p.law, fields, prefixes(p.law.n_leaves).T)


def one_level_off(p: Problem, fields: np.ndarray) -> np.ndarray:
    other = Enumeration(p.tensors, p.prior, p.law.depth, p.law.filter_level + 1)
    return context_laws(other, fields, prefixes(p.law.n_leaves))


@pytest.mark.parametrize("mutant", [mirrored, one_level_off])
def test_the_judge_of_contexts_sees(mutant: Callable[[Problem, np.ndarray], np.ndarray]) -> None:
    """A prediction from the right, or at the next filter level, does not pass."""
    p = problem("log_normal-q3-l3", 1)
    ask = next(asked(p))
    got = p.model.next_token(**ask.evidence, dtype="float64")
    with pytest.raises(AssertionError):
        compare(got, mutant(p, ask.fields), 1e-4, "mutant")


# ------------------------------------------------------------------ rule counts


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_rule_counts(name: str, k: int) -> None:
    """By counting in every configuration; above the filter level along every chain of rules."""
    p = problem(name, k)
    nodes = sum(p.law.arity**d for d in range(k, p.law.depth)) + k * p.law.arity**k
    for ask in asked(p, 6):
        want = rule_counts(p.law, p.tensors, p.grammar.is_shared, ask.fields)
        got = p.model.expected_rule_counts(**ask.evidence, per_sequence=True, **ask.options)
        assert got.dtype == np.dtype(ask.options["dtype"])
        compare(got, want, nodes * ask.atol, f"counts, {ask.what}")
        total = p.model.expected_rule_counts(**ask.evidence, **ask.options)
        assert total.dtype == np.float64
        compare(total, want.sum(axis=0), len(want) * nodes * ask.atol, f"sum, {ask.what}")
        possible = ~np.isnan(want).any(axis=1)
        some = {key: x[possible] for key, x in ask.evidence.items()}
        total = p.model.expected_rule_counts(**some, **ask.options)
        compare(total, want[possible].sum(axis=0), len(want) * nodes * ask.atol, ask.what)


DIFFERENCES = ("dense-arity3", "levels-2-4-3", "tensor-missing-symbol", "parity-l3")


@pytest.mark.parametrize(
    ("name", "k"),
    [pair for pair in PAIRS if pair[0] in DIFFERENCES and pair[1] > 0] + [("dense-q2-l3", 2)],
)
def test_rule_counts_are_derivatives(name: str, k: int) -> None:
    """d ln P(evidence) / d ln p by central differences of the enumeration, p being a free number."""
    p = problem(name, k)
    rng = np.random.default_rng(2)
    leaves = p.law.draw(3, rng)
    fields = token_fields(leaves, rng.random(leaves.shape) < 0.4, p.q)
    fields = np.where(fields == 0, rng.normal(size=fields.shape), fields)
    got = p.model.expected_rule_counts(log_fields=fields, per_sequence=True, dtype="float64")
    want, step = [], 1e-4
    tables = p.tensors[:1] if p.grammar.is_shared else p.tensors
    for level, table in enumerate(tables):
        for rule in np.argwhere(table):
            sides = []
            for sign in (1, -1):
                changed = [t.copy() for t in p.tensors]
                for d in range(len(changed)) if p.grammar.is_shared else [level]:
                    changed[d][tuple(rule)] *= np.exp(sign * step)
                law = Enumeration(changed, p.prior, p.law.depth, k)
                sides.append(law.infer(fields).log_evidence)
            want.append((sides[0] - sides[1]) / (2 * step))
    compare(got, np.stack(want, axis=1), 1e-6, "counts as derivatives")
    # The other judge counts along chains of rules: the two agree.
    by_chains = rule_counts(p.law, p.tensors, p.grammar.is_shared, fields)
    compare(by_chains, np.stack(want, axis=1), 1e-6, "the judges")


@pytest.mark.parametrize("k", range(4))
def test_sums_do_not_depend_on_how_rows_are_cut(k: int) -> None:
    """More rows than are held at a time; and one impossible row among them spoils the sum, as it says."""
    model = TreeModel(Grammar.log_normal(3, 1.0, 1, rules_per_symbol=2), 3, k)
    leaves = model.sample(9000, seed=4).leaves
    rows = model.expected_rule_counts(leaves, per_sequence=True, dtype="float64")
    total = model.expected_rule_counts(leaves, dtype="float64")
    np.testing.assert_allclose(total, rows.sum(axis=0), rtol=1e-12)
    for threads in (1, 2):
        again = model.expected_rule_counts(leaves, dtype="float64", num_threads=threads)
        np.testing.assert_array_equal(again, total)
    mask = np.ones(leaves.shape, bool)
    hidden = model.expected_rule_counts(leaves[:1], mask[:1], dtype="float64")
    every = model.expected_rule_counts(leaves, mask, dtype="float64")
    np.testing.assert_allclose(every, 9000 * hidden, rtol=1e-12)
    h = np.zeros((5000, 8, 3), np.float32)
    h[4500, 1] = -np.inf
    assert np.isnan(model.expected_rule_counts(log_fields=h)).all()
