"""The few torch.distributed calls that training and evaluation need.

Everything works unchanged in a single process. Several processes are started by `torchrun`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from visionkit.errors import VisionkitError

T = TypeVar("T")


def setup() -> None:
    """Join the processes that torchrun started; nothing to do for a single one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def teardown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one flat all-reduce.

    Called once after all backwards of a step. (Wrapping the model in DistributedDataParallel
    would synchronize at every source's backward, and with heads that a source does not feed
    the processes' gradients silently drift apart.)
    """
    if world_size() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= world_size()
    offset = 0
    for parameter in parameters:
        count = parameter.numel()
        parameter.grad.copy_(flat[offset : offset + count].view_as(parameter))
        offset += count


def average(tensor: Tensor) -> Tensor:
    """Its mean over all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def broadcast_state(model: nn.Module) -> None:
    """Give every process the parameters and buffers of process 0."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def any_of(*flags: bool, device: torch.device) -> list[bool]:
    """For each of the flags, whether it is set in any process."""
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def on_first(work: Callable[[], T]) -> T:
    """What `work` returns in process 0, which alone does it. If it fails there, it fails in all,
    so that none waits for one that is gone."""
    if world_size() == 1:
        return work()
    result: Any = None
    if rank() == 0:
        try:
            result = work()
        except VisionkitError as error:
            result = error
        except Exception as error:
            result = VisionkitError(f"process 0: {type(error).__name__}: {error}")
            result.__cause__ = error
    result = gather(result)[0]
    if isinstance(result, VisionkitError):
        raise result
    return result


def gather(value: Any) -> list[Any]:
    """That picklable value of every process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
