"""The mask branch: for each region a small picture of its object's shape (He et al. 2017)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.ops import roi_align

from visionkit.global_batch import divisor

THRESHOLD = 0.5  # a pixel is part of the object from this probability


class MaskHead(nn.Sequential):
    """Convolutions over a pooled region."""

    def __init__(self, channels: int, hidden: int, convs: int) -> None:
        widths = [channels] + [hidden] * convs
        super().__init__(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True))
                for before, after in itertools.pairwise(widths)
            )
        )
        _init_convs(self)


class MaskPredictor(nn.Module):
    """Doubles the resolution, then one logit per class (background among them, but unused)."""

    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(channels, hidden, 2, stride=2)
        self.mask_fcn_logits = nn.Conv2d(hidden, num_classes + 1, 1)
        _init_convs(self)

    def forward(self, regions: Tensor, classes: Tensor) -> Tensor:
        """Logits (R, 2s, 2s) in float32 from (R, C, s, s), each for its region's own class."""
        # Convolving for all classes would be done in vain but for one each.
        own = self.mask_fcn_logits.weight[classes, :, 0, 0]  # (R, hidden)
        # Windows that do not overlap: each cell alone gives 2x2 new ones, a plain product of
        # matrices, which is several times faster than the transposed convolution's gradient.
        r, s = len(regions), regions.shape[-1]
        cells = regions.permute(0, 2, 3, 1).flatten(0, 2)  # (R * s * s, C)
        weight = self.conv5_mask.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * hidden, C)
        hidden = F.relu(F.linear(cells, weight, self.conv5_mask.bias.repeat(4)))
        hidden = hidden.view(r, s * s * 4, own.shape[1])
        logits = (hidden @ own[:, :, None]).view(r, s, s, 2, 2).float()
        bias = self.mask_fcn_logits.bias[classes][:, None, None]
        return logits.transpose(2, 3).reshape(r, 2 * s, 2 * s) + bias


def _init_convs(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def mask_targets(
    boxes: Sequence[Tensor], matched: Sequence[Tensor], masks: Sequence[Tensor], size: int
) -> Tensor:
    """Each region's cut of its object's mask, as shares in 0..1: (R, size, size) float32.

    For each image `boxes` (R_i, 4), `matched` (R_i,) object indices, `masks` (M, h, w) bool.
    """
    cuts = []
    for image_boxes, index, image_masks in zip(boxes, matched, masks, strict=True):
        rois = torch.cat([index[:, None].to(image_boxes.dtype), image_boxes], dim=1)
        cuts.append(roi_align(image_masks[:, None].float(), rois, size)[:, 0])
    return torch.cat(cuts)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy per pixel (R, s, s) of the regions; zero if there are none."""
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return loss / divisor(torch.tensor(float(targets.numel()), device=logits.device))


def encode_masks(probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """COCO's compressed RLE of masks (N, s, s) put into `boxes` (N, 4) of a (h, w) picture."""
    masks = []
    for mask_probs, box in zip(probs.cpu(), boxes.cpu(), strict=True):
        patch, top, left = paste(mask_probs, box, size)
        masks.append(encode_patch((patch > THRESHOLD).numpy(), top, left, size))
    return masks


def paste(probs: Tensor, box: Tensor, size: tuple[int, int]) -> tuple[Tensor, int, int]:
    """The part of a (h, w) picture that a mask (s, s) in `box` (4,) can cover, with top and left.

    Probabilities are interpolated between the mask's bins and fall off to zero within one bin
    around the box. The part is empty where the box is outside of the picture.
    """
    padded = F.pad(probs, (1, 1, 1, 1))
    grow = len(padded) / len(probs)
    center, half = (box[:2] + box[2:]) * 0.5, (box[2:] - box[:2]) * 0.5 * grow
    left, top = (center - half).long().tolist()
    right, bottom = ((center + half).long() + 1).tolist()
    row, next_row, row_share = _samples(top, bottom, size[0], len(padded))
    column, next_column, column_share = _samples(left, right, size[1], len(padded))
    lines = torch.lerp(padded[row], padded[next_row], row_share[:, None])
    patch = torch.lerp(lines[:, column], lines[:, next_column], column_share)
    return patch, max(top, 0), max(left, 0)


def _samples(start: int, stop: int, limit: int, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """For the pixels of `start` to `stop` within 0..limit: bin, next bin, and share of the next."""
    first, last = max(start, 0), min(stop, limit)
    pixel = torch.arange(first, max(first, last), dtype=torch.float32)
    position = ((pixel - start + 0.5) * (bins / max(stop - start, 1)) - 0.5).clamp(min=0)
    near = position.long()
    return near, (near + 1).clamp(max=bins - 1), position - near


def encode_patch(patch: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed RLE of a (h, w) picture that is empty but for a bool patch."""
    height, width = size
    columns = np.zeros((patch.shape[1], height), bool)  # RLE runs down the columns
    columns[:, top : top + patch.shape[0]] = patch.T
    edges = np.flatnonzero(np.diff(columns.ravel(), prepend=False, append=False))
    runs = np.diff(edges + left * height, prepend=0, append=height * width)
    runs = runs[:-1] if runs[-1] == 0 else runs
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
