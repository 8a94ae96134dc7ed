"""Agreement: the operations beyond `infer` give the same bits on every backend, layout and library."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from rotating import available

from hfilter import Grammar, TreeModel

# ln of the most probable tree: units in the last place by which machines' logarithms may differ.
ULPS_OF_LOGS = 4
# Soft evidence: exponentials differ by an ulp or two, and what follows from them (see test_agreement).
ATOL_OF_FIELDS = {"float32": 3e-5, "float64": 1e-13}
SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 100)
FEW_SIZES = (1, 3, 9)  # plain Python has one row at a time in any case
LARGEST = max(SIZES)


def hierarchy(v: int) -> Grammar:
    return Grammar.random_hierarchy(vocab_size=v, rules_per_symbol=2, depth=1, n_classes=3, seed=v)


MODELS = {
    "q4-l3-k0": (lambda: Grammar.published(4, 1.0, 0), 3, 0),
    "q4-l3-k2": (lambda: Grammar.published(4, 1.0, 0), 3, 2),
    "q3-l3-k3": (lambda: Grammar.dense(3, 1.0, 1), 3, 3),
    "q2-s3-l2-k1": (lambda: Grammar.dense(2, 1.0, 3, arity=3), 2, 1),
    "levels-k1": (
        lambda: Grammar.random_hierarchy(
            vocab_size=5, rules_per_symbol=3, depth=3, n_classes=7, seed=4
        ),
        3,
        1,
    ),
    "q254-k0": (lambda: hierarchy(254), 1, 0),
    "q255-k1": (lambda: hierarchy(255), 1, 1),
    "q256-k0": (lambda: hierarchy(256), 1, 0),
}
QUESTIONS = ("next_token", "windowed", "expected_rule_counts", "most_probable", "sample_posterior")


@cache
def build(name: str) -> TreeModel:
    make, depth, k = MODELS[name]
    return TreeModel(make(), depth, k)


@cache
def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of the model, a quarter of them random, masks from none to all."""
    model = build(name)
    rng = np.random.default_rng(21)
    leaves = model.sample(LARGEST, seed=21).leaves.copy()
    leaves[::4] = rng.integers(model.vocab_size, size=leaves[::4].shape)
    share = np.resize([0.0, 0.3, 0.6, 1.0, 0.5], LARGEST)
    return leaves, rng.random(leaves.shape) < share[:, None]


def arrays(model: TreeModel, **options: Any) -> dict[str, Any]:
    """Every operation's every array."""
    out = {"next_token": model.next_token(**options)}
    for height in range(model.depth + 1):
        out[f"windowed {height}"] = model.windowed(height=height, **options)
    out["counts"] = model.expected_rule_counts(per_sequence=True, **options)
    tree = model.most_probable(**options)
    out |= {f"best, level {d}": x for d, x in tree.levels.items()}
    out |= {"best, roots": tree.roots, "best, leaves": tree.leaves, "best, log": tree.log_prob}
    drawn = model.sample_posterior(n_samples=3, seed=5, start=2**32 - 20, levels="all", **options)
    out |= {f"draws, level {d}": x for d, x in drawn.levels.items()}
    out |= {"draws, roots": drawn.roots, "draws, leaves": drawn.leaves}
    return out


@cache
def by_reference(name: str, dtype: str) -> dict[str, Any]:
    """Of the widest-spread backend; plain Python, the reading copy, is held to it on fewer rows."""
    leaves, mask = batch(name)
    backend = next(b for b in ("portable", "numba", "python") if b in available())
    return arrays(build(name), leaves=leaves, mask=mask, dtype=dtype, backend=backend)


def same(got: dict[str, Any], want: dict[str, Any], n: int, what: str) -> None:
    assert got.keys() == want.keys()
    for key, x in got.items():
        y = want[key][:n]
        if key != "best, log":
            np.testing.assert_array_equal(x, y, err_msg=f"{key}, {what}")
            continue
        np.testing.assert_array_equal(np.isfinite(x), np.isfinite(y))
        x, y = x[np.isfinite(x)], y[np.isfinite(y)]
        assert (np.abs(x - y) <= ULPS_OF_LOGS * np.spacing(np.abs(y))).all(), f"{key}, {what}"


# One value type for each of the wide alphabets: plain Python takes its time over them.
WIDE = {"q254-k0": ["float32"], "q255-k1": ["float64"], "q256-k0": ["float32"]}
TYPED = [(name, dtype) for name in MODELS for dtype in WIDE.get(name, ["float32", "float64"])]


@pytest.mark.parametrize(("name", "dtype"), TYPED)
def test_tokens_bit_for_bit(name: str, dtype: str, backend: str) -> None:
    """n around every lane boundary, alphabets around a byte's end: the same bits everywhere."""
    model, (leaves, mask) = build(name), batch(name)
    want = by_reference(name, dtype)
    few = (1, 3) if model.vocab_size > 250 else FEW_SIZES
    for n in few if backend == "python" else SIZES:
        given = {"leaves": leaves[:n], "mask": mask[:n], "dtype": dtype, "backend": backend}
        same(arrays(model, **given), want, n, f"n = {n}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["q4-l3-k2", "q2-s3-l2-k1", "levels-k1"])
def test_threads_splits_and_order(name: str, dtype: str, backend: str) -> None:
    """One and two threads, halves of the batch, and a shuffled batch: the same bits, row by row."""
    model, (leaves, mask) = build(name), batch(name)
    n = 6 if backend == "python" else LARGEST
    want = by_reference(name, dtype)
    given = {"dtype": dtype, "backend": backend}
    for threads in (1, 2):
        got = arrays(model, leaves=leaves[:n], mask=mask[:n], num_threads=threads, **given)
        same(got, want, n, f"{threads} threads")
    order = np.random.default_rng(0).permutation(n)
    got = arrays(model, leaves=leaves[order], mask=mask[order], **given)
    for key, x in want.items():
        if key.startswith("draws"):  # whose index is their place
            continue
        same({key: got[key]}, {key: x[:n][order]}, n, "shuffled")
    counts = model.expected_rule_counts(leaves[:n], mask[:n], **given)
    np.testing.assert_array_equal(
        counts, model.expected_rule_counts(leaves[:n], mask[:n], num_threads=2, **given)
    )


@cache
def soft_answers(name: str, dtype: str, backend: str) -> dict[str, Any]:
    model = build(name)
    h = np.random.default_rng(22).normal(size=(17, model.n_leaves, model.vocab_size)) * 5
    return arrays(model, log_fields=h, dtype=dtype, backend=backend)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["q4-l3-k0", "q4-l3-k2", "q2-s3-l2-k1"])
def test_fields_within_rounding(name: str, dtype: str, backend: str) -> None:
    """Soft evidence: probabilities within rounding; trees are no less probable than the reading copy's."""
    got, want = soft_answers(name, dtype, backend), soft_answers(name, dtype, "python")
    for key, x in got.items():
        if key.startswith(("next", "windowed", "counts")):
            np.testing.assert_allclose(
                x, want[key], rtol=0, atol=ATOL_OF_FIELDS[dtype], err_msg=key
            )
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(got["best, log"], want["best, log"], rtol=32 * eps)


# ------------------------------------------------------------------ arrays of any layout and library

MODEL = TreeModel(Grammar.published(4, 1.0, 0), 3, 1)
LEAVES = MODEL.sample(9, seed=1).leaves
MASK = np.random.default_rng(2).random(LEAVES.shape) < 0.4
FIELDS = np.random.default_rng(3).normal(size=(9, 8, 4))


def layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    wide = np.zeros((array.shape[0], 2 * array.shape[1], *array.shape[2:]), array.dtype)
    wide[:, ::2] = array
    frozen = array.copy()
    frozen.flags.writeable = False
    return {
        "fortran": np.asfortranarray(array),
        "strided": wide[:, ::2],
        "reversed": np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
        "read-only": frozen,
        "big-endian": array.astype(array.dtype.newbyteorder(">")),
    }


def test_any_layout(backend: str) -> None:
    want = arrays(MODEL, leaves=LEAVES, mask=MASK, backend=backend)
    soft = arrays(MODEL, log_fields=FIELDS, backend=backend)
    few = ("fortran", "reversed") if backend == "python" else tuple(layouts(LEAVES))
    for name in few:
        leaves = layouts(LEAVES.astype(np.int32))[name]
        got = arrays(MODEL, leaves=leaves, mask=layouts(MASK)[name], backend=backend)
        same(got, want, 9, name)
        same(arrays(MODEL, log_fields=layouts(FIELDS)[name], backend=backend), soft, 9, name)


def test_lists_and_empty_batches(backend: str) -> None:
    want = arrays(MODEL, leaves=LEAVES, mask=MASK, backend=backend)
    got = arrays(MODEL, leaves=LEAVES.tolist(), mask=MASK.tolist(), backend=backend)
    same(got, want, 9, "lists")
    for empty in ({"leaves": LEAVES[:0]}, {"log_fields": FIELDS[:0]}):
        for key, x in arrays(MODEL, backend=backend, **empty).items():
            assert x.shape == (0, *want[key].shape[1:]), key
        total = MODEL.expected_rule_counts(backend=backend, **empty)
        np.testing.assert_array_equal(total, np.zeros(16))


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    want = arrays(MODEL, leaves=LEAVES, mask=MASK)
    leaves = torch.from_numpy(LEAVES)
    got = arrays(MODEL, leaves=leaves, mask=torch.from_numpy(MASK))
    assert all(isinstance(x, torch.Tensor) for x in got.values())
    same({key: x.numpy() for key, x in got.items()}, want, 9, "torch")
    total = MODEL.expected_rule_counts(leaves)
    assert isinstance(total, torch.Tensor)
    np.testing.assert_array_equal(total.numpy(), MODEL.expected_rule_counts(LEAVES))
    soft = arrays(
        MODEL, log_fields=torch.from_numpy(FIELDS).transpose(0, 1).contiguous().transpose(0, 1)
    )
    same({key: x.numpy() for key, x in soft.items()}, arrays(MODEL, log_fields=FIELDS), 9, "fields")
    for tensor in (MODEL.pair_beliefs(leaves, [(0, 7)]), MODEL.flip_table(leaves)):
        assert isinstance(tensor, torch.Tensor)


class Foreign:
    """An array of another library: it speaks DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.looks = 0

    def __dlpack__(self, **options: Any) -> Any:
        self.looks += 1
        assert not options.get("copy"), "a copy was asked for"
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize("question", QUESTIONS)
def test_any_dlpack_array(question: str) -> None:
    """Viewed once and not copied, as by `infer`."""
    leaves, h = Foreign(LEAVES), Foreign(FIELDS)
    ask = getattr(MODEL, question)
    for got, want in ((ask(leaves), ask(LEAVES)), (ask(log_fields=h), ask(log_fields=FIELDS))):
        for name in ("leaves", "roots") if hasattr(got, "leaves") else ("__array__",):
            x, y = getattr(got, name), getattr(want, name)
            x, y = (x(), y()) if name == "__array__" else (x, y)
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert leaves.looks == h.looks == 1


def test_inputs_are_left_alone() -> None:
    leaves, mask, h = LEAVES.copy(), MASK.copy(), FIELDS.copy()
    leaves[0] = [0, 1, 2, 3, 0, 1, 2, 3]
    kept = leaves.copy()
    arrays(MODEL, leaves=leaves, mask=mask)
    arrays(MODEL, log_fields=h)
    np.testing.assert_array_equal(leaves, kept)
    np.testing.assert_array_equal(mask, MASK)
    np.testing.assert_array_equal(h, FIELDS)


def test_levels_that_are_asked_for() -> None:
    """Any iterable, once through; leaves and roots are there in any case."""
    for levels in ([2, 1], (d for d in (1, 2)), np.array([1, 2])):
        tree = MODEL.most_probable(LEAVES, MASK, levels=levels)
        assert sorted(tree.levels) == [1, 2]
    drawn = MODEL.sample_posterior(LEAVES, MASK, levels=(d for d in (0, 3)))
    assert sorted(drawn.levels) == [0, 3]
    assert MODEL.sample_posterior(LEAVES).levels == {}
    assert MODEL.most_probable(LEAVES, levels=None).leaves.shape == (9, 8)
    assert "levels=[0, 1, 2, 3]" in repr(MODEL.most_probable(LEAVES))


def test_this_court_sees_an_ulp() -> None:
    want = by_reference("q4-l3-k2", "float32")
    wrong = dict(want)
    wrong["next_token"] = np.nextafter(want["next_token"], np.float32(2))
    with pytest.raises(AssertionError):
        same(wrong, want, LARGEST, "one ulp")
