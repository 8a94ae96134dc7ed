"""One readable training loop: fresh data, exact floors, checkpoints that resume bit for bit."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import torch
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import ArgumentError, BackendUnavailable, DataError, HFilterError
from hfilter.learn.checkpoint import (
    load_encoder,
    pack_state,
    read_tensors,
    save_encoder,
    unpack_state,
    write_tensors,
)
from hfilter.learn.config import TrainConfig, log_spaced
from hfilter.learn.data import FreshBatches
from hfilter.learn.encoder import Encoder, EncoderConfig
from hfilter.learn.records import Callback, Log, Progress, Record, claim, locked, read_log
from hfilter.learn.tasks import HeldOut, task_loss

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from hfilter.exact import TreeModel

__all__ = ["TrainConfig", "TrainResult", "load_encoder", "log_spaced", "read_log", "train"]

_STEP_STREAM = 0x73746570  # "step" in ASCII: keys of initial weights and dropout


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What :func:`train` leaves behind.

    Attributes
    ----------
    encoder : Encoder
        Trained, in evaluation mode.
    history : list of dict
        The records of ``log.jsonl``, see :func:`train`; ``kl`` has integer keys.
    held_out : HeldOut
        The held-out set with its exact answers.
    folder : Path
    """

    encoder: Encoder
    history: list[Record]
    held_out: HeldOut
    folder: Path


def train(
    model: TreeModel,
    encoder_config: EncoderConfig,
    config: TrainConfig,
    folder: str | os.PathLike[str],
    callback: Callback | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train an encoder on fresh sequences of a model, or take up a run where it stopped.

    Parameters
    ----------
    model : TreeModel
        The law of the data, at its own filter level.
    encoder_config : EncoderConfig
        Its ``readout`` decides the task.
    config : TrainConfig
    folder
        Run folder, made if need be. Afterwards it holds ``config.json`` (the configuration and what
        made it), ``log.jsonl``, ``checkpoint.safetensors`` and ``encoder.safetensors``. If it holds
        an unfinished run of the same configuration, that run goes on from its last checkpoint, and
        every later loss and weight is bitwise what the uninterrupted run has (same machine, same
        number of torch threads).
    callback
        ``callback(record, encoder)`` after every evaluation.
    progress
        Show a progress bar (loss, exact floor, rate, time left).

    Returns
    -------
    TrainResult

    Each record, and each line of ``log.jsonl``, has ``step``; ``sequences`` seen; ``loss``, the
    mean training loss since the last record (``None`` at step 0); on the held-out set
    ``cross_entropy``, ``floor`` (the exact posterior's cross-entropy), ``accuracy``,
    ``exact_accuracy``, and ``kl``, KL(BP_k || network) by filter level k, all in nats per scored
    token; ``lr``; ``sequences_per_second`` of training since the last record and ``elapsed``
    seconds.

    Raises
    ------
    hfilter.errors.ArgumentError
        If the encoder does not fit the model, or the folder holds a run of another configuration.
    hfilter.errors.DataError
        If files in the folder are cut short or not ours.
    hfilter.errors.BackendUnavailable
        For a GPU that is not there.
    hfilter.errors.HFilterError
        If the training loss is no longer finite.

    Examples
    --------
    >>> import hfilter, tempfile
    >>> model = hfilter.TreeModel(hfilter.Grammar.published(4, 1.0, 0), depth=2)
    >>> small = EncoderConfig(vocab_size=4, n_leaves=4, d_model=8, n_layers=1, d_feedforward=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = train(model, small, TrainConfig(steps=3, n_eval=64), folder, progress=False)
    >>> [record["step"] for record in result.history]
    [0, 3]
    """
    _check_fit(model, encoder_config)
    device = _device(config.device)
    run = Path(folder)
    with locked(run):
        made_for = claim(run, model, {"encoder": asdict(encoder_config), "train": asdict(config)})
        return _train(model, encoder_config, config, run, device, made_for, callback, progress)


def _train(
    model: TreeModel,
    encoder_config: EncoderConfig,
    config: TrainConfig,
    run: Path,
    device: torch.device,
    made_for: str,
    callback: Callback | None,
    progress: bool,
) -> TrainResult:
    """The loop itself, in a folder that is this run's alone."""
    checkpoint = run / "checkpoint.safetensors"
    seed = config.seed if config.data_seed is None else config.data_seed
    task, rate = encoder_config.readout, config.train_mask_rate or config.mask_rate
    batches = FreshBatches(
        model,
        config.batch_size,
        task=task,
        seed=seed,
        start=config.data_start,
        mask_rate=rate,
        n_batches=config.steps,
        device=device,
    )
    held_out = HeldOut(model, task, config.n_eval, seed=seed, mask_rate=config.mask_rate)
    with _torch_state(config, device):
        torch.manual_seed(_key(config.seed, 0))
        encoder = Encoder(encoder_config).to(device)
        optimiser = torch.optim.AdamW(
            encoder.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        state = Progress()
        if checkpoint.exists():
            tensors, numbers = read_tensors(checkpoint)
            if numbers.pop("run", None) != made_for:
                raise DataError(f"{checkpoint} is of another run than {run / 'config.json'}")
            state = Progress.from_numbers(numbers)
            if state.step > config.steps:
                raise DataError(f"{checkpoint} is at step {state.step} of a run of {config.steps}")
            unpack_state(tensors, encoder, optimiser)
        log = Log(run / "log.jsonl", state, held_out, model.filter_level, callback)
        points = config.eval_points()
        if state.step == 0:
            log.record(encoder, config.learning_rate(0))
        bar = _bar(config.steps, state.step, progress)
        encoder.train()
        try:
            while state.step < config.steps:
                began = time.perf_counter()
                _update(encoder, optimiser, batches, config, state)
                state.seconds += time.perf_counter() - began
                if state.step in points:
                    _check_finite(encoder, state.step)
                    latest = log.record(encoder, config.learning_rate(state.step - 1))
                    bar.set_postfix_str(
                        f"loss {latest['cross_entropy']:.4f} floor {latest['floor']:.4f}"
                    )
                bar.update()
                if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                    state.elapsed = log.elapsed()
                    _check_finite(encoder, state.step)
                    numbers = {**state.numbers(), "run": made_for}
                    write_tensors(checkpoint, pack_state(encoder, optimiser), numbers)
        finally:
            bar.close()
    encoder.eval()
    save_encoder(run / "encoder.safetensors", encoder)
    return TrainResult(encoder, state.history, held_out, run)


def _check_finite(encoder: Encoder, step: int) -> None:
    """What is written can be resumed from: never weights that are not numbers."""
    if not all(bool(torch.isfinite(p).all()) for p in encoder.parameters()):
        raise HFilterError(
            f"the weights are no longer finite at step {step}; lower lr or set clip, and start in "
            "another folder"
        )


def _update(
    encoder: Encoder,
    optimiser: torch.optim.Optimizer,
    batches: FreshBatches,
    config: TrainConfig,
    state: Progress,
) -> None:
    """One step. Rows, masks, dropout and learning rate are functions of (seed, step) alone."""
    batch = batches.batch(state.step)
    torch.manual_seed(_key(config.seed, state.step + 1))
    for group in optimiser.param_groups:
        group["lr"] = config.learning_rate(state.step)
    loss = task_loss(encoder(batch.tokens), batch)
    optimiser.zero_grad(set_to_none=True)
    value = loss.item()
    if not math.isfinite(value):
        raise HFilterError(
            f"the training loss became {value} at step {state.step}; lower lr or set clip, "
            "and start in another folder"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    if config.clip is not None:
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), config.clip)
    optimiser.step()
    state.loss_sum += value
    state.loss_steps += 1
    state.sequences += config.batch_size
    state.step += 1


def _key(seed: int, number: int) -> int:
    """Seed of torch's generator for the initial weights (number 0) and for each step (1 …)."""
    key = np.array([seed, _STEP_STREAM], dtype=np.uint64)
    return int(np.random.Philox(counter=number, key=key).random_raw()) >> 1


@contextmanager
def _torch_state(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Leave the caller's random state and thread count as they were."""
    threads = torch.get_num_threads()
    cuda = [device.index or 0] if device.type == "cuda" else []
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        torch.set_num_threads(threads)


def _bar(steps: int, done: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, initial=done, disable=not progress, unit="step", desc="train")


def _check_fit(model: TreeModel, encoder: EncoderConfig) -> None:
    wanted = {"vocab_size": model.vocab_size, "n_leaves": model.n_leaves}
    got = {"vocab_size": encoder.vocab_size, "n_leaves": encoder.n_leaves}
    if encoder.readout == "root":
        wanted["n_classes"], got["n_classes"] = model.n_classes, encoder.n_outputs
    if wanted != got:
        raise ArgumentError(f"encoder_config must fit the model: wanted {wanted}, got {got}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(f"device must be a torch device such as 'cpu', got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"device {name!r}: torch finds no GPU here; use device='cpu'")
    return device
