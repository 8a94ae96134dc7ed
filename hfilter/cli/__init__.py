"""The command ``hfilter``: ``demo``, ``info``, ``generate`` and ``infer``.

Everything but ``demo`` runs with NumPy alone.
"""

from __future__ import annotations

from hfilter.cli.command import main

__all__ = ["main"]
