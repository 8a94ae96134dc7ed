"""Samples of two models from the same noise: how alike, and how near to whose training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfilter.checks import check_seed
from hfilter.diffusion.nearest import nearest
from hfilter.errors import ArgumentError, ShapeError

from .asking import check_denoisers, check_several
from .neighbours import sequences_of
from .records import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hfilter.diffusion.denoisers import Denoiser

__all__ = ["Mutual", "coupled_samples", "mutual_distance"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mutual:
    """Pairs of samples of two models, made from the same noise.

    Attributes
    ----------
    distance, distance_error : float
        Mean number of leaves in which the two of a pair differ, and its standard error over pairs.
    identical : float
        Share of the pairs that are equal.
    unpaired, unpaired_error : float
        The same distance for samples of different noise: what it would be if the noise did not tie them.
    to_own, to_other : (2,) float64
        Mean distance of each model's samples to the nearest row of its own training block, and of the
        other's. NaN without blocks.
    pull, pull_error : (2,) float64
        Mean of (to_other - to_own), sample by sample: above zero, the samples lean to the block that
        the model has seen. Zero for models that know the law and not the data, but for the difference
        between the blocks themselves, which has the opposite sign for the two models: the mean of both is
        free of it.
    n : int
        Pairs.
    """

    distance: float
    distance_error: float
    identical: float
    unpaired: float
    unpaired_error: float
    to_own: Floats
    to_other: Floats
    pull: Floats
    pull_error: Floats
    n: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values."""
        return plain(self)


def coupled_samples(
    denoisers: Sequence[Denoiser],
    n: int,
    *,
    seed: int,
    start: int = 0,
    method: Literal["ancestral", "deterministic"] = "ancestral",
    num_threads: int | None = None,
) -> list[NDArray[Any]]:
    """Sequences of several denoisers from the same x_T and the same noise on the way.

    Parameters
    ----------
    denoisers : sequence of Denoiser
    n, seed, start, method, num_threads
        As for `hfilter.diffusion.generate`.

    Returns
    -------
    list of int arrays, shape (n, L)
        Sample i of each belongs to sample i of the others.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion import ExactDenoiser
    >>> from hfilter.diffusion.measures import coupled_samples, mutual_distance
    >>> from hfilter.noising import GaussianChannel, Schedule
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=3)
    >>> channel = GaussianChannel(Schedule.published(100))
    >>> exact, filtered = (ExactDenoiser(model, channel, filter_level=k) for k in (0, 1))
    >>> a, b, c = coupled_samples([exact, exact, filtered], 200, seed=1)
    >>> mutual_distance(a, b).distance
    0.0
    >>> found = mutual_distance(a, c)
    >>> found.distance < found.unpaired
    True
    """
    from hfilter.diffusion.reverse import generate

    check_denoisers(**check_several(denoisers, 1))
    seed = check_seed("seed", seed)
    options: dict[str, Any] = {"method": method, "progress": False, "num_threads": num_threads}
    return [
        np.asarray(generate(one, n, seed=seed, start=start, **options).leaves) for one in denoisers
    ]


def mutual_distance(
    first: Any,
    second: Any,
    first_block: Any = None,
    second_block: Any = None,
    *,
    num_threads: int | None = None,
) -> Mutual:
    """Distance between paired samples of two models, and of each to both training blocks.

    Parameters
    ----------
    first, second : int array, shape (n, L)
        Row i of both comes from the same noise (`coupled_samples`).
    first_block, second_block : int array, shape (P, L), optional
        What the models were trained on; both or neither.
    num_threads : int, optional

    Returns
    -------
    Mutual

    Notes
    -----
    Shown for images in arXiv 2603.03469 (and in arXiv 2310.02557), for sequences here. For a mean over
    pairs of models and its error: `over_models` of the matrix of distances.

    Examples
    --------
    >>> import numpy as np
    >>> from hfilter.diffusion.measures import mutual_distance
    >>> a, b = np.array([[0, 1], [1, 1]]), np.array([[0, 0], [1, 1]])
    >>> found = mutual_distance(a, b, a, b)
    >>> found.distance, found.identical, found.pull.tolist()
    (0.5, 0.5, [0.5, 0.5])
    """
    a, b = sequences_of("first", first), sequences_of("second", second)
    if a.shape != b.shape:
        raise ShapeError(f"second must have the shape of first, {a.shape}, got {b.shape}")
    if (first_block is None) != (second_block is None):
        raise ArgumentError("give first_block and second_block, or neither")
    n = len(a)
    apart = (a != b).sum(axis=1)
    others = (a != np.roll(b, 1, axis=0)).sum(axis=1)
    nothing = np.full(2, np.nan)
    own, other, pull, pull_error = nothing, nothing, nothing, nothing
    if first_block is not None:
        blocks = (
            sequences_of("first_block", first_block),
            sequences_of("second_block", second_block),
        )
        near = np.array(
            [[nearest(x, y, num_threads=num_threads).distance for y in blocks] for x in (a, b)],
            dtype=np.float64,
        )
        near[1] = near[1, ::-1].copy()  # own block first
        own, other = near[:, 0].mean(axis=1), near[:, 1].mean(axis=1)
        pull, pull_error = other - own, _error(near[:, 1] - near[:, 0])
    return Mutual(
        distance=float(apart.mean()),
        distance_error=float(_error(apart)),
        identical=float((apart == 0).mean()),
        unpaired=float(others.mean()) if n > 1 else np.nan,
        unpaired_error=float(_error(others)),
        to_own=own,
        to_other=other,
        pull=pull,
        pull_error=pull_error,
        n=n,
    )


def _error(values: NDArray[Any]) -> Any:
    """Standard error of a mean over the last axis; NaN for one value."""
    n = values.shape[-1]
    return values.std(axis=-1, ddof=1) / np.sqrt(n) if n > 1 else np.full(values.shape[:-1], np.nan)
