"""Batches from loader workers, and what became of a worker that gives none.

torch says only that a worker exited. Here each worker leaves a note of the image that it is at,
in memory shared with the training process, and one that hangs is ended by its own alarm clock.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from traceback import walk_tb
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from visionkit.errors import DataError, ResourceError, VisionkitError
from visionkit.runs.signals import end_in, outlive_first_signal
from visionkit.types import Batch, Dataset, Target

# --- A batch on its way from a loader worker: all its tensors in one block of shared memory.

ALIGNMENT = 64  # bytes; every tensor begins at a multiple


class TensorSpec(NamedTuple):
    """The place of one tensor in the block: where it begins, in bytes, and what it is."""

    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class PackedBatch:
    """`block` holds what the slots in `images` and `targets` describe."""

    block: Tensor  # (bytes,) uint8
    images: TensorSpec
    targets: list[dict[str, Any]]  # as in a Batch, but slots for tensors

    def pin_memory(self) -> PackedBatch:
        return PackedBatch(self.block.pin_memory(), self.images, self.targets)

    def unpack(self) -> Batch:
        """The batch again; its tensors are views of the block."""
        views = _Views(self.block)
        targets: list[Target] = [
            {k: views[v] if isinstance(v, TensorSpec) else v for k, v in target.items()}  # type: ignore[misc]
            for target in self.targets
        ]
        return Batch(views[self.images], targets)


def pack(batch: Batch) -> PackedBatch:
    """Copy the tensors of a batch into one block."""
    values = [value for target in batch.targets for value in target.values()]
    slots, size = _layout([batch.images, *(v for v in values if isinstance(v, Tensor))])
    block = torch.empty(size, dtype=torch.uint8).share_memory_()
    views, places = _Views(block), iter(slots)

    def put(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        slot = next(places)
        views[slot].copy_(value)
        return slot

    images = put(batch.images)
    return PackedBatch(block, images, [{k: put(v) for k, v in t.items()} for t in batch.targets])


def _layout(tensors: Iterable[Tensor]) -> tuple[list[TensorSpec], int]:
    """A slot for each tensor, one after another, and the size of the block in bytes."""
    slots, end = [], 0
    for tensor in tensors:
        stride = torch.empty_like(tensor, device="meta").stride()  # dense, in the same order
        slots.append(TensorSpec(end, tensor.dtype, tuple(tensor.shape), stride))
        size = math.prod(tensor.shape) * tensor.element_size()
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return slots, end


class _Views:
    """The tensors in a block, by slot."""

    def __init__(self, block: Tensor) -> None:
        self.block = block
        self._as: dict[torch.dtype, Tensor] = {}

    def __getitem__(self, slot: TensorSpec) -> Tensor:
        if slot.dtype not in self._as:
            self._as[slot.dtype] = self.block.view(slot.dtype)
        begin = slot.begin // slot.dtype.itemsize
        return self._as[slot.dtype].as_strided(slot.shape, slot.stride, begin)


HANG_SECONDS = 300  # for one image, or for making a batch of them

Ticket: TypeAlias = tuple[int, int]  # an image's index, and its position in the stream
Item: TypeAlias = Any  # what a view gives for a ticket: an image and its target, or an error
Collate: TypeAlias = Callable[[list[Item]], Batch | VisionkitError]

_NOTHING_YET = -(2**62)
_FEWER = "use fewer data.workers or smaller batches"
_NO_ROOM = (
    "the shared memory that batches travel in (/dev/shm) is full: make it larger (`docker run "
    "--shm-size=8g`), or use fewer data.workers or smaller batches"
)


def load_batches(
    view: TorchDataset,
    tickets: Iterable[list[Ticket]],
    collate: Collate,
    *,
    workers: int,
    name: str,
) -> Generator[Batch, None, None]:
    """The batches of those tickets, in their order. DataError naming the image, where it can be
    known, if a worker dies, hangs or fails, ResourceError if the system has no more of something;
    no worker is left when the generator has ended.

    name: of the data set, for errors. `view.dataset` is the data set itself.
    """
    notes = WorkerStatus(workers)
    loader = DataLoader(
        _TrackedDataset(view, notes) if workers else view,  # type: ignore[arg-type]
        batch_sampler=tickets,
        collate_fn=_pack_collate(collate, notes, view.dataset) if workers else collate,
        num_workers=workers,
        worker_init_fn=notes.begin,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw from the one that the model uses
    )
    others = {*active_children()}
    try:
        with _death_interrupts_nothing():
            iterator = iter(loader)
    except Exception as error:  # what is not sent but inherited may be anything
        _kill({*active_children()} - others)  # the first of several workers are there already
        _abandon_iterator(error)
        shortage = _resource_hint(error)
        what = shortage or f"{error}: use data.workers=0"
        kind = ResourceError if shortage else DataError
        told = kind(f"{name}: no loader workers can be started: {what}")
        raise told from error.with_traceback(None)  # it holds their connections
    processes = iterator._workers if workers else []  # type: ignore[attr-defined]
    try:
        while (batch := _next(iterator, processes, notes, view, name)) is not None:
            yield batch
    finally:
        del iterator  # which asks its workers to end, and waits for some seconds
        _kill(processes)


@contextmanager
def _death_interrupts_nothing() -> Iterator[None]:
    """Undo what torch sets when it starts workers: a handler that raises when one of them dies, in
    the middle of anything, such as a save. Waiting for the next batch notices it too, within 5 s.
    """
    here = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if here else None
    yield
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


def _next(
    iterator: Iterator[Any],
    processes: Sequence[BaseProcess],
    notes: WorkerStatus,
    view: Any,
    name: str,
) -> Batch | None:
    """The next batch; None at the end."""
    try:
        batch = next(iterator, None)
        if isinstance(batch, PickledBatch):
            batch = batch.open()
    except VisionkitError:
        raise
    except Exception as error:
        died, shortage = (
            _describe_dead_worker(processes, notes, view.dataset),
            _resource_hint(error),
        )
        if not (died or shortage):
            raise
        _kill(processes)  # the others need not be waited for
        told = DataError(f"{name}: {died}") if died else ResourceError(f"{name}: {shortage}")
        raise told from error.with_traceback(None)  # it holds the iterator
    if isinstance(batch, VisionkitError):
        _kill(processes)
        raise batch
    return batch.unpack() if isinstance(batch, PackedBatch) else batch


def image_name(dataset: Dataset, index: int) -> str:
    """For errors: its index, its file and its id, as far as they are known."""
    known = []
    with suppress(Exception):  # a fault here must not hide the one that is to be told
        known.append(str(dataset.image_path(index)))  # type: ignore[attr-defined]
    with suppress(Exception):
        known.append(f"id {dataset.image_ids[index]}")  # type: ignore[attr-defined]
    return f"image {index}" + (f" ({', '.join(known)})" if known else "")


class WorkerStatus:
    """For each worker its process id and the image that it is at: `~index` once it is ready."""

    def __init__(self, workers: int) -> None:
        self.table = torch.full((workers, 2), _NOTHING_YET)
        if workers:
            self.table.share_memory_()
        self.batch: list[int] = []  # in a worker, the images of the batch that it is making

    def begin(self, worker: int) -> None:
        """Called in each worker when it starts."""
        outlive_first_signal()
        self._row = self.table[worker].numpy()
        self._row[0] = os.getpid()

    def at(self, index: int) -> None:
        self._row[1] = index
        self.batch.append(index)
        end_in(HANG_SECONDS)

    def ready(self) -> None:
        """The batch is made."""
        self._row[1] = ~self._row[1]
        self.batch.clear()
        end_in(0)

    def of(self, process: BaseProcess) -> int:
        """The note that this worker has left."""
        return next((at for pid, at in self.table.tolist() if pid == process.pid), _NOTHING_YET)


class _TrackedDataset(TorchDataset):
    """A view as a worker reads it."""

    def __init__(self, view: Any, notes: WorkerStatus) -> None:
        self.view, self.notes = view, notes

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, ticket: Ticket) -> Item:
        self.notes.at(ticket[0])
        return self.view[ticket]


class _pack_collate:
    """Makes the batch in the worker, one block of memory of it, and closes the parcel."""

    def __init__(self, collate: Collate, notes: WorkerStatus, dataset: Dataset) -> None:
        self.collate, self.notes, self.dataset = collate, notes, dataset

    def __call__(self, items: list[Item]) -> PickledBatch | VisionkitError:
        batch = self.collate(items)
        if isinstance(batch, VisionkitError):
            sealed = batch if _can_be_sent(batch) else DataError(str(batch))
        else:
            sealed = self._sealed(batch)
        self.notes.ready()
        return sealed

    def _sealed(self, batch: Batch) -> PickledBatch | VisionkitError:
        try:
            return PickledBatch(bytes(ForkingPickler.dumps(pack(batch))))
        except Exception as error:  # of a value's own methods too
            for index, target in zip(self.notes.batch, batch.targets, strict=True):
                for key, value in target.items():
                    if not isinstance(value, torch.Tensor) and not _can_be_sent(value):
                        return DataError(
                            f"{image_name(self.dataset, index)}: its {key!r} is a "
                            f"{type(value).__name__}, which cannot be sent from a loader worker: "
                            "make it a tensor, or use data.workers=0"
                        )
            if shortage := _resource_hint(error):
                return ResourceError(shortage)
            return DataError(f"a batch cannot be sent from its worker: {error}")


class PickledBatch(NamedTuple):
    """A parcel in the form in which processes send it. If torch were left to it, a fault there
    would lose the batch in silence: the training process would wait for ever."""

    content: bytes

    def open(self) -> PackedBatch:
        return ForkingPickler.loads(self.content)

    def pin_memory(self) -> PackedBatch:
        return self.open().pin_memory()


def _can_be_sent(value: Any) -> bool:
    try:
        ForkingPickler.loads(ForkingPickler.dumps(value))
    except Exception:  # an object's own methods are called, which raise anything
        return False
    return True


def _describe_dead_worker(
    processes: Sequence[BaseProcess], notes: WorkerStatus, dataset: Dataset
) -> str | None:
    """What became of the first worker that is dead, and over which image."""
    if processes:
        wait([p.sentinel for p in processes], timeout=1)  # its connections end before it does
    dead = next((p for p in processes if p.exitcode is not None), None)
    if dead is None:
        return None
    at = notes.of(dead)
    if at == _NOTHING_YET:
        place = "before its first image"
    else:
        place = f"{'at' if at >= 0 else 'after'} {image_name(dataset, at if at >= 0 else ~at)}"
    return f"a loader worker {place}: {_cause(dead.exitcode or 0)}"


def _cause(exit_code: int) -> str:
    names = {number.value: number.name for number in signal.Signals}
    name = names.get(-exit_code, f"signal {-exit_code}")
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    if name == "SIGALRM":
        return (
            f"did not get on for {HANG_SECONDS} s: storage that does not answer, or code that "
            "hangs; data.workers=0 shows where"
        )
    if name == "SIGKILL":
        return f"was killed (SIGKILL), as systems do that run out of memory: {_FEWER}"
    if name == "SIGBUS":
        return f"bus error (SIGBUS): {_NO_ROOM}"
    if name in ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL"):
        return (
            f"ended by {name}, which native code raises on data that it cannot bear: try that "
            "image alone, replace or remove it"
        )
    return f"ended by {name}"


def _resource_hint(error: BaseException) -> str | None:
    """What torch says when the system has no more of something, and what to do."""
    text = (str(error).strip().splitlines() or [""])[-1]  # the others may be a worker's traceback
    remedy = None
    if isinstance(error, (EOFError, ConnectionError)):
        text = f"a batch was lost between a worker and here ({error!r})"
    if "Too many open files" in text or "ancdata" in text or "was lost" in text:
        remedy = "allow more open files with `ulimit -n 65536`, or use fewer data.workers"
    elif "shared memory" in text or "</torch_" in text:
        remedy = _NO_ROOM
    elif "Cannot allocate memory" in text:
        remedy = _FEWER
    return remedy and f"{text}: {remedy}"


def _abandon_iterator(error: Exception) -> None:
    """Or torch ends what has not begun, with a traceback of its own."""
    for frame, _ in walk_tb(error.__traceback__):
        if hasattr(begun := frame.f_locals.get("self"), "_shutdown"):
            begun._shutdown = True


def _kill(processes: Collection[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join()
