"""Truth: three programs nobody here wrote, asked for the same numbers from the bare definition.

pgmpy by variable elimination (marginals), genlm-grammar by a weighted Earley parser (the next token),
nltk by a probabilistic chart parser (the most probable tree). The model is written down for each from dense
tensors alone: as a Bayesian network, and as a context-free grammar whose nonterminals carry their level.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from oracle import channel

from hfilter import Grammar, TreeModel

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's
TOLERANCE = 1e-9

MODELS = {
    "log_normal": (lambda: Grammar.log_normal(3, 1.0, 0), 2, [0.2, 0.5, 0.3]),
    "forbidden": (lambda: Grammar.log_normal(3, 1.0, 1, rules_per_symbol=2), 2, [0.5, 0.0, 0.5]),
    "dense": (lambda: Grammar.dense(2, 1.0, 3), 3, [0.4, 0.6]),
    "levels": (
        lambda: Grammar.random_hierarchy(
            vocab_size=3, rules_per_symbol=2, depth=2, n_classes=4, seed=4
        ),
        2,
        [0.1, 0.2, 0.3, 0.4],
    ),
    "arity3": (lambda: Grammar.dense(2, 1.0, 5, arity=3), 2, [0.7, 0.3]),
}
PAIRS = [(name, k) for name, (_, depth, _) in MODELS.items() for k in range(depth + 1)]


def judge(module: str, package: str) -> Any:
    """A program that need not be here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            module, reason=f"{package} is not installed (extra: judges)", exc_type=ImportError
        )


def build(name: str, k: int) -> tuple[TreeModel, list[np.ndarray], np.ndarray]:
    make, depth, prior = MODELS[name]
    grammar = make()
    model = TreeModel(grammar, depth, k, root_prior=prior)
    return model, [grammar.tensor(d) for d in range(depth)], np.array(prior)


# ------------------------------------------------------------------ a Bayesian network


def conditionals(
    model: TreeModel, tensors: list[np.ndarray], prior: np.ndarray
) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]], np.ndarray]]:
    """Node, its parents, and its law given them, (own symbol, parents' symbols).

    Siblings are not independent given their parent: child r also has those left of it for parents.
    """
    s, k = model.arity, model.filter_level
    yield (0, 0), [], prior
    for i in range(s**k if k else 0):
        yield (k, i), [(0, 0)], channel(tensors, k, i).T
    for d in range(k, model.depth):
        for i in range(s**d):
            for r in range(s):
                joint = tensors[d].sum(axis=tuple(range(r + 2, s + 1)))
                total = joint.sum(axis=-1, keepdims=True)
                law = np.where(
                    total > 0, joint / np.where(total > 0, total, 1), 1 / joint.shape[-1]
                )
                parents = [(d, i), *((d + 1, s * i + left) for left in range(r))]
                yield (d + 1, s * i + r), parents, np.moveaxis(law, -1, 0)


@pytest.mark.parametrize(("name", "k"), PAIRS)
def test_marginals_of_variable_elimination(name: str, k: int) -> None:
    """Beliefs of every node, hidden leaves and one leaf with soft evidence; windows, by hiding the rest."""
    judge("pgmpy", "pgmpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pgmpy.factors.discrete import TabularCPD
        from pgmpy.inference import VariableElimination
        from pgmpy.models import DiscreteBayesianNetwork
    model, tensors, prior = build(name, k)
    network = DiscreteBayesianNetwork()
    sizes = {}
    for node, parents, law in conditionals(model, tensors, prior):
        sizes[node] = law.shape[0]
        network.add_node(str(node))
        network.add_edges_from([(str(parent), str(node)) for parent in parents])
        table = TabularCPD(
            str(node), law.shape[0], law.reshape(law.shape[0], -1),
            [str(parent) for parent in parents], [sizes[parent] for parent in parents],
        )  # fmt: skip
        network.add_cpds(table)
    assert network.check_model()
    elimination = VariableElimination(network)

    def ask(node: tuple[int, int], seen: dict[int, int], soft: dict[int, np.ndarray]) -> np.ndarray:
        virtual = [
            TabularCPD(str((model.depth, j)), len(p), (p / p.sum())[:, None])
            for j, p in soft.items()
        ]
        found = elimination.query(
            [str(node)], evidence={str((model.depth, j)): x for j, x in seen.items()},
            virtual_evidence=virtual or None, show_progress=False,
        )  # fmt: skip
        return np.asarray(found.values)

    rng = np.random.default_rng(10 + k)
    leaves = model.sample(2, seed=k).leaves.astype(int)
    for row in leaves:
        kept = rng.random(model.n_leaves) < 0.5
        kept[:2] = True, False
        seen = {j: int(row[j]) for j in np.flatnonzero(kept).tolist()}
        soft = {1: rng.exponential(size=model.vocab_size)}
        h = np.zeros((1, model.n_leaves, model.vocab_size))
        for j, x in seen.items():
            h[0, j] = np.where(np.arange(model.vocab_size) == x, 0.0, -np.inf)
        h[0, 1] = np.log(soft[1])
        post = model.infer(log_fields=h, dtype="float64", levels="all")
        for d in model.existing_levels:
            for i in range(model.arity**d if d < model.depth else model.n_leaves):
                if d == model.depth and (i in seen or i == 1):
                    continue  # evidence, not a question
                want = ask((d, i), seen, soft)
                np.testing.assert_allclose(post.level(d)[0, i], want, rtol=0, atol=TOLERANCE)
        j = int(rng.integers(model.n_leaves))
        height = int(rng.integers(1, model.depth + 1))
        near = model.arity**height
        inside = {
            i: int(row[i]) for i in range(model.n_leaves) if i // near == j // near and i != j
        }
        got = model.windowed(row[None], height, dtype="float64")[0, j]
        want = ask((model.depth, j), inside, {})
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


# ------------------------------------------------------------------ a context-free grammar

Rule = tuple[float, str, tuple[str, ...]]


def context_free(model: TreeModel, tensors: list[np.ndarray], prior: np.ndarray) -> Iterator[Rule]:
    """Probability, left side, right side. The star: R_a -> C_0_a C_1_a …, and C_i_a -> its symbols."""
    s, k = model.arity, model.filter_level
    for a in np.flatnonzero(prior):
        yield float(prior[a]), "START", (f"N0_{a}",)
        if k == 0:
            continue
        yield 1.0, f"N0_{a}", tuple(f"C_{i}_{a}" for i in range(s**k))
        for i in range(s**k):
            for c, p in enumerate(channel(tensors, k, i)[a]):
                if p > 0:
                    yield float(p), f"C_{i}_{a}", (f"N{k}_{c}",)
    for d in range(k, model.depth):
        for a, *children in np.argwhere(tensors[d]).tolist():
            p = float(tensors[d][(a, *children)])
            yield p, f"N{d}_{a}", tuple(f"N{d + 1}_{b}" for b in children)


@pytest.mark.parametrize(("name", "k"), PAIRS)
def test_next_tokens_of_an_earley_parser(name: str, k: int) -> None:
    """P(x_j | x_0 … x_{j-1}) at every position of three sequences."""
    genlm = judge("genlm.grammar", "genlm-grammar")
    model, tensors, prior = build(name, k)
    letters = [f"x{b}" for b in range(model.vocab_size)]
    grammar = genlm.CFG(R=genlm.Float, S="START", V=set(letters))
    for p, left, right in context_free(model, tensors, prior):
        grammar.add(p, left, *right)
    for b, letter in enumerate(letters):
        grammar.add(1.0, f"N{model.depth}_{b}", letter)
    other = genlm.EarleyLM(grammar)
    leaves = model.sample(3, seed=20 + k).leaves
    laws = model.next_token(leaves, dtype="float64")
    for row, law in zip(leaves.tolist(), laws, strict=True):
        for j in range(model.n_leaves):
            said = other.p_next(tuple(letters[b] for b in row[:j]))
            want = [float(said[letter]) for letter in letters]
            np.testing.assert_allclose(law[j], want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "k"), PAIRS)
def test_most_probable_trees_of_a_chart_parser(name: str, k: int) -> None:
    """The tree and its probability; a hidden leaf is a word that every leaf says half of the time."""
    nltk = judge("nltk", "nltk")
    model, tensors, prior = build(name, k)
    sides = [*context_free(model, tensors, prior)]
    for b in range(model.vocab_size):
        sides += [
            (0.5, f"N{model.depth}_{b}", (f"'x{b}'",)),
            (0.5, f"N{model.depth}_{b}", ("'?'",)),
        ]
    rules = [
        nltk.ProbabilisticProduction(
            nltk.Nonterminal(left),
            [x.strip("'") if x[0] == "'" else nltk.Nonterminal(x) for x in right], prob=p,
        )
        for p, left, right in sides
    ]  # fmt: skip
    parser = nltk.ViterbiParser(nltk.PCFG(nltk.Nonterminal("START"), rules))
    rng = np.random.default_rng(30 + k)
    leaves = model.sample(3, seed=30 + k).leaves
    mask = rng.random(leaves.shape) < np.array([0.0, 0.4, 1.0])[:, None]
    tree = model.most_probable(leaves, mask, dtype="float64")
    for row in range(3):
        words = ["?" if mask[row, j] else f"x{leaves[row, j]}" for j in range(model.n_leaves)]
        best = next(iter(parser.parse(words)))
        log_prob = math.log(best.prob()) + model.n_leaves * math.log(2)
        assert tree.log_prob[row] == pytest.approx(log_prob, abs=TOLERANCE)
        if name == "levels":
            continue  # its rules are equally likely: ties, which each program breaks in its way
        for d in model.existing_levels:
            labels = (str(t.label()) for t in best.subtrees())
            symbols = [int(x.split("_")[1]) for x in labels if x.startswith(f"N{d}_")]
            np.testing.assert_array_equal(tree.levels[d][row], symbols)
