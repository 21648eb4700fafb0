"""The few torch.distributed calls that training and evaluation need.

Everything works unchanged in a single process. Several processes are started by `torchrun`. What
they find in its environment is checked in `launch`; how they end together is in `peers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from visionkit.distributed import launch
from visionkit.distributed.launch import meet
from visionkit.errors import ConfigError, LostProcess, VisionkitError

T = TypeVar("T")
board: dist.Store | None = None  # for messages; outlives the processes where torchrun keeps it


def setup() -> None:
    """Join the processes that torchrun started; nothing to do for a single one.

    A collective call fails when a process did not join it for VISIONKIT_TIMEOUT seconds (600).
    ConfigError when the environment says of several processes but not how to find them.
    """
    global board
    if dist.is_initialized() or launch.world_size() == 1:
        return
    launch.check()
    if torch.cuda.is_available():
        torch.cuda.set_device(launch.local_rank())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        board = meet()
        place = {"rank": launch.rank(), "world_size": launch.world_size()}
        dist.init_process_group(backend, store=board, timeout=launch.timeout(), **place)
    except RuntimeError as error:
        raise ConfigError(launch.unreachable(error)) from error


def teardown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def wrap_errors() -> Iterator[None]:
    """Around each collective call: LostProcess when another process does not take part in it."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no type for it in common
        raise LostProcess(str(error)) from error


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Its sum over all processes, in place."""
    if world_size() > 1:
        with wrap_errors():
            dist.all_reduce(tensor)
    return tensor


def average(tensor: Tensor) -> Tensor:
    """Its mean over all processes, in place."""
    return tensor if world_size() == 1 else all_reduce_sum(tensor).div_(world_size())


def sync_gradients(parameters: Iterable[nn.Parameter], others: Sequence[Tensor] = ()) -> None:
    """Replace each gradient, and each of the `others`, by its mean over all processes, in one flat
    all-reduce.

    Called once after all backwards of a step. A parameter that no loss of any process reached
    keeps no gradient, as in a single process. (Wrapping the model in DistributedDataParallel
    would synchronize at every source's backward, and with heads that a source does not feed
    the processes' gradients silently drift apart.)
    """
    if world_size() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    reached = torch.tensor([p.grad is not None for p in parameters])
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters]
    parts = [*gradients, reached.to(gradients[0]), *others]
    flat = average(torch.cat([part.flatten() for part in parts]))
    means = [mean.view(p.shape) for p, mean in zip(parts, _split(flat, parts), strict=True)]
    for part, mean in zip(parts, means, strict=True):
        part.copy_(mean)
    if not reached.all():
        for parameter, share in zip(parameters, means[len(gradients)].tolist(), strict=True):
            parameter.grad = parameter.grad if share else None


def _split(flat: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    return flat.split([part.numel() for part in parts])


def all_reduce_max(numbers: Sequence[int]) -> list[int]:
    """For each of the numbers, the largest that any process has."""
    votes = torch.tensor(numbers)
    if world_size() > 1:
        with wrap_errors():
            dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return votes.tolist()


def broadcast_state(model: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            with wrap_errors():
                dist.broadcast(tensor, src=0)


def any_rank(*flags: bool, device: torch.device) -> list[bool]:
    """For each of the flags, whether it is set in any process."""
    if world_size() == 1:
        return list(flags)
    votes = all_reduce_sum(torch.tensor(flags, dtype=torch.int32, device=device))
    return [bool(vote) for vote in votes.tolist()]


def on_main_rank(work: Callable[[], T]) -> T:
    """What `work` returns in rank 0, which alone does it. If it fails there, it fails in all,
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
            result = VisionkitError(f"rank 0: {type(error).__name__}: {error}")
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
    with wrap_errors():
        dist.all_gather_object(values, value)
    return values


def assert_same_on_all_ranks(facts: Mapping[str, Any]) -> None:
    """Raise ConfigError in all processes if not all came with the same facts, such as the number
    of images of a data set; say which."""
    of_all = gather(dict(facts))
    for other, theirs in enumerate(of_all):
        for name in {**of_all[0], **theirs}:
            first, second = of_all[0].get(name), theirs.get(name)
            if first != second:
                raise ConfigError(
                    f"the processes do not train the same: rank {other} has {name} {second}, "
                    f"rank 0 has {first}; give all the same config, code and data"
                )
