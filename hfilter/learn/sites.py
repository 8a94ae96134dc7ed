"""Named activations of a running network: keep them, replace them, change them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from hfilter.errors import ArgumentError, DTypeError, ShapeError

Edit = Tensor | float | Callable[[Tensor], Tensor]


class Look:
    """What :meth:`hfilter.learn.encoder.Encoder.trace` hands to every layer.

    Calling it with a name and a tensor applies the edit of that name, keeps the outcome if it was
    asked for, and returns it: the network goes on with what it returns.
    """

    def __init__(
        self,
        sites: Sequence[str],
        edits: Mapping[str, Edit] | None = None,
        names: Iterable[str] | None = None,
    ) -> None:
        if isinstance(names, str):
            raise ArgumentError(f"names must be a list of site names, got the text {names!r}")
        self.edits = dict(edits or {})
        self.names = set(sites if names is None else names)
        self.seen: dict[str, Tensor] = {}
        for argument, asked in (("edits", self.edits), ("names", self.names)):
            for name in sorted(set(asked) - set(sites)):
                raise ArgumentError(
                    f"{argument}: no activation is called {name!r}; {_near(name, sites)}"
                )

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if name in self.edits:
            x = _changed(name, x, self.edits[name])
        if name in self.names:
            self.seen[name] = x
        return x


def _changed(name: str, x: Tensor, edit: Edit) -> Tensor:
    value = edit(x) if callable(edit) else edit
    if isinstance(value, (int, float)):
        value = x.new_tensor(float(value))  # in the activation's own precision
    if not isinstance(value, Tensor):
        raise DTypeError(
            f"edits[{name!r}] must be a tensor, a number or a function that returns a tensor, "
            f"got {type(value).__name__}"
        )
    try:
        return value.to(x).expand(x.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"edits[{name!r}] must have shape {tuple(x.shape)} or broadcast to it, "
            f"got {tuple(value.shape)}"
        ) from error


def _near(name: str, sites: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, sites, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? Encoder.sites() lists all {len(sites)}"
