"""Oracle predictors of a tree model: exact and mixed, each against Bayes' rule written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bayes import channel_fields, leaf_laws
from cases import CASES, FIELD_KINDS, problem
from oracle import Enumeration, all_sequences

import hfilter
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.oracles import (
    ExactBP,
    MixtureK,
    Predictor,
    include_evidence,
    noisy_fields,
)

TOLERANCE = 1e-12
LARGE = (
    "wide-alphabet",
    "dense-q2-l3",
)  # for Bayes' rule written out; others are of their families
SMALL = tuple(case for case in CASES if case.name not in LARGE)
NAMES = tuple(case.name for case in SMALL)
TURNS = tuple((case.name, i % (case.depth + 1)) for i, case in enumerate(SMALL))  # a level each


def close(got: Any, want: np.ndarray, atol: float = TOLERANCE) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, equal_nan=True)


def published(depth: int = 3) -> hfilter.TreeModel:
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=depth)


# ------------------------------------------------------------------------------------------ BP_k


@pytest.mark.parametrize(("name", "k"), TURNS)
def test_exact_bp(name: str, k: int) -> None:
    """What it asks of the model, for which test_truth.py answers, is the right question."""
    case = problem(name, k)
    tokens = case.tokens()
    bp = ExactBP(case.model)
    close(bp.predict(tokens.leaves, tokens.mask), tokens.answer.leave_one_out)
    close(bp.predict_root(tokens.leaves, tokens.mask), tokens.answer.root)


@pytest.mark.parametrize(("name", "k"), TURNS)
def test_exact_bp_through_noise(name: str, k: int) -> None:
    case = problem(name, k)
    tokens = case.tokens()
    assert tokens.leaves is not None
    for noise in (0.1, 1.0):
        fields = channel_fields(tokens.leaves, tokens.mask, case.q, noise)
        close(np.exp(noisy_fields(tokens.leaves, case.q, noise, tokens.mask)), np.exp(fields))
        answer = case.law.infer(fields)
        bp = ExactBP(case.model, noise=noise)
        close(bp.predict(tokens.leaves, tokens.mask), answer.leave_one_out)
        close(bp.predict_root(tokens.leaves, tokens.mask), answer.root)
        belief = include_evidence(bp.predict(tokens.leaves, tokens.mask), fields)
        close(belief, answer.beliefs[case.model.depth])


# --------------------------------------------------------------------------------------- mixture


def mixed_weights(n: int) -> np.ndarray:
    weights = np.random.default_rng(n).exponential(size=n)
    if n > 2:
        weights[1] = 0.0
    return np.asarray(weights / weights.sum())


def mixed_fields(laws: list[Enumeration], weights: np.ndarray, fields: np.ndarray) -> Any:
    """Components and root by Bayes' rule over the components' enumerations."""
    answers = [law.infer(fields) for law in laws]
    joint = np.stack([a.log_evidence for a in answers], axis=1)
    peak = joint[:, weights > 0].max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        share = weights * np.exp(joint - peak)
        share /= share.sum(axis=1, keepdims=True)
    roots = np.nan_to_num(np.stack([a.root for a in answers], axis=1))
    return share, (share[..., None] * roots).sum(axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_mixture(name: str) -> None:
    model = problem(name, 0).model
    cases = [problem(name, k) for k in range(model.depth + 1)]
    weights = mixed_weights(len(cases))
    mixture = MixtureK([case.model for case in cases], weights)
    law = sum(w * case.law.sequence_law() for w, case in zip(weights, cases, strict=True))
    rows = all_sequences(model.vocab_size, model.n_leaves)
    rows, law = rows[law > 0], law[law > 0]
    evidence = cases[0].tokens()
    assert evidence.leaves is not None
    assert evidence.mask is not None
    tokens, mask = evidence.leaves[:12], evidence.mask[:12]
    fields = channel_fields(tokens, mask, model.vocab_size, 0.0)
    share, root = mixed_fields([case.law for case in cases], weights, fields)
    close(mixture.predict(tokens, mask), leaf_laws(rows, law, fields))
    close(mixture.predict_root(tokens, mask), root)
    close(mixture.predict_component(tokens, mask), share)


@pytest.mark.parametrize("kind", ["soft", "zeros", "offset", "spread-50"])
@pytest.mark.parametrize("name", ["log_normal-forbidden", "random_hierarchy", "levels-4-2-3-2"])
def test_mixture_of_fields(name: str, kind: str) -> None:
    model = problem(name, 0).model
    cases = [problem(name, k) for k in range(model.depth + 1)]
    weights = np.full(len(cases), 1 / len(cases))
    mixture = MixtureK([case.model for case in cases])
    rng = np.random.default_rng(1)
    fields = FIELD_KINDS[kind](rng, (6, model.n_leaves, model.vocab_size))
    law = sum(case.law.sequence_law() for case in cases) / len(cases)
    rows = all_sequences(model.vocab_size, model.n_leaves)
    exact = leaf_laws(rows[law > 0], law[law > 0], fields)
    close(mixture.predict(log_fields=fields), exact, 1e-11)
    plain = fields if kind != "offset" else fields - fields.max(axis=2, keepdims=True)
    share, root = mixed_fields([case.law for case in cases], weights, plain)
    close(mixture.predict_root(log_fields=fields), root, 1e-11)
    close(mixture.predict_component(log_fields=fields), share, 1e-11)


def test_mixture_asks_again_only_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that no model can produce, all but one of its leaves right: 0/0 in every quotient."""
    model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2, root_prior=[1.0, 0.0])
    asked = []
    real = hfilter.TreeModel.log_prob
    monkeypatch.setattr(
        hfilter.TreeModel,
        "log_prob",
        lambda self, leaves=None, *a, **o: asked.append(len(leaves)) or real(self, leaves, *a, **o),
    )
    law = MixtureK([model]).predict([[0, 0, 0, 0], [0, 0, 0, 1]])
    assert asked == [2, 4], "two rows once, and the four leaves of the second"
    close(law[1], np.array([[0.0, 1.0]] * 3 + [[1.0, 0.0]]))


def test_mixture_knows_how_much_a_row_tells_of_its_level() -> None:
    """I(K; X) and the accuracies of the equal mixture, by summing over all 65 536 sequences."""
    model = published()
    levels = [model.filtered(k) for k in range(4)]
    mixture = MixtureK(levels)
    x = all_sequences(4, 8).astype(np.uint8)
    laws = [np.exp(m.log_prob(x, dtype="float64")) for m in levels]
    share = mixture.predict_component(x)
    nats = np.where(share > 0, share * np.log(np.maximum(share, 1e-300) * 4), 0.0).sum(axis=1)
    assert abs(float((sum(laws) / 4) @ nats) - 0.318) < 5e-4
    guess = mixture.predict_root(x).argmax(axis=1)
    for law, m, wanted in zip(laws, levels, (0.872, 0.745, 0.635, 0.571), strict=True):
        right = np.take_along_axis(m.root_posterior(x, dtype="float64"), guess[:, None], 1)[:, 0]
        assert abs(float(law @ right) - wanted) < 1.5e-3


# ----------------------------------------------------------------------------- all of them alike


def predictors(model: hfilter.TreeModel) -> dict[str, Predictor]:
    return {
        "exact": ExactBP(model.filtered(1)),
        "noisy": ExactBP(model, noise=0.2),
        "mixture": MixtureK([model, model.filtered(2)], [0.25, 0.75]),
    }


@pytest.mark.parametrize("name", ["exact", "noisy", "mixture"])
def test_interface(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both spellings of a hidden leaf, any split of the batch, tensors for tensors."""
    torch = pytest.importorskip("torch")
    model = published()
    predictor = predictors(model)[name]
    assert isinstance(predictor, Predictor)
    leaves = model.sample(9, seed=3).leaves
    mask = np.random.default_rng(0).random(leaves.shape) < 0.3
    law, root = predictor.predict(leaves, mask), predictor.predict_root(leaves, mask)
    assert law.shape == (9, 8, 4)
    assert root.shape == (9, 4)
    assert law.dtype == root.dtype == np.float64
    other = np.where(mask, 4, leaves)
    assert (predictor.predict(other) == law).all()
    assert (predictor.predict_root(other) == root).all()
    own = leaves.copy()
    own[:, 2] = (own[:, 2] + 1) % 4  # a leaf's own token has no say in its law
    close(predictor.predict(own, mask)[:, 2], law[:, 2])
    for tensor, array in (
        (predictor.predict(torch.from_numpy(leaves), torch.from_numpy(mask)), law),
        (predictor.predict_root(torch.from_numpy(leaves), torch.from_numpy(mask)), root),
    ):
        assert isinstance(tensor, torch.Tensor)
        assert (tensor.numpy() == array).all()
    monkeypatch.setattr("hfilter.oracles.interface.BLOCK_VALUES", 64)  # two rows at a time
    assert (predictor.predict(leaves, mask) == law).all()
    assert (predictor.predict_root(leaves, mask) == root).all()
    assert (predictor.predict(leaves[4:], mask[4:]) == law[4:]).all()
    assert predictor.predict(leaves[:0]).shape == (0, 8, 4)
    assert predictor.predict_root(leaves[:0]).shape == (0, 4)


def test_what_lies_on_a_device_comes_back_there() -> None:
    """The host computes; the result is sent to where the evidence was (here: nowhere)."""
    torch = pytest.importorskip("torch")
    leaves = torch.from_numpy(published().sample(3, seed=0).leaves)
    away = type("Tensor", (), {"__module__": "torch.far", "cpu": lambda self: leaves})()
    away.device = torch.device("meta")
    law = MixtureK([published()]).predict(away)
    assert (law.device.type, tuple(law.shape)) == ("meta", (3, 8, 4))
    away.shape = leaves.shape
    assert noisy_fields(away, 4, 0.1).device.type == "meta"


def test_single_precision() -> None:
    model = published()
    leaves = model.sample(5, seed=3).leaves
    for made in (
        ExactBP(model, dtype="float32"),
        ExactBP(model, noise=0.1, dtype="float32"),
        MixtureK([model], dtype="float32"),
    ):
        assert made.predict(leaves).dtype == np.float32
    close(MixtureK([model], dtype="float32").predict(leaves), ExactBP(model).predict(leaves), 1e-6)


def test_bad_input() -> None:
    model = published()
    other = published(2)
    leaves = model.sample(3, seed=0).leaves
    wrong: list[tuple[type[Exception], str, Any]] = [
        (
            DTypeError,
            "model must be a hfilter.TreeModel, got Grammar",
            lambda: ExactBP(model.grammar),
        ),
        (ArgumentError, "noise must be .*\\[0, 1\\], got 1.5", lambda: ExactBP(model, noise=1.5)),
        (DTypeError, "dtype must be", lambda: ExactBP(model, dtype="float16")),
        (ArgumentError, "non-empty list or tuple", lambda: MixtureK([])),
        (ArgumentError, "non-empty list or tuple", lambda: MixtureK(model)),  # type: ignore[arg-type]
        (DTypeError, "models\\[1\\] must be", lambda: MixtureK([model, 3])),  # type: ignore[list-item]
        (ArgumentError, "models\\[0\\] has \\(8, 4, 4\\)", lambda: MixtureK([model, other])),
        (ShapeError, "weights must have shape \\(2,\\)", lambda: MixtureK([model, model], [1.0])),
        (ArgumentError, "sum to 1", lambda: MixtureK([model, model], [0.5, 0.6])),
        (ArgumentError, "non-negative", lambda: MixtureK([model, model], [1.5, -0.5])),
        (DTypeError, "weights must be 1", lambda: MixtureK([model], ["a"])),
        (
            ShapeError,
            "\\(n, 8\\), got \\(3, 7\\)",
            lambda: MixtureK([model]).predict(leaves[:, 1:]),
        ),
        (ArgumentError, "0 … 3, or 4", lambda: ExactBP(model, noise=0.1).predict(leaves + 9)),
        (ArgumentError, "exactly one of leaves", lambda: MixtureK([model]).predict()),
        (ShapeError, "leaves must have shape", lambda: noisy_fields([0, 1], 2, 0.1)),
        (ShapeError, "shape of law", lambda: include_evidence(np.ones((2, 3)), np.ones((3, 3)))),
        (
            DTypeError,
            "law must be floating",
            lambda: include_evidence(np.ones((2, 3), int), leaves),
        ),
    ]
    for error, text, call in wrong:
        with pytest.raises(error, match=text):
            call()
