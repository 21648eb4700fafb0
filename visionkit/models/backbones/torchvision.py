"""torchvision's CNN classifiers as backbones: without their last layers, with named levels."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import log2
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torchvision import models

from visionkit.config.schema import Fraction, Natural, NonNegative, OneOf
from visionkit.errors import ConfigError
from visionkit.models.backbones.norm import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Norm,
    Normalize,
    Rgb,
    convert_norms,
    resolve_norm,
)
from visionkit.models.backbones.weights import fit, load
from visionkit.ops.layers import constant_bias, init_convs
from visionkit.types import Level, Size

RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
FAMILIES: dict[str, tuple[str, ...] | None] = {  # layers in the order they run; None: `features`
    **dict.fromkeys(("resnet", "resnext", "wide_resnet"), RESNET),
    "regnet": ("stem", *(f"trunk_output.block{number}" for number in (1, 2, 3, 4))),
    "shufflenet": ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    **dict.fromkeys(("convnext", "densenet", "efficientnet", "mobilenet", "squeezenet", "vgg")),
}
NAMES = tuple(models.list_models(models, include=[f"{family}*" for family in FAMILIES]))
DILATABLE = r"(resnet|wide_resnet|resnext)(50|101|152)|mobilenet_v3"
SIDE = 64  # pixels of the image that measures channels and strides


class Torchvision(nn.Module):
    """A CNN of torchvision without its classifier; levels `c2` (stride 4) to `c5` (stride 32).

    A level is the last map of its stride. Sides of maps are rounded up; ConvNeXt and DenseNet
    round down. SqueezeNet ends at `c4`, and its maps are up to two cells smaller. Layers after the
    last level are dropped; the others keep torchvision's parameter names under `body`.

    name: torchvision's name of the model, such as `resnet50` or `mobilenet_v3_large`.
    out_indices: layers whose maps are the levels, which are then named `f13` and so on. They count
        the modules of `features`, or of a model without it its top modules (in a ResNet, 4 is
        `layer1`). torchvision's detectors take [13, 16] of mobilenet_v3_large, with `norm_eps:
        1e-5`; its DeepLabV3 takes [4, 16], dilated.
    stem: `small`, for a ResNet on images of about 28 pixels: one 3x3 convolution of stride 1
        without pooling. The levels are then c0..c3, and `freeze_at: 1` includes `layer1`.
    vd: of a ResNet: a stem of three 3x3 convolutions, and shortcuts that halve the map by averaging
        (ResNet-D of He et al. 2019, arXiv 1812.01187). torchvision has no weights of it; `weights`
        may be the file of timm's `resnet50d` and of others like it.
    dilated: the last stages (two in a ResNet from 50 layers on, one in a MobileNetV3) keep the
        stride of the one before and dilate their convolutions (Chen et al. 2017, 1706.05587).
    reduced_tail: of a MobileNetV3: half the channels in the last stage, as for SSDLite.
    expanded: of a MobileNetV3: a level is the widened map inside the next block with a stride
        (Howard et al. 2019, section 6.3); without it, the map before that block.
    weights: null (random), `default` (torchvision's best, downloaded once), a member of its enums
        such as `ResNet50_Weights.IMAGENET1K_V1`, or the file of a torchvision classifier's
        state_dict. CheckpointError if it lacks a tensor of the backbone.
    partial_weights: whether tensors that `weights` lacks are random, with a warning.
    norm: `batch`; `frozen`, a BatchNorm that never changes; `group`, 32 groups or fewer; `auto`,
        which is `frozen` with weights and `batch` without.
    norm_eps: replaces the epsilon of each norm; 0 for torchvision's R-CNNs on a ResNet.
    norm_momentum: replaces the momentum of each batch norm: the share of a batch in the statistics.
    freeze_at: number of leading strides whose layers do not train, neither parameters nor
        statistics; strides are those without dilation. In a ResNet, 1 is the stem, 2 adds `layer1`.
    mean, std: of the pixels, in 0..1.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        *,
        name: Annotated[str, OneOf(NAMES)] = "resnet18",
        out_indices: list[Natural] | None = None,
        stem: Literal["imagenet", "small"] = "imagenet",
        vd: bool = False,
        dilated: bool = False,
        reduced_tail: bool = False,
        expanded: bool = False,
        weights: str | None = None,
        partial_weights: bool = False,
        norm: Norm = "auto",
        norm_eps: NonNegative | None = None,
        norm_momentum: Fraction | None = None,
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        super().__init__()
        # A residual block starts as the identity (Goyal et al. 2017, section 5.1), unless its norms
        # are frozen and could never leave zero.
        zero_init = resolve_norm(norm, weights) != "frozen"
        model = _classifier(name, stem, dilated, zero_init, reduced_tail, vd)
        classifier_keys = list(model.state_dict())
        convert_norms(model, norm, weights, norm_eps, norm_momentum)
        root, layers = _layers(name, model, expanded)
        maps = _measure(layers)
        # Levels and stages of a dilated model end where those of the undilated one do.
        undilated = _layers(name, _classifier(name, stem), expanded)[1] if dilated else None
        strides = [level.stride for level in (_measure(undilated) if undilated else maps)]
        if out_indices is None:
            outputs = _last_of_each_stride(strides, finest=4 if stem == "imagenet" else 1)
        else:
            outputs = _chosen(out_indices, len(layers), expanded)

        steps = list(layers)[: max(outputs) + 1]
        self.levels = {level: maps[index] for index, level in outputs.items()}
        self._plan = [(step, outputs.get(index)) for index, step in enumerate(steps)]
        self._frozen = _leading(steps, strides, freeze_at)
        self.normalize = Normalize(mean, std)
        kept = dict.fromkeys(step.partition(".")[0] for step in steps)
        whole = model.get_submodule(root)
        self.body = nn.Sequential(OrderedDict((part, getattr(whole, part)) for part in kept))
        for (_, level), (following, _) in pairwise(self._plan):
            if level and hasattr(layers[following], "inplace"):  # it would overwrite the level
                layers[following].inplace = False  # type: ignore[assignment]  # of every Module

        if weights is not None:
            prefix = f"{root}." if root else ""
            fit(
                self.body,
                load(f"{name}vd" if vd else name, weights),
                origin=weights,
                file_key=lambda key: prefix + key,
                ignored=classifier_keys,
                partial=partial_weights,
            )
        for step in self._frozen:
            layers[step].requires_grad_(False)
        self.train()

    def forward(
        self, images: Tensor, sizes: Sequence[Size] | Tensor | None = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to one (B, channels, ~H / stride, ~W / stride) map per level."""
        x = self.normalize(images, sizes, like=self.body)
        features = {}
        for step, level in self._plan:
            x = self.body.get_submodule(step)(x)
            if level:
                features[level] = x
        return features

    def train(self, mode: bool = True) -> Torchvision:
        """Frozen layers stay in evaluation mode."""
        super().train(mode)
        for step in self._frozen:
            self.body.get_submodule(step).eval()
        return self


def _classifier(
    name: str,
    stem: str = "imagenet",
    dilated: bool = False,
    zero_init: bool = False,
    reduced_tail: bool = False,
    vd: bool = False,
) -> nn.Module:
    """torchvision's model with random weights. ConfigError for a combination that it lacks."""
    if name not in NAMES:
        raise ConfigError(f"name: {OneOf(NAMES).mismatch(name)}")
    is_resnet = FAMILIES[_family(name)] is RESNET
    if stem == "small" and (dilated or not is_resnet):
        raise ConfigError(f"stem: got 'small'; expected 'imagenet' for {name}, dilated={dilated}")
    if vd and (dilated or stem == "small" or not is_resnet):
        raise ConfigError(
            f"vd: got true for {name} with stem={stem!r}, dilated={dilated}; expected a ResNet "
            "with stem='imagenet' that is not dilated"
        )
    if dilated and not re.match(DILATABLE, name):
        raise ConfigError(
            f"dilated: got true, which {name} cannot be; choose a ResNet from 50 layers on or a "
            "MobileNetV3"
        )
    if reduced_tail:
        _require_mobilenet_v3("reduced_tail", name)
    arguments: dict[str, Any] = {"reduced_tail": True} if reduced_tail else {}
    if is_resnet:
        arguments["zero_init_residual"] = zero_init
        arguments["replace_stride_with_dilation"] = [False, dilated, dilated]
    elif dilated:
        arguments["dilated"] = True
    model: Any = _vgg(name) if _family(name) == "vgg" else models.get_model(name, **arguments)
    if vd:
        _make_vd(model)
    if stem == "small":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    if _family(name) == "densenet":
        model.features.append(nn.ReLU(inplace=True))  # torchvision applies it in forward
    return model


def _make_vd(model: Any) -> None:
    """Change torchvision's ResNet into its variant `vd`, whose parameters have timm's names."""
    width = model.conv1.out_channels
    convs: list[nn.Module] = []
    for before, after, stride in ((3, width // 2, 2), (width // 2, width // 2, 1)):
        conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        convs += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    convs.append(nn.Conv2d(width // 2, width, 3, padding=1, bias=False))
    model.conv1 = nn.Sequential(*convs)
    init = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
    init_convs(model.conv1, init)
    for number, stage in enumerate((model.layer1, model.layer2, model.layer3, model.layer4)):
        block = stage[0]
        before, after = block.conv1.in_channels, getattr(block, "bn3", block.bn2).num_features
        halve = nn.AvgPool2d(2, ceil_mode=True) if number else nn.Identity()
        conv = nn.Conv2d(before, after, 1, bias=False)
        block.downsample = init_convs(nn.Sequential(halve, conv, nn.BatchNorm2d(after)), init)


def _vgg(name: str) -> Any:
    """A VGG without its dense layers, 120 million parameters that take seconds to draw: they stay
    on the meta device, without memory. Initial values are torchvision's."""
    with torch.device("meta"):
        model = models.get_model(name)
    for layer in model.get_submodule("features").children():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
            layer.to_empty(device="cpu").reset_parameters()
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            constant_bias(layer, 0.0)
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # as in SSD; the same where sides are multiples of 32
    return model


def _family(name: str) -> str:
    return next(family for family in FAMILIES if name.startswith(family))


def _layers(
    name: str, model: nn.Module, expanded: bool = False
) -> tuple[str, dict[str, nn.Module]]:
    """The module that holds the backbone, and its layers by name in the order they run; if
    `expanded`, with the layers of blocks that add nothing to their input in their place."""
    if expanded:
        _require_mobilenet_v3("expanded", name)
    steps = FAMILIES[_family(name)]
    if steps is not None:
        return "", {step: model.get_submodule(step) for step in steps}
    layers = dict(model.get_submodule("features").named_children())
    if not expanded:
        return "features", layers
    parts: dict[str, nn.Module] = {}
    for step, layer in layers.items():
        if getattr(layer, "use_res_connect", True):
            parts[step] = layer
        else:
            inner = layer.get_submodule("block").named_children()
            parts |= {f"{step}.block.{key}": part for key, part in inner}
    return "features", parts


def _require_mobilenet_v3(option: str, name: str) -> None:
    if not name.startswith("mobilenet_v3"):
        raise ConfigError(f"{option}: got true for {name}; only a MobileNetV3 has it")


@torch.no_grad()
def _measure(layers: dict[str, nn.Module]) -> list[Level]:
    """Channels and stride after each layer, from a small black image."""
    x = torch.zeros(1, 3, SIDE, SIDE)
    maps = []
    for layer in layers.values():
        x = layer.eval()(x)
        # Rounded, because a convolution without padding gives a map that is a little smaller.
        maps.append(Level(x.shape[1], 2 ** round(log2(SIDE / x.shape[-1]))))
    return maps


def _last_of_each_stride(strides: Sequence[int], finest: int) -> dict[int, str]:
    """Names of the levels by the index of their layer."""
    last = {stride: index for index, stride in enumerate(strides)}
    return {
        index: f"c{stride.bit_length() - 1}" for stride, index in last.items() if stride >= finest
    }


def _chosen(out_indices: Sequence[int], count: int, expanded: bool) -> dict[int, str]:
    if expanded:
        raise ConfigError("out_indices: got both it and expanded, which chooses the levels")
    if not out_indices or not all(0 <= index < count for index in out_indices):
        raise ConfigError(f"out_indices: got {out_indices}; expected one or more of 0..{count - 1}")
    return {index: f"f{index}" for index in sorted(out_indices)}


def _leading(steps: Sequence[str], strides: Sequence[int], freeze_at: int) -> list[str]:
    """The layers of the first `freeze_at` strides."""
    distinct = list(dict.fromkeys(strides[: len(steps)]))
    if freeze_at > len(distinct):
        raise ConfigError(f"freeze_at: got {freeze_at}; this backbone has {len(distinct)} strides")
    frozen = distinct[:freeze_at]
    return [step for step, stride in zip(steps, strides, strict=False) if stride in frozen]
