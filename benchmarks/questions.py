"""The other exact questions beside the best torch version of each, and beside one `infer` of our own.

Prints JSON lines. One thread, single precision, q = ℓ = 4; the answers are held to each other first,
then the contestants take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from formulations import batch, tensor

import hfilter
from hfilter.differentiable import log_evidence, posterior

OURS, TORCH, INFER = "hfilter", "torch", "one infer"


@dataclass
class Question:
    """A call of ours, torch's, and how their answers are told to agree."""

    name: str
    n: int  # rows of ours
    ours: Callable[[], Any]
    n_torch: int
    peer: Callable[[], Any]
    how: str  # what the peer is
    agree: Callable[[Any, Any], float]  # an error that must stay below `limit`
    limit: float = 1e-4
    floor: float = 0.0  # the bound of our time over that of one infer of as many rows


class Torch:
    """Belief propagation in torch, whole levels at a time, as a researcher would write it."""

    def __init__(self, model: hfilter.TreeModel) -> None:
        self.q, self.depth = model.vocab_size, model.depth
        self.m = torch.from_numpy(tensor(model))
        m, q = self.m, self.q
        self.up = m.permute(1, 2, 0).reshape(q * q, q).contiguous()
        self.down = m.permute(0, 2, 1).reshape(q * q, q).contiguous()
        self.right = m.reshape(q * q, q).contiguous()
        self.left_law, self.pairs = m.sum(2), m.reshape(q, q * q)

    def one_hot(self, x: Any) -> Any:
        """Leaves' messages; q is a hidden one."""
        seen = torch.nn.functional.one_hot(x.long(), self.q + 1).float()
        return seen[..., : self.q] + seen[..., self.q :]

    def upward(self, leaves: Any) -> tuple[list[Any], Any]:
        """Messages from the leaves to the root, and ln of what was taken out."""
        nu, log = [leaves], 0.0
        for _ in range(self.depth):
            outer = (nu[-1][:, ::2, :, None] * nu[-1][:, 1::2, None, :]).flatten(-2)
            x = outer @ self.up
            scale = x.sum(-1, keepdim=True)
            nu.append(x / scale)
            log = log + scale.log().sum((1, 2))
        return nu, log

    def next_token(self, x: Any) -> Any:
        """Downward with the left siblings alone."""
        nu, _ = self.upward(self.one_hot(x))
        mu = torch.full_like(nu[-1], 1 / self.q)
        for level in range(self.depth - 1, -1, -1):
            left = mu @ self.left_law
            right = (mu[..., :, None] * nu[level][:, ::2, None, :]).flatten(-2) @ self.right
            mu = torch.stack([left, right], 2).flatten(1, 2)
            mu = mu / mu.sum(-1, keepdim=True)
        return mu

    def counts(self, x: Any) -> Any:
        """Expected uses of every rule, summed over rows."""
        nu, _ = self.upward(self.one_hot(x))
        mu = torch.full_like(nu[-1], 1 / self.q)
        total = torch.zeros(self.q, self.q, self.q)
        for level in range(self.depth - 1, -1, -1):
            left, right = nu[level][:, ::2], nu[level][:, 1::2]
            children = (left[..., :, None] * right[..., None, :]).flatten(-2)
            weight = 1 / (mu * (children @ self.up)).sum(-1, keepdim=True)
            total += ((mu * weight).flatten(0, 1).T @ children.flatten(0, 1)).view_as(
                self.m
            ) * self.m
            to_left = (mu[..., :, None] * right[..., None, :]).flatten(-2) @ self.down
            to_right = (mu[..., :, None] * left[..., None, :]).flatten(-2) @ self.right
            mu = torch.stack([to_left, to_right], 2).flatten(1, 2)
            mu = mu / mu.sum(-1, keepdim=True)
        return total

    def draw(self, x: Any) -> Any:
        """Trees given evidence, from the root down."""
        nu, _ = self.upward(self.one_hot(x))
        symbols = torch.multinomial(nu[-1][:, 0], 1)
        for level in range(self.depth - 1, -1, -1):
            left, right = nu[level][:, ::2], nu[level][:, 1::2]
            weight = self.pairs[symbols] * (left[..., :, None] * right[..., None, :]).flatten(-2)
            pick = torch.multinomial(weight.flatten(0, 1), 1).view(symbols.shape)
            symbols = torch.stack([pick // self.q, pick % self.q], 2).flatten(1)
        return symbols.to(torch.uint8)

    def most_probable(self, x: Any) -> Any:
        """Max-product: ln of the largest joint probability."""
        nu, log = self.one_hot(x), 0.0
        for _ in range(self.depth):
            outer = (nu[:, ::2, :, None] * nu[:, 1::2, None, :]).flatten(-2)
            y = (self.pairs * outer[:, :, None]).amax(-1)
            top = y.amax(-1, keepdim=True)
            nu, log = y / top, log + top.log().sum((1, 2))
        return (nu[:, 0] / self.q).amax(-1).log() + log

    def evidence(self, h: Any) -> Any:
        """ln Z of fields, for autograd."""
        top = h.amax(-1, keepdim=True)
        nu, log = self.upward((h - top).exp())
        return (nu[-1][:, 0] / self.q).sum(-1).log() + log + top.sum((1, 2))


def questions(n: int, quick: bool) -> list[Question]:
    """All of them at q = ℓ = 4."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    peer = Torch(model)
    x = model.sample(n, seed=1).leaves
    hidden = x.copy()
    hidden[np.random.default_rng(0).random(x.shape) < 0.3] = model.mask_token
    few = max(n // 10, 100)
    tokens, masked = torch.from_numpy(x[:few]), torch.from_numpy(hidden[:few])
    size = batch(model, few)
    h = (torch.eye(4)[torch.from_numpy(x).long()] * 2 + torch.randn(n, 16, 4)).requires_grad_()
    h_few = h.detach()[:few].clone().requires_grad_()

    @torch.inference_mode()
    def parts(call: Callable[[Any], Any], of: Any, join: Any = torch.cat) -> Any:
        return join([call(part) for part in of.split(size)])

    def gradient(call: Callable[[Any], Any], of: Any) -> Any:
        of.grad = None
        call(of).sum().backward()
        return of.grad

    def batches_of(call: Callable[[Any], Any]) -> Any:
        h_few.grad = None
        for part in h_few.split(size):
            call(part).sum().backward()
        return h_few.grad

    def beliefs(part: Any) -> Any:
        """Gradients of evidence are beliefs, for torch to derive again."""
        found = torch.autograd.grad(peer.evidence(part).sum(), part, create_graph=True)[0]
        return found.square().sum(-1)

    def apart(a: Any, b: Any) -> float:
        a, b = np.asarray(a)[: len(b)], np.asarray(b)
        return float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())

    def laws(a: Any, b: Any) -> float:
        """Frequencies of symbols at the leaves against each other, in standard errors."""
        a, b = np.asarray(a)[:few], np.asarray(b)
        errors = [((a == s).mean(0) - (b == s).mean(0)) / np.sqrt(0.5 / few) for s in range(4)]
        return float(np.abs(errors).max())

    kw: dict[str, Any] = {"num_threads": 1}

    def few_moments(f: Any) -> Any:
        return posterior(model, log_fields=f, counts=False, **kw)

    def same_counts(_: Any, b: Any) -> float:
        return apart(model.expected_rule_counts(x[:few], **kw) / few, b)

    found = [
        Question("next token, all positions", n, lambda: model.next_token(x, **kw), few,
                 lambda: parts(peer.next_token, tokens), "matrix products", apart, floor=3.0),
        Question("posterior draws, 30 % masked", n, lambda: model.sample_posterior(hidden, **kw).leaves[:, 0],
                 few, lambda: parts(peer.draw, masked), "multinomial by level", laws, limit=6.0),
        Question("most probable tree, 30 % masked", n, lambda: model.most_probable(hidden, **kw).log_prob,
                 few, lambda: parts(peer.most_probable, masked), "maxima, without the tree", apart),
        Question("rule counts (an EM iteration)", n, lambda: model.expected_rule_counts(x, **kw) / n, few,
                 lambda: parts(peer.counts, tokens, sum).flatten()[peer.m.flatten() > 0] / few,
                 "matrix products", same_counts),
        Question("ln Z and its gradient by fields", n,
                 lambda: gradient(lambda f: log_evidence(model, log_fields=f, **kw), h), few,
                 lambda: batches_of(peer.evidence), "autograd", apart),
        Question("gradient of a loss on beliefs", n,
                 lambda: gradient(lambda f: few_moments(f).leaves.square().sum(-1), h),
                 few, lambda: batches_of(beliefs), "autograd twice", apart, limit=1e-3),
    ]  # fmt: skip
    return found[:4:3] + found[4:5] if quick else found


def main() -> None:
    """Check, then time in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n, rounds = (20_000, 3) if quick else (100_000, 7)
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    x = model.sample(n, seed=1).leaves
    for question in questions(n, quick):
        error = question.agree(question.ours(), question.peer())
        if not error <= question.limit:
            raise SystemExit(f"{question.name}: answers differ by {error:.3g}; nothing is timed")
        calls = {
            OURS: (question.ours, question.n), TORCH: (question.peer, question.n_torch),
            INFER: (lambda: model.infer(x, num_threads=1), n),
        }  # fmt: skip
        times: dict[str, list[float]] = {who: [] for who in calls}
        for _ in range(rounds):
            for who, (call, rows) in calls.items():
                began = time.thread_time()
                call()
                times[who].append((time.thread_time() - began) / rows)
        ahead = statistics.median(t / o for t, o in zip(times[TORCH], times[OURS], strict=True))
        cost = statistics.median(o / i for o, i in zip(times[OURS], times[INFER], strict=True))
        print(json.dumps({
            "case": "questions", "series": "questions", "question": question.name, "peer": question.how, "error": error,
            "rate": 1 / statistics.median(times[OURS]), "ratio": ahead, "infers": cost,
            "bound": question.floor or None, "met": not question.floor or cost <= question.floor,
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
