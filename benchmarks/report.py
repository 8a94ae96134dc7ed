"""The machine, the table, the figures, and the page that holds them."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from cases import OURS
from contest import Result

MARK = "<!-- written by make bench -->"
SCALES = "### How cost grows"
QUESTIONS = "### The other questions"
TRAINING = "### What does a training step cost beside its matrix products?"
DIFFUSION = "### Diffusion"
HEADINGS = {"training": TRAINING, "questions": QUESTIONS, "diffusion": DIFFUSION, "scales": SCALES}
SERIES = {"n": "sequences in one call", "ℓ": "depth ℓ", "q": "alphabet q", "threads": "threads"}


# ---------------------------------------------------------------------------------------- machine


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "processor": _processor(), "cores": len(os.sched_getaffinity(0)), "commit": _commit(),
        "date": datetime.date.today().isoformat(), "load_before": round(os.getloadavg()[0], 2),
        "copy_gb_per_s": round(copy_bandwidth() / 1e9, 2),
    }  # fmt: skip


def copy_bandwidth() -> float:
    """Bytes read and written in a second by one core that copies arrays larger than the last cache."""
    size = min(max(2 * _last_cache(), 1 << 28), 1 << 29)
    source, target = np.zeros(size, np.uint8), np.ones(size, np.uint8)
    source[:] = 1  # zeros share one page until written
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def _last_cache() -> int:
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(sizes)


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
        run = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ----------------------------------------------------------------------------------------- tables


def tables(
    results: list[Result],
    about: dict[str, Any],
    missing: dict[str, str],
    wrong: list[str],
) -> str:
    """Markdown: the machine, targets in short, every case, latencies."""
    lines = ["Measured: " + ", ".join(f"{k} {v}" for k, v in about.items()) + "."]
    lines += [f"\nLeft out: {who}, because {why}" for who, why in missing.items()]
    lines += [f"\n**Not timed, because the answer was wrong:** {text}" for text in wrong]
    main = [r for r in results if r.case.series == "main"]
    lines += _targets([r for r in main if r.who in r.case.targets])
    lines += _fastest(main)
    for title in dict.fromkeys(r.case.title for r in main):
        same = [r for r in main if r.case.title == title]
        lines += _case(title, same, about["copy_gb_per_s"] * 1e9)
    lines += _latency([r for r in results if r.case.series == "latency"])
    return "\n".join(lines)


def _targets(found: list[Result]) -> list[str]:
    if not found:
        return []
    lines = ["\n### Targets\n", "| question | against | hfilter, 1 thread, over this | target | |",
             "|---|---|---:|---|---|"]  # fmt: skip
    for r in found:
        target = r.case.targets[r.who]
        if r.ratio is not None:
            verdict = "met" if target.met(r.ratio) else "**not met**"
            lines.append(f"| {r.case.title} | {r.who} | {r.ratio:.3g} × | {target} | {verdict} |")
    return lines


def _fastest(main: list[Result]) -> list[str]:
    """Whatever is fastest beside hfilter, be it named by a target or not."""
    lines = ["\n### Against the fastest peer of each question\n",
             "| question | fastest peer | hfilter, 1 thread, over this |", "|---|---|---:|"]  # fmt: skip
    for title in dict.fromkeys(r.case.title for r in main):
        peers = [r for r in main if r.case.title == title and not r.who.startswith("hfilter")]
        if peers:
            best = max(peers, key=lambda r: r.rate)
            lines.append(f"| {title} | {best.who} | {best.ratio:.3g} × |")
    return lines if len(lines) > 3 else []


def _case(title: str, same: list[Result], bandwidth: float) -> list[str]:
    lines = [f"\n### {title}\n",
             "| contestant | sequences/s (median) | slowest … fastest | hfilter over this (quartiles) | how |",
             "|---|---:|---:|---:|---|"]  # fmt: skip
    for r in sorted(same, key=lambda r: -r.rate):
        ratio = ""
        if r.ratio is not None and r.spread is not None:
            ratio = f"{r.ratio:.3g} × ({r.spread[0]:.3g} … {r.spread[1]:.3g})"
        note = r.variant + (f"; disturbed in {r.disturbed}" if r.disturbed else "")
        low, high = min(r.rates), max(r.rates)
        lines.append(f"| {r.who} | {r.rate:.3g} | {low:.3g} … {high:.3g} | {ratio} | {note} |")
    ours = next((r.rate for r in same if r.who == OURS), None)
    size = same[0].case.floor_bytes()
    floor = bandwidth / size
    share = f"; hfilter on 1 thread reaches {ours / floor:.1%} of that" if ours else ""
    lines.append(
        f"\nFloor: {size} bytes a sequence, {floor:.3g} sequences/s at copy bandwidth{share}."
    )
    return lines


def _latency(found: list[Result]) -> list[str]:
    if not found:
        return []
    titles = list(dict.fromkeys(r.case.title for r in found))
    lines = ["\n### One sequence a call, microseconds (median)\n",
             "| contestant | " + " | ".join(t.partition(",")[0] for t in titles) + " |",
             "|---|" + "---:|" * len(titles)]  # fmt: skip
    rows: dict[str, dict[str, float]] = {}
    for r in found:
        kind = "torch, eager" if r.who.startswith("torch") else r.who
        rows.setdefault(kind, {})[r.case.title] = 1e6 * r.rows / r.rate
    for who, times in rows.items():
        cells = " | ".join(f"{times[t]:.1f}" if t in times else "" for t in titles)
        lines.append(f"| {who} | {cells} |")
    return lines


def training(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Markdown of what training.py found; `about` where it was measured apart from the rest."""
    lines = [TRAINING, ""]
    if about:
        lines += [f"Measured by itself: {', '.join(f'{k} {v}' for k, v in about.items())}.", ""]
    lines += ["Steps of `hfilter.learn.train` at q = ℓ = 4, beside a bare torch loop of the same encoder, batches and",
             "optimiser (best of the rounds each, processor time on the CPU). A batch is drawn within the step: its",
             "time is waiting. Exact: all answers of BP and the comparison with them, of a whole run of the preset.\n",
             "| encoder | task | targets | device | batch | step, ms | bare loop, ms | ratio "
             "| batch drawn, ms | share of the step | exact, share of the run |",
             "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {r['encoder']} | {r['task']} | {r['targets']} | {r['device']} | {r['batch']} "
        f"| {r['step_ms']:.3g} | {r['bare_ms']:.3g} | {r['loop_over_bare']:.2f} "
        f"| {r['batch_ms']:.3g} | {r['waiting']:.2%} | {r['exact_share']:.2%} |"
        for r in rows
    ]
    return "\n".join(lines)


def scales(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Markdown of what scales.py found; `about` where it was measured apart from the rest."""
    lines = [SCALES, ""]
    if about:
        lines += [f"Measured by itself: {', '.join(f'{k} {v}' for k, v in about.items())}.", ""]
    lines += [
        "hfilter on one thread of one core, the points of a line in turn. The ratio is that of the worst point",
        "to the first named; of memory, the megabytes that ten times the rows take more; of torch's steps, best",
        "against best (in brackets the rounds, which tell how busy the machine was).",
        "",
        "| what grows | question | unit | points | ratio (quartiles) | bound | |",
        "|---|---|---|---|---:|---:|---|",
    ]
    for name, question in dict.fromkeys((r["series"], r["question"]) for r in rows):
        own = [r for r in rows if (r["series"], r["question"]) == (name, question)]
        points = "; ".join(f"{r['at']}: {r['value']:.3g}" for r in own)
        worst = max(own[1:], key=lambda r: r["ratio"] / r["bound"])
        ratio = f"{worst['ratio']:.2f} ({worst['quartiles'][0]:.2f} … {worst['quartiles'][1]:.2f})"
        if name == "peak memory":
            ratio = f"{worst['ratio']:.2f}"
        verdict = "met" if worst["met"] else "**not met**"
        lines.append(f"| {name} | {question} | {own[0]['unit']} | {points} | {ratio} "
                     f"| ≤ {worst['bound']:g} | {verdict} |")  # fmt: skip
    return "\n".join(lines)


def questions(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Markdown of what questions.py found; `about` where it was measured apart from the rest."""
    lines = [QUESTIONS, ""]
    if about:
        lines += [f"Measured by itself: {', '.join(f'{k} {v}' for k, v in about.items())}.", ""]
    lines += [
        "q = ℓ = 4, one thread each, processor time, in turn; torch in batches that fit a cache. Answers are held to",
        "each other first. The last columns: our cost beside one `infer` of leaf beliefs from tokens, and its bound.",
        "",
        "| question | sequences/s | against torch | over it | in infers | bound | |",
        "|---|---:|---|---:|---:|---:|---|",
    ]
    for r in rows:
        bound, verdict = (
            (f"≤ {r['bound']:g}", "met" if r["met"] else "**not met**") if r["bound"] else ("", "")
        )
        lines.append(f"| {r['question']} | {r['rate'] / 1e6:.2f} M | {r['peer']} | {r['ratio']:.1f} × "
                     f"| {r['infers']:.2f} | {bound} | {verdict} |")  # fmt: skip
    return "\n".join(lines)


def diffusion(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Markdown of what diffusion.py found; `about` where it was measured apart from the rest."""
    lines = [DIFFUSION, ""]
    if about:
        lines += [f"Measured by itself: {', '.join(f'{k} {v}' for k, v in about.items())}.", ""]
    lines += [
        "q = 6, four rules a symbol, ℓ = 4, one thread each unless it says two; answers are held to each other first.",
        "",
        "| part | a second | a call | peer | over it | target | |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    for r in rows:
        rate = f"{r['rate'] / 1e6:.3g} M {r['unit']}"
        call = f"{r['n']:,} in {r['seconds']:.3g} s"
        ratio = f"{r['ratio']:.3g} ×" if "ratio" in r else ""
        target, verdict = "", ""
        if r.get("target"):
            target, verdict = f"≥ {r['target']:g}", "met" if r["met"] else "**not met**"
        lines.append(
            f"| {r['part']} | {rate} | {call} | {r.get('peer', '')} | {ratio} | {target} | {verdict} |"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ files


def write(folder: Path, text: str, rows: list[dict[str, Any]]) -> None:
    """README.md below its mark, and results.jsonl."""
    page = folder / "README.md"
    head, mark, _ = page.read_text().partition(MARK)
    page.write_text(f"{head}{mark}\n\n{text}\n")
    (folder / "results.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )


def write_section(folder: Path, text: str, name: str, rows: list[dict[str, Any]]) -> None:
    """One section of HEADINGS on the page and in results.jsonl; all else stays."""
    page, data = folder / "README.md", folder / "results.jsonl"
    before, mark, after = page.read_text().partition(HEADINGS[name])
    rest = after.partition("\n### ")[1:] if mark else ("", "")
    page.write_text(f"{before.rstrip()}\n\n{text}\n" + "".join(rest))
    kept = [line for line in data.read_text().splitlines() if json.loads(line)["case"] != name]
    kept += [json.dumps(row, ensure_ascii=False) for row in rows]
    data.write_text("".join(f"{line}\n" for line in kept))


def figures(folder: Path, rows: list[dict[str, Any]]) -> None:
    """One SVG a series (rates by sequence and by leaf, ours and the best peer) and scaling.csv."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "hfilter"  # the same figures give the same file
    plt.rcParams["svg.fonttype"] = "none"  # letters as letters
    plt.rcParams["font.size"] = 9
    rows = [_with_threads(row) for row in rows if row["series"] in SERIES]
    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    columns = [
        "series",
        "x",
        "question",
        "who",
        "variant",
        "n",
        "leaves",
        "per_second",
        "slowest",
        "fastest",
    ]
    with (folder / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )
    for series, label in SERIES.items():
        chosen = [row for row in rows if row["series"] == series]
        if not chosen:
            continue
        figure, axes = plt.subplots(2, 2, figsize=(7, 4.6), sharex=True, layout="constrained")
        for column, start in enumerate(("Sampling", "Leaf beliefs")):
            part = [row for row in chosen if row["question"].startswith(start)]
            axes[0, column].set_title("Sampling" if column == 0 else "Leaf beliefs from fields")
            for line, unit in enumerate(("sequences", "leaves")):
                _draw(axes[line, column], part, unit, series)
            axes[1, column].set_xlabel(label)
        if axes[0, 0].lines:
            axes[0, 0].legend(frameon=False, fontsize=8)
        name = {"ℓ": "depth"}.get(series, series)
        figure.savefig(folder / f"scaling_{name}.svg", metadata={"Date": None})
        plt.close(figure)


def _with_threads(row: dict[str, Any]) -> dict[str, Any]:
    if row["series"] != "threads":
        return row
    return {**row, "x": int(row["who"].split()[1])}


def _draw(axis: Any, rows: list[dict[str, Any]], unit: str, series: str) -> None:
    """Ours, and at each point the best of the peers."""
    if not rows:
        return
    ours = [r for r in rows if r["who"].startswith("hfilter")]
    peers: dict[float, dict[str, Any]] = {}
    for row in rows:
        if (
            row not in ours
            and row["per_second"] > peers.get(row["x"], {"per_second": 0})["per_second"]
        ):
            peers[row["x"]] = row
    for found, label, style in (
        (ours, "hfilter" + ("" if series == "threads" else ", 1 thread"), "o-"),
        (list(peers.values()), "best of torch and JAX, 1 thread", "s--"),
    ):
        if found:
            found = sorted(found, key=lambda r: float(r["x"]))
            scale = [r["leaves"] if unit == "leaves" else 1 for r in found]
            rates = [r["per_second"] * k for r, k in zip(found, scale, strict=True)]
            axis.plot([r["x"] for r in found], rates, style, label=label, markersize=4)
    axis.set_ylabel(f"{unit}/s")
    if series == "threads":
        axis.set_ylim(bottom=0)
        axis.set_xticks(sorted({r["x"] for r in ours}))
    else:
        axis.set_yscale("log")
        if series in ("n", "q"):
            axis.set_xscale("log", base=10 if series == "n" else 2)
    axis.minorticks_off()  # half the file otherwise
    axis.grid(alpha=0.3)
