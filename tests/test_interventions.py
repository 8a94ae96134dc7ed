"""Lens, edits, patches and ablations against plain traces, and on the constructed transformer."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import by_hand  # noqa: E402
from test_encoder_options import build, config, tokens_for  # noqa: E402

import hfilter  # noqa: E402
from hfilter.analysis.attention import ideal_attention  # noqa: E402
from hfilter.analysis.interventions import (  # noqa: E402
    ablate_heads,
    effect,
    logit_lens,
    patch_activations,
    replace_at,
    scale_attention,
)
from hfilter.analysis.mechanisms import sibling_block, with_sibling  # noqa: E402
from hfilter.errors import ArgumentError, ShapeError  # noqa: E402

KINDS = [{}, {"norm": "pre", "readout": "causal"}, {"readout": "root", "pooling": "class"}]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_lens_is_the_readout_on_every_layer(changes):
    encoder = build(config(**changes))
    tokens = tokens_for(encoder.config, 5)
    lens = logit_lens(encoder, tokens, batch_size=2)
    assert lens.sites == ("embed", "layers.0.hidden", "layers.1.hidden")
    logits, seen = by_hand.run(encoder, tokens)
    laws = np.exp(lens.log_probabilities)
    np.testing.assert_allclose(laws[-1], softmax(logits), atol=1e-12)
    # Judge: the trace with every later block's contribution taken away.
    later = [n for n in encoder.sites() if n.endswith((".attention.output", "forward.output"))]
    if changes.get("norm") == "pre":
        for i in range(2):
            cut = {n: 0.0 for n in later if int(n.split(".")[1]) >= i}
            np.testing.assert_allclose(laws[i], softmax(by_hand.run(encoder, tokens, cut)[0]))
    if changes.get("readout") == "root":
        w = {k: v.detach().numpy() for k, v in encoder.readout.state_dict().items()}
        by = softmax(seen["layers.0.hidden"][:, 0] @ w["weight"].T + w["bias"])
        np.testing.assert_allclose(laws[1], by, atol=1e-12)
    reference = np.full(laws.shape[1:], 1 / laws.shape[-1])
    np.testing.assert_allclose(lens.kl(reference), kl(reference, laws), atol=1e-12)
    with pytest.raises(ShapeError, match="reference must have shape"):
        lens.kl(reference[..., :-1])
    assert json.dumps(lens.as_dict())


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_effects_and_edits_at_one_position_per_row(changes):
    encoder = build(config(**changes))
    tokens = tokens_for(encoder.config, 6)
    where = np.array([0, 3, 7, 2, 2, 5])
    for name in encoder.sites():
        for value in (0.25, lambda x: 0.5 * x):

            def by(x, value=value):
                out = x.copy()
                for i, p in enumerate(where):
                    old = out[i, ..., p, :]
                    out[i, ..., p, :] = value(old) if callable(value) else value
                return out

            found = effect(encoder, tokens, replace_at(name, where, value), batch_size=4)
            before = softmax(by_hand.run(encoder, tokens)[0])
            after = softmax(by_hand.run(encoder, tokens, {name: by})[0])
            np.testing.assert_allclose(found.before, before, atol=1e-10)
            np.testing.assert_allclose(found.after, after, atol=1e-10, err_msg=name)
            np.testing.assert_allclose(found.kl_each, kl(before, after), atol=1e-10)
            assert found.kl == pytest.approx(kl(before, after).mean(), abs=1e-10)
            assert found.undefined == 0


def test_targets_and_errors_of_means():
    encoder = build(config())
    tokens = tokens_for(encoder.config, 6)
    edits = {"layers.0.attention.output": 0.0}
    each = effect(encoder, tokens, edits).kl_each
    one = effect(encoder, tokens, edits, targets=[1, 0, 7, 3, 3, 2])
    picked = each[np.arange(6), [1, 0, 7, 3, 3, 2]]
    assert one.kl == pytest.approx(picked.mean())
    assert one.kl_se == pytest.approx(picked.std(ddof=1) / np.sqrt(6))
    mask = np.random.default_rng(0).random((6, 8)) < 0.4
    some = effect(encoder, tokens, edits, targets=mask)
    assert some.kl == pytest.approx(each[mask].mean())
    # Rows of unequal weight: the linearised error of a ratio.
    s, c = np.where(mask, each, 0).sum(1), mask.sum(1)
    error = np.sqrt(((s - s.sum() / c.sum() * c) ** 2).sum() * 6 / 5) / c.sum()
    assert some.kl_se == pytest.approx(error)
    assert json.dumps(one.as_dict())


@pytest.mark.parametrize("head", [None, 1])
@pytest.mark.parametrize("what", ["weights", "scores"])
@pytest.mark.parametrize("renormalise", [True, False])
def test_scaled_attention_by_formula(head, what, renormalise):
    encoder = build(config())
    tokens = tokens_for(encoder.config, 3)
    where = np.random.default_rng(0).random((8, 8)) < 0.4
    where[2], where[3] = True, False  # a row of nothing else, an untouched row
    heads = slice(None) if head is None else [head]

    def by(x, factor):
        out = x.copy()
        out[:, heads] = np.where(where, x[:, heads] * factor, x[:, heads])
        if what == "weights" and renormalise:
            total = out.sum(-1, keepdims=True)
            out = np.divide(out, total, out=out, where=total > 0)
        return out

    name = f"layers.1.attention.{what}"
    for factor in (0.0, 0.3, 1.0, 2.5):
        edits = scale_attention(1, where, factor, head=head, what=what, renormalise=renormalise)
        found = effect(encoder, tokens, edits)
        after = softmax(by_hand.run(encoder, tokens, {name: lambda x, f=factor: by(x, f)})[0])
        np.testing.assert_allclose(found.after, after, atol=1e-11)
        assert (found.kl == 0.0) == (factor == 1.0)
    several = np.stack([where, np.zeros_like(where), where.T])
    by_row = effect(encoder, tokens, scale_attention(1, several, 0.0), batch_size=2)
    alone = effect(encoder, tokens, scale_attention(1, where.T, 0.0))
    np.testing.assert_allclose(by_row.after[2], alone.after[2], atol=1e-12)
    np.testing.assert_allclose(by_row.after[1], by_row.before[1], atol=1e-12)


def test_cut_attention_carries_nothing():
    """All attention to a block cut in all layers: what stands there cannot matter elsewhere."""
    encoder = build(config())
    tokens = tokens_for(encoder.config, 4)
    other = tokens.copy()
    other[:, 4:] = (other[:, 4:] + 1) % 5
    where = np.zeros((8, 8), dtype=bool)
    where[:4, 4:] = True

    def edits(rows):
        return {k: v for i in range(2) for k, v in scale_attention(i, where, 0.0)(rows).items()}

    first, second = (effect(encoder, t, edits) for t in (tokens, other))
    np.testing.assert_allclose(first.after[:, :4], second.after[:, :4], rtol=1e-13)
    assert not np.allclose(first.before[:, :4], second.before[:, :4], atol=1e-4)
    assert not np.allclose(first.after[:, 4:], second.after[:, 4:], atol=1e-4)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_patching_by_loops(changes):
    encoder = build(config(**changes))
    tokens, donors = tokens_for(encoder.config, 5), tokens_for(encoder.config, 5, seed=9)
    sites = ["embed", "layers.0.attention.heads", "layers.1.attention.weights", "layers.1.hidden"]
    root = encoder.config.readout == "root"
    targets = None if root else np.array([0, 7, 3, 3, 1])
    found = patch_activations(
        encoder, tokens, donors, sites=sites, positions=[0, 3], targets=targets, batch_size=2
    )

    def picked(x):
        return x if root else x[np.arange(5), targets]

    (base, _), (donor, seen) = (by_hand.run(encoder, t) for t in (tokens, donors))
    base, donor = picked(softmax(base)), picked(softmax(donor))
    assert found.distance == pytest.approx(kl(donor, base).mean(), abs=1e-10)
    for s, name in enumerate(sites):
        for p, position in enumerate([0, 3]):

            def put(x, name=name, position=position):
                out = x.copy()
                out[..., position, :] = seen[name][..., position, :]
                return out

            law = picked(softmax(by_hand.run(encoder, tokens, {name: put})[0]))
            assert found.kl[s, p] == pytest.approx(kl(base, law).mean(), abs=1e-10)
            restored = 1 - kl(donor, law).mean() / kl(donor, base).mean()
            assert found.restored[s, p] == pytest.approx(restored, abs=1e-9)
    assert not found.undefined.any()
    assert json.dumps(found.as_dict())
    default = patch_activations(encoder, tokens, donors)
    layer = ("attention.output", "middle", "feedforward.output", "hidden")
    inner = [f"layers.{i}.{name}" for i in range(2) for name in layer]
    assert default.sites == ("embed", *inner)
    assert default.kl.shape == (9, encoder.config.n_positions)
    if root:  # after the last layer only the class position is read
        np.testing.assert_allclose(default.restored[-1], [1] + [0] * 8, atol=1e-12)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_ablations_by_hand(how):
    encoder = build(config(n_heads=4))
    tokens = tokens_for(encoder.config, 6)
    truth = np.random.default_rng(3).integers(4, size=(6, 8))
    mask = np.random.default_rng(4).random((6, 8)) < 0.5
    found = ablate_heads(encoder, tokens, how=how, targets=mask, truth=truth, batch_size=4)
    logits, seen = by_hand.run(encoder, tokens)
    base = softmax(logits)

    def surprise(law):
        return -np.log(np.take_along_axis(law, truth[..., None], -1)[..., 0])[mask].mean()

    for i in range(2):
        for h in range(4):
            name = f"layers.{i}.attention.heads"

            def silence(x, name=name, h=h):
                out = x.copy()
                out[:, h] = seen[name][:, h].mean(0) if how == "mean" else 0.0
                return out

            law = softmax(by_hand.run(encoder, tokens, {name: silence})[0])
            assert found.kl[i, h] == pytest.approx(kl(base, law)[mask].mean(), abs=1e-10)
            assert found.cross_entropy[i, h] == pytest.approx(surprise(law), abs=1e-10)
    assert found.base_cross_entropy == pytest.approx(surprise(base), abs=1e-10)
    assert ablate_heads(encoder, tokens).cross_entropy is None
    assert json.dumps(found.as_dict())


def constructed(model):
    construction = pytest.importorskip("hfilter.analysis.construction")
    return construction.ConstructedTransformer(model)


def rows_of(model, n, seed=0):
    """Sequences with every leaf asked for once, itself and some others hidden."""
    rng = np.random.default_rng(seed)
    leaves = np.array(model.sample(n, seed=seed).leaves).astype(np.int64)
    leaves = np.where(rng.random(leaves.shape) < 0.2, model.vocab_size, leaves)
    where = np.tile(np.arange(model.n_leaves), n)
    leaves = np.repeat(leaves, model.n_leaves, axis=0)
    leaves[np.arange(len(where)), where] = model.vocab_size
    return leaves, where


MODELS = [("published", 0), ("published", 1), ("published", 3), ("dense", 0), ("dense", 2)]


def model_of(name, filter_level):
    made = {"published": lambda: hfilter.Grammar.published(4, 1.0, 0)}
    made["dense"] = lambda: hfilter.Grammar.dense(3, 1.0, 6)
    return hfilter.TreeModel(made[name](), 3, filter_level)


@pytest.mark.parametrize(("name", "k"), MODELS)
def test_a_cut_query_is_bp_without_the_sibling(name, k):
    """The all-ones message in place of what query p reads in block m: BP, that subtree masked."""
    model = model_of(name, k)
    network = constructed(model)
    leaves, where = rows_of(model, 6)
    row = np.arange(len(where))
    for height in range(1, 4):
        buffer = network.slots(height).sibling
        unit = 2.0 ** network.slots(height - 1).exponent

        def ones(x, buffer=buffer, unit=unit):
            out = x.clone()
            out[..., buffer] = unit
            return out

        edits = replace_at(f"layers.{height - 1}.attention.output", where, ones)
        found = effect(network, leaves, edits, targets=where)
        exact = with_sibling(model, leaves, height)[row, where]
        before = model.leave_one_out(leaves, dtype="float64")[row, where]
        np.testing.assert_allclose(found.before[row, where], before, atol=1e-10, rtol=0)
        np.testing.assert_allclose(found.after[row, where], exact, atol=1e-10, rtol=0)
        # It is that subtree and no other that was cut.
        wrong = with_sibling(model, leaves, height % 3 + 1)[row, where]
        assert np.abs(found.after[row, where] - wrong).max() > 1e-5


@pytest.mark.parametrize(("name", "k"), MODELS[:3])
def test_a_patched_query_is_bp_with_the_donors_sibling(name, k):
    model = model_of(name, k)
    network = constructed(model)
    leaves, where = rows_of(model, 3)
    donors, _ = rows_of(model, 3, seed=1)
    row = np.arange(len(where))
    for height in range(1, 4):
        site = f"layers.{height - 1}.attention.output"
        block = sibling_block(model, where, height)
        exact = with_sibling(model, leaves, height, instead=donors)[row, where]
        swapped = model.leave_one_out(np.where(block, donors, leaves), dtype="float64")
        np.testing.assert_array_equal(exact, swapped[row, where])
        with torch.no_grad():
            given = network.trace(torch.tensor(donors), names=[site])[1][site]
        edits = replace_at(site, where, given[torch.tensor(row), torch.tensor(where)])
        found = effect(network, leaves, edits, targets=where, batch_size=len(row))
        np.testing.assert_allclose(found.after[row, where], exact, atol=1e-10, rtol=0)


def test_patched_tokens_and_ablations_of_the_construction():
    model = model_of("dense", 0)
    network = constructed(model)
    leaves, where = rows_of(model, 2)
    donors = (leaves + 1) % 3
    row = np.arange(len(where))
    found = patch_activations(
        network, leaves, donors, sites=["embed", "layers.2.hidden"], targets=where
    )
    base = model.leave_one_out(leaves, dtype="float64")[row, where]
    far = model.leave_one_out(donors, dtype="float64")[row, where]
    assert found.distance == pytest.approx(kl(far, base).mean(), abs=1e-10)
    for p in range(8):
        changed = leaves.copy()
        changed[:, p] = donors[:, p]
        law = model.leave_one_out(changed, dtype="float64")[row, where]
        assert found.kl[0, p] == pytest.approx(kl(base, law).mean(), abs=1e-10)
        restored = 1 - kl(far, law).mean() / kl(far, base).mean()
        assert found.restored[0, p] == pytest.approx(restored, abs=1e-9)
    silent = ablate_heads(network, leaves, targets=where)  # a zero message is an impossible one
    assert silent.undefined.tolist() == [[16]] * 3
    assert np.isnan(silent.kl).all()
    lens = logit_lens(network, leaves)  # only the last layer writes what the read-out reads
    assert np.isnan(lens.log_probabilities[:-1]).all()
    assert lens.kl(model.leave_one_out(leaves, dtype="float64"))[-1].max() < 1e-10
    # A message is a vector up to a factor: attention to the sibling, halved, changes nothing.
    half = scale_attention(1, ideal_attention(3, 2) > 0, 0.5, renormalise=False)
    assert effect(network, leaves, half).kl < 1e-12


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e, t: effect(e, t, {"final": 0.0}, targets=[0]), ShapeError, "targets must have"),
        (lambda e, t: effect(e, t, {"final": 0.0}, targets=[8] * 4), ArgumentError, "0 … 7"),
        (lambda e, t: effect(e, t, {"final": 0.0}, targets=t[:, :7] > 0), ShapeError, "targets"),
        (lambda e, t: effect(e, t, {"fnal": 0.0}), ArgumentError, "did you mean 'final'"),
        (lambda e, t: effect(e, t, replace_at("final", [0, 1], 0.0)), ShapeError, "one entry per"),
        (lambda e, t: effect(e, t, replace_at("final", [8] * 4, 0.0)), ArgumentError, "0 … 7"),
        (lambda e, t: replace_at("final", 3, 0.0), ShapeError, "positions must be integers"),
        (lambda e, t: scale_attention(0, np.ones((8, 8)), 0.0), ShapeError, "where must be bool"),
        (lambda e, t: scale_attention(0, np.eye(8) > 0, -1.0), ArgumentError, "factor"),
        (lambda e, t: scale_attention(0, np.eye(8) > 0, 1.0, what="x"), ArgumentError, "what"),
        (lambda e, t: effect(e, t, scale_attention(0, np.eye(8) > 0, 0.0, head=2)),
         ArgumentError, "head must be in 0 … 1"),
        (lambda e, t: effect(e, t, scale_attention(5, np.eye(8) > 0, 0.0)), ArgumentError, "layers.5"),
        (lambda e, t: effect(e, t, scale_attention(0, np.eye(4) > 0, 0.0)), ShapeError, "where"),
        (lambda e, t: patch_activations(e, t, t[:2]), ShapeError, "donors must have the shape"),
        (lambda e, t: patch_activations(e, t, t, sites=["x"]), ArgumentError, "names: no activ"),
        (lambda e, t: patch_activations(e, t, t, positions=[9]), ArgumentError, "positions"),
        (lambda e, t: ablate_heads(e, t, how="none"), ArgumentError, "how"),
        (lambda e, t: ablate_heads(e, t, truth=t[:1]), ShapeError, "truth"),
        (lambda e, t: ablate_heads(e, t, truth=t * 0 + 4), ArgumentError, "truth must be in 0 … 3"),
    ],
)  # fmt: skip
def test_manners(call, error, message):
    encoder = build(config())
    with pytest.raises(error, match=message):
        call(encoder, tokens_for(encoder.config))


def test_the_root_has_no_targets():
    encoder = build(config(readout="root"))
    with pytest.raises(ArgumentError, match="targets are leaves"):
        effect(encoder, tokens_for(encoder.config), {"final": 0.0}, targets=[0, 0, 0, 0])
