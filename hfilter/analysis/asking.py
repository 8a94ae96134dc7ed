"""Anything that predicts, as one function from tokens to probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hfilter.errors import ArgumentError, DTypeError
from hfilter.oracles import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hfilter.exact import TreeModel

__all__ = ["as_predict", "check_fits", "is_network"]


def as_predict(
    predictor: Any, task: str, *, batch_size: int = 1024
) -> Callable[[NDArray[Any]], Any]:
    """A function from (m, L) tokens to probabilities, of whatever predicts.

    Parameters
    ----------
    predictor
        A torch network from tokens to logits (run without dropout, its mode restored; softmax in
        double precision), an oracle (:class:`hfilter.oracles.Predictor`, for ``"mlm"`` and
        ``"root"``), or such a function already.
    task : str
        ``"mlm"``, ``"root"``, ``"causal"`` or ``"ancestor"``: what it will be asked.
    batch_size
        Rows per forward pass of a network.

    Raises
    ------
    hfilter.errors.ArgumentError
        For a network whose ``config.readout`` is another task, or an oracle without an answer.
    hfilter.errors.DTypeError
        For something that cannot be called.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> predict = as_predict(hfilter.oracles.ExactBP(model), "root")
    >>> predict(model.sample(3).leaves).shape
    (3, 4)
    """
    if is_network(predictor):
        readout = getattr(getattr(predictor, "config", None), "readout", task)
        if readout != task:
            raise ArgumentError(
                f'the network reads out "{readout}", which does not answer task="{task}"'
            )
        return lambda tokens: _ask_network(predictor, tokens, batch_size)
    if isinstance(predictor, Predictor):
        if task not in ("mlm", "root"):
            raise ArgumentError(
                f'{type(predictor).__name__} answers task="mlm" and "root", not "{task}"; give a '
                "function from tokens to probabilities"
            )
        return predictor.predict if task == "mlm" else predictor.predict_root
    if not callable(predictor):
        raise DTypeError(
            "a predictor must be a function from tokens to probabilities, a torch network or an "
            f"oracle, got {type(predictor).__name__}"
        )
    function: Callable[[NDArray[Any]], Any] = predictor
    return function


def check_fits(encoder: Any, model: TreeModel, mask_rate: float | None = None) -> None:
    """Refuse an encoder that reads other sequences than the model's, or no hidden leaves.

    What is no encoder with a ``config`` passes: its answers are checked.

    Raises
    ------
    hfilter.errors.ArgumentError
    """
    config = getattr(encoder, "config", None)
    read = [getattr(config, name, None) for name in ("vocab_size", "n_leaves")]
    wanted = [model.vocab_size, model.n_leaves]
    if None in read:
        return
    if read != wanted:
        raise ArgumentError(
            f"the network reads {read[1]} leaves of {read[0]} symbols, the model has {wanted[1]} "
            f"of {wanted[0]}; give the model that it was trained on"
        )
    if mask_rate is not None and getattr(config, "n_embedded", None) == model.vocab_size:
        raise ArgumentError(
            "mask_rate hides leaves, and this network has no token for a hidden one (see "
            "masked_root of EncoderConfig); leave mask_rate out"
        )


def is_network(thing: Any) -> bool:
    """Whether something behaves like a torch module; imports no torch to find out."""
    return all(hasattr(thing, name) for name in ("parameters", "eval", "train", "forward"))


def _ask_network(network: Any, tokens: NDArray[Any], batch_size: int) -> NDArray[np.float64]:
    import torch

    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    rows = torch.from_numpy(np.asarray(tokens).astype(np.int64))
    training = network.training
    network.eval()
    parts = []
    try:
        with torch.no_grad():
            for part in torch.split(rows, batch_size):
                logits = network(part.to(device)).double()
                parts.append(torch.softmax(logits, dim=-1).cpu().numpy())
    finally:
        network.train(training)
    return np.concatenate(parts)
