"""Judge any model's probabilities beside the exact posteriors; NumPy alone, no torch needed.

Import from ``hfilter.analysis.compare``:

- ``compare(model, probabilities, leaves, ...)`` scores probabilities you already have against the
  truth and against BP_k of every filter level k; with ``roots=`` it scores the root.
- ``evaluate(predict, model, n, ...)`` draws the sequences itself and asks your function.
- ``exact_accuracies(model, n)`` is the table of what exact inference at one filter level achieves
  on data of another (Garnier-Brun et al. 2024, arXiv 2408.15138, figures 2 and 3).

The first two return a ``Comparison``, the last an ``ExactAccuracies``; both print as a table and
have ``as_dict()`` for JSON.
"""
