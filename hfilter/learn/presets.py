"""Settings by name: what was published, and what is fast and known to work. Knows no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from hfilter.errors import ArgumentError
from hfilter.learn.architecture import EncoderConfig
from hfilter.learn.config import TrainConfig, log_spaced

if TYPE_CHECKING:
    from hfilter.exact import TreeModel

__all__ = ["PRESETS", "Settings", "fast_mlm", "preset"]

#: Shape, training, and what it is in one sentence.
Settings = tuple[EncoderConfig, TrainConfig, str]


def preset(name: str, model: TreeModel) -> Settings:
    """The preset of that name for a model.

    Returns
    -------
    encoder : EncoderConfig
    config : TrainConfig
    description : str

    Raises
    ------
    hfilter.errors.ArgumentError
        For a name that is not in ``PRESETS``.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> encoder, config, description = preset("root-published", model)
    >>> encoder.d_feedforward, config.train_size, config.steps * config.batch_size
    (2048, 131072, 26214400)
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ArgumentError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}{hint}")
    return PRESETS[name](model)


def fast_mlm(model: TreeModel) -> tuple[EncoderConfig, TrainConfig]:
    """An encoder and a run of about a minute that climbs from BP_ℓ towards BP_0.

    Parameters
    ----------
    model : TreeModel

    Returns
    -------
    encoder : EncoderConfig
        As published (post-norm, one layer per level) but narrower, with learned positions.
    config : TrainConfig
        Evaluated on single masks, as published; trained with each leaf hidden with probability
        0.2, at least one per sequence.

    Notes
    -----
    Measured on the published grammar (q = 4, sigma = 1, seed 0, depth 4), KL(BP_0 || network) in
    nats per token at the end of one run each. This preset, 3 400 steps = 218 000 sequences, about
    75 seconds of one busy core (AMD EPYC, AVX-512): 0.104, cross-entropy 0.802 against the floor 0.712;
    KL(BP_k || network) for k = 0 … 4 went from .90 .90 .78 .59 .27 (step 0) over .31 .31 .18 .07
    .41 (step 340) to .10 .11 .06 .24 .72. Single runs, so that differences below .01 mean little.

    After 102 400 sequences, batches of 64, width 64, feed-forward 256, unless said otherwise:
    rate 3e-3 .156; hiding 0.1 .161, 0.4 .165; 8 heads .162; 3 layers .159; batches of 32 at 1.5e-3
    .158; batches of 128 at 5e-3 .165; width 48 at 4e-3 .160; feed-forward 128 at 4e-3 .153, in
    four fifths of the time. After 204 800 sequences at 1.5e-3: post-norm .131, pre-norm .144,
    pre-norm with sinusoidal positions and one head .185. Width 48 with feed-forward 96 over
    288 000 sequences, in the time of the preset: .113.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> encoder, config = fast_mlm(model)
    >>> encoder.n_layers, config.steps * config.batch_size
    (4, 217600)
    """
    encoder = EncoderConfig(
        vocab_size=model.vocab_size,
        n_leaves=model.n_leaves,
        d_model=64,
        n_layers=max(1, model.depth),
        n_heads=4,
        d_feedforward=128,
        dropout=0.0,  # fresh sequences at every step: nothing to overfit
        positions="learned",
        norm="post",
    )
    steps = 3400
    config = TrainConfig(
        steps=steps,
        batch_size=64,
        lr=4e-3,
        schedule="cosine",
        warmup=200,
        clip=1.0,
        train_mask_rate=0.2,
        eval_at=log_spaced(steps, 25),
        n_eval=2048,
        threads=1,  # matrices this small gain little from two, and lose much on a busy machine
    )
    return encoder, config


def _mlm_fast(model: TreeModel) -> Settings:
    """Masked leaves: a narrow encoder on fresh sequences, about a minute on one core."""
    encoder, config = fast_mlm(model)
    return encoder, config, _sentence(_mlm_fast)


def _root_fast(model: TreeModel) -> Settings:
    """The root from all leaves: the encoder of mlm-fast on fresh sequences."""
    encoder, config = fast_mlm(model)
    encoder = replace(encoder, readout="root", n_classes=model.n_classes)
    return encoder, replace(config, train_mask_rate=None), _sentence(_root_fast)


def _causal_fast(model: TreeModel) -> Settings:
    """Every leaf from those before it: the encoder of mlm-fast, masked causally."""
    encoder, config = fast_mlm(model)
    encoder = replace(encoder, readout="causal")
    return encoder, replace(config, train_mask_rate=None), _sentence(_causal_fast)


def _ancestor_fast(model: TreeModel) -> Settings:
    """At every leaf its ancestor in the middle of the tree: the encoder of mlm-fast."""
    levels = [d for d in model.existing_levels if d < model.depth]
    level = min(levels, key=lambda d: abs(d - model.depth // 2))
    encoder, config = fast_mlm(model)
    encoder = replace(encoder, readout="ancestor", n_classes=model.alphabets[level])
    config = replace(config, train_mask_rate=None, ancestor_level=level)
    return encoder, config, _sentence(_ancestor_fast)


def _published(
    model: TreeModel, readout: str, sequences: int, epochs: int, kept: tuple[int, ...]
) -> tuple[EncoderConfig, TrainConfig]:
    """One layer per level, otherwise the defaults; epochs over a fixed set in batches of 32."""
    encoder = EncoderConfig.for_model(
        model,
        readout=readout,  # type: ignore[arg-type]
        n_layers=max(1, model.depth),
    )
    epoch = sequences // 32
    config = TrainConfig(
        steps=epochs * epoch,
        train_size=sequences,
        eval_at=tuple(sorted({*log_spaced(epoch, 20), *(e * epoch for e in kept)})),
        n_eval=10_000,
        checkpoint_every=epoch,
        checkpoint_at=tuple(e * epoch for e in kept),
    )
    return encoder, config


def _mlm_published(model: TreeModel) -> Settings:
    """Masked leaves as published: 2^18 sequences, 2000 epochs, one mask each, drawn anew."""
    kept = log_spaced(2000, 20)
    encoder, config = _published(model, "mlm", 2**18, 2000, kept)
    return encoder, config, _sentence(_mlm_published)


def _root_published(model: TreeModel) -> Settings:
    """The root as published: 2^17 sequences, 200 epochs, encoders kept at eleven of them."""
    kept = (1, 2, 4, 6, 11, 17, 29, 47, 76, 123, 200)
    encoder, config = _published(model, "root", 2**17, 200, kept)
    return encoder, config, _sentence(_root_published)


def _sentence(make: Callable[[TreeModel], Settings]) -> str:
    return (make.__doc__ or "").partition("\n")[0]


#: Functions of a model by name. Published: Garnier-Brun et al. 2024, arXiv 2408.15138, appendix.
PRESETS: dict[str, Callable[[TreeModel], Settings]] = {
    "mlm-fast": _mlm_fast,
    "mlm-published": _mlm_published,
    "root-fast": _root_fast,
    "root-published": _root_published,
    "causal-fast": _causal_fast,
    "ancestor-fast": _ancestor_fast,
}
