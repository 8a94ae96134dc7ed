"""Settings by name: what was published, and what is fast and known to work. Knows no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
    if str(name) not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ArgumentError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}{hint}")
    return PRESETS[name](model)


def fast_mlm(model: TreeModel) -> tuple[EncoderConfig, TrainConfig]:
    """An encoder and a run of some minutes that climb from BP_ℓ to BP_0.

    Parameters
    ----------
    model : TreeModel

    Returns
    -------
    encoder : EncoderConfig
        One post-norm layer per level, as published, but narrow, with gated units, four heads and
        learned positions.
    config : TrainConfig
        Evaluated on single masks, as published. Trained with each leaf hidden with probability 0.2,
        at least one per sequence, towards the exact posterior of each: the gradient of the labels
        on average, without the noise of drawing them.

    Notes
    -----
    The search behind these numbers, and what each choice is worth, are in ``docs/laboratory.md``.

    Examples
    --------
    >>> import hfilter
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    >>> encoder, config = fast_mlm(model)
    >>> encoder.n_layers, config.steps * config.batch_size
    (4, 512000)
    """
    # Deeper trees than four levels take more than this: give steps.
    return _fast(model, 2000 if model.depth > 3 else 800, train_mask_rate=0.2)


def _fast(model: TreeModel, steps: int, **training: Any) -> tuple[EncoderConfig, TrainConfig]:
    encoder = EncoderConfig(
        vocab_size=model.vocab_size,
        n_leaves=model.n_leaves,
        d_model=64,
        n_layers=max(1, model.depth),
        n_heads=4,
        d_feedforward=96,
        dropout=0.0,  # fresh sequences at every step: nothing to overfit
        positions="learned",
        norm="post",
        activation="reglu",
    )
    config = TrainConfig(
        steps=steps,
        batch_size=256,
        optimiser="muon",
        lr=4e-3,
        muon_lr=0.0125,
        betas=(0.9, 0.99),
        schedule="cosine",
        warmup=100,
        clip=1.0,
        targets="posterior",
        eval_at=log_spaced(steps, 25),
        n_eval=2048,
        checkpoint_every=100,
        threads=1,  # matrices this small gain little from two, and lose much on a busy machine
        **training,
    )
    return encoder, config


def _mlm_fast(model: TreeModel) -> Settings:
    """Masked leaves towards the exact posterior: a narrow encoder, minutes on one core."""
    encoder, config = fast_mlm(model)
    return encoder, config, _sentence(_mlm_fast)


def _root_fast(model: TreeModel) -> Settings:
    """The root from all leaves: the encoder of mlm-fast, about a minute on one core."""
    encoder, config = _fast(model, 600)
    encoder = replace(encoder, readout="root", n_classes=model.n_classes)
    return encoder, config, _sentence(_root_fast)


def _causal_fast(model: TreeModel) -> Settings:
    """Every leaf from those before it: the encoder of mlm-fast, masked causally."""
    encoder, config = _fast(model, 600)
    encoder = replace(encoder, readout="causal")
    return encoder, config, _sentence(_causal_fast)


def _ancestor_fast(model: TreeModel) -> Settings:
    """At every leaf its ancestor in the middle of the tree: the encoder of mlm-fast."""
    levels = [d for d in model.existing_levels if d < model.depth]
    level = min(levels, key=lambda d: abs(d - model.depth // 2))
    encoder, config = _fast(model, 600, ancestor_level=level)
    encoder = replace(encoder, readout="ancestor", n_classes=model.alphabets[level])
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


def _denoise_fast(model: TreeModel) -> Settings:
    """Noisy leaves of 200 sequences, which it learns by heart: minutes at depth 3."""
    encoder = EncoderConfig.for_model(
        model,
        readout="denoise",
        positions="learned",
        d_model=64,
        n_layers=max(1, model.depth),
        n_heads=1,
        d_feedforward=128,
        dropout=0.0,
    )
    steps = 10_000
    kept = log_spaced(steps, 41)
    config = TrainConfig(
        steps=steps,
        batch_size=64,
        train_size=200,
        lr=3e-3,
        betas=(0.9, 0.99),
        schedule="inverse-root",
        warmup=100,
        cooldown=3000,
        clip=1.0,
        average=0.1,  # without it the noise of the last steps hides where curves have their minimum
        held_out="content",
        eval_at=kept,
        n_eval=1024,
        checkpoint_at=kept,
        checkpoint_every=500,
        threads=1,
    )
    return encoder, config, _sentence(_denoise_fast)


def _denoising(model: TreeModel, size: int, steps: int) -> tuple[EncoderConfig, TrainConfig]:
    """As published, for a set of that size: 50 epochs along a line, the rest along a cosine."""
    encoder = EncoderConfig.for_model(
        model,
        readout="denoise",
        positions="learned",
        d_model=512,
        n_layers=8,
        n_heads=4,
        d_feedforward=1024,
    )
    kept = log_spaced(steps, 25)
    config = TrainConfig(
        steps=steps,
        batch_size=512,
        train_size=size,
        lr=3e-4,
        schedule="linear-cosine",
        cooldown=steps - round(50 * size / 512),
        final_lr=0.1,
        held_out="content",
        eval_at=kept,
        n_eval=10_000,
        checkpoint_at=kept,
        threads=None,
    )
    return encoder, config


def _denoise_published(model: TreeModel) -> Settings:
    """Noisy leaves as published: 5 000 sequences, 2e5 steps of 512; for a GPU."""
    return *_denoising(model, 5_000, 200_000), _sentence(_denoise_published)


def _denoise_published_12k(model: TreeModel) -> Settings:
    """The same with 12 000 sequences, 7.2e5 steps."""
    return *_denoising(model, 12_000, 720_000), _sentence(_denoise_published_12k)


def _denoise_published_70k(model: TreeModel) -> Settings:
    """The same with 70 000 sequences, 4.8e6 steps."""
    return *_denoising(model, 70_000, 4_800_000), _sentence(_denoise_published_70k)


def _sentence(make: Callable[[TreeModel], Settings]) -> str:
    return (make.__doc__ or "").partition("\n")[0]


#: Functions of a model by name. Published: Garnier-Brun et al. 2024, arXiv 2408.15138, appendix;
#: denoising: arXiv 2603.03469 (vocab_size 6, rules_per_symbol 4, depth 4).
PRESETS: dict[str, Callable[[TreeModel], Settings]] = {
    "mlm-fast": _mlm_fast,
    "mlm-published": _mlm_published,
    "root-fast": _root_fast,
    "root-published": _root_published,
    "causal-fast": _causal_fast,
    "ancestor-fast": _ancestor_fast,
    "denoise-fast": _denoise_fast,
    "denoise-published": _denoise_published,
    "denoise-published-12k": _denoise_published_12k,
    "denoise-published-70k": _denoise_published_70k,
}
