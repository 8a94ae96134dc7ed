"""Arrays of any library in, arrays of the same library out, without copying where none is needed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import memory
from .errors import ArgumentError, BackendUnavailable, DTypeError

__all__ = ["allocate", "as_numpy", "to_device", "value_type"]

Array = NDArray[Any]
Wrap = Callable[[Any], Any]


def _same(x: Array) -> Array:
    return x


def as_numpy(name: str, x: Any) -> tuple[Array, Wrap]:
    """View `x` as a NumPy array; also return what turns a result into an array of its library.

    NumPy arrays and sequences give NumPy; torch tensors on the CPU and any array with
    ``__dlpack__`` (JAX, CuPy on the CPU, …) are viewed without a copy.

    Raises
    ------
    DTypeError
        If `x` is no array.
    BackendUnavailable
        If it lives on a device that no backend here serves.
    """
    if type(x) is np.ndarray:
        return x, _same
    if isinstance(x, np.ma.MaskedArray):
        raise DTypeError(
            f"{name} is a NumPy masked array, whose mask would be lost; pass its .data, and what is "
            "hidden as mask="
        )
    if isinstance(x, np.ndarray):
        return x, _same
    if type(x).__module__.partition(".")[0] == "torch":
        return _torch_as_numpy(name, x)
    if hasattr(x, "__dlpack__"):
        try:
            array = np.from_dlpack(x)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            raise DTypeError(
                f"{name}: NumPy cannot view this {type(x).__name__} through DLPack ({error})"
            ) from error
        space = x.__array_namespace__() if hasattr(x, "__array_namespace__") else None
        back: Wrap = getattr(space, "from_dlpack", _same)
        return array, back
    try:
        array = np.asarray(x)
    except Exception as error:
        raise DTypeError(f"{name} must be an array, got {type(x).__name__} ({error})") from error
    if array.dtype == object:
        raise DTypeError(
            f"{name} must be an array of numbers, got {type(x).__name__} holding Python objects"
        )
    return array, _same


def _torch_as_numpy(name: str, x: Any) -> tuple[Array, Wrap]:
    import torch

    if not isinstance(x, torch.Tensor):
        raise DTypeError(f"{name} must be an array or a tensor, got {type(x).__name__}")
    if x.device.type != "cpu":
        raise BackendUnavailable(
            f"{name} is on {x.device}, which this call does not serve; move it with .cpu()"
        )
    if x.requires_grad:
        raise ArgumentError(
            f"{name} requires grad, but no gradient flows back through this call: use log_evidence or posterior "
            "of hfilter.differentiable, or pass it with .detach()"
        )
    try:
        return x.numpy(), torch.from_numpy
    except (TypeError, RuntimeError) as error:
        raise DTypeError(f"{name}: {error}; convert it with .float()") from error


def to_device(device: Any) -> Wrap:
    """What turns results into the arrays that `device` asks for: None NumPy, otherwise torch tensors."""
    if device is None:
        return _same
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable(
            f"device = {device!r} asks for torch tensors, but torch is not installed (pip install 'hfilter[learn]')"
        ) from error
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"device must be None (NumPy) or a torch device such as 'cpu', got {device!r}"
        ) from error
    if where.type != "cpu":
        raise BackendUnavailable(
            f"device = {device!r}: hfilter draws on 'cpu' and 'cuda' devices only; move the result from there"
        )
    return torch.from_numpy


_VALUE_TYPES = {name: np.dtype(name) for name in ("float32", "float64")}


def value_type(dtype: Any) -> np.dtype[Any]:
    """float32 or float64, named by a string, a NumPy or a torch dtype."""
    if type(dtype) is str and dtype in _VALUE_TYPES:
        return _VALUE_TYPES[dtype]
    name = str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype
    try:
        found = np.dtype(name)
    except (TypeError, ValueError):
        found = np.dtype(object)
    if found not in _VALUE_TYPES.values() or dtype is None:
        raise DTypeError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return found


_LARGE = 1 << 20  # bytes from which kept and aligned memory is worth some microseconds


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 2**62


def allocate(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    what: str | None = None,
    remedy: str = "pass fewer rows at a time",
) -> Array:
    """An uninitialised array, or an error before any work if the machine cannot hold it.

    The error says `what` it is for, if that is not the result for shape[0] rows.
    """
    size = math.prod(shape, start=dtype.itemsize)
    if size < _LARGE:
        return np.empty(shape, dtype)
    if size <= _physical_memory():
        try:
            return memory.results.array(shape, dtype, size)
        except (MemoryError, ValueError):
            pass
    raise ArgumentError(
        f"{what or f'the result for n = {shape[0]} rows'} of shape {shape} and type {dtype} would take "
        f"{size / 2**30:.3g} GiB, more than this machine's memory; {remedy}"
    )
