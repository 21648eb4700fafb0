"""RegNet (Radosavovic et al. 2020)."""

from __future__ import annotations

from typing import Literal

from torchvision.models import get_model

from visionkit.config.schema import Natural, NonNegative
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Norm, Rgb
from visionkit.models.backbones.trunk import Trunk

Variant = Literal[
    "x_400mf",
    "x_800mf",
    "x_1_6gf",
    "x_3_2gf",
    "x_8gf",
    "x_16gf",
    "x_32gf",
    "y_400mf",
    "y_800mf",
    "y_1_6gf",
    "y_3_2gf",
    "y_8gf",
    "y_16gf",
    "y_32gf",
    "y_128gf",
]


class RegNet(Trunk):
    """RegNetX and RegNetY, levels c2..c5. Arguments: see `Trunk`."""

    def __init__(
        self,
        *,
        variant: Variant = "y_400mf",
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"regnet_{variant}"
        super().__init__(
            arch,
            get_model(arch),
            root="",
            steps=["stem", *(f"trunk_output.block{i}" for i in range(1, 5))],
            weights=weights,
            norm=norm,
            norm_eps=norm_eps,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )
