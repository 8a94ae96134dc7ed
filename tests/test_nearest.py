"""Truth and agreement: nearest rows against all pairs compared one by one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest

from hfilter.diffusion.nearest import Nearest, nearest
from hfilter.errors import ArgumentError, DTypeError, HFilterError, ShapeError


def judge(rows: np.ndarray, data: np.ndarray, exclude: bool) -> tuple[list[int], ...]:
    found: tuple[list[int], ...] = ([], [], [])
    for i, row in enumerate(rows):
        far = [
            sum(int(a != b) for a, b in zip(row, other, strict=True))
            if not exclude or m != i
            else 10**9
            for m, other in enumerate(data)
        ]
        low = min(far)
        for out, x in zip(found, (low, far.index(low), far.count(low)), strict=True):
            out.append(x)
    return found


def lists(found: Nearest) -> tuple[list[int], ...]:
    assert found.distance.dtype == np.int32
    assert found.index.dtype == found.count.dtype == np.int64
    return found.distance.tolist(), found.index.tolist(), found.count.tolist()


# q, L, n, P: rows about a pack, symbols of a byte and of two, distances beyond a byte
SHAPES = [
    (6, 16, 5, 130), (2, 3, 9, 64), (3, 4, 4, 65), (4, 8, 3, 63), (3, 1, 4, 1), (2, 40, 6, 33),
    (300, 5, 7, 66), (256, 2, 5, 20), (5, 254, 3, 40), (5, 255, 3, 40), (2, 300, 2, 70), (65536, 3, 4, 9),
]  # fmt: skip


@pytest.mark.parametrize(("q", "length", "n", "stored"), SHAPES)
def test_against_all_pairs(
    q: int, length: int, n: int, stored: int, backend: str, rng: np.random.Generator
) -> None:
    rows, data = rng.integers(0, q, (n, length)), rng.integers(0, q, (stored, length))
    few = min(n, stored) // 2
    data[-few or stored :] = rows[: few or 0]  # exact copies, late
    assert lists(nearest(rows, data, backend=backend)) == judge(rows, data, False)
    rows[:] = q - 1
    data[:] = 0 if q > 1 else data
    assert lists(nearest(rows, data, backend=backend)) == judge(rows, data, False), "all at L"


def test_ties_and_the_first_of_them(backend: str) -> None:
    """Everything equal, the worst case of a search that counts; and distances that fall row by row."""
    data = np.zeros((333, 6), np.uint8)
    found = nearest(data[:5], data, backend=backend)
    assert lists(found) == ([0] * 5, [0] * 5, [333] * 5)
    falling = np.triu(np.ones((7, 6), np.uint8))
    falling = np.repeat(falling, 50, axis=0)
    assert lists(nearest(np.zeros((1, 6), np.uint8), falling, backend=backend)) == (
        [0],
        [300],
        [50],
    )


def test_a_row_is_not_compared_with_itself(backend: str, rng: np.random.Generator) -> None:
    data = rng.integers(0, 3, (150, 5))
    data[140] = data[3]
    for n in (150, 70, 1):
        found = nearest(data[:n], data, exclude_same_index=True, backend=backend)
        assert lists(found) == judge(data[:n], data, True)
    pair = nearest([[0, 0], [1, 1]], [[0, 0], [1, 1]], exclude_same_index=True, backend=backend)
    assert lists(pair) == ([2, 2], [1, 0], [1, 1])


def test_threads_and_splits_do_not_matter(backend: str, rng: np.random.Generator) -> None:
    rows, data = rng.integers(0, 4, (203, 8)), rng.integers(0, 4, (997, 8))
    whole = lists(nearest(rows, data, num_threads=1, backend=backend))
    assert lists(nearest(rows, data, num_threads=3, backend=backend)) == whole
    parts = [lists(nearest(rows[a : a + 29], data, backend=backend)) for a in range(0, 203, 29)]
    assert tuple(list(chain(*(p[k] for p in parts))) for k in range(3)) == whole


def test_calls_are_short(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Large searches go to the compiled text in pieces, between which Ctrl-C is seen; own rows keep their index."""
    from hfilter.diffusion import kernels

    data = rng.integers(0, 3, (90, 4))
    wanted = judge(data, data, True)
    monkeypatch.setattr(kernels, "_CALL", 90 * 4 * 8)
    assert lists(nearest(data, data, exclude_same_index=True)) == wanted


def test_tensors_and_lists() -> None:
    torch = pytest.importorskip("torch")
    found = nearest(torch.tensor([[0, 1]], dtype=torch.uint8), torch.tensor([[1, 1], [0, 1]]))
    assert lists(found) == ([0], [1], [1])
    assert lists(nearest(np.empty((0, 2), int), [[0, 1]])) == ([], [], [])


REFUSALS: list[tuple[Callable[[], object], type[HFilterError], str]] = [
    (lambda: nearest([[0, 1]], [[0]]), ShapeError, "same length, got 2 and 1"),
    (lambda: nearest([0, 1], [[0, 1]]), ShapeError, "rows must have shape"),
    (lambda: nearest([[0]], np.empty((0, 1), int)), ShapeError, "data must have at least a row"),
    (lambda: nearest([[0]], [[0]], exclude_same_index=True), ShapeError, "at least two rows"),
    (lambda: nearest([[0]] * 3, [[0]] * 2, exclude_same_index=True), ShapeError, "among data"),
    (lambda: nearest([[0.0]], [[0]]), DTypeError, "rows must be integers"),
    (lambda: nearest([[0]], [[-1]]), ArgumentError, "data must be symbols from 0 to 65535"),
    (lambda: nearest([[65536]], [[0]]), ArgumentError, "rows must be symbols"),
    (lambda: nearest([[0]], [[0]], backend="abacus"), HFilterError, "backend"),
    (lambda: nearest([[0]], [[0]], num_threads=0), ArgumentError, "num_threads"),
]


@pytest.mark.parametrize(("call", "error", "says"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(call: Callable[[], object], error: type[HFilterError], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
