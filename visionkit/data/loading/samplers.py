"""Which images make up each training batch: functions of (seed, batch number) alone.

A batch is a list of (index, position): the image's index in the dataset, and its position in the
endless stream of training images, which keys its augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from visionkit.data.sample import Sample
from visionkit.distributed import collectives
from visionkit.errors import ConfigError, DataError, plural

POOL = 8  # batches among which images are grouped by aspect ratio
MAX_TRIES = 100  # images drawn to replace one before its error is raised


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
        number = self.start
        while True:
            positions = self._positions(number)[self.rank :: self.world_size]
            yield [(self._index(p), p) for p in positions]
            number += 1

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
        number = self.start
        while True:
            batch: list[tuple[int, int]] = []
            for slot in range(self.rank, self.slots, self.world_size):
                first = number * self.batch_size + slot * self.images_per_identity
                chosen = self._chosen(number, slot).tolist()
                batch += [(index, first + k) for k, index in enumerate(chosen)]
            yield batch
            number += 1

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


class ReplacementSampler:
    """Replaces an unreadable image by another one, a function of (seed, position).

    identities: (N,) where batches are made of identities: the replacement then has the same
        identity, unless no other image of it can be read.
    """

    def __init__(self, seed: int, count: int, identities: np.ndarray | None = None) -> None:
        self.seed, self.count, self.identities = seed, count, identities

    def find(
        self, index: int, position: int, read: Callable[[int], Sample], error: DataError
    ) -> Sample:
        """The first of at most `MAX_TRIES` random images that `read` can read. Raises `error`, that
        of the image at `index`, if there is none."""
        rng = np.random.default_rng((self.seed, position, 4))
        others = np.delete(np.arange(self.count), index)
        groups = [others]
        if self.identities is not None:
            groups.insert(0, others[self.identities[others] == self.identities[index]])
        for group in groups:
            for choice in rng.permutation(group)[:MAX_TRIES].tolist():
                try:
                    return read(choice)
                except DataError:  # reported when it comes up itself
                    continue
        raise error
