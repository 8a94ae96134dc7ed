"""Memory of large results, kept for the results that follow.

The system hands out new memory a page at a time, cleared, when it is first written: that takes as long as
the kernels take to fill it, and threads wait for each other there. So the memory of a result that is gone
serves the next of about its size; `IDLE_BYTES` bounds how much is kept in wait.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["IDLE_BYTES", "Pool", "results"]

Array = NDArray[Any]
IDLE_BYTES = 128 << 20  # kept at most; a larger block goes back to the system at once
_LINE = 64  # bytes of a cache line: kernels write whole ones
_SLACK = 8  # a block serves a result of that size, or one smaller by an eighth of its own


class _Loan:
    """What every array in a block holds on to, directly or through another: it goes with the last of them.

    NumPy shortens chains of views to the array that owns the memory, but no further than to what is no array.
    """

    __slots__ = ("__array_interface__", "block", "pool")

    def __init__(self, pool: Pool, block: Array, shape: tuple[int, ...], dtype: np.dtype[Any]):
        address = int(block.__array_interface__["data"][0])
        self.pool, self.block = pool, block
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (address + -address % _LINE, False),
        }

    def __del__(self) -> None:
        self.pool.give_back(self.block)


class Pool:
    """Blocks of memory that no array is in any more, at most `most` bytes of them.

    A block may come back in any thread and at any moment, for the garbage collector decides: nothing here
    waits for the lock. Who finds it taken leaves the block to its holder, or does with new memory.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.forget()

    def forget(self) -> None:
        """Begin anew with nothing kept, where no other thread is at work in here."""
        self._idle: list[Array] = []  # the oldest first
        self._returned: deque[Array] = deque()
        self._lock = threading.Lock()

    @property
    def idle_bytes(self) -> int:
        """Bytes kept in wait."""
        return sum(block.nbytes for block in (*self._idle, *self._returned))

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> Array:
        """An uninitialised array of `size` bytes that begins with a cache line."""
        block = self._take(size + _LINE)
        if block is None:
            try:
                block = np.empty(size + _LINE, np.uint8)
            except MemoryError:
                self._free()
                block = np.empty(size + _LINE, np.uint8)
        return np.asarray(_Loan(self, block, shape, dtype))

    def give_back(self, block: Array) -> None:
        """Keep a block that no array is in any more."""
        if block.nbytes <= self.most:
            self._returned.append(block)
            self._settle()

    def _take(self, size: int) -> Array | None:
        """The smallest block that fits, of equal ones the latest, which caches may still hold."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            best = -1
            for i, block in enumerate(self._idle):
                if size <= block.nbytes <= size + size // _SLACK and (
                    best < 0 or block.nbytes <= self._idle[best].nbytes
                ):
                    best = i
            return self._idle.pop(best) if best >= 0 else None
        finally:
            self._lock.release()
            self._settle()

    def _free(self) -> None:
        """Give all that is kept back to the system."""
        if self._lock.acquire(blocking=False):
            try:
                self._idle.clear()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Move what came back to what is kept, and let go of the oldest beyond the bound.

        Looks again after each release: what came back meanwhile was left to this thread.
        """
        while self._returned and self._lock.acquire(blocking=False):
            try:
                while self._returned:
                    block = self._returned.popleft()
                    while sum(kept.nbytes for kept in self._idle) > self.most - block.nbytes:
                        del self._idle[0]
                    self._idle.append(block)
            finally:
                self._lock.release()


results = Pool(IDLE_BYTES)
if hasattr(os, "register_at_fork"):  # a lock that another thread held would be held forever
    os.register_at_fork(after_in_child=results.forget)
