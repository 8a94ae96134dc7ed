"""`make bench`: check, time, print the table, draw the figures, write README.md and results.jsonl."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import report
from cases import Case, WrongAnswer, latency_cases, main_cases, scaling_cases
from contest import Contest, Result
from peer_hfilter import about as versions
from process import HERE, ONE_THREAD

SECTIONS = tuple(report.HEADINGS)  # scripts of their own: training.py, questions.py, scales.py
GROUPS = ["hfilter", "torch", "jax", "numpy", "numba", "beagle"]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: few cases, few rounds")
    parser.add_argument(
        "--write", action="store_true", help="rewrite README.md, results.jsonl, figures"
    )
    parser.add_argument(
        "--only",
        default="",
        help=f"cases whose name contains this; {', '.join(SECTIONS)}: that section alone",
    )
    parser.add_argument("--rounds", type=int, help="rounds of each case of the table")
    options = parser.parse_args()
    began = time.perf_counter()
    if options.only in SECTIONS:
        rows = _lines(f"{options.only}.py", options.quick)
        machine = report.machine() | versions()
        text = getattr(report, options.only)(rows, machine)
        print(text)
        if options.write and rows:
            report.write_section(HERE, text, options.only, [row | machine for row in rows])
        print(f"{time.perf_counter() - began:.0f} s")
        return 0 if rows else 1
    rounds = options.rounds or (3 if options.quick else 11)
    seconds = 0.02 if options.quick else 0.04
    cases = [
        *main_cases(options.quick),
        *latency_cases(options.quick),
        *scaling_cases(options.quick),
    ]
    cases = [case for case in cases if options.only in case.name]
    results: list[Result] = []
    wrong: list[str] = []
    machine = report.machine()
    with Contest(GROUPS) as contest:
        machine.update(contest.about)
        for who, reason in contest.missing.items():
            print(f"{who} is left out: {reason}", flush=True)
        for case in cases:
            few = case.series not in ("main", "latency")
            try:
                found = contest.run(case, 3 if few else rounds, 0.01 if few else seconds)
            except WrongAnswer as error:
                wrong.append(str(error))
                print(f"NOT TIMED  {case.name}: {error}", flush=True)
                continue
            results += found
            _say(case, found, time.perf_counter() - began)
        missing = contest.missing
    text = report.tables(results, machine, missing, wrong)
    rows = [r.row for r in results]
    for name in () if options.only else SECTIONS:
        found = _lines(f"{name}.py", options.quick)
        rows += found
        if found:
            text += "\n\n" + getattr(report, name)(found, {})
    print(text)
    if options.write and options.only:
        print("nothing is written: the page holds all cases or none")
    elif options.write:
        report.write(HERE, text, [row | machine for row in rows])
        report.figures(HERE.parent / "docs" / "figures", [r.row for r in results])
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if wrong else 0


def _say(case: Case, found: list[Result], elapsed: float) -> None:
    best = ", ".join(f"{r.who} {r.rate:.3g}" for r in sorted(found, key=lambda r: -r.rate)[:3])
    print(f"{elapsed:4.0f} s  {case.name}: {best}", flush=True)


def _lines(script: str, quick: bool) -> list[dict[str, Any]]:
    """Rows that a script of this folder prints, from a process of its own."""
    command = [sys.executable, str(HERE / script), *(["--quick"] if quick else [])]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | ONE_THREAD
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if run.returncode:
        print(f"{script} is left out: {(run.stderr.strip().splitlines() or ['no reason'])[-1]}")
        return []
    name = script.removesuffix(".py")
    return [{"case": name, **json.loads(line)} for line in run.stdout.splitlines()]


if __name__ == "__main__":
    sys.exit(main())
