"""A transformer whose weights are belief propagation: an encoder with known inner workings."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.analysis.construction_plan import MessageSlots, Plan, Task
from hfilter.analysis.construction_weights import block, embedding, positions, readout
from hfilter.checks import check_float, check_seed
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.learn.encoder import Encoder, EncoderConfig, EncoderLayer

if TYPE_CHECKING:
    from hfilter.exact import TreeModel

__all__ = ["ConstructedTransformer", "MessageSlots", "perturbed"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_EXPONENTS = {"float32": 127, "float64": 1023}


class ConstructedTransformer(Encoder):
    """An ordinary :class:`hfilter.learn.encoder.Encoder` of depth layers that computes BP exactly.

    Its softmax outputs are ``model.leave_one_out`` (``"mlm"``, at hidden and seen leaves alike),
    ``model.root_posterior`` (``"root"``, hidden leaves allowed) or ``model.next_token``
    (``"causal"``), at any filter level, to rounding. Every tool that takes an encoder takes it, so
    that attention maps, probes, lenses and patches can be judged where the truth is known; and
    training can start from it.

    Parameters
    ----------
    model : hfilter.TreeModel
        Of arity 2; any grammar (ambiguous, one table per level, alphabets of any sizes), root prior
        and filter level.
    task : {"mlm", "root", "causal"}
    dtype : {"float64", "float32"}
    gap : float
        Distance of attention scores, in nats, between the block that is read and all others; at
        least that, the gain being rounded up to a power of two. From 750 on (104 in float32) the
        others' weights are exact zeros, so that what is impossible stays impossible. A smaller gap
        leaves exp(-gap) of each other position, and lets attention learn.
    centring : float
        Messages of height m are stored times ``2.0**E_m``, E_m proportional to the number of other
        leaves in the block; 0: not scaled, 1: about one under full evidence, 0.5: as far above one
        without evidence as below with it.

    Attributes
    ----------
    plan : hfilter.analysis.construction_plan.Plan

    Raises
    ------
    hfilter.errors.ArgumentError
        If the arity is not 2, if more than 2^27 weights would be needed, or for a value out of
        range.

    Notes
    -----
    Source: the constructions of Garnier-Brun et al. 2024, arXiv 2408.15138, appendix; the gated
    linear units here need no squares, hence no cancellation.

    Position j carries, for each height m, the message u_m (w numbers) of its block of 2^m leaves
    and R_m (w q numbers), the joint law of leaf j and the evidence of the rest of its block, both
    given the block's top symbol; see :class:`MessageSlots`. Positions hold two address numbers per
    level, (0, -1) in a left child and (-1, 0) in a right one. Layer m - 1:

    - attends uniformly to the sibling block of 2^(m-1) positions, all of which carry the same
      u_{m-1}, and copies it;
    - one hidden unit per pair of children (b, c), side, and number to update: the gate
      relu(u_sibling[c] + C g) is open on one side only, where g = 0 adds an exact zero, times
      u_{m-1}[b] or R_{m-1}[b, x]; the rules are the matrix that follows.

    The read-out sums over the root symbol. All numbers are positive: nothing cancels, and
    relative accuracy is that of the dtype throughout. Largest error of any probability over q = 2 … 6,
    depth 1 … 5, all k, all tasks, 0 to 100 % of the leaves hidden: 2e-15 in float64, 1.3e-6 in
    float32. Above the filter level the tree copies the root's symbol:
    one block applies the channels, with gates per node, and those after it multiply. For
    ``"causal"`` position j holds token j - 1 and has two roles, one head each: where a block ends
    with leaf j - 1 it carries that block's u, and it predicts leaf j.

    Sizes with alphabets of q symbols, n = number of pairs of children that have a rule (q² at most),
    depth l, filter level k:

    - ``"mlm"``, ``"root"``: d_model = (l + 1)(q + q²) + l q + 2 l, one head; d_feedforward is the
      largest of 2 n (q + 1) if k < l, 2^k q (q + 1) if k > 0, (both sides, or nodes)
    - ``"causal"``: d_model = (l + 1) q² + l q + (2 l - 1) q + 4 l, made even, two heads;
      d_feedforward the largest of n (q + 1) + q² if k < l, 2^(k-1) q (2 q + 1) if k > 0.

    The published grammar (4 symbols, depth 4, k = 0) has d_model 124 and d_feedforward 160, or 140
    and 96 for ``"causal"``; 4 layers.

    Training from it: with ``frozen=("zeros",)`` (:mod:`hfilter.learn.freezing`) only what carries
    messages learns, and Adam at a rate of 1e-3 moves the loss by hundredths in the first steps. Set
    free, the zeros move too, and small probabilities drown in them: the loss stays finite for rates
    up to about 1e-7 with ``centring=1``, and for none worth having without.

    The range is that of the dtype: evidence whose probability, times the scale, rounds to zero is
    taken as impossible. Trees with rules of extreme probabilities need ``model.infer``.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> network = ConstructedTransformer(model)
    >>> tokens = torch.tensor([[0, 4, 2, 3, 4, 1, 2, 2]])           # 4 is the mask token
    >>> with torch.no_grad():
    ...     probabilities = network(tokens).softmax(-1)
    >>> mask = tokens.numpy() == 4
    >>> exact = model.infer(tokens.numpy(), mask=mask, dtype="float64").leaves
    >>> bool(abs(probabilities.numpy() - exact)[mask].max() < 1e-14)
    True
    """

    def __init__(
        self,
        model: TreeModel,
        task: Task = "mlm",
        dtype: str = "float64",
        *,
        gap: float = 1024.0,
        centring: float = 0.5,
    ) -> None:
        if dtype not in _DTYPES:
            raise DTypeError(f"dtype must be 'float64' or 'float32', got {dtype!r}")
        gap = check_float("gap", gap, 0.0, open_low=True)
        centring = check_float("centring", centring, 0.0, 1.0)
        plan = Plan(model, task, centring)
        largest = max(plan.exponents[-1], 2 * plan.exponents[-2]) + model.depth + 4
        if largest > _EXPONENTS[dtype]:
            raise ArgumentError(
                f"centring = {centring} scales messages by 2^{plan.exponents[-1]}, too much for "
                f"{dtype}; lower centring" + ", or choose dtype='float64'" * (dtype == "float32")
            )
        root: dict[str, Any] = {"pooling": "mean", "masked_root": True} if task == "root" else {}
        config = EncoderConfig(
            model.vocab_size,
            model.n_leaves,
            n_classes=model.n_classes,
            d_model=plan.d_model,
            n_layers=model.depth,
            n_heads=plan.n_heads,
            d_feedforward=plan.d_feedforward,
            dropout=0.0,
            readout=task,
            positions="learned",
            norm="none",
            activation="reglu",
            link="log",
            d_key=model.depth,
            bias=False,
            **root,
        )
        with torch.random.fork_rng(devices=[]):  # the random weights are not wanted
            super().__init__(config)
        self.plan = plan
        self.to(_DTYPES[dtype])
        self._load(gap)
        self.eval()

    def _load(self, gap: float) -> None:
        """Copy the weights in."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            rows = torch.from_numpy(embedding(self.plan))
            self.embedding.weight.copy_(rows)
            assert self.positions is not None
            self.positions.copy_(torch.from_numpy(positions(self.plan)))
            assert isinstance(self.readout, nn.Linear)
            self.readout.weight.copy_(torch.from_numpy(readout(self.plan)))
            for i, layer in enumerate(self.layers):
                assert isinstance(layer, EncoderLayer)
                made = block(self.plan, i + 1, gap)
                parts = [torch.from_numpy(w).flatten(0, 1) for w in (made.query, made.key)]
                values = torch.from_numpy(made.value).flatten(0, 1)
                layer.attention.qkv.weight.copy_(torch.cat([*parts, values]))
                layer.attention.out.weight.copy_(torch.from_numpy(made.out))
                layer.gate.weight.copy_(torch.from_numpy(made.gate))
                layer.up.weight.copy_(torch.from_numpy(made.up))
                layer.down.weight.copy_(torch.from_numpy(made.down))

    def slots(self, height: int) -> MessageSlots:
        """Columns of the residual stream that hold the messages of a height, 0 … depth.

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
        >>> slots = ConstructedTransformer(model).slots(1)
        >>> slots.up, slots.rest, slots.sibling
        (slice(20, 24, None), slice(24, 40, None), slice(40, 44, None))
        """
        if isinstance(height, bool) or not isinstance(height, int):
            raise ArgumentError(f"height must be an integer, got {height!r}")
        if not 0 <= height <= self.plan.depth:
            raise ArgumentError(f"height must be in 0 … {self.plan.depth}, got {height}")
        return self.plan.slots[height]

    def messages(self, hidden: Tensor, height: int) -> tuple[Tensor, Tensor]:
        """The exact messages of a height, read from the residual stream.

        Parameters
        ----------
        hidden : (n, L, d_model) Tensor
            ``layers.i.hidden`` of :meth:`Encoder.trace` with i >= height - 1 (``embed`` for 0).
        height : int

        Returns
        -------
        up : (n, L, w) Tensor
            P(evidence in j's block of 2^height leaves | the block's top symbol). Causal: of the
            block that ends with leaf j - 1, zeros where none does; (n, L, 0) at the last height.
        rest : (n, L, w, q) Tensor
            P(leaf j = x, evidence of the others in its block | the block's top symbol); causal:
            the evidence of those before it.

        Examples
        --------
        >>> import hfilter
        >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
        >>> network = ConstructedTransformer(model)
        >>> _, seen = network.trace(torch.tensor([[0, 1, 2, 3]]))
        >>> up, rest = network.messages(seen["layers.0.hidden"], 1)
        >>> bool(torch.equal(up[0, 0], torch.from_numpy(model.grammar.tensor(0)[:, 0, 1])))
        True
        """
        slots = self.slots(height)
        if hidden.ndim != 3 or hidden.shape[-1] != self.plan.d_model:
            wanted = f"(n, {self.plan.n_leaves}, {self.plan.d_model})"
            raise ShapeError(f"hidden must have shape {wanted}, got {tuple(hidden.shape)}")
        unit = 2.0**-slots.exponent
        rest = hidden[..., slots.rest] * unit
        shape = (*hidden.shape[:-1], slots.width, slots.vocab_size)
        return hidden[..., slots.up] * unit, rest.reshape(shape)


def perturbed(
    encoder: Encoder,
    scale: float,
    seed: int,
    kind: Literal["entries", "matrices"] = "entries",
) -> Encoder:
    """A copy with noise in every weight: a damaged start, to see whether training finds the way back.

    Parameters
    ----------
    encoder : Encoder
        Such as a :class:`ConstructedTransformer`; unchanged.
    scale : float
        Relative size of the noise.
    seed : int
        The noise is a function of it and of the shapes.
    kind : {"entries", "matrices"}
        ``"entries"``: each weight times exp(scale N(0, 1)), so that zeros and signs stay.
        ``"matrices"``: plus N(0, 1) times scale times the root mean square of its matrix. A
        constructed transformer computes with small positive numbers: noise of this kind soon makes
        some of its probabilities negative, which count as zero and give an infinite loss.

    Returns
    -------
    Encoder
        Of the same class, in evaluation mode.

    Raises
    ------
    hfilter.errors.ArgumentError
        For a scale that is negative or not finite, or another kind.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> exact, tokens = ConstructedTransformer(model), torch.tensor([[0, 4, 2, 3]])
    >>> damaged = perturbed(exact, 0.1, seed=0)
    >>> bool((exact(tokens).softmax(-1) - damaged(tokens).softmax(-1)).abs().max() > 0.01)
    True
    """
    scale = check_float("scale", scale, 0.0)
    if kind not in ("entries", "matrices"):
        raise ArgumentError(f'kind must be "entries" or "matrices", got {kind!r}')
    noisy = copy.deepcopy(encoder)
    generator = torch.Generator().manual_seed(check_seed("seed", seed))
    with torch.no_grad():
        for parameter in noisy.parameters():
            shape, dtype = parameter.shape, torch.float64
            noise = scale * torch.randn(shape, generator=generator, dtype=dtype, device="cpu")
            exact = parameter.double().cpu()
            if kind == "entries":
                parameter.copy_(exact * noise.exp())
            else:
                parameter.copy_(exact + noise * exact.square().mean().sqrt())
    return noisy.eval()
