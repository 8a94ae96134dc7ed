"""The CUDA kernels executed on the host: every block, phase and thread, through the launches of a device.

What this court cannot see is what a device alone can do wrong: races, and instructions that round
differently. `test_cuda.py` asks for that where a GPU is.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import test_agreement
import test_truth
from cases import FIELD_KINDS, PAIR_IDS, PAIRS, problem

import hfilter
from hfilter import Grammar, TreeModel, cuda

_cuda = pytest.importorskip("hfilter._cuda", reason="module _cuda was not built")

BACKEND = "cuda-host"
GENERAL, GLOBAL, FEW_BLOCKS = _cuda.FORCE_GENERAL, _cuda.FORCE_GLOBAL, _cuda.FORCE_FEW_BLOCKS
RESCUE, BACKWARDS = _cuda.FORCE_DOUBLE_RESCUE, _cuda.FORCE_BACKWARDS
ROADS = {
    "as chosen": 0,
    "general": GENERAL,
    "global memory": GENERAL | GLOBAL,
    "two blocks": FEW_BLOCKS,
    "global memory, two blocks": GLOBAL | FEW_BLOCKS,
    # Threads last to first: where one phase needs what another thread does in it, the answer changes.
    "backwards": BACKWARDS,
    "general, backwards": GENERAL | BACKWARDS,
}
SIZES = (0, 1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way through the kernels in turn, whichever the plan would choose."""
    monkeypatch.setattr(cuda, "FORCE", ROADS[request.param])
    return str(request.param)


@pytest.fixture
def rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is done again in double precision, and again in numbers of unbounded range."""
    monkeypatch.setattr(cuda, "FORCE", RESCUE | BACKWARDS)


# ------------------------------------------------------------------ sampling


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_stream(name: str, k: int, road: str) -> None:
    test_agreement.test_stream(name, k, BACKEND)


@pytest.mark.parametrize("name", test_agreement.MODELS)
def test_sample_sizes(name: str, road: str) -> None:
    """n around the boundaries of warps and blocks: always the first n rows of one stream."""
    model = test_agreement.build(name)
    want = test_agreement.expected_sample(model, np.arange(max(SIZES)), 3)
    for n in SIZES:
        sample = model.sample(n, seed=3, levels=True, backend=BACKEND)
        for d in model.existing_levels:
            np.testing.assert_array_equal(sample.levels[d], want[d][:n])


@pytest.mark.parametrize("start", [1, 7, 2**32 - 5, 2**32, 2**63])
@pytest.mark.parametrize("name", ["q4-s2-l3-k0", "q4-s2-l4-k2", "q2-s3-l2-k1"])
def test_any_range_of_the_stream(name: str, start: int, road: str) -> None:
    test_agreement.test_any_range_of_the_stream(name, start, BACKEND)


@pytest.mark.parametrize("seed", [0, 2**31, 2**32, 2**63 + 12345, 2**64 - 1])
def test_every_bit_of_the_seed_counts(seed: int) -> None:
    test_agreement.test_every_bit_of_the_seed_counts("q4-s2-l4-k2", seed, BACKEND)


@pytest.mark.parametrize("name", test_agreement.MODELS)
def test_given_roots(name: str, road: str) -> None:
    test_agreement.test_given_roots(name, BACKEND)


@pytest.mark.parametrize("k", [0, 2, 5, 9])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 9])
def test_every_depth(depth: int, k: int, road: str) -> None:
    """Runs of a row's leaves by themselves: each draws the path above it again, to the same symbols."""
    if k > depth:
        pytest.skip("no such filter level")
    model = TreeModel(Grammar.published(4, 1.0, 0), depth, k)
    want = model.sample(70, seed=6, levels=True)
    got = model.sample(70, seed=6, levels=True, backend=BACKEND)
    for d in model.existing_levels:
        np.testing.assert_array_equal(got.levels[d], want.levels[d])


# ------------------------------------------------------------------ inference


@pytest.mark.parametrize("dtype", test_truth.DTYPES)
@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_tokens(name: str, k: int, dtype: str) -> None:
    test_truth.test_tokens(name, k, dtype, BACKEND)
    test_truth.test_a_zero_stays_a_zero(name, k, dtype, BACKEND)
    test_truth.test_three_ways_to_hide_a_leaf(name, k, dtype, BACKEND)


@pytest.mark.parametrize("dtype", test_truth.DTYPES)
@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_fields(name: str, k: int, dtype: str) -> None:
    test_truth.test_fields(name, k, dtype, BACKEND)


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_every_rung_of_the_ladder(name: str, k: int, rescued: None) -> None:
    """Rows that need no rescue are rescued to the same answer: the wider numbers are right everywhere."""
    test_truth.test_tokens(name, k, "float64", BACKEND)
    test_truth.test_a_zero_stays_a_zero(name, k, "float64", BACKEND)
    for kind in FIELD_KINDS:
        e = problem(name, k).fields(kind)
        atol = test_truth.allowance("float64", e.log_fields)
        for dtype in test_truth.DTYPES:
            tolerance = max(atol, test_truth.allowance(dtype, e.log_fields))
            test_truth.judge(
                problem(name, k).model, e.answer, dtype, tolerance, kind, log_fields=e.log_fields, backend=BACKEND
            )  # fmt: skip


@pytest.mark.parametrize("kind", FIELD_KINDS)
@pytest.mark.parametrize("name", [name for name, k in PAIRS if k == 0])
def test_float32_fields(name: str, kind: str) -> None:
    """What the resident kernel takes, contradictions that it must hand on included."""
    p = problem(name, 0)
    h = p.fields(kind).log_fields
    assert h is not None
    single = h.astype(np.float32)
    answer = p.law.infer(single)
    for dtype in test_truth.DTYPES:
        atol = test_truth.allowance(dtype, single)
        test_truth.judge(p.model, answer, dtype, atol, kind, log_fields=single, backend=BACKEND)


@pytest.mark.parametrize("dtype", test_truth.DTYPES)
@pytest.mark.parametrize("name", test_agreement.MODELS)
def test_token_posteriors(name: str, dtype: str, road: str) -> None:
    """Bit for bit the CPU's, except where the kernels of known shape fuse a product with a sum."""
    model = test_agreement.build(name)
    want, want_evidence = reference(name, dtype, False)
    allowed = FUSED_ULPS if road not in GENERAL_ROADS and dtype == "float32" else 0
    for n in (0, 1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129):
        got, evidence = test_agreement.answers(name, dtype, False, n, BACKEND)
        for key, value in got.items():
            assert test_agreement.ulps_apart(value, want[key][:n]) <= allowed, f"{key}, n = {n}"
        apart = test_agreement.ulps_apart(evidence.astype(dtype), want_evidence[:n].astype(dtype))
        assert apart <= allowed + test_agreement.ULPS["log_evidence"], model


# On other roads float32 may be served by the kernels of known shape.
GENERAL_ROADS = ("general", "global memory", "general, backwards")
FUSED_ULPS = 64


@cache
def reference(name: str, dtype: str, soft: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The CPU's answers; of fields those of the Python text, which leaves messages where the device's does."""
    python = "numba" if hfilter.backends()["numba"].available else "python"
    backend = python if soft else "cpu"
    return test_agreement.answers(name, dtype, soft, test_agreement.LARGEST, backend)


@pytest.mark.parametrize("dtype", test_truth.DTYPES)
@pytest.mark.parametrize("name", test_agreement.MODELS)
def test_field_posteriors(name: str, dtype: str, road: str) -> None:
    want, want_evidence = reference(name, dtype, True)
    for n in (0, 1, 31, 33, 64, 129):
        got, evidence = test_agreement.answers(name, dtype, True, n, BACKEND)
        for key, value in got.items():
            assert test_agreement.ulps_apart(value, want[key][:n]) <= test_agreement.ULPS["fields"]
        apart = test_agreement.ulps_apart(evidence.astype(dtype), want_evidence[:n].astype(dtype))
        assert apart <= test_agreement.ULPS["fields"]


def test_hard_rows_among_easy_ones(road: str) -> None:
    test_agreement.test_hard_rows_among_easy_ones(BACKEND)


def test_impossible_evidence_spoils_its_own_row_only(road: str) -> None:
    test_truth.test_impossible_evidence_spoils_its_own_row_only(BACKEND)


def test_leave_one_out_survives_its_own_impossible_leaf(road: str) -> None:
    test_truth.test_leave_one_out_survives_its_own_impossible_leaf(BACKEND)


@pytest.mark.parametrize("force", [0, BACKWARDS])
@pytest.mark.parametrize("k", [0, 4, 9, 10])
def test_deep_trees(k: int, force: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row to a block, scratch in global memory; at k = 10 a star of a thousand nodes in many runs."""
    monkeypatch.setattr(cuda, "FORCE", force)
    model = TreeModel(Grammar.dense(4, 0.5, 3), 10, k)
    leaves = model.sample(3, seed=12).leaves
    mask = np.random.default_rng(12).random(leaves.shape) < 0.5
    for dtype in test_truth.DTYPES:
        want = model.infer(leaves, mask, dtype="float64", levels="all")
        got = model.infer(leaves, mask, dtype=dtype, levels="all", backend=BACKEND)
        atol = 1e-4 if dtype == "float32" else 1e-11
        for d in model.existing_levels:
            np.testing.assert_allclose(got.level(d), want.level(d), rtol=0, atol=atol)
        np.testing.assert_allclose(
            got.log_evidence, want.log_evidence, rtol=1e-5 if atol > 1e-9 else 1e-12
        )


def test_the_answer_does_not_depend_on_the_batch(road: str) -> None:
    """The geometry of a launch is the model's, not the batch's."""
    model = test_agreement.build("q4-s2-l4-k2")
    h = np.random.default_rng(0).normal(size=(150, model.n_leaves, 4)).astype(np.float32)
    whole = model.infer(log_fields=h, backend=BACKEND)
    for rows in (slice(0, 1), slice(31, 33), slice(60, 150)):
        part = model.infer(log_fields=h[rows], backend=BACKEND)
        np.testing.assert_array_equal(part.leaves, whole.leaves[rows])
        np.testing.assert_array_equal(part.log_evidence, whole.log_evidence[rows])


def test_the_host_loop_is_not_offered() -> None:
    assert BACKEND not in hfilter.backends()
