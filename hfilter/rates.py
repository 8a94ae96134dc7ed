"""Derivatives of posteriors along directions, as torch tensors.

On the CPU by the compiled kernel (csrc/tree_tangent.hpp); elsewhere, and for evidence that leaves the
kernel's range, by the same two passes in torch operations, with logarithms. Neither records a graph.

The posterior is a chain from the root down: P(rule | symbol, evidence) is what the rule carries upward,
over the sum of what all rules of the symbol carry. A direction gives a rate to every symbol at every
node and to every rule; one pass up finds the expected rate of all below a node given its symbol, one pass
down how beliefs move: by covariances, without a division by what may be zero.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np

from .arrays import value_type
from .backend import default_threads, get_backend
from .compiled import _cpu, ieee
from .evidence import check_evidence, kernel_layout
from .exact import TreeModel
from .rules import RuleTable
from .runners import CompiledBackend

__all__ = ["Directions", "Moved", "rates_of"]

_BLOCK = 1 << 22  # numbers held at a time in a step of the torch text, roughly


class Directions(NamedTuple):
    """Rates of the logarithm of evidence, tensors of n rows."""

    levels: dict[int, Any]  # of symbols of a level's nodes (n, nodes, q_d); root and leaves always
    rules: Any  # (n, n_rules), or None: neither they nor the channels, and no derivatives of their uses
    channels: Any  # (n, nodes, q_0, q_k) of a star's channels, or None

    def rows(self, part: Any) -> Directions:
        """Those of some of the rows."""
        rules, channels = (None if x is None else x[part] for x in (self.rules, self.channels))
        return Directions({d: x[part] for d, x in self.levels.items()}, rules, channels)


class Moved(NamedTuple):
    """Derivatives of posteriors, tensors of n rows: beliefs, rule counts, the star's pairs."""

    root: Any
    leaves: Any
    counts: Any
    pairs: Any


def rates_of(
    model: TreeModel, known: tuple[Any, Any, Any], directions: Directions, dtype: str, backend: str | None,
    num_threads: int | None,
) -> Moved:  # fmt: skip
    """How root, leaves, rule counts and the star's pairs move along the directions."""
    place = next(x for x in known if x is not None).device
    runner = get_backend(backend) if place.type == "cpu" else None
    if isinstance(runner, CompiledBackend):
        threads = default_threads() if num_threads is None else num_threads
        return _by_kernel(model, known, directions, dtype, runner, threads)
    return _in_torch(model, known, directions, dtype)


@ieee()
def _by_kernel(
    model: TreeModel, known: tuple[Any, Any, Any], directions: Directions, dtype: str, runner: CompiledBackend,
    num_threads: int,
) -> Moved:  # fmt: skip
    torch = importlib.import_module("torch")
    evidence, n, _ = check_evidence(model, *known)
    evidence = kernel_layout(model, evidence)
    kind = value_type(dtype)
    first = model.grammar.n_rules - model.n_counts

    def given(x: Any) -> Any:
        return None if x is None else np.ascontiguousarray(x.detach().cpu().numpy(), kind)

    rates: list[Any] = [None] * (model.depth + 1)
    for d, x in directions.levels.items():
        rates[d] = given(x)
    levels: list[Any] = [None] * (model.depth + 1)
    levels[model.depth] = np.empty((n, model.n_leaves, model.vocab_size), kind)
    root, counts = np.empty((n, model.n_classes), kind), np.zeros((n, model.grammar.n_rules), kind)
    counted = directions.rules is not None
    below = np.empty((n, model.n_counts), kind) if model.n_counts and counted else None
    star = model.filter_level > 0 and counted
    pairs = np.empty((n, *model.channels.shape) if star else (n, 0), kind)
    status = np.empty(n, np.uint8)
    runner._call(
        _cpu.tangent, model.compiled, n, (evidence.tokens, evidence.mask, evidence.log_fields),
        kind.itemsize,
        (rates, None if below is None else given(directions.rules[:, first:]), given(directions.channels)),
        (None, root, levels, below, pairs if star else None), status, num_threads,
    )  # fmt: skip
    if below is not None:
        counts[:, first:] = below
    moved = Moved(*map(torch.from_numpy, (root, levels[model.depth], counts, pairs)))
    again = np.flatnonzero(status)
    if len(again):
        part = torch.from_numpy(again)
        rows: Any = tuple(None if x is None else x[part] for x in known)
        found = _in_torch(model, rows, directions.rows(part), dtype)
        for target, source in zip(moved, found, strict=True):
            target[part] = source
    return moved


# ------------------------------------------------------------------------------ in torch operations


class _Level:
    """One level's rules as tensors."""

    def __init__(self, torch: Any, table: RuleTable, device: Any) -> None:
        def on(x: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(x)).to(device)

        counts = np.diff(table.first)
        width = np.arange(int(counts.max()))
        self.n_parents, self.n_symbols, self.n_rules = (
            table.n_parents,
            table.n_symbols,
            table.n_rules,
        )
        self.parents = on(table.parents.astype(np.int64))
        self.children = [on(c.astype(np.int64)) for c in table.children.T]
        self.log_p = on(np.log(table.probability))
        # Each parent's rules, padded with its first one.
        self.rows = on(table.first[:-1, None] + np.where(width < counts[:, None], width, 0))
        self.present = on(width < counts[:, None])

    def given_parent(self, terms: Any) -> tuple[Any, Any]:
        """ln of the sums over each parent's rules, and each rule's share, 0 where the sum is."""
        padded = terms[..., self.rows].masked_fill(~self.present, -float("inf"))
        total = padded.logsumexp(-1)
        # ln 0 - ln 0 is no number, and the share of nothing nothing.
        return total, (terms - total[..., self.parents]).exp().nan_to_num(0.0)

    def by_parent(self, x: Any) -> Any:
        return x.new_zeros((*x.shape[:-1], self.n_parents)).index_add(-1, self.parents, x)

    def by_child(self, x: Any) -> Any:
        """(n, nodes, n_rules) to the symbols of all children, (n, nodes * s, q)."""
        zero = x.new_zeros((*x.shape[:-1], self.n_symbols))
        out = importlib.import_module("torch").stack(
            [zero.index_add(-1, c, x) for c in self.children], dim=2
        )
        return out.flatten(1, 2)

    def of_children(self, x: Any) -> Any:
        """Sum over the children of what x (n, nodes * s, q) says of each rule's symbols."""
        below = x.unflatten(1, (-1, len(self.children)))
        return sum(below[:, :, r][..., c] for r, c in enumerate(self.children))


def _in_torch(
    model: TreeModel, known: tuple[Any, Any, Any], directions: Directions, dtype: str
) -> Moved:
    torch = importlib.import_module("torch")
    leaves, mask, fields = known
    widest = max(model.grammar.table(d).n_rules for d in range(model.depth))
    rows = max(1, _BLOCK // (model.n_leaves * max(widest, model.vocab_size)))
    n = len(directions.levels[0])
    parts = []
    for begin in range(0, max(n, 1), rows):
        part = slice(begin, begin + rows)
        h = _fields(torch, model, *(None if x is None else x[part] for x in (leaves, mask, fields)))
        parts.append(_passes(torch, model, h, directions.rows(part)))
    wanted = getattr(torch, dtype)
    return Moved(*(torch.cat(x).to(wanted) for x in zip(*parts, strict=True)))


def _fields(torch: Any, model: TreeModel, leaves: Any, mask: Any, fields: Any) -> Any:
    if fields is not None:
        return fields.double()
    tokens = leaves.long()
    seen = tokens[..., None] == torch.arange(model.vocab_size, device=tokens.device)
    hidden = tokens >= model.vocab_size
    if mask is not None:
        hidden = hidden | mask
    return torch.where(seen | hidden[..., None], 0.0, -float("inf")).double()


def _passes(torch: Any, model: TreeModel, h: Any, directions: Directions) -> Moved:
    k, depth = model.filter_level, model.depth
    device, n = h.device, len(h)
    level = {d: _Level(torch, model.grammar.table(d), device) for d in range(k, depth)}
    counted = directions.rules is not None
    nothing = torch.zeros((n, model.grammar.n_rules), dtype=h.dtype, device=device)
    rule_rates = _split(model, directions.rules.double() if counted else nothing)
    given = {d: x.double() for d, x in directions.levels.items()}

    # Up: what the rules carry, each rule's share given its parent, and expected rates.
    nu, rho, share, rate = {depth: h}, {depth: given[depth]}, {}, {}
    for d in range(depth - 1, k - 1, -1):
        nu[d], share[d] = level[d].given_parent(level[d].log_p + level[d].of_children(nu[d + 1]))
        nu[d] = nu[d] - nu[d].amax(-1, keepdim=True).nan_to_num(neginf=0.0)
        rate[d] = rule_rates[d][:, None] + level[d].of_children(rho[d + 1])
        mean = level[d].by_parent(share[d] * rate[d])
        rate[d] = rate[d] - mean[..., level[d].parents]
        rho[d] = mean + given[d] if d in given else mean
    prior = torch.from_numpy(np.array(model.root_prior)).to(device).log()
    if k > 0:
        channels = torch.from_numpy(np.array(model.channels)).to(device).log()
        terms = channels + nu[k][:, :, None]  # (n, nodes, q_0, q_k)
        factor = terms.logsumexp(-1)
        star = (terms - factor[..., None]).exp().nan_to_num(0.0)
        star_rate = rho[k][:, :, None].expand_as(star)
        if directions.channels is not None:
            star_rate = star_rate + directions.channels.double()
        star_mean = (star * star_rate).sum(-1)
        weights, moves = prior + factor.sum(1), given[0].flatten(1) + star_mean.sum(1)
    else:
        weights, moves = prior + nu[0][:, 0], rho[0][:, 0]

    # Down: beliefs, and how they move.
    root = weights.softmax(-1)
    moved_root = root * (moves - (root * moves).sum(-1, keepdim=True))
    belief, moved = root[:, None], moved_root[:, None]
    pairs = h.new_zeros((n, 0))
    if k > 0:
        joint = belief[..., None] * star
        pairs = moved[..., None] * star + joint * (star_rate - star_mean[..., None])
        belief, moved = joint.sum(2), pairs.sum(2)
    counts = torch.zeros((n, model.grammar.n_rules), dtype=h.dtype, device=device)
    columns = _split(model, counts)
    for d in range(k, depth):
        parents = level[d].parents
        used = belief[..., parents] * share[d]
        change = moved[..., parents] * share[d] + used * rate[d]
        columns[d] += change.sum(1)
        belief, moved = level[d].by_child(used), level[d].by_child(change)
    return Moved(moved_root, moved, counts, pairs if counted else pairs[:, :0].flatten(1))


def _split(model: TreeModel, x: Any) -> dict[int, Any]:
    """Columns of (n, n_rules) by level; views, the same one where levels share a table."""
    if model.grammar.is_shared:
        return dict.fromkeys(range(model.depth), x)
    ends = np.cumsum([t.n_rules for t in model.grammar.tables]).tolist()
    return {d: x[:, (0, *ends)[d] : ends[d]] for d in range(model.depth)}
