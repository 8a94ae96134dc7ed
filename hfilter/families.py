"""The families of grammars: each function returns the rules of one or all levels.

Draws use NumPy's legacy generator (`RandomState` over MT19937), whose streams are frozen by NumPy's
compatibility policy, so a seed names the same grammar in every later release. What the transition
tensors mean is said in `hfilter.grammar`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import check_float, check_int, check_seed
from .errors import GrammarError
from .rules import RuleTable

__all__ = ["broadcast", "dense", "log_normal", "parity", "published", "random_hierarchy", "spec"]

_MAX_RULES = 2**27  # 3 GB of packed rules: beyond it a dense family is surely a slip
_DEAL_ALL = 2**24  # up to here all tuples are shuffled; above, tuples are drawn until distinct


def _stream(seed: int, family: int) -> np.random.RandomState:
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([family, seed])))


def _tuples(codes: NDArray[np.int64], vocab_size: int, arity: int) -> NDArray[np.int32]:
    """Children tuples from their lexicographic codes, shape (n, arity)."""
    digits = [codes // vocab_size ** (arity - 1 - r) % vocab_size for r in range(arity)]
    return np.stack(digits, axis=-1).astype(np.int32)


def _distinct_tuples(
    stream: np.random.RandomState, vocab_size: int, arity: int, wanted: int
) -> NDArray[np.int32]:
    """`wanted` distinct tuples of children in random order, shape (wanted, arity)."""
    n_tuples = vocab_size**arity
    if n_tuples <= _DEAL_ALL:
        return _tuples(stream.permutation(n_tuples)[:wanted], vocab_size, arity)
    chosen: NDArray[np.int32] = np.empty((0, arity), np.int32)
    while len(chosen) < wanted:
        more = stream.randint(0, vocab_size, size=(wanted - len(chosen), arity), dtype=np.int32)
        joined = np.concatenate([chosen, more])
        chosen = joined[np.sort(np.unique(joined, axis=0, return_index=True)[1])]
    return chosen


def _softmax(spread: float, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of probabilities. `math.exp`, because NumPy's differs in the last bit between processors."""
    logits = min(spread, 1e6) * draws  # at 1e6 the check below refuses already
    shifted = logits - logits.max(axis=1, keepdims=True)
    if shifted.min(initial=0.0) < -700.0:
        raise GrammarError(
            f"sigma is so large that a rule would have probability exp({shifted.min():.0f}), which rounds "
            "to zero; lower it"
        )
    flat = np.fromiter(map(math.exp, shifted.ravel().tolist()), np.float64, shifted.size)
    weights = flat.reshape(logits.shape)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _count(name: str, vocab_size: int, arity: int, rules_per_symbol: int | None) -> int:
    """Rules of each parent when q**arity tuples are dealt to q parents."""
    share = vocab_size ** (arity - 1)
    rules = (
        share if rules_per_symbol is None else check_int("rules_per_symbol", rules_per_symbol, 1)
    )
    if rules > share:
        raise GrammarError(
            f"rules_per_symbol must be at most vocab_size**(arity-1) = {share}, so that no tuple of "
            f"children has two parents, got {rules}"
        )
    _limit(name, vocab_size * rules)
    return rules


def _limit(name: str, n_rules: int) -> None:
    if n_rules > _MAX_RULES:
        raise GrammarError(
            f"{name} would have {n_rules} rules, more than {_MAX_RULES}; "
            "lower vocab_size or arity, or give rules_per_symbol"
        )


def log_normal(
    vocab_size: int, sigma: float, seed: int, rules_per_symbol: int | None, arity: int
) -> tuple[RuleTable, ...]:
    """Tuples shuffled and dealt out, log-normal weights (HF section 2; BG for rules_per_symbol)."""
    q = check_int("vocab_size", vocab_size, 2, 65535)
    s = check_int("arity", arity, 2, 32)
    spread = check_float("sigma", sigma, 0.0)
    rules = _count("log_normal", q, s, rules_per_symbol)
    stream = _stream(check_seed("seed", seed), 1)
    children = _distinct_tuples(stream, q, s, q * rules)
    weights = _softmax(spread, stream.standard_normal((q, rules)))
    parents = np.repeat(np.arange(q), rules)
    return (RuleTable.from_rules(q, q, parents, children, weights.ravel()),)


def published(
    vocab_size: int, sigma: float, seed: int, rules_per_symbol: int | None
) -> tuple[RuleTable, ...]:
    """The grammars of HF and BG, from the draws their code makes: `RandomState(seed)`, shuffled pairs."""
    q = check_int("vocab_size", vocab_size, 2, 4096)
    spread = check_float("sigma", sigma, 0.0)
    rules = _count("published", q, 2, rules_per_symbol)
    stream = np.random.RandomState(check_int("seed", seed, 0, 2**32 - 1))
    pairs = np.stack(np.divmod(np.arange(q * q), q), axis=1)
    stream.shuffle(pairs)
    kept = pairs.reshape(q, q, 2)[:, :rules]
    weights = _softmax(spread, stream.randn(q * rules).reshape(q, rules))
    parents = np.repeat(np.arange(q), rules)
    return (RuleTable.from_rules(q, q, parents, kept.reshape(-1, 2), weights.ravel()),)


def random_hierarchy(
    vocab_size: int, rules_per_symbol: int, depth: int, n_classes: int, arity: int, seed: int
) -> tuple[RuleTable, ...]:
    """The random hierarchy model (RHM): per level m equally likely tuples for each parent, none shared."""
    v = check_int("vocab_size", vocab_size, 2, 65535)
    s = check_int("arity", arity, 2, 32)
    m = check_int("rules_per_symbol", rules_per_symbol, 1)
    levels = check_int("depth", depth, 1, 62)
    classes = check_int("n_classes", n_classes, 1, 65535)
    for name, parents in (("vocab_size", v), ("n_classes", classes)):
        if parents * m > v**s and (name == "n_classes" or levels > 1):
            raise GrammarError(
                f"{name} * rules_per_symbol = {parents} * {m} = {parents * m} tuples are more than the "
                f"vocab_size**arity = {v**s} there are; no two parents may share one"
            )
    _limit("random_hierarchy", max(v, classes) * m)
    stream = _stream(check_seed("seed", seed), 2)
    tables = []
    for level in range(levels):
        parents = classes if level == 0 else v
        children = _distinct_tuples(stream, v, s, parents * m)
        tables.append(
            RuleTable.from_rules(
                parents,
                v,
                np.repeat(np.arange(parents), m),
                children,
                np.full(parents * m, 1.0 / m),
            )
        )
    return tuple(tables)


def dense(vocab_size: int, concentration: float, seed: int, arity: int) -> tuple[RuleTable, ...]:
    """Every tuple possible under every parent: rows from a symmetric Dirichlet (ambiguous)."""
    q = check_int("vocab_size", vocab_size, 2, 65535)
    s = check_int("arity", arity, 2, 32)
    alpha = check_float("concentration", concentration, 0.0, open_low=True)
    _limit("dense", q ** (s + 1))
    stream = _stream(check_seed("seed", seed), 3)
    gamma = stream.standard_gamma(alpha, size=(q, q**s))
    total = gamma.sum(axis=1, keepdims=True)
    if not (total > 0).all():
        raise GrammarError(
            f"concentration = {alpha:g} is so small that a whole row of weights underflowed to zero; raise it"
        )
    tensor = (gamma / total).reshape((q,) * (s + 1))
    return (RuleTable.from_tensor(tensor),)


def broadcast(vocab_size: int, eigenvalue: float, arity: int) -> tuple[RuleTable, ...]:
    """Children independent given the parent, each through the Potts channel of second eigenvalue λ."""
    q = check_int("vocab_size", vocab_size, 2, 65535)
    s = check_int("arity", arity, 2, 32)
    lam = check_float("eigenvalue", eigenvalue, -1.0 / (q - 1), 1.0)
    _limit("broadcast", q ** (s + 1))
    other = max((1.0 - lam) / q, 0.0)
    channel = np.full((q, q), other)
    np.fill_diagonal(channel, max(1.0 - (q - 1) * other, 0.0))
    tensor = channel
    for _ in range(s - 1):
        tensor = tensor[..., None] * channel.reshape((q,) + (1,) * (tensor.ndim - 1) + (q,))
    return (RuleTable.from_tensor(tensor),)


def parity(arity: int) -> tuple[RuleTable, ...]:
    """The parent is the exclusive or of its children; all such tuples are equally likely."""
    s = check_int("arity", arity, 2, 20)
    children = _tuples(np.arange(2**s), 2, s)
    parents = children.sum(axis=1) % 2
    return (RuleTable.from_rules(2, 2, parents, children, np.full(2**s, 2.0 ** (1 - s))),)


def spec(family: str, **parameters: Any) -> dict[str, Any]:
    """Family and parameters as plain values; defaults that were left alone are left out."""
    plain: dict[str, Any] = {"family": family}
    for key, value in parameters.items():
        if value is None or (key == "arity" and value == 2):
            continue
        plain[key] = float(value) if key in ("sigma", "concentration", "eigenvalue") else int(value)
    return plain
