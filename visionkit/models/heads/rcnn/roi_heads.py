"""The second stage: which class a proposed region shows, its exact box, and its mask.

Boxes as in Girshick 2015, masks as in He et al. 2017.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align as torchvision_roi_align

from visionkit.errors import ConfigError
from visionkit.models.heads.matching import GroundTruth, Matcher, Sampler, marginal_targets
from visionkit.ops.boxes import OFFSET_WEIGHTS, clip, decode, encode
from visionkit.ops.layers import OptionalNorm, conv_block
from visionkit.ops.losses import marginal_cross_entropy
from visionkit.ops.nms import Among, suppress
from visionkit.ops.roi_align import flatten_boxes, roi_align
from visionkit.types import Features, Level, Loss, Size

MIN_EXTENT = 1e-2  # pixels; detections that are thinner than that are dropped
CANDIDATES = 4  # detections per proposal, on average, that enter non-maximum suppression
COARSEST = 32  # input pixels per cell; coarser levels serve large anchors, not details


class RoIHeads(nn.Module):
    """Learns from sampled proposals; turns proposals into detections.

    convs, norm: convolutions of the box head and the norm after each.
    hidden: width of its hidden layers; by default 4 times the pool's channels.
    score_threshold: the least probability of a class for a detection.
    nms_iou, nms: of two detections that overlap more than that, the worse goes: those of one
        `class`, or `all`.
    max_detections: most detections per image, over all classes.
    mask_head, mask_predictor: set by Mask R-CNN.
    """

    mask_head: MaskHead
    mask_predictor: MaskPredictor

    def __init__(
        self,
        num_classes: int,
        pool: RoIPooler,
        matcher: Matcher,
        sampler: Sampler,
        *,
        convs: int,
        norm: OptionalNorm,
        hidden: int | None,
        score_threshold: float,
        nms_iou: float,
        nms: Among,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pool = pool
        self.matcher, self.sampler = matcher, sampler
        hidden = hidden or 4 * pool.channels
        self.box_head: nn.Module = (
            ConvBoxHead(pool.channels, pool.size, hidden, convs, norm)
            if convs
            else BoxHead(pool.channels, pool.size, hidden)
        )
        self.box_predictor = BoxPredictor(hidden, num_classes)
        self.score_threshold = score_threshold
        self.nms_iou, self.nms = nms_iou, nms
        self.max_detections = max_detections

    def forward(self, features: Features, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1) and offsets (R, K + 1, 4) of boxes (R, 4) of these images."""
        return self.box_predictor(self.box_head(self.pool(features, boxes, image)))

    @torch.no_grad()
    def sample(
        self, proposals: Tensor, count: Tensor, truths: Sequence[GroundTruth]
    ) -> SampledRegions:
        """Samples regions among the first `count` (B,) of the proposals (B, M, 4) of each image
        and the boxes of its objects."""
        boxes, matches, classes, targets = [], [], [], []
        for found, used, truth in zip(proposals, count.tolist(), truths, strict=True):
            found = torch.cat([found[:used], truth.boxes])
            matched = self.matcher(found, truth)
            positive, negative = self.sampler(matched, truth.noise)
            sampled = torch.cat([positive, negative])
            boxes.append(found[sampled])
            matches.append(matched[sampled])
            classes += [truth.labels[matched[positive]] + 1, torch.zeros_like(negative)]
            targets += [truth.boxes[matched[positive]], found[negative]]
        merged = torch.cat(classes)
        partly = any(truth.partially_labeled for truth in truths)
        possible = _possible(merged, boxes, truths, self.num_classes) if partly else None
        return SampledRegions(boxes, matches, merged, torch.cat(targets), possible, truths)

    def loss(self, features: Features, regions: SampledRegions) -> dict[str, Loss]:
        """`classifier` and `box_reg`, each divided by the number of regions.

        A region without an object shows background or one of the classes that are not labeled
        in its image. Where the network finds one of those more probable than background, only
        the sum of all of them is raised (the marginal loss of Shi et al. 2021); elsewhere it is
        background. With the sum alone, background would be learned too late.
        """
        boxes, image = flatten_boxes(regions.boxes)
        logits, offsets = self(features, boxes, image)
        positive = torch.where(regions.classes > 0)[0]
        targets = encode(regions.targets[positive], boxes[positive], OFFSET_WEIGHTS)
        own_offsets = offsets[positive, regions.classes[positive]]
        if regions.possible is None:
            classifier = F.cross_entropy(logits, regions.classes, reduction="sum")
        else:
            possible = marginal_targets(logits.detach(), regions.possible)
            classifier = marginal_cross_entropy(logits, possible).sum()
        box_reg = F.smooth_l1_loss(own_offsets, targets, beta=1 / 9, reduction="sum")
        count = logits.new_full((), len(logits))
        return {"classifier": Loss(classifier, count), "box_reg": Loss(box_reg, count)}

    def detect(
        self, features: Features, proposals: Tensor, count: Tensor, sizes: Size | Tensor
    ) -> dict[str, Tensor]:
        """From the first `count` (B,) of the proposals (B, M, 4) of each image: `boxes` in input
        pixels, `scores`, `labels` and `count`, as `suppress` returns them."""
        used = valid_rows(count, proposals.shape[1])
        rows = used_rows(used)
        boxes, image = proposals.flatten(0, 1)[rows], rows // used.shape[1]
        logits, offsets = (pad_rows(x, rows, used) for x in self(features, boxes, image))
        scores = logits.softmax(-1)[..., 1:]  # (B, M, K)
        passed = used[:, :, None] & (scores > self.score_threshold)
        scores = scores.masked_fill(~passed, -1).flatten(1)
        scores, index = best_scores(scores, CANDIDATES * used.shape[1], self.max_detections)
        region, labels = index // self.num_classes, index % self.num_classes
        offsets = _gather(offsets.flatten(1, 2), index + region + 1)  # past each background
        boxes = clip(decode(offsets, _gather(proposals, region), OFFSET_WEIGHTS), sizes)
        solid = (boxes[..., 2:] - boxes[..., :2] >= MIN_EXTENT).all(-1)
        scores = scores.masked_fill(~solid, -1)
        return suppress(
            boxes, scores, labels, iou=self.nms_iou, among=self.nms, count=self.max_detections
        )


def valid_rows(count: Tensor, size: int) -> Tensor:
    """Which of `size` rows are among the first `count` (B,): (B, size) bool."""
    return torch.arange(size, device=count.device) < count[:, None]


def used_rows(valid: Tensor) -> Tensor:
    """Indices (R,) of the rows to compute, of all B * M: those that are `valid` (B, M)."""
    return valid.flatten().nonzero()[:, 0]


def pad_rows(values: Tensor, rows: Tensor, valid: Tensor) -> Tensor:
    """Values (R, ...) at their `rows` (R,) of all B * M: (B, M, ...), and zeros elsewhere."""
    size = valid.shape[0] * valid.shape[1]
    padded = values.new_zeros(size, *values.shape[1:]).index_copy_(0, rows, values)
    return padded.unflatten(0, valid.shape)


def best_scores(scores: Tensor, most: int, least: int) -> tuple[Tensor, Tensor]:
    """The `most` highest of the scores (B, N) and their indices, both in the order of indices.

    Only as many as one image has that are not negative, but no fewer than `least`; in an exported
    model always `most`.
    """
    if not torch.compiler.is_compiling():
        most = min(most, max(least, int((scores >= 0).sum(1).amax())))
    index = scores.topk(torch.sym_min(most, scores.shape[1]), sorted=False).indices.sort().values
    return scores.gather(1, index), index


def _gather(boxes: Tensor, index: Tensor) -> Tensor:
    """Rows (B, n, 4) of boxes (B, N, 4) at `index` (B, n)."""
    return boxes.gather(1, index[:, :, None].expand(-1, -1, 4))


class SampledRegions(NamedTuple):
    """The regions to learn from. In `classes` 0 is background, and label k is k + 1."""

    boxes: list[Tensor]  # (R_i, 4) for each image
    matched: list[Tensor]  # (R_i,) for each image: its object, or negative
    classes: Tensor  # (R,) for all images
    targets: Tensor  # (R, 4) box of the object for all images; the region's own for background
    possible: Tensor | None  # (R, K + 1) bool: what each may show; None: its class alone
    truths: Sequence[GroundTruth]  # of each image

    def positive(self, known: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Boxes and matched objects of each image, and the labels of all: the regions of objects
        whose mask is known; `known` is (M_i,) bool for each image."""
        keep = []
        for matched, image_known in zip(self.matched, known, strict=True):
            keep.append(matched >= 0)
            keep[-1][matched >= 0] = image_known[matched[matched >= 0]]
        boxes = [b[k] for b, k in zip(self.boxes, keep, strict=True)]
        objects = [m[k] for m, k in zip(self.matched, keep, strict=True)]
        return boxes, objects, self.classes[torch.cat(keep)] - 1


def _possible(
    classes: Tensor, boxes: Sequence[Tensor], truths: Sequence[GroundTruth], num_classes: int
) -> Tensor:
    """(R, K + 1): the class of a region; for background also what its image does not label."""
    every = torch.ones(num_classes, dtype=torch.bool, device=classes.device)
    labeled = torch.stack([every if t.labeled is None else t.labeled for t in truths])
    _, image = flatten_boxes(boxes)
    possible = F.one_hot(classes, num_classes + 1).bool()
    possible[:, 1:] |= (classes == 0)[:, None] & ~labeled[image]
    return possible


class RoIPooler:
    """Cuts regions out of the feature maps: grids of `size` by `size` bins.

    roi_levels: names of the levels to read; by default those of stride 32 and finer.
    """

    def __init__(
        self,
        levels: dict[str, Level],
        roi_levels: Sequence[str] | None,
        size: int,
        sampling_ratio: int,
    ) -> None:
        fine = [name for name, level in levels.items() if level.stride <= COARSEST]
        self.names = list(roi_levels or fine or levels)
        unknown = [name for name in self.names if name not in levels]
        if unknown:
            raise ConfigError(f"roi_levels: unknown level {unknown[0]!r}; levels: {[*levels]}")
        channels = {name: level.channels for name, level in levels.items()}
        if len(set(channels.values())) > 1:
            raise ConfigError(
                f"the levels have unequal channels {channels}, which a two-stage head cannot "
                "read; put a neck such as FPN between"
            )
        self.channels = channels[self.names[0]]
        self.strides = [levels[name].stride for name in self.names]
        self.size = size
        self.sampling_ratio = sampling_ratio

    def __call__(self, features: Features, boxes: Tensor, image: Tensor) -> Tensor:
        """(R, C, size, size) of boxes (R, 4) of the images (R,)."""
        pyramid = [features[name] for name in self.names]
        return roi_align(pyramid, boxes, image, self.strides, self.size, self.sampling_ratio)


class BoxHead(nn.Module):
    """Two hidden layers over a pooled region."""

    def __init__(self, channels: int, size: int, hidden: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * size**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, size, size) to (R, hidden)."""
        return F.relu(self.fc7(F.relu(self.fc6(regions.flatten(1)))))


class ConvBoxHead(nn.Sequential):
    """Convolutions and one hidden layer over a pooled region: (R, C, size, size) to (R, hidden).

    After Wu and He 2018, appendix.
    """

    def __init__(self, channels: int, size: int, hidden: int, convs: int, norm: OptionalNorm):
        blocks = [conv_block(channels, channels, norm) for _ in range(convs)]
        linear = nn.Linear(channels * size**2, hidden)
        super().__init__(*blocks, nn.Flatten(), linear, nn.ReLU(inplace=True))
        _init_convs(self)


class BoxPredictor(nn.Module):
    """A logit for background and each of K classes, and box offsets for each of them."""

    def __init__(self, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(hidden, num_classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 * (num_classes + 1))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(R, hidden) to (R, K + 1) and (R, K + 1, 4), in float32."""
        offsets = self.bbox_pred(hidden).float().unflatten(1, (-1, 4))
        return self.cls_score(hidden).float(), offsets


class MaskHead(nn.Sequential):
    """Convolutions over a pooled region."""

    def __init__(self, channels: int, hidden: int, convs: int, norm: OptionalNorm) -> None:
        widths = itertools.pairwise([channels] + [hidden] * convs)
        super().__init__(*(conv_block(before, after, norm) for before, after in widths))
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
        # Only the logits of one class are needed of each region.
        own = self.mask_fcn_logits.weight[classes, :, 0, 0]  # (R, hidden)
        # Windows that do not overlap: each cell alone gives 2x2 new ones, a plain product of
        # matrices, which is several times faster than the transposed convolution's gradient.
        r, s = regions.shape[0], regions.shape[-1]
        cells = regions.permute(0, 2, 3, 1).flatten(0, 2)  # (R * s * s, C)
        weight = self.conv5_mask.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * hidden, C)
        hidden = F.relu(F.linear(cells, weight, self.conv5_mask.get_parameter("bias").repeat(4)))
        hidden = hidden.view(r, s * s * 4, own.shape[1])
        logits = (hidden @ own[:, :, None]).view(r, s, s, 2, 2).float()
        bias = self.mask_fcn_logits.get_parameter("bias")[classes][:, None, None]
        return logits.transpose(2, 3).reshape(r, 2 * s, 2 * s) + bias


def _init_convs(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
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
        cuts.append(torchvision_roi_align(image_masks[:, None].float(), rois, size)[:, 0])
    return torch.cat(cuts)
