"""VGG (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from typing import Literal

from torchvision.models import get_model

from visionkit.config.schema import Natural, NonNegative
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Norm, Rgb
from visionkit.models.backbones.trunk import Trunk


class VGG(Trunk):
    """VGG, levels c2..c5, rounded down; c5 is c4 pooled. Arguments: see `Trunk`."""

    def __init__(
        self,
        *,
        depth: Literal[11, 13, 16, 19] = 11,
        batch_norm: bool = True,
        taps: list[int] | None = None,
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
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
