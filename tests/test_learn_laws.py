"""The exact answer to every task, against enumeration; posterior targets; rows shown again."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from cases import PAIR_IDS, PAIRS, problem
from enumerated import context_laws, prefixes, windows
from oracle import token_fields

import hfilter
import hfilter.learn.laws as laws_module
from hfilter.errors import ArgumentError
from hfilter.learn.laws import TASKS, check_task, exact_law, exact_levels, window_law
from hfilter.learn.masks import HELD_OUT_START, draw_masks, epoch_order
from hfilter.noising.gaussian import integers, noise_leaves
from hfilter.noising.schedule import Schedule


@pytest.mark.parametrize(("name", "k"), PAIRS, ids=PAIR_IDS)
def test_laws_are_those_of_enumeration(name: str, k: int) -> None:
    """All families and filter levels; possible evidence and impossible, NaN for NaN."""
    given = problem(name, k)
    tokens, law, model = given.tokens(), given.law, given.model
    leaves, mask, answer = tokens.leaves, tokens.mask, tokens.answer
    assert leaves is not None
    assert mask is not None
    if mask.any():
        found = exact_law(model, "mlm", leaves, mask)
        np.testing.assert_allclose(found, answer.beliefs[law.depth][mask], rtol=1e-9, atol=1e-12)
    found = exact_law(model, "root", leaves, mask)
    np.testing.assert_allclose(found, answer.root, rtol=1e-9, atol=1e-12)
    for level in model.existing_levels[:-1]:
        found = exact_law(model, "ancestor", leaves, mask, ancestor_level=level)
        found = found.reshape(*leaves.shape, -1)
        size = law.arity ** (law.depth - level)
        for j in range(law.n_leaves):  # the ancestor of leaf j is node j // size
            expected = answer.beliefs[level][:, j // size]
            np.testing.assert_allclose(found[:, j], expected, rtol=1e-9, atol=1e-12)
    if len(law.log_prior) > 3000:
        return  # the judges of contexts are slow, and test_truth_contexts goes that far
    leaves, mask = leaves[:8], mask[:8]
    fields = token_fields(leaves, None, given.q)
    found = exact_law(model, "causal", leaves).reshape(*leaves.shape, -1)
    expected = context_laws(law, fields, prefixes(law.n_leaves))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    fields = token_fields(leaves, mask, given.q)
    for height in {1, law.depth}:
        expected = context_laws(law, fields, windows(law.n_leaves, law.arity, height))[mask]
        found = window_law(model, height, leaves, mask)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_which_levels_can_answer() -> None:
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=4)
    assert exact_levels(model, None) == exact_levels(model, 0) == (0, 1, 2, 3, 4)
    for level in (1, 2, 3):
        answering = [k for k in range(5) if level in model.filtered(k).existing_levels]
        assert exact_levels(model, level) == tuple(answering)


@pytest.mark.parametrize(
    ("task", "level", "k", "message"),
    [
        ("next", None, 0, 'one of "mlm", "root", "causal", "ancestor"'),
        ("mlm", 1, 0, 'for the task "ancestor" only'),
        ("ancestor", None, 0, r"\[0, 1, 2\].*got None"),
        ("ancestor", 3, 0, r"\[0, 1, 2\].*got 3"),
        ("ancestor", 1, 2, r"\[0, 2\].*filter level 2, got 1"),
    ],
)
def test_tasks_that_are_refused(task: str, level: int | None, k: int, message: str) -> None:
    model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), 3, k)
    with pytest.raises(ArgumentError, match=message):
        check_task(model, task, level)
    with pytest.raises(ArgumentError, match="needs a mask"):
        exact_law(model, "mlm", model.sample(2).leaves)


def test_an_epoch_shows_every_row_once() -> None:
    seen = [tuple(epoch_order(6, seed=3, epoch=e).tolist()) for e in range(50)]
    assert all(sorted(order) == list(range(6)) for order in seen)
    assert len(set(seen)) > 40  # of 720 orders
    assert seen[7] == tuple(epoch_order(6, seed=3, epoch=7).tolist())
    assert seen[7] != tuple(epoch_order(6, seed=4, epoch=7).tolist())


torch = pytest.importorskip("torch")

from hfilter.learn.data import FreshBatches  # noqa: E402
from hfilter.learn.tasks import n_scored, task_loss  # noqa: E402

LEVEL = {"ancestor": 1}


@pytest.fixture(scope="module")
def model() -> hfilter.TreeModel:
    return hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)


def equal(a, b) -> bool:  # type: ignore[no-untyped-def]
    pairs = [(getattr(a, f), getattr(b, f)) for f in vars(a)]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("train_size", [None, 11])
@pytest.mark.parametrize("targets", ["labels", "posterior"])
def test_batches_of_every_task(model, task, train_size, targets) -> None:  # type: ignore[no-untyped-def]
    """By hand from rows, masks and laws; the same for every prefetch, order and number of ranks."""
    level = LEVEL.get(task)
    options = {"task": task, "seed": 5, "start": 40, "train_size": train_size, "targets": targets,
               "ancestor_level": level, "mask_rate": 0.4 if task == "mlm" else None}  # fmt: skip
    batches = FreshBatches(model, 6, prefetch=1, **options)
    expected = [batches.batch(step) for step in range(7)]
    rows = np.arange(42)
    if train_size:
        rows = np.concatenate([epoch_order(11, 5, e) for e in range(4)])[:42]
    drawn = model.sample(50, seed=5, start=40, levels=[1])
    leaves, roots = drawn.leaves[rows], drawn.roots[rows]
    masks = draw_masks(42, 8, seed=5, start=40, rate=0.4) if task == "mlm" else None
    noisy = fields = times = None
    if task == "denoise":
        schedule, times = Schedule.published(), integers(5, "times", 0, 42, 1, 501)
        noisy = noise_leaves(leaves, schedule.signal(times).astype(np.float32),
                             schedule.sigma(times).astype(np.float32), 4, 5, "train", 0)  # fmt: skip
        fields = noisy * schedule.intensity(times)[:, None, None]
    law = exact_law(model, task, leaves, masks, ancestor_level=level, log_fields=fields,
                    dtype="float32")  # fmt: skip
    done = 0
    for step, batch in enumerate(expected):
        part = slice(6 * step, 6 * step + 6)
        assert np.array_equal(batch.roots.numpy(), roots[part])
        if noisy is not None:
            assert np.array_equal(batch.times.numpy(), times[part])
        visible = (
            noisy[part]
            if noisy is not None
            else leaves[part]
            if masks is None
            else np.where(masks[part], 4, leaves[part])
        )
        assert np.array_equal(batch.tokens.numpy(), visible)
        truth = {"root": roots, "ancestor": drawn.levels[1][rows].repeat(4, 1)}.get(task, leaves)
        assert np.array_equal(batch.targets.numpy(), truth[part])
        scored = truth[part].ravel() if masks is None else leaves[part][masks[part]]
        assert np.array_equal(batch.labels.numpy(), scored)
        if targets == "posterior":
            assert np.array_equal(batch.law.numpy(), law[done : done + len(scored)])
        else:
            assert batch.law is None
        done += len(scored)
    for prefetch in (2, 5, None):
        other = FreshBatches(model, 6, prefetch=prefetch, n_batches=7, **options)
        assert all(equal(other.batch(t), expected[t]) for t in (6, 0, 3, 3, 5))
        ranks = [FreshBatches(model, 6, prefetch=prefetch, rank=r, world=3, **options)
                 for r in range(3)]  # fmt: skip
        for t in (6, 0, 3):
            parts = [source.batch(t) for source in ranks]
            more = [*(["law"] * (targets == "posterior")), *(["times"] * (task == "denoise"))]
            for name in ("tokens", "targets", "labels", *more):
                together = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(together, getattr(expected[t], name))


def test_masks_of_a_row_shown_again_are_drawn_anew(model) -> None:  # type: ignore[no-untyped-def]
    source = FreshBatches(model, 16, seed=2, train_size=16)
    one, two = source.batch(0), source.batch(1)
    assert sorted(one.targets.tolist()) == sorted(two.targets.tolist())
    assert not torch.equal(one.mask, two.mask)


def test_the_loss_against_laws_is_the_mean_cross_entropy(model) -> None:  # type: ignore[no-untyped-def]
    batch = FreshBatches(model, 5, seed=1, mask_rate=0.5, targets="posterior").batch(0)
    logits = torch.randn(5, 8, 4, generator=torch.Generator().manual_seed(0)).double()
    log_q = logits.log_softmax(-1).numpy()[batch.mask.numpy()]
    law = model.infer(batch.targets.numpy(), batch.mask.numpy(), dtype="float64").leaves
    expected = -(law[batch.mask.numpy()] * log_q).sum(1).mean()
    assert task_loss(logits, batch).item() == pytest.approx(expected, rel=1e-6)
    assert n_scored(batch).item() == batch.mask.sum().item()


def test_targets_that_do_not_exist_are_left_out() -> None:
    """Data of filter level 2 under BP_0 of a grammar with forbidden rules: some rows impossible."""
    grammar = hfilter.Grammar.published(6, 1.0, 0, rules_per_symbol=4)
    source = hfilter.TreeModel(grammar, depth=2, filter_level=2)
    options = {"task": "root", "seed": 3, "targets": "posterior", "target_level": 0}
    batch = FreshBatches(source, 60, **options).batch(0)  # type: ignore[arg-type]
    exact = source.filtered(0).root_posterior(batch.tokens.numpy(), dtype="float64")
    exists = ~np.isnan(exact[:, 0])
    assert 0 < exists.sum() < 60
    assert n_scored(batch).item() == exists.sum()
    logits = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)).double()
    log_q = logits.log_softmax(-1).numpy()
    expected = -(exact[exists] * log_q[exists]).sum(1).mean()
    assert task_loss(logits, batch).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "truth"}, "targets"),
        ({"targets": "posterior", "target_level": 4}, "target_level"),
        ({"train_size": 0}, "train_size"),
        ({"train_size": 9, "start": HELD_OUT_START - 8}, "held-out"),
        ({"rank": 2, "world": 2}, "rank 2"),
        ({"rank": 0, "world": 3}, "multiple of the 3 processes"),
        ({"task": "ancestor", "ancestor_level": 1, "targets": "posterior", "target_level": 2},
         "filter level 2"),
    ],
)  # fmt: skip
def test_sources_that_are_refused(model, options, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArgumentError, match=message):
        FreshBatches(model, 4, **options)


def test_docstring_examples_run() -> None:
    assert doctest.testmod(laws_module).failed == 0
