"""One readable training loop: fresh data, exact floors, checkpoints that resume bit for bit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import torch
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import ArgumentError, DataError
from hfilter.exact import TreeModel
from hfilter.learn.boards import board
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
from hfilter.learn.denoising import held_out_of
from hfilter.learn.encoder import Encoder, EncoderConfig
from hfilter.learn.entry import check_fit, open_device, open_start
from hfilter.learn.freezing import freeze_, weights_digest
from hfilter.learn.initial import init_gamma_
from hfilter.learn.interruption import BetweenSteps
from hfilter.learn.noise import schedule_of
from hfilter.learn.optimisers import Optimiser
from hfilter.learn.parallel import Team, assemble, held, led
from hfilter.learn.records import (
    Callback,
    Log,
    Progress,
    Record,
    claim,
    load_model,
    locked,
    read_log,
)
from hfilter.learn.stepping import Stepper, check_finite, key
from hfilter.learn.tasks import HeldOut

if TYPE_CHECKING:
    import os

__all__ = [
    "TrainConfig",
    "TrainResult",
    "load_encoder",
    "load_model",
    "log_spaced",
    "read_log",
    "train",
]


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What :func:`train` leaves behind.

    Attributes
    ----------
    encoder : Encoder
        Trained, in evaluation mode.
    history : list of dict
        The records of ``log.jsonl``, see :func:`train`; ``kl`` and ``kl_window`` have integer keys.
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
    *,
    start: Encoder | str | os.PathLike[str] | None = None,
) -> TrainResult:
    """Train an encoder on sequences of a model, or take up a run where it stopped.

    Parameters
    ----------
    model : TreeModel
        The law of the data, at its own filter level.
    encoder_config : EncoderConfig
        Its ``readout`` decides the task.
    config : TrainConfig
    folder
        Run folder, made if need be. Afterwards it holds ``config.json`` (the configuration and what
        made it), ``grammar.npz``, ``log.jsonl``, ``checkpoint.safetensors``,
        ``encoder.safetensors``, and what ``config`` asks for besides. If it holds an unfinished run
        of the same configuration, that run goes on from its last checkpoint, and every later loss
        and weight is bitwise what the uninterrupted run has (same machine, same number of torch
        threads and of processes).
    callback
        ``callback(record, encoder)`` after every evaluation.
    progress
        Show a progress bar (loss, exact floor, rate, time left).
    start
        Weights to begin with instead of drawn ones: an encoder of the same configuration, or the
        file or run folder of one. It is left as it is.

    Returns
    -------
    TrainResult

    Each record, and each line of ``log.jsonl``, has ``step``; ``sequences`` seen; ``loss``, the
    mean training loss since the last record (``None`` at step 0); on the held-out set
    ``cross_entropy``, ``floor`` (the exact posterior's cross-entropy), ``accuracy``,
    ``exact_accuracy``, ``kl``, KL(BP_k || network) by filter level k, and ``kl_window``, KL(W_h ||
    network) by height of the window (masked leaves only), all in nats per scored token; ``lr``;
    ``sequences_per_second`` of training since the last record and ``elapsed`` seconds. A denoiser is
    scored at the time ``config.time_of_evaluation``; ``loss_all_times``, ``floor_all_times`` and
    ``kl_all_times`` (of the model's own BP) are means over 1 … T. Where the training set is finite,
    ``train_cross_entropy``, ``train_floor``, ``train_accuracy``, ``train_exact_accuracy``,
    ``train_kl``, ``train_loss_all_times``, ``train_floor_all_times`` and ``train_kl_all_times`` are
    the same on its first ``n_eval`` rows, under noise that training does not use.

    Raises
    ------
    hfilter.errors.ArgumentError
        If encoder, task or start do not fit, or the folder holds a run of another configuration.
    hfilter.errors.DataError
        If files in the folder are cut short or not ours.
    hfilter.errors.BackendUnavailable
        For a GPU that is not there.
    hfilter.errors.HFilterError
        If the training loss is no longer finite.

    Notes
    -----
    Under torchrun all processes train together: ``torchrun --nproc-per-node 2 script.py``, each
    calling this with the same arguments. Losses and predictions are those of one process with the
    whole batch to about 1e-6 a step (sums in another order), as long as there is no dropout. The
    first process writes, logs and calls back; ``batch_size`` must be a multiple of their number.

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
    check_fit(model, encoder_config, config, callback)
    device = open_device(config.device)
    first = open_start(start, encoder_config)
    run = Path(folder)
    team, device = assemble(device)
    batches = _batches(model, encoder_config, config, team, device)
    held_out = held_out_of(batches, config)
    if config.stop_at is not None and not held_out.floor > 1e-9:
        raise ArgumentError(
            f"stop_at is a fraction of the exact floor, which is {held_out.floor:.3g} here; "
            "leave it out"
        )
    settings: dict[str, EncoderConfig | TrainConfig]
    settings = {"encoder": encoder_config, "train": config}
    digest = None if first is None else weights_digest(first)
    with _torch_state(config, device):
        torch.manual_seed(key(config.seed, 0))
        with torch.device("cpu"):  # whatever the caller's default device is
            encoder = Encoder(encoder_config)
        if config.init_gamma is not None:
            init_gamma_(encoder, config.init_gamma)
        if first is not None:
            encoder.load_state_dict(first.state_dict())
        encoder.to(device)
        frozen = freeze_(encoder, config.frozen)
        optimiser = Optimiser(encoder, encoder_config, config, device)
        frozen.attach(*optimiser.parts)
        stepper = Stepper(encoder, optimiser, batches, config, team, device)
        with held(team, locked(run)):
            made_for = led(team, lambda: claim(run, model, settings, digest))
            return _train(encoder, stepper, held_out, run, made_for, callback, progress)


def _train(
    encoder: Encoder,
    stepper: Stepper,
    held_out: HeldOut,
    run: Path,
    made_for: str,
    callback: Callback | None,
    progress: bool,
) -> TrainResult:
    """The loop itself, in a folder that is this run's alone."""
    config, team, optimiser = stepper.config, stepper.team, stepper.optimiser
    checkpoint = run / "checkpoint.safetensors"
    state, tensors = led(team, lambda: _resumed(checkpoint, made_for, config.steps))
    if tensors is not None:
        unpack_state(tensors, encoder, optimiser)
        if stepper.average is not None:
            stepper.average.load_state(tensors)
    own = stepper.batches.model.filter_level
    points = config.eval_points()

    def write() -> None:
        stepper.look(state)
        check_finite(encoder, state.step)
        state.elapsed = led(team, lambda: log.elapsed())
        numbers = {**state.numbers(), "run": made_for}
        kept = {} if stepper.average is None else stepper.average.state()
        packed = pack_state(encoder, optimiser) | kept
        led(team, lambda: write_tensors(checkpoint, packed, numbers))

    def record() -> None:
        rate = config.learning_rate(max(0, state.step - 1))
        with stepper.averaged():
            latest = led(team, lambda: log.record(encoder, rate))
        if not team.leads:
            state.noted(latest)
        bar.set_postfix_str(f"loss {latest['cross_entropy']:.4f} floor {latest['floor']:.4f}")

    def is_done() -> bool:
        """Whether the latest evaluation is of now, and good enough to stop."""
        if config.stop_at is None or not state.history:
            return False
        last = state.history[-1]
        now = last["step"] == state.step
        return bool(now and last["kl"][own] < config.stop_at * last["floor"])

    log = Log(run / "log.jsonl", state, held_out, own, callback)
    with board(run, state.step, config.tensorboard and team.leads) as shown:
        state.history = led(team, lambda: log.open(points, shown))
        bar = _bar(config.steps, state.step, progress and team.leads)
        encoder.train()
        with closing(bar), BetweenSteps(team.world == 1) as signals:
            if state.step == 0:
                _keep(run, stepper, encoder, 0)
                record()
            while state.step < config.steps and not is_done() and not signals.waiting:
                began = time.perf_counter()
                stepper.step(state)
                at_point = state.step in points
                if at_point:
                    stepper.look(state)
                state.seconds += time.perf_counter() - began
                if at_point:
                    check_finite(encoder, state.step)
                    record()
                bar.update()
                _keep(run, stepper, encoder, state.step)
                last = state.step == config.steps or is_done() or signals.waiting
                if last or state.step % config.checkpoint_every == 0:
                    write()
    encoder.eval()
    if stepper.average is not None:
        stepper.average.settle()
    led(team, lambda: save_encoder(run / "encoder.safetensors", encoder))
    return TrainResult(encoder, state.history, held_out, run)


def _resumed(
    checkpoint: Path, made_for: str, steps: int
) -> tuple[Progress, dict[str, torch.Tensor] | None]:
    """Where the run stands, and the tensors of its last checkpoint if it has one."""
    if not checkpoint.exists():
        return Progress(), None
    tensors, numbers = read_tensors(checkpoint)
    if numbers.pop("run", None) != made_for:
        raise DataError(f"{checkpoint} is of another run than {checkpoint.parent / 'config.json'}")
    state = Progress.from_numbers(numbers)
    if state.step > steps:
        raise DataError(f"{checkpoint} is at step {state.step} of a run of {steps}")
    return state, tensors


def _keep(run: Path, stepper: Stepper, encoder: Encoder, step: int) -> None:
    """The encoders that are kept for good."""
    if step in stepper.config.checkpoint_at:
        check_finite(encoder, step)
        path = run / "checkpoints" / f"step-{step:07d}.safetensors"
        if stepper.team.leads:
            path.parent.mkdir(exist_ok=True)
        with stepper.averaged():
            led(stepper.team, lambda: save_encoder(path, encoder))


def _batches(
    model: TreeModel, encoder: EncoderConfig, config: TrainConfig, team: Team, device: torch.device
) -> FreshBatches:
    noisy = encoder.readout == "denoise"
    return FreshBatches(
        model,
        config.batch_size,
        task=encoder.readout,
        seed=config.seed if config.data_seed is None else config.data_seed,
        start=config.data_start,
        mask_rate=config.train_mask_rate or config.mask_rate,
        n_batches=config.steps,
        device=device,
        ancestor_level=config.ancestor_level,
        targets=config.targets,
        target_level=config.target_level,
        train_size=config.train_size,
        schedule=schedule_of(config.noise, config.noise_steps) if noisy else None,
        noise_seed=config.seed if noisy else None,
        rank=team.rank,
        world=team.world,
    )


@contextmanager
def _torch_state(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Train the same whatever the caller's torch is set to, and leave that as it was."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    cuda = [device.index or 0] if device.type == "cuda" else []
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.set_default_dtype(torch.float32)
        fork = torch.random.fork_rng(devices=cuda)
        with fork, torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _bar(steps: int, done: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, initial=done, disable=not progress, unit="step", desc="train")
