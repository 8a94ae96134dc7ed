"""U-turns: noise until a time, then back, and how much of the start is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_int, check_seed
from hfilter.errors import ArgumentError, ShapeError
from hfilter.noising.channels import check_clean, host

from .chains import Plan, run
from .denoisers import Denoiser
from .reverse import Method, check_denoiser, make_chain, one_or_many, uniform_tokens

__all__ = ["UTurn", "random_leaves", "u_turn"]


@dataclass(frozen=True, eq=False, repr=False)
class UTurn:
    """End points of U-turns.

    Attributes
    ----------
    times : tuple of int
        T_U, the times of turning.
    per_sample : ndarray of float64, shape (n_times, n)
        Overlap of each end point with its start: the fraction of leaves that are equal.
    ends : array of unsigned int, shape (n_times, n, L)
        End points; the mask token q where the process came to an impossible state.
    """

    times: tuple[int, ...]
    per_sample: NDArray[np.float64]
    ends: Any

    @property
    def overlap(self) -> NDArray[np.float64]:
        """Mean overlap at each time, shape (n_times,); NaN without samples."""
        with np.errstate(invalid="ignore"):
            found: NDArray[np.float64] = self.per_sample.sum(axis=1) / self.per_sample.shape[1]
        return found

    @property
    def error(self) -> NDArray[np.float64]:
        """Standard error of `overlap` over samples; NaN for fewer than two."""
        n = self.per_sample.shape[1]
        if n < 2:
            return np.full(len(self.times), np.nan)
        found: NDArray[np.float64] = self.per_sample.std(axis=1, ddof=1) / np.sqrt(n)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, without the end points."""
        return {
            "times": list(self.times),
            "overlap": self.overlap.tolist(),
            "error": self.error.tolist(),
            "n": self.per_sample.shape[1],
        }

    def __repr__(self) -> str:
        found = ", ".join(f"{t}: {o:.3f}" for t, o in zip(self.times, self.overlap, strict=True))
        return f"UTurn({found}; n={self.per_sample.shape[1]})"


def u_turn(
    denoiser: Denoiser,
    leaves: Any,
    times: Iterable[int] | int,
    *,
    seed: int,
    start: int = 0,
    method: Method = "ancestral",
    temperature: float = 1.0,
    joint: bool = False,
    progress: bool | None = None,
    num_threads: int | None = None,
) -> UTurn:
    """Noise leaves up to each of `times`, take the noise away again, and compare.

    Parameters
    ----------
    denoiser : Denoiser
    leaves : array_like of int, shape (n, L)
        Where to begin: data, or anything (`random_leaves`).
    times : int or iterable of int
        T_U, each from 1 to T.
    seed, start : int
        Row i is sample ``start + i``: the same noise for every denoiser, on the way up and on the way back.
    method, temperature, joint, progress, num_threads
        As in `hfilter.diffusion.reverse`.

    Returns
    -------
    UTurn

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion import ExactDenoiser
    >>> from hfilter.noising import GaussianChannel
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=4)
    >>> denoiser = ExactDenoiser(model, GaussianChannel())
    >>> turn = u_turn(denoiser, random_leaves(100, 16, 6, seed=0), 5, seed=1)
    >>> bool(0.7 < turn.overlap[0] < 0.86)  # the nearest sequences that the grammar allows
    True
    """
    check_denoiser(denoiser)
    q = denoiser.vocab_size
    n = check_clean("leaves", leaves, q)
    clean, send = host(leaves, "leaves")
    if clean.shape[1] != denoiser.n_leaves:
        raise ShapeError(f"leaves must have shape (n, {denoiser.n_leaves}), got {clean.shape}")
    turns = [check_int("times", t, 1, denoiser.channel.n_steps) for t in one_or_many(times)]
    if not turns:
        raise ArgumentError("times must hold at least one time to turn at, got none")
    seed = check_seed("seed", seed)
    where = getattr(leaves, "device", None) if not isinstance(leaves, np.ndarray) else None
    elsewhere = where if getattr(where, "type", "cpu") != "cpu" else None
    ends = []
    for t in turns:
        chain = make_chain(denoiser, t, seed, start, n, method, temperature, joint, None, None)

        def noisy(rows: slice, t: int = t, first: int = chain.start) -> Any:
            part = clean[rows] if elsewhere is None else leaves[rows]
            return denoiser.channel.corrupt(part, t, q, seed=seed, start=first + rows.start)

        found = run(Plan(chain, n, noisy, elsewhere), progress, num_threads)["leaves"]
        ends.append(found if elsewhere is None else found.cpu().numpy())
    every = np.stack(ends)
    return UTurn(tuple(turns), (every == clean).mean(axis=2), send(every))


def random_leaves(
    n: int, n_leaves: int, vocab_size: int, *, seed: int, start: int = 0
) -> NDArray[Any]:
    """Independent uniform tokens, (n, L): sequences that know nothing of any grammar.

    Examples
    --------
    >>> bool((random_leaves(9, 4, 3, seed=1)[5:] == random_leaves(4, 4, 3, seed=1, start=5)).all())
    True
    """
    n = check_int("n", n, 0, 2**40)
    length, q = check_int("n_leaves", n_leaves, 1), check_int("vocab_size", vocab_size, 1, 65534)
    first = check_int("start", start, 0, 2**64 - n)
    return uniform_tokens(check_seed("seed", seed), "user", n, length, q, first)
