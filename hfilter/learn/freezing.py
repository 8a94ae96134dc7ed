"""Hold parts of an encoder still while the rest trains: no gradient, no dropout, no decay."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import ArgumentError

__all__ = ["Frozen", "freeze_", "weights_digest"]

_ROWS = re.compile(r"^(?P<name>.+)\[(?P<first>\d*):(?P<last>\d*)\]$")


class _Held:
    """Entries of one parameter that stay: chosen when first asked, when the weights are in place."""

    def __init__(self, parameter: nn.Parameter, rows: slice | None) -> None:
        self.parameter, self.rows = parameter, rows
        self._chosen: Tensor | None = None
        self._values = parameter.detach()[:0]

    @property
    def chosen(self) -> Tensor:
        """Boolean, of the parameter's shape: these rows, or, without rows, all zeros."""
        if self._chosen is None:
            values = self.parameter.detach()
            if self.rows is None:
                self._chosen = values == 0
            else:
                self._chosen = torch.zeros_like(values, dtype=torch.bool)
                self._chosen[self.rows] = True
        if self._chosen.device != self.parameter.device:
            self._chosen = self._chosen.to(self.parameter.device)
        return self._chosen

    def silence(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self.chosen, 0.0)

    def keep(self) -> None:
        self._values = self.parameter.detach()[self.chosen]

    def restore(self) -> None:
        with torch.no_grad():
            self.parameter[self.chosen] = self._values


@dataclass(frozen=True, eq=False)
class Frozen:
    """What :func:`freeze_` holds still.

    Attributes
    ----------
    names : tuple of str
        Parameters that are frozen as a whole.
    parts : tuple of str
        Parameters of which only some entries are frozen.
    """

    names: tuple[str, ...]
    parts: tuple[str, ...] = ()
    _held: tuple[_Held, ...] = ()

    def attach(self, *optimisers: torch.optim.Optimizer) -> None:
        """Put frozen rows and zeros back, bit for bit, after every step of these optimisers.

        Their gradient is zero already, but weight decay and momentum act without one. Parameters
        frozen as a whole need no hook: give the optimiser those with ``requires_grad`` only.
        """
        if not self._held:
            return

        def before(optimiser: Any, args: Any, kwargs: Any) -> None:
            for held in self._held:
                held.keep()

        def after(optimiser: Any, args: Any, kwargs: Any) -> None:
            for held in self._held:
                held.restore()

        for optimiser in optimisers:
            optimiser.register_step_pre_hook(before)
            optimiser.register_step_post_hook(after)


def freeze_(network: nn.Module, frozen: Sequence[str]) -> Frozen:
    """Freeze parts of a network in place: their parameters get no gradient, their dropout stops.

    Call it after the weights are in place and before the optimiser is made.

    Parameters
    ----------
    network : torch.nn.Module
        Such as :class:`hfilter.learn.encoder.Encoder`.
    frozen : sequence of str
        Names of parameters or prefixes that end before a dot: ``"embedding"``, ``"positions"``,
        ``"layers.0"``, ``"readout"``. ``"embedding.weight[:4]"`` freezes rows 0 … 3 of one
        parameter and leaves the others trainable. ``"zeros"`` holds every weight that is zero when
        training begins: a network whose zeros mean something, such as a constructed one, keeps
        its wiring and learns the strengths.

    Returns
    -------
    Frozen
        Its ``attach(optimiser)`` must be called where only some rows, or zeros, are frozen.

    Raises
    ------
    hfilter.errors.ArgumentError
        For a name that matches nothing, rows that are not there, or if nothing would be left to
        train.

    Notes
    -----
    Dropout is switched off for good by setting its rate to zero, not by ``eval()``, which the next
    ``train()`` would undo (the published code loses its "frozen" encoders that way). It is switched
    off inside every frozen module, and where the embedding is frozen, in whole or in part, also
    behind it.

    Examples
    --------
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(4, 8, d_model=8, n_layers=2, d_feedforward=8))
    >>> held = freeze_(encoder, ["embedding", "layers"])
    >>> [name for name, p in encoder.named_parameters() if p.requires_grad]
    ['readout.weight', 'readout.bias']
    """
    given: Any = frozen
    if isinstance(given, str):
        raise ArgumentError(f"frozen must be a sequence of names, got the string {frozen!r}")
    if not isinstance(given, Sequence):
        raise ArgumentError(f"frozen must be a sequence of names, got {frozen!r}")
    if not all(isinstance(name, str) for name in given):
        raise ArgumentError(f"frozen must hold names, got {frozen!r}")
    parameters = dict(network.named_parameters())
    names: list[str] = []
    parts: list[tuple[str, slice | None]] = []
    for entry in frozen:
        match = _ROWS.match(entry)
        if match:
            parts.append(_rows(match, parameters))
        elif entry == "zeros":
            parts += [(name, None) for name in parameters]
        else:
            names += _matching(entry, network, parameters)
    if set(names) == set(parameters):
        raise ArgumentError(f"frozen = {tuple(frozen)} leaves no parameter to train")
    for name in names:
        parameters[name].requires_grad_(False)
    held = []
    for name, rows in parts:
        if name not in names and parameters[name].requires_grad:
            held.append(_Held(parameters[name], rows))
            parameters[name].register_hook(held[-1].silence)  # type: ignore[no-untyped-call]
    _stop_dropout(network, {*names, *(name for name, rows in parts if rows)}, parameters)
    return Frozen(tuple(dict.fromkeys(names)), tuple(name for name, _ in parts), tuple(held))


def weights_digest(network: nn.Module) -> str:
    """Digest of a network's weights: names, types, shapes and bytes; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)} ".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _matching(entry: str, network: nn.Module, parameters: Iterable[str]) -> list[str]:
    found = [name for name in parameters if name == entry or name.startswith(f"{entry}.")]
    if not found and entry not in dict(network.named_buffers()):  # fixed positions never train
        known = {".".join(n.split(".")[:i]) for n in parameters for i in range(1, n.count(".") + 2)}
        near = difflib.get_close_matches(entry, sorted(known), 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
        raise ArgumentError(f"frozen: no parameter is called {entry!r} or inside it{hint}")
    return found


def _rows(match: re.Match[str], parameters: dict[str, nn.Parameter]) -> tuple[str, slice]:
    name = match["name"]
    if name not in parameters:
        near = difflib.get_close_matches(name, list(parameters), 1, cutoff=0.0)
        raise ArgumentError(f"frozen: {name!r} is no parameter; did you mean {near[0]!r}?")
    size = len(parameters[name])
    first, last = int(match["first"] or 0), int(match["last"] or size)
    if not first < last <= size:
        raise ArgumentError(f"frozen: {match[0]!r} names no rows of the {size} that {name} has")
    return name, slice(first, last)


def _stop_dropout(network: nn.Module, held: set[str], parameters: Iterable[str]) -> None:
    """Rate zero in every module all of whose parameters are held, and behind a held embedding."""
    for path, module in network.named_modules():
        inside = {name for name in parameters if path and name.startswith(f"{path}.")}
        if inside and inside <= held:
            for part in module.modules():
                if isinstance(part, nn.Dropout):
                    part.p = 0.0
                if isinstance(getattr(part, "dropout", None), float):
                    part.dropout = 0.0
    behind = getattr(network, "dropout", None)
    if isinstance(behind, nn.Dropout) and any(name.startswith("embedding.") for name in held):
        behind.p = 0.0
