"""Manners of the operations beyond `infer`: one row per way to be wrong, for every argument they add."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_manners import EVIDENCE, FIELDS, LEAVES, MODEL, check

from hfilter.errors import ArgumentError, BackendUnavailable, DTypeError, HFilterError, ShapeError

MASK = np.zeros((6, 16), bool)
OPERATIONS = ("next_token", "windowed", "expected_rule_counts", "most_probable", "sample_posterior")
JOINTS = ("pair_beliefs", "flip_table")
PAIR = [(0, 1)]

# (what is wrong, operation, arguments after the leaves, keywords, exception, fragments of the message)
Row = tuple[str, str, tuple[Any, ...], dict[str, Any], type[Exception], tuple[str, ...]]
ROWS: list[Row] = [
    ("height high", "windowed", (5,), {}, ArgumentError, ("height", "0 to 4", "5")),
    ("height negative", "windowed", (-1,), {}, ArgumentError, ("height", "-1")),
    ("height float", "windowed", (1.0,), {}, DTypeError, ("height", "1.0", "float")),
    ("height bool", "windowed", (True,), {}, DTypeError, ("height", "True")),
    ("height None", "windowed", (None,), {}, DTypeError, ("height", "None")),
    ("height text", "windowed", ("2",), {}, DTypeError, ("height", "str")),
    ("mask in its place", "windowed", (MASK,), {}, DTypeError, ("height", "ndarray")),
    ("no samples", "sample_posterior", (None, 0), {}, ArgumentError, ("n_samples", "from 1", "0")),
    ("samples negative", "sample_posterior", (None, -3), {}, ArgumentError, ("n_samples", "-3")),
    ("samples float", "sample_posterior", (None, 2.0), {}, DTypeError, ("n_samples", "2.0")),
    ("samples bool", "sample_posterior", (None, True), {}, DTypeError, ("n_samples", "True")),
    ("samples beyond memory", "sample_posterior", (None, 2**40), {}, HFilterError, ("memory", "fewer samples")),
    ("samples beyond all", "sample_posterior", (None, 2**41), {}, ArgumentError, ("n_samples", str(2**41))),
    ("samples in the mask's place", "sample_posterior", (3,), {}, DTypeError, ("mask", "bool", "int64")),
    ("seed negative", "sample_posterior", (), {"seed": -1}, ArgumentError, ("seed", "-1")),
    ("seed large", "sample_posterior", (), {"seed": 2**64}, ArgumentError, ("seed", str(2**64))),
    ("seed float", "sample_posterior", (), {"seed": 0.5}, DTypeError, ("seed", "0.5")),
    ("seed None", "sample_posterior", (), {"seed": None}, DTypeError, ("seed", "None")),
    ("start negative", "sample_posterior", (), {"start": -1}, ArgumentError, ("start", "-1")),
    ("start large", "sample_posterior", (), {"start": 2**64}, ArgumentError, ("start", str(2**64))),
    ("start float", "sample_posterior", (), {"start": 1.5}, DTypeError, ("start", "1.5")),
    ("beyond the stream", "sample_posterior", (None, 3), {"start": 2**64 - 17}, ArgumentError,
     ("start", str(2**64 - 18), str(2**64 - 17))),
    ("per_sequence text", "expected_rule_counts", (), {"per_sequence": "yes"}, DTypeError, ("per_sequence", "yes")),
    ("per_sequence array", "expected_rule_counts", (), {"per_sequence": np.ones(6)}, DTypeError, ("per_sequence",)),
    ("no pairs", "pair_beliefs", (), {}, DTypeError, ("pairs", "None")),
    ("pairs flat", "pair_beliefs", ([0, 1],), {}, ShapeError, ("pairs", "(m, 2)", "(2,)")),
    ("pairs of three", "pair_beliefs", ([(0, 1, 2)],), {}, ShapeError, ("pairs", "(m, 2)", "(1, 3)")),
    ("pairs floats", "pair_beliefs", ([(0.0, 1.0)],), {}, DTypeError, ("pairs", "integer", "float64")),
    ("pairs high", "pair_beliefs", ([(0, 16)],), {}, ArgumentError, ("pairs", "0 … 15", "16")),
    ("pairs negative", "pair_beliefs", ([(-1, 3)],), {}, ArgumentError, ("pairs", "-1")),
    ("pairs of a small level", "pair_beliefs", ([(2, 0)],), {"levels": (1, 4)}, ArgumentError, ("pairs", "0 … 1", "2")),
    ("one level", "pair_beliefs", (PAIR,), {"levels": (4,)}, ArgumentError, ("levels", "two", "(4,)")),
    ("levels a number", "pair_beliefs", (PAIR,), {"levels": 3}, ArgumentError, ("levels", "3")),
    ("levels all", "pair_beliefs", (PAIR,), {"levels": "all"}, ArgumentError, ("levels", "all")),
    ("level high", "pair_beliefs", (PAIR,), {"levels": (4, 5)}, ArgumentError, ("levels", "5")),
    ("level float", "pair_beliefs", (PAIR,), {"levels": (4, 1.5)}, DTypeError, ("levels", "1.5")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "args", "options", "exception", "fragments"),
    [row[1:] for row in ROWS],
    ids=[f"{row[1]}-{row[0]}" for row in ROWS],
)
def test_bad_arguments(
    operation: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    exception: type[Exception],
    fragments: tuple[str, ...],
) -> None:
    check(lambda: getattr(MODEL, operation)(LEAVES, *args, **options), exception, fragments)


@pytest.mark.parametrize("operation", OPERATIONS)
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
    operation: str,
) -> None:
    """What `infer` refuses every operation refuses, with the same words."""
    given = dict(zip(("leaves", "mask"), args, strict=False)) | options
    check(lambda: getattr(MODEL, operation)(**given), exception, fragments)


@pytest.mark.parametrize("operation", JOINTS)
@pytest.mark.parametrize(
    ("args", "options", "exception", "fragments"),
    [row[1:] for row in EVIDENCE if row[0] not in ("backend", "threads")],
    ids=[row[0] for row in EVIDENCE if row[0] not in ("backend", "threads")],
)
def test_bad_evidence_of_joints(
    args: tuple[Any, ...],
    options: dict[str, Any],
    exception: type[Exception],
    fragments: tuple[str, ...],
    operation: str,
) -> None:
    given = dict(zip(("leaves", "mask"), args, strict=False)) | options
    if operation == "pair_beliefs":
        given["pairs"] = PAIR
    check(lambda: getattr(MODEL, operation)(**given), exception, fragments)


@pytest.mark.parametrize("operation", ["most_probable", "sample_posterior"])
@pytest.mark.parametrize(
    ("levels", "exception"),
    [([5], ArgumentError), ([-1], ArgumentError), ("some", ArgumentError), (3, ArgumentError), ([1.5], DTypeError)],
)  # fmt: skip
def test_bad_levels(levels: Any, exception: type[Exception], operation: str) -> None:
    check(lambda: getattr(MODEL, operation)(LEAVES, levels=levels), exception, ("levels",))
    star = MODEL.filtered(3)
    check(
        lambda: getattr(star, operation)(LEAVES, levels=[2]),
        ArgumentError,
        ("level 2", "filter_level 3"),
    )


@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_row_that_is_named_is_the_callers(dtype: Any, per_sequence: bool) -> None:
    """However the rows are cut, an error names the row of the call."""
    many = np.tile(LEAVES, (1000, 1))
    many[5500, 3] = 77
    h = np.zeros((5000, 16, 4), dtype)
    h[4500, 1, 2] = np.nan
    options = {"per_sequence": per_sequence}
    check(
        lambda: MODEL.expected_rule_counts(many, **options),
        ArgumentError,
        ("77", "row 5500", "leaf 3"),
    )
    check(
        lambda: MODEL.expected_rule_counts(log_fields=h, **options),
        ArgumentError,
        ("nan", "row 4500", "leaf 1"),
    )
    for operation in OPERATIONS:
        ask = getattr(MODEL, operation)
        check(lambda: ask(log_fields=h), ArgumentError, ("nan", "row 4500", "leaf 1", "symbol 2"))  # noqa: B023
    mask = np.zeros((5000, 16), bool)
    check(
        lambda: MODEL.expected_rule_counts(LEAVES, mask, **options),
        ShapeError,
        ("(6, 16)", "(5000, 16)"),
    )


@pytest.mark.parametrize("operation", [*OPERATIONS, *JOINTS])
def test_gradients_are_refused(operation: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    h = torch.zeros((6, 16, 4), requires_grad=True)
    given = {"pairs": PAIR} if operation == "pair_beliefs" else {}
    check(
        lambda: getattr(MODEL, operation)(log_fields=h, **given),
        ArgumentError,
        ("log_fields", "grad"),
    )


@pytest.mark.parametrize("operation", [*OPERATIONS, *JOINTS])
def test_arrays_on_another_device(operation: str) -> None:
    """What the CPU alone answers is refused for arrays elsewhere, with the way out."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    leaves = torch.zeros((6, 16), dtype=torch.uint8, device="meta")
    given = {"pairs": PAIR} if operation == "pair_beliefs" else {}
    check(lambda: getattr(MODEL, operation)(leaves, **given), BackendUnavailable, ("meta",))


def test_what_is_not_wrong() -> None:
    """NumPy's integers and booleans for Python's; a height given by position or by name; no rows."""
    np.testing.assert_array_equal(
        MODEL.windowed(LEAVES, np.int8(2)), MODEL.windowed(LEAVES, height=2)
    )
    drawn = MODEL.sample_posterior(
        LEAVES, None, np.uint8(3), np.uint64(2**64 - 1), start=np.int64(5)
    )
    assert drawn.leaves.shape == (6, 3, 16)
    assert MODEL.expected_rule_counts(LEAVES, per_sequence=np.True_).shape == (6, 16)
    assert MODEL.pair_beliefs(LEAVES, np.zeros((0, 2), int)).shape == (6, 0, 4, 4)
    assert MODEL.pair_beliefs(LEAVES, [(0, 3)], levels=(0, 4)).shape == (6, 1, 4, 4)
    assert MODEL.next_token(log_fields=FIELDS.astype(np.float16)).dtype == np.float32
