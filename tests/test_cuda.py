"""The CUDA kernels on a device, and what the compiler made of them where only nvcc is at hand."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_agreement
import test_cuda_host
import test_cuda_questions
import test_truth
from cases import PAIR_IDS, PAIRS

import hfilter
from hfilter import Grammar, TreeModel

BACKEND = "cuda"
CSRC = Path(__file__).parents[1] / "csrc"

device = pytest.mark.skipif(
    not hfilter.backends()["cuda"].available, reason=f"cuda: {hfilter.backends()['cuda'].reason}"
)

# --------------------------------------------------------------- on a device


@device
@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_stream(name: str, k: int) -> None:
    test_agreement.test_stream(name, k, BACKEND)


@device
@pytest.mark.parametrize("name", test_agreement.MODELS)
def test_ranges_seeds_roots(name: str) -> None:
    test_agreement.test_sample_sizes(name, BACKEND)
    test_agreement.test_given_roots(name, BACKEND)
    for start in (7, 2**32 - 5, 2**63):
        test_agreement.test_any_range_of_the_stream(name, start, BACKEND)
    for seed in (2**32, 2**64 - 1):
        test_agreement.test_every_bit_of_the_seed_counts(name, seed, BACKEND)


@device
@pytest.mark.parametrize("depth", [3, 4, 5, 9, 12])
def test_a_million_rows(depth: int) -> None:
    model = TreeModel(Grammar.published(4, 1.0, 0), depth)
    n = 1_000_003 if depth < 9 else 5_003
    np.testing.assert_array_equal(
        model.sample(n, seed=1, backend=BACKEND).leaves, model.sample(n, seed=1).leaves
    )


@device
@pytest.mark.parametrize("dtype", test_truth.DTYPES)
@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_posteriors(name: str, k: int, dtype: str) -> None:
    test_truth.test_tokens(name, k, dtype, BACKEND)
    test_truth.test_a_zero_stays_a_zero(name, k, dtype, BACKEND)
    test_truth.test_fields(name, k, dtype, BACKEND)


@device
@pytest.mark.parametrize(
    ("name", "k"),
    test_cuda_questions.SMALL,
    ids=[f"{n}-k{k}" for n, k in test_cuda_questions.SMALL],
)
def test_contexts_counts_and_trees(name: str, k: int) -> None:
    for dtype in test_truth.DTYPES:
        test_cuda_questions.judge(name, k, dtype, BACKEND)
    if k == 0:
        test_cuda_questions.judge_single_fields(name, BACKEND)


@device
@pytest.mark.parametrize("name", test_agreement.MODELS)
def test_other_questions_are_the_cpus_too(name: str) -> None:
    """Tokens: the device rounds as the host does, and trees are the same."""
    for dtype in test_truth.DTYPES:
        want = test_cuda_questions.reference(name, dtype)
        got = test_cuda_questions.answers(test_agreement.build(name), 129, dtype, BACKEND)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@device
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", test_agreement.MODELS)
def test_the_device_computes_what_the_host_loop_computes(name: str, soft: bool) -> None:
    """The same text: differences are the hardware's exponential and reciprocal, and the logarithm."""
    for dtype in test_truth.DTYPES:
        want, want_evidence = test_agreement.answers(name, dtype, soft, 129, "cuda-host")
        got, evidence = test_agreement.answers(name, dtype, soft, 129, BACKEND)
        allowed = test_agreement.ULPS["fields"] if soft else test_cuda_host.FUSED_ULPS
        for key, value in got.items():
            assert test_agreement.ulps_apart(value, want[key]) <= allowed, key
        apart = test_agreement.ulps_apart(evidence.astype(dtype), want_evidence.astype(dtype))
        assert apart <= allowed


@device
@pytest.mark.parametrize("k", [0, 9, 12])
def test_deep_trees(k: int) -> None:
    model = TreeModel(Grammar.dense(4, 0.5, 3), 12, k)
    leaves = model.sample(5, seed=12).leaves
    want = model.infer(leaves, dtype="float64")
    for dtype, atol in (("float32", 1e-4), ("float64", 1e-11)):
        got = model.infer(leaves, dtype=dtype, backend=BACKEND)
        np.testing.assert_allclose(got.leaves, want.leaves, rtol=0, atol=atol)


def tensors() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def other_questions(model: TreeModel, h: Any) -> None:
    """Contexts, counts and trees: their constants are on the device after the first time."""
    model.next_token(log_fields=h)
    model.windowed(log_fields=h, height=1)
    model.windowed(log_fields=h, height=3)
    for each in (True, False):
        model.expected_rule_counts(log_fields=h, per_sequence=each)
    model.most_probable(log_fields=h)
    model.sample_posterior(log_fields=h, n_samples=3)


@device
def test_nothing_waits() -> None:
    """After the first use of a model no call waits for the device, contradictions and all."""
    torch = tensors()
    models = [TreeModel(Grammar.published(4, 1.0, 0), 4, k) for k in (0, 2)]
    h = torch.randn((10_000, 16, 4), device="cuda") * 300
    for model in models:
        model.sample(10, device="cuda")
        other_questions(model, h)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = []
        for model in models:
            leaves = model.sample(10_000, seed=2, device="cuda").leaves
            for dtype in test_truth.DTYPES:
                by_tokens = model.infer(leaves, leaves > 2, dtype=dtype)
                by_fields = model.infer(log_fields=h, dtype=dtype)
                other_questions(model, h)
                results += [(model, dtype, leaves, by_tokens, by_fields)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for model, dtype, leaves, by_tokens, by_fields in results:
        seen = leaves.cpu().numpy()
        want = model.infer(seen, seen > 2, dtype=dtype)
        np.testing.assert_allclose(by_tokens.leaves.cpu(), want.leaves, rtol=0, atol=3e-6)
        hard = model.infer(log_fields=h.cpu().numpy(), dtype=dtype)
        np.testing.assert_allclose(by_fields.leaves.cpu(), hard.leaves, rtol=0, atol=3e-6)


@device
def test_work_goes_to_the_current_stream() -> None:
    torch = tensors()
    model = TreeModel(Grammar.published(4, 1.0, 0), 4)
    model.sample(10, device="cuda")
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first):
        torch.cuda._sleep(50_000_000)  # what follows must come after this, on this stream alone
        leaves = model.sample(100_000, seed=4, device="cuda").leaves
        done = first.record_event()
    assert not done.query(), "the call waited, or went elsewhere"
    with torch.cuda.stream(second):
        second.wait_event(done)
        root = model.root_posterior(leaves)
    second.synchronize()
    want = model.sample(100_000, seed=4)
    np.testing.assert_array_equal(leaves.cpu(), want.leaves)
    np.testing.assert_array_equal(root.argmax(1).cpu(), want.roots)


@device
def test_a_graph_replays_it() -> None:
    torch = tensors()
    model = TreeModel(Grammar.published(4, 1.0, 0), 4)
    h = torch.randn((1000, 16, 4), device="cuda")
    model.infer(log_fields=h)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        post = model.infer(log_fields=h)
    h.normal_()
    graph.replay()
    want = model.infer(log_fields=h.cpu().numpy())
    np.testing.assert_allclose(post.leaves.cpu(), want.leaves, rtol=0, atol=3e-6)


@device
def test_zero_copy() -> None:
    torch = tensors()
    model = TreeModel(Grammar.published(4, 1.0, 0), 4)
    out = torch.empty((1 << 20, 16), dtype=torch.uint8, device="cuda")
    model.sample(len(out), out=out)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert model.sample(len(out), seed=1, out=out).leaves is out
    assert torch.cuda.max_memory_allocated() - before < 2 << 20, "only the roots"
    with pytest.raises(hfilter.HFilterError, match="is on cpu"):
        model.infer(out, torch.zeros(out.shape, dtype=torch.bool))


# --------------------------------------------------- what the compiler made


@dataclass
class Made:
    """Of every kernel, by the name of its class: its PTX, and the assembler's report on it."""

    bodies: dict[str, str]
    report: dict[str, dict[str, int]]


def short(name: str) -> str:
    return re.sub(r".*run_kernelINS_\d+|EEEvNT_4ArgsE$", "", name)


def compiled(folder: Path) -> Made:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not here")
    if not CSRC.is_dir():
        pytest.skip("the sources are not here")
    done = subprocess.run(
        [nvcc, "-std=c++17", "-O3", "-fmad=false", "-arch=sm_90", "-cubin", "-Xptxas", "-v", "--keep", "--keep-dir",
         str(folder), "-o", str(folder / "kernels.cubin"), str(CSRC / "cuda_backend.cu")],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"nvcc does not compile here: {done.stderr[-300:]}")
    ptx = (folder / "cuda_backend.ptx").read_text()
    bodies = re.findall(r"\.entry (\S+)\(.*?\n\{(.*?)\n\}\n", ptx, re.S)
    pattern = r"entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
    report = {
        short(name): {"stack": int(stack), "spills": int(spills), "registers": int(registers)}
        for name, stack, spills, registers in re.findall(pattern, done.stderr, re.S)
    }
    return Made({short(name): body for name, body in bodies}, report)


FAST = re.compile(r"^(Resident|Noise|Sample\w+Li[1-9])")


def check_fast_kernels_stay_in_registers(made: Made) -> None:
    """No stack, no spills, and few enough registers for the occupancy that the estimates assume."""
    found = {name: r for name, r in made.report.items() if FAST.match(name)}
    assert len(found) >= 8, sorted(made.report)
    for name, r in found.items():
        assert r["stack"] == r["spills"] == 0, f"{name}: {r}"
        limit = 128 if name.startswith("Resident") else 84
        assert r["registers"] <= limit, f"{name}: {r}"


def check_every_kernel_fits_its_block(made: Made) -> None:
    """65536 registers hold a block of 256 threads of any kernel."""
    assert made.report
    for name, r in made.report.items():
        assert r["registers"] * 256 <= 65536, f"{name}: {r}"


def check_fast_kernels_move_sixteen_bytes_at_a_time(made: Made) -> None:
    for name, body in made.bodies.items():
        if name.startswith("Resident"):
            assert "ld.global.v4.f32" in body, name
            assert "st.global.v4.f32" in body, name
            assert "st.local" not in body, name
        elif re.match(r"Sample\w+Li[45]", name):
            assert "st.global.v4.u32" in body, name
            assert "st.local" not in body, name


def check_what_kernels_never_do(made: Made) -> None:
    """No trap, no call, no print; in global memory the one atomic sum that lists suspect rows."""
    assert len(made.bodies) >= 19
    for name, body in made.bodies.items():
        assert not re.search(r"\btrap\b|\bvprintf\b|\bcall\b|\bassertfail\b", body), name
        atomics = set(re.findall(r"\b(?:atom|red)\.(\w+)\.(\w+)\.(\w+)", body))
        allowed = {("global", "add", "u64"), ("shared", "max", "s32"), ("shared", "add", "u64")}
        assert atomics <= allowed, f"{name}: {atomics}"
        assert body.count("bar.sync") >= 1, name


def check_small_numbers_stay(made: Made) -> None:
    """Only approximations of known range flush small numbers to zero (the last is the library's logarithm)."""
    for name, body in made.bodies.items():
        flushing = set(re.findall(r"\b\w+(?:\.\w+)*\.ftz\.\w+", body))
        allowed = {"ex2.approx.ftz.f32", "rcp.approx.ftz.f32", "rcp.approx.ftz.f64"}
        assert flushing <= allowed, f"{name}: {flushing}"


@pytest.mark.slow
def test_what_the_compiler_made(tmp_path: Path) -> None:
    """One compilation, every promise that can be read off it."""
    made = compiled(tmp_path)
    assert made.bodies.keys() == made.report.keys()
    check_fast_kernels_stay_in_registers(made)
    check_every_kernel_fits_its_block(made)
    check_fast_kernels_move_sixteen_bytes_at_a_time(made)
    check_what_kernels_never_do(made)
    check_small_numbers_stay(made)


def test_the_launching_side_allocates_and_waits_for_nothing() -> None:
    text = "".join(
        (CSRC / name).read_text()
        for name in ("cuda_backend.cu", "cuda_layout.hpp", "cuda_plan.hpp", "cuda_resident.hpp")
    )
    text = re.sub(r"//.*", "", text)
    called = set(re.findall(r"\bcuda[A-Z]\w*(?=\()", text))
    assert called <= {
        "cudaGetDevice", "cudaDeviceGetAttribute", "cudaMemsetAsync", "cudaFuncSetAttribute", "cudaGetLastError",
        "cudaGetErrorString", "cudaGetDeviceCount",
    }  # fmt: skip
    assert "cudaMemsetAsync" in called
