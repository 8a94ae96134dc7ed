"""Laws of the grammar families, their views and their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hfilter import Grammar, TreeModel

EVERY_FAMILY = {
    "log_normal": lambda: Grammar.log_normal(4, 1.0, 0),
    "log_normal-forbidden": lambda: Grammar.log_normal(5, 1.0, 1, rules_per_symbol=2),
    "log_normal-arity3": lambda: Grammar.log_normal(3, 0.5, 2, arity=3),
    "published": lambda: Grammar.published(4, 1.0, 0),
    "random_hierarchy": lambda: Grammar.random_hierarchy(
        vocab_size=4, rules_per_symbol=3, depth=3, n_classes=5, seed=3
    ),
    "random_hierarchy-arity3": lambda: Grammar.random_hierarchy(
        vocab_size=3, rules_per_symbol=4, depth=2, n_classes=2, arity=3, seed=4
    ),
    "dense": lambda: Grammar.dense(3, 0.7, 5),
    "dense-arity3": lambda: Grammar.dense(2, 1.0, 6, arity=3),
    "broadcast": lambda: Grammar.broadcast(4, 0.3),
    "parity": lambda: Grammar.parity(),
    "parity-arity4": lambda: Grammar.parity(arity=4),
    "levels": lambda: Grammar.from_tensor([np.full((2, 3, 3), 1 / 9), np.full((3, 2, 2), 0.25)]),
}
families = pytest.mark.parametrize("name", EVERY_FAMILY)


def depth_of(name: str) -> int:
    return 3 if name == "random_hierarchy" else 2


@families
def test_rows_are_laws(name: str) -> None:
    grammar = EVERY_FAMILY[name]()
    for level in range(depth_of(name)):
        tensor = grammar.tensor(level)
        assert tensor.dtype == np.float64
        assert tensor.ndim == grammar.arity + 1
        assert (tensor >= 0).all()
        rows = tensor.reshape(len(tensor), -1).sum(axis=1)
        np.testing.assert_allclose(rows, 1.0, rtol=0, atol=1e-14)
    alphabets = grammar.alphabets(depth_of(name))
    shapes = [grammar.tensor(d).shape for d in range(depth_of(name))]
    assert tuple(alphabets) == (*(shape[0] for shape in shapes), shapes[-1][-1])
    assert (grammar.n_classes, grammar.vocab_size) == (alphabets[0], alphabets[-1])


@families
def test_same_arguments_same_grammar(name: str) -> None:
    first, second = EVERY_FAMILY[name](), EVERY_FAMILY[name]()
    assert first.fingerprint == second.fingerprint
    int(first.fingerprint, 16)
    for level in range(depth_of(name)):
        np.testing.assert_array_equal(first.tensor(level), second.tensor(level))


def test_fingerprints_tell_grammars_apart() -> None:
    prints = [make().fingerprint for make in EVERY_FAMILY.values()]
    prints += [Grammar.log_normal(4, 1.0, seed).fingerprint for seed in (1, 2, 2**40)]
    tensor = Grammar.log_normal(4, 1.0, 0).tensor()
    where = tuple(np.argwhere(tensor)[0])
    other = tuple(np.argwhere(tensor)[1])
    tensor[where] -= 1e-9
    tensor[other] += 1e-9
    prints.append(Grammar.from_tensor(tensor).fingerprint)
    assert len(set(prints)) == len(prints)


@families
def test_files_keep_every_bit(name: str, tmp_path: Path) -> None:
    grammar = EVERY_FAMILY[name]()
    path = tmp_path / "grammar.bin"
    grammar.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["grammar.bin"]
    again = Grammar.load(path)
    assert again.fingerprint == grammar.fingerprint
    assert (again.n_rules, again.arity) == (grammar.n_rules, grammar.arity)
    for level in range(depth_of(name)):
        np.testing.assert_array_equal(again.tensor(level), grammar.tensor(level))
    depth = depth_of(name)
    np.testing.assert_array_equal(
        TreeModel(again, depth).sample(20, seed=1).leaves,
        TreeModel(grammar, depth).sample(20, seed=1).leaves,
    )
    again.save(str(path))  # a string path, over an older file
    assert Grammar.load(str(path)).fingerprint == grammar.fingerprint


@families
def test_views(name: str) -> None:
    grammar = EVERY_FAMILY[name]()
    assert "Grammar" in repr(grammar)
    assert json.loads(json.dumps(grammar.describe())) == grammar.describe()
    page = grammar._repr_html_()
    assert "<" in page
    assert "script" not in page
    tensor = grammar.tensor()
    tensor[:] = -1.0
    assert (grammar.tensor() >= 0).all(), "tensor() must not be a window into the grammar"


@families
def test_round_trip_through_tensors(name: str) -> None:
    """from_tensor(tensor()) is the same list of rules to the last bit: the same samples."""
    grammar = EVERY_FAMILY[name]()
    depth = depth_of(name)
    tensors = [grammar.tensor(d) for d in range(depth)]
    copy = Grammar.from_tensor(tensors)
    for d in range(depth):
        np.testing.assert_array_equal(copy.tensor(d), tensors[d])
    assert copy.is_unambiguous == grammar.is_unambiguous
    a, b = TreeModel(grammar, depth).sample(30, seed=2), TreeModel(copy, depth).sample(30, seed=2)
    np.testing.assert_array_equal(a.leaves, b.leaves)


@families
def test_ambiguity(name: str) -> None:
    grammar = EVERY_FAMILY[name]()
    tensors = [grammar.tensor(d) for d in range(depth_of(name))]
    ambiguous = any(((t > 0).sum(axis=0) > 1).any() for t in tensors)
    assert grammar.is_unambiguous == (not ambiguous)


@pytest.mark.parametrize(("q", "kept", "arity"), [(4, None, 2), (5, 3, 2), (3, None, 3), (2, 3, 3)])
def test_log_normal_deals_out_the_tuples(q: int, kept: int | None, arity: int) -> None:
    grammar = Grammar.log_normal(q, 1.0, 7, rules_per_symbol=kept, arity=arity)
    tensor = grammar.tensor()
    each = q ** (arity - 1) if kept is None else kept
    assert ((tensor > 0).reshape(q, -1).sum(axis=1) == each).all()
    assert ((tensor > 0).sum(axis=0) <= 1).all()
    assert grammar.n_rules == q * each
    assert grammar.is_unambiguous


def test_log_normal_weights_have_the_stated_spread() -> None:
    """Logits within a parent are normal of width sigma: variance pooled over 200 grammars."""
    sigma, q = 1.5, 4
    seen = []
    for seed in range(200):
        tensor = Grammar.log_normal(q, sigma, seed).tensor()
        logs = np.log(tensor[tensor > 0]).reshape(q, q)
        seen.append(logs.var(axis=1, ddof=1))
    mean = np.mean(seen) / sigma**2
    # 800 sample variances of 3 degrees of freedom: relative standard error sqrt(2 / 2400) = 0.029
    assert abs(mean - 1) < 5 * 0.029
    flat = Grammar.log_normal(q, 0.0, 1).tensor()
    np.testing.assert_allclose(flat[flat > 0], 1 / q, rtol=1e-15)


def test_log_normal_pairs_are_dealt_uniformly() -> None:
    """Over 400 grammars each pair belongs to parent 0 in one of q cases, five standard errors."""
    q, n = 3, 400
    owned = sum((Grammar.log_normal(q, 1.0, s).tensor()[0] > 0).astype(int) for s in range(n))
    error = np.sqrt(1 / q * (1 - 1 / q) / n)
    assert (np.abs(owned / n - 1 / q) < 5 * error).all()


@pytest.mark.parametrize(("v", "m", "classes", "arity"), [(4, 2, 6, 2), (3, 3, 2, 2), (2, 3, 2, 3)])
def test_random_hierarchy(v: int, m: int, classes: int, arity: int) -> None:
    grammar = Grammar.random_hierarchy(
        vocab_size=v, rules_per_symbol=m, depth=3, n_classes=classes, arity=arity, seed=1
    )
    for level, parents in enumerate((classes, v, v)):
        tensor = grammar.tensor(level)
        assert tensor.shape == (parents,) + (v,) * arity
        assert ((tensor > 0).reshape(parents, -1).sum(axis=1) == m).all()
        assert ((tensor > 0).sum(axis=0) <= 1).all()
        np.testing.assert_array_equal(np.unique(tensor), np.unique([0.0, 1 / m]))
    assert not np.array_equal(grammar.tensor(1), grammar.tensor(2)), "levels have their own rules"
    assert grammar.n_rules == (classes + 2 * v) * m


@pytest.mark.parametrize(("v", "arity"), [(1000, 8), (60_000, 4), (2, 32)])
def test_random_hierarchy_beyond_64_bits(v: int, arity: int) -> None:
    """More tuples than an integer counts: distinct ones all the same."""
    grammar = Grammar.random_hierarchy(
        vocab_size=v, rules_per_symbol=3, depth=1, n_classes=50, arity=arity, seed=1
    )
    assert grammar.n_rules == 150
    assert grammar.is_unambiguous
    leaves = TreeModel(grammar, 1).sample(3000, seed=1).leaves
    assert leaves.max() > 0.9 * (v - 1)
    assert len(np.unique(leaves, axis=0)) == 150


def test_random_hierarchy_fills_the_whole_table() -> None:
    """v * m = v**2: every tuple is used exactly once."""
    tensor = Grammar.random_hierarchy(
        vocab_size=3, rules_per_symbol=3, depth=2, n_classes=3, seed=2
    ).tensor(1)
    assert ((tensor > 0).sum(axis=0) == 1).all()


def test_dense_concentration() -> None:
    """Symmetric Dirichlet: entries have mean 1/q^2 and variance (1/K)(1 - 1/K) / (K alpha + 1)."""
    q, alpha, n = 3, 0.5, 300
    cells = q * q
    rows = np.concatenate([Grammar.dense(q, alpha, s).tensor().reshape(q, -1) for s in range(n)])
    variance = (1 / cells) * (1 - 1 / cells) / (cells * alpha + 1)
    np.testing.assert_allclose(rows.mean(axis=0), 1 / cells, rtol=0, atol=5 * variance**0.5 / 30)
    assert abs(rows.var() / variance - 1) < 0.15
    assert not Grammar.dense(3).is_unambiguous


@pytest.mark.parametrize("lam", [-0.5, 0.0, 0.25, 1.0])
@pytest.mark.parametrize("arity", [2, 3])
def test_broadcast(lam: float, arity: int) -> None:
    q = 3
    tensor = Grammar.broadcast(q, lam, arity=arity).tensor()
    edge = np.full((q, q), (1 - lam) / q) + lam * np.eye(q)
    letters = "bcd"[:arity]
    want = np.einsum(",".join(f"a{x}" for x in letters) + f"->a{letters}", *[edge] * arity)
    np.testing.assert_allclose(tensor, want, rtol=0, atol=1e-15)
    if lam == 1.0:
        assert Grammar.broadcast(q, lam).n_rules == q, "a rule of probability zero is no rule"


@pytest.mark.parametrize("arity", [2, 3, 4])
def test_parity(arity: int) -> None:
    tensor = Grammar.parity(arity=arity).tensor()
    for children in np.ndindex(*(2,) * arity):
        parent = sum(children) % 2
        assert tensor[(parent, *children)] == 2.0 ** (1 - arity)
        assert tensor[(1 - parent, *children)] == 0.0


def test_parity_of_the_leaves_is_the_root() -> None:
    sample = TreeModel(Grammar.parity(), 4).sample(500, seed=1)
    np.testing.assert_array_equal(sample.leaves.sum(axis=1) % 2, sample.roots)


def test_zero_entries_are_not_rules() -> None:
    tensor = np.zeros((2, 2, 2))
    tensor[0, 0, 1] = 1.0
    tensor[1, 1, 1] = 0.5
    tensor[1, 0, 0] = 0.5
    grammar = Grammar.from_tensor(tensor)
    assert grammar.n_rules == 3
    np.testing.assert_array_equal(grammar.tensor(), tensor)


@pytest.mark.parametrize("order", ["C", "F"])
def test_single_precision_tensors_become_laws(order: str) -> None:
    """Rows of a float32 tensor sum to 1 within its rounding only; ours then sum to 1 in float64."""
    tensor = Grammar.dense(5, 1.0, 0).tensor().astype(np.float32)
    grammar = Grammar.from_tensor(np.asarray(tensor, order=order))
    rows = grammar.tensor().sum(axis=(1, 2))
    np.testing.assert_allclose(rows, 1.0, rtol=0, atol=1e-14)
    np.testing.assert_allclose(grammar.tensor(), tensor, rtol=1e-5)


def test_from_tensor_accepts_what_holds_numbers() -> None:
    """Lists, read-only, reversed and big-endian arrays: the same grammar."""
    tensor = Grammar.dense(3, 1.0, 1).tensor()
    want = Grammar.from_tensor(tensor).fingerprint
    frozen = tensor.copy()
    frozen.flags.writeable = False
    backwards = np.ascontiguousarray(tensor[:, ::-1])[:, ::-1]
    for same in (
        tensor.tolist(),
        frozen,
        backwards,
        tensor.astype(">f8"),
        np.asfortranarray(tensor),
    ):
        assert Grammar.from_tensor(same).fingerprint == want
    kept = tensor.copy()
    grammar = Grammar.from_tensor(kept)
    kept[:] = 0.0
    assert grammar.fingerprint == want, "the caller's array must be copied"


def test_one_tensor_serves_every_depth_and_a_list_its_own() -> None:
    grammar = Grammar.dense(3)
    assert tuple(grammar.alphabets(5)) == (3,) * 6
    np.testing.assert_array_equal(grammar.tensor(4), grammar.tensor(0))
    levels = EVERY_FAMILY["levels"]()
    assert tuple(levels.alphabets(2)) == (2, 3, 2)
