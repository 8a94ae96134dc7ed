"""The command line as a user calls it: files, error lines, exit codes, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hfilter
from hfilter.cli import main
from hfilter.experiments import artefacts


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, so that a stray file is seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hf(command: str) -> int:
    return main(command.split())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def published(filter_level: int = 0) -> hfilter.TreeModel:
    return hfilter.TreeModel(
        hfilter.Grammar.published(4, 1.0, 0), depth=4, filter_level=filter_level
    )


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
@pytest.mark.parametrize("what", ["root", "leaves", "leave-one-out", "log-prob"])
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


# ------------------------------------------------------------------------------------ bad input


def bad_files() -> None:
    np.save("ok.npy", published().sample(5, seed=0).leaves)
    np.save("short.npy", np.zeros((5, 15), np.uint8))
    np.save("token.npy", np.full((5, 16), 9, np.uint8))
    np.save("complex.npy", np.zeros((5, 16), np.complex128))
    np.save("fields.npy", np.zeros((5, 16, 3)))
    np.save("nan.npy", np.full((5, 16, 4), np.nan))
    np.save("object.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    np.savez("archive.npz", a=np.zeros(3))
    Path("archive.npz").rename("archive.npy")
    Path("cut.npy").write_bytes(Path("ok.npy").read_bytes()[:-3])
    Path("text.npy").write_text("not an array")
    Path("empty.npy").write_bytes(b"")
    Path("bad.json").write_text("{")
    Path("unknown.json").write_text('{"rosw": 3}')
    Path("type.toml").write_text('rows = "many"')
    Path("folder.npy").mkdir()


BAD = [
    ("generate --rows 5", r"required.*--out"),
    ("generate --rows -5 --out a.npy", r"--rows"),
    ("generate --rows 1.5 --out a.npy", r"--rows.*whole number"),
    ("generate --rows many --out a.npy", r"--rows"),
    ("generate --rows 5 --out a.txt", r"--out.*\.npy"),
    ("generate --rows 5 --out missing/a.npy", r"missing"),
    ("generate --rows 5 --out ok.npy", r"ok\.npy exists.*--overwrite"),
    ("generate --rows 5 --out folder.npy --overwrite", r"folder\.npy is a folder"),
    ("generate --rows 5 --out a.npy --roots a.npy", r"same file"),
    ("generate --rows 5 --out a.npy --roots ok.npy", r"ok\.npy exists"),
    ("generate --rows 5 --out a.npy --depth 0", r"--depth"),
    ("generate --rows 5 --out a.npy --filter-level 5", r"filter_level.*5"),
    ("generate --rows 5 --out a.npy --seed 99999999999999999999999", r"seed"),
    ("generate --rows 5 --out a.npy --backend abacus", r"abacus"),
    ("generate --rows 5 --out a.npy --grammar nonsense", r"nonsense.*published"),
    ("generate --rows 5 --out a.npy --grammar parity --sigma 2", r"--sigma has no meaning"),
    ("generate --rows 5 --out a.npy --grammar broadcast", r"needs --eigenvalue"),
    ("generate --rows 5 --out a.npy --grammar broadcast --eigenvalue 7", r"eigenvalue"),
    ("generate --rows 5 --out a.npy --grammar text.npy", r"text\.npy"),
    ("generate --out a.npy --config bad.json", r"bad\.json"),
    ("generate --out a.npy --config none.json", r"no such file"),
    ("generate --out a.npy --config text.npy", r"\.json or \.toml"),
    ("generate --out a.npy --config unknown.json", r"no option rosw; did you mean rows"),
    ("generate --out a.npy --config type.toml", r"rows = 'many'"),
    ("infer --out a.npy", r"required.*INPUT"),
    ("infer missing.npy --out a.npy", r"missing\.npy.*no such file"),
    ("infer short.npy --out a.npy", r"\(n, 16\).*\(5, 15\)"),
    ("infer token.npy --out a.npy", r"9"),
    ("infer complex.npy --out a.npy", r"complex128"),
    ("infer fields.npy --out a.npy", r"\(n, 16, 4\).*\(5, 16, 3\)"),
    ("infer nan.npy --out a.npy", r"(?i)nan"),
    ("infer object.npy --out a.npy", r"object\.npy.*without pickles"),
    ("infer archive.npy --out a.npy", r"archive"),
    ("infer cut.npy --out a.npy", r"cut\.npy.*whole"),
    ("infer text.npy --out a.npy", r"text\.npy"),
    ("infer empty.npy --out a.npy", r"empty\.npy"),
    ("infer folder.npy --out a.npy", r"folder\.npy"),
    ("infer ok.npy --out ok.npy", r"same file"),
    ("infer ok.npy --what everything --out a.npy", r"everything"),
    ("infer ok.npy --out a.npy --depth 3", r"\(n, 8\)"),
    ("nonsense", r"nonsense"),
    ("", r"COMMAND"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[argv or "nothing" for argv, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(
    argv: str, message: str, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_files()
    before = {path.name: path.read_bytes() for path in inside.iterdir() if path.is_file()}
    assert main([*argv.split(), *(["--quiet"] if len(argv.split()) > 1 else [])]) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert re.search(message, last), error
    assert "Traceback" not in error
    after = {path.name: path.read_bytes() for path in inside.iterdir() if path.is_file()}
    assert after == before


def test_traceback_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert hf("infer none.npy --out a.npy --traceback") == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)]
)
@pytest.mark.parametrize("command", ["generate", "infer"])
def test_interruption_leaves_what_was_there(
    command: str, error: BaseException, code: int, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("ok.npy", published().sample(30, seed=0).leaves)
    Path("a.npy").write_bytes(b"precious")
    original = artefacts.NpyWriter.write

    def write(self: artefacts.NpyWriter, block: np.ndarray) -> None:
        original(self, block)
        if self.rows > 10:
            raise error

    monkeypatch.setattr(artefacts.NpyWriter, "write", write)
    monkeypatch.setattr("hfilter.cli.generate._BLOCK_BYTES", 16 * 7)
    monkeypatch.setattr("hfilter.cli.infer._BLOCK_BYTES", 8 * 64 * 7)
    argv = {
        "generate": "generate --rows 30 --out a.npy --roots b.npy --overwrite --quiet",
        "infer": "infer ok.npy --out a.npy --overwrite --quiet",
    }[command]
    assert hf(argv) == code
    assert names(inside) == {"ok.npy", "a.npy"}
    assert Path("a.npy").read_bytes() == b"precious"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_and_sigterm_stop_a_process_within_a_second(inside: Path) -> None:
    import signal
    import time

    argv = [sys.executable, "-m", "hfilter.cli", "generate", "--rows", "1e12", "--out", "a.npy"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            limit = time.monotonic() + 60
            while not names(inside) and time.monotonic() < limit:
                time.sleep(0.02)
            assert names(inside), "nothing was being written"
            began = time.monotonic()
            process.send_signal(number)
            assert process.wait(timeout=20) == code
            assert time.monotonic() - began < 3  # a second of ours, and a loaded test machine
        finally:
            process.kill()
            process.wait()
        assert names(inside) == set()


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


@pytest.mark.parametrize("command", ["", "demo", "generate", "infer", "info"])
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
        "generate --rows 20 --out a.npy",
        "infer a.npy --out b.npy",
    ):
        done = call(*argv.split())
        assert done.returncode == 0, done.stderr
    assert np.load("b.npy").shape == (20, 4)
    done = call("demo", "--quick")
    assert done.returncode == 2
    assert re.search(r"needs the package (torch|matplotlib|safetensors)", done.stderr)
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


# ------------------------------------------------------------------------------------ the README


README = Path(__file__).parent.parent / "README.md"


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_readme_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import doctest

    if hfilter.provenance()["backend"] == "python":
        pytest.skip("a hundred thousand rows take minutes in plain Python")
    blocks = readme_blocks("python")
    assert blocks
    for number, block in enumerate(blocks):
        if ">>>" in block:
            parser = doctest.DocTestParser()
            test = parser.get_doctest(block, {}, f"README {number}", "README.md", 0)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            runner.run(test)
            assert runner.failures == 0, capsys.readouterr().out
        else:
            exec(compile(block, f"README {number}", "exec"), {})
            printed = capsys.readouterr().out.split()
            text = README.read_text(encoding="utf-8").split(block)[1]
            assert printed, "an example that shows nothing"
            # The sentence below an example quotes what it prints.
            assert re.findall(r"`([0-9.]+)`", text)[: len(printed)] == printed


def test_readme_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every ``hfilter …`` line of the README is accepted by the parser."""
    lines = [
        line.split("#")[0].split()[1:]
        for block in readme_blocks("sh")
        for line in block.splitlines()
        if line.startswith("hfilter ")
    ]
    assert lines
    for argv in lines:
        assert main([*argv, "--print-config"]) == 0, argv


def test_readme_tables_are_what_is_computed() -> None:
    """The numbers of the README, against tables of fewer rows made here."""
    from hfilter.analysis.accuracies import exact_accuracies

    if hfilter.provenance()["backend"] == "python":
        pytest.skip("twenty thousand rows take minutes in plain Python")
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| k = (\d) \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) == 10
    cells = [[float(cell.replace("*", "")) for cell in line.split("|")] for _, line in rows]
    written = np.array(cells).reshape(2, 5, 5)  # root, then one hidden leaf
    made = exact_accuracies(published(), 20_000, seed=99)
    for name, table in (("root", written[0]), ("mlm", written[1])):
        error = np.hypot(1, np.sqrt(20_000 / 100_000)) * getattr(made, f"{name}_se")
        # 4 decimals are written; one false alarm in 10**5 runs at 4.9 standard errors, 50 cells.
        assert (np.abs(table - getattr(made, name)) <= 5 * error + 5e-5).all()
