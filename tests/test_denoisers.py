"""Denoisers, density and score against Bayes' rule over every clean sequence, at all noise levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import PAIR_IDS, PAIRS, problem
from diffused import all_of, gaussian_logs, marginals, masking_logs, uniform_logs, weights

import hfilter
from hfilter.diffusion import (
    EmpiricalDenoiser,
    ExactDenoiser,
    MarginalPrior,
    TokenPrior,
    log_density,
    score,
)
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.noising import GaussianChannel, MaskingChannel, Schedule, UniformChannel

PUBLISHED = GaussianChannel()
ALPHA_BARS = np.concatenate([[1.0], np.cumprod(1.0 - np.linspace(2e-4, 0.04, 500))])
TIMES = (1, 2, 5, 15, 31, 40, 75, 150, 300, 500)


def states(p: Any, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noisy rows at the times t: in turn of the model's sequences and of any sequences, off the grammar."""
    leaves = p.law.draw(len(t), rng)
    leaves[1::2] = rng.integers(p.q, size=leaves[1::2].shape)
    kept = ALPHA_BARS[t][:, None, None]
    noise = rng.normal(size=(*leaves.shape, p.q))
    return np.sqrt(kept) * np.eye(p.q)[leaves] + np.sqrt(1 - kept) * noise


def judge(rows: Any, logs: Any, channel: Any, q: int) -> tuple[np.ndarray, np.ndarray]:
    post, evidence = weights(rows, logs, channel)
    return marginals(rows, post, q), evidence


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_exact_gaussian(name: str, k: int) -> None:
    """Every family and filter level, on and off the grammar, from intensity 4999.5 to 0.006."""
    p = problem(name, k)
    rng = np.random.default_rng(p.seed)
    t = np.repeat(TIMES, 2)
    x = states(p, t, rng).astype(np.float32)
    rows, logs = all_of(p.law)
    want, evidence = judge(rows, logs, gaussian_logs(x, ALPHA_BARS[t]), p.q)
    exact = ExactDenoiser(p.model, PUBLISHED, dtype="float64")
    np.testing.assert_allclose(exact(x, t), want, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ExactDenoiser(p.model, PUBLISHED)(x, t), want, rtol=0, atol=3e-6)
    never = ~(rows[:, :, None] == np.arange(p.q)).any(axis=0)
    assert (exact(x, t)[:, never] == 0).all(), "what no sequence has is zero, not small"
    got = exact.log_probabilities(x, t)
    assert np.isneginf(got[:, never]).all()
    ordinary = want > 1e-190
    assert np.abs(got[ordinary] - np.log(want[ordinary])).max() < 1e-8
    found = np.isfinite(got)
    assert np.abs(got[found] - np.log(want[found])).max() < 1e-8, "far below what a float64 holds"
    density = log_density(p.model, PUBLISHED, x, t)
    np.testing.assert_allclose(density, evidence.astype(float), rtol=1e-11, atol=1e-9)
    mean = (np.sqrt(ALPHA_BARS[t])[:, None, None] * want - x) / (1 - ALPHA_BARS[t])[:, None, None]
    np.testing.assert_allclose(
        score(p.model, PUBLISHED, x, t), mean.astype(float), rtol=1e-9, atol=1e-5
    )


DISCRETE = {
    "masking": (MaskingChannel, masking_logs),
    "uniform": (UniformChannel, uniform_logs),
}


@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize(("name", "k"), PAIRS[::3], ids=PAIR_IDS[::3])
def test_exact_discrete(name: str, k: int, kind: str) -> None:
    p = problem(name, k)
    rng = np.random.default_rng(p.seed + 1)
    make, logs_of = DISCRETE[kind]
    channel = make.cosine(8)
    t = np.resize(np.arange(1, 9), 24)
    clean = p.law.draw(len(t), rng)
    x = channel.corrupt(clean, t, p.q, seed=7)
    x[1::3] = rng.integers(
        p.q + (kind == "masking"), size=x[1::3].shape
    )  # impossible ones among them
    rows, logs = all_of(p.law)
    survival = np.cos(np.pi * t / 16) ** 2
    survival[t == 8] = 0.0
    want, evidence = judge(rows, logs, logs_of(x.astype(int), survival, p.q), p.q)
    if kind == "masking":  # where nothing survives, what is seen must still be explained
        field = np.where((x == p.q)[..., None] | (x[..., None] == np.arange(p.q)), 0.0, -np.inf)
        want, _ = judge(rows, logs, field, p.q)
    exact = ExactDenoiser(p.model, channel, dtype="float64")
    np.testing.assert_allclose(exact(x, t), want, rtol=0, atol=1e-12)
    got = log_density(p.model, channel, x, t)
    np.testing.assert_allclose(got, evidence.astype(float), rtol=1e-12, atol=1e-12)


def test_score_is_the_gradient_of_the_density() -> None:
    p = problem("published-q6-forbidden", 0)
    t = np.array([60, 150])
    x = states(p, t, np.random.default_rng(0))
    step = 1e-5
    got = score(p.model, PUBLISHED, x, t)
    for j, b in ((0, 0), (1, 4), (3, 2)):
        ahead, back = x.copy(), x.copy()
        ahead[:, j, b] += step
        back[:, j, b] -= step
        slope = [log_density(p.model, PUBLISHED, y, t) for y in (ahead, back)]
        np.testing.assert_allclose((slope[0] - slope[1]) / (2 * step), got[:, j, b], atol=2e-5)


@pytest.mark.parametrize("factor", [1e6, -1e6])
def test_fields_of_any_size(factor: float) -> None:
    """Conflicting fields of ±1e6 nats and far beyond: projected onto the grammar, never NaN."""
    p = problem("log_normal-forbidden", 0)
    rng = np.random.default_rng(3)
    unit = PUBLISHED.schedule.intensity(1)
    x = rng.integers(-3, 4, size=(12, p.law.n_leaves, p.q)) * (factor / unit) + rng.normal(
        size=(12, 8, 3)
    )
    rows, logs = all_of(p.law)
    want, _ = judge(rows, logs, unit * x.astype(np.longdouble), p.q)
    exact = ExactDenoiser(p.model, PUBLISHED)
    np.testing.assert_allclose(exact(x, 1), want, rtol=0, atol=3e-5)
    far = exact(x * 1e30, 1)  # sums of such fields have no digits left, but a law it is
    np.testing.assert_allclose(far.sum(axis=2), 1.0, atol=1e-6)


def test_priors_and_memorisers() -> None:
    """Bayes' rule over all sequences of independent leaves, and over stored rows."""
    p = problem("published-q4-l2", 0)
    rng = np.random.default_rng(5)
    t = np.repeat(TIMES, 2)
    x = states(p, t, rng)
    channel = gaussian_logs(x, ALPHA_BARS[t])
    law = rng.dirichlet(np.ones(p.q), size=4)
    law[1, 2] = 0.0
    law[1] /= law[1].sum()
    cases: list[tuple[Any, np.ndarray]] = [
        (TokenPrior(4, p.q, PUBLISHED, dtype="float64"), np.full((4, p.q), 0.25)),
        (TokenPrior(4, p.q, PUBLISHED, prior=law[0], dtype="float64"), np.tile(law[0], (4, 1))),
        (MarginalPrior(law, PUBLISHED, dtype="float64"), law),
    ]
    for denoiser, prior in cases:
        with np.errstate(divide="ignore"):
            total = np.exp(channel - channel.max(axis=2, keepdims=True)) * prior
        want = total / total.sum(axis=2, keepdims=True)
        np.testing.assert_allclose(denoiser(x, t), want, rtol=0, atol=1e-11)
        assert (denoiser(x, t)[:, prior == 0] == 0).all()
    stored = rng.integers(p.q, size=(70, 4))
    stored[9] = stored[3]
    want, _ = judge(stored, np.zeros(70), channel, p.q)
    memory = EmpiricalDenoiser(stored, p.q, PUBLISHED, dtype="float64")
    np.testing.assert_allclose(memory(x, t), want, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        EmpiricalDenoiser(stored, p.q, PUBLISHED)(x, t), want, rtol=0, atol=2e-5
    )
    exact = MarginalPrior.of_model(p.model, PUBLISHED).prior
    np.testing.assert_allclose(exact, p.law.infer(np.zeros((1, 4, p.q))).beliefs[2][0], atol=1e-14)
    counted = MarginalPrior.of_rows(stored, p.q, PUBLISHED).prior
    np.testing.assert_allclose(
        counted, (stored[..., None] == np.arange(p.q)).mean(axis=0), atol=1e-15
    )


def test_a_row_depends_on_nothing_but_itself() -> None:
    """Batches, times as one number or many, tensors: the same bits."""
    p = problem("published-q6-forbidden", 1)
    t = np.repeat(TIMES, 3)
    x = states(p, t, np.random.default_rng(1)).astype(np.float32)
    rows = p.law.draw(40, np.random.default_rng(2))
    for denoiser in (
        ExactDenoiser(p.model, PUBLISHED),
        TokenPrior(p.law.n_leaves, p.q, PUBLISHED),
        EmpiricalDenoiser(rows, p.q, PUBLISHED),
    ):
        whole = denoiser(x, t)
        for i in (0, 7, 29):
            assert (denoiser(x[i : i + 1], int(t[i]))[0] == whole[i]).all(), denoiser.name
        torch = pytest.importorskip("torch")
        tensor = denoiser(torch.from_numpy(x), torch.from_numpy(t))
        assert isinstance(tensor, torch.Tensor)
        assert (tensor.numpy() == whole).all()


def model() -> Any:
    return hfilter.TreeModel(hfilter.Grammar.published(3, 1.0, 0, 2), depth=2)


GAUSSIAN = ExactDenoiser(model(), PUBLISHED)
MASKING = ExactDenoiser(model(), MaskingChannel.linear(9))
ZEROS = np.zeros((2, 4, 3), np.float32)


def broken(value: float) -> np.ndarray:
    x = ZEROS.copy()
    x[1, 2, 0] = value
    return x


REFUSALS: tuple[tuple[Callable[[], Any], type[Exception], str], ...] = (
    (lambda: GAUSSIAN(broken(np.nan), 3), ArgumentError, "x_t must be finite .* got nan in row 1 at leaf 2"),
    (lambda: GAUSSIAN(broken(np.inf), 3), ArgumentError, "x_t must be finite .* got inf in row 1 at leaf 2"),
    (lambda: GAUSSIAN(broken(3e38), 400), ArgumentError, "x_t must be finite .and within .1e.37"),
    (lambda: GAUSSIAN(ZEROS, 0), ArgumentError, "t must be an integer from 1 to 500, got 0"),
    (lambda: GAUSSIAN(ZEROS, 501), ArgumentError, "t must be an integer from 1 to 500, got 501"),
    (lambda: GAUSSIAN(ZEROS, 3.0), DTypeError, "t must be an integer"),
    (lambda: GAUSSIAN(ZEROS, [1.0, 2.0]), DTypeError, "t must be an integer or an array of integers"),
    (lambda: GAUSSIAN(ZEROS, [1, 501]), ArgumentError, "t must be from 1 to 500, got values from 1 to 501"),
    (lambda: GAUSSIAN(ZEROS, [1, 2, 3]), ShapeError, r"t must be an integer or have shape \(2,\)"),
    (lambda: GAUSSIAN(ZEROS[:, :3], 3), ShapeError, r"x_t must have shape \(n, 4, 3\), got \(2, 3, 3\)"),
    (lambda: GAUSSIAN(ZEROS[0], 3), ShapeError, r"x_t must have shape \(n, 4, 3\), got \(4, 3\)"),
    (lambda: GAUSSIAN(np.zeros((2, 4), int), 3), ShapeError, r"x_t must have shape \(n, 4, 3\)"),
    (lambda: GAUSSIAN(ZEROS.astype(int), 3), DTypeError, "x_t must be float32 or float64"),
    (lambda: GAUSSIAN(ZEROS.astype(np.float16), 3), DTypeError, "x_t must be float32 or float64"),
    (lambda: MASKING(ZEROS, 3), ShapeError, r"x_t must have shape \(n, 4\), got \(2, 4, 3\)"),
    (lambda: MASKING(np.zeros((2, 4)), 3), DTypeError, "x_t must be tokens"),
    (lambda: MASKING(np.full((2, 4), 4), 3), ArgumentError, "x_t must hold tokens from 0 to 3"),
    (lambda: ExactDenoiser(None, PUBLISHED), DTypeError, "model must be a hfilter.TreeModel"),  # type: ignore[arg-type]
    (lambda: ExactDenoiser(model(), Schedule.published()), DTypeError, "GaussianChannel"),  # type: ignore[arg-type]
    (lambda: ExactDenoiser(model(), PUBLISHED, filter_level=3), ArgumentError, "filter_level"),
    (lambda: EmpiricalDenoiser([[0, 3]], 3, PUBLISHED), ArgumentError, "rows must be tokens from 0 to 2"),
    (lambda: EmpiricalDenoiser(np.zeros((0, 4), int), 3, PUBLISHED), ShapeError, "rows must have shape"),
    (lambda: EmpiricalDenoiser([[0.5]], 3, PUBLISHED), DTypeError, "rows must be integers"),
    (lambda: TokenPrior(4, 3, PUBLISHED, prior=[0.5, 0.6, 0]), ArgumentError, "prior must be probabilities"),
    (lambda: MarginalPrior([0.5, 0.5], PUBLISHED), ShapeError, "marginals must have shape"),
    (lambda: log_density(model(), PUBLISHED, broken(np.nan), 3), ArgumentError, "x_t must be finite"),
    (lambda: score(model(), MaskingChannel.linear(3), [[0] * 4], 1), DTypeError, "no gradient"),
)  # fmt: skip


@pytest.mark.parametrize("row", range(len(REFUSALS)))
def test_refusals(row: int) -> None:
    call, error, message = REFUSALS[row]
    with pytest.raises(error, match=message):
        call()
