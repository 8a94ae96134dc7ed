"""Monte Carlo estimates against the closed forms, and mutants that they must tell apart.

Every comparison allows 6 standard errors: a right estimate fails with probability 2e-9, were it
normal; with the seeds fixed it passes or fails for good.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from oracle import Enumeration, all_sequences, token_fields

from hfilter import Grammar, TreeModel, provenance, theory
from hfilter.theory.law import estimate

FAST = provenance()["backend"] != "python"  # the plain text takes a millisecond a sequence
N = 4000 if FAST else 100
PUBLISHED = Grammar.published(4, 1.0, 0)
MODELS = {
    "published": TreeModel(PUBLISHED, 3),
    "published-k1": TreeModel(PUBLISHED, 3, 1),
    "published-k2": TreeModel(PUBLISHED, 3, 2),
    "dense": TreeModel(Grammar.dense(3, 0.5, 1), 2, root_prior=[0.5, 0.3, 0.2]),
    "arity-3": TreeModel(Grammar.log_normal(3, 2.0, 0, rules_per_symbol=4, arity=3), 2, 1),
    "levels": TreeModel(Grammar.random_hierarchy(3, 2, depth=3, n_classes=2, seed=0), 3, 2),
}

Ask = Callable[[TreeModel], float]
PAIRS: dict[str, tuple[Ask, Callable[[TreeModel], theory.Estimate]]] = {
    "entropy": (theory.entropy, lambda m: theory.entropy_estimate(m, N, 5)),
    "mlm loss": (
        lambda m: theory.mlm_floor(m).cross_entropy,
        lambda m: theory.mlm_floor_estimate(m, N, 5).cross_entropy,
    ),
    "mlm accuracy": (
        lambda m: theory.mlm_floor(m).accuracy,
        lambda m: theory.mlm_floor_estimate(m, N, 5).accuracy,
    ),
    "root accuracy": (theory.root_accuracy, lambda m: theory.root_accuracy_estimate(m, N, 5)),
    "root entropy": (theory.root_entropy, lambda m: theory.root_entropy_estimate(m, N, 5)),
    "distinct": (
        lambda m: theory.expected_distinct(m, 500),
        lambda m: theory.expected_distinct_estimate(m, 500, N, 5),
    ),
}


def off(found: theory.Estimate, value: float) -> float:
    """Distance in standard errors; rounding is forgiven."""
    return abs(found.value - value) / (found.standard_error + 1e-9)


def told_apart(found: theory.Estimate, mutant: float) -> bool:
    """Whether a wrong value is refused; plain Python has too few rows for that."""
    return off(found, mutant) > 6 or not FAST


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("what", PAIRS)
def test_estimates(what: str, name: str) -> None:
    exact, estimated = PAIRS[what]
    found = estimated(MODELS[name])
    assert off(found, exact(MODELS[name])) < 6
    assert found.standard_error < 1.5 / N**0.5 * max(abs(found.value), 1)


@pytest.mark.parametrize("what", PAIRS)
def test_estimates_tell_filter_levels_apart(what: str) -> None:
    """The mutant: the value of the next filter level."""
    exact, estimated = PAIRS[what]
    assert told_apart(estimated(MODELS["published-k1"]), exact(MODELS["published-k2"]))


@pytest.mark.parametrize("name", MODELS)
def test_next_token_estimate(name: str) -> None:
    model = MODELS[name]
    found = theory.next_token_entropy_estimate(model, N // 2, 5)
    exact = theory.next_token_entropy(model)
    assert found.value.shape == found.standard_error.shape == (model.n_leaves,)
    assert (np.abs(found.value - exact) < 6 * found.standard_error + 1e-9).all()
    mutant = np.abs(found.value - exact[::-1]) > 6 * found.standard_error + 1e-9
    assert mutant.any() or not FAST


@pytest.mark.parametrize("rate", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("k", [0, 1])
def test_mlm_floor_of_many_masks(rate: float, k: int) -> None:
    """Against all sequences and all masks: per hidden leaf, an empty mask replaced by one leaf."""
    grammar = Grammar.broadcast(2, 0.9)
    law = Enumeration([grammar.tensor()] * 2, np.array([0.3, 0.7]), 2, k)
    sequences, p = all_sequences(2, 4), law.sequence_law()
    weight, loss, right = 0.0, 0.0, 0.0
    drawn = np.zeros(2)  # loss and weight of the masks that hide something from the first
    for mask in all_sequences(2, 4).astype(bool):
        hidden = mask.sum()
        chance = rate**hidden * (1 - rate) ** (4 - hidden)
        masks = [mask] if hidden else list(np.eye(4, dtype=bool))
        for m in masks:
            seen = np.broadcast_to(m, sequences.shape)
            belief = law.infer(token_fields(sequences, seen, 2)).beliefs[2][:, m]
            share = chance / len(masks)
            logs = np.log(belief, out=np.zeros_like(belief), where=belief > 0)
            here = np.array([-float(p @ (belief * logs).sum(axis=(1, 2))), m.sum()])
            drawn += share * here * (hidden > 0)
            loss += share * here[0]
            weight += share * here[1]
            right += share * float(p @ belief.max(axis=2).sum(axis=1))
    model = TreeModel(grammar, 2, k, root_prior=[0.3, 0.7])
    found = theory.mlm_floor_estimate(model, 4 * N, 5, mask_rate=rate)
    assert off(found.cross_entropy, loss / weight) < 6
    assert off(found.accuracy, right / weight) < 6
    if rate == 0.2:  # the mutant: rows without a hidden leaf are left out
        assert told_apart(found.cross_entropy, drawn[0] / drawn[1])
    if rate == 0.6:  # the mutant: one leaf at a time
        alone = theory.mlm_floor_estimate(model, N, 5)
        assert told_apart(alone.cross_entropy, loss / weight)


def test_grammar_kl_estimate() -> None:
    p = TreeModel(PUBLISHED, 3)
    tensor = PUBLISHED.tensor() ** 0.1
    q = TreeModel(Grammar.from_tensor(tensor / tensor.sum(axis=(1, 2), keepdims=True)), 3)
    found = theory.grammar_kl_estimate(p, q, N, 5)
    assert off(found, theory.grammar_kl(p, q)) < 6
    assert told_apart(found, theory.grammar_kl(q, p))
    other = TreeModel(Grammar.published(4, 1.0, 0, rules_per_symbol=2), 3)
    value, error = theory.grammar_kl_estimate(p, other, 100)
    assert np.isinf(value)
    assert np.isnan(error)


def test_standard_errors_are_those_of_the_mean() -> None:
    """Over blocks as over all rows at once, also for a small spread on a large mean."""
    values = 1e9 + np.random.default_rng(0).normal(size=1000)
    for row_values in (1, 2**13, 2**22):
        value, error = estimate(lambda s, n: values[s : s + n], 1000, row_values)
        np.testing.assert_allclose(value, values.mean(), rtol=1e-15)
        np.testing.assert_allclose(error, values.std(ddof=1) / np.sqrt(1000), rtol=1e-6)
