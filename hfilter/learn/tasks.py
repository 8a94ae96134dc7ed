"""Scoring a network on its task, with the exact answers of a held-out set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.checks import check_int
from hfilter.errors import DTypeError, ShapeError
from hfilter.learn.data import Batch, TaskName, make_batch, task_targets
from hfilter.learn.laws import check_task, exact_law, exact_levels, window_law
from hfilter.learn.masks import HELD_OUT_START, draw_masks

if TYPE_CHECKING:
    from hfilter.exact import TreeModel


def scored(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits that count and their targets, one row per scored token.

    Parameters
    ----------
    logits : Tensor
        (B, L, q), or (B, n_classes) for the root.
    batch : Batch

    Returns
    -------
    logits : (m, q) Tensor
        m scored leaves in row-major order, or the B sequences.
    targets : (m,) Tensor
    """
    if logits.ndim == 3:
        logits = logits.flatten(0, 1)
        if batch.where is not None:
            logits = logits.index_select(0, batch.where)
    return logits, batch.labels


def task_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats over the scored tokens of a batch: a scalar, differentiable.

    Against the exact laws where the batch has them, with the same minimum as against the truth and
    without the truth's noise; otherwise against the labels.
    """
    rows, labels = scored(logits, batch)
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    if batch.law is None:
        return F.cross_entropy(rows, labels)
    law = batch.law.to(rows.dtype)
    nats = law * F.log_softmax(rows, dim=-1)
    return -torch.where(law > 0, nats, 0.0).sum() / n_scored(batch)


def n_scored(batch: Batch) -> Tensor:
    """How many tokens the loss of a batch is the mean of: those with a target. A scalar, float32."""
    if batch.law is None:
        return torch.tensor(float(len(batch.labels)), device=batch.labels.device)
    return batch.law.sum().round().clamp_min(1.0)  # a law sums to one, or to zero if there is none


@dataclass(frozen=True)
class Scores:
    """What a network makes of a held-out set, in nats per scored token.

    Attributes
    ----------
    cross_entropy, accuracy : float
        On the sampled truth.
    kl : dict of float
        ``kl[k]`` = mean KL(BP_k || network) over the tokens where BP_k is defined.
    kl_window : dict of float
        ``kl_window[h]`` = mean KL(W_h || network), W_h being the exact law given only the leaf's
        own subtree of height h; for masked leaves, and empty for other tasks.
    """

    cross_entropy: float
    accuracy: float
    kl: dict[int, float]
    kl_window: dict[int, float] = field(default_factory=dict)


class HeldOut:
    """A fixed held-out set with the exact posterior of every filter level, computed once.

    Parameters
    ----------
    model : TreeModel
        The law of the data, at its own filter level.
    task
        ``"mlm"``, ``"root"``, ``"causal"`` or ``"ancestor"``.
    n
        Number of sequences.
    seed, start
        Rows ``start …`` of the stream of ``seed``; by default far beyond any training row of the
        same seed, so that the set is disjoint from the training data by construction.
    mask_rate
        As in training; ``None`` hides one leaf per sequence for ``"mlm"``, none for other tasks.
    filter_levels
        Which BP_k to compare with; by default all of 0 … depth that can answer.
    ancestor_level
        Level of the ancestors, for ``"ancestor"``.

    Attributes
    ----------
    batch : Batch
        The n sequences.
    exact : dict of (m, q) float32 Tensor
        Per k, the posterior of every scored token; NaN rows where the evidence is impossible
        under k.
    windows : dict of (m, q) float32 Tensor
        Per height h, the law W_h of every hidden leaf, for ``"mlm"``.
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
        ancestor_level: int | None = None,
    ) -> None:
        check_int("n", n, 1)
        check_task(model, task, ancestor_level)
        levels = exact_levels(model, ancestor_level)
        if filter_levels is not None:
            if not isinstance(filter_levels, Sequence):
                raise DTypeError(f"filter_levels must be a list of k, got {filter_levels!r}")
            levels = tuple(
                check_int("filter_levels: each", k, 0, model.depth) for k in filter_levels
            )
        above = None if ancestor_level is None else [ancestor_level]
        sample = model.sample(n, seed=seed, start=start, levels=above)
        mask = None
        if task == "mlm" or mask_rate is not None:
            mask = draw_masks(n, model.n_leaves, seed, start, mask_rate)
        targets = task_targets(task, sample, ancestor_level)
        self.task = task
        self.batch = make_batch(sample.leaves, sample.roots, mask, model.mask_token, task, targets)
        self.exact: dict[int, Tensor] = {}
        self.windows: dict[int, Tensor] = {}
        self.exact_cross_entropy: dict[int, float] = {}
        self.exact_accuracy: dict[int, float] = {}
        self.undefined: dict[int, int] = {}
        truth = self.batch.labels.numpy()
        for k in sorted({*levels, model.filter_level}):
            judge = model.filtered(k)
            law = exact_law(judge, task, sample.leaves, mask, ancestor_level=ancestor_level)
            defined = ~np.isnan(law[:, 0])
            self.exact[k] = torch.from_numpy(law.astype(np.float32))
            self.undefined[k] = int((~defined).sum())
            law, right = law[defined], truth[defined]
            with np.errstate(divide="ignore"):
                nats = -np.log(law[np.arange(len(law)), right])
            self.exact_cross_entropy[k] = float(nats.mean()) if len(law) else float("nan")
            hits = law.argmax(axis=1) == right
            self.exact_accuracy[k] = float(hits.mean()) if len(law) else float("nan")
        if task == "mlm" and mask is not None:
            for h in range(model.depth + 1):
                law = window_law(model, h, sample.leaves, mask)
                self.windows[h] = torch.from_numpy(law.astype(np.float32))
        self.floor = self.exact_cross_entropy[model.filter_level]

    def evaluate(self, network: nn.Module, batch_size: int = 1024) -> Scores:
        """Score a network (tokens in, logits out) without dropout; its mode is restored.

        Draws no random number, so that evaluating more or less often changes no run.
        """
        logits = predict(network, self.batch.tokens, batch_size)
        logits, truth = scored(logits, self.batch)
        own = next(iter(self.exact.values()))
        if logits.shape != own.shape:
            raise ShapeError(
                f"network must give logits of shape {tuple(own.shape)} at what is scored, got "
                f"{tuple(logits.shape)}; is it of another task or model?"
            )
        log_q = F.log_softmax(logits.double(), dim=-1)
        return Scores(
            cross_entropy=F.nll_loss(log_q, truth).item(),
            accuracy=(log_q.argmax(-1) == truth).double().mean().item(),
            kl={k: _mean_kl(law.double(), log_q) for k, law in self.exact.items()},
            kl_window={h: _mean_kl(law.double(), log_q) for h, law in self.windows.items()},
        )


@torch.no_grad()
def predict(network: nn.Module, tokens: Tensor, batch_size: int = 1024) -> Tensor:
    """Logits of a network in evaluation mode, block by block, on the CPU in float32 or better.

    Parameters
    ----------
    network
        Tokens in, logits out, such as :class:`hfilter.learn.encoder.Encoder`; its training mode is
        restored afterwards.
    tokens : (n, L) integer tensor
        With the mask token where a leaf is hidden; no NumPy array.
    batch_size
        Rows per forward pass.

    Returns
    -------
    Tensor
        (n, L, q) or (n, n_classes).
    """
    check_int("batch_size", batch_size, 1)
    if not isinstance(tokens, Tensor):
        raise DTypeError(
            f"tokens must be a torch tensor of integers, got {type(tokens).__name__}; "
            "torch.from_numpy(array) makes one of an array"
        )
    training = network.training
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        parts = [network(rows.to(device)).cpu() for rows in torch.split(tokens, batch_size)]
    finally:
        network.train(training)
    logits = torch.cat(parts)
    return logits if logits.dtype == torch.float64 else logits.float()


def _mean_kl(law: Tensor, log_q: Tensor) -> float:
    """Mean of Σ p ln(p / q) over the rows where ``law`` is defined (not NaN)."""
    defined = ~law[:, 0].isnan()
    law, log_q = law[defined], log_q[defined]
    terms = torch.where(law > 0, law * (law.log() - log_q), 0.0)
    return terms.sum(-1).mean().item()
