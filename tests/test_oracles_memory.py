"""The memoriser against Bayes' rule over its rows, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bayes import channel_fields, leaf_laws, root_laws
from cases import FIELD_KINDS

from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.oracles import ExactBP, Memorizer, Predictor, include_evidence
from hfilter.oracles import memory as module

SHAPES = ((1, 1, 2), (3, 2, 2), (40, 4, 3), (60, 7, 4), (9, 5, 1), (25, 3, 300))  # P, L, q
CLASSES = 3


def data(shape: tuple[int, int, int], rows: int = 14) -> tuple[Any, ...]:
    """Stored rows (some twice), roots, and questions: stored rows, changed ones, hidden leaves."""
    count, length, q = shape
    rng = np.random.default_rng(count)
    stored = rng.integers(q, size=(count, length))
    stored[count // 2] = stored[0]
    roots = rng.integers(CLASSES, size=count)
    tokens = stored[rng.integers(count, size=rows)]
    tokens[::3] = rng.integers(q, size=tokens[::3].shape)
    changed = rng.integers(length, size=rows)
    tokens[np.arange(rows), changed] = rng.integers(q, size=rows)
    mask = rng.random(tokens.shape) < np.resize([0.0, 0.0, 0.3, 0.6, 1.0], rows)[:, None]
    return stored, roots, tokens, mask


def judge(memory: Memorizer, fields: np.ndarray, asked: dict[str, Any], atol: float) -> None:
    stored, even = memory.dataset.astype(int), np.ones(len(memory.dataset))
    assert memory.roots is not None
    law = leaf_laws(stored, even, fields)
    root = root_laws(stored, even, memory.roots.astype(int), fields, CLASSES)
    np.testing.assert_allclose(memory.predict(**asked), law, rtol=0, atol=atol)
    np.testing.assert_allclose(memory.predict_root(**asked), root, rtol=0, atol=atol)


@pytest.mark.parametrize("noise", [0.0, 1e-100, 1e-200, 1e-3, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tokens(shape: tuple[int, int, int], noise: float) -> None:
    stored, roots, tokens, mask = data(shape)
    q = shape[2]
    memory = Memorizer(stored, q, roots=roots, n_classes=CLASSES, noise=noise)
    fields = channel_fields(tokens, mask, q, noise)
    judge(memory, fields, {"leaves": tokens, "mask": mask}, 1e-12)
    judge(memory, channel_fields(tokens, None, q, noise), {"leaves": tokens}, 1e-12)


@pytest.mark.parametrize("kind", FIELD_KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fields(shape: tuple[int, int, int], kind: str) -> None:
    """Fields of all sizes, among them those that one exponential cannot hold."""
    stored, roots, _, _ = data(shape)
    memory = Memorizer(stored, shape[2], roots=roots, n_classes=CLASSES)
    fields = FIELD_KINDS[kind](np.random.default_rng(5), (8, *shape[1:]))
    plain = fields if kind != "offset" else fields - fields.max(axis=2, keepdims=True)
    judge(memory, plain, {"log_fields": fields}, 1e-9 if kind == "offset" else 2e-11)


def test_one_leaf_that_decides_hides_nothing_of_the_others() -> None:
    """Without the first leaf, by far the strongest, what the second says counts in full."""
    memory = Memorizer([[0, 0], [1, 1]], 2)
    fields = np.array([[[0.0, -900.0], [-1.0, 0.0]]])
    want = 1 / (1 + np.e)
    np.testing.assert_allclose(
        memory.predict(log_fields=fields), [[[want, 1 - want], [1.0, 0.0]]], atol=1e-15
    )


def test_a_row_that_misses_at_one_leaf_outshines_none_that_match() -> None:
    """Weights of 1 and exp(-1000): the larger is of a row that counts for its one wrong leaf only."""
    memory = Memorizer([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], 2)
    fields = np.zeros((1, 5, 2))
    fields[0, 0, 0] = -np.inf
    fields[0, 1:, 1] = -250.0
    law = memory.predict(log_fields=fields)[0]
    np.testing.assert_allclose(law, [[1.0, 0.0]] + [[0.0, 1.0]] * 4, atol=1e-100)


def test_beliefs_take_the_own_evidence_in() -> None:
    stored, _, tokens, mask = data((60, 7, 4))
    fields = channel_fields(tokens, mask, 4, 0.2)
    belief = include_evidence(Memorizer(stored, 4, noise=0.2).predict(tokens, mask), fields)
    for r in range(len(tokens)):
        weight = np.exp(sum(fields[r, j][stored[:, j]] for j in range(7)))
        for j in range(7):
            want = np.bincount(stored[:, j], weights=weight, minlength=4) / weight.sum()
            np.testing.assert_allclose(belief[r, j], want, atol=1e-13)


def test_where_nothing_matches() -> None:
    tokens = [[0, 1, 1], [1, 1, 1], [1, 1, 3]]
    stored = [[0, 0, 0], [0, 2, 0]]
    law = Memorizer(stored, 3).predict(tokens)
    assert np.isnan(law[:2]).all(), "two leaves are wrong, whichever is left out"
    assert np.isnan(Memorizer(stored, 3, roots=[0, 1]).predict_root(tokens)).all()
    even = Memorizer(stored, 3, roots=[0, 1], no_match="uniform")
    assert (even.predict(tokens)[:2] == 1 / 3).all()
    assert (even.predict_root(tokens) == 0.5).all()
    one = Memorizer(stored, 3).predict([[0, 1, 0]])[0]
    assert one[1].tolist() == [0.5, 0.0, 0.5], "a row that misses at one leaf tells this leaf"
    assert np.isnan(one[[0, 2]]).all()


def test_all_rows_count_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, roots, tokens, mask = data((60, 7, 4), rows=40)
    for noise in (0.0, 0.1):
        memory = Memorizer(stored, 4, roots=roots, noise=noise)
        law, root = memory.predict(tokens, mask), memory.predict_root(tokens, mask)
        order = np.random.default_rng(0).permutation(60)
        other = Memorizer(stored[order], 4, roots=roots[order], noise=noise)
        np.testing.assert_allclose(other.predict(tokens, mask), law, atol=1e-14)
        with monkeypatch.context() as m:
            m.setattr(module, "_WORK", 28 * 5)  # five rows of either kind at a time
            np.testing.assert_allclose(memory.predict(tokens, mask), law, atol=1e-14)
            np.testing.assert_allclose(memory.predict_root(tokens, mask), root, atol=1e-14)
        np.testing.assert_allclose(memory.predict(tokens[7:], mask[7:]), law[7:], atol=1e-14)
    fewer = Memorizer(stored[:-1], 4, noise=0.1).predict(tokens, mask)
    assert np.abs(fewer - law).max() > 1e-3, "the last row counts"


def test_interface() -> None:
    torch = pytest.importorskip("torch")
    stored, roots, tokens, mask = data((60, 7, 4))
    memory = Memorizer(torch.from_numpy(stored), 4, roots=torch.from_numpy(roots), noise=0.1)
    assert isinstance(memory, Predictor)
    law = memory.predict(tokens, mask)
    assert (memory.predict(np.where(mask, 4, tokens)) == law).all()
    for got in (
        memory.predict(torch.from_numpy(tokens), torch.from_numpy(mask)),
        memory.predict_root(torch.from_numpy(tokens), torch.from_numpy(mask)),
    ):
        assert isinstance(got, torch.Tensor)
    assert memory.predict(tokens[:0]).shape == (0, 7, 4)
    stored[:] = 0
    assert (memory.predict(tokens, mask) == law).all(), "the stored rows are the memoriser's own"
    low = Memorizer(memory.dataset, 4, noise=0.1, dtype="float32").predict(tokens, mask)
    assert low.dtype == np.float32
    np.testing.assert_allclose(low, law, atol=1e-7)


def test_many_rows_of_a_model_approach_its_posterior() -> None:
    """With every sequence stored as often as it is likely, memory and inference are one."""
    import hfilter

    model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2, root_prior=[1.0, 0.0])
    sequences = np.indices((2,) * 4).reshape(4, -1).T
    even = sequences[sequences.sum(axis=1) % 2 == 0]
    for noise in (0.0, 0.2):
        memory, bp = Memorizer(even, 2, noise=noise), ExactBP(model, noise=noise)
        np.testing.assert_allclose(
            memory.predict(sequences), bp.predict(sequences), atol=1e-14, equal_nan=True
        )


def test_bad_input() -> None:
    rows = np.zeros((3, 2), int)
    wrong: list[tuple[type[Exception], str, Any]] = [
        (DTypeError, "dataset must be integers", lambda: Memorizer(rows * 1.0, 2)),
        (ShapeError, "dataset must have shape", lambda: Memorizer(rows[0], 2)),
        (ShapeError, "both at least 1, got \\(0, 2\\)", lambda: Memorizer(rows[:0], 2)),
        (ArgumentError, "dataset must be from 0 to 1", lambda: Memorizer(rows + 2, 2)),
        (ShapeError, "roots must have shape \\(3,\\)", lambda: Memorizer(rows, 2, roots=[0])),
        (ArgumentError, "roots must be from 0 to 1",
         lambda: Memorizer(rows, 2, roots=[0, 1, 2], n_classes=2)),
        (ArgumentError, "needs the roots", lambda: Memorizer(rows, 2).predict_root(rows)),
        (ArgumentError, "noise must be", lambda: Memorizer(rows, 2, noise=-0.1)),
        (ArgumentError, "no_match must be",
         lambda: Memorizer(rows, 2, no_match="zero")),  # type: ignore[arg-type]
        (ShapeError, "\\(n, 2\\), got \\(3, 1\\)", lambda: Memorizer(rows, 2).predict(rows[:, 1:])),
    ]  # fmt: skip
    for error, text, call in wrong:
        with pytest.raises(error, match=text):
            call()
