"""How far training has carried an encoder from where it began, by part."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hfilter.errors import ArgumentError

if TYPE_CHECKING:
    from hfilter.learn.encoder import Encoder

__all__ = ["Distance", "distance"]


@dataclass(frozen=True)
class Distance:
    """Frobenius norms of the change of an encoder's weights, by part.

    Attributes
    ----------
    absolute : dict of str to float
        ``"all"``; ``"embedding"`` (with learned positions), ``"attention"``, ``"feedforward"``,
        ``"norms"`` and ``"readout"``, where the encoder has them; and the middle ones layer by
        layer, ``"layers.0.attention"``, …
    start : dict of str to float
        Norms of the same parts at the start.
    """

    absolute: dict[str, float]
    start: dict[str, float]

    @property
    def relative(self) -> dict[str, float]:
        """Change over start: 0 for a part that did not move, inf for one that began at zero."""
        return {
            part: 0.0 if d == 0 else d / s if (s := self.start[part]) else math.inf
            for part, d in self.absolute.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"relative": self.relative}


def distance(encoder: Encoder, start: Encoder) -> Distance:
    """The distance between two encoders of one shape, such as a trained one and its start.

    Parameters
    ----------
    encoder, start : Encoder
        Of any dtypes and devices.

    Returns
    -------
    Distance

    Raises
    ------
    hfilter.errors.ArgumentError
        If their parameters differ in names or shapes.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.analysis.construction import ConstructedTransformer, perturbed
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> network = ConstructedTransformer(model)
    >>> travelled = distance(perturbed(network, 0.01, seed=0), network)
    >>> 0.005 < travelled.relative["feedforward"] < 0.02
    True
    """
    new, old = dict(encoder.named_parameters()), dict(start.named_parameters())
    shapes = [{name: tuple(p.shape) for name, p in side.items()} for side in (new, old)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        listed = ", ".join(f"{name} {shape}" for name, shape in odd[:4])
        raise ArgumentError(f"start must have the parameters of encoder; in one only: {listed}")
    moved: dict[str, float] = {}
    began: dict[str, float] = {}
    for name, parameter in new.items():
        now, before = (p.detach().double().cpu() for p in (parameter, old[name]))
        change, size = float((now - before).square().sum()), float(before.square().sum())
        for part in _parts(name):
            moved[part] = moved.get(part, 0.0) + change
            began[part] = began.get(part, 0.0) + size
    roots = [{part: math.sqrt(v) for part, v in side.items()} for side in (moved, began)]
    return Distance(*roots)


def _parts(name: str) -> list[str]:
    """The parts that a parameter belongs to."""
    pieces = name.split(".")
    if pieces[0] == "readout":
        return ["all", "readout"]
    if pieces[0] == "layers":
        kind = "feedforward"
        if pieces[2] == "attention" or pieces[2].startswith("norm"):
            kind = "attention" if pieces[2] == "attention" else "norms"
        return ["all", kind, f"layers.{pieces[1]}.{kind}"]
    return ["all", "norms" if "norm" in pieces[0] else "embedding"]
