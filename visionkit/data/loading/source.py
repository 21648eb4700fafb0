"""From datasets to batches.

Training batches are a function of (seed, step) alone, so a resumed run sees the batches of an
uninterrupted one, for any number of loader workers and ranks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from visionkit.config.config import DIVISOR, fixed_size
from visionkit.data.loading.items import TransformedDataset
from visionkit.data.loading.samplers import POOL, InfiniteBatchSampler, PKBatchSampler, Stream
from visionkit.data.loading.workers import Ticket, load_batches
from visionkit.data.resize import ImageSize
from visionkit.distributed import collectives
from visionkit.errors import ConfigError, DataError, plural
from visionkit.types import Batch, Dataset, Target

log = logging.getLogger("visionkit")

NEAR = 64  # at least so many images are near in the stream
GROWS = 0.7  # share of a run in which `progressive` sizes grow


@dataclass
class Source:
    """Datasets with the same labels, the heads that they feed, and how their batches are made.

    images_per_identity: images of each identity in a training batch; None: batches are not made
        of identities.
    group_by_aspect_ratio: whether the images of a training batch have similar aspect ratios;
        None: if the dataset knows the sizes of its images.
    skip_unreadable: whether training replaces images that cannot be read.
    repeats: (N,) how often each training image comes in a pass, see `samplers.Stream`.
    multi_scale: (low, high) of a factor of `image_size`, drawn for each training batch.
    progressive: whether the factor grows instead, from low to high in the first GROWS of a run.
    close_last: the share of a run at whose end transforms of several images do nothing.
    """

    name: str
    feeds: list[str]
    train: Dataset | None
    val: Dataset | None
    batch_size: int
    image_size: ImageSize
    transforms: Sequence[Any] = ()
    eval_batch_size: int | None = None
    images_per_identity: int | None = None
    group_by_aspect_ratio: bool | None = None
    skip_unreadable: bool = False
    repeats: np.ndarray | None = None
    multi_scale: tuple[float, float] | None = None
    progressive: bool = False
    close_last: float = 0.1

    def __post_init__(self) -> None:
        # The unreadable images that were replaced in this process, by their error: how often.
        self.unreadable = Counter[str]()
        self.not_pasted = 0  # objects in this process

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in which every training image comes."""
        stream = Stream(len(self._dataset("train")), 0, self.repeats)
        return -(-len(stream) // self.batch_size)

    def train_batches(
        self, *, seed: int, start: int, workers: int, total: int | None = None
    ) -> Generator[Batch, None, None]:
        """This rank's endless shuffled batches, from batch number `start` on, in a run of `total`
        batches; None: without an end that transforms of several images and `progressive` would
        heed."""
        dataset: Any = self._dataset("train")
        pool = POOL * self.batch_size
        transformed = TransformedDataset(
            dataset,
            self.transforms,
            self.image_size,
            seed,
            self.skip_unreadable,
            stream=Stream(len(dataset), seed, self.repeats),
            near=-(-NEAR // pool) * pool,
            multi_scale=self.multi_scale,
            closed_from=None if total is None else round(total * (1 - self.close_last)),
            grown_at=round(total * GROWS) if self.progressive and total is not None else None,
        )
        sampler: InfiniteBatchSampler | PKBatchSampler
        if (per_identity := self.images_per_identity) is None:
            ratios = self._aspect_ratios()
            sampler = InfiniteBatchSampler(
                len(dataset), self.batch_size, seed, start, ratios, self.repeats
            )
        else:
            identities = transformed.identities = dataset.identities
            sampler = PKBatchSampler(identities, self.batch_size, per_identity, seed, start)
        # The size of a batch of another scale is that of its images.
        gather = partial(collate, image_size=None if self.multi_scale else self.image_size)
        batches = load_batches(
            transformed,
            Numbered(sampler, start),
            gather,
            workers=workers,
            name=f"data.{self.name}.train",
        )
        counts = self.skip_unreadable or any(getattr(t, "others", 0) for t in self.transforms)
        return self._counted(batches) if counts else batches

    def val_batches(self, *, workers: int) -> Generator[Batch, None, None]:
        """Every validation image once. A rank takes whole batches, so an image is padded, and
        therefore scored, the same for any number of ranks."""
        dataset, size = self._dataset("val"), self.eval_batch_size or self.batch_size
        indices = range(len(dataset))
        batches = [[Ticket(i, i) for i in indices[k : k + size]] for k in indices[::size]]
        mine = batches[collectives.rank() :: collectives.world_size()]
        transformed = TransformedDataset(dataset, (), self.image_size, seed=0)
        name = f"data.{self.name}.val"
        gather = partial(collate, image_size=self.image_size)
        return load_batches(transformed, mine, gather, workers=workers, name=name)

    def _dataset(self, split: str) -> Dataset:
        dataset = getattr(self, split)
        assert dataset is not None, f"source {self.name} has no {split} data"
        return dataset

    def _counted(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """The batches without their marks of replaced images and of objects that were not pasted.
        These are counted, each image is warned of once, and the numbers are logged at the end.
        DataError if too many are unreadable."""
        total = len(self._dataset("train"))
        with closing(batches):
            try:
                for batch in batches:
                    self._count_replaced(batch, total)
                    yield batch
            finally:
                if self.unreadable:
                    log.warning(
                        "data.%s: %d of %d training images were unreadable; they were replaced %s",
                        self.name,
                        len(self.unreadable),
                        total,
                        plural(self.unreadable.total(), "time"),
                    )
                if self.not_pasted:
                    log.warning(
                        "data.%s: %s not pasted into images that do not label their class",
                        self.name,
                        plural(self.not_pasted, "object was", "objects were"),
                    )

    def _count_replaced(self, batch: Batch, total: int) -> None:
        for target in batch.targets:
            self.not_pasted += target.pop("not_pasted", 0)
            for error in target.pop("replaces", ()):
                if error not in self.unreadable:
                    log.warning("data.%s: replaced by another image: %s", self.name, error)
                self.unreadable[error] += 1
        if len(self.unreadable) > (limit := max_unreadable(total)):
            raise DataError(
                f"data.{self.name}: {len(self.unreadable)} of {total} training images are "
                f"unreadable, more than {limit}, the limit of `on_unreadable_image: skip`; the "
                f"last: {[*self.unreadable][-1]}"
            )

    def _aspect_ratios(self) -> np.ndarray | None:
        """(N,) height / width of the training images; None if batches are not grouped by it."""
        sizes = getattr(self.train, "sizes", None)
        if self.group_by_aspect_ratio and sizes is None:
            raise ConfigError(
                f"data.{self.name}.group_by_aspect_ratio: the dataset does not know the sizes of "
                "its images before it reads them; remove this key"
            )
        same = fixed_size(self.image_size) is not None  # nothing to pad
        if sizes is None or self.group_by_aspect_ratio is False or same:
            return None
        return sizes[:, 0] / sizes[:, 1]


def iter_splits(source: Source) -> Iterator[tuple[str, Dataset]]:
    """The datasets of a source, each after the name of its split."""
    for split in ("train", "val"):
        if getattr(source, split) is not None:
            yield split, getattr(source, split)


def split_key(source: str, split: str) -> str:
    """The key of a dataset in the config; `annotations` for an annotation file alone."""
    if split == "annotations":
        return split
    return f"data.{split}" if source == "main" else f"data.{source}.{split}"


def max_unreadable(total: int) -> int:
    """How many of `total` training images may be unreadable: 1 %, at least 10."""
    return max(10, total // 100)


def collate(
    items: Sequence[tuple[torch.Tensor, Target]], image_size: ImageSize | None = None
) -> Batch:
    """Pad images at the right and the bottom to one size: that of every image, if `image_size`
    fixes it, else a multiple of `DIVISOR`."""
    fixed = None if image_size is None else fixed_size(image_size)
    height, width = fixed or (
        -(-max(image.shape[axis] for image, _ in items) // DIVISOR) * DIVISOR for axis in (1, 2)
    )
    images = torch.zeros((len(items), height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for slot, (image, _) in zip(images, items, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return Batch(images, [target for _, target in items])


class Numbered:
    """The batches of a sampler whose tickets have the number of their batch too, from `start`."""

    def __init__(self, sampler: Iterable[list[tuple[int, int]]], start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[list[Ticket]]:
        for number, batch in enumerate(self.sampler, self.start):
            yield [Ticket(index, position, number) for index, position in batch]
