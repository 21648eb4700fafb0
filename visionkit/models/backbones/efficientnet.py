"""EfficientNet (Tan and Le 2019) and EfficientNetV2 (2021)."""

from __future__ import annotations

from typing import Literal

from torchvision.models import get_model

from visionkit.config.schema import Natural, NonNegative
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Norm, Rgb
from visionkit.models.backbones.trunk import Trunk


class EfficientNet(Trunk):
    """EfficientNet B0 to B7 and V2, levels c2..c5. Arguments: see `Trunk`."""

    def __init__(
        self,
        *,
        variant: Literal[
            "b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "v2_s", "v2_m", "v2_l"
        ] = "b0",
        taps: list[int] | None = None,
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"efficientnet_{variant}"
        super().__init__(
            arch,
            get_model(arch),
            taps=taps,
            weights=weights,
            norm=norm,
            norm_eps=norm_eps,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )
