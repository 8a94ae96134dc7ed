"""`fit_grammar`: maximum likelihood by expectation and maximisation, from several starts."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import value_type
from ..checks import check_float, check_int, check_seed
from ..errors import ArgumentError, DTypeError
from ..exact import TreeModel
from ..grammar import Grammar
from ..tree import TreeStructure
from .checkpoint import State, read_state, write_state
from .data import Rows, check_roots, check_tokens, gather, largest
from .expectation import Engine, Expected
from .extrapolation import extrapolate
from .outcome import Fit, Progress
from .parameters import Array, Structure, find_arity, find_structure

__all__ = ["fit_grammar"]


def fit_grammar(
    leaves: Any,
    depth: int,
    *,
    mask: Any = None,
    roots: Any = None,
    weights: Any = None,
    n_classes: int | None = None,
    vocab_size: int | None = None,
    alphabets: Any = None,
    filter_level: int = 0,
    structure: Grammar | None = None,
    shared: bool | None = None,
    root_prior: Any = None,
    learn_prior: bool = False,
    init: Grammar | None = None,
    restarts: int | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    pseudo_count: float = 0.0,
    accelerate: bool = True,
    seed: int = 0,
    dtype: Any = "float64",
    backend: str | None = None,
    num_threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 30.0,
    progress: bool | Callable[[Progress], object] = True,
) -> Fit:
    """Learn a grammar from sequences by maximum likelihood, with or without their roots.

    Parameters
    ----------
    leaves : array_like of int, shape (n, arity**depth)
        Tokens; `vocab_size` stands for a hidden leaf. The arity is taken from the shape.
    depth : int
        Levels below the root.
    mask : array_like of bool, shape (n, arity**depth), optional
        True = hidden: summed over.
    roots : array_like of int, shape (n,), optional
        Root symbols, which then are evidence; -1 where one is not known.
    weights : array_like of float, shape (n,), optional
        How often each row counts; 1 by default. With all sequences and their probabilities, this is
        learning from infinitely many.
    n_classes, vocab_size : int, optional
        Alphabets of root and leaves. By default those of `structure` or `init`; else the largest
        token plus one and, for the root, the largest root plus one (without roots, `vocab_size`).
    alphabets : int, or sequence of depth - 1 int, optional
        Alphabets of the levels between; `vocab_size` by default.
    filter_level : int
        Of the model that is fitted.
    structure : Grammar, optional
        Whose rules are allowed; its probabilities are ignored. By default every rule is allowed.
    shared : bool, optional
        One table of rules for all levels, or one per level. By default as in `structure` or `init`;
        else shared where all alphabets are equal.
    root_prior : array_like of float, shape (n_classes,), optional
        Law of the root, or where its learning starts; uniform by default.
    learn_prior : bool
        Learn it, too.
    init : Grammar, optional
        Start of restart 0. Without `structure` its rules are those allowed.
    restarts : int, optional
        Starts; 5 by default, 1 with `init`. Those without `init` are drawn from a Dirichlet law of
        parameter 20 for every parent, as a function of (seed, number of the restart).
    max_iterations : int
        E-steps of each restart after its first.
    tolerance : float
        A restart has converged when an iteration gains less (with `accelerate`: the last three
        together), in nats per sequence.
    pseudo_count : float
        Added to the expected count of every allowed rule: the maximum a posteriori under a Dirichlet
        law of parameter ``1 + pseudo_count``. Above 0, every allowed rule keeps a probability.
    accelerate : bool
        Extrapolate after every second M-step, and go back where that is no better: often many times
        fewer iterations, none of which lowers the likelihood. False is plain EM.
    seed : int
    dtype : "float64" or "float32"
        Of the messages. Single precision is faster; its rounding (about 1e-6) may end a restart early
        and make the likelihood fall by as much.
    backend, num_threads
        As in `TreeModel.infer`. The result does not depend on `num_threads`.
    checkpoint : path-like, optional
        A file to keep the state in. If it is there, the fit goes on from it, to bitwise the same
        result; if it is finished, it is returned at once. It is also written when interrupted.
    checkpoint_seconds : float
        Between two writings of it.
    progress : bool or callable
        True: a line on standard error now and then, once two seconds have passed. A callable is given
        a `Progress` after every E-step.

    Returns
    -------
    Fit

    Raises
    ------
    GrammarError
        If a row is impossible whatever the probabilities of the allowed rules, or the arguments that
        name a grammar contradict each other.
    ArgumentError, ShapeError, DTypeError, DataError
        For other bad input, or a checkpoint that is damaged or of another fit.

    Notes
    -----
    The likelihood is a polynomial of the rules' probabilities with non-negative coefficients, at any
    filter level (channels are products of sums of them). So ``p <- p dlnL/dp``, normalised per
    parent, never lowers it (Baum and Eagon 1967), and ``p dlnL/dp`` are the expected uses of the rules
    (`TreeModel.expected_rule_counts`). A zero stays zero; a parent that is never used keeps its rules.
    Rows that come twice are computed once. Latent symbols are known up to their names only: `align`.

    References
    ----------
    Baum and Eagon, Bull. Amer. Math. Soc. 73 (1967) 360; Dempster, Laird and Rubin, J. R. Stat. Soc. B
    39 (1977) 1; Lari and Young, Comput. Speech Lang. 4 (1990) 35; Varadhan and Roland, Scand. J.
    Stat. 35 (2008) 335 (the extrapolation).

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.fit import fit_grammar
    >>> truth = hfilter.TreeModel(hfilter.Grammar.published(3, 1.0, 3), depth=2)
    >>> x = truth.sample(500, seed=0).leaves
    >>> fit = fit_grammar(x, depth=2, structure=truth.grammar, restarts=2)
    >>> fit.log_likelihood >= truth.log_prob(x).mean()  # at least as likely as the truth
    np.True_
    """
    began = time.perf_counter()
    task = _Task.of(
        leaves, depth, mask=mask, roots=roots, weights=weights, n_classes=n_classes,
        vocab_size=vocab_size, alphabets=alphabets, filter_level=filter_level, structure=structure,
        shared=shared, root_prior=root_prior, learn_prior=learn_prior, init=init, restarts=restarts,
        max_iterations=max_iterations, tolerance=tolerance, pseudo_count=pseudo_count, seed=seed,
        accelerate=accelerate, dtype=dtype, backend=backend, num_threads=num_threads,
    )  # fmt: skip
    every = check_float("checkpoint_seconds", checkpoint_seconds, 0.0)
    tell = _teller(progress, began)
    state = None
    if checkpoint is not None:
        state = read_state(checkpoint, task.problem(), len(task.begin().at))
    state = task.begin() if state is None else state
    saved = time.perf_counter()
    try:
        while state.restart < task.restarts:
            iteration = task.iterate(state)
            tell(Progress(iteration[0], task.restarts, *iteration[1:], time.perf_counter() - began))
            if checkpoint is not None and time.perf_counter() - saved >= every:
                write_state(checkpoint, task.problem(), state)
                saved = time.perf_counter()
    finally:  # also when interrupted
        if checkpoint is not None and state.traces:
            write_state(checkpoint, task.problem(), state)
    return Fit(
        task.model(state.best_at), state.log_likelihood, tuple(np.array(t) for t in state.traces), state.best,
        tuple(state.converged), task.rows.total, roots is not None,
    )  # fmt: skip


@dataclass(frozen=True)
class _Task:
    """All that a fit is a function of."""

    rows: Rows
    structure: Structure
    engine: Engine
    prior: Array
    learn_prior: bool
    start: Array | None
    restarts: int
    max_iterations: int
    tolerance: float
    pseudo_count: float
    seed: int
    accelerate: bool

    @classmethod
    def of(cls, leaves: Any, depth: int, **given: Any) -> _Task:
        """Check every argument."""
        depth = check_int("depth", depth, 1, 62)
        tokens = check_tokens(leaves)
        arity = find_arity(tokens.shape[1], depth)
        roots = check_roots(given["roots"], len(tokens), given["n_classes"])
        seen = (largest(tokens, given["mask"]), 0 if roots is None else int(roots.max()) + 1)
        names = ("n_classes", "vocab_size", "alphabets")
        allowed = find_structure(
            given["structure"], given["init"], given["shared"], depth, arity,
            **{name: given[name] for name in names}, seen=seen,
        )  # fmt: skip
        k = given["filter_level"]
        tree = TreeStructure(allowed, depth, k, given["root_prior"])
        roots = check_roots(given["roots"], len(tokens), tree.n_classes)
        for name in ("learn_prior", "accelerate"):
            if not isinstance(given[name], (bool, np.bool_)):
                raise DTypeError(f"{name} must be True or False, got {given[name]!r}")
        structure = Structure(allowed, tree.filter_level)
        init = given["init"]
        wanted = given["restarts"]
        options = {"dtype": str(value_type(given["dtype"]))}
        options |= {name: given[name] for name in ("backend", "num_threads")}
        return cls(
            gather(tree, leaves, given["mask"], roots, given["weights"]),
            structure,
            Engine(depth, tree.filter_level, options),
            np.array(tree.root_prior),
            bool(given["learn_prior"]),
            None if init is None else structure.probabilities(init, "init"),
            (5 if init is None else 1) if wanted is None else check_int("restarts", wanted, 1),
            check_int("max_iterations", given["max_iterations"], 0),
            check_float("tolerance", given["tolerance"], 0.0),
            check_float("pseudo_count", given["pseudo_count"], 0.0),
            check_seed("seed", given["seed"]),
            bool(given["accelerate"]),
        )

    def problem(self) -> dict[str, Any]:
        """What a checkpoint must agree with, as plain JSON values."""
        allowed = self.structure.grammar(self.structure.draw(0, 0))
        return {
            "leaves, mask, roots or weights": self.rows.digest(),
            "depth": self.engine.depth,
            "filter_level": self.engine.filter_level,
            "structure": allowed.fingerprint,
            "init": None if self.start is None else _digest(self.start),
            "root_prior": self.prior.tolist(),
            "dtype": self.engine.options["dtype"],
            **{
                name: getattr(self, name)
                for name in (
                    "learn_prior", "restarts", "max_iterations", "tolerance", "pseudo_count", "seed",
                )
            },
        }  # fmt: skip

    def begin(self) -> State:
        """Before the first iteration of the first restart."""
        at = self._start(0)
        return State(at, at, np.empty((0, len(at))), np.empty((0, len(at))))

    def _start(self, restart: int) -> Array:
        given = self.start if restart == 0 else None
        theta = self.structure.draw(self.seed, restart) if given is None else given
        return np.concatenate([theta, self.prior])

    def model(self, at: Array) -> TreeModel:
        """The model at a point."""
        theta, prior = np.split(at, [self.structure.n_rules])
        return self.engine.model(self.structure.grammar(theta), prior)

    def iterate(self, state: State) -> tuple[int, int, float, float]:
        """One E-step and what follows from it; restart, iteration, value, gain."""
        restart = state.restart
        theta, prior = np.split(state.at, [self.structure.n_rules])
        grammar = self.structure.grammar(theta)
        found = self.engine.expect(grammar, prior, self.rows, self.learn_prior)
        value = self._objective(found, theta)
        if len(state.traces) == restart:
            state.traces.append([])
        trace = state.traces[restart]
        gain = value - trace[-1] if trace else np.nan
        if len(state.fallback) and not gain >= 0:
            # Extrapolated too far: back to where the last M-step led.
            state.at, state.fallback = state.fallback[0], state.fallback[:0]
            state.step = max(1.0, state.step / 4)
            state.rejected += 1
            return restart, len(trace) - 1 + state.rejected, trace[-1], 0.0
        state.fallback = state.fallback[:0]
        trace.append(value)
        # A cycle is two M-steps and an extrapolation; one of them alone may stand still by chance.
        back = len(trace) - (4 if self.accelerate else 2)
        converged = back >= 0 and value - trace[back] < self.tolerance
        iteration = len(trace) - 1 + state.rejected
        if converged or iteration >= self.max_iterations:
            if state.best < 0 or value > state.traces[state.best][-1]:
                state.best, state.best_at = restart, state.at
                state.log_likelihood = found.log_likelihood / self.rows.total
            state.converged.append(converged)
            state.restart += 1
            state.at, state.memory = self._start(state.restart), state.memory[:0]
            state.step, state.rejected = 1.0, 0
        else:
            self._move(state, found)
        return restart, iteration, value, float(gain)

    def _move(self, state: State, found: Expected) -> None:
        """The M-step, and after every second one an extrapolation."""
        theta, prior = np.split(state.at, [self.structure.n_rules])
        counts = np.zeros(self.structure.n_rules)
        counts[theta > 0] = found.rules
        theta = self.structure.normalise(counts, theta, self.pseudo_count)
        if self.learn_prior:
            prior = found.roots / found.roots.sum()
            prior[prior < self.structure.smallest] = 0.0
        following = np.concatenate([theta, prior])
        state.memory = np.concatenate([state.memory, state.at[None]])
        state.at = following
        if self.accelerate and len(state.memory) == 2:
            far, state.step = extrapolate(
                state.memory[0], state.memory[1], following, self.structure.starts(),
                state.step, self.structure.smallest,
            )  # fmt: skip
            state.memory = state.memory[:0]
            if far is not None:
                state.at, state.fallback = far, following[None]

    def _objective(self, found: Expected, theta: Array) -> float:
        value = found.log_likelihood
        if self.pseudo_count:
            # Rules without a start have none at the first iteration: ln 0, from which all is a gain.
            with np.errstate(divide="ignore"):
                value += self.pseudo_count * float(np.log(theta).sum())
        return value / self.rows.total


def _digest(values: Array) -> str:
    return hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()


def _teller(
    progress: bool | Callable[[Progress], object], began: float
) -> Callable[[Progress], object]:
    if callable(progress):
        return progress
    if not isinstance(progress, (bool, np.bool_)):
        raise ArgumentError(f"progress must be True, False or a callable, got {progress!r}")
    shown = began

    def line(now: Progress) -> None:
        nonlocal shown
        if time.perf_counter() - shown < 2.0:
            return
        shown = time.perf_counter()
        print(
            f"fit: restart {now.restart + 1} of {now.restarts}, iteration {now.iteration}: "
            f"{now.log_likelihood:.6f} nats, gain {now.gain:.1e}, {now.seconds:.0f} s",
            file=sys.stderr,
        )

    return line if progress else lambda now: None
