"""torch on one thread: eager, compiled, in log-space; samplers by search and by indexing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import formulations as bp
import numpy as np
import torch
from cases import Case
from peer_numpy import padded
from process import Offer

UNROLLED_RULES = 24  # more take the compiler minutes


def about() -> dict[str, str]:
    """Versions, for the table."""
    torch.set_num_threads(1)
    return {"torch": torch.__version__}


def offers(case: Case, evidence: Any) -> list[Offer]:
    """Each contestant on the whole input and in batches that fit a cache; the faster counts."""
    model, n = case.tree(), case.n
    few = bp.batch(model, n)
    if case.question == "sample":
        n = max(n // 10, min(n, 1000)) if case.series == "main" else n
        few = bp.batch(model, n)
        sizes = {n, few} if case.series == "main" else {few}
        return [
            Offer(who, _sampler(step, case, n, size), n, f"{variant}batches of {size}")
            for who, variant, step in _steps(case)
            for size in sizes
        ]
    passes = {
        "einsum": bp.einsum(model, torch, torch.from_numpy),
        "matrix product": bp.matrix_product(model, torch, torch.from_numpy),
        "symbol-major": bp.symbol_major(model, torch, torch.from_numpy),
        "rules unrolled": bp.unrolled(model, torch, torch.from_numpy),
        "log-space": bp.log_space(model, torch),
    }

    def offer(who: str, form: str, size: int, compiled: bool = False, rows: int = n) -> Offer:
        function: Any = passes[form]
        if compiled:
            function = torch.compile(function, dynamic=False)
        ask = _answer(function, torch.from_numpy(evidence[:rows]), case, size)
        return Offer(who, ask, rows, f"{form}, batches of {size}")

    sizes = {n, few} if case.series == "main" else {few}
    found = [offer("torch, matrix product", "matrix product", size) for size in sizes]
    if case.series != "main":
        return found
    torch._dynamo.reset()
    found += [offer("torch, einsum", "einsum", size) for size in sizes]
    slow = max(n // 40, 100)
    small = bp.batch(model, slow)
    found.append(offer("torch, log-space", "log-space", small, rows=slow))
    # Formulations that never won in a class of sizes are left out of it: each takes 5 to 20 s to compile.
    forms = ["matrix product"]
    forms += ["einsum"] if case.question == "beliefs" and not case.quick else []
    forms += ["symbol-major"] if model.vocab_size <= 6 else []
    compiled = {form: offer("torch, compiled", form, few, compiled=True) for form in forms}
    found += compiled.values()
    if "einsum" in compiled:
        found.append(replace(compiled["einsum"], who="torch, compiled einsum"))
    if model.grammar.n_rules <= UNROLLED_RULES and not case.quick:
        found.append(offer("torch, compiled, rules unrolled", "rules unrolled", few, compiled=True))
    return found


def _answer(function: Any, evidence: Any, case: Case, size: int) -> Callable[[], Any]:
    parts = evidence.split(size)

    @torch.inference_mode()
    def answer() -> Any:
        out = [function(part, case.question) for part in parts]
        return torch.cat(out) if len(out) > 1 else out[0]

    return answer


def _steps(case: Case) -> list[tuple[str, str, Callable[[Any, int], Any]]]:
    """Who, variant, and the step from a level (n, nodes) to its children (n, nodes, 2)."""
    model = case.tree()
    tables = [padded(model, d) for d in range(model.depth)]
    cumulative = [torch.from_numpy(t[0].astype(np.float32)) for t in tables]
    children = [torch.from_numpy(t[1]) for t in tables]
    flat = [torch.from_numpy(t[2].astype(np.float32)) for t in tables]
    flat_children = [torch.from_numpy(t[3]) for t in tables]

    def rows(x: Any, d: int) -> Any:
        u = torch.rand(*x.shape, 1)
        rule = torch.searchsorted(cumulative[d][x], u, right=True).squeeze(-1)
        return children[d][x, rule]

    def one_table(x: Any, d: int) -> Any:
        rule = torch.searchsorted(flat[d], x + torch.rand(x.shape), right=True)
        return flat_children[d][rule.clamp_(max=len(flat[d]) - 1)]

    def indexing(x: Any, d: int) -> Any:
        return children[d][x, torch.randint(children[d].shape[1], x.shape)]

    steps = [("torch, rows searched", "row of each parent, ", rows),
             ("torch, searchsorted", "row of each parent, ", rows),
             ("torch, searchsorted", "one flat table, ", one_table)]  # fmt: skip
    if case.model == "uniform":
        steps.append(("torch, fancy indexing (RHM's way)", "", indexing))
    return steps


def _sampler(step: Callable[[Any, int], Any], case: Case, n: int, size: int) -> Callable[[], Any]:
    model = case.tree()

    def one() -> Any:
        x = torch.randint(model.n_classes, (size, 1))
        for d in range(model.depth):
            x = step(x, d).flatten(1)
        return x.to(torch.uint8)

    @torch.inference_mode()
    def answer() -> Any:
        out = [one() for _ in range(n // size)]
        return torch.cat(out) if len(out) > 1 else out[0]

    return answer
