"""The torch.distributed calls that training and evaluation need, and the losses of a batch whose
images are spread over several ranks.

Every function also works in a single process, where it returns its argument. Ranks are started by
`torchrun`; `launch` checks its environment.

A head returns sums and counts of its own images. `loss_values` adds the counts of all ranks and
divides, so that the mean of the ranks' gradients is the gradient of the whole batch. A loss that
needs the vectors or sums of all ranks gathers them with `all_gather_with_grad`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.distributed import launch
from visionkit.errors import ConfigError, LostRank, VisionkitError
from visionkit.types import Batch, Loss

T = TypeVar("T")
store: dist.Store | None = None  # for messages; outlives the ranks where torchrun keeps it
MARGIN = 2.0  # seconds that the time limits of torch's own calls have to end them first
_gathers = False  # whether `across_ranks` is open


def setup() -> None:
    """Join the ranks that torchrun started; nothing to do for a single process.

    A collective call fails when a rank did not join it for VISIONKIT_TIMEOUT seconds (600).
    Raises ConfigError when the environment announces ranks but not how to find them.
    """
    global store
    if dist.is_initialized() or launch.world_size() == 1:
        return
    launch.check()
    if torch.cuda.is_available():
        torch.cuda.set_device(launch.local_rank())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store = _in_time(connect)
        dist.init_process_group(
            backend,
            store=store,
            rank=launch.rank(),
            world_size=launch.world_size(),
            timeout=launch.timeout(),
        )
    except RuntimeError as error:
        raise launch.connection_error(error) from error


def _in_time(work: Callable[[], T]) -> T:
    """The result of `work`, or RuntimeError if it takes longer than all of its own time limits:
    torch waits without one for an answer of the program that listens on the master port."""
    seconds = launch.timeout().total_seconds()
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="connect", daemon=True).start()
    try:
        return result.result(seconds + MARGIN)
    except TimeoutError:
        raise RuntimeError(f"no answer for {seconds:.0f} seconds (VISIONKIT_TIMEOUT)") from None


def connect() -> dist.Store:
    """A store that only the ranks of this attempt share.

    With --max-restarts torchrun keeps its store, where a rank would find the addresses of dead
    ranks and wait for them, and the agents of several machines may count restarts differently. So
    rank 0 invents a name for the attempt and sends it to the ranks that ask with a new token.
    """
    shared, rank, world_size = next(dist.rendezvous("env://", timeout=launch.timeout()))
    if rank == 0:
        return dist.PrefixStore(_name_attempt(shared, world_size), shared)
    token = uuid.uuid4().hex
    shared.set(f"visionkit/token/{rank}", token)
    name = shared.get(f"visionkit/attempt/{token}").decode()
    shared.set(f"{name}/joined/{rank}", "")
    return dist.PrefixStore(name, shared)


def _name_attempt(shared: dist.Store, world_size: int) -> str:
    """Send a name to each rank, also where its token of an earlier attempt was found first."""
    name = f"visionkit/{uuid.uuid4().hex}"
    missing = set(range(1, world_size))
    until = time.monotonic() + launch.timeout().total_seconds()
    while missing:
        for key in (f"visionkit/token/{rank}" for rank in missing):
            if shared.check([key]):
                shared.set(f"visionkit/attempt/{shared.get(key).decode()}", name)
        missing = {rank for rank in missing if not shared.check([f"{name}/joined/{rank}"])}
        if missing and time.monotonic() > until:
            raise ConfigError(
                f"rank {', '.join(map(str, sorted(missing)))} of {world_size} did not connect "
                f"within {launch.timeout().total_seconds():.0f} seconds; start as many processes "
                "as WORLD_SIZE says"
            )
        time.sleep(0.01)
    return name


def teardown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def wrap_errors() -> Iterator[None]:
    """Around each collective call: LostRank when another rank does not take part in it."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL share no type for it
        raise LostRank(str(error)) from error


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Replace the tensor by its sum over all ranks, in place."""
    if world_size() > 1:
        with wrap_errors():
            dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Replace the tensor by its mean over all ranks, in place."""
    return tensor if world_size() == 1 else all_reduce_sum(tensor).div_(world_size())


def all_reduce_max(numbers: Sequence[int]) -> list[int]:
    """For each of the numbers, the largest of any rank."""
    votes = torch.tensor(numbers)
    if world_size() > 1:
        with wrap_errors():
            dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return votes.tolist()


def sync_gradients(parameters: Iterable[nn.Parameter], others: Sequence[Tensor] = ()) -> None:
    """Replace each gradient, and each of the `others`, by its mean over all ranks, in one flat
    all-reduce.

    Called once after all backwards of a step. A parameter that no loss of any rank reached
    keeps no gradient, as in a single process. (Wrapping the model in DistributedDataParallel
    would synchronize at every source's backward, and with heads that a source does not feed
    the gradients of the ranks silently drift apart.)
    """
    if world_size() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    reached = torch.tensor([p.grad is not None for p in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    parts = [*gradients, reached.to(gradients[0]), *others]
    flat = all_reduce_mean(torch.cat([part.flatten() for part in parts]))
    means = flat.split([part.numel() for part in parts])
    for part, mean in zip(parts, means, strict=True):
        part.copy_(mean.view(part.shape))
    shares = means[len(gradients)].tolist() if not reached.all() else [1.0] * len(gradients)
    for parameter, gradient, share in zip(parameters, gradients, shares, strict=True):
        parameter.grad = gradient if share else None


def broadcast_state(model: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            with wrap_errors():
                dist.broadcast(tensor, src=0)


def all_gather_object(value: Any) -> list[Any]:
    """That picklable value of every rank, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with wrap_errors():
        dist.all_gather_object(values, value)
    return values


def on_main_rank(work: Callable[[], T]) -> T:
    """Call `work` in rank 0 alone and return its result everywhere. If it fails there, it fails in
    all ranks, so that none waits for one that is gone."""
    if world_size() == 1:
        return work()
    result: Any = None
    if rank() == 0:
        try:
            result = work()
        except VisionkitError as error:
            result = error
        except Exception as error:
            result = VisionkitError(f"rank 0: {launch.describe(error)}")
            result.__cause__ = error
    result = all_gather_object(result)[0]
    if isinstance(result, VisionkitError):
        raise result
    return result


def assert_same_on_all_ranks(
    facts: Mapping[str, Any], advice: str = "give all the same config, code and data"
) -> None:
    """Raise ConfigError in all ranks, with the difference and the advice, unless all have the same
    facts, such as the number of images of a dataset."""
    first, *others = all_gather_object(dict(facts))
    for other, theirs in enumerate(others, start=1):
        for name in {**first, **theirs}:
            if first.get(name) != theirs.get(name):
                raise ConfigError(
                    f"the ranks do not train the same: rank {other} has {name} {theirs.get(name)}, "
                    f"rank 0 has {first.get(name)}; {advice}"
                )


@contextmanager
def across_ranks() -> Iterator[None]:
    """Let `all_gather_with_grad` gather. The training loop opens it around the losses of a step;
    elsewhere, as in a validation, each rank computes the losses of its own batch."""
    global _gathers
    _gathers = world_size() > 1
    try:
        yield
    finally:
        _gathers = False


def loss_values(losses: Mapping[str, Mapping[str, Loss]]) -> dict[str, dict[str, Tensor]]:
    """The value of each term by head and by name: sum / (count of all ranks / number of ranks).

    One exchange for all terms. All ranks must call it with the same terms: see `check_terms`.
    """
    counts = [loss.count.float() for terms in losses.values() for loss in terms.values()]
    total = iter(all_reduce_sum(torch.stack(counts)).unbind())
    ranks = world_size()
    return {
        head: {
            name: loss.sum / (next(total).clamp(min=loss.min_count) / ranks)
            for name, loss in terms.items()
        }
        for head, terms in losses.items()
    }


def check_terms(losses: Mapping[str, Mapping[str, Loss]]) -> None:
    """Raise ConfigError in all ranks unless each head has the same terms in the same order on all.

    For the first step alone: it costs an exchange of objects.
    """
    assert_same_on_all_ranks(
        {f"heads.{head}: loss() with the terms": [*terms] for head, terms in losses.items()},
        "a head must return all its terms for every batch, a count of 0 where nothing is labeled",
    )


def all_gather_with_grad(rows: Tensor) -> Tensor:
    """The rows (N, ...) of all ranks, in the order of the ranks; N may differ between them.

    Only the own rows have a gradient. It counts `world_size` times, because the ranks' gradients
    are averaged. Outside `across_ranks` the result is `rows` itself. Inside, every rank must call
    it equally often, also a rank without rows.
    """
    if not _gathers:
        return rows
    world, own = world_size(), rank()
    counts = torch.zeros(world, dtype=torch.int64, device=rows.device)
    counts[own] = len(rows)
    lengths = all_reduce_sum(counts).tolist()
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in lengths]
    with wrap_errors():
        dist.all_gather(gathered, padded)
    parts = [part[:length] for part, length in zip(gathered, lengths, strict=True)]
    if rows.is_floating_point():
        scaled = rows * world
        parts[own] = scaled + (parts[own] - scaled).detach()  # the value of rows
    return torch.cat(parts)


def pad_to_global_max(batch: Batch) -> Batch:
    """The batch with its images padded to the largest height and width of all ranks.

    As in a single process: batch norms and convolutions also see the zeros beyond an image.
    """
    if world_size() == 1:
        return batch
    height, width = batch.images.shape[-2:]
    most = all_reduce_max([height, width])
    padding = (0, most[1] - width, 0, most[0] - height)
    return Batch(F.pad(batch.images, padding), batch.targets) if any(padding) else batch
