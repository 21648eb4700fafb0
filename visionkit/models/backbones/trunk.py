"""Base of the torchvision backbones: a classifier without its last layers, with named levels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import log2

import torch
from torch import Tensor, nn

from visionkit.errors import ConfigError
from visionkit.models.backbones.norm import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Norm,
    Normalize,
    Rgb,
    check_norms,
    convert_norms,
    resolve,
)
from visionkit.models.backbones.weights import download, fit, read
from visionkit.types import Level

SIDE = 64  # pixels of the image that measures channels and strides


class Trunk(nn.Module):
    """uint8 pixels in, named feature maps out; `types.Backbone` is the contract.

    A level is the last map of its stride: `c2` has stride 4, `c3` 8, `c4` 16, `c5` 32. The maps of
    an image whose sides are no multiples of 32 are rounded up, except where a family says
    otherwise. Modules beyond the last level are dropped; the others keep torchvision's parameter
    names under `body`.

    The arguments that all families share:

    - `weights`: null (random), `default` (torchvision's download), or the file of a torchvision
      classifier's state_dict. Misfits are logged as a warning; CheckpointError if less than half
      of the backbone fits.
    - `norm`: `batch`; `frozen`, a BatchNorm that never changes; `group`, 32 groups or fewer;
      `auto`, which is `frozen` with weights and `batch` without. `norm_eps` replaces each norm's
      own epsilon (torchvision's COCO weights of R-CNNs on a ResNet were trained with 0).
    - `freeze_at`: number of leading stages that do not train, neither parameters nor statistics.
      A stage is all modules of one stride: in a ResNet, 1 is the stem, 2 adds `layer1` (c2).
    - `mean`, `std` of the pixels, in 0..1.
    - `taps`, for families that keep their layers in torchvision's `features`: the indices of those
      whose maps to give instead, named `f13` and so on.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        arch: str,
        model: nn.Module,
        *,
        root: str = "features",
        steps: Sequence[str] | None = None,
        finest: int = 4,
        undilated: nn.Module | None = None,
        taps: list[int] | None = None,
        weights: str | None = None,
        norm: Norm = "auto",
        norm_eps: float | None = None,
        freeze_at: int = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        """`model` is torchvision's classifier `arch`, `root` the part of it that is the backbone.

        `steps` are the modules of the root in the order they run, by default its children. They
        give the levels from stride `finest` on, or the maps after the steps numbered in `taps`.
        Where `model` is dilated, `undilated` is the same one without: its strides tell where
        levels and stages end, and how they are called.
        """
        super().__init__()
        classifier_keys = list(model.state_dict())
        whole = model.get_submodule(root)
        found = convert_norms(whole, resolve(norm, weights), norm_eps)
        check_norms(found, norm, norm_eps)
        steps = list(steps or (name for name, _ in whole.named_children()))
        maps = _measure([whole.get_submodule(step) for step in steps])
        strides = [level.stride for level in maps]
        if undilated is not None:
            plain = undilated.get_submodule(root)
            strides = [level.stride for level in _measure([plain.get_submodule(s) for s in steps])]
        names = _last_of_each_stride(strides, finest) if taps is None else _numbered(taps, steps)
        steps, strides = steps[: max(names) + 1], strides[: max(names) + 1]

        self.levels = {name: maps[index] for index, name in names.items()}
        self._plan = [(step, names.get(index)) for index, step in enumerate(steps)]
        self._frozen = _leading(steps, strides, freeze_at)
        self.normalize = Normalize(mean, std)
        kept = dict.fromkeys(step.partition(".")[0] for step in steps)
        self.body = nn.Sequential(OrderedDict((name, getattr(whole, name)) for name in kept))
        for (_, level), (following, _) in pairwise(self._plan):
            if level and hasattr(self.body.get_submodule(following), "inplace"):
                self.body.get_submodule(following).inplace = False  # would overwrite the level

        if weights is not None:
            fit(
                self.body,
                download(arch) if weights == "default" else read(weights),
                origin=weights,
                file_key=lambda key: f"{root}.{key}" if root else key,
                ignored=classifier_keys,
            )
        for step in self._frozen:
            self.body.get_submodule(step).requires_grad_(False)
        self.train()

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to one (B, channels, ~H / stride, ~W / stride) map per level."""
        x = self.normalize(images, sizes, like=self.body)
        features = {}
        for step, level in self._plan:
            x = self.body.get_submodule(step)(x)
            if level:
                features[level] = x
        return features

    def train(self, mode: bool = True) -> Trunk:
        """As usual, except that frozen stages stay as in evaluation."""
        super().train(mode)
        for step in self._frozen:
            self.body.get_submodule(step).eval()
        return self


@torch.no_grad()
def _measure(modules: Sequence[nn.Module]) -> list[Level]:
    """Channels and stride after each module, from a small black image."""
    x = torch.zeros(1, 3, SIDE, SIDE)
    maps = []
    for module in modules:
        x = module.eval()(x)
        # Rounded, because a convolution without padding gives a map that is a little smaller.
        maps.append(Level(x.shape[1], 2 ** round(log2(SIDE / x.shape[-1]))))
    return maps


def _last_of_each_stride(strides: Sequence[int], finest: int) -> dict[int, str]:
    """Names of the levels by the index of their step."""
    last = {stride: index for index, stride in enumerate(strides)}
    return {
        index: f"c{stride.bit_length() - 1}" for stride, index in last.items() if stride >= finest
    }


def _numbered(taps: Sequence[int], steps: Sequence[str]) -> dict[int, str]:
    if not taps or not all(0 <= tap < len(steps) for tap in taps):
        raise ConfigError(
            f"taps: got {taps}; name one or more of this backbone's 0..{len(steps) - 1}"
        )
    return {tap: f"f{tap}" for tap in sorted(taps)}


def _leading(steps: Sequence[str], strides: Sequence[int], freeze_at: int) -> list[str]:
    """The steps of the first `freeze_at` stages."""
    stages = list(dict.fromkeys(strides))
    if freeze_at > len(stages):
        raise ConfigError(f"freeze_at: got {freeze_at}; this backbone has {len(stages)} stages")
    frozen = stages[:freeze_at]
    return [step for step, stride in zip(steps, strides, strict=True) if stride in frozen]
