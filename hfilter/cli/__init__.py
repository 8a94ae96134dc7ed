"""The command ``hfilter``: ``demo``, ``train``, ``evaluate``, ``generate``, ``infer`` and ``info``.

The last three run with NumPy alone.
"""

from __future__ import annotations

from hfilter.cli.command import main

__all__ = ["main"]
