"""``hfilter generate``: rows of a virtual data set, written to a file."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hfilter import provenance
from hfilter.backend import get_backend
from hfilter.cli.options import Formatter, add_backend, add_model, count, model_from, npy_name
from hfilter.errors import ArgumentError
from hfilter.experiments.artefacts import (
    NpyWriter,
    refuse_existing,
    refuse_inputs,
    sidecar_path,
    write_json,
)
from hfilter.experiments.progress import human, progress

__all__ = ["add", "run"]

DESCRIPTION = """\
Draw sequences of a grammar and write them to a .npy file of shape (rows, leaves).

Row i is a function of the model, the seed and i alone: the same on every machine, and two ranges
that do not overlap are independent. FILE.json beside it says what made it.
"""
EPILOG = """\
examples:
  hfilter generate --rows 1e6 --out train.npy --roots train-roots.npy
  hfilter generate --rows 1e4 --start 1e6 --out test.npy            rows that follow those
  hfilter generate --rows 1e5 --filter-level 2 --out k2.npy
  hfilter generate --grammar random-hierarchy --vocab-size 8 --rules-per-symbol 4 --n-classes 8 \\
                   --depth 3 --rows 1e5 --out rhm.npy
  hfilter generate --rows 1e5 --out first.npy --print-config > run.json
  hfilter generate --config run.json --seed 7 --out second.npy
"""

# Bytes of leaves per block: large enough for all threads, small enough to stay in cache.
_BLOCK_BYTES = 1 << 24


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "generate",
        usage="hfilter generate --rows N --out FILE.npy [options]",
        help="rows of a data set to a .npy file",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    group = parser.add_argument_group("data")
    group.add_argument("--rows", type=count, metavar="N", help="how many, e.g. 1e6 (required)")
    group.add_argument("--out", type=Path, metavar="FILE.npy", help="leaves (required)")
    group.add_argument("--roots", type=Path, metavar="FILE.npy", help="write the root symbols too")
    group.add_argument("--seed", type=count, default=0, metavar="N", help="of the stream")
    group.add_argument(
        "--start", type=count, default=0, metavar="I", help="first row of the stream"
    )
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_model(parser)
    add_backend(parser)
    parser.set_defaults(run=run, required=("rows", "out"))
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Draw, write, and say what was done."""
    out = npy_name(arguments.out, "--out")
    files = [out, sidecar_path(out)]
    if arguments.roots is not None:
        files.append(npy_name(arguments.roots, "--roots"))
        if arguments.roots.resolve() == out.resolve():
            raise ArgumentError(f"--out and --roots are the same file, {out}")
    refuse_inputs(files, [arguments.config, arguments.grammar])
    for file in files:
        refuse_existing(file, arguments.overwrite)
    model = model_from(arguments)
    rows, start = arguments.rows, arguments.start
    block = max(1, _BLOCK_BYTES // (model.n_leaves * np.dtype(model.token_dtype).itemsize))
    serving = {"backend": arguments.backend, "num_threads": arguments.num_threads}
    get_backend(arguments.backend)  # a wrong name is told before anything is drawn or written
    began = time.perf_counter()
    with ExitStack() as stack:
        leaves = stack.enter_context(NpyWriter(out, (rows, model.n_leaves), model.token_dtype))
        roots: NpyWriter | None = None
        advance = stack.enter_context(progress(rows, "generate", " rows", quiet=arguments.quiet))
        # The first block is drawn even for no rows, so that its dtypes and errors are the same.
        for first in range(0, max(rows, 1), block):
            n = min(block, rows - first)
            sample = model.sample(n, seed=arguments.seed, start=start + first, **serving)
            leaves.write(np.asarray(sample.leaves))
            if arguments.roots is not None:
                symbols = np.asarray(sample.roots)
                if roots is None:
                    roots = stack.enter_context(NpyWriter(arguments.roots, (rows,), symbols.dtype))
                roots.write(symbols)
            advance(n)
    seconds = time.perf_counter() - began
    write_json(
        sidecar_path(out),
        {
            "made_by": "hfilter generate",
            "file": out.name,
            "roots_file": None if arguments.roots is None else arguments.roots.name,
            "shape": [rows, model.n_leaves],
            "dtype": str(np.dtype(model.token_dtype)),
            "seed": arguments.seed,
            "start": start,
            "rows": rows,
            "fingerprint": model.fingerprint,
            "model": model.describe(),
            "provenance": provenance(**{k: v for k, v in serving.items() if v is not None}),
        },
    )
    if not arguments.quiet:
        print(
            f"{out}: {rows} x {model.n_leaves} leaves in {seconds:.2f} s, "
            f"{human(rows / max(seconds, 1e-9))} rows/s with writing; made by: {sidecar_path(out)}"
        )
    return 0
