"""The README says what is so: its code runs, its commands exist, its numbers are computed again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import published

import hfilter
from hfilter.cli import main

pytestmark = pytest.mark.usefixtures("inside")

README = Path(__file__).parent.parent / "README.md"


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_readme_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import doctest

    if hfilter.provenance()["backend"] == "python":
        pytest.skip("a hundred thousand rows take minutes in plain Python")
    blocks = readme_blocks("python")
    assert blocks
    for number, block in enumerate(blocks):
        if ">>>" in block:
            parser = doctest.DocTestParser()
            test = parser.get_doctest(block, {}, f"README {number}", "README.md", 0)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            runner.run(test)
            assert runner.failures == 0, capsys.readouterr().out
        else:
            exec(compile(block, f"README {number}", "exec"), {})
            printed = capsys.readouterr().out.split()
            text = README.read_text(encoding="utf-8").split(block)[1]
            assert printed, "an example that shows nothing"
            # The sentence below an example quotes what it prints.
            assert re.findall(r"`([0-9.]+)`", text)[: len(printed)] == printed


def test_readme_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every ``hfilter …`` line of the README is accepted by the parser."""
    lines = [
        line.split("#")[0].split()[1:]
        for block in readme_blocks("sh")
        for line in block.splitlines()
        if line.startswith("hfilter ")
    ]
    assert lines
    for argv in lines:
        assert main([*argv, "--print-config"]) == 0, argv


def test_readme_tables_are_what_is_computed() -> None:
    """The numbers of the README, against tables of fewer rows made here."""
    from hfilter.analysis.accuracies import exact_accuracies

    if hfilter.provenance()["backend"] == "python":
        pytest.skip("twenty thousand rows take minutes in plain Python")
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| k = (\d) \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) == 10
    cells = [[float(cell.replace("*", "")) for cell in line.split("|")] for _, line in rows]
    written = np.array(cells).reshape(2, 5, 5)  # root, then one hidden leaf
    made = exact_accuracies(published(), 20_000, seed=99)
    for name, table in (("root", written[0]), ("mlm", written[1])):
        error = np.hypot(1, np.sqrt(20_000 / 100_000)) * getattr(made, f"{name}_se")
        # 4 decimals are written; one false alarm in 10**5 runs at 4.9 standard errors, 50 cells.
        assert (np.abs(table - getattr(made, name)) <= 5 * error + 5e-5).all()
