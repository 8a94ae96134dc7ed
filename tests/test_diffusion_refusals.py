"""What the diffusion laboratory refuses, in what words, and what it takes at the edges."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hfilter
from hfilter.diffusion import (
    EmpiricalDenoiser,
    ExactDenoiser,
    TokenPrior,
    generate,
    random_leaves,
    reverse,
    susceptibility,
    susceptibility_of,
    tree_overlap,
    u_turn,
)
from hfilter.diffusion.measures import (
    along_time,
    coupled_samples,
    distance_divergence,
    loss_decomposition,
    memory_coordinate,
    over_models,
    sequential,
    split_divergence,
    split_matrix,
)
from hfilter.diffusion.splits import block, duplicates, held_out
from hfilter.errors import ArgumentError, DTypeError, HFilterError, ShapeError
from hfilter.noising import (
    Channel,
    GaussianChannel,
    MaskingChannel,
    Schedule,
    UniformChannel,
    integers,
    noise_leaves,
    normal,
    uniform,
)

GRAMMAR = hfilter.Grammar.published(4, 1.0, 0, 2)
MODEL = hfilter.TreeModel(GRAMMAR, depth=2)
CHANNEL, UNIFORM = GaussianChannel(Schedule.published(60)), UniformChannel.linear(5)
OTHER = GaussianChannel(Schedule.cosine(60))  # as many steps, other noise
EXACT, MISPLACED = ExactDenoiser(MODEL, CHANNEL), ExactDenoiser(MODEL, OTHER)
LEAVES = MODEL.sample(5, seed=1).leaves
X = CHANNEL.corrupt(LEAVES, 9, 4, seed=1)
GRAMMAR_AS_MODEL: Any = GRAMMAR
WORD: Any = "gaussian"
NUMBER: Any = 5
LONE: Any = EXACT

REFUSED: list[tuple[type[HFilterError], str, Callable[[], Any]]] = [
    (ArgumentError, "channel must be the noise", lambda: sequential(EXACT, MODEL, OTHER, LEAVES, 9)),
    (
        ArgumentError, "channel must be the noise",
        lambda: loss_decomposition(EXACT, MODEL, OTHER, LEAVES, 9),
    ),
    (ArgumentError, "second takes other noise", lambda: split_divergence(EXACT, MISPLACED, LEAVES, 9)),
    (
        ArgumentError, "memory takes other noise",
        lambda: memory_coordinate(EXACT, EXACT, MISPLACED, LEAVES, 9),
    ),
    (
        ArgumentError, "channel must be the noise",
        lambda: along_time(MODEL, OTHER, LEAVES, [9], {"exact": EXACT}),
    ),
    (DTypeError, "channel must be a channel", lambda: sequential(EXACT, MODEL, WORD, LEAVES, 9)),
    (DTypeError, "channel must be a channel", lambda: along_time(MODEL, WORD, LEAVES, [9])),
    (DTypeError, "channel must be a channel", lambda: susceptibility(MODEL, WORD, LEAVES, 9, seed=0)),
    (DTypeError, "model must be", lambda: along_time(GRAMMAR_AS_MODEL, CHANNEL, LEAVES, [9])),
    (DTypeError, "model must be", lambda: block(GRAMMAR_AS_MODEL, 5, 0)),
    (DTypeError, "model must be", lambda: held_out(GRAMMAR_AS_MODEL, 5)),
    (DTypeError, "model must be", lambda: duplicates(LEAVES, LEAVES, GRAMMAR_AS_MODEL)),
    (DTypeError, "denoisers must be a mapping", lambda: along_time(MODEL, CHANNEL, LEAVES, 9, LONE)),
    (DTypeError, "denoisers must be a list", lambda: split_matrix(LONE, LEAVES, 9)),
    (DTypeError, "denoisers must be a list", lambda: coupled_samples(LONE, 3, seed=0)),
    (
        DTypeError, "filter_levels must be a sequence",
        lambda: sequential(EXACT, MODEL, None, LEAVES, 9, filter_levels=NUMBER),
    ),
    (ArgumentError, 'pairs must be "different"', lambda: over_models(np.eye(3), pairs=WORD)),
    (ArgumentError, "distances from 0 to", lambda: distance_divergence([10**9], [0])),
    (DTypeError, "ends must be integers", lambda: susceptibility_of(LEAVES, LEAVES / 2)),
    (DTypeError, "times must be an integer", lambda: u_turn(EXACT, LEAVES, 5.0, seed=0)),  # type: ignore[arg-type]
    (DTypeError, "trajectory must be", lambda: reverse(EXACT, X, 9, seed=0, trajectory=2.5)),  # type: ignore[arg-type]
    (ArgumentError, "device must be None", lambda: generate(EXACT, 1, seed=0, device="nowhere")),
    (ArgumentError, "device must be None", lambda: normal(0, "user", 0, 1, 1, device="nowhere")),
    (ArgumentError, "the numbers .* memory", lambda: uniform(0, "user", 0, 2**50, 2**20)),
    (ArgumentError, "the integers .* memory", lambda: integers(0, "user", 0, 2**50, 0, 2)),
    (ArgumentError, "signal must be finite", lambda: noise_leaves(LEAVES, 1e300, 1.0, 4, 0, "user", 0)),
    (ArgumentError, "x_t must be finite", lambda: CHANNEL.log_fields(X * np.float32(1e36), 1)),
    (ArgumentError, "x_t must be finite", lambda: CHANNEL.log_fields(X * np.float32(np.nan), 1)),
    (ShapeError, r"law must have shape \(5, 4, q\)", lambda: UNIFORM.reverse_law(LEAVES, 1, X[:, :3])),
    (ShapeError, r"law must have shape \(5, 4, q\)", lambda: UNIFORM.reverse_law(LEAVES, 1, X[0])),
    (DTypeError, "t must be one integer", lambda: UNIFORM.reverse_law(LEAVES, [1] * 5, X)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "words", "call"), REFUSED)
def test_refusals_name_the_argument(
    error: type[HFilterError], words: str, call: Callable[[], Any]
) -> None:
    with pytest.raises(error, match=words):
        call()


def test_a_schedule_of_another_name_is_the_same_noise() -> None:
    again = GaussianChannel(Schedule.custom(CHANNEL.schedule.betas))
    assert sequential(EXACT, MODEL, again, LEAVES, 9).kl[0] < 1e-6


def test_no_rows_and_one() -> None:
    none = u_turn(EXACT, LEAVES[:0], 5, seed=0)
    assert np.isnan(none.overlap).all()
    assert np.isnan(none.error).all()
    assert np.isnan(u_turn(EXACT, LEAVES[:1], np.array(5), seed=0).error).all()
    empty = tree_overlap(MODEL, LEAVES[:0], LEAVES[:0])
    assert np.isnan(
        [*empty.overlap.values(), *empty.error.values(), empty.as_dict()["parsed"]]
    ).all()
    assert EXACT(X[:0], []).shape == (0, 4, 4)


@pytest.mark.parametrize("kind", [MaskingChannel, UniformChannel])
def test_times_at_which_nothing_happens(kind: type[Channel]) -> None:
    """Survival that stays 1, or 0, for a while: no division by nothing, and the answer of enumeration."""
    channel = kind([1.0, 1.0, 1.0, 0.5, 0.0, 0.0])  # type: ignore[call-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoiser = ExactDenoiser(MODEL, channel)
        made = reverse(denoiser, channel.corrupt(LEAVES, 2, 4, seed=0), 2, seed=1)
        assert np.array_equal(made.leaves, LEAVES)
        law = np.eye(4)[LEAVES]
        for t in (1, 2):
            assert np.array_equal(channel.reverse_law(LEAVES, t, law)[..., :4], law)  # type: ignore[attr-defined]
        made = generate(denoiser, 50, seed=2, joint=True)
        assert np.isfinite(MODEL.log_prob(made.leaves)).all()


def test_memory_in_single_precision_where_rows_are_nearly_tied() -> None:
    """Off all stored rows at little noise, rows differ by small differences of large fields."""
    rows = MODEL.sample(200, seed=3).leaves
    x = random_leaves(200, 4, 4, seed=2)
    weak = np.random.default_rng(0).normal(size=(200, 4, 4)) / CHANNEL.schedule.intensity(1)
    state = (np.eye(4)[x] + weak).astype(np.float32)
    for single, double in (
        [EmpiricalDenoiser(rows, 4, CHANNEL, dtype=d)(state, 1) for d in ("float32", "float64")],
        [ExactDenoiser(MODEL, CHANNEL, dtype=d)(state, 1) for d in ("float32", "float64")],
    ):
        assert single.dtype == np.float32
        assert abs(single - double).max() < 3e-6
    assert (TokenPrior(4, 4, CHANNEL)(state, 1).argmax(axis=2) == x).all()


def test_the_diagonal_of_pairs_is_not_read() -> None:
    pairs = np.array([[np.nan, 1.0, 2.0], [3.0, np.inf, 4.0], [5.0, 6.0, np.nan]])
    assert over_models(pairs).mean == 3.5
    with pytest.raises(ArgumentError, match="1 NaN"):
        over_models(pairs * [[1, np.nan, 1], [1, 1, 1], [1, 1, 1]])
