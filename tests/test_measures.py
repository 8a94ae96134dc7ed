"""Splits, neighbours, the parts of the loss, coupled samples and λ, on models with known answers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import hfilter
from hfilter.diffusion import EmpiricalDenoiser, ExactDenoiser, TokenPrior
from hfilter.diffusion.measures import (
    coupled_samples,
    distance_divergence,
    loss_decomposition,
    memory_coordinate,
    mutual_distance,
    neighbour_divergence,
    sequential,
    spread_times,
)
from hfilter.diffusion.splits import block, duplicates, held_out
from hfilter.errors import ArgumentError, DTypeError, HFilterError, ShapeError
from hfilter.learn.masks import HELD_OUT_START
from hfilter.noising import GaussianChannel, MaskingChannel, Schedule

CHANNEL = GaussianChannel(Schedule.published(60))
MODEL = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
TRAIN, OTHER = block(MODEL, 300, 0), block(MODEL, 300, 1)
FRESH = held_out(MODEL, 400)
EXACT = ExactDenoiser(MODEL, CHANNEL, dtype="float64")
MEMORY = EmpiricalDenoiser(TRAIN, 4, CHANNEL, dtype="float64")


class Mixture:
    """exact^(1 - λ) memory^λ / Z, leaf by leaf, tilted by what no mixture explains."""

    def __init__(self, lam: float, tilt: float = 0.0, ends: Any = (EXACT, MEMORY)) -> None:
        self.lam, self.tilt, self.ends = lam, tilt, ends
        self.channel, self.n_leaves, self.vocab_size = ends[0].channel, 8, 4

    def log_probabilities(self, x_t: Any, t: Any) -> Any:
        a, b = (end.log_probabilities(x_t, t) for end in self.ends)
        logs = (1 - self.lam) * a + self.lam * b
        logs[..., 0] += self.tilt
        return logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))


# ----------------------------------------------------------------------------------- splits


def test_blocks_tile_the_stream() -> None:
    whole = MODEL.sample(900, seed=5).leaves
    for i in range(3):
        assert (block(MODEL, 300, i, seed=5) == whole[300 * i : 300 * (i + 1)]).all()
    assert (held_out(MODEL, 50, 5) == MODEL.sample(50, seed=5, start=HELD_OUT_START).leaves).all()


def test_held_out_by_content_is_the_stream_without_what_is_excluded() -> None:
    found = held_out(MODEL, 2000, excluding=TRAIN)
    known = {tuple(row) for row in TRAIN.tolist()}
    stream = MODEL.sample(3000, seed=0, start=HELD_OUT_START).leaves.tolist()
    assert found.tolist() == [row for row in stream if tuple(row) not in known][:2000]
    assert duplicates(found, TRAIN).n_found == 0
    tiny = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
    with pytest.raises(ArgumentError, match="excluding leaves too little"):
        held_out(tiny, 10, excluding=tiny.sample(2000, seed=0).leaves)


def test_duplicates_are_counted_and_expected() -> None:
    rows = np.concatenate([FRESH, FRESH[:10]])
    found = duplicates(rows, TRAIN, MODEL)
    known = {tuple(row) for row in TRAIN.tolist()}
    assert found.n_found == sum(tuple(row) in known for row in rows.tolist())
    distinct = {tuple(row) for row in rows.tolist()}
    assert (found.n_distinct, found.repeated) == (len(distinct), 1 - len(distinct) / 410)
    # The expectation over training sets: mean of 40 of them, false alarm 1e-6 (5 standard errors).
    shares = [duplicates(FRESH, block(MODEL, 300, i)).share for i in range(40)]
    want = duplicates(FRESH, TRAIN, MODEL).expected
    assert abs(np.mean(shares) - want) < 5 * np.std(shares) / math.sqrt(40)
    assert want > 0.01
    assert json.loads(json.dumps(found.as_dict()))["n_others"] == 300


# ------------------------------------------------------------------------------- neighbours


def binomial(share: float) -> np.ndarray:
    p = np.array([math.comb(16, i) * share**i * (1 - share) ** (16 - i) for i in range(17)])
    return np.append(p[:9], p[9:].sum())


@pytest.mark.parametrize("share", [0.25, 0.22, 0.15])
def test_corrected_divergence_is_unbiased(share: float) -> None:
    """Mean of 300 corrected divergences; false alarm 1e-6 (5 standard errors), and the mutant without
    correction is rejected wherever its bias is 10 standard errors."""
    rng = np.random.default_rng(int(100 * share))
    p, q = binomial(share), binomial(0.25)
    truth = float((p * np.log(p / q)).sum())
    n, m = 2000, 4000
    found = [
        distance_divergence(rng.choice(10, n, p=p), rng.choice(10, m, p=q), min_count=1)
        for _ in range(300)
    ]
    kl = np.array([f.kl for f in found])
    error = kl.std() / math.sqrt(300)
    assert abs(kl.mean() - truth) < 5 * error + 0.01 * truth  # the expansion's next order
    plug_in = np.mean([f.plug_in for f in found])
    assert plug_in - truth == pytest.approx(
        np.mean([f.bias for f in found]), abs=5 * error + 0.01 * truth
    )
    if share > 0.2:
        assert plug_in - truth > 8 * error
    assert np.mean([f.error for f in found]) == pytest.approx(kl.std(), rel=0.25)
    if share == 0.25:
        assert found[0].null_error == pytest.approx(kl.std(), rel=0.2)
    shift = 16 * (share - 0.25)
    assert found[0].shift == pytest.approx(shift, abs=5 * found[0].shift_error)


def test_copies_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    fresh = rng.binomial(16, 0.25, 20_000) + 1
    fresh[:200] = 0
    mine = rng.binomial(16, 0.25, 20_000) + 1
    mine[:10_000] = 0
    found = distance_divergence(mine, fresh)
    want = 0.5 * math.log(0.5 / 0.01) + 0.5 * math.log(0.5 / 0.99)
    assert (found.copies_generated, found.copies_held_out) == (0.5, 0.01)
    assert found.copies_kl == pytest.approx(want)
    assert abs(found.novel_kl) < 5 * found.novel_error
    assert found.kl == pytest.approx(want + 0.5 * found.novel_kl, abs=4 * found.error)
    # No copies among the held-out: the share of copies says infinity, the bins stay finite.
    none = distance_divergence(mine, fresh[200:])
    assert none.copies_kl == np.inf
    assert np.isfinite(none.kl)
    assert none.first_of_bin[0] == 0
    assert none.counts_held_out[0] == 0


def test_a_perfect_generator_and_a_memoriser() -> None:
    """False alarm of each assertion below 1e-4 (4 standard errors)."""
    fresh = held_out(MODEL, 3000)
    perfect = neighbour_divergence(MODEL.sample(3000, seed=77).leaves, fresh, TRAIN, OTHER)
    assert perfect.other is not None
    for one in (perfect.own, perfect.other):
        assert abs(one.kl) < 4 * one.null_error
        assert abs(one.shift) < 4 * one.shift_error
    assert abs(perfect.pull) < 4 * perfect.pull_error
    memory = neighbour_divergence(TRAIN, fresh, TRAIN, OTHER)
    assert memory.own.copies_generated == 1.0
    assert (
        memory.own.shift
        == -float(np.dot(memory.own.counts_held_out, range(len(memory.own.counts_held_out)))) / 3000
    )
    assert memory.pull > 10 * memory.pull_error
    assert abs(memory.other.shift) < 4 * memory.other.shift_error  # type: ignore[union-attr]
    half = neighbour_divergence(np.repeat(fresh[:500], 2, axis=0), fresh, TRAIN)
    assert half.repeated_generated >= 0.5
    assert math.isnan(half.pull)
    assert half.other is None
    assert json.loads(json.dumps(memory.as_dict()))["own"]["copies_generated"] == 1.0


# ---------------------------------------------------------------------- the parts of the loss


def test_parts_of_the_loss_by_hand() -> None:
    prior = TokenPrior(8, 4, CHANNEL, dtype="float64")
    found = loss_decomposition(prior, MODEL, None, FRESH, 10, seed=3, start=5)
    x_t = CHANNEL.corrupt(FRESH, 10, 4, seed=3, start=5, purpose="held_out")
    q, p = prior(x_t, 10), EXACT(x_t.astype(np.float64), 10)
    truth = np.eye(4)[FRESH]
    n = len(FRESH)
    for name, want in {
        "loss": -(truth * np.log(q)).sum() / n,
        "distillation": -(p * np.log(q)).sum() / n,
        "excess": -((truth - p) * np.log(q)).sum() / n,
        "bayes": -(truth * np.log(np.maximum(p, 1e-300))).sum() / n,
        "entropy": -(p * np.log(np.maximum(p, 1e-300))).sum() / n,
    }.items():
        assert getattr(found, name) == pytest.approx(want, rel=1e-6), name
    kl = sequential(prior, MODEL, None, FRESH, 10, seed=3, start=5)
    assert found.divergence == pytest.approx(kl.kl[0], rel=1e-9)
    assert found.distillation - found.entropy == pytest.approx(found.divergence, rel=1e-9)


def test_excess_is_zero_on_fresh_rows_and_negative_on_memorised_ones() -> None:
    """4 standard errors: false alarm 1e-4 each."""
    everywhen = spread_times(400, 60)
    for one, t in ((TokenPrior(8, 4, CHANNEL), everywhen), (EXACT, everywhen), (Mixture(0.05), 20)):
        found = loss_decomposition(one, MODEL, CHANNEL, FRESH, t)
        assert abs(found.excess) < 4 * found.excess_error
    seen = loss_decomposition(MEMORY, MODEL, CHANNEL, TRAIN, 10)
    fresh = loss_decomposition(MEMORY, MODEL, CHANNEL, FRESH, 10)
    assert seen.excess < -10 * seen.excess_error
    assert seen.loss < seen.bayes < fresh.loss
    perfect = loss_decomposition(EXACT, MODEL, CHANNEL, TRAIN, 20)
    assert perfect.divergence == pytest.approx(0.0, abs=1e-6)
    assert json.loads(json.dumps(perfect.as_dict()))["n_sequences"] == 300


# ------------------------------------------------------------------------------------------ λ


@pytest.mark.parametrize("lam", [0.0, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("t", [12, 25])
def test_lambda_is_found_again(lam: float, t: int) -> None:
    found = memory_coordinate(Mixture(lam), EXACT, MEMORY, FRESH[:100], [t])
    assert found.value[0] == pytest.approx(lam, abs=1e-6)
    assert found.kl[0] == pytest.approx(0.0, abs=1e-9)
    assert found.curvature[0] > 0


def test_lambda_is_the_minimum() -> None:
    """Of a network that is no mixture: against a scan, its error against other noise."""
    one = Mixture(0.4, tilt=0.7)
    found = memory_coordinate(one, EXACT, MEMORY, FRESH, [15, 20], seed=1)
    for i, t in enumerate((15, 20)):
        scan = np.clip(found.value[i] + np.array([-0.02, -0.01, 0.0, 0.01, 0.02]), 0, 1)
        values = [sequential_to(one, Mixture(x), t) for x in scan]
        assert int(np.argmin(values)) == 2
        bend = np.polyfit(scan, values, 2)[0] * 2
        assert found.curvature[i] == pytest.approx(bend, rel=0.05)
        assert found.kl[i] == pytest.approx(values[2], rel=1e-6)
        assert found.kl[i] < min(found.kl_exact[i], found.kl_memory[i])
    again = [
        memory_coordinate(one, EXACT, MEMORY, FRESH[:200], 15, seed=s, start=9 * s).value[0]
        for s in range(24)
    ]
    error = memory_coordinate(one, EXACT, MEMORY, FRESH[:200], 15).error[0]
    # Rows are the same, the noise is not: the spread is most of the error, within its own 15 %.
    assert 0.4 * error < np.std(again) < 1.5 * error


def sequential_to(target: Any, mixture: Any, t: int) -> float:
    x_t = CHANNEL.corrupt(FRESH, t, 4, seed=1, purpose="held_out")
    p, q = target.log_probabilities(x_t, t), mixture.log_probabilities(x_t, t)
    return float((np.exp(p) * (p - q)).sum() / len(FRESH))


def test_lambda_at_its_limits() -> None:
    alike = memory_coordinate(Mixture(0.5), EXACT, EXACT, FRESH[:20], [20])
    assert math.isnan(alike.value[0])  # the two ends are one law
    # A memoriser that excludes what the denoiser does not: no mixture with it is at a finite distance.
    few = EmpiricalDenoiser(TRAIN[:2], 4, CHANNEL, dtype="float64")
    found = memory_coordinate(EXACT, EXACT, few, FRESH[:20], 30)
    assert (found.value[0], found.kl[0], found.kl_memory[0]) == (0.0, 0.0, np.inf)
    neither = memory_coordinate(TokenPrior(8, 4, CHANNEL), few, few, FRESH[:20], 30)
    assert math.isnan(neither.value[0])
    assert neither.as_dict()["times"] == [30]


# ----------------------------------------------------------------------------- coupled samples


def test_coupled_samples() -> None:
    priors = [TokenPrior(8, 4, CHANNEL), Mixture(0.0)]
    del priors[1:]
    one = EmpiricalDenoiser(TRAIN, 4, CHANNEL)
    two = EmpiricalDenoiser(OTHER, 4, CHANNEL)
    a, b, c, d = coupled_samples([one, two, one, *priors], 150, seed=3)
    assert (a == c).all()
    assert mutual_distance(a, c).identical == 1.0
    found = mutual_distance(a, b, TRAIN, OTHER)
    assert found.to_own.tolist() == [0.0, 0.0]  # memorisers return what they stored
    assert (found.pull > 10 * found.pull_error).all()
    assert found.distance < found.unpaired - 4 * found.unpaired_error  # the same noise ties them
    assert found.distance == pytest.approx((a != b).sum(axis=1).mean())
    swapped = mutual_distance(b, a, OTHER, TRAIN)
    assert (swapped.pull == found.pull[::-1]).all()
    # What knows nothing of either block is pulled to neither, on the mean of both.
    blind = mutual_distance(d, d, TRAIN, OTHER)
    assert blind.pull.sum() == pytest.approx(0.0, abs=1e-12)
    assert json.loads(json.dumps(found.as_dict()))["n"] == 150


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ArgumentError, "index must be below", lambda: block(MODEL, 2**40, 256)),
        (ArgumentError, "n must be", lambda: block(MODEL, 0, 0)),
        (DTypeError, "excluding must be integers", lambda: held_out(MODEL, 3, excluding=TRAIN / 2)),
        (ShapeError, r"others must have shape \(n, 8\)", lambda: duplicates(TRAIN, TRAIN[:, :4])),
        (ShapeError, "rows must have shape", lambda: duplicates(TRAIN[0], TRAIN)),
        (DTypeError, "generated must be integers", lambda: distance_divergence([0.5], [1])),
        (ShapeError, "held_out must have shape", lambda: distance_divergence([1], [[1]])),
        (ArgumentError, "must be distances", lambda: distance_divergence([-1], [1])),
        (ShapeError, "own must have shape", lambda: neighbour_divergence(TRAIN, FRESH, TRAIN[0])),
        (ShapeError, "second must have the shape", lambda: mutual_distance(TRAIN, TRAIN[:5])),
        (ArgumentError, "or neither", lambda: mutual_distance(TRAIN, TRAIN, TRAIN)),
        (ArgumentError, "denoisers must be at least 1", lambda: coupled_samples([], 5, seed=0)),
        (
            DTypeError, "memory must be a denoiser",
            lambda: memory_coordinate(EXACT, EXACT, None, FRESH, 5),
        ),
        (ArgumentError, "times is empty", lambda: memory_coordinate(EXACT, EXACT, MEMORY, FRESH, [])),
        (
            ArgumentError, "t must be from 1 to 60",
            lambda: memory_coordinate(EXACT, EXACT, MEMORY, FRESH, [5, 61]),
        ),
        (
            ArgumentError, "impossible under BP_0",
            lambda: loss_decomposition(
                TokenPrior(8, 6, MASKS), SPARSE, None, (SPARSE.sample(9).leaves + 1) % 6, 1
            ),
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[HFilterError], words: str, call: Any) -> None:
    with pytest.raises(error, match=words):
        call()


SPARSE = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=3)
MASKS = MaskingChannel.linear(50)
