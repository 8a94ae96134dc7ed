"""The command line, called from a test in an empty folder (fixture `inside`)."""

from __future__ import annotations

from pathlib import Path

import hfilter
from hfilter.cli import main


def hf(command: str) -> int:
    return main(command.split())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def published(filter_level: int = 0) -> hfilter.TreeModel:
    return hfilter.TreeModel(
        hfilter.Grammar.published(4, 1.0, 0), depth=4, filter_level=filter_level
    )
