"""CUDA: launches of `hfilter._cuda` (csrc/cuda_*) on the caller's stream, which wait for nothing.

The kernels run on a device, or, for the tests, in a loop on the host (backend "cuda-host", which
`hfilter.backends` does not list). Device memory is torch's; torch is imported when it is needed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import ieee
from .errors import BackendUnavailable, KernelError
from .evidence import Evidence, Outputs, Trees
from .tree import TreeStructure

__all__ = [
    "EXECUTORS",
    "CudaBackend",
    "HostMemory",
    "TorchMemory",
    "kept_tensor",
    "launch_infer",
    "launch_noise",
    "launch_sample",
    "noise_memory",
    "unavailable",
]

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


class HostMemory:
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

    def wait(self) -> None: ...

    def address(self, x: Any) -> int:
        if x is None:
            return 0
        return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data_ptr())

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class TorchMemory(HostMemory):
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
        return self.torch.from_numpy(np.require(x, requirements=("C", "W"))).to(self.device)

    def download(self, x: Any, into: Array) -> None:
        into[...] = x.cpu().numpy()

    def wait(self) -> None:
        if self.executor == "device":
            self.torch.cuda.current_stream(self.device).synchronize()

    def __enter__(self) -> None:
        if self.executor == "device":
            self._guard = self.torch.cuda.device(self.device)
            self._guard.__enter__()

    def __exit__(self, *details: object) -> None:
        if self.executor == "device":
            self._guard.__exit__(*details)


# ------------------------------------------------------------------------------------- launching

_packed: weakref.WeakKeyDictionary[TreeStructure, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _packed_model(memory: HostMemory, tree: TreeStructure) -> Any:
    """The model on that device, sent there at its first use and kept with it."""
    kept = _packed.setdefault(tree, {})
    if memory.key not in kept:
        model, width = tree.compiled, tree.token_dtype.itemsize
        size = len(_cuda.pack(memory.executor, model.address, 0, width))
        block = memory.empty((size,), np.uint8)
        data = _cuda.pack(memory.executor, model.address, memory.address(block), width)
        if isinstance(block, np.ndarray):
            block[:] = np.frombuffer(data, np.uint8)
        else:  # waits, this once: other streams may use the model from here on
            block.copy_(memory.upload(np.frombuffer(bytearray(data), np.uint8)))
            memory.wait()
        kept[memory.key] = block
    return kept[memory.key]


def kept_tensor(
    memory: HostMemory, tree: TreeStructure, name: Any, make: Callable[[], Array]
) -> Any:
    """An array that belongs to the model, sent to the device at its first use and kept as the model is."""
    kept, key = _packed.setdefault(tree, {}), (memory.key, name)
    if key not in kept:
        kept[key] = memory.upload(make())
        memory.wait()
    return kept[key]


def _window_laws(memory: HostMemory, tree: TreeStructure, evidence: Evidence) -> Any:
    """Laws of the nodes on top of the windows; None where no window needs them."""
    top = evidence.window
    if top == 0 or top < tree.filter_level:
        return None
    return kept_tensor(memory, tree, ("laws", top), lambda: tree.node_laws(top))


def launch_sample(
    memory: HostMemory, tree: TreeStructure, seed: int, start: int, n: int, roots: Any, levels: list[Any]
) -> None:  # fmt: skip
    """Rows of the stream into the wanted levels; returns before they are there."""
    with memory:
        block = _packed_model(memory, tree)
        try:
            _cuda.sample(
                memory.executor, tree.compiled.address, memory.address(block), n, seed, start,
                memory.address(roots), [memory.address(x) for x in levels], tree.token_dtype.itemsize, FORCE,
                memory.stream,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"cuda: {error}") from error


def launch_noise(
    memory: HostMemory, seed: int, tag: int, start: int, out: Any, *given: Any
) -> None:
    """Noise into `out` (n, …): alone, over leaves (tokens, token_bytes, q, signal, sigma), in a step (x0, a, b, s)."""
    cast = tuple(memory.address(x) if hasattr(x, "shape") else x for x in given)
    n = len(out)
    size = out[0].size if isinstance(out, np.ndarray) else out[:1].numel() if n else 0
    with memory:
        try:
            _cuda.noise(
                memory.executor, seed, tag, start, n, size, memory.address(out), cast, FORCE, memory.stream
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise KernelError(f"cuda: {error}") from error


def noise_memory(x: Any) -> HostMemory | None:
    """The memory that a tensor lies in, if the kernels of noise can be launched there."""
    executor = EXECUTORS.get(x.device.type)
    if executor is None or _cuda is None or (executor == "device" and unavailable()):
        return None
    return TorchMemory(x.device)


def launch_infer(
    memory: HostMemory, tree: TreeStructure, evidence: Evidence, n: int, kind: np.dtype[Any], out: Outputs,
    trees: Trees | None = None,
) -> None:  # fmt: skip
    """Fill `out`, or choose `trees` given the evidence; returns before that has happened.

    Rows are independent and go in parts of bounded workspace.
    """
    address = memory.address
    with memory:
        block, laws = _packed_model(memory, tree), _window_laws(memory, tree, evidence)
        for begin in range(0, n, _PART):
            part = slice(begin, min(begin + _PART, n))
            given, to = evidence.rows(part), out.rows(part)
            token_bytes, field_bytes = (
                0 if x is None else int(x.dtype.itemsize) for x in (given.tokens, given.log_fields)
            )
            asked = (
                part.stop - begin, token_bytes, field_bytes, address(given.tokens), address(given.mask),
                address(given.log_fields), given.causal, given.window, address(laws),
            )  # fmt: skip
            wanted = (
                kind.itemsize, address(to.log_evidence), address(to.root), [address(b) for b in to.beliefs],
                address(to.leave_one_out), address(to.counts), address(to.star_pairs),
            )  # fmt: skip
            chosen = (
                None if trees is None else _addresses(memory, tree, trees.rows(begin, part.stop))
            )
            model = tree.compiled.address
            try:
                size = _cuda.workspace(memory.executor, model, asked, wanted, chosen, FORCE)
                space = memory.empty((size // 8,), np.int64)
                _cuda.infer(
                    memory.executor, model, address(block), tree.token_dtype.itemsize, asked, wanted, chosen, FORCE,
                    address(space), memory.stream,
                )  # fmt: skip
            except (ValueError, RuntimeError) as error:
                raise KernelError(f"cuda: {error}") from error


def _addresses(memory: HostMemory, tree: TreeStructure, trees: Trees) -> tuple[Any, ...]:
    """Trees to choose as the kernels take them."""
    return (
        trees.n_samples, trees.seed, trees.start, [memory.address(x) for x in trees.levels],
        tree.token_dtype.itemsize, memory.address(trees.log_weight),
    )  # fmt: skip


class CudaBackend:
    """The kernels as a backend of NumPy arrays: copies there and back, and waits for the answer."""

    finds_nan = False
    block_work = 1 << 34

    def __init__(self, name: str) -> None:
        self.name = name

    def _memory(self) -> HostMemory:
        return HostMemory() if self.name == "cuda-host" else TorchMemory("cuda")

    def sample(
        self, tree: TreeStructure, seed: int, start: int, n: int, roots: Array | None, levels: list[Array | None],
        num_threads: int,
    ) -> None:  # fmt: skip
        memory = self._memory()
        given = None if roots is None else memory.upload(roots)
        drawn = [None if x is None else memory.empty(x.shape, x.dtype) for x in levels]
        launch_sample(memory, tree, seed, start, n, given, drawn)
        for x, into in zip(drawn, levels, strict=True):
            if into is not None:
                memory.download(x, into)

    @ieee()
    def infer(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], out: Outputs, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        memory = self._memory()
        given = evidence.map(memory.upload)
        found = out.map(lambda x: memory.empty(x.shape, x.dtype))
        launch_infer(memory, tree, given, len(status), dtype, found)
        for x, into in zip(found.arrays(), out.arrays(), strict=True):
            memory.download(x, into)
        status[:] = 0  # rows that left the range have been done again already

    def choose(
        self, tree: TreeStructure, evidence: Evidence, dtype: np.dtype[Any], trees: Trees, status: Array,
        num_threads: int,
    ) -> None:  # fmt: skip
        memory = self._memory()
        given = evidence.map(memory.upload)
        arrays = [*trees.levels, trees.log_evidence, trees.log_weight]
        found = [None if x is None else memory.empty(x.shape, x.dtype) for x in arrays]
        drawn = Trees(trees.n_samples, trees.seed, trees.start, found[:-2], None, found[-1])
        out = Outputs(found[-2], None, [None] * (tree.depth + 1), None)
        launch_infer(memory, tree, given, len(status), dtype, out, drawn)
        for x, into in zip(found, arrays, strict=True):
            if into is not None:
                memory.download(x, into)
        status[:] = 0
