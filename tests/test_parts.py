"""Trees too large for a cache are drawn and passed subtree by subtree: as trees in one piece would be.

Numba draws and passes every tree whole, level by level, in a text of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

import hfilter
from hfilter import Grammar, TreeModel, runners

COMPILED = tuple(
    name for name in ("avx512", "avx2", "portable")
    if name in hfilter.backends() and hfilter.backends()[name].available
)  # fmt: skip
pytestmark = [
    pytest.mark.skipif(not COMPILED, reason="no compiled backend"),
    pytest.mark.skipif(
        not hfilter.backends()["numba"].available,
        reason="numba, which judges here, is not installed",
    ),
]
# Of four megabytes and more in the narrowest packs: four rows of single precision.
MODELS = {
    "all pairs": lambda: TreeModel(Grammar.published(4, 1.0, 0), 15),
    "filtered": lambda: TreeModel(Grammar.published(4, 1.0, 0), 15, 3),
    "filtered at half": lambda: TreeModel(Grammar.published(4, 1.0, 0), 15, 8),
    "forbidden pairs": lambda: TreeModel(Grammar.published(6, 1.0, 0, rules_per_symbol=4), 14),
    "rules of 1e-14": lambda: TreeModel(Grammar.dense(4, 8.0, 0), 15, 1),
    "few rules": lambda: TreeModel(Grammar.log_normal(200, 1.0, 1, rules_per_symbol=2), 10, 1),
    "three children": lambda: TreeModel(Grammar.random_hierarchy(4, 4, 9, arity=3, seed=0), 9, 2),
    "two leaves a part": lambda: TreeModel(Grammar.log_normal(3000, 1.0, 1, rules_per_symbol=2), 6),
}
ROWS = 5  # more than the narrowest packs, less than the widest


@cache
def model(name: str) -> TreeModel:
    return MODELS[name]()


@cache
def tokens(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of the model; one of chance, one with some of it; a third hidden, in one row all."""
    m = model(name)
    rng = np.random.default_rng(1)
    leaves = m.sample(ROWS, seed=1).leaves
    leaves[1, ::7] = rng.integers(m.vocab_size, size=leaves[1, ::7].shape)
    leaves[4] = rng.integers(m.vocab_size, size=m.n_leaves)
    hidden = rng.random(leaves.shape) < 0.3
    hidden[2] = True
    return leaves, hidden


@cache
def fields(name: str, strength: float) -> np.ndarray:
    m = model(name)
    rng = np.random.default_rng(2)
    h = rng.standard_normal((ROWS, m.n_leaves, m.vocab_size), dtype=np.float32)
    own = tokens(name)[0][..., None].astype(np.intp)
    np.put_along_axis(h, own, np.take_along_axis(h, own, 2) + 6, 2)
    h *= strength / 6
    h[3] = 0
    h[3, ::5, 0] = -np.inf
    return h


# Parts have 512 leaves at most: trees of as many and of more; filter levels above, at and below where they begin.
DRAWN = {
    "512 leaves": (lambda: Grammar.published(4, 1.0, 0), 9, (0, 5, 9)),
    "two parts": (lambda: Grammar.published(4, 1.0, 0), 10, (0, 1, 2, 9, 10)),
    "many parts": (lambda: Grammar.published(6, 1.0, 0, rules_per_symbol=4), 14, (0, 3, 5, 6, 14)),
    "three children": (lambda: Grammar.random_hierarchy(4, 4, 8, arity=3, seed=0), 8, (0, 2, 3, 8)),
    "four": (lambda: Grammar.log_normal(8, 1.0, 1, rules_per_symbol=4, arity=4), 6, (0, 1, 2, 6)),
    "five": (lambda: Grammar.log_normal(3, 1.0, 1, arity=5), 5, (0, 1, 4)),
    "eight": (lambda: Grammar.log_normal(5, 1.0, 1, rules_per_symbol=7, arity=8), 4, (0, 1, 3, 4)),
    "two bytes a token": (lambda: Grammar.log_normal(300, 1.0, 1, rules_per_symbol=2), 11, (0, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_trees_in_parts_are_those_of_the_stream(name: str) -> None:
    """Every level, leaves alone, given roots; rows around the packs, of few rows and of many."""
    make, depth, filter_levels = DRAWN[name]
    for k in filter_levels:
        m = TreeModel(make(), depth, k)
        roots = np.arange(37) % m.alphabets[0]
        # A range of rows that crosses a power of two of the stream's row index.
        how = {"seed": 5, "start": (1 << 32) - 20}
        want = m.sample(37, levels="all", backend="numba", **how)
        given = m.sample(37, roots=roots, backend="numba", **how).leaves
        for backend in COMPILED:
            got = m.sample(37, levels="all", backend=backend, **how)
            for d in m.existing_levels:
                np.testing.assert_array_equal(got.levels[d], want.levels[d], err_msg=f"{k} {d}")
            for n in (1, 16, 33):
                alone = m.sample(n, backend=backend, **how).leaves
                np.testing.assert_array_equal(alone, want.leaves[:n])
            from_roots = m.sample(37, roots=roots, backend=backend, **how).leaves
            np.testing.assert_array_equal(from_roots, given)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_posteriors_of_tokens_are_those_of_a_tree_in_one_piece(name: str, dtype: str) -> None:
    """To the last bit: every level, the root, and what single levels alone ask for."""
    m, (leaves, hidden) = model(name), tokens(name)
    want = m.infer(leaves, hidden, levels="all", dtype=dtype, backend="numba")
    without = m.leave_one_out(leaves, hidden, dtype=dtype, backend="numba")
    for backend in COMPILED:
        how = {"dtype": dtype, "backend": backend}
        got = m.infer(leaves, hidden, levels="all", **how)
        np.testing.assert_array_equal(got.root, want.root)
        np.testing.assert_allclose(got.log_evidence, want.log_evidence, rtol=1e-14, atol=0)
        for d in m.existing_levels:
            np.testing.assert_array_equal(got.level(d), want.level(d), err_msg=f"level {d}")
            alone = m.infer(leaves, hidden, levels=[d], **how).level(d)
            np.testing.assert_array_equal(alone, want.level(d), err_msg=f"level {d} alone")
        np.testing.assert_array_equal(m.leave_one_out(leaves, hidden, **how), without)


@pytest.mark.parametrize("strength", [3, 40, 150])
@pytest.mark.parametrize("name", MODELS)
def test_posteriors_of_fields_are_those_of_a_tree_in_one_piece(name: str, strength: float) -> None:
    m, h = model(name), fields(name, strength)
    exact = m.infer(log_fields=h, levels="all", dtype="float64", backend="numba")
    without = m.leave_one_out(log_fields=h, dtype="float64", backend="numba")
    for backend in COMPILED:
        for dtype, atol, rtol in (("float32", 4e-4, 1e-6), ("float64", 1e-11, 1e-13)):
            how = {"log_fields": h, "dtype": dtype, "backend": backend}
            got = m.infer(levels="all", **how)
            np.testing.assert_allclose(got.log_evidence, exact.log_evidence, rtol=rtol, atol=atol)
            np.testing.assert_allclose(got.root, exact.root, rtol=0, atol=atol)
            for d in m.existing_levels:
                np.testing.assert_allclose(got.level(d), exact.level(d), rtol=0, atol=atol)
            np.testing.assert_allclose(m.infer(**how).leaves, exact.leaves, rtol=0, atol=atol)
            np.testing.assert_allclose(m.leave_one_out(**how), without, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["all pairs", "filtered", "few rules"])
def test_a_row_does_not_know_its_neighbours(name: str) -> None:
    """Strong evidence in one row changes the way its pack takes, not the answers of the others."""
    m, h = model(name), fields(name, 3)
    strong = h.copy()
    strong[1] *= 60
    others = np.arange(ROWS) != 1
    for backend in COMPILED:
        weak = m.infer(log_fields=h, backend=backend)
        beside = m.infer(log_fields=strong, backend=backend)
        np.testing.assert_array_equal(beside.leaves[others], weak.leaves[others])
        np.testing.assert_array_equal(beside.root[others], weak.root[others])
        np.testing.assert_array_equal(beside.log_evidence[others], weak.log_evidence[others])


def test_one_deep_tree() -> None:
    """A single row goes one lane at a time, in parts from 2^17 leaves on."""
    m = TreeModel(Grammar.published(4, 1.0, 0), 17)
    leaves = m.sample(1, seed=3).leaves
    hidden = np.random.default_rng(3).random(leaves.shape) < 0.4
    want = m.infer(leaves, hidden, levels="all", backend="numba")
    for backend in COMPILED:
        got = m.infer(leaves, hidden, levels="all", backend=backend)
        for d in m.existing_levels:
            np.testing.assert_array_equal(got.level(d), want.level(d))
        np.testing.assert_allclose(got.log_evidence, want.log_evidence, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Grammar.broadcast(4, 1 - 1e-5), id="none"),
        pytest.param(lambda: Grammar.broadcast(4, 1 - 1e-6), id="most"),
        pytest.param(lambda: Grammar.log_normal(4, 3.0, 0), id="some"),
        pytest.param(lambda: Grammar.log_normal(4, 6.0, 0), id="all"),
    ],
)
def test_the_same_rows_leave_the_range(
    make: Callable[[], Grammar], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cancels in a part counts once for each level, however many parts there are."""
    m = TreeModel(make(), 15)
    rng = np.random.default_rng(4)
    leaves = rng.integers(4, size=(ROWS, m.n_leaves)).astype(m.token_dtype)
    leaves[:2] = m.sample(2, seed=0).leaves
    leaves[1, ::4096] ^= 1
    leaves[2:4] = 0
    leaves[3, 5] = (
        1  # one contradiction: on the way up not enough, with that on the way down too much
    )
    for h in range(1, 9):  # one contradiction on each of the lowest levels, all in one part
        leaves[2, 3 << (h - 1) : 2 << h] = 1
    hidden = rng.random(leaves.shape) < 0.3
    hidden[2:4] = False
    seen: list[list[int]] = []
    for kind in (runners.TextBackend, runners.CompiledBackend):

        def spy(self, tree, evidence, dtype, out, status, threads, infer=kind.infer):  # type: ignore[no-untyped-def]
            infer(self, tree, evidence, dtype, out, status, threads)
            seen.append(status.tolist())

        monkeypatch.setattr(kind, "infer", spy)
    want = m.infer(leaves, hidden, backend="numba")
    m.root_posterior(leaves, hidden, backend="numba")  # what cancels upward alone
    whole = seen.copy()
    for backend in COMPILED:
        seen.clear()
        got = m.infer(leaves, hidden, backend=backend)
        m.root_posterior(leaves, hidden, backend=backend)
        assert seen == whole
        np.testing.assert_array_equal(got.leaves, want.leaves)
