"""``hfilter demo``: the main job, end to end, with a page to read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hfilter.cli.options import Formatter, count, positive

__all__ = ["add", "run"]

DESCRIPTION = """\
Draw ten million sequences of the published grammar; compute the exact accuracies of every filter
level's predictor on data of every filter level; train a small encoder on masked leaves beside
the exact answer; write figures, numbers and one self-contained page into a folder.

A second call with the same options takes up an interrupted training from its last checkpoint and
replaces the demo's own files; nothing else in the folder is touched.
"""
EPILOG = """\
examples:
  hfilter demo                             everything, under three minutes on two cores
  hfilter demo --quick --out /tmp/demo     small sizes, some seconds: does it work here?
  hfilter demo --grammar-seed 3 --out g3   another grammar of the same family
  hfilter demo --steps 20000 --overwrite   a longer training into the same folder
  hfilter demo --steps 20000 --out long --print-config > demo.json
  hfilter demo --config demo.json          the same, from a file of options
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        usage="hfilter demo [options]",
        help="the main job: data, exact accuracies, an encoder, a report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    group = parser.add_argument_group("demo")
    group.add_argument(
        "--out", type=Path, default=Path("hfilter-demo"), metavar="FOLDER", help="folder"
    )
    group.add_argument("--seed", type=count, default=0, metavar="N", help="of data and training")
    group.add_argument(
        "--grammar-seed", type=count, default=0, metavar="N", help="which published grammar"
    )
    group.add_argument(
        "--sequences", type=positive, metavar="N", help="to draw (default: 1e7; fewer if --quick)"
    )
    group.add_argument(
        "--rows", type=positive, metavar="N", help="per table row (default: 1e5; fewer if --quick)"
    )
    group.add_argument(
        "--steps", type=positive, metavar="N", help="of training (default: the fast preset's)"
    )
    group.add_argument("--quick", action="store_true", help="small sizes, for a first look")
    group.add_argument(
        "--overwrite", action="store_true", help="replace a demo made with other options"
    )
    group.add_argument("--quiet", action="store_true", help="no progress, no tables")
    parser.set_defaults(run=run, required=())
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; print its tables and the path of its page."""
    # Here and not above: `hfilter --help` must work without torch and matplotlib.
    from hfilter.experiments.demo import DemoConfig, run_demo

    config = DemoConfig(
        out=arguments.out,
        seed=arguments.seed,
        grammar_seed=arguments.grammar_seed,
        sequences=arguments.sequences,
        rows=arguments.rows,
        steps=arguments.steps,
        quick=arguments.quick,
        overwrite=arguments.overwrite,
        quiet=arguments.quiet,
    )
    run_demo(config)
    return 0
