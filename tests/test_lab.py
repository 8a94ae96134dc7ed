"""Studies of the laboratory: small ones run whole, and each tool on networks with known answers."""

from __future__ import annotations

import csv
import json
import signal
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

from hfilter.cli import main

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from hfilter.analysis.construction import ConstructedTransformer
from hfilter.errors import ArgumentError, DataError
from hfilter.experiments.lab import (
    accuracies,
    attention,
    probes,
    runs,
    scatter,
    staircase,
    workers,
)
from hfilter.experiments.lab.gallery import STUDIES
from hfilter.experiments.lab.recipes import recipe
from hfilter.experiments.lab.runs import Law, Run, Trained, Workshop
from hfilter.experiments.lab.study import Options, Study, Table, perform
from hfilter.learn.checkpoint import save_encoder

SMOKE = Options(preset="smoke")


def test_every_study_leaves_its_files_and_finds_its_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test and not one per study: the studies share their runs, and workers share nothing."""
    argv = ["figure", "all", "--preset", "smoke", "--out", str(tmp_path), "--quiet"]
    assert main(argv) == 0
    for name in STUDIES:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF"), name
        with open(tmp_path / f"{name}.csv", newline="") as stream:
            rows = list(csv.reader(stream))
        assert len(rows) > 1, name
        assert all(len(row) == len(rows[0]) for row in rows), name
        about = json.loads((tmp_path / f"{name}.json").read_text())
        assert about["study"] == name
        assert about["options"]["preset"] == "smoke"
        assert about["says"], name
        assert bool(about["compute"]["runs"]) == bool(STUDIES[name].runs(SMOKE)), name
        assert about["made_by"]["hfilter"]

    def refuse(*args: object) -> None:
        raise AssertionError("a run was trained again")

    monkeypatch.setattr("hfilter.experiments.lab.runs._train_run", refuse)
    before = (tmp_path / "accuracy-matrix.csv").read_bytes()
    perform(STUDIES["accuracy-matrix"], SMOKE, tmp_path, quiet=True)
    assert (tmp_path / "accuracy-matrix.csv").read_bytes() == before
    with pytest.raises(ArgumentError, match="other options"):
        perform(STUDIES["accuracy-matrix"], replace(SMOKE, seed=1), tmp_path, quiet=True)
    assert (tmp_path / "accuracy-matrix.csv").read_bytes() == before


def test_help_names_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure", "--help"]) == 0
    text = capsys.readouterr().out
    for study in STUDIES.values():
        assert f"  {study.name} " in text
    assert main(["figure", "depth", "--about"]) == 0
    assert STUDIES["depth"].about in capsys.readouterr().out


def test_studies_share_runs() -> None:
    # The scatter is drawn from the staircase's run, the attention maps from the matrix's.
    assert STUDIES["scatter"].runs(SMOKE)[0] in STUDIES["staircase"].runs(SMOKE)
    assert STUDIES["probes"].runs(SMOKE)[0] in STUDIES["staircase"].runs(SMOKE)
    matrix = STUDIES["accuracy-matrix"].runs(SMOKE)
    assert all(run in matrix for run in STUDIES["attention"].runs(SMOKE))


def test_a_run_is_known_by_all_that_decides_it() -> None:
    law = Law(depth=2)
    run = recipe(SMOKE, law)
    others = [
        recipe(SMOKE, law, seed=1),
        recipe(SMOKE, replace(law, filter_level=1)),
        recipe(SMOKE, replace(law, grammar_seed=1)),
        recipe(SMOKE, law, encoder={"n_layers": 1}),
        recipe(SMOKE, law, steps=7),
        recipe(SMOKE, law, source=run),
        recipe(SMOKE, law, source=run, freeze=True),
    ]
    assert len({run.digest, *(other.digest for other in others)}) == len(others) + 1
    same = replace(run, training=replace(run.training, threads=2))
    assert same.digest == run.digest == recipe(SMOKE, law).digest


def test_side_by_side_is_the_same(tmp_path: Path) -> None:
    law = Law(depth=2)
    runs = [recipe(SMOKE, law, seed=seed) for seed in (0, 1)]
    runs.append(recipe(SMOKE, law, "root", source=runs[0], freeze=True))
    alone = Workshop(tmp_path / "a", 1, quiet=True).train(runs)
    both = Workshop(tmp_path / "b", 2, quiet=True).train(runs)
    for one, other in zip(alone, both, strict=True):
        weights = (folder / "encoder.safetensors" for folder in (one.folder, other.folder))
        assert len({path.read_bytes() for path in weights}) == 1
        assert [r["kl"] for r in one.history] == [r["kl"] for r in other.history]
    # Frozen: the encoder of the third run is that of the first, but for the read-out.
    before, after = (both[i].encoder.state_dict() for i in (0, 2))
    for name in before:
        if name.startswith("layers."):
            assert bool((before[name] == after[name]).all()), name


def test_measured_once(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, quiet=True)
    (one,) = shop.train([recipe(SMOKE, Law(depth=2))])
    asked = []

    def work() -> dict[str, list[float]]:
        asked.append(1)
        return {"x": [1.0, 0.1]}

    first = shop.measured(one, "x", {"rows": 5}, work)
    assert shop.measured(one, "x", {"rows": 5}, work) == first == {"x": [1.0, 0.1]}
    assert len(asked) == 1
    shop.measured(one, "x", {"rows": 6}, work)
    assert len(asked) == 2


def test_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = STUDIES["accuracy-matrix"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        perform(study, SMOKE, tmp_path / "file", quiet=True)
    for argv, words in (
        (["figure", "stairs"], "NAME must be one of staircase"),
        (["figure"], "NAME"),
        (["figure", "depth", "--seeds", "0"], ">= 1"),
        (["figure", "depth", "--preset", "huge"], "invalid choice"),
        (["figure", "depth", "--sigma", "-1", "--preset", "smoke"], "sigma"),
    ):
        assert main([*argv, *(["--out", str(tmp_path / "x")] if len(argv) > 1 else [])]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="preset must be"):
        Options(preset="large")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="n_seeds"):
        Options(n_seeds=0)


class Known(Workshop):
    """A workshop whose runs are finished with belief propagation itself."""

    def train(self, runs: object) -> list[Trained]:
        done = []
        for run in runs:  # type: ignore[attr-defined]
            assert isinstance(run, Run)
            folder = self.path(run)
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            network = ConstructedTransformer(run.law.model, run.encoder.readout)  # type: ignore[arg-type]
            save_encoder(folder / "encoder.safetensors", network)
            save_encoder(folder / "checkpoints" / "step-0000001.safetensors", network)
            done.append(Trained(run, folder, [{"elapsed": 0.0}]))
        return done


def measured(study: Study, tmp_path: Path) -> dict[str, Table]:
    """A study's tables where every network is exact."""
    shop = Known(tmp_path, quiet=True)
    return study.measure(SMOKE, shop, shop.train(study.runs(SMOKE)))


def test_staircase_of_an_exact_network(tmp_path: Path) -> None:
    table = measured(staircase.STUDY, tmp_path)["main"]
    for inputs in ("k = 0", "uniform"):
        (value,) = table.column("value", inputs=inputs, measure="kl", rung="BP_0")
        assert abs(value) < 1e-9
    (value,) = table.column("value", inputs="own", measure="kl", rung="W_2")
    assert abs(value) < 1e-9
    (value,) = table.column("value", inputs="k = 0", measure="kl", rung="BP_2")
    assert value > 0.05
    network = table.column("value", inputs="k = 0", measure="accuracy", rung="network")
    matched = table.column("value", inputs="k = 0", measure="accuracy", rung="matched")
    assert network == matched


def test_matrix_of_exact_networks(tmp_path: Path) -> None:
    table = measured(accuracies.STUDY, tmp_path)["main"]
    for task in ("mlm", "root"):
        for k in (0, 1, 2):
            for other in (0, 1, 2):
                where = {"task": task, "train_level": k, "test_level": other}
                network = table.column("value", measure="accuracy", **where)
                exact = table.column("value", measure="exact_accuracy", **where)
                assert network == pytest.approx(exact, abs=1e-12)
                (kl,) = table.column("value", measure="kl_train", **where)
                assert abs(kl) < 1e-9


def test_attention_of_exact_networks(tmp_path: Path) -> None:
    table = measured(attention.STUDY, tmp_path)["main"]
    for k in (0, 1, 2):
        for layer in (0, 1):
            where = {"filter_level": k, "layer": layer, "height": layer + 1}
            assert table.column("inside", **where) == pytest.approx([1.0])
            assert table.column("per_input", **where) == pytest.approx([0.0], abs=1e-12)
            where["height"] = 2 - layer
            assert table.column("inside", **where) == pytest.approx([0.0])


def test_probes_of_an_exact_network(tmp_path: Path) -> None:
    tables = measured(probes.STUDY, tmp_path)
    messages = tables["messages"]
    for height in (0, 1, 2):
        for layer in (0, 1, 2):
            (r2,) = messages.column("r2", layer=layer, height=height, kind="upward")
            # After m layers every message up to height m is there, in known places.
            assert (r2 > 0.9) or layer < height, (layer, height, r2)
    assert messages.column("r2", layer=0, height=2, kind="upward")[0] < 0.9


def test_scatter_of_an_exact_network(tmp_path: Path) -> None:
    points = measured(scatter.STUDY, tmp_path)["points"]
    exact, network = (
        np.array(points.column(name, rung="BP_0")) for name in ("p_exact", "p_network")
    )
    assert len(exact) > 50
    np.testing.assert_allclose(network, exact, atol=2e-6)


def test_ctrl_c_ends_what_other_processes_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, before = time.monotonic(), active_children()
    law = Law(depth=2)
    long = [recipe(SMOKE, law, seed=seed, steps=10**8) for seed in range(3)]
    log = tmp_path / long[0].name / "log.jsonl"

    def interrupted() -> None:
        with workers.pool(1) as pool:
            futures = [pool.submit(runs._train_in_worker, tmp_path, run) for run in long]
            while not (log.exists() and log.read_text()):
                assert not futures[0].done(), futures[0].exception()
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 120
    assert [child for child in active_children() if child not in before] == []
    assert not list(tmp_path.rglob("*.part"))
    assert not any((tmp_path / run.name).exists() for run in long[1:])
    # A worker that was told to stop takes up no other run.
    trained = []

    def stopped(*args: object) -> None:
        trained.append(args)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(runs, "_train_run", stopped)
    monkeypatch.setattr(workers._Worker, "stopped", False)
    previous = signal.signal(signal.SIGTERM, workers._stop_worker)
    try:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                runs._train_in_worker(Path(), recipe(SMOKE, Law(depth=2)))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert len(trained) == 1


def test_damaged_runs_of_a_workshop(tmp_path: Path) -> None:
    shop, run = Workshop(tmp_path, quiet=True), recipe(SMOKE, Law(depth=2), keep=2)
    (one,) = shop.train([run])
    assert shop.measured(one, "x", 1, lambda: 5) == 5
    (measured,) = (one.folder / "measured").iterdir()
    for content in ('{"res', '{"x": 1}'):
        measured.write_text(content)
        assert shop.measured(one, "x", 1, lambda: 5) == 5
    (one.folder / "checkpoints" / "step-x.safetensors").touch()
    assert [step for step, _ in one.kept] == list(run.training.checkpoint_at)
    log = one.folder / "log.jsonl"
    whole = log.read_text()
    for content in ("", whole[:-5]):
        log.write_text(content)
        with pytest.raises(DataError, match="remove the folder"):
            shop.train([run])
    log.write_text(whole)
    one.kept[-1][1].unlink()
    with pytest.raises(DataError, match="remove the folder"):
        shop.train([run])
