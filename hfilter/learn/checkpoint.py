"""Weights and training state on disk: safetensors and JSON, nothing that could run code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import DataError
from hfilter.files import atomic_write
from hfilter.learn.encoder import Encoder, EncoderConfig

if TYPE_CHECKING:
    from hfilter.learn.optimisers import Optimiser

_FORMAT = "hfilter-tensors-1"  # the one metadata key: equal contents make equal bytes


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a JSON record into one safetensors file, whole or not at all."""
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic_write(path) as file:
        file.write(save(ready, {_FORMAT: json.dumps(about)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write_tensors` wrote.

    Raises
    ------
    hfilter.errors.DataError
        If the file is missing, cut short, or not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if _FORMAT not in about:
                raise DataError(f"{path}: not of format {_FORMAT}; was it written by hfilter?")
            names = list(file.keys())
            record = json.loads(about[_FORMAT])
            if not isinstance(record, dict):
                raise DataError(f"{path}: its record is no table of names and values")
            return {name: file.get_tensor(name) for name in names}, record
    except (SafetensorError, OSError, KeyError, RecursionError, json.JSONDecodeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: missing, cut short or not a safetensors file ({error})"
        ) from error


def save_encoder(path: str | os.PathLike[str], encoder: Encoder) -> None:
    """Write an encoder's weights and configuration into one safetensors file, atomically."""
    write_tensors(Path(path), encoder.state_dict(), {"encoder": encoder.config.as_dict()})


def load_encoder(path: str | os.PathLike[str]) -> Encoder:
    """An encoder from a file of :func:`save_encoder` or from a run folder, in evaluation mode.

    Parameters
    ----------
    path
        The file (also one of a run's ``checkpoints``), or the folder of a finished run, which
        holds ``encoder.safetensors``.

    Raises
    ------
    hfilter.errors.DataError
        If the file is missing, cut short, not ours, or holds other weights than its configuration
        says.
    """
    file = Path(path)
    if file.is_dir():
        unfinished = (file / "config.json").exists()
        file = file / "encoder.safetensors"
        if unfinished and not file.exists():
            raise DataError(
                f"{file.parent}: this run is not finished, encoder.safetensors comes at its end; "
                "make the same call again to go on, or name one of its checkpoints/step-*.safetensors"
            )
    tensors, about = read_tensors(file)
    if "encoder" not in about:
        raise DataError(f"{file}: holds no encoder configuration; give an encoder.safetensors")
    try:
        encoder = Encoder(EncoderConfig(**about["encoder"]))
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: holds no configuration of an encoder ({error})") from error
    try:
        # Loading casts to what is there: weights keep the dtype that they were saved in.
        encoder.to(tensors["embedding.weight"].dtype).load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError) as error:
        raise DataError(f"{file}: weights do not fit the configuration ({error})") from error
    return encoder.eval()


def pack_state(network: nn.Module, optimiser: Optimiser) -> dict[str, Tensor]:
    """Weights as ``weights.*``, and what the optimiser holds."""
    weights = {f"weights.{name}": t for name, t in network.state_dict().items()}
    return weights | optimiser.state()


def unpack_state(tensors: dict[str, Tensor], network: nn.Module, optimiser: Optimiser) -> None:
    """Put back what :func:`pack_state` took, bit for bit.

    Raises
    ------
    hfilter.errors.DataError
        If the tensors are not those of this network.
    """
    weights = {
        k.removeprefix("weights."): t for k, t in tensors.items() if k.startswith("weights.")
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"checkpoint: weights do not fit the encoder ({error})") from error
    optimiser.load_state(tensors)
