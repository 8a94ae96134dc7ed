"""Does a training step ever wait for its data? The loop of `hfilter.learn.train`, its draws timed."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import hfilter
from hfilter.learn import train as loop
from hfilter.learn.data import Batch, FreshBatches
from hfilter.learn.encoder import EncoderConfig
from hfilter.learn.presets import fast_mlm

spent = [0.0]


class TimedBatches(FreshBatches):
    """The data of the loop, with the time that it takes the loop to get it."""

    def batch(self, step: int) -> Batch:
        """As always, timed."""
        began = time.perf_counter()
        found = super().batch(step)
        spent[0] += time.perf_counter() - began
        return found


def measure(name: str, encoder: EncoderConfig, config: Any, model: hfilter.TreeModel) -> None:
    """One short run; steps and draws only, no evaluation and no checkpoint among them."""
    spent[0] = 0.0
    with tempfile.TemporaryDirectory() as folder:
        run = loop.train(model, encoder, config, Path(folder), progress=False)
    rate = run.history[-1]["sequences_per_second"]
    step, draw = config.batch_size / rate, spent[0] / config.steps
    print(json.dumps({
        "encoder": name, "task": encoder.readout, "device": config.device,
        "batch": config.batch_size, "steps": config.steps, "step_ms": 1e3 * step,
        "batch_ms": 1e3 * draw, "waiting": draw / step,
    }), flush=True)  # fmt: skip


def main() -> None:
    """Both encoders, both tasks, on the processor and on the GPU if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    loop.FreshBatches = TimedBatches  # type: ignore[misc]
    fast, settings = fast_mlm(model)
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        steps = 64 if quick else 256
        short = replace(
            settings, steps=steps, eval_at=(), eval_every=steps, n_eval=64, device=device
        )
        measure("fast preset", fast, short, model)
        steps = 64 * (8 if device == "cuda" else 1)
        for readout in () if quick else ("mlm", "root"):
            published = EncoderConfig.for_model(model, readout=readout)
            config = loop.TrainConfig(steps=steps, eval_every=steps, n_eval=64, device=device)
            measure("as published", published, config, model)


if __name__ == "__main__":
    main()
