"""Truth: the numbers of the hierarchical filtering paper's own grammars.

Values were measured with independent code in float64 on 1e5 sequences (published grammar of seed 0,
q = depth = 4, sigma = 1; Garnier-Brun et al. 2024, arXiv 2408.15138); ours must agree within five
standard errors of both measurements and the rounding of the printed digits.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from hfilter import Grammar, TreeModel

N = 20_000
N_PRINTED = 100_000
SIGMAS = 5.0

# accuracies of BP_0 ... BP_4 on data of filter level 0, and of the matched BP_k on data of level k
ROOT_ON_FULL = (1.0000, 0.8924, 0.6367, 0.5787, 0.5007)
MLM_ON_FULL = (0.7118, 0.7053, 0.6684, 0.5814, 0.3980)
ROOT_MATCHED = (1.0000, 0.8190, 0.7268, 0.6361, 0.5716)
MLM_MATCHED = (0.7118, 0.7101, 0.6603, 0.5716, 0.3419)
MLM_CROSS_ENTROPY = (0.711, 0.732, 0.821, 1.010, 1.315)
MLM_KL = (0.0, 0.0215, 0.112, 0.299, 0.605)
ROOT_KL = (0.0, 0.380, 0.847, 1.108, 1.281)
MAJORITY = 0.320


@cache
def full_model() -> TreeModel:
    return TreeModel(Grammar.published(4, 1.0, 0), 4)


@cache
def measured(data_level: int, model_level: int) -> dict[str, np.ndarray]:
    """Per-sequence accuracy, cross-entropy and leave-one-out laws of BP_k' on data of level k."""
    data = full_model().filtered(data_level).sample(N, seed=2024)
    model = full_model().filtered(model_level)
    leaves = data.leaves.astype(np.int64)
    root = model.root_posterior(data.leaves, dtype="float64")
    loo = model.leave_one_out(data.leaves, dtype="float64")
    on_truth = np.take_along_axis(loo, leaves[..., None], axis=2)[..., 0]
    with np.errstate(divide="ignore"):
        cross_entropy = -np.log(on_truth).mean(axis=1)
    return {
        "root": root,
        "loo": loo,
        "root_hit": (root.argmax(axis=1) == data.roots).astype(float),
        "mlm_hit": (loo.argmax(axis=2) == leaves).mean(axis=1),
        "cross_entropy": cross_entropy,
    }


def assert_printed(per_sequence: np.ndarray, printed: float, digits: int, single: bool) -> None:
    """The mean equals the printed value within SIGMAS standard errors and half a digit.

    `single`: the printed number used one position per sequence, so its error is that of one
    position; the largest a probability can have stands for it.
    """
    ours = per_sequence.std() / np.sqrt(len(per_sequence))
    spread = 0.5 if single else per_sequence.std()
    theirs = spread / np.sqrt(N_PRINTED)
    slack = SIGMAS * np.hypot(ours, theirs) + 0.5 * 10.0**-digits
    assert abs(per_sequence.mean() - printed) <= slack, (per_sequence.mean(), printed, slack)
    assert slack < 0.05, "the test must be able to fail"


def law_from_the_recipe(q: int, sigma: float, seed: int, kept: int) -> np.ndarray:
    """The published recipe once more: shuffle the pairs, deal them, exponentiate, normalise."""
    stream = np.random.RandomState(seed)
    pairs = np.array([(b, c) for b in range(q) for c in range(q)])
    stream.shuffle(pairs)
    tensor = np.zeros((q, q, q))
    for parent in range(q):
        for b, c in pairs[parent * q : parent * q + kept]:
            tensor[parent, b, c] = np.exp(sigma * stream.randn())
    return tensor / tensor.sum(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize(
    ("q", "sigma", "seed", "kept"), [(4, 1.0, 0, 4), (6, 1.0, 0, 4), (3, 2.0, 7, 3), (5, 0.0, 1, 2)]
)
def test_published_recipe(q: int, sigma: float, seed: int, kept: int) -> None:
    rules = None if kept == q else kept
    tensor = Grammar.published(q, sigma, seed, rules_per_symbol=rules).tensor()
    want = law_from_the_recipe(q, sigma, seed, kept)
    np.testing.assert_array_equal(tensor > 0, want > 0)
    np.testing.assert_allclose(tensor, want, rtol=1e-14)


def test_first_rules_of_seed_zero() -> None:
    grammar = Grammar.published(6, 1.0, 0, rules_per_symbol=4)
    tensor = grammar.tensor()
    assert [tuple(x) for x in np.argwhere(tensor[0])] == [(2, 4), (3, 2), (5, 0), (5, 1)]
    assert [tuple(x) for x in np.argwhere(tensor[1])] == [(0, 2), (1, 4), (1, 5), (4, 5)]
    assert round(tensor[tensor > 0].min(), 4) == 0.0338
    assert round(tensor.max(), 3) == 0.764
    assert (grammar.n_rules, grammar.is_unambiguous) == (24, True)


def test_published_leaves_the_global_stream_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    Grammar.published(4, 1.0, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("k", range(5))
def test_accuracies_on_full_data(k: int) -> None:
    m = measured(0, k)
    assert_printed(m["root_hit"], ROOT_ON_FULL[k], 4, single=False)
    assert_printed(m["mlm_hit"], MLM_ON_FULL[k], 4, single=True)


@pytest.mark.parametrize("k", range(5))
def test_matched_accuracies(k: int) -> None:
    m = measured(k, k)
    assert_printed(m["root_hit"], ROOT_MATCHED[k], 4, single=False)
    assert_printed(m["mlm_hit"], MLM_MATCHED[k], 4, single=True)


@pytest.mark.parametrize("k", range(5))
def test_mlm_cross_entropies(k: int) -> None:
    assert_printed(measured(0, k)["cross_entropy"], MLM_CROSS_ENTROPY[k], 3, single=True)


@pytest.mark.parametrize("k", range(1, 5))
def test_divergences_from_the_full_posterior(k: int) -> None:
    def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(p > 0, p * np.log(p / q), 0.0).sum(axis=-1)

    full, other = measured(0, 0), measured(0, k)
    mlm = divergence(full["loo"], other["loo"]).mean(axis=1)
    assert_printed(mlm, MLM_KL[k], 4 if k == 1 else 3, single=False)
    root = divergence(full["root"], other["root"])
    assert_printed(root, ROOT_KL[k], 3, single=False)


def test_majority_baseline() -> None:
    leaves = full_model().sample(N, seed=2024).leaves
    share = np.stack([(leaves == x).mean(axis=0) for x in range(4)])
    best = share.argmax(axis=0)
    assert_printed((leaves == best).mean(axis=1), MAJORITY, 3, single=True)


def test_full_model_on_filtered_data_is_infinitely_surprised() -> None:
    """BP_0 is certain of a root, and on filtered data sometimes of a wrong one: infinity is kept."""
    mixed = measured(2, 0)
    on_truth = mixed["root"][np.arange(N), full_model().filtered(2).sample(N, seed=2024).roots]
    assert (on_truth == 0).any()
    assert np.isfinite(mixed["cross_entropy"]).all(), "every token is possible in this grammar"
    assert np.isfinite(measured(2, 2)["cross_entropy"]).all()
