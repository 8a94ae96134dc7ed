from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest

import hfilter
from hfilter.analysis import accuracies, checks, judge, tally
from hfilter.analysis import compare as compare_module
from hfilter.analysis.compare import compare, evaluate, exact_accuracies
from hfilter.analysis.tally import Tally
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.learn.masks import HELD_OUT_START, draw_masks


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


@pytest.fixture(scope="module")
def sample(model):
    return model.sample(300, seed=1)


@pytest.fixture(scope="module")
def pair():
    """Two leaves, two symbols; root 0 makes 00 (3/4) or 11 (1/4), root 1 makes 01."""
    tensor = np.zeros((2, 2, 2))
    tensor[0, 0, 0], tensor[0, 1, 1], tensor[1, 0, 1] = 0.75, 0.25, 1.0
    return hfilter.TreeModel(hfilter.Grammar.from_tensor(tensor), depth=1)


# --- exact predictors have known answers -----------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("rate", [None, 0.4])
def test_an_exact_predictor_is_found_exact(model, sample, k, rate):
    mask = draw_masks(300, 8, rate=rate)
    beliefs = model.filtered(k).infer(sample.leaves, mask, dtype="float64").leaves
    result = compare(model, beliefs, sample.leaves, mask)
    assert result.n_tokens == mask.sum()
    assert result.kl[k] == 0.0
    assert result.kl_se[k] == 0.0
    assert result.agreement[k] == 1.0
    assert result.accuracy == result.exact_accuracy[k]
    assert result.cross_entropy == result.exact_cross_entropy[k]
    assert all(result.kl[j] > 0.001 for j in range(4) if j != k)


@pytest.mark.parametrize("k", [0, 2])
def test_an_exact_root_predictor_is_found_exact(model, sample, k):
    posterior = model.filtered(k).root_posterior(sample.leaves, dtype="float64")
    result = compare(model, posterior, sample.leaves, roots=sample.roots, task="root")
    assert result.kl[k] == 0.0
    assert result.n_tokens == 300
    hidden = draw_masks(300, 8, rate=0.5)
    posterior = model.filtered(k).root_posterior(sample.leaves, hidden, dtype="float64")
    masked = compare(model, posterior, sample.leaves, hidden, roots=sample.roots, task="root")
    assert masked.kl[k] == 0.0
    assert masked.exact_accuracy[0] < result.exact_accuracy[0] == 1.0


def test_leave_one_out_single_masks_and_positions_are_one_question(model, sample):
    everywhere = model.filtered(1).leave_one_out(sample.leaves, dtype="float64")
    positions = np.arange(300) % 8
    mask = positions[:, None] == np.arange(8)
    by_mask = compare(model, everywhere, sample.leaves, mask)
    assert by_mask == compare(model, everywhere, sample.leaves, positions=positions)
    assert by_mask.kl[1] == pytest.approx(0.0, abs=1e-14)
    whole = compare(model, everywhere, sample.leaves)
    assert whole.n_tokens == 8 * 300
    parts = [compare(model, everywhere, sample.leaves, positions=np.full(300, j)) for j in range(8)]
    for k in range(4):
        assert whole.kl[k] == pytest.approx(np.mean([p.kl[k] for p in parts]), abs=1e-12)


def test_cross_entropy_is_kl_plus_floor_on_average(model):
    """E[-ln q] = E[-ln p] + KL(p || q) for p the law of the data: within five standard errors."""
    n = 4000
    rows = model.sample(n, seed=9)
    other = model.filtered(2).leave_one_out(rows.leaves)
    result = compare(model, other, rows.leaves)
    gap = result.cross_entropy - result.exact_cross_entropy[0]
    error = result.cross_entropy_se + result.exact_cross_entropy_se[0]
    assert abs(gap - result.kl[0]) < 5 * error
    assert gap > 10 * error


# --- numbers by hand -------------------------------------------------------------------------


def test_numbers_by_hand(pair):
    # P(00) = 3/8, P(11) = 1/8, P(01) = 1/2. The second leaf is hidden: P(·1 | 0·) = 4/7,
    # P(·1 | 1·) = 1.
    leaves = np.array([[0, 0], [0, 1], [1, 1]])
    mask = np.array([[False, True]] * 3)
    model_says = np.full((3, 2, 2), np.nan)  # what is not scored is not read
    model_says[:, 1] = [[0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]
    result = compare(pair, model_says, leaves, mask)
    assert result.cross_entropy == pytest.approx((math.log(2) + math.log(4 / 3) + 0) / 3)
    assert result.accuracy == 1.0  # a tie goes to the lowest symbol, here the right one
    assert result.exact_accuracy[0] == pytest.approx(2 / 3)
    assert result.exact_cross_entropy[0] == pytest.approx((math.log(7 / 3) + math.log(7 / 4)) / 3)
    p, r = 3 / 7, 4 / 7
    first = p * math.log(p / 0.5) + r * math.log(r / 0.5)
    second = p * math.log(p / 0.25) + r * math.log(r / 0.75)
    assert result.kl[0] == pytest.approx((first + second) / 3)
    assert result.agreement[0] == pytest.approx(2 / 3)
    values = np.array([first, second, 0.0])
    assert result.kl_se[0] == pytest.approx(values.std(ddof=1) / math.sqrt(3))
    # k = 1: leaves independent given the root, leaf 1 given leaf 0. Root 0 has marginals (3/4, 1/4)
    # at both leaves; root 1 has leaf 0 = 0, leaf 1 = 1.
    given_0 = (0.75 * 0.25 + 1.0) / 1.75
    expected = -math.log(1 - given_0) - math.log(given_0) - math.log(0.25)
    assert result.exact_cross_entropy[1] == pytest.approx(expected / 3)


def test_root_numbers_by_hand(pair):
    leaves, roots = np.array([[0, 0], [0, 1]]), np.array([0, 1])
    says = np.array([[0.8, 0.2], [0.6, 0.4]])
    result = compare(pair, says, leaves, roots=roots, task="root")
    assert result.accuracy == 0.5
    assert result.cross_entropy == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert result.kl[0] == pytest.approx(result.cross_entropy)  # BP_0 is certain and right
    # k = 1: P(01 | root 0) = 3/16, P(01 | root 1) = 1; P(00 | root 1) = 0.
    share = (3 / 16) / (19 / 16)
    second = share * math.log(share / 0.6) + (1 - share) * math.log((1 - share) / 0.4)
    assert result.kl[1] == pytest.approx((math.log(1 / 0.8) + second) / 2)


def test_infinity_is_reported_as_infinity(pair):
    leaves, mask = np.array([[0, 0], [0, 1]]), np.array([[False, True]] * 2)
    says = np.zeros((2, 2, 2))
    says[0, 1], says[1, 1] = [0.0, 1.0], [0.25, 0.75]
    result = compare(pair, says, leaves, mask)
    assert result.cross_entropy == math.inf
    assert math.isnan(result.cross_entropy_se)
    assert result.kl[0] == math.inf
    assert result.accuracy == 0.5
    # Where BP is certain, a model certain of the same has KL 0: no 0 ln 0 trouble.
    certain = compare(pair, says[:1], np.array([[1, 1]]), mask[:1])
    assert certain.kl[0] == 0.0
    assert "inf" in str(result)


# --- undefined evidence ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def forbidding():
    grammar = hfilter.Grammar.published(6, 1.0, 0, rules_per_symbol=4)
    return hfilter.TreeModel(grammar, depth=2)


def test_undefined_rows_are_counted_and_nothing_else_is_dropped(forbidding):
    source = forbidding.filtered(2)
    rows = source.sample(400, seed=3)
    uniform = np.full((400, 4, 6), 1 / 6)
    result = compare(forbidding, uniform, rows.leaves)
    for k in range(3):
        law = forbidding.filtered(k).leave_one_out(rows.leaves, dtype="float64")
        missing = np.isnan(law[..., 0])
        assert result.undefined[k] == missing.sum()
        kept = law[~missing]
        entropy = -np.where(kept > 0, kept * np.log(np.where(kept > 0, kept, 1)), 0).sum(-1)
        assert result.kl[k] == pytest.approx(math.log(6) - entropy.mean(), abs=1e-12)
    assert result.undefined[0] > 0 == result.undefined[2]
    assert result.accuracy == pytest.approx((rows.leaves == 0).mean())
    assert f"undefined for {result.undefined[0]} tokens" in str(result)
    assert result.exact_cross_entropy[0] == math.inf  # it excludes some of what happened


def test_a_model_that_is_undefined_somewhere_is_counted(forbidding):
    rows = forbidding.filtered(2).sample(400, seed=3)
    exact = forbidding.filtered(0).root_posterior(rows.leaves, dtype="float64")
    result = compare(forbidding, exact, rows.leaves, roots=rows.roots, task="root")
    missing = np.isnan(exact[:, 0])
    assert 0 < result.undefined_model == missing.sum() == result.undefined[0]
    assert result.kl[0] == 0.0
    right = exact[~missing].argmax(1) == rows.roots[~missing]
    assert result.accuracy == pytest.approx(right.mean())
    nothing = compare(
        forbidding, np.full((400, 6), np.nan), rows.leaves, roots=rows.roots, task="root"
    )
    assert math.isnan(nothing.accuracy)
    assert nothing.undefined_model == 400


# --- standard errors -------------------------------------------------------------------------


def test_standard_errors_are_over_sequences(model, sample):
    says = model.filtered(3).leave_one_out(sample.leaves, dtype="float64")
    result = compare(model, says, sample.leaves)
    hits = (says.argmax(-1) == sample.leaves).mean(1)
    assert result.accuracy == pytest.approx(hits.mean())
    assert result.accuracy_se == pytest.approx(hits.std(ddof=1) / math.sqrt(300))


def test_standard_errors_have_the_right_size():
    """Correlated tokens, unequal numbers: spread of 2000 means against the mean standard error."""
    rng = np.random.default_rng(0)
    means, errors, naive = [], [], []
    for _ in range(2000):
        sizes = rng.integers(1, 6, 60)
        owner = np.repeat(np.arange(60), sizes)
        values = rng.normal(size=60)[owner] + 0.3 * rng.normal(size=len(owner))
        tally = Tally()
        tally.add(values, owner, None, 60)
        means.append(tally.mean)
        errors.append(tally.standard_error)
        naive.append(values.std() / math.sqrt(len(values)))
    # The spread itself is known to 1.6 %, the estimate is biased by a few per cent.
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
    assert np.mean(naive) < 0.75 * np.std(means)  # the mutant: tokens taken as independent


def test_tally_ignores_what_is_not_kept_and_adds_up_in_blocks():
    rng = np.random.default_rng(1)
    values, owner = rng.normal(size=90), np.repeat(np.arange(30), 3)
    keep = rng.random(90) < 0.6
    whole = Tally()
    whole.add(values, owner, keep, 30)
    blocks = Tally()
    for first in range(0, 30, 7):
        part = slice(3 * first, 3 * min(first + 7, 30))
        blocks.add(values[part], owner[part] - first, keep[part], min(7, 30 - first))
    assert blocks.mean == pytest.approx(whole.mean, abs=1e-14)
    assert blocks.standard_error == pytest.approx(whole.standard_error, abs=1e-14)
    assert whole.mean == pytest.approx(values[keep].mean())
    assert whole.n_tokens == keep.sum()
    empty = Tally()
    assert math.isnan(empty.mean)
    assert math.isnan(empty.standard_error)


# --- blocks, evaluate, arrays ----------------------------------------------------------------


def numbers_of(result):
    flat = json.loads(json.dumps(result.as_dict()))
    rows = [[v] if not isinstance(v, dict) else list(v.values()) for v in flat.values()]
    return [x for row in rows for x in row]


def assert_same(a, b):
    for x, y in zip(numbers_of(a), numbers_of(b), strict=True):
        assert x == y if isinstance(x, str) else x == pytest.approx(y, abs=1e-9, nan_ok=True)


def test_results_do_not_depend_on_the_blocks(model, sample, monkeypatch):
    mask = draw_masks(300, 8, rate=0.3)
    says = model.filtered(2).infer(sample.leaves, mask).leaves
    whole = compare(model, says, sample.leaves, mask)
    table = exact_accuracies(model, 200)
    monkeypatch.setattr(judge, "_BLOCK_VALUES", 7 * 32)
    monkeypatch.setattr(accuracies, "_BLOCK_VALUES", 7 * 32)
    assert_same(compare(model, says, sample.leaves, mask), whole)
    calls = []
    again = exact_accuracies(model, 200, progress=lambda *done: calls.append(done))
    for name in ("root", "root_se", "mlm", "mlm_se", "mlm_cross_entropy", "mlm_cross_entropy_se"):
        assert np.allclose(getattr(again, name), getattr(table, name), atol=1e-9), name
    assert calls[0] == (7, 800)
    assert calls[-1] == (800, 800)


@pytest.mark.parametrize("rate", [None, 0.3])
def test_evaluate_is_sample_predict_compare(model, rate):
    bp = model.filtered(2)
    seen = []

    def predict(tokens):
        seen.append(tokens)
        return bp.infer(tokens).leaves  # the mask token hides by itself

    result = evaluate(predict, model, 200, seed=4, mask_rate=rate)
    rows = model.sample(200, seed=4, start=HELD_OUT_START)
    mask = draw_masks(200, 8, seed=4, start=HELD_OUT_START, rate=rate)
    assert np.array_equal(np.concatenate(seen), np.where(mask, 4, rows.leaves))
    assert_same(result, compare(model, bp.infer(rows.leaves, mask).leaves, rows.leaves, mask))
    root = evaluate(bp.root_posterior, model, 200, task="root", seed=4)
    expected = bp.root_posterior(rows.leaves)
    assert_same(root, compare(model, expected, rows.leaves, roots=rows.roots, task="root"))


def test_torch_tensors_are_accepted(model, sample):
    torch = pytest.importorskip("torch")
    says = model.filtered(1).leave_one_out(sample.leaves)
    expected = compare(model, says, sample.leaves)
    tensor = torch.from_numpy(says).requires_grad_()
    assert compare(model, tensor, torch.from_numpy(sample.leaves)) == expected
    assert compare(model, says.tolist(), sample.leaves.tolist()) == expected


def test_chosen_levels_only(model, sample):
    says = model.leave_one_out(sample.leaves)
    some = compare(model, says, sample.leaves, filter_levels=[3, 0])
    assert list(some.kl) == [0, 3]
    every = compare(model, says, sample.leaves)
    assert {k: every.kl[k] for k in (0, 3)} == some.kl


def test_roots_say_the_task(model, sample):
    posterior = model.root_posterior(sample.leaves, dtype="float64")
    result = compare(model, posterior, sample.leaves, roots=sample.roots)
    assert result.task == "root"
    assert str(result).startswith("root: 300 sequences; accuracy 1.0000")
    leaves = model.leave_one_out(sample.leaves)
    assert str(compare(model, leaves, sample.leaves)).startswith("mlm: 2400 tokens of 300 sequ")


# --- manners ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task": "posed"}, ArgumentError, "task must be one of"),
        ({"leaves": np.zeros((5, 7), int)}, ShapeError, r"\(n, 8\), got \(5, 7\)"),
        ({"leaves": np.zeros((5, 8))}, DTypeError, "leaves must be integers"),
        ({"leaves": np.full((5, 8), 4)}, ArgumentError, "0 … 3, got 4 … 4"),
        ({"leaves": np.full((5, 8), -1)}, ArgumentError, "symbol"),
        ({"probabilities": np.full((5, 8, 3), 1 / 3)}, ShapeError, r"\(5, 8, 4\)"),
        ({"probabilities": np.full((5, 8, 4), 0.3)}, ArgumentError, "sum to 1"),
        ({"probabilities": np.full((5, 8, 4), [-0.5, 0.5, 0.5, 0.5])}, ArgumentError, "softmax"),
        ({"probabilities": np.full((5, 8, 4), [np.inf, 0, 0, 0])}, ArgumentError, "finite"),
        ({"probabilities": np.full((5, 8, 4), [np.nan, 0.5, 0.5, 0])}, ArgumentError, "NaN"),
        ({"probabilities": np.full((5, 8, 4), "a")}, DTypeError, "real numbers"),
        ({"mask": np.ones((5, 8), int)}, DTypeError, "mask must be bool"),
        ({"mask": np.ones((5, 7), bool)}, ShapeError, "mask"),
        ({"mask": np.zeros((5, 8), bool)}, ArgumentError, "no token to score"),
        ({"mask": np.ones((5, 8), bool), "positions": np.zeros(5, int)}, ArgumentError, "not both"),
        ({"positions": np.zeros(4, int)}, ShapeError, "positions"),
        ({"positions": np.full(5, 8)}, ArgumentError, "0 … 7"),
        ({"roots": np.zeros(5, int), "task": "mlm"}, ArgumentError, "did you mean task"),
        ({"filter_levels": [4]}, ArgumentError, "0 … 3, got"),
        ({"filter_levels": []}, ArgumentError, "filter_levels"),
    ],
)
def test_errors(model, changes, error, message):
    arguments = {
        "probabilities": np.full((5, 8, 4), 0.25),
        "leaves": np.zeros((5, 8), np.uint8),
    } | changes
    with pytest.raises(error, match=message):
        compare(model, **arguments)


def test_root_and_other_errors(model):
    leaves, says = np.zeros((5, 8), int), np.full((5, 4), 0.25)
    with pytest.raises(ArgumentError, match="roots"):
        compare(model, says, leaves, task="root")
    with pytest.raises(ShapeError, match=r"roots must have shape \(5,\)"):
        compare(model, says, leaves, roots=np.zeros(4, int), task="root")
    with pytest.raises(ArgumentError, match="root must be a symbol"):
        compare(model, says, leaves, roots=np.full(5, 4), task="root")
    with pytest.raises(ArgumentError, match="no token"):
        compare(model, np.zeros((0, 8, 4)), np.zeros((0, 8), int))
    for n in (0, -1):
        with pytest.raises(ArgumentError, match="n must be"):
            exact_accuracies(model, n)
        with pytest.raises(ArgumentError, match="n must be"):
            evaluate(lambda tokens: tokens, model, n)
    with pytest.raises(ArgumentError, match="filter_levels"):
        exact_accuracies(model, 5, filter_levels=[9])


@pytest.mark.parametrize("module", [compare_module, tally, checks])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0
