"""The harness: check, then time, then write the table. pytest-benchmark does the timing."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hfilter

HERE = Path(__file__).parent
OURS = "hfilter, 1 thread"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hfilter")
    group.addoption(
        "--quick", action="store_true", help="small batches, few rounds: under a minute"
    )
    group.addoption(
        "--write-table", action="store_true", help="rewrite benchmarks/README.md and results.jsonl"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """--quick keeps one grammar."""
    if config.getoption("--quick"):
        keep = [i for i in items if "ℓ" not in i.name or "q = 4" in i.name]
        config.hook.pytest_deselected(items=[i for i in items if i not in keep])
        items[:] = keep


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Batch sizes: as asked, or a tenth of it with --quick."""
    quick = request.config.getoption("--quick")
    return lambda n: max(n // 10, 1) if quick else n


@pytest.fixture
def contest(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Time one contestant, but only after its answer has been held to the exact one."""

    def run(
        question: str, who: str, n: int, answer: Callable[[], Any], check: Callable[[Any], None]
    ) -> None:
        torch.set_num_threads(1)
        check(np.asarray(answer()))  # also the warm-up: compilation happens here
        benchmark.group = question
        benchmark.extra_info.update(question=question, who=who, n=n)
        benchmark.pedantic(
            answer, rounds=3 if request.config.getoption("--quick") else 9, warmup_rounds=1
        )

    return run


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        run = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _rows(benchmarks: list[Any]) -> list[dict[str, Any]]:
    """One row per contestant: median rate, spread, and ratio to ours in the same run."""
    rows = []
    for b in benchmarks:
        n, stats = b.extra_info["n"], b.stats
        rows.append(
            {
                "question": b.extra_info["question"],
                "who": b.extra_info["who"],
                "n": n,
                "per_second": n / stats.median,
                "slowest": n / stats.max,
                "fastest": n / stats.min,
            }
        )
    ours = {r["question"]: r["per_second"] for r in rows if r["who"] == OURS}
    for row in rows:
        if row["question"] in ours:
            row["ours_over_this"] = ours[row["question"]] / row["per_second"]
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for question in dict.fromkeys(row["question"] for row in rows):
        lines += [
            f"\n### {question}\n",
            "| contestant | sequences/s (median) | slowest … fastest | hfilter on 1 thread is faster by |",
            "|---|---:|---:|---:|",
        ]
        for row in sorted(
            (r for r in rows if r["question"] == question), key=lambda r: -r["per_second"]
        ):
            ratio = (
                f"{row['ours_over_this']:.3g} ×"
                if "ours_over_this" in row and row["who"] != OURS
                else ""
            )
            lines.append(
                f"| {row['who']} | {row['per_second']:.3g} | {row['slowest']:.3g} … {row['fastest']:.3g} | {ratio} |"
            )
    return "\n".join(lines)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Print the table; with --write-table keep it beside the benchmarks."""
    holder = getattr(session.config, "_benchmarksession", None)
    found = [b for b in getattr(holder, "benchmarks", []) if "who" in b.extra_info and b.stats]
    if not found:
        return
    rows = _rows(found)
    table = _table(rows)
    print("\n" + table)
    if not session.config.getoption("--write-table"):
        return
    about = {
        "processor": _processor(), "cores": os.cpu_count(), "commit": _commit(),
        "date": datetime.date.today().isoformat(), "hfilter": hfilter.__version__,
        "backend": next(b.name for b in hfilter.backends().values() if b.available),
        "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version(),
    }  # fmt: skip
    (HERE / "results.jsonl").write_text(
        "".join(json.dumps({**row, **about}) + "\n" for row in rows)
    )
    text = (HERE / "README.md").read_text()
    head, mark, _ = text.partition("<!-- table -->")
    machine = ", ".join(f"{key} {value}" for key, value in about.items())
    (HERE / "README.md").write_text(f"{head}{mark}\n\nMeasured: {machine}.\n{table}\n")
