"""The sequences that a predictor is tried on: the model's own, another's, or random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hfilter.checks import check_int, check_seed
from hfilter.errors import ArgumentError
from hfilter.exact import TreeModel
from hfilter.learn.masks import draw_masks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hfilter.analysis.questions import Question

__all__ = ["Inputs", "Source", "uniform_leaves"]

Inputs = Literal["own", "uniform"] | TreeModel

_UNIFORM_STREAM = 0x756E69666F726D  # "uniform" in ASCII: keeps the key apart from other uses


@dataclass(frozen=True)
class Drawn:
    """A block of sequences: what is shown, what is hidden, what is right (None: nothing is)."""

    leaves: NDArray[Any]
    hidden: NDArray[np.bool_] | None
    truth: NDArray[np.int64] | None
    tokens: NDArray[Any]


class Source:
    """Where sequences come from, checked once; `name` says it in words."""

    def __init__(
        self,
        model: TreeModel,
        question: Question,
        inputs: Inputs,
        seed: int,
        mask_rate: float | None,
    ) -> None:
        self.model, self.question = model, question
        self.seed = check_seed("seed", seed)
        self.mask_rate = mask_rate
        self.source: TreeModel | None = None
        if isinstance(inputs, TreeModel):
            _check_fits(inputs, model)
            self.source = inputs
            same = inputs.grammar == model.grammar
            whose = "the same grammar" if same else f"grammar {inputs.grammar.fingerprint}"
            self.name = f"{whose}, filter level {inputs.filter_level}"
        elif inputs == "own":
            self.source, self.name = model, "own"
        elif inputs == "uniform":
            self.name = "uniform"
        else:
            raise ArgumentError(f'inputs must be "own", "uniform" or a TreeModel, got {inputs!r}')
        level = question.level
        if self.source is not None and level not in (None, *self.source.existing_levels):
            raise ArgumentError(
                f"level {level} does not exist at filter_level {self.source.filter_level} of the "
                f"inputs; those that do are {self.source.existing_levels}"
            )

    def draw(self, count: int, start: int) -> Drawn:
        """Rows ``start … start + count - 1``."""
        model, question = self.model, self.question
        truth: NDArray[np.int64] | None = None
        if self.source is None:
            dtype = model.token_dtype
            leaves = uniform_leaves(count, model.n_leaves, model.vocab_size, self.seed, start)
            leaves = leaves.astype(dtype)
        else:
            levels = None if question.level is None else [question.level]
            sample = self.source.sample(count, seed=self.seed, start=start, levels=levels)
            leaves = np.asarray(sample.leaves)
            roots = sample.roots if question.task == "root" else None
            nodes = None if question.level is None else sample.levels[question.level]
            n_nodes = 1 if question.level is None else model.n_nodes(question.level)
            truth = question.truth(leaves, roots, nodes, n_nodes)
        hidden = None
        tokens = leaves
        if question.task == "mlm" or self.mask_rate is not None:
            hidden = draw_masks(count, model.n_leaves, self.seed, start, self.mask_rate)
            tokens = np.where(hidden, leaves.dtype.type(model.mask_token), leaves)
        return Drawn(leaves, hidden, truth, tokens.copy())


def uniform_leaves(n: int, n_leaves: int, q: int, seed: int = 0, start: int = 0) -> NDArray[Any]:
    """Independent uniform symbols: rows ``start …`` of a stream of `seed`, shape (n, n_leaves).

    A row is a pure function of (seed, row), from the raw words of NumPy's Philox4x64-10; symbols are
    uniform within ``q / 2^32``.

    Examples
    --------
    >>> rows = uniform_leaves(5, 8, 4, seed=1)
    >>> bool((uniform_leaves(2, 8, 4, seed=1, start=3) == rows[3:]).all())
    True
    """
    check_int("n", n, 0)
    check_int("start", start, 0)
    first = start * n_leaves
    skip = first % 4
    key = np.array([seed, _UNIFORM_STREAM], dtype=np.uint64)
    generator = np.random.Philox(counter=first // 4, key=key)
    words = generator.random_raw(skip + n * n_leaves)[skip:]
    symbols = ((words >> np.uint64(32)) * np.uint64(q)) >> np.uint64(32)
    return np.asarray(symbols.reshape(n, n_leaves).astype(np.int64))


def _check_fits(inputs: TreeModel, model: TreeModel) -> None:
    for name in ("arity", "depth", "alphabets"):
        theirs, ours = getattr(inputs, name), getattr(model, name)
        if theirs != ours:
            raise ArgumentError(
                f"inputs must be a tree like the model's, {name} {ours}, got {name} {theirs}"
            )
