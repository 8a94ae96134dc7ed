"""The reverse process: against its equations, against the exact law of end points, coupled, refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import problem
from diffused import all_of, gaussian_logs, marginals, masking_logs, uniform_logs, weights
from oracle import g_test

import hfilter
from hfilter.diffusion import (
    EmpiricalDenoiser,
    ExactDenoiser,
    TokenPrior,
    chains,
    exact_end,
    generate,
    memorising,
    random_leaves,
    reverse,
    u_turn,
)
from hfilter.diffusion.reverse import make_chain, pure_noise
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.noising import GaussianChannel, MaskingChannel, Schedule, UniformChannel, gaussian

SMALL = problem("published-q6-forbidden", 0)  # 4 leaves, 6 symbols, 8 of 36 pairs forbidden
COARSE = GaussianChannel(Schedule([0.2, 0.4, 0.6, 0.8, 0.9]))
LAWS = {
    "gaussian": (COARSE, gaussian_logs),
    "masking": (MaskingChannel.linear(5), masking_logs),
    "uniform": (UniformChannel.linear(5), uniform_logs),
}


PLAIN = (
    hfilter.provenance()["backend"] == "python"
)  # some hundred times slower: fewer rows, less power


def tiny(channel: Any, **options: Any) -> ExactDenoiser:
    return ExactDenoiser(SMALL.model, channel, **options)


@pytest.mark.parametrize("method", ["ancestral", "deterministic"])
def test_steps_follow_their_equations(method: str) -> None:
    """DDPM and DDIM as their papers write them, in terms of eps, with x̂_0 by enumeration, in float64."""
    s = COARSE.schedule
    seed, start, t0 = 3, 50, 5
    x = 3 * np.random.default_rng(0).normal(size=(40, 4, 6))
    got = reverse(
        tiny(COARSE), x, t0, seed=seed, start=start, method=method, trajectory=range(1, 6)
    )
    rows, logs = all_of(SMALL.law)
    for t in range(t0, 0, -1):
        np.testing.assert_allclose(got.states[t], x, atol=2e-4 if t < t0 else 1e-6)
        kept = np.full(40, s.alpha_bars[t])
        mean = marginals(rows, weights(rows, logs, gaussian_logs(x, kept))[0], 6).astype(float)
        np.testing.assert_allclose(got.predictions[t], mean, atol=2e-3)
        now, before, beta = s.alpha_bars[t], s.alpha_bars[t - 1], s.betas[t - 1]
        eps = (x - np.sqrt(now) * mean) / np.sqrt(1 - now)
        if method == "deterministic":
            x = np.sqrt(before) * mean + np.sqrt(1 - before) * eps
        else:
            noise = gaussian.normal(seed, "reverse", t, 40, 24, start=start).reshape(x.shape)
            spread = np.sqrt(beta * (1 - before) / (1 - now))
            x = (x - beta / np.sqrt(1 - now) * eps) / np.sqrt(1 - beta) + spread * noise
    np.testing.assert_allclose(x, mean, atol=1e-9)
    assert (got.leaves == mean.argmax(axis=2)).mean() > 0.99
    assert not got.impossible.any()


def codes(leaves: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Counts of each of the sequences `rows`; one more for all others."""
    place = {tuple(r): i for i, r in enumerate(rows.tolist())}
    found = [place.get(tuple(x), len(rows)) for x in leaves.tolist()]
    return np.bincount(found, minlength=len(rows) + 1)


@pytest.mark.parametrize("kind", LAWS)
def test_joint_process_is_exact(kind: str) -> None:
    """Five coarse steps with joint draws end in P(x_0 | x_t), and so does `exact_end`.

    Six G-tests at 1e-5: false alarms 6e-5. The mutants, leaf by leaf, are refused in every channel.
    """
    channel, logs_of = LAWS[kind]
    t, n = 4, 1000 if PLAIN else 20_000
    clean = SMALL.law.draw(3, np.random.default_rng(2))
    x = channel.corrupt(clean[1:2], t, 6, seed=8)
    kept = channel.schedule.alpha_bars if kind == "gaussian" else channel.survival
    rows, logs = all_of(SMALL.law)
    told = logs_of(x, kept[[t]]) if kind == "gaussian" else logs_of(x.astype(int), kept[[t]], 6)
    law = np.append(weights(rows, logs, told)[0][0].astype(float), 0.0)
    many = np.repeat(x, n, axis=0)
    process = reverse(tiny(channel), many, t, seed=1, joint=True)
    assert g_test(codes(process.leaves, rows), law) > 1e-5
    shot = exact_end(SMALL.model, channel, x, t, seed=2, n_samples=n)
    assert g_test(codes(shot.leaves[0], rows), law) > 1e-5
    leafwise = reverse(tiny(channel), many, t, seed=1)
    assert PLAIN or g_test(codes(leafwise.leaves, rows), law) < 1e-9
    direct = tiny(channel)(many, t)  # what one step with all leaves drawn apart would give
    apart = (np.random.default_rng(0).random((n, 4, 1)) > direct.cumsum(axis=2)).sum(axis=2)
    assert PLAIN or g_test(codes(apart, rows), law) < 1e-9


@pytest.mark.skipif(PLAIN, reason="a million rows")
def test_many_steps_come_close_to_the_exact_law() -> None:
    """The discretisation error of DDPM falls with the number of steps."""
    distance = []
    law = np.append(np.exp(all_of(SMALL.law)[1]).astype(float), 0.0)
    for channel in (COARSE, GaussianChannel(Schedule.published(300))):
        denoiser = tiny(channel)
        counts = codes(generate(denoiser, 4000, seed=4).leaves, all_of(SMALL.law)[0])
        distance.append(0.5 * np.abs(counts / 4000 - law).sum())
    floor = 0.5 * np.sqrt(2 / np.pi * law * (1 - law) / 4000).sum()  # of 4000 exact draws
    assert distance[1] < 1.25 * floor < distance[0], (distance, floor)


def test_memorisers_end_on_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.random.default_rng(0).integers(6, size=(30, 4))
    stored[7] = stored[3]
    rows, counts = np.unique(stored, axis=0, return_counts=True)
    law = np.append(counts / 30, 0.0)
    memory = EmpiricalDenoiser(stored, 6, COARSE)
    far = np.repeat(COARSE.corrupt(stored[:1], 5, 6, seed=0), 6000, axis=0)
    told = weights(
        rows, np.log(counts / 30), gaussian_logs(far[:1], COARSE.schedule.alpha_bars[[5]])
    )
    drawn = memory.draw(far, 5, seed=3)
    with monkeypatch.context() as m:
        m.setattr(memorising, "_WORK", 7 * len(far))  # seven stored rows at a time
        assert (memory.draw(far, 5, seed=3) == drawn).all()
    assert g_test(codes(drawn, rows), np.append(told[0][0].astype(float), 0.0)) > 1e-5
    ends = generate(
        EmpiricalDenoiser(stored, 6, GaussianChannel(Schedule.published(60))), 500, seed=1
    )
    found = codes(ends.leaves, rows)
    assert found[-1] == 0
    assert (found[:-1] > 0).all()
    masked = EmpiricalDenoiser(stored, 6, MaskingChannel.linear(4))
    hidden = generate(masked, 3000, seed=2, joint=True)
    assert g_test(codes(hidden.leaves, rows), law) > 1e-5


def test_coupling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample i's noise is a function of (seed, i, t): same in any batch, block, thread, for any denoiser."""
    denoiser = tiny(GaussianChannel(Schedule.published(25)))
    whole = generate(denoiser, 50, seed=5, trajectory=[25, 10, 1])
    for options in ({"num_threads": 1}, {"num_threads": 2}):
        part = generate(denoiser, 20, seed=5, start=30, trajectory=[10], **options)
        assert (part.leaves == whole.leaves[30:]).all()
        assert (part.states[10] == whole.states[10][30:]).all()
    with monkeypatch.context() as m:
        m.setattr(chains, "_CACHED", 24 * 16)  # 16 rows in a block
        assert (generate(denoiser, 50, seed=5, num_threads=2).leaves == whole.leaves).all()
    again = reverse(denoiser, whole.states[10], 10, seed=5)
    assert (again.leaves == whole.leaves).all(), "a process goes on from any of its states"
    other = generate(TokenPrior(4, 6, denoiser.channel), 50, seed=5, trajectory=[25, 24])
    assert (other.states[25] == whole.states[25]).all()
    for end, d in ((whole, denoiser), (other, TokenPrior(4, 6, denoiser.channel))):
        a, b, s = d.channel.schedule.posterior(25)
        step = generate(d, 50, seed=5, trajectory=[25, 24])
        noise = (step.states[24] - a * step.predictions[25] - b * step.states[25]) / s
        want = gaussian.normal(5, "reverse", 25, 50, 24).reshape(noise.shape)
        np.testing.assert_allclose(noise, want, atol=1e-4)
        assert end.leaves.shape == (50, 4)
    assert (generate(denoiser, 50, seed=6).leaves != whole.leaves).any()
    for channel in (MaskingChannel.linear(6), UniformChannel.linear(6)):
        for joint in (False, True):
            a = generate(tiny(channel), 40, seed=5, joint=joint, num_threads=2)
            b = generate(tiny(channel), 11, seed=5, start=20, joint=joint)
            assert (a.leaves[20:31] == b.leaves).all()


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    denoiser = tiny(COARSE)
    x = np.random.default_rng(0).normal(size=(20, 4, 6)).astype(np.float32)
    want = reverse(denoiser, x, 4, seed=1, trajectory=[2], last="probabilities")
    kept = x.copy()
    got = reverse(denoiser, torch.from_numpy(x), 4, seed=1, trajectory=[2], last="probabilities")
    assert (x == kept).all(), "the caller's states are left alone"
    for a, b in (
        (got.leaves, want.leaves),
        (got.states[2], want.states[2]),
        (got.probabilities, want.probabilities),
    ):
        assert isinstance(a, torch.Tensor)
        assert (a.numpy() == b).all()
    assert isinstance(generate(denoiser, 3, seed=1, device="cpu").leaves, torch.Tensor)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("kind", LAWS)
def test_the_way_of_devices(kind: str, joint: bool) -> None:
    """Tensors all the way, as on a GPU, but on the CPU: the same states and ends."""
    torch = pytest.importorskip("torch")
    denoiser = tiny(LAWS[kind][0])
    want = generate(denoiser, 40, seed=3, joint=joint, trajectory=[4, 1])
    chain = make_chain(denoiser, 5, 3, 0, 40, "ancestral", 1.0, joint, None, [4, 1])
    begin = torch.from_numpy(pure_noise(denoiser, 3, 40, 0))
    got = chains.run(
        chains.Plan(chain, 40, lambda rows: begin[rows], torch.device("cpu")), False, None
    )
    assert (got["leaves"].numpy() == want.leaves).all()
    for t in (4, 1):
        assert (got["states"][t].numpy() == want.states[t]).all()
        np.testing.assert_array_equal(got["predictions"][t].numpy(), want.predictions[t])
    law = denoiser.log_answer(begin, np.resize([5, 1], 40))
    assert isinstance(law, torch.Tensor)
    there = denoiser.log_answer(begin.numpy(), np.resize([5, 1], 40))
    np.testing.assert_allclose(law, there, rtol=1e-15, atol=0)  # each has a logarithm of its own


def test_failures_and_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong in one thread ends all of them and is told; a bar is shown on request."""

    class Failing(TokenPrior):
        def answer(self, x_t: Any, t: Any, *, num_threads: int | None = None) -> Any:
            if t == 3 and len(x_t) < 16:
                raise RuntimeError("out of order")
            return super().answer(x_t, t, num_threads=num_threads)

    monkeypatch.setattr(chains, "_CACHED", 24 * 16)
    with pytest.raises(RuntimeError, match="out of order"):
        generate(Failing(4, 6, COARSE), 99, seed=0, num_threads=2)
    pytest.importorskip("tqdm")
    capsys.readouterr()
    generate(tiny(COARSE), 99, seed=0, progress=True)
    assert "495" in capsys.readouterr().err
    generate(tiny(COARSE), 99, seed=0, progress=False)
    assert capsys.readouterr().err == ""


def test_temperature_and_ends() -> None:
    x = 2 * np.random.default_rng(1).normal(size=(100 if PLAIN else 500, 4, 6)).astype(np.float32)
    denoiser = tiny(COARSE)
    spread = {}
    for heat in (0.0, 0.25, 1.0):
        a = reverse(denoiser, x, 5, seed=1, temperature=heat, trajectory=[4]).states[4]
        b = reverse(denoiser, x, 5, seed=2, temperature=heat, trajectory=[4]).states[4]
        spread[heat] = (a - b).std() / np.sqrt(2) / COARSE.schedule.posterior(5)[2]
    assert spread[0.0] == 0
    np.testing.assert_allclose(
        [spread[0.25], spread[1.0]], [0.5, 1.0], rtol=0.06 if PLAIN else 0.02
    )
    end = reverse(denoiser, x, 1, seed=1, last="probabilities")
    assert (end.probabilities == denoiser(x, 1)).all()
    assert (end.leaves == end.probabilities.argmax(axis=2)).all()
    drawn = reverse(
        denoiser, np.repeat(x[:1], 600 if PLAIN else 20_000, axis=0), 1, seed=1, last="sample"
    ).leaves
    law = denoiser(x[:1], 1)[0]
    for j in range(4):
        assert g_test(np.bincount(drawn[:, j], minlength=6), law[j] / law[j].sum()) > 1e-5
    masking = tiny(MaskingChannel([1.0, 0.0]))
    hidden = np.full((400 if PLAIN else 6000, 4), 6)
    law = masking(hidden[:1], 1)[0, 0].astype(float)
    for heat, want in ((2.0, law**0.5), (0.0, np.eye(6)[law.argmax()])):
        leaves = reverse(masking, hidden, 1, seed=3, temperature=heat).leaves[:, 0]
        assert g_test(np.bincount(leaves, minlength=6), want / want.sum()) > 1e-5


def test_impossible_states_are_said_to_be() -> None:
    """Leaf by leaf, masked tokens can come out as pairs that the grammar forbids; other rows do not care."""
    forbidden = np.argwhere(SMALL.tensors[1].sum(axis=0) == 0)[0]
    x = np.full((3, 4), 6)
    x[1, :2] = forbidden
    for joint in (False, True):
        end = reverse(tiny(MaskingChannel.linear(5)), x, 3, seed=1, joint=joint, trajectory=[1])
        assert (end.states[1][1] == x[1]).all(), "nothing more is drawn"
        assert end.impossible[1]
        assert (end.leaves[1] == 6).all()
        assert not (joint and end.impossible[[0, 2]].any())
        alone = reverse(tiny(MaskingChannel.linear(5)), x[2:], 3, seed=1, start=2, joint=joint)
        assert (alone.leaves[0] == end.leaves[2]).all()

    class Lost(TokenPrior):
        def answer(self, x_t: Any, t: Any, *, num_threads: int | None = None) -> Any:
            return np.full(x_t.shape, np.nan, np.float32)

    assert generate(Lost(4, 6, COARSE), 3, seed=1).impossible.all(), "a network that gives NaN"


PUBLISHED = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=4)


@pytest.mark.skipif(PLAIN, reason="a hundred thousand rows of 16 leaves")
def test_reference_numbers() -> None:
    """BG's grammar (seed 0): U-turns of the true BP_0, cross-entropy and KL(BP_0 ‖ BP_k) at t = 75.

    The references' own errors are .005 (U-turns) and about .01, .01 … .06 (from 1000 – 2000 sequences);
    ours are added. Tolerances are four times both.
    """
    denoiser = ExactDenoiser(PUBLISHED, GaussianChannel())
    n = 300
    strange = u_turn(denoiser, random_leaves(n, 16, 6, seed=1), [5, 25, 37, 50], seed=2)
    want = np.array([0.783, 0.780, 0.764, 0.716])
    assert (abs(strange.overlap - want) < 4 * np.hypot(strange.error, 0.005 / 2)).all(), strange
    own = u_turn(denoiser, PUBLISHED.sample(n, seed=3).leaves, [42, 60], seed=4)
    assert (abs(own.overlap - [0.992, 0.920]) < 4 * np.hypot(own.error, 0.001)).all(), own
    leaves = PUBLISHED.sample(4000, seed=5).leaves
    x = denoiser.channel.corrupt(leaves, 75, 6, seed=6)
    logs = denoiser.log_probabilities(x, 75)
    found = [-np.take_along_axis(logs, leaves[..., None].astype(int), 2).mean()]
    law = denoiser(x, 75)
    for k in range(1, 5):
        other = ExactDenoiser(PUBLISHED, denoiser.channel, filter_level=k).log_probabilities(x, 75)
        with np.errstate(invalid="ignore"):
            found.append(np.where(law > 0, law * (logs - other), 0).sum(axis=(1, 2)).mean())
    assert (
        abs(np.array(found) - [0.401, 0.118, 0.491, 1.453, 3.596]) < [0.02, 0.02, 0.04, 0.08, 0.15]
    ).all()


GAUSSIAN, HIDDEN = tiny(COARSE), tiny(MaskingChannel.linear(5))
ZEROS = np.zeros((2, 4, 6), np.float32)
REFUSALS: tuple[tuple[Callable[[], Any], type[Exception], str], ...] = (
    (lambda: reverse(GAUSSIAN, ZEROS, 6, seed=0), ArgumentError, "t must be an integer from 1 to 5, got 6"),
    (lambda: reverse(GAUSSIAN, ZEROS, 0, seed=0), ArgumentError, "t must be an integer from 1 to 5"),
    (lambda: reverse(GAUSSIAN, ZEROS, [1, 2], seed=0), DTypeError, "t must be an integer"),  # type: ignore[arg-type]
    (lambda: reverse(GAUSSIAN, ZEROS * np.nan, 2, seed=0), ArgumentError, "x_t must be finite"),
    (lambda: reverse(GAUSSIAN, ZEROS.astype(float) + 1e40, 2, seed=0), ArgumentError, "within .1e.30"),
    (lambda: reverse(GAUSSIAN, ZEROS[:, :2], 2, seed=0), ShapeError, r"x_t must have shape \(n, 4, 6\)"),
    (lambda: reverse(GAUSSIAN, ZEROS, 2, seed=-1), ArgumentError, "seed"),
    (lambda: reverse(GAUSSIAN, ZEROS, 2, seed=0, start=2**64 - 1), ArgumentError, "start"),
    (lambda: reverse(GAUSSIAN, ZEROS, 2, seed=0, trajectory=[3]), ArgumentError, "trajectory"),
    (lambda: reverse(GAUSSIAN, ZEROS, 2, seed=0, method="ddim"), ArgumentError, "method must be"),  # type: ignore[arg-type]
    (lambda: reverse(GAUSSIAN, ZEROS, 2, seed=0, last="best"), ArgumentError, "last must be"),  # type: ignore[arg-type]
    (lambda: reverse(GAUSSIAN, ZEROS, 2, seed=0, temperature=-1), ArgumentError, "temperature"),
    (lambda: reverse(GAUSSIAN, ZEROS, 2, seed=0, joint=True, temperature=0.5), ArgumentError, "joint=True"),
    (lambda: reverse(GAUSSIAN, ZEROS, 2, seed=0, num_threads=0), ArgumentError, "num_threads"),
    (lambda: reverse(HIDDEN, np.zeros((2, 4), int), 2, seed=0, method="deterministic"), ArgumentError, "Gaussian"),
    (lambda: reverse(HIDDEN, np.full((2, 4), 7), 2, seed=0), ArgumentError, "x_t must hold tokens"),
    (lambda: reverse(SMALL.model, ZEROS, 2, seed=0), DTypeError, "denoiser must be a Denoiser"),  # type: ignore[arg-type]
    (lambda: generate(TokenPrior(4, 6, COARSE), 5, seed=0, joint=True), ArgumentError, "token prior knows"),
    (lambda: generate(GAUSSIAN, -1, seed=0), ArgumentError, "n must be"),
    (lambda: u_turn(GAUSSIAN, [[0, 1, 2, 6]], 2, seed=0), ArgumentError, "leaves must be clean tokens from 0 to 5"),
    (lambda: u_turn(GAUSSIAN, [[0, 1, 2]], 2, seed=0), ShapeError, r"leaves must have shape \(n, 4\)"),
    (lambda: u_turn(GAUSSIAN, [[0, 1, 2, 5]], [2, 6], seed=0), ArgumentError, "times must be"),
    (lambda: u_turn(GAUSSIAN, [[0, 1, 2, 5]], [], seed=0), ArgumentError, "times must hold"),
    (lambda: exact_end(SMALL.model, COARSE, ZEROS * np.inf, 2, seed=0), ArgumentError, "x_t must be finite"),
)  # fmt: skip


@pytest.mark.parametrize("row", range(len(REFUSALS)))
@pytest.mark.filterwarnings("ignore:invalid value")
def test_refusals(row: int) -> None:
    call, error, message = REFUSALS[row]
    with pytest.raises(error, match=message):
        call()
