"""Ladders, train × test matrices and pooling of seeds, on predictors whose places are known."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest
from oracle import Enumeration, token_fields

import hfilter
from hfilter.analysis import judge, matrix
from hfilter.analysis import ladders as ladders_module
from hfilter.analysis.compare import compare, evaluate, exact_accuracies
from hfilter.analysis.ladders import compare_ladders, ladders
from hfilter.analysis.matrix import accuracy_matrix, over_seeds
from hfilter.errors import ArgumentError, ShapeError
from hfilter.learn.masks import draw_masks
from hfilter.oracles import ExactBP, NoisyLogits, Window


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


# --- ladders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [0, 1, 2, 3])
@pytest.mark.parametrize("rate", [None, 0.4])
def test_a_window_is_found_on_its_rung(model, h, rate):
    result = ladders(Window(model, h), model, 200, mask_rate=rate)
    assert result.window_kl[h] == pytest.approx(0.0, abs=1e-14)
    assert all(result.window_kl[i] > 0.002 for i in range(4) if i != h)
    name = f"W_{h}" if h < 3 else "BP_0"
    assert result.closest.name == (name if h else "W_0")
    assert result.closest_window.name == f"W_{h}"
    assert result.closest_shares()[name] > 0.5
    assert math.isclose(sum(result.closest_shares().values()), 1.0)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_filter_is_found_on_its_rung(model, k):
    result = ladders(ExactBP(model.filtered(k)), model, 200)
    assert result.filter_kl[k] == pytest.approx(0.0, abs=1e-14)
    assert result.closest.name == result.closest_filter.name == f"BP_{k}"
    assert result.window_kl[3] == pytest.approx(result.filter_kl[0], abs=1e-12)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_against_enumeration(k):
    """Every rung from the law with everything outside a window hidden, by summing all trees."""
    grammar = hfilter.Grammar.log_normal(3, 1.0, 1, rules_per_symbol=2)
    prior = np.array([0.5, 0.2, 0.3])
    model = hfilter.TreeModel(grammar, 2, k, prior)
    tensors = [grammar.tensor(d) for d in range(2)]
    laws = [Enumeration(tensors, prior, 2, i) for i in range(3)]
    rng = np.random.default_rng(k)
    rows = laws[2].draw(40, rng)  # some of them impossible below
    mask = draw_masks(40, 4, rate=0.4)
    says = rng.dirichlet(np.ones(3), (40, 4))
    result = compare_ladders(model, says, rows, mask)
    for i in range(3):
        for law, found, undefined, by_input, whole in (
            (laws[k], result.window_kl, result.window_undefined, result.window_by_input, False),
            (laws[i], result.filter_kl, result.filter_undefined, result.filter_by_input, True),
        ):
            kls, missing = np.full((40, 4), np.nan), 0
            for r, j in zip(*np.nonzero(mask), strict=True):
                outside = np.arange(4) // 2**i != j // 2**i
                hidden = mask[r] | (outside & (not whole))
                answer = law.infer(token_fields(rows[r : r + 1], hidden[None], 3))
                p = answer.beliefs[2][0, j]
                missing += int(np.isnan(p[0]))
                with np.errstate(divide="ignore", invalid="ignore"):
                    kls[r, j] = np.where(p == 0, 0, p * np.log(p / says[r, j])).sum()
            assert found[i] == pytest.approx(np.nanmean(kls), abs=1e-10)
            assert undefined[i] == missing
            seen = ~np.isnan(kls).all(axis=1)
            assert np.allclose(by_input[seen, i], np.nanmean(kls[seen], axis=1), atol=1e-10)
            assert np.isnan(by_input[~seen, i]).all()
    assert result.filter_undefined[0] > 0 == result.filter_undefined[2]


def test_ladders_agree_with_compare_in_any_blocks(model, monkeypatch):
    noisy = NoisyLogits(Window(model, 2), 0.2, seed=1)
    whole = ladders(noisy, model, 300, inputs=model.filtered(1), seed=2)
    other = evaluate(noisy, model, 300, inputs=model.filtered(1), seed=2)
    assert whole.filter_kl.tolist() == pytest.approx(list(other.kl.values()))
    assert whole.filter_kl_se.tolist() == pytest.approx(list(other.kl_se.values()))
    assert whole.inputs == other.inputs
    monkeypatch.setattr(judge, "_BLOCK_VALUES", 7 * 32)
    parts = ladders(noisy, model, 300, inputs=model.filtered(1), seed=2)
    assert np.allclose(parts.window_kl, whole.window_kl, atol=1e-12)
    assert np.allclose(parts.window_by_input, whole.window_by_input, atol=1e-12)
    assert parts.window_by_input.shape == (300, 4)
    means = whole.window_by_input.mean(axis=0)  # one token per row
    assert np.allclose(means, whole.window_kl, atol=1e-12)
    plain = json.loads(json.dumps(whole.as_dict()))
    assert plain["closest"] == "W_2"
    assert "closest W_2" in str(whole)


def test_undefined_predictions_and_bad_arguments(model):
    leaves = model.sample(5, seed=0).leaves
    says = np.full((5, 8, 4), 0.25)
    says[0] = np.nan
    result = compare_ladders(model, says, leaves)
    assert result.undefined_model == 8
    assert np.isnan(result.window_by_input[0]).all()
    assert np.isfinite(result.window_kl).all()
    with pytest.raises(ArgumentError, match="no token to score"):
        compare_ladders(model, says, leaves, np.zeros((5, 8), bool))
    with pytest.raises(ShapeError, match="probabilities"):
        compare_ladders(model, says[..., :3], leaves)
    with pytest.raises(ArgumentError, match="n must be"):
        ladders(Window(model, 1), model, 0)


# --- matrices --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["mlm", "root"])
def test_exact_predictors_give_the_exact_matrix(model, task):
    exact = {k: ExactBP(model.filtered(k)) for k in range(4)}
    table = accuracy_matrix(exact, model, 1500, task, seed=7)
    assert np.array_equal(table.accuracy, table.exact_accuracy)
    assert np.abs(np.nan_to_num(table.kl_train)).max() < 1e-12
    assert np.abs(np.diag(table.kl_test)).max() < 1e-12
    assert table.kl_test[3, 0] > 0.1
    assert np.array_equal(np.diag(table.accuracy), table.best_accuracy)
    # Rows are training, columns data: the transpose of the published table, from other rows.
    published = exact_accuracies(model, 1500, seed=8)
    wanted = getattr(published, task).T
    errors = np.hypot(table.accuracy_se, getattr(published, f"{task}_se").T) + 1e-12
    assert (np.abs(table.accuracy - wanted) / errors).max() < 5.5  # 16 numbers: below 1e-6
    assert (np.abs(table.accuracy.T - wanted) / errors).max() > 5.5  # the mutant


def test_matrix_entries_are_those_of_evaluate(model):
    predictors = {2: Window(model, 1), 1: NoisyLogits(ExactBP(model.filtered(1)), 0.3)}
    calls = []
    table = accuracy_matrix(
        predictors, model, 200, test_levels=[3, 0], progress=lambda *x: calls.append(x)
    )
    assert (table.train_levels, table.test_levels) == ((1, 2), (0, 3))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for i, k in enumerate((1, 2)):
        for j, other in enumerate((0, 3)):
            one = evaluate(predictors[k], model.filtered(other), 200)
            assert table.accuracy[i, j] == one.accuracy
            assert table.cross_entropy_se[i, j] == one.cross_entropy_se
            assert table.kl_test[i, j] == one.kl[other]
            assert table.kl_train_se[i, j] == one.kl_se[k]
            assert table.exact_cross_entropy[i, j] == one.exact_cross_entropy[k]
            assert table.best_accuracy[j] == one.exact_accuracy[other]
    assert json.loads(json.dumps(table.as_dict()))["train_levels"] == [1, 2]
    assert str(table).splitlines()[2].startswith("k = 1")


def test_matrix_manners(model):
    with pytest.raises(ArgumentError, match="predictors must be a mapping"):
        accuracy_matrix({}, model, 5)
    with pytest.raises(ArgumentError, match="0 … 3"):
        accuracy_matrix({4: Window(model, 1)}, model, 5)
    with pytest.raises(ArgumentError, match="0 … 3"):
        accuracy_matrix({1: Window(model, 1)}, model, 5, test_levels=[5])


# --- several seeds ---------------------------------------------------------------------------


def test_mean_and_error_over_seeds(model):
    runs = [evaluate(NoisyLogits(ExactBP(model), 0.3, seed=s), model, 100) for s in range(4)]
    pooled = over_seeds(runs)
    values = np.array([run.kl[2] for run in runs])
    assert pooled.mean["kl"][2] == pytest.approx(values.mean())
    assert pooled.standard_error["kl"][2] == pytest.approx(values.std(ddof=1) / 2)
    assert pooled.standard_error["exact_accuracy"][0] == pytest.approx(0.0, abs=1e-15)
    assert pooled.mean["task"] == "mlm"
    assert pooled.n_seeds == 4
    arrays = over_seeds([np.arange(3), np.arange(3) + 2.0])
    assert arrays.mean.tolist() == [1.0, 2.0, 3.0]
    assert arrays.standard_error.tolist() == [1.0, 1.0, 1.0]
    one = over_seeds([{"a": [1.0, 2.0], "b": None}])
    assert one.mean["a"].tolist() == [1.0, 2.0]
    assert np.isnan(one.standard_error["a"]).all()


def test_runs_of_different_kinds_are_not_pooled(model):
    leaves = model.sample(20, seed=0)
    mlm = compare(model, model.leave_one_out(leaves.leaves), leaves.leaves)
    root = compare(model, model.root_posterior(leaves.leaves), leaves.leaves, roots=leaves.roots)
    with pytest.raises(ArgumentError, match=r"results\['task'\]: runs differ"):
        over_seeds([mlm, root])
    with pytest.raises(ArgumentError, match="same names"):
        over_seeds([{"a": 1}, {"b": 1}])
    with pytest.raises(ArgumentError, match="same shape"):
        over_seeds([[1, 2], [1, 2, 3]])
    with pytest.raises(ArgumentError, match="at least one run"):
        over_seeds([])


@pytest.mark.parametrize("module", [ladders_module, matrix])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0
