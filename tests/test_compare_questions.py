"""Causal and ancestor tasks against enumeration, kinds of input, tables, networks."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest
from cases import PAIR_IDS, PAIRS, problem

import hfilter
from hfilter.analysis import agreement, asking, inputs, judge, questions
from hfilter.analysis.asking import as_predict
from hfilter.analysis.compare import agreement_table, compare, draw_agreement, evaluate
from hfilter.analysis.inputs import uniform_leaves
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.learn.masks import HELD_OUT_START, draw_masks
from hfilter.oracles import ExactBP, Window
from hfilter.theory import next_token_entropy


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


# --- against enumeration ---------------------------------------------------------------------


def next_token_law(law, q, rows):
    """P(x_j | x_<j) by summing over all configurations."""
    weights = np.exp(law.log_prior.astype(np.float64))
    leaves = law.configurations[law.depth]
    out = np.empty((*rows.shape, q))
    for i, row in enumerate(rows):
        alive = weights.copy()
        for j in range(rows.shape[1]):
            counts = np.bincount(leaves[:, j], weights=alive, minlength=q)
            out[i, j] = counts / counts.sum()
            alive = alive * (leaves[:, j] == row[j])
    return out


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_causal_and_ancestor_laws_are_found_exact(name, k):
    p = problem(name, k)
    rng = np.random.default_rng(p.seed)
    rows = p.law.draw(5, rng)
    says = next_token_law(p.law, p.q, rows)
    result = compare(p.model, says, rows, task="causal", filter_levels=[k])
    assert result.n_tokens == rows.size
    assert result.undefined == {k: 0}
    assert 0 <= result.absolute_error[k] < 1e-12
    assert result.kl[k] == pytest.approx(0.0, abs=1e-11)
    beliefs = p.tokens().answer.beliefs
    tokens, mask = p.tokens().leaves, p.tokens().mask
    possible = np.isfinite(p.tokens().answer.log_evidence)
    for level in p.law.levels:
        nodes = beliefs[level]
        above = np.repeat(nodes, p.law.n_leaves // nodes.shape[1], axis=1)
        truth = np.zeros(nodes.shape[:2], int)
        found = compare(
            p.model, above, tokens, mask, ancestors=truth, task="ancestor", level=level,
            filter_levels=[k],
        )  # fmt: skip
        assert found.absolute_error[k] < 1e-9
        assert found.undefined[k] == found.undefined_model == (~possible).sum() * p.law.n_leaves


def test_causal_and_ancestor_mutants_are_found_wrong(model):
    sample = model.sample(200, seed=1, levels=[1])
    loo = model.leave_one_out(sample.leaves, dtype="float64")
    assert compare(model, loo, sample.leaves, task="causal").kl[0] > 0.1
    exact = model.infer(sample.leaves, dtype="float64", levels=[1]).level(1)
    right = np.repeat(exact, 4, axis=1)
    asked = {"task": "ancestor", "level": 1, "ancestors": sample.levels[1]}
    good = compare(model, right, sample.leaves, **asked)
    assert good.accuracy == 1.0
    assert good.kl[0] == 0.0
    assert list(good.kl) == [0, 1]
    assert "ancestor at level 1: 1600 tokens" in str(good)
    swapped = compare(model, right[:, ::-1], sample.leaves, **asked)
    assert swapped.accuracy < 0.6
    by_leaf = asked | {"ancestors": np.repeat(sample.levels[1], 4, axis=1)}
    assert compare(model, right, sample.leaves, **by_leaf) == good


def test_evaluate_draws_what_the_task_needs(model):
    def causal(tokens):
        return model.next_token(tokens, dtype="float64")

    result = evaluate(causal, model, 3000, task="causal")
    assert result.kl[0] == 0.0
    assert result.n_tokens == 24_000
    floor = next_token_entropy(model).mean()
    assert abs(result.cross_entropy - floor) < 5 * result.cross_entropy_se  # 6e-7

    hidden = evaluate(causal, model, 300, task="causal", mask_rate=0.5)
    assert hidden.n_tokens == 2400  # all are scored, from what is known of those before
    assert abs(hidden.kl[0]) < 1e-14
    assert hidden.cross_entropy > result.cross_entropy + 0.05

    def ancestor(tokens):
        return np.repeat(model.infer(tokens, dtype="float64", levels=[2]).level(2), 2, axis=1)

    result = evaluate(ancestor, model, 500, task="ancestor", level=2)
    assert result.accuracy == 1.0
    hidden = evaluate(ancestor, model, 500, task="ancestor", level=2, mask_rate=0.5)
    assert 0.4 < hidden.accuracy < 0.9
    assert hidden.kl[0] == 0.0
    root = evaluate(ExactBP(model), model, 500, task="root", mask_rate=0.5)
    assert root.accuracy < 1.0
    assert root.kl[0] == 0.0


# --- kinds of input --------------------------------------------------------------------------


def test_uniform_inputs_have_no_truth(model):
    result = evaluate(Window(model, 2), model, 300, inputs="uniform", seed=2)
    for name in ("accuracy", "cross_entropy", "brier", "accuracy_se"):
        assert math.isnan(getattr(result, name)), name
    assert math.isnan(result.exact_accuracy[0])
    assert "no truth" in str(result)
    rows = uniform_leaves(300, 8, 4, seed=2, start=HELD_OUT_START)
    mask = draw_masks(300, 8, seed=2, start=HELD_OUT_START)
    says = Window(model, 2).predict(rows, mask)
    by_hand = compare(model, says, rows, mask, has_truth=False)
    assert by_hand.kl == pytest.approx(result.kl)
    assert by_hand.inputs == "without truth"
    own = evaluate(Window(model, 2), model, 300, seed=2)
    assert abs(own.kl[0] - result.kl[0]) > 0.01
    assert math.isnan(json.loads(json.dumps(result.as_dict()))["accuracy"])
    root = evaluate(ExactBP(model), model, 50, task="root", inputs="uniform")
    assert root.kl[0] == 0.0
    assert math.isnan(root.accuracy)


def test_uniform_rows_are_uniform_and_a_function_of_seed_and_row():
    rows = uniform_leaves(20_000, 5, 3, seed=1)
    counts = np.stack([(rows == b).sum(0) for b in range(3)])
    spread = (counts - 20_000 / 3) / math.sqrt(20_000 * 2 / 9)
    assert np.abs(spread).max() < 5.5  # 15 normal numbers: false alarms below 1e-6
    assert np.abs(np.corrcoef(rows.T) - np.eye(5)).max() < 5.5 / math.sqrt(20_000)
    parts = [uniform_leaves(7, 5, 3, seed=1, start=i) for i in range(0, 70, 7)]
    assert np.array_equal(np.concatenate(parts), rows[:70])
    assert not np.array_equal(uniform_leaves(70, 5, 3, seed=2), rows[:70])


def test_other_models_may_draw_while_the_judge_stays(model):
    source = model.filtered(2)
    result = evaluate(ExactBP(model), model, 400, inputs=source, seed=3)
    rows = source.sample(400, seed=3, start=HELD_OUT_START).leaves
    mask = draw_masks(400, 8, seed=3, start=HELD_OUT_START)
    by_hand = compare(model, ExactBP(model).predict(rows, mask), rows, mask)
    assert result.accuracy == by_hand.accuracy
    assert result.kl == pytest.approx(by_hand.kl)
    assert result.kl[0] == pytest.approx(0.0, abs=1e-14)
    assert result.inputs == "the same grammar, filter level 2"
    assert result.exact_accuracy[2] > result.exact_accuracy[0]
    other = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 1), depth=3)
    strange = evaluate(ExactBP(model), model, 400, inputs=other, seed=3)
    assert strange.inputs == f"grammar {other.grammar.fingerprint}, filter level 0"
    assert strange.accuracy < by_hand.accuracy + 0.1
    assert strange.kl[0] == pytest.approx(0.0, abs=1e-14)


# --- tables ----------------------------------------------------------------------------------


def test_table_holds_every_token_or_a_draw(model, monkeypatch):
    sample = model.sample(300, seed=1)
    says = model.filtered(1).leave_one_out(sample.leaves, dtype="float64")
    every = agreement_table(model, says, sample.leaves)
    assert every.p_model.shape == (2400, 4)
    assert every.n_tokens == 2400
    assert np.array_equal(every.truth, sample.leaves.reshape(-1))
    assert np.array_equal(every.sequence * 8 + every.position, np.arange(2400))
    p = model.leave_one_out(sample.leaves, dtype="float64").reshape(-1, 4)
    assert np.allclose(every.p_exact, p, atol=1e-15)
    mean = compare(model, says, sample.leaves).kl[0]
    assert every.kl.mean() == pytest.approx(mean, abs=1e-12)
    some = agreement_table(model, says, sample.leaves, max_tokens=700)
    place = some.sequence * 8 + some.position
    assert len(place) == 700
    assert (np.diff(place) > 0).all()
    assert np.array_equal(some.p_model, every.p_model[place])
    assert abs((place < 1200).sum() - 350) < 5 * math.sqrt(700 * 0.25)  # 6e-7
    monkeypatch.setattr(judge, "_BLOCK_VALUES", 7 * 32)
    blocked = agreement_table(model, says, sample.leaves, max_tokens=700)
    assert np.array_equal(blocked.sequence * 8 + blocked.position, place)
    other = agreement_table(model, says, sample.leaves, max_tokens=700, seed=1)
    assert not np.array_equal(other.sequence * 8 + other.position, place)
    assert len(json.loads(json.dumps(some.as_dict()))["kl"]) == 700


def test_table_of_the_root_without_truth_and_with_gaps(model):
    table = draw_agreement(ExactBP(model), model, 40, task="root", inputs="uniform")
    assert np.array_equal(table.p_exact, table.p_model)
    assert set(table.truth.tolist()) == {-1}
    assert set(table.position.tolist()) == {0}
    grammar = hfilter.Grammar.published(6, 1.0, 0, rules_per_symbol=4)
    forbidding = hfilter.TreeModel(grammar, depth=2)
    rows = forbidding.filtered(2).sample(300, seed=3)
    law = forbidding.root_posterior(rows.leaves, dtype="float64")
    table = agreement_table(forbidding, law, rows.leaves, roots=rows.roots)
    known = ~np.isnan(law[:, 0])
    assert np.array_equal(table.sequence, np.flatnonzero(known))
    assert not np.isnan(table.p_exact).any()


# --- anything that predicts ------------------------------------------------------------------


def test_networks_are_asked_without_dropout_and_left_as_they_were(model):
    torch = pytest.importorskip("torch")
    from hfilter.learn.encoder import Encoder, EncoderConfig

    config = EncoderConfig.for_model(model, d_model=8, n_layers=1, d_feedforward=8, dropout=0.5)
    network = Encoder(config).train()
    result = evaluate(network, model, 100)
    assert network.training
    assert result == evaluate(network, model, 100)

    def by_hand(tokens):
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(tokens.astype(int)))
        return torch.softmax(logits.double(), -1)

    assert evaluate(by_hand, model, 100).kl == pytest.approx(result.kl, abs=1e-6)
    with pytest.raises(ArgumentError, match='reads out "mlm"'):
        evaluate(network, model, 10, task="root")


# --- manners ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"level": 1}, ArgumentError, "level has no use"),
        ({"task": "ancestor"}, ArgumentError, r"level \(0 … 3\) of the ancestor is needed"),
        ({"task": "ancestor", "level": 4}, ArgumentError, "level must be"),
        ({"task": "ancestor", "level": 1}, ArgumentError, r"ancestors \(n, 2\) of that level"),
        (
            {"task": "ancestor", "level": 1, "ancestors": np.zeros((5, 3), int)},
            ShapeError,
            r"\(5, 2\), a symbol per node, or \(5, 8\)",
        ),
        (
            {"task": "ancestor", "level": 1, "ancestors": np.full((5, 2), 4)},
            ArgumentError,
            "ancestor must be a symbol in 0 … 3",
        ),
        (
            {"task": "ancestor", "level": 1, "filter_levels": [2]},
            ArgumentError,
            "at most level = 1",
        ),
        ({"ancestors": np.zeros((5, 2), int)}, ArgumentError, 'mean task="ancestor"'),
        ({"task": "causal", "roots": np.zeros(5, int)}, ArgumentError, "roots have no use"),
        ({"task": "root", "roots": np.zeros(5, int), "has_truth": False}, ArgumentError, "no use"),
        ({"n_bins": 0}, ArgumentError, "n_bins"),
    ],
)
def test_errors_of_compare(model, changes, error, message):
    given = {"probabilities": np.full((5, 8, 4), 0.25), "leaves": np.zeros((5, 8), np.uint8)}
    with pytest.raises(error, match=message):
        compare(model, **(given | changes))


def test_errors_of_inputs_predictors_and_tables(model):
    with pytest.raises(ArgumentError, match='inputs must be "own"'):
        evaluate(ExactBP(model), model, 5, inputs="random")
    deeper = hfilter.TreeModel(model.grammar, depth=4)
    with pytest.raises(ArgumentError, match="inputs must be a tree like the model's, depth 3"):
        evaluate(ExactBP(model), model, 5, inputs=deeper)
    with pytest.raises(ArgumentError, match="level 1 does not exist at filter_level 2 of the inp"):
        evaluate(len, model, 5, task="ancestor", level=1, inputs=model.filtered(2))
    with pytest.raises(ArgumentError, match='ExactBP answers task="mlm" and "root"'):
        evaluate(ExactBP(model), model, 5, task="causal")
    with pytest.raises(DTypeError, match="a predictor must be"):
        as_predict(3, "mlm")
    leaves = np.zeros((5, 8), int)
    with pytest.raises(ArgumentError, match="max_tokens"):
        agreement_table(model, np.full((5, 8, 4), 0.25), leaves, max_tokens=0)
    with pytest.raises(ArgumentError, match="no token to show"):
        agreement_table(model, np.full((5, 8, 4), np.nan), leaves)


@pytest.mark.parametrize("module", [agreement, asking, inputs, questions])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0
