"""A batch on its way from a loader worker: all its tensors in one block of shared memory.

A tensor that a worker sends costs a file descriptor and a mapping in both processes, and a batch of
detection targets has more than five for each picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visionkit.types import Batch, Target

ALIGNMENT = 64  # bytes; every tensor begins at a multiple


class Slot(NamedTuple):
    """The place of one tensor in the block: where it begins, in bytes, and what it is."""

    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class Parcel:
    """`block` holds what the slots in `images` and `targets` describe."""

    block: Tensor  # (bytes,) uint8
    images: Slot
    targets: list[dict[str, Any]]  # as in a Batch, but slots for tensors

    def pin_memory(self) -> Parcel:
        return Parcel(self.block.pin_memory(), self.images, self.targets)

    def unpack(self) -> Batch:
        """The batch again; its tensors are views of the block."""
        views = _Views(self.block)
        targets: list[Target] = [
            {k: views[v] if isinstance(v, Slot) else v for k, v in target.items()}  # type: ignore[misc]
            for target in self.targets
        ]
        return Batch(views[self.images], targets)


def pack(batch: Batch) -> Parcel:
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
    return Parcel(block, images, [{k: put(v) for k, v in t.items()} for t in batch.targets])


def _layout(tensors: Iterable[Tensor]) -> tuple[list[Slot], int]:
    """A slot for each tensor, one after another, and the size of the block in bytes."""
    slots, end = [], 0
    for tensor in tensors:
        stride = torch.empty_like(tensor, device="meta").stride()  # dense, in the same order
        slots.append(Slot(end, tensor.dtype, tuple(tensor.shape), stride))
        size = math.prod(tensor.shape) * tensor.element_size()
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return slots, end


class _Views:
    """The tensors in a block, by slot."""

    def __init__(self, block: Tensor) -> None:
        self.block = block
        self._as: dict[torch.dtype, Tensor] = {}

    def __getitem__(self, slot: Slot) -> Tensor:
        if slot.dtype not in self._as:
            self._as[slot.dtype] = self.block.view(slot.dtype)
        begin = slot.begin // slot.dtype.itemsize
        return self._as[slot.dtype].as_strided(slot.shape, slot.stride, begin)
