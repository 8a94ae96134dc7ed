"""The constructed transformer is belief propagation: to rounding, at every filter level."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from cases import CASES, problem  # noqa: E402
from oracle import token_fields  # noqa: E402

import hfilter  # noqa: E402
from hfilter import Grammar, TreeModel  # noqa: E402
from hfilter.analysis.construction import ConstructedTransformer  # noqa: E402
from hfilter.errors import ArgumentError, DTypeError, ShapeError  # noqa: E402
from hfilter.learn.checkpoint import load_encoder, save_encoder  # noqa: E402

TASKS = ("mlm", "root", "causal")
# Beyond arity 2, a network needs two symbols, a dense table 300^3 numbers; the last one's messages
# underflow in any fixed scale (rules over 250 orders of magnitude).
NAMES = [
    case.name
    for case in CASES
    if "arity" not in case.name
    and case.name not in ("one-symbol", "wide-alphabet", "rare-rules-deeper")
]


def probabilities(network, tokens):
    with torch.no_grad():
        return network(torch.as_tensor(tokens)).double().softmax(-1).numpy()


def worst(got, want):
    """Largest error; NaN must stand in the same places."""
    assert got.shape == want.shape
    assert (np.isnan(got) == np.isnan(want)).all()
    return float(np.nanmax(np.abs(got - want), initial=0.0))


def published(depth, filter_level=0, q=4, **options):
    return TreeModel(Grammar.published(q, 1.0, 0, **options), depth, filter_level)


def mixed_rows(model, n, seed=0):
    """Sequences of the model and uniformly random ones, with 0 to 100 % of the leaves hidden."""
    rng = np.random.default_rng(seed)
    leaves = np.array(model.sample(n, seed=seed).leaves).astype(np.int64)
    leaves[1::3] = rng.integers(model.vocab_size, size=leaves[1::3].shape)
    share = np.resize([0.0, 0.3, 0.6, 1.0], n)
    mask = rng.random(leaves.shape) < share[:, None]
    return leaves, mask, np.where(mask, model.vocab_size, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_equals_enumeration(name):
    """Every family at every filter level, all tasks, against sums over all latent trees."""
    case = next(c for c in CASES if c.name == name)
    for k in range(case.depth + 1):
        p = problem(name, k)
        evidence = p.tokens()
        tokens = np.where(evidence.mask, p.q, evidence.leaves)
        mlm = probabilities(ConstructedTransformer(p.model), tokens)
        assert worst(mlm, evidence.answer.leave_one_out) < 1e-12
        root = probabilities(ConstructedTransformer(p.model, "root"), tokens)
        assert worst(root, evidence.answer.root) < 1e-12
        # Next token: leaf j hidden, and all after it.
        if len(p.law.log_prior) > 3000:
            continue
        rows = slice(0, 5)
        want = []
        for j in range(p.law.n_leaves):
            hidden = evidence.mask[rows].copy()
            hidden[:, j:] = True
            answer = p.law.infer(token_fields(evidence.leaves[rows], hidden, p.q))
            want.append(answer.leave_one_out[:, j])
        causal = probabilities(ConstructedTransformer(p.model, "causal"), tokens[rows])
        assert worst(causal, np.stack(want, axis=1)) < 1e-12


LARGER = [
    *[("published", published(4), k) for k in range(5)],
    *[("published-forbidden", published(3, q=6, rules_per_symbol=4), k) for k in (0, 2)],
    ("dense-ambiguous", TreeModel(Grammar.dense(3, 1.0, 6), 4, root_prior=[0.2, 0.7, 0.1]), 1),
    ("parity", TreeModel(Grammar.parity(), 5), 0),
    ("hierarchy", TreeModel(Grammar.random_hierarchy(5, 3, depth=4, n_classes=3, seed=2)), 3),
    ("two-symbols", TreeModel(Grammar.published(2, 1.0, 0), 5), 5),
]


@pytest.mark.parametrize(("name", "model", "k"), LARGER, ids=[f"{n}-k{k}" for n, _, k in LARGER])
@pytest.mark.parametrize("task", TASKS)
def test_equals_the_engine(name, model, k, task):
    model = model.filtered(k)
    leaves, mask, tokens = mixed_rows(model, 24)
    ask = {"mlm": model.leave_one_out, "root": model.root_posterior, "causal": model.next_token}
    want = ask[task](leaves, mask, dtype="float64")
    assert not np.isnan(want).all()
    assert worst(probabilities(ConstructedTransformer(model, task), tokens), want) < 1e-13
    single = ConstructedTransformer(model, task, "float32")
    assert worst(probabilities(single, tokens), want) < 3e-6
    if task == "mlm":
        beliefs = model.infer(leaves, mask=mask, dtype="float64").leaves
        hidden = probabilities(ConstructedTransformer(model), tokens)[mask]
        assert worst(hidden, beliefs[mask]) < 1e-13


def test_the_judge_sees_a_rule_that_is_slightly_wrong():
    model = published(3)
    _, _, tokens = mixed_rows(model, 24)
    network = ConstructedTransformer(model)
    want = probabilities(network, tokens)
    with torch.no_grad():
        down = network.layers[1].down.weight
        down[tuple(torch.nonzero(down)[3])] *= 1 + 1e-8
    assert 1e-12 < worst(probabilities(network, tokens), want) < 1e-7


def expected_upward(model, fields, height):
    """Upward messages by levels, from dense tensors; above the filter level, given the root."""
    level, current = model.depth, fields  # (nodes, symbols)
    k = model.filter_level
    while level > model.depth - height:
        left, right = current[0::2], current[1::2]
        if level > k:
            tensor = model.grammar.tensor(level - 1)
            current = np.einsum("abc,nb,nc->na", tensor, left, right)
        else:
            if level == k:
                current = np.einsum("nab,nb->na", model.channels, current)
            current = current[0::2] * current[1::2]
        level -= 1
    return current


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_slots_hold_the_exact_messages(k, dtype):
    grammar = Grammar.random_hierarchy(4, 3, depth=3, n_classes=2, seed=1)
    model = TreeModel(grammar, filter_level=k)
    leaves, mask, tokens = mixed_rows(model, 6, seed=1)
    fields = token_fields(leaves, mask, model.vocab_size)  # logarithms
    fields = np.exp(fields)
    network = ConstructedTransformer(model, dtype=dtype)
    with torch.no_grad():
        _, seen = network.trace(torch.as_tensor(tokens))
    accuracy = 1e-13 if dtype == "float64" else 1e-5
    for m, layer in itertools.product(range(model.depth + 1), range(model.depth)):
        if layer < m - 1:
            continue
        up, rest = network.messages(seen[f"layers.{layer}.hidden"], m)
        assert up.shape[-1] == network.slots(m).width
        for row in range(len(tokens)):
            nodes = expected_upward(model, fields[row], m)
            want = np.repeat(nodes, 2**m, axis=0)
            np.testing.assert_allclose(up[row].numpy(), want, rtol=accuracy)
            for j, x in itertools.product(range(model.n_leaves), range(model.vocab_size)):
                clamped = fields[row].copy()
                clamped[j] = np.eye(model.vocab_size)[x]
                want = expected_upward(model, clamped, m)[j >> m]
                np.testing.assert_allclose(rest[row, j, :, x].numpy(), want, rtol=accuracy)
    with pytest.raises(ArgumentError, match=r"height must be in 0 … 3, got 4"):
        network.slots(4)
    with pytest.raises(ShapeError, match="hidden must have shape"):
        network.messages(torch.zeros(2, 8, 3), 1)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_causal_slots_hold_what_is_known_so_far(k):
    grammar = Grammar.random_hierarchy(4, 3, depth=3, n_classes=2, seed=1)
    model = TreeModel(grammar, filter_level=k)
    leaves, mask, tokens = mixed_rows(model, 4, seed=1)
    fields = np.exp(token_fields(leaves, mask, model.vocab_size))
    network = ConstructedTransformer(model, "causal")
    with torch.no_grad():
        _, seen = network.trace(torch.as_tensor(tokens))
    for m in range(model.depth + 1):
        up, rest = network.messages(seen[f"layers.{max(m - 1, 0)}.hidden"], m)
        assert up.shape[-1] == (network.slots(m).width if m < model.depth else 0)
        for row, j in itertools.product(range(len(tokens)), range(model.n_leaves)):
            if m < model.depth:
                ended = j > 0 and j % 2**m == 0
                want = expected_upward(model, fields[row], m)[(j >> m) - 1] * ended
                if m > 0 or j > 0:  # the start token is all ones
                    np.testing.assert_allclose(up[row, j].numpy(), want, rtol=1e-13)
            for x in range(model.vocab_size):
                known = fields[row].copy()
                known[j:] = 1.0
                known[j] = np.eye(model.vocab_size)[x]
                want = expected_upward(model, known, m)[j >> m]
                np.testing.assert_allclose(rest[row, j, :, x].numpy(), want, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_attention_is_uniform_on_the_sibling_block_and_exactly_zero_elsewhere(dtype):
    model = published(4)
    network = ConstructedTransformer(model, dtype=dtype)
    _, seen = network.trace(torch.as_tensor(mixed_rows(model, 3)[2]))
    j = np.arange(16)
    for m in range(1, 5):
        sibling = (j[:, None] >> (m - 1)) == ((j[None] >> (m - 1)) ^ 1)
        weights = seen[f"layers.{m - 1}.attention.weights"].detach().numpy()
        assert (weights == sibling / 2.0 ** (m - 1)).all()


def test_causal_attention_reads_where_blocks_end():
    network = ConstructedTransformer(published(3), "causal")
    _, seen = network.trace(torch.zeros(1, 8, dtype=torch.int64))
    for m in range(1, 4):
        weights = seen[f"layers.{m - 1}.attention.weights"].detach()[0].numpy()
        j = np.arange(8)
        start = j >> (m - 1) << (m - 1)  # position `start` carries the leaf before my block
        assert (weights[0] == np.eye(8)[start]).all()
        ends = np.flatnonzero(j[1:] % 2**m == 0) + 1  # a block of height m ends with leaf j - 1
        assert (weights[1][ends] == np.eye(8)[ends - 2 ** (m - 1)]).all()


def test_a_smaller_gap_leaks_as_much_as_it_says():
    model = published(3)
    _, _, tokens = mixed_rows(model, 9)
    want = probabilities(ConstructedTransformer(model), tokens)
    soft = ConstructedTransformer(model, gap=20.0)
    _, seen = soft.trace(torch.as_tensor(tokens))
    leaks = seen["layers.0.attention.weights"].detach()[0, 0, 0, 2:].max()
    assert 0 < leaks < np.exp(-20.0)
    assert 0 < worst(probabilities(soft, tokens), want) < 1e-6


def test_patching_a_subtree_away_is_hiding_it():
    """The sibling's message replaced by all ones at one query: BP with that subtree masked."""
    model = published(4)
    leaves, _, _ = mixed_rows(model, 12)
    network, query = ConstructedTransformer(model), 5
    for m in range(1, 5):
        slots = network.slots(m)
        sibling = (np.arange(16) >> (m - 1)) == ((query >> (m - 1)) ^ 1)
        ones = 2.0 ** network.slots(m - 1).exponent

        def erase(output, slots=slots, ones=ones):
            output = output.clone()
            output[:, query, slots.sibling] = ones
            return output

        edits = {f"layers.{m - 1}.attention.output": erase}
        with torch.no_grad():
            logits, _ = network.trace(torch.as_tensor(leaves), edits=edits)
        mask = np.broadcast_to(sibling, leaves.shape)
        want = model.leave_one_out(leaves, mask, dtype="float64")[:, query]
        assert worst(logits[:, query].softmax(-1).numpy(), want) < 1e-13


@pytest.mark.parametrize("task", TASKS)
def test_is_an_ordinary_encoder_in_a_file(tmp_path, task):
    model = published(3, 1)
    network = ConstructedTransformer(model, task)
    _, _, tokens = mixed_rows(model, 8)
    save_encoder(tmp_path / "bp.safetensors", network)
    loaded = load_encoder(tmp_path / "bp.safetensors")
    assert type(loaded).__name__ == "Encoder"
    assert loaded.config == network.config
    want = probabilities(network, tokens)
    assert worst(probabilities(loaded, tokens), want) == 0.0
    assert worst(probabilities(copy.deepcopy(network), tokens), want) == 0.0
    assert network.truncated(2).config.n_layers == 2


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("q", "depth"), [(2, 1), (4, 4), (3, 5), (6, 2)])
def test_sizes_are_those_written_down(task, q, depth):
    grammar = Grammar.published(q, 1.0, 0)  # all q^2 pairs have a rule
    for k in range(depth + 1):
        network = ConstructedTransformer(TreeModel(grammar, depth, k), task)
        plan, config = network.plan, network.config
        d = (depth + 1) * (q + q * q) + depth * q + 2 * depth
        below, above = 2 * q * q * (q + 1), 2**k * q * (q + 1)
        if task == "causal":
            d = (depth + 1) * q * q + depth * q + (2 * depth - 1) * q + 4 * depth
            below, above = q * q * (q + 1) + q * q, 2 ** (k - 1) * q * (2 * q + 1)
        assert config.d_model == d + (d % 2 if task == "causal" else 0)
        if depth > 1:  # a carrier is of no use in the last block
            assert config.d_feedforward == max(below * (k < depth), above * (k > 0))
        assert network.n_parameters() == plan.n_parameters
    four = published(4)
    assert ConstructedTransformer(four).config.d_model == 124
    assert ConstructedTransformer(four).config.d_feedforward == 160


def test_building_draws_no_random_number():
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    ConstructedTransformer(published(2))
    assert torch.equal(torch.rand(2), want)


def test_refusals():
    with pytest.raises(ArgumentError, match="model must have arity 2, got 3"):
        ConstructedTransformer(TreeModel(Grammar.log_normal(2, 1.0, 2, arity=3), 2))
    with pytest.raises(ArgumentError, match=r"q = 80.*weights, more than 134217728"):
        ConstructedTransformer(TreeModel(Grammar.log_normal(80, 1.0, 0), 3))
    with pytest.raises(ArgumentError, match="task must be one of mlm, root, causal"):
        ConstructedTransformer(published(2), "ancestor")
    with pytest.raises(DTypeError, match="dtype must be 'float64' or 'float32'"):
        ConstructedTransformer(published(2), dtype="float16")
    with pytest.raises(ArgumentError, match=r"gap must be a finite number in \(0"):
        ConstructedTransformer(published(2), gap=0.0)
    with pytest.raises(ArgumentError, match=r"centring must be a finite number in \[0, 1\]"):
        ConstructedTransformer(published(2), centring=2.0)
    with pytest.raises(ArgumentError, match=r"centring = 1.0 scales messages by 2\^"):
        ConstructedTransformer(published(7), dtype="float32", centring=1.0)


def test_float32_keeps_its_range_where_deep_trees_need_it():
    """At depth 7, unscaled messages underflow in float32 (128 leaves, 115 nats); scaled do not."""
    model = published(7)
    leaves = np.array(model.sample(2, seed=0).leaves).astype(np.int64)
    want = model.leave_one_out(leaves, dtype="float64")
    scaled = ConstructedTransformer(model, dtype="float32", centring=0.45)
    assert worst(probabilities(scaled, leaves), want) < 1e-5
    plain = ConstructedTransformer(model, dtype="float32", centring=0.0)
    assert np.isnan(probabilities(plain, leaves)).any()


def test_hfilter_does_not_import_it():
    assert "ConstructedTransformer" not in dir(hfilter)
