"""Start one task from an encoder trained on another: which weights go over, which stay still."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from typing import Any

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.checks import check_int
from hfilter.errors import ArgumentError, DTypeError
from hfilter.learn.architecture import EncoderConfig, Readout, Sizes
from hfilter.learn.checkpoint import load_encoder
from hfilter.learn.encoder import Encoder
from hfilter.learn.freezing import weights_digest

__all__ = ["Transfer", "transfer"]

# What may differ between source and target: nothing of it has weights that go over.
_OPTIONS = (
    *("dropout", "pooling", "masked_root", "n_classes", "probe_hidden", "link", "causal"),
    "n_layers", "time_embedding",
)  # fmt: skip
_READOUT = ("readout", "n_outputs", "pooling", "probe_hidden", "link")


@dataclass(frozen=True, eq=False)
class Transfer:
    """An encoder ready for its new task.

    Attributes
    ----------
    encoder : Encoder
        Body of the source, read-out as asked for; in evaluation mode, nothing frozen yet.
    config : EncoderConfig
        Of ``encoder``.
    frozen : tuple of str
        For ``TrainConfig(frozen=...)`` or :func:`hfilter.learn.freezing.freeze_`.
    drawn : tuple of str
        What was drawn anew: names of parameters, ``"embedding.weight[4:]"`` for a new row.
    source : str
        Digest of the source's weights (:func:`hfilter.learn.freezing.weights_digest`).
    """

    encoder: Encoder
    config: EncoderConfig
    frozen: tuple[str, ...]
    drawn: tuple[str, ...]
    source: str


def transfer(
    source: Encoder | str | PathLike[str],
    readout: Readout,
    *,
    freeze: bool | int = True,
    model: Sizes | None = None,
    seed: int = 0,
    new_readout: bool | None = None,
    **options: Any,
) -> Transfer:
    """Take an encoder's embedding and layers over to another task, filter level or grammar.

    Parameters
    ----------
    source : Encoder or path
        Trained on its own task; unchanged. A path is opened by ``load_encoder``.
    readout : {"mlm", "root", "causal", "ancestor", "denoise"}
        The new task.
    freeze : bool or int
        True: embedding and all layers, so that only the read-out trains, and what is new in the
        embedding. A number n: embedding and the first n layers. False: nothing.
    model : TreeModel, optional
        Of the new task: its sizes must be the source's, but for the number of classes.
    seed : int
        Of what is drawn anew, which is what an encoder of the new configuration starts with.
    new_readout : bool, optional
        Draw the read-out anew; unless given, it is kept where task and shape are the source's.
    **options
        ``dropout``, ``pooling``, ``masked_root``, ``n_classes``, ``probe_hidden``, ``link``,
        ``causal``, ``time_embedding`` of the new configuration, and ``n_layers``, to take the first ones only. Unless
        given, ``link`` is "logit" where the read-out is new, and what was causal stays causal.

    Returns
    -------
    Transfer

    Raises
    ------
    hfilter.errors.ArgumentError
        For another option, a number of layers the source does not have, or a model that does not
        fit.

    Notes
    -----
    Rows of the embedding go over symbol by symbol. Where the source has no row for hidden leaves
    (root classification of whole sequences) and the new task needs one, that row is drawn anew
    and trains, even under ``freeze=True``; where the new task needs none, it is dropped. The linear
    map of ``"denoise"`` becomes the rows that it gives clean leaves, and rows become such a map; the
    code of the times is drawn anew.

    The transfers of Garnier-Brun et al. 2024, arXiv 2408.15138: masked leaves to root, frozen or
    not (``transfer(encoder, "root")``), and back; ancestors read from the first m layers
    (``transfer(encoder, "ancestor", n_layers=m, probe_hidden=64)``).

    Examples
    --------
    >>> source = Encoder(EncoderConfig(4, 8, d_model=8, n_layers=2, d_feedforward=8))
    >>> start = transfer(source, "root", freeze=1)
    >>> start.frozen
    ('embedding', 'layers.0')
    >>> start.drawn
    ('readout.weight', 'readout.bias')
    >>> back = transfer(start.encoder, "mlm")
    >>> back.frozen[0], back.drawn[0]
    ('embedding.weight[:4]', 'embedding.weight[4:]')

    Train it with ``train(model, start.config, TrainConfig(..., frozen=start.frozen), folder,
    start=start.encoder)``.
    """
    encoder = source if isinstance(source, Encoder) else _opened(source)
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ArgumentError(
            f"{unknown[0]} is no option of transfer: it takes {', '.join(_OPTIONS)}"
        )
    if "n_layers" in options:
        encoder = encoder.truncated(options.pop("n_layers"))
    config = _configuration(encoder.config, readout, model, options)
    same = all(getattr(config, name) == getattr(encoder.config, name) for name in _READOUT)
    if new_readout is False and not same:
        raise ArgumentError(
            f"new_readout = False, but the read-out of the source ({encoder.config.readout}) does "
            f"not fit the new one ({readout}); leave new_readout out"
        )
    keep = same and not new_readout
    if not keep and "link" not in options:
        config = dataclasses.replace(config, link="logit")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_int("seed", seed, -(2**63), 2**64 - 1))  # as torch itself takes
        new = Encoder(config)
    new.to(encoder.embedding.weight.dtype)
    drawn = _take_over(new, encoder, keep)
    frozen = _frozen(new, drawn, freeze)
    return Transfer(new.eval(), config, frozen, drawn, weights_digest(encoder))


def _opened(path: object) -> Encoder:
    if not isinstance(path, (str, PathLike)):
        raise DTypeError(f"source must be an Encoder or a path, got {type(path).__name__}")
    return load_encoder(path)


def _configuration(
    source: EncoderConfig, readout: Readout, model: Sizes | None, options: dict[str, Any]
) -> EncoderConfig:
    """The source's configuration with another task."""
    changes: dict[str, Any] = {"readout": readout, "causal": source.is_causal}
    if readout == "causal":
        changes["causal"] = source.causal
    if readout != "root":
        changes |= {"pooling": "flat", "masked_root": False}
    if readout != "ancestor":
        changes["probe_hidden"] = None
    if readout != "denoise":
        changes["time_embedding"] = 32  # as where there is none
    if model is not None:
        wanted = {"vocab_size": source.vocab_size, "n_leaves": source.n_leaves}
        got = {"vocab_size": model.vocab_size, "n_leaves": model.n_leaves}
        if wanted != got:
            raise ArgumentError(f"model must have the sizes of source, {wanted}, got {got}")
        if readout == "root":
            changes["n_classes"] = model.n_classes
    return dataclasses.replace(source, **(changes | options))


def _take_over(encoder: Encoder, source: Encoder, keep: bool) -> tuple[str, ...]:
    """Copy what both have; names of what remains as drawn."""
    old, drawn = dict(source.named_parameters()), []
    both = [e.config.readout == "denoise" for e in (encoder, source)]
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.split(".")[0] == "readout" and not keep:
                drawn.append(name)
            elif name == "embedding.weight" and not all(both):
                table = parameter.T if both[0] else parameter
                rows = _rows(source)[: len(table)]
                table[: len(rows)] = rows
                if len(rows) < len(table):
                    drawn.append(f"{name}[{len(rows)}:]")
            elif name == "embedding.bias" and not both[1]:
                parameter.zero_()  # clean leaves get their rows, and nothing else
            elif name in old and old[name].shape == parameter.shape:
                parameter.copy_(old[name])
            else:
                drawn.append(name)
    return tuple(drawn)


def _rows(source: Encoder) -> Tensor:
    """The embedding of every token: rows of the table, or what a linear map makes of one-hot."""
    weight = source.embedding.weight
    if isinstance(source.embedding, nn.Embedding):
        return weight
    return weight.T + source.embedding.bias


def _frozen(encoder: Encoder, drawn: tuple[str, ...], freeze: bool | int) -> tuple[str, ...]:
    """Names to freeze: what went over of the embedding, then whole layers from the bottom."""
    n_layers = encoder.config.n_layers
    if freeze is False:
        return ()
    whole = isinstance(freeze, Integral)
    if not (whole and 0 <= int(freeze) <= n_layers) and freeze is not True:
        raise ArgumentError(f"freeze must be True, False or 0 … {n_layers} layers, got {freeze!r}")
    depth = n_layers if freeze is True else int(freeze)
    q = encoder.config.vocab_size
    names = [f"embedding.weight[:{q}]" if f"embedding.weight[{q}:]" in drawn else "embedding"]
    present = [name for name, _ in encoder.named_parameters() if name not in drawn]
    names += [name for name in ("positions", "class_token") if name in present]
    names += ["time"] if "time.weight" in present else []
    names += [f"layers.{i}" for i in range(depth)]
    if depth == n_layers and any(name.startswith("final_norm.") for name in present):
        names.append("final_norm")
    return tuple(names)
