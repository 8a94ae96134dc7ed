"""``hfilter evaluate``: a trained encoder beside the exact posteriors, on data of several kinds."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfilter import provenance
from hfilter.cli import denoisers
from hfilter.cli.options import Formatter, add_model, count, model_from, options_of, positive
from hfilter.errors import ArgumentError, DataError
from hfilter.exact import TreeModel
from hfilter.experiments.artefacts import refuse_existing, refuse_inputs, write_json

if TYPE_CHECKING:
    from hfilter.analysis.compare import Comparison

__all__ = ["add", "run"]

DESCRIPTION = """\
Score a trained encoder on sequences that it was not trained on: of its own model, of the same grammar
at every other filter level, and, if asked for, of another grammar and of uniformly random leaves.
Every line has the encoder's accuracy and cross-entropy beside those of exact inference for that data,
and KL(BP_k || encoder), in nats per scored token, for every k; --out has the standard errors,
calibration, agreement and quantiles too. For masked leaves the last line has KL(W_h || encoder), W_h
being exact inference from the leaf's own subtree of height h alone. A denoiser is scored at the
times --times of the noise, and over all times together.

PATH is a run folder of `hfilter train`, or one of its files (encoder.safetensors,
checkpoints/step-0000100.safetensors), which knows its model; or such a file from elsewhere, whose
model the options name.
"""
EPILOG = """\
examples:
  hfilter evaluate run
  hfilter evaluate run --filter-level 2 --rows 1e5 --out run/level2.json
  hfilter evaluate run --in-sample --uniform --other-seed 3
  hfilter evaluate run/checkpoints/step-0000100.safetensors
  hfilter evaluate block0 --times 25,75,150 --in-sample
  hfilter evaluate other/encoder.safetensors --grammar-seed 5 --depth 3
options in a file:
  hfilter evaluate run --uniform --print-config > evaluate.json
  hfilter evaluate --config evaluate.json
"""

_MODEL_OPTIONS = (
    "grammar", "vocab_size", "sigma", "grammar_seed", "rules_per_symbol", "arity", "n_classes",
    "concentration", "eigenvalue", "depth",
)  # fmt: skip
# Settings of a training that say which sequences it saw.
_WHOLE = ("seed", "data_seed", "data_start", "train_size", "steps", "batch_size", "ancestor_level",
          "noise_steps", "eval_time")  # fmt: skip


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "evaluate",
        usage="hfilter evaluate PATH [options]",
        help="a trained encoder beside the exact posteriors",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    group = parser.add_argument_group("evaluation")
    group.add_argument("path", type=Path, nargs="?", metavar="PATH",
                       help="run folder or encoder file (required)")  # fmt: skip
    group.add_argument(
        "--rows", type=positive, default=10_000, metavar="N", help="per kind of data"
    )
    group.add_argument("--seed", type=count, metavar="N", help="of the held-out rows (default: the "
                       "run's)")  # fmt: skip
    group.add_argument("--mask-rate", type=float, metavar="R", help="hide each leaf so often "
                       "(default: the run's); 0: one leaf per sequence")  # fmt: skip
    group.add_argument("--times", metavar="N,N,…", help="of the noise, for denoisers (default: the "
                       "run's)")  # fmt: skip
    group.add_argument("--in-sample", action="store_true", help="sequences it was trained on too")
    group.add_argument("--uniform", action="store_true", help="uniformly random leaves too")
    group.add_argument("--other-seed", type=count, metavar="N", help="the grammar of this seed of "
                       "the same family too")  # fmt: skip
    group.add_argument("--out", type=Path, metavar="FILE.json", help="all numbers, as JSON")
    group.add_argument("--overwrite", action="store_true", help="replace an existing file")
    group.add_argument("--quiet", action="store_true", help="no table")
    add_model(parser)
    parser.set_defaults(run=run, required=("path",), grammar=None, depth=None, filter_level=None)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Load, compare on every kind of data, print a table, write."""
    # Here and not above: `hfilter --help` must work without torch.
    from hfilter.analysis.compare import evaluate
    from hfilter.analysis.ladders import ladders
    from hfilter.learn.checkpoint import load_encoder
    from hfilter.learn.freezing import weights_digest

    out = arguments.out
    if out is not None:
        if out.suffix != ".json":
            raise ArgumentError(f"--out {out}: want a file named .json")
        refuse_existing(out, arguments.overwrite)
        folder = arguments.path if arguments.path.is_dir() else arguments.path.parent
        refuse_inputs([out], [folder / "config.json", folder.parent / "config.json"])
    encoder = load_encoder(arguments.path)
    model, training = _model(arguments, encoder)
    task, level = encoder.config.readout, training.get("ancestor_level")
    rate = training.get("mask_rate") if arguments.mask_rate is None else arguments.mask_rate or None
    seed = arguments.seed
    if seed is None:
        seed = _data_seed(training)
    shown = _shown(training, arguments.path) if arguments.in_sample else 0
    began = time.perf_counter()

    def write(results: dict[str, Any]) -> None:
        if out is None:
            return
        about = {
            "made_by": "hfilter evaluate",
            "encoder": str(arguments.path),
            "weights": weights_digest(encoder),
            "shape": encoder.config.as_dict(),
            "model": model.describe(),
            "rows": arguments.rows,
            "seed": seed,
            **results,
            "seconds": time.perf_counter() - began,
            "provenance": provenance(),
        }
        write_json(out, about)
        if not arguments.quiet:
            print(out)

    if task == "denoise":
        write({"times": denoisers.evaluate(arguments, encoder, model, training, seed, shown)})
        return 0
    if arguments.times is not None:
        raise ArgumentError(f"--times: for denoisers only, not for {task!r}; leave it out")
    found: dict[str, Comparison] = {}
    kinds = _kinds(arguments, model, level)
    own_data = any(name.endswith("(own)") for name in kinds)
    for name, source in kinds.items():
        found[name] = evaluate(
            encoder, model, arguments.rows, task=task, level=level, seed=seed, mask_rate=rate,
            inputs=source,
        )  # fmt: skip
        if not arguments.quiet:
            if len(found) == 1:
                print(_head(task, level, arguments.rows, model))
            print(_line(name, found[name], source), flush=True)
    if shown:
        found["in sample"] = evaluate(
            encoder, model, min(arguments.rows, shown), task=task,
            level=level, seed=_data_seed(training), start=training.get("data_start", 0),
            mask_rate=rate,
        )  # fmt: skip
        if not arguments.quiet:
            print(_line("in sample", found["in sample"], model), flush=True)
    windows = None
    if task == "mlm" and own_data:
        climb = ladders(encoder, model, arguments.rows, seed=seed, mask_rate=rate)
        windows = {"kl": climb.window_kl, "kl_se": climb.window_kl_se}
        if not arguments.quiet:
            rungs = "".join(f"{value:8.4f}" for value in climb.window_kl)
            print(f"KL(W_h || encoder) on its own data, h = 0 … {model.depth}:{rungs}")
    comparisons = {name: result.as_dict() for name, result in found.items()}
    write({"mask_rate": rate, "comparisons": comparisons, "windows": windows})
    return 0


def _model(arguments: argparse.Namespace, encoder: Any) -> tuple[TreeModel, dict[str, Any]]:
    """The model that the encoder was trained on, and the settings of its training."""
    from hfilter.learn.records import load_model

    path: Path = arguments.path
    places = [path] if path.is_dir() else [path.parent, path.parent.parent]
    given = [name for name in _MODEL_OPTIONS if getattr(arguments, name) is not None]
    for folder in places:
        if not (folder / "config.json").is_file():
            continue
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise ArgumentError(
                f"{flag}: {folder} knows its model; leave it out, and see --other-seed"
            )
        model = load_model(folder)
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        training, shape = about.get("train", {}), about.get("encoder", {})
        if not (isinstance(training, dict) and isinstance(shape, dict)):
            raise DataError(f"{folder / 'config.json'}: not the configuration of a run")
        for name in _WHOLE:
            value = training.get(name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise DataError(
                    f"{folder / 'config.json'}: train.{name} must be a whole number, got {value!r}"
                )
        if shape.get("readout", encoder.config.readout) != encoder.config.readout:
            raise DataError(
                f"{path}: the encoder's task is {encoder.config.readout!r}, and config.json speaks "
                f"of {shape['readout']!r}; was it copied from another run?"
            )
        break
    else:
        if path.is_dir() and not given:
            raise DataError(
                f"{path} has no config.json, which says what the encoder was trained on; name the "
                "model by options, such as --grammar and --depth"
            )
        for name, default in (("grammar", "published"), ("depth", 4), ("filter_level", 0)):
            if getattr(arguments, name) is None:
                setattr(arguments, name, default)
        model, training = model_from(arguments), {}
    shape = encoder.config
    if (shape.vocab_size, shape.n_leaves) != (model.vocab_size, model.n_leaves):
        raise ArgumentError(
            f"{path} reads {shape.n_leaves} leaves of {shape.vocab_size} symbols, the model has "
            f"{model.n_leaves} of {model.vocab_size}; see --depth and --vocab-size"
        )
    if shape.readout == "ancestor" and training.get("ancestor_level") is None:
        raise DataError(f"{path}: which ancestors it names is told in its run folder only")
    return model, training


def _data_seed(training: dict[str, Any]) -> int:
    """Seed of the stream of the training rows."""
    own = training.get("data_seed")
    return int(training.get("seed") or 0) if own is None else int(own)


def _shown(training: dict[str, Any], path: Path) -> int:
    """How many sequences a training has shown."""
    from hfilter.learn.records import read_log

    if not training:
        raise ArgumentError(
            f"--in-sample: what {path} was trained on is told in its run folder only"
        )
    batch, size = training.get("batch_size"), training.get("train_size")
    if not isinstance(batch, int) or not training.get("steps"):
        raise DataError(f"--in-sample: the run of {path} does not tell its steps and batch size")
    if path.stem.startswith("step-"):  # kept along the way: what had been shown by then
        steps = int(path.stem.removeprefix("step-"))
    else:  # an early stop may have ended it before its last step
        steps = read_log(path if path.is_dir() else path.parent)[-1]["step"]
    shown = min(steps * batch, size) if size else steps * batch
    if not shown:
        raise ArgumentError(f"--in-sample: {path} is of step 0, which has seen nothing yet")
    return int(shown)


def _kinds(arguments: argparse.Namespace, model: TreeModel, level: int | None) -> dict[str, Any]:
    """What the encoder is tried on, by name."""
    wanted = arguments.filter_level
    if wanted is not None and wanted > model.depth:
        raise ArgumentError(f"--filter-level must be at most {model.depth}, got {wanted}")
    levels = range(model.depth + 1) if wanted is None else [wanted]
    own = model.filter_level
    kinds: dict[str, Any] = {}
    for k in sorted(levels, key=lambda k: (k != own, k)):
        source = model.filtered(k)
        if level in (None, *source.existing_levels):
            kinds[f"level {k}" + (" (own)" if k == own else "")] = source
    if not kinds:
        raise ArgumentError(
            f"--filter-level {wanted}: its trees have no level {level}, whose symbols it names"
        )
    if arguments.other_seed is not None:
        seed = arguments.other_seed
        kinds[f"grammar seed {seed}"] = _of_seed(model, seed)
    if arguments.uniform:
        kinds["uniform"] = "uniform"
    return kinds


def _of_seed(model: TreeModel, seed: int) -> TreeModel:
    """The model of another grammar of the same family."""
    words = (options_of(model.describe()) or "").split()
    if "--grammar-seed" not in words:
        raise ArgumentError("--other-seed: the grammar of this run is not of a family with seeds")
    words[words.index("--grammar-seed") + 1] = str(seed)
    parser = argparse.ArgumentParser()
    add_model(parser)
    other = model_from(parser.parse_args([*words, "--filter-level", str(model.filter_level)]))
    return TreeModel(other.grammar, model.depth, model.filter_level, model.root_prior)


def _head(task: str, level: int | None, rows: int, model: TreeModel) -> str:
    name = task if level is None else f"{task} at level {level}"
    ladder = "".join(f"  k = {k}".rjust(8) for k in range(model.depth + 1))
    return (
        f"{name}, {rows} held-out sequences of each kind; exact: BP of the data's own law\n"
        f"{'data':20s} accuracy   exact  cross-entropy   exact   KL(BP_k || encoder){ladder}"
    )


def _line(name: str, found: Comparison, source: Any) -> str:
    """One row; dashes where there is no truth or no exact answer."""

    def cell(value: float | None, width: int) -> str:
        return ("-" if value is None or math.isnan(value) else f"{value:.4f}").rjust(width)

    k = source.filter_level if isinstance(source, TreeModel) else None
    if name.startswith("grammar"):
        k = None  # BP of this grammar is not the law of that data
    accuracy = None if k is None else found.exact_accuracy.get(k)
    nats = None if k is None else found.exact_cross_entropy.get(k)
    ladder = "".join(cell(value, 8) for value in found.kl.values())
    return (
        f"{name:20s} {cell(found.accuracy, 8)}{cell(accuracy, 8)}  "
        f"{cell(found.cross_entropy, 13)}{cell(nats, 8)}  {'':19s}{ladder}"
    )
