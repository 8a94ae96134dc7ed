"""Agreement: noise is one function of (seed, purpose, step, sample, entry), to the bit, whoever computes it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import oracle
import pytest

from hfilter.errors import ArgumentError, DTypeError, HFilterError, ShapeError
from hfilter.noising import gaussian
from hfilter.noising.gaussian import integers, noise_leaves, normal, reverse_step, uniform

SIZES = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 60, 63, 64, 65, 96, 127, 130)
ROWS = (0, 1, 2, 3, 7, 16, 17, 33)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """The same bits: -0 is not 0."""
    width = np.uint32 if a.dtype == np.float32 else np.uint64
    return a.shape == b.shape and bool((a.view(width) == b.view(width)).all())


def words(seed: int, tag: int, sample: int, block: int) -> list[int]:
    counter = [sample & 0xFFFFFFFF, sample >> 32, block, tag]
    return [int(w[0]) for w in oracle.philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32])]


def judge(seed: int, tag: int, sample: int, size: int) -> np.ndarray:
    """Box and Muller's equations in float64, with the angle that the text describes."""
    out = []
    for block in range(-(-size // 4)):
        w = words(seed, tag, sample, block)
        for u, v in ((w[0], w[1]), (w[2], w[3])):
            radius = np.sqrt(-2 * np.log((u + 0.5) / 2.0**32))
            low = v & 0x3FFFFFFF
            angle = (low - 2**30 if low >= 2**29 else low) * (np.pi / 2) / 2**30
            pair = [np.cos(angle), np.sin(angle)]
            if v >> 30 & 1:
                pair.reverse()
            out += [radius * x * (-1 if v >> 31 else 1) for x in pair]
    return np.array(out[:size])


@pytest.mark.parametrize(("seed", "start"), [(0, 0), (2**64 - 1, 2**32 - 3), (77, 2**64 - 7)])
def test_numbers_are_those_of_the_equations(seed: int, start: int, backend: str) -> None:
    got = normal(seed, "reverse", 9, 7, 11, start=start, backend=backend)
    tag = (gaussian.PURPOSES.index("reverse") + 1) << 28 | 9
    wanted = np.stack([judge(seed, tag, start + i, 11) for i in range(7)])
    np.testing.assert_allclose(got, wanted, rtol=3e-6, atol=1e-7)


def test_backends_give_the_same_bits(backend: str) -> None:
    start = 2**32 - 9  # the carry into the upper half of the sample's index
    for size in SIZES:
        for n in ROWS:
            wanted = normal(5, "user", 3, n, size, start=start, backend="python")
            got = normal(5, "user", 3, n, size, start=start, backend=backend, num_threads=2)
            assert same(got, wanted), (n, size)


def test_any_split_gives_the_same_bits(backend: str) -> None:
    whole = normal(1, "forward", 4, 301, 96, start=11, backend=backend, num_threads=3)
    cuts = [0, 1, 2, 17, 100, 301]
    parts = [
        normal(1, "forward", 4, b - a, 96, start=11 + a, backend=backend) for a, b in pairwise(cuts)
    ]
    assert same(np.concatenate(parts), whole)
    assert same(normal(1, "forward", 4, 301, 8, start=11, backend=backend), whole[:, :8].copy())


def test_a_long_call_goes_over_threads(backend: str) -> None:
    rows = 64 if backend == "python" else 4000
    one = normal(3, "user", 0, rows, 97, backend=backend, num_threads=1)
    assert same(normal(3, "user", 0, rows, 97, backend=backend, num_threads=4), one)


def test_noised_leaves(backend: str, rng: np.random.Generator) -> None:
    for n, length, q in ((50, 16, 6), (7, 5, 3), (3, 1, 300), (33, 8, 4)):
        leaves = rng.integers(0, q, (n, length))
        eps = normal(2, "forward", 8, n, length * q, start=5).reshape(n, length, q)
        signal, sigma = rng.random(n).astype(np.float32), rng.random(n).astype(np.float32)
        for f, g in ((signal, sigma), (0.25, 0.5), (signal, 0.5)):
            wide = np.broadcast_to(np.float32(f), (n,))[:, None, None]
            wanted = np.broadcast_to(np.float32(g), (n,))[:, None, None] * eps
            at = np.arange(q) == leaves[..., None]
            wanted = np.where(at, wanted + wide, wanted)
            got = noise_leaves(
                leaves, f, g, q, 2, "forward", 8, start=5, backend=backend, num_threads=2
            )
            assert same(got, wanted)


def test_a_step_back(backend: str, rng: np.random.Generator) -> None:
    for shape in ((50, 16, 6), (9, 5, 3), (1, 1, 1), (0, 4, 2)):
        x, x0 = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
        x[:1] *= np.float32(1e-38)  # products below the normal range are kept
        a, b, s = np.float32(0.1), np.float32(0.7), np.float32(0.3)
        eps = normal(4, "reverse", 2, shape[0], shape[1] * shape[2], start=1).reshape(shape)
        got = x.copy()
        out = reverse_step(got, x0, 0.1, 0.7, 0.3, 4, "reverse", 2, start=1, backend=backend)
        assert out is got
        assert same(got, (a * x0 + b * x) + s * eps)
        got = x.copy()
        reverse_step(got, x0, 0.1, 0.7, 0, 4, "reverse", 2, backend=backend)
        assert same(got, a * x0 + b * x)


def test_streams_of_other_purposes_kinds_and_steps_are_others() -> None:
    tags = [
        gaussian._tag(purpose, step, kind)
        for purpose in gaussian.PURPOSES
        for step in (0, 1, gaussian.MAX_STEP)
        for kind in range(3)
    ]
    assert len(set(tags)) == len(tags)
    assert min(tags) > 3, "trees are drawn with 0 to 3"
    assert max(tags) < 2**32
    drawn = [
        normal(seed, purpose, step, 1, 8).tobytes()
        for seed in (0, 1, 2**32)
        for purpose in gaussian.PURPOSES
        for step in range(3)
    ]
    assert len(set(drawn)) == len(drawn)


def test_integers_and_uniform_numbers() -> None:
    """From the words themselves, at the ends of the ranges too."""
    tag = 5 << 28 | 1 << 26 | 3
    for low, high in ((1, 501), (-3, -2), (0, 2**32), (-(2**40), -(2**40) + 7)):
        got = integers(9, "times", 3, 40, low, high, start=2**33)
        wide = [words(9, tag, 2**33 + i, 0) for i in range(40)]
        wanted = [low + ((w[0] | w[1] << 32) * (high - low) >> 64) for w in wide]
        assert got.tolist() == wanted
    got_u = uniform(9, "user", 3, 5, 3, start=2**33)
    for i in range(5):
        w = [x for block in range(2) for x in words(9, 7 << 28 | 2 << 26 | 3, 2**33 + i, block)]
        wanted = [((w[2 * e] >> 5) * 2**26 + (w[2 * e + 1] >> 6)) / 2**53 for e in range(3)]
        assert got_u[i].tolist() == wanted
    assert integers(9, "times", 3, 0, 0, 5).shape == (0,)


def test_tensors_on_the_processor_are_filled_in_place() -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros((4, 6))
    assert normal(1, "user", 0, 4, 6, out=x) is x
    assert same(x.numpy(), normal(1, "user", 0, 4, 6))
    assert normal(1, "user", 0, 4, 6, device="cpu").dtype == torch.float32
    leaves = torch.tensor([[0, 2], [1, 1]])
    noisy = noise_leaves(leaves, 0.5, 0.25, 3, 1, "train", 0)
    assert isinstance(noisy, torch.Tensor)
    y, z = torch.ones((2, 3)), torch.zeros((2, 3))
    assert reverse_step(y, z, 1, 0.5, 0, 1, "reverse", 0) is y
    assert y.tolist() == [[0.5] * 3] * 2


def check_tensors(device: str, rng: np.random.Generator) -> None:
    """What serves tensors on devices gives the same bits, of rows of whole and of broken lines."""
    import torch

    from hfilter.noising import tensors

    start, seed, n = 2**32 - 100, 2**63 + 5, 300
    for size in (97, 96, 3):
        x = torch.empty((n, size), device=device)
        tensors.normal(seed, gaussian._tag("reverse", 77), start, x)
        assert same(x.cpu().numpy(), normal(seed, "reverse", 77, n, size, start=start))
    x = torch.empty(4 * 5 + 1, device=device)[1:].view(5, 4)  # lines that are not aligned
    tensors.normal(seed, gaussian._tag("reverse", 77), start, x)
    assert same(x.cpu().numpy(), normal(seed, "reverse", 77, 5, 4, start=start))
    for length, q in ((16, 6), (5, 3), (2, 65535)):
        rows = n if q < 100 else 2
        leaves = rng.integers(0, q, (rows, length))
        leaves[0, 0] = q - 1
        f, g = rng.random(rows), rng.random(rows)
        given = [torch.tensor(v, device=device) for v in (leaves, f, g)]
        noisy = tensors.noise_leaves(seed, gaussian._tag("train", 1), start, *given, q, None)
        wanted = noise_leaves(leaves, f, g, q, seed, "train", 1, start=start)
        assert same(noisy.cpu().numpy(), wanted)
        x0 = rng.normal(size=wanted.shape).astype(np.float32)
        other = torch.tensor(x0, device=device)
        for s in (0.3, 0.0):
            moved, target = noisy.clone(), wanted.copy()
            tensors.reverse_step(seed, gaussian._tag("reverse", 5), 0, moved, other, 0.1, 0.7, s)
            reverse_step(target, x0, 0.1, 0.7, s, seed, "reverse", 5)
            assert same(moved.cpu().numpy(), target)


def test_the_text_for_devices_gives_the_same_bits(rng: np.random.Generator) -> None:
    """Its torch operations, on tensors of the processor; a device's kernels where there is one."""
    torch = pytest.importorskip("torch")
    check_tensors("cpu", rng)
    if torch.cuda.is_available():
        check_tensors("cuda", rng)


@pytest.mark.parametrize("force", ["", "FORCE_FEW_BLOCKS", "FORCE_BACKWARDS"])
def test_the_kernels_for_devices_give_the_same_bits(
    force: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Executed on the host, as in test_cuda_host.py."""
    pytest.importorskip("torch")
    from hfilter import cuda

    module = pytest.importorskip("hfilter._cuda", reason="module _cuda was not built")
    monkeypatch.setitem(cuda.EXECUTORS, "cpu", "host")
    monkeypatch.setattr(cuda, "FORCE", getattr(module, force) if force else 0)
    launched: list[int] = []
    launch = cuda.launch_noise
    monkeypatch.setattr(cuda, "launch_noise", lambda *a: (launched.append(1), launch(*a)))
    check_tensors("cpu", rng)
    assert len(launched) == 13


def test_flushed_subnormals_do_not_matter() -> None:
    torch = pytest.importorskip("torch")
    x, x0 = np.full((2, 8), 3e-38, np.float32), np.zeros((2, 8), np.float32)
    wanted = reverse_step(x.copy(), x0, 0, 0.125, 0, 0, "user", 0)
    assert wanted.min() > 0
    torch.set_flush_denormal(True)
    try:
        assert same(reverse_step(x.copy(), x0, 0, 0.125, 0, 0, "user", 0), wanted)
    finally:
        torch.set_flush_denormal(False)


X = np.zeros((2, 3, 4), np.float32)
REFUSALS: list[tuple[Callable[[], object], type[HFilterError], str]] = [
    (lambda: normal(-1, "user", 0, 1, 1), ArgumentError, "seed"),
    (lambda: normal(0, "sport", 0, 1, 1), ArgumentError, "purpose must be one of start, reverse"),
    (lambda: normal(0, "user", 2**26, 1, 1), ArgumentError, "step"),
    (lambda: normal(0, "user", 0, -1, 1), ArgumentError, "n must be"),
    (lambda: normal(0, "user", 0, 2, 1, start=2**64 - 1), ArgumentError, "start"),
    (lambda: normal(0, "user", 0, 2, 1, out=np.empty((2, 1))), DTypeError, "out must be float32"),
    (lambda: normal(0, "user", 0, 2, 1, out=X), ShapeError, "out must have shape"),
    (lambda: normal(0, "user", 0, 2, 2, out=np.empty((2, 4), "f")[:, ::2]), ArgumentError, "contig"),
    (lambda: normal(0, "user", 0, 2, 1, out=[[0.0], [0.0]]), DTypeError, "array to write to"),
    (lambda: normal(0, "user", 0, 1, 1, backend="abacus"), HFilterError, "backend"),
    (lambda: normal(0, "user", 0, 1, 1, num_threads=0), ArgumentError, "num_threads"),
    (lambda: integers(0, "user", 0, 1, 3, 3), ArgumentError, "high"),
    (lambda: integers(0, "user", 0, 1, 0, 2**32 + 1), ArgumentError, "high"),
    (lambda: noise_leaves([[0, 3]], 1, 1, 3, 0, "user", 0), ArgumentError, "symbols from 0 to 2"),
    (lambda: noise_leaves([[0.5]], 1, 1, 3, 0, "user", 0), DTypeError, "leaves must be integers"),
    (lambda: noise_leaves([0], 1, 1, 3, 0, "user", 0), ShapeError, "leaves must have shape"),
    (lambda: noise_leaves([[0]], [1, 2], 1, 3, 0, "user", 0), ShapeError, "signal"),
    (lambda: noise_leaves([[0]], 1, np.nan, 3, 0, "user", 0), ArgumentError, "sigma must be finite"),
    (lambda: reverse_step(X.copy(), X[:1], 1, 1, 1, 0, "user", 0), ShapeError, "x0 must have"),
    (lambda: reverse_step(X.copy(), X, np.inf, 1, 1, 0, "user", 0), ArgumentError, "a must be"),
    (lambda: reverse_step(X.copy(), X, 1, 1, -1, 0, "user", 0), ArgumentError, "s must be"),
    (lambda: reverse_step(X.astype(float), X, 1, 1, 1, 0, "user", 0), DTypeError, "x must be"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "says"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(call: Callable[[], object], error: type[HFilterError], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
