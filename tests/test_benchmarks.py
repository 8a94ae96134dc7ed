"""The benchmark harness times nothing that is wrong: its judges reject answers that are nearly right."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parents[1] / "benchmarks"
CHEAT = '''
"""Contestants for a test: one answers wrongly, and none may be timed before all are checked."""

from __future__ import annotations

import numpy as np
from cases import OURS
from process import Offer

import hfilter


def about():
    return {}


def offers(case, evidence):
    model = case.tree()
    good = lambda: model.infer(log_fields=evidence).leaves
    bad = lambda: model.infer(log_fields=evidence).leaves * np.float32(1 + OFF)
    return [Offer(OURS, good, case.n), Offer("hfilter, hasty", bad, case.n)]
'''


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The harness's modules, imported by name as its own commands do, and gone afterwards."""
    if not HERE.is_dir():
        pytest.skip("benchmarks/ is not part of this copy of the sources")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # tests/cases.py has the same name
    kept = {
        name: sys.modules.pop(name)
        for name in ("cases", "process", "contest")
        if name in sys.modules
    }
    yield importlib.import_module("contest"), importlib.import_module("cases")
    for name in set(sys.modules) - before | {"cases", "process", "contest"}:
        if getattr(sys.modules.get(name), "__file__", None) and Path(
            str(sys.modules[name].__file__)
        ).is_relative_to(HERE):
            del sys.modules[name]
    sys.modules.update(kept)


@pytest.mark.parametrize("off", [0.0, 1e-4])
def test_a_wrong_answer_is_not_timed(harness: Any, tmp_path: Path, off: float) -> None:
    contest, cases = harness
    (tmp_path / "peer_cheat.py").write_text(CHEAT.replace("OFF", str(off)))
    case = cases.Case("test", "beliefs", "published", 3, 200, ("cheat",))
    with contest.Contest(["cheat"], paths={"cheat": str(tmp_path)}) as running:
        if off:
            with pytest.raises(cases.WrongAnswer, match="hasty: off by"):
                running.run(case, rounds=2, seconds=0.001)
        else:
            results = running.run(case, rounds=2, seconds=0.001)
            assert [len(r.rates) for r in results] == [2, 2]


@pytest.mark.parametrize("wrong", ["one pair", "shape", "nan"])
def test_the_judges_reject(harness: Any, tmp_path: Path, wrong: str) -> None:
    _, cases = harness
    case = cases.Case("test", "root", "published", 3, 500, ())
    cases.write_inputs(case, tmp_path)
    exact = np.load(tmp_path / "exact.npy")
    cases.check(case, "torch", exact, tmp_path)
    bad = exact.copy()
    if wrong == "one pair":
        bad[7] += 2e-4
    elif wrong == "nan":
        bad[-1, 0] = np.nan
    else:
        bad = bad[:, :-1]
    with pytest.raises(cases.WrongAnswer, match="torch"):
        cases.check(case, "torch", bad, tmp_path)


def test_samplers_are_held_to_joint_laws(harness: Any, tmp_path: Path) -> None:
    """Leaves with the right marginals, but of different sequences, are rejected."""
    _, cases = harness
    case = cases.Case("test", "sample", "q16", 2, 20_000, ())
    leaves = case.tree().sample(case.n, seed=3).leaves
    cases.check(case, "torch", leaves, tmp_path)
    mixed = leaves.copy()
    mixed[:, 1] = np.roll(mixed[:, 1], 1)
    with pytest.raises(cases.WrongAnswer):
        cases.check(case, "torch", mixed, tmp_path)
    biased = leaves.copy()
    biased[:1500] = leaves[0]
    with pytest.raises(cases.WrongAnswer, match="errors"):
        cases.check(case, "torch", biased, tmp_path)
    with pytest.raises(cases.WrongAnswer, match="shape"):
        cases.check(case, "torch", leaves[:, :2], tmp_path)


@pytest.mark.parametrize(
    ("head", "slower"), [((80.0, 82.0, 81.0), True), ((80.0, 120.0, 100.0), False)]
)
def test_a_slower_revision_is_told_from_noise(
    harness: Any, head: tuple[float, ...], slower: bool
) -> None:
    contest, cases = harness
    compare = importlib.import_module("compare")
    case = cases.Case("test", "root", "published", 3, 1, ())
    pair = [
        contest.Result(case, "head", "", 1, list(head)),
        contest.Result(case, "base", "", 1, [100.0, 101.0, 99.0]),
    ]
    assert compare._row(case, pair, 0.9) is slower
