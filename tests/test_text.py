"""Agreement: the parts of the Python text on their own, and the blocks of rows it works in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hfilter import Grammar, TreeModel, flat, runners, sampling, scaling
from hfilter.backend import get_backend

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]
MODEL = TreeModel(Grammar.published(4, 1.0, 0), 3, 1)


def scratch(dtype: np.dtype, lanes: int) -> flat.Lines:
    at, _ = flat.scratch(MODEL, dtype, dtype, lanes)
    scaling.begin_watch(1e-30, at.value, at.integer)
    return at


# ------------------------------------------------------------------ scaling


def edges(dtype: np.dtype) -> np.ndarray:
    """Numbers of every size, subnormal ones and zero among them."""
    info = np.finfo(dtype)
    powers = np.ldexp(np.ones(40), np.linspace(info.minexp, info.maxexp - 1, 40).astype(int))
    odd = np.array(
        [0, info.tiny, info.tiny / 2, info.smallest_subnormal, 1, info.max, 1 - info.epsneg]
    )
    return np.concatenate([powers, powers * 1.7, odd]).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_exponents_are_those_of_frexp(dtype: np.dtype) -> None:
    x = edges(dtype)
    at = scratch(dtype, len(x))
    at.value[scaling.TOP] = x
    scaling.take_exponent(at)
    want = [max(math.frexp(v)[1] - 1, -at.bias) if v else 0 for v in x.tolist()]
    np.testing.assert_array_equal(at.integer[scaling.TAKEN], want)
    np.testing.assert_array_equal(at.integer[scaling.WORST], np.minimum(want, 0))
    np.testing.assert_array_equal(at.value[scaling.LEAST], np.minimum(x, 1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rescaling_is_exact(dtype: np.dtype) -> None:
    """Maxima in [1, 2), and the exponent taken out gives every entry back."""
    top = edges(dtype)[:80:3]
    x = np.stack([top * dtype.type(0.75), top, top * dtype.type(2.0**-9)])
    x = x[:, (x[2] >= np.finfo(dtype).tiny) & (top < 2.0**100)]
    at = scratch(dtype, x.shape[1])
    got = x.copy()
    scaling.rescale(got, 0, 3, at)
    assert ((got.max(axis=0) >= 1) & (got.max(axis=0) < 2)).all()
    np.testing.assert_array_equal(np.ldexp(got, at.integer[scaling.TAKEN]), x)
    np.testing.assert_array_equal(at.value[scaling.SMALLEST], got.min(axis=0))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_exponentials(dtype: np.dtype) -> None:
    """Two ulps over the whole normal range."""
    farthest = float(scratch(dtype, 1).constants[scaling.FARTHEST])
    x = np.concatenate([np.linspace(0, farthest, 20_001), np.logspace(-12, 0, 200)]).astype(dtype)
    at = scratch(dtype, len(x))
    at.value[scaling.REST] = x
    got = np.zeros_like(x)[None]
    with np.errstate(over="ignore"):
        scaling.exp_minus(got.view(at.bits.dtype), 0, at)
    want = np.exp(-x.astype(np.longdouble))
    gap = np.abs(got[0] - want) / np.spacing(want.astype(dtype))
    assert gap.max() < 2
    assert got[0, 0] == 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_wide_numbers(dtype: np.dtype) -> None:
    """Products far outside the range of the type, brought to one exponent; what is too far is noted."""
    at = scratch(dtype, 2)
    value, power = np.zeros((3, 2), dtype), np.zeros((3, 2), at.integer.dtype)
    bits = value.view(at.integer.dtype)
    factor = np.array([[0.75, 0.75], [0.375, 0.375], [0.75, 0.0]], dtype)
    for a in range(3):
        scaling.set_one(a, value, power)
    for _ in range(500):
        scaling.multiply_wide(0, value, bits, power, factor, 0, at)
        scaling.multiply_wide(2, value, bits, power, factor, 2, at)
    for _ in range(5000):
        scaling.multiply_wide(1, value, bits, power, factor, 1, at)
    assert ((value[:2] >= 1) & (value[:2] < 2)).all()
    logs = np.log2(value[:2, 0].astype(float)) + power[:2, 0]
    np.testing.assert_allclose(logs, [500 * math.log2(0.75), 5000 * math.log2(0.375)], rtol=1e-6)
    x = np.empty((3, 2), dtype)
    scaling.align(0, 3, value, power, x, at)
    np.testing.assert_array_equal(at.integer[scaling.TAKEN], power[0])
    np.testing.assert_array_equal(x, [value[0], [0, 0], [value[0, 0], 0]])
    np.testing.assert_array_equal(at.integer[scaling.LOST], [1, 1])


def test_choices_count_the_cut_points() -> None:
    """At, just below and just above every cut point, in rows of every length."""
    for bits in range(5):
        rng = np.random.default_rng(bits)
        width = 1 << bits
        cuts = np.sort(rng.integers(2**32, size=(3, width), dtype=np.uint32), axis=1)
        cuts[1, width // 2 :] = 2**32 - 1  # a shorter row, padded
        cuts[:, -1] = 2**32 - 1
        near = cuts.astype(np.int64)[:, :, None] + [-1, 0, 1]
        words = np.clip(np.append(near.ravel(), [0, 2**32 - 2]), 0, 2**32 - 2)
        row = np.arange(len(words)) % 3
        place = row * width
        sampling.choose(
            cuts.astype(np.int64).ravel(), bits, words[None].astype(np.uint32), 0, place
        )
        want = [
            np.searchsorted(cuts[r, :-1], w, side="right") for r, w in zip(row, words, strict=True)
        ]
        np.testing.assert_array_equal(place - row * width, want)


# ------------------------------------------------------------------ blocks of rows


@pytest.fixture
def numba() -> runners.TextBackend:
    pytest.importorskip("numba", reason="numba is not installed")
    backend = get_backend("numba")
    assert isinstance(backend, runners.TextBackend)
    return backend


@pytest.mark.parametrize("n", [255, 256, 257, 300, 1023, 1025])
def test_block_boundaries_are_invisible(n: int, numba: runners.TextBackend) -> None:
    """Blocks of 256 rows, buffers of 1024: any row is the same on its own."""
    sample = MODEL.sample(n, seed=3, levels="all", backend="numba", num_threads=1)
    again = MODEL.sample(n, seed=3, backend="numba")
    np.testing.assert_array_equal(again.leaves, sample.leaves)
    np.testing.assert_array_equal(again.roots, sample.levels[0][:, 0])
    mask = np.random.default_rng(n).random(sample.leaves.shape) < 0.4
    post = MODEL.infer(sample.leaves, mask, levels="all", backend="numba", num_threads=1)
    alone = MODEL.infer(sample.leaves, mask, backend="numba")
    np.testing.assert_array_equal(alone.leaves, post.leaves)
    one_out = MODEL.leave_one_out(sample.leaves, mask, backend="numba")
    for i in {0, 1, 254, 255, 256, n // 2, n - 2, n - 1} & set(range(n)):
        row = slice(i, i + 1)
        one = MODEL.sample(1, seed=3, start=i, levels="all", backend="numba")
        for d in MODEL.existing_levels:
            np.testing.assert_array_equal(one.levels[d][0], sample.levels[d][i])
        one_post = MODEL.infer(sample.leaves[row], mask[row], levels="all", backend="numba")
        for d in MODEL.existing_levels:
            np.testing.assert_array_equal(one_post.level(d)[0], post.level(d)[i])
        assert one_post.log_evidence[0] == post.log_evidence[i]
        got = MODEL.leave_one_out(sample.leaves[row], mask[row], backend="numba")
        np.testing.assert_array_equal(got[0], one_out[i])


def test_blocks_stay_within_memory(numba: runners.TextBackend) -> None:
    for rows in (1, 2, 15, 16, 17, 300, 10**6):
        for row_bytes in (100, 10_000, 10**6, 10**8):
            lanes = numba._lanes(rows, row_bytes)
            assert 1 <= lanes <= max(rows + 15, 1)
            assert lanes * row_bytes <= max(runners._MEMORY, row_bytes)
    assert numba._lanes(300, 100) == 160, "two blocks alike, not one of 256 and one of 44"
    assert runners.TextBackend("python", dict, 1, compiled=False)._lanes(300, 100) == 1


def test_unusual_arrays_are_not_compiled_anew(numba: runners.TextBackend) -> None:
    """Read-only and unaligned arrays have types of their own in Numba: ten seconds each."""
    leaves = MODEL.sample(5, seed=1).leaves
    MODEL.infer(leaves, backend="numba")
    compiled = len(runners.numba_text()["infer_rows"].signatures)
    raw = np.zeros(leaves.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(leaves.dtype).reshape(leaves.shape)
    unaligned[:] = leaves
    frozen = leaves.copy()
    frozen.flags.writeable = False
    for odd in (unaligned, frozen, np.asfortranarray(leaves), leaves.astype(np.int64)):
        MODEL.infer(odd, np.zeros(odd.shape, bool), levels="all", backend="numba")
        MODEL.leave_one_out(odd, backend="numba")
        MODEL.log_prob(odd, backend="numba")
    MODEL.infer(log_fields=np.zeros((2, 8, 4), np.float32), backend="numba")
    assert len(runners.numba_text()["infer_rows"].signatures) == compiled
