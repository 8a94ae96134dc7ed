"""Train a small encoder on masked leaves and watch it pass BP_4, BP_3, ... on its way to BP_0.

Needs hfilter[learn]. Ctrl-C and the same command again goes on where it stopped.

python examples/train_encoder.py [folder]
"""

from __future__ import annotations

import sys
from dataclasses import replace

import hfilter
from hfilter.learn.encoder import Encoder
from hfilter.learn.presets import fast_mlm
from hfilter.learn.train import log_spaced, train


def show(record: dict[str, object], encoder: Encoder) -> None:
    """Print which exact law the encoder is nearest to."""
    divergence = record["kl"]
    assert isinstance(divergence, dict)
    nearest = min(divergence, key=divergence.__getitem__)
    print(
        f"step {record['step']:>5}  cross-entropy {record['cross_entropy']:.4f} "
        f"(floor {record['floor']:.4f})  nearest to BP_{nearest}: {divergence[nearest]:.4f} nats"
    )


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example"
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    shape, config = fast_mlm(model)
    config = replace(config, eval_at=log_spaced(config.steps, 20))
    train(model, shape, config, folder, callback=show, progress=False)
