"""Fixtures shared by all courts."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

import hfilter

# Shells start what runs in their background without it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BACKENDS = ("avx512", "avx2", "portable", "numba", "python")


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every CPU backend in turn; those not here are skipped with the package's reason."""
    name = request.param
    known = hfilter.backends()
    if name not in known:
        pytest.skip(f"{name}: not a backend of this build")
    if not known[name].available:
        pytest.skip(f"{name}: {known[name].reason}")
    return str(name)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, new for every test."""
    return np.random.default_rng(20240815)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, so that a stray file is seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
