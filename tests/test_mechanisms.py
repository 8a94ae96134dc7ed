"""Exact effects against enumeration, and the competition of mechanisms against plain loops."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cases import CASES, problem  # noqa: E402
from oracle import token_fields  # noqa: E402
from test_encoder_options import build, config  # noqa: E402

import hfilter  # noqa: E402
from hfilter.analysis.attention import ideal_attention  # noqa: E402
from hfilter.analysis.competition import attention_doses, competition  # noqa: E402
from hfilter.analysis.mechanisms import (  # noqa: E402
    local_and_global,
    sibling_block,
    soften,
    with_sibling,
)
from hfilter.errors import ArgumentError, DTypeError, ShapeError  # noqa: E402

# wide-alphabet has 300 symbols, and one of the rare ones rules of 1e-250: too slow, too small to
# be told by their laws. Every other family, arity and level.
PAIRS = [
    (case.name, k)
    for case in CASES
    if case.name != "wide-alphabet" and not case.name.startswith("rare")
    for k in range(case.depth + 1)
]


@pytest.mark.parametrize(("name", "k"), PAIRS)
def test_cuts_swaps_and_softening_by_enumeration(name, k):
    case = problem(name, k)
    model, law, q = case.model, case.law, case.q
    rng = np.random.default_rng(case.seed)
    leaves = law.draw(2, rng)
    donors = rng.integers(q, size=leaves.shape)
    mask = rng.random(leaves.shape) < 0.25
    height = int(rng.integers(1, model.depth + 1))
    reads = ideal_attention(model.depth, height, arity=model.arity) > 0
    cut = with_sibling(model, leaves, height, mask=mask)
    other = with_sibling(model, np.where(mask, q, leaves), height, instead=donors)
    for j in rng.integers(model.n_leaves, size=2):
        where = np.broadcast_to(reads[j], leaves.shape)
        np.testing.assert_array_equal(sibling_block(model, [j] * 2, height), where)
        without = token_fields(leaves, mask | where, q)
        swapped = token_fields(np.where(where, donors, leaves), mask & ~where, q)
        expected = law.infer(np.concatenate([without, swapped])).leave_one_out[:, j]
        np.testing.assert_allclose(cut[:, j], expected[:2], atol=1e-12)
        np.testing.assert_allclose(other[:, j], expected[2:], atol=1e-10)
    where = rng.random(leaves.shape) < 0.5
    for alpha in (0.0, 0.3, 1.0):
        fields = soften(model, leaves, where, alpha, mask)
        by = np.zeros_like(fields)
        for i, j in np.ndindex(leaves.shape):
            weak = alpha if where[i, j] else 1.0
            for x in range(q):
                value = 1.0 if mask[i, j] else (1 - weak) + weak * (x == leaves[i, j])
                by[i, j, x] = -np.inf if value == 0 else np.log(value)
        np.testing.assert_allclose(fields, by, atol=1e-15)
    hidden = mask | where
    tokens = np.where(mask, q, leaves)  # hidden by the token, by the mask, or by both
    for both in (None, mask, np.zeros_like(mask)):
        np.testing.assert_array_equal(soften(model, tokens, where, 1.0, both), fields)
    whole = soften(model, leaves, where, 0.0, mask)
    np.testing.assert_allclose(whole, token_fields(leaves, hidden, q))


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_lift_is_the_parents_message(k):
    """Unambiguous: P = W_1 x U_v(f(b, s)) / mu_v(f(b, s)), U_v from the law of v, both leaves hidden."""
    grammar = hfilter.Grammar.published(4, 1.0, 0)
    model = hfilter.TreeModel(grammar, 4, k)
    leaves = np.array(model.sample(60, seed=3).leaves)
    found = local_and_global(model, leaves)
    rules = grammar.tensor(0) > 0
    assert (rules.sum(0) == 1).all()
    parent = rules.argmax(0)  # [b, c] -> the one symbol that makes it
    law = model.node_laws(3)
    for j in range(16):
        v, s = j // 2, j ^ 1
        mask = np.zeros(leaves.shape, dtype=bool)
        mask[:, [j, s]] = True
        outside = model.infer(leaves, mask=mask, dtype="float64", levels=[3]).level(3)[:, v]
        for b in range(4):
            pair = (b, leaves[:, s]) if j % 2 == 0 else (leaves[:, s], b)
            a = parent[pair]
            lift = outside[np.arange(60), a] / law[v, a]
            first = found.lift[:, j] / found.lift[:, j].sum(-1, keepdims=True)
            if b == 0:
                total = np.zeros(60)
                lifts = []
            total += lift
            lifts.append(lift)
        np.testing.assert_allclose(first, np.stack(lifts, -1) / total[:, None], atol=1e-12)
        product = found.local[:, j] * np.stack(lifts, -1)
        product /= product.sum(-1, keepdims=True)
        np.testing.assert_allclose(found.full[:, j], product, atol=1e-12)
    assert json.dumps(found.as_dict())


def test_how_often_the_rest_overrides_the_sibling():
    """26.5 % of left leaves of the default model; standard error 0.2 %, tolerance 5 of them."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 4)
    found = local_and_global(model, model.sample(8000, seed=0).leaves)
    share = found.conflict[:, ::2].mean(1)
    error = share.std() / np.sqrt(8000)
    assert abs(share.mean() - 0.265) < 5 * error < 0.02
    np.testing.assert_array_equal(found.local_choice, found.local.argmax(-1))
    np.testing.assert_array_equal(found.conflict, found.local_choice != found.global_choice)


def test_impossible_rows_have_no_choice():
    model = hfilter.TreeModel(hfilter.Grammar.broadcast(2, 1.0), 2)
    found = local_and_global(model, [[0, 0, 0, 1], [0, 0, 0, 0]])
    assert found.global_choice.tolist() == [[-1, -1, -1, 0], [0, 0, 0, 0]]
    assert found.local_choice[1].tolist() == [0, 0, 0, 0]
    assert not found.conflict[0, :3].any()
    assert found.conflict[0, 3] == (found.local_choice[0, 3] != 0)
    assert np.isnan(found.lift[1, 0, 1])  # the sibling alone rules symbol 1 out
    assert found.lift[1, 0, 0] == pytest.approx(1.0)


def small_model(k=0):
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 3, k)


def question(model, n=80):
    leaves = np.array(model.sample(n, seed=5).leaves).astype(np.int64)
    rng = np.random.default_rng(0)
    return leaves, rng.integers(8, size=n), rng.random(leaves.shape) < 0.15


def test_competition_by_loops():
    model, encoder = small_model(), build(config())
    leaves, where, mask = question(model)
    found = competition(encoder, model, leaves, where, mask=mask, heads=True, batch_size=7)
    rows = {name: [] for name in ("odds", "local", "exact", "best", "loc", "glob", "heads")}
    for x, j, m in zip(leaves, where, mask, strict=True):
        tokens = np.where(m, 4, x)
        tokens[j] = 4
        local = model.windowed(tokens[None], 1, dtype="float64")[0, j]
        full = model.leave_one_out(tokens[None], dtype="float64")[0, j]
        loc, glob = local.argmax(), full.argmax()
        if loc == glob:
            continue
        with torch.no_grad():
            _, seen = encoder.trace(torch.tensor(tokens[None]))
            sites = ("embed", "layers.0.hidden", "layers.1.hidden")
            law = np.stack([encoder.decode(seen[s])[0, j].numpy() for s in sites])
            change = np.empty((2, 2))
            for i, h in np.ndindex(2, 2):

                def silence(z, h=h, j=j):
                    z = z.clone()
                    z[:, h, j] = 0
                    return z

                edits = {f"layers.{i}.attention.heads": silence}
                less = encoder.trace(torch.tensor(tokens[None]), edits=edits)[0][0, j].numpy()
                change[i, h] = (less[loc] - less[glob]) - (law[-1, loc] - law[-1, glob])
        rows["heads"].append(change)
        rows["odds"].append(law[:, loc] - law[:, glob])
        rows["best"].append(law.argmax(-1))
        rows["loc"].append(loc)
        rows["glob"].append(glob)
        rows["local"].append(np.log(local[loc] / local[glob]) if local[glob] else np.inf)
        rows["exact"].append(np.log(full[loc] / full[glob]) if full[loc] else -np.inf)
    r = {name: np.array(values) for name, values in rows.items()}
    assert found.n_conflicts == len(r["odds"]) > 8
    assert found.n_rows == 80
    np.testing.assert_allclose(found.difference, r["odds"].mean(0), atol=1e-12)
    error = r["odds"].std(0, ddof=1) / np.sqrt(len(r["odds"]))
    np.testing.assert_allclose(found.difference_se, error, atol=1e-12)
    np.testing.assert_allclose(found.won_local, (r["best"] == r["loc"][:, None]).mean(0))
    np.testing.assert_allclose(found.won_global, (r["best"] == r["glob"][:, None]).mean(0))
    for got, want in ((found.exact_difference, "exact"), (found.local_difference, "local")):
        assert got == pytest.approx(r[want][np.isfinite(r[want])].mean(), abs=1e-10)
    assert found.exact_difference < 0 < found.local_difference
    np.testing.assert_allclose(found.heads, r["heads"].mean(0), atol=1e-12)
    assert competition(encoder, model, leaves, where).heads is None
    assert json.dumps(found.as_dict())


@pytest.mark.parametrize(("what", "layers"), [("weights", None), ("scores", [0])])
def test_doses_by_loops(what, layers):
    model, encoder = small_model(1), build(config())
    leaves, where, mask = question(model, 40)
    factors = (0.0, 0.4, 1.0)
    found = attention_doses(
        encoder, model, leaves, where, factors, height=2, layers=layers, what=what, mask=mask
    )
    count = 0
    odds, exact_odds, apart, moved, exact_moved = np.zeros((5, 3))
    for x, j, m in zip(leaves, where, mask, strict=True):
        tokens = np.where(m, 4, x)
        tokens[j] = 4
        local = model.windowed(tokens[None], 1, dtype="float64")[0, j]
        full = model.leave_one_out(tokens[None], dtype="float64")[0, j]
        loc, glob = local.argmax(), full.argmax()
        if loc == glob:
            continue
        count += 1
        block = slice(j // 4 * 4 + (0 if j % 4 >= 2 else 2), j // 4 * 4 + (2 if j % 4 >= 2 else 4))
        for f, factor in enumerate(factors):

            def scaled(w, factor=factor, j=j, block=block):
                w = w.clone()
                w[:, :, j, block] *= factor
                if what == "weights":
                    w[:, :, j] /= w[:, :, j].sum(-1, keepdim=True)
                return w

            with torch.no_grad():
                edits = {f"layers.{i}.attention.{what}": scaled for i in layers or (0, 1)}
                law = encoder.trace(torch.tensor(tokens[None]), edits=edits)[0][0, j].softmax(-1)
                base = encoder(torch.tensor(tokens[None]))[0, j].softmax(-1).numpy()
            law = law.numpy()
            fields = np.zeros((1, 8, 4))
            for i in range(8):
                if tokens[i] < 4:
                    dose = factor if block.start <= i < block.stop else 1.0
                    with np.errstate(divide="ignore"):
                        fields[0, i] = np.log(1 - dose + dose * (np.arange(4) == tokens[i]))
            exact = model.leave_one_out(log_fields=fields, dtype="float64")[0, j]
            odds[f] += np.log(law[loc] / law[glob])
            exact_odds[f] += np.log(exact[loc] / exact[glob])
            apart[f] += (exact * np.log(exact / law)).sum()
            moved[f] += (base * np.log(base / law)).sum()
            exact_moved[f] += (full * np.log(full / exact)).sum()
    assert found.n_conflicts == count > 4
    for got, want in (
        (found.difference, odds),
        (found.exact_difference, exact_odds),
        (found.kl, apart),
        (found.moved, moved),
        (found.exact_moved, exact_moved),
    ):
        np.testing.assert_allclose(got, want / count, atol=1e-10)
    assert found.moved[2] < 1e-12 < found.moved[0]
    assert not found.undefined.any()
    assert json.dumps(found.as_dict())


@pytest.mark.parametrize("k", [0, 2])
def test_on_the_constructed_transformer(k):
    construction = pytest.importorskip("hfilter.analysis.construction")
    model = small_model(k)
    network = construction.ConstructedTransformer(model)
    leaves, where, mask = question(model, 60)
    found = competition(network, model, leaves, where, mask=mask)
    assert found.difference[-1] == pytest.approx(found.exact_difference, abs=1e-10)
    assert found.won_global[-1] == 1.0
    assert found.won_local[-1] == 0.0
    assert found.undefined.tolist() == [found.n_conflicts] * 3 + [0]
    doses = attention_doses(network, model, leaves, where, (0.5, 1.0), mask=mask)
    # Half of a message says the same as all of it: no dose between cut and whole.
    np.testing.assert_allclose(doses.moved, 0.0, atol=1e-12)
    assert doses.kl[1] == pytest.approx(0.0, abs=1e-12)
    assert doses.exact_moved[0] > 1e-3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: soften(m, x, x > 0, 1.5), ArgumentError, "alpha"),
        (lambda m, x: soften(m, x, x[:, :3] > 0, 0.5), ShapeError, "where must be bool of shape"),
        (lambda m, x: soften(m, x + 4, x > 0, 0.5), ArgumentError, "leaves must be in 0 … 4"),
        (lambda m, x: soften(m, x[:, :7], x > 0, 0.5), ShapeError, "leaves must have shape"),
        (lambda m, x: with_sibling(m, x, 0), ArgumentError, "height"),
        (lambda m, x: with_sibling(m, x, 4), ArgumentError, "height must be an integer from 1 to 3"),
        (lambda m, x: with_sibling(m, x, 1, instead=x[:1]), ShapeError, "instead"),
        (lambda m, x: with_sibling(m, x * 1.0, 1), DTypeError, "leaves must be integers"),
        (lambda m, x: sibling_block(m, [8], 1), ArgumentError, "positions must be in 0 … 7"),
        (lambda m, x: local_and_global(m, x, mask=x), DTypeError, "mask must be bool"),
        (lambda m, x: competition(build(config(readout="root")), m, x, [0] * 4),
         ArgumentError, "encoder must have readout='mlm', got 'root'"),
        (lambda m, x: competition(build(config(n_leaves=16)), m, x, [0] * 4),
         ArgumentError, "reads 16 leaves of 4 symbols, the model has 8 of 4"),
        (lambda m, x: competition(build(config()), m, x, [0] * 3), ShapeError, "one leaf per row"),
        (lambda m, x: competition(m, m, x, [0] * 4), DTypeError, "encoder must be a hfilter.learn"),
        (lambda m, x: attention_doses(build(config()), m, x, [0] * 4, [2.0]), ArgumentError, "factors"),
        (lambda m, x: attention_doses(build(config()), m, x, [0] * 4, layers=[2]),
         ArgumentError, "layers"),
    ],
)  # fmt: skip
def test_manners(call, error, message):
    model = small_model()
    with pytest.raises(error, match=message):
        call(model, question(model, 4)[0])
