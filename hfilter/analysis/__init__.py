"""Judge any model's probabilities beside the exact posteriors, and look for them inside it.

Import from the files. NumPy alone, no torch needed:

- ``compare``: ``compare(model, probabilities, leaves, ...)`` scores probabilities you already have
  against the truth and against BP_k of every filter level k, for masked leaves, the root, the next
  token or ancestors; ``evaluate(predict, model, n, ...)`` draws the sequences itself, the model's
  own, another's or random ones, and asks your function, network or oracle;
  ``agreement_table`` and ``draw_agreement`` give both laws token by token;
  ``exact_accuracies(model, n)`` is the table of what exact inference at one filter level achieves
  on data of another (Garnier-Brun et al. 2024, arXiv 2408.15138, figures 2 and 3).
- ``ladders``: ``ladders(predict, model, n)``, KL to every window W_h and every BP_k.
- ``matrix``: ``accuracy_matrix(predictors by k, model, n)``, train × test beside the exact matrix;
  ``over_seeds(results)`` pools runs.
- ``blocks``: ``block_accuracy``, how well the leaves of a block tell their ancestors;
  ``exact_messages``, what belief propagation computes at every node.

With torch and scikit-learn (``pip install '.[learn]'``):

- ``states``: ``hidden_states(encoder, tokens)``, layer by layer.
- ``probes``: ``ancestor_probe(encoder, model, layer, level)`` beside the exact oracle; ``probe`` for
  states and labels of your own.
- ``readout``: ``message_profile(encoder, model)``, R² of exact messages in every layer;
  ``message_readout`` for states and targets of your own.

- ``attention``: ``attention_maps``, and ``attention_distance`` from ``ideal_attention``, by which
  belief propagation would read its neighbours.
- ``interventions``, ``patching``: ``logit_lens``, ``effect`` of edits, ``replace_at``,
  ``scale_attention``, ``patch_activations``, ``ablate_heads``.
- ``mechanisms``: the exact effects to hold them against; ``with_sibling``, ``soften``,
  ``local_and_global``.
- ``competition``: ``competition`` and ``attention_doses``, a network where the local and the global
  answer differ.
- ``construction``: ``ConstructedTransformer``, where every answer is known; ``distance``: how far
  training has moved an encoder.

Results are frozen dataclasses, nearly all with ``as_dict()`` for JSON; those of ``compare``,
``ladders``, ``accuracy_matrix`` and ``message_profile`` print as tables.
"""
