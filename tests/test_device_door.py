"""The door for tensors that lie on a device, with the host standing in for one: same code, same checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hfilter
from hfilter import Grammar, TreeModel, cuda
from hfilter.errors import ArgumentError, BackendUnavailable, DTypeError, ShapeError

pytest.importorskip("hfilter._cuda", reason="module _cuda was not built")
torch = pytest.importorskip("torch", reason="torch is not installed")

MODEL = TreeModel(Grammar.published(4, 1.0, 0), 4)
LEAVES = MODEL.sample(50, seed=1).leaves
MASK = np.random.default_rng(0).random(LEAVES.shape) < 0.3
FIELDS = np.random.default_rng(1).normal(size=(50, 16, 4)).astype(np.float32)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the CPU count as lying on a device, whose kernels the host loop runs."""
    monkeypatch.setitem(cuda.EXECUTORS, "cpu", "host")


def test_samples_are_the_stream(stand_in: None) -> None:
    for k in (0, 2):
        model = MODEL.filtered(k)
        want = model.sample(50, seed=3, start=7, levels=True)
        got = model.sample(50, seed=3, start=7, levels=True, device="cpu")
        assert isinstance(got.leaves, torch.Tensor)
        assert got.leaves.dtype == torch.uint8
        for d in model.existing_levels:
            np.testing.assert_array_equal(got.levels[d].numpy(), want.levels[d])
        np.testing.assert_array_equal(got.roots.numpy(), want.roots)


def test_roots_and_out(stand_in: None) -> None:
    roots = np.arange(50) % 4
    want = MODEL.sample(50, seed=3, roots=roots)
    for given in (roots, torch.from_numpy(roots), torch.from_numpy(roots.astype(np.uint8))):
        got = MODEL.sample(50, seed=3, roots=given, device="cpu")
        np.testing.assert_array_equal(got.leaves.numpy(), want.leaves)
    out = torch.zeros((50, 16), dtype=torch.uint8)
    assert MODEL.sample(50, seed=3, roots=roots, out=out).leaves is out
    np.testing.assert_array_equal(out.numpy(), want.leaves)
    shifted = torch.zeros(50 * 16 + 3, dtype=torch.uint8)[3:].view(
        50, 16
    )  # not aligned to 16 bytes
    MODEL.sample(50, seed=3, roots=roots, out=shifted)
    np.testing.assert_array_equal(shifted.numpy(), want.leaves)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]
)
def test_tokens_of_any_integer_type(dtype: Any, stand_in: None) -> None:
    want = MODEL.infer(LEAVES, MASK, dtype="float64", levels="all")
    leaves = torch.from_numpy(LEAVES).to(dtype)
    got = MODEL.infer(leaves, torch.from_numpy(MASK), dtype="float64", levels="all")
    for d in MODEL.existing_levels:
        np.testing.assert_array_equal(got.level(d).numpy(), want.level(d))
    assert got.log_evidence.dtype == got.leaves.dtype == torch.float64


def test_every_question_and_any_layout(stand_in: None) -> None:
    fields = torch.from_numpy(FIELDS)
    wide = torch.zeros((50, 16, 9))
    wide[:, :, 3:7] = fields
    shifted = torch.zeros(50 * 64 + 1)[1:].view(50, 16, 4)  # not aligned to 16 bytes
    shifted[:] = fields
    want = MODEL.infer(log_fields=FIELDS)
    for h in (fields, wide[:, :, 3:7], shifted, fields.double(), fields.flip(0).flip(0)):
        got = MODEL.infer(log_fields=h)
        np.testing.assert_allclose(got.leaves.numpy(), want.leaves, rtol=0, atol=1e-6)
        np.testing.assert_allclose(MODEL.root_posterior(log_fields=h).numpy(), want.root, atol=1e-6)
        np.testing.assert_allclose(
            MODEL.log_prob(log_fields=h).numpy(), want.log_evidence, rtol=1e-6
        )
        loo = MODEL.leave_one_out(log_fields=h).numpy()
        np.testing.assert_allclose(loo, MODEL.leave_one_out(log_fields=FIELDS), rtol=0, atol=1e-6)
    half = MODEL.infer(log_fields=fields.to(torch.bfloat16))
    assert half.leaves.dtype == torch.float32


def test_many_parts_are_one_answer(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = torch.from_numpy(LEAVES)
    whole = MODEL.infer(leaves)
    monkeypatch.setattr(cuda, "_PART", 16)
    parts = MODEL.infer(leaves)
    assert torch.equal(parts.leaves, whole.leaves)
    assert torch.equal(parts.log_evidence, whole.log_evidence)


def test_no_rows(stand_in: None) -> None:
    post = MODEL.infer(torch.zeros((0, 16), dtype=torch.uint8))
    assert post.leaves.shape == (0, 16, 4)
    assert MODEL.sample(0, device="cpu").leaves.shape == (0, 16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [0, 2])
def test_values_that_are_none_are_nan(k: int, dtype: str, stand_in: None) -> None:
    """Looking for them would wait for the device: their rows say it instead, and other rows are untouched."""
    model = MODEL.filtered(k)
    leaves = torch.from_numpy(LEAVES).long()
    clean = model.infer(leaves, dtype=dtype, levels="all")
    for bad in (5, -1, 255, 256, 10**9):
        spoilt = leaves.clone()
        spoilt[7, 3] = bad
        held(model.infer(spoilt, dtype=dtype, levels="all"), clean, 7)
        one_out = model.leave_one_out(spoilt, dtype=dtype)
        assert one_out[7, [0, 1, 2, 4]].isnan().all()
    fields = torch.from_numpy(FIELDS)
    clean = model.infer(log_fields=fields, dtype=dtype, levels="all")
    for value in (float("nan"), float("inf")):
        spoilt = fields.clone()
        spoilt[7, 3, 1] = value
        held(model.infer(log_fields=spoilt, dtype=dtype, levels="all"), clean, 7)


def held(got: Any, clean: Any, row: int) -> None:
    others = [i for i in range(50) if i != row]
    for d, level in clean._levels.items():
        assert got.level(d)[row].isnan().all(), f"level {d}"
        assert torch.equal(got.level(d)[others], level[others])
    assert got.log_evidence[row].isnan()
    assert torch.equal(got.log_evidence[others], clean.log_evidence[others])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [0, 2, 4])
def test_questions_of_context_counts_and_trees(k: int, dtype: str, stand_in: None) -> None:
    """Tensors in, tensors out, the same bits as arrays through the same kernels."""
    model = MODEL.filtered(k)
    leaves, mask = torch.from_numpy(LEAVES).long(), torch.from_numpy(MASK)
    spoilt = LEAVES.copy()
    spoilt[3::7] = spoilt[3::7, ::-1]  # impossible for some filter levels
    options: dict[str, Any] = {"dtype": dtype}
    on_host: dict[str, Any] = {"dtype": dtype, "backend": "cuda-host"}
    for x, given in ((LEAVES, leaves), (spoilt, torch.from_numpy(spoilt))):
        pairs = [
            (model.next_token(given, mask, **options), model.next_token(x, MASK, **on_host)),
            *((model.windowed(given, h, mask, **options), model.windowed(x, h, MASK, **on_host)) for h in range(5)),
            *(
                (
                    model.expected_rule_counts(given, mask, per_sequence=each, **options),
                    model.expected_rule_counts(x, MASK, per_sequence=each, **on_host),
                )
                for each in (True, False)
            ),
        ]  # fmt: skip
        for got, want in pairs:
            assert isinstance(got, torch.Tensor)
            assert str(got.dtype).endswith(str(want.dtype))
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-13, atol=0)
        best, drawn = (
            model.most_probable(given, mask, **options),
            model.sample_posterior(given, mask, 5, **options),
        )
        best_want = model.most_probable(x, MASK, **on_host)
        np.testing.assert_array_equal(best.log_prob.numpy(), best_want.log_prob)
        np.testing.assert_array_equal(best.roots.numpy(), best_want.roots)
        for d in model.existing_levels:
            np.testing.assert_array_equal(best.levels[d].numpy(), best_want.levels[d])
        want = model.sample_posterior(x, MASK, 5, **on_host)
        assert drawn.leaves.dtype == torch.uint8
        np.testing.assert_array_equal(drawn.leaves.numpy(), want.leaves)
        np.testing.assert_array_equal(drawn.roots.numpy(), want.roots)


@pytest.mark.parametrize("k", [0, 2])
def test_values_that_are_none_in_other_questions(k: int, stand_in: None) -> None:
    """NaN where numbers are asked for, one past the alphabet where symbols are; other rows are untouched."""
    model, row = MODEL.filtered(k), 7
    clean = torch.from_numpy(FIELDS)
    others = [i for i in range(50) if i != row]
    for value in (float("nan"), float("inf")):
        h = clean.clone()
        h[row, 3, 1] = value
        numbers = [
            (model.next_token, "log_fields"),
            (lambda log_fields: model.expected_rule_counts(log_fields=log_fields, per_sequence=True), "log_fields"),
            (lambda log_fields: model.windowed(log_fields=log_fields, height=2), "log_fields"),
        ]  # fmt: skip
        for ask, name in numbers:
            got, want = ask(**{name: h}), ask(**{name: clean})
            assert got[row].isnan().any()
            assert torch.equal(got[others], want[others])
        best, drawn = model.most_probable(log_fields=h), model.sample_posterior(log_fields=h)
        assert best.log_prob[row].isnan()
        for tree in (best.leaves, drawn.leaves, best.roots, drawn.roots):
            assert (tree[row] == 4).all()
            assert (tree[others] < 4).all()


REFUSED = {
    "neither": (lambda x: MODEL.infer(None, x > 9), ArgumentError, "exactly one"),
    "both": (lambda x: MODEL.infer(x, log_fields=x), ArgumentError, "exactly one"),
    "shape": (lambda x: MODEL.infer(x[:, :15]), ShapeError, r"\(n, 16\)"),
    "floats": (lambda x: MODEL.infer(x.float()), DTypeError, "integers"),
    "booleans": (lambda x: MODEL.infer(x > 1), DTypeError, "integers"),
    "mask type": (lambda x: MODEL.infer(x, x), DTypeError, "boolean"),
    "mask shape": (lambda x: MODEL.infer(x, (x > 1)[:9]), ShapeError, "mask"),
    "mask elsewhere": (lambda x: MODEL.infer(x, MASK.tolist()), DTypeError, "mask must be on cpu"),
    "mask on meta": (
        lambda x: MODEL.infer(x, (x > 1).to("meta")),
        ArgumentError,
        "mask is on meta",
    ),
    "mask of fields": (
        lambda x: MODEL.infer(mask=x > 1, log_fields=fields()),
        ArgumentError,
        "leaves",
    ),
    "integer fields": (lambda x: MODEL.infer(log_fields=x), DTypeError, "floating"),
    "fields shape": (
        lambda x: MODEL.infer(log_fields=fields()[:, 1:]),
        ShapeError,
        r"\(n, 16, 4\)",
    ),
    "gradient": (
        lambda x: MODEL.infer(log_fields=fields().requires_grad_()),
        ArgumentError,
        "detach",
    ),
    "backend": (lambda x: MODEL.infer(x, backend="portable"), ArgumentError, "portable"),
    "sample backend": (
        lambda x: MODEL.sample(3, device="cpu", backend="numba"),
        ArgumentError,
        "numba",
    ),
    "roots": (lambda x: MODEL.sample(3, device="cpu", roots=x[0]), ShapeError, r"\(3,\)"),
    "host roots": (lambda x: MODEL.sample(2, device="cpu", roots=[0, 4]), ArgumentError, "0 to 3"),
    "out shape": (lambda x: MODEL.sample(3, out=x), ShapeError, "out"),
    "out type": (lambda x: MODEL.sample(50, out=x.int()), DTypeError, "out"),
    "out layout": (lambda x: MODEL.sample(16, out=x[:16].T), ArgumentError, "contiguous"),
}


def fields() -> Any:
    return torch.from_numpy(FIELDS.copy())


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str, stand_in: None) -> None:
    call, error, match = REFUSED[what]
    with pytest.raises(error, match=match):
        call(torch.from_numpy(LEAVES))


def test_a_device_that_is_not_there() -> None:
    """Asking for CUDA where there is none says why, wherever it is asked for."""
    info = hfilter.backends()["cuda"]
    if info.available:
        pytest.skip("a CUDA device answers here")
    for call in (
        lambda: MODEL.sample(3, device="cuda"),
        lambda: MODEL.sample(3, device="cuda:1"),
        lambda: MODEL.sample(3, device=torch.device("cuda")),
        lambda: MODEL.sample(3, backend="cuda"),
        lambda: MODEL.infer(LEAVES, backend="cuda"),
    ):
        with pytest.raises(BackendUnavailable) as caught:
            call()
        assert info.reason in str(caught.value)


class OnDevice:
    """A DLPack array of another library that lies on a CUDA device."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("nobody may ask for the data here")


def test_arrays_of_other_libraries_on_a_device() -> None:
    if hfilter.backends()["cuda"].available:
        pytest.skip("a CUDA device answers here")
    with pytest.raises(BackendUnavailable, match="cuda:0"):
        MODEL.infer(OnDevice())
