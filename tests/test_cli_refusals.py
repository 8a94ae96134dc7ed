"""The command line with bad input, interrupted, or stopped: one line, an exit code, nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import hf, names, published

from hfilter.cli import main
from hfilter.experiments import artefacts

pytestmark = pytest.mark.usefixtures("inside")


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
