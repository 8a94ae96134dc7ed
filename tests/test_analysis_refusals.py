"""Manners of the laboratory's tools: inputs that once gave a wrong number or a raw error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from hfilter import Grammar, TreeModel
from hfilter.analysis.compare import compare, evaluate
from hfilter.analysis.ladders import ladders
from hfilter.analysis.matrix import accuracy_matrix, over_seeds
from hfilter.errors import ArgumentError, DTypeError, HFilterError, ShapeError
from hfilter.learn.masks import draw_masks

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from hfilter.analysis.attention import attention_distance, ideal_attention  # noqa: E402
from hfilter.analysis.competition import attention_doses  # noqa: E402
from hfilter.analysis.construction import ConstructedTransformer, perturbed  # noqa: E402
from hfilter.analysis.interventions import (  # noqa: E402
    effect,
    logit_lens,
    patch_activations,
    replace_at,
    scale_attention,
)
from hfilter.analysis.mechanisms import sibling_block  # noqa: E402
from hfilter.analysis.probes import ancestor_probe, probe  # noqa: E402
from hfilter.analysis.readout import message_profile, message_readout  # noqa: E402
from hfilter.analysis.states import hidden_states  # noqa: E402
from hfilter.learn.data import FreshBatches  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402
from hfilter.learn.freezing import freeze_  # noqa: E402
from hfilter.learn.initial import init_gamma_  # noqa: E402
from hfilter.learn.presets import preset  # noqa: E402
from hfilter.learn.tasks import HeldOut  # noqa: E402
from hfilter.learn.transfer import transfer  # noqa: E402

MODEL = TreeModel(Grammar.published(4, 1.0, 0), 2)
X = MODEL.sample(6, seed=1).leaves.astype(np.int64)
U = np.full((6, 4, 4), 0.25)
STATES, LABELS = np.ones((6, 4, 3)), np.ones((6, 4), np.int64)
HERE, ALL = [0] * 6, np.ones((4, 4), bool)


def encoder(readout: Any = "mlm", q: int = 4, length: int = 4, **options: Any) -> Encoder:
    shape = {"d_model": 8, "n_layers": 1, "d_feedforward": 8} | options
    return Encoder(EncoderConfig(q, length, readout=readout, **shape))


def moved(edits: Any) -> Any:
    return effect(encoder(), X, edits).kl


def asked(**options: Any) -> Any:
    given: dict[str, Any] = {"layer": 1, "level": 1, "n_train": 9, "n_test": 3} | options
    return ancestor_probe(given.pop("encoder", encoder()), MODEL, **given)


ROOT = partial(evaluate, encoder("root"), MODEL, 3, task="root")
# Of the root, a network of five symbols gives four probabilities too; its mask token is another.
FIVE = encoder("root", q=5, n_classes=4, masked_root=True)

ROWS: list[tuple[str, Callable[[], Any], type[HFilterError], str]] = [
    ("another alphabet", lambda: evaluate(FIVE, MODEL, 3, task="root"), ArgumentError, "of 5 symbols"),
    ("another length", lambda: ladders(encoder(length=8), MODEL, 3), ArgumentError, "8 leaves"),
    ("probe, another alphabet", lambda: asked(encoder=encoder(q=6)), ArgumentError, "of 6 symbols"),
    ("messages, alphabet", lambda: message_profile(encoder(q=6), MODEL, 9), ArgumentError, "of 6"),
    ("root without mask", lambda: ROOT(mask_rate=0.5), ArgumentError, "mask_rate"),
    ("n a fraction", lambda: evaluate(encoder(), MODEL, 2.5), DTypeError, "n must be"),
    ("start a word", lambda: evaluate(encoder(), MODEL, 3, start="a"), DTypeError, "start must be"),
    ("rate a word", lambda: draw_masks(3, 4, rate="a"), ArgumentError, "rate must be"),
    ("k a word", lambda: compare(MODEL, U, X, filter_levels=["a"]), ArgumentError, "filter_levels"),
    ("k a number", lambda: compare(MODEL, U, X, filter_levels=1), DTypeError, "filter_levels"),
    ("meta tensor", lambda: compare(MODEL, torch.ones(6, 4, 4, device="meta"), X), DTypeError, "prob"),
    ("matrix keys", lambda: accuracy_matrix({"a": encoder(), 1: encoder()}, MODEL, 3), ArgumentError, "filter_levels"),
    ("seeds, None", lambda: over_seeds([{"a": 1}, {"a": None}]), ArgumentError, "one kind"),
    ("seeds, objects", lambda: over_seeds([{"a": object()}]), ArgumentError, "numbers"),
    ("seeds, ragged", lambda: over_seeds([[1, [2, 3]]]), ArgumentError, "numbers"),
    ("maps masked", lambda: attention_distance(encoder(), X, np.ma.array(U[:1])), DTypeError, "masked"),
    ("maps complex", lambda: attention_distance(encoder(), X, U[:1] + 0j), DTypeError, "real"),
    ("maps, words", lambda: attention_distance(encoder(), X, "abc"), DTypeError, "real"),
    ("arity 1", lambda: attention_distance(encoder(), X, arity=1), ArgumentError, "arity"),
    ("too large a map", lambda: ideal_attention(40, 1), ArgumentError, "depth"),
    ("lens, logits", lambda: logit_lens(encoder(), X).kl(U * 12), ArgumentError, "softmax"),
    ("lens, negative", lambda: logit_lens(encoder(), X).kl(-U), ArgumentError, "probabilities"),
    ("head 0.5", lambda: scale_attention(0, ALL, 0.5, head=0.5), DTypeError, "head"),
    ("value a word", lambda: moved(replace_at("embed", HERE, "a")), DTypeError, "value"),
    ("value's shape", lambda: moved(replace_at("embed", HERE, np.zeros(3))), ShapeError, "value"),
    ("value None", lambda: moved(replace_at("embed", HERE, lambda x: None)), DTypeError, "value"),
    ("sites a text", lambda: patch_activations(encoder(), X, X, sites="embed"), ArgumentError, "sites"),
    ("one position", lambda: patch_activations(encoder(), X, X, positions=1), ShapeError, "list"),
    ("one leaf", lambda: sibling_block(MODEL, 1), ShapeError, "positions"),
    ("one factor", lambda: attention_doses(encoder(), MODEL, X, HERE, 0.5), ShapeError, "factors"),
    ("no layers", lambda: hidden_states(encoder(), X, []), ArgumentError, "layers"),
    ("one layer", lambda: hidden_states(encoder(), X, 1), DTypeError, "layers"),
    ("half a layer", lambda: hidden_states(encoder(), X, [0.5]), ArgumentError, "layers"),
    ("batches of none", lambda: hidden_states(encoder(), X, batch_size=0), ArgumentError, "batch_size"),
    ("no heights", lambda: message_profile(encoder(), MODEL, 9, heights=[]), ArgumentError, "heights"),
    ("layer None", lambda: asked(layer=None), ArgumentError, "layers"),
    ("epochs", lambda: asked(epochs=0), ArgumentError, "epochs"),
    ("probe's batches", lambda: asked(kind="two-layer", batch_size=0), ArgumentError, "batch_size"),
    ("rate nan", lambda: asked(kind="two-layer", lr=np.nan), ArgumentError, "lr"),
    ("no tokens to fit", lambda: asked(max_tokens=0), ArgumentError, "max_tokens"),
    ("no columns", lambda: probe(STATES[..., :0], LABELS, 3), ShapeError, "d be at least 1"),
    ("no rows", lambda: probe(STATES[:0], LABELS[:0], 3), ShapeError, "3 rows"),
    ("no states", lambda: message_readout(STATES[..., :0], U), ShapeError, "column"),
    ("no targets", lambda: message_readout(STATES, U[..., :0]), ShapeError, "column"),
    ("infinite targets", lambda: message_readout(STATES, U * np.inf), ArgumentError, "infinity"),
    ("seed 2^64", lambda: perturbed(encoder(), 0.1, 2**64), ArgumentError, "seed"),
    ("scale a word", lambda: perturbed(encoder(), "a", 0), DTypeError, "scale"),
    ("gap a word", lambda: ConstructedTransformer(MODEL, gap="a"), DTypeError, "gap"),
    ("freeze 0.5", lambda: transfer(encoder(), "root", freeze=0.5), ArgumentError, "freeze"),
    ("transfer's seed", lambda: transfer(encoder(), "root", seed=2**64), ArgumentError, "seed"),
    ("frozen None", lambda: freeze_(encoder(), None), ArgumentError, "frozen"),
    ("frozen numbers", lambda: freeze_(encoder(), [5]), ArgumentError, "frozen"),
    ("gamma too small", lambda: init_gamma_(encoder(), -1e6), ArgumentError, "gamma of"),
    ("preset None", lambda: preset(None, MODEL), ArgumentError, "preset must be"),
    ("batch size a word", lambda: FreshBatches(MODEL, "a"), DTypeError, "batch_size"),
    ("held-out of a word", lambda: HeldOut(MODEL, "mlm", "a"), DTypeError, "n must be"),
    ("held-out k", lambda: HeldOut(MODEL, "mlm", 4, filter_levels=3), DTypeError, "filter_levels"),
    ("held-out, alphabet", lambda: HeldOut(MODEL, "mlm", 4).evaluate(encoder(q=6)), ShapeError, "logits"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "message"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_refused(call: Callable[[], Any], kind: type[HFilterError], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_heads_are_no_class_position() -> None:
    """Five heads over four leaves: the first is not the learned position of pooling='class'."""
    name = "layers.0.attention.weights"
    network = encoder(d_model=10, n_heads=5)
    assert hidden_states(network, X, [name])[name].shape == (6, 5, 4, 4)
    pooled = encoder("root", pooling="class")
    assert hidden_states(pooled, X, [1])[1].shape == (6, 4, 8)


def test_odd_but_right() -> None:
    """bfloat16 networks, NumPy values of any layout, generators of layers, no positions at all."""
    assert hidden_states(encoder().bfloat16(), X, (m for m in [1]))[1].dtype == np.float32
    network = encoder()
    plain = effect(network, X, replace_at("embed", HERE, 0.0)).kl
    assert effect(network, X, replace_at("embed", HERE, np.zeros(16)[::-2])).kl == plain
    assert patch_activations(network, X, X, positions=[]).kl.shape[1] == 0


def test_a_number_as_edit_has_the_precision_of_the_network() -> None:
    network = encoder().double()
    _, seen = network.trace(torch.from_numpy(X), edits={"embed": 0.1})
    assert bool((seen["embed"] == torch.tensor(0.1, dtype=torch.float64)).all())


def test_default_dtype_and_device_do_not_matter() -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 4, 3)), LABELS[:1].repeat(40, 0)
    y = np.where(x[..., 0] > 0, 1, 0)
    network = encoder()

    def answers() -> tuple[float, bytes]:
        found = probe(x, y, 30, "two-layer", epochs=2)
        noisy = perturbed(network, 0.1, 3)
        return found.accuracy, noisy.embedding.weight.detach().numpy().tobytes()

    plain = answers()
    with torch.device("meta"):
        assert answers() == plain
    try:
        torch.set_default_dtype(torch.float64)
        assert answers() == plain
    finally:
        torch.set_default_dtype(torch.float32)
