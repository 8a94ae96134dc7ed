"""Comparison, ladders, probes and read-outs on the network that is belief propagation."""

from __future__ import annotations

import numpy as np
import pytest

import hfilter

construction = pytest.importorskip("hfilter.analysis.construction")
pytest.importorskip("sklearn")

from hfilter.analysis.compare import evaluate  # noqa: E402
from hfilter.analysis.ladders import ladders  # noqa: E402
from hfilter.analysis.probes import ancestor_probe  # noqa: E402
from hfilter.analysis.readout import message_profile  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


@pytest.mark.parametrize("task", ["mlm", "root", "causal"])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_it_has_no_error_of_any_kind(model, task, k):
    network = construction.ConstructedTransformer(model.filtered(k), task)
    result = evaluate(network, model.filtered(k), 200, task=task)
    assert abs(result.kl[k]) < 1e-13
    assert result.agreement[k] == 1.0
    assert result.calibration_error[k] < 1e-14
    assert result.absolute_error[k] < 1e-14
    assert all(result.kl[j] > 1e-3 for j in range(4) if j != k)
    random = evaluate(network, model.filtered(k), 200, task=task, inputs="uniform")
    assert abs(random.kl[k]) < 1e-12


def test_it_stands_on_the_highest_rung(model):
    result = ladders(construction.ConstructedTransformer(model), model, 200)
    assert result.closest.name == "BP_0"
    assert abs(result.window_kl[3]) < 1e-13
    assert np.array_equal(result.window_kl.argsort(), [3, 2, 1, 0])


@pytest.mark.parametrize("rate", [None, 0.3])
def test_layer_m_holds_the_messages_up_to_height_m(model, rate):
    network = construction.ConstructedTransformer(model)
    profile = message_profile(network, model, 800, mask_rate=rate)
    held = np.tril(np.ones((4, 4), bool))
    assert (profile.r2[held] > 1 - 1e-6).all()
    assert (profile.r2[~held] < 0.7).all()
    assert np.abs(profile.shuffled).max() < 0.05


def test_probes_rise_with_the_layer_and_stay_below_the_oracle(model):
    network = construction.ConstructedTransformer(model)
    options = {"n_train": 600, "n_test": 400, "shuffled": False}
    found = [
        ancestor_probe(network, model, m, 1, "two-layer", epochs=15, **options) for m in range(3)
    ]
    for probe in found:
        assert probe.accuracy < probe.block_oracle + 5 * probe.accuracy_se
    assert found[2].accuracy > found[1].accuracy + 0.05 > found[0].accuracy
    assert found[2].accuracy > found[2].oracle[1] + 0.02  # more than any pair of leaves knows
