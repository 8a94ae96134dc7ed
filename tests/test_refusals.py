"""Manners: inputs that once gave a wrong number or a raw error, found by trying to break the package."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfilter import Grammar, TreeModel
from hfilter.errors import ArgumentError, DataError, DTypeError, GrammarError
from hfilter.rules import RuleTable

MODEL = TreeModel(Grammar.parity(), 1)


class Copies:
    """Gives NumPy a copy of itself: what is written there is lost."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.zeros((3, 2), np.uint8)


def rare(p: float) -> Grammar:
    """Two rare steps lead from symbol 0 to symbol 2."""
    tensor = np.zeros((3, 3, 3))
    tensor[0, 0, 0] = tensor[1, 1, 1] = 1 - p
    tensor[0, 1, 1] = tensor[1, 2, 2] = p
    tensor[2, 2, 2] = 1.0
    return Grammar.from_tensor(tensor)


def ragged(q: int) -> Grammar:
    """One parent has 30 q rules, every other one."""
    codes = np.arange(30 * q)
    parents = np.concatenate([np.zeros(30 * q, int), np.arange(1, q)])
    children = np.stack(np.divmod(np.concatenate([codes, np.arange(1, q) * (q + 1)]), q), axis=1)
    weights = np.concatenate([np.full(30 * q, 1 / (30 * q)), np.ones(q - 1)])
    return Grammar([RuleTable.from_rules(q, q, parents, children, weights)], {"family": "tensor"})


ROWS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("masked tokens", lambda: MODEL.infer(np.ma.array([[0, 1]])), DTypeError, "masked array"),
    ("masked tensor", lambda: Grammar.from_tensor(np.ma.ones((1, 1, 1))), DTypeError, "masked"),
    ("huge fields", lambda: MODEL.infer(log_fields=np.full((1, 2, 2), 1.7e308)), ArgumentError, "1e\\+300"),
    ("out copies", lambda: MODEL.sample(3, out=Copies()), DTypeError, "out must be"),
    ("dtype string", lambda: MODEL.infer([[0, 1]], dtype="i,,x("), DTypeError, "float64"),
    ("sigma overflows", lambda: Grammar.published(4, 1.7e308, 0), GrammarError, "sigma"),
    ("sigma underflows", lambda: Grammar.log_normal(4, 1e3), GrammarError, "rounds to zero"),
    ("copying, too wide", lambda: Grammar.broadcast(5000, 1.0), GrammarError, "rules"),
    ("channel underflow", lambda: TreeModel(rare(1e-200), 2, 2).sample(1), GrammarError, "1e-308"),
    ("ragged rules", lambda: TreeModel(ragged(3000), 2).sample(1), GrammarError, "padded"),
    ("path with NUL", lambda: Grammar.load("a\0b"), DataError, "cannot read"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "message"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_refused(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def archive(**changed: Any) -> bytes:
    """A grammar's file with parts replaced."""
    header = {
        "format": "hfilter-grammar",
        "version": 1,
        "spec": {},
        "shared": True,
        "tables": [[2, 2]],
    }
    parts: dict[str, Any] = {
        "parents_0": np.array([0, 1]),
        "children_0": np.array([[0, 0], [1, 1]]),
        "probability_0": np.ones(2),
    }
    for key, value in changed.items():
        if key in parts:
            parts[key] = value
        else:
            header[key] = value
    file = io.BytesIO()
    np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **parts)
    return file.getvalue()


@pytest.mark.parametrize(
    "changed",
    [
        {"tables": [[10**12, 4]]},
        {"tables": [[2.0, 2.0]]},
        {"tables": [[2, 3]]},
        {"children_0": np.zeros((2, 0), int)},
        {"children_0": np.array([[0], [1]])},
        {"children_0": np.zeros((2, 40), int)},
        {
            "parents_0": np.array([0, 0, 1]),
            "children_0": np.array([[0, 0], [0, 0], [1, 1]]),
            "probability_0": np.array([0.5, 0.5, 1.0]),
        },
    ],
    ids=["parents", "floats", "shared", "arity 0", "arity 1", "arity 40", "twice"],
)
def test_files_that_are_no_grammar(changed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "grammar.npz"
    path.write_bytes(archive())
    assert Grammar.load(path).n_rules == 2, "the unchanged file must load"
    path.write_bytes(archive(**changed))
    with pytest.raises(DataError, match="damaged"):
        Grammar.load(path)


def test_flipped_bits_of_a_compressed_archive(tmp_path: Path) -> None:
    """Whatever the decompressor says, the caller hears DataError."""
    with np.load(io.BytesIO(archive())) as plain:
        file = io.BytesIO()
        np.savez_compressed(file, **{key: plain[key] for key in plain.files})
    content = file.getvalue()
    path = tmp_path / "grammar.npz"
    refused = 0
    for at in range(30, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            assert Grammar.load(path).n_rules == 2  # a bit that carries nothing
        except DataError:
            refused += 1
    assert refused > 10
