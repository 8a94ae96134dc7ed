"""How cost grows: with depth, alphabet, filter level, arity and rows; memory; torch's threads beside ours.

Prints JSON lines, one a point. Every series takes its points in turn, round after round, on one core and
one thread; a ratio is the median of the rounds' ratios to the point it is held against.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scales_child import PEAKS, TorchChild, peak_of

import hfilter

CALLS = {
    "sample": "Sampling",
    "tokens": "Root posterior from tokens",
    "root": "Root posterior from fields",  # no subtree can be looked up: every rule is applied
    "beliefs": "Leaf beliefs from fields",
}
NO_TABLE = ("sample", "root", "beliefs")
FEW = 2.0  # at a thousand rows, where a call's own cost shows
# Bounds of the ratios: time per unit at the far point over that at the near one.
FLAT, CACHE, LEVELS, ARITY, THREADS = 1.25, 2.0, 1.5, 2.0, 1.1
GROWTH = 4.0  # megabytes that peak memory may grow by from n to 10 n rows


@dataclass
class Point:
    """One size: a call, and how many units of work it does."""

    at: str
    call: Callable[[], Any]
    units: float
    bound: float | None = None  # if not that of the series


@dataclass
class Series:
    """Points whose time per unit should agree within `bound`; the first is held against the others."""

    name: str
    question: str
    unit: str
    bound: float
    points: list[Point] = field(default_factory=list)


def timed(call: Callable[[], Any], seconds: float) -> float:
    """Processor seconds a call: what other programs take of the core meanwhile does not count."""
    began, repeat = time.thread_time(), 0
    while repeat == 0 or time.thread_time() - began < seconds:
        call()
        repeat += 1
    return (time.thread_time() - began) / repeat


def in_turn(
    calls: list[Callable[[], float]], rounds: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Each call gives its own time: those of every round, and the ratios to the first call's."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        for i in list(range(len(calls)))[:: (-1) ** number]:  # to and fro: nobody always first
            times[i].append(calls[i]())
    return times, [[t / first for t, first in zip(own, times[0], strict=True)] for own in times]


def rows_of(series: Series, rounds: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Measure a series, after a call of each that fills tables and caches."""

    def one(point: Point) -> Callable[[], float]:
        return lambda: 1e9 * timed(point.call, seconds) / point.units

    for point in series.points:
        point.call()
    times, ratios = in_turn([one(p) for p in series.points], rounds)
    for point, own, over in zip(series.points, times, ratios, strict=True):
        first = point is series.points[0]
        bound = point.bound or series.bound
        yield row(series, point.at, statistics.median(own), None if first else over, bound)


def row(
    series: Series, at: str, value: float, over: list[float] | None, bound: float
) -> dict[str, Any]:
    """A line of the results: a size, and its ratio to the first of the series; None for the first itself."""
    ratio = None if over is None else statistics.median(over)
    return {
        "case": "scales", "series": series.name, "question": series.question, "unit": series.unit,
        "at": at, "value": value, "ratio": ratio,
        "quartiles": None if over is None else [float(x) for x in np.quantile(over, [0.25, 0.75])],
        "bound": bound, "met": None if ratio is None else ratio <= bound,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ calls


def asked(kind: str, model: hfilter.TreeModel, n: int) -> Callable[[], Any]:
    """One of CALLS, put to a model; the evidence is made here and not timed."""
    rng = np.random.default_rng(0)
    if kind == "sample":
        out = np.empty((n, model.n_leaves), model.token_dtype)
        return lambda: model.sample(n, seed=1, out=out, num_threads=1)
    if kind == "tokens":
        leaves = model.sample(n, seed=1).leaves
        return lambda: model.root_posterior(leaves, num_threads=1)
    fields = rng.random((n, model.n_leaves, model.vocab_size), np.float32)
    if kind == "root":
        return lambda: model.root_posterior(log_fields=fields, num_threads=1)
    return lambda: model.infer(log_fields=fields, num_threads=1)


def updates(model: hfilter.TreeModel) -> float:
    """Applications of a rule in one row: rules times inner nodes."""
    return float(sum(model.arity**d * model.grammar.table(d).n_rules for d in range(model.depth)))


def nodes(model: hfilter.TreeModel) -> float:
    """Nodes of one tree."""
    return float(sum(model.arity**d for d in range(model.depth + 1)))


def published(depth: int, filter_level: int = 0) -> hfilter.TreeModel:
    """The published grammar."""
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth, filter_level)


# ----------------------------------------------------------------------------------------- series


def depths(quick: bool) -> Iterator[Series]:
    """The same number of leaves in ever deeper trees; then one tree a call."""
    chosen = (10, 12, 14) if quick else (10, 15, 20)
    for kind in ("sample", "tokens", "beliefs"):
        title = CALLS[kind]
        points = []
        for d in chosen:
            n = (1 << (18 if quick else 24)) >> d
            points.append(Point(f"ℓ = {d}", asked(kind, published(d), n), float(n << d)))
        yield Series("depth", f"{title}, q = 4", "ns a leaf", CACHE, points)
        points = [Point(f"ℓ = {d}", asked(kind, published(d), 1), float(1 << d)) for d in chosen]
        yield Series("depth, one tree a call", f"{title}, q = 4", "ns a leaf", CACHE, points)


def alphabets(quick: bool) -> Iterator[Series]:
    """Four rules a symbol whatever the alphabet: cost should follow rules (nodes when sampling), not q³."""
    chosen = (64, 256) if quick else (64, 512, 4096)
    grammars = [hfilter.Grammar.log_normal(q, 1.0, 0, rules_per_symbol=4) for q in chosen]
    for kind in NO_TABLE:
        points = []
        for q, grammar in zip(chosen, grammars, strict=True):
            model = hfilter.TreeModel(grammar, 6)
            n = 2048 if kind == "sample" else 64
            units = nodes(model) if kind == "sample" else updates(model)
            points.append(Point(f"q = {q}", asked(kind, model, n), n * units))
        unit = "ns a node" if kind == "sample" else "ns a rule and node"
        yield Series("alphabet", f"{CALLS[kind]}, 4 rules a symbol, ℓ = 6", unit, CACHE, points)


def levels(quick: bool) -> Iterator[Series]:
    """The filter level at both ends."""
    n = 500 if quick else 4000
    for kind in NO_TABLE:
        points = [Point(f"k = {k}", asked(kind, published(8, k), n), n * 256.0) for k in (0, 4, 8)]
        yield Series("filter level", f"{CALLS[kind]}, q = 4, ℓ = 8", "ns a leaf", LEVELS, points)


def strengths(quick: bool) -> Iterator[Series]:
    """Fields that leave everything open, and such as leave nothing: products of their messages would underflow."""
    n = 500 if quick else 4000
    for q, rules, depth in ((4, None, 4), (6, 4, 4), (8, None, 6)):
        model = hfilter.TreeModel(
            hfilter.Grammar.published(q, 1.0, 0, rules_per_symbol=rules), depth
        )
        leaves = np.eye(q, dtype=np.float32)[model.sample(n, seed=1).leaves]
        noise = np.random.default_rng(0).standard_normal(leaves.shape, np.float32)
        points = []
        for nats in (2, 10, 30, 100, 300):
            fields = nats * leaves + max(1.0, nats / 6) * noise
            points.append(
                Point(f"{nats} nats", lambda m=model, h=fields: m.infer(log_fields=h, num_threads=1), float(n))
            )  # fmt: skip
        rest = f", {rules} of {q} rules a symbol" if rules else ""
        title = f"{CALLS['beliefs']}, q = {q}{rest}, ℓ = {depth}"
        yield Series("strength of the fields", title, "ns a sequence", CACHE, points)


def arities(quick: bool) -> Iterator[Series]:
    """As many rules whatever the arity; a rule of more children is more work in proportion."""
    n = 200 if quick else 1000
    shapes = ((2, 6), (3, 4), (4, 3), (8, 2))
    for kind in NO_TABLE:
        points = []
        for arity, depth in shapes:
            grammar = hfilter.Grammar.log_normal(16, 1.0, 0, rules_per_symbol=16, arity=arity)
            model = hfilter.TreeModel(grammar, depth)
            units = nodes(model) if kind == "sample" else arity * updates(model)
            points.append(Point(f"{arity}", asked(kind, model, n), n * units))
        unit = "ns a node" if kind == "sample" else "ns a rule, node and child"
        yield Series("arity", f"{CALLS[kind]}, q = 16, 16 rules a symbol", unit, ARITY, points)


def row_counts(quick: bool) -> Iterator[Series]:
    """Time per sequence, against that of ten thousand: a batch that still fits a cache."""
    largest = {"sample": 7, "tokens": 7, "root": 6, "beliefs": 6}
    for kind, title in CALLS.items():
        points = []
        for power in (4, 3, *range(5, (5 if quick else largest[kind]) + 1)):
            n = 10**power
            bound = FEW if power == 3 else None
            points.append(Point(f"n = 1e{power}", asked(kind, published(4), n), float(n), bound))
        yield Series("rows", f"{title}, q = 4, ℓ = 4", "ns a sequence", FLAT, points)


def memory(quick: bool) -> Iterator[dict[str, Any]]:
    """Peak memory beyond what goes in and comes out, at n rows and at ten times as many."""
    power = 4 if quick else 5
    for kind in ("sample", "infer") if quick else PEAKS:
        near, far = peak_of(kind, 2 * 10**power), peak_of(kind, 20 * 10**power)
        series = Series(
            "peak memory", f"{PEAKS[kind]}, q = 4, ℓ = 4", "MB beyond input and output", GROWTH
        )
        yield row(series, f"n = 2e{power}", near / 1e6, None, GROWTH)
        yield row(series, f"n = 2e{power + 1}", far / 1e6, [(far - near) / 1e6], GROWTH)


def torch_beside(_quick: bool) -> Iterator[dict[str, Any]]:
    """A torch step where hfilter's threads have run, or are running, over one where that is not so: best of all."""
    seconds, rounds = 0.15, 7
    for threads in (1, 2):
        with TorchChild(threads) as without, TorchChild(threads) as beside:
            for work in ("matrix product", "encoder step"):

                def ask(child: TorchChild, do: str, work: str = work) -> Callable[[], float]:
                    return lambda: child.ask(do, work, seconds)

                name = f"{work}, torch on {threads} thread{'s' * (threads > 1)}"
                pairs = [(f"{name}, after calls on 2 threads", "no call", "after",
                          ask(without, "alone"), ask(beside, "after"))]  # fmt: skip
                if threads < len(os.sched_getaffinity(0)):  # a core for the neighbour
                    pairs.append((f"{name}, while a neighbour computes on 1 thread", "torch", "hfilter",
                                  ask(without, "during torch"), ask(beside, "during")))  # fmt: skip
                for question, first, second, a, b in pairs:
                    times, ratios = in_turn([a, b], rounds)
                    series = Series("torch beside hfilter", question, "ms a step", THREADS)
                    best = [
                        min(own) for own in times
                    ]  # two threads wait long on a core that is taken
                    found = row(series, second, 1e3 * best[1], ratios[1], THREADS)
                    ratio = best[1] / best[0]
                    yield row(series, first, 1e3 * best[0], None, THREADS)
                    yield found | {"ratio": ratio, "met": ratio <= THREADS}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds: small sizes")
    parser.add_argument("--only", default="", help="series whose name contains this")
    options = parser.parse_args()
    everywhere = os.sched_getaffinity(0)
    rounds, seconds = (3, 0.005) if options.quick else (5, 0.02)
    makers = {
        "depth": depths, "alphabet": alphabets, "filter level": levels, "arity": arities, "rows": row_counts,
        "strength of the fields": strengths,
    }  # fmt: skip
    os.sched_setaffinity(0, {max(everywhere)})
    for name, make in makers.items():
        for series in make(options.quick) if options.only in name else ():
            few = 3 if name == "depth" else rounds
            for found in rows_of(series, few, seconds):
                print(json.dumps(found, ensure_ascii=False), flush=True)
            series.points.clear()
            gc.collect()
    os.sched_setaffinity(0, everywhere)
    others = [("peak memory", memory)]
    others += [] if options.quick else [("torch beside hfilter", torch_beside)]
    for name, found_by in others:
        for found in found_by(options.quick) if options.only in name else ():
            print(json.dumps(found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
