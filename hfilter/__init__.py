"""hfilter: the exactly solvable laboratory for how neural networks learn hierarchical data."""

from __future__ import annotations

from . import errors
from .backend import BackendInfo, backends
from .exact import Posterior, Sample, TreeModel
from .grammar import Grammar
from .provenance import provenance
from .tree import STREAM_VERSION
from .version import __version__

__all__ = [
    "STREAM_VERSION",
    "BackendInfo",
    "Grammar",
    "Posterior",
    "Sample",
    "TreeModel",
    "__version__",
    "backends",
    "errors",
    "provenance",
]
