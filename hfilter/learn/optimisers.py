"""The optimisers of a run, behind one face: what steps, what decays, what a checkpoint must hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

from hfilter.errors import DataError

if TYPE_CHECKING:
    from hfilter.learn.config import TrainConfig
    from hfilter.learn.encoder import EncoderConfig

__all__ = ["Muon", "Optimiser", "orthogonalised"]

# Quintic iteration: the slope at 0 is as steep as it can be while singular values stay near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices with their singular values brought near 1 (0.7 … 1.2), their singular vectors kept.

    Parameters
    ----------
    matrices : (n, r, c) Tensor
        r <= c is faster. A matrix of zeros stays one.

    Returns
    -------
    Tensor
        (n, r, c), five steps of X <- a X + (b X X^T + c (X X^T)^2) X.

    Notes
    -----
    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".

    Examples
    --------
    >>> x = orthogonalised(torch.diag(torch.tensor([3.0, 0.5]))[None])
    >>> bool(((x[0].diag() > 0.6) & (x[0].diag() < 1.3)).all()), bool(x[0, 0, 1] == 0)
    (True, True)
    """
    a, b, c = _COEFFICIENTS
    x: Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is orthogonalised before it is applied.

    All matrices of one shape go through :func:`orthogonalised` together, in single precision: for
    encoders of this size many times faster on a processor than one at a time in bfloat16, as
    ``torch.optim.Muon`` does it; the update is otherwise that of its
    ``adjust_lr_fn="match_rms_adamw"``, and this one does not ask for torch 2.9.

    Parameters
    ----------
    matrices : iterable of (Parameter, tuple of int)
        Each with the heights of the blocks of rows that are matrices of their own, such as queries,
        keys and values in one.
    lr, momentum, weight_decay
        Nesterov momentum; the decay is decoupled.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[nn.Parameter, tuple[int, ...]]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        pairs = list(matrices)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([parameter for parameter, _ in pairs], defaults)
        self._blocks = dict(pairs)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            waiting: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1.0 - group["momentum"])
                ahead = parameter.grad.lerp(buffer, group["momentum"])
                blocks = self._blocks[parameter]
                for weight, update in zip(
                    parameter.split(blocks), ahead.split(blocks), strict=True
                ):
                    if update.shape[0] > update.shape[1]:
                        weight, update = weight.mT, update.mT
                    shape = (update.shape[0], update.shape[1])
                    waiting.setdefault(shape, []).append((weight, update))
            for shape, pairs in waiting.items():
                updates = orthogonalised(torch.stack([update for _, update in pairs]))
                updates *= -0.2 * group["lr"] * max(shape) ** 0.5  # the size of an update of Adam
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update)


class Optimiser:
    """What updates an encoder: one or two torch optimisers, and the loss scale of float16.

    Parameters
    ----------
    network : torch.nn.Module
        Its parameters with ``requires_grad`` are updated.
    shape : EncoderConfig
    config : TrainConfig
    device : torch.device

    Attributes
    ----------
    parts : list of torch.optim.Optimizer
    parameters : list of Parameter
        All that are updated.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: EncoderConfig,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(named.values())
        self._names = named
        heights = (shape.n_heads * shape.key_width,) * 2 + (shape.n_heads * shape.value_width,)
        matrices = {}
        if config.optimiser == "muon":
            for name, p in named.items():
                if name.startswith("layers.") and p.ndim == 2:
                    fused = name.endswith("qkv.weight")
                    matrices[name] = (p, heights if fused else (p.shape[0],))
        rest = [p for name, p in named.items() if name not in matrices]
        decay = config.weight_decay
        self.parts: list[torch.optim.Optimizer] = []
        self._peaks: list[float] = []
        if rest:
            self.parts.append(
                torch.optim.AdamW(
                    rest, lr=config.lr, betas=config.betas, weight_decay=decay, fused=True
                )
            )
            self._peaks.append(config.lr)
        if matrices:
            peak = config.lr if config.muon_lr is None else config.muon_lr
            self.parts.append(Muon(matrices.values(), lr=peak, weight_decay=decay))
            self._peaks.append(peak)
        self._matrices = set(matrices)
        half = config.precision == "float16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)

    def set_rates(self, factor: float) -> None:
        """Give every part this fraction of its peak learning rate."""
        for part, peak in zip(self.parts, self._peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * factor

    def forget_gradients(self) -> None:
        """Before a backward pass."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, clip: float | None) -> None:
        """Apply the gradients, their norm bounded by ``clip``; skipped where float16 overflowed."""
        if not self.scaler.is_enabled():
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, clip)
            for part in self.parts:
                part.step()
            return
        for part in self.parts:
            self.scaler.unscale_(part)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        for part in self.parts:
            self.scaler.step(part)
        self.scaler.update()

    def state(self) -> dict[str, Tensor]:
        """Every moment as ``moments.<which>.<parameter>``, and the loss scale."""
        packed = {
            f"moments.{key}.{name}": value
            for part in self.parts
            for name, parameter in self._names.items()
            for key, value in part.state.get(parameter, {}).items()
        }
        if self.scaler.is_enabled():
            numbers = self.scaler.state_dict()
            packed["scaler"] = torch.tensor(
                [numbers["scale"], numbers["_growth_tracker"]], dtype=torch.float64, device="cpu"
            )
        return packed

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` gave, bit for bit.

        Raises
        ------
        hfilter.errors.DataError
            If these are not the moments of these parameters. There is no checkpoint before the
            first step, so that nothing may be missing; the fused kernels trust what they are given.
        """
        given = {k: t for k, t in tensors.items() if k.startswith(("moments.", "scaler"))}
        wanted = self._expected()
        if set(given) != set(wanted):
            odd = sorted(set(given) ^ set(wanted))
            raise DataError(f"checkpoint: moments missing or unknown: {', '.join(odd[:4])}")
        for packed, (shape, dtype, place) in wanted.items():
            value = given[packed]
            if value.shape != shape or value.dtype != dtype:
                raise DataError(
                    f"checkpoint: {packed} must be {dtype} of shape {tuple(shape)}, got "
                    f"{value.dtype} of shape {tuple(value.shape)}"
                )
            if place is None:
                scale = {"scale": value[0].item(), "_growth_tracker": int(value[1])}
                self.scaler.load_state_dict(self.scaler.state_dict() | scale)
            else:
                part, parameter, key = place
                part.state[parameter][key] = value.to(parameter.device, copy=True)

    def _expected(self) -> dict[str, tuple[torch.Size, torch.dtype, Any]]:
        found: dict[str, tuple[torch.Size, torch.dtype, Any]] = {}
        for part in self.parts:
            members = {id(p) for group in part.param_groups for p in group["params"]}
            adam = isinstance(part, torch.optim.AdamW)
            for name, parameter in self._names.items():
                if id(parameter) not in members:
                    continue
                for key in ("exp_avg", "exp_avg_sq", "step") if adam else ("momentum_buffer",):
                    shape = torch.Size() if key == "step" else parameter.shape
                    dtype = torch.float32 if key == "step" else parameter.dtype
                    found[f"moments.{key}.{name}"] = (shape, dtype, (part, parameter, key))
        if self.scaler.is_enabled():
            found["scaler"] = (torch.Size([2]), torch.float64, None)
        return found
