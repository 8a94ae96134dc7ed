"""Settings that are known to work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfilter.learn.encoder import EncoderConfig
from hfilter.learn.train import TrainConfig

if TYPE_CHECKING:
    from hfilter.exact import TreeModel


def fast_mlm(model: TreeModel) -> tuple[EncoderConfig, TrainConfig]:
    """A small encoder and a short run."""
    encoder = EncoderConfig(
        vocab_size=model.vocab_size,
        n_leaves=model.n_leaves,
        d_model=64,
        n_layers=max(1, model.depth),
        n_heads=4,
        d_feedforward=256,
        dropout=0.0,
        positions="learned",
        norm="pre",
    )
    config = TrainConfig(
        steps=4000,
        batch_size=64,
        lr=1.5e-3,
        schedule="cosine",
        warmup=100,
        clip=1.0,
        train_mask_rate=0.2,
    )
    return encoder, config
