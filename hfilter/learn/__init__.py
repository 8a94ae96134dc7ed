"""Train networks on a model's sequences: fresh batches, an encoder, two tasks, a training loop.

Needs torch and safetensors: ``pip install '.[learn]'``. Only ``hfilter.learn.masks`` (which leaves
to hide) does without. Import from the files:

- ``learn.train``: ``train`` runs or resumes a training run; ``TrainConfig``, ``TrainResult``,
  ``load_encoder``, ``read_log`` and ``log_spaced`` belong to it.
- ``learn.presets``: ``fast_mlm(model)``, settings known to work for masked leaves in a minute.
- ``learn.encoder``: ``Encoder`` and ``EncoderConfig``; ``EncoderConfig.for_model(model, ...)``
  takes the sizes from a model, ``Encoder.trace`` names every inner activation and edits it.
- ``learn.initial``: ``init_gamma_``, initial weights of a chosen scale.
- ``learn.data``: ``FreshBatches`` for a loop of your own; batches are functions of (seed, step).
- ``learn.tasks``: ``HeldOut`` (held-out set with exact answers), ``task_loss``, ``predict``.
- ``learn.masks``: ``draw_masks``.

The read-out of the encoder decides the task: ``"mlm"`` (masked leaves) or ``"root"``::

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
