"""Belief propagation as the exact denoiser of a diffusion model. Needs NumPy only.

One-hot leaves x are noised, y = a x + b noise with a**2 + b**2 = 1. The likelihood of symbol c at
leaf j is proportional to exp(a y[j, c] / b**2): soft evidence, and the posterior of the leaves is
the best denoiser there is. Filtered models denoise as well, with less context.

Source: Garnier-Brun, Biggio, Beltrame, Mézard, Saglietti, arXiv 2603.03469, section 2.

python examples/exact_denoiser.py
"""

from __future__ import annotations

import numpy as np

import hfilter

grammar = hfilter.Grammar.published(6, 1.0, 0, rules_per_symbol=4)
model = hfilter.TreeModel(grammar, depth=4)
sample = model.sample(5_000, seed=0)
clean = np.eye(model.vocab_size)[sample.leaves]
noise = np.random.default_rng(0).normal(size=clean.shape)

print("share of leaves recovered from noise, by who believes in which filter level")
print("  a**2   " + "".join(f"   k={k} " for k in range(model.depth + 1)))
for signal in (0.9, 0.7, 0.5, 0.3, 0.1):
    noisy = np.sqrt(signal) * clean + np.sqrt(1 - signal) * noise
    fields = np.sqrt(signal) / (1 - signal) * noisy
    line = f"  {signal:.2f}   "
    for k in range(model.depth + 1):
        law = model.filtered(k).infer(log_fields=fields).leaves
        line += f"  {np.mean(law.argmax(-1) == sample.leaves):.4f}"
    print(line)
