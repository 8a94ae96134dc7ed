"""The torch functions behind `hfilter.differentiable`: what is computed forward, and how it is derived."""

from __future__ import annotations

import functools
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np

from .exact import TreeModel
from .rates import Directions, rates_of

__all__ = ["functions"]

Known = tuple[Any, Any, Any]  # leaves, mask, log_fields
How = tuple[str, str | None, int | None]  # dtype, backend, num_threads


def path_channels(model: TreeModel, rules: Any) -> Any:
    """The star's channels as a tensor, a function of the rules' logarithms (HF Eq. 3)."""
    torch = importlib.import_module("torch")
    if rules is None:
        return torch.from_numpy(np.array(model.channels))
    p, laws, first = rules.double().exp(), [], 0
    tables = model.grammar.tables
    for d in range(model.filter_level):
        table = model.grammar.table(d)
        if d == 0 or not model.grammar.is_shared:
            first = sum(t.n_rules for t in tables[:d])
        part = p[first : first + table.n_rules]
        shape = (table.n_parents * table.n_symbols,)
        parents = torch.from_numpy(table.parents.astype(np.int64)).to(p.device)
        law = []
        for r in range(model.arity):
            child = torch.from_numpy(table.children[:, r].astype(np.int64)).to(p.device)
            flat = p.new_zeros(shape).index_add(0, parents * table.n_symbols + child, part)
            law.append(flat.reshape(table.n_parents, table.n_symbols))
        laws.append(torch.stack(law))
    out = torch.eye(model.n_classes, dtype=p.dtype, device=p.device)[None]
    for law in laws:
        out = torch.einsum("iab,rbc->irac", out, law).flatten(0, 1)
    return out


@functools.cache
def functions() -> Any:
    """The functions, made when torch is first needed."""
    torch = importlib.import_module("torch")

    class LogEvidence(torch.autograd.Function):  # type: ignore[name-defined,misc]
        @staticmethod
        def forward(
            ctx: Any, model: TreeModel, known: Known, how: How, fields: Any, rules: Any, channels: Any, prior: Any
        ) -> Any:  # fmt: skip
            ctx.model, ctx.known, ctx.how = model, known, how
            ctx.save_for_backward(fields, rules, channels, prior)
            leaves, mask, given = _detached(known, fields)
            out = model.log_prob(leaves, mask, log_fields=given, **_how(how))
            if prior is not None:
                out = out + prior.double().logsumexp(0).to(out.device)
            return out

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            fields, rules, channels, prior = ctx.saved_tensors
            root, counts, pairs, leaves = Posterior.apply(
                ctx.model,
                ctx.known,
                ctx.how,
                (),
                any(ctx.needs_input_grad[4:6]),
                fields,
                rules,
                channels,
                prior,
            )
            g = g.to(root.dtype)
            grads = [None] * 4
            if ctx.needs_input_grad[3]:
                grads[0] = (g[:, None, None] * leaves).to(fields.dtype)
            if ctx.needs_input_grad[4]:
                grads[1] = (g @ counts).to(rules)
            if ctx.needs_input_grad[5]:
                grads[2] = _over(torch.einsum("n,nirc->irc", g, pairs).to(channels), channels)
            if ctx.needs_input_grad[6]:
                grads[3] = (g @ root).to(prior)
            return (None, None, None, *grads)

    class Posterior(torch.autograd.Function):  # type: ignore[name-defined,misc]
        """Outputs: root, counts, pairs of the root and the star's nodes, leaves, and the levels kept."""

        @staticmethod
        def forward(
            ctx: Any, model: TreeModel, known: Known, how: How, kept: tuple[int, ...], counted: bool, fields: Any,
            rules: Any, channels: Any, prior: Any,
        ) -> Any:  # fmt: skip
            ctx.model, ctx.known, ctx.how, ctx.kept = model, known, how, kept
            ctx.counted = counted
            ctx.save_for_backward(fields, rules, channels, prior)
            root, below, pairs, *beliefs = model._moments(
                *_detached(known, fields), levels=kept, counts=counted, **_how(how)
            )
            # A column for every rule of the grammar: those above the filter level come first.
            counts = root.new_zeros((len(root), model.grammar.n_rules))
            if below is not None:
                counts[:, model.grammar.n_rules - model.n_counts :] = below
            if pairs is None:
                pairs = root.new_zeros((len(root), 0))
            found = (root, counts, pairs, *beliefs)
            ctx.mark_non_differentiable(*[x for x in found if x.numel() == 0])
            return found

        @staticmethod
        @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, *g: Any) -> Any:
            fields, rules, channels, prior = ctx.saved_tensors
            g_root, g_counts, g_pairs, *g_levels = g
            levels = dict(zip((ctx.model.depth, *ctx.kept), g_levels, strict=True))
            star = ctx.counted and ctx.model.filter_level > 0
            directions = Directions(
                {0: g_root[:, None], **levels},
                g_counts if ctx.counted else None,
                g_pairs if star else None,
            )
            moved = rates_of(ctx.model, _detached(ctx.known, fields), directions, *ctx.how)
            grads = [None] * 4
            if ctx.needs_input_grad[5]:
                grads[0] = moved.leaves.to(fields.dtype)
            if ctx.needs_input_grad[6]:
                grads[1] = moved.counts.sum(0).to(rules)
            if ctx.needs_input_grad[7]:
                grads[2] = _over(moved.pairs.sum(0).to(channels), channels)
            if ctx.needs_input_grad[8]:
                grads[3] = moved.root.sum(0).to(prior)
            return (None, None, None, None, None, *grads)

    def over(pairs: Any, channels: Any) -> Any:
        """Derivative by a channel's entry from that by its logarithm; an entry that is 0 stays so."""
        safe = torch.where(channels > 0, channels, 1.0)
        return torch.where(channels > 0, pairs / safe, 0.0)

    _over = over

    def arguments(
        model: TreeModel, known: Known, rules: Any, prior: Any, how: How
    ) -> tuple[Any, ...]:
        fields = known[2]
        channels = None
        if model.filter_level > 0:
            channels = path_channels(model, rules)
        return fields, rules, channels, prior

    def log_evidence(model: TreeModel, known: Known, rules: Any, prior: Any, how: How) -> Any:
        return LogEvidence.apply(model, known, how, *arguments(model, known, rules, prior, how))

    def posterior(
        model: TreeModel,
        known: Known,
        rules: Any,
        prior: Any,
        how: How,
        kept: tuple[int, ...],
        counted: bool,
    ) -> tuple[Any, ...]:
        counted = counted or rules is not None
        root, counts, _, leaves, *levels = Posterior.apply(
            model, known, how, kept, counted, *arguments(model, known, rules, prior, how)
        )
        return root, counts, leaves, *levels

    return SimpleNamespace(log_evidence=log_evidence, posterior=posterior)


def _detached(known: Known, fields: Any) -> Known:
    return known[0], known[1], None if fields is None else fields.detach()


def _how(how: How) -> dict[str, Any]:
    return dict(zip(("dtype", "backend", "num_threads"), how, strict=True))
