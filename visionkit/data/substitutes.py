"""Training that goes on where a picture cannot be read: what stands in for it, and the count.

A worker chooses the substitute and writes into its target what it stands for; the main process
counts. So neither depends on the number of workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from visionkit.data.sample import Sample
from visionkit.errors import DataError
from visionkit.types import Batch

log = logging.getLogger("visionkit")

TRIES = 100  # pictures that are drawn for one place before its error counts
FEW = 10  # broken pictures that every data set may have
SHARE = 0.01  # and what share of all


def allowed(count: int) -> int:
    """How many broken pictures of that many training goes on with."""
    return max(FEW, int(SHARE * count))


class Substitutes:
    """Draws another picture for a place in the stream: a function of (seed, position).

    identities: (N,) where a batch is made of several pictures of each identity; then the picture
        drawn shows the same one, unless no other that can be read does.
    """

    def __init__(self, seed: int, count: int, identities: np.ndarray | None = None) -> None:
        self.seed, self.count, self.identities = seed, count, identities

    def find(
        self, index: int, position: int, read: Callable[[int], Sample], error: DataError
    ) -> Sample:
        """The sample of the first picture drawn that can be read. Raises the `error` of the picture
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


class BrokenPictures:
    """Those that came up in the batches of one source and were replaced, in this process."""

    def __init__(self, source: str, count: int) -> None:
        self.source, self.count = source, count
        self.limit = allowed(count)
        self.times: dict[str, int] = {}  # how often each was replaced, by its error

    def note(self, batch: Batch) -> None:
        """Take the marks out of the targets. DataError if too many pictures are broken."""
        for target in batch.targets:
            error = target.pop("replaces", None)
            if error is None:
                continue
            self.times[error] = self.times.get(error, 0) + 1
            if self.times[error] == 1:
                log.warning("data.%s: replaced by another: %s", self.source, error)
        if len(self.times) > self.limit:
            raise DataError(
                f"data.{self.source}: {len(self.times)} of {self.count} training pictures could "
                f"not be read, more than {self.limit}, the limit of `on_broken_picture: skip`; "
                f"the last: {[*self.times][-1]}"
            )

    def report(self) -> None:
        """Say at the end how many there were."""
        if self.times:
            log.warning(
                "data.%s: %d of %d training pictures could not be read; others stood in for them, "
                "%d times",
                self.source,
                len(self.times),
                self.count,
                sum(self.times.values()),
            )
