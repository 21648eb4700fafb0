"""DenseNet (Huang et al. 2017)."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torchvision.models import get_model

from visionkit.config.schema import Natural, NonNegative
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Norm, Rgb
from visionkit.models.backbones.trunk import Trunk


class DenseNet(Trunk):
    """DenseNet, levels c2..c5, rounded down from c3 on. Arguments: see `Trunk`."""

    def __init__(
        self,
        *,
        depth: Literal[121, 161, 169, 201] = 121,
        taps: list[int] | None = None,
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"densenet{depth}"
        model = get_model(arch)
        model.features.append(nn.ReLU(inplace=True))  # which torchvision applies in forward
        super().__init__(
            arch,
            model,
            taps=taps,
            weights=weights,
            norm=norm,
            norm_eps=norm_eps,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )
