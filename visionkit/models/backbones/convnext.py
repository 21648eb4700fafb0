"""ConvNeXt (Liu et al. 2022)."""

from __future__ import annotations

from typing import Literal

from torchvision.models import get_model

from visionkit.config.schema import Natural
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Rgb
from visionkit.models.backbones.trunk import Trunk


class ConvNeXt(Trunk):
    """ConvNeXt, levels c2..c5, rounded down; it has layer norms, so no `norm` arguments.

    Four stages, the stem and the first blocks being one. Arguments: see `Trunk`.
    """

    def __init__(
        self,
        *,
        variant: Literal["tiny", "small", "base", "large"] = "tiny",
        taps: list[int] | None = None,
        weights: str | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"convnext_{variant}"
        super().__init__(
            arch,
            get_model(arch),
            taps=taps,
            weights=weights,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )
