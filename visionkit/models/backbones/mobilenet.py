"""MobileNetV2 (Sandler et al. 2018) and MobileNetV3 (Howard et al. 2019)."""

from __future__ import annotations

from typing import Literal

from torchvision.models import get_model

from visionkit.config.schema import Natural, NonNegative
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Norm, Rgb
from visionkit.models.backbones.trunk import Trunk


class MobileNetV2(Trunk):
    """MobileNetV2, levels c2..c5. Arguments: see `Trunk`."""

    def __init__(
        self,
        *,
        taps: list[int] | None = None,
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = "mobilenet_v2"
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


class MobileNetV3(Trunk):
    """MobileNetV3, levels c2..c5. Arguments: see `Trunk`, and

    `dilated`: the last stage keeps the stride of the one before it and dilates its convolutions
    instead: c5 has stride 16, as c4. For class maps (Chen et al. 2017).

    torchvision's detectors take the taps [13, 16] of the large one, with `norm_eps: 1e-5`, its
    DeepLabV3 the taps [4, 16] of the large dilated one.
    """

    def __init__(
        self,
        *,
        size: Literal["small", "large"] = "large",
        dilated: bool = False,
        taps: list[int] | None = None,
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"mobilenet_v3_{size}"
        super().__init__(
            arch,
            get_model(arch, dilated=dilated),
            undilated=get_model(arch) if dilated else None,
            taps=taps,
            weights=weights,
            norm=norm,
            norm_eps=norm_eps,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )
