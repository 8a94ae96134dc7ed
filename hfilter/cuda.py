"""CUDA: device arrays in, device arrays out, on the caller's stream, without waiting.

Everything below the arrays is `hfilter._cuda` (csrc/cuda_*). Its kernels run on a device, or, for the
tests, in a loop on the host (backend "cuda-host", which `hfilter.backends` does not list). Memory comes
from torch, which is imported only when an argument is on a device or a device is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import (
    ArgumentError,
    BackendUnavailable,
    DTypeError,
    HFilterError,
    KernelError,
    ShapeError,
)
from .evidence import Evidence, Outputs, check_levels, check_roots, new_outputs
from .results import Sample
from .runners import compiled_model
from .tree import TreeStructure

__all__ = ["CudaBackend", "infer_tensors", "place_of", "sample_tensors", "unavailable"]

Array = NDArray[Any]

_cuda: Any
try:
    _cuda = importlib.import_module("._cuda", __package__)
    _not_built = ""
except ImportError as error:
    _cuda = None
    _not_built = f"module _cuda was not built ({error})"

# Devices that torch tensors may lie on for these kernels, and who runs them there; tests add the host.
EXECUTORS = {"cuda": "device"}
FORCE = 0  # roads that would not be chosen, for tests: see csrc/cuda_api.h
_PART = 1 << 22  # rows to a launch: the workspace does not grow with n


@functools.cache
def unavailable() -> str:
    """Why no CUDA device serves; empty if one does."""
    if _cuda is None:
        return _not_built
    if not _cuda.has_device_code():
        return "hfilter was built where no working nvcc was found; install it again with nvcc on the PATH"
    if importlib.util.find_spec("torch") is None:
        return "torch, whose tensors hold device memory, is not installed (pip install 'hfilter[learn]')"
    count, reason = _cuda.devices("device")
    return "" if count else f"no CUDA device answers: {reason or 'the driver lists none'}"


class _HostMemory:
    """NumPy arrays, for the host loop."""

    executor = "host"
    key: Any = "host"
    stream = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def upload(self, x: Array) -> Any:
        return np.ascontiguousarray(x)

    def download(self, x: Any, into: Array) -> None:
        into[...] = x

    def address(self, x: Any) -> int:
        if x is None:
            return 0
        return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data_ptr())

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class _TorchMemory(_HostMemory):
    """Tensors on one device; work goes to torch's current stream there."""

    def __init__(self, device: Any) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.device = self.torch.device(device)
        if self.device.type not in EXECUTORS:
            raise BackendUnavailable(
                f"device = {device!r}: hfilter has kernels for CPU and CUDA only"
            )
        self.executor = EXECUTORS[self.device.type]
        if self.executor == "device":
            if not self.torch.cuda.is_available():
                raise BackendUnavailable(
                    f"device = {device!r}: this torch ({self.torch.__version__}) finds no CUDA device"
                )
            if self.device.index is None:
                self.device = self.torch.device("cuda", self.torch.cuda.current_device())
        self.key = str(self.device)

    @property
    def stream(self) -> int:  # type: ignore[override]
        if self.executor != "device":
            return 0
        return int(self.torch.cuda.current_stream(self.device).cuda_stream)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.torch.empty(
            shape, dtype=getattr(self.torch, np.dtype(dtype).name), device=self.device
        )

    def upload(self, x: Array) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    def download(self, x: Any, into: Array) -> None:
        into[...] = x.cpu().numpy()

    def __enter__(self) -> None:
        if self.executor == "device":
            self._guard = self.torch.cuda.device(self.device)
            self._guard.__enter__()

    def __exit__(self, *details: object) -> None:
        if self.executor == "device":
            self._guard.__exit__(*details)


# ------------------------------------------------------------------------------------- launching

_packed: weakref.WeakKeyDictionary[TreeStructure, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _packed_model(memory: _HostMemory, tree: TreeStructure) -> Any:
    """The model on that device, sent there at its first use and kept with it."""
    kept = _packed.setdefault(tree, {})
    if memory.key not in kept:
        model, width = compiled_model(tree), tree.token_dtype.itemsize
        size = len(_cuda.pack(memory.executor, model.address, 0, width))
        block = memory.empty((size,), np.uint8)
        data = _cuda.pack(memory.executor, model.address, memory.address(block), width)
        if isinstance(block, np.ndarray):
            block[:] = np.frombuffer(data, np.uint8)
        else:  # waits, this once: other streams may use the model from here on
            block.copy_(memory.upload(np.frombuffer(bytearray(data), np.uint8)))
            if memory.executor == "device":
                block.cpu()
        kept[memory.key] = block
    return kept[memory.key]


def _launch_sample(
    memory: _HostMemory, tree: TreeStructure, seed: int, start: int, n: int, roots: Any, levels: list[Any]
) -> None:  # fmt: skip
    with memory:
        block = _packed_model(memory, tree)
        try:
            _cuda.sample(
                memory.executor, compiled_model(tree).address, memory.address(block), n, seed, start,
                memory.address(roots), [memory.address(x) for x in levels], tree.token_dtype.itemsize, FORCE,
                memory.stream,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"cuda: {error}") from error


def _launch_infer(
    memory: _HostMemory, tree: TreeStructure, evidence: Evidence, n: int, kind: np.dtype[Any], out: Outputs
) -> None:  # fmt: skip
    address = memory.address
    with memory:
        block = _packed_model(memory, tree)
        for begin in range(0, n, _PART):
            part = slice(begin, min(begin + _PART, n))
            given, to = evidence.rows(part), out.rows(part)
            token_bytes, field_bytes = (
                0 if x is None else int(x.dtype.itemsize) for x in (given.tokens, given.log_fields)
            )
            beliefs = [address(b) for b in to.beliefs]
            model, rows = compiled_model(tree).address, part.stop - begin
            try:
                size = _cuda.workspace(
                    memory.executor, model, rows, token_bytes, field_bytes, kind.itemsize, beliefs,
                    to.leave_one_out is not None, FORCE,
                )  # fmt: skip
                space = memory.empty((size // 8,), np.int64)
                _cuda.infer(
                    memory.executor, model, address(block), rows, tree.token_dtype.itemsize, token_bytes, field_bytes,
                    kind.itemsize, address(given.tokens), address(given.mask), address(given.log_fields),
                    address(to.log_evidence), address(to.root), beliefs, address(to.leave_one_out), FORCE,
                    address(space), memory.stream,
                )  # fmt: skip
            except (ValueError, RuntimeError) as error:
                raise KernelError(f"cuda: {error}") from error


class CudaBackend:
    """The kernels as a backend of NumPy arrays: copies there and back, and waits for the answer."""

    block_work = 1 << 34

    def __init__(self, name: str) -> None:
        self.name = name

    def _memory(self) -> _HostMemory:
        return _HostMemory() if self.name == "cuda-host" else _TorchMemory("cuda")

    def sample(
        self, tree: TreeStructure, seed: int, start: int, n: int, roots: Array | None, levels: list[Array | None],
        num_threads: int,
    ) -> None:  # fmt: skip
        memory = self._memory()
        given = None if roots is None else memory.upload(roots)
        drawn = [None if x is None else memory.empty(x.shape, x.dtype) for x in levels]
        _launch_sample(memory, tree, seed, start, n, given, drawn)
        for x, into in zip(drawn, levels, strict=True):
            if into is not None:
                memory.download(x, into)

    def infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        memory = self._memory()

        def there(x: Array | None) -> Any:
            return None if x is None else memory.upload(x)

        def like(x: Array | None) -> Any:
            return None if x is None else memory.empty(x.shape, x.dtype)

        given = Evidence(*map(there, (evidence.tokens, evidence.mask, evidence.log_fields)))
        found = Outputs(
            like(out.log_evidence), like(out.root), [like(b) for b in out.beliefs], like(out.leave_one_out)
        )  # fmt: skip
        _launch_infer(memory, tree, given, len(status), dtype, found)
        for x, into in zip(found.arrays(), out.arrays(), strict=True):
            memory.download(x, into)
        status[:] = 0  # rows that left the range have been done again already


# ------------------------------------------------------------------- what is on a device already


def place_of(*arguments: Any, device: Any = None) -> Any:
    """The device that a call belongs to, or None: any argument that lies on one, or `device`."""
    for x in arguments:
        if type(x).__module__.partition(".")[0] == "torch" and x.device.type in EXECUTORS:
            return x.device
        if hasattr(x, "__dlpack_device__") and tuple(x.__dlpack_device__())[0] == 2:  # kDLCUDA
            return f"cuda:{x.__dlpack_device__()[1]}"
    return device if str(device).partition(":")[0] in EXECUTORS else None


def _memory_of(place: Any, backend: str | None) -> _TorchMemory:
    if backend not in (None, "cuda"):
        raise ArgumentError(
            f"backend = {backend!r} does not serve arrays on {place}; leave it out, or move them with .cpu()"
        )
    executor = EXECUTORS[str(place).partition(":")[0]]
    if executor == "device" and unavailable():
        raise BackendUnavailable(f"{place}: {unavailable()}; arrays can be moved with .cpu()")
    return _TorchMemory(place)


def _tensor(memory: _TorchMemory, name: str, x: Any) -> Any:
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
            f"{name} is on {x.device}, the other arrays are on {memory.device}; move it with .to({str(memory.device)!r})"
        )
    if x.requires_grad:
        raise ArgumentError(
            f"{name} requires grad, but exact inference is not differentiable in this version: no "
            "gradient would flow back; pass it with .detach()"
        )
    return x


def _shape(name: str, x: Any, row: tuple[int, ...]) -> None:
    if x.ndim != 1 + len(row) or tuple(x.shape[1:]) != row:
        raise ShapeError(
            f"{name} must have shape (n, {', '.join(map(str, row))}), got {tuple(x.shape)}"
        )


def _tokens(memory: _TorchMemory, name: str, x: Any, largest: int) -> Any:
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


def infer_tensors(
    tree: TreeStructure, place: Any, leaves: Any, mask: Any, log_fields: Any, kind: np.dtype[Any],
    backend: str | None, **wanted: Any,
) -> Outputs:  # fmt: skip
    """What is wanted (see `new_outputs`) of evidence on a device, as tensors there.

    Shapes and types are checked; values are not, since looking at them would wait for the device. A
    row with a token outside 0 … vocab_size, or a field that is NaN or +inf, has NaN for an answer.
    """
    memory = _memory_of(place, backend)
    if (leaves is None) == (log_fields is None):
        raise ArgumentError(
            "give exactly one of leaves (tokens) and log_fields, got " + ("neither" if leaves is None else "both")
        )  # fmt: skip
    torch = memory.torch
    with memory:
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
            evidence, n = Evidence(log_fields=fields.contiguous()), len(fields)
        else:
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
            n = len(tokens)
            evidence = Evidence(_tokens(memory, "leaves", tokens, tree.vocab_size), hidden)
        out = new_outputs(tree, n, kind, memory.empty, **wanted)
        _launch_infer(memory, tree, evidence, n, kind, out)
    return out


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
        _launch_sample(memory, tree, seed, start, n, roots, arrays)
    leaves = arrays[tree.depth] if out is None else out
    found = {d: leaves if d == tree.depth else arrays[d] for d in kept}
    return Sample(arrays[0][:, 0], leaves, found)


def _checked_out(memory: _TorchMemory, out: Any, wanted: Any) -> Any:
    tensor = _tensor(memory, "out", out)
    if tensor.shape != wanted.shape:
        raise ShapeError(f"out must have shape {tuple(wanted.shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype != wanted.dtype:
        raise DTypeError(f"out must have type {wanted.dtype}, got {tensor.dtype}")
    if not tensor.is_contiguous():
        raise HFilterError("out must be contiguous; make one with torch.empty")
    return tensor
