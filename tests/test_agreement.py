"""Agreement: every backend draws the same samples and gives the same posteriors, bit for bit."""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import cache

import numpy as np
import oracle
import pytest
from cases import PAIR_IDS, PAIRS, problem

import hfilter
from hfilter import Grammar, TreeModel

# Units in the last place by which backends may differ where an exponential or a logarithm of the
# machine's mathematics library enters.  Soft fields, in ulps of the message type: the exponentials
# differ by one or two, but a row at the edge of the range may be computed again in double precision
# by one backend and not by the other, and a field of -80 has itself ulps that make 40 of its
# exponential.  log_evidence of tokens, in ulps of float64.  Beliefs of tokens: none at all.
COMPILED = ("avx512", "avx2", "portable")
ULPS = {"fields": 256, "log_evidence": 4}

SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129)
FEW_SIZES = (0, 1, 5, 17)  # for the plain Python text, one row at a time in any case
LARGEST = max(SIZES)

# (grammar, depth, filter level): q, arity, depth and k all vary.
MODELS = {
    "q4-s2-l3-k0": (lambda: Grammar.published(4, 1.0, 0), 3, 0),
    "q4-s2-l4-k2": (lambda: Grammar.published(4, 1.0, 0), 4, 2),
    "q6-s2-l3-k1": (lambda: Grammar.published(6, 1.0, 0, rules_per_symbol=4), 3, 1),
    "q3-s2-l3-k3": (lambda: Grammar.dense(3, 1.0, 1), 3, 3),
    "q2-s3-l2-k0": (lambda: Grammar.log_normal(2, 1.0, 2, arity=3), 2, 0),
    "q2-s3-l2-k1": (lambda: Grammar.dense(2, 1.0, 3, arity=3), 2, 1),
    "levels-k2": (
        lambda: Grammar.random_hierarchy(
            vocab_size=5, rules_per_symbol=3, depth=3, n_classes=7, seed=4
        ),
        3,
        2,
    ),
    "q5-s2-l2-k0": (lambda: Grammar.dense(5, 1.0, 5), 2, 0),
    "q300-k0": (
        lambda: Grammar.random_hierarchy(
            vocab_size=300, rules_per_symbol=2, depth=1, n_classes=3, seed=6
        ),
        1,
        0,
    ),
}


@cache
def build(name: str) -> TreeModel:
    make, depth, k = MODELS[name]
    return TreeModel(make(), depth, k)


def expected_sample(
    model: TreeModel, rows: np.ndarray, seed: int, roots: np.ndarray | None = None
) -> dict[int, np.ndarray]:
    tensors = [model.grammar.tensor(d) for d in range(model.depth)]
    prior = np.asarray(model.root_prior)
    return oracle.sample_stream(tensors, prior, model.depth, model.filter_level, rows, seed, roots)


def assert_sample(sample: hfilter.Sample, want: dict[int, np.ndarray], depth: int) -> None:
    np.testing.assert_array_equal(sample.roots, want[0][:, 0])
    np.testing.assert_array_equal(sample.leaves, want[depth])


# ------------------------------------------------------------------ sampling


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_stream(name: str, k: int, backend: str) -> None:
    """All models of the court of truth against the documented stream, every level."""
    p = problem(name, k)
    want = oracle.sample_stream(p.tensors, p.prior, p.law.depth, k, np.arange(40), 11)
    sample = p.model.sample(40, seed=11, levels=True, backend=backend)
    assert_sample(sample, want, p.law.depth)
    for d in p.model.existing_levels:
        np.testing.assert_array_equal(sample.levels[d], want[d])
        assert sample.levels[d].shape == (40, p.law.arity**d)


@pytest.mark.parametrize("name", MODELS)
def test_sample_sizes(name: str, backend: str) -> None:
    """n around every lane boundary: always the first n rows of one stream."""
    model = build(name)
    want = expected_sample(model, np.arange(LARGEST), 3)
    for n in FEW_SIZES if backend == "python" else SIZES:
        sample = model.sample(n, seed=3, backend=backend)
        assert sample.leaves.shape == (n, model.n_leaves)
        assert sample.leaves.dtype == model.token_dtype
        assert_sample(sample, {d: x[:n] for d, x in want.items()}, model.depth)


@pytest.mark.parametrize("start", [1, 7, 16, 10**6, 2**32 - 5, 2**32, 2**40 + 3, 2**63])
@pytest.mark.parametrize("name", ["q4-s2-l3-k0", "q4-s2-l4-k2", "q2-s3-l2-k1"])
def test_any_range_of_the_stream(name: str, start: int, backend: str) -> None:
    model = build(name)
    rows = np.arange(19, dtype=np.uint64) + np.uint64(start)
    sample = model.sample(19, seed=5, start=start, backend=backend)
    assert_sample(sample, expected_sample(model, rows, 5), model.depth)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 + 12345, 2**64 - 1])
@pytest.mark.parametrize("name", ["q4-s2-l4-k2"])
def test_every_bit_of_the_seed_counts(name: str, seed: int, backend: str) -> None:
    model = build(name)
    sample = model.sample(33, seed=seed, backend=backend)
    assert_sample(sample, expected_sample(model, np.arange(33), seed), model.depth)


@pytest.mark.parametrize("name", MODELS)
def test_given_roots(name: str, backend: str) -> None:
    """Given roots replace the first draw and leave every other draw in its place."""
    model = build(name)
    roots = np.arange(37) % model.n_classes
    want = expected_sample(model, np.arange(37), 8, roots)
    sample = model.sample(37, seed=8, roots=roots, backend=backend)
    assert_sample(sample, want, model.depth)
    free = model.sample(37, seed=8, backend=backend)
    again = model.sample(37, seed=8, roots=free.roots, backend=backend)
    np.testing.assert_array_equal(again.leaves, free.leaves)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["q4-s2-l4-k2", "q2-s3-l2-k0"])
def test_sampling_threads_and_splits(name: str, threads: int, backend: str) -> None:
    model = build(name)
    n = 100 if backend == "python" else 50_003
    whole = model.sample(n, seed=9, backend=backend, num_threads=threads)
    single = model.sample(n, seed=9, backend=backend, num_threads=1)
    np.testing.assert_array_equal(whole.leaves, single.leaves)
    cuts = [0, 1, n // 3, n // 3 + 17, n]
    parts = [
        model.sample(b - a, seed=9, start=a, backend=backend, num_threads=threads)
        for a, b in itertools.pairwise(cuts)
    ]
    np.testing.assert_array_equal(np.concatenate([x.leaves for x in parts]), whole.leaves)
    np.testing.assert_array_equal(np.concatenate([x.roots for x in parts]), whole.roots)


def test_large_blocks_of_the_stream(backend: str) -> None:
    """Rows beyond any block size, against the documented stream."""
    model = build("q4-s2-l3-k0")
    n = 300 if backend == "python" else 40_000
    sample = model.sample(n, seed=21, backend=backend)
    assert_sample(sample, expected_sample(model, np.arange(n), 21), model.depth)


# ------------------------------------------------------------------ inference


@cache
def tokens(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of the model, a quarter of them random, masks from none to all."""
    model = build(name)
    rng = np.random.default_rng(17)
    leaves = expected_sample(model, np.arange(LARGEST), 17)[model.depth]
    leaves[::4] = rng.integers(model.vocab_size, size=leaves[::4].shape)
    share = np.resize([0.0, 0.2, 0.5, 0.9, 1.0], LARGEST)
    return leaves.astype(model.token_dtype), rng.random(leaves.shape) < share[:, None]


@cache
def fields(name: str) -> np.ndarray:
    model = build(name)
    rng = np.random.default_rng(18)
    h = rng.normal(size=(LARGEST, model.n_leaves, model.vocab_size)) * 20
    h[rng.random(h.shape) < 0.1] = -np.inf
    return h


@cache
def by_reference(name: str, dtype: str, soft: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The answers of the Python text to the largest batch, computed once."""
    return answers(name, dtype, soft, LARGEST, "python")


def answers(
    name: str, dtype: str, soft: bool, n: int, backend: str, threads: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    model = build(name)
    leaves, mask = tokens(name)
    asked = {"log_fields": fields(name)[:n]} if soft else {"leaves": leaves[:n], "mask": mask[:n]}
    common = {"dtype": dtype, "backend": backend, "num_threads": threads}
    post = model.infer(**asked, levels="all", **common)
    out = {f"level {d}": post.level(d) for d in model.existing_levels}
    out["leaves"], out["root"] = post.leaves, post.root
    out["root_posterior"] = model.root_posterior(**asked, **common)
    out["leave_one_out"] = model.leave_one_out(**asked, **common)
    evidence = post.log_evidence
    upward_only = model.log_prob(**asked, **common)
    if soft:  # a row may take the wider road for its beliefs and not for its evidence
        assert ulps_apart(upward_only.astype(dtype), evidence.astype(dtype)) <= ULPS["fields"]
    else:
        np.testing.assert_array_equal(upward_only, evidence)
    return out, evidence


def ulps_apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance in units in the last place; infinite where only one is NaN or infinite."""
    both = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~both], b[~both], equal_nan=True):
        return float("inf")
    a, b = a[both], b[both]
    # Below the normal range products lose digits, and divided by a small sum they are back above it:
    # entries that small are held to units of somewhat larger ones.
    tiny = np.finfo(a.dtype).tiny * 2.0**12
    gap = np.abs(a - b) / np.spacing(np.maximum(np.maximum(np.abs(a), np.abs(b)), tiny))
    return float(gap.max(initial=0.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_token_posteriors_bit_for_bit(name: str, dtype: str, backend: str) -> None:
    want, want_evidence = by_reference(name, dtype, False)
    for n in FEW_SIZES if backend == "python" else SIZES:
        got, evidence = answers(name, dtype, False, n, backend)
        for key, value in got.items():
            np.testing.assert_array_equal(value, want[key][:n], err_msg=f"{key}, n = {n}")
        assert ulps_apart(evidence, want_evidence[:n]) <= ULPS["log_evidence"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_field_posteriors_within_ulps(name: str, dtype: str, backend: str) -> None:
    # In single precision the kernels lift the messages of strong evidence, and lose less than the Python text: they
    # answer to the exact numbers. What they lose is 2^-126 of the largest, lifted, brought forth by 100 bits of
    # cancellation.
    exact = backend in COMPILED and dtype == "float32"
    lost = 2.0 ** (100 - 126 - 96 // (build(name).arity + 1))
    want, want_evidence = by_reference(name, "float64" if exact else dtype, True)
    for n in FEW_SIZES if backend == "python" else (0, 1, 3, 8, 17, 64, LARGEST):
        got, evidence = answers(name, dtype, True, n, backend)
        for key, value in got.items():
            right = want[key][:n].astype(dtype)
            if exact:
                right = np.where(np.abs(value - right) <= lost, value, right)
            assert ulps_apart(value, right) <= ULPS["fields"], f"{key}, n = {n}"
        got_evidence, reference = evidence.astype(dtype), want_evidence[:n].astype(dtype)
        assert ulps_apart(got_evidence, reference) <= ULPS["fields"], f"log_evidence, n = {n}"


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["q4-s2-l4-k2", "q2-s3-l2-k0"])
def test_inference_threads_and_splits(name: str, dtype: str, soft: bool, backend: str) -> None:
    """The same bits for 1, 2 and 3 threads and for any prefix of the batch, fields included."""
    largest = 9 if backend == "python" else LARGEST
    want, want_evidence = answers(name, dtype, soft, largest, backend, 1)
    for threads in (2, 3):
        for n in (5, 33, largest) if largest > 33 else (2, largest):
            got, evidence = answers(name, dtype, soft, n, backend, threads)
            for key, value in got.items():
                np.testing.assert_array_equal(value, want[key][:n], err_msg=f"{key}, n = {n}")
            np.testing.assert_array_equal(evidence, want_evidence[:n])


def test_threads_on_a_batch_worth_sharing() -> None:
    """A batch large enough that threads really start (small calls stay on the caller's)."""
    model = build("q4-s2-l4-k2")
    leaves = model.sample(60_000, seed=1).leaves
    single = model.infer(leaves, num_threads=1)
    for threads in (2, 3):
        shared = model.infer(leaves, num_threads=threads)
        np.testing.assert_array_equal(shared.leaves, single.leaves)
        np.testing.assert_array_equal(shared.log_evidence, single.log_evidence)
    parts = [model.infer(leaves[a:b]).leaves for a, b in ((0, 1), (1, 30_011), (30_011, 60_000))]
    np.testing.assert_array_equal(np.concatenate(parts), single.leaves)


@pytest.mark.parametrize("k", [0, 3])
def test_blocks_are_invisible(k: int, backend: str) -> None:
    """Rows so costly that a call is cut into many blocks: the same bits as row by row."""
    if backend == "python":
        pytest.skip("python: a block is a row or two for every model")
    model = TreeModel(Grammar.dense(16, 1.0, 0), 7, k)
    n = 300 if backend != "numba" else 150
    want = expected_sample(model, np.arange(n), 2)[7]
    leaves = model.sample(n, seed=2, backend=backend).leaves
    np.testing.assert_array_equal(leaves, want)
    whole = model.infer(leaves, backend=backend, num_threads=2)
    for rows in (slice(0, 1), slice(63, 70), slice(n - 3, n)):
        part = model.infer(leaves[rows], backend=backend)
        np.testing.assert_array_equal(part.leaves, whole.leaves[rows])
        np.testing.assert_array_equal(part.log_evidence, whole.log_evidence[rows])


def test_hard_rows_among_easy_ones(backend: str) -> None:
    """Rows that need the wider road are computed apart and come back to their places."""
    model = build("q6-s2-l3-k1")
    rng = np.random.default_rng(4)
    h = rng.normal(size=(200 if backend != "python" else 20, 8, 6))
    h[::7] *= 4000
    whole = model.infer(log_fields=h, levels="all", backend=backend)
    for i in (0, 1, 6, 7, 14, 15, 19):
        alone = model.infer(log_fields=h[i : i + 1], levels="all", backend=backend)
        for d in model.existing_levels:
            np.testing.assert_array_equal(alone.level(d)[0], whole.level(d)[i])
        np.testing.assert_array_equal(alone.log_evidence[0], whole.log_evidence[i])


# ------------------------------------------------------------------ the process around it


def test_flush_to_zero_of_the_caller_changes_nothing(backend: str) -> None:
    """torch.set_flush_denormal belongs to the caller: our bits must not depend on it."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush denormal numbers")
    try:
        got, evidence = answers("q4-s2-l4-k2", "float32", True, 40, backend)
        tiny = torch.tensor([1e-40])
        assert (tiny * 0.5).item() == 0.0, "the call must restore the caller's environment"
    finally:
        torch.set_flush_denormal(False)
    want, want_evidence = answers("q4-s2-l4-k2", "float32", True, 40, backend)
    if backend in ("numba", "python"):
        # Python cannot set the environment: what leaves as a subnormal number leaves as zero.
        for key, value in got.items():
            np.testing.assert_allclose(value, want[key], rtol=1e-5, atol=1e-36)
        np.testing.assert_allclose(evidence, want_evidence, rtol=1e-6)
        return
    for key, value in got.items():
        np.testing.assert_array_equal(value, want[key])
    np.testing.assert_array_equal(evidence, want_evidence)


FORKED = """
import os, sys
import hfilter
model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4, 2)
def work():
    leaves = model.sample(60_000, seed=1, num_threads=2).leaves
    return float(model.infer(leaves, num_threads=2).log_evidence.sum())
want = work()
child = os.fork()
if child == 0:
    os._exit(0 if work() == want else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_a_forked_child_works_after_threads_ran() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], timeout=120, check=False)
    assert done.returncode == 0
