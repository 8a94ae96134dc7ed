"""The models and the evidence that the courts of truth and agreement run over."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from oracle import Answer, Enumeration, token_fields

import hfilter
from hfilter import Grammar

ROWS = 20


@dataclass(frozen=True)
class Case:
    """A model small enough to enumerate at every filter level."""

    name: str
    make: Callable[[], Grammar]
    depth: int
    prior: tuple[float, ...] | None = None


def random_tensor(
    rng: np.random.Generator,
    parents: int,
    children: int,
    arity: int = 2,
    zeros: float = 0.0,
    orders: float = 0.0,
) -> np.ndarray:
    """A random transition tensor, ambiguous in general, with a share of its rules forbidden.

    Weights spread over that many orders of magnitude besides.
    """
    shape = (parents,) + (children,) * arity
    weights = rng.exponential(size=shape) * (rng.random(shape) >= zeros)
    weights *= 10.0 ** -rng.uniform(0, orders, size=shape)
    flat = weights.reshape(parents, -1)
    dead = flat.sum(axis=1) == 0
    flat[dead, rng.integers(flat.shape[1])] = 1.0
    return (flat / flat.sum(axis=1, keepdims=True)).reshape(shape)


def _per_level(
    seed: int, alphabets: list[int], arity: int, zeros: float, orders: float = 0.0
) -> Grammar:
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(alphabets)
    return Grammar.from_tensor([random_tensor(rng, a, b, arity, zeros, orders) for a, b in pairs])


def _missing_symbol() -> Grammar:
    """Symbol 2 is never produced and symbol 0 leads nowhere else: zeros in every channel."""
    tensor = np.zeros((3, 3, 3))
    tensor[0, 0, 0] = 1.0
    tensor[1, 1, 0] = tensor[1, 0, 1] = 0.5
    tensor[2, 1, 1] = 0.25
    tensor[2, 0, 0] = 0.75
    return Grammar.from_tensor(tensor)


CASES = (
    Case("log_normal-q3-l3", lambda: Grammar.log_normal(3, 1.0, 0), 3),
    Case("log_normal-q4-l2", lambda: Grammar.log_normal(4, 2.0, 5), 2),
    Case(
        "log_normal-forbidden",
        lambda: Grammar.log_normal(3, 1.0, 1, rules_per_symbol=2),
        3,
        (0.5, 0.0, 0.5),
    ),
    Case("log_normal-arity3", lambda: Grammar.log_normal(2, 1.0, 2, arity=3), 2, (0.9, 0.1)),
    Case("published-q4-l2", lambda: Grammar.published(4, 1.0, 0), 2),
    Case("published-q6-forbidden", lambda: Grammar.published(6, 1.0, 0, rules_per_symbol=4), 2),
    Case(
        "random_hierarchy",
        lambda: Grammar.random_hierarchy(
            vocab_size=3, rules_per_symbol=2, depth=3, n_classes=2, seed=3
        ),
        3,
    ),
    Case(
        "random_hierarchy-many-classes",
        lambda: Grammar.random_hierarchy(
            vocab_size=4, rules_per_symbol=2, depth=2, n_classes=6, seed=4
        ),
        2,
        (0.1, 0.2, 0.0, 0.3, 0.25, 0.15),
    ),
    Case(
        "random_hierarchy-arity3",
        lambda: Grammar.random_hierarchy(
            vocab_size=2, rules_per_symbol=2, depth=2, n_classes=3, arity=3, seed=5
        ),
        2,
    ),
    Case("dense-q3-l2", lambda: Grammar.dense(3, 1.0, 6), 2, (0.2, 0.7, 0.1)),
    Case("dense-q2-l3", lambda: Grammar.dense(2, 0.5, 7), 3),
    Case("dense-arity3", lambda: Grammar.dense(2, 1.0, 8, arity=3), 2),
    Case("broadcast-q3", lambda: Grammar.broadcast(3, 0.6), 2),
    Case("broadcast-negative", lambda: Grammar.broadcast(3, -0.4), 2),
    Case("broadcast-copies", lambda: Grammar.broadcast(2, 1.0), 3, (0.3, 0.7)),
    Case("parity-l3", lambda: Grammar.parity(), 3),
    Case("parity-arity3", lambda: Grammar.parity(arity=3), 2, (0.25, 0.75)),
    Case("tensor-missing-symbol", _missing_symbol, 3, (0.4, 0.6, 0.0)),
    Case("levels-2-4-3", lambda: _per_level(9, [2, 4, 3], 2, 0.0), 2, (0.0, 1.0)),
    Case("levels-4-2-3-2", lambda: _per_level(10, [4, 2, 3, 2], 2, 0.4), 3),
    Case("rare-rules", lambda: _per_level(14, [3, 3, 2], 2, 0.2, 100.0), 2),
    Case("rare-rules-deeper", lambda: _per_level(15, [2, 2, 3, 2], 2, 0.4, 250.0), 3),
    Case("rare-root", lambda: Grammar.broadcast(2, 1.0), 3, (1.0, 1e-60)),
    Case("rarer-root", lambda: Grammar.broadcast(2, 0.9), 2, (1.0, 1e-200)),
    Case("levels-arity3-3-1-2", lambda: _per_level(11, [3, 1, 2], 3, 0.3), 2),
    Case("arity4", lambda: Grammar.dense(2, 1.0, 16, arity=4), 1, (0.3, 0.7)),
    Case("arity5", lambda: Grammar.log_normal(2, 2.0, 17, arity=5), 1),
    Case("levels-arity6", lambda: _per_level(18, [3, 2], 6, 0.3), 1),
    Case("arity7", lambda: Grammar.log_normal(2, 1.0, 19, arity=7), 1),
    Case("arity8", lambda: Grammar.dense(2, 1.0, 20, arity=8), 1, (0.9, 0.1)),
    Case("depth-1", lambda: Grammar.dense(4, 1.0, 12), 1),
    Case("one-symbol", lambda: Grammar.from_tensor(np.ones((1, 1, 1))), 2),
    Case(
        "wide-alphabet",
        lambda: Grammar.random_hierarchy(
            vocab_size=300, rules_per_symbol=2, depth=1, n_classes=3, seed=13
        ),
        1,
    ),
)


@dataclass
class Evidence:
    """A batch of evidence and the exact answer to it."""

    answer: Answer
    leaves: np.ndarray | None = None
    mask: np.ndarray | None = None
    log_fields: np.ndarray | None = None


@dataclass
class Problem:
    """A case at a filter level, with its enumeration."""

    name: str
    grammar: Grammar
    model: hfilter.TreeModel
    tensors: list[np.ndarray]
    prior: np.ndarray
    law: Enumeration
    seed: int
    evidence: dict[str, Evidence] = field(default_factory=dict)

    @property
    def q(self) -> int:
        return self.law.alphabets[-1]

    def tokens(self) -> Evidence:
        """Sequences of the model and impossible ones, with masks from none to all."""
        if "tokens" not in self.evidence:
            rng = np.random.default_rng(self.seed)
            leaves = self.law.draw(ROWS, rng)
            leaves[1::3] = rng.integers(self.q, size=leaves[1::3].shape)
            share = np.resize([0.0, 0.0, 0.3, 0.5, 0.7, 1.0], ROWS)
            mask = rng.random(leaves.shape) < share[:, None]
            mask[6] = True
            mask[6, 0] = False
            mask[7] = False
            mask[7, -1] = True
            answer = self.law.infer(token_fields(leaves, mask, self.q))
            self.evidence["tokens"] = Evidence(answer, leaves=leaves, mask=mask)
        return self.evidence["tokens"]

    def fields(self, kind: str) -> Evidence:
        """Soft evidence of one kind (see FIELD_KINDS)."""
        if kind not in self.evidence:
            rng = np.random.default_rng(self.seed + 1)
            rows = ROWS // 2 if len(self.law.log_prior) < 5000 else ROWS // 5
            h = FIELD_KINDS[kind](rng, (rows, self.law.n_leaves, self.q))
            self.evidence[kind] = Evidence(self.law.infer(h), log_fields=h)
        return self.evidence[kind]


def _soft(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape) * 3


def _with_zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    h = _soft(rng, shape)
    h[rng.random(shape) < 0.3] = -np.inf
    h[0, 0] = -np.inf  # a leaf that allows nothing: its own leave-one-out law still exists
    return h


def _offset(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return _soft(rng, shape) + rng.choice([-1e6, 0.0, 1e6], size=(*shape[:2], 1))


def _spread(scale: float) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        # Every leaf prefers a random symbol strongly; together they conflict with most grammars,
        # and what decides is the small differences far below anything a float32 can hold.
        h = rng.normal(size=shape)
        h -= scale * rng.integers(4, size=shape)
        return h

    return draw


def _steps(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Magnitudes of every order in one batch, zeros among them."""
    h = rng.normal(size=shape) * 10.0 ** rng.integers(-6, 4, size=shape)
    h[rng.random(shape) < 0.1] = -np.inf
    return h


FIELD_KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "soft": _soft,
    "zeros": _with_zeros,
    "offset": _offset,
    "spread-50": _spread(50.0),
    "spread-300": _spread(300.0),
    "spread-5000": _spread(5000.0),
    "steps": _steps,
}

PAIRS = tuple((case.name, k) for case in CASES for k in range(case.depth + 1))
PAIR_IDS = tuple(f"{name}-k{k}" for name, k in PAIRS)


@cache
def problem(name: str, filter_level: int) -> Problem:
    """The case of that name at that filter level; built once per test run."""
    index, case = next((i, c) for i, c in enumerate(CASES) if c.name == name)
    grammar = case.make()
    tensors = [grammar.tensor(d) for d in range(case.depth)]
    classes = tensors[0].shape[0]
    prior = np.full(classes, 1 / classes) if case.prior is None else np.array(case.prior)
    model = hfilter.TreeModel(
        grammar, case.depth, filter_level, root_prior=None if case.prior is None else prior
    )
    law = Enumeration(tensors, prior, case.depth, filter_level)
    seed = 1000 * index + 10 * filter_level
    return Problem(name, grammar, model, tensors, prior, law, seed)
