"""The smallest denoiser that has everything, its training, and something to show it."""

from __future__ import annotations

import dataclasses

import torch

from hfilter.learn.encoder import EncoderConfig
from hfilter.learn.train import TrainConfig


def tiny(**changes):
    base = EncoderConfig(
        4, 4, d_model=8, n_layers=2, d_feedforward=12, dropout=0.2, readout="denoise",
        positions="learned", time_embedding=6,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


CONFIG = TrainConfig(
    steps=10, batch_size=6, lr=3e-3, schedule="linear-cosine", cooldown=6, final_lr=0.1, clip=0.5,
    eval_every=3, n_eval=30, checkpoint_every=4, checkpoint_at=(1, 3, 10), train_size=20,
    noise="cosine", noise_steps=40, held_out="content",
)  # fmt: skip


def some_input(n=3, n_leaves=4, q=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, n_leaves, q, generator=generator)
