"""A running average of the weights: what a network is scored by, freed of the last steps' noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import DataError

__all__ = ["Average"]

_PREFIX = "average."


class Average:
    """An exponential average with a memory that grows in proportion to the steps done.

    After step s each average moves by 1 / max(1, part * s) of its distance to the weight: it is the
    weight itself for the first 1 / part steps, and later one over about the latest part * s steps.

    Parameters
    ----------
    network : torch.nn.Module
        Whose parameters are averaged.
    part : float
        In (0, 1].

    Examples
    --------
    >>> line = nn.Linear(1, 1, bias=False)
    >>> average = Average(line, 0.5)
    >>> for s in (1, 2, 3, 4):
    ...     _ = line.weight.data.fill_(s)
    ...     average.follow(s)
    >>> with average.instead():
    ...     print(line.weight.item())          # 1, 2, 2 + (3 - 2) / 1.5, and half way from there to 4
    3.3333334922790527
    >>> line.weight.item()
    4.0
    """

    def __init__(self, network: nn.Module, part: float) -> None:
        self.part = part
        self._names = [name for name, _ in network.named_parameters()]
        self._weights = [p.detach() for p in network.parameters()]  # they share the memory
        self._values = [w.clone() for w in self._weights]

    def follow(self, step: int) -> None:
        """Take up the weights after step number ``step`` = 1, 2, …"""
        share = 1.0 / max(1.0, self.part * step)
        if share == 1.0:
            torch._foreach_copy_(self._values, self._weights)
        else:
            torch._foreach_lerp_(self._values, self._weights, share)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """The averages in the place of the weights, for as long as this lasts."""
        own = [w.clone() for w in self._weights]
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self._values)
            try:
                yield
            finally:
                torch._foreach_copy_(self._weights, own)

    def settle(self) -> None:
        """The averages in the place of the weights, for good."""
        torch._foreach_copy_(self._weights, self._values)

    def state(self) -> dict[str, Tensor]:
        """The averages by name, for a checkpoint."""
        return {f"{_PREFIX}{n}": v for n, v in zip(self._names, self._values, strict=True)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` gave, bit for bit.

        Raises
        ------
        hfilter.errors.DataError
            If averages are missing or of another shape.
        """
        for name, value in zip(self._names, self._values, strict=True):
            found = tensors.get(f"{_PREFIX}{name}")
            if found is None or found.shape != value.shape:
                raise DataError(f"checkpoint: the average of {name} is missing or of another shape")
            value.copy_(found)
