"""Batches for learning embeddings: several identities, several images of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from visionkit.data.sample import Sample
from visionkit.distributed import collectives
from visionkit.errors import ConfigError, DataError
from visionkit.types import Batch

# --- Training that goes on where an image cannot be read: what stands in for it, and the
# count.

log = logging.getLogger("visionkit")

TRIES = 100  # images that are drawn for one place before its error counts
FEW = 10  # broken images that every data set may have
SHARE = 0.01  # and what share of all


def allowed(count: int) -> int:
    """How many broken images of that many training goes on with."""
    return max(FEW, int(SHARE * count))


class ReplacementSampler:
    """Draws another image for a place in the stream: a function of (seed, position).

    identities: (N,) where a batch is made of several images of each identity; then the image
        drawn shows the same one, unless no other that can be read does.
    """

    def __init__(self, seed: int, count: int, identities: np.ndarray | None = None) -> None:
        self.seed, self.count, self.identities = seed, count, identities

    def find(
        self, index: int, position: int, read: Callable[[int], Sample], error: DataError
    ) -> Sample:
        """The sample of the first image drawn that can be read. Raises the `error` of the image
        at `index` if there is none among `TRIES`."""
        rng = np.random.default_rng((self.seed, position, 4))
        for others in self._groups(index):
            for choice in rng.permutation(others)[:TRIES].tolist():
                try:
                    return read(choice)
                except DataError:  # reported when its own turn comes
                    continue
        raise error

    def _groups(self, index: int) -> list[np.ndarray]:
        everyone = np.delete(np.arange(self.count), index)
        if self.identities is None:
            return [everyone]
        alike = everyone[self.identities[everyone] == self.identities[index]]
        return [alike, everyone]


class UnreadableImages:
    """Those that came up in the batches of one source and were replaced, in this process."""

    def __init__(self, source: str, count: int) -> None:
        self.source, self.count = source, count
        self.limit = allowed(count)
        self.times: dict[str, int] = {}  # how often each was replaced, by its error

    def note(self, batch: Batch) -> None:
        """Take the marks out of the targets. DataError if too many images are broken."""
        for target in batch.targets:
            error = target.pop("replaces", None)
            if error is None:
                continue
            self.times[error] = self.times.get(error, 0) + 1
            if self.times[error] == 1:
                log.warning("data.%s: replaced by another: %s", self.source, error)
        if len(self.times) > self.limit:
            raise DataError(
                f"data.{self.source}: {len(self.times)} of {self.count} training images could "
                f"not be read, more than {self.limit}, the limit of `on_unreadable_image: skip`; "
                f"the last: {[*self.times][-1]}"
            )

    def report(self) -> None:
        """Say at the end how many there were."""
        if self.times:
            log.warning(
                "data.%s: %d of %d training images could not be read; others stood in for them, "
                "%d times",
                self.source,
                len(self.times),
                self.count,
                sum(self.times.values()),
            )


class PKBatchSampler:
    """Endless batches of (index, position): `images_per_identity` images of each of P identities,
    P = batch_size / images_per_identity.

    Batches are a function of (seed, number), so a run can go on anywhere. Identities are walked in
    shuffled passes. The last batch of a pass is filled up with identities that began it, so those
    of one batch differ; with fewer than P of them, all are in every batch, some several times.
    The images of an identity are walked in shuffled passes too, `images_per_identity` at a time;
    one that has fewer repeats them, and as their positions differ, their augmentation does.

    An identity with a single image could only be its own partner: it is left out, unless fewer
    than two others are left. Images of negative identity, which is not known, are left out.

    identities: (N,) int64, that of each image.
    With several processes each takes whole identities, at least two; other batch sizes are a
    ConfigError. DataError if there are not two
    identities.
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
        if (
            batch_size % images_per_identity
            or self.slots % self.world_size
            or self.slots < 2 * self.world_size
        ):
            unit = images_per_identity * self.world_size
            raise ConfigError(
                f"batch_size: {batch_size} images cannot be {images_per_identity} of each of "
                f"several identities in each of {self.world_size} processes; use a multiple of "
                f"{unit}, at least {2 * unit}, or another images_per_identity"
            )
        self.batch_size, self.images_per_identity = batch_size, images_per_identity
        self.seed, self.start = seed, start
        self.images = _by_identity(identities)
        # Rounds of batches after which every identity has come; how often each comes for certain.
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
        """Which images fill that slot of that batch."""
        round_, place = divmod(number, self._batches_per_pass)
        place = place * self.slots + slot
        identity = int(self._identities(round_)[place])
        turn = place // len(self.images)
        if turn < self._turns_per_pass:
            return self._take(identity, round_ * self._turns_per_pass + turn, walk=0)
        # It fills up a batch. A walk of its own keeps the count of turns above a plain product.
        return self._take(identity, round_, walk=1)

    def _take(self, identity: int, turn: int, walk: int) -> np.ndarray:
        """The images of the identity's `turn`-th turn in that walk."""
        turns = max(1, len(self.images[identity]) // self.images_per_identity)
        order = self._order(identity, turn // turns, walk)
        first = turn % turns * self.images_per_identity
        return np.resize(order[first : first + self.images_per_identity], self.images_per_identity)

    def _shuffle_identities(self, round_: int) -> np.ndarray:
        order = np.random.default_rng((self.seed, round_, 2)).permutation(len(self.images))
        return np.resize(order, self._batches_per_pass * self.slots)

    def _shuffle_images(self, identity: int, epoch: int, walk: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, identity, epoch, walk))
        return rng.permutation(self.images[identity])


def _by_identity(identities: np.ndarray) -> list[np.ndarray]:
    """The indices of the images of each identity that takes part."""
    order = np.argsort(identities, kind="stable")
    order = order[identities[order] >= 0]
    starts = np.flatnonzero(np.diff(identities[order])) + 1
    groups = np.split(order, starts) if len(order) else []
    paired = [group for group in groups if len(group) > 1]
    chosen = paired if len(paired) > 1 else groups
    if len(chosen) < 2:
        raise DataError(
            f"{len(identities)} images show {len(chosen)} known identities: an embedding is "
            "learned from at least two, better with several images of each"
        )
    return chosen
