"""Fits are functions of their arguments, go on where they stopped, and refuse what cannot be meant."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfilter import Grammar, TreeModel
from hfilter.errors import (
    ArgumentError,
    DataError,
    DTypeError,
    GrammarError,
    HFilterError,
    ShapeError,
)
from hfilter.fit import Fit, Progress, fit_grammar
from hfilter.fit.extrapolation import extrapolate

QUIET: dict[str, Any] = {"progress": False, "num_threads": 1}
TRUTH = TreeModel(Grammar.published(3, 1.0, 3), 2)
LEAVES = np.asarray(TRUTH.sample(200, seed=0).leaves)
ROOTS = np.asarray(TRUTH.sample(200, seed=0).roots).astype(int)


def same(a: Fit, b: Fit) -> bool:
    return (
        a.grammar == b.grammar
        and a.log_likelihood == b.log_likelihood
        and (a.root_prior == b.root_prior).all()
        and a.best_restart == b.best_restart
        and a.converged == b.converged
        and len(a.traces) == len(b.traces)
        and all(np.array_equal(x, y) for x, y in zip(a.traces, b.traces, strict=True))
    )


def test_the_same_arguments_give_the_same_fit() -> None:
    first = fit_grammar(LEAVES, 2, restarts=2, **QUIET)
    assert same(first, fit_grammar(LEAVES, 2, restarts=2, progress=False, num_threads=2))
    order = np.random.default_rng(0).permutation(len(LEAVES))
    assert same(first, fit_grammar(LEAVES[order], 2, restarts=2, **QUIET))
    assert not same(first, fit_grammar(LEAVES, 2, restarts=2, seed=1, **QUIET))
    more = fit_grammar(LEAVES, 2, restarts=3, **QUIET)
    assert all(np.array_equal(x, y) for x, y in zip(first.traces, more.traces, strict=False))
    assert more.best_restart == np.argmax([t[-1] for t in more.traces])


def test_the_plain_text_gives_the_same() -> None:
    arguments = {"max_iterations": 3, "restarts": 1, "roots": ROOTS[:40], "filter_level": 1}
    first, plain = (
        fit_grammar(LEAVES[:40], 2, backend=backend, **arguments, **QUIET)
        for backend in (None, "python")
    )
    assert np.abs(plain.grammar.tensor() - first.grammar.tensor()).max() < 1e-12


def test_single_precision_is_near() -> None:
    fits = [fit_grammar(LEAVES, 2, restarts=1, dtype=d, **QUIET) for d in ("float64", "float32")]
    assert abs(fits[0].log_likelihood - fits[1].log_likelihood) < 1e-4


@pytest.mark.parametrize("shared", [True, False])
def test_weights_are_repetitions(shared: bool) -> None:
    rng = np.random.default_rng(1)
    times = rng.integers(0, 4, len(LEAVES))
    arguments: dict[str, Any] = {"shared": shared, "restarts": 1, "max_iterations": 10, **QUIET}
    weighted = fit_grammar(LEAVES, 2, weights=times, roots=ROOTS, **arguments)
    rows = np.repeat(np.arange(len(LEAVES)), times)
    repeated = fit_grammar(LEAVES[rows], 2, roots=ROOTS[rows], **arguments)
    assert same(weighted, repeated)
    assert weighted.n_sequences == times.sum()


def test_many_rules_are_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"restarts": 1, "max_iterations": 3, **QUIET}
    leaves = np.unique(TreeModel(Grammar.dense(6), 2).sample(300, 0).leaves, axis=0)
    for weights in (None, np.linspace(1, 2, len(leaves))):
        whole = fit_grammar(leaves, 2, weights=weights, **arguments)
        with monkeypatch.context() as patch:
            patch.setattr("hfilter.fit.expectation._BLOCK", 17 * 216)
            parts = fit_grammar(leaves, 2, weights=weights, **arguments)
        assert np.abs(parts.grammar.tensor() - whole.grammar.tensor()).max() < 1e-13


def test_acceleration_reaches_more_in_fewer_steps() -> None:
    fits = [fit_grammar(LEAVES, 2, restarts=3, accelerate=a, **QUIET) for a in (False, True)]
    assert sum(fits[1].n_iterations) < sum(fits[0].n_iterations)
    for plain, fast in zip(fits[0].traces, fits[1].traces, strict=True):
        assert (plain[:2] == fast[:2]).all(), "both begin with M-steps"
        assert (np.diff(fast) >= -1e-9).all()


def test_an_extrapolated_point_keeps_rows_and_zeros() -> None:
    first = np.array([0, 3, 5])
    a = np.array([0.5, 0.5, 0.0, 0.3, 0.7, 1.0])
    b = np.array([0.55, 0.45, 0.0, 0.3, 0.7, 1.0])
    c = np.array([0.595, 0.405, 0.0, 0.3, 0.7, 1.0])
    far, longest = extrapolate(a, b, c, first, 4.0, 1e-100)
    assert far is not None
    assert longest == 16.0
    assert far[0] > c[0] + 0.05
    assert far[2] == 0.0
    assert abs(far[:3].sum() - 1) < 1e-15
    assert (far[3:] == c[3:]).all()
    assert extrapolate(a, a, a, first, 4.0, 1e-100)[0] is None
    # Geometric convergence to a limit: a step long enough reaches it.
    limit, rate = np.array([0.8, 0.2]), 0.95
    angles = np.arcsin(np.sqrt(0.8)) - 1e-3 * rate ** np.arange(3)
    points = [np.array([np.sin(x) ** 2, np.cos(x) ** 2]) for x in angles]
    far, _ = extrapolate(*points, np.array([0]), 1e6, 1e-100)
    assert far is not None
    assert np.abs(far - limit).max() < 0.05 * np.abs(points[2] - limit).max()


class Stop(Exception):
    """Someone pressed Ctrl-C."""


def stop_after(calls: int) -> Any:
    counter = itertools.count(1)

    def tell(now: Progress) -> None:
        if next(counter) >= calls:
            raise Stop

    return tell


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_fit_goes_on_where_it_stopped(tmp_path: Path, accelerate: bool) -> None:
    arguments: dict[str, Any] = {
        "restarts": 2, "max_iterations": 11, "learn_prior": True, "accelerate": accelerate,
        "num_threads": 1, "shared": False, "filter_level": 1,
    }  # fmt: skip
    whole = fit_grammar(LEAVES, 2, progress=False, **arguments)
    for calls in (1, 2, 3, 4, 5, 9, 13, 17):
        path = tmp_path / f"{calls}.npz"
        with pytest.raises(Stop):
            fit_grammar(LEAVES, 2, checkpoint=path, progress=stop_after(calls), **arguments)
        assert path.exists()
        assert same(whole, fit_grammar(LEAVES, 2, checkpoint=path, progress=False, **arguments))
        # Finished: nothing is computed again.
        again = fit_grammar(LEAVES, 2, checkpoint=path, progress=stop_after(1), **arguments)
        assert same(whole, again)
    assert {p.suffix for p in tmp_path.iterdir()} == {".npz"}, "nothing is left behind"


def test_rejected_points_count_when_a_fit_goes_on(tmp_path: Path) -> None:
    """What was tried in vain is iterations, too, and none of the trace."""
    arguments: dict[str, Any] = {"restarts": 1, "max_iterations": 40, "num_threads": 1}
    arguments |= {"shared": False, "filter_level": 1, "tolerance": 0.0}
    told: list[Progress] = []
    whole = fit_grammar(LEAVES, 2, progress=told.append, **arguments)
    assert 38 <= told[-1].iteration <= 41
    assert whole.n_iterations[0] < told[-1].iteration - 1, "some were rejected"
    path = tmp_path / "c"
    with pytest.raises(Stop):
        fit_grammar(LEAVES, 2, checkpoint=path, progress=stop_after(38), **arguments)
    assert same(whole, fit_grammar(LEAVES, 2, checkpoint=path, progress=False, **arguments))


def test_a_fit_stopped_again_and_again_ends(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"restarts": 2, "max_iterations": 6, "num_threads": 1}
    whole = fit_grammar(LEAVES, 2, progress=False, **arguments)
    for _ in range(20):
        try:
            found = fit_grammar(
                LEAVES, 2, checkpoint=tmp_path / "c", progress=stop_after(1), checkpoint_seconds=0,
                **arguments,
            )  # fmt: skip
        except Stop:
            continue
        break
    assert same(whole, found)


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    fit_grammar(LEAVES, 2, restarts=1, max_iterations=2, checkpoint=path, **QUIET)
    with pytest.raises(ArgumentError, match=r"differs in seed; give another name"):
        fit_grammar(LEAVES, 2, restarts=1, max_iterations=2, seed=1, checkpoint=path, **QUIET)
    with pytest.raises(ArgumentError, match="leaves, mask, roots or weights"):
        fit_grammar(LEAVES[1:], 2, restarts=1, max_iterations=2, checkpoint=path, **QUIET)
    content = path.read_bytes()
    for damage in (content[:-40], b"", b"hello", content[:100] + b"\0" * 50 + content[150:]):
        path.write_bytes(damage)
        with pytest.raises(DataError, match="delete it to begin anew"):
            fit_grammar(LEAVES, 2, restarts=1, max_iterations=2, checkpoint=path, **QUIET)
        assert path.read_bytes() == damage, "what is not ours is left alone"
    with pytest.raises(DataError):
        fit_grammar(LEAVES, 2, checkpoint=tmp_path, **QUIET)
    with pytest.raises(DataError, match="cannot write"):
        fit_grammar(LEAVES, 2, checkpoint=tmp_path / "none" / "c", **QUIET)
    TRUTH.grammar.save(path)
    with pytest.raises(DataError, match="not a checkpoint"):
        fit_grammar(LEAVES, 2, checkpoint=path, **QUIET)


def test_progress_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    told: list[Progress] = []
    fit = fit_grammar(LEAVES, 2, restarts=2, max_iterations=5, progress=told.append, num_threads=1)
    assert [(p.restart, p.iteration) for p in told] == [(r, i) for r in (0, 1) for i in range(6)]
    assert told[5].log_likelihood == fit.traces[0][-1]
    assert np.isnan(told[0].gain)
    fit_grammar(LEAVES, 2, restarts=1, max_iterations=3)
    assert capsys.readouterr() == ("", ""), "what is quick is done quietly"
    clock = itertools.count(step=1.5)
    monkeypatch.setattr("hfilter.fit.em.time.perf_counter", lambda: next(clock))
    fit_grammar(LEAVES, 2, restarts=1, max_iterations=3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "restart 1 of 1, iteration 1" in err


def test_sizes_follow_from_what_is_given() -> None:
    arguments: dict[str, Any] = {"restarts": 1, "max_iterations": 0, **QUIET}
    assert fit_grammar(LEAVES, 2, **arguments).grammar.is_shared
    assert fit_grammar(LEAVES, 1, **arguments).model.arity == 4
    found = fit_grammar(LEAVES, 2, alphabets=5, n_classes=2, **arguments)
    assert found.model.alphabets == (2, 5, 3)
    found = fit_grammar(LEAVES, 2, roots=ROOTS + 4, **arguments)
    assert found.model.alphabets == (int(ROOTS.max()) + 5, 3, 3)
    found = fit_grammar(LEAVES, 2, shared=False, **arguments)
    assert found.grammar.n_levels == 2
    found = fit_grammar(LEAVES, 2, structure=TRUTH.grammar, shared=False, **arguments)
    assert found.grammar.n_levels == 2
    assert found.grammar.n_rules == 18
    trace = found.traces[0]
    assert len(trace) == 1
    assert "not converged" in repr(found)


BAD: tuple[tuple[dict[str, Any], type[HFilterError], str], ...] = (
    ({"leaves": LEAVES.astype(float)}, DTypeError, "leaves must be integers"),
    ({"leaves": LEAVES[:0]}, ShapeError, "at least one row"),
    ({"leaves": LEAVES[:, :3]}, ShapeError, "3 leaves are no such power"),
    ({"leaves": -LEAVES.astype(int), "vocab_size": 3}, ArgumentError, "leaves must be tokens"),
    ({"depth": 0}, ArgumentError, "depth"),
    ({"vocab_size": 1}, ArgumentError, "leaves must be tokens 0"),
    ({"mask": LEAVES}, DTypeError, "mask must be boolean"),
    ({"mask": LEAVES[1:] > 0}, ShapeError, "mask must have the shape"),
    ({"roots": ROOTS[1:]}, ShapeError, r"roots must have shape \(200,\)"),
    ({"roots": ROOTS / 2}, DTypeError, "roots must be integers"),
    ({"roots": ROOTS - 2}, ArgumentError, "-1 where the root is not known"),
    ({"roots": ROOTS, "n_classes": 2}, ArgumentError, "roots must be symbols 0 … 1"),
    ({"weights": np.ones(3)}, ShapeError, "weights must have shape"),
    ({"weights": -np.ones(200)}, ArgumentError, "non-negative"),
    ({"weights": np.zeros(200)}, ArgumentError, "not all zero"),
    ({"weights": ["a"] * 200}, DTypeError, "weights must be real"),
    ({"filter_level": 3}, ArgumentError, "filter_level"),
    ({"structure": TRUTH.grammar.tensor()}, DTypeError, "structure must be a hfilter.Grammar"),
    ({"structure": Grammar.published(4, 1.0, 0), "vocab_size": 3}, ArgumentError, "must be 4"),
    ({"structure": Grammar.parity(3)}, ShapeError, r"3\*\*2 = 9 columns"),
    (
        {"leaves": LEAVES + 1, "structure": Grammar.parity()},
        ArgumentError,
        "leaves must be tokens 0 … 1",
    ),
    ({"init": Grammar.dense(3), "structure": TRUTH.grammar}, GrammarError, "does not allow"),
    ({"init": Grammar.dense(4), "structure": Grammar.dense(3)}, ShapeError, "3 parents"),
    ({"shared": "yes"}, DTypeError, "shared must be"),
    ({"shared": True, "n_classes": 2}, ArgumentError, "fit with shared=False"),
    (
        {"shared": True, "structure": Grammar.random_hierarchy(3, 2, 2)},
        GrammarError,
        "one per level",
    ),
    ({"structure": Grammar.random_hierarchy(3, 2, 3)}, ArgumentError, "depth must be 3"),
    ({"alphabets": [2, 2]}, ShapeError, "1 of them, got 2"),
    ({"alphabets": 60000, "n_classes": 60000}, GrammarError, "give the rules that are allowed"),
    ({"root_prior": [1.0]}, ShapeError, "root_prior"),
    ({"root_prior": [1.0, 0, 0], "roots": ROOTS}, GrammarError, "root_prior excludes root"),
    ({"learn_prior": 1}, DTypeError, "learn_prior"),
    ({"accelerate": None}, DTypeError, "accelerate"),
    ({"restarts": 0}, ArgumentError, "restarts"),
    ({"max_iterations": -1}, ArgumentError, "max_iterations"),
    ({"tolerance": np.nan}, ArgumentError, "tolerance"),
    ({"pseudo_count": -1}, ArgumentError, "pseudo_count"),
    ({"seed": -1}, ArgumentError, "seed"),
    ({"dtype": "int8"}, DTypeError, "dtype"),
    ({"backend": "abacus"}, HFilterError, "abacus"),
    ({"progress": "no"}, ArgumentError, "progress"),
)


@pytest.mark.parametrize(("change", "error", "words"), BAD, ids=[str(b[0])[:30] for b in BAD])
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {"leaves": LEAVES, "depth": 2, **QUIET, **change}
    with pytest.raises(error, match=words):
        fit_grammar(**arguments)


@pytest.mark.parametrize("k", [0, 1])
def test_impossible_rows_are_named(k: int) -> None:
    """With other rules than the truth's, and with a root that cannot be."""
    tensor = np.zeros((3, 3, 3))
    tensor[:, 0, 0] = 1.0
    leaves = np.zeros((5, 4), int)
    leaves[3, 1] = 2
    with pytest.raises(GrammarError, match="row 3 of leaves is impossible: no tree"):
        fit_grammar(leaves, 2, structure=Grammar.from_tensor(tensor), filter_level=k, **QUIET)
    wrong = (ROOTS + 1) % 3
    with pytest.raises(GrammarError, match=r"row \d+ of leaves with root \d is impossible"):
        fit_grammar(LEAVES, 2, roots=wrong, structure=TRUTH.grammar, **QUIET)
