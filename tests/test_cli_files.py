"""Manners of the command line with files: its own inputs, foreign data, files that change meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hfilter.cli import main
from hfilter.errors import DataError
from hfilter.experiments.artefacts import read_npy, read_rows

GENERATE = ["generate", "--rows", "50", "--depth", "3", "--quiet"]


def test_the_configuration_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """rows.json would be the neighbour of rows.npy."""
    config = tmp_path / "rows.json"
    config.write_text(json.dumps({"rows": 5}))
    before = config.read_text()
    out = str(tmp_path / "rows.npy")
    assert main(["generate", "--config", str(config), "--out", out, "--overwrite"]) == 2
    assert "reads it" in capsys.readouterr().err
    assert config.read_text() == before


def test_data_of_another_grammar_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = str(tmp_path / "rows.npy"), str(tmp_path / "out.npy")
    assert main([*GENERATE, "--grammar-seed", "3", "--out", rows]) == 0
    options = ["infer", rows, "--out", out, "--depth", "3", "--quiet", "--overwrite"]
    capsys.readouterr()
    assert main(options) == 0
    assert "another law" in capsys.readouterr().err
    assert main([*options, "--grammar-seed", "3", "--filter-level", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_rows_of_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    whole = np.arange(4000, dtype=np.int64).reshape(1000, 4)
    np.save(path, whole)
    mapped = read_npy(path)
    np.testing.assert_array_equal(read_rows(path, mapped, 990, 100), whole[990:])
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match="shorter"):
        read_rows(path, mapped, 0, 1000)


def test_files_that_confuse_their_readers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors of one line, whatever NumPy's or JSON's parser raises."""
    odd = tmp_path / "odd.npy"
    header = b"{'descr': '<i8', 'shape': ((((" + b" " * 60 + b"\n"
    odd.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert main(["infer", str(odd), "--out", str(tmp_path / "o.npy")]) == 2
    nested = tmp_path / "nested.json"
    nested.write_text("[" * 100_000)
    out = str(tmp_path / "r.npy")
    assert main(["generate", "--config", str(nested), "--rows", "5", "--out", out]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_info_prints_its_page_with_a_wrong_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HFILTER_BACKEND", "foo")
    assert main(["info"]) == 0
    page = capsys.readouterr().out
    assert "HFILTER_BACKEND must be one of" in page
    assert "python" in page
