"""Several processes that train one network, as torchrun starts them: who leads, sums of gradients.

Every process draws its own rows of each batch, and gradients are added before each step, so that
N processes do what one does with the whole batch, up to the order of sums (and up to dropout, whose
draws differ). The first process logs and writes; what it reads, it hands to the others.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

try:
    import torch
    import torch.distributed as dist
    from torch import Tensor, nn
except ImportError as error:
    from hfilter.learn import missing_package

    raise missing_package(error) from error

__all__ = ["SharedGradients", "Team", "assemble", "held", "led"]


@dataclass(frozen=True)
class Team:
    """The processes of a run: this one's rank, and how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    def share(self, value: Any = None) -> Any:
        """The first process's value, for all. An exception is raised instead, everywhere."""
        box: list[Any] = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]

    def add(self, flat: Tensor) -> None:
        """Replace a tensor by its sum over the processes."""
        if self.world > 1:
            dist.all_reduce(flat)


def assemble(device: torch.device) -> tuple[Team, torch.device]:
    """The team that torchrun's environment names (one process without it), and this one's device.

    A process group that is there already is used; otherwise one is made (NCCL between GPUs, gloo
    between processors) and kept, for the next run too, until the process ends.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    there: bool = dist.is_available() and dist.is_initialized()
    if not there and (world < 2 or "RANK" not in os.environ):
        return Team(), device
    on_gpu = device.type == "cuda"
    if on_gpu:
        if str(device) == "cuda":
            device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(device)
    if not there:
        dist.init_process_group("nccl" if on_gpu else "gloo")
        atexit.register(dist.destroy_process_group)
    return Team(dist.get_rank(), dist.get_world_size()), device


def led(team: Team, work: Callable[[], Any]) -> Any:
    """Done by the first process; all get the result, or the error, so that none waits for ever."""
    if team.world == 1:
        return work()
    result: Any = None
    if team.leads:
        try:
            result = work()
        except Exception as error:
            result = error
    return team.share(result)


@contextmanager
def held(team: Team, lock: AbstractContextManager[Any]) -> Iterator[None]:
    """A lock that the first process holds for all of them; none goes on where it cannot be had."""
    with ExitStack() as stack:
        led(team, lambda: stack.enter_context(lock))
        yield


class SharedGradients:
    """Gradients of all parameters in one piece of memory, so that one sum over processes does.

    Parameters
    ----------
    parameters : sequence of Parameter
        Their ``grad`` becomes a view and stays one: it must be zeroed, never dropped.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        total = sum(p.numel() for p in parameters)
        # Two places more: the loss and the number of tokens travel along.
        self.flat = parameters[0].new_zeros(total + 2)
        first = 0
        for p in parameters:
            p.grad = self.flat[first : first + p.numel()].view_as(p)
            first += p.numel()

    def average(self, team: Team, loss: Tensor, count: Tensor) -> Tensor:
        """Gradients of the mean loss over the tokens of all processes; returns that loss.

        Parameters
        ----------
        loss, count : scalar Tensor
            Mean loss of this process, whose gradients these are, and its number of tokens.
        """
        self.flat[-2], self.flat[-1] = loss.detach(), 1.0
        self.flat *= count.to(self.flat.dtype)
        team.add(self.flat)
        self.flat[:-1] /= self.flat[-1].clone()
        return self.flat[-2].clone()
