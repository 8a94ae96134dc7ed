"""What is asked: questions, models, sizes, who answers, and by how much hfilter means to be faster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import hfilter

OURS = "hfilter, 1 thread"
OURS_ROOT = "hfilter, root_posterior, 1 thread"
TWO = "hfilter, 2 threads"
NUMBA = "hfilter, numba, 1 thread"
PAIRS = ((0, 1), (0, -1), (1, 2))  # leaves whose joint law a sampler is held to


class WrongAnswer(AssertionError):
    """A contestant's answer is not the exact one; it is not timed."""


@dataclass(frozen=True)
class Target:
    """A bound on the ratio: hfilter on one thread over a contestant."""

    at_least: float = 0.0
    at_most: float = float("inf")
    why: str = ""

    def __str__(self) -> str:
        bound = f"≥ {self.at_least:g}" if self.at_least else f"≤ {self.at_most:.3g}"
        return f"{bound} ({self.why})" if self.why else bound

    def met(self, ratio: float) -> bool:
        """Whether the ratio keeps to the bound."""
        return self.at_least <= ratio <= self.at_most


@dataclass(frozen=True)
class Case:
    """One question at one size, put to processes (`groups`) that each offer contestants."""

    name: str
    question: str  # sample | beliefs | root | mlm | log_prob
    model: str
    depth: int
    n: int
    groups: tuple[str, ...]
    targets: dict[str, Target] = field(default_factory=dict)
    masked: float = 0.0
    series: str = "main"
    x: float = 0.0
    quick: bool = False  # leave out what takes a compiler long
    only: tuple[str, ...] = ()  # contestants to keep, by the beginning of their names; () keeps all

    @property
    def title(self) -> str:
        """As it stands in the table."""
        return f"{QUESTIONS[self.question]}{MODELS[self.model][0]}, ℓ = {self.depth}" + (
            f", {self.masked:.0%} masked" if self.masked else ""
        )

    def tree(self) -> hfilter.TreeModel:
        """The model."""
        return hfilter.TreeModel(MODELS[self.model][1](), self.depth)

    def floor_bytes(self) -> int:
        """Bytes that any method must read and write for one sequence."""
        tree = self.tree()
        fields = 4 * tree.n_leaves * tree.vocab_size
        return {
            "sample": tree.n_leaves + 1, "beliefs": 2 * fields + 4 * tree.n_classes + 8,
            "root": tree.n_leaves + 4 * tree.n_classes, "mlm": tree.n_leaves + fields,
            "log_prob": tree.n_leaves + 8,
        }[self.question]  # fmt: skip


def _factorised(q: int = 4) -> hfilter.Grammar:
    """Children independent given the parent, by another matrix left and right: BEAGLE's kind of tree."""
    left, right = np.random.default_rng(0).dirichlet(np.ones(q), (2, q))
    return hfilter.Grammar.from_tensor(left[:, :, None] * right[:, None, :])


def _uniform(v: int, depth: int) -> hfilter.Grammar:
    return hfilter.Grammar.random_hierarchy(v, v, depth, n_classes=v, seed=0)


def _log_normal(q: int) -> Callable[[], hfilter.Grammar]:
    return lambda: hfilter.Grammar.log_normal(q, 1.0, 0)


QUESTIONS = {
    "sample": "Sampling, ", "beliefs": "Leaf beliefs from fields, ", "log_prob": "Upward pass from tokens, ",
    "root": "Root posterior from tokens, ", "mlm": "Leave-one-out at all positions from tokens, ",
}  # fmt: skip
MODELS: dict[str, tuple[str, Callable[[], hfilter.Grammar]]] = {
    "published": ("q = 4", lambda: hfilter.Grammar.published(4, 1.0, 0)),
    "forbidden": (
        "q = 6, 4 of 6 rules a symbol",
        lambda: hfilter.Grammar.published(6, 1.0, 0, rules_per_symbol=4),
    ),
    "dense16": (
        "dense ambiguous grammar, q = 16",
        lambda: hfilter.Grammar.dense(16, concentration=1.0, seed=0),
    ),
    "factorised": ("children independent given the parent, q = 4", _factorised),
    "uniform": ("random hierarchy model, v = m = 8", lambda: _uniform(8, 4)),
    **{f"q{q}": (f"q = {q}", _log_normal(q)) for q in (2, 4, 8, 16, 32)},
}
PEERS = ("hfilter", "torch", "jax", "numpy", "numba")


def main_cases(quick: bool) -> list[Case]:
    """The table."""
    numba = Target(at_most=10, why="fallback")
    cases = [
        Case("sample", "sample", "published", 4, 2_000_000, PEERS, {
            "torch, rows searched": Target(80), "torch, searchsorted": Target(80),
            "jax, jit": Target(20), NUMBA: numba,
            TWO: Target(at_most=1 / 1.8, why="two threads ≥ 1.8 × one"),
        }),
        Case("sample-uniform", "sample", "uniform", 4, 1_000_000, ("hfilter", "torch", "jax")),
    ]  # fmt: skip
    sizes = [("published", 4, 20_000, 25.0), ("forbidden", 4, 10_000, 10.0), ("q8", 6, 2_000, 10.0),
             ("q16", 6, 1_000, 10.0), ("dense16", 4, 2_000, 0.0)]  # fmt: skip
    for model, depth, n, beliefs in sizes:
        dense = model == "dense16"
        compiled = ("torch, compiled einsum", "torch, compiled")
        least = {who: Target(beliefs) for who in compiled} if beliefs else {}
        if dense:
            least = {"torch, matrix product": Target(1, why="no slower")}
        for question, targets in (
            ("beliefs", least),
            ("root", {}),
            ("mlm", {} if dense else {"torch, compiled": Target(30)}),
        ):
            everyone = {**targets, NUMBA: numba}
            cases.append(Case(f"{question}-{model}", question, model, depth, n, PEERS, everyone))
    cases += [
        Case(f"beagle-{masked:g}", "log_prob", "factorised", 4, 50_000, ("hfilter", "beagle"),
             {"BEAGLE, partials": Target(2)}, masked=masked)
        for masked in (0.0, 0.2)
    ]  # fmt: skip
    if quick:
        kept = {"sample", "beliefs-published", "root-published", "beagle-0.2"}
        cases = [replace(c, quick=True, groups=tuple(g for g in c.groups if g != "numba"))
                 for c in cases if c.name in kept]  # fmt: skip
    return cases


def latency_cases(quick: bool = False) -> list[Case]:
    """One sequence a call."""
    groups = ("hfilter", "torch") if quick else ("hfilter", "numba", "torch")
    return [
        Case(f"one-{question}", question, "published", 4, 1, groups,
             series="latency", only=("hfilter", "torch, matrix product", "torch, searchsorted"))
        for question in ("sample", "beliefs", "root", "mlm")
    ]  # fmt: skip


def scaling_cases(quick: bool) -> list[Case]:
    """The figures: n, depth, q and threads, one at a time."""
    cases = []
    for question in ("sample", "beliefs"):
        only = (OURS, "torch, searchsorted", "torch, matrix product", "jax")
        big = 200_000 if question == "beliefs" else 2_000_000
        points = [("n", n, "q4", 4, int(n)) for n in (1, 10, 100, 1e3, 1e4, 1e5, 1e6) if n <= big]
        points += [("ℓ", d, "q4", d, (1 << 19) >> d) for d in (2, 4, 6, 8, 10, 12)]
        points += [("q", q, f"q{q}", 4, 4 * 16384 // q) for q in (2, 4, 8, 16, 32)]
        if quick:
            points = points[2:5:2]
        for series, x, model, depth, n in points:
            name = f"{question}-{series}-{x:g}"
            cases.append(Case(name, question, model, depth, n, ("hfilter", "torch", "jax"),
                              series=series, x=x, only=only))  # fmt: skip
        cases.append(Case(f"{question}-threads", question, "q4", 4, big, ("hfilter",),
                          series="threads"))  # fmt: skip
    return cases


def thread_counts() -> list[int]:
    """Powers of two up to the cores there are, and these."""
    cores = len(os.sched_getaffinity(0))
    return sorted({1, cores, *(1 << i for i in range(cores.bit_length()) if 1 << i <= cores)})


# ------------------------------------------------------------------------- inputs and their answers


def write_inputs(case: Case, folder: Path) -> None:
    """The evidence in `folder`, the same file for every process, and the exact answer in float64."""
    model = case.tree()
    if case.question == "sample":
        return
    n = case.n
    leaves = model.sample(n, seed=1).leaves
    if case.question == "beliefs":
        noise = np.random.default_rng(0).standard_normal((n, model.n_leaves, model.vocab_size))
        fields = (2.0 * np.eye(model.vocab_size)[leaves] + noise).astype(np.float32)
        np.save(folder / "evidence.npy", fields)
        exact = model.infer(log_fields=fields, dtype="float64").leaves
    else:
        hidden = np.random.default_rng(0).random(leaves.shape) < case.masked
        leaves[hidden] = model.mask_token
        np.save(folder / "evidence.npy", leaves)
        call = {
            "root": model.root_posterior,
            "mlm": model.leave_one_out,
            "log_prob": model.log_prob,
        }
        exact = call[case.question](leaves, dtype="float64")
        if case.question == "log_prob":
            np.save(folder / "exact_root.npy", model.root_posterior(leaves, dtype="float64"))
    np.save(folder / "exact.npy", exact)


def check(case: Case, who: str, answer: Any, folder: Path) -> None:
    """Hold an answer to the exact one; `WrongAnswer` if it is not that."""
    if case.question == "sample":
        _check_sample(case, who, answer)
        return
    root = case.question == "log_prob" and answer.ndim == 2
    exact = np.load(folder / ("exact_root.npy" if root else "exact.npy"))
    if len(answer) < min(len(exact), 100):
        raise WrongAnswer(f"{who}: {len(answer)} answers to {len(exact)} questions")
    exact = exact[: len(answer)]
    if answer.shape != exact.shape:
        raise WrongAnswer(f"{who}: shape {answer.shape} instead of {exact.shape}")
    # Ours answer to MODEL's own accuracy, peers to what single precision can be asked for.
    limit = 3e-6 if who.startswith("hfilter") else 1e-4
    error = np.abs(answer - exact) / (np.maximum(1, np.abs(exact)))
    if not error.max() <= limit:  # NaN is wrong too
        raise WrongAnswer(f"{who}: off by {error.max():.3g} in {case.name}, allowed {limit:g}")


def _check_sample(case: Case, who: str, leaves: Any) -> None:
    """Every leaf's law and the joint law of some pairs within 6 standard errors, nothing impossible."""
    model = case.tree()
    q, n = model.vocab_size, len(leaves)
    if leaves.shape != (n, model.n_leaves) or n < min(case.n // 20, 1000):
        raise WrongAnswer(f"{who}: leaves of shape {leaves.shape} for n = {case.n}")
    if not np.isfinite(model.log_prob(leaves[:1000])).all():
        raise WrongAnswer(f"{who}: drew a sequence that the grammar cannot produce")
    if n < 1000:  # too few to tell
        return
    for i, j in PAIRS:
        both = np.full((q * q, model.n_leaves), model.mask_token)
        both[:, i], both[:, j] = np.divmod(np.arange(q * q), q)
        exact = np.exp(model.log_prob(both, dtype="float64"))
        found = np.bincount(leaves[:, i].astype(np.int64) * q + leaves[:, j], minlength=q * q) / n
        error = np.abs(found - exact) / np.sqrt(np.maximum(exact * (1 - exact), 1 / n) / n)
        if not error.max() < 6:
            raise WrongAnswer(f"{who}: leaves {i} and {j} are off by {error.max():.3g} errors")
