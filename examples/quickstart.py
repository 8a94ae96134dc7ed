"""Draw sequences, hide some leaves, ask for exact posteriors. Needs NumPy only.

python examples/quickstart.py
"""

from __future__ import annotations

import numpy as np

import hfilter

grammar = hfilter.Grammar.published(4, 1.0, 0)
model = hfilter.TreeModel(grammar, depth=4)
print(grammar)

# Row i of a seed is always the same row: nothing needs to be stored.
sample = model.sample(100_000, seed=1)
again = model.sample(1, seed=1, start=99_999)
print("row 99 999, drawn twice:", sample.leaves[-1], again.leaves[0])

# Who knows the grammar and sees everything knows the root.
root = model.root_posterior(sample.leaves)
print(f"root found in {np.mean(root.argmax(-1) == sample.roots):.4f} of all rows")

# Hide three leaves in ten; ask for all of them at once.
mask = np.random.default_rng(0).random(sample.leaves.shape) < 0.3
post = model.infer(sample.leaves, mask=mask)
right = post.leaves.argmax(-1) == sample.leaves
print(f"hidden leaves guessed right: {right[mask].mean():.4f}")

# The same question to those who are blind to long range.
for k in range(1, model.depth + 1):
    right = model.filtered(k).infer(sample.leaves, mask=mask).leaves.argmax(-1) == sample.leaves
    print(f"  believing in filter level {k}: {right[mask].mean():.4f}")

# ln P(sequence) of every row: its mean is minus the entropy of the language.
print(f"entropy: {-model.log_prob(sample.leaves).mean():.2f} nats a sequence")
