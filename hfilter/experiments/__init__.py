"""Whole experiments: the demo, its figures and its page, and the files which say what made them.

Nothing is imported here, so that :mod:`hfilter.experiments.artefacts` (NumPy alone) can be used
where neither torch nor matplotlib is installed.
"""

from __future__ import annotations

__all__ = ["missing_package"]


def missing_package(error: ImportError) -> ModuleNotFoundError:
    """What to raise when a package of the extra ``learn`` cannot be imported: says the remedy."""
    return ModuleNotFoundError(
        f"the demo and the figures need the package {error.name}, which could not be imported "
        f"({error}); install it with: pip install '.[learn]'",
        name=error.name,
    )
