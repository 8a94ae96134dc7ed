"""The torch room: data as a function of the step, an encoder, two tasks, a training loop.

Import from the files: ``hfilter.learn.encoder`` (``Encoder``, ``EncoderConfig``),
``hfilter.learn.data`` (``FreshBatches``), ``hfilter.learn.tasks`` (``HeldOut``),
``hfilter.learn.train`` (``train``, ``TrainConfig``, ``load_encoder``) and
``hfilter.learn.presets``. Needs torch: ``pip install hfilter[learn]``.
"""
