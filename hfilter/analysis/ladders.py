"""Where a predictor stands between local and global: beside every window and every filter level.

Two ladders of exact predictors lead from the law of a leaf alone to the full posterior: W_h, which
sees only the subtree of height h around the leaf, and BP_k, which sees every leaf through a tree
whose correlations above level k are cut. Where a network stands on both, along training, says which
of them it climbs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hfilter.analysis.blockwise import ask_for, feed
from hfilter.analysis.inputs import Inputs, Source
from hfilter.analysis.judge import divergence, normalised, score
from hfilter.analysis.questions import Question
from hfilter.analysis.tally import Tally
from hfilter.errors import ArgumentError
from hfilter.learn.masks import HELD_OUT_START

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from hfilter.exact import TreeModel

__all__ = ["Ladders", "Rung", "compare_ladders", "ladders"]


class Rung(NamedTuple):
    """A rung of a ladder, ``W_h`` or ``BP_k``, and the mean KL(rung || predictor) in nats."""

    name: str
    kl: float


@dataclass(frozen=True, eq=False)  # == of arrays is no truth value: equal is identical
class Ladders:
    """Mean KL(rung || predictor) in nats per scored leaf, for every rung of both ladders.

    Attributes
    ----------
    inputs : str
        Who drew the sequences, as in `hfilter.analysis.comparison.Comparison`.
    filter_level : int
        Of the windows' model. The widest window is BP of this level.
    n_sequences, n_tokens : int
    window_kl, window_kl_se : (depth + 1,) float64 arrays
        By height h = 0 … depth of the window; standard errors over sequences.
    filter_kl, filter_kl_se : (depth + 1,) float64 arrays
        By filter level k = 0 … depth.
    window_by_input, filter_by_input : (n, depth + 1) float64 arrays
        The same per sequence, the mean over its scored leaves; NaN where the rung has no law there.
    window_undefined, filter_undefined : (depth + 1,) int64 arrays
        Scored leaves without a law of the rung, the evidence being impossible; left out of it.
    undefined_model : int
        Scored leaves where the predictor's row is NaN; left out of everything.
    """

    inputs: str
    filter_level: int
    n_sequences: int
    n_tokens: int
    window_kl: NDArray[np.float64]
    window_kl_se: NDArray[np.float64]
    filter_kl: NDArray[np.float64]
    filter_kl_se: NDArray[np.float64]
    window_by_input: NDArray[np.float64]
    filter_by_input: NDArray[np.float64]
    window_undefined: NDArray[np.int64]
    filter_undefined: NDArray[np.int64]
    undefined_model: int

    @property
    def rungs(self) -> tuple[str, ...]:
        """Names of all rungs, the widest window left out: it is BP of the model's own level."""
        depth = len(self.filter_kl) - 1
        windows = (f"W_{h}" for h in range(depth))
        return (*windows, *(f"BP_{k}" for k in range(depth + 1)))

    @property
    def closest(self) -> Rung:
        """The rung of smallest mean KL, of both ladders; NaN rungs are none."""
        return self._least(self.rungs, np.concatenate([self.window_kl[:-1], self.filter_kl]))

    @property
    def closest_window(self) -> Rung:
        """The window of smallest mean KL, the widest among them."""
        return self._least([f"W_{h}" for h in range(len(self.window_kl))], self.window_kl)

    @property
    def closest_filter(self) -> Rung:
        """The filter level of smallest mean KL."""
        return self._least([f"BP_{k}" for k in range(len(self.filter_kl))], self.filter_kl)

    def closest_shares(self) -> dict[str, float]:
        """For every rung, the fraction of sequences that it is closest to; ties to the first."""
        table = np.concatenate([self.window_by_input[:, :-1], self.filter_by_input], axis=1)
        table = np.where(np.isnan(table), np.inf, table)
        known = np.isfinite(table).any(axis=1)
        best = np.bincount(table[known].argmin(axis=1), minlength=table.shape[1])
        return dict(zip(self.rungs, (best / max(1, known.sum())).tolist(), strict=True))

    @staticmethod
    def _least(names: Any, values: NDArray[np.float64]) -> Rung:
        filled = np.where(np.isnan(values), np.inf, values)
        best = int(filled.argmin())
        return Rung(names[best], float(values[best]))

    def as_dict(self) -> dict[str, Any]:
        """Nested lists and numbers, ready for JSON; without the numbers per sequence."""
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
            if not name.endswith("_by_input")
        }
        return plain | {"closest": self.closest.name, "closest_kl": self.closest.kl}

    def __str__(self) -> str:
        lines = [
            f"{self.n_tokens} leaves of {self.n_sequences} sequences; closest "
            f"{self.closest.name} at {self.closest.kl:.4f} nats",
            "      KL(W_h || model)    KL(BP_k || model)",
        ]
        columns = (self.window_kl, self.window_kl_se, self.filter_kl, self.filter_kl_se)
        for i, (w, w_se, f, f_se) in enumerate(zip(*columns, strict=True)):
            lines.append(f"{i:3d}   {w:8.4f} ± {w_se:.4f}   {f:8.4f} ± {f_se:.4f}")
        return "\n".join(lines)


def compare_ladders(
    model: TreeModel,
    probabilities: ArrayLike,
    leaves: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    positions: ArrayLike | None = None,
) -> Ladders:
    """KL(W_h || model) and KL(BP_k || model) for every h and k, of probabilities from anywhere.

    Parameters
    ----------
    model : TreeModel
        Windows are taken in it, at its own filter level.
    probabilities : (n, L, q) array or torch tensor
    leaves : (n, L) integer array
    mask : (n, L) bool array, optional
        True = hidden: exactly these are scored, by default all, each given the others.
    positions : (n,) integer array, optional
        In place of ``mask``: the one hidden leaf of each sequence.

    Returns
    -------
    Ladders

    Raises
    ------
    hfilter.errors.HFilterError
        As :func:`hfilter.analysis.compare.compare`.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> leaves = model.sample(200, seed=1).leaves
    >>> result = compare_ladders(model, model.windowed(leaves, 2, dtype="float64"), leaves)
    >>> result.closest
    Rung(name='W_2', kl=0.0)
    """
    question = Question.of(model, "mlm")
    climb = _Climb(model, question, "own")
    feed(climb, model, question, probabilities, leaves, mask, positions)
    return climb.result()


def ladders(
    predict: Any,
    model: TreeModel,
    n: int,
    *,
    seed: int = 0,
    start: int = HELD_OUT_START,
    mask_rate: float | None = None,
    inputs: Inputs = "own",
) -> Ladders:
    """KL(W_h || predictor) and KL(BP_k || predictor) for every h and k, on drawn sequences.

    Parameters
    ----------
    predict
        A masked-leaf predictor: a function of tokens, a torch network or an oracle, as in
        :func:`hfilter.analysis.compare.evaluate`.
    model, n, seed, start, mask_rate, inputs
        As in :func:`hfilter.analysis.compare.evaluate`.

    Returns
    -------
    Ladders
        16 (depth + 1) bytes a sequence.

    Notes
    -----
    Leaves that are hidden besides the scored one are hidden from the rungs too.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> result = ladders(hfilter.oracles.ExactBP(model.filtered(1)), model, 500)
    >>> result.closest.name, result.closest_window.name
    ('BP_1', 'W_3')
    """
    question = Question.of(model, "mlm")
    source = Source(model, question, inputs, seed, mask_rate)
    climb = _Climb(model, question, source.name)
    ask_for(climb, predict, model, question, source, n, start)
    return climb.result()


class _Climb:
    """Adds up blocks, one tally per rung."""

    def __init__(self, model: TreeModel, question: Question, inputs: str) -> None:
        self.model, self.question, self.inputs = model, question, inputs
        self.bp = [model.filtered(k) for k in range(model.depth + 1)]
        count = len(self.bp)
        self.tallies = [[Tally() for _ in range(count)] for _ in range(2)]
        self.undefined = np.zeros((2, count), dtype=np.int64)
        self.by_input: list[NDArray[np.float64]] = []
        self.undefined_model = self.n_sequences = self.n_tokens = 0

    def add(
        self,
        given: NDArray[np.float64],
        leaves: NDArray[Any],
        hidden: NDArray[np.bool_] | None,
        truth: object = None,
    ) -> None:
        """One block; what is right plays no part in it."""
        n, count = len(given), len(self.bp)
        block = score(self.question, given, hidden, None)
        sequence, means = block.where[0], np.empty((2, n, count))
        for i in range(count):
            window = self.model.windowed(leaves, i, mask=hidden, dtype="float64")
            laws = (np.asarray(window), self.question.posterior(self.bp[i], leaves, hidden))
            for ladder, law in enumerate(laws):
                p = normalised(law[block.where])
                exists = ~np.isnan(p[:, 0])
                both, kl = exists & block.defined, divergence(p, block.rows)
                self.tallies[ladder][i].add(kl, sequence, both, n)
                self.undefined[ladder, i] += int((~exists).sum())
                sums = np.bincount(sequence[both], weights=kl[both], minlength=n)
                with np.errstate(invalid="ignore"):
                    means[ladder, :, i] = sums / np.bincount(sequence[both], minlength=n)
        self.by_input.append(means)
        self.undefined_model += int((~block.defined).sum())
        self.n_sequences += n
        self.n_tokens += len(block.rows)

    def result(self) -> Ladders:
        if self.n_tokens == 0:
            raise ArgumentError(
                "no token to score: give at least one row, and a mask not all False"
            )
        means = [np.array([tally.mean for tally in ladder]) for ladder in self.tallies]
        errors = [np.array([tally.standard_error for tally in ladder]) for ladder in self.tallies]
        by_input = np.concatenate(self.by_input, axis=1)
        return Ladders(
            inputs=self.inputs,
            filter_level=self.model.filter_level,
            n_sequences=self.n_sequences,
            n_tokens=self.n_tokens,
            window_kl=means[0],
            window_kl_se=errors[0],
            filter_kl=means[1],
            filter_kl_se=errors[1],
            window_by_input=by_input[0],
            filter_by_input=by_input[1],
            window_undefined=self.undefined[0],
            filter_undefined=self.undefined[1],
            undefined_model=self.undefined_model,
        )
