"""``hfilter infer``: exact posteriors of the sequences in a file."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hfilter import provenance
from hfilter.backend import get_backend
from hfilter.checks import check_int
from hfilter.cli.options import (
    Formatter,
    add_backend,
    add_model,
    model_from,
    npy_name,
    options_of,
)
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.exact import TreeModel
from hfilter.experiments.artefacts import (
    NpyWriter,
    read_json,
    read_npy,
    read_rows,
    refuse_existing,
    refuse_inputs,
    sidecar_path,
    warn_of_another_law,
    write_json,
)
from hfilter.experiments.progress import human, progress

__all__ = ["add", "run"]

DESCRIPTION = """\
Exact posteriors of sequences, by belief propagation in the model that the options name.

INPUT is a .npy file of tokens, integers of shape (n, leaves), in which a token equal to the
vocabulary size is hidden; or of evidence, floats of shape (n, leaves, vocabulary): the natural
logarithm of a likelihood of every symbol at every leaf. The output is one .npy file:
  root           (n, classes)             posterior of the root
  leaves         (n, leaves, vocabulary)  posterior of every leaf
  leave-one-out  (n, leaves, vocabulary)  law of every leaf given all others
  next-token     (n, leaves, vocabulary)  law of every leaf given those before it
  windowed       (n, leaves, vocabulary)  law of every leaf given the others of its --height subtree
  log-prob       (n,) float64             ln probability of the evidence, in nats
A row that the model cannot produce gets NaN (-inf as log-prob). FILE.json says what made it.
"""
EPILOG = """\
examples:
  hfilter generate --rows 1e5 --out seen.npy
  hfilter infer seen.npy --what root --out seen-root.npy
  hfilter infer seen.npy --what leave-one-out --filter-level 2 --out seen-loo.npy
a grammar of your own, saved by Grammar.save, and its data:
  python -c "import hfilter; hfilter.Grammar.dense(4, seed=5).save('mine.npz')"
  hfilter generate --grammar mine.npz --rows 1e5 --out own.npy
  hfilter infer own.npy --grammar mine.npz --what log-prob --out own-logp.npy
options in a file:
  hfilter infer seen.npy --out again.npy --dtype float64 --print-config > infer.json
  hfilter infer --config infer.json
"""

_BLOCK_BYTES = 1 << 25


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "infer",
        usage="hfilter infer INPUT --out FILE.npy [options]",
        help="exact posteriors of the sequences in a file",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    group = parser.add_argument_group("data")
    group.add_argument("input", type=Path, nargs="?", metavar="INPUT", help=".npy file (required)")
    group.add_argument("--out", type=Path, metavar="FILE.npy", help="result (required)")
    group.add_argument(
        "--what",
        choices=("root", "leaves", "leave-one-out", "next-token", "windowed", "log-prob"),
        default="root",
        help="the question: root, leaves, leave-one-out, next-token, windowed or log-prob",
    )
    group.add_argument(
        "--height", type=int, default=1, help="levels of the subtree that --what windowed sees"
    )
    group.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="float32 or float64"
    )
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_model(parser)
    add_backend(parser)
    parser.set_defaults(run=run, required=("input", "out"))
    return parser


def check_evidence(model: TreeModel, evidence: np.ndarray, path: Path) -> bool:
    """Return whether a file holds fields and not tokens, having checked its shape and dtype."""
    leaves, vocabulary = model.n_leaves, model.vocab_size
    if evidence.dtype.kind in "iu":
        if evidence.ndim != 2 or evidence.shape[1] != leaves:
            raise ShapeError(
                f"{path}: tokens must have shape (n, {leaves}) for depth {model.depth}, "
                f"got {evidence.shape}; see --depth and --arity"
            )
        return False
    if evidence.dtype.kind == "f":
        if evidence.ndim != 3 or evidence.shape[1:] != (leaves, vocabulary):
            raise ShapeError(
                f"{path}: log-fields must have shape (n, {leaves}, {vocabulary}), "
                f"got {evidence.shape}; floats are read as fields, integers as tokens"
            )
        return True
    raise DTypeError(f"{path}: want integer tokens or float log-fields, got {evidence.dtype}")


def _answer(
    model: TreeModel, what: str, height: int, block: dict[str, Any], options: dict[str, Any]
) -> Any:
    if what == "root":
        return model.root_posterior(**block, **options)
    if what == "leaves":
        return model.infer(**block, **options).leaves
    if what == "leave-one-out":
        return model.leave_one_out(**block, **options)
    if what == "next-token":
        return model.next_token(**block, **options)
    if what == "windowed":
        return model.windowed(height=height, **block, **options)
    return model.log_prob(**block, **options)


def run(arguments: argparse.Namespace) -> int:
    """Read, infer block by block, write, and say what was done."""
    out = npy_name(arguments.out, "--out")
    if out.resolve() == arguments.input.resolve():
        raise ArgumentError(f"INPUT and --out are the same file, {out}")
    evidence = read_npy(arguments.input)
    sidecar = sidecar_path(out)
    refuse_inputs([out, sidecar], [arguments.config, arguments.grammar, arguments.input])
    for file in (out, sidecar):
        refuse_existing(file, arguments.overwrite)
    model = model_from(arguments)
    fields = check_evidence(model, evidence, arguments.input)
    warning = warn_of_another_law(arguments.input, model.describe())
    if warning is not None:
        hint = options_of(read_json(sidecar_path(arguments.input))["model"])
        advice = "" if hint is None else f"; for the law of the data say: {hint}"
        print(f"hfilter infer: warning: {warning}{advice}", file=sys.stderr)
    get_backend(arguments.backend)  # a wrong name is told before anything is written
    what, n = arguments.what, len(evidence)
    dtype = "float64" if what == "log-prob" else arguments.dtype
    tail: tuple[int, ...] = {"root": (model.n_classes,), "log-prob": ()}.get(
        what, (model.n_leaves, model.vocab_size)
    )
    height = check_int("--height", arguments.height, 0, model.depth)
    serving = {"backend": arguments.backend, "num_threads": arguments.num_threads}
    options = {"dtype": arguments.dtype, **serving}
    block = max(1, _BLOCK_BYTES // (8 * model.n_leaves * model.vocab_size))
    impossible = 0
    began = time.perf_counter()
    with (
        NpyWriter(out, (n, *tail), dtype) as writer,
        progress(n, f"infer {what}", " rows", quiet=arguments.quiet) as advance,
    ):
        for first in range(0, n, block):
            part = read_rows(arguments.input, evidence, first, block)
            result = np.asarray(
                _answer(model, what, height, {"log_fields" if fields else "leaves": part}, options)
            )
            bad = np.isneginf(result) if what == "log-prob" else np.isnan(result)
            impossible += int(bad.reshape(len(part), -1).any(axis=1).sum())
            writer.write(result)
            advance(len(part))
    seconds = time.perf_counter() - began
    write_json(
        sidecar,
        {
            "made_by": "hfilter infer",
            "file": out.name,
            "input": str(arguments.input),
            "evidence": "log-fields" if fields else "tokens",
            "what": what,
            **({"height": height} if what == "windowed" else {}),
            "shape": [n, *tail],
            "dtype": dtype,
            "computed_in": arguments.dtype,
            "impossible_rows": impossible,
            "fingerprint": model.fingerprint,
            "model": model.describe(),
            "provenance": provenance(**{k: v for k, v in serving.items() if v is not None}),
        },
    )
    if not arguments.quiet:
        print(
            f"{out}: {what} of {n} rows in {seconds:.2f} s, "
            f"{human(n / max(seconds, 1e-9))} rows/s with reading and writing; made by: {sidecar}"
        )
        if impossible:
            kind = "-inf" if what == "log-prob" else "NaN"
            print(f"{impossible} of {n} rows cannot come from this model: {kind} there")
    return 0
