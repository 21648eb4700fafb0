"""ShuffleNet V2 (Ma et al. 2018)."""

from __future__ import annotations

from typing import Literal

from torchvision.models import get_model

from visionkit.config.schema import Natural, NonNegative
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Norm, Rgb
from visionkit.models.backbones.trunk import Trunk


class ShuffleNetV2(Trunk):
    """ShuffleNet V2 of that width, levels c2..c5. Arguments: see `Trunk`."""

    def __init__(
        self,
        *,
        width: Literal["x0_5", "x1_0", "x1_5", "x2_0"] = "x1_0",
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"shufflenet_v2_{width}"
        super().__init__(
            arch,
            get_model(arch),
            root="",
            steps=["conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"],
            weights=weights,
            norm=norm,
            norm_eps=norm_eps,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )
