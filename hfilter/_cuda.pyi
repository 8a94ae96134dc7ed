"""
CUDA kernels of hfilter, and the host loop that tests them. Private: use hfilter.TreeModel.
"""

from __future__ import annotations

import typing

__all__: list[str] = [
    "FORCE_BACKWARDS",
    "FORCE_DOUBLE_RESCUE",
    "FORCE_FEW_BLOCKS",
    "FORCE_GENERAL",
    "FORCE_GLOBAL",
    "abi_version",
    "devices",
    "has_device_code",
    "infer",
    "noise",
    "pack",
    "sample",
    "workspace",
]

def devices(executor: str) -> tuple[int, str]:
    """
    How many devices answer, and why none does.
    """

def has_device_code() -> bool:
    """
    Whether nvcc was there when this module was built.
    """

def infer(
    executor: str,
    model: typing.SupportsInt | typing.SupportsIndex,
    base: typing.SupportsInt | typing.SupportsIndex,
    packed_token_bytes: typing.SupportsInt | typing.SupportsIndex,
    evidence: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        bool,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    outputs: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        list,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    trees: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        list,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    force: typing.SupportsInt | typing.SupportsIndex,
    workspace: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Exact posteriors of n rows, or trees given their evidence; returns before they are there.
    """

def noise(
    executor: str,
    seed: typing.SupportsInt | typing.SupportsIndex,
    tag: typing.SupportsInt | typing.SupportsIndex,
    start: typing.SupportsInt | typing.SupportsIndex,
    n: typing.SupportsInt | typing.SupportsIndex,
    size: typing.SupportsInt | typing.SupportsIndex,
    out: typing.SupportsInt | typing.SupportsIndex,
    given: tuple,
    force: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Noise into n rows, alone, over leaves, or in a step of a process; returns before it is there.
    """

def pack(
    executor: str,
    model: typing.SupportsInt | typing.SupportsIndex,
    base: typing.SupportsInt | typing.SupportsIndex,
    token_bytes: typing.SupportsInt | typing.SupportsIndex,
) -> bytes:
    """
    A model as one block of memory that will lie at address `base`.
    """

def sample(
    executor: str,
    model: typing.SupportsInt | typing.SupportsIndex,
    base: typing.SupportsInt | typing.SupportsIndex,
    n: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    start: typing.SupportsInt | typing.SupportsIndex,
    roots: typing.SupportsInt | typing.SupportsIndex,
    levels: list,
    token_bytes: typing.SupportsInt | typing.SupportsIndex,
    force: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Draws n rows of the stream; returns before they are there.
    """

def workspace(
    executor: str,
    model: typing.SupportsInt | typing.SupportsIndex,
    evidence: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        bool,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    outputs: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        list,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    trees: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        list,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    force: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    Bytes that `infer` must be lent for this question.
    """

FORCE_BACKWARDS: int = 16
FORCE_DOUBLE_RESCUE: int = 8
FORCE_FEW_BLOCKS: int = 4
FORCE_GENERAL: int = 1
FORCE_GLOBAL: int = 2
abi_version: int = 3
