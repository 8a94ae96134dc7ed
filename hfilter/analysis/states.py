"""Hidden states of a network as arrays, layer by layer."""

from __future__ import annotations

import inspect
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.analysis.asking import is_network
from hfilter.analysis.checks import as_integers, fetched
from hfilter.checks import check_int
from hfilter.errors import ArgumentError, DTypeError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["count_layers", "hidden_states", "states_of"]

Layer = int | str


def hidden_states(
    encoder: Any,
    tokens: ArrayLike,
    layers: Iterable[Layer] | None = None,
    *,
    batch_size: int = 1024,
) -> dict[Layer, NDArray[Any]]:
    """What leaves each layer of an encoder, with dropout off.

    Parameters
    ----------
    encoder : hfilter.learn.encoder.Encoder
        Its mode is restored afterwards.
    tokens : (n, L) integer array
        With the mask token where a leaf is hidden.
    layers
        Numbers m: the stream after the first m layers, 0 = the embedding (all of 0 … n_layers by
        default); or names of activations of shape (n, L, …), see ``Encoder.trace``.
    batch_size
        Rows per forward pass.

    Returns
    -------
    dict of (n, L, d) array
        By layer, in the network's precision. A class position in front is left out.

    Raises
    ------
    hfilter.errors.ArgumentError
        For a layer that the encoder does not have.

    Notes
    -----
    State j of an encoder with the ``"causal"`` read-out belongs to token j - 1: it predicts leaf j.

    Examples
    --------
    >>> from hfilter.learn.encoder import Encoder, EncoderConfig
    >>> encoder = Encoder(EncoderConfig(vocab_size=4, n_leaves=8, d_model=16, n_layers=2))
    >>> {m: x.shape for m, x in hidden_states(encoder, [[0, 1, 2, 3, 4, 0, 1, 2]]).items()}
    {0: (1, 8, 16), 1: (1, 8, 16), 2: (1, 8, 16)}
    """
    import torch

    if not is_network(encoder) or not hasattr(encoder, "trace"):
        raise DTypeError(
            f"encoder must be a network with the method trace, got {type(encoder).__name__}"
        )
    rows = torch.from_numpy(as_integers("tokens", tokens).astype(np.int64))
    check_int("batch_size", batch_size, 1)
    asked = listed("layers", range(count_layers(encoder) + 1) if layers is None else layers)
    names = {layer: _site(encoder, layer) for layer in asked}
    some = "names" in inspect.signature(encoder.trace).parameters
    options: dict[str, Any] = {"names": sorted(set(names.values()))} if some else {}
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    encoder = _shortened(encoder, asked)
    training = encoder.training
    found: dict[Layer, list[NDArray[Any]]] = {layer: [] for layer in names}
    encoder.eval()
    try:
        with torch.no_grad():
            for part in torch.split(rows, batch_size):
                _, seen = encoder.trace(part.to(device), **options)
                for layer, name in names.items():
                    if name not in seen:
                        raise ArgumentError(
                            f"layers: no activation is called {name!r}; there are {list(seen)}"
                        )
                    values = seen[name].cpu()
                    half = values.dtype == torch.bfloat16  # which NumPy does not know
                    found[layer].append((values.float() if half else values).numpy())
    finally:
        encoder.train(training)
    states = {layer: np.concatenate(parts) for layer, parts in found.items()}
    wide = rows.shape[1] + 1  # with a class position; of heads there may be as many by chance
    return {
        layer: x[:, 1:] if x.ndim == 3 and x.shape[1] == wide else x for layer, x in states.items()
    }


def listed(name: str, values: Any) -> list[Any]:
    """Any iterable but a string as a list of at least one."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise DTypeError(f"{name} must be a list, got {values!r}")
    found = list(values)
    if not found:
        raise ArgumentError(f"{name} must name at least one, got none")
    return found


def _shortened(encoder: Any, layers: list[Layer]) -> Any:
    """A copy without the layers above those asked for, where the encoder can make one."""
    if not hasattr(encoder, "truncated") or any(isinstance(layer, str) for layer in layers):
        return encoder
    last = max(int(layer) for layer in layers)
    return encoder if last == count_layers(encoder) else encoder.truncated(last)


def states_of(
    encoder: Any, tokens: NDArray[Any], layers: Iterable[Layer]
) -> Iterator[NDArray[Any]]:
    """States (n, L, d) of an encoder's layers, or of a function of (tokens, layer)."""
    asked = listed("layers", layers)
    if is_network(encoder):
        found = hidden_states(encoder, tokens, asked)
        yield from (found[layer] for layer in asked)
        return
    if not callable(encoder):
        raise DTypeError(
            "encoder must be a network with the method trace, or a function from (tokens, layer) "
            f"to states (n, L, d), got {type(encoder).__name__}"
        )
    for layer in asked:
        states = fetched("states", encoder(tokens, layer))
        if states.ndim != 3 or states.shape[:2] != tokens.shape:
            raise ShapeError(f"states must have shape {(*tokens.shape, 'd')}, got {states.shape}")
        yield states


def count_layers(encoder: Any) -> int:
    """Number of layers of an encoder."""
    config = getattr(encoder, "config", None)
    return int(config.n_layers) if config is not None else len(encoder.layers)


def _site(encoder: Any, layer: Layer) -> str:
    if isinstance(layer, str):
        return layer
    last = count_layers(encoder)
    given: Any = layer
    if isinstance(given, bool) or not isinstance(given, Integral) or not 0 <= layer <= last:
        raise ArgumentError(f"layers must lie in 0 … {last}, got {layer!r}")
    return f"layers.{layer - 1}.hidden" if layer else "embed"
