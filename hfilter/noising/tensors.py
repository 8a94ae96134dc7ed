"""Noise for tensors on devices, with the bits of hfilter.noising.text.

The kernels of module _cuda make it (csrc/cuda_noise.hpp); where they are not, torch operations do. These hold words in
int64, whose products wrap as those of unsigned numbers do.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import cuda
from ..errors import ArgumentError, DTypeError, ShapeError
from . import text

__all__ = ["check", "noise_leaves", "normal", "reverse_step"]

_MASK = 0xFFFFFFFF
_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
_PIECE = 1 << 22  # numbers made at a time: some 200 bytes each are held


def _philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int) -> Any:
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _root(x: Any) -> Any:
    """The correctly rounded float32 root: torch's own may be off by a unit (it asks a vector library), while one in
    float64, off by a unit or not, is never close enough to a midpoint to round the other way."""
    return torch.sqrt(x.double()).float()


def _box_muller(w: Any, v: Any) -> Any:
    """As hfilter.noising.text.box_muller, operation by operation."""
    one = 1.0
    f = (w >> 16).float() * 65536.0 + ((w & 0xFFFF).float() + 0.5)
    bits = f.view(torch.int32)
    e = (bits - int(text.ROOT_BITS)) >> 23
    t = (bits - (e << 23)).view(torch.float32) - one
    p = t * float(text.P6)
    for factor in (text.P5, text.P4, text.P3, text.P2, text.P1):
        p = (p + float(factor)) * t
    p = (p + float(text.P0)) * t + one
    r = _root((32 - e).float() * float(text.TWO_LN2) + (p * t - 2.0) * t)
    angle = (v << 2) & _MASK
    x = torch.where(angle >= 2**31, angle - 2**32, angle).float() * float(text.QUARTER)
    z = x * x
    s = x + x * z * ((z * float(text.S2) + float(text.S1)) * z + float(text.S0))
    c = (one - z * 0.5) + z * z * ((z * float(text.C2) + float(text.C1)) * z + float(text.C0))
    r = torch.where((v & 0x80000000) != 0, -r, r)
    swap = (v & 0x40000000) != 0
    return r * torch.where(swap, s, c), r * torch.where(swap, c, s)


def _normals(seed: int, tag: int, first: int, rows: int, size: int, device: Any) -> Any:
    blocks = -(-size // 4)
    # 64-bit sums of indices may wrap in int64: the two halves are made apart.
    low = (first & _MASK) + torch.arange(rows, dtype=torch.int64, device=device)[:, None]
    high = ((first >> 32) + (low >> 32)) & _MASK
    block = torch.arange(blocks, dtype=torch.int64, device=device)[None, :]
    third = torch.full_like(block, tag)
    w = _philox(low & _MASK, high, block, third, seed & _MASK, seed >> 32)
    pairs = (*_box_muller(w[0], w[1]), *_box_muller(w[2], w[3]))
    return torch.stack(pairs, -1).reshape(rows, 4 * blocks)[:, :size]


def _pieces(n: int, size: int) -> Any:
    rows = max(1, _PIECE // max(size, 1))
    for begin in range(0, n, rows):
        yield slice(begin, min(begin + rows, n))


def check(name: str, x: Any, shape: tuple[int, ...]) -> None:
    """Refuse what is no contiguous float32 tensor of this shape."""
    if x.dtype != torch.float32:
        raise DTypeError(f"{name} must be float32, got {x.dtype}")
    if tuple(x.shape) != shape:
        raise ShapeError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
    if x.requires_grad or not x.is_contiguous():
        raise ArgumentError(f"{name} must be contiguous and not require grad; pass a copy of it")


@torch.no_grad()
def normal(seed: int, tag: int, start: int, out: Any) -> None:
    """Fill `out` (n, size)."""
    memory = cuda.noise_memory(out)
    if memory is not None:
        cuda.launch_noise(memory, seed, tag, start, out)
        return
    n, size = out.shape
    for part in _pieces(n, size):
        out[part] = _normals(
            seed, tag, start + part.start, part.stop - part.start, size, out.device
        )


def _factor(name: str, x: Any, n: int, device: Any) -> Any:
    t = torch.as_tensor(x, device=device).to(torch.float32)
    if tuple(t.shape) not in ((), (n,)):
        raise ShapeError(f"{name} must be a number or have shape ({n},), got {tuple(t.shape)}")
    if not bool(torch.isfinite(t).all()):
        raise ArgumentError(f"{name} must be finite")
    return t.expand(n)


@torch.no_grad()
def noise_leaves(
    seed: int, tag: int, start: int, leaves: Any, signal: Any, sigma: Any, q: int, out: Any
) -> Any:
    """signal * onehot(leaves) + sigma * noise, (n, L, q)."""
    if leaves.ndim != 2:
        raise ShapeError(f"leaves must have shape (n, L), got {tuple(leaves.shape)}")
    if leaves.dtype.is_floating_point or leaves.dtype == torch.bool:
        raise DTypeError(f"leaves must be integers, got {leaves.dtype}")
    symbols = leaves.long()
    n, length = symbols.shape
    if symbols.numel() and not bool(((symbols >= 0) & (symbols < q)).all()):
        raise ArgumentError(f"leaves must be symbols from 0 to {q - 1} (vocab_size = {q})")
    if out is None:
        out = torch.empty((n, length, q), dtype=torch.float32, device=leaves.device)
    else:
        check("out", out, (n, length, q))
    f, g = (_factor(name, x, n, out.device) for name, x in (("signal", signal), ("sigma", sigma)))
    memory = cuda.noise_memory(out)
    if memory is not None:
        wide = 1 if q <= 256 else 2  # symbols beyond 32767 keep their bits in int16
        given = symbols.to(torch.uint8 if wide == 1 else torch.int16).contiguous()
        cuda.launch_noise(
            memory, seed, tag, start, out, given, wide, q, f.contiguous(), g.contiguous()
        )
        return out
    at = symbols + torch.arange(length, device=out.device) * q
    flat = out.view(n, length * q)
    for part in _pieces(n, length * q):
        rows = part.stop - part.start
        z = _normals(seed, tag, start + part.start, rows, length * q, out.device)
        z = z * g[part, None]
        leaf = z.gather(1, at[part]) + f[part, None]
        flat[part] = z.scatter(1, at[part], leaf)
    return out


@torch.no_grad()
def reverse_step(
    seed: int, tag: int, start: int, x: Any, x0: Any, a: float, b: float, s: float
) -> Any:
    """x = (a * x0 + b * x) + s * noise, in place."""
    check("x", x, tuple(x.shape))
    if tuple(x0.shape) != tuple(x.shape) or x0.device != x.device:
        raise ShapeError(
            f"x0 must have the shape and device of x, {tuple(x.shape)} on {x.device}, got "
            f"{tuple(x0.shape)} on {x0.device}"
        )
    f, g, h = (float(torch.tensor(v, dtype=torch.float32)) for v in (a, b, s))
    memory = cuda.noise_memory(x)
    if memory is not None:
        given = x0.to(torch.float32).contiguous()
        cuda.launch_noise(memory, seed, tag, start, x, given, f, g, h)
        return x
    n = len(x)
    size = x[0].numel() if n else 0
    flat, flat0 = x.view(n, size), x0.to(torch.float32).reshape(n, size)
    for part in _pieces(n, size):
        target = flat[part]
        moved = flat0[part] * f + target * g
        if h != 0:
            z = _normals(seed, tag, start + part.start, part.stop - part.start, size, x.device)
            moved = moved + z * h
        target.copy_(moved)
    return x
