"""The windowed posterior against Bayes' rule over all sequences, evidence outside blanked out."""

from __future__ import annotations

import numpy as np
import pytest
from bayes import channel_fields, leaf_laws
from cases import CASES, FIELD_KINDS, problem
from oracle import all_sequences

import hfilter
from hfilter.errors import ArgumentError, DTypeError
from hfilter.oracles import ExactBP, Predictor, Window

# Left out: what is large for Bayes' rule written out, and probabilities that sums of them lose.
OUT = ("wide-alphabet", "dense-q2-l3", "log_normal-q3-l3", "rare-rules-deeper")
NAMES = tuple(case.name for case in CASES if case.name not in OUT)
ROWS = 4


def close(got: object, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12, equal_nan=True)


def published(depth: int = 3) -> hfilter.TreeModel:
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=depth)


def windows(arity: int, depth: int, height: int) -> np.ndarray:
    """Whether leaf i is in the subtree of that height around leaf j, (L, L)."""
    block = np.arange(arity**depth) // arity**height
    return np.asarray(block[:, None] == block[None])


@pytest.mark.parametrize("name", NAMES)
def test_window(name: str) -> None:
    depth = problem(name, 0).model.depth
    for k in range(depth + 1):
        case = problem(name, k)
        law = case.law.sequence_law()
        rows = all_sequences(case.q, case.model.n_leaves)
        rows, law = rows[law > 0], law[law > 0]
        evidence = case.tokens()
        assert evidence.leaves is not None
        assert evidence.mask is not None
        tokens, mask = evidence.leaves[:ROWS], evidence.mask[:ROWS]
        fields = channel_fields(tokens, mask, case.q, 0.0)
        for height in range(depth + 1):
            near = windows(case.model.arity, depth, height)
            want = leaf_laws(rows, law, fields, near)
            close(Window(case.model, height).predict(tokens, mask), want)


def test_window_of_the_root() -> None:
    model = published()
    leaves = model.sample(4, seed=0).leaves
    assert (Window(model, 3).predict_root(leaves) == ExactBP(model).predict_root(leaves)).all()
    with pytest.raises(ArgumentError, match=r"height 3, the whole tree, got 2.*filtered\(1\)"):
        Window(model, 2).predict_root(leaves)


@pytest.mark.parametrize("kind", ["soft", "zeros"])
def test_window_of_fields(kind: str) -> None:
    case = problem("levels-4-2-3-2", 1)
    law = case.law.sequence_law()
    rows = all_sequences(case.q, case.model.n_leaves)
    fields = FIELD_KINDS[kind](np.random.default_rng(0), (4, case.model.n_leaves, case.q))
    for height in range(4):
        want = leaf_laws(rows[law > 0], law[law > 0], fields, windows(2, 3, height))
        close(Window(case.model, height).predict(log_fields=fields), want)


def test_a_large_model_block_by_block() -> None:
    """Where no enumeration goes: leave-one-out with everything outside one block hidden."""
    model = published(6)
    leaves = model.sample(3, seed=0).leaves
    for k in (0, 2, 5):
        bp = ExactBP(model.filtered(k))
        for height in range(7):
            near = windows(2, 6, height)
            got = Window(model.filtered(k), height).predict(leaves)
            for j in (0, 17, 40, 63):
                hidden = np.broadcast_to(~near[j], leaves.shape)
                close(got[:, j], bp.predict(leaves, hidden)[:, j])


def test_interface() -> None:
    torch = pytest.importorskip("torch")
    model = published()
    window = Window(model, 2)
    assert isinstance(window, Predictor)
    leaves = model.sample(9, seed=3).leaves
    mask = np.random.default_rng(0).random(leaves.shape) < 0.3
    law = window.predict(leaves, mask)
    assert law.dtype == np.float64
    assert (window.predict(np.where(mask, 4, leaves)) == law).all()
    assert (window.predict(leaves[4:], mask[4:]) == law[4:]).all()
    far = leaves.copy()
    far[:, 4:] = (far[:, 4:] + 1) % 4
    close(window.predict(far, mask)[:, :4], law[:, :4])
    tensor = window.predict(torch.from_numpy(leaves), torch.from_numpy(mask))
    assert isinstance(tensor, torch.Tensor)
    assert (tensor.numpy() == law).all()
    assert Window(model, 1, dtype="float32").predict(leaves).dtype == np.float32


def test_bad_input() -> None:
    model = published()
    with pytest.raises(ArgumentError, match="height must be an integer from 0 to 3, got 4"):
        Window(model, 4)
    with pytest.raises(DTypeError, match=r"model must be a hfilter\.TreeModel, got Grammar"):
        Window(model.grammar, 1)  # type: ignore[arg-type]
