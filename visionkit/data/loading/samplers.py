"""Which image comes where in the endless stream of training images, and which make a batch.

A sampler yields a batch as a list of (index, position): an image's index in the dataset, and its
position in the stream, which keys its augmentation. All is a function of (seed, batch number).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count

import numpy as np

from visionkit.distributed import collectives
from visionkit.errors import ConfigError, DataError, plural

POOL = 8  # batches among which images are grouped by aspect ratio, and parts of mosaics drawn


class Stream:
    """The endless stream of training images: shuffled passes over a dataset, one after another.

    repeats: (N,) how often each image comes in a pass, on average; 1 without it. A pass then has
        `len(stream)` images, their sum rounded up. An image with 2.3 comes 2 or 3 times in a pass,
        so that all passes together have 2.3 (systematic sampling).
    """

    def __init__(self, length: int, seed: int, repeats: np.ndarray | None = None) -> None:
        self.seed = seed
        self._length, self._ends = length, None
        if repeats is not None:
            ends = np.cumsum(repeats, dtype=np.float64)
            self._length = math.ceil(ends[-1] - 1e-6)
            self._ends = ends * (self._length / ends[-1])
        self._orders: dict[int, np.ndarray] = {}  # of the last two passes; can be pickled

    def __len__(self) -> int:
        """The number of images in a pass."""
        return self._length

    def __getitem__(self, position: int) -> int:
        """The index of the image at a position."""
        number, place = divmod(position, self._length)
        if number not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[number] = self._order(number)
        return int(self._orders[number][place])

    def _order(self, number: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, number))
        if self._ends is None:
            return rng.permutation(self._length)
        images = rng.permutation(len(self._ends))  # so that neighbors in it vary
        ends = np.cumsum(np.diff(self._ends, prepend=0.0)[images])
        points = np.arange(self._length) + rng.random()
        chosen = np.searchsorted(ends, points, side="right").clip(max=len(images) - 1)
        return rng.permutation(images[chosen])


def repeat_factors(
    images: np.ndarray, classes: np.ndarray, length: int, threshold: float
) -> np.ndarray:
    """(N,) how often each of `length` images comes in a pass by repeat factor sampling (Gupta et
    al., "LVIS", 2019): max(1, sqrt(threshold / f)) for the rarest class in the image, of which the
    share f of the images has an object; 1 without objects.

    images, classes: (A,) the image and the class of each object.
    """
    images, classes = np.unique(np.stack([images, classes]), axis=1)
    of_class = np.sqrt(threshold * length / np.bincount(classes)[classes]).clip(min=1)
    factors = np.ones(length)
    np.maximum.at(factors, images, of_class)
    return factors


def balanced(images: np.ndarray, classes: np.ndarray, length: int) -> np.ndarray:
    """(N,) how often each of `length` images comes in a pass of as many, so that each class that
    occurs is as likely, and so are the images of a class; images without any come once.

    images, classes: (A,) the image and the class of each object.
    """
    images, classes = np.unique(np.stack([images, classes]), axis=1)
    counts = np.bincount(classes)
    found = np.bincount(images, 1 / counts[classes], length)
    return np.where(found > 0, found * (found > 0).sum() / (counts > 0).sum(), 1.0)


class InfiniteBatchSampler:
    """Endless batches of a `Stream`.

    A batch at the end of a pass is filled from the next one, so every batch is full, even if the
    dataset is smaller than a batch. Each rank takes its share of the positions of a batch.

    ratios: (N,) height / width of each image. With them the images of every `POOL` batches are
        grouped by ratio, and these batches come in random order: less padding. An image keeps
        its position.
    repeats: as in `Stream`.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        ratios: np.ndarray | None = None,
        repeats: np.ndarray | None = None,
    ) -> None:
        self.stream = Stream(length, seed, repeats)
        self.batch_size, self.seed, self.start, self.ratios = batch_size, seed, start, ratios
        self.rank, self.world_size = collectives.rank(), collectives.world_size()
        self._pool = lru_cache(maxsize=1)(self._group)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in count(self.start):
            positions = self._positions(number)[self.rank :: self.world_size]
            yield [(self.stream[p], p) for p in positions]

    def _positions(self, number: int) -> Sequence[int]:
        """The stream positions of the images of a batch."""
        if self.ratios is None:
            return range(number * self.batch_size, (number + 1) * self.batch_size)
        pool, place = divmod(number, POOL)
        return self._pool(pool)[place].tolist()

    def _group(self, pool: int) -> np.ndarray:
        """(POOL, batch_size): the positions of each batch of a pool. Passes are not mixed, or a
        batch could hold an image twice."""
        size = POOL * self.batch_size
        positions = np.arange(pool * size, (pool + 1) * size)
        assert self.ratios is not None
        ratios = self.ratios[[self.stream[p] for p in positions.tolist()]]
        batches = positions[np.lexsort((ratios, positions // len(self.stream)))]
        rng = np.random.default_rng((self.seed, pool, 3))
        return rng.permutation(batches.reshape(POOL, self.batch_size))


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
