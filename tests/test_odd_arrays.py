"""Manners: odd arrays that are not wrong at all, of every layout, dtype and library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hfilter import Grammar, TreeModel
from hfilter.errors import HFilterError

MODEL = TreeModel(Grammar.published(4, 1.0, 0), 4, 1)
LEAVES = MODEL.sample(6, seed=1).leaves
FIELDS = np.zeros((6, 16, 4))
QUESTIONS = ("infer", "root_posterior", "leave_one_out", "log_prob")


def odd_views(array: np.ndarray) -> dict[str, np.ndarray]:
    """The same numbers in every awkward layout."""
    frozen = array.copy()
    frozen.flags.writeable = False
    wide = np.zeros((array.shape[0], 2 * array.shape[1], *array.shape[2:]), array.dtype)
    wide[:, ::2] = array
    raw = np.zeros(array.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(array.dtype).reshape(array.shape)
    unaligned[:] = array
    return {
        "read-only": frozen,
        "fortran": np.asfortranarray(array),
        "strided": wide[:, ::2],
        "reversed": np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
        "big-endian": array.astype(array.dtype.newbyteorder(">")),
        "unaligned": unaligned,
    }


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_any_integer_tokens_in_any_layout(dtype: str, backend: str) -> None:
    mask = np.random.default_rng(0).random(LEAVES.shape) < 0.3
    want = MODEL.infer(LEAVES, mask, backend=backend)
    for name, tokens in odd_views(LEAVES.astype(dtype)).items():
        for hidden in odd_views(mask).values():
            post = MODEL.infer(tokens, hidden, backend=backend)
            np.testing.assert_array_equal(post.leaves, want.leaves, err_msg=name)
            np.testing.assert_array_equal(post.log_evidence, want.log_evidence)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_fields_in_any_layout(dtype: str, backend: str) -> None:
    h = np.random.default_rng(1).normal(size=(6, 16, 4)).astype(dtype)
    want = MODEL.infer(log_fields=np.ascontiguousarray(h), backend=backend)
    for name, fields in odd_views(h).items():
        post = MODEL.infer(log_fields=fields, backend=backend)
        np.testing.assert_array_equal(post.leaves, want.leaves, err_msg=name)
    row = np.broadcast_to(h[:1], (9, 16, 4))
    post = MODEL.infer(log_fields=row, backend=backend)
    np.testing.assert_array_equal(post.leaves, np.repeat(want.leaves[:1], 9, axis=0))


def test_inputs_are_left_alone_and_outputs_are_the_callers(backend: str) -> None:
    leaves, h = LEAVES.copy(), np.random.default_rng(2).normal(size=(6, 16, 4))
    kept = h.copy()
    post = MODEL.infer(leaves, backend=backend)
    MODEL.infer(log_fields=h, backend=backend)
    np.testing.assert_array_equal(leaves, LEAVES)
    np.testing.assert_array_equal(h, kept)
    first = post.leaves.copy()
    again = MODEL.infer(leaves, backend=backend)
    again.leaves[:] = 7.0
    np.testing.assert_array_equal(post.leaves, first)


def test_plain_lists_are_arrays_too() -> None:
    post = MODEL.infer(LEAVES.tolist(), [[False] * 16] * 6)
    np.testing.assert_array_equal(post.leaves, MODEL.infer(LEAVES).leaves)


@pytest.mark.parametrize("question", QUESTIONS)
def test_empty_batches(question: str, backend: str) -> None:
    ask = getattr(MODEL, question)
    for out in (ask(LEAVES[:0], backend=backend), ask(log_fields=FIELDS[:0], backend=backend)):
        if question == "infer":
            assert out.leaves.shape == (0, 16, 4)
            assert out.root.shape == (0, 4)
            out = out.log_evidence
        assert len(out) == 0


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    mask = np.random.default_rng(0).random(LEAVES.shape) < 0.3
    want = MODEL.infer(LEAVES, mask, levels="all")
    post = MODEL.infer(torch.from_numpy(LEAVES), torch.from_numpy(mask), levels="all")
    for name in ("log_evidence", "root", "leaves"):
        got = getattr(post, name)
        assert isinstance(got, torch.Tensor)
        np.testing.assert_array_equal(got.numpy(), getattr(want, name))
    assert isinstance(post.level(2), torch.Tensor)
    h = torch.randn(6, 16, 4, requires_grad=True)
    with pytest.raises(HFilterError, match="grad"):
        MODEL.infer(log_fields=h)
    by_fields = MODEL.infer(log_fields=h.detach()).leaves
    np.testing.assert_array_equal(
        by_fields.numpy(), MODEL.infer(log_fields=h.detach().numpy()).leaves
    )
    drawn = MODEL.sample(9, seed=4, device="cpu", levels=True)
    plain = MODEL.sample(9, seed=4)
    assert isinstance(drawn.leaves, torch.Tensor)
    np.testing.assert_array_equal(drawn.leaves.numpy(), plain.leaves)
    np.testing.assert_array_equal(drawn.roots.numpy(), plain.roots)
    assert isinstance(drawn.levels[1], torch.Tensor)


def test_any_dlpack_array() -> None:
    class Foreign:
        """An array of another library: it speaks DLPack and nothing else."""

        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    post = MODEL.infer(Foreign(LEAVES.astype(np.int32)))
    np.testing.assert_array_equal(np.from_dlpack(post.leaves), MODEL.infer(LEAVES).leaves)


def test_many_symbols_take_two_bytes() -> None:
    def model(v: int) -> TreeModel:
        grammar = Grammar.random_hierarchy(vocab_size=v, rules_per_symbol=1, depth=1, n_classes=2)
        return TreeModel(grammar, 1)

    assert model(255).sample(3).leaves.dtype == model(255).token_dtype == np.uint8
    big = model(256)
    assert big.sample(3).leaves.dtype == big.token_dtype == np.uint16
    hidden = np.full((1, 2), big.mask_token)
    assert big.infer(hidden).leaves.shape == (1, 2, 256)
    assert model(255).infer(np.full((1, 2), 255, np.uint8)).log_evidence[0] == pytest.approx(0.0)
