"""Train networks on a model's sequences, beside the exact answer to what they are asked.

Needs torch and safetensors: ``pip install '.[learn]'``; ``laws``, ``masks``, ``config``,
``architecture`` and ``presets`` do without. Import from the files:

- ``learn.train``: ``train`` runs or resumes a training run; ``TrainConfig``, ``TrainResult``,
  ``load_encoder``, ``load_model``, ``read_log`` and ``log_spaced`` belong to it.
- ``learn.presets``: ``preset(name, model)``, settings as published or fast; ``PRESETS`` names them.
- ``learn.encoder``: ``Encoder`` and ``EncoderConfig``; ``EncoderConfig.for_model(model, ...)``
  takes the sizes from a model, ``Encoder.trace`` names every inner activation and edits it.
- ``learn.initial``: ``init_gamma_``, initial weights of a chosen scale.
- ``learn.data``: ``FreshBatches`` for a loop of your own; batches are functions of (seed, step).
- ``learn.denoising``: ``DenoisingHeldOut``, at one time of the noise and at all, and training rows.
- ``learn.tasks``: ``HeldOut`` (held-out set with exact answers), ``task_loss``, ``predict``.
- ``learn.laws``: ``exact_law``, the exact answer to each task; ``learn.masks``, ``learn.noise``.
- ``learn.transfer``: an encoder's body taken over to another task.
- ``learn.averaging``, ``learn.freezing``, ``learn.optimisers``, ``learn.stepping``,
  ``learn.parallel``: the parts of a run.

The read-out of the encoder decides the task: ``"mlm"`` (masked leaves), ``"root"``, ``"causal"``
(every leaf from those before it), ``"ancestor"`` (at every leaf, its ancestor at one level) or
``"denoise"`` (every leaf from all of them under Gaussian noise)::

    import hfilter
    from hfilter.learn.encoder import EncoderConfig
    from hfilter.learn.train import TrainConfig, train

    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    encoder = EncoderConfig.for_model(
        model, readout="root", d_model=64, n_layers=3, d_feedforward=128, dropout=0.0
    )
    config = TrainConfig(steps=1000, batch_size=64, lr=1e-3, schedule="cosine", warmup=100)
    result = train(model, encoder, config, "runs/root")
    print(result.history[-1]["accuracy"], result.history[-1]["exact_accuracy"])

``examples/train_root.py`` is this with a printout, ``examples/train_encoder.py`` the other task.
"""

from __future__ import annotations


def missing_package(error: ImportError) -> ModuleNotFoundError:
    """What to raise when a package of the extra ``learn`` cannot be imported: says the remedy."""
    return ModuleNotFoundError(
        f"this part of hfilter.learn needs the package {error.name}, which could not be imported "
        f"({error}); install it with: pip install '.[learn]'",
        name=error.name,
    )
