"""Manners: files, disks, environment variables and interruption."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hfilter
from hfilter import Grammar, TreeModel
from hfilter.errors import ArgumentError, BackendUnavailable, DataError

GRAMMAR = Grammar.published(4, 1.0, 0)


def written(path: Path) -> bytes:
    GRAMMAR.save(path)
    return path.read_bytes()


def object_archive(path: Path) -> None:
    """An .npz whose arrays are pickles: loading it would run whatever the sender wrote."""
    np.savez(path, rules=np.array([{"a": 1}], dtype=object), version=np.array([1], dtype=object))


def other_archive(path: Path) -> None:
    np.savez(path, x=np.arange(3))


BAD_FILES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda p: None,
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("not a grammar\n" * 50),
    "cut in half": lambda p: p.write_bytes(written(p)[: len(written(p)) // 2]),
    "last byte missing": lambda p: p.write_bytes(written(p)[:-1]),
    "first bytes missing": lambda p: p.write_bytes(written(p)[10:]),
    "another archive": lambda p: other_archive(p),
    "pickled objects": lambda p: object_archive(p),
    "an empty archive": lambda p: zipfile.ZipFile(p, "w").close(),
    "a folder": lambda p: p.mkdir(),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_files_that_are_not_ours(what: str, tmp_path: Path) -> None:
    path = tmp_path / "grammar.npz"
    BAD_FILES[what](path)
    with pytest.raises(DataError, match=r"grammar\.npz"):
        Grammar.load(path)


def test_flipped_bytes_never_load_as_another_grammar(tmp_path: Path) -> None:
    """Damage anywhere in the file is noticed, or changes nothing."""
    path = tmp_path / "grammar.npz"
    data = written(path)
    for position in range(0, len(data), max(1, len(data) // 150)):
        broken = bytearray(data)
        broken[position] ^= 0x5A
        path.write_bytes(broken)
        try:
            loaded = Grammar.load(path)
        except DataError:
            continue
        assert loaded.fingerprint == GRAMMAR.fingerprint, f"byte {position}"


def test_a_file_of_a_later_version_says_so(tmp_path: Path) -> None:
    """The header is JSON in an array of bytes: declare a version nobody has written yet."""
    path = tmp_path / "grammar.npz"
    GRAMMAR.save(path)
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    header = json.loads(arrays["header"].tobytes())
    header["version"] += 1000
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=f"version {header['version']}"):
        Grammar.load(path)


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another format": lambda h: h | {"format": "other"},
    "no version": lambda h: {key: x for key, x in h.items() if key != "version"},
    "a list": lambda h: [h],
    "a number": lambda h: 7,
    "no tables": lambda h: h | {"tables": []},
    "tables of text": lambda h: h | {"tables": "xy"},
    "one table too many": lambda h: h | {"tables": h["tables"] * 2},
    "fewer symbols": lambda h: h | {"tables": [[4, 3]]},
    "more parents": lambda h: h | {"tables": [[5, 4]]},
    "huge tables": lambda h: h | {"tables": [[2**62, 2**62]]},
    "negative": lambda h: h | {"tables": [[-1, 4]]},
    "fractions": lambda h: h | {"tables": [[4.5, 4]]},
    "spec of text": lambda h: h | {"spec": "family"},
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_lie(what: str, tmp_path: Path) -> None:
    path = tmp_path / "grammar.npz"
    GRAMMAR.save(path)
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    header = HEADERS[what](json.loads(arrays["header"].tobytes()))
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"grammar\.npz"):
        Grammar.load(path)


def test_saving_onto_a_folder_or_into_none(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("kept")
    for target in (tmp_path / "folder", tmp_path / "missing" / "grammar.npz"):
        with pytest.raises(DataError):
            GRAMMAR.save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "precious").read_text() == "kept"


FULL_DISK = """
import resource, sys
import hfilter
grammar = hfilter.Grammar.dense(12, 1.0, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    grammar.save(sys.argv[1])
except hfilter.errors.DataError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a file-size limit")
def test_a_full_disk_destroys_nothing(tmp_path: Path) -> None:
    """The write fails half-way: the old file stands and no part of the new one is left."""
    path = tmp_path / "grammar.npz"
    before = written(path)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("refused:"), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["grammar.npz"]
    assert path.read_bytes() == before


# ------------------------------------------------------------------ environment


def child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


ASK = """
import hfilter
try:
    model = hfilter.TreeModel(hfilter.Grammar.parity(), 3)
    print(model.sample(3, seed=1).leaves.tolist(), hfilter.provenance()["backend"])
except hfilter.errors.HFilterError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("name", ["gpu", "AVX", " "])
def test_environment_names_no_backend(name: str) -> None:
    out = child(ASK, HFILTER_BACKEND=name).stdout
    assert out.startswith("BackendUnavailable"), out
    assert "HFILTER_BACKEND" in out
    assert "python" in out


@pytest.mark.parametrize("threads", ["0", "-2", "many", "1.5"])
def test_environment_names_no_number_of_threads(threads: str) -> None:
    out = child(ASK, HFILTER_NUM_THREADS=threads).stdout
    assert "Error" in out
    assert "HFILTER_NUM_THREADS" in out


def test_environment_chooses_the_backend(backend: str) -> None:
    out = child(ASK, HFILTER_BACKEND=backend, HFILTER_NUM_THREADS="1").stdout
    rows = TreeModel(Grammar.parity(), 3).sample(3, seed=1).leaves.tolist()
    assert out.strip() == f"{rows} {backend}"


def test_empty_environment_means_unset() -> None:
    out = child(ASK, HFILTER_BACKEND="", HFILTER_NUM_THREADS="").stdout
    assert out.startswith("[["), out


def test_cpu_means_the_widest_instruction_set() -> None:
    pytest.importorskip("hfilter._cpu", reason="the compiled extension was not built")
    out = child(ASK, HFILTER_BACKEND="cpu").stdout
    assert out.split()[-1] in ("avx512", "avx2", "portable")


def test_environment_is_asked_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable counts from when it is set to when it is taken back, in a process that has called before."""
    model = TreeModel(Grammar.parity(), 3)
    rows = model.sample(3, seed=1).leaves.tolist()
    for name, error in (
        ("HFILTER_BACKEND", BackendUnavailable),
        ("HFILTER_NUM_THREADS", ArgumentError),
    ):
        monkeypatch.setenv(name, "ein\u00e9")
        with pytest.raises(error, match=f"{name} must be .*ein\u00e9"):
            model.sample(3, seed=1)
        monkeypatch.delenv(name)
        assert model.sample(3, seed=1).leaves.tolist() == rows


INTERRUPTED = """
import signal, sys, time
import hfilter
model = hfilter.TreeModel(hfilter.Grammar.dense(16, 1.0, 0), 12)
leaves = model.sample(20_000, seed=1).leaves
def alarm(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, alarm)
due = time.monotonic() + 0.5
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    if sys.argv[1] == "infer":
        model.root_posterior(leaves, num_threads=2)
    else:
        model.sample(300_000, seed=1, num_threads=2)
    print("finished", time.monotonic() - due)
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - due)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs POSIX signals")
@pytest.mark.parametrize("call", ["infer", "sample"])
def test_a_long_call_can_be_interrupted(call: str) -> None:
    """The handler runs within about a second of the signal, not at the end of the call."""
    pytest.importorskip("hfilter._cpu", reason="interruption of the compiled text")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, call],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    word, late = done.stdout.split() or ("nothing", "inf")
    assert word == "interrupted", done.stdout + done.stderr
    assert float(late) < 2.0, "one second, and one more for a busy machine"


@pytest.mark.skipif(not hfilter.backends()["portable"].available, reason="needs module _cpu")
def test_a_thread_that_flushes_subnormals_changes_nothing() -> None:
    """torch.set_flush_denormal holds for the whole thread: grammars, packing and logarithms too."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rare = np.zeros((2, 2, 2))
    rare[0, 0, 0], rare[0, 1, 1], rare[1, 0, 1] = 1.0, 1e-310, 1.0
    want = hfilter.TreeModel(hfilter.Grammar.from_tensor(rare), 1).log_prob([[1, 1]])
    assert np.isfinite(want).all()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        grammar = hfilter.Grammar.from_tensor(rare)
        got = hfilter.TreeModel(grammar, 1).log_prob([[1, 1]])
    finally:
        torch.set_flush_denormal(False)
    assert grammar.n_rules == 3
    np.testing.assert_array_equal(got, want)


def test_one_models_first_call_waits_for_no_other() -> None:
    """Packing takes no lock that models share: a fork during it would leave the child waiting."""
    inside, go = threading.Event(), threading.Event()

    class Slow(TreeModel):
        @property
        def channels(self) -> np.ndarray:  # asked for in the midst of packing
            inside.set()
            assert go.wait(20)
            return super().channels

    slow = Slow(Grammar.parity(), 2, 1)
    thread = threading.Thread(target=lambda: slow.sample(1))
    other: list[hfilter.Sample] = []
    second = threading.Thread(target=lambda: other.append(TreeModel(Grammar.parity(), 3).sample(4)))
    thread.start()
    assert inside.wait(20)
    second.start()
    second.join(10)
    go.set()
    thread.join()
    assert other, "the other model waited"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_finite_fields_never_become_impossible(dtype: str, backend: str) -> None:
    """A finite field may be too far below its leaf's largest for the type, but it is not -inf."""
    model = hfilter.TreeModel(hfilter.Grammar.parity(), 1, root_prior=[0, 1])
    fields = np.zeros((1, 2, 2))
    fields[0, 0], fields[0, 1] = [0.0, -1e39], [0.0, -np.inf]
    post = model.infer(log_fields=fields, dtype=dtype, backend=backend)
    np.testing.assert_allclose(post.log_evidence, -1e39)
    np.testing.assert_array_equal(post.leaves[0], [[0, 1], [1, 0]])


def test_models_copy_and_pickle_but_do_not_change() -> None:
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 3, 1, [0.1, 0.2, 0.3, 0.4])
    want = model.sample(5, seed=2).leaves
    for twin in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.fingerprint == model.fingerprint
        assert twin.grammar == model.grammar
        np.testing.assert_array_equal(twin.sample(5, seed=2).leaves, want)
    with pytest.raises(AttributeError, match="immutable"):
        model.filter_level = 2
    with pytest.raises(AttributeError, match="immutable"):
        model.grammar.spec = {}


def test_a_module_that_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    package = tmp_path / "hfilter"
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(Path(hfilter.__file__).parent, package, ignore=ignored)
    (package / "_cpu.so").write_bytes(b"of another machine")
    ask = "import hfilter; print(hfilter.backends()['portable'].reason)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", ask],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "cannot be loaded" in found.stdout
    assert "install hfilter again" in found.stdout
