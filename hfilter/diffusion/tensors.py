"""The weighing of stored rows in torch operations, for tensors on devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import ArgumentError, DTypeError

__all__ = ["empirical"]

_PAIRS = 1 << 25  # pairs of a question and a stored row held at a time
_ROWS = 1 << 14


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever the program allows elsewhere (TF32 has 10 bits)."""
    matmul = torch.backends.cuda.matmul
    allowed = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32 = allowed


def _kind(log_fields: Any, dtype: Any) -> Any:
    if dtype is None:
        return torch.float64 if log_fields.dtype == torch.float64 else torch.float32
    name = str(dtype).removeprefix("torch.").removeprefix("<class 'numpy.").removesuffix("'>")
    if name not in ("float32", "float64"):
        raise DTypeError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return getattr(torch, name)


@torch.no_grad()
def empirical(log_fields: Any, stored: Any, dtype: Any) -> tuple[Any, Any]:
    """Marginals (n, L, q) and log-evidence (n,) of `stored` (StoredRows), on the device of `log_fields`."""
    if not log_fields.dtype.is_floating_point:
        raise DTypeError(f"log_fields must be floats, got {log_fields.dtype}")
    if not bool((log_fields < torch.inf).all()):  # NaN is not below either
        raise ArgumentError("log_fields must be finite or -inf")
    kind = _kind(log_fields, dtype)
    rows = stored.on(log_fields.device)
    n = len(log_fields)
    marginals = torch.empty(log_fields.shape, dtype=kind, device=log_fields.device)
    log_evidence = torch.empty(n, dtype=torch.float64, device=log_fields.device)
    step = max(1, _PAIRS // min(len(rows), _ROWS))
    with _full_float32():
        for first in range(0, n, step):
            part = slice(first, first + step)
            marginals[part], log_evidence[part] = _block(log_fields[part].double(), rows, kind)
    return marginals, log_evidence


def _sums(fields: Any, rows: Any) -> Any:
    total = fields[:, 0, rows[:, 0]]
    for j in range(1, rows.shape[1]):
        total += fields[:, j, rows[:, j]]
    return total


def _best(fields: Any, rows: Any) -> tuple[Any, Any]:
    """The largest sum of every question, and a row that has it."""
    value = torch.full((len(fields),), -torch.inf, dtype=fields.dtype, device=fields.device)
    where = torch.zeros(len(fields), dtype=torch.int64, device=fields.device)
    for begin in range(0, len(rows), _ROWS):
        here, at = _sums(fields, rows[begin : begin + _ROWS]).max(dim=1)
        better = here > value
        value, where = torch.where(better, here, value), torch.where(better, at + begin, where)
    return value, where


def _block(fields: Any, rows: Any, kind: Any) -> tuple[Any, Any]:
    n, length, q = fields.shape
    high = fields.amax(dim=2, keepdim=True)
    high = torch.where(high > -torch.inf, high, 0.0)
    value, where = _best((fields - high).to(kind), rows)
    # Relative to the best row, sums are small where they matter: float32 keeps their differences.
    row = torch.where((value > -torch.inf)[:, None], rows[where], 0)
    reference = fields.gather(2, row[:, :, None])
    possible = value > -torch.inf
    centred = torch.where(possible[:, None, None], fields - reference, -torch.inf).to(kind)
    top, _ = _best(centred, rows)
    top = torch.where(possible, top, 0.0)
    mass = torch.zeros(n, dtype=torch.float64, device=fields.device)
    total = torch.zeros((n, length * q), dtype=torch.float64, device=fields.device)
    places = torch.arange(length, device=fields.device) * q
    for begin in range(0, len(rows), _ROWS):
        here = rows[begin : begin + _ROWS]
        weight = torch.exp(_sums(centred, here) - top[:, None])
        mass += weight.sum(dim=1).double()
        one_hot = torch.zeros((len(here), length * q), dtype=kind, device=fields.device)
        one_hot.scatter_(1, here + places, 1.0)
        total += (weight @ one_hot).double()
    marginals = (total / mass[:, None]).view(n, length, q).to(kind)
    shift = reference[:, :, 0].sum(dim=1) + top.double()
    count = torch.tensor(float(len(rows)), dtype=torch.float64)
    return marginals, torch.log(mass) + shift - torch.log(count).item()
