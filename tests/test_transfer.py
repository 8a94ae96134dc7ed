"""Transfers between tasks: what goes over, what is drawn anew, and that frozen means frozen."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import hfilter  # noqa: E402
from hfilter.analysis.construction import ConstructedTransformer  # noqa: E402
from hfilter.errors import ArgumentError, DTypeError  # noqa: E402
from hfilter.learn.checkpoint import save_encoder  # noqa: E402
from hfilter.learn.encoder import Encoder, EncoderConfig  # noqa: E402
from hfilter.learn.freezing import freeze_, weights_digest  # noqa: E402
from hfilter.learn.transfer import transfer  # noqa: E402

TOKENS = torch.randint(4, (16, 8), generator=torch.Generator().manual_seed(7))


def encoder(readout="mlm", seed=0, **options):
    options = {"d_model": 8, "n_layers": 3, "d_feedforward": 12, "dropout": 0.4} | options
    torch.manual_seed(seed)
    return Encoder(EncoderConfig(4, 8, readout=readout, **options))


def values(network):
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def train(network, frozen, optimiser=torch.optim.AdamW, tokens=TOKENS, steps=4):
    """A few steps with decay and momentum, towards whatever; returns the names that moved."""
    before = values(network)
    held = freeze_(network, frozen)
    options = {"lr": 0.05, "weight_decay": 0.1}
    if optimiser is torch.optim.SGD:
        options["momentum"] = 0.9
    made = optimiser([p for p in network.parameters() if p.requires_grad], **options)
    held.attach(made)
    network.train()
    for _ in range(steps):
        logits = network(tokens)
        loss = (logits.log_softmax(-1)[..., 1] + 1.0).square().mean()
        made.zero_grad()
        loss.backward()
        made.step()
    after = values(network)
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_masked_leaves_to_root(norm, positions):
    source = encoder(norm=norm, positions=positions)
    start = transfer(source, "root", seed=5)
    assert (start.config.readout, start.config.n_embedded) == ("root", 4)
    new, old = start.encoder, source
    assert torch.equal(new.embedding.weight, old.embedding.weight[:4])
    body = [n for n, _ in new.named_parameters() if not n.startswith(("readout", "embedding"))]
    for name in body:
        assert torch.equal(new.get_parameter(name), old.get_parameter(name)), name
    assert start.drawn == ("readout.weight", "readout.bias")
    assert start.source == weights_digest(source)
    # The same seed draws the same read-out, the one of a fresh encoder of this seed.
    again, other = transfer(source, "root", seed=5), transfer(source, "root", seed=6)
    assert torch.equal(new.readout.weight, again.encoder.readout.weight)
    assert not torch.equal(new.readout.weight, other.encoder.readout.weight)
    fresh = encoder("root", seed=5, norm=norm, positions=positions)
    assert torch.equal(new.readout.weight, fresh.readout.weight)
    assert train(new, start.frozen) == {"readout.weight", "readout.bias"}
    assert train(transfer(source, "root", freeze=False).encoder, ()) == set(values(new))


def test_frozen_means_without_dropout_in_train_mode_too():
    """The published code's frozen encoders get their dropout back with train(): not here."""
    source = encoder()
    start = transfer(source, "root")
    free = transfer(source, "root", freeze=False).encoder.train()
    assert not torch.equal(free(TOKENS), free(TOKENS)), "the judge sees dropout"
    freeze_(start.encoder, start.frozen)
    start.encoder.train().eval().train()
    assert torch.equal(start.encoder(TOKENS), start.encoder(TOKENS))
    want = start.encoder.eval()(TOKENS)
    assert torch.allclose(start.encoder.train()(TOKENS), want, atol=1e-6)


def test_the_first_layers_frozen():
    source = encoder(positions="learned")
    start = transfer(source, "root", freeze=2)
    assert start.frozen == ("embedding", "positions", "layers.0", "layers.1")
    moved = train(start.encoder, start.frozen)
    assert {name.split(".")[0] for name in moved} == {"layers", "readout"}
    assert {name.split(".")[1] for name in moved if name.startswith("layers")} == {"2"}
    start.encoder.train()
    _, first = start.encoder.trace(TOKENS)
    _, second = start.encoder.trace(TOKENS)
    assert torch.equal(first["layers.1.hidden"], second["layers.1.hidden"])
    assert not torch.equal(first["layers.2.hidden"], second["layers.2.hidden"])
    assert transfer(source, "root", freeze=0).frozen == ("embedding", "positions")


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.SGD])
def test_root_to_masked_leaves_trains_the_mask_row(optimiser):
    source = encoder("root")
    start = transfer(source, "mlm")
    assert start.frozen[0] == "embedding.weight[:4]"
    assert start.drawn == ("embedding.weight[4:]", "readout.weight", "readout.bias")
    tokens = TOKENS.clone()
    tokens[:, ::3] = 4
    moved = train(start.encoder, start.frozen, optimiser, tokens)
    assert moved == {"embedding.weight", "readout.weight", "readout.bias"}
    rows = start.encoder.embedding.weight
    assert torch.equal(rows[:4], source.embedding.weight)
    assert not torch.equal(rows[4], transfer(source, "mlm").encoder.embedding.weight[4])
    start.encoder.train()
    assert torch.equal(start.encoder(tokens), start.encoder(tokens))


def test_root_with_hidden_leaves_keeps_the_mask_row():
    start = transfer(encoder(), "root", masked_root=True)
    assert start.config.n_embedded == 5
    assert start.frozen == ("embedding", "layers.0", "layers.1", "layers.2")
    assert torch.equal(start.encoder.embedding.weight, encoder().embedding.weight)


def test_the_same_task_on_other_data_keeps_its_readout():
    source = encoder()
    other = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 3), 3, filter_level=2)
    start = transfer(source, "mlm", freeze=False, model=other)
    assert (start.drawn, start.frozen, start.config) == ((), (), source.config)
    assert torch.equal(start.encoder(TOKENS), source.eval()(TOKENS))
    start.encoder.readout.weight.data.zero_()
    assert source.readout.weight.abs().sum() > 0, "a copy"
    assert transfer(source, "mlm", new_readout=True).drawn == ("readout.weight", "readout.bias")
    # More classes: the body goes over, the read-out cannot.
    classes = hfilter.Grammar.random_hierarchy(4, 2, depth=3, n_classes=6, seed=0)
    wider = transfer(encoder("root"), "root", model=hfilter.TreeModel(classes))
    assert wider.encoder(TOKENS).shape == (16, 6)
    assert wider.drawn == ("readout.weight", "readout.bias")


def test_ancestors_from_the_first_layers():
    source = encoder()
    start = transfer(source, "ancestor", n_layers=2, probe_hidden=10, n_classes=3, dropout=0.0)
    assert start.encoder(TOKENS).shape == (16, 8, 3)
    _, want = source.eval().trace(TOKENS)
    _, got = start.encoder.trace(TOKENS)
    assert torch.equal(got["final"], want["layers.1.hidden"])
    moved = train(start.encoder, start.frozen)
    assert {name.split(".")[0] for name in moved} == {"readout"}


def test_causal_and_class_position():
    source = encoder("causal")
    assert transfer(source, "mlm").encoder.config.is_causal
    assert not transfer(source, "mlm", causal=False).encoder.config.is_causal
    assert transfer(encoder(), "causal").config == encoder("causal").config
    start = transfer(encoder(), "root", pooling="class")
    assert "class_token" in start.drawn
    assert "class_token" not in start.frozen
    assert train(start.encoder, start.frozen) == {"class_token", "readout.weight", "readout.bias"}


def test_belief_propagation_goes_over_exactly():
    """The body of the constructed mlm network, with the root's read-out: the root's posterior."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 3)
    start = transfer(
        ConstructedTransformer(model), "root", pooling="mean", masked_root=True, link="log"
    )
    assert start.encoder.readout.weight.dtype == torch.float64
    root = ConstructedTransformer(model, "root")
    start.encoder.readout.load_state_dict(root.readout.state_dict())
    leaves = np.array(model.sample(8, seed=0).leaves).astype(np.int64)
    leaves[:, :3] = 4
    got = start.encoder(torch.as_tensor(leaves)).softmax(-1).detach().numpy()
    want = model.root_posterior(np.minimum(leaves, 3), leaves == 4, dtype="float64")
    np.testing.assert_allclose(got, want, atol=1e-13)
    assert transfer(root, "mlm").config.link == "logit"


def test_from_a_file(tmp_path):
    source = encoder()
    save_encoder(tmp_path / "encoder.safetensors", source)
    start = transfer(tmp_path, "root")
    assert start.source == weights_digest(source)
    assert torch.equal(start.encoder.embedding.weight, source.embedding.weight[:4])


def test_refusals_of_transfer():
    source = encoder()
    with pytest.raises(ArgumentError, match="d_model is no option of transfer: it takes dropout"):
        transfer(source, "root", d_model=16)
    for layers in (4, -1):
        with pytest.raises(ArgumentError, match=r"freeze must be True, False or 0 … 3 layers"):
            transfer(source, "root", freeze=layers)
    with pytest.raises(ArgumentError, match="n_layers"):
        transfer(source, "root", n_layers=4)
    with pytest.raises(ArgumentError, match="model must have the sizes of source"):
        transfer(source, "mlm", model=hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4))
    with pytest.raises(ArgumentError, match="new_readout = False, but the read-out of the source"):
        transfer(source, "root", new_readout=False)
    with pytest.raises(DTypeError, match="source must be an Encoder or a path, got int"):
        transfer(3, "root")


def test_freezing_names():
    for entry, message in (
        ("layer.0", r"no parameter is called 'layer.0'.*did you mean 'layers.0'"),
        ("embeding.weight[:2]", r"'embeding.weight' is no parameter; did you mean 'embedding.w"),
        ("embedding.weight[3:9]", r"'embedding.weight\[3:9\]' names no rows of the 5"),
        ("embedding.weight[2:2]", "names no rows"),
    ):
        with pytest.raises(ArgumentError, match=message):
            freeze_(encoder(), [entry])
    with pytest.raises(ArgumentError, match="frozen must be a sequence of names, got the string"):
        freeze_(encoder(), "layers")
    with pytest.raises(ArgumentError, match="leaves no parameter to train"):
        freeze_(encoder(), ["embedding", "layers", "readout"])
    free = encoder()
    assert freeze_(free, ()).names == ()
    assert free.layers[0].dropout.p == free.dropout.p == free.layers[0].attention.dropout == 0.4
    assert freeze_(encoder(), ["positions"]).names == ()  # sinusoids never train
    held = freeze_(encoder(), ["layers.1.attention", "layers.1.attention"])
    assert len(held.names) == 4


def test_zeros_are_chosen_when_training_begins():
    """Weights may be loaded after freeze_, as in a run that resumes."""
    network, later = encoder(dropout=0.0), encoder(seed=1, dropout=0.0)
    with torch.no_grad():
        later.readout.weight[0] = 0.0
    held = freeze_(network, ["zeros"])
    network.load_state_dict(later.state_dict())
    made = torch.optim.AdamW(network.parameters(), lr=0.1)
    held.attach(made)
    for _ in range(3):
        made.zero_grad()
        network(TOKENS).square().mean().backward()
        made.step()
    assert (network.readout.weight[0] == 0).all()
    assert (network.readout.weight[1:] != later.readout.weight[1:]).all()
    assert (network.embedding.weight[:4] != later.embedding.weight[:4]).all()


def test_digest_sees_every_weight():
    network = encoder()
    digest = weights_digest(network)
    assert digest == weights_digest(encoder()) != weights_digest(encoder(seed=1))
    assert digest != weights_digest(encoder().double())
    with torch.no_grad():
        network.layers[2].norm1.bias[3] += 1e-6
    assert weights_digest(network) != digest
