"""One item of a batch: an image is read, transformed, and becomes a tensor with its target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from traceback import format_exception
from typing import Any

import numpy as np
import torch

from visionkit.config.config import fixed_size, scaled_side
from visionkit.data.checks.findings import finding
from visionkit.data.contracts import (
    breaks_contract,
    broken_contract,
    checked_sample,
    is_custom,
    read_sample,
)
from visionkit.data.loading.samplers import Stream
from visionkit.data.loading.workers import Ticket, image_name
from visionkit.data.resize import ImageSize
from visionkit.data.sample import Sample
from visionkit.data.transforms.compose import resized_first
from visionkit.errors import DataError, ResourceError, VisionkitError, shortage
from visionkit.types import Dataset, Target

MAX_TRIES = 100  # images drawn to replace one before its error is raised
KEPT_BYTES = 2**27  # of pixels of images that are near in the stream, in each worker


@dataclass
class TransformedDataset:
    """A dataset with transforms applied. An item is a function of its ticket; the position in the
    stream of images keys all randomness.

    skip_unreadable: whether another image, a function of (seed, position), replaces one that
        cannot be read; the target's `replaces` are then the errors. Else such an image is a
        DataError.
    identities: (N,) where batches are made of identities: the replacement then has the same
        identity, unless no other image of it can be read.
    stream: where the other images of transforms of several come from: of the `near` positions of
        its own block, those that do not show the same image. Each is read like the image of that
        position, and at best once for all that take it.
    multi_scale: (low, high) of a factor of `image_size`, drawn for each batch.
    grown_at: the batch from which that factor is high, after growing from low; None: it is drawn.
    closed_from: the batch from which transforms of several images do nothing; None: never.
    """

    dataset: Dataset
    transforms: Sequence[Any]
    image_size: ImageSize
    seed: int
    skip_unreadable: bool = False
    identities: np.ndarray | None = None
    stream: Stream | None = None
    near: int = 64
    multi_scale: tuple[float, float] | None = None
    closed_from: int | None = None
    grown_at: int | None = None
    _block: int = field(default=-1, init=False)
    _kept: dict[int, tuple[Sample, list[str]]] = field(default_factory=dict, init=False)

    def __getitem__(self, ticket: Ticket | tuple[int, int]) -> tuple[torch.Tensor, Target]:
        index, position, step = Ticket(*ticket)
        what = image_name(self.dataset, index)
        rng = np.random.default_rng((self.seed, position, 1))
        size = scaled(self.image_size, self.multi_scale, self.seed, step, self.grown_at)
        active = self._active(step, rng)
        sample, replaces = self._first(index, position, active, size)
        for place, transform in enumerate(active):
            more = []
            if count := getattr(transform, "others", 0):
                others = []
                for other in self._others(index, position, count, rng):
                    one, errors = self._first(self._stream[other], other, active, size)
                    name = image_name(self.dataset, self._stream[other])
                    for before in active[:place]:
                        if not getattr(before, "others", 0):
                            one = self._transformed(name, before, one, rng, size)
                    others.append(one)
                    replaces = replaces + errors
                more = [others]
            sample = self._transformed(what, transform, sample, rng, size, *more)
        target: Target = {**_named(what, "its labels", sample.target), "position": position}
        if replaces:
            target["replaces"] = [*dict.fromkeys(replaces)]
        return sample.image, target

    def _active(self, step: int, rng: np.random.Generator) -> list[Any]:
        """The transforms that are applied: of those of several images, each with its `p`, until
        they are closed."""
        closed = self.closed_from is not None and step >= self.closed_from
        return [
            one
            for one in self.transforms
            if not getattr(one, "others", 0)
            or (not closed and rng.random() < getattr(one, "p", 1.0))
        ]

    @property
    def _stream(self) -> Stream:
        if self.stream is None:
            self.stream = Stream(len(self.dataset), self.seed)
        return self.stream

    def _others(self, index: int, position: int, count: int, rng: np.random.Generator) -> list[int]:
        """The positions of so many images, of different ones as far as there are any."""
        first = position // self.near * self.near
        chosen: dict[int, int] = {}
        for other in (rng.permutation(self.near) + first).tolist():
            if len(chosen) < count and (image := self._stream[other]) != index:
                chosen.setdefault(image, other)
        return ([*chosen.values()] * count or [position] * count)[:count]

    def _first(
        self, index: int, position: int, active: list[Any], size: ImageSize
    ) -> tuple[Sample, list[str]]:
        """The sample as the first transform gets it, and the error of an image that it replaces."""
        what = image_name(self.dataset, index)
        sample, errors = _named(what, "reading it", self._read_once, index, position)
        if isinstance(sample.class_id, int) and any(
            getattr(one, "mixes_classes", False) for one in self.transforms
        ):
            classes = len(self.dataset.classes["class_id"].names)
            shares = tuple(float(k == sample.class_id) for k in range(classes))
            sample = replace(sample, class_id=shares)
        return _named(what, "reading it", resized_first, sample, active, size), errors

    def _read_once(self, index: int, position: int) -> tuple[Sample, list[str]]:
        """As `_read`; the images that are near in the stream are kept if others may take them."""
        if not any(getattr(one, "others", 0) for one in self.transforms):
            return self._read(index, position)
        if self._block != position // self.near:
            self._block = position // self.near
            self._kept.clear()
        if position in self._kept:
            return self._kept[position]
        found = self._read(index, position)
        if sum(one.image.nbytes for one, _ in self._kept.values()) < KEPT_BYTES:
            self._kept[position] = found
        return found

    def _read(self, index: int, position: int) -> tuple[Sample, list[str]]:
        """The sample, or its replacement and the error of the image that it replaces."""
        try:
            return read_sample(self.dataset, index), []
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
                        return read_sample(self.dataset, other), [str(named)]
            raise named from error

    def _transformed(
        self,
        what: str,
        transform: Any,
        sample: Sample,
        rng: np.random.Generator,
        size: ImageSize,
        *others: list[Sample],
    ) -> Sample:
        name = type(transform).__name__
        sample = _named(what, name, transform, sample, rng, size, *others)
        return self._checked(f"{what}: {name}", transform, sample, size)

    def _checked(self, what: str, transform: Any, sample: Any, image_size: ImageSize) -> Sample:
        """What a transform made of a sample; checked if it is a custom one."""
        if not is_custom(transform):
            return sample
        sample = checked_sample(what, sample, self.dataset.classes)
        limits, (height, width) = fixed_size(image_size), sample.size
        if limits is None:
            longest = int(np.max(image_size))
            limits = (longest, longest)
        if getattr(transform, "resizes", False) and (height > limits[0] or width > limits[1]):
            raise broken_contract(
                f"{what}: got an image of {width}x{height}; expected one that fits into image_size "
                f"{image_size}, as `resizes` is True (visionkit.Transform)"
            )
        return sample


def _named(what: str, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call; an error that is not visionkit's names what was done with which image:
    custom datasets and transforms raise anything."""
    try:
        return call(*arguments)
    except VisionkitError:
        raise
    except Exception as error:
        text = f"{what}: {doing}: {type(error).__name__}: {error}"
        if hint := shortage(error):
            raise ResourceError(f"{text}: {hint}") from error
        found = DataError(text, findings=[finding("contract", text, hint="")])
        found.add_note("".join(format_exception(error)))
        raise found from error


def scaled(
    image_size: ImageSize,
    multi_scale: tuple[float, float] | None,
    seed: int,
    step: int,
    grown_at: int | None = None,
) -> ImageSize:
    """The `image_size` of a batch: with `multi_scale` times a factor, random or growing until
    `grown_at`, each side a multiple of `DIVISOR`."""
    if multi_scale is None:
        return image_size
    if grown_at is None:
        factor = np.random.default_rng((seed, step, 5)).uniform(*multi_scale)
    else:
        low, high = multi_scale
        factor = high if step >= grown_at else low + (high - low) * step / grown_at
    if isinstance(image_size, str):
        return "x".join(str(scaled_side(int(pixels), factor)) for pixels in image_size.split("x"))
    if isinstance(image_size, int):
        return scaled_side(image_size, factor)
    return scaled_side(image_size[0], factor), scaled_side(image_size[1], factor)


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
