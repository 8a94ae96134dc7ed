"""What may come into a training: arguments that belong together, weights that fit, a device that is."""

from __future__ import annotations

from dataclasses import fields
from os import PathLike
from typing import Any

try:
    import torch
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import ArgumentError, BackendUnavailable, DTypeError
from hfilter.exact import TreeModel
from hfilter.learn.checkpoint import load_encoder
from hfilter.learn.config import TrainConfig
from hfilter.learn.encoder import Encoder, EncoderConfig
from hfilter.learn.laws import check_task

__all__ = ["check_fit", "open_device", "open_start"]


def check_fit(model: TreeModel, encoder: EncoderConfig, config: TrainConfig, callback: Any) -> None:
    """Refuse what cannot be trained together, before anything is written."""
    given: tuple[tuple[str, Any, type], ...] = (
        ("model", model, TreeModel),
        ("encoder_config", encoder, EncoderConfig),
        ("config", config, TrainConfig),
    )
    for name, value, kind in given:
        if not isinstance(value, kind):
            weights = "; weights to begin with go into start=" if isinstance(value, Encoder) else ""
            raise DTypeError(
                f"{name} must be a {kind.__name__}, got {type(value).__name__}{weights}"
            )
    if callback is not None and not callable(callback):
        raise DTypeError(
            f"callback must be a function of (record, encoder), got {callback!r}; preset(...) gives "
            "three things: encoder, config, description"
        )
    check_task(model, encoder.readout, config.ancestor_level)
    wanted = {"vocab_size": model.vocab_size, "n_leaves": model.n_leaves}
    got = {"vocab_size": encoder.vocab_size, "n_leaves": encoder.n_leaves}
    if encoder.readout in ("root", "ancestor"):
        level = config.ancestor_level or 0
        wanted["n_classes"], got["n_classes"] = model.alphabets[level], encoder.n_outputs
    if wanted != got:
        raise ArgumentError(f"encoder_config must fit the model: wanted {wanted}, got {got}")
    if encoder.readout != "denoise":
        plain = {f.name: f.default for f in fields(config)}
        for name in ("noise", "noise_steps", "eval_time"):
            if getattr(config, name) != plain[name]:
                raise ArgumentError(
                    f"{name} is for readout='denoise' only, got {getattr(config, name)!r} with "
                    f"readout={encoder.readout!r}; leave it out"
                )
    hides = config.mask_rate is not None or config.train_mask_rate is not None
    if encoder.readout == "denoise" and hides:
        raise ArgumentError(
            "mask_rate hides leaves, and the task 'denoise' shows all of them under noise; leave "
            "it out"
        )
    if encoder.readout == "root" and hides and not encoder.masked_root:
        raise ArgumentError(
            "mask_rate hides leaves, and this root read-out has no token for a hidden one; say "
            "masked_root=True in encoder_config, or leave mask_rate out"
        )


def open_start(start: Any, wanted: EncoderConfig) -> Encoder | None:
    """The encoder to begin with, if it is of the shape that is wanted."""
    if start is None:
        return None
    if not isinstance(start, (Encoder, str, PathLike)):
        raise DTypeError(f"start must be an Encoder or a path, got {type(start).__name__}")
    encoder = start if isinstance(start, Encoder) else load_encoder(start)
    ours, theirs = vars(wanted), vars(encoder.config)
    odd = [f"{k}: {theirs[k]!r} there, {v!r} wanted" for k, v in ours.items() if theirs[k] != v]
    if odd:
        raise ArgumentError(
            f"start must be an encoder of the same configuration ({'; '.join(odd)}); make it fit "
            "with hfilter.learn.transfer.transfer"
        )
    return encoder


def open_device(name: str) -> torch.device:
    """The device of that name, if it is here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(f"device must be a torch device such as 'cpu', got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device must be 'cpu' or 'cuda' (or 'cuda:1' …), got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"device {name!r}: torch finds no GPU here; use device='cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise BackendUnavailable(f"device {name!r}: the last GPU here is 'cuda:{last}'")
    return device
