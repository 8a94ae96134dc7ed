"""How the compiled sampler looks up its tables: words on and beside cut points, tables of every size, packs of rows."""

from __future__ import annotations

import numpy as np
import pytest

import hfilter
from hfilter.philox import philox4x32

COMPILED = [name for name in ("avx512", "avx2", "portable") if hfilter.backends()[name].available]
LANES = (
    COMPILED + ["numba"] * hfilter.backends()["numba"].available
)  # those with many rows side by side


def words(rows, block, seed, purpose=0):
    """The four words of a block, of every row."""
    zero = np.zeros(len(rows), np.uint64)
    rows = np.asarray(rows, np.uint64)
    key = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)
    counter = rows & np.uint64(0xFFFFFFFF), rows >> np.uint64(32), zero + np.uint64(block)
    return np.stack(philox4x32(*counter, zero + np.uint64(purpose), *key), axis=1)


def _spread(q):
    """Any grammar of q symbols."""
    return hfilter.Grammar.dense(vocab_size=q, concentration=1.0, seed=0)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize(
    ("q", "at"), [(2, 0), (3, 0), (3, 1), (4, 1), (5, 3), (8, 0), (8, 5), (16, 14)]
)
def test_a_word_on_a_cut_point_passes_it(q, at, backend):
    """Cut point `at` is a row's word, one less, one more; the others lie below and above it."""
    for row in range(12):
        word = int(words([row], 0, 5)[0, 0])
        for shift in (-1, 0, 1):
            cut = (word + shift) / 2.0**32
            below = np.linspace(0, cut, at + 2)[:-1]
            ends = np.r_[below, np.linspace(cut, 1, q - at)]
            model = hfilter.TreeModel(_spread(q), depth=1, root_prior=np.diff(ends))
            assert model.packed["prior_cuts"][at] == word + shift
            drawn = model.sample(1, seed=5, start=row, backend=backend).roots[0]
            assert drawn == (at + 1 if shift <= 0 else at)


@pytest.mark.parametrize("backend", LANES)
def test_the_smallest_and_the_largest_word(backend):
    """Rows whose first words are 0 and 2**32 - 1: neither makes an impossible symbol, nor a rule of the padding."""
    assert words([91093890], 0, 1)[0, 0] == 0
    for prior, wanted in (
        ((0, 1), 1),
        ((1e-12, 1 - 1e-12), 1),
        ((0.5, 0.5), 0),
        ((0, 0, 1), 2),
        ((0, 1, 0), 1),
    ):
        model = hfilter.TreeModel(_spread(len(prior)), depth=2, root_prior=prior)
        assert model.sample(1, seed=1, start=91093890, backend=backend).roots[0] == wanted
    assert words([1538303059], 0, 0)[0, 1] == 2**32 - 1
    assert words([841871577], 0, 2)[0, 1] == 0
    tensor = np.zeros((2, 2, 2))
    tensor[:, 0, 0], tensor[:, 0, 1], tensor[:, 1, 1] = 1e-12, 1 - 2e-12, 1e-12
    model = hfilter.TreeModel(hfilter.Grammar.from_tensor(tensor), depth=1)
    for row, seed in ((1538303059, 0), (841871577, 2)):
        for n in (1, 9):  # alone and among others
            leaves = model.sample(n, seed=seed, start=row, backend=backend).leaves
            assert leaves[0].tolist() == [0, 1]


def _hierarchy(v, m, depth=2, arity=2):
    return hfilter.TreeModel(
        hfilter.Grammar.random_hierarchy(
            vocab_size=v, rules_per_symbol=m, depth=depth, n_classes=v, arity=arity, seed=3
        )
    )


MODELS = {
    "one rule": lambda: _hierarchy(5, 1),
    "12 entries": lambda: _hierarchy(6, 2),
    "16 entries, 8 leaves": lambda: _hierarchy(4, 4, depth=3),
    "16 entries, 256 leaves": lambda: _hierarchy(4, 4, depth=8),
    "32 entries, 3 bits": lambda: _hierarchy(4, 7, arity=3),
    "32 entries, 16 leaves": lambda: _hierarchy(8, 4, depth=4),
    "64 entries, 32 leaves": lambda: _hierarchy(8, 8, depth=5),
    "64 entries, 2 bits": lambda: _hierarchy(16, 4, depth=4),
    "16 entries, 12 rules": lambda: _hierarchy(4, 3, depth=3),
    "24 entries": lambda: _hierarchy(6, 4, depth=3),
    "64 entries": lambda: _hierarchy(8, 8),
    "72 entries": lambda: _hierarchy(9, 8),
    "112 entries": lambda: _hierarchy(14, 7),
    "128 entries, 5 bits": lambda: hfilter.TreeModel(_spread(4), depth=2),
    "256 entries": lambda: _hierarchy(16, 16),
    "two bytes": lambda: hfilter.TreeModel(
        hfilter.Grammar.published(300, 1.0, 0, rules_per_symbol=2), depth=2
    ),
    "two bytes, arity 3": lambda: _hierarchy(257, 2, depth=1, arity=3),
    "two bytes, two parents": lambda: hfilter.TreeModel(
        hfilter.Grammar.random_hierarchy(
            vocab_size=300, rules_per_symbol=4, depth=1, n_classes=2, seed=3
        )
    ),
    "arity 3": lambda: _hierarchy(4, 4, depth=3, arity=3),
    "arity 4": lambda: _hierarchy(4, 4, arity=4),
    "arity 5": lambda: _hierarchy(3, 3, arity=5),
    "deep": lambda: hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=8),
    "star": lambda: hfilter.TreeModel(
        hfilter.Grammar.published(4, 1.0, 0), depth=4, filter_level=3
    ),
    "star of leaves": lambda: hfilter.TreeModel(_spread(6), depth=3, filter_level=3),
}


@pytest.mark.parametrize("backend", LANES)
@pytest.mark.parametrize("name", MODELS)
def test_tables_of_every_size_give_one_stream(name, backend):
    """Many rows at once, for which tables are laid out, and few, against the plain loops: every level, every row."""
    model = MODELS[name]()
    n = 1300 if model.vocab_size <= 16 else 3000
    whole = model.sample(n, seed=9, levels=True, backend=backend)
    rows = np.r_[0:3, 61:67, n - 3 : n]
    for first in (0, 61, n - 3):
        few = model.sample(3, seed=9, start=first, levels=True, backend=backend)
        plain = model.sample(3, seed=9, start=first, levels=True, backend="python")
        for d in few.levels:
            assert (few.levels[d] == whole.levels[d][first : first + 3]).all()
            assert (plain.levels[d] == few.levels[d]).all()
    leaves = model.sample(n, seed=9, backend=backend).leaves
    assert (leaves == whole.leaves).all()
    given = model.sample(n, seed=9, roots=whole.roots, backend=backend).leaves
    assert (given[rows] == leaves[rows]).all()


@pytest.mark.parametrize("backend", LANES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7])
def test_rows_around_packs(backend, depth):
    """Any number of rows about that of a pack, of packs drawn together, and over 2**32, is part of one stream."""
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=depth)
    for start in (0, 2**32 - 70):
        whole = model.sample(260, seed=4, start=start, backend="portable", levels=True)
        for n in (1, 7, 9, 15, 17, 31, 33, 63, 64, 65, 127, 129, 257):
            out = np.full((n + 1, model.n_leaves), 77, np.uint8)
            drawn = model.sample(n, seed=4, start=start, backend=backend, levels=True, out=out[:n])
            assert all((drawn.levels[d] == whole.levels[d][:n]).all() for d in drawn.levels)
            assert (out[n] == 77).all()
            again = model.sample(n, seed=4, start=start, backend=backend, out=out[:n])
            assert (again.leaves == whole.leaves[:n]).all()
            assert (again.roots == whole.roots[:n]).all()
            assert (out[n] == 77).all()
