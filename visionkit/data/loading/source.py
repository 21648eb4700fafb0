"""From datasets to batches.

Training batches are a function of (seed, step) alone, so a resumed run sees the batches of an
uninterrupted one, for any number of loader workers and ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from traceback import format_exception
from typing import Any

import numpy as np
import torch

from visionkit.data.loading.samplers import InfiniteBatchSampler, PKBatchSampler, ReplacementSampler
from visionkit.data.loading.workers import Ticket, image_name, load_batches
from visionkit.data.sample import Sample
from visionkit.data.transforms import ImageSize, fit
from visionkit.distributed import collectives
from visionkit.errors import ConfigError, DataError, ResourceError, VisionkitError, plural
from visionkit.types import Batch, Dataset, Target

log = logging.getLogger("visionkit")

DIVISOR = 32  # batches are padded to a multiple of the coarsest stride of the usual backbones


@dataclass
class Source:
    """Datasets with the same labels, the heads that they feed, and how their batches are made.

    images_per_identity: images of each identity in a training batch; None: batches are not made
        of identities.
    group_by_aspect_ratio: whether the images of a training batch have similar aspect ratios;
        None: if the dataset knows the sizes of its images.
    skip_unreadable: whether training replaces images that cannot be read.
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

    def __post_init__(self) -> None:
        self.unreadable = UnreadableImages(self.name, 0 if self.train is None else len(self.train))

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches after which every training image has been seen."""
        return -(-len(self._dataset("train")) // self.batch_size)

    def train_batches(self, *, seed: int, start: int, workers: int) -> Generator[Batch, None, None]:
        """This rank's endless shuffled batches, from batch number `start` on."""
        dataset, replacements = self._dataset("train"), None
        identities: Any = None  # (N,)
        if self.images_per_identity is not None:
            identities = dataset.identities  # type: ignore[attr-defined]  # of datasets with identity
        if self.skip_unreadable:
            replacements = ReplacementSampler(seed, len(dataset), identities)
        sampler: InfiniteBatchSampler | PKBatchSampler
        if self.images_per_identity is None:
            ratios = self._aspect_ratios()
            sampler = InfiniteBatchSampler(len(dataset), self.batch_size, seed, start, ratios)
        else:
            sampler = PKBatchSampler(
                identities, self.batch_size, self.images_per_identity, seed, start
            )
        transformed = TransformedDataset(
            dataset, self.transforms, self.image_size, seed, replacements
        )
        name = f"data.{self.name}.train"
        batches = load_batches(transformed, sampler, collate, workers=workers, name=name)
        return self._counted(batches) if self.skip_unreadable else batches

    def val_batches(self, *, workers: int) -> Generator[Batch, None, None]:
        """Every validation image once. A rank takes whole batches, so an image is padded, and
        therefore scored, the same for any number of ranks."""
        dataset, size = self._dataset("val"), self.eval_batch_size or self.batch_size
        indices = range(len(dataset))
        batches = [[(i, i) for i in indices[k : k + size]] for k in indices[::size]]
        mine = batches[collectives.rank() :: collectives.world_size()]
        transformed = TransformedDataset(dataset, (), self.image_size, seed=0)
        name = f"data.{self.name}.val"
        return load_batches(transformed, mine, collate, workers=workers, name=name)

    def _dataset(self, split: str) -> Dataset:
        dataset = getattr(self, split)
        assert dataset is not None, f"source {self.name} has no {split} data"
        return dataset

    def _counted(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        with closing(batches):
            try:
                for batch in batches:
                    self.unreadable.count(batch)
                    yield batch
            finally:
                self.unreadable.report()

    def _aspect_ratios(self) -> np.ndarray | None:
        """(N,) height / width of the training images; None if batches are not grouped by it."""
        sizes = getattr(self.train, "sizes", None)
        if self.group_by_aspect_ratio and sizes is None:
            raise ConfigError(
                f"data.{self.name}.group_by_aspect_ratio: the dataset does not know the sizes of "
                "its images before it reads them; remove this key"
            )
        if sizes is None or self.group_by_aspect_ratio is False:
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


def max_unreadable(count: int) -> int:
    """How many of `count` training images may be unreadable: 1 %, at least 10."""
    return max(10, count // 100)


class UnreadableImages:
    """The unreadable images of a source that were replaced in this process, by their error."""

    def __init__(self, source: str, count: int) -> None:
        self.source, self.total = source, count
        self.limit = max_unreadable(count)
        self.times: dict[str, int] = {}  # how often each was replaced

    def __len__(self) -> int:
        return len(self.times)

    def count(self, batch: Batch) -> None:
        """Count the replacements in a batch, remove their marks, and warn of each image once.
        DataError if too many images are unreadable."""
        for target in batch.targets:
            error = target.pop("replaces", None)
            if error is None:
                continue
            self.times[error] = self.times.get(error, 0) + 1
            if self.times[error] == 1:
                log.warning("data.%s: replaced by another image: %s", self.source, error)
        if len(self) > self.limit:
            raise DataError(
                f"data.{self.source}: {len(self)} of {self.total} training images are unreadable, "
                f"more than {self.limit}, the limit of `on_unreadable_image: skip`; the last: "
                f"{[*self.times][-1]}"
            )

    def report(self) -> None:
        """Log the numbers at the end."""
        if self.times:
            log.warning(
                "data.%s: %d of %d training images were unreadable; they were replaced %s",
                self.source,
                len(self),
                self.total,
                plural(sum(self.times.values()), "time"),
            )


@dataclass
class TransformedDataset:
    """A dataset with transforms applied. An item is a function of the index and the position in
    the stream of images, which keys all randomness.

    replacements: finds an image to replace one that cannot be read; the target's `replaces` is
        then the error. None: such an image is a DataError.
    """

    dataset: Dataset
    transforms: Sequence[Any]
    image_size: ImageSize
    seed: int
    replacements: ReplacementSampler | None = None

    def __getitem__(self, ticket: Ticket) -> tuple[torch.Tensor, Target]:
        index, position = ticket
        doing = "reading it"
        try:
            sample, replaces = self._read(index, position)
            rng = np.random.default_rng((self.seed, position, 1))
            if not any(transform.resizes for transform in self.transforms):
                sample = sample.resize(fit(sample.size, self.image_size))
            for transform in self.transforms:
                doing = type(transform).__name__
                sample = transform(sample, rng, self.image_size)
            doing = "its labels"
            target: Target = {**sample.target(), "position": position}
            if replaces is not None:
                target["replaces"] = replaces
            image = sample.image
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
                got = f"{image.dtype} {tuple(image.shape)}"
                raise ValueError(f"expected pixels uint8 (3, h, w), got {got}")
            return image, target
        except VisionkitError:
            raise
        except Exception as error:  # custom datasets and transforms raise anything
            text = f"{image_name(self.dataset, index)}: {doing}: {type(error).__name__}: {error}"
            if isinstance(error, MemoryError):
                hint = "use fewer data.workers, or make the image smaller"
                raise ResourceError(f"{text}: {hint}") from error
            found = DataError(text)
            found.add_note("".join(format_exception(error)))
            raise found from error

    def _read(self, index: int, position: int) -> tuple[Sample, str | None]:
        """The sample, or its replacement and the error of the image that it replaces."""
        try:
            return self.dataset[index], None
        except DataError as error:
            ids = getattr(self.dataset, "image_ids", None)
            record = "" if ids is None else f" (record {index}, image id {ids[index]})"
            named = DataError(f"{error}{record}")
            if self.replacements is None:
                raise named from error
            read = self.dataset.__getitem__
            return self.replacements.find(index, position, read, named), str(named)


def collate(items: Sequence[tuple[torch.Tensor, Target]]) -> Batch:
    """Pad images at the right and the bottom to one size, a multiple of `DIVISOR`."""
    height, width = (
        -(-max(image.shape[axis] for image, _ in items) // DIVISOR) * DIVISOR for axis in (1, 2)
    )
    images = torch.zeros((len(items), height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for slot, (image, _) in zip(images, items, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return Batch(images, [target for _, target in items])
