"""What a network is scored on: the held-out set and the loss, against `compare` and by hand."""

from __future__ import annotations

import dataclasses
import doctest

import numpy as np
import pytest

import hfilter
from hfilter.analysis.compare import compare

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import hfilter.learn.tasks as tasks_module  # noqa: E402
from hfilter.learn.data import make_batch  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402
from hfilter.learn.tasks import HeldOut, predict, scored, task_loss  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)


def tiny(**changes):
    base = EncoderConfig(4, 4, d_model=8, n_layers=2, d_feedforward=12, dropout=0.2)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("rate", [None, 0.5])
@pytest.mark.parametrize("level", [0, 1])
def test_held_out_numbers_are_those_of_compare(model, rate, level):
    source = model.filtered(level)
    held_out = HeldOut(source, "mlm", 60, seed=3, mask_rate=rate)
    encoder = Encoder(tiny())
    scores = held_out.evaluate(encoder)
    batch = held_out.batch
    probabilities = predict(encoder, batch.tokens).double().softmax(-1)
    judged = compare(source, probabilities, batch.targets.numpy(), batch.mask.numpy())
    assert scores.cross_entropy == pytest.approx(judged.cross_entropy, abs=1e-9)
    assert scores.accuracy == pytest.approx(judged.accuracy, abs=1e-12)
    assert held_out.floor == pytest.approx(judged.exact_cross_entropy[level], abs=1e-9)
    for k in range(3):
        assert scores.kl[k] == pytest.approx(judged.kl[k], abs=1e-6)
        assert held_out.exact_accuracy[k] == pytest.approx(judged.exact_accuracy[k], abs=1e-12)
        assert held_out.undefined[k] == judged.undefined[k]


def test_held_out_root_numbers_are_those_of_compare(model):
    held_out = HeldOut(model, "root", 60, seed=3)
    encoder = Encoder(tiny(readout="root"))
    scores = held_out.evaluate(encoder)
    batch = held_out.batch
    probabilities = predict(encoder, batch.tokens).double().softmax(-1)
    judged = compare(model, probabilities, batch.tokens, roots=batch.roots, task="root")
    assert scores.cross_entropy == pytest.approx(judged.cross_entropy, abs=1e-9)
    assert {k: pytest.approx(v, abs=1e-6) for k, v in judged.kl.items()} == scores.kl
    assert held_out.floor == pytest.approx(0.0, abs=1e-12)  # the leaves decide the root


def test_held_out_counts_what_a_level_cannot_explain():
    grammar = hfilter.Grammar.published(6, 1.0, 0, rules_per_symbol=4)
    source = hfilter.TreeModel(grammar, depth=2).filtered(2)
    held_out = HeldOut(source, "root", 200)
    evidence = np.asarray(source.filtered(0).root_posterior(held_out.batch.tokens.numpy()))
    impossible = int(np.isnan(evidence[:, 0]).sum())
    assert 0 < impossible < 200
    assert held_out.undefined == {0: impossible, 1: held_out.undefined[1], 2: 0}
    scores = held_out.evaluate(Encoder(tiny(vocab_size=6, readout="root")))
    assert all(np.isfinite(v) for v in scores.kl.values())


def test_held_out_rows_are_no_training_rows(model):
    held_out = HeldOut(model, "mlm", 30, seed=4)
    assert np.array_equal(
        held_out.batch.targets.numpy(), model.sample(30, seed=4, start=2**48).leaves
    )


def test_a_diverged_network_is_not_hidden(model):
    encoder = Encoder(tiny())
    with torch.no_grad():
        encoder.readout.bias.fill_(float("nan"))
    scores = HeldOut(model, "mlm", 20).evaluate(encoder)
    assert np.isnan(scores.cross_entropy)
    assert all(np.isnan(v) for v in scores.kl.values())


def test_evaluation_restores_the_mode_and_uses_no_dropout(model):
    encoder = Encoder(tiny(dropout=0.5)).train()
    held_out = HeldOut(model, "mlm", 20)
    assert held_out.evaluate(encoder) == held_out.evaluate(encoder, batch_size=7)
    assert encoder.training


def test_the_loss_counts_hidden_leaves_only():
    leaves = np.array([[0, 1], [2, 3]])
    mask = np.array([[False, True], [False, False]])
    batch = make_batch(leaves, np.array([0, 1]), mask, 4, "mlm")
    assert batch.tokens.tolist() == [[0, 4], [2, 3]]
    logits = torch.zeros(2, 2, 4)
    logits[0, 1] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    logits[1] = 50.0 * torch.randn(2, 4)  # not scored
    expected = np.log(np.exp(2) + 3) - 2
    assert task_loss(logits, batch).item() == pytest.approx(expected, abs=1e-6)
    assert scored(logits, batch)[1].tolist() == [1]


def test_docstring_examples_run():
    assert doctest.testmod(tasks_module).failed == 0
