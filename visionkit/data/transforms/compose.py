"""Transforms as one function of an image and its target, outside of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionkit.data.image_io import to_pixels
from visionkit.data.resize import ImageSize, fit
from visionkit.data.sample import Sample
from visionkit.errors import ArgumentError
from visionkit.types import Target, Transform


class Compose:
    """Transforms as one function of an image and its target, for a dataset that is not visionkit's.

    `compose(image, target)` returns the image (3, h, w) uint8 at the network's size and its
    `visionkit.Target`: boxes, labels, masks, maps and the other keys, moved along; `size` and
    `orig_size` (h, w). `visionkit.data.loading.source.collate` makes a `Batch` of several.

    transforms: in their order, visionkit's or custom ones; none for validation.
    image_size: as in a config: the longest side, (shortest, longest), or "WIDTHxHEIGHT".

    Its randomness comes from torch's generator, which `torch.manual_seed` seeds, and the workers of
    a `DataLoader` each in their way.
    """

    def __init__(self, transforms: Sequence[Transform], image_size: ImageSize) -> None:
        self.transforms, self.image_size = [*transforms], image_size
        wrong = [one for one in self.transforms if isinstance(one, type) or not callable(one)]
        if wrong:
            hint = "instances, such as HorizontalFlip(p=0.5)"
            raise ArgumentError(f"transforms: got {wrong[0]!r:.60}; expected a list of {hint}")
        if several := [one for one in self.transforms if getattr(one, "others", 0)]:
            raise ArgumentError(
                f"transforms: {type(several[0]).__name__} takes several images, and Compose gets "
                "one; train from a config, or call the transform with samples: "
                "transform(sample, rng, image_size, others)"
            )

    def __call__(
        self, image: Any, target: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Target]:
        """`image`: a PIL image, an array (h, w, 3) or a tensor (3, h, w), see `Predictor.predict`;
        `target` as for `Sample.from_target`, in pixels of the image."""
        sample = Sample.from_target(to_pixels(image), target or {})
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        sample = resized_first(sample, self.transforms, self.image_size)
        for transform in self.transforms:
            sample = transform(sample, rng, self.image_size)
        return sample.image, sample.target()


def resized_first(sample: Sample, transforms: Sequence[Transform], image_size: ImageSize) -> Sample:
    """The sample at the network's size, unless one of the transforms will resize it."""
    if any(getattr(transform, "resizes", False) for transform in transforms):
        return sample
    return sample.resize(fit(sample.size, image_size))
