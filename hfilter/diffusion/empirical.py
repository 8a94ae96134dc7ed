"""The posterior of an observer who believes that only stored rows exist: every row weighed, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import allocate, as_numpy, value_type
from ..checks import check_int
from ..compiled import ieee
from ..errors import ArgumentError, DTypeError, ShapeError
from . import kernels
from .strings import Strings, number_strings

__all__ = ["StoredRows", "empirical_posterior"]

Array = NDArray[Any]


class StoredRows:
    """Rows prepared for `empirical_posterior`; prepare once what many calls ask about.

    Parameters
    ----------
    data : array (P, L) of integers
        P >= 1 rows of symbols; copied.
    vocab_size : int
        q; symbols are 0 … q - 1.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        If `data` holds anything else.

    Examples
    --------
    >>> from hfilter.diffusion.empirical import StoredRows
    >>> stored = StoredRows([[0, 1], [1, 1]], 2)
    >>> len(stored), stored.n_leaves, stored.vocab_size
    (2, 2, 2)
    """

    def __init__(self, data: Any, vocab_size: int) -> None:
        q = check_int("vocab_size", vocab_size, 1, 65535)
        if type(data).__module__.partition(".")[0] == "torch":
            data = data.detach().cpu()
        array, _ = as_numpy("data", data)
        if array.ndim != 2 or 0 in array.shape:
            raise ShapeError(f"data must have shape (P, L) with a row at least, got {array.shape}")
        if array.dtype.kind not in "iu":
            raise DTypeError(f"data must be integers, got {array.dtype}")
        if array.min() < 0 or array.max() >= q:
            raise ArgumentError(
                f"data must be symbols from 0 to {q - 1} (vocab_size = {q}), got "
                f"{array.min()} … {array.max()}"
            )
        self.vocab_size = q
        self.rows = np.array(array, np.uint8 if q <= 256 else np.uint16, order="C")
        self.rows.flags.writeable = False
        self._tensors: dict[str, Any] = {}
        self._strings: Strings | None = None

    @property
    def n_leaves(self) -> int:
        """L."""
        return int(self.rows.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def strings(self) -> Strings:
        """The rows as the compiled text takes them; made once."""
        if self._strings is None:
            self._strings = number_strings(self.rows)
        return self._strings

    def on(self, device: Any) -> Any:
        """The rows as an int64 tensor on a device; sent there once."""
        import torch

        key = str(device)
        if key not in self._tensors:
            self._tensors[key] = torch.from_numpy(self.rows.astype(np.int64)).to(device)
        return self._tensors[key]


@ieee()
def empirical_posterior(
    log_fields: Any, data: Any, *, dtype: Any = None, num_threads: int | None = None,
    backend: str | None = None,
) -> Any:  # fmt: skip
    """Posterior marginals under the uniform law on stored rows, through a channel.

    Row m weighs ``w_m = exp(sum_j log_fields[j, x_mj])``, and ``P(x_j = b) = sum_m w_m [x_mj = b] / sum_m w_m``: what
    a model that memorised the rows answers. The evidence at a leaf itself counts. All rows are weighed.

    Parameters
    ----------
    log_fields : array (n, L, q) of floats
        Logarithms of fields: finite or -inf; of NumPy or torch, on any device.
    data : StoredRows, or array (P, L) of integers
        The rows; an array is prepared anew in every call.
    dtype : "float32" or "float64", optional
        Of the answer and the sums behind it; by default that of `log_fields` (float32 for what is neither). In
        float32 large fields that all rows share cost nothing, but a row that is as good as the best one by other large
        fields is off by some 1e-7 of those, and wants "float64"; and probabilities below 1e-20 may come out as 0, in
        float64 those below 1e-150.
    num_threads, backend
        Who computes, and on how many threads.

    Returns
    -------
    marginals : array (n, L, q)
        NaN where no stored row can have produced the evidence.
    log_evidence : array (n,) of float64
        ``ln(sum_m w_m / P)`` in nats; -inf there.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        If shapes do not fit or a field is NaN or +inf.

    Examples
    --------
    >>> import numpy as np
    >>> from hfilter.diffusion.empirical import empirical_posterior
    >>> fields = np.log([[[0.9, 0.1], [0.5, 0.5]]])
    >>> marginals, log_evidence = empirical_posterior(fields, [[0, 0], [1, 0], [1, 1]])
    >>> marginals.round(4).tolist(), np.exp(log_evidence).round(4).tolist()
    ([[[0.8182, 0.1818], [0.9091, 0.0909]]], [0.1833])
    """
    shape = np.shape(log_fields)
    if len(shape) != 3:
        raise ShapeError(f"log_fields must have shape (n, L, q), got {tuple(shape)}")
    stored = data if isinstance(data, StoredRows) else StoredRows(data, shape[2])
    if tuple(shape[1:]) != (stored.n_leaves, stored.vocab_size):
        raise ShapeError(
            f"log_fields must have shape (n, {stored.n_leaves}, {stored.vocab_size}) for these rows, got "
            f"{tuple(shape)}"
        )
    if type(log_fields).__module__.partition(".")[0] == "torch" and log_fields.device.type != "cpu":
        from . import tensors

        return tensors.empirical(log_fields, stored, dtype)
    fields, wrap = as_numpy("log_fields", log_fields)
    if fields.dtype.kind not in "fiu":
        raise DTypeError(f"log_fields must be floats, got {fields.dtype}")
    kind = value_type(dtype or ("float64" if fields.dtype == np.float64 else "float32"))
    if fields.dtype not in (np.float32, np.float64):
        fields = fields.astype(kind)
    highest = fields.max(initial=-np.inf)
    if not highest < np.inf:  # NaN is neither
        bad = np.argwhere(np.isnan(fields) | (fields == np.inf))[0].tolist()
        raise ArgumentError(
            f"log_fields must be finite or -inf, got {fields[tuple(bad)]} at {tuple(bad)}"
        )
    marginals = allocate(shape, kind, "the marginals")
    log_evidence = np.empty(shape[0])
    kernels.empirical(fields, stored, marginals, log_evidence, backend, num_threads)
    return wrap(marginals), wrap(log_evidence)
