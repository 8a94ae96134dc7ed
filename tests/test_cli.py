"""The command line as a user calls it: files, configuration, information and help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import hf, names, published

import hfilter
from hfilter.cli import main
from hfilter.experiments import artefacts

pytestmark = pytest.mark.usefixtures("inside")

# ---------------------------------------------------------------------------------------- generate


def test_generate_writes_the_stream_and_says_what_made_it(inside: Path) -> None:
    argv = "generate --rows 1e3 --start 50 --seed 7 --out rows.npy --roots roots.npy --quiet"
    assert hf(argv) == 0
    assert names(inside) == {"rows.npy", "rows.json", "roots.npy"}
    sample = published().sample(1000, seed=7, start=50)
    leaves = np.load("rows.npy", allow_pickle=False)
    assert leaves.dtype == sample.leaves.dtype
    np.testing.assert_array_equal(leaves, sample.leaves)
    np.testing.assert_array_equal(np.load("roots.npy", allow_pickle=False), sample.roots)
    made = json.loads(Path("rows.json").read_text())
    assert made["fingerprint"] == published().fingerprint
    assert (made["seed"], made["start"], made["rows"]) == (7, 50, 1000)
    assert made["provenance"]["stream_version"] == hfilter.STREAM_VERSION


def test_generate_in_blocks_is_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfilter.cli.generate._BLOCK_BYTES", 16 * 7)
    assert hf("generate --rows 100 --out rows.npy --roots r.npy --quiet") == 0
    sample = published().sample(100, seed=0)
    np.testing.assert_array_equal(np.load("rows.npy"), sample.leaves)
    np.testing.assert_array_equal(np.load("r.npy"), sample.roots)


def test_generate_no_rows() -> None:
    assert hf("generate --rows 0 --out rows.npy --roots r.npy --quiet") == 0
    assert np.load("rows.npy").shape == (0, 16)
    assert np.load("r.npy").shape == (0,)


@pytest.mark.parametrize(
    ("options", "grammar", "depth"),
    [
        (
            "--grammar log-normal --vocab-size 5 --sigma 0.5 --grammar-seed 3",
            lambda: hfilter.Grammar.log_normal(5, 0.5, 3),
            2,
        ),
        (
            "--grammar random-hierarchy --vocab-size 6 --rules-per-symbol 3 --n-classes 4",
            lambda: hfilter.Grammar.random_hierarchy(6, 3, 3, 4),
            3,
        ),
        (
            "--grammar dense --vocab-size 3 --concentration 0.5 --arity 3",
            lambda: hfilter.Grammar.dense(3, concentration=0.5, arity=3),
            2,
        ),
        (
            "--grammar broadcast --eigenvalue 0.6",
            lambda: hfilter.Grammar.broadcast(4, 0.6),
            2,
        ),
        ("--grammar parity", hfilter.Grammar.parity, 3),
    ],
)
def test_generate_every_family(options: str, grammar, depth: int) -> None:  # type: ignore[no-untyped-def]
    argv = f"generate --rows 20 --out rows.npy --depth {depth} --filter-level 1 --quiet {options}"
    assert hf(argv) == 0
    model = hfilter.TreeModel(grammar(), depth=depth, filter_level=1)
    np.testing.assert_array_equal(np.load("rows.npy"), model.sample(20, seed=0).leaves)


def test_a_saved_grammar_serves_as_grammar() -> None:
    hfilter.Grammar.dense(3, seed=5).save("mine.npz")
    assert hf("generate --grammar mine.npz --depth 2 --rows 9 --out r.npy --quiet") == 0
    model = hfilter.TreeModel(hfilter.Grammar.dense(3, seed=5), depth=2)
    np.testing.assert_array_equal(np.load("r.npy"), model.sample(9, seed=0).leaves)


# ------------------------------------------------------------------------------------------- infer


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "what", ["root", "leaves", "leave-one-out", "next-token", "windowed", "log-prob"]
)
def test_infer_answers_as_the_library(
    what: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfilter.cli.infer._BLOCK_BYTES", 8 * 64 * 13)
    model = published(2)
    tokens = published().sample(50, seed=3).leaves.copy()
    tokens[::2, 3] = model.mask_token
    np.save("tokens.npy", tokens)
    argv = f"infer tokens.npy --what {what} --filter-level 2 --dtype {dtype} --out a.npy --quiet"
    assert hf(argv) == 0
    expected = {
        "root": lambda: model.root_posterior(tokens, dtype=dtype),
        "leaves": lambda: model.infer(tokens, dtype=dtype).leaves,
        "leave-one-out": lambda: model.leave_one_out(tokens, dtype=dtype),
        "next-token": lambda: model.next_token(tokens, dtype=dtype),
        "windowed": lambda: model.windowed(tokens, 1, dtype=dtype),
        "log-prob": lambda: model.log_prob(tokens, dtype=dtype),
    }[what]()
    answer = np.load("a.npy", allow_pickle=False)
    assert answer.dtype == expected.dtype
    np.testing.assert_array_equal(answer, expected)
    made = json.loads(Path("a.json").read_text())
    assert (made["what"], made["evidence"], made["impossible_rows"]) == (what, "tokens", 0)


def test_infer_reads_floats_as_fields() -> None:
    model = published()
    fields = np.random.default_rng(0).normal(size=(20, 16, 4))
    np.save("fields.npy", fields)
    argv = "infer fields.npy --what leaves --dtype float64 --out a.npy --quiet"
    assert hf(argv) == 0
    expected = model.infer(log_fields=fields, dtype="float64").leaves
    np.testing.assert_array_equal(np.load("a.npy"), expected)


def test_infer_counts_impossible_rows(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--grammar parity --depth 1"
    np.save("tokens.npy", np.array([[0, 0], [0, 1]], dtype=np.uint8))
    argv = f"infer tokens.npy --what leaves {options} --out a.npy"
    assert hf(argv) == 0
    assert "cannot come from this model" not in capsys.readouterr().out
    grammar = hfilter.Grammar.from_tensor(np.array([[[0.5, 0.5], [0, 0]], [[0, 0], [0.5, 0.5]]]))
    grammar.save("g.npz")
    model = hfilter.TreeModel(grammar, depth=2)
    tokens = model.sample(3, seed=0).leaves.copy()
    tokens[1] = 1 - tokens[1, 0], *tokens[1, 1:]
    bad = int(np.isneginf(model.log_prob(tokens)).sum())
    np.save("tokens.npy", tokens)
    argv = "infer tokens.npy --what log-prob --grammar g.npz --depth 2 --out b.npy"
    assert hf(argv) == 0
    out = capsys.readouterr().out
    assert (f"{bad} of 3 rows cannot come" in out) == (bad > 0)
    assert json.loads(Path("b.json").read_text())["impossible_rows"] == bad


def test_infer_no_rows() -> None:
    np.save("none.npy", np.zeros((0, 16), np.uint8))
    assert hf("infer none.npy --what leave-one-out --out a.npy --quiet") == 0
    assert np.load("a.npy").shape == (0, 16, 4)


# ---------------------------------------------------------------------- configuration, info, help


def test_config_file_and_precedence(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.toml").write_text(
        '[generate]\nrows = 12\nseed = 5\nout = "a.npy"\nfilter-level = 2\nquiet = true\n'
        "[infer]\nwhat = 'log-prob'\n"
    )
    assert hf("generate --config run.toml --seed 6") == 0
    np.testing.assert_array_equal(np.load("a.npy"), published(2).sample(12, seed=6).leaves)
    assert hf("infer a.npy --config run.toml --out b.npy --quiet") == 0
    assert np.load("b.npy").shape == (12,)
    capsys.readouterr()
    # What is printed is read back as the same call.
    assert hf("generate --config run.toml --seed 6 --overwrite --print-config") == 0
    Path("again.json").write_text(capsys.readouterr().out)
    Path("a.npy").unlink()
    assert hf("generate --config again.json") == 0
    np.testing.assert_array_equal(np.load("a.npy"), published(2).sample(12, seed=6).leaves)


def test_info_says_why_a_backend_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert hf("info") == 0
    table = capsys.readouterr().out.split("\nbackends\n")[1].split("\n\n")[0]
    assert len(table.splitlines()) == len(hfilter.backends())
    for name, backend in hfilter.backends().items():
        line = next(line for line in table.splitlines() if line.split()[:1] == [name])
        assert ("yes" in line) == backend.available
        assert backend.available or backend.reason in line
    assert hf("info --json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["hfilter"] == hfilter.__version__
    assert facts["packages"]["numpy"] == np.__version__


@pytest.mark.parametrize("command", ["", "demo", "evaluate", "generate", "infer", "info", "train"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert "examples:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert hf("--version") == 0
    assert capsys.readouterr().out.split() == ["hfilter", hfilter.__version__]


CORE_ALONE = """
import sys

for name in ("torch", "numba", "matplotlib", "tqdm", "scipy", "safetensors", "jsonargparse"):
    sys.modules[name] = None  # as if it were not installed
from hfilter.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_core_alone_is_enough(inside: Path) -> None:
    """With all optional packages forbidden all but the demo runs, and that says what it needs."""
    code = CORE_ALONE

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=120
        )

    for argv in (
        "info",
        "demo --help",
        "train --help",
        "evaluate --help",
        "generate --rows 20 --out a.npy",
        "infer a.npy --out b.npy",
    ):
        done = call(*argv.split())
        assert done.returncode == 0, done.stderr
    assert np.load("b.npy").shape == (20, 4)
    done = call("demo", "--quick")
    assert done.returncode == 2
    assert re.search(r"needs the package (torch|matplotlib|safetensors)", done.stderr)
    done = call("train", "--preset", "mlm-fast", "--out", "run")
    assert done.returncode == 2
    assert re.search(r"needs the package (torch|safetensors)", done.stderr)
    assert names(inside) == {"a.npy", "a.json", "b.npy", "b.json"}


# ------------------------------------------------------------------------------------- artefacts


def test_npy_writer_refuses_a_wrong_count(inside: Path) -> None:
    with (
        pytest.raises(hfilter.errors.ShapeError, match="1 of 2 rows"),
        artefacts.NpyWriter("a.npy", (2, 3), np.uint8) as out,
    ):
        out.write(np.zeros((1, 3)))
    with (
        pytest.raises(hfilter.errors.ShapeError, match=r"m, 3.*\(1, 4\)"),
        artefacts.NpyWriter("a.npy", (2, 3), np.uint8) as out,
    ):
        out.write(np.zeros((1, 4)))
    assert names(inside) == set()


def test_json_has_no_bare_infinity(inside: Path) -> None:
    artefacts.write_json("a.json", {"x": np.array([np.inf, np.nan, 1.0])})
    text = Path("a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"x": ["inf", "nan", 1.0]}
