"""The parts of an encoder: attention, feed-forward block, positions.

Every forward takes ``look``: ``None``, or what keeps and edits activations by name
(:class:`hfilter.learn.sites.Look`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfilter.learn.architecture import EncoderConfig
from hfilter.learn.sites import Look


class Attention(nn.Module):
    """Multi-head self-attention, initialised like ``nn.MultiheadAttention``."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.causal = config.is_causal
        self.rotary = config.positions == "rotary"
        keys = config.n_heads * config.key_width
        self.widths = [keys, keys, config.d_model]
        self.qkv = nn.Linear(config.d_model, sum(self.widths), bias=config.bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        nn.init.xavier_uniform_(self.qkv.weight)
        if config.bias:
            nn.init.zeros_(self.qkv.bias)
            nn.init.zeros_(self.out.bias)
        if self.rotary:
            angles = rotary_angles(config.n_positions, config.key_width)
            self.register_buffer("cosines", angles.cos().float(), persistent=False)
            self.register_buffer("sines", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, look: Look | None = None, name: str = "") -> Tensor:
        n, length = x.shape[:2]
        # (n, L, widths) -> 3 x (n, heads, L, width per head)
        q, k, v = (
            part.view(n, length, self.n_heads, part.shape[-1] // self.n_heads).transpose(1, 2)
            for part in self.qkv(x).split(self.widths, dim=-1)
        )
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        p = self.dropout if self.training else 0.0
        if look is None:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=self.causal)
        else:
            mixed = self._open(q, k, v, p, look, name)
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output if look is None else look(f"{name}.output", output)

    def _open(
        self, q: Tensor, k: Tensor, v: Tensor, dropout: float, look: Look, name: str
    ) -> Tensor:
        """The same with the softmax written out, so that its pieces exist."""
        q, k, v = look(f"{name}.queries", q), look(f"{name}.keys", k), look(f"{name}.values", v)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [n, heads, query, key]
        if self.causal:
            unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(unseen, -math.inf)
        scores = look(f"{name}.scores", scores)
        weights = look(f"{name}.weights", torch.softmax(scores, dim=-1))
        return look(f"{name}.heads", F.dropout(weights, dropout) @ v)

    def turned(self, x: Tensor) -> Tensor:
        """Each pair of columns (2i, 2i + 1) turned by the angle of its row."""
        even, odd = x[..., 0::2], x[..., 1::2]
        first = even * self.cosines - odd * self.sines
        second = even * self.sines + odd * self.cosines
        return torch.stack([first, second], dim=-1).flatten(-2).type_as(x)


class EncoderLayer(nn.Module):
    """Attention and a feed-forward block, each with a residual and a layer norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.activation = config.activation
        self.attention_only = config.attention_only
        self.attention = Attention(config)
        normed = config.norm != "none"
        if not config.attention_only:
            self.up = nn.Linear(config.d_model, config.d_feedforward, bias=config.bias)
            self.down = nn.Linear(config.d_feedforward, config.d_model, bias=config.bias)
            if config.activation == "reglu":
                self.gate = nn.Linear(config.d_model, config.d_feedforward, bias=config.bias)
        self.norm1 = nn.LayerNorm(config.d_model) if normed else nn.Identity()
        if not config.attention_only:
            self.norm2 = nn.LayerNorm(config.d_model) if normed else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def feedforward(self, x: Tensor, look: Look | None = None, name: str = "") -> Tensor:
        hidden: Tensor = self.up(x)
        if self.activation == "relu":
            hidden = F.relu(hidden)
        elif self.activation == "gelu":
            hidden = F.gelu(hidden)
        elif self.activation == "relu2":
            hidden = F.relu(hidden).square()
        else:
            hidden = F.relu(self.gate(x)) * hidden
        if look is not None:
            hidden = look(f"{name}.feedforward.hidden", hidden)
        output: Tensor = self.down(self.dropout(hidden))
        return output if look is None else look(f"{name}.feedforward.output", output)

    def forward(self, x: Tensor, look: Look | None = None, name: str = "") -> Tensor:
        inner = name and f"{name}.attention"
        if self.pre:
            x = x + self.dropout(self.attention(self.norm1(x), look, inner))
        else:
            x = self.norm1(x + self.dropout(self.attention(x, look, inner)))
        if look is not None:
            x = look(f"{name}.middle", x)
        if not self.attention_only:
            if self.pre:
                x = x + self.dropout(self.feedforward(self.norm2(x), look, name))
            else:
                x = self.norm2(x + self.dropout(self.feedforward(x, look, name)))
        return x if look is None else look(f"{name}.hidden", x)


def rotary_angles(length: int, width: int) -> Tensor:
    """Angle of position t and pair i: t * 10000^(-2i / width).

    Parameters
    ----------
    length, width
        ``width`` even.

    Returns
    -------
    Tensor
        (length, width / 2) float64, radians.

    Notes
    -----
    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5 (as sinusoids); Su et al. 2021,
    arXiv 2104.09864, section 3.4 (as turns).

    Examples
    --------
    >>> rotary_angles(3, 2).flatten()
    tensor([0., 1., 2.], dtype=torch.float64)
    """
    steps = torch.arange(length, dtype=torch.float64)[:, None]
    return steps * 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


def sinusoidal_times(times: Tensor, width: int) -> Tensor:
    """The code of each step: column 2i is sin(t w_i), 2i + 1 cos(t w_i), w_i = 10000^(-2i/width).

    Parameters
    ----------
    times : (n,) integer Tensor
    width
        Even.

    Returns
    -------
    Tensor
        (n, width) float32, computed in float64.

    Notes
    -----
    Source: Ho, Jain and Abbeel 2020, arXiv 2006.11239, appendix B.

    Examples
    --------
    >>> sinusoidal_times(torch.tensor([0, 1]), 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    pairs = torch.arange(0, width, 2, dtype=torch.float64, device=times.device)
    angles = times[:, None] * 10000.0 ** (-pairs / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Fixed positions: column 2i is sin(t w_i), column 2i + 1 cos(t w_i), w_i = 10000^(-2i/d).

    Parameters
    ----------
    length, d_model
        ``d_model`` even.

    Returns
    -------
    Tensor
        (length, d_model) float32, computed in float64.

    Notes
    -----
    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5.

    Examples
    --------
    >>> sinusoidal_positions(2, 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    angles = rotary_angles(length, d_model)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()
