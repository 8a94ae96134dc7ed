"""The compiled module if it is here, why not if it is not, and the IEEE environment it can set."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

__all__ = ["getenv", "ieee", "not_built"]

P = ParamSpec("P")
R = TypeVar("R")

_cpu: Any
try:
    _cpu = importlib.import_module("._cpu", __package__)
    not_built = ""
except ImportError as error:
    _cpu = None
    if not isinstance(error, ModuleNotFoundError):  # it is there, and something it needs is not
        not_built = f"module _cpu cannot be loaded ({error}); install hfilter again"
    elif (Path(__file__).parents[1] / "csrc").is_dir():
        not_built = (
            "hfilter was imported from its source tree, where no compiled module lies; start Python in "
            "another folder, or with -P, to get the installed package"
        )
    else:
        not_built = (
            f"module _cpu was not built ({error}); install hfilter where a C++17 compiler is, "
            "without HFILTER_PURE"
        )

# A variable of the environment, or None: asking `os.environ` takes longer than a kernel takes over a row.
getenv: Callable[[str], str | None] = os.environ.get if _cpu is None else _cpu.getenv


class ieee:
    """Run a block, or a function it decorates, with subnormal numbers and rounding as IEEE has them.

    torch can switch a thread to flushing subnormals, and results must not depend on it. Without the
    compiled module nothing can be switched, and the block runs as it is.
    """

    def __enter__(self) -> None:
        self._saved = None if _cpu is None else _cpu.ieee_environment()

    def __exit__(self, *failure: object) -> None:
        if self._saved is not None:
            _cpu.restore_environment(self._saved)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> R:
            with ieee():  # one's own: calls may overlap
                return function(*args, **kwargs)

        return inside
