"""``hfilter evaluate`` of a denoiser: beside the exact ones, at one time of the noise after the other."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from hfilter.cli.options import positive
from hfilter.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from hfilter.exact import TreeModel
    from hfilter.learn.encoder import Encoder

__all__ = ["evaluate"]


def evaluate(
    arguments: argparse.Namespace,
    encoder: Encoder,
    model: TreeModel,
    training: dict[str, Any],
    seed: int,
    shown: int,
) -> dict[str, Any]:
    """Score at every time that is asked for and at all of them together; print a table.

    Parameters
    ----------
    arguments
        Of the command.
    encoder, model, training
        The network, what it was trained on, and how.
    seed
        Of the held-out rows and their noise.
    shown
        Rows of the training set to score too; 0: none.

    Returns
    -------
    dict
        By kind of data and then by time (``"all"``: over 1 … T), numbers in nats per leaf.
    """
    from hfilter.learn.denoising import all_times
    from hfilter.learn.masks import HELD_OUT_START
    from hfilter.learn.noise import Noise, default_eval_time, schedule_of
    from hfilter.learn.tasks import HeldOut

    for option in ("uniform", "other_seed", "mask_rate"):
        if getattr(arguments, option) not in (None, False):
            flag = "--" + option.replace("_", "-")
            raise ArgumentError(f"{flag}: not for denoisers; leave it out")
    try:
        schedule = schedule_of(training.get("noise", "published"), training.get("noise_steps", 500))
    except (TypeError, ValueError) as error:
        raise DataError(f"{arguments.path}: its run does not tell its noise ({error})") from error
    steps, rows = schedule.n_steps, arguments.rows
    noise = Noise(schedule, model.vocab_size, seed)
    times = _times(arguments.times, steps)
    if times is None:
        times = [training.get("eval_time") or default_eval_time(steps)]
    levels = range(model.depth + 1)
    if arguments.filter_level is not None:
        if arguments.filter_level > model.depth:
            raise ArgumentError(
                f"--filter-level must be at most {model.depth}, got {arguments.filter_level}"
            )
        levels = range(arguments.filter_level, arguments.filter_level + 1)
    own, known = model.filter_level, None
    if training.get("held_out") == "content":
        known = model.sample(
            training["train_size"], seed=_seed(training), start=training["data_start"]
        ).leaves
    kinds: dict[str, tuple[TreeModel, int, int, int, Any]] = {
        f"level {k}" + (" (own)" if k == own else ""): (
            model.filtered(k), rows, seed, HELD_OUT_START, known
        )
        for k in sorted(levels, key=lambda k: (k != own, k))
    }  # fmt: skip
    if shown:
        start = training.get("data_start", 0)
        kinds["in sample"] = (model, min(rows, shown), _seed(training), start, None)
    if not arguments.quiet:
        ladder = "".join(f"  k = {k}".rjust(8) for k in range(model.depth + 1))
        apart = "" if known is None else ", none of them in the training set"
        print(
            f"denoise, {schedule.describe()}\n"
            f"{rows} held-out sequences of each kind{apart}; exact: BP of the data's own law; "
            "nats per leaf\n"
            f"{'data':20s}    t  accuracy   exact  cross-entropy   exact   KL(BP_k || encoder){ladder}"
        )
    found: dict[str, Any] = {}
    for name, (source, n, of, start, excluding) in kinds.items():
        found[name] = {}
        together: tuple[str, Any] = ("all", all_times(n, steps))
        for t, when in (*((str(t), t) for t in times), together):
            held_out = HeldOut(
                source,
                "denoise",
                n,
                seed=of,
                start=start,
                noise=noise,
                times=when,
                excluding=excluding,
            )
            scores = held_out.evaluate(encoder)
            exact = held_out.exact_accuracy[source.filter_level]
            found[name][t] = {
                "n_sequences": n,
                "accuracy": scores.accuracy,
                "exact_accuracy": exact,
                "cross_entropy": scores.cross_entropy,
                "floor": held_out.floor,
                "kl": scores.kl,
            }
            if not arguments.quiet:
                rungs = "".join(f"{value:8.4f}" for value in scores.kl.values())
                print(
                    f"{name:20s} {t:>4s}  {scores.accuracy:8.4f}{exact:8.4f}  "
                    f"{scores.cross_entropy:13.4f}{held_out.floor:8.4f}  {'':19s}{rungs}",
                    flush=True,
                )
    return found


def _seed(training: dict[str, Any]) -> int:
    own = training.get("data_seed")
    return int(training.get("seed") or 0) if own is None else int(own)


def _times(text: str | None, steps: int) -> list[int] | None:
    if text is None:
        return None
    try:
        times = [positive(part) for part in str(text).split(",")]
    except argparse.ArgumentTypeError as error:
        raise ArgumentError(f"--times: {error}; give numbers like 25,75,150") from error
    if max(times) > steps:
        raise ArgumentError(f"--times must be from 1 to T = {steps}, got {max(times)}")
    return times
