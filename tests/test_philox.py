"""Agreement: Philox4x32-10 against the known answers published with Random123."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracle
import pytest

import hfilter
from hfilter import philox

# (counter, key, output), from Random123's kat_vectors for philox4x32 10 rounds.
KNOWN = (
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
)


def numbers(text: str) -> list[int]:
    return [int(part, 16) for part in text.split()]


def judge(*words: int) -> tuple[int, ...]:
    return tuple(int(x[0]) for x in oracle.philox4x32(words[:4], words[4:]))


def python(*words: int) -> tuple[int, ...]:
    return tuple(int(x) for x in philox.philox4x32(*words))


def compiled(*words: int) -> tuple[int, ...]:
    module = pytest.importorskip("hfilter._cpu", reason="the compiled extension was not built")
    return tuple(int(x) for x in module.philox(*words))


IMPLEMENTATIONS = (judge, python, compiled)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_known_answers(
    counter: str, key: str, output: str, implementation: Callable[..., tuple[int, ...]]
) -> None:
    words = numbers(counter) + numbers(key)
    assert implementation(*words) == tuple(numbers(output))


@pytest.mark.parametrize("implementation", [python, compiled])
def test_random_counters(
    implementation: Callable[..., tuple[int, ...]], rng: np.random.Generator
) -> None:
    """Carries and high bits in every word: the known answers alone could hide a slip."""
    for row in rng.integers(2**32, size=(200, 6)):
        words = [int(x) for x in row]
        assert implementation(*words) == judge(*words)


def test_the_stream_has_a_version() -> None:
    assert isinstance(hfilter.STREAM_VERSION, int)
    assert hfilter.STREAM_VERSION >= 1
    assert hfilter.provenance()["stream_version"] == hfilter.STREAM_VERSION
