"""Truth and laws: the posterior of stored rows against every row weighed one by one in extended precision."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hfilter import Grammar, TreeModel
from hfilter.diffusion.empirical import StoredRows, empirical_posterior
from hfilter.diffusion.strings import number_strings
from hfilter.errors import ArgumentError, DTypeError, HFilterError, ShapeError


def judge(fields: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, length, q = fields.shape
    f = fields.astype(np.longdouble)
    logs = sum(f[:, j][:, rows[:, j]] for j in range(length))
    high = logs.max(axis=1)
    weights = np.exp(logs - np.where(high > -np.inf, high, 0)[:, None])
    mass = weights.sum(axis=1)
    marginals = np.empty_like(f)
    with np.errstate(invalid="ignore", divide="ignore"):
        for j in range(length):
            for b in range(q):
                marginals[:, j, b] = weights[:, rows[:, j] == b].sum(axis=1) / mass
        return marginals, np.log(mass) + high - np.log(np.longdouble(len(rows)))


# n, L, q, P: about a pack of questions; groups of one string and of many; more groups than two
SHAPES = [
    (17, 16, 6, 900), (5, 4, 2, 7), (3, 1, 3, 1), (9, 5, 4, 500), (16, 40, 5, 300), (2, 3, 300, 400),
    (33, 2, 2, 2000),
]  # fmt: skip


@pytest.mark.parametrize(("n", "length", "q", "stored"), SHAPES)
def test_against_every_row(
    n: int, length: int, q: int, stored: int, backend: str, rng: np.random.Generator
) -> None:
    rows = rng.integers(0, q, (stored, length))
    held = StoredRows(rows, q)
    for scale in (0.1, 3.0, 5000.0, 1e6):
        fields = rng.normal(size=(n, length, q)) * scale
        if scale == 3.0:
            fields[rng.random(fields.shape) < 0.2] = -np.inf
        for kind, near in ((np.float64, 1e-9), (np.float32, 3e-5)):
            given = fields.astype(kind)
            wanted, evidence = judge(given, rows)
            got, log_evidence = empirical_posterior(given, held, backend=backend, num_threads=2)
            assert got.dtype == kind
            assert log_evidence.dtype == np.float64
            possible = evidence > -np.inf
            assert (np.isnan(got).all(axis=(1, 2)) == ~possible).all()
            assert (log_evidence[~possible] == -np.inf).all()
            slack = max(1.0, scale * 1e-4) if kind is np.float32 else 1.0
            assert np.abs(got[possible] - wanted[possible]).max(initial=0) < near * slack
            size = np.maximum(1, np.abs(evidence[possible]))
            apart = np.abs(log_evidence[possible] - evidence[possible]) / size
            assert apart.max(initial=0) < (1e-5 if kind is np.float32 else 1e-12)
            assert np.abs(got[possible].sum(axis=2) - 1).max(initial=0) < 1e-5


def test_zeros_are_zeros(backend: str) -> None:
    """A symbol that no stored row has where it could count has probability 0, not a small number."""
    rows = [[0, 0], [1, 1]]
    fields = np.zeros((2, 2, 3), np.float32)
    fields[1, 0, 0] = -np.inf
    got, log_evidence = empirical_posterior(fields, StoredRows(rows, 3), backend=backend)
    assert got.tolist() == [[[0.5, 0.5, 0]] * 2, [[0, 1, 0]] * 2]
    np.testing.assert_allclose(log_evidence, [0, np.log(0.5)], atol=1e-6)
    fields[1] = -np.inf
    got, log_evidence = empirical_posterior(fields, StoredRows(rows, 3), backend=backend)
    assert np.isnan(got[1]).all()
    assert log_evidence[1] == -np.inf
    assert got[0].tolist() == [[0.5, 0.5, 0]] * 2


def test_far_from_every_row(backend: str) -> None:
    """Sums of forty thousand nats whose differences are of order one, in float32, found relative to the best row."""
    rows = np.array([[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 1]])
    fields = np.zeros((20, 4, 3), np.float32)
    fields[:, :, :2] = -10000
    for i in range(20):
        fields[i, 2, 1] += i / 4
    wanted, _ = judge(fields, rows)
    got, _ = empirical_posterior(fields, StoredRows(rows, 3), backend=backend)
    assert np.abs(got - wanted).max() < 1e-6


def test_strings_at_odds_with_themselves(backend: str) -> None:
    """Each symbol is likely where no row has it with its neighbour: the sums of a string's fields have lost digits."""
    rows = np.repeat([[0], [1]], 4, axis=1)
    fields = np.zeros((30, 4, 2), np.float32)
    steps = np.arange(30) / 512  # what float32 holds at 20 000, but not at 40 000
    fields[:, 0, 1] = fields[:, 1, 1] = -20000
    fields[:, 2, 0] = fields[:, 3, 0] = -20000
    fields[:, 0, 1] += steps
    fields[:, 2, 0] += 5 * steps
    wanted, evidence = judge(fields, rows)
    got, log_evidence = empirical_posterior(fields, StoredRows(rows, 2), backend=backend)
    assert np.abs(got - wanted).max() < 1e-6
    assert np.abs(log_evidence - evidence).max() < 1e-6


def test_halves_of_two_rows(backend: str, rng: np.random.Generator) -> None:
    """One row fits the first half and another the second: each is 80 nats and more below the two halves together."""
    rows = rng.integers(0, 8, (3000, 12))
    fields = np.full((17, 12, 8), -200, np.float32)
    below = np.linspace(60, 100, 17)
    for j in range(12):
        first = j < 6
        fields[:, j, rows[5, j]] = 0 if first else -below / 6
        if rows[6, j] != rows[5, j]:
            fields[:, j, rows[6, j]] = (-below - 8) / 6 if first else 0
    wanted, evidence = judge(fields, rows)
    assert 1e-5 < wanted[0].min(axis=1, where=wanted[0] > 1e-9, initial=1).min() < 1e-2
    got, log_evidence = empirical_posterior(fields, StoredRows(rows, 8), backend=backend)
    assert np.abs(got - wanted).max() < 1e-5
    assert np.abs(log_evidence - evidence).max() < 1e-4


def test_so_far_that_the_best_row_is_not_seen_at_first(
    backend: str, rng: np.random.Generator
) -> None:
    """Every row a billion nats below the best symbols: differences of hundreds of nats are lost in the first sums."""
    rows = rng.integers(0, 2, (300, 8))
    fields = (rng.normal(size=(20, 8, 3)) * 60).astype(np.float32)
    fields[..., 2] = 1e9
    wanted, evidence = judge(fields, rows)
    got, log_evidence = empirical_posterior(fields, StoredRows(rows, 3), backend=backend)
    assert np.abs(got - wanted).max() < 1e-4
    assert np.abs(log_evidence - evidence).max() < 1e-3


def test_many_copies_add_up(backend: str) -> None:
    """Thirty thousand equal float32 weights: summed one by one they would be off by 1e-3."""
    rows = np.zeros((30001, 2), int)
    rows[0] = 1
    fields = np.zeros((1, 2, 2), np.float32)
    fields[0, 0, 1] = np.log(30000.0)
    got, log_evidence = empirical_posterior(fields, rows, backend=backend)
    np.testing.assert_allclose(got, 0.5, rtol=2e-5)
    np.testing.assert_allclose(log_evidence, np.log(60000 / 30001), atol=1e-5)


def test_neighbours_threads_and_splits_do_not_matter(rng: np.random.Generator) -> None:
    """A question's answer is the same to the bit whatever else is asked, however small or large its fields."""
    rows = StoredRows(rng.integers(0, 4, (700, 8)), 4)
    fields = (rng.normal(size=(45, 8, 4)) * 10.0 ** rng.integers(-1, 7, (45, 1, 1))).astype("f")
    whole, evidence = empirical_posterior(fields, rows, num_threads=3)
    for i in range(45):
        alone, own = empirical_posterior(fields[i : i + 1], rows, num_threads=1)
        assert alone.tobytes() == whole[i : i + 1].tobytes()
        assert own[0] == evidence[i]


def test_it_is_bayes_of_a_small_world(rng: np.random.Generator) -> None:
    """With every sequence stored as often as it is probable, it is the exact model's posterior."""
    model = TreeModel(Grammar.random_hierarchy(
        vocab_size=3, rules_per_symbol=2, depth=2, n_classes=3, seed=1), 2)  # fmt: skip
    every = np.unique(model.sample(4000, seed=0).leaves, axis=0)
    law = model.log_prob(every)
    assert np.ptp(law) < 1e-9, "all sequences of this family are alike"
    fields = rng.normal(size=(50, 4, 3)) * 2
    got, log_evidence = empirical_posterior(fields, every)
    exact = model.infer(log_fields=fields, dtype="float64")
    np.testing.assert_allclose(got, exact.leaves, atol=1e-12)
    np.testing.assert_allclose(log_evidence, exact.log_evidence, atol=1e-12)


def test_strings_say_what_the_rows_were(rng: np.random.Generator) -> None:
    for stored, length, q in ((3000, 16, 3), (50, 5, 300), (1, 1, 1), (4000, 2, 2), (900, 37, 6)):
        rows = rng.integers(0, q, (stored, length))
        positions, starts, strings, symbols, runs, head = number_strings(rows)
        parts = [
            symbols[strings[:, g], : positions[g + 1] - positions[g]]
            for g in range(len(positions) - 1)
        ]
        again = np.concatenate(parts, axis=1)
        order = np.lexsort(rows.T[::-1])
        assert (again[np.lexsort(again.T[::-1])] == rows[order]).all()
        assert np.bincount(strings[:, -1] if head else strings[:, 0]).max() <= 512
        assert head in (len(positions) - 2, len(positions) - 3)
        assert (runs[0], runs[-1]) == (0, stored)
        for begin, end in pairwise(runs):
            assert 0 < end - begin <= 512
            assert (strings[begin:end, :head] == strings[begin, :head]).all()
        assert (np.diff(starts) > 0).all()


def test_the_text_for_devices(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from hfilter.diffusion import tensors

    rows = rng.integers(0, 5, (800, 7))
    held = StoredRows(torch.tensor(rows), 5)
    for device in {"cpu", "cuda" if torch.cuda.is_available() else "cpu"}:
        for scale in (0.5, 4.0, 5000.0):
            fields = rng.normal(size=(30, 7, 5)) * scale
            fields[0] = -np.inf
            fields[1, 2, 1:] = -np.inf
            for kind, near in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
                given = torch.tensor(fields, dtype=kind, device=device)
                got, evidence = tensors.empirical(given, held, None)
                assert got.dtype == kind
                wanted, log_evidence = judge(given.cpu().numpy(), rows)
                assert bool(torch.isnan(got[0]).all())
                assert float(evidence[0]) == -np.inf
                assert np.abs(got[1:].cpu().numpy() - wanted[1:]).max() < near
                off = np.abs(evidence[1:].cpu().numpy() - log_evidence[1:])
                assert (off / np.maximum(1, np.abs(log_evidence[1:]))).max() < 1e-6


def test_tensors_on_the_processor() -> None:
    torch = pytest.importorskip("torch")
    got, evidence = empirical_posterior(torch.zeros((2, 1, 2)), [[0], [1], [1], [1]])
    assert isinstance(got, torch.Tensor)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), [[[0.25, 0.75]]] * 2, rtol=1e-6)
    assert isinstance(evidence, torch.Tensor)
    assert abs(float(evidence[0])) < 1e-6


ONE = StoredRows([[0, 1]], 2)
Z: Any = np.zeros((3, 2, 2), np.float32)
REFUSALS: list[tuple[Callable[[], object], type[HFilterError], str]] = [
    (lambda: StoredRows([[0, 2]], 2), ArgumentError, "symbols from 0 to 1"),
    (lambda: StoredRows([[0.5, 1]], 2), DTypeError, "data must be integers"),
    (lambda: StoredRows([0, 1], 2), ShapeError, "data must have shape"),
    (lambda: StoredRows(np.empty((0, 2), int), 2), ShapeError, "with a row at least"),
    (lambda: empirical_posterior(Z[0], ONE), ShapeError, r"must have shape \(n, L, q\)"),
    (lambda: empirical_posterior(Z[:, :1], ONE), ShapeError, r"\(n, 2, 2\) for these rows"),
    (lambda: empirical_posterior(Z + np.nan, ONE), ArgumentError, r"got nan at \(0, 0, 0\)"),
    (lambda: empirical_posterior(Z + np.inf, ONE), ArgumentError, "finite or -inf, got inf"),
    (lambda: empirical_posterior(Z > 0, ONE), DTypeError, "log_fields must be floats"),
    (lambda: empirical_posterior(Z, ONE, dtype="float16"), DTypeError, "dtype"),
    (lambda: empirical_posterior(Z, ONE, backend="abacus"), HFilterError, "backend"),
]


@pytest.mark.parametrize(("call", "error", "says"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(call: Callable[[], object], error: type[HFilterError], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
