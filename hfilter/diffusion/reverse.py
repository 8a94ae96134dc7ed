"""The reverse process: from noise to leaves, step by step or at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfilter.arrays import to_device
from hfilter.checks import check_float, check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError
from hfilter.exact import TreeModel
from hfilter.noising import Channel, GaussianChannel, gaussian
from hfilter.noising.discrete import DiscreteChannel, MaskingChannel
from hfilter.noising.kernels import is_elsewhere, new_tensor

from .chains import Chain, Plan, run
from .denoisers import Denoiser, ExactDenoiser
from .values import refuse_states

__all__ = ["Reverse", "exact_end", "generate", "reverse"]

Method = Literal["ancestral", "deterministic"]
Last = Literal["argmax", "sample", "probabilities"]


@dataclass(frozen=True, eq=False, repr=False)
class Reverse:
    """End points of a reverse process.

    Attributes
    ----------
    leaves : array of unsigned int, shape (n, L)
        Clean tokens. In a row that is `impossible` every token is the mask token q.
    impossible : array of bool, shape (n,)
        Rows in which the denoiser had no answer on the way: the tokens drawn so far were impossible
        together (in a discrete channel, leaf by leaf), or a network gave NaN.
    probabilities : array of float32, shape (n, L, q), or None
        With ``last="probabilities"``: what the denoiser gave at t = 1.
    states : dict of int to array
        x_t at the times of `trajectory`.
    predictions : dict of int to array
        What the denoiser gave for them, (n, L, q).
    """

    leaves: Any
    impossible: Any
    probabilities: Any = None
    states: dict[int, Any] = field(default_factory=dict)
    predictions: dict[int, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept = f", states at {sorted(self.states)}" if self.states else ""
        return f"Reverse(leaves={tuple(self.leaves.shape)}{kept})"


def reverse(
    denoiser: Denoiser,
    x_t: Any,
    t: int,
    *,
    seed: int,
    start: int = 0,
    method: Method = "ancestral",
    temperature: float = 1.0,
    joint: bool = False,
    last: Last | None = None,
    trajectory: Iterable[int] | None = None,
    progress: bool | None = None,
    num_threads: int | None = None,
) -> Reverse:
    """Take the noise of x_t away, one time after the other, with what a denoiser says of x_0.

    Parameters
    ----------
    denoiser : Denoiser
    x_t : array_like
        Noisy leaves at time t, (n, L, q) or tokens (n, L), as the denoiser's channel has them; unchanged.
    t : int
        From 1 to T; the same for all rows.
    seed, start : int
        Row i is sample ``start + i``. Its noise at time t is a pure function of (seed, start + i, t): the
        same for every denoiser, device, batch split and number of threads, so that processes of
        different denoisers are coupled.
    method : "ancestral" or "deterministic"
        DDPM's posterior with E[x_0 | x_t] in the place of x_0 and the small variance (BG), or DDIM's step
        without noise (Gaussian channel only). In a discrete channel "ancestral" draws every token of
        x_{t-1} by itself from ``Σ_{x_0} P(x_0,j | x_t) q(x_{t-1},j | x_t, x_0)``.
    temperature : float
        Gaussian channel: what the variance of the reverse noise is multiplied by. Discrete: each token's
        law is raised to the power 1 / temperature. 0 takes means, or the most probable tokens.
    joint : bool
        Draw x_0 whole from its joint law given x_t (the denoiser must know it), then x_{t-1} given both:
        the exact reverse process, without any error of discretisation, however few its steps.
    last : "argmax", "sample" or "probabilities", optional
        What becomes of the answer at t = 1: its largest entries; draws, leaf by leaf; or "argmax" and the
        answer itself. By default "argmax" in a Gaussian channel (BG) and "sample" otherwise; with `joint`
        the last x_0 that was drawn.
    trajectory : iterable of int, optional
        Times at which to keep x_t and the denoiser's answer.
    progress : bool, optional
        A bar on standard error; by default if it takes longer than two seconds at a terminal.
    num_threads : int, optional

    Returns
    -------
    Reverse
        Arrays of the library and on the device of `x_t`.

    Raises
    ------
    hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
        For an x_t that does not fit the denoiser or is not finite, times out of range, options that
        contradict each other.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion import ExactDenoiser
    >>> from hfilter.noising import GaussianChannel
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=4)
    >>> denoiser = ExactDenoiser(model, GaussianChannel())
    >>> leaves = model.sample(20, seed=1).leaves
    >>> x = denoiser.channel.corrupt(leaves, 30, 6, seed=2)
    >>> end = reverse(denoiser, x, 30, seed=3)
    >>> bool((end.leaves == leaves).mean() > 0.97)
    True
    """
    check_denoiser(denoiser)
    time = check_int("t", t, 1, denoiser.channel.n_steps)
    x, _, back = denoiser._checked(x_t, time)
    if denoiser.channel.continuous:
        refuse_states(x, 1e270)  # the process runs in float32
    chain = make_chain(
        denoiser, time, seed, start, len(x), method, temperature, joint, last, trajectory
    )
    plan = Plan(
        chain, len(x), lambda rows: x[rows], None if isinstance(x, np.ndarray) else x.device
    )
    return finish(run(plan, progress, num_threads), back)


def generate(
    denoiser: Denoiser,
    n: int,
    *,
    seed: int,
    start: int = 0,
    method: Method = "ancestral",
    temperature: float = 1.0,
    joint: bool = False,
    last: Last | None = None,
    trajectory: Iterable[int] | None = None,
    progress: bool | None = None,
    num_threads: int | None = None,
    device: Any = None,
) -> Reverse:
    """Sequences from pure noise: samples ``start`` … ``start + n`` of a denoiser's stream.

    Parameters
    ----------
    denoiser : Denoiser
    n : int
    device : optional
        None for NumPy arrays; a torch device for tensors, and for the process to run there.
    seed, start, method, temperature, joint, last, trajectory, progress, num_threads
        As in `reverse`.

    Returns
    -------
    Reverse

    Notes
    -----
    The process begins at time T with independent standard normal numbers, hidden or uniform tokens, as
    if nothing of x_0 were left. What is left, ``signal(T)``, is 0.006 for the published schedule.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.diffusion import ExactDenoiser
    >>> from hfilter.noising import GaussianChannel, Schedule
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0, 2), depth=2)
    >>> denoiser = ExactDenoiser(model, GaussianChannel(Schedule.published(100)))
    >>> a = generate(denoiser, 50, seed=1).leaves
    >>> b = generate(denoiser, 20, seed=1, start=30).leaves
    >>> bool((a[30:] == b).all()), bool((model.log_prob(a) > -100).mean() > 0.9)
    (True, True)
    """
    check_denoiser(denoiser)
    n = check_int("n", n, 0, 2**40)
    time = denoiser.channel.n_steps
    chain = make_chain(denoiser, time, seed, start, n, method, temperature, joint, last, trajectory)
    where, back = place(device)
    first = chain.start

    def initial(rows: slice) -> Any:
        x = pure_noise(denoiser, chain.seed, rows.stop - rows.start, first + rows.start)
        if where is None:
            return x
        import torch

        return torch.from_numpy(x).to(where)

    return finish(run(Plan(chain, n, initial, where), progress, num_threads), back)


def exact_end(
    model: TreeModel, channel: Channel, x_t: Any, t: Any, *, seed: int, start: int = 0, n_samples: int = 1,
    levels: Any = None,
) -> Any:  # fmt: skip
    """End points of the exact reverse process from x_t, in one shot: draws of whole trees given x_t.

    What any number of steps with exact scores tends to; the reference for their discretisation error
    and for learned denoisers.

    Parameters
    ----------
    model : TreeModel
    channel : hfilter.noising.Channel
    x_t, t
        As a denoiser takes them.
    seed, start, n_samples, levels
        As in `TreeModel.sample_posterior`.

    Returns
    -------
    Sample
        `roots` (n, n_samples), `leaves` (n, n_samples, L), `levels`.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.noising import MaskingChannel
    >>> model = hfilter.TreeModel(hfilter.Grammar.parity(), depth=2, root_prior=[1, 0])
    >>> end = exact_end(model, MaskingChannel.linear(8), [[1, 0, 2, 2]], 3, seed=0, n_samples=100)
    >>> bool((end.leaves.sum(axis=2) % 2 == 0).all())
    True
    """
    denoiser = ExactDenoiser(model, channel)
    x, times, wrap = denoiser._checked(x_t, t)
    found = denoiser.trees(x, times, seed=seed, start=start, n_samples=n_samples, levels=levels)
    kept = {d: wrap(a) for d, a in found.levels.items()}
    return type(found)(wrap(found.roots), wrap(found.leaves), kept)


# ------------------------------------------------------------------------------- checks and options


def check_denoiser(denoiser: Any) -> None:
    """An error for anything that is no denoiser."""
    if not isinstance(denoiser, Denoiser):
        raise DTypeError(
            f"denoiser must be a Denoiser of hfilter.diffusion, got {type(denoiser).__name__}; a model "
            "becomes one by ExactDenoiser(model, channel), a function as `answer` of a subclass"
        )


def one_or_many(times: Any) -> list[Any]:
    """Times, unchecked, of which one may stand alone."""
    alone = not isinstance(times, Iterable) or getattr(times, "ndim", 1) == 0
    return [times] if alone else list(times)


def make_chain(
    denoiser: Denoiser, t: int, seed: int, start: int, n: int, method: str, temperature: float, joint: bool,
    last: str | None, trajectory: Iterable[int] | None,
) -> Chain:  # fmt: skip
    """Options of a process, checked, with the coefficients of its steps."""
    channel = denoiser.channel
    if method not in ("ancestral", "deterministic"):
        raise ArgumentError(f'method must be "ancestral" or "deterministic", got {method!r}')
    if last not in (None, "argmax", "sample", "probabilities"):
        raise ArgumentError(f'last must be "argmax", "sample" or "probabilities", got {last!r}')
    heat = check_float("temperature", temperature, 0.0, 1e6)
    if method == "deterministic" and not isinstance(channel, GaussianChannel):
        raise ArgumentError(
            'method = "deterministic" is for a Gaussian channel; temperature=0 takes the most probable tokens'
        )
    if joint and (method != "ancestral" or heat != 1.0 or last is not None):
        raise ArgumentError(
            'joint=True is the exact process: it goes with method="ancestral", temperature=1 and no last'
        )
    if last is None:
        last = "argmax" if channel.continuous else "sample"
    kept = [] if trajectory is None else one_or_many(trajectory)
    times = frozenset(check_int("trajectory", s, 1, t) for s in kept)
    start = check_int("start", start, 0, 2**64 - n)
    steps: list[tuple[float, float, float]] = []
    if isinstance(channel, GaussianChannel):
        every = np.arange(1, t + 1)
        if method == "deterministic":
            a, b = channel.schedule.deterministic(every)
            s = np.zeros(t)
        else:
            a, b, s = channel.schedule.posterior(every)
        steps = list(zip(a.tolist(), b.tolist(), (s * heat**0.5).tolist(), strict=True))
    seed = check_seed("seed", seed)
    return Chain(denoiser, t, seed, start, steps, heat, bool(joint), last, times)


def pure_noise(denoiser: Denoiser, seed: int, n: int, start: int) -> NDArray[Any]:
    """x_T of samples `start` …: nothing of x_0 is left in it."""
    length, q = denoiser.n_leaves, denoiser.vocab_size
    if not isinstance(denoiser.channel, DiscreteChannel):
        noise = gaussian.normal(seed, "start", 0, n, length * q, start=start, num_threads=1)
        out: NDArray[Any] = noise.reshape(n, length, q)
        return out
    kind = np.uint8 if q <= 255 else np.uint16
    if isinstance(denoiser.channel, MaskingChannel):
        return np.full((n, length), q, kind)
    return uniform_tokens(seed, "start", n, length, q, start)


def uniform_tokens(
    seed: int, purpose: str, n: int, length: int, q: int, start: int
) -> NDArray[Any]:
    """Independent uniform tokens, (n, L)."""
    draw = gaussian.uniform(seed, purpose, 0, n, length, start=start) * q
    return np.minimum(draw, q - 1).astype(np.uint8 if q <= 255 else np.uint16)


def place(device: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The device a process runs on (None: the host, in NumPy), and what wraps its results."""
    if device is None:
        return None, lambda x: x
    if not is_elsewhere(device):
        return None, to_device(device)
    return new_tensor((0,), device).device, lambda x: x


def finish(found: dict[str, Any], back: Callable[[Any], Any]) -> Reverse:
    """Arrays of a process as its result."""
    law = found["probabilities"]
    return Reverse(
        back(found["leaves"]), back(found["impossible"]), None if law is None else back(law),
        {t: back(x) for t, x in found["states"].items()},
        {t: back(x) for t, x in found["predictions"].items()},
    )  # fmt: skip
