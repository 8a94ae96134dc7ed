"""The two tasks, masked leaves and root, with their exact answers on a held-out set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import ArgumentError
from hfilter.learn.data import Batch, TaskName, make_batch
from hfilter.learn.masks import HELD_OUT_START, draw_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

_BLOCK_ROWS = 8192  # rows per inference call while a held-out set is prepared


def scored(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits that count and their targets, one row per scored token.

    Parameters
    ----------
    logits : Tensor
        (B, L, q) for masked leaves, (B, n_classes) for the root.
    batch : Batch

    Returns
    -------
    logits : (m, q) Tensor
        m hidden leaves in row-major order, or the B sequences.
    targets : (m,) Tensor
    """
    if logits.ndim == 3:
        return logits[batch.mask], batch.targets[batch.mask]
    return logits, batch.targets


def task_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats over the scored tokens of a batch: a scalar, differentiable."""
    return F.cross_entropy(*scored(logits, batch))


@dataclass(frozen=True)
class Scores:
    """What a network makes of a held-out set, in nats per scored token.

    Attributes
    ----------
    cross_entropy, accuracy : float
        On the sampled truth.
    kl : dict of float
        ``kl[k]`` = mean KL(BP_k || network) over the tokens where BP_k is defined.
    """

    cross_entropy: float
    accuracy: float
    kl: dict[int, float]


class HeldOut:
    """A fixed held-out set with the exact posterior of every filter level, computed once.

    Parameters
    ----------
    model : TreeModel
        The law of the data, at its own filter level.
    task
        ``"mlm"`` or ``"root"``.
    n
        Number of sequences.
    seed, start
        Rows ``start …`` of the stream of ``seed``; by default far beyond any training row of the
        same seed, so that the set is disjoint from the training data by construction.
    mask_rate
        As in training; ``None`` hides one leaf per sequence.
    filter_levels
        Which BP_k to compare with; all of 0 … depth by default.

    Attributes
    ----------
    batch : Batch
        The n sequences.
    exact : dict of (m, q) float32 Tensor
        Per k, the posterior of every scored token; NaN rows where the evidence is impossible
        under k.
    exact_cross_entropy, exact_accuracy : dict of float
        Per k, over the tokens where BP_k is defined; infinite where BP_k gives the truth
        probability zero. Ties of the argmax go to the lowest symbol.
    undefined : dict of int
        Per k, the number of scored tokens where BP_k is undefined.
    floor : float
        ``exact_cross_entropy`` of the model's own level: nobody does better on average.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> held_out = HeldOut(model, "root", n=500)
    >>> held_out.exact_accuracy[0]           # unambiguous: the visible leaves decide the root
    1.0
    """

    def __init__(
        self,
        model: TreeModel,
        task: TaskName,
        n: int,
        *,
        seed: int = 0,
        start: int = HELD_OUT_START,
        mask_rate: float | None = None,
        filter_levels: Sequence[int] | None = None,
    ) -> None:
        if n < 1:
            raise ArgumentError(f"n (held-out sequences) must be at least 1, got {n}")
        levels = range(model.depth + 1) if filter_levels is None else filter_levels
        sample = model.sample(n, seed=seed, start=start)
        mask = None
        if task == "mlm":
            mask = draw_masks(n, model.n_leaves, seed, start, mask_rate)
        self.task = task
        self.batch = make_batch(sample.leaves, sample.roots, mask, model.mask_token, task)
        self.exact: dict[int, Tensor] = {}
        self.exact_cross_entropy: dict[int, float] = {}
        self.exact_accuracy: dict[int, float] = {}
        self.undefined: dict[int, int] = {}
        truth = (self.batch.targets[self.batch.mask] if task == "mlm" else self.batch.roots).numpy()
        for k in sorted({*levels, model.filter_level}):
            law = _posterior(model.filtered(k), sample.leaves, mask)
            defined = ~np.isnan(law[:, 0])
            self.exact[k] = torch.from_numpy(law.astype(np.float32))
            self.undefined[k] = int((~defined).sum())
            law, right = law[defined], truth[defined]
            with np.errstate(divide="ignore"):
                nats = -np.log(law[np.arange(len(law)), right])
            self.exact_cross_entropy[k] = float(nats.mean()) if len(law) else float("nan")
            hits = law.argmax(axis=1) == right
            self.exact_accuracy[k] = float(hits.mean()) if len(law) else float("nan")
        self.floor = self.exact_cross_entropy[model.filter_level]

    def evaluate(self, network: nn.Module, batch_size: int = 1024) -> Scores:
        """Score a network (tokens in, logits out) without dropout; its mode is restored.

        Draws no random number, so that evaluating more or less often changes no run.
        """
        logits = predict(network, self.batch.tokens, batch_size)
        logits, truth = scored(logits, self.batch)
        log_q = F.log_softmax(logits.double(), dim=-1)
        return Scores(
            cross_entropy=F.nll_loss(log_q, truth).item(),
            accuracy=(log_q.argmax(-1) == truth).double().mean().item(),
            kl={k: _mean_kl(law.double(), log_q) for k, law in self.exact.items()},
        )


@torch.no_grad()
def predict(network: nn.Module, tokens: Tensor, batch_size: int = 1024) -> Tensor:
    """Logits of a network in evaluation mode, block by block, on the CPU in float32.

    Parameters
    ----------
    network
        Tokens in, logits out, such as :class:`hfilter.learn.encoder.Encoder`; its training mode is
        restored afterwards.
    tokens : (n, L) integer tensor
        With the mask token where a leaf is hidden.
    batch_size
        Rows per forward pass.

    Returns
    -------
    Tensor
        (n, L, q) or (n, n_classes).
    """
    training = network.training
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        parts = [network(rows.to(device)).cpu().float() for rows in torch.split(tokens, batch_size)]
    finally:
        network.train(training)
    return torch.cat(parts)


def _mean_kl(law: Tensor, log_q: Tensor) -> float:
    """Mean of Σ p ln(p / q) over the rows where ``law`` is defined (not NaN)."""
    defined = ~law[:, 0].isnan()
    law, log_q = law[defined], log_q[defined]
    terms = torch.where(law > 0, law * (law.log() - log_q), 0.0)
    return terms.sum(-1).mean().item()


def _posterior(
    model: TreeModel, leaves: NDArray[Any], mask: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """(m, q) exact posterior of every hidden leaf in row-major order, or of every root."""
    parts = []
    for first in range(0, len(leaves), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        if mask is None:
            parts.append(model.root_posterior(leaves[rows], dtype="float64"))
        else:
            beliefs = model.infer(leaves[rows], mask=mask[rows], dtype="float64").leaves
            parts.append(beliefs[mask[rows]])
    return np.concatenate(parts).astype(np.float64, copy=False)
