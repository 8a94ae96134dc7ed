"""``hfilter info``: versions, backends and why any is missing, threads."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

from hfilter import STREAM_VERSION, __version__, backends, provenance
from hfilter.cli.options import Formatter
from hfilter.errors import HFilterError
from hfilter.experiments.artefacts import plain

__all__ = ["add", "collect", "run"]

EPILOG = """\
examples:
  hfilter info
  hfilter info --json > machine.json
  HFILTER_BACKEND=portable HFILTER_NUM_THREADS=1 hfilter info
"""

# What the extras bring; looked up by its metadata, so that nothing heavy is imported.
_PACKAGES = ("numpy", "numba", "torch", "matplotlib", "safetensors", "tqdm")
_VARIABLES = ("HFILTER_BACKEND", "HFILTER_NUM_THREADS")


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "info",
        usage="hfilter info [options]",
        help="versions, backends and why any is missing, threads",
        description="What is installed here, which backends work, and why the others do not.",
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(run=run, required=())
    return parser


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def collect() -> dict[str, Any]:
    """Return everything the command shows, as plain data."""
    problem = None
    try:
        made = provenance()
    except HFilterError as error:  # a wrong HFILTER_ variable: this page is where one looks it up
        made, problem = {"backend": None, "num_threads": None}, str(error)
    return {
        "hfilter": __version__,
        "stream_version": STREAM_VERSION,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "backend": made["backend"],
        "num_threads": made["num_threads"],
        "problem": problem,
        "packages": {name: _version(name) for name in _PACKAGES},
        "backends": {
            name: {"available": backend.available, "reason": backend.reason}
            for name, backend in backends().items()
        },
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
    }


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    facts = collect()
    if arguments.json:
        print(json.dumps(plain(facts), indent=2))
        return 0
    print(f"hfilter {facts['hfilter']} (sampling stream version {facts['stream_version']})")
    print(f"python  {facts['python']} on {facts['platform']}")
    serving = (
        f"{facts['backend']} with {facts['num_threads']} threads "
        f"({facts['usable_cpus']} of {facts['cpu_count']} processors usable)"
    )
    print(f"serving {serving if facts['problem'] is None else 'nothing: ' + facts['problem']}")
    print("\nbackends")
    for name, backend in facts["backends"].items():
        state = "yes" if backend["available"] else "no "
        print(f"  {name:<9} {state}  {backend['reason']}".rstrip())
    print("\npackages")
    for name, version in facts["packages"].items():
        print(f"  {name:<12} {version or 'not installed'}")
    print("\nenvironment")
    for name, value in facts["environment"].items():
        wrong = "  <- wrong, see above" if name in (facts["problem"] or "") else ""
        print(f"  {name:<20} {value if value is not None else '(not set)'}{wrong}")
    return 0
