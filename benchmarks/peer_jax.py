"""JAX, jitted, single precision, on the processor, one thread."""

from __future__ import annotations

from typing import Any

import formulations as bp
import numpy as np
from cases import Case
from peer_numpy import padded
from process import Offer, Unavailable

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise Unavailable(f"JAX is not installed (pip install '.[bench]'): {error}") from None

UNROLLED_RULES = 64  # more take the compiler minutes


def about() -> dict[str, str]:
    """Versions, for the table."""
    return {"jax": jax.__version__}


def offers(case: Case, evidence: Any) -> list[Offer]:
    """Formulations and batch sizes; the fastest counts."""
    model, n = case.tree(), case.n
    few = bp.batch(model, n)
    if case.question == "sample":
        n = max(n // 10, min(n, 1000)) if case.series == "main" else n
        few = bp.batch(model, n)
        variants = [(few, "searchsorted" if model.grammar.n_rules <= 32 else "comparison", "rbg")]
        if case.series == "main":
            variants += [(n, "searchsorted", "rbg"), (few, "comparison", "rbg"),
                         (few, "searchsorted", "threefry2x32")]  # fmt: skip
        return [
            Offer(
                "jax, jit", _sampler(case, n, *how), n, f"{how[1]}, {how[2]}, batches of {how[0]}"
            )
            for how in dict.fromkeys(variants)
        ]
    forms = {"matrix product": bp.matrix_product, "einsum": bp.einsum}
    sizes = {n, few} if case.series == "main" else {few}
    if model.vocab_size <= 8 and case.series == "main":
        forms["symbol-major"] = bp.symbol_major
    offers = [_offer("jax, jit", name, form, case, evidence, size)
              for name, form in forms.items() for size in sizes]  # fmt: skip
    if model.grammar.n_rules <= UNROLLED_RULES:
        who = "jax, jit, rules unrolled"
        offers.append(_offer(who, "rules unrolled", bp.unrolled, case, evidence, few))
    return offers


def _offer(who: str, name: str, form: Any, case: Case, evidence: Any, size: int) -> Offer:
    passes = form(case.tree(), jnp, jnp.asarray)

    @jax.jit
    def one(part: Any) -> Any:
        return passes(part, case.question)

    parts = [jnp.asarray(evidence[i : i + size]) for i in range(0, case.n, size)]

    def answer() -> Any:
        out = [one(part) for part in parts]
        return jax.block_until_ready(jnp.concatenate(out) if len(out) > 1 else out[0])

    return Offer(who, answer, case.n, f"{name}, batches of {size}")


def _sampler(case: Case, n: int, size: int, how: str, bits: str) -> Any:
    model = case.tree()
    tables = [padded(model, d) for d in range(model.depth)]
    key = jax.random.key(0, impl=bits)
    counter = [0]

    @jax.jit
    def one(number: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, number), model.depth + 1)
        x = jax.random.randint(keys[-1], (size, 1), 0, model.n_classes)
        for k, (cumulative, children, flat, flat_children) in zip(keys[:-1], tables, strict=True):
            u = jax.random.uniform(k, x.shape)
            if how == "comparison":
                rule = (u[..., None] >= jnp.asarray(cumulative, jnp.float32)[x]).sum(-1)
                x = jnp.asarray(children.astype(np.int32))[x, rule]
            else:
                cuts = jnp.asarray(flat, jnp.float32)
                rule = jnp.searchsorted(cuts, x + u, side="right", method="compare_all")
                x = jnp.asarray(flat_children.astype(np.int32))[jnp.minimum(rule, len(flat) - 1)]
            x = x.reshape(size, -1)
        return x.astype(jnp.uint8)

    def answer() -> Any:
        counter[0] += n // size
        out = [one(counter[0] + i) for i in range(n // size)]
        return jax.block_until_ready(jnp.concatenate(out) if len(out) > 1 else out[0])

    return answer
