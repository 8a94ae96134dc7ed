"""Ours, as a user calls it."""

from __future__ import annotations

from typing import Any

from cases import OURS, OURS_ROOT, TWO, Case, thread_counts
from process import Offer

import hfilter


def about() -> dict[str, str]:
    """Versions, for the table."""
    return {
        "hfilter": hfilter.__version__,
        "backend": next(b.name for b in hfilter.backends().values() if b.available),
    }


def call(case: Case, evidence: Any, n: int, **options: Any) -> Any:
    """The question of a case, to hfilter."""
    model = case.tree()
    if case.question == "sample":
        return lambda: model.sample(n, seed=1, **options).leaves
    if case.question == "beliefs":
        return lambda: model.infer(log_fields=evidence[:n], **options).leaves
    method = {"root": model.root_posterior, "mlm": model.leave_one_out, "log_prob": model.log_prob}
    return lambda: method[case.question](evidence[:n], **options)


def offers(case: Case, evidence: Any) -> list[Offer]:
    """One thread, and two; the thread figure asks for all counts."""
    n = case.n
    found = [Offer(OURS, call(case, evidence, n, num_threads=1), n)]
    if case.question == "log_prob":
        model = case.tree()

        def root() -> Any:
            return model.root_posterior(evidence, num_threads=1)

        return [*found, Offer(OURS_ROOT, root, n)]
    if case.series == "latency":
        return [*found, Offer("hfilter, as it comes", call(case, evidence, n), n, threads=2)]
    counts = [t for t in thread_counts() if case.series == "threads" or t == 2]
    for threads in counts:
        if threads > 1:
            who = TWO if threads == 2 else f"hfilter, {threads} threads"
            ask = call(case, evidence, n, num_threads=threads)
            found.append(Offer(who, ask, n, threads=threads))
    return found
