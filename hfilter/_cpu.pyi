"""
Compiled kernels of hfilter for this processor. Private: use hfilter.TreeModel.
"""

from __future__ import annotations

import typing

__all__: list[str] = [
    "Model",
    "abi_version",
    "choose",
    "empirical",
    "extremes",
    "getenv",
    "ieee_environment",
    "infer",
    "instruction_sets",
    "max_arity",
    "nearest",
    "noise",
    "philox",
    "restore_environment",
    "sample",
    "tangent",
]

class Model:
    """
    A packed model (hfilter.tree.pack).
    """
    def __init__(self, arrays: dict) -> None: ...
    @property
    def address(self) -> int:
        """
        Where its C struct lies, for module _cuda.
        """

def choose(
    isa: str,
    model: Model,
    n: typing.SupportsInt | typing.SupportsIndex,
    tokens: typing.Any,
    mask: typing.Any,
    log_fields: typing.Any,
    value_bytes: typing.SupportsInt | typing.SupportsIndex,
    log_evidence: typing.Any,
    log_weight: typing.Any,
    n_samples: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    start: typing.SupportsInt | typing.SupportsIndex,
    levels: list,
    status: typing.Any,
    num_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Trees drawn given the evidence of n rows, or the most probable ones.
    """

def empirical(
    isa: str,
    n: typing.SupportsInt | typing.SupportsIndex,
    length: typing.SupportsInt | typing.SupportsIndex,
    vocab_size: typing.SupportsInt | typing.SupportsIndex,
    strings: tuple,
    log_fields: typing.Any,
    marginals: typing.Any,
    mass: typing.Any,
    shift: typing.Any,
    num_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Posterior marginals under the uniform law on stored rows.
    """

def extremes(values: typing.Any) -> tuple:
    """
    Smallest and largest of floating-point values, NaN aside, and whether any is NaN.
    """

def getenv(name: str) -> typing.Any:
    """
    A variable of the environment, or None.
    """

def ieee_environment() -> bytes:
    """
    Sets this thread's floating-point environment to the IEEE default; returns what it was.
    """

def infer(
    isa: str,
    model: Model,
    n: typing.SupportsInt | typing.SupportsIndex,
    tokens: typing.Any,
    mask: typing.Any,
    log_fields: typing.Any,
    value_bytes: typing.SupportsInt | typing.SupportsIndex,
    log_evidence: typing.Any,
    root: typing.Any,
    beliefs: list,
    leave_one_out: typing.Any,
    counts: typing.Any,
    star_pairs: typing.Any,
    causal: bool,
    window: typing.SupportsInt | typing.SupportsIndex,
    laws: typing.Any,
    status: typing.Any,
    num_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Exact posteriors of n rows.
    """

def instruction_sets() -> list:
    """
    Instruction sets of this build, best first, and whether this machine runs them.
    """

def nearest(
    isa: str,
    rows: typing.Any,
    stored: typing.Any,
    n: typing.SupportsInt | typing.SupportsIndex,
    n_stored: typing.SupportsInt | typing.SupportsIndex,
    length: typing.SupportsInt | typing.SupportsIndex,
    exclude_from: typing.SupportsInt | typing.SupportsIndex,
    distance: typing.Any,
    index: typing.Any,
    count: typing.Any,
    num_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The nearest of stored rows in Hamming distance.
    """

def noise(
    isa: str,
    seed: typing.SupportsInt | typing.SupportsIndex,
    tag: typing.SupportsInt | typing.SupportsIndex,
    start: typing.SupportsInt | typing.SupportsIndex,
    n: typing.SupportsInt | typing.SupportsIndex,
    size: typing.SupportsInt | typing.SupportsIndex,
    out: typing.Any,
    kind: str,
    given: tuple,
    num_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Standard normal noise into n rows, alone, over leaves, or in a step of a process.
    """

def philox(
    c0: typing.SupportsInt | typing.SupportsIndex,
    c1: typing.SupportsInt | typing.SupportsIndex,
    c2: typing.SupportsInt | typing.SupportsIndex,
    c3: typing.SupportsInt | typing.SupportsIndex,
    k0: typing.SupportsInt | typing.SupportsIndex,
    k1: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[int, int, int, int]:
    """
    One block of Philox4x32-10.
    """

def restore_environment(saved: str) -> None:
    """
    Restores what ieee_environment returned.
    """

def sample(
    isa: str,
    model: Model,
    n: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    start: typing.SupportsInt | typing.SupportsIndex,
    roots: typing.Any,
    levels: list,
    num_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Draws n rows of the stream into the given levels.
    """

def tangent(
    isa: str,
    model: Model,
    n: typing.SupportsInt | typing.SupportsIndex,
    known: tuple,
    value_bytes: typing.SupportsInt | typing.SupportsIndex,
    directions: tuple,
    derivatives: tuple,
    status: typing.Any,
    num_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Derivatives of the posteriors of n rows along directions.
    """

abi_version: int = 3
max_arity: int = 32
