"""Denoisers: ``(x_t, t) -> P(x_0,j | x_t)`` of every leaf, exact ones and those that know less.

All have one interface, `Denoiser`, which a trained network has too (`hfilter.diffusion.learned`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from hfilter.arrays import value_type
from hfilter.checks import check_int, check_seed
from hfilter.errors import ArgumentError, DTypeError, ShapeError
from hfilter.exact import TreeModel
from hfilter.noising import Channel, GaussianChannel
from hfilter.noising.schedule import check_times

from .values import (
    by_strength,
    check_laws,
    check_rows,
    choose,
    double,
    double_state,
    exp,
    host_of,
    like,
    log,
    log_softmax,
    of_type,
    refuse_states,
    settle,
)

__all__ = ["Denoiser", "ExactDenoiser", "MarginalPrior", "TokenPrior"]

_DEEP = 1e-200  # below it a float64 may have been made of numbers that had lost digits


class Denoiser(ABC):
    """What a reverse process and every measure asks of a denoiser.

    One of your own is a subclass with the one method `answer`. It gets checked arrays: x_t of float32 or
    float64 (tokens in a discrete channel), t an int, or int64 of shape (n,) where every row has a time of
    its own (`spread_times`; what is computed from it then stands beside x_t as ``[:, None, None]``). It
    returns probabilities (n, L, q), not logits: the measures refuse what does not sum to 1, processes
    take it as it is. `log_answer` is for logarithms of more range than those of `answer`, `draw` for
    whole sequences (``joint=True``).

    Attributes
    ----------
    channel : hfilter.noising.Channel
        The noise it takes away.
    n_leaves, vocab_size : int
        L and q.
    name : str
        What it is called in tables.
    threaded : bool
        Whether blocks of rows may be asked for from several threads at once, and gain from it.

    Examples
    --------
    The nearest one-hot leaf, with a doubt of 1 %:

    >>> import hfilter, numpy as np
    >>> from hfilter.diffusion.measures import sequential
    >>> class Rounding(Denoiser):
    ...     def answer(self, x_t, t, *, num_threads=None):
    ...         q = self.vocab_size
    ...         return 0.99 * np.eye(q)[x_t.argmax(axis=2)] + 0.01 / q
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=3)
    >>> denoiser = Rounding(GaussianChannel(), 8, 6, "rounding")
    >>> found = sequential(denoiser, model, None, model.sample(100, seed=1).leaves, 75)
    >>> found.kl.shape, bool(found.kl[0] > found.kl[3])
    ((4,), True)
    """

    threaded = False

    def __init__(self, channel: Channel, n_leaves: int, vocab_size: int, name: str) -> None:
        if not isinstance(channel, Channel):
            raise DTypeError(
                f"channel must be a channel of hfilter.noising, got {type(channel).__name__}; "
                "a Schedule becomes one by GaussianChannel(schedule)"
            )
        self.channel = channel
        self.n_leaves = check_int("n_leaves", n_leaves, 1)
        self.vocab_size = check_int("vocab_size", vocab_size, 1, 65534)
        self.name = name

    def __call__(self, x_t: Any, t: Any) -> Any:
        """P(x_0,j = b | x_t) of every leaf, shape (n, L, q).

        Parameters
        ----------
        x_t : array_like
            (n, L, q) floating-point in a Gaussian channel, tokens (n, L) in a discrete one.
        t : int, or array_like of int, shape (n,)
            From 1 to ``channel.n_steps``; one for each row, or one for all.

        Returns
        -------
        array, shape (n, L, q)
            Of the library and on the device of `x_t`. A row of NaN means that no clean sequence which
            this denoiser believes in leads to x_t (in a discrete channel only).

        Raises
        ------
        hfilter.errors.ShapeError, hfilter.errors.DTypeError, hfilter.errors.ArgumentError
            Naming x_t or t: wrong shapes and types, times out of range, numbers that are not finite.
        """
        x, times, wrap = self._checked(x_t, t)
        return wrap(self._of_shape(self.answer(x, times), len(x)))

    def log_probabilities(self, x_t: Any, t: Any) -> Any:
        """ln of what calling gives, in nats, float64; -inf for zeros, and for some numbers below 1e-200."""
        x, times, wrap = self._checked(x_t, t)
        return wrap(self._of_shape(self.log_answer(x, times), len(x)))

    def _of_shape(self, law: Any, n: int) -> Any:
        wanted = (n, self.n_leaves, self.vocab_size)
        if tuple(law.shape) != wanted:
            raise ShapeError(
                f"answer of {self.name} must have shape {wanted}, got {tuple(law.shape)}"
            )
        return law

    @abstractmethod
    def answer(self, x_t: Any, t: Any, *, num_threads: int | None = None) -> Any:
        """As calling, unchecked: NumPy arrays or tensors on a device, t an int or an array of int64."""

    def log_answer(self, x_t: Any, t: Any) -> Any:
        """As `log_probabilities`, unchecked."""
        return log(self.answer(x_t, t))

    def draw(
        self, x_t: Any, t: int, *, seed: int, start: int = 0, num_threads: int | None = None
    ) -> Any:
        """Whole clean sequences from their joint law given x_t, tokens (n, L); row i is draw ``start + i``.

        Raises
        ------
        hfilter.errors.ArgumentError
            If this denoiser knows the leaves one by one only.
        """
        raise ArgumentError(
            f"{self.name} knows the law of each leaf by itself, not of whole sequences: use joint=False, "
            "or an ExactDenoiser"
        )

    def _checked(self, x_t: Any, t: Any) -> tuple[Any, Any, Any]:
        """Checked x_t as NumPy (or a tensor on its device), checked times, and what wraps a result."""
        x, wrap = settle("x_t", x_t)
        n = self.channel.check_state(x, self.vocab_size, self.n_leaves)
        times = check_times(t, self.channel.n_steps, n)
        if isinstance(self.channel, GaussianChannel):
            refuse_states(x, float(np.max(self.channel.schedule.intensity(times), initial=1.0)))
        return x, times, wrap

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.channel!r})"


class ExactDenoiser(Denoiser):
    """The exact posterior of a model: ``ExactDenoiser(model, channel, filter_level=k)`` is BP_k.

    A rule that the grammar forbids has probability 0, at every noise: x_0 is projected onto the grammar,
    however far from it x_t lies.

    Parameters
    ----------
    model : TreeModel
    channel : hfilter.noising.Channel
    filter_level : int, optional
        The model's own unless given.
    dtype : "float32" or "float64"
        Of the answer; float32 is within 3e-6 of enumeration.

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.noising import GaussianChannel
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(6, 1.0, 0, 4), depth=4)
    >>> denoiser = ExactDenoiser(model, GaussianChannel())
    >>> leaves = model.sample(100, seed=1).leaves
    >>> x = denoiser.channel.corrupt(leaves, 5, 6, seed=2)
    >>> bool((denoiser(x, 5).argmax(axis=2) == leaves).all())
    True
    """

    threaded = True

    def __init__(
        self,
        model: TreeModel,
        channel: Channel,
        *,
        filter_level: int | None = None,
        dtype: Any = "float32",
    ) -> None:
        if not isinstance(model, TreeModel):
            raise DTypeError(f"model must be a hfilter.TreeModel, got {type(model).__name__}")
        if filter_level is not None:
            model = model.filtered(check_int("filter_level", filter_level, 0, model.depth))
        super().__init__(channel, model.n_leaves, model.vocab_size, f"BP_{model.filter_level}")
        self.model = model
        self.dtype = value_type(dtype)

    def answer(self, x_t: Any, t: Any, *, num_threads: int | None = None) -> Any:
        def ask(fields: Any) -> Any:
            post = self.model.infer(log_fields=fields, dtype=self.dtype, num_threads=num_threads)
            return post.leaves

        return by_strength(self.channel, self.vocab_size, x_t, t, self.dtype, ask)

    def log_answer(self, x_t: Any, t: Any) -> Any:
        belief = self.answer(x_t, t)
        out = log(belief)
        if not self.channel.continuous:
            return out
        floor = 1e-30 if self.dtype == np.float32 else _DEEP
        small = (host_of(belief) < floor) & (self.model.node_laws(self.model.depth) > 0.0)
        rows = np.flatnonzero(small.any(axis=(1, 2)))
        if len(rows):
            part = t if isinstance(t, int) else t[rows]
            out[rows] = self._deep_logs(self.channel.log_fields(double(x_t[rows]), part))
        return out

    def _deep_logs(self, fields: Any) -> Any:
        """ln of beliefs, those below the smallest float64 by way of the law given the other leaves."""
        belief = self.model.infer(log_fields=fields, dtype="float64").leaves
        law = self.model.leave_one_out(log_fields=fields, dtype="float64")
        deep = log_softmax(log(law * (law > _DEEP)) + fields)
        # Unless that law itself had lost what the leaf's own field, against all others, brings back.
        sound = (abs(exp(deep) - belief) < 1e-6).all(-1)[..., None]
        return choose(sound & (belief < _DEEP), deep, log(belief))

    def draw(
        self, x_t: Any, t: int, *, seed: int, start: int = 0, num_threads: int | None = None
    ) -> Any:
        return self.trees(x_t, t, seed=seed, start=start, num_threads=num_threads).leaves[:, 0]

    def trees(
        self,
        x_t: Any,
        t: Any,
        *,
        seed: int,
        start: int = 0,
        n_samples: int = 1,
        levels: Any = None,
        num_threads: int | None = None,
    ) -> Any:
        """Whole trees given x_t, as `TreeModel.sample_posterior` gives them."""
        fields = self.channel.log_fields(
            double(x_t) if self.channel.continuous else x_t, t, self.vocab_size
        )
        return self.model.sample_posterior(
            log_fields=fields, n_samples=n_samples, seed=check_seed("seed", seed), start=start,
            levels=levels, num_threads=num_threads,
        )  # fmt: skip


class TokenPrior(Denoiser):
    """Leaves independent and alike: ``P(x_0,j = b | x_t) ∝ prior_b φ_j(b)``, a softmax of the fields.

    Parameters
    ----------
    n_leaves, vocab_size : int
    channel : hfilter.noising.Channel
    prior : array_like of float, shape (q,), optional
        Uniform by default.

    Examples
    --------
    >>> import numpy as np
    >>> from hfilter.noising import GaussianChannel
    >>> denoiser = TokenPrior(1, 4, GaussianChannel())
    >>> denoiser(np.zeros((1, 1, 4), np.float32), 9).tolist()
    [[[0.25, 0.25, 0.25, 0.25]]]
    """

    threaded = True

    def __init__(
        self, n_leaves: int, vocab_size: int, channel: Channel, *, prior: Any = None, dtype: Any = "float32"
    ) -> None:  # fmt: skip
        super().__init__(channel, n_leaves, vocab_size, "token prior")
        given = np.full(vocab_size, 1.0 / vocab_size) if prior is None else prior
        self.prior = check_laws("prior", given, (self.vocab_size,))
        self.dtype = value_type(dtype)

    def answer(self, x_t: Any, t: Any, *, num_threads: int | None = None) -> Any:
        return of_type(exp(self.log_answer(x_t, t)), self.dtype)

    def log_answer(self, x_t: Any, t: Any) -> Any:
        fields = double(
            self.channel.log_fields(double_state(self.channel, x_t), t, self.vocab_size)
        )
        return log_softmax(fields + like(log(self.prior), fields))


class MarginalPrior(TokenPrior):
    """Leaves independent, each with a law of its own: ``P(x_0,j = b | x_t) ∝ marginals_jb φ_j(b)``.

    Parameters
    ----------
    marginals : array_like of float, shape (L, q)
        Law of every leaf.
    channel : hfilter.noising.Channel

    Examples
    --------
    >>> import hfilter
    >>> from hfilter.noising import GaussianChannel
    >>> model = hfilter.TreeModel(hfilter.Grammar.dense(3, 1.0, 0), depth=2)
    >>> exact = MarginalPrior.of_model(model, GaussianChannel())
    >>> counted = MarginalPrior.of_rows(model.sample(10**5, seed=0).leaves, 3, GaussianChannel())
    >>> bool(abs(exact.prior - counted.prior).max() < 0.01)
    True
    """

    def __init__(self, marginals: Any, channel: Channel, *, dtype: Any = "float32") -> None:
        shape = np.shape(marginals)
        if len(shape) != 2 or 0 in shape:
            raise ShapeError(f"marginals must have shape (L, q), got {shape}")
        Denoiser.__init__(self, channel, shape[0], shape[1], "marginal prior")
        self.prior = check_laws("marginals", marginals, shape)
        self.dtype = value_type(dtype)

    @classmethod
    def of_model(cls, model: TreeModel, channel: Channel, **options: Any) -> MarginalPrior:
        """From the exact marginals of a model's leaves, which no filter level changes."""
        if not isinstance(model, TreeModel):
            raise DTypeError(f"model must be a hfilter.TreeModel, got {type(model).__name__}")
        return cls(model.node_laws(model.depth), channel, **options)

    @classmethod
    def of_rows(cls, rows: Any, vocab_size: int, channel: Channel, **options: Any) -> MarginalPrior:
        """From the frequencies in rows of tokens (P, L): what was never seen has probability 0."""
        q = check_int("vocab_size", vocab_size, 1, 65534)
        tokens = check_rows("rows", rows, q)
        counts = np.stack([np.bincount(column, minlength=q) for column in tokens.T])
        return cls(counts / len(tokens), channel, **options)
