"""Whole experiments: the demo, its figures and its page, and the files which say what made them.

Nothing is imported here, so that :mod:`hfilter.experiments.artefacts` (NumPy alone) can be used
where neither torch nor matplotlib is installed.
"""
