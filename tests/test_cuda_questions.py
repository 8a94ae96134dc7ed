"""Contexts, rule counts and trees by the CUDA kernels, executed on the host as in `test_cuda_host.py`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import questions
import test_agreement
import test_truth_contexts
from cases import PAIRS, Problem, problem
from test_cuda_host import FUSED_ULPS
from test_truth import DTYPES, EPS64, allowance, compare

from hfilter import Grammar, TreeModel, cuda

_cuda = pytest.importorskip("hfilter._cuda", reason="module _cuda was not built")

BACKEND = "cuda-host"
GENERAL, GLOBAL, FEW_BLOCKS = _cuda.FORCE_GENERAL, _cuda.FORCE_GLOBAL, _cuda.FORCE_FEW_BLOCKS
RESCUE, BACKWARDS = _cuda.FORCE_DOUBLE_RESCUE, _cuda.FORCE_BACKWARDS
ROADS = {
    "as chosen": 0,
    "two blocks, global memory": GLOBAL | FEW_BLOCKS,
    "backwards": BACKWARDS,
    "global memory, backwards": GLOBAL | BACKWARDS | GENERAL,
}
SIZES = (0, 1, 2, 31, 32, 33, 64, 65, 127, 128, 129)


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way through the kernels in turn, whichever the plan would choose."""
    monkeypatch.setattr(cuda, "FORCE", ROADS[request.param])
    return str(request.param)


def asked(p: Problem) -> np.ndarray:
    """Fields of one row that is soft, one with zeros, one impossible perhaps, and contradictions."""
    shape = (1, p.law.n_leaves, p.q)
    rng = np.random.default_rng(p.seed + 3)
    zeros = rng.normal(size=shape)
    zeros[rng.random(shape) < 0.4] = -np.inf
    hard = [
        rng.normal(size=shape) - scale * rng.integers(3, size=shape) for scale in (40, 400, 1e5)
    ]
    return np.concatenate([rng.normal(size=shape), zeros, *hard])


@cache
def enumerated(name: str, k: int) -> dict[str, np.ndarray]:
    """Exact answers of a problem to `asked`."""
    p = problem(name, k)
    h = asked(p)
    found = {"next": questions.context_laws(p.law, h, questions.left_of(p.law))}
    for w in range(p.law.depth + 1):
        around = questions.window_of(p.law, w)
        found[f"window {w}"] = questions.context_laws(p.law, h, around)
    for d, uses in enumerate(questions.counts_below(p.law, p.tensors, h), start=k):
        found[f"uses {d}"] = uses
    found["best"] = questions.best_weights(p.law, h)
    return found


def judge(name: str, k: int, dtype: str, backend: str = BACKEND) -> None:
    """Every question about `asked` against enumeration."""
    p, want = problem(name, k), enumerated(name, k)
    model, h = p.model, asked(p)
    options: dict[str, Any] = {"log_fields": h, "dtype": dtype, "backend": backend}
    atol = allowance(dtype, h)
    compare(model.next_token(**options), want["next"], atol, "next_token")
    for w in range(model.depth + 1):
        got = model.windowed(height=model.depth - w, **options)
        compare(got, want[f"window {w}"], atol, f"window {w}")

    counts = model.expected_rule_counts(per_sequence=True, **options)
    first = np.cumsum([0, *(t.n_rules for t in model.grammar.tables)])
    if k == 0:
        uses = np.zeros(counts.shape)
        for d in range(model.depth):
            at = first[0 if model.grammar.is_shared else d]
            uses[:, at : at + want[f"uses {d}"].shape[1]] += want[f"uses {d}"]
        compare(counts, uses, p.law.n_leaves * atol, "counts")
    else:  # above the filter level from pairs with the root, as the CPU's kernels give them
        exact = model.expected_rule_counts(log_fields=h, dtype="float64", per_sequence=True)
        compare(counts, exact, 4 * p.law.n_leaves * atol, "counts")

    possible, best = np.isfinite(want["best"]), want["best"]
    tree = model.most_probable(**options)
    assert (np.isneginf(tree.log_prob) == ~possible).all()
    levels = {d: x.reshape(len(h), -1) for d, x in tree.levels.items()}
    unit = 2.0**-23 if dtype == "float32" else EPS64
    room = 1e-12 + 8 * unit * p.law.n_leaves + 8 * EPS64 * np.abs(best[possible])
    room = room + EPS64 * 1e5 * 64 * p.law.n_leaves
    for weight in (tree.log_prob, questions.tree_weights(p.law, h, levels)):
        assert (np.abs(weight[possible] - best[possible]) <= room).all()
    drawn = model.sample_posterior(n_samples=11, seed=4, levels="all", **options)
    same = model.sample_posterior(
        log_fields=h, n_samples=11, seed=4, levels="all", dtype=dtype, backend="portable"
    )
    for d in model.existing_levels:
        assert all(
            (x[~possible] == model.alphabets[d]).all() for x in (tree.levels[d], drawn.levels[d])
        )
        # An exponential's last place may turn a draw, once in 10^5; a row may climb the ladder elsewhere.
        assert (drawn.levels[d] != same.levels[d]).mean() < 0.05, d


SMALL = [(name, k) for name, k in PAIRS if name not in ("dense-q2-l3", "levels-4-2-3-2")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "k"), SMALL, ids=[f"{name}-k{k}" for name, k in SMALL])
def test_enumeration(name: str, k: int, dtype: str) -> None:
    judge(name, k, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [2, 3])
def test_windows_whose_classes_disagree(k: int, dtype: str) -> None:
    """A window's root that is all but excluded, and asked for by its leaves, hundreds of orders below."""
    test_truth_contexts.test_windows_whose_classes_disagree(k, dtype, BACKEND)


def judge_single_fields(name: str, backend: str = BACKEND) -> None:
    """Next-token from float32 fields, which the resident kernel takes: contradictions are handed on."""
    p = problem(name, 0)
    for kind in ("soft", "zeros", "spread-50", "spread-300"):
        h = p.fields(kind).log_fields
        assert h is not None
        single = h.astype(np.float32)
        want = questions.context_laws(p.law, single, questions.left_of(p.law))
        got = p.model.next_token(log_fields=single, backend=backend)
        compare(got, want, allowance("float32", single), kind)


@pytest.mark.parametrize("name", [name for name, k in SMALL if k == 0])
def test_single_fields(name: str, road: str) -> None:
    judge_single_fields(name)


@pytest.mark.parametrize(("name", "k"), SMALL[::2], ids=[f"{n}-k{k}" for n, k in SMALL[::2]])
def test_every_rung_of_the_ladder(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that need no rescue are rescued to the same answer: the wider numbers are right everywhere."""
    monkeypatch.setattr(cuda, "FORCE", RESCUE | BACKWARDS)
    judge(name, k, DTYPES[k % 2])


def answers(model: TreeModel, n: int, dtype: str, backend: str) -> list[np.ndarray]:
    """Every question about the first n of some masked tokens."""
    leaves = model.sample(max(SIZES), seed=2).leaves
    mask = np.random.default_rng(2).random(leaves.shape) < 0.4
    leaves = leaves.copy()
    leaves[3::5] = leaves[3::5, ::-1]  # some rows are impossible
    options: dict[str, Any] = {"dtype": dtype, "backend": backend}
    x = (leaves[:n], mask[:n])
    found = [model.windowed(x[0], h, x[1], **options) for h in range(model.depth)]
    found += [model.expected_rule_counts(*x, per_sequence=True, **options)]
    best = model.most_probable(*x, **options)
    drawn = model.sample_posterior(
        *x, 9, 2**63 + 5, start=2**64 - 9 * max(SIZES), levels="all", **options
    )
    for tree in (best, drawn):
        found += [tree.levels[d] for d in model.existing_levels]
    return [*found, model.next_token(*x, **options), best.log_prob]


@cache
def reference(name: str, dtype: str) -> list[np.ndarray]:
    return answers(test_agreement.build(name), max(SIZES), dtype, "portable")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", test_agreement.MODELS)
def test_bit_for_bit_the_cpus(name: str, dtype: str, road: str) -> None:
    """Tokens: the same bits around the boundaries of warps and blocks, on every road.

    But for next-token where a kernel of known shape fuses products with sums.
    """
    want = reference(name, dtype)
    fused = FUSED_ULPS if dtype == "float32" and not cuda.FORCE & GENERAL else 0
    for n in SIZES if road == "as chosen" else (33, 129):
        got = answers(test_agreement.build(name), n, dtype, BACKEND)
        for i, (x, y) in enumerate(zip(got[:-2], want[:-2], strict=True)):
            np.testing.assert_array_equal(x, y[:n], err_msg=f"answer {i}, n = {n}")
        assert test_agreement.ulps_apart(got[-2], want[-2][:n]) <= fused, n
        apart = test_agreement.ulps_apart(got[-1], want[-1][:n])
        assert apart <= test_agreement.ULPS["log_evidence"]


@pytest.mark.parametrize("force", [0, BACKWARDS, RESCUE])
@pytest.mark.parametrize("k", [0, 4, 9, 10])
def test_deep_trees(k: int, force: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row to a block; counts of a rule shared out over threads, stars of a thousand nodes in groups."""
    monkeypatch.setattr(cuda, "FORCE", force)
    model = TreeModel(Grammar.dense(4, 0.5, 3), 10, k)
    leaves = model.sample(2, seed=12).leaves
    mask = np.random.default_rng(12).random(leaves.shape) < 0.5
    dtype, atol = ("float32", 1e-4) if force == 0 else ("float64", 1e-11)
    double: dict[str, Any] = {"dtype": "float64"}
    options: dict[str, Any] = {"dtype": dtype, "backend": BACKEND}
    want, got = (model.next_token(leaves, mask, **x) for x in (double, options))
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    for height in (0, 1, 3, 7, 10):
        want, got = (model.windowed(leaves, height, mask, **x) for x in (double, options))
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    want, got = (model.expected_rule_counts(leaves, mask, **x) for x in (double, options))
    np.testing.assert_allclose(got, want, rtol=10 * atol)
    want, got = (model.most_probable(leaves, mask, **x) for x in (double, options))
    np.testing.assert_allclose(got.log_prob, want.log_prob, rtol=1e-6)
    want, got = (model.sample_posterior(leaves, mask, 3, 1, **x) for x in (double, options))
    assert (got.leaves != want.leaves).mean() <= (0.01 if dtype == "float32" else 0)


def test_the_answer_does_not_depend_on_parts(road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches of a few rows each: rows and draws keep their place in the stream."""
    name = "q4-s2-l4-k2"
    monkeypatch.setattr(cuda, "_PART", 16)
    got = answers(test_agreement.build(name), 65, "float32", BACKEND)
    for x, y in zip(got[:-2], reference(name, "float32")[:-2], strict=True):
        np.testing.assert_array_equal(x, y[:65])
