"""From datasets to batches.

Training batches are a function of (seed, step) alone, so a resumed run sees the batches of an
uninterrupted one, for any number of loader workers and ranks. A sampler yields a batch as a list
of (index, position): an image's index in the dataset, and its position in the endless stream of
training images, which keys its augmentation.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from traceback import format_exception
from typing import Any

import numpy as np
import torch

from visionkit.config.config import fixed_size
from visionkit.data.checks.findings import finding
from visionkit.data.contracts import (
    breaks_contract,
    broken_contract,
    checked_sample,
    is_custom,
    read_sample,
)
from visionkit.data.loading.workers import Ticket, image_name, load_batches
from visionkit.data.resize import ImageSize
from visionkit.data.sample import Sample
from visionkit.data.transforms.compose import resized_first
from visionkit.distributed import collectives
from visionkit.errors import ConfigError, DataError, ResourceError, VisionkitError, plural, shortage
from visionkit.types import Batch, Dataset, Target

log = logging.getLogger("visionkit")

POOL = 8  # batches among which images are grouped by aspect ratio
MAX_TRIES = 100  # images drawn to replace one before its error is raised
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
        # The unreadable images that were replaced in this process, by their error: how often.
        self.unreadable = Counter[str]()

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches after which every training image has been seen."""
        return -(-len(self._dataset("train")) // self.batch_size)

    def train_batches(self, *, seed: int, start: int, workers: int) -> Generator[Batch, None, None]:
        """This rank's endless shuffled batches, from batch number `start` on."""
        dataset: Any = self._dataset("train")
        transformed = TransformedDataset(
            dataset, self.transforms, self.image_size, seed, self.skip_unreadable
        )
        sampler: InfiniteBatchSampler | PKBatchSampler
        if (per_identity := self.images_per_identity) is None:
            ratios = self._aspect_ratios()
            sampler = InfiniteBatchSampler(len(dataset), self.batch_size, seed, start, ratios)
        else:
            identities = transformed.identities = dataset.identities
            sampler = PKBatchSampler(identities, self.batch_size, per_identity, seed, start)
        name = f"data.{self.name}.train"
        gather = partial(collate, image_size=self.image_size)
        batches = load_batches(transformed, sampler, gather, workers=workers, name=name)
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
        gather = partial(collate, image_size=self.image_size)
        return load_batches(transformed, mine, gather, workers=workers, name=name)

    def _dataset(self, split: str) -> Dataset:
        dataset = getattr(self, split)
        assert dataset is not None, f"source {self.name} has no {split} data"
        return dataset

    def _counted(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """The batches without their marks of replaced images. These are counted, each is warned of
        once, and the numbers are logged at the end. DataError if too many are unreadable."""
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

    def _count_replaced(self, batch: Batch, total: int) -> None:
        for target in batch.targets:
            if (error := target.pop("replaces", None)) is not None:
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


@dataclass
class TransformedDataset:
    """A dataset with transforms applied. An item is a function of the index and the position in
    the stream of images, which keys all randomness.

    skip_unreadable: whether another image, a function of (seed, position), replaces one that
        cannot be read; the target's `replaces` is then the error. Else such an image is a
        DataError.
    identities: (N,) where batches are made of identities: the replacement then has the same
        identity, unless no other image of it can be read.
    """

    dataset: Dataset
    transforms: Sequence[Any]
    image_size: ImageSize
    seed: int
    skip_unreadable: bool = False
    identities: np.ndarray | None = None

    def __getitem__(self, ticket: Ticket) -> tuple[torch.Tensor, Target]:
        index, position = ticket
        what = image_name(self.dataset, index)
        doing = "reading it"
        try:
            sample, replaces = self._read(index, position)
            rng = np.random.default_rng((self.seed, position, 1))
            sample = resized_first(sample, self.transforms, self.image_size)
            for transform in self.transforms:
                doing = type(transform).__name__
                sample = transform(sample, rng, self.image_size)
                if is_custom(transform):
                    sample = self._checked(f"{what}: {doing}", transform, sample)
            doing = "its labels"
            target: Target = {**sample.target(), "position": position}
            if replaces is not None:
                target["replaces"] = replaces
            return sample.image, target
        except VisionkitError:
            raise
        except Exception as error:  # custom datasets and transforms raise anything
            text = f"{what}: {doing}: {type(error).__name__}: {error}"
            if hint := shortage(error):
                raise ResourceError(f"{text}: {hint}") from error
            found = DataError(text, findings=[finding("contract", text, hint="")])
            found.add_note("".join(format_exception(error)))
            raise found from error

    def _checked(self, what: str, transform: Any, sample: Any) -> Sample:
        """What a custom transform made of a sample."""
        sample = checked_sample(what, sample, self.dataset.classes)
        limits, (height, width) = fixed_size(self.image_size), sample.size
        if limits is None:
            longest = int(np.max(self.image_size))
            limits = (longest, longest)
        if getattr(transform, "resizes", False) and (height > limits[0] or width > limits[1]):
            raise broken_contract(
                f"{what}: got an image of {width}x{height}; expected one that fits into image_size "
                f"{self.image_size}, as `resizes` is True (visionkit.Transform)"
            )
        return sample

    def _read(self, index: int, position: int) -> tuple[Sample, str | None]:
        """The sample, or its replacement and the error of the image that it replaces."""
        try:
            return read_sample(self.dataset, index), None
        except DataError as error:
            if breaks_contract(error):
                raise broken_contract(f"{image_name(self.dataset, index)}: {error}") from None
            ids = getattr(self.dataset, "image_ids", None)
            record = "" if ids is None else f" (record {index}, image id {ids[index]})"
            *lines, last = error.lines
            named = DataError(*lines, f"{last}{record}")
            if self.skip_unreadable:
                rng = np.random.default_rng((self.seed, position, 4))
                for other in replacements(index, len(self.dataset), rng, self.identities):
                    with suppress(DataError):  # reported when it comes up itself
                        return read_sample(self.dataset, other), str(named)
            raise named from error


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


class InfiniteBatchSampler:
    """Endless batches: shuffled passes over a dataset, one after another.

    A batch at the end of a pass is filled from the next one, so every batch is full, even if the
    dataset is smaller than a batch. Each rank takes its share of the positions of a batch.

    ratios: (N,) height / width of each image. With them the images of every `POOL` batches are
        grouped by ratio, and these batches come in random order: less padding. An image keeps
        its position.
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
        self._pool = lru_cache(maxsize=1)(self._group)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in count(self.start):
            positions = self._positions(number)[self.rank :: self.world_size]
            yield [(self._index(p), p) for p in positions]

    def _positions(self, number: int) -> Sequence[int]:
        """The stream positions of the images of a batch."""
        if self.ratios is None:
            return range(number * self.batch_size, (number + 1) * self.batch_size)
        pool, place = divmod(number, POOL)
        return self._pool(pool)[place].tolist()

    def _index(self, position: int) -> int:
        return int(self._order(position // self.length)[position % self.length])

    def _group(self, pool: int) -> np.ndarray:
        """(POOL, batch_size): the positions of each batch of a pool. Passes are not mixed, or a
        batch could hold an image twice."""
        size = POOL * self.batch_size
        positions = np.arange(pool * size, (pool + 1) * size)
        assert self.ratios is not None
        ratios = self.ratios[[self._index(p) for p in positions.tolist()]]
        batches = positions[np.lexsort((ratios, positions // self.length))]
        rng = np.random.default_rng((self.seed, pool, 3))
        return rng.permutation(batches.reshape(POOL, self.batch_size))

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)


class PKBatchSampler:
    """Endless batches of P identities with K = `images_per_identity` images of each,
    P = batch_size / K, for learning embeddings.

    Identities come in shuffled passes. The last batch of a pass is filled with identities from
    its start, so those of a batch differ; if there are fewer than P identities, each batch has all
    of them, some several times. The images of an identity come in shuffled passes too, K at a
    time. An identity with fewer images repeats them, with other augmentation.

    Images of unknown (negative) identity are not used. Neither are identities with a single image,
    which would only be its own partner, unless fewer than two other identities remain.

    identities: (N,) int64, one for each image.

    Each rank takes whole identities, at least two. Raises ConfigError for batch sizes that do not
    allow this, DataError for fewer than two identities.
    """

    def __init__(
        self,
        identities: np.ndarray,
        batch_size: int,
        images_per_identity: int,
        seed: int,
        start: int = 0,
    ) -> None:
        self.rank, self.world_size = collectives.rank(), collectives.world_size()
        self.slots = batch_size // images_per_identity
        unit = images_per_identity * self.world_size
        if batch_size % unit or batch_size < 2 * unit:
            raise ConfigError(
                f"batch_size: {batch_size} images cannot be {images_per_identity} of each of "
                f"several identities on each of {plural(self.world_size, 'rank')}; use a multiple "
                f"of {unit}, at least {2 * unit}, or another images_per_identity"
            )
        self.batch_size, self.images_per_identity = batch_size, images_per_identity
        self.seed, self.start = seed, start
        self.images = _by_identity(identities)
        # After so many batches every identity has come, each at least so many times.
        self._batches_per_pass = -(-len(self.images) // self.slots)
        self._turns_per_pass = self._batches_per_pass * self.slots // len(self.images)
        self._identities = lru_cache(maxsize=2)(self._shuffle_identities)
        self._order = lru_cache(maxsize=2 * len(self.images))(self._shuffle_images)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in count(self.start):
            batch: list[tuple[int, int]] = []
            for slot in range(self.rank, self.slots, self.world_size):
                first = number * self.batch_size + slot * self.images_per_identity
                chosen = self._chosen(number, slot).tolist()
                batch += zip(chosen, count(first), strict=False)
            yield batch

    def _chosen(self, number: int, slot: int) -> np.ndarray:
        """(K,): the images in one slot of a batch."""
        pass_, place = divmod(number, self._batches_per_pass)
        place = place * self.slots + slot
        identity = int(self._identities(pass_)[place])
        turn = place // len(self.images)
        if turn < self._turns_per_pass:
            return self._take(identity, pass_ * self._turns_per_pass + turn, walk=0)
        # It fills up a batch. A separate walk keeps the count of turns above a plain product.
        return self._take(identity, pass_, walk=1)

    def _take(self, identity: int, turn: int, walk: int) -> np.ndarray:
        """(K,): the images of an identity at its `turn`-th turn of a walk."""
        turns = max(1, len(self.images[identity]) // self.images_per_identity)
        order = self._order(identity, turn // turns, walk)
        first = turn % turns * self.images_per_identity
        return np.resize(order[first : first + self.images_per_identity], self.images_per_identity)

    def _shuffle_identities(self, pass_: int) -> np.ndarray:
        order = np.random.default_rng((self.seed, pass_, 2)).permutation(len(self.images))
        return np.resize(order, self._batches_per_pass * self.slots)

    def _shuffle_images(self, identity: int, epoch: int, walk: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, identity, epoch, walk))
        return rng.permutation(self.images[identity])


def _by_identity(identities: np.ndarray) -> list[np.ndarray]:
    """The indices of the images of each identity that is used."""
    order = np.argsort(identities, kind="stable")
    order = order[identities[order] >= 0]
    starts = np.flatnonzero(np.diff(identities[order])) + 1
    groups = np.split(order, starts) if len(order) else []
    paired = [group for group in groups if len(group) > 1]
    chosen = paired if len(paired) > 1 else groups
    if len(chosen) < 2:
        known = plural(len(chosen), "known identity", "known identities")
        raise DataError(
            f"{plural(len(identities), 'image')} of {known}: an embedding needs at least two "
            "identities, better with several images of each"
        )
    return chosen


def replacements(
    index: int, length: int, rng: np.random.Generator, identities: np.ndarray | None = None
) -> Iterator[int]:
    """Random images to replace the one at `index` of `length`, at most `MAX_TRIES`.

    With `identities` (N,), as many images of the same identity come before them.
    """
    others = np.delete(np.arange(length), index)
    if identities is not None:
        same = others[identities[others] == identities[index]]
        yield from rng.permutation(same)[:MAX_TRIES].tolist()
    yield from rng.permutation(others)[:MAX_TRIES].tolist()
