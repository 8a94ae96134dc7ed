"""Ctrl-C and SIGTERM between two steps, never inside one: what was trained can be kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["BetweenSteps"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class BetweenSteps:
    """Hold a signal back until the loop asks, so that weights and counters belong together.

    A second signal is not held back. Elsewhere than in the main thread, where Python handles no
    signals, this does nothing.

    Parameters
    ----------
    active : bool
        Several processes that train as one must not stop at different steps: they are stopped at
        once, as ever.

    Examples
    --------
    >>> import contextlib
    >>> with contextlib.suppress(KeyboardInterrupt), BetweenSteps() as signals:
    ...     signal.raise_signal(signal.SIGINT)
    ...     print("a step ends undisturbed; waiting:", signals.waiting)
    a step ends undisturbed; waiting: True
    """

    def __init__(self, active: bool = True) -> None:
        self._active = active and threading.current_thread() is threading.main_thread()
        self._handlers: dict[int, Any] = {}
        self._held: int | None = None

    def __enter__(self) -> BetweenSteps:
        if self._active:
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                # What is ignored, or ends the process without Python, is left as it is.
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._hold)
        return self

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._held is not None:
            self._handlers[number](number, frame)
            return
        self._held = number

    @property
    def waiting(self) -> bool:
        """Whether a signal has come: the loop should write what it has and leave."""
        return self._held is not None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None and self._held is not None:
            self._handlers[self._held](self._held, None)
            raise KeyboardInterrupt  # a handler that returns must not make the rest look finished
