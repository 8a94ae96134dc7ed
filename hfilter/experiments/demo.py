"""The main job: sequences, exact accuracies, an encoder beside them, and a page about it all.

Source of the setting: Garnier-Brun, Mézard, Moscato, Saglietti, arXiv 2408.15138, sections 2 to 4.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

try:
    import matplotlib
    import torch
except ImportError as error:
    from hfilter.experiments import missing_package

    raise missing_package(error) from error

import hfilter
from hfilter.analysis.accuracies import exact_accuracies
from hfilter.analysis.attention import attention_maps
from hfilter.experiments import drawings, figures
from hfilter.experiments.artefacts import write_json, write_text
from hfilter.experiments.folder import CLAIM, FILES, TRAINING, claim, write_tables
from hfilter.experiments.progress import progress
from hfilter.experiments.record import Climb, DemoRecord, Draw, Tables
from hfilter.experiments.report import html_page, text_summary
from hfilter.learn.encoder import EncoderConfig
from hfilter.learn.presets import fast_mlm
from hfilter.learn.train import TrainConfig, TrainResult, log_spaced, train

__all__ = ["DemoConfig", "run_demo"]

# Far from the rows that are drawn and trained on, and from the held-out rows at 2**48.
_TABLE_START = 2**40


@dataclass(frozen=True)
class DemoConfig:
    """What the demo is to do.

    Parameters
    ----------
    out : Path
        Folder, made if need be.
    seed : int
        Of data, masks, initial weights and dropout.
    grammar_seed, vocab_size, sigma, depth
        The published grammar and the depth of its tree.
    sequences : int, optional
        How many to draw; ten million, 200 000 if ``quick``.
    rows : int, optional
        Sequences for each row of the accuracy tables; 100 000, 5 000 if ``quick``.
    steps : int, optional
        Updates of the encoder; those of the fast preset, 60 if ``quick``.
    quick : bool
        A small encoder and small sizes: does everything work here?
    overwrite : bool
        Start anew whatever demo is in the folder.
    quiet : bool
        Show nothing.
    """

    out: Path = Path("hfilter-demo")
    seed: int = 0
    grammar_seed: int = 0
    vocab_size: int = 4
    sigma: float = 1.0
    depth: int = 4
    sequences: int | None = None
    rows: int | None = None
    steps: int | None = None
    quick: bool = False
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class _Plan:
    """The configuration with every number decided."""

    model: hfilter.TreeModel
    sequences: int
    rows: int
    encoder: EncoderConfig
    training: TrainConfig
    settings: dict[str, Any]


_STEPS = 800


def _is_slow() -> bool:
    # Plain Python loops are some thousand times slower; the demo still ends, with larger errors.
    return bool(hfilter.provenance()["backend"] == "python")


def _plan(config: DemoConfig) -> _Plan:
    grammar = hfilter.Grammar.published(config.vocab_size, config.sigma, config.grammar_seed)
    model = hfilter.TreeModel(grammar, depth=config.depth)
    slow = _is_slow()
    sequences = config.sequences or (2_000 if slow else 200_000 if config.quick else 10_000_000)
    rows = config.rows or (200 if slow else 5_000 if config.quick else 100_000)
    encoder, training = fast_mlm(model)
    if config.quick:
        encoder = replace(encoder, d_model=32, n_layers=2, n_heads=1, d_feedforward=48)
        training = replace(training, batch_size=64)
    # The preset's climb in less than half its steps: the whole demo stays under three minutes.
    steps = config.steps or (60 if config.quick else _STEPS)
    held_out = min(training.n_eval, 100 if slow else 512 if config.quick else training.n_eval)
    training = replace(
        training,
        steps=steps,
        warmup=min(training.warmup, steps // 2),
        seed=config.seed,
        eval_at=log_spaced(steps, 8 if config.quick else 28) if steps > 1 else (1,),
        n_eval=held_out,
        # One thread: a second one gains little at this size, and loses a factor of ten where the
        # processor is shared and the two wait for each other.
        threads=training.threads or 1,
        checkpoint_every=max(1, min(training.checkpoint_every, steps // 4)),
    )
    settings = {
        "seed": config.seed,
        "sequences": sequences,
        "rows": rows,
        "grammar": grammar.describe(),
        "depth": config.depth,
        "encoder": asdict(encoder),
        "training": asdict(training),
    }
    return _Plan(model, sequences, rows, encoder, training, settings)


def _draw(model: hfilter.TreeModel, plan: _Plan, seed: int, quiet: bool) -> Draw:
    block = min(1 << 18, plan.sequences)
    counts = np.zeros((model.n_leaves, model.vocab_size), dtype=np.int64)
    seconds = 0.0
    with progress(plan.sequences, "drawing", " sequences", quiet=quiet) as advance:
        for first in range(0, plan.sequences, block):
            n = min(block, plan.sequences - first)
            began = time.perf_counter()
            sample = model.sample(n, seed=seed, start=first)
            seconds += time.perf_counter() - began
            for leaf in range(model.n_leaves):
                symbols = sample.leaves[:, leaf]
                counts[leaf] += np.bincount(symbols, minlength=model.vocab_size)
            advance(n)
    flat = model.filtered(model.depth)
    exact = np.stack([model.root_prior @ flat.channel(i) for i in range(model.n_leaves)])
    frequencies = counts / plan.sequences
    spread = np.sqrt(exact * (1 - exact) / plan.sequences)
    deviation = np.abs(frequencies - exact)[spread > 0] / spread[spread > 0]
    return Draw(
        sequences=plan.sequences,
        leaves=model.n_leaves,
        seconds=seconds,
        frequencies=frequencies,
        exact=exact,
        largest_deviation=float(deviation.max(initial=0.0)),
    )


def _tables(model: hfilter.TreeModel, plan: _Plan, seed: int, quiet: bool) -> Tables:
    began = time.perf_counter()
    with progress((model.depth + 1) * plan.rows, "exact", " sequences", quiet=quiet) as advance:
        shown = 0

        def show(done: int, total: int) -> None:
            nonlocal shown
            advance(done - shown)
            shown = done

        exact = exact_accuracies(model, plan.rows, seed=seed, start=_TABLE_START, progress=show)
    return Tables(
        rows=plan.rows,
        root=exact.root,
        root_se=exact.root_se,
        mlm=exact.mlm,
        mlm_se=exact.mlm_se,
        mlm_cross_entropy=exact.mlm_cross_entropy,
        mlm_cross_entropy_se=exact.mlm_cross_entropy_se,
        seconds=time.perf_counter() - began,
    )


def _attention(result: TrainResult) -> np.ndarray:
    """Attention per layer, averaged over heads and held-out inputs."""
    maps = attention_maps(result.encoder, result.held_out.batch.tokens[:4096])
    return np.asarray(maps.mean.mean(axis=1))


def _climb(result: TrainResult, config: TrainConfig) -> Climb:
    history, held_out = result.history, result.held_out
    levels = sorted(held_out.exact)
    return Climb(
        steps=np.array([record["step"] for record in history]),
        cross_entropy=np.array([record["cross_entropy"] for record in history]),
        accuracy=np.array([record["accuracy"] for record in history]),
        divergence=np.array([[record["kl"][k] for k in levels] for record in history]),
        floors=np.array([held_out.exact_cross_entropy[k] for k in levels]),
        exact_accuracy=np.array([held_out.exact_accuracy[k] for k in levels]),
        attention=_attention(result),
        held_out=config.n_eval,
        batch_size=config.batch_size,
        parameters=result.encoder.n_parameters(),
        seconds=float(history[-1]["elapsed"]),
    )


def _rules(grammar: hfilter.Grammar) -> list[tuple[int, tuple[int, ...], float]]:
    tensor = grammar.tensor(0)
    return [
        (int(a), tuple(int(c) for c in children), float(tensor[a, *children]))
        for a, *children in np.argwhere(tensor > 0)
    ]


def _draw_figures(record: DemoRecord, arity: int, folder: Path) -> dict[str, str]:
    tables, climb, tree = record.tables, record.climb, record.tree
    chance = 1 / record.draw.frequencies.shape[1]
    drawn = {
        "tree": drawings.example_tree(tree, arity),
        "filter_levels": drawings.filter_levels(len(tree) - 1, arity),
        "accuracy": figures.accuracy_matrices(
            tables.root, tables.root_se, tables.mlm, tables.mlm_se, chance
        ),
        "climb": figures.climb(
            climb.steps, climb.cross_entropy, climb.floors.tolist(), -float(np.log(chance))
        ),
        "staircase": figures.staircase(climb.steps, climb.divergence),
        "attention": figures.attention_maps(climb.attention, arity),
        "overview": drawings.overview(tree, arity, climb.steps, climb.divergence),
    }
    return {name: figures.save(figure, folder, name) for name, figure in drawn.items()}


def run_demo(config: DemoConfig) -> DemoRecord:
    """Do everything and leave a folder.

    Parameters
    ----------
    config : DemoConfig

    Returns
    -------
    DemoRecord
        The numbers that are also in ``numbers.json``.

    Raises
    ------
    DataError
        The folder is not empty and not a demo's, or cannot be written.
    ArgumentError
        The folder holds a demo with other settings; ``overwrite`` starts anew.

    Notes
    -----
    The folder holds ``report.html``, ``numbers.json``, ``provenance.json``, tables as CSV,
    ``figures/`` as PNG and PDF, and the run folder ``training/``, from which an interrupted
    training goes on.
    """
    began = time.perf_counter()
    plan = _plan(config)
    model, out = plan.model, config.out
    claim(out, plan.settings, config.overwrite)

    def say(text: str) -> None:
        if not config.quiet:
            print(text, file=sys.stderr, flush=True)

    if _is_slow():
        say("note: no compiled backend and no Numba here, plain Python serves: smaller sizes")
    say(f"1/4  {plan.sequences:,} sequences of {model.n_leaves} leaves")
    draw = _draw(model, plan, config.seed, config.quiet)
    say(f"2/4  exact accuracies, {plan.rows:,} sequences of every filter level")
    tables = _tables(model, plan, config.seed, config.quiet)
    say(f"3/4  an encoder, {plan.training.steps:,} steps of {plan.training.batch_size} sequences")
    result = train(model, plan.encoder, plan.training, out / TRAINING, progress=not config.quiet)
    climb = _climb(result, plan.training)
    say("4/4  figures and page")
    levels = model.sample(1, seed=config.seed, levels=True).levels
    made = {
        **hfilter.provenance(hfilter=hfilter.__version__),
        "torch": torch.__version__,
        "matplotlib": matplotlib.__version__,
    }
    record = DemoRecord(
        settings=plan.settings,
        provenance=made,
        model=model.describe(),
        rules=_rules(model.grammar),
        tree=[np.asarray(levels[d][0]) for d in range(model.depth + 1)],
        draw=draw,
        tables=tables,
        climb=climb,
        seconds=time.perf_counter() - began,
    )
    pictures = _draw_figures(record, model.arity, out / "figures")
    record = replace(record, seconds=time.perf_counter() - began)
    model.grammar.save(out / "grammar.npz")
    write_tables(record, out)
    write_json(out / "numbers.json", record)
    write_json(
        out / "provenance.json",
        {"made_by": "hfilter demo", "settings": plan.settings, "model": record.model, **made},
    )
    files = [*(name for name in FILES if name != "report.html"), CLAIM]
    page = write_text(out / "report.html", html_page(record, pictures, [*files, f"{TRAINING}/"]))
    if not config.quiet:
        print(text_summary(record, colour=sys.stdout.isatty()))
        print(f"page to read: {page.resolve()}")
    return record
