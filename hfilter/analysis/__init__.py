"""Judge any model's probabilities beside the exact posteriors; NumPy alone, no torch needed.

Import from ``hfilter.analysis.compare``:

- ``compare(model, probabilities, leaves, ...)`` scores probabilities you already have against the
  truth and against BP_k of every filter level k; with ``roots=`` it scores the root.
- ``evaluate(predict, model, n, ...)`` draws the sequences itself and asks your function.
- ``exact_accuracies(model, n)`` is the table of what exact inference at one filter level achieves
  on data of another (Garnier-Brun et al. 2024, arXiv 2408.15138, figures 2 and 3).

The first two return a ``Comparison``, the last an ``ExactAccuracies``; both print as a table and
have ``as_dict()`` for JSON.

To look inside an encoder (these need torch when they are called):

- ``analysis.attention``: ``attention_maps``, and ``attention_distance`` from ``ideal_attention``,
  by which belief propagation would read its neighbours.
- ``analysis.interventions``: ``logit_lens``, ``effect`` of edits, ``replace_at``,
  ``scale_attention``, ``patch_activations``, ``ablate_heads``.
- ``analysis.mechanisms``: the exact effects to hold them against; ``with_sibling``, ``soften``,
  ``local_and_global``.
- ``analysis.competition``: ``competition`` and ``attention_doses``, a network where the local and
  the global answer differ.
- ``analysis.construction``: ``ConstructedTransformer``, where every answer is known.
"""
