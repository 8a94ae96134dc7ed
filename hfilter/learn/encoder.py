"""A small transformer encoder whose every activation has a name and a written shape.

This file imports nothing of hfilter but its error classes: a network that could reach the
exact posterior must not be able to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:  # hfilter.learn.missing_package is out of bounds here, see above
    raise ModuleNotFoundError(
        f"hfilter.learn.encoder needs torch ({error}); install it with: pip install '.[learn]'",
        name=error.name,
    ) from error

from hfilter.errors import ArgumentError, DTypeError, ShapeError

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Sizes(Protocol):
    """The three numbers of a model that an encoder's shape follows."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def n_leaves(self) -> int: ...
    @property
    def n_classes(self) -> int: ...


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; the defaults are those of the published experiments.

    Parameters
    ----------
    vocab_size
        Number of leaf symbols, q.
    n_leaves
        Sequence length L.
    n_classes
        Number of root symbols; ``vocab_size`` unless given. Used by the root read-out only.
    d_model, n_layers, n_heads, d_feedforward, dropout
        The usual dimensions; ``n_heads`` divides ``d_model``.
    readout
        ``"mlm"``: one linear layer shared over positions, q logits per leaf; the embedding has one
        more row, for the mask token q. ``"root"``: all tokens flattened, one linear layer.
    positions
        ``"sinusoidal"`` (fixed, as published; needs an even ``d_model``) or ``"learned"``.
    norm
        ``"post"`` (as published, no final norm) or ``"pre"`` (with a final norm).

    Raises
    ------
    hfilter.errors.ArgumentError
        For any value outside its range.

    Notes
    -----
    Source of the defaults: Garnier-Brun et al. 2024, arXiv 2408.15138, section 3.
    """

    vocab_size: int
    n_leaves: int
    n_classes: int | None = None
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 1
    d_feedforward: int = 2048
    dropout: float = 0.1
    readout: Literal["mlm", "root"] = "mlm"
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    norm: Literal["post", "pre"] = "post"

    def __post_init__(self) -> None:
        least = {"vocab_size": 2, "n_leaves": 1, "d_model": 1, "n_layers": 0}
        least |= {"n_heads": 1, "d_feedforward": 1}
        for name, low in least.items():
            _check_integer(name, getattr(self, name), low)
        if self.n_classes is not None:
            _check_integer("n_classes", self.n_classes, 1)
        if not 0.0 <= self.dropout < 1.0:
            raise ArgumentError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.d_model % self.n_heads:
            raise ArgumentError(f"n_heads must divide d_model = {self.d_model}, got {self.n_heads}")
        for name, allowed in (
            ("readout", ("mlm", "root")),
            ("positions", ("sinusoidal", "learned")),
            ("norm", ("post", "pre")),
        ):
            if getattr(self, name) not in allowed:
                raise ArgumentError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ArgumentError(
                f"d_model must be even for sinusoidal positions, got {self.d_model}; "
                'choose positions="learned" or an even d_model'
            )

    @classmethod
    def for_model(
        cls, model: Sizes, readout: Literal["mlm", "root"] = "mlm", **options: Any
    ) -> EncoderConfig:
        """A configuration with the sizes of a model (its q, L and classes, nothing else of it).

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
        >>> config = EncoderConfig.for_model(model, readout="root", d_model=64)
        >>> config.n_leaves, config.n_outputs, config.d_model
        (8, 4, 64)
        """
        sizes = (model.vocab_size, model.n_leaves, model.n_classes)
        return cls(*sizes, readout=readout, **options)

    @property
    def n_embedded(self) -> int:
        """Rows of the token embedding: q, and one more for the mask token under ``"mlm"``."""
        return self.vocab_size + (self.readout == "mlm")

    @property
    def n_outputs(self) -> int:
        """Logits per leaf (``"mlm"``) or per sequence (``"root"``)."""
        if self.readout == "root" and self.n_classes is not None:
            return self.n_classes
        return self.vocab_size

    def trace_shapes(self, n: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what :meth:`Encoder.trace` returns for ``n`` sequences.

        Examples
        --------
        >>> config = EncoderConfig(vocab_size=4, n_leaves=16, n_layers=1)
        >>> for name, shape in config.trace_shapes(32).items():
        ...     print(name, shape)
        embed (32, 16, 128)
        layers.0.attention.weights (32, 1, 16, 16)
        layers.0.attention.output (32, 16, 128)
        layers.0.feedforward.output (32, 16, 128)
        layers.0.hidden (32, 16, 128)
        final (32, 16, 128)
        """
        stream = (n, self.n_leaves, self.d_model)
        shapes: dict[str, tuple[int, ...]] = {"embed": stream}
        for i in range(self.n_layers):
            shapes[f"layers.{i}.attention.weights"] = (
                n,
                self.n_heads,
                self.n_leaves,
                self.n_leaves,
            )
            shapes[f"layers.{i}.attention.output"] = stream
            shapes[f"layers.{i}.feedforward.output"] = stream
            shapes[f"layers.{i}.hidden"] = stream
        shapes["final"] = stream
        return shapes


class Attention(nn.Module):
    """Bidirectional multi-head self-attention, initialised like ``nn.MultiheadAttention``."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, record: dict[str, Tensor] | None, name: str) -> Tensor:
        n, length, d = x.shape
        # (n, L, 3 d) -> 3 x (n, heads, L, d / heads)
        q, k, v = (
            self.qkv(x).view(n, length, 3, self.n_heads, d // self.n_heads).permute(2, 0, 3, 1, 4)
        )
        p = self.dropout if self.training else 0.0
        if record is None:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        else:
            weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
            record[f"{name}.weights"] = weights  # [n, heads, query, key], before dropout
            mixed = F.dropout(weights, p) @ v
        output: Tensor = self.out(mixed.transpose(1, 2).reshape(n, length, d))
        if record is not None:
            record[f"{name}.output"] = output
        return output


class EncoderLayer(nn.Module):
    """Attention and a ReLU feed-forward block, each with a residual and a layer norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.attention = Attention(config)
        self.up = nn.Linear(config.d_model, config.d_feedforward)
        self.down = nn.Linear(config.d_feedforward, config.d_model)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def feedforward(self, x: Tensor, record: dict[str, Tensor] | None, name: str) -> Tensor:
        output: Tensor = self.down(self.dropout(F.relu(self.up(x))))
        if record is not None:
            record[f"{name}.feedforward.output"] = output
        return output

    def forward(self, x: Tensor, record: dict[str, Tensor] | None, name: str) -> Tensor:
        inner = f"{name}.attention"
        if self.pre:
            x = x + self.dropout(self.attention(self.norm1(x), record, inner))
            x = x + self.dropout(self.feedforward(self.norm2(x), record, name))
        else:
            x = self.norm1(x + self.dropout(self.attention(x, record, inner)))
            x = self.norm2(x + self.dropout(self.feedforward(x, record, name)))
        if record is not None:
            record[f"{name}.hidden"] = x
        return x


class Encoder(nn.Module):
    """The published encoder: embedding plus positions, layers, a linear read-out.

    Every layer draws its own initial weights. Parameter counts at the published size (q = 4,
    L = 16): 2.37 million in the encoder, 8 196 in the root read-out.

    Examples
    --------
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=16)).eval()
    >>> tokens = torch.randint(5, (3, 16))         # 4 is the mask token
    >>> encoder(tokens).shape
    torch.Size([3, 16, 4])
    >>> logits, seen = encoder.trace(tokens)
    >>> seen["layers.2.attention.weights"].shape
    torch.Size([3, 1, 16, 16])

    Notes
    -----
    Source: Garnier-Brun et al. 2024, arXiv 2408.15138, section 3 and appendix.
    """

    positions: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.n_embedded, config.d_model)  # N(0, 1) rows
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(config.n_leaves, config.d_model))
        else:
            table = sinusoidal_positions(config.n_leaves, config.d_model)
            self.register_buffer("positions", table, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        width = config.d_model * (config.n_leaves if config.readout == "root" else 1)
        self.readout = nn.Linear(width, config.n_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits for a batch of sequences.

        Parameters
        ----------
        tokens : (n, L) integer tensor
            Symbols 0 … q - 1, and q for a masked leaf (``"mlm"`` only).

        Returns
        -------
        Tensor
            (n, L, q) for ``readout="mlm"``, (n, n_classes) for ``readout="root"``.

        Raises
        ------
        hfilter.errors.ShapeError, hfilter.errors.DTypeError
            For tokens of another shape or of a floating dtype.
        hfilter.errors.ArgumentError
            For a token outside the alphabet (looked for on the CPU only, where it costs nothing).
        """
        return self._run(tokens, None)

    def trace(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and every inner activation by name.

        Runs the same layers with the softmax written out, so that the attention weights exist; the
        logits agree with :meth:`forward` to rounding. Nothing is detached: wrap the call in
        ``torch.no_grad()`` to look only.

        Parameters
        ----------
        tokens : (n, L) integer tensor

        Returns
        -------
        logits : Tensor
            As :meth:`forward`.
        seen : dict of Tensor
            ``embed`` [n, L, d]: what enters layer 0;
            ``layers.i.attention.weights`` [n, heads, L, L]: row = query, sums to one;
            ``layers.i.attention.output`` [n, L, d] and ``layers.i.feedforward.output`` [n, L, d]:
            what each block adds to the residual stream, before dropout and norm;
            ``layers.i.hidden`` [n, L, d]: what leaves layer i;
            ``final`` [n, L, d]: what the read-out sees.
            :meth:`EncoderConfig.trace_shapes` lists them.
        """
        record: dict[str, Tensor] = {}
        return self._run(tokens, record), record

    def _run(self, tokens: Tensor, record: dict[str, Tensor] | None) -> Tensor:
        self._check(tokens)
        x = self.dropout(self.embedding(tokens.long()) + self.positions)
        if record is not None:
            record["embed"] = x
        for i, layer in enumerate(self.layers):
            x = layer(x, record, f"layers.{i}")
        x = self.final_norm(x)
        if record is not None:
            record["final"] = x
        logits: Tensor = self.readout(x.flatten(1) if self.config.readout == "root" else x)
        return logits

    def _check(self, tokens: Tensor) -> None:
        length = self.config.n_leaves
        if tokens.ndim != 2 or tokens.shape[1] != length:
            raise ShapeError(f"tokens must have shape (n, {length}), got {tuple(tokens.shape)}")
        if tokens.dtype not in _INTEGER_DTYPES:
            raise DTypeError(f"tokens must be integers, got {tokens.dtype}; call tokens.long()")
        if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
            low, high = (int(t) for t in torch.aminmax(tokens))
            if low < 0 or high >= self.config.n_embedded:
                raise ArgumentError(
                    f"tokens must be in 0 … {self.config.n_embedded - 1} "
                    f"(readout {self.config.readout!r}), got {low} … {high}"
                )

    def n_parameters(self, part: Literal["all", "encoder", "readout"] = "all") -> int:
        """Number of trainable parameters of the whole, of the encoder or of the read-out."""
        readout = sum(p.numel() for p in self.readout.parameters())
        total = sum(p.numel() for p in self.parameters())
        return {"all": total, "readout": readout, "encoder": total - readout}[part]


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
    steps = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angles = steps * frequency
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def _check_integer(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ArgumentError(f"{name} must be an integer of at least {low}, got {value!r}")
