"""Truth: derivatives by the kernels against finite differences, and against enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from oracle import Enumeration

import hfilter
from hfilter.errors import ArgumentError, DTypeError, ShapeError

torch = pytest.importorskip("torch", reason="torch is an optional extra")
from hfilter.differentiable import log_evidence, log_rules_of, posterior  # noqa: E402
from hfilter.rates import Directions, _in_torch, rates_of  # noqa: E402

GRAMMARS = {
    "forbidden": (hfilter.Grammar.published(3, 1.0, 0, rules_per_symbol=2), 2),
    "dense-arity-3": (hfilter.Grammar.dense(2, seed=1, arity=3), 2),
    "per-level": (
        hfilter.Grammar.random_hierarchy(
            vocab_size=3, rules_per_symbol=2, depth=2, n_classes=2, seed=0
        ),
        2,
    ),
    "deep": (hfilter.Grammar.published(2, 1.0, 1), 3),
}
PLACES = [(name, k) for name, (_, depth) in GRAMMARS.items() for k in range(depth + 1)]


def double(shape: tuple[int, ...], seed: int) -> Any:
    x = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(x).requires_grad_()


def make(name: str, k: int) -> hfilter.TreeModel:
    grammar, depth = GRAMMARS[name]
    return hfilter.TreeModel(grammar, depth=depth, filter_level=k)


def variables(model: hfilter.TreeModel) -> tuple[Any, Any, Any]:
    rules = log_rules_of(model) + 0.1 * double((model.grammar.n_rules,), 1).detach()
    fields = double((2, model.n_leaves, model.vocab_size), 0)
    return fields, rules.requires_grad_(), double((model.n_classes,), 2)


@pytest.mark.parametrize(("name", "k"), PLACES)
@pytest.mark.parametrize("backend", [None, "python"])
def test_gradients_of_the_evidence_twice(name: str, k: int, backend: str | None) -> None:
    model = make(name, k)

    def value(fields: Any, rules: Any, prior: Any) -> Any:
        return log_evidence(
            model, log_fields=fields, log_rules=rules, log_prior=prior, backend=backend
        )

    if backend is None or (name, k) in PLACES[1::3]:  # plain Python takes its time
        assert torch.autograd.gradcheck(value, variables(model))
        assert torch.autograd.gradgradcheck(value, variables(model), atol=1e-6)


@pytest.mark.parametrize(("name", "k"), PLACES)
def test_gradients_of_posteriors(name: str, k: int) -> None:
    model = make(name, k)
    inner = tuple(d for d in model.existing_levels if 0 < d < model.depth)

    def value(fields: Any, rules: Any, prior: Any) -> Any:
        found = posterior(model, log_fields=fields, log_rules=rules, log_prior=prior, levels=inner)
        return found.root, found.leaves, found.counts, *found.levels.values()

    assert torch.autograd.gradcheck(value, variables(model))


@pytest.mark.parametrize(("name", "k"), PLACES)
def test_tokens_with_a_mask_and_parameters(name: str, k: int) -> None:
    model = make(name, k)
    tokens = torch.from_numpy(model.sample(3, seed=0).leaves)
    mask = torch.from_numpy(np.random.default_rng(0).random(tokens.shape) < 0.4)
    _, rules, prior = variables(model)

    def value(rules: Any, prior: Any) -> Any:
        return log_evidence(model, tokens, mask, log_rules=rules, log_prior=prior)

    assert torch.autograd.gradcheck(value, (rules, prior))
    # The same through fields, which another road of the kernels reads.
    seen = torch.nn.functional.one_hot(tokens.long(), model.vocab_size).bool() | mask[..., None]
    seen = torch.where(seen, 0.0, -float("inf")).double()
    fields = seen.requires_grad_()
    torch.testing.assert_close(
        log_evidence(model, log_fields=fields, log_rules=rules, log_prior=prior),
        value(rules, prior),
    )
    log_evidence(model, log_fields=fields).sum().backward()
    assert torch.isfinite(fields.grad).all()


@pytest.mark.parametrize("case", [c for c in CASES if c.depth <= 2], ids=lambda c: c.name)
def test_second_derivatives_are_covariances(case: Case) -> None:
    """Of leaf symbols under the enumerated posterior: no difference quotient in it."""
    grammar = case.make()
    depth = case.depth
    for k in range(depth + 1):
        model = hfilter.TreeModel(grammar, depth, k, root_prior=case.prior)
        if model.n_leaves * model.vocab_size > 40:
            continue
        tensors = [grammar.tensor(0 if grammar.is_shared else d) for d in range(depth)]
        judge = Enumeration(tensors, model.root_prior, depth, k)
        fields = double((1, model.n_leaves, model.vocab_size), 3)
        eps, base = 1e-5, fields.detach().numpy()
        beliefs = posterior(model, log_fields=fields).leaves
        for j in range(0, model.n_leaves, 2):
            (row,) = torch.autograd.grad(beliefs[0, j, 0], fields, retain_graph=True)
            up, down = base.copy(), base.copy()
            up[0, j, 0] += eps
            down[0, j, 0] -= eps
            want = (judge.infer(up).beliefs[depth] - judge.infer(down).beliefs[depth]) / (2 * eps)
            np.testing.assert_allclose(row.numpy(), want, atol=2e-9)


@pytest.mark.parametrize(("name", "k"), PLACES)
def test_kernel_and_torch_text_agree(name: str, k: int) -> None:
    model = make(name, k)
    fields = torch.from_numpy(
        np.random.default_rng(4).normal(size=(37, model.n_leaves, model.vocab_size)) * 5
    )
    levels = {
        d: torch.from_numpy(np.random.default_rng(d).normal(size=(37, model.n_nodes(d), model.alphabets[d])))
        for d in model.existing_levels
    }  # fmt: skip
    rules = torch.from_numpy(np.random.default_rng(9).normal(size=(37, model.grammar.n_rules)))
    channels = None
    if k:
        channels = torch.from_numpy(
            np.random.default_rng(8).normal(size=(37, *model.channels.shape))
        )
    directions = Directions(levels, rules, channels)
    known = (None, None, fields)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-4)):
        for threads in (1, 2):
            got = rates_of(model, known, directions, dtype, None, threads)
            want = _in_torch(model, known, directions, "float64")
            for x, y in zip(got, want, strict=True):
                torch.testing.assert_close(x.double(), y, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "k"), PLACES)
@pytest.mark.parametrize("backend", [None, "python"])
def test_without_counts_the_beliefs_and_their_gradients_are_the_same(
    name: str, k: int, backend: str | None
) -> None:
    model = make(name, k)
    fields = double((5, model.n_leaves, model.vocab_size), 6)
    every, few = (
        posterior(model, log_fields=fields, counts=counts, backend=backend)
        for counts in (True, False)
    )
    assert few.counts is None
    gradients = [
        torch.autograd.grad(x.leaves.square().sum() + x.root[:, 0].sum(), fields)[0]
        for x in (every, few)
    ]
    torch.testing.assert_close(few.leaves, every.leaves, rtol=0, atol=1e-14)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)


def test_contradictory_fields_keep_their_gradients() -> None:
    """Fields of ±1e6 nats leave every range; covariances of what is certain are zero, not NaN."""
    model = make("deep", 0)
    fields = (1e6 * double((4, model.n_leaves, model.vocab_size), 5).detach()).requires_grad_()
    found = posterior(model, log_fields=fields)
    found.leaves.square().sum().backward()
    assert torch.isfinite(fields.grad).all()
    assert torch.isfinite(found.counts).all()


def test_impossible_rows_are_nan_and_alone() -> None:
    model = make("forbidden", 0)
    fields = torch.zeros(2, model.n_leaves, model.vocab_size, dtype=torch.float64)
    fields[0] = -float("inf")
    fields.requires_grad_()
    value = log_evidence(model, log_fields=fields)
    assert value[0] == -float("inf")
    value.sum().backward()
    assert torch.isnan(fields.grad[0]).all()
    assert torch.isfinite(fields.grad[1]).all()


def test_a_model_learns_its_rules_by_gradients() -> None:
    truth = hfilter.TreeModel(hfilter.Grammar.published(3, 1.0, 0), depth=2)
    leaves = torch.from_numpy(truth.sample(4000, seed=1).leaves)
    first = truth.grammar.tables[0].first
    logits = torch.zeros(truth.grammar.n_rules, dtype=torch.float64, requires_grad=True)
    step = torch.optim.LBFGS([logits], max_iter=50, line_search_fn="strong_wolfe")

    def rules() -> Any:
        parts = [logits[a:b].log_softmax(0) for a, b in itertools.pairwise(first)]
        return torch.cat(parts)

    def closure() -> Any:
        step.zero_grad()
        loss = -log_evidence(truth, leaves, log_rules=rules()).mean()
        loss.backward()
        return loss

    step.step(closure)
    assert closure() <= -log_evidence(truth, leaves, dtype="float64").mean() + 1e-9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"log_fields": np.zeros((1, 4, 3))}, DTypeError, "log_fields must be a torch tensor"),
        ({}, ArgumentError, "exactly one of leaves"),
        (
            {"log_fields": torch.zeros(1, 4, 3, dtype=torch.float16)},
            DTypeError,
            "float32 or float64",
        ),
        ({"log_fields": torch.zeros(1, 3, 3)}, ShapeError, "log_fields must have shape"),
        (
            {"log_fields": torch.zeros(1, 4, 3), "log_rules": torch.zeros(3)},
            ShapeError,
            "log_rules must have shape",
        ),
        (
            {"log_fields": torch.zeros(1, 4, 3), "log_rules": torch.full((6,), -float("inf"))},
            ArgumentError,
            "log_rules must be finite",
        ),
        (
            {"log_fields": torch.zeros(1, 4, 3), "log_prior": torch.full((3,), -float("inf"))},
            ArgumentError,
            "log_prior must be below",
        ),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        log_evidence(make("forbidden", 0), **arguments)


def test_other_doors_say_where_gradients_are() -> None:
    model = make("forbidden", 0)
    fields = torch.zeros(1, 4, 3, requires_grad=True)
    with pytest.raises(ArgumentError, match=r"hfilter\.differentiable"):
        model.infer(log_fields=fields)
