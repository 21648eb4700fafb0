"""ResNet (He et al. 2016), ResNeXt (Xie et al. 2017), Wide ResNet (Zagoruyko et al. 2016)."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torchvision.models import get_model

from visionkit.config.schema import Natural, NonNegative
from visionkit.errors import ConfigError
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Norm, Rgb, resolve
from visionkit.models.backbones.trunk import Trunk

STAGES = ["layer1", "layer2", "layer3", "layer4"]
STEPS = ["conv1", "bn1", "relu", "maxpool", *STAGES]


class ResNet(Trunk):
    """ResNet, levels c2..c5. Arguments: see `Trunk`, and

    `stem`: `small`, for images of some 28 px, is one 3x3 convolution of stride 1 without pooling;
    the levels are then c0..c3, and stage 1 of `freeze_at` includes `layer1`.

    `dilated`, for depths from 50 on: the last two stages keep the stride of the one before them
    and dilate their convolutions instead: c4 and c5 have stride 8, as c3. For class maps (Chen et
    al. 2017).
    """

    def __init__(
        self,
        *,
        depth: Literal[18, 34, 50, 101, 152] = 18,
        stem: Literal["imagenet", "small"] = "imagenet",
        dilated: bool = False,
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        if dilated and (depth < 50 or stem == "small"):
            raise ConfigError(
                f"dilated: got depth={depth}, stem={stem!r}; it needs a depth of 50, 101 or 152 "
                "and the stem 'imagenet'"
            )
        arch = f"resnet{depth}"
        model = _classifier(arch, norm, weights, dilated)
        if stem == "small":
            model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(
            arch,
            model,
            root="",
            steps=STEPS if stem == "imagenet" else ["conv1", "bn1", "relu", *STAGES],
            finest=4 if stem == "imagenet" else 1,
            undilated=get_model(arch) if dilated else None,
            weights=weights,
            norm=norm,
            norm_eps=norm_eps,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )


class ResNeXt(Trunk):
    """ResNeXt `depth_groups x width`, levels c2..c5. Arguments: see `Trunk`."""

    def __init__(
        self,
        *,
        variant: Literal["50_32x4d", "101_32x8d", "101_64x4d"] = "50_32x4d",
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"resnext{variant}"
        super().__init__(
            arch,
            _classifier(arch, norm, weights),
            root="",
            steps=STEPS,
            weights=weights,
            norm=norm,
            norm_eps=norm_eps,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )


class WideResNet(Trunk):
    """ResNet of doubled inner width, levels c2..c5. Arguments: see `Trunk`."""

    def __init__(
        self,
        *,
        depth: Literal[50, 101] = 50,
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        arch = f"wide_resnet{depth}_2"
        super().__init__(
            arch,
            _classifier(arch, norm, weights),
            root="",
            steps=STEPS,
            weights=weights,
            norm=norm,
            norm_eps=norm_eps,
            freeze_at=freeze_at,
            mean=mean,
            std=std,
        )


def _classifier(arch: str, norm: Norm, weights: str | None, dilated: bool = False) -> nn.Module:
    """torchvision's model. Each block starts as the identity (Goyal et al. 2017, section 5.1),
    unless its norms are frozen, which could never leave zero."""
    return get_model(
        arch,
        zero_init_residual=resolve(norm, weights) != "frozen",
        replace_stride_with_dilation=[False, dilated, dilated],
    )
