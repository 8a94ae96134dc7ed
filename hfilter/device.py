"""The door for arrays that lie on a device already: device arrays in, device arrays out.

`hfilter.exact` sends a call here when one of its arguments lies on a device or a device is asked for.
Nothing here reads a value, since that would wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .checks import check_int
from .cuda import (
    EXECUTORS,
    TorchMemory,
    kept_tensor,
    launch_infer,
    launch_sample,
    unavailable,
)
from .errors import ArgumentError, BackendUnavailable, DTypeError, ShapeError
from .evidence import Evidence, Outputs, Trees, check_levels, check_roots, new_outputs
from .results import Sample
from .tree import TreeStructure

__all__ = [
    "Constants",
    "choose_tensors",
    "infer_in_parts",
    "infer_tensors",
    "place_of",
    "sample_tensors",
]

_DLPACK_CUDA = 2


def place_of(*arguments: Any, device: Any = None) -> Any:
    """The device that a call belongs to, or None: any argument that lies on one, or `device`."""
    for x in arguments:
        if x is None or isinstance(x, np.ndarray):
            continue
        where = getattr(x, "device", None)
        if type(x).__module__.partition(".")[0] == "torch":
            if getattr(where, "type", None) in EXECUTORS:
                return where
        elif hasattr(x, "__dlpack_device__"):
            kind, index = x.__dlpack_device__()
            if int(kind) == _DLPACK_CUDA:
                return f"cuda:{index}"
    if device is None:
        return None
    return device if str(device).partition(":")[0] in EXECUTORS else None


class Constants:
    """A model's arrays as tensors on a device, sent there at their first use and kept with the model.

    What `hfilter.exact` computes beside the kernels it computes with these.
    """

    def __init__(self, tree: TreeStructure, place: Any) -> None:
        self._tree, self._memory = tree, _memory_of(place, None)

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Zeros in double precision."""
        torch = self._memory.torch
        return torch.zeros(shape, dtype=torch.float64, device=self._memory.device)

    def double(self, x: Any) -> Any:
        """In double precision."""
        return x.double()

    def rounded(self, x: Any, kind: Any) -> Any:
        """In that type."""
        return x.to(kind)

    def sum_rows(self, x: Any) -> Any:
        """The sum over axis 0, which stays, in double precision."""
        return x.sum(0, keepdim=True, dtype=self._memory.torch.float64)

    def keep(self, name: Any, make: Callable[[], np.ndarray[Any, Any]]) -> Any:
        """The tensor of that name, made on the host if it is new."""
        return kept_tensor(self._memory, self._tree, name, make)


def _memory_of(place: Any, backend: str | None) -> TorchMemory:
    if backend not in (None, "cuda"):
        raise ArgumentError(
            f"backend = {backend!r} does not serve arrays on {place}; leave it out, or move them with .cpu()"
        )
    executor = EXECUTORS[str(place).partition(":")[0]]
    if executor == "device" and unavailable():
        raise BackendUnavailable(f"{place}: {unavailable()}; arrays can be moved with .cpu()")
    return TorchMemory(place)


def _tensor(memory: TorchMemory, name: str, x: Any) -> Any:
    """`x` as a tensor on the device, with what a user can get wrong about it."""
    torch = memory.torch
    if not isinstance(x, torch.Tensor):
        if not hasattr(x, "__dlpack_device__"):
            raise DTypeError(
                f"{name} must be on {memory.device} as the other arrays are, got {type(x).__name__}"
            )
        x = torch.from_dlpack(x)
    if x.device != memory.device:
        raise ArgumentError(
            f"{name} is on {x.device}, the other arrays are on {memory.device}; "
            f"move it with .to({str(memory.device)!r})"
        )
    if x.requires_grad:
        raise ArgumentError(
            f"{name} requires grad, but no gradient flows back through this call: use log_evidence or posterior "
            "of hfilter.differentiable, or pass it with .detach()"
        )
    return x


def _shape(name: str, x: Any, row: tuple[int, ...]) -> None:
    if x.ndim != 1 + len(row) or tuple(x.shape[1:]) != row:
        raise ShapeError(
            f"{name} must have shape (n, {', '.join(map(str, row))}), got {tuple(x.shape)}"
        )


def _tokens(memory: TorchMemory, name: str, x: Any, largest: int) -> Any:
    """Integers 0 … largest as the kernels take them; what is outside becomes largest + 1: invalid."""
    torch = memory.torch
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise DTypeError(
            f"{name} must be integers (tokens), got {x.dtype}; convert with .to(torch.uint8)"
        )
    if x.dtype not in (torch.uint8, torch.uint16):
        x = x.to(torch.int64)
        x = torch.where((x < 0) | (x > largest), largest + 1, x)
        x = x.to(torch.uint8 if largest < 255 else torch.uint16)
    return x.contiguous()


def _evidence(
    memory: TorchMemory, tree: TreeStructure, leaves: Any, mask: Any, log_fields: Any
) -> tuple[Evidence, int]:
    """Evidence on a device as the kernels take it, its shapes and types checked; and the number of rows."""
    if (leaves is None) == (log_fields is None):
        raise ArgumentError(
            "give exactly one of leaves (tokens) and log_fields, got " + ("neither" if leaves is None else "both")
        )  # fmt: skip
    torch = memory.torch
    if log_fields is not None:
        if mask is not None:
            raise ArgumentError(
                "mask goes with leaves; in log_fields a hidden leaf has equal fields, e.g. zeros"
            )
        fields = _tensor(memory, "log_fields", log_fields)
        if not fields.is_floating_point():
            raise DTypeError(f"log_fields must be floating-point, got {fields.dtype}")
        _shape("log_fields", fields, (tree.n_leaves, tree.vocab_size))
        if fields.dtype not in (torch.float32, torch.float64):
            fields = fields.float()
        return Evidence(log_fields=fields.contiguous()), len(fields)
    tokens = _tensor(memory, "leaves", leaves)
    _shape("leaves", tokens, (tree.n_leaves,))
    hidden = None
    if mask is not None:
        hidden = _tensor(memory, "mask", mask)
        if hidden.dtype != torch.bool:
            raise DTypeError(f"mask must be boolean (True = hidden), got {hidden.dtype}")
        if hidden.shape != tokens.shape:
            raise ShapeError(
                f"mask must have the shape of leaves, {tuple(tokens.shape)}, got {tuple(hidden.shape)}"
            )
        hidden = hidden.contiguous()
    return Evidence(_tokens(memory, "leaves", tokens, tree.vocab_size), hidden), len(tokens)


def infer_tensors(
    tree: TreeStructure, place: Any, leaves: Any, mask: Any, log_fields: Any, kind: np.dtype[Any],
    backend: str | None, causal: bool, window: int, **wanted: Any,
) -> Outputs:  # fmt: skip
    """What is wanted (see `new_outputs`) of evidence on a device, as tensors there.

    Shapes and types are checked; values are not, since looking at them would wait for the device. A
    row with a token outside 0 … vocab_size, or a field that is NaN or +inf, has NaN for an answer.
    """
    memory = _memory_of(place, backend)
    with memory:
        evidence, n = _evidence(memory, tree, leaves, mask, log_fields)
        evidence.causal, evidence.window = causal, window
        out = new_outputs(tree, n, kind, memory.empty, **wanted)
        launch_infer(memory, tree, evidence, n, kind, out)
    return out


def infer_in_parts(
    tree: TreeStructure, place: Any, leaves: Any, mask: Any, log_fields: Any, kind: np.dtype[Any],
    backend: str | None, rows: int, **wanted: Any,
) -> Iterator[Outputs]:  # fmt: skip
    """As `infer_tensors`, that many rows at a time; evidence is checked as a whole."""
    memory = _memory_of(place, backend)
    with memory:
        evidence, n = _evidence(memory, tree, leaves, mask, log_fields)
    for begin in range(0, n, rows):
        part = slice(begin, min(begin + rows, n))
        with memory:
            out = new_outputs(tree, part.stop - begin, kind, memory.empty, **wanted)
            launch_infer(memory, tree, evidence.rows(part), part.stop - begin, kind, out)
        yield out


def choose_tensors(
    tree: TreeStructure, place: Any, leaves: Any, mask: Any, log_fields: Any, kind: np.dtype[Any],
    backend: str | None, levels: Iterable[int], n_samples: int, seed: int, start: int,
) -> Trees:  # fmt: skip
    """Trees given evidence on a device, as tensors there; the kernel marks rows of impossible evidence.

    Values are not looked at, as in `infer_tensors`: a row that has one which is none is marked like an
    impossible one, and its `log_weight` is NaN.
    """
    memory = _memory_of(place, backend)
    with memory:
        evidence, n = _evidence(memory, tree, leaves, mask, log_fields)
        check_int("start", start, 0, 2**64 - n * n_samples)
        trees = Trees(n_samples, seed, start, [None] * (tree.depth + 1), None, None)
        if n_samples == 0:
            trees.log_weight = memory.empty((n,), np.float64)
        for d in levels:
            trees.levels[d] = memory.empty((n, trees.per_row, tree.n_nodes(d)), tree.token_dtype)
        nothing = Outputs(None, None, [None] * (tree.depth + 1), None)
        launch_infer(memory, tree, evidence, n, kind, nothing, trees)
    return trees


def sample_tensors(
    tree: TreeStructure, place: Any, n: int, seed: int, start: int, roots: Any,
    levels: str | bool | Iterable[int] | None, backend: str | None, out: Any,
) -> Sample:  # fmt: skip
    """Rows of the stream, drawn on a device.

    Roots that lie on the device are not looked at: one outside its range counts as the last class.
    """
    memory = _memory_of(place, backend)
    kept = check_levels(tree, levels)
    arrays: list[Any] = [None] * (tree.depth + 1)
    with memory:
        if roots is not None and place_of(roots) is None:
            roots = memory.upload(check_roots(tree, roots, n))
        elif roots is not None:
            roots = _tensor(memory, "roots", roots)
            if tuple(roots.shape) != (n,):
                raise ShapeError(f"roots must have shape ({n},), got {tuple(roots.shape)}")
            last = tree.n_classes - 1
            roots = (
                _tokens(memory, "roots", roots.long(), last).to(memory.torch.int32).clamp(max=last)
            )
        for d in {0, tree.depth, *kept}:
            arrays[d] = memory.empty((n, tree.n_nodes(d)), tree.token_dtype)
        if out is not None:
            arrays[tree.depth] = _checked_out(memory, out, arrays[tree.depth])
        launch_sample(memory, tree, seed, start, n, roots, arrays)
    leaves = arrays[tree.depth] if out is None else out
    found = {d: leaves if d == tree.depth else arrays[d] for d in kept}
    return Sample(arrays[0][:, 0], leaves, found)


def _checked_out(memory: TorchMemory, out: Any, wanted: Any) -> Any:
    tensor = _tensor(memory, "out", out)
    if tensor.shape != wanted.shape:
        raise ShapeError(f"out must have shape {tuple(wanted.shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype != wanted.dtype:
        raise DTypeError(f"out must have type {wanted.dtype}, got {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ArgumentError("out must be contiguous; make one with torch.empty")
    return tensor
