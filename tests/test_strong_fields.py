"""Fields so strong that products of messages leave the range of single precision: the answers stay the exact ones."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import hfilter
from hfilter import Grammar, TreeModel, differentiable

COMPILED = tuple(
    name for name in ("avx512", "avx2", "portable")
    if name in hfilter.backends() and hfilter.backends()[name].available
)  # fmt: skip
pytestmark = pytest.mark.skipif(not COMPILED, reason="no compiled backend")
ROWS = 35
MODELS = {
    "all pairs": lambda k: TreeModel(Grammar.published(4, 1.0, 0), 4, filter_level=k),
    "forbidden pairs": lambda k: TreeModel(
        Grammar.published(6, 1.0, 0, rules_per_symbol=4), 4, filter_level=k
    ),
    "few rules": lambda k: TreeModel(Grammar.log_normal(24, 1.0, 1, rules_per_symbol=3), 3, min(k, 3)),
    "ambiguous": lambda k: TreeModel(Grammar.dense(5, 0.5, 2), 3, min(k, 3)),
    "three children": lambda k: TreeModel(Grammar.random_hierarchy(4, 4, 3, arity=3, seed=0), 3, min(k, 3)),
}  # fmt: skip


@cache
def fields(name: str, k: int, strength: float) -> np.ndarray:
    """Half of the rows agree with a sequence of the model, half with none."""
    model = MODELS[name](k)
    rng = np.random.default_rng(5)
    leaves = model.sample(ROWS, seed=4).leaves
    leaves[::2] = rng.integers(model.vocab_size, size=leaves[::2].shape)
    own = np.eye(model.vocab_size)[leaves]
    return strength * own + strength / 6 * rng.standard_normal(own.shape)


@pytest.mark.parametrize("k", [0, 2, 4])
@pytest.mark.parametrize("strength", [20, 60, 150, 500])
@pytest.mark.parametrize("name", MODELS)
def test_single_precision_holds_strong_fields(name: str, strength: float, k: int) -> None:
    model, h = MODELS[name](k), fields(name, k, strength)
    exact = model.infer(log_fields=h, levels="all", dtype="float64")
    without = model.leave_one_out(log_fields=h, dtype="float64")
    for backend in COMPILED:
        for n in (1, ROWS):
            how = {"log_fields": h[:n], "backend": backend}
            got = model.infer(levels="all", **how)
            for d in model.existing_levels:
                np.testing.assert_allclose(got.level(d), exact.level(d)[:n], rtol=1e-4, atol=3e-7)
            np.testing.assert_allclose(got.log_evidence, exact.log_evidence[:n], rtol=2e-6)
            np.testing.assert_allclose(
                model.infer(**how).leaves, exact.leaves[:n], rtol=1e-4, atol=3e-7
            )
            np.testing.assert_allclose(
                model.leave_one_out(**how), without[:n], rtol=1e-4, atol=3e-7
            )
            np.testing.assert_allclose(
                model.root_posterior(**how), exact.root[:n], rtol=1e-4, atol=3e-7
            )


@pytest.mark.parametrize("name", ["all pairs", "forbidden pairs"])
def test_small_beliefs_are_not_lost(name: str) -> None:
    """Of evidence that agrees, beliefs keep their digits down to 1e-25; unlifted, messages lose some below 1e-13."""
    model, h = MODELS[name](0), fields(name, 0, 40)[1::2]
    exact = model.infer(log_fields=h, dtype="float64").leaves
    assert ((exact > 0) & (exact < 1e-20)).any()
    for backend in COMPILED:
        got = model.infer(log_fields=h, backend=backend).leaves
        np.testing.assert_allclose(got, exact, rtol=2e-4, atol=1e-29)


@pytest.mark.parametrize("name", ["all pairs", "forbidden pairs", "few rules"])
def test_rows_do_not_depend_on_strong_neighbours(name: str) -> None:
    weak, strong = fields(name, 0, 2), fields(name, 0, 200)
    model = MODELS[name](0)
    mixed = np.where((np.arange(ROWS) % 17 == 3)[:, None, None], strong, weak)
    for backend in COMPILED:
        alone = model.infer(log_fields=weak, levels="all", backend=backend)
        among = model.infer(log_fields=mixed, levels="all", backend=backend)
        same = np.flatnonzero(np.arange(ROWS) % 17 != 3)
        for d in model.existing_levels:
            np.testing.assert_array_equal(among.level(d)[same], alone.level(d)[same])
        np.testing.assert_array_equal(among.log_evidence[same], alone.log_evidence[same])
        for i in (0, 3, 4, 20):
            one = model.infer(log_fields=mixed[i : i + 1], backend=backend)
            np.testing.assert_array_equal(one.leaves[0], among.leaves[i])


def test_the_callers_small_numbers_stay() -> None:
    """Within a call subnormal numbers count as zero; after it they are back."""
    model, h = MODELS["all pairs"](0), fields("all pairs", 0, 200)
    for backend in COMPILED:
        model.infer(log_fields=h, backend=backend, num_threads=1)
        assert np.float32(1e-40) * np.float32(0.5) > 0


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("strength", [20, 60, 150])
@pytest.mark.parametrize("name", MODELS)
def test_trees_drawn_given_strong_fields(name: str, strength: float, k: int) -> None:
    """The draws are those of double precision: the words are the same, and no weight that counts is lost."""
    model, h = MODELS[name](k), fields(name, k, strength)
    for backend in COMPILED:
        how = {"log_fields": h, "n_samples": 20, "seed": 1, "backend": backend}
        got = model.sample_posterior(**how)
        exact = model.sample_posterior(**how, dtype="float64")
        # A word in 2^23 or so falls between a threshold and the same in double precision.
        assert (got.leaves != exact.leaves).any(axis=-1).sum() <= 1


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("strength", [20, 60, 150])
@pytest.mark.parametrize("name", MODELS)
def test_derivatives_at_strong_fields(name: str, strength: float, k: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model, h = MODELS[name](k), fields(name, k, strength)

    def gradient(dtype: str, backend: str) -> np.ndarray:
        given = torch.from_numpy(h.astype(np.float32).astype(dtype)).requires_grad_(True)
        beliefs = differentiable.posterior(model, log_fields=given, backend=backend).leaves
        (beliefs * torch.linspace(0, 1, beliefs.numel()).view_as(beliefs)).sum().backward()
        return given.grad.numpy()

    for backend in COMPILED:
        exact = gradient("float64", backend)
        np.testing.assert_allclose(gradient("float32", backend), exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("strength", [2, 5, 9])
@pytest.mark.parametrize("k", [0, 3])
def test_every_question_is_answered_without_the_neighbours(strength: float, k: int) -> None:
    """Rows on both sides of where messages begin to be normalised, in a tree deep enough to spend much range."""
    model = TreeModel(Grammar.published(4, 1.0, 3), 8, filter_level=k)
    rng = np.random.default_rng(7)
    leaves = model.sample(32, seed=2).leaves
    leaves[::2] = rng.integers(4, size=leaves[::2].shape)
    h = strength * np.eye(4)[leaves] + strength / 2 * rng.standard_normal((*leaves.shape, 4))
    among = h.copy()
    among[::16] *= 300
    same = np.arange(32) % 16 != 0
    for backend in COMPILED:
        questions = (
            lambda x, b=backend: model.infer(log_fields=x, backend=b).leaves,
            lambda x, b=backend: model.infer(log_fields=x, levels="all", backend=b).level(6),
            lambda x, b=backend: model.leave_one_out(log_fields=x, backend=b),
            lambda x, b=backend: model.next_token(log_fields=x, backend=b),
            lambda x, b=backend: model.expected_rule_counts(
                log_fields=x, per_sequence=True, backend=b
            ),
        )
        for ask in questions:
            np.testing.assert_array_equal(np.asarray(ask(among))[same], np.asarray(ask(h))[same])


def test_signs_of_zero_say_nothing() -> None:
    """A largest field that is 0 at one symbol and -0 at another: energies, and products with 0, have such."""
    rng = np.random.default_rng(3)
    for name, make in MODELS.items():
        model = make(0)
        shape = (ROWS, model.n_leaves, model.vocab_size)
        for below in (-2.0, -200.0, -1000.0, -np.inf):
            h = np.where(rng.random(shape) < 0.5, 0.0, below)
            h[..., 0] = 0.0
            signed = np.where(rng.random(shape) < 0.5, h, np.where(h == 0, -0.0, h))
            for backend in COMPILED:
                for dtype in ("float32", "float64"):
                    how = {"dtype": dtype, "backend": backend}
                    want = model.infer(log_fields=h, **how)
                    got = model.infer(log_fields=signed, **how)
                    np.testing.assert_array_equal(got.leaves, want.leaves, err_msg=name)
                    np.testing.assert_array_equal(got.log_evidence, want.log_evidence)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_contradictions_of_any_strength(dtype: str, k: int) -> None:
    """Copies that evidence contradicts: what is lost at any step must be found out, or there is nothing left."""
    model = TreeModel(Grammar.broadcast(2, 1.0), 3, filter_level=k)
    rng = np.random.default_rng(1)
    strength = np.linspace(5, 1200, 400)[:, None, None]
    own = np.eye(2)[rng.integers(2, size=(400, 8))]
    h = strength * (own + 0.05 * rng.standard_normal(own.shape))
    # One symbol everywhere: the evidence is a sum of two terms.
    terms = h.sum(axis=1) + np.log(model.root_prior)
    exact = np.logaddexp(terms[:, 0], terms[:, 1])
    for backend in COMPILED:
        got = model.infer(log_fields=h, dtype=dtype, backend=backend)
        np.testing.assert_allclose(
            got.log_evidence, exact, rtol=2e-6 if dtype == "float32" else 1e-12
        )
        root = np.exp(terms - exact[:, None])
        np.testing.assert_allclose(
            got.root, root, rtol=0, atol=2e-4 if dtype == "float32" else 1e-9
        )


@pytest.mark.parametrize("arity", [2, 3, 4])
def test_what_normalising_loses_is_found_out(arity: int) -> None:
    """Subtrees that rule out each other's symbol, and a third symbol that each finds half as unlikely.

    Messages of products that were in range are normalised to what is not, or to what the next products are
    not: over some strengths both symbols are lost so, and the third is not. Nothing vanishes, and only who
    looks at what normalising leaves knows that two are missing.
    """
    model = TreeModel(Grammar.broadcast(3, 1.0, arity=arity), 3)
    below = np.linspace(10, 400, 2000)[:, None, None]  # nats over the leaves of a subtree
    h = np.zeros((len(below), arity, arity**2, 3))
    for i, unlikely in enumerate([1] * (arity // 2) + [0] * (arity // 2)):
        h[:, i, :, unlikely] = -below[..., 0] / arity**2
        h[:, i, :, 2] = -below[..., 0] / arity**2 / 2 + 1 / arity**2
    h = h.reshape(len(below), model.n_leaves, 3)
    # One symbol everywhere: the evidence is a sum of three terms.
    terms = h.sum(axis=1) + np.log(model.root_prior)
    exact = np.logaddexp.reduce(terms, axis=1)
    root = np.exp(terms - exact[:, None])
    for backend in COMPILED:
        got = model.infer(log_fields=h, backend=backend)
        np.testing.assert_allclose(got.log_evidence, exact, rtol=2e-6)
        np.testing.assert_allclose(got.root, root, rtol=0, atol=3e-4)
        leaves = np.repeat(root[:, None], model.n_leaves, axis=1)
        np.testing.assert_allclose(got.leaves, leaves, rtol=0, atol=3e-4)
