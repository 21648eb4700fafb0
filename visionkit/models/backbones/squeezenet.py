"""SqueezeNet (Iandola et al. 2016)."""

from __future__ import annotations

from typing import Literal

from torchvision.models import get_model

from visionkit.config.schema import Natural
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Rgb
from visionkit.models.backbones.trunk import Trunk


class SqueezeNet(Trunk):
    """SqueezeNet 1.0 and 1.1, levels c2..c4; it has no norms, so no `norm` arguments.

    Its first convolution is not padded: maps are one or two cells smaller than elsewhere.
    Arguments: see `Trunk`.
    """

    def __init__(
        self,
        *,
        version: Literal["v1_0", "v1_1"] = "v1_1",
        taps: list[int] | None = None,
        weights: str | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"squeezenet{version[1:]}"
        super().__init__(
            arch,
            get_model(arch),
            taps=taps,
            weights=weights,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )
