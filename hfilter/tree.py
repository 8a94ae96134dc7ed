"""`TreeStructure`: grammar x depth x filter level, packed once into the flat arrays kernels walk.

Everything that both texts (compiled and Python) must agree on to the last bit is computed here, once,
in an order of operations that does not depend on the processor: cut points of the sampler, channels
of the filtered root, thresholds of the range watch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import view
from .checks import check_int
from .compiled import _cpu, ieee
from .errors import ArgumentError, DTypeError, GrammarError, ShapeError
from .grammar import Grammar
from .rules import RuleTable

__all__ = ["STREAM_VERSION", "TreeStructure"]

T = TypeVar("T")

STREAM_VERSION = 1  # raised if ever the same (model, seed, index) should give another sample

_MAX_LEAVES = 2**26
_MAX_STAR = 2**27  # channel entries of a filtered root: 1 GB in double precision
_MAX_PADDED = 2**27  # entries of the sampler's padded rows
_NEVER = np.uint32(
    0xFFFFFFFF
)  # a cut point that no word passes (the sampler lowers the largest word by one)


class computed_once(Generic[T]):
    """`functools.cached_property` without its lock, which before Python 3.12 all models share: a fork
    or another model's first call must not wait for it. Two threads may compute the same value twice.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> T:
        with ieee():
            value: T = instance.__dict__.setdefault(self.name, self.function(instance))
        return value


class TreeStructure:
    """The shape and law of a tree, without operations (those are `hfilter.TreeModel`).

    Parameters
    ----------
    grammar : Grammar
    depth : int, optional
        Levels below the root; may be left out if the grammar has one table per level.
    filter_level : int
        0 (full hierarchy) to `depth` (leaves independent given the root).
    root_prior : array_like of float, shape (n_classes,), optional
        Law of the root symbol; uniform by default.
    """

    def __init__(
        self,
        grammar: Grammar,
        depth: int | None = None,
        filter_level: int = 0,
        root_prior: Any = None,
    ) -> None:
        if not isinstance(grammar, Grammar):
            raise DTypeError(
                f"grammar must be a hfilter.Grammar, got {type(grammar).__name__}; "
                "wrap a transition tensor with hfilter.Grammar.from_tensor"
            )
        if depth is None:
            if grammar.n_levels is None:
                raise ArgumentError(
                    "depth must be given: this grammar has one table that serves any depth"
                )
            depth = grammar.n_levels
        depth = check_int("depth", depth, 1, 62)
        if grammar.n_levels is not None and depth != grammar.n_levels:
            raise ArgumentError(
                f"depth must be {grammar.n_levels}, the number of levels of this grammar, got {depth}"
            )
        if grammar.arity**depth > _MAX_LEAVES:
            raise ArgumentError(
                f"depth = {depth} at arity {grammar.arity} makes {grammar.arity}**{depth} leaves, "
                f"more than {_MAX_LEAVES}"
            )
        self.grammar = grammar
        self.depth = depth
        self.filter_level = check_int("filter_level", filter_level, 0, depth)
        self.arity = grammar.arity
        self.alphabets = grammar.alphabets(depth)
        self.n_leaves = self.arity**depth
        self.n_classes = grammar.n_classes
        self.vocab_size = grammar.vocab_size
        self.mask_token = self.vocab_size
        self.token_dtype: np.dtype[Any] = np.dtype(
            np.uint8 if max(self.alphabets) <= 255 else np.uint16
        )
        self.root_prior = _check_prior(root_prior, self.n_classes)
        star = self.arity**self.filter_level * self.alphabets[0] * self.alphabets[self.filter_level]
        if self.filter_level and star > _MAX_STAR:
            raise ArgumentError(
                f"filter_level = {filter_level} needs {star} channel entries, more than {_MAX_STAR}; "
                "lower the filter level or the alphabets"
            )
        self._complete = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "_complete" in self.__dict__:
            raise AttributeError(
                f"a {type(self).__name__} is immutable: cannot set {name}; make another, e.g. with .filtered(k)"
            )
        super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        return type(self), (self.grammar, self.depth, self.filter_level, self.root_prior)

    @property
    def existing_levels(self) -> tuple[int, ...]:
        """Levels whose nodes exist: the root, then `filter_level` to `depth`."""
        return (0, *range(max(self.filter_level, 1), self.depth + 1))

    def n_nodes(self, level: int) -> int:
        """Number of nodes of a level."""
        return int(self.arity ** check_int("level", level, 0, self.depth))

    def channel(self, node: int) -> NDArray[np.float64]:
        """P_i of HF Eq. 3: law of node `node` of the filter level given the root, shape (q_0, q_k)."""
        if self.filter_level == 0:
            raise ArgumentError("channel exists only for filter_level >= 1, got filter_level = 0")
        out: NDArray[np.float64] = self.channels[
            check_int("node", node, 0, self.arity**self.filter_level - 1)
        ]
        return out

    @computed_once
    def channels(self) -> NDArray[np.float64]:
        """All channels of the filter level, shape (arity**k, q_0, q_k)."""
        current = np.eye(self.alphabets[0])[None]
        reach = current  # positive where a product of positive probabilities leads
        for level in range(self.filter_level):
            table = self.grammar.table(level)
            laws = [table.marginal(r) for r in range(self.arity)]
            shape = (-1, self.alphabets[0], table.n_symbols)
            current = np.stack([_multiply(current, law) for law in laws], axis=1).reshape(shape)
            steps = [_multiply(reach, np.sign(law)) > 0 for law in laws]
            reach = np.stack(steps, axis=1).reshape(shape).astype(np.float64)
        if ((reach > 0) & (current < np.finfo(np.float64).tiny)).any():
            raise GrammarError(
                f"at filter_level {self.filter_level} the root determines some symbol with a probability "
                "below 1e-308, which rounds to zero; raise the smallest rule probabilities"
            )
        current.flags.writeable = False
        return current

    def node_laws(self, level: int) -> NDArray[np.float64]:
        """Law of every node of a level, shape (n_nodes, q_level): the same at every filter level."""
        laws = self.root_prior[None]
        for d in range(check_int("level", level, 0, self.depth)):
            table = self.grammar.table(d)
            children = [_multiply(laws, table.marginal(r)) for r in range(self.arity)]
            laws = np.stack(children, axis=1).reshape(-1, table.n_symbols)
        return laws

    @computed_once
    def first_counts(self) -> tuple[int, ...]:
        """Where the rules of each level stand in a row of rule counts; levels with one table share theirs.

        The tables below the filter level come one after the other, each once; -1 above it.
        """
        found: dict[int, int] = {}
        end = 0
        for d in range(self.filter_level, self.depth):
            table = self.grammar.table(d)
            if id(table) not in found:
                found[id(table)] = end
                end += table.n_rules
        return tuple(found.get(id(self.grammar.table(d)), -1) for d in range(self.depth))

    @computed_once
    def n_counts(self) -> int:
        """Length of a row of rule counts."""
        tables = {
            id(t): t.n_rules for t in map(self.grammar.table, range(self.filter_level, self.depth))
        }
        return sum(tables.values())

    @computed_once
    def fingerprint(self) -> str:
        """Digest of the law of the leaves: grammar, depth, filter level, root prior."""
        text = f"{self.grammar.fingerprint} {self.depth} {self.filter_level}".encode()
        return hashlib.sha256(text + self.root_prior.astype("<f8").tobytes()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What an artefact should record about the model, as plain JSON values."""
        uniform = bool((self.root_prior == self.root_prior[0]).all())
        return {
            "grammar": self.grammar.describe(),
            "depth": self.depth,
            "filter_level": self.filter_level,
            "arity": self.arity,
            "n_leaves": self.n_leaves,
            "root_prior": "uniform" if uniform else self.root_prior.tolist(),
            "stream_version": STREAM_VERSION,
            "fingerprint": self.fingerprint,
        }

    def _repr_html_(self) -> str:
        shape = f"depth {self.depth}, filter level {self.filter_level}, {self.n_leaves} leaves"
        return f"<p>{type(self).__name__}: {shape}</p>{view.html(self.grammar)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.grammar!r}, depth={self.depth}, filter_level={self.filter_level})"

    # --------------------------------------------------------------------------------- packing

    @computed_once
    def packed(self) -> Mapping[str, Any]:
        """The flat arrays of the kernel contract (csrc/hfilter.h: hf_model, hf_level)."""
        k = self.filter_level
        tables: dict[int, dict[str, Any]] = {}
        levels = []
        for d in range(self.depth):
            table = self.grammar.table(d)
            if id(table) not in tables:
                tables[id(table)] = _pack_table(table)
            levels.append(tables[id(table)])
        prior_cuts, prior_bits = _cut_points(self.root_prior[None])
        empty = np.empty(0)
        star, star_cuts, star_bits = empty, empty.astype(np.uint32), 0
        positive = [self.root_prior[self.root_prior > 0]] + [
            level["prob64"] for level in levels[k:]
        ]
        if k:
            star = np.ascontiguousarray(self.channels)
            star_cuts, star_bits = _cut_points(star.reshape(-1, star.shape[-1]))
            positive.append(star[star > 0])
        smallest = min(float(p.min()) for p in positive)
        tiny32, slack32 = _range_limits(smallest, self.arity, self.depth, 126, 100)
        tiny64, slack64 = _range_limits(smallest, self.arity, self.depth, 1022, 960)
        return {
            "arity": self.arity,
            "depth": self.depth,
            "filter_level": k,
            "alphabets": np.array(self.alphabets, np.int32),
            "levels": levels,
            "prior32": self.root_prior.astype(np.float32),
            "prior64": self.root_prior,
            "prior_cuts": prior_cuts.ravel(),
            "prior_bits": prior_bits,
            "star32": star.astype(np.float32),
            "star64": star,
            "star_cuts": star_cuts,
            "star_bits": star_bits,
            "tiny32": tiny32,
            "tiny64": tiny64,
            "slack32": slack32,
            "slack64": slack64,
            "n_counts": self.n_counts,
            "first_counts": np.array(self.first_counts, np.int32),
        }

    @computed_once
    def compiled(self) -> Any:
        """The packed model as module _cpu holds it."""
        return _cpu.Model(dict(self.packed))


def _check_prior(prior: Any, n_classes: int) -> NDArray[np.float64]:
    if prior is None:
        out = np.full(n_classes, 1.0 / n_classes)
    else:
        try:
            out = np.array(prior, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DTypeError(f"root_prior must be {n_classes} probabilities: {error}") from error
        if out.shape != (n_classes,):
            raise ShapeError(f"root_prior must have shape ({n_classes},), got {out.shape}")
        if not np.isfinite(out).all() or (out < 0).any():
            raise GrammarError(f"root_prior must be finite and non-negative, got {out.tolist()}")
        if abs(out.sum() - 1) > 1e-6:
            raise GrammarError(
                f"root_prior must sum to 1, sums to {out.sum():.9g}; divide it by its sum"
            )
        if abs(out.sum() - 1) > 1e-12:
            out /= out.sum()
    out.flags.writeable = False
    return out


def _multiply(stack: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """stack @ matrix, summed in one fixed order: BLAS may round differently on another processor."""
    out = np.zeros((*stack.shape[:-1], matrix.shape[1]))
    for c in range(matrix.shape[0]):
        out += stack[..., c, None] * matrix[c]
    return out


def _cut_points(rows: NDArray[np.float64]) -> tuple[NDArray[np.uint32], int]:
    """Cumulative probabilities on a grid of 2**-32, rows padded to 2**bits entries.

    Entry j is chosen by a word w when exactly j cut points are <= w: its probability is off by less
    than 2**-32, and one of probability zero is never chosen.
    """
    n, width = rows.shape
    bits = max(width - 1, 0).bit_length()
    cuts = np.full((n, 1 << bits), _NEVER)
    grid = np.floor(np.cumsum(rows, axis=1) * 2.0**32 + 0.5)
    cuts[:, : width - 1] = np.minimum(grid, float(_NEVER)).astype(np.uint32)[:, : width - 1]
    return cuts, bits


def _pack_table(table: RuleTable) -> dict[str, Any]:
    counts = np.diff(table.first)
    width = int(counts.max())
    place = np.arange(table.n_rules) - np.repeat(table.first[:-1], counts)
    if table.n_parents << max(width - 1, 0).bit_length() > _MAX_PADDED:
        raise GrammarError(
            f"rows of {table.n_parents} parents padded to the longest, {width} rules, exceed {_MAX_PADDED} "
            "entries; spread the rules more evenly over the parents, or use a smaller alphabet"
        )
    rows = np.zeros((table.n_parents, width))
    rows[table.parents, place] = table.probability
    cuts, bits = _cut_points(rows)
    # A shorter row ends where its own rules end, not where its rounded sum says.
    past = np.arange(1 << bits)[None] >= (counts - 1)[:, None]
    cuts[past] = _NEVER
    picks = np.zeros((table.n_parents, 1 << bits, table.arity), np.uint32)
    picks[table.parents, place] = table.children
    return {
        "n_rules": table.n_rules,
        "first": table.first,
        "children": table.children,
        "prob32": table.probability.astype(np.float32),
        "prob64": table.probability,
        "cuts": cuts,
        "cut_bits": bits,
        "picks": picks,
    }


def _range_limits(
    smallest: float, arity: int, depth: int, exponents: int, slack: int
) -> tuple[float, int]:
    """When rounding to zero could matter: (tiny, slack), see `hf_model` in csrc/hfilter.h.

    Messages have their maximum in [1, 2). If all their non-zero entries are >= tiny, no product of one
    probability and `arity` entries underflows. If one is smaller, something below 2**-exponents of
    the rest may be lost; that is harmless unless later evidence cancels the rest: by more than `slack`
    bits, counted over the exponents taken out at each level, less what a level's sums can add.
    """
    probability_bits = math.ceil(-math.log2(smallest))
    theta = (exponents - probability_bits) // arity - 1
    growth = arity - 1 + math.ceil(math.log2(arity))
    return (2.0**-theta if theta > 0 else 4.0), max(slack - 2 * depth * growth, 0)
