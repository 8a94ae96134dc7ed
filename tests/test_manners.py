"""Manners: one row per way to be wrong, and the odd arrays that are not wrong at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hfilter
from hfilter import Grammar, TreeModel
from hfilter.errors import (
    ArgumentError,
    BackendUnavailable,
    DataError,
    DTypeError,
    GrammarError,
    HFilterError,
    ShapeError,
)

GRAMMAR = Grammar.published(4, 1.0, 0)
MODEL = TreeModel(GRAMMAR, 4, 1)
SAMPLE = MODEL.sample(6, seed=1)
LEAVES = SAMPLE.leaves
FIELDS = np.zeros((6, 16, 4))
QUESTIONS = ("infer", "root_posterior", "leave_one_out", "log_prob")


def changed(array: np.ndarray, where: tuple[int, ...], value: Any, dtype: Any = None) -> np.ndarray:
    out = np.array(array, dtype=dtype)
    out[where] = value
    return out


def tensor_with(where: tuple[int, ...], value: float) -> np.ndarray:
    return changed(GRAMMAR.tensor(), where, value)


def tree(**options: Any) -> Callable[[], Any]:
    return lambda: TreeModel(GRAMMAR, **options)


def sample(*args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: MODEL.sample(*args, **options)


# (what is wrong, call, exception, fragments of the message)
Row = tuple[str, Callable[[], Any], type[Exception], tuple[str, ...]]
CALLS: list[Row] = [
    # grammars
    ("negative", lambda: Grammar.from_tensor(tensor_with((0, 0, 0), -0.1)), GrammarError, ("negative", "-0.1")),
    ("unnormalised", lambda: Grammar.from_tensor(2 * GRAMMAR.tensor()), GrammarError, ("sum to 1", "2")),
    ("nan", lambda: Grammar.from_tensor(tensor_with((1, 2, 3), np.nan)), GrammarError, ("finite", "(1, 2, 3)")),
    ("inf", lambda: Grammar.from_tensor(tensor_with((1, 2, 3), np.inf)), GrammarError, ("finite",)),
    ("zero row", lambda: Grammar.from_tensor(np.zeros((2, 2, 2))), GrammarError, ("sum to 1", "0")),
    ("matrix", lambda: Grammar.from_tensor(np.eye(3)), ShapeError, ("(3, 3)",)),
    ("uneven children", lambda: Grammar.from_tensor(np.full((2, 2, 3), 1 / 6)), ShapeError, ("(2, 2, 3)",)),
    ("one tensor, two alphabets", lambda: TreeModel(Grammar.from_tensor(np.full((2, 3, 3), 1 / 9)), 2),
     HFilterError, ("3", "2")),
    ("empty", lambda: Grammar.from_tensor(np.zeros((0, 0, 0))), HFilterError, ("(0, 0, 0)",)),
    ("no tensors", lambda: Grammar.from_tensor([]), HFilterError, ()),
    ("levels that do not fit", lambda: Grammar.from_tensor([np.full((2, 3, 3), 1 / 9), np.full((2, 2, 2), 0.25)]),
     HFilterError, ("3", "2")),
    ("levels of two arities", lambda: Grammar.from_tensor([np.full((2, 2, 2), 1 / 4), np.full((2, 2, 2, 2), 1 / 8)]),
     HFilterError, ("arit",)),
    ("text", lambda: Grammar.from_tensor(np.array([[["a"]]])), DTypeError, ("tensor",)),
    ("complex", lambda: Grammar.from_tensor(GRAMMAR.tensor() + 0j), DTypeError, ("complex",)),
    ("vocab_size", lambda: Grammar.log_normal(0, 1.0, 0), ArgumentError, ("vocab_size", "0")),
    ("vocab_size type", lambda: Grammar.log_normal(4.5, 1.0, 0), DTypeError, ("vocab_size", "4.5")),
    ("sigma", lambda: Grammar.log_normal(4, -1.0, 0), ArgumentError, ("sigma", "-1")),
    ("sigma nan", lambda: Grammar.log_normal(4, float("nan"), 0), ArgumentError, ("sigma", "nan")),
    ("sigma text", lambda: Grammar.log_normal(4, "wide", 0), DTypeError, ("sigma", "wide")),
    ("seed", lambda: Grammar.log_normal(4, 1.0, -1), ArgumentError, ("seed", "-1")),
    ("seed type", lambda: Grammar.log_normal(4, 1.0, 0.5), DTypeError, ("seed", "0.5")),
    ("published seed", lambda: Grammar.published(4, 1.0, 2**32), ArgumentError, ("seed", "4294967296")),
    ("rules 0", lambda: Grammar.log_normal(4, 1.0, 0, rules_per_symbol=0), HFilterError, ("rules_per_symbol", "0")),
    ("rules 5", lambda: Grammar.log_normal(4, 1.0, 0, rules_per_symbol=5), HFilterError, ("rules_per_symbol", "5")),
    ("arity 1", lambda: Grammar.log_normal(4, 1.0, 0, arity=1), ArgumentError, ("arity", "1")),
    ("too many tuples", lambda: Grammar.random_hierarchy(vocab_size=3, rules_per_symbol=2, depth=2, n_classes=5),
     GrammarError, ("n_classes", "9")),
    ("no classes", lambda: Grammar.random_hierarchy(vocab_size=3, rules_per_symbol=2, depth=2, n_classes=0),
     ArgumentError, ("n_classes",)),
    ("concentration", lambda: Grammar.dense(3, 0.0), ArgumentError, ("concentration",)),
    ("eigenvalue high", lambda: Grammar.broadcast(3, 1.1), ArgumentError, ("eigenvalue", "1.1")),
    ("eigenvalue low", lambda: Grammar.broadcast(3, -0.6), ArgumentError, ("eigenvalue", "-0.6")),
    ("too many rules", lambda: Grammar.dense(2000, 1.0, 0, arity=3), HFilterError, ("rules",)),
    ("level", lambda: GRAMMAR.tensor(-1), HFilterError, ("level", "-1")),
    # models
    ("depth 0", tree(depth=0), ArgumentError, ("depth", "0")),
    ("depth negative", tree(depth=-2), ArgumentError, ("depth", "-2")),
    ("depth float", tree(depth=2.5), DTypeError, ("depth", "2.5")),
    ("depth text", tree(depth="4"), DTypeError, ("depth",)),
    ("depth bool", tree(depth=True), DTypeError, ("depth",)),
    ("depth huge", tree(depth=80), HFilterError, ("depth", "80")),
    ("filter level high", tree(depth=4, filter_level=5), ArgumentError, ("filter_level", "4", "5")),
    ("filter level negative", tree(depth=4, filter_level=-1), ArgumentError, ("filter_level", "-1")),
    ("filter level float", tree(depth=4, filter_level=1.0), DTypeError, ("filter_level",)),
    ("filtered", lambda: MODEL.filtered(5), ArgumentError, ("filter_level", "5")),
    ("not a grammar", lambda: TreeModel(np.ones((2, 2, 2)), 2), HFilterError, ("grammar", "Grammar")),
    ("depth beyond the levels",
     lambda: TreeModel(Grammar.from_tensor([np.full((2, 3, 3), 1 / 9), np.full((3, 2, 2), 0.25)]), 3),
     HFilterError, ("depth", "2", "3")),
    ("prior shape", tree(depth=2, root_prior=[0.5, 0.5]), ShapeError, ("root_prior", "4", "2")),
    ("prior sum", tree(depth=2, root_prior=[0.5, 0.5, 0.5, 0.5]), HFilterError, ("root_prior", "sum", "2")),
    ("prior negative", tree(depth=2, root_prior=[1.5, -0.5, 0, 0]), HFilterError, ("root_prior", "-0.5")),
    ("prior nan", tree(depth=2, root_prior=[1.0, np.nan, 0, 0]), HFilterError, ("root_prior",)),
    ("channel", lambda: MODEL.channel(2), ArgumentError, ("2",)),
    # sampling
    ("n negative", sample(-1), ArgumentError, ("n ", "-1")),
    ("n float", sample(3.5), DTypeError, ("n ", "3.5")),
    ("n float that is whole", sample(1e3), DTypeError, ("n ",)),
    ("n too large", sample(2**60), HFilterError, ("memory",)),
    ("n beyond 64 bits", sample(2**70), HFilterError, ("n ",)),
    ("sampling seed negative", sample(3, seed=-1), ArgumentError, ("seed", "-1")),
    ("sampling seed large", sample(3, seed=2**64), ArgumentError, ("seed", str(2**64))),
    ("sampling seed float", sample(3, seed=1.5), DTypeError, ("seed", "1.5")),
    ("start negative", sample(3, start=-1), ArgumentError, ("start", "-1")),
    ("start beyond the stream", sample(3, start=2**64 - 1), ArgumentError, ("start",)),
    ("roots range", sample(3, roots=[0, 4, 1]), ArgumentError, ("roots", "4", "3")),
    ("roots negative", sample(3, roots=[0, -1, 1]), ArgumentError, ("roots", "-1")),
    ("roots shape", sample(3, roots=[0, 1]), ShapeError, ("roots", "(3,)", "(2,)")),
    ("roots floats", sample(3, roots=[0.0, 1.0, 2.0]), DTypeError, ("roots", "float64")),
    ("sampling backend", sample(3, backend="gpu"), BackendUnavailable, ("gpu", "portable", "python")),
    ("threads", sample(3, num_threads=0), ArgumentError, ("num_threads", "0")),
    ("threads float", sample(3, num_threads=1.5), DTypeError, ("num_threads",)),
    ("device", sample(3, device="warp"), HFilterError, ("device", "warp")),
]  # fmt: skip

# (what is wrong, positional arguments, keywords, exception, fragments), asked of every question
EVIDENCE: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ("width", (LEAVES[:, :15],), {}, ShapeError, ("leaves", "(n, 16)", "(6, 15)")),
    ("one axis", (LEAVES[0],), {}, ShapeError, ("leaves", "(n, 16)", "(16,)")),
    ("three axes", (LEAVES[None],), {}, ShapeError, ("leaves", "(n, 16)", "(1, 6, 16)")),
    ("floats", (LEAVES.astype(float),), {}, DTypeError, ("leaves", "float64", "integer")),
    ("strings", (LEAVES.astype(str),), {}, DTypeError, ("leaves", "integer")),
    ("booleans", (LEAVES.astype(bool),), {}, DTypeError, ("leaves", "bool")),
    ("objects", (LEAVES.astype(object),), {}, DTypeError, ("leaves", "object")),
    ("token 5", (changed(LEAVES, (2, 3), 5),), {}, ArgumentError, ("leaves", "5", "0 … 3", "hidden")),
    ("token 255", (changed(LEAVES, (5, 15), 255),), {}, ArgumentError, ("255",)),
    ("token 260 of int64", (changed(LEAVES, (5, 15), 260, np.int64),), {}, ArgumentError, ("260",)),
    ("token 2**32 + 1", (changed(LEAVES, (5, 15), 2**32 + 1, np.int64),), {}, ArgumentError, ("4294967297",)),
    ("token -1", (changed(LEAVES, (0, 0), -1, np.int8),), {}, ArgumentError, ("-1",)),
    ("bad token under the mask", (changed(LEAVES, (0, 0), 77), np.ones((6, 16), bool)), {}, ArgumentError, ("77",)),
    ("mask shape", (LEAVES, np.zeros((6, 15), bool)), {}, ShapeError, ("mask", "(6, 16)", "(6, 15)")),
    ("mask rows", (LEAVES, np.zeros((5, 16), bool)), {}, ShapeError, ("mask", "(6, 16)", "(5, 16)")),
    ("mask floats", (LEAVES, np.zeros((6, 16))), {}, DTypeError, ("mask", "bool", "float64")),
    ("mask integers", (LEAVES, np.zeros((6, 16), np.int64)), {}, DTypeError, ("mask", "bool", "int64")),
    ("nothing", (), {}, HFilterError, ("leaves", "log_fields")),
    ("both", (LEAVES,), {"log_fields": FIELDS}, HFilterError, ("leaves", "log_fields")),
    ("mask with fields", (None, np.zeros((6, 16), bool)), {"log_fields": FIELDS}, HFilterError, ("mask", "log_fields")),
    ("fields shape", (), {"log_fields": FIELDS[:, :, :3]}, ShapeError, ("log_fields", "(n, 16, 4)", "(6, 16, 3)")),
    ("fields axes", (), {"log_fields": FIELDS[0]}, ShapeError, ("log_fields", "(16, 4)")),
    ("fields nan", (), {"log_fields": changed(FIELDS, (1, 2, 3), np.nan)}, ArgumentError, ("log_fields", "nan")),
    ("fields inf", (), {"log_fields": changed(FIELDS, (1, 2, 3), np.inf)}, ArgumentError, ("log_fields", "inf")),
    ("fields integers", (), {"log_fields": FIELDS.astype(int)}, DTypeError, ("log_fields", "int64")),
    ("fields text", (), {"log_fields": FIELDS.astype(str)}, DTypeError, ("log_fields",)),
    ("fields complex", (), {"log_fields": FIELDS + 0j}, DTypeError, ("log_fields", "complex128")),
    ("dtype", (LEAVES,), {"dtype": "float16"}, HFilterError, ("dtype", "float16", "float32")),
    ("dtype nonsense", (LEAVES,), {"dtype": "soft"}, HFilterError, ("dtype", "soft")),
    ("backend", (LEAVES,), {"backend": "gpu"}, BackendUnavailable, ("gpu", "python")),
    ("threads", (LEAVES,), {"num_threads": -1}, ArgumentError, ("num_threads", "-1")),
]  # fmt: skip


def check(call: Callable[[], Any], exception: type[Exception], fragments: tuple[str, ...]) -> None:
    with pytest.raises(exception) as caught:
        call()
    assert isinstance(caught.value, HFilterError)
    message = str(caught.value)
    for fragment in fragments:
        assert fragment.lower() in message.lower(), f"{fragment!r} is not in {message!r}"
    assert len(message) > 15


@pytest.mark.parametrize(
    ("call", "exception", "fragments"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS]
)
def test_bad_calls(
    call: Callable[[], Any], exception: type[Exception], fragments: tuple[str, ...]
) -> None:
    check(call, exception, fragments)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    ("args", "options", "exception", "fragments"),
    [row[1:] for row in EVIDENCE],
    ids=[row[0] for row in EVIDENCE],
)
def test_bad_evidence(
    args: tuple[Any, ...],
    options: dict[str, Any],
    exception: type[Exception],
    fragments: tuple[str, ...],
    question: str,
) -> None:
    check(lambda: getattr(MODEL, question)(*args, **options), exception, fragments)


@pytest.mark.parametrize("levels", [[5], [-1], "some", [1.5]])
def test_bad_levels(levels: Any) -> None:
    with pytest.raises(HFilterError, match="level"):
        MODEL.infer(LEAVES, levels=levels)


def test_levels_that_do_not_exist_or_were_not_asked_for() -> None:
    star = MODEL.filtered(3)
    with pytest.raises(HFilterError, match="level"):
        star.infer(LEAVES, levels=[2])
    post = MODEL.infer(LEAVES)
    with pytest.raises(HFilterError, match="levels="):
        post.level(2)
    assert MODEL.infer(LEAVES, levels=[2]).level(2).shape == (6, 4, 4)


def test_errors_are_the_builtin_ones_too() -> None:
    """`except ValueError` and friends work without knowing hfilter's classes."""
    for ours, builtin in (
        (ShapeError, ValueError),
        (DTypeError, TypeError),
        (GrammarError, ValueError),
        (ArgumentError, ValueError),
        (BackendUnavailable, RuntimeError),
        (DataError, OSError),
        (hfilter.errors.KernelError, RuntimeError),
    ):
        assert issubclass(ours, HFilterError)
        assert issubclass(ours, builtin)
