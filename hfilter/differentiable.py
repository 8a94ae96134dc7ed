"""The exact model as a differentiable function of its evidence and its parameters (torch).

`log_evidence` and `posterior` are functions of torch tensors with derivatives of their own: the gradient
of ln P(evidence) is a posterior, computed by the kernels that infer, and the derivative of posteriors is
one more pass up and down. No operation of the recursion is recorded. So the model can be a layer, a
loss, or the teacher of a distillation.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np

from .autograd import functions
from .checks import check_int
from .errors import ArgumentError, DTypeError, ShapeError
from .exact import TreeModel
from .grammar import Grammar
from .rules import RuleTable

__all__ = ["Moments", "log_evidence", "log_rules_of", "posterior"]


class Moments(NamedTuple):
    """What `posterior` returns, as tensors with a gradient.

    Attributes
    ----------
    root : tensor, shape (n, n_classes)
        Belief of the root.
    leaves : tensor, shape (n, n_leaves, q)
        Beliefs of the leaves.
    counts : tensor, shape (n, n_rules), or None
        Expected uses of every rule below the filter level: columns as in `log_rules`, zero above it.
    levels : dict of int to tensor
        Beliefs of the levels asked for, (n, arity**d, q_d).
    """

    root: Any
    leaves: Any
    counts: Any
    levels: dict[int, Any]


def log_rules_of(model: TreeModel, dtype: Any = None) -> Any:
    """ln p of the model's rules, shape (n_rules,), as a tensor: rules of ``grammar.tables`` in their order.

    Examples
    --------
    >>> import hfilter, torch
    >>> from hfilter.differentiable import log_rules_of
    >>> log_rules_of(hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)).exp().tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    torch = _torch()
    p = np.concatenate([t.probability for t in model.grammar.tables])
    return torch.from_numpy(np.log(p)).to(dtype or torch.float64)


def log_evidence(
    model: TreeModel,
    leaves: Any = None,
    mask: Any = None,
    *,
    log_fields: Any = None,
    log_rules: Any = None,
    log_prior: Any = None,
    dtype: Any = None,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Any:
    """ln P(evidence) in nats, shape (n,), float64, differentiable twice.

    The gradient by `log_fields` is the leaves' beliefs, by `log_rules` the expected rule counts, by
    `log_prior` the root's posterior.

    Parameters
    ----------
    model : TreeModel
    leaves, mask : tensor, shape (n, n_leaves), optional
        Tokens and what is hidden, as in `TreeModel.infer`.
    log_fields : tensor, shape (n, n_leaves, q), optional
        Instead of `leaves`.
    log_rules : tensor, shape (n_rules,), optional
        Weights of the rules in place of the model's, free numbers: for probabilities pass their
        ``log_softmax`` per parent. Rules in the order of ``grammar.tables``.
    log_prior : tensor, shape (n_classes,), optional
        Weights of the root's symbols, likewise.
    dtype : "float32" or "float64", optional
        Of the messages; that of `log_fields` by default, or else of `log_rules`.
    backend, num_threads
        As in `TreeModel.infer`.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError

    Examples
    --------
    >>> import hfilter, torch
    >>> from hfilter.differentiable import log_evidence
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
    >>> h = torch.zeros(1, 4, 2, dtype=torch.float64, requires_grad=True)
    >>> log_evidence(model, log_fields=h).sum().backward()
    >>> h.grad[0, 0].tolist()  # all hidden: a fair bit
    [0.5, 0.5]
    """
    problem = _problem(
        model, leaves, mask, log_fields, log_rules, log_prior, dtype, backend, num_threads
    )
    return functions().log_evidence(*problem)


def posterior(
    model: TreeModel,
    leaves: Any = None,
    mask: Any = None,
    *,
    log_fields: Any = None,
    log_rules: Any = None,
    log_prior: Any = None,
    levels: tuple[int, ...] = (),
    counts: bool = True,
    dtype: Any = None,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Moments:
    """Beliefs and expected rule counts, differentiable once.

    Parameters as in `log_evidence`; `levels` are inner levels whose beliefs are wanted too;
    without `counts` they are not formed, which saves a third.

    Examples
    --------
    >>> import hfilter, torch
    >>> from hfilter.differentiable import posterior
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2)
    >>> h = torch.zeros(1, 4, 2, dtype=torch.float64, requires_grad=True)
    >>> posterior(model, log_fields=h).leaves[0, 0, 0].backward()
    >>> h.grad[0, 0].tolist()  # a variance, p (1 - p), and minus it
    [0.25, -0.25]
    """
    problem = _problem(
        model, leaves, mask, log_fields, log_rules, log_prior, dtype, backend, num_threads
    )
    for d in levels:
        check_int("levels", d, 1, model.depth - 1)
        if d not in model.existing_levels:
            raise ArgumentError(
                f"levels: level {d} does not exist at filter_level {model.filter_level}; "
                f"those that do are {model.existing_levels}"
            )
    root, uses, beliefs, *inner = functions().posterior(*problem, tuple(levels), counts)
    return Moments(root, beliefs, uses if counts else None, dict(zip(levels, inner, strict=True)))


def _torch() -> Any:
    return importlib.import_module("torch")


def _problem(
    model: TreeModel, leaves: Any, mask: Any, log_fields: Any, log_rules: Any, log_prior: Any, dtype: Any,
    backend: str | None, num_threads: int | None,
) -> tuple[Any, ...]:  # fmt: skip
    """Check, and put parameters in the place of the model's."""
    torch = _torch()
    given = {"leaves": leaves, "mask": mask, "log_fields": log_fields, "log_rules": log_rules,
             "log_prior": log_prior}  # fmt: skip
    for name, x in given.items():
        if x is not None and not isinstance(x, torch.Tensor):
            raise DTypeError(
                f"{name} must be a torch tensor, got {type(x).__name__}; wrap it with torch.as_tensor"
            )
        if (
            name.startswith("log_")
            and x is not None
            and x.dtype not in (torch.float32, torch.float64)
        ):
            raise DTypeError(f"{name} must be float32 or float64, got {x.dtype}")
    if (leaves is None) == (log_fields is None):
        raise ArgumentError(
            "give exactly one of leaves (tokens) and log_fields, got "
            + ("neither" if leaves is None else "both")
        )
    for name, x, size in (
        ("log_rules", log_rules, model.grammar.n_rules), ("log_prior", log_prior, model.n_classes),
    ):  # fmt: skip
        if x is not None and tuple(x.shape) != (size,):
            raise ShapeError(f"{name} must have shape ({size},), got {tuple(x.shape)}")
    if dtype is None:
        known = next((x for x in (log_fields, log_rules, log_prior) if x is not None), None)
        dtype = torch.float32 if known is None else known.dtype
    weighted = model
    if log_rules is not None or log_prior is not None:
        weighted = reweighted(model, log_rules, log_prior)
    how = str(dtype).removeprefix("torch."), backend, num_threads
    return weighted, (leaves, mask, log_fields), log_rules, log_prior, how


def reweighted(model: TreeModel, log_rules: Any, log_prior: Any) -> TreeModel:
    """The model with other weights: numbers as free as the caller's, the prior brought to sum 1."""
    grammar, prior = model.grammar, model.root_prior
    if log_rules is not None:
        p = log_rules.detach().to("cpu", _torch().float64).exp().numpy()
        if not (np.isfinite(p).all() and (p > 0).all()):
            raise ArgumentError(
                "log_rules must be finite and not so low that exp rounds to 0; a rule of probability 0 is no rule"
            )
        tables, first = [], 0
        for t in grammar.tables:
            part = p[first : first + t.n_rules]
            tables.append(RuleTable(t.n_parents, t.n_symbols, t.first, t.children, part))
            first += t.n_rules
        grammar = Grammar(tables, {"family": "weights"}, is_shared=grammar.is_shared)
    if log_prior is not None:
        weight = log_prior.detach().to("cpu", _torch().float64).exp().numpy()
        if not (np.isfinite(weight).all() and weight.sum() > 0):
            raise ArgumentError("log_prior must be below +inf, and not -inf throughout")
        prior = weight / weight.sum()
    return TreeModel(grammar, model.depth, model.filter_level, prior)
