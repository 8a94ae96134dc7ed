"""A small transformer encoder whose every activation has a name and a written shape.

This file and those it is made of (``architecture``, ``layers``, ``sites``) import nothing else of
hfilter but its error classes: a network that could reach the exact posterior must not be able to.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

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
from hfilter.learn.architecture import EncoderConfig, Sizes, check_integer
from hfilter.learn.layers import (
    Attention,
    EncoderLayer,
    sinusoidal_positions,
    sinusoidal_times,
)
from hfilter.learn.sites import Edit, Look

__all__ = [
    "Attention",
    "Edit",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "Sizes",
    "sinusoidal_positions",
]

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Encoder(nn.Module):
    """The published encoder and its relatives: embedding plus positions, layers, a read-out.

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

    positions: Tensor | None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding: nn.Embedding | nn.Linear
        if config.readout == "denoise":  # noisy one-hot leaves are a mixture of rows
            self.embedding = nn.Linear(config.vocab_size, config.d_model)
            self.time = nn.Linear(config.time_embedding, config.d_model)
        else:
            self.embedding = nn.Embedding(config.n_embedded, config.d_model)  # N(0, 1) rows
        if config.positions == "learned":
            # Beside rows of N(0, 1), or beside the smaller numbers that a linear map gives.
            size = config.d_model**-0.5 if config.readout == "denoise" else 1.0
            self.positions = nn.Parameter(size * torch.randn(config.n_leaves, config.d_model))
        elif config.positions == "sinusoidal":
            table = sinusoidal_positions(config.n_leaves, config.d_model)
            self.register_buffer("positions", table, persistent=False)
        else:
            self.positions = None
        if config.pooling == "class":
            self.class_token = nn.Parameter(torch.randn(config.d_model))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        flat = config.readout == "root" and config.pooling == "flat"
        width = config.d_model * (config.n_leaves if flat else 1)
        self.readout: nn.Module
        if config.probe_hidden is None:
            self.readout = nn.Linear(width, config.n_outputs)
        else:
            self.readout = nn.Sequential(
                nn.Linear(width, config.probe_hidden),
                nn.ReLU(),
                nn.Linear(config.probe_hidden, config.n_outputs),
            )

    def forward(self, tokens: Tensor, times: Tensor | int | None = None) -> Tensor:
        """Logits for a batch of sequences.

        Parameters
        ----------
        tokens : (n, L) integer tensor
            Symbols 0 … q - 1, and q for a masked leaf (not for ``"root"``, unless
            ``masked_root``). For ``"denoise"``: (n, L, q) floating tensor, noisy one-hot leaves.
        times : (n,) integer tensor or int
            For ``"denoise"``, and needed there: the step of the noise of each sequence.

        Returns
        -------
        Tensor
            (n, L, q) for ``readout`` ``"mlm"``, ``"denoise"`` and ``"causal"`` (row j sees tokens
            0 … j - 1), (n, L, n_classes) for ``"ancestor"``, (n, n_classes) for ``"root"``. With
            ``link="log"``, logarithms of numbers that need not sum to one.

        Raises
        ------
        hfilter.errors.ShapeError, hfilter.errors.DTypeError
            For tokens or times of another shape or dtype.
        hfilter.errors.ArgumentError
            For a token outside the alphabet, noise that is not finite or a negative time (looked
            for on the CPU only, where it costs nothing), and for times that are missing or of no
            use.
        """
        x = self._embedded(tokens, times)
        for layer in self.layers:
            x = layer(x)
        return self.decode(x)

    def trace(
        self,
        tokens: Tensor,
        times: Tensor | int | None = None,
        *,
        edits: Mapping[str, Edit] | None = None,
        names: Iterable[str] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and inner activations by name, as they are or edited on the way.

        Runs the same layers with the softmax written out, so that the attention weights exist; the
        logits agree with :meth:`forward` to rounding. Nothing is detached: wrap the call in
        ``torch.no_grad()`` to look only.

        Parameters
        ----------
        tokens, times
            As :meth:`forward`.
        edits
            By site name: a tensor or a number that takes the activation's place (broadcast to its
            shape, cast to its dtype and device), or a function of the activation that returns
            what takes its place. Everything downstream follows, later edits included.
        names
            Which sites to keep; all unless given.

        Returns
        -------
        logits : Tensor
            As :meth:`forward`.
        seen : dict of Tensor
            In the order of computation, as edited; P is L, or L + 1 with a class position.

            ``embed`` [n, P, d]: what enters layer 0;
            ``layers.i.attention.queries`` and ``.keys`` [n, heads, P, d_key] (turned, if positions
            are rotary), ``.values`` [n, heads, P, d / heads];
            ``layers.i.attention.scores`` [n, heads, P, P]: row = query; divided by sqrt(d_key),
            -inf where a causal mask forbids;
            ``layers.i.attention.weights`` [n, heads, P, P]: their softmax, rows sum to one;
            ``layers.i.attention.heads`` [n, heads, P, d / heads]: weights @ values;
            ``layers.i.attention.output`` [n, P, d] and ``layers.i.feedforward.output`` [n, P, d]:
            what each block adds to the residual stream, before dropout and norm;
            ``layers.i.middle`` [n, P, d]: the stream between the two blocks (normed, if post);
            ``layers.i.feedforward.hidden`` [n, P, d_feedforward]: after the activation;
            ``layers.i.hidden`` [n, P, d]: what leaves layer i;
            ``final`` [n, P, d]: what the read-out sees.
            :meth:`EncoderConfig.trace_shapes` lists them, :meth:`sites` their names.

        Raises
        ------
        hfilter.errors.ArgumentError
            For a name that no activation has.
        hfilter.errors.ShapeError, hfilter.errors.DTypeError
            For an edit of a shape that does not broadcast, or that is no tensor.

        Examples
        --------
        >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=2)).eval()
        >>> tokens = torch.zeros(1, 8, dtype=torch.int64)
        >>> plain, seen = encoder.trace(tokens, names=["layers.0.hidden"])
        >>> same, _ = encoder.trace(tokens, edits={"layers.0.hidden": seen["layers.0.hidden"]})
        >>> cut, _ = encoder.trace(tokens, edits={"layers.1.attention.output": 0.0})
        >>> torch.equal(same, plain), torch.equal(cut, plain)
        (True, False)
        """
        look = Look(self.sites(), edits, names)
        x = look("embed", self._embedded(tokens, times))
        for i, layer in enumerate(self.layers):
            x = layer(x, look, f"layers.{i}")
        return self.decode(x, look), look.seen

    def sites(self) -> tuple[str, ...]:
        """Names of all activations, in the order of computation."""
        return tuple(self.config.trace_shapes(1))

    def decode(self, hidden: Tensor, look: Look | None = None) -> Tensor:
        """Logits from what leaves a layer: final norm, pooling, read-out, link.

        On ``layers.i.hidden`` of an inner layer it is the *logit lens*; on the last one's it gives
        the logits of :meth:`forward`.

        Parameters
        ----------
        hidden : (n, P, d) Tensor

        Returns
        -------
        Tensor
            As :meth:`forward`.
        """
        x = self.final_norm(hidden)
        if look is not None:
            x = look("final", x)
        if self.config.readout == "root":
            pooling = self.config.pooling
            x = x.flatten(1) if pooling == "flat" else x.mean(1) if pooling == "mean" else x[:, 0]
        logits: Tensor = self.readout(x)
        # ReLU, not a clamp: its gradient at 0 is 0, where that of the logarithm is not finite.
        return logits if self.config.link == "logit" else F.relu(logits).log()

    def _embedded(self, tokens: Tensor, times: Tensor | int | None = None) -> Tensor:
        x: Tensor
        if self.config.readout == "denoise":
            steps = self._check_noisy(tokens, times)
            weight = self.time.weight
            code = sinusoidal_times(steps.to(weight.device), self.config.time_embedding)
            x = self.embedding(tokens.to(weight.dtype)) + self.time(code.to(weight.dtype))[:, None]
        else:
            self._check(tokens)
            if times is not None:
                raise ArgumentError(
                    f"times are for readout='denoise' only, not for {self.config.readout!r}"
                )
            tokens = tokens.long()
            if self.config.readout == "causal":
                tokens = F.pad(tokens[:, :-1], (1, 0), value=self.config.vocab_size)
            x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions
        if self.config.pooling == "class":
            x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1)
        dropped: Tensor = self.dropout(x)
        return dropped

    def _check(self, tokens: Tensor) -> None:
        length = self.config.n_leaves
        if not isinstance(tokens, Tensor):
            raise DTypeError(
                f"tokens must be a torch tensor of integers, got {type(tokens).__name__}; "
                "torch.from_numpy(array) makes one of an array"
            )
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

    def _check_noisy(self, x: Tensor, times: Tensor | int | None) -> Tensor:
        """The times as a tensor, if they and the noisy leaves are what they should be."""
        shape = (self.config.n_leaves, self.config.vocab_size)
        wanted = f"readout 'denoise' reads noisy one-hot leaves, floating of shape (n, {shape[0]}, "
        wanted += f"{shape[1]}), and their times"
        if not isinstance(x, Tensor):
            raise DTypeError(f"{wanted}, got {type(x).__name__}; torch.from_numpy(array) makes one")
        if not x.is_floating_point():
            raise DTypeError(f"{wanted}, got {x.dtype}; hfilter.noising makes them of leaves")
        if x.ndim != 3 or x.shape[1:] != shape:
            raise ShapeError(f"{wanted}, got shape {tuple(x.shape)}")
        if times is None:
            raise ArgumentError(f"{wanted}, got no times; give the step of the noise, 1 … T")
        if isinstance(times, int) and not isinstance(times, bool):
            times = torch.full(x.shape[:1], times)
        if not isinstance(times, Tensor):
            kind = type(times).__name__
            raise DTypeError(f"times must be an int or a tensor of integers, got {kind}")
        if times.dtype not in _INTEGER_DTYPES:
            raise DTypeError(f"times must be an int or a tensor of integers, got {times.dtype}")
        if times.shape != x.shape[:1]:
            raise ShapeError(f"times must have shape ({x.shape[0]},), got {tuple(times.shape)}")
        if torch.compiler.is_compiling():
            return times
        if x.device.type == "cpu" and not bool(torch.isfinite(x).all()):
            raise ArgumentError("noisy leaves must be finite, got NaN or infinity among them")
        if times.device.type == "cpu" and times.numel() and int(times.min()) < 0:
            raise ArgumentError(f"times must be at least 0, got {int(times.min())}")
        return times

    def truncated(self, n_layers: int) -> Encoder:
        """A copy with the first layers only, the read-out kept; shares no memory with this one.

        Parameters
        ----------
        n_layers
            0 … the number of layers of this encoder.

        Raises
        ------
        hfilter.errors.ArgumentError
            For a number outside that range.

        Examples
        --------
        >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, n_layers=3))
        >>> encoder.truncated(1).config.n_layers
        1
        """
        n_layers = check_integer("n_layers", n_layers, 0, self.config.n_layers)
        short = copy.deepcopy(self)
        short.config = dataclasses.replace(self.config, n_layers=n_layers)
        del short.layers[n_layers:]
        for parameter in short.parameters():
            parameter.grad = None
        return short

    def n_parameters(self, part: Literal["all", "encoder", "readout"] = "all") -> int:
        """Number of trainable parameters of the whole, of the encoder or of the read-out."""
        readout = sum(p.numel() for p in self.readout.parameters())
        total = sum(p.numel() for p in self.parameters())
        return {"all": total, "readout": readout, "encoder": total - readout}[part]
