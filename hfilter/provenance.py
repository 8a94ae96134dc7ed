"""What every artefact says about its making."""

from __future__ import annotations

import platform
import time
from typing import Any

import numpy as np

from .backend import default_threads, get_backend
from .tree import STREAM_VERSION
from .version import __version__

__all__ = ["provenance"]


def provenance(**more: Any) -> dict[str, Any]:
    """Versions, machine, backend and time, as plain JSON values.

    Parameters
    ----------
    **more
        Further entries: seeds, configuration, `TreeModel.describe()`.

    Examples
    --------
    >>> provenance(seed=3)["seed"]
    3
    """
    return {
        "hfilter": __version__,
        "stream_version": STREAM_VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "backend": get_backend().name,
        "num_threads": default_threads(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **more,
    }
