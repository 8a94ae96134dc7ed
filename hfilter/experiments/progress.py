"""Progress with rate and remaining time: tqdm if it is installed, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["human", "progress"]

_SECONDS_BETWEEN_LINES = 2.0


def human(number: float) -> str:
    """Return a number with three digits and a metric prefix.

    Examples
    --------
    >>> human(12_345_678), human(999), human(1500)
    ('12.3 M', '999', '1.50 k')
    """
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= scale:
            value = number / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {prefix}"
    return f"{number:.3g}"


@contextmanager
def progress(
    total: int, description: str, unit: str = " rows", *, quiet: bool = False
) -> Iterator[Callable[[int], object]]:
    """Show progress on standard error while a ``with`` block runs.

    Parameters
    ----------
    total : int
        The count at which the work is done.
    description, unit : str
        Text before the bar and behind the numbers.
    quiet : bool
        Show nothing.

    Yields
    ------
    callable
        To be called with the number of things done since the last call.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        with _lines(total, description, unit, quiet) as advance:
            yield advance
        return
    options = {"unit": unit, "unit_scale": True, "file": sys.stderr, "dynamic_ncols": True}
    with tqdm(total=total, desc=description, disable=quiet, **options) as bar:
        try:
            yield bar.update
        except Exception:
            bar.leave = False  # what is read next is the error's line, and not a dead bar above it
            raise


@contextmanager
def _lines(
    total: int, description: str, unit: str, quiet: bool
) -> Iterator[Callable[[int], object]]:
    done, began = 0, time.perf_counter()
    shown = began

    def show(now: float) -> None:
        rate = done / max(now - began, 1e-9)
        left = (total - done) / max(rate, 1e-9)
        if not quiet:
            print(
                f"{description}: {done / max(total, 1):4.0%}, {human(rate)}{unit}/s, "
                f"{left:.0f} s left",
                file=sys.stderr,
            )

    def advance(n: int) -> None:
        nonlocal done, shown
        done += n
        now = time.perf_counter()
        if now - shown > _SECONDS_BETWEEN_LINES:
            shown = now
            show(now)

    yield advance
    show(time.perf_counter())
