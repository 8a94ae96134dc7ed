"""Scoring a network on its task, with the exact answers of a held-out set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.checks import check_int
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.learn.batches import Batch, make_batch, task_targets
from hfilter.learn.laws import TaskName, check_task, exact_law, exact_levels, window_law
from hfilter.learn.masks import HELD_OUT_START, draw_masks
from hfilter.learn.noise import Noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

_MOST_DRAWS = 100  # times as many rows as are wanted, in search of new ones


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
    more : dict
        What else a task has to say, by the name it has in a record.
    """

    cross_entropy: float
    accuracy: float
    kl: dict[int, float]
    kl_window: dict[int, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


class HeldOut:
    """A fixed held-out set with the exact posterior of every filter level, computed once.

    Parameters
    ----------
    model : TreeModel
        The law of the data, at its own filter level.
    task
        ``"mlm"``, ``"root"``, ``"causal"``, ``"ancestor"`` or ``"denoise"``.
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
    noise, times
        For ``"denoise"``, and needed there: the noise, and the time of every row: one number, or
        (n,) of them.
    excluding : (P, L) integer array, optional
        Sequences that the set must not hold: rows that do are passed over.

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
        noise: Noise | None = None,
        times: int | NDArray[np.int64] | None = None,
        excluding: NDArray[Any] | None = None,
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
        leaves, roots, targets = _drawn(model, task, n, seed, start, ancestor_level, excluding)
        noisy = fields = None
        if task == "denoise":
            if noise is None or times is None:
                raise ArgumentError('the task "denoise" needs noise and times')
            when = np.broadcast_to(np.asarray(times, dtype=np.int64), (n,)).copy()
            noisy = (noise.noisy(leaves, when, "held_out", start), when)
            fields = noise.log_fields(*noisy)
        mask = None
        if task == "mlm" or mask_rate is not None:
            mask = draw_masks(n, model.n_leaves, seed, start, mask_rate)
        self.task = task
        self.batch = make_batch(leaves, roots, mask, model.mask_token, task, targets, noisy)
        self.exact: dict[int, Tensor] = {}
        self.windows: dict[int, Tensor] = {}
        self.exact_cross_entropy: dict[int, float] = {}
        self.exact_accuracy: dict[int, float] = {}
        self.undefined: dict[int, int] = {}
        truth = self.batch.labels.numpy()
        for k in sorted({*levels, model.filter_level}):
            judge = model.filtered(k)
            law = exact_law(
                judge, task, leaves, mask, ancestor_level=ancestor_level, log_fields=fields
            )
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
                law = window_law(model, h, leaves, mask)
                self.windows[h] = torch.from_numpy(law.astype(np.float32))
        self.floor = self.exact_cross_entropy[model.filter_level]

    def evaluate(self, network: nn.Module, batch_size: int = 1024) -> Scores:
        """Score a network (tokens in, logits out) without dropout; its mode is restored.

        Draws no random number, so that evaluating more or less often changes no run.
        """
        logits = predict(network, self.batch.tokens, batch_size, self.batch.times)
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
def predict(
    network: nn.Module, tokens: Tensor, batch_size: int = 1024, times: Tensor | None = None
) -> Tensor:
    """Logits of a network in evaluation mode, block by block, on the CPU in float32 or better.

    Parameters
    ----------
    network
        Tokens in, logits out, such as :class:`hfilter.learn.encoder.Encoder`; its training mode is
        restored afterwards.
    tokens : (n, L) integer tensor
        With the mask token where a leaf is hidden; no NumPy array. Or (n, L, q) noisy leaves.
    batch_size
        Rows per forward pass.
    times : (n,) integer tensor, optional
        Of noisy leaves: what the network is called with besides.

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
    given = (tokens,) if times is None else (tokens, times)
    training = network.training
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        blocks = [torch.split(part, batch_size) for part in given]
        parts = [network(*(x.to(device) for x in rows)).cpu() for rows in zip(*blocks, strict=True)]
    finally:
        network.train(training)
    logits = torch.cat(parts)
    return logits if logits.dtype == torch.float64 else logits.float()


def _drawn(
    model: TreeModel,
    task: TaskName,
    n: int,
    seed: int,
    start: int,
    ancestor_level: int | None,
    excluding: NDArray[Any] | None,
) -> tuple[NDArray[Any], ...]:
    """Leaves, roots and targets of the first n rows from ``start`` on that are not excluded."""
    above = None if ancestor_level is None else [ancestor_level]
    known = set() if excluding is None else {row.tobytes() for row in excluding}
    parts: list[tuple[NDArray[Any], ...]] = []
    found = drawn = 0
    while found < n:
        if drawn >= _MOST_DRAWS * n:
            raise ArgumentError(
                f"of {drawn} held-out sequences only {found} are not in the training set, {n} are "
                'wanted; make n_eval or train_size smaller, or say held_out="index"'
            )
        sample = model.sample(n, seed=seed, start=start + drawn, levels=above)
        rows = (sample.leaves, sample.roots, task_targets(task, sample, ancestor_level))
        if known:
            new = np.array([row.tobytes() not in known for row in sample.leaves])
            rows = tuple(part[new] for part in rows)
        parts.append(rows)
        found, drawn = found + len(rows[0]), drawn + n
    return tuple(np.concatenate(part)[:n] for part in zip(*parts, strict=True))


def _mean_kl(law: Tensor, log_q: Tensor) -> float:
    """Mean of Σ p ln(p / q) over the rows where ``law`` is defined (not NaN)."""
    defined = ~law[:, 0].isnan()
    law, log_q = law[defined], log_q[defined]
    terms = torch.where(law > 0, law * (law.log() - log_q), 0.0)
    return terms.sum(-1).mean().item()
