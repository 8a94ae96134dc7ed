"""Train a small encoder to name the root of a sequence, beside the exact answer (half a minute).

Needs torch: pip install '.[learn]'. Ctrl-C and the same command again goes on where it stopped.

python examples/train_root.py [folder]
"""

from __future__ import annotations

import sys

import hfilter
from hfilter.learn.encoder import Encoder, EncoderConfig
from hfilter.learn.train import TrainConfig, log_spaced, train


def show(record: dict[str, object], encoder: Encoder) -> None:
    """Print how far the encoder is from the exact posterior."""
    print(
        f"step {record['step']:>5}  accuracy {record['accuracy']:.3f} "
        f"(exact {record['exact_accuracy']:.3f})  cross-entropy {record['cross_entropy']:.4f} "
        f"(floor {record['floor']:.4f})"
    )


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "runs/root"
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    shape = EncoderConfig.for_model(
        model, readout="root", d_model=64, n_layers=3, d_feedforward=128, dropout=0.0
    )
    steps = 3000
    config = TrainConfig(
        steps=steps,
        batch_size=64,
        lr=1e-3,
        schedule="cosine",
        warmup=200,
        eval_at=log_spaced(steps, 15),
        n_eval=2048,
    )
    train(model, shape, config, folder, callback=show, progress=False)
