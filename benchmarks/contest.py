"""A case put to all contestants: checked first, then timed in turn, round after round."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cases import OURS, Case, check, write_inputs
from process import Child, Unavailable

DISTURBED = 0.9  # share of its core below which a round of one thread is taken again
AGAIN = 1  # times at most


@dataclass
class Result:
    """One contestant of one case, in sequences per second, round by round."""

    case: Case
    who: str
    variant: str
    rows: int
    rates: list[float] = field(default_factory=list)
    disturbed: int = 0  # rounds that kept less than DISTURBED of a core even when taken again
    ratio: float | None = None  # hfilter on one thread over this: median of the rounds' ratios
    spread: tuple[float, float] | None = None  # quartiles of those ratios

    @property
    def rate(self) -> float:
        """Median."""
        return statistics.median(self.rates)

    @property
    def row(self) -> dict[str, Any]:
        """For results.jsonl."""
        target = self.case.targets.get(self.who)
        return {
            "case": self.case.name, "question": self.case.title, "series": self.case.series,
            "x": self.case.x, "who": self.who, "variant": self.variant, "n": self.rows,
            "leaves": 2**self.case.depth, "per_second": self.rate, "slowest": min(self.rates),
            "fastest": max(self.rates), "ours_over_this": self.ratio, "quartiles": self.spread,
            "disturbed": self.disturbed, "target": None if target is None else str(target),
            "met": None if target is None or self.ratio is None else target.met(self.ratio),
        }  # fmt: skip


class Contest:
    """The processes of all groups, started once; those that cannot run are listed with their reason."""

    def __init__(self, groups: list[str], *, paths: dict[str, str] | None = None) -> None:
        self.children: dict[str, Child] = {}
        self.missing: dict[str, str] = {}
        self.about: dict[str, str] = {}
        started = {g: Child(g.partition("@")[0], (paths or {}).get(g)) for g in groups}
        for group, child in started.items():  # they import what they need side by side
            try:
                self.about.update(child.about())
            except Unavailable as reason:
                self.missing[group] = str(reason)
                continue
            self.children[group] = child

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.close()

    def run(self, case: Case, rounds: int, seconds: float) -> list[Result]:
        """Check everyone's answer, choose each one's best variant, then time all in turn.

        Raises
        ------
        WrongAnswer
            From the first answer that is not the exact one: nothing of the case is timed then.
        """
        asked = {k: v for k, v in asdict(case).items() if k not in ("targets", "groups")}
        asked["groups"] = ()
        found: list[tuple[Child, int, Result]] = []
        with tempfile.TemporaryDirectory(prefix="hfilter-bench-") as name:
            folder = Path(name)
            write_inputs(case, folder)
            for group in case.groups:
                if group not in self.children:
                    continue
                child = self.children[group]
                offers = child.ask("load", case=asked, folder=name)
                for index, (who, variant, rows) in enumerate(offers):
                    path = folder / "answer.npy"
                    began = time.perf_counter()
                    child.ask("answer", index=index, path=str(path))
                    if (took := time.perf_counter() - began) > 5:
                        print(f"        {who} ({variant}) was ready after {took:.0f} s", flush=True)
                    check(case, who, np.load(path), folder)
                    tag = group.partition("@")[2]  # the same contestant at two revisions
                    label = f"{who} at {tag}" if tag else who
                    found.append((child, index, Result(case, label, variant, rows)))
            best = [self._best([f for f in found if f[2].who == who], seconds)
                    for who in dict.fromkeys(f[2].who for f in found)]  # fmt: skip
            for number in range(rounds):
                for child, index, result in best[
                    :: (-1) ** number
                ]:  # to and fro: nobody always first
                    _time(child, index, result, seconds)
        results = [result for _, _, result in best]
        compare(results, OURS)
        return results

    def _best(
        self, same: list[tuple[Child, int, Result]], seconds: float
    ) -> tuple[Child, int, Result]:
        """The fastest variant of one contestant, by the faster of two rounds of each."""
        if len(same) > 1:
            for _ in range(2):
                for child, index, result in same:
                    _time(child, index, result, seconds)
            same.sort(key=lambda one: -max(one[2].rates))
            same[0][2].rates.clear()
            same[0][2].disturbed = 0
        return same[0]


def _time(child: Child, index: int, result: Result, seconds: float) -> None:
    for again in range(AGAIN + 1):
        wall, share = child.ask("round", index=index, seconds=seconds)
        if share >= DISTURBED:
            break
        result.disturbed += again == AGAIN
    result.rates.append(result.rows / wall)


def compare(results: list[Result], reference: str) -> None:
    """Ratios round by round, so that what slows the machine for a moment slows both sides."""
    ours = next((r for r in results if r.who == reference), None)
    for result in results:
        if ours is not None and result is not ours:
            ratios = [a / b for a, b in zip(ours.rates, result.rates, strict=True)]
            result.ratio = statistics.median(ratios)
            low, high = np.quantile(ratios, [0.25, 0.75])
            result.spread = float(low), float(high)
