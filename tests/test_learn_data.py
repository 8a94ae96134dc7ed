from __future__ import annotations

import doctest
import itertools
import subprocess
import sys

import numpy as np
import pytest

import hfilter
import hfilter.learn.masks as masks_module
from hfilter.errors import ArgumentError
from hfilter.learn.masks import HELD_OUT_START, draw_masks

NOT_INSTALLED = """
import importlib, sys
sys.modules[sys.argv[1]] = None  # as if it were not installed
import hfilter.learn.masks, hfilter.analysis.compare  # these need NumPy alone
try:
    importlib.import_module("hfilter.learn." + sys.argv[2])
except ImportError as error:
    print(type(error).__name__, error.name, error)
"""


@pytest.mark.parametrize(
    ("package", "module"),
    [
        *(
            ("torch", module)
            for module in ("train", "encoder", "data", "tasks", "checkpoint", "records")
        ),
        ("safetensors", "checkpoint"),
    ],
)
def test_a_missing_package_says_what_to_install(package, module):
    if package == "safetensors":
        pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", NOT_INSTALLED, package, module],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(f"ModuleNotFoundError {package} ")
    assert "pip install '.[learn]'" in done.stdout


torch = pytest.importorskip("torch")

import hfilter.learn.data as data_module  # noqa: E402
from hfilter.learn.data import FreshBatches  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


def equal(a, b):
    pairs = [(getattr(a, f), getattr(b, f)) for f in vars(a)]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


def test_batches_compare_by_identity():  # their tensors have no single truth value
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    batches = FreshBatches(model, 4)
    one, two = batches.batch(0), batches.batch(0)
    assert one == one
    assert one != two
    assert len({one, two}) == 2


# --- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [None, 0.05, 0.5, 1.0])
def test_masks_are_a_function_of_seed_and_row(rate):
    whole = draw_masks(50, 7, seed=3, start=10, rate=rate)
    for first, n in [(0, 50), (1, 5), (13, 1), (49, 1), (20, 0)]:
        part = draw_masks(n, 7, seed=3, start=10 + first, rate=rate)
        assert np.array_equal(part, whole[first : first + n])
    assert whole.dtype == np.bool_
    assert whole.any(axis=1).all()
    if rate != 1.0:
        assert not np.array_equal(draw_masks(50, 7, seed=4, start=10, rate=rate), whole)


def test_masks_have_known_answers():
    """The words of Philox4x64-10 for this key, by NumPy, turned into positions by hand."""
    words = np.random.Philox(counter=0, key=[5, 0x6D61736B]).random_raw(6)
    expected = [(int(w) >> 32) * 16 >> 32 for w in words]
    assert draw_masks(6, 16, seed=5).argmax(axis=1).tolist() == expected
    far = np.random.Philox(counter=HELD_OUT_START // 4, key=[5, 0x6D61736B]).random_raw(1)
    position = draw_masks(1, 16, seed=5, start=HELD_OUT_START).argmax()
    assert position == (int(far[0]) >> 32) * 16 >> 32


def test_one_leaf_is_hidden_uniformly():
    """Chi-square over positions and over pairs of successive rows, false alarm below 1e-6 each."""

    def statistics(positions):
        single = np.bincount(positions, minlength=6)
        pairs = np.bincount(positions[:-1] * 6 + positions[1:], minlength=36)
        return [float(((c - c.mean()) ** 2).sum() / c.mean()) for c in (single, pairs)]

    bounds = (36.0, 102.0)  # upper 1e-6 points of chi-square with 5 and 35 degrees of freedom
    masks = draw_masks(60_000, 6, seed=11)
    assert (masks.sum(axis=1) == 1).all()
    positions = masks.argmax(axis=1)
    assert all(s < b for s, b in zip(statistics(positions), bounds, strict=True))
    biased = np.where((positions == 5) & (np.arange(60_000) % 10 == 0), 0, positions)
    assert statistics(biased)[0] > bounds[0]
    repeated = np.where(np.arange(60_000) % 10 == 0, np.roll(positions, 1), positions)
    assert statistics(repeated)[1] > bounds[1]


def test_masks_at_a_rate():
    masks = draw_masks(20_000, 8, seed=2, rate=0.25)
    # P(hidden) = 0.25, and 1/8 more where the row would be empty (probability 0.75^8).
    expected = 0.25 + 0.75**8 / 8
    error = np.sqrt(expected * (1 - expected) / masks.size)
    assert abs(masks.mean() - expected) < 5 * error
    assert abs(masks.mean() - 0.25) > 5 * error
    assert draw_masks(5, 8, rate=1.0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": 1.5}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"seed": -1}, "seed"),
        ({"start": -1}, "start"),
        ({"n": -1}, "n must"),
        ({"n_leaves": 0}, "n_leaves"),
    ],
)
def test_mask_errors(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        draw_masks(**({"n": 3, "n_leaves": 4} | arguments))


# --- batches ---------------------------------------------------------------------------------


def test_batches_are_the_rows_of_the_stream(model):
    batches = FreshBatches(model, 10, seed=5, start=100, prefetch=3)
    rows = model.sample(70, seed=5, start=100)
    masks = draw_masks(70, 8, seed=5, start=100)
    for step in range(7):
        batch, part = batches.batch(step), slice(10 * step, 10 * step + 10)
        assert np.array_equal(batch.targets.numpy(), rows.leaves[part])
        assert np.array_equal(batch.roots.numpy(), rows.roots[part])
        assert np.array_equal(batch.mask.numpy(), masks[part])
        expected = np.where(masks[part], model.mask_token, rows.leaves[part])
        assert np.array_equal(batch.tokens.numpy(), expected)
        assert batch.tokens.dtype == batch.targets.dtype == batch.roots.dtype == torch.int64


@pytest.mark.parametrize("task", ["mlm", "root"])
def test_a_batch_depends_on_the_step_alone(model, task):
    plain = FreshBatches(model, 6, task=task, seed=1, prefetch=1)
    expected = [plain.batch(step) for step in range(9)]
    for prefetch in (2, 5, None):
        other = FreshBatches(model, 6, task=task, seed=1, prefetch=prefetch, n_batches=9)
        for step in (8, 0, 3, 3, 2, 7):
            assert equal(other.batch(step), expected[step])
        assert all(equal(a, b) for a, b in zip(other, expected, strict=True))
        assert all(equal(a, b) for a, b in zip(other.iterate(4), expected[4:], strict=True))


def test_seeds_and_starts_change_rows_and_masks(model):
    base = FreshBatches(model, 20, seed=1).batch(0)
    assert not torch.equal(FreshBatches(model, 20, seed=2).batch(0).targets, base.targets)
    assert not torch.equal(FreshBatches(model, 20, seed=1, start=20).batch(0).targets, base.targets)
    masked = FreshBatches(model, 20, seed=1, mask_seed=9).batch(0)
    assert torch.equal(masked.targets, base.targets)
    assert not torch.equal(masked.mask, base.mask)


def test_root_batches_hide_nothing(model):
    batch = FreshBatches(model, 10, task="root", seed=3).batch(2)
    rows = model.sample(10, seed=3, start=20)
    assert not batch.mask.any()
    assert np.array_equal(batch.tokens.numpy(), rows.leaves)
    assert np.array_equal(batch.targets.numpy(), rows.roots)


def test_filtered_models_give_filtered_rows(model):
    batch = FreshBatches(model.filtered(2), 10, seed=3).batch(0)
    assert np.array_equal(batch.targets.numpy(), model.filtered(2).sample(10, seed=3).leaves)


def test_bounded_and_endless_sources(model):
    bounded = FreshBatches(model, 4, n_batches=3, prefetch=2)
    assert len(bounded) == 3
    assert len(list(bounded)) == 3
    with pytest.raises(ArgumentError, match="below 3, got 3"):
        bounded.batch(3)
    endless = FreshBatches(model, 4)
    assert len(list(itertools.islice(endless, 5))) == 5
    with pytest.raises(TypeError, match="endless"):
        len(endless)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"task": "next"}, "task"),
        ({"n_batches": -1}, "n_batches"),
        ({"prefetch": 0}, "prefetch"),
        ({"start": -1}, "start"),
        ({"mask_rate": 2.0}, "rate"),
        ({"mask_seed": -1}, "seed"),
    ],
)
def test_source_errors(model, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        FreshBatches(model, **({"batch_size": 4} | arguments))
    with pytest.raises(ArgumentError, match="step"):
        FreshBatches(model, 4).batch(-1)


@pytest.mark.parametrize("module", [data_module, masks_module])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0
