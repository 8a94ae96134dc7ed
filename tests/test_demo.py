"""The main job at a small size, its folder, its page, and what it refuses to destroy."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import hfilter
from hfilter.cli import main

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

ARGV = ["--quick", "--sequences", "3000", "--rows", "400", "--steps", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small demo for all tests of this file."""
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--out", str(out), "--quiet", *ARGV]) == 0
    return out


def test_everything_is_there(folder: Path) -> None:
    from hfilter.experiments.folder import FILES

    for name in FILES:
        assert (folder / name).stat().st_size > 100, name
    assert {path.name for path in folder.iterdir()} == {
        *(name.split("/")[0] for name in FILES),
        "training",
        "demo.json",
    }
    assert (folder / "figures/climb.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figures/climb.pdf").read_bytes().startswith(b"%PDF")


def test_numbers_agree_with_the_library(folder: Path) -> None:
    numbers = json.loads((folder / "numbers.json").read_text())
    tables = numbers["tables"]
    root, mlm = np.array(tables["root"]), np.array(tables["mlm"])
    assert root.shape == mlm.shape == (5, 5)
    assert root[0, 0] == 1.0  # unambiguous and nothing hidden: the root is certain
    # Whoever knows the law of the data is best, up to the noise of 400 rows.
    noise = 4 * np.hypot(np.array(tables["mlm_se"]), np.diag(np.array(tables["mlm_se"]))[:, None])
    assert (mlm <= np.diag(mlm)[:, None] + noise).all()
    assert numbers["draw"]["sequences"] == 3000
    assert numbers["draw"]["largest_deviation"] < 6
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    observed = np.stack([(model.sample(3000, seed=0).leaves == x).mean(0) for x in range(4)], 1)
    np.testing.assert_allclose(numbers["draw"]["frequencies"], observed, atol=1e-12)
    climb = numbers["climb"]
    assert climb["steps"][0] == 0
    assert climb["steps"][-1] == 12
    # KL(BP_0 || encoder) is the excess over the floor, up to the noise of the held-out set.
    excess = climb["cross_entropy"][-1] - climb["floors"][0]
    assert abs(excess - climb["divergence"][-1][0]) < 0.2
    attention = np.array(climb["attention"])
    np.testing.assert_allclose(attention.sum(-1), 1.0, atol=1e-5)


def test_tables_on_disk_agree_with_numbers(folder: Path) -> None:
    numbers = json.loads((folder / "numbers.json").read_text())
    with open(folder / "exact.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 75
    for row in rows:
        k, j = int(row["data_level"]), int(row["predictor_level"])
        name = row["task"] if row["measure"] == "accuracy" else "mlm_cross_entropy"
        assert float(row["value"]) == float(numbers["tables"][name][k][j])
    with open(folder / "training.csv", newline="") as stream:
        training = list(csv.DictReader(stream))
    assert [int(r["step"]) for r in training] == numbers["climb"]["steps"]
    made = json.loads((folder / "provenance.json").read_text())
    assert made["stream_version"] == hfilter.STREAM_VERSION
    assert made["settings"]["seed"] == 0


class _Outside(HTMLParser):
    """Collect everything on a page that a browser would fetch, and check that tags are closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("script", "link", "iframe", "object", "embed"):
            self.fetched.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data") and value is not None:
                self.fetched.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    reader = _Outside()
    reader.feed(page)
    reader.close()
    assert not reader.open
    assert len(reader.fetched) == 6
    assert all(item.startswith("data:image/svg+xml;base64,") for item in reader.fetched)
    outside = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|url\(|@import|\$[a-z_]", outside)


def test_again_with_the_same_options_changes_no_number(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfilter.learn.train import load_encoder

    before = json.loads((folder / "numbers.json").read_text())
    weights = load_encoder(folder / "training").state_dict()
    note = folder / "note.txt"
    note.write_text("mine")
    try:
        assert main(["demo", "--out", str(folder), *ARGV]) == 0
        assert note.read_text() == "mine"
    finally:
        note.unlink()
    after = json.loads((folder / "numbers.json").read_text())
    for part in ("settings", "rules", "tree"):
        assert after[part] == before[part]
    assert after["tables"]["mlm"] == before["tables"]["mlm"]
    assert after["climb"]["divergence"] == before["climb"]["divergence"]
    again = load_encoder(folder / "training").state_dict()
    assert all(again[name].equal(weights[name]) for name in weights)
    # Not quiet this time: bars on standard error, the tables and the path on standard output.
    shown = capsys.readouterr()
    assert f"{after['tables']['mlm'][2][1]:.4f}".removeprefix("0") in shown.out
    assert str(folder / "report.html") in shown.out
    assert "sequences" in shown.err


def test_an_existing_folder_is_not_destroyed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (folder / "report.html").read_bytes()
    assert main(["demo", "--out", str(folder), "--quiet", *ARGV, "--seed", "1"]) == 2
    assert re.search(r"other settings.*seed 0 -> 1.*--overwrite", capsys.readouterr().err)
    assert (folder / "report.html").read_bytes() == page

    (tmp_path / "precious.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path), "--overwrite", "--quiet", *ARGV]) == 2
    assert "not a demo's" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "precious.txt"), "--quiet", *ARGV]) == 2
    assert "is a file" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"precious.txt"}


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    from hfilter.experiments.folder import claim

    out = tmp_path / "out"
    claim(out, {"seed": 0}, overwrite=False)
    (out / "report.html").write_text("old")
    (out / "mine.txt").write_text("mine")
    claim(out, {"seed": 1}, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"demo.json", "figures", "mine.txt"}
    assert json.loads((out / "demo.json").read_text())["settings"] == {"seed": 1}
