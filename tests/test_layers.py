"""Manners: who may import whom, and what `import hfilter` may load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hfilter

ROOT = Path(hfilter.__file__).parent

# A module or room may import what stands on its own line or below it, never above:
# cli -> experiments -> analysis, diffusion -> learn -> data -> oracles, fit, theory -> exact
#     -> (backend, tree -> grammar) -> errors
# "hfilter" is the front door itself, open to the rooms above the core only.
LINES = (
    ("errors", "version"),
    ("_cpu", "_cuda"),
    ("compiled",),
    ("checks", "arrays", "files", "memory", "philox"),
    ("rules",),
    ("families", "view", "rules_file"),
    ("grammar",),
    ("tree",),
    ("flat", "evidence", "parse_table"),
    ("scaling", "sampling"),
    ("star", "passing"),
    ("reference",),
    ("choosing", "parsing"),
    ("runners", "results"),
    ("cuda",),
    ("backend", "device"),
    ("wide",),
    ("orders",),
    ("messages",),
    ("unbounded", "joint", "provenance"),
    ("exact",),
    ("hfilter",),
    ("rates",),
    ("autograd",),
    ("differentiable", "oracles", "fit", "theory"),
    ("data", "noising"),
    ("learn",),
    ("analysis", "diffusion"),
    ("experiments",),
    ("cli",),
    ("__main__",),
)
RANK = {room: line for line, rooms in enumerate(LINES) for room in rooms}
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
MODULES = {Path(path).parts[0].removesuffix(".py") for path in FILES} | {"_cpu", "_cuda"}


def own_room(path: str) -> str:
    """The room that a file stands in; the package's own __init__.py is the front door."""
    return "hfilter" if path == "__init__.py" else Path(path).parts[0].removesuffix(".py")


def is_for_types(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` imports nothing when the program runs."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs, functions' bodies included."""
    for child in ast.iter_child_nodes(node):
        yield child
        if is_for_types(child):
            for other in child.orelse:
                yield from statements(other)
        else:
            yield from statements(child)


def imports(path: str) -> list[tuple[str, int]]:
    """Every module that a file imports, absolute, wherever in the file the import stands."""
    package = ["hfilter", *Path(path).parts[:-1]]
    found = []
    for node in statements(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = node.module or ""
            if node.level:
                base = package[: len(package) - node.level + 1]
                stem = ".".join([*base, stem] if stem else base)
            # `from . import errors` names a module, `from .errors import X` a name inside one.
            found += [(f"{stem}.{alias.name}", node.lineno) for alias in node.names]
    return found


def inside(path: str) -> list[tuple[str, int]]:
    """The rooms of hfilter that a file imports, with the line of the import."""
    found = []
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] == "hfilter":
            found.append((parts[1] if len(parts) > 1 and parts[1] in MODULES else "hfilter", line))
    return found


@pytest.mark.parametrize("path", FILES)
def test_nothing_imports_upward(path: str) -> None:
    own = own_room(path)
    assert own in RANK, f"{path}: give the new room its place in LINES"
    for room, line in inside(path):
        assert room in RANK, f"{path}:{line} imports {room}, which has no place in LINES"
        assert RANK[room] <= RANK[own], f"{path}:{line}: {own} must not import {room}, above it"


def test_rooms_of_one_line_form_no_circle() -> None:
    edges: dict[str, set[str]] = {}
    for path in FILES:
        own = own_room(path)
        edges.setdefault(own, set()).update(room for room, _ in inside(path) if room != own)
    for first, others in edges.items():
        for second in others:
            assert first not in edges.get(second, ()), f"{first} and {second} import each other"


def test_the_judge_of_layers_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upward imports in every disguise are found: a judge that sees nothing would pass all."""
    (tmp_path / "grammar.py").write_text(
        "from __future__ import annotations\n"
        "def late():\n"
        "    from .learn.train import train\n"
        "    import hfilter.exact\n"
        "    from hfilter import backend\n"
        "    from . import TreeModel\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert inside("grammar.py") == [("learn", 3), ("exact", 4), ("backend", 5), ("hfilter", 6)]


def test_front_door_keeps_heavy_rooms_closed() -> None:
    """hfilter/__init__.py names only the core: nothing that needs more than numpy."""
    rooms = {room for room, _ in inside("__init__.py")}
    assert "exact" in rooms
    assert max(RANK[room] for room in rooms) < RANK["oracles"]


@pytest.mark.parametrize(
    "name", ["encoder", "architecture", "layers", "sites", "initial", "export"]
)
def test_encoder_cannot_know_the_answer(name: str) -> None:
    """What a network is made of imports nothing of hfilter but its own files and the errors."""
    own = ("errors", "learn.encoder", "learn.architecture", "learn.layers", "learn.sites")
    for module, line in imports(f"learn/{name}.py"):
        if module.split(".")[0] == "hfilter":
            known = any(module.startswith(f"hfilter.{other}.") for other in own)
            assert known, f"{name}.py:{line} imports {module}"


def test_the_core_knows_numpy_only() -> None:
    """Below `data` only the standard library, numpy and, in the two texts, numba are named."""
    for path in FILES:
        own = own_room(path)
        if own not in RANK or RANK[own] >= RANK["data"]:
            continue
        for module, line in imports(path):
            top = module.split(".")[0]
            known = top in sys.stdlib_module_names or top in ("numpy", "hfilter", "__future__")
            optional = (own, top) in {
                ("runners", "numba"),
                ("arrays", "torch"),
                ("cuda", "torch"),
            }
            assert known or optional, f"{path}:{line} imports {module}"


CHILD = """
import json, sys
import numpy
before = set(sys.modules)
import hfilter
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_hfilter_loads_numpy_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60, check=True
    )
    tops = {name.split(".")[0] for name in json.loads(done.stdout)}
    heavy = {"torch", "numba", "llvmlite", "scipy", "matplotlib", "tqdm", "jsonargparse", "pandas"}
    assert not tops & heavy
    assert "hfilter" in tops
    rooms = {name for name in json.loads(done.stdout) if name.startswith("hfilter.")}
    assert not {r for r in rooms if r.split(".")[1] in ("learn", "experiments", "cli", "analysis")}


def test_asking_for_backends_loads_no_torch() -> None:
    code = "import sys, hfilter; hfilter.backends(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_compiled_backend_serves_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that silently judged the fallback would prove nothing about the compiled text."""
    monkeypatch.delenv("HFILTER_BACKEND", raising=False)
    pytest.importorskip("hfilter._cpu", reason="the compiled extension was not built")
    serving = hfilter.provenance()["backend"]
    assert serving in ("avx512", "avx2", "portable")
    infos = hfilter.backends()
    first = next(name for name in ("avx512", "avx2", "portable") if infos[name].available)
    assert serving == first, "the widest instruction set of this machine serves"


def test_backends_explain_themselves() -> None:
    infos = hfilter.backends()
    for name in ("avx512", "avx2", "portable", "numba", "python", "cuda"):
        info = infos[name]
        assert info.name == name
        assert isinstance(info.available, bool)
        assert info.available or len(info.reason) > 10, f"{name} is missing without a reason"
    assert infos["python"].available, "plain Python is always there"
