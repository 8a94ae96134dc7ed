"""What each choice of the fast preset is worth: one change at a time, the same number of sequences.

Masked leaves at depth 3, every run on the same 128 000 sequences (but where the change is how many);
the excess cross-entropy over the exact floor at the end, relative to it, and processor seconds of the
training. One seed: differences below a fifth of a value mean little. `docs/laboratory.md` has the
table.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from typing import Any

import hfilter
from hfilter.learn.presets import preset
from hfilter.learn.train import train

# name, changes of the encoder, changes of the training
CHANGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("the preset", {}, {}),
    ("targets: labels", {}, {"targets": "labels"}),
    ("AdamW at 4e-3", {}, {"optimiser": "adamw", "muon_lr": None}),
    ("AdamW at 4e-3, labels", {}, {"optimiser": "adamw", "muon_lr": None, "targets": "labels"}),
    ("Muon at half the rate", {}, {"muon_lr": 0.00625}),
    ("Muon at 1.6 times the rate", {}, {"muon_lr": 0.02}),
    ("ReLU, as many parameters", {"activation": "relu", "d_feedforward": 144}, {}),
    ("pre-norm", {"norm": "pre"}, {}),
    ("one head", {"n_heads": 1}, {}),
    ("8 heads", {"n_heads": 8}, {}),
    ("sinusoidal positions", {"positions": "sinusoidal"}, {}),
    ("rotary positions", {"positions": "rotary"}, {}),
    ("width 32, feed-forward 48", {"d_model": 32, "d_feedforward": 48}, {}),
    ("width 128, feed-forward 192", {"d_model": 128, "d_feedforward": 192}, {}),
    ("one layer more", {"n_layers": 4}, {}),
    ("one hidden leaf per sequence", {}, {"train_mask_rate": None}),
    ("leaves hidden at rate .1", {}, {"train_mask_rate": 0.1}),
    ("leaves hidden at rate .4", {}, {"train_mask_rate": 0.4}),
    ("batches of 64", {}, {"batch_size": 64, "steps": 2000}),
    ("batches of 1024", {}, {"batch_size": 1024, "steps": 125}),
    ("constant rate", {}, {"schedule": "constant"}),
]


def main() -> None:
    """Run all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500, help="of 256 sequences")
    parser.add_argument("--only", help="changes whose name contains this")
    arguments = parser.parse_args()
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    print("| change | excess over the floor | parameters | processor seconds |\n|---|---|---|---|")
    for name, shape, training in CHANGES:
        if arguments.only and arguments.only not in name:
            continue
        encoder, config, _ = preset("mlm-fast", model)
        steps = training.get("steps", 500) * arguments.steps // 500
        config = config.rescaled(steps)
        config = replace(
            config, **{**training, "steps": steps, "eval_at": (steps,), "n_eval": 8192}
        )
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            result = train(model, replace(encoder, **shape), config, folder, progress=False)
        last = result.history[-1]
        print(
            f"| {name} | {last['kl'][0] / last['floor']:.2%} | {result.encoder.n_parameters():,} "
            f"| {time.process_time() - began:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
