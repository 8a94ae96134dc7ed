"""Brier score, calibration against the posterior, quantiles: by hand, by naive loops, by oracles."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

import hfilter
from hfilter.analysis import calibration
from hfilter.analysis.calibration import Calibration, QuantileSketch
from hfilter.analysis.compare import compare, evaluate
from hfilter.learn.masks import HELD_OUT_START, draw_masks
from hfilter.oracles import ExactBP, NoisyLogits, failure_probability


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


@pytest.fixture(scope="module")
def leaves(model):
    return model.sample(500, seed=1).leaves


def naive_calibration(q, p, n_bins):
    """ECE* and the within-bin variance of the error, by loops."""
    tokens, classes = q.shape
    error = within = 0.0
    for b in range(classes):
        bins = np.minimum((q[:, b] * n_bins).astype(int), n_bins - 1)
        for i in set(bins.tolist()):
            d = (q - p)[bins == i, b]
            error += len(d) / tokens * abs(d.mean()) / classes
            within += len(d) / tokens * d.var()
    return error, within


@pytest.mark.parametrize("k", [0, 1, 3])
def test_exact_inference_has_no_error_of_any_kind(model, leaves, k):
    says = model.filtered(k).leave_one_out(leaves, dtype="float64")
    result = compare(model, says, leaves)
    for name in ("calibration_error", "grouping", "absolute_error", "brier_excess"):
        assert getattr(result, name)[k] == 0.0, name
        assert all(getattr(result, name)[j] > 1e-4 for j in range(4) if j != k), name
    assert set(result.kl_quantiles[k].values()) == {0.0}
    assert result.brier == result.exact_brier[k]


def test_against_naive_loops(model, leaves):
    says = NoisyLogits(ExactBP(model), 0.5, seed=3).predict(leaves)
    result = compare(model, says, leaves, n_bins=7)
    q, truth = says.reshape(-1, 4), leaves.reshape(-1)
    onehot = np.eye(4)[truth]
    assert result.brier == pytest.approx(((q - onehot) ** 2).sum(1).mean(), abs=1e-12)
    for k in range(4):
        p = model.filtered(k).leave_one_out(leaves, dtype="float64").reshape(-1, 4)
        error, within = naive_calibration(q, p, 7)
        assert result.calibration_error[k] == pytest.approx(error, abs=1e-12)
        assert result.grouping[k] == pytest.approx(within, abs=1e-12)
        assert result.absolute_error[k] == pytest.approx(np.abs(q - p).mean(), abs=1e-12)
        assert result.brier_excess[k] == pytest.approx(((q - p) ** 2).sum(1).mean(), abs=1e-12)
        assert result.exact_brier[k] == pytest.approx(((p - onehot) ** 2).sum(1).mean(), abs=1e-12)
        assert result.calibration_error[k] <= result.absolute_error[k]
        assert result.grouping[k] <= result.brier_excess[k]
        with np.errstate(divide="ignore", invalid="ignore"):
            kl = np.where(p > 0, p * np.log(p / q), 0.0).sum(1)
        for share, value in result.kl_quantiles[k].items():
            expected = np.quantile(kl, share, method="inverted_cdf")
            assert value == pytest.approx(expected, rel=0.0101)


def test_brier_by_hand():
    tensor = np.zeros((2, 2, 2))
    tensor[0, 0, 0], tensor[0, 1, 1], tensor[1, 0, 1] = 0.75, 0.25, 1.0
    pair = hfilter.TreeModel(hfilter.Grammar.from_tensor(tensor), depth=1)
    says = np.full((1, 2, 2), 0.5)
    says[0, 1] = 0.9, 0.1
    result = compare(pair, says, np.array([[0, 1]]), np.array([[False, True]]))
    assert result.brier == pytest.approx(2 * 0.81)
    assert result.exact_brier[0] == pytest.approx(2 * (3 / 7) ** 2)  # P(·1 | 0·) = 4/7
    assert result.brier_excess[0] == pytest.approx(2 * (0.9 - 3 / 7) ** 2)
    assert result.calibration_error[0] == pytest.approx(0.9 - 3 / 7)
    assert result.grouping[0] == 0.0


def test_excess_over_the_posterior_is_what_labels_show_on_average(model):
    """E[Brier(model) - Brier(BP)] = E|model - BP|² on the law of the data, within five errors."""
    other = model.filtered(2)
    result = evaluate(ExactBP(other), model, 6000, seed=4)
    gap = result.brier - result.exact_brier[0]
    error = result.brier_se + result.exact_brier_se[0]
    assert abs(gap - result.brier_excess[0]) < 5 * error  # false alarms: fewer than 1e-6
    assert gap > 5 * error
    assert abs(gap - result.brier_excess[3]) > 5 * error  # the mutant: excess over another k


def test_noise_of_known_rate_is_found(model):
    noisy = NoisyLogits(ExactBP(model), 0.3, seed=5)
    result = evaluate(noisy, model, 4000, seed=5, filter_levels=[0])
    rows = model.sample(4000, seed=5, start=HELD_OUT_START).leaves
    hidden = draw_masks(4000, 8, seed=5, start=HELD_OUT_START)
    law = model.leave_one_out(rows, dtype="float64")[hidden]
    rate = failure_probability(law, 0.3).mean()
    assert abs(1 - result.agreement[0] - rate) < 5 * result.agreement_se[0]  # 6e-7
    wrong = failure_probability(law, 0.6).mean()
    assert abs(1 - result.agreement[0] - wrong) > 5 * result.agreement_se[0]


def test_wrong_token_by_token_but_right_on_average():
    rng = np.random.default_rng(0)
    n = 20_000
    p0 = np.where(rng.random(n) < 0.5, 0.3, 0.7)
    p, q = np.stack([p0, 1 - p0], 1), np.full((n, 2), 0.5)
    spread = Calibration(2)
    spread.add(q, p, np.arange(n))
    assert spread.error < 5 * 0.2 / math.sqrt(n)
    assert spread.grouping == pytest.approx(2 * 0.04, rel=1e-3)
    shifted = Calibration(2)
    shifted.add(p + np.array([0.05, -0.05]), p, np.arange(n))
    assert shifted.error == pytest.approx(0.05)
    assert shifted.grouping == pytest.approx(0.0, abs=1e-12)


def test_jackknife_errors_have_the_right_size():
    """The spread of 400 results against the mean of their stated errors, correlated tokens."""
    rng = np.random.default_rng(1)
    values, errors = {"error": [], "grouping": []}, {"error": [], "grouping": []}
    for _ in range(400):
        shared = np.repeat(rng.normal(size=100), 4)
        p0 = 0.5 + 0.1 * np.tanh(shared)
        q0 = np.clip(p0 + 0.05 + 0.1 * np.repeat(rng.normal(size=100), 4), 0.01, 0.99)
        tally = Calibration(2, 4)
        tally.add(np.stack([q0, 1 - q0], 1), np.stack([p0, 1 - p0], 1), np.arange(400) // 4)
        for name in values:
            values[name].append(getattr(tally, name))
            errors[name].append(getattr(tally, f"{name}_se"))
    for name in values:
        # The spread itself is known to 3.5 %.
        assert np.mean(errors[name]) == pytest.approx(np.std(values[name]), rel=0.2), name
    # The mutant, tokens taken as sequences, would say half of it.
    tally = Calibration(2, 4)
    tally.add(np.stack([q0, 1 - q0], 1), np.stack([p0, 1 - p0], 1), np.arange(400))
    assert tally.error_se < 0.7 * np.std(values["error"])


def test_calibration_adds_up_in_blocks_and_says_when_it_knows_nothing():
    rng = np.random.default_rng(2)
    q, p = rng.dirichlet(np.ones(3), 90), rng.dirichlet(np.ones(3), 90)
    owner = np.arange(90) // 3
    whole, parts = Calibration(3), Calibration(3)
    whole.add(q, p, owner)
    for first in range(0, 90, 20):
        rows = slice(first, first + 20)
        parts.add(q[rows], p[rows], owner[rows])
    for name in ("error", "error_se", "grouping", "grouping_se"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-14)
    certain = Calibration(2)
    certain.add(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]), np.array([0]))
    assert certain.error == 0.5  # probability 1 has a bin
    assert math.isnan(certain.error_se)
    assert math.isnan(Calibration(2).error)
    assert math.isnan(Calibration(2).grouping)


def test_quantiles_of_any_size():
    rng = np.random.default_rng(3)
    values = np.concatenate(
        [np.exp(rng.normal(size=4000) * 2), np.zeros(500), [np.inf] * 500, [-1e-17]]
    )
    sketch = QuantileSketch()
    for part in np.array_split(values, 7):
        sketch.add(part)
    shares = [0.0, 0.05, 0.1, 0.2, 0.5, 0.7, 0.89, 0.95, 1.0]
    expected = np.quantile(np.maximum(values, 0), shares, method="inverted_cdf")
    for found, wanted in zip(sketch.quantiles(shares), expected, strict=True):
        assert found == wanted or found == pytest.approx(wanted, rel=0.0101)
    assert all(math.isnan(x) for x in QuantileSketch().quantiles([0.5]))


def test_docstring_examples_run():
    assert doctest.testmod(calibration).failed == 0
