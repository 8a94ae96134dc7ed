"""`LearnedDenoiser`: a trained network behind the interface of the exact denoisers. Needs torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    from torch import Tensor
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.checks import check_int
from hfilter.errors import ArgumentError, DataError, DTypeError
from hfilter.learn.checkpoint import load_encoder
from hfilter.learn.config import TrainConfig
from hfilter.learn.encoder import Encoder
from hfilter.learn.entry import open_device
from hfilter.learn.noise import schedule_of
from hfilter.noising import Channel, GaussianChannel

from .denoisers import Denoiser

__all__ = ["LearnedDenoiser", "channel_of"]

_LARGEST = 1e6  # noisy leaves beyond count as this: the squares inside a network must stay numbers


class LearnedDenoiser(Denoiser):
    """What a network of the task ``"denoise"`` makes of noisy leaves, without dropout.

    Parameters
    ----------
    source : Encoder, str or path
        A network; or a run folder of `hfilter.learn.train.train`, or one of its files
        (``encoder.safetensors``, ``checkpoints/step-0000100.safetensors``).
    channel : hfilter.noising.Channel, optional
        The noise that it was trained on; a run folder knows it.
    device : str, optional
        Where to put a network that is read from a file; ``"cpu"`` unless given.
    batch_size : int
        Rows per pass of the network: bounds the memory, and decides nothing else but the last digit.
    name : str, optional

    Raises
    ------
    hfilter.errors.ArgumentError
        For a network of another task, or a channel that is neither given nor known, or is another
        than the run folder's.
    hfilter.errors.DataError
        If a file is missing, damaged or not ours.

    Examples
    --------
    >>> import numpy as np
    >>> from hfilter.learn.encoder import EncoderConfig
    >>> from hfilter.noising import GaussianChannel
    >>> network = Encoder(EncoderConfig(4, 8, readout="denoise", d_model=8, n_layers=1))
    >>> denoiser = LearnedDenoiser(network, GaussianChannel())
    >>> law = denoiser(np.zeros((5, 8, 4), np.float32), 75)
    >>> law.shape, law.dtype, bool(np.allclose(law.sum(2), 1, atol=1e-6))
    ((5, 8, 4), dtype('float32'), True)
    """

    def __init__(
        self,
        source: Encoder | str | os.PathLike[str],
        channel: Channel | None = None,
        *,
        device: str | None = None,
        batch_size: int = 1024,
        name: str | None = None,
    ) -> None:
        if isinstance(source, Encoder):
            network, known = source, None
            if device is not None:
                raise ArgumentError("device is for networks from files; move this one by .to(…)")
        elif isinstance(source, (str, os.PathLike)):
            network, known = load_encoder(source), channel_of(source)
            network.to(open_device(device or "cpu"))
        else:
            raise DTypeError(
                f"source must be an Encoder, a run folder or a file, got {type(source).__name__}"
            )
        config = network.config
        if config.readout != "denoise":
            raise ArgumentError(
                f"source must be a network of the task 'denoise', got one of {config.readout!r}"
            )
        chosen = known if channel is None else channel
        if chosen is None:
            raise ArgumentError(
                "channel is needed: what noise this network was trained on is told in its run folder "
                "only; the published one is hfilter.noising.GaussianChannel()"
            )
        super().__init__(chosen, config.n_leaves, config.vocab_size, name or "learned")
        if known is not None and getattr(chosen, "schedule", None) != known.schedule:
            raise ArgumentError(
                f"channel must be that of the run, {known!r}, got {channel!r}; leave it out"
            )
        if not isinstance(chosen, GaussianChannel):
            raise ArgumentError(f"channel must be a GaussianChannel, got {channel!r}")
        self.network = network
        self.batch_size = check_int("batch_size", batch_size, 1)

    def answer(self, x_t: Any, t: Any, *, num_threads: int | None = None) -> Any:
        return self._blockwise(x_t, t, lambda logits: logits.softmax(-1), num_threads)

    def log_answer(self, x_t: Any, t: Any) -> Any:
        return self._blockwise(x_t, t, lambda logits: logits.double().log_softmax(-1), None)

    def _blockwise(self, x_t: Any, t: Any, law: Any, num_threads: int | None) -> Any:
        """The law of every leaf, in blocks of rows, where x_t lies."""
        here = isinstance(x_t, np.ndarray)
        # torch takes arrays of this machine's byte order that may be written to.
        x = (
            torch.from_numpy(np.require(x_t, x_t.dtype.newbyteorder("="), ["C", "W"]))
            if here
            else x_t
        )
        x = x.clamp(-_LARGEST, _LARGEST)
        times = torch.as_tensor(np.broadcast_to(t, (len(x),)).astype(np.int64))
        device = self.network.time.weight.device
        training, threads = self.network.training, torch.get_num_threads()
        self.network.eval()
        try:
            if num_threads is not None:
                torch.set_num_threads(num_threads)
            with torch.no_grad():
                parts: list[Tensor] = []
                blocks = (torch.split(part, self.batch_size) for part in (x, times))
                for rows, when in zip(*blocks, strict=True):
                    logits = self.network(rows.to(device), when.to(device))
                    parts.append(law(logits).to(x.device))
        finally:
            torch.set_num_threads(threads)
            self.network.train(training)
        whole = torch.cat(parts)
        return whole.numpy() if here else whole


def channel_of(path: str | os.PathLike[str]) -> GaussianChannel | None:
    """The noise that a run was trained on, from its folder or one of its files; None if none says.

    Raises
    ------
    hfilter.errors.DataError
        If ``config.json`` is damaged.
    """
    place = Path(path)
    places = [place] if place.is_dir() else [place.parent, place.parent.parent]
    for folder in places:
        file = folder / "config.json"
        if not file.is_file():
            continue
        try:
            said = json.loads(file.read_text(encoding="utf-8"))["train"]
            plain = TrainConfig(steps=1)
            name = said.get("noise", plain.noise)
            steps = said.get("noise_steps", plain.noise_steps)
            return GaussianChannel(schedule_of(name, steps))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: not the configuration of a run ({error!r})") from error
    return None
