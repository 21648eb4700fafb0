"""From data sets to batches: what every source of a training run does.

Training batches are a function of (seed, step) alone, so that a resumed run sees what an
uninterrupted one would have seen, whatever the number of loader workers or processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from traceback import format_exception
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from visionkit.data.loading.samplers import PKBatchSampler, ReplacementSampler, UnreadableImages
from visionkit.data.loading.workers import image_name, load_batches
from visionkit.data.sample import Sample
from visionkit.data.transforms import fit
from visionkit.distributed import collectives
from visionkit.errors import ConfigError, DataError, ResourceError, VisionkitError
from visionkit.types import Batch, Dataset, Target

POOL = 8  # batches among which images are dealt by their aspect ratio
DIVISOR = 32  # batches are padded to a multiple of the coarsest stride of the usual backbones


@dataclass
class Source:
    """Data sets with one labeling, the heads they feed, and how their batches are made."""

    name: str
    feeds: list[str]
    train: Dataset | None
    val: Dataset | None
    batch_size: int
    image_size: int | tuple[int, int]
    transforms: Sequence[Any] = field(default_factory=tuple)
    eval_batch_size: int | None = None
    images_per_identity: int | None = None  # images of each identity in a training batch
    group_by_aspect_ratio: bool | None = (
        None  # batches of similar aspect ratio; None: if sizes are known
    )
    skip_broken: bool = False  # train on others in place of images that cannot be read

    def __post_init__(self) -> None:
        self.broken = UnreadableImages(self.name, 0 if self.train is None else len(self.train))

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every training image has been seen."""
        return -(-len(self.train) // self.batch_size)

    def train_batches(self, *, seed: int, start: int, workers: int) -> Generator[Batch, None, None]:
        """Endless shuffled batches of this process, from batch number `start` on."""
        substitutes = None
        if self.skip_broken:
            alike = None if self.images_per_identity is None else self.train.identities
            substitutes = ReplacementSampler(seed, len(self.train), alike)
        view = TransformedDataset(
            self.train, self.transforms, self.image_size, seed, substitutes=substitutes
        )
        if self.images_per_identity is None:
            stream = InfiniteBatchSampler(
                len(self.train), self.batch_size, seed, start, self._aspect_ratios()
            )
        else:
            stream = PKBatchSampler(
                self.train.identities, self.batch_size, self.images_per_identity, seed, start
            )
        name = f"data.{self.name}.train"
        batches = load_batches(view, stream, collate, workers=workers, name=name)
        return self._counted(batches) if self.skip_broken else batches

    def _counted(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        with closing(batches):
            try:
                for batch in batches:
                    self.broken.note(batch)
                    yield batch
            finally:
                self.broken.report()

    def _aspect_ratios(self) -> np.ndarray | None:
        """Height / width (N,) of the training images, if batches are to be made by it."""
        sizes = getattr(self.train, "sizes", None)
        if self.group_by_aspect_ratio and sizes is None:
            raise ConfigError(
                f"data.{self.name}.group_by_aspect_ratio: this dataset does not know the sizes of "
                "its images before it reads them; leave it out"
            )
        if sizes is None or self.group_by_aspect_ratio is False:
            return None
        return sizes[:, 0] / sizes[:, 1]

    def val_batches(self, *, workers: int) -> Generator[Batch, None, None]:
        """Every validation image once. Processes share whole batches, so that an image is
        padded, and therefore scored, alike whatever their number."""
        size = self.eval_batch_size or self.batch_size
        indices = range(len(self.val))
        batches = [[(i, i) for i in indices[k : k + size]] for k in indices[::size]]
        mine = batches[collectives.rank() :: collectives.world_size()]
        view = TransformedDataset(self.val, (), self.image_size, seed=0)
        return load_batches(view, mine, collate, workers=workers, name=f"data.{self.name}.val")


class InfiniteBatchSampler:
    """Batches of (index, position): one endless walk through shuffled passes over a data set.

    A batch that begins at the end of a pass is filled from the next one, so every batch is full,
    also when the data set is smaller than a batch. With several processes each takes its share
    of the positions of a batch.

    ratios: (N,) height / width of each image. With them the images of every `POOL` batches
        are dealt again, by ratio, and these batches come in a random order: less is padded. A
        image keeps its position, which its augmentation is keyed by.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        ratios: np.ndarray | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start
        self.ratios = ratios
        self.rank, self.world_size = collectives.rank(), collectives.world_size()
        self._order = lru_cache(maxsize=2)(self._shuffle)
        self._pool = lru_cache(maxsize=1)(self._deal)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.start
        while True:
            positions = self._positions(number)[self.rank :: self.world_size]
            yield [(self._index(p), p) for p in positions]
            number += 1

    def _positions(self, number: int) -> Sequence[int]:
        """Where the images of that batch stand in the stream."""
        if self.ratios is None:
            return range(number * self.batch_size, (number + 1) * self.batch_size)
        pool, place = divmod(number, POOL)
        return self._pool(pool)[place].tolist()

    def _index(self, position: int) -> int:
        return int(self._order(position // self.length)[position % self.length])

    def _deal(self, pool: int) -> np.ndarray:
        """The positions in each batch of that pool: (POOL, batch_size). Passes are not mixed, or
        an image would lie in a batch with itself."""
        size = POOL * self.batch_size
        positions = np.arange(pool * size, (pool + 1) * size)
        ratios = self.ratios[[self._index(p) for p in positions.tolist()]]
        batches = positions[np.lexsort((ratios, positions // self.length))]
        rng = np.random.default_rng((self.seed, pool, 3))
        return rng.permutation(batches.reshape(POOL, self.batch_size))

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)


class TransformedDataset(TorchDataset):
    """A data set seen through transforms. The randomness of an item is keyed by its position in
    the stream; a fault of the data travels as a value, so that it reaches the user unwrapped.

    substitutes: where to find an image in place of one that cannot be read; its target says so.
    """

    def __init__(
        self,
        dataset: Dataset,
        transforms: Sequence[Any],
        image_size: int | tuple[int, int],
        seed: int,
        substitutes: ReplacementSampler | None = None,
    ) -> None:
        self.substitutes = substitutes
        self.dataset, self.transforms, self.seed = dataset, transforms, seed
        self.image_size = image_size
        self.resize_first = not any(transform.resizes for transform in transforms)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, ticket: tuple[int, int]) -> tuple[torch.Tensor, Target] | VisionkitError:
        index, position = ticket
        doing = "reading it"
        try:
            sample, replaces = self._find(index, position)
            rng = np.random.default_rng((self.seed, position, 1))
            if self.resize_first:
                sample = sample.resize(fit(sample.size, self.image_size))
            for transform in self.transforms:
                doing = type(transform).__name__
                sample = transform(sample, rng, self.image_size)
            doing = "its labels"
            target: Target = {**sample.target(), "position": position}
            if replaces is not None:
                target["replaces"] = replaces
            return _checked(sample.image), target
        except VisionkitError as error:
            return error
        except Exception as error:  # of data sets and transforms that others wrote
            text = f"{image_name(self.dataset, index)}: {doing}: {type(error).__name__}: {error}"
            if isinstance(error, MemoryError):
                return ResourceError(f"{text}: use fewer data.workers, or make the image smaller")
            fault = DataError(text)
            fault.add_note("".join(format_exception(error)))
            return fault

    def _find(self, index: int, position: int) -> tuple[Sample, str | None]:
        """The sample, or its substitute and the error that it stands for."""
        try:
            return self.dataset[index], None
        except DataError as error:
            named = DataError(f"{error}{record_of(self.dataset, index)}")
            if self.substitutes is None:
                raise named from error
            read = self.dataset.__getitem__
            return self.substitutes.find(index, position, read, named), str(named)


def record_of(dataset: Dataset, index: int) -> str:
    """Which record of a data set that is, to follow something in a message."""
    ids = getattr(dataset, "image_ids", None)
    return "" if ids is None else f" (record {index}, image id {ids[index]})"


def _checked(image: torch.Tensor) -> torch.Tensor:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"pixels are {image.dtype} {tuple(image.shape)}, not uint8 (3, h, w)")
    return image


def collate(items: list[tuple[torch.Tensor, Target] | VisionkitError]) -> Batch | VisionkitError:
    """Pad images at the right and the bottom to one size, a multiple of `DIVISOR`."""
    for item in items:
        if isinstance(item, VisionkitError):
            return item
    height = max(image.shape[1] for image, _ in items)
    width = max(image.shape[2] for image, _ in items)
    height, width = (-(-side // DIVISOR) * DIVISOR for side in (height, width))
    images = torch.zeros((len(items), height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for slot, (image, _) in zip(images, items, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return Batch(images, [target for _, target in items])
