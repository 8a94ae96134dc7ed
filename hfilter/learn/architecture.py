"""The shape of an encoder: its options, their limits, and the names of its activations.

Plain Python: what a network will look like is known without torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from typing import Any, Literal, Protocol

from hfilter.errors import ArgumentError

Readout = Literal["mlm", "root", "causal", "ancestor", "denoise"]

_CHOICES = {
    "readout": ("mlm", "root", "causal", "ancestor", "denoise"),
    "positions": ("sinusoidal", "learned", "rotary", "none"),
    "norm": ("post", "pre", "none"),
    "pooling": ("flat", "mean", "class"),
    "activation": ("relu", "gelu", "relu2", "reglu"),
    "link": ("logit", "log"),
}
_LEAST = {"vocab_size": 2, "n_leaves": 1, "d_model": 1, "n_layers": 0, "n_heads": 1}
_LEAST |= {"d_feedforward": 1, "time_embedding": 2}
_LEAST_IF_GIVEN = {"n_classes": 1, "d_key": 1, "probe_hidden": 1}
_SWITCHES = ("masked_root", "attention_only", "causal", "bias")
# Fields of the first files. A later one stands in a file only where it differs from its default,
# so that what an old file says, and its digest, stay what they were.
_FIRST_FIELDS = 11


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
        Number of root symbols (``"root"``) or of symbols of the ancestor's level (``"ancestor"``);
        ``vocab_size`` unless given. Unused by the other read-outs.
    d_model, n_layers, n_heads, d_feedforward, dropout
        The usual dimensions; ``n_heads`` divides ``d_model``.
    readout
        ``"mlm"``: one linear layer shared over positions, q logits per leaf. ``"causal"``: the
        same, row j for P(x_j | x_0 … x_{j-1}); the encoder shifts by itself (its inputs are the
        start token q, x_0 … x_{L-2}) and masks causally. ``"ancestor"``: ``n_classes`` logits per
        leaf, for the symbol of its ancestor at one level. ``"root"``: ``n_classes`` logits per
        sequence. ``"denoise"``: q logits per leaf, given not tokens but noisy one-hot leaves
        (n, L, q) and the step of the noise (n,); a linear map takes the place of the embedding.
    positions
        ``"sinusoidal"`` (fixed, as published; needs an even ``d_model``) or ``"learned"``, both
        added to the embedding; ``"rotary"``: queries and keys are turned by an angle that grows
        with the position (needs an even ``d_key``); ``"none"``.
    norm
        ``"post"`` (as published, no final norm), ``"pre"`` (with a final norm) or ``"none"``.
    pooling
        How ``"root"`` reads a sequence: ``"flat"`` (all positions side by side, as published),
        ``"mean"`` over positions, or ``"class"``: one more learned position in front of the leaves,
        read alone. All activations then have L + 1 positions, the first is the learned one.
    masked_root
        ``"root"`` with one more row of the embedding, for hidden leaves (token q).
    probe_hidden
        Width of the one hidden ReLU layer of an ``"ancestor"`` read-out; linear if ``None``.
    activation
        Of the feed-forward block: ``"relu"`` (as published), ``"gelu"``, ``"relu2"`` (squared
        ReLU) or ``"reglu"``: relu(gate x) * (up x).
    attention_only
        No feed-forward blocks.
    causal
        Every position attends to itself and those before it. ``readout="causal"`` masks in any
        case, see :attr:`is_causal`.
    link
        ``"logit"``: the read-out's outputs are the logits. ``"log"``: they are probabilities that
        need not sum to one, and the logits are their logarithms; negative ones count as 0, and 0
        gives -inf.
    d_key
        Width of queries and keys per head; ``d_model / n_heads`` unless given. Values always have
        that width.
    bias
        Whether the linear maps of the layers have one. The read-out always has.
    time_embedding
        For ``"denoise"``: width of the sinusoidal code of the step, even; a linear map takes it to
        ``d_model``, and the outcome is added to every position.

    Raises
    ------
    hfilter.errors.ArgumentError
        For any value outside its range, and for options that contradict each other.

    Notes
    -----
    Source of the defaults: Garnier-Brun et al. 2024, arXiv 2408.15138, section 3; of the code of
    the step, arXiv 2603.03469. Rotary positions: Su et al. 2021, arXiv 2104.09864, section 3.4.
    Gated and squared units: Shazeer 2020, arXiv 2002.05202; So et al. 2021, arXiv 2109.08668.

    Examples
    --------
    >>> EncoderConfig(vocab_size=4, n_leaves=16, readout="root", pooling="mean").n_embedded
    4
    >>> EncoderConfig(vocab_size=4, n_leaves=16, readout="causal").is_causal
    True
    """

    vocab_size: int
    n_leaves: int
    n_classes: int | None = None
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 1
    d_feedforward: int = 2048
    dropout: float = 0.1
    readout: Readout = "mlm"
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = "sinusoidal"
    norm: Literal["post", "pre", "none"] = "post"
    pooling: Literal["flat", "mean", "class"] = "flat"
    masked_root: bool = False
    probe_hidden: int | None = None
    activation: Literal["relu", "gelu", "relu2", "reglu"] = "relu"
    attention_only: bool = False
    causal: bool = False
    link: Literal["logit", "log"] = "logit"
    d_key: int | None = None
    bias: bool = True
    time_embedding: int = 32

    def __post_init__(self) -> None:
        for name, low in (_LEAST | _LEAST_IF_GIVEN).items():
            value = getattr(self, name)
            if name in _LEAST or value is not None:
                object.__setattr__(self, name, check_integer(name, value, low))
        if not is_number(self.dropout) or not 0.0 <= self.dropout < 1.0:
            raise ArgumentError(f"dropout must be in [0, 1), got {self.dropout!r}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ArgumentError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        self._check_together()

    def _check_together(self) -> None:
        """Options that do not fit each other."""
        if self.d_model % self.n_heads:
            raise ArgumentError(f"n_heads must divide d_model = {self.d_model}, got {self.n_heads}")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ArgumentError(
                f"d_model must be even for sinusoidal positions, got {self.d_model}; "
                'choose positions="learned" or an even d_model'
            )
        if self.positions == "rotary" and self.key_width % 2:
            raise ArgumentError(
                f"d_key must be even for rotary positions, got {self.key_width}; give an even "
                "d_key (it is d_model / n_heads unless given) or choose other positions"
            )
        for name, default in (("pooling", "flat"), ("masked_root", False)):
            if self.readout != "root" and getattr(self, name) != default:
                raise ArgumentError(
                    f"{name} is for readout='root' only, got {getattr(self, name)!r} with "
                    f"readout={self.readout!r}; leave it out"
                )
        if self.probe_hidden is not None and self.readout != "ancestor":
            raise ArgumentError(
                f"probe_hidden is for readout='ancestor' only, got {self.probe_hidden} with "
                f"readout={self.readout!r}; leave it out"
            )
        if self.time_embedding % 2:
            raise ArgumentError(f"time_embedding must be even, got {self.time_embedding}")
        if self.time_embedding != 32 and self.readout != "denoise":
            raise ArgumentError(
                f"time_embedding is for readout='denoise' only, got {self.time_embedding} with "
                f"readout={self.readout!r}; leave it out"
            )
        if self.is_causal and self.pooling == "class":
            raise ArgumentError(
                "pooling='class' cannot be causal: the learned position stands in front and would "
                "see no leaf; choose pooling='mean' or 'flat', or causal=False"
            )

    @classmethod
    def for_model(cls, model: Sizes, readout: Readout = "mlm", **options: Any) -> EncoderConfig:
        """A configuration with the sizes of a model (its q, L and classes, nothing else of it).

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
        >>> config = EncoderConfig.for_model(model, readout="root", d_model=64)
        >>> config.n_leaves, config.n_outputs, config.d_model
        (8, 4, 64)
        """
        classes = {"n_classes": model.n_classes}
        return cls(model.vocab_size, model.n_leaves, readout=readout, **(classes | options))

    def as_dict(self) -> dict[str, Any]:
        """What a file says of it: the first options always, later ones where they were chosen.

        ``EncoderConfig(**config.as_dict()) == config`` always holds.

        Examples
        --------
        >>> list(EncoderConfig(4, 16, causal=True).as_dict())[-2:]
        ['norm', 'causal']
        """
        later = {field.name: field.default for field in fields(self)[_FIRST_FIELDS:]}
        values = asdict(self)
        return {k: v for k, v in values.items() if k not in later or v != later[k]}

    @property
    def n_embedded(self) -> int:
        """Rows of the token embedding: q, and one more (hidden leaf, or start) where it can occur.

        Only ``"denoise"``, and ``"root"`` without ``masked_root``, have none for token q.
        """
        return self.vocab_size + (self.readout not in ("root", "denoise") or self.masked_root)

    @property
    def n_outputs(self) -> int:
        """Logits per leaf, or per sequence for ``"root"``."""
        if self.readout in ("root", "ancestor") and self.n_classes is not None:
            return self.n_classes
        return self.vocab_size

    @property
    def n_positions(self) -> int:
        """Positions of the inner activations: L, or L + 1 with a class position (the first)."""
        return self.n_leaves + (self.pooling == "class")

    @property
    def is_causal(self) -> bool:
        """Whether attention is masked causally: ``causal``, or the causal read-out."""
        return self.causal or self.readout == "causal"

    @property
    def key_width(self) -> int:
        """Width of queries and keys per head."""
        return self.value_width if self.d_key is None else self.d_key

    @property
    def value_width(self) -> int:
        """Width of values per head, ``d_model / n_heads``."""
        return self.d_model // self.n_heads

    def trace_shapes(self, n: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what :meth:`Encoder.trace` returns for ``n`` sequences, in order.

        Examples
        --------
        >>> config = EncoderConfig(vocab_size=4, n_leaves=16, n_layers=1)
        >>> for name, shape in config.trace_shapes(32).items():
        ...     print(name, shape)
        embed (32, 16, 128)
        layers.0.attention.queries (32, 1, 16, 128)
        layers.0.attention.keys (32, 1, 16, 128)
        layers.0.attention.values (32, 1, 16, 128)
        layers.0.attention.scores (32, 1, 16, 16)
        layers.0.attention.weights (32, 1, 16, 16)
        layers.0.attention.heads (32, 1, 16, 128)
        layers.0.attention.output (32, 16, 128)
        layers.0.middle (32, 16, 128)
        layers.0.feedforward.hidden (32, 16, 2048)
        layers.0.feedforward.output (32, 16, 128)
        layers.0.hidden (32, 16, 128)
        final (32, 16, 128)
        """
        length = self.n_positions
        stream = (n, length, self.d_model)
        keys = (n, self.n_heads, length, self.key_width)
        values = (n, self.n_heads, length, self.value_width)
        square = (n, self.n_heads, length, length)
        layer: dict[str, tuple[int, ...]] = {
            "attention.queries": keys,
            "attention.keys": keys,
            "attention.values": values,
            "attention.scores": square,
            "attention.weights": square,
            "attention.heads": values,
            "attention.output": stream,
            "middle": stream,
        }
        if not self.attention_only:
            layer["feedforward.hidden"] = (n, length, self.d_feedforward)
            layer["feedforward.output"] = stream
        layer["hidden"] = stream
        shapes: dict[str, tuple[int, ...]] = {"embed": stream}
        for i in range(self.n_layers):
            shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
        return shapes | {"final": stream}


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """``value`` as an int; raise unless it is one of at least ``low`` and at most ``high``."""
    whole = None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if whole is None or whole < low:
        raise ArgumentError(f"{name} must be an integer of at least {low}, got {value!r}")
    if high is not None and whole > high:
        raise ArgumentError(f"{name} must be an integer in {low} … {high}, got {value!r}")
    return whole


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number (a bool is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
