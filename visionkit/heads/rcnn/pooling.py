"""Features of regions, read from the levels of a pyramid that are fit for it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from visionkit.errors import ConfigError
from visionkit.ops.roi_align import roi_align
from visionkit.types import Level

COARSEST = 32  # input pixels per cell; what lies above serves large anchors, not details


class RegionPool:
    """Cuts regions out of the feature maps: grids of `size` by `size` bins.

    roi_levels: names of the levels to read; by default those of stride 32 and finer.
    """

    def __init__(
        self,
        levels: dict[str, Level],
        roi_levels: Sequence[str] | None,
        size: int,
        sampling_ratio: int,
    ) -> None:
        fine = [name for name, level in levels.items() if level.stride <= COARSEST]
        self.names = list(roi_levels or fine or levels)
        unknown = [name for name in self.names if name not in levels]
        if unknown:
            raise ConfigError(f"roi_levels: there is no level {unknown[0]!r}; found {[*levels]}")
        channels = {name: level.channels for name, level in levels.items()}
        if len(set(channels.values())) > 1:
            raise ConfigError(
                f"the levels have unequal channels {channels}, which a two-stage head cannot "
                "read; put a neck such as fpn.FPN between"
            )
        self.channels = channels[self.names[0]]
        self.strides = [levels[name].stride for name in self.names]
        self.size = size
        self.sampling_ratio = sampling_ratio

    def __call__(self, features: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(R, C, size, size), R boxes of all images in order."""
        pyramid = [features[name] for name in self.names]
        return roi_align(pyramid, boxes, self.strides, self.size, self.sampling_ratio)
