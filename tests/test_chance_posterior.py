"""Chance: draws of whole trees given evidence, against the exact posterior over all configurations.

Every test of a correct sampler alarms with probability ALPHA, or ALPHA for each model it is asked for:
fewer than 200 in all, so the family-wise rate is below 2e-4 over all seeds (the seeds are fixed: a pass
stays a pass). Each test carries a mutant that it must reject.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from cases import FIELD_KINDS, PAIR_IDS, PAIRS, Problem, problem
from oracle import Enumeration, g_test, token_fields

import hfilter
from hfilter import Grammar, TreeModel

ALPHA = 1e-6
N = 60_000


def codes(levels: dict[int, np.ndarray], alphabets: list[int]) -> np.ndarray:
    """A number for every tree (rows of all levels), the same for the same tree."""
    total: Any = np.zeros(len(levels[0]), np.int64)
    for d in sorted(levels):
        for column in np.asarray(levels[d]).astype(np.int64).T:
            total = total * (alphabets[d] + 1) + column
    return total


def p_value(law: Enumeration, posterior: np.ndarray, levels: dict[int, np.ndarray]) -> float:
    """G-test of draws of joint configurations: all nodes at once."""
    cells, place = np.unique(codes(law.configurations, law.alphabets), return_inverse=True)
    expected = np.bincount(place.ravel(), posterior, len(cells))
    drawn = codes(levels, law.alphabets)
    at = np.minimum(np.searchsorted(cells, drawn), len(cells) - 1)
    if (cells[at] != drawn).any():
        return 0.0  # a tree that does not exist
    counts = np.bincount(at, minlength=len(cells))
    if (expected > 0).sum() == 1:
        return float((counts[expected == 0] == 0).all())
    return g_test(counts, expected / expected.sum())


def evidence_of(p: Problem, turn: int) -> tuple[dict[str, Any], np.ndarray]:
    """One possible row: half hidden tokens, or soft evidence with zeros, in turn; and its log fields."""
    rng = np.random.default_rng(p.seed + 9)
    leaves = p.law.draw(1, rng)
    hidden = rng.random(leaves.shape) < 0.6
    hidden[0, 0] = True
    if turn % 2:
        return {"leaves": leaves, "mask": hidden}, token_fields(leaves, hidden, p.q)
    h = FIELD_KINDS["soft" if turn % 4 else "steps"](rng, (1, p.law.n_leaves, p.q))
    h = np.where(np.eye(p.q, dtype=bool)[leaves], 0.0, h)  # at least this one is possible
    return {"log_fields": h}, h


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_trees_follow_the_posterior(name: str, k: int) -> None:
    """Root, hidden leaves and every node between, jointly."""
    p = problem(name, k)
    turn = PAIRS.index((name, k))
    evidence, fields = evidence_of(p, turn)
    posterior = p.law.posterior(fields)[0]
    dtype = ("float32", "float64")[turn // 2 % 2]
    n = N // 10 if turn % 4 == 0 else N  # evidence beyond the range of float64 takes its time
    drawn = p.model.sample_posterior(
        **evidence, n_samples=n, seed=200 + turn, levels="all", dtype=dtype
    )
    levels = {d: np.asarray(x)[0] for d, x in drawn.levels.items()}
    assert p_value(p.law, posterior, levels) > ALPHA
    # Every second tree a half more likely than it is.
    odd = np.zeros(len(posterior), bool)
    odd[np.flatnonzero(posterior > 0)[::2]] = True
    nudged = posterior * np.where(odd, 1.5, 1.0)
    if 0.1 < posterior[odd].sum() < 0.9 and n == N:
        assert p_value(p.law, nudged / nudged.sum(), levels) < ALPHA


@cache
def drawn_model(k: int) -> tuple[TreeModel, Enumeration]:
    model = TreeModel(Grammar.log_normal(3, 1.0, 0), 2, k, root_prior=[0.2, 0.5, 0.3])
    tensors = [model.grammar.tensor()] * 2
    return model, Enumeration(tensors, np.asarray(model.root_prior), 2, k)


@pytest.mark.parametrize("k", range(3))
def test_mutants_are_rejected(k: int) -> None:
    """The prior for the posterior, another filter level, symbols of one node from another draw."""
    model, law = drawn_model(k)
    leaves = np.array([[0, 3, 3, 1]])
    posterior = law.posterior(token_fields(leaves, None, 3))[0]
    good = model.sample_posterior(leaves, n_samples=N, seed=300, levels="all")
    levels = {d: np.asarray(x)[0] for d, x in good.levels.items()}
    assert p_value(law, posterior, levels) > ALPHA
    prior = model.sample(N, seed=300, levels="all")
    assert p_value(law, posterior, prior.levels) < ALPHA
    other = model.filtered((k + 1) % 3).sample_posterior(leaves, n_samples=N, levels="all")
    ends = {d: np.asarray(other.levels[d])[0] for d in (0, 2)}
    shared = {d: levels[d] for d in (0, 2)}
    assert ends_p_value(law, posterior, shared) > ALPHA
    assert ends_p_value(law, posterior, ends) < ALPHA
    torn = levels | {2: np.roll(levels[2], 1, axis=0)}
    assert p_value(law, posterior, torn) < ALPHA


def ends_p_value(law: Enumeration, posterior: np.ndarray, levels: dict[int, np.ndarray]) -> float:
    """As `p_value` of the root and the leaves, which exist at every filter level."""
    short = Enumeration.__new__(Enumeration)
    short.configurations = {d: law.configurations[d] for d in (0, law.depth)}
    short.alphabets = law.alphabets
    return p_value(short, posterior, levels)


@pytest.mark.parametrize("k", range(3))
def test_draws_are_independent(k: int) -> None:
    """Neighbouring draws, rows with the same evidence, two seeds, and the sampler of the same seed."""
    model, law = drawn_model(k)
    leaves = np.array([[0, 3, 3, 1]])
    half = law.posterior(token_fields(leaves, None, 3))[0]
    cells = np.zeros((3, 3))
    np.add.at(cells, (law.configurations[2][:, 1], law.configurations[2][:, 2]), half)
    single = (cells / cells.sum()).ravel()

    def pairs(first: Any, second: Any) -> float:
        a, b = (
            np.asarray(x)[..., 1].ravel() * 3 + np.asarray(x)[..., 2].ravel()
            for x in (first, second)
        )
        seen = np.bincount(a.astype(int) * 9 + b, minlength=81)
        return g_test(seen, np.outer(single, single).ravel())

    two = model.sample_posterior(np.repeat(leaves, 2, axis=0), n_samples=N, seed=301).leaves
    one, other = two[0], two[1]
    assert pairs(one[:-1:2], one[1::2]) > ALPHA
    assert pairs(one, other) > ALPHA
    assert pairs(one, model.sample_posterior(leaves, n_samples=N, seed=302).leaves[0]) > ALPHA
    far = model.sample_posterior(leaves, n_samples=N, seed=301, start=2**32).leaves[0]
    assert pairs(one, far) > ALPHA
    leaky = other.copy()
    leaky[::20] = one[::20]  # a twentieth is drawn twice
    assert pairs(one, leaky) < ALPHA
    # What `sample` draws from the same seed and rows says nothing of what is drawn here.
    free = model.sample(N, seed=301).leaves
    table = np.bincount(
        (one[:, 1].astype(int) * 3 + one[:, 2]) * 9 + free[:, 1].astype(int) * 3 + free[:, 2],
        minlength=81,
    ).reshape(9, 9)
    law_of_both = np.outer(single, table.sum(axis=0) / table.sum())
    assert g_test(table.ravel(), law_of_both.ravel()) > ALPHA


# ------------------------------------------------------------------ what a draw depends on


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_draw_is_a_function_of_its_index(k: int, soft: bool, backend: str) -> None:
    """Draw j of row i depends on its evidence, the seed and start + i * n_samples + j alone."""
    model = TreeModel(Grammar.published(4, 1.0, 0), 3, k)
    n, draws, start, seed = 7, 5, 2**32 - 11, 2**33 + 1
    rng = np.random.default_rng(3)
    leaves, mask = model.sample(n, seed=4).leaves, rng.random((n, 8)) < 0.5
    leaves[2] = [0, 1, 2, 3, 0, 1, 2, 3]  # impossible in all likelihood
    h = rng.normal(size=(n, 8, 4)) * 3
    h[1::3] *= 4000  # these leave the range of the type, and are drawn for apart
    given = {"log_fields": h} if soft else {"leaves": leaves, "mask": mask}
    options = {"seed": seed, "levels": "all", "backend": backend}

    def ask(rows: slice, draws: int, start: int, **more: Any) -> hfilter.Sample:
        part = {key: x[rows] for key, x in given.items()}
        return model.sample_posterior(**part, n_samples=draws, start=start, **options, **more)

    whole = ask(slice(None), draws, start)
    for d in model.existing_levels:
        for i in range(n):
            for j in range(0, draws, 2):
                alone = ask(slice(i, i + 1), 1, start + i * draws + j)
                np.testing.assert_array_equal(alone.levels[d][0, 0], whole.levels[d][i, j])
        for a, b in ((0, 3), (3, n)):  # the batch in parts
            part = ask(slice(a, b), draws, start + a * draws, num_threads=2)
            np.testing.assert_array_equal(part.levels[d], whole.levels[d][a:b])
    more = ask(slice(0, 1), 3 * draws, start)  # more draws of a row go on where fewer stop
    np.testing.assert_array_equal(more.leaves[0, :draws], whole.leaves[0])
    assert not np.array_equal(
        ask(slice(0, 1), 40, start).leaves, ask(slice(0, 1), 40, start + 1).leaves
    )


def test_threads_and_blocks_of_many_draws() -> None:
    """Work enough that threads and blocks start; the end of the stream is its last draw."""
    model = TreeModel(Grammar.published(4, 1.0, 0), 4, 2)
    leaves = model.sample(3000, seed=5).leaves
    mask = np.random.default_rng(5).random(leaves.shape) < 0.5
    single = model.sample_posterior(leaves, mask, 4, num_threads=1)
    for threads in (2, 3):
        shared = model.sample_posterior(leaves, mask, 4, num_threads=threads)
        np.testing.assert_array_equal(shared.leaves, single.leaves)
    last = model.sample_posterior(leaves[:2], mask[:2], 4, start=2**64 - 8)
    alone = model.sample_posterior(leaves[1:2], mask[1:2], start=2**64 - 1)
    np.testing.assert_array_equal(alone.leaves[0, 0], last.leaves[1, 3])
