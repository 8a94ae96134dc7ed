"""``hfilter figure``: one experiment, from its training runs to a figure with its numbers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hfilter.cli.options import Formatter, count, positive

__all__ = ["add", "run"]

DESCRIPTION = """\
Run one experiment of the laboratory, or take up an interrupted one, and leave its figure
(PNG, PDF), the numbers behind it (CSV) and what made it (JSON) in a folder. Training runs are kept
in the folder too and shared: experiments that need the same run train it once, and one that was
interrupted goes on from its last checkpoint.

experiments (`hfilter figure NAME --about` says what each does and expects):
  staircase           how a network climbs from BP_l to BP_0 along its training
  accuracy-matrix     networks trained at each filter level, tested on every other
  scatter             the network's probability against the exact one, input by input
  attention           where each layer looks, and how far that is from the ideal
  probes              which ancestors and messages each layer holds, beside the exact limits
  finetune            masked-leaf encoder to root and back, against the number of labels
  transfer            what an encoder of another filter level or grammar is worth
  depth               excess over the exact floor against layers and heads
  sample-complexity   accuracy against the number of training sequences, at every filter level
  targets             exact-posterior targets against sampled labels and the published recipe
  next-token          a causal encoder against the exact next-token law, position by position
  biased-generalization  models of disjoint blocks part before the test loss turns
  biased-samples      what biased denoisers draw, and where their U-turns end
  diffusion-reference exact numbers of diffusion that no network enters into
  forward-backward    how far up the tree noise reaches, and where changes are most correlated
  all                 every one of them

presets:
  fast        minutes for most on two cores, and the phenomenon is still there
  published   the paper's sizes; meant for a GPU (--device cuda)
  smoke       seconds, meaningless numbers: does everything work here?
"""
EPILOG = """\
examples:
  hfilter figure staircase                          three seeds, about a quarter of an hour
  hfilter figure scatter                            afterwards: the run is there already
  hfilter figure accuracy-matrix --grammar-seed 3 --out g3
  hfilter figure depth --jobs 2                     two runs at a time, one core each
  hfilter figure all --preset smoke --out /tmp/try  does it work here?
  hfilter figure staircase --preset published --device cuda
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "figure",
        usage="hfilter figure NAME [options]",
        help="one experiment: runs, numbers, figure",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which experiment, or: all")
    group = parser.add_argument_group("figure")
    group.add_argument(
        "--preset", choices=("fast", "published", "smoke"), default="fast", help="how large"
    )
    group.add_argument(
        "--out", type=Path, default=Path("hfilter-figures"), metavar="FOLDER", help="folder"
    )
    group.add_argument(
        "--runs", type=Path, metavar="FOLDER", help="of the training runs (default: OUT/runs)"
    )
    group.add_argument("--seeds", type=positive, metavar="N", help="runs that differ in their seed")
    group.add_argument("--seed", type=count, default=0, metavar="N", help="the first of them")
    group.add_argument(
        "--train-size", type=positive, metavar="N",
        help="sequences of each training set (biased-generalization, biased-samples)",
    )  # fmt: skip
    group.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="runs trained at a time, a core each"
    )
    group.add_argument("--device", default="cpu", metavar="NAME", help="to train on: cpu, cuda")
    group.add_argument("--overwrite", action="store_true", help="replace figures of other options")
    group.add_argument("--about", action="store_true", help="print what the experiment does; stop")
    group.add_argument("--quiet", action="store_true", help="no progress, nothing printed")
    law = parser.add_argument_group("grammar (of the published family; default: the experiment's)")
    law.add_argument("--depth", type=positive, metavar="N", help="levels below the root")
    law.add_argument("--vocab-size", type=positive, metavar="N", help="symbols")
    law.add_argument("--sigma", type=float, metavar="X", help="spread of the rules' weights")
    law.add_argument("--grammar-seed", type=count, metavar="N", help="which grammar")
    law.add_argument("--rules-per-symbol", type=positive, metavar="N", help="rules of each symbol")
    parser.set_defaults(run=run, required=("name",))
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Perform the experiment; print what its numbers say and where its files are."""
    # Here and not above: `hfilter --help` must work without torch and matplotlib.
    from hfilter.errors import ArgumentError
    from hfilter.experiments.lab.gallery import STUDIES
    from hfilter.experiments.lab.study import Options, perform

    if arguments.name != "all" and arguments.name not in STUDIES:
        raise ArgumentError(
            f"NAME must be one of {', '.join(STUDIES)} or all, got {arguments.name!r}"
        )
    names = list(STUDIES) if arguments.name == "all" else [arguments.name]
    if arguments.about:
        for name in names:
            print(f"{name}: {STUDIES[name].summary}\n\n{STUDIES[name].about}\n")
        return 0
    options = Options(
        preset=arguments.preset,
        n_seeds=arguments.seeds,
        seed=arguments.seed,
        train_size=arguments.train_size,
        device=arguments.device,
        changes={
            name: value
            for name in ("depth", "vocab_size", "sigma", "grammar_seed", "rules_per_symbol")
            if (value := getattr(arguments, name)) is not None
        },
    )
    for name in names:
        lines = perform(
            STUDIES[name],
            options,
            arguments.out,
            runs=arguments.runs,
            jobs=arguments.jobs,
            quiet=arguments.quiet,
            overwrite=arguments.overwrite,
        )
        if not arguments.quiet:
            for line in lines:
                print(f"{name}: {line}")
            print(f"figure: {(arguments.out / f'{name}.png').resolve()}")
    return 0
