"""Several Python threads on one model at once, its very first call among them: everyone gets the same bits."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hfilter
from hfilter import Grammar, TreeModel

THREADS = 6
MODEL = TreeModel(Grammar.published(4, 1.0, 0), 4, 1, [0.1, 0.2, 0.3, 0.4])
SEEN = MODEL.sample(4000, seed=9).leaves  # enough for the table of subtrees to be filled
HIDDEN = np.random.default_rng(9).random(SEEN.shape) < 0.3
FIELDS = np.random.default_rng(8).normal(size=(200, 16, 4)).astype(np.float32)

QUESTIONS: dict[str, Callable[..., Any]] = {
    "sample": lambda m, n, **o: m.sample(n, seed=5, **o).leaves,
    "root": lambda m, n, **o: m.root_posterior(SEEN[:n], **o),
    "leave-one-out": lambda m, n, **o: m.leave_one_out(SEEN[:n], HIDDEN[:n], **o),
    "fields": lambda m, n, **o: m.infer(log_fields=FIELDS[:n], **o).leaves,
    "log-prob": lambda m, n, **o: m.log_prob(SEEN[:n], HIDDEN[:n], **o),
}


def at_once(tasks: list[Callable[[], Any]]) -> list[Any]:
    """What each task gives on a thread of its own, all let go at the same moment."""
    gate = threading.Barrier(len(tasks))
    answers: list[Any] = [None] * len(tasks)

    def run(i: int) -> None:
        gate.wait(20)
        try:
            answers[i] = tasks[i]()
        except Exception as error:
            answers[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def fresh() -> TreeModel:
    """Nothing is packed, tabled or cached yet."""
    return TreeModel(Grammar.published(4, 1.0, 0), 4, 1, [0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("question", QUESTIONS)
def test_one_question_from_many_threads(question: str, num_threads: int, backend: str) -> None:
    n = 10 if backend == "python" else 4000
    options = {"backend": backend, "num_threads": num_threads}
    ask = QUESTIONS[question]
    want = ask(fresh(), n, **options)
    for _ in range(1 if backend in ("python", "numba") else 5):
        model = fresh()
        for got in at_once([lambda: ask(model, n, **options)] * THREADS):  # noqa: B023
            np.testing.assert_array_equal(got, want)


def test_all_questions_at_once(backend: str) -> None:
    n = 10 if backend == "python" else 4000
    want = {name: ask(fresh(), n, backend=backend) for name, ask in QUESTIONS.items()}
    for _ in range(1 if backend in ("python", "numba") else 10):
        model = fresh()
        tasks = [lambda ask=ask: ask(model, n, backend=backend) for ask in QUESTIONS.values()]  # type: ignore[misc]  # noqa: B023
        for name, got in zip(QUESTIONS, at_once(tasks), strict=True):
            np.testing.assert_array_equal(got, want[name], err_msg=name)


def test_rows_written_by_threads_into_one_array() -> None:
    """Ranges of one stream, drawn into parts of one array by threads of the caller's."""
    want = MODEL.sample(60_000, seed=3).leaves
    out = np.zeros_like(want)
    edges = np.linspace(0, len(out), THREADS + 1, dtype=int)

    def draw(a: int, b: int) -> Any:
        return MODEL.sample(b - a, seed=3, start=a, out=out[a:b], num_threads=2)

    parts = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    for answer in at_once([lambda a=a, b=b: draw(a, b) for a, b in parts]):  # type: ignore[misc]
        assert isinstance(answer, hfilter.Sample), answer
    np.testing.assert_array_equal(out, want)


def test_this_court_sees_shared_scratch() -> None:
    """A sampler whose calls all write to one array before they answer is caught."""
    shared = np.zeros((4000, 16), np.uint8)
    inside = threading.Barrier(THREADS)

    def careless(seed: int) -> Any:
        MODEL.sample(4000, seed=seed, out=shared)
        inside.wait(20)
        return shared.copy()

    answers = at_once([lambda s=s: careless(s) for s in range(THREADS)])  # type: ignore[misc]
    wrong = sum(
        not np.array_equal(got, MODEL.sample(4000, seed=s).leaves) for s, got in enumerate(answers)
    )
    assert wrong >= THREADS - 1


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter has its lock"
)
def test_importing_us_does_not_bring_the_lock_back() -> None:
    """An extension that does not declare itself safe switches the lock on again."""
    code = "import sys, hfilter; hfilter.backends(); print(sys._is_gil_enabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False"], done.stderr
