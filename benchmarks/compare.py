"""`make bench-compare BASE=…`: two revisions on this machine, in turn; fails if one became slower."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import replace

from cases import OURS, Case, latency_cases, main_cases
from contest import Contest, Result, compare
from process import BUILD, HERE

ROOT = HERE.parent


def hot_cases() -> list[Case]:
    """The calls that are watched: the table's questions on the published and a larger grammar, one row."""
    kept = {"sample", "beliefs-published", "root-published", "mlm-published", "beliefs-q8", "root-q8",
            "beliefs-dense16", "beagle-0.2"}  # fmt: skip
    found = [case for case in main_cases(False) if case.name in kept] + latency_cases()
    return [replace(case, only=(OURS,), targets={}) for case in found]


def installed(revision: str) -> tuple[str, str]:
    """Its commit, and the folder where it is installed: built once, from a worktree of its own."""
    commit = _git("rev-parse", "--short=12", f"{revision}^{{commit}}")
    folder = BUILD / "compare" / commit
    site, tree = folder / "site", folder / "tree"
    if not (site / "hfilter").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        _git("worktree", "prune")
        _git("worktree", "add", "--detach", "--force", str(tree), commit)
        try:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
                       "--no-build-isolation", f"--target={site}", str(tree)]  # fmt: skip
            subprocess.run(command, check=True, env=os.environ)
        finally:
            _git("worktree", "remove", "--force", str(tree))
    return commit, str(site)


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"git {arguments[0]}: {run.stderr.strip()}")
    return run.stdout.strip()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("head", nargs="?", default="HEAD")
    parser.add_argument("--only", default="", help="calls whose name contains this")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--tolerance", type=float, default=0.9,
                        help="slower is: median and upper quartile of head / base below this")  # fmt: skip
    options = parser.parse_args()
    (base, base_site), (head, head_site) = installed(options.base), installed(options.head)
    print(
        f"base {base}, head {head}, {options.rounds} rounds in turn, slower below {options.tolerance:g}\n"
    )
    print(
        "| call | base, calls/s | head, calls/s | head / base | quartiles | |\n|---|---:|---:|---:|---:|---|"
    )
    slower = 0
    sites = {"hfilter@head": head_site, "hfilter@base": base_site}
    with Contest(list(sites), paths=sites) as contest:
        for case in [case for case in hot_cases() if options.only in case.name]:
            case = replace(case, groups=tuple(sites))
            if _row(case, contest.run(case, options.rounds, 0.02), options.tolerance, "again:"):
                # A neighbour can disturb one side for a whole case: slower is what is so twice.
                slower += _row(case, contest.run(case, options.rounds, 0.02), options.tolerance)
    print(f"\n{slower or 'none'} slower")
    return 1 if slower else 0


def _row(case: Case, pair: list[Result], tolerance: float, mark: str = "SLOWER") -> bool:
    head, base = pair
    compare(pair, head.who)
    assert base.ratio is not None
    assert base.spread is not None
    low, high = base.spread
    slow = base.ratio < tolerance and high < tolerance
    label = f"{case.title}{', one row' if case.n == 1 else ''}"
    print(f"| {label} | {base.rate / base.rows:.4g} | {head.rate / head.rows:.4g} | {base.ratio:.3f} "
          f"| {low:.3f} … {high:.3f} | {mark if slow else ''} |", flush=True)  # fmt: skip
    return slow


if __name__ == "__main__":
    sys.exit(main())
