"""Load batches in worker processes, and describe a worker that fails to return one.

torch only says that a worker exited. Here each worker records the image that it loads in memory
shared with the training process, and an alarm ends a worker that hangs.
"""

from __future__ import annotations

import ast
import errno
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from visionkit.errors import (
    SHARED_MEMORY,
    ConfigError,
    DataError,
    ResourceError,
    VisionkitError,
    shortage,
)
from visionkit.runs.signals import end_in, outlive_first_signal
from visionkit.types import Batch, Dataset, Target

# What a script asks for to know which module or process it is
GUARDS = {"__name__", "__main__", "parent_process", "current_process"}
HANG_SECONDS = 300  # for one image, or for making a batch of loaded images
ALIGNMENT = 64  # bytes; each tensor of a packed batch begins at a multiple


class Ticket(NamedTuple):
    """An image of a batch: its index, its position in the stream, and the number of the batch."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    position: int
    step: int = 0


Item: TypeAlias = tuple[Tensor, Target]

_NOTHING_YET = -(2**62)
_FEWER = "use fewer data.workers or smaller batches"
# Numbers of the errors of the system when a semaphore, which is in /dev/shm, cannot be made.
_NO_SEMAPHORE = {errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSYS}


def cores() -> int:
    """The number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def refuse_unguarded(workers: int) -> None:
    """Raise ConfigError if loader workers would run the user's script again, which trains again.

    Under the start methods spawn and forkserver a worker imports the main module: a script that
    calls visionkit outside of `if __name__ == "__main__":` calls it in each worker too. A script
    that may have another guard is not refused here; in a worker, each call is.
    """
    if not workers or (method := multiprocessing.get_start_method()) == "fork":
        return
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", "")
    # Workers do not import the `__main__.py` of a package or folder.
    script = None if name.split(".")[-1] == "__main__" else getattr(main, "__file__", None)
    again = getattr(multiprocessing.current_process(), "_inheriting", False)  # in such a worker
    line = None if again or script is None else _unguarded_line(script)
    if again or line:
        place = "the script" if line is None else f"{script}, line {line},"
        raise ConfigError(
            f'{place} calls visionkit outside of `if __name__ == "__main__":`. Each loader worker '
            f"(start method {method}) would run the script again: put the call under that line, "
            "or set data.workers=0"
        )


def _unguarded_line(script: str) -> int | None:
    """The line of the main module that is being run, unless a statement up to there may ask which
    module or process this is. Later ones cannot keep a worker from reaching the line."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (
        frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__"
    ):
        frame = frame.f_back
    if frame is None or os.path.realpath(frame.f_code.co_filename) != os.path.realpath(script):
        return None
    try:
        tree = ast.parse(Path(script).read_bytes())
    except (OSError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called == "getLogger" and [getattr(a, "id", "") for a in node.args] == ["__name__"]:
                node.args = []  # a logger has the name of its module
    line = frame.f_lineno
    for statement in tree.body:
        nodes = list(ast.walk(statement))
        begun = any(getattr(node, "lineno", line + 1) <= line for node in nodes)
        words = {getattr(n, key, None) for n in nodes for key in ("id", "attr", "value", "name")}
        if begun and words & GUARDS:
            return None
    return line


def load_batches(
    items: Any,
    tickets: Iterable[list[Ticket]],
    collate: Callable[[list[Item]], Batch],
    *,
    workers: int,
    name: str,
) -> Generator[Batch, None, None]:
    """The batches of those tickets, in order. No worker is left when the generator has ended.
    `items[ticket]` is an image with its target; `items.dataset` is the dataset that they come from.

    Raises DataError, which names the image where that is known, if a worker dies, hangs or fails;
    ResourceError if the system lacks something. `name` of the dataset is for errors.
    """
    others = {*active_children()}
    try:
        status = WorkerStatus(workers)
        loader = DataLoader(
            _Batches(items, collate, status),
            sampler=tickets,
            batch_size=None,  # the dataset makes batches itself
            num_workers=workers,
            worker_init_fn=status.register,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or it would draw from the one that the model uses
        )
        with _sigchld_handler_kept():
            iterator = iter(loader)
    except Exception as error:  # pickling of a custom dataset raises anything
        _kill({*active_children()} - others)  # the workers that have started
        _abandon_iterator(error)
        hint = _resource_hint(error)
        if isinstance(error, OSError) and error.errno in _NO_SEMAPHORE:
            hint = f"{error.strerror}: {SHARED_MEMORY}"
        text = f"{name}: loader workers cannot be started: {hint or f'{error}: use data.workers=0'}"
        found = ResourceError(text) if hint else DataError(text)
        raise found from error.with_traceback(None)  # it holds the workers' connections
    processes = iterator._workers if workers else []  # type: ignore[attr-defined]  # torch has no public name for them
    try:
        while (batch := _next(iterator, processes, status, items.dataset, name)) is not None:
            yield batch
    finally:
        del iterator  # which asks its workers to end, and waits for some seconds
        _kill(processes)


@contextmanager
def _sigchld_handler_kept() -> Iterator[None]:
    """Undo what torch sets when it starts workers: a handler that raises when one of them dies, in
    the middle of anything, such as a save. Waiting for the next batch notices it too, within 5 s.
    """
    here = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if here else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _next(
    iterator: Iterator[Any],
    processes: Sequence[BaseProcess],
    status: WorkerStatus,
    dataset: Dataset,
    name: str,
) -> Batch | None:
    """The next batch; None at the end."""
    try:
        batch = next(iterator, None)
        if isinstance(batch, PackedBatch):
            return batch.unpack()
    except VisionkitError:
        raise
    except Exception as error:
        died, hint = _describe_dead_worker(processes, status, dataset), _resource_hint(error)
        if not (died or hint):
            raise
        _kill(processes)  # there is no need to wait for the others
        found = DataError(f"{name}: {died}") if died else ResourceError(f"{name}: {hint}")
        raise found from error.with_traceback(None)  # it holds the iterator
    if isinstance(batch, VisionkitError):
        _kill(processes)
        raise batch
    return batch


def image_name(dataset: Dataset, index: int) -> str:
    """The index, file and id of an image, as far as they are known, for errors."""
    known = []
    with suppress(Exception):  # a fault here must not hide the one to report
        known.append(str(dataset.image_path(index)))  # type: ignore[attr-defined]  # optional
    with suppress(Exception):
        known.append(f"id {dataset.image_ids[index]}")  # type: ignore[attr-defined]  # optional
    return f"image {index}" + (f" ({', '.join(known)})" if known else "")


class WorkerStatus:
    """The process id of each worker, and the image that it loads: `~index` after the batch."""

    def __init__(self, workers: int) -> None:
        self.table = torch.full((workers, 2), _NOTHING_YET)
        if workers:
            self.table.share_memory_()
        self.row: Any = None  # in a worker, its row of the table

    def register(self, worker: int) -> None:
        """Called in each worker when it starts."""
        outlive_first_signal()
        self.row = self.table[worker].numpy()
        self.row[0] = os.getpid()

    def loading(self, index: int) -> None:
        """The worker begins with that image; an alarm ends it if it hangs."""
        self.row[1] = index
        end_in(HANG_SECONDS)

    def finished(self) -> None:
        """The worker has made its batch."""
        self.row[1] = ~self.row[1]
        end_in(0)


class _Batches(TorchDataset):
    """The batch of a list of tickets, or the error of the first item that fails, as a value: torch
    would wrap an exception. In a worker the batch is packed."""

    def __init__(self, items: Any, collate: Any, status: WorkerStatus) -> None:
        self.items, self.collate, self.status = items, collate, status

    def __getitem__(self, tickets: list[Ticket]) -> Batch | PackedBatch | VisionkitError:
        in_worker = self.status.row is not None
        try:
            items = []
            for ticket in tickets:
                if in_worker:
                    self.status.loading(ticket[0])
                items.append(self.items[ticket])
            batch = self.collate(items)
        except VisionkitError as error:
            batch = error
        if not in_worker:
            return batch
        sent = self._packed(batch, tickets)
        self.status.finished()
        return sent

    def _packed(
        self, batch: Batch | VisionkitError, tickets: list[Ticket]
    ) -> PackedBatch | VisionkitError:
        if isinstance(batch, VisionkitError):
            return batch if _can_be_sent(batch) else DataError(str(batch))
        try:
            return pack(batch)
        except Exception as error:  # values of custom targets may have methods that fail
            for (index, *_), target in zip(tickets, batch.targets, strict=True):
                for key, value in target.items():
                    if not isinstance(value, Tensor) and not _can_be_sent(value):
                        return DataError(
                            f"{image_name(self.items.dataset, index)}: its {key!r} is of type "
                            f"{type(value).__name__}, which a loader worker cannot send: make it a "
                            "tensor, or use data.workers=0"
                        )
            if hint := _resource_hint(error):
                return ResourceError(hint)
            return DataError(f"a worker cannot send its batch: {error}")


class TensorSpec(NamedTuple):
    """The place of a tensor in the block of a packed batch, in bytes, and its layout."""

    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, block: Tensor) -> Tensor:
        begin = self.begin // self.dtype.itemsize
        return block.view(self.dtype).as_strided(self.shape, self.stride, begin)


@dataclass
class PackedBatch:
    """A batch as a worker sends it: pickled, with all tensors in one block of shared memory.

    Were torch to pickle it, an error there would lose the batch without a word, and the training
    process would wait for it forever.
    """

    content: bytes  # the block (bytes,) uint8, the images, the targets; specs for tensors

    def unpack(self, pin: bool = False) -> Batch:
        """The batch; its tensors are views of the block."""
        block, images, targets = ForkingPickler.loads(self.content)
        if pin:
            block = block.pin_memory()
        return Batch(
            images.view(block),
            [
                {k: v.view(block) if isinstance(v, TensorSpec) else v for k, v in t.items()}  # type: ignore[misc]  # keys are those of a Target
                for t in targets
            ],
        )

    def pin_memory(self) -> Batch:
        """Called by torch's loader where there is a GPU."""
        return self.unpack(pin=True)


def pack(batch: Batch) -> PackedBatch:
    """Copy the tensors of a batch into one block."""
    values = [value for target in batch.targets for value in target.values()]
    tensors = [batch.images, *(value for value in values if isinstance(value, Tensor))]
    specs, size = [], 0
    for tensor in tensors:
        stride = torch.empty_like(tensor, device="meta").stride()  # dense, in the same order
        specs.append(TensorSpec(size, tensor.dtype, tuple(tensor.shape), stride))
        length = math.prod(tensor.shape) * tensor.element_size()
        size += -(-length // ALIGNMENT) * ALIGNMENT
    block = torch.empty(size, dtype=torch.uint8).share_memory_()
    for spec, tensor in zip(specs, tensors, strict=True):
        spec.view(block).copy_(tensor)
    images, *rest = specs
    places = iter(rest)
    targets = [
        {key: next(places) if isinstance(value, Tensor) else value for key, value in t.items()}
        for t in batch.targets
    ]
    return PackedBatch(bytes(ForkingPickler.dumps((block, images, targets))))


def _can_be_sent(value: Any) -> bool:
    try:
        ForkingPickler.loads(ForkingPickler.dumps(value))
    except Exception:  # the object's own methods are called, which raise anything
        return False
    return True


def _describe_dead_worker(
    processes: Sequence[BaseProcess], status: WorkerStatus, dataset: Dataset
) -> str | None:
    """What happened to the first dead worker, and at which image."""
    if processes:
        wait([p.sentinel for p in processes], timeout=1)  # its connections end before it does
    dead = next((p for p in processes if p.exitcode is not None), None)
    if dead is None:
        return None
    at = dict(status.table.tolist()).get(dead.pid, _NOTHING_YET)
    if at == _NOTHING_YET:
        place = "before its first image"
        if multiprocessing.get_start_method() != "fork":
            place += " (it imports the script first; its own error is above)"
    else:
        place = f"{'at' if at >= 0 else 'after'} {image_name(dataset, max(at, ~at))}"
    return f"a loader worker {place}: {_cause(dead.exitcode or 0)}"


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    names = {number.value: number.name for number in signal.Signals}
    name = names.get(-exit_code, f"signal {-exit_code}")
    native = (
        f"ended by {name}, which native code raises on data that it cannot handle: try that image "
        "alone, replace or remove it"
    )
    causes = dict.fromkeys(("SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL"), native) | {
        "SIGALRM": f"made no progress for {HANG_SECONDS} s: storage that does not answer, or code "
        "that hangs; data.workers=0 shows where",
        "SIGKILL": f"was killed (SIGKILL), probably because the system ran out of memory: {_FEWER}",
        "SIGBUS": f"bus error (SIGBUS): {SHARED_MEMORY}",
    }
    return causes.get(name, f"ended by {name}")


def _resource_hint(error: BaseException) -> str | None:
    """The text of an error of torch that means the system lacks something, and what to do."""
    if isinstance(error, (EOFError, ConnectionError)):
        error = OSError(f"a batch was lost between a worker and this process ({error!r})")
    text = (str(error).strip().splitlines() or [""])[-1]  # the others may be a worker's traceback
    return f"{text or type(error).__name__}: {hint}" if (hint := shortage(error)) else None


def _abandon_iterator(error: Exception) -> None:
    """Keep torch from shutting down workers that never started, which prints a traceback."""
    for frame, _ in walk_tb(error.__traceback__):
        begun: Any = frame.f_locals.get("self")
        if isinstance(begun, _BaseDataLoaderIter):
            begun._shutdown = True  # type: ignore[attr-defined]  # of the one with workers


def _kill(processes: Collection[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
