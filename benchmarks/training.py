"""What does a training step cost beside its matrix products? Loop, data, exact comparison, timed.

Our loop and a bare torch loop of the same encoder, batches and optimiser run in turn; the best round
of each counts, in processor time on the CPU, which neighbours disturb less.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import hfilter
from hfilter.learn import train as loop
from hfilter.learn.data import Batch, FreshBatches
from hfilter.learn.encoder import Encoder, EncoderConfig
from hfilter.learn.optimisers import Optimiser
from hfilter.learn.presets import fast_mlm
from hfilter.learn.tasks import HeldOut, predict

spent = [0.0]


def clock(device: str) -> float:
    """Seconds: of this process's processors, or with everything on the GPU done."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class TimedBatches(FreshBatches):
    """The data of the loop, with the time that it takes the loop to get it."""

    def batch(self, step: int) -> Batch:
        """As always, timed."""
        began = time.perf_counter()
        found = super().batch(step)
        spent[0] += time.perf_counter() - began
        return found


def bare(model: hfilter.TreeModel, encoder: EncoderConfig, config: Any) -> float:
    """Seconds per step of the loop that anyone would write, with its batches ready in memory."""
    torch.set_num_threads(config.threads)
    source = FreshBatches(model, config.batch_size, task=encoder.readout, device=config.device,
                          mask_rate=config.train_mask_rate, targets=config.targets)  # fmt: skip
    batches = [source.batch(step) for step in range(config.steps)]
    network = Encoder(encoder).to(config.device)
    parts = Optimiser(network, encoder, config, torch.device(config.device)).parts
    began = clock(config.device)
    for batch in batches:
        logits = network(batch.tokens)
        if logits.ndim == 3:
            logits = logits[batch.mask]
        loss = F.cross_entropy(logits, batch.labels if batch.law is None else batch.law)
        for part in parts:
            part.zero_grad()
        loss.backward()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        for part in parts:
            part.step()
    return (clock(config.device) - began) / config.steps


def ours(model: hfilter.TreeModel, encoder: EncoderConfig, config: Any) -> tuple[float, float]:
    """Seconds per step of `train`, first step to last; and of those, waiting for data."""
    spent[0] = 0.0
    marks: list[float] = []
    stepping = loop.Stepper.step

    def step(self: Any, state: Any) -> None:
        if not marks:
            marks.append(clock(config.device))
        stepping(self, state)
        if state.step == config.steps:
            self.look(state)
            marks.append(clock(config.device))

    loop.Stepper.step = step  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings = replace(config, checkpoint_every=10 * config.steps, n_eval=8)
            loop.train(model, encoder, settings, Path(folder), progress=False)
    finally:
        loop.Stepper.step = stepping  # type: ignore[method-assign]
    return (marks[1] - marks[0]) / config.steps, spent[0] / config.steps


def comparison(
    model: hfilter.TreeModel, encoder: EncoderConfig, config: Any
) -> tuple[float, float, float]:
    """Seconds to prepare a held-out set's exact answers, to evaluate, and of that the network."""
    torch.set_num_threads(config.threads)
    began = clock(config.device)
    held_out = HeldOut(model, encoder.readout, config.n_eval)
    prepared = clock(config.device) - began
    network = Encoder(encoder).to(config.device)
    held_out.evaluate(network)
    whole, forward = [], []
    for _ in range(2):
        began = clock(config.device)
        held_out.evaluate(network)
        middle = clock(config.device)
        predict(network, held_out.batch.tokens)
        whole.append(middle - began)
        forward.append(clock(config.device) - middle)
    return prepared, min(whole), min(forward)


def measure(
    name: str,
    encoder: EncoderConfig,
    config: Any,
    model: hfilter.TreeModel,
    planned: Any,
    rounds: int,
) -> None:
    """One line: ``config`` is short and is run; ``planned`` is the run whose shares are told."""
    ratios, steps, draws, bares = [], [], [], []
    for _ in range(rounds):
        bares.append(bare(model, encoder, config))
        step, draw = ours(model, encoder, config)
        steps.append(step)
        draws.append(draw)
        ratios.append(step / bares[-1])
    step, draw = min(steps), min(draws)
    prepared, evaluation, forward = comparison(model, encoder, planned)
    whole, points = planned.steps * step, len(planned.eval_points())
    exact = (prepared + points * max(0.0, evaluation - forward)) / whole
    print(json.dumps({
        "encoder": name, "task": encoder.readout, "targets": config.targets,
        "device": config.device, "batch": config.batch_size, "steps": config.steps,
        "step_ms": 1e3 * step, "bare_ms": 1e3 * min(bares), "loop_over_bare": step / min(bares),
        "rounds": [round(r, 3) for r in ratios], "batch_ms": 1e3 * draw, "waiting": draw / step,
        "exact_share": exact, "evaluation_share": points * evaluation / whole,
    }), flush=True)  # fmt: skip


def main() -> None:
    """Both encoders, all tasks, on the processor and on the GPU if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds = 2 if quick else 3
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    loop.FreshBatches = TimedBatches  # type: ignore[misc]
    fast, settings = fast_mlm(model)
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        steps = 16 if quick else 40
        short = replace(
            settings.rescaled(steps), eval_at=(), eval_every=steps, schedule="constant",
            device=device,
        )  # fmt: skip
        for targets in ("labels", "posterior"):
            config = replace(short, targets=targets)
            planned = replace(settings, targets=targets, device=device)
            measure("fast preset", fast, config, model, planned, rounds)
        for readout in ("root", "causal"):
            config = replace(short, train_mask_rate=None)
            other = replace(fast, readout=readout)
            measure("fast preset", other, config, model, settings, rounds)
        steps = 64 if device == "cuda" else 16
        for readout in () if quick else ("mlm", "root"):
            published = EncoderConfig.for_model(model, readout=readout)
            config = loop.TrainConfig(steps=steps, eval_every=steps, device=device)
            planned = loop.TrainConfig(steps=100_000, eval_every=1000, device=device)
            measure("as published", published, config, model, planned, rounds)


if __name__ == "__main__":
    main()
