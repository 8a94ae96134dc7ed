"""The table of exact accuracies: against sums over all sequences, the publication, and its own words."""

from __future__ import annotations

import doctest
import itertools
import json
import math

import numpy as np
import pytest

import hfilter
from hfilter.analysis import accuracies
from hfilter.analysis.compare import exact_accuracies


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


@pytest.fixture(scope="module")
def forbidding():
    grammar = hfilter.Grammar.published(6, 1.0, 0, rules_per_symbol=4)
    return hfilter.TreeModel(grammar, depth=2)


def rows_for(n, fewer):
    """Plain Python loops are some hundred times slower: fewer rows, larger standard errors."""
    return fewer if hfilter.provenance()["backend"] == "python" else n


def exact_law_accuracies(model, data_level, level):
    """By summing over all sequences: root, masked-leaf accuracy and masked-leaf nats."""
    source, bp = model.filtered(data_level), model.filtered(level)
    leaves = np.array(list(itertools.product(range(model.vocab_size), repeat=model.n_leaves)))
    weight = np.exp(source.log_prob(leaves, dtype="float64"))
    assert weight.sum() == pytest.approx(1.0, abs=1e-9)
    guess = bp.root_posterior(leaves, dtype="float64").argmax(1)
    belief = source.root_posterior(leaves, dtype="float64")
    root = weight @ belief[np.arange(len(leaves)), guess]
    law = bp.leave_one_out(leaves, dtype="float64")
    mlm = weight @ (law.argmax(-1) == leaves).mean(1)
    nats = -np.log(np.take_along_axis(law, leaves[..., None], -1)[..., 0])
    return root, mlm, weight @ nats.mean(1)


def test_the_table_agrees_with_the_exact_law():
    """Within five standard errors in all 27 cells (false alarm 2e-5), and not within a mutant's."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    table = exact_accuracies(model, rows_for(3000, 1000), seed=2)
    off = []
    for k, j in itertools.product(range(3), repeat=2):
        root, mlm, nats = exact_law_accuracies(model, k, j)
        assert table.root[k, j] == pytest.approx(root, abs=5 * table.root_se[k, j] + 1e-12)
        assert table.mlm[k, j] == pytest.approx(mlm, abs=5 * table.mlm_se[k, j])
        error = 5 * table.mlm_cross_entropy_se[k, j]
        assert table.mlm_cross_entropy[k, j] == pytest.approx(nats, abs=error)
        off.append(abs(table.mlm[j, k] - mlm) > 5 * table.mlm_se[k, j])  # mutant: transposed
    assert any(off)


def test_the_table_agrees_with_the_publication():
    """Published grammar, q = l = 4: root / masked leaf, to 5 joint standard errors (theirs .0016).

    Values: independent float64 computation for Garnier-Brun et al. 2024, arXiv 2408.15138.
    """
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    table = exact_accuracies(model, rows_for(4000, 200), seed=5)
    root_0, mlm_0 = [1.0, 0.8924, 0.6367, 0.5787, 0.5007], [0.7118, 0.7053, 0.6684, 0.5814, 0.3980]
    root_k, mlm_k = [1.0, 0.8190, 0.7268, 0.6361, 0.5716], [0.7118, 0.7101, 0.6603, 0.5716, 0.3419]
    for got, error, wanted in (
        (table.root[0], table.root_se[0], root_0),
        (table.mlm[0], table.mlm_se[0], mlm_0),
        (table.root.diagonal(), table.root_se.diagonal(), root_k),
        (table.mlm.diagonal(), table.mlm_se.diagonal(), mlm_k),
    ):
        assert np.all(np.abs(got - wanted) < 5 * np.hypot(error, 0.0016))
    nats = [0.711, 0.732, 0.821, 1.010, 1.315]
    allowed = 5 * np.hypot(table.mlm_cross_entropy_se[0], 0.003)
    assert np.all(np.abs(table.mlm_cross_entropy[0] - nats) < allowed)
    assert np.all(table.mlm_se < table.root_se.max())


def test_the_table_counts_the_undefined(forbidding):
    table = exact_accuracies(forbidding, 300)
    leaves = forbidding.filtered(2).sample(300).leaves
    missing = np.isnan(forbidding.root_posterior(leaves)[:, 0])
    assert table.root_undefined[2, 0] == missing.sum() > 0
    missing = np.isnan(forbidding.leave_one_out(leaves)[..., 0])
    assert table.mlm_undefined[2, 0] == missing.sum() > 0
    assert table.mlm_cross_entropy[2, 0] == math.inf
    assert not table.root_undefined[:, 2].any()
    assert np.array_equal(np.diag(table.root_undefined), [0, 0, 0])
    assert json.loads(json.dumps(table.as_dict()))["n"] == 300
    assert "see root_undefined" in str(table)


def test_the_printed_table_says_what_is_what(model):
    table = exact_accuracies(model, 100, filter_levels=[0, 2])
    head, _, root, names, *rows = str(table).splitlines()
    assert "100 sequences" in head
    assert root.startswith("the root")
    assert names.split(" | ")[1].strip() == "BP_0"
    means, errors = table.root, table.root_se
    for line, k, mean, error in zip(rows, (0, 2), means, errors, strict=False):
        cells = [f"{m:.4f} ± {e:.4f}" for m, e in zip(mean, error, strict=True)]
        assert line.split(" | ") == [f"k = {k}", *cells]
    assert rows[3].startswith("one masked leaf")
    assert rows[5].split(" | ")[1] == f"{table.mlm[0, 0]:.4f} ± {table.mlm_se[0, 0]:.4f}"


def test_a_table_is_equal_to_itself_alone(model):
    table, again = (exact_accuracies(model, 10) for _ in range(2))
    assert table == table
    assert table != again
    assert len({table, again}) == 2


def test_the_table_of_chosen_levels(model):
    whole = exact_accuracies(model, 100, seed=3)
    some = exact_accuracies(model, 100, seed=3, filter_levels=[3, 1])
    assert some.filter_levels == (3, 1)
    assert np.array_equal(some.root, whole.root[np.ix_([3, 1], [3, 1])])


def test_docstring_examples_run():
    assert doctest.testmod(accuracies).failed == 0
