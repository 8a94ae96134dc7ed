"""The fits behind probes and read-outs; their packages are imported when one is asked for."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["fit_linear", "fit_ridge", "fit_two_layer"]

_ROUNDING = 1e-10  # of the largest variance: float32 states hold nothing below


def _missing(error: ImportError) -> ModuleNotFoundError:
    """What to raise when a package that a probe needs is not there: says the remedy."""
    return ModuleNotFoundError(
        f"probes need the package {error.name}, which could not be imported ({error}); install it "
        "with: pip install '.[learn]'",
        name=error.name,
    )


def fit_linear(
    x: NDArray[Any], y: NDArray[np.int64], max_iter: int
) -> tuple[Callable[[Any], NDArray[np.int64]], bool]:
    """Multinomial logistic regression: what guesses (m,) labels of (m, d) rows, and if it converged."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise _missing(error) from error
    # Directions of equal spread: a few dozen steps, where states as they are take a thousand.
    turn = _whitening(x)
    if len(np.unique(y)) == 1 or turn.shape[1] == 0:
        only = np.bincount(y).argmax()
        return lambda rows: np.full(len(rows), only), True
    model = LogisticRegression(max_iter=max_iter, tol=1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x @ turn, y)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    return lambda rows: np.asarray(model.predict(rows @ turn), dtype=np.int64), converged


def _whitening(x: NDArray[Any]) -> NDArray[Any]:
    """A map (d, r) after which centred rows have unit covariance; directions of rounding left out."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for first in range(0, len(x), 2**15):
        part = x[first : first + 2**15].astype(np.float64)
        total += part.T @ part
    values, vectors = np.linalg.eigh(total / len(x))
    kept = values > _ROUNDING * max(float(values[-1]), 1e-300)
    return np.asarray(vectors[:, kept] / np.sqrt(values[kept]), dtype=x.dtype)


def fit_two_layer(
    x: NDArray[Any],
    y: NDArray[np.int64],
    classes: int,
    seed: int,
    epochs: int,
    hidden: int,
    lr: float,
    batch_size: int,
) -> Callable[[Any], NDArray[np.int64]]:
    """A hidden layer of ReLU: what guesses (m,) labels of (m, d) rows; a function of the seed."""
    try:
        import torch
        from torch import nn
    except ImportError as error:
        raise _missing(error) from error
    plain: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever the caller's defaults are
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        net = nn.Sequential(
            nn.Linear(x.shape[1], hidden, **plain), nn.ReLU(), nn.Linear(hidden, classes, **plain)
        )
    random = torch.Generator().manual_seed(seed % 2**63)
    rows, goal = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)
    adam = torch.optim.Adam(net.parameters(), lr=lr)
    steps = epochs * math.ceil(len(rows) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps))
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(rows), generator=random, device="cpu")
            for batch in torch.split(order, batch_size):
                loss = nn.functional.cross_entropy(net(rows[batch]), goal[batch])
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                schedule.step()

    def guess(states: NDArray[Any]) -> NDArray[np.int64]:
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(states.astype(np.float32)), 2**16)
            return np.concatenate([net(part).argmax(1).numpy() for part in parts])

    return guess


def fit_ridge(
    x: NDArray[Any], y: NDArray[np.float64], test: NDArray[Any], weight: float
) -> NDArray[np.float64]:
    """Ridge regression of (m, q) on (m, d), read at other rows."""
    try:
        from sklearn.linear_model import Ridge
    except ImportError as error:
        raise _missing(error) from error
    model = Ridge(alpha=weight, solver="auto" if weight else "svd").fit(x, y)
    return np.asarray(model.predict(test), dtype=np.float64).reshape(len(test), -1)
