"""The memory of large results: used again, but by nothing while any array is in it, and bounded."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hfilter import Grammar, TreeModel, memory
from hfilter.memory import IDLE_BYTES, Pool

MIB = 1 << 20
MODEL = TreeModel(Grammar.published(4, 1.0, 0), 4)


def array(pool: Pool, size: int = MIB, kind: str = "u1") -> np.ndarray[Any, Any]:
    dtype = np.dtype(kind)
    return pool.array((size // dtype.itemsize,), dtype, size)


def address(x: np.ndarray[Any, Any]) -> int:
    return int(x.__array_interface__["data"][0])


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """The pool of all results, for one test."""
    made = Pool(IDLE_BYTES)
    monkeypatch.setattr(memory, "results", made)
    return made


# ------------------------------------------------------------------------------ results are in it


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_next_result_lies_where_the_last_one_lay(pool: Pool, kind: str) -> None:
    x = MODEL.sample(8192, seed=1).leaves
    if kind == "torch":
        x = pytest.importorskip("torch").from_numpy(x)
    calls = {
        "leaves": lambda: MODEL.infer(x).leaves,
        "one out": lambda: MODEL.leave_one_out(x),
        "sample": lambda: MODEL.sample(65536, seed=2).leaves,
    }
    for call in calls.values():
        found = call()
        expected, where = np.asarray(found).copy(), address(np.asarray(found))
        del found
        assert pool.idle_bytes >= expected.nbytes
        again = call()
        assert address(np.asarray(again)) == where
        assert np.array_equal(np.asarray(again), expected)
        del again


def test_small_results_are_not_in_it(pool: Pool) -> None:
    result = MODEL.sample(65535).leaves
    assert result.nbytes < MIB
    del result
    assert pool.idle_bytes == 0


def test_a_result_is_an_ordinary_array(pool: Pool) -> None:
    shape = (3, 5, 8192)
    for kind in ("u1", "u2", "f4", "f8"):
        dtype = np.dtype(kind)
        size = dtype.itemsize * 3 * 5 * 8192
        for _ in range(2):  # new memory, then kept memory
            x = pool.array(shape, dtype, size)
            assert (type(x), x.shape, x.dtype) == (np.ndarray, shape, dtype)
            assert x.flags.carray, "contiguous, aligned and writable"
            assert address(x) % 64 == 0
            x[...] = np.arange(x.size).reshape(shape) % 251
            for other in (pickle.loads(pickle.dumps(x)), x.copy(), np.copy(x)):
                assert np.array_equal(other, x)
                assert not np.shares_memory(other, x)
            del x, other
        pool.forget()


# ------------------------------------------------------------------------------ who keeps a block


def rows(x: np.ndarray[Any, Any]) -> Any:
    return x[5:9]


def views_of_views(x: np.ndarray[Any, Any]) -> Any:
    return x.reshape(2, -1)[1][3:].view(np.uint8)[::2].T


def an_item_of_a_memoryview(x: np.ndarray[Any, Any]) -> Any:
    return memoryview(x)[7:8]


def through_the_buffer(x: np.ndarray[Any, Any]) -> Any:
    return np.frombuffer(x, np.uint8)[1:]


def an_iterator(x: np.ndarray[Any, Any]) -> Any:
    return iter(x)


def through_dlpack(x: np.ndarray[Any, Any]) -> Any:
    return np.from_dlpack(x)[1:]


def a_tensor(x: np.ndarray[Any, Any]) -> Any:
    return pytest.importorskip("torch").from_numpy(x)


def a_view_of_a_tensor(x: np.ndarray[Any, Any]) -> Any:
    return pytest.importorskip("torch").from_dlpack(x)[4:].reshape(-1, 2).T


KEEPERS = (
    rows, views_of_views, an_item_of_a_memoryview, through_the_buffer, an_iterator, through_dlpack,
    a_tensor, a_view_of_a_tensor,
)  # fmt: skip


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_block_is_kept_as_long_as_anything_is_in_it(keeper: Any) -> None:
    pool = Pool(IDLE_BYTES)
    x = array(pool)
    where = address(x)
    kept = keeper(x)
    del x
    gc.collect()
    assert pool.idle_bytes == 0
    other = array(pool)
    assert address(other) != where
    del kept
    gc.collect()
    assert pool.idle_bytes >= MIB
    assert address(array(pool)) == where, "it is back"


def test_a_circle_is_freed_by_the_collector() -> None:
    pool = Pool(IDLE_BYTES)
    circle: list[Any] = [array(pool)]
    circle.append(circle)
    del circle
    assert pool.idle_bytes == 0
    gc.collect()
    assert pool.idle_bytes >= MIB


# ------------------------------------------------------------------------------ how much is kept


def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    pool = Pool(4 * MIB)
    held = [array(pool, size * MIB // 16) for size in (16, 20, 24, 30)]  # 5.6 MiB in all
    where = [address(x) for x in held]
    while held:
        del held[0]
        assert pool.idle_bytes <= 4 * MIB
    assert len(pool._idle) == 2, "the two youngest, 3.4 MiB"
    assert [address(array(pool, size * MIB // 16)) for size in (24, 30)] == where[2:]
    large = array(pool, 5 * MIB)
    del large
    assert len(pool._idle) == 2, "a block beyond the bound is freed and takes no other with it"
    assert Pool(0).array((MIB,), np.dtype("u1"), MIB).nbytes == MIB


def test_a_block_serves_results_of_about_its_size() -> None:
    pool = Pool(IDLE_BYTES)
    sizes = [1 << 20, 9 << 17, 10 << 17]
    held = [array(pool, size) for size in sizes]
    where = [address(x) for x in held]
    del held
    best = array(pool, sizes[1] - 1000)
    assert address(best) == where[1], "the smallest that fits"
    for size in (sizes[2] + 1, sizes[0] - (1 << 17)):
        assert address(array(pool, size)) not in where
    assert address(array(pool, sizes[1] - 1000)) == where[2]


def test_no_memory_but_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(IDLE_BYTES)
    array(pool)
    empty = np.empty

    def scarce(size: int, dtype: Any) -> Any:
        if pool.idle_bytes:
            raise MemoryError
        return empty(size, dtype)

    monkeypatch.setattr(np, "empty", scarce)
    assert array(pool, 3 * MIB).nbytes == 3 * MIB


# ------------------------------------------------------------------------------ threads, collector, fork


def test_a_block_may_come_back_while_the_lock_is_held() -> None:
    """The collector can run inside the pool itself: waiting for the lock would be waiting for ever."""
    pool = Pool(2 * MIB + 200)
    blocks = [array(pool) for _ in range(3)]
    with pool._lock:
        while blocks:
            del blocks[0]
        other = array(pool)  # does with new memory
    del other
    assert not pool._returned
    assert 2 * MIB <= pool.idle_bytes <= 2 * MIB + 200


class Interrupted:
    """A lock that the collector finds taken, each time: a block comes back while it is held."""

    def __init__(self, waiting: list[np.ndarray[Any, Any]]) -> None:
        self.lock = threading.Lock()
        self.waiting = waiting

    def acquire(self, blocking: bool) -> bool:
        return self.lock.acquire(blocking=blocking)

    def release(self) -> None:
        if self.waiting:
            del self.waiting[-1]
        self.lock.release()


@pytest.mark.parametrize("call", ["array", "give back"])
def test_the_holder_of_the_lock_takes_what_came_back_meanwhile(call: str) -> None:
    pool = Pool(IDLE_BYTES)
    held, waiting = [array(pool)], [array(pool) for _ in range(3)]
    pool._lock = Interrupted(waiting)  # type: ignore[assignment]
    if call == "array":
        held.append(array(pool))
    else:
        held.clear()
    assert not waiting
    assert len(pool._idle) == 4 - len(held) + (call == "array")


def test_threads_never_share_a_block() -> None:
    pool = Pool(12 * MIB)
    wrong: list[str] = []
    passed_on: list[np.ndarray[Any, Any]] = []

    def hammer(mine: int) -> None:
        stream = np.random.default_rng(mine)
        held: list[tuple[int, np.ndarray[Any, Any]]] = []
        for i in range(150):
            x = array(pool, int(stream.integers(MIB, 2 * MIB)))
            mark = (mine * 31 + i) % 251
            x[::4096] = mark
            held.append((mark, x[4096:][::2]))
            if i % 3 == 0:
                passed_on.append(x[::4096])  # freed by another thread, perhaps
            if i % 7 == 0 and passed_on:
                passed_on.pop(0)
            if len(held) > 4:
                mark, x = held.pop(int(stream.integers(len(held))))
                if not (x[::2048] == mark).all():
                    wrong.append(f"thread {mine}, {i}")
            del x
            if sum(block.nbytes for block in list(pool._idle)) > 12 * MIB:
                wrong.append("beyond the bound")

    threads = [threading.Thread(target=hammer, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    passed_on.clear()
    assert 0 < pool.idle_bytes <= 12 * MIB
    assert not pool._returned


def test_results_in_threads_stay_what_they_are(pool: Pool) -> None:
    x = MODEL.sample(20_000, seed=3).leaves
    parts = [x[i * 5000 :][:10_000] for i in range(3)]
    expected = [MODEL.leave_one_out(part, num_threads=1).copy() for part in parts]
    wrong: list[int] = []

    def ask(i: int) -> None:
        last = None
        for _ in range(12):
            found = MODEL.leave_one_out(parts[i], num_threads=1)
            if last is not None and not np.array_equal(last, expected[i]):
                wrong.append(i)
            last = found[::3][:]
            if not np.array_equal(found, expected[i]):
                wrong.append(i)
            last = found

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.idle_bytes > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_process_begins_with_nothing_kept() -> None:
    """And with a lock of its own: that of the parent may be held by a thread that the child does not have."""
    mine = memory.results.array((MIB,), np.dtype("u1"), MIB)
    mine[:] = 7
    memory.results.array((2 * MIB,), np.dtype("u1"), 2 * MIB)
    before = memory.results.idle_bytes
    assert before >= 2 * MIB
    with memory.results._lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests leave threads of torch
        child = os.fork()
        if child == 0:
            code = 1
            try:
                pool = memory.results
                good = pool.idle_bytes == 0 and bool((mine == 7).all())
                mine[:] = 8
                other = pool.array((MIB,), np.dtype("u1"), MIB)
                other[:] = 9
                good = good and bool((mine == 8).all())
                del other
                code = 0 if good and pool.idle_bytes >= MIB else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (mine == 7).all()
    assert memory.results.idle_bytes == before
