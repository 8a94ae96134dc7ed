"""``hfilter train``: an encoder on a model's sequences, beside the exact answer."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfilter.cli.options import Formatter, add_model, count, model_from, positive
from hfilter.errors import ArgumentError
from hfilter.learn.presets import PRESETS, preset

if TYPE_CHECKING:
    from hfilter.learn.architecture import EncoderConfig
    from hfilter.learn.config import TrainConfig

__all__ = ["add", "run"]

_NAMES = "\n".join(f"  {name:22s}{make.__doc__}" for name, make in PRESETS.items())

DESCRIPTION = f"""\
Train a transformer encoder on sequences of the model that the options name, and log its loss beside
the exact floor and KL(BP_k || encoder) for every filter level k. A preset says everything; options
change single settings of it.

presets:
{_NAMES}

FOLDER gets config.json (what made it), grammar.npz, log.jsonl (one line per evaluation),
checkpoint.safetensors (to resume from) and encoder.safetensors. The same call again takes up an
interrupted run, bit for bit: Ctrl-C waits for the end of a step and leaves a checkpoint, and a run
that was killed goes on from its latest one. A call with other settings is refused.
"""
EPILOG = """\
examples:
  hfilter train --preset mlm-fast --out run
  hfilter train --preset mlm-fast --depth 3 --grammar-seed 2 --filter-level 1 --out run-k1
  hfilter train --preset root-fast --steps 500 --seed 1 --train-size 4096 --out run-p4096
  hfilter train --preset mlm-fast --stop-at 0.02 --out until-two-percent
  hfilter train --preset mlm-fast --targets labels --out from-labels
  hfilter train --preset causal-fast --optimiser adamw --checkpoint-at 100,500 --out causal
two denoisers, each of 200 sequences of its own, disjoint blocks of one stream:
  hfilter train --preset denoise-fast --vocab-size 6 --rules-per-symbol 4 --depth 3 --out block0
  hfilter train --preset denoise-fast --vocab-size 6 --rules-per-symbol 4 --depth 3 --seed 1 \\
    --data-seed 0 --data-start 200 --out block1
several processes as one, with the same losses:
  torchrun --nproc-per-node 2 -m hfilter train --preset mlm-published --device cuda --out big
settings in a file:
  hfilter train --preset mlm-fast --lr 1e-3 --out a --print-config > train.json
  hfilter train --config train.json
then:
  hfilter evaluate run
"""

# Option -> field, where they differ. All of a group's options are fields of its configuration.
_ENCODER = {"layers": "n_layers", "heads": "n_heads", "feedforward": "d_feedforward"}
_ENCODER |= {
    name: name for name in ("d_model", "dropout", "positions", "norm", "pooling", "activation")
}
_TRAIN = (
    "seed", "data_seed", "data_start", "batch_size", "lr", "muon_lr", "schedule", "warmup", "clip",
    "cooldown", "average", "weight_decay", "optimiser", "train_size", "targets", "target_level", "mask_rate",
    "train_mask_rate", "ancestor_level", "n_eval", "eval_every", "stop_at", "checkpoint_every",
    "precision", "threads", "device", "noise", "noise_steps", "eval_time", "held_out",
)  # fmt: skip


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        usage="hfilter train --preset NAME --out FOLDER [options]",
        help="train an encoder beside the exact answer",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    group = parser.add_argument_group("run")
    group.add_argument("--preset", metavar="NAME", help="settings to begin with (required)")
    group.add_argument("--out", type=Path, metavar="FOLDER", help="run folder (required)")
    group.add_argument("--steps", type=positive, metavar="N", help="updates; the preset's schedule "
                       "is stretched or shrunk to it")  # fmt: skip
    group.add_argument("--seed", type=count, metavar="N", help="of weights, dropout and data")
    group.add_argument("--data-seed", type=count, metavar="N", help="of rows and masks alone")
    group.add_argument("--start", type=Path, metavar="PATH", help="begin with these weights: a run "
                       "folder or encoder.safetensors of the same shape")  # fmt: skip
    group.add_argument("--frozen", metavar="A,B", help="parameters that stay, such as embedding, "
                       "layers.0")  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_model(parser)
    _add_data(parser)
    _add_optimiser(parser)
    _add_log(parser)
    group = parser.add_argument_group("encoder (default: the preset's)")
    group.add_argument("--d-model", type=positive, metavar="N", help="width")
    group.add_argument("--layers", type=positive, metavar="N", help="layers")
    group.add_argument("--heads", type=positive, metavar="N", help="attention heads per layer")
    group.add_argument("--feedforward", type=positive, metavar="N", help="width inside the layers")
    group.add_argument("--dropout", type=float, metavar="P", help="rate, 0 for none")
    group.add_argument("--positions", metavar="HOW", help="sinusoidal, learned, rotary or none")
    group.add_argument("--norm", metavar="WHERE", help="post, pre or none")
    group.add_argument("--activation", metavar="UNIT", help="relu, gelu, relu2 or reglu")
    group.add_argument("--init-gamma", metavar="G", help="initial weights of size d_in^-G; or by part, "
                       "such as embedding=0.5,feedforward=0.8")  # fmt: skip
    group.add_argument("--pooling", metavar="HOW", help="of the root: flat, mean or class")
    parser.set_defaults(run=run, required=("preset", "out"))
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data (default: the preset's)")
    group.add_argument("--batch-size", type=positive, metavar="N", help="sequences per update")
    group.add_argument("--train-size", type=count, metavar="P", help="show the same P sequences "
                       "over and over; 0: fresh ones")  # fmt: skip
    group.add_argument("--data-start", type=count, metavar="N", help="first row of the training set "
                       "in its stream; block i begins at i P")  # fmt: skip
    group.add_argument("--held-out", metavar="HOW", help="other rows than those trained on: by index, "
                       "or content")  # fmt: skip
    group.add_argument("--targets", metavar="WHAT", help="labels, or posterior: the exact law")
    group.add_argument("--target-level", type=count, metavar="K", help="posterior of BP_K")
    group.add_argument("--mask-rate", type=float, metavar="R", help="hide each leaf so often; 0: "
                       "one leaf per sequence")  # fmt: skip
    group.add_argument("--train-mask-rate", type=float, metavar="R", help="in training only")
    group.add_argument("--ancestor-level", type=count, metavar="D", help="whose symbols are named")
    group.add_argument("--noise", metavar="NAME", help="of denoise: published or cosine")
    group.add_argument(
        "--noise-steps", type=positive, metavar="T", help="times of the noise, 1 … T"
    )
    group.add_argument("--eval-time", type=positive, metavar="N", help="time at which a denoiser is "
                       "scored (default: 0.15 T)")  # fmt: skip


def _add_optimiser(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimiser (default: the preset's)")
    group.add_argument("--optimiser", metavar="NAME", help="adamw or muon")
    group.add_argument("--lr", type=float, metavar="R", help="peak learning rate")
    group.add_argument("--muon-lr", type=float, metavar="R", help="of the layers' matrices")
    group.add_argument("--schedule", metavar="NAME", help="constant, cosine, linear, trapezoid, "
                       "linear-cosine or inverse-root")  # fmt: skip
    group.add_argument("--warmup", type=count, metavar="N", help="steps")
    group.add_argument("--cooldown", type=count, metavar="N", help="steps that the last three of "
                       "these take to fall")  # fmt: skip
    group.add_argument("--average", type=float, metavar="R", help="score and keep averages of the "
                       "weights over the latest part R of the steps; 0: the weights")  # fmt: skip
    group.add_argument("--weight-decay", type=float, metavar="R", help="decoupled")
    group.add_argument("--clip", type=float, metavar="N", help="largest norm of a gradient")
    group.add_argument("--precision", metavar="TYPE", help="float32, bfloat16 or float16")
    group.add_argument("--compile", action="store_true", help="send the encoder through the "
                       "compiler of torch")  # fmt: skip
    group.add_argument("--threads", type=positive, metavar="N", help="of torch")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 …")


def _add_log(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("log and checkpoints (default: the preset's)")
    group.add_argument("--eval-every", type=positive, metavar="N", help="steps")
    group.add_argument("--n-eval", type=positive, metavar="N", help="held-out sequences")
    group.add_argument("--stop-at", type=float, metavar="X", help="stop when the excess over the "
                       "exact floor is below this fraction of it")  # fmt: skip
    group.add_argument(
        "--checkpoint-every",
        type=positive,
        metavar="N",
        help="steps; an interrupted run goes on from the latest",
    )
    group.add_argument("--checkpoint-at", metavar="N,N,…", help="steps whose encoder is kept")
    group.add_argument("--tensorboard", action="store_true", help="event files too")


def settings(arguments: argparse.Namespace, model: Any) -> tuple[EncoderConfig, TrainConfig, str]:
    """The preset with the given options in place of its own settings."""
    encoder, config, description = preset(arguments.preset, model)
    if arguments.steps is not None:
        config = config.rescaled(arguments.steps)
    shape = {
        field: getattr(arguments, option)
        for option, field in _ENCODER.items()
        if getattr(arguments, option) is not None
    }
    changes = {
        name: getattr(arguments, name) for name in _TRAIN if getattr(arguments, name) is not None
    }
    for name in ("train_size", "mask_rate", "train_mask_rate"):
        if changes.get(name) == 0:
            changes[name] = None
    if changes.get("train_size", 1) is None and config.held_out == "content":
        changes.setdefault("held_out", "index")
    # What only a setting of the preset that is no longer chosen had a use for goes with it.
    for name, wanted, option in (
        ("optimiser", "muon", "muon_lr"),
        ("targets", "posterior", "target_level"),
    ):
        if changes.get(name, wanted) != wanted and option not in changes:
            changes[option] = None
    if changes.get("schedule", config.schedule) != config.schedule:
        changes.setdefault("cooldown", 0)
    if "eval_every" in changes:
        changes["eval_at"] = None
    if arguments.frozen is not None:
        changes["frozen"] = tuple(name for name in arguments.frozen.split(",") if name)
    if arguments.init_gamma is not None:
        changes["init_gamma"] = _gamma(str(arguments.init_gamma))
    if arguments.checkpoint_at is not None:
        changes["checkpoint_at"] = _steps("--checkpoint-at", arguments.checkpoint_at)
    for name in ("compile", "tensorboard"):
        if getattr(arguments, name):
            changes[name] = True
    if encoder.readout == "ancestor" and arguments.ancestor_level is not None:
        if arguments.ancestor_level > model.depth:
            raise ArgumentError(
                f"--ancestor-level must be below --depth = {model.depth}, "
                f"got {arguments.ancestor_level}"
            )
        shape["n_classes"] = model.alphabets[arguments.ancestor_level]
    if encoder.readout == "root" and (changes.get("mask_rate") or changes.get("train_mask_rate")):
        shape["masked_root"] = True
    return replace(encoder, **shape), replace(config, **changes), description


def _steps(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(count(part) for part in str(text).split(","))
    except argparse.ArgumentTypeError as error:
        raise ArgumentError(f"{option}: {error}; give numbers like 100,1e3,5000") from error


def _gamma(text: str) -> float | dict[str, float]:
    try:
        if "=" not in text:
            return float(text)
        return {name: float(value) for name, value in (p.split("=") for p in text.split(","))}
    except ValueError as error:
        raise ArgumentError(
            f"--init-gamma: want a number, or part=number with commas between, got {text!r}"
        ) from error


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on training; print where it stands in the end."""
    model = model_from(arguments)
    encoder, config, description = settings(arguments, model)
    # Here and not above: `hfilter --help` must work without torch.
    from hfilter.learn.train import train

    leads = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun
    talks = leads and not arguments.quiet
    if talks:
        print(f"{arguments.preset}: {description}")
    result = train(model, encoder, config, arguments.out, progress=talks, start=arguments.start)
    if talks:
        last = result.history[-1]
        own = last["kl"][model.filter_level]
        if config.stop_at is not None and last["step"] < config.steps:
            print(
                f"stopped before step {config.steps}: within {100 * config.stop_at:g} % of the floor"
            )
        of = f" per leaf at t = {config.time_of_evaluation}" if encoder.readout == "denoise" else ""
        print(
            f"step {last['step']}: cross-entropy {last['cross_entropy']:.4f} nats{of}, exact floor "
            f"{last['floor']:.4f}; accuracy {last['accuracy']:.4f}, exact "
            f"{last['exact_accuracy']:.4f}; KL(BP_{model.filter_level} || encoder) {own:.4f}"
        )
        print(f"{arguments.out}/encoder.safetensors; next: hfilter evaluate {arguments.out}")
    return 0
