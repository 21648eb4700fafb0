"""What heads have in common that detect objects at every place of every level at once.

A place is an anchor, a box of a fixed size and ratio (Ren et al. 2015), or a location, a point, one
for each cell. For each, such a head predicts a score per class and four numbers, which lead from
the place to a box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from visionkit.config.schema import Count, Fraction, Range
from visionkit.errors import ConfigError
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.models.head import Head
from visionkit.ops.boxes import Weights, clip, decode
from visionkit.ops.layers import cell_corners
from visionkit.ops.nms import Among, detections, suppress, vote
from visionkit.types import Batch, Dataset, Evaluator, Features, HeadPrediction, Level, Size

Prior = Annotated[float, Range(low=0, high=0.5, open=True)]


class Anchors(NamedTuple):
    """The P anchors of all levels: level by level, row by row, cell by cell."""

    corners: Tensor  # (P, 4) in input pixels
    per_level: list[int]
    image_size: Size  # (h, w) of the batch with its padding
    weights: Weights = (1.0, 1.0, 1.0, 1.0)  # of the offsets

    def boxes(self, offsets: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Boxes (..., 4) at `offsets` (..., 4) from the anchors `index` (...)."""
        return decode(offsets, self.corners[index], self.weights)


class AnchorGenerator(nn.Module):
    """The same few boxes around the corner of every cell of every level.

    sizes: for each level, the square roots of the anchors' areas, in input pixels; by default one
        size, eight times the stride. Every level has equally many, since they share one predictor.
    ratios: height divided by width. Each size comes in each ratio.
    """

    shapes: Tensor

    def __init__(
        self,
        levels: dict[str, Level],
        sizes: Sequence[Sequence[float]] | None,
        ratios: Sequence[float],
    ) -> None:
        super().__init__()
        if sizes is None:
            sizes = [[8 * level.stride] for level in levels.values()]
        lengths = [len(level_sizes) for level_sizes in sizes]
        if len(lengths) != len(levels) or len(set(lengths)) != 1:
            raise ConfigError(
                f"anchor_sizes: got lists of {lengths} sizes; expected equally many for each of "
                f"the {len(levels)} levels {[*levels]}"
            )
        self.per_cell = lengths[0] * len(ratios)
        if not self.per_cell:
            raise ConfigError("anchor_sizes, anchor_ratios: give at least one of each")
        self.levels = levels
        shapes = torch.stack([_shapes(level_sizes, ratios) for level_sizes in sizes])
        self.register_buffer("shapes", shapes, persistent=False)  # (levels, A, 4)

    def forward(self, features: Features) -> Anchors:
        image_size = padded_size(self.levels, features)
        corners = [
            _at_every_cell(shapes, features[name].shape[-2:], image_size)
            for name, shapes in zip(self.levels, self.shapes, strict=True)
        ]
        return Anchors(torch.cat(corners), [part.shape[0] for part in corners], image_size)


def _shapes(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors (A, 4) around the origin, in whole pixels, ratio by ratio."""
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    scale = torch.tensor(sizes, dtype=torch.float32)
    w, h = (scale * (1 / root)).flatten(), (scale * root).flatten()
    return (torch.stack([-w, -h, w, h], dim=1) / 2).round()


def _at_every_cell(shapes: Tensor, grid: Sequence[int], image_size: Size) -> Tensor:
    # Not the level's stride: it differs where a level is padded, and torchvision does so too.
    stride_y, stride_x = (pixels // cells for pixels, cells in zip(image_size, grid, strict=True))
    corners = cell_corners(grid, (stride_y, stride_x), shapes.device)
    return (corners.repeat(1, 2)[:, None] + shapes).view(-1, 4)


class Locations(NamedTuple):
    """The P locations of all levels, one level after the other, in input pixels."""

    centers: Tensor  # (P, 2): x, y
    strides: Tensor  # (P,): side of a cell
    per_level: list[int]
    image_size: Size  # (h, w) of the batch with its padding

    def boxes(self, distances: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Boxes (..., 4) at `distances` (..., 4), in cells, from the locations `index` (...)."""
        centers = self.centers[index]
        pixels = distances * self.strides[index][..., None]
        return torch.cat([centers - pixels[..., :2], centers + pixels[..., 2:]], -1)

    def contained(self, boxes: Tensor) -> Tensor:
        """Whether each location lies within each of the boxes (..., N, 4): (..., N, P) bool."""
        x, y = self.centers.T
        x1, y1, x2, y2 = boxes[..., None].unbind(-2)
        return torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y)) > 0

    def nearest_of(self, boxes: Tensor, allowed: Tensor) -> Tensor:
        """For each location the object among the boxes (N, 4), N > 0, that has it as the nearest to
        its center of those `allowed` (N, P), or -1: (P,). Of several objects with one nearest
        location, the nearest has it. Of locations of several levels at one point, the finest is."""
        offsets = self.centers - ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]  # (N, P, 2)
        distances = offsets.square().sum(2).masked_fill(~allowed, math.inf)
        least, location = distances.min(1)
        order = least.argsort(stable=True)
        ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order))
        ranks = ranks.masked_fill(least.isinf(), len(order))
        best = location.new_full((len(self.centers),), len(order))
        best = best.scatter_reduce(0, location, ranks, "amin")
        return order[best.clamp(max=len(order) - 1)].masked_fill(best == len(order), -1)


def locations_of(levels: dict[str, Level], features: Features) -> Locations:
    """The locations at which heads without anchors detect in `features` of these levels."""
    image_size = padded_size(levels, features)
    grids = [grid(features[name], level.stride, image_size) for name, level in levels.items()]
    strides = [
        centers.new_full(centers.shape[:1], level.stride)
        for centers, level in zip(grids, levels.values(), strict=True)
    ]
    per_level = [part.shape[0] for part in grids]
    return Locations(torch.cat(grids), torch.cat(strides), per_level, image_size)


def grid(feature: Tensor, stride: int, image_size: Size) -> Tensor:
    """Centers (h * w, 2), x and y in input pixels, of the cells of `feature` (B, C, h, w)."""
    h, w = feature.shape[-2:]
    # Levels coarser than 32 rarely divide the padded image. Like torchvision, whose weights
    # were trained so, their locations are spread evenly over it.
    step = (stride, stride) if stride <= 32 else (image_size[0] // h, image_size[1] // w)
    return cell_corners((h, w), step, feature.device)


def padded_size(levels: dict[str, Level], features: Features) -> Size:
    """The (h, w) of the batch with its padding, a multiple of the finest level's stride."""
    finest, *_ = levels
    h, w = features[finest].shape[-2:]
    return h * levels[finest].stride, w * levels[finest].stride


Places: TypeAlias = Anchors | Locations


class DenseHead(Head):
    """Base of the heads that detect objects, each with class, score and box, in one stage.

    A subclass adds its layers, `dense_predictions` and `loss`.

    score_threshold, pre_nms_top_n: detections must score higher, and be among the best of their
        level, to enter the non-maximum suppression.
    nms_iou, max_detections: overlap at which the weaker of two detections goes, and how many stay
        in an image.
    nms: whether only the detections of one `class` suppress each other, or `all`, so that no
        object is found as two classes.
    score_voting: whether a detection's box becomes the mean of all candidates around it, those
        that it suppressed among them (Kim & Lee 2020).
    """

    required_targets: ClassVar[tuple[str, ...]] = ("boxes", "labels")
    class_key = "labels"
    main_metric = "bbox/AP"
    default_transforms = ("HorizontalFlip", "ScaleJitter")
    row_outputs: ClassVar[tuple[str, ...]] = ()  # of `forward`, with a row for each candidate

    def __init__(
        self,
        levels: dict[str, Level],
        *,
        score_threshold: Fraction,
        pre_nms_top_n: Count = 1000,
        nms_iou: Fraction = 0.6,
        nms: Among = "class",
        score_voting: bool = False,
        max_detections: Count = 100,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.cell = min(level.stride for level in levels.values())
        self.score_threshold, self.pre_nms_top_n = score_threshold, pre_nms_top_n
        self.nms_iou, self.nms, self.max_detections = nms_iou, nms, max_detections
        self.score_voting = score_voting

    @property
    def channels(self) -> int:
        """Of all levels, for layers that they share. ConfigError if they differ."""
        channels = {name: level.channels for name, level in self.levels.items()}
        if len(set(channels.values())) > 1:
            raise ConfigError(
                f"{type(self).__name__} needs feature maps of equal channels, got {channels}; "
                "add `neck: {type: FPN}`"
            )
        return next(iter(channels.values()))

    def dense_predictions(self, features: Features) -> tuple[Tensor, Tensor, Places]:
        """For P places the scores (B, P, K) of the classes, and the offsets or distances (B, P, 4)
        from which `Places.boxes` computes the boxes."""
        raise NotImplementedError

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """The best of each level, M in all: `boxes` (B, M, 4) in input pixels, `scores` and
        `labels` (B, M). M depends on the size of the batch's images and `pre_nms_top_n` alone."""
        scores, offsets, places = self.dense_predictions(features)
        best = best_of_each_level(scores, offsets, places, self.pre_nms_top_n)
        boxes = clip(best.boxes, places.image_size if sizes is None else sizes)
        return {"boxes": boxes, "scores": best.scores, "labels": best.labels}

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """The detections that stay, as `visionkit.ops.nms.suppress` returns them, and `vote`."""
        boxes, scores, labels = outputs["boxes"], outputs["scores"], outputs["labels"]
        scores = scores.masked_fill(scores <= self.score_threshold, -1)
        others = {name: outputs[name] for name in self.row_outputs}
        found = suppress(
            *(boxes, scores, labels),
            iou=self.nms_iou,
            among=self.nms,
            count=self.max_detections,
            **others,
        )
        return vote(found, boxes, scores, labels) if self.score_voting else found

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `boxes` (N, 4), `scores` (N,) and `labels` (N,), best first; and its N
        `masks` in COCO's compressed RLE, if `postprocess` returns masks."""
        return detections(self.postprocess(outputs, batch.padded_size), batch)

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox",))


class Best(NamedTuple):
    """The M best candidates of each image."""

    boxes: Tensor  # (B, M, 4), not clipped
    labels: Tensor  # (B, M)
    scores: Tensor  # (B, M)
    levels: Tensor  # (B, M): numbers of the levels
    places: Tensor  # (B, M): indices of the places


def best_of_each_level(scores: Tensor, offsets: Tensor, places: Places, top_n: int) -> Best:
    """The `top_n` best of each level of `scores` (B, P, K), or all where there are fewer. `offsets`
    (B, P, 4) lead from the places to the boxes. With `scores` (B, P) the class is 0."""
    index, labels, best, levels = [], [], [], []
    first = 0
    for number, level in enumerate(scores.split(places.per_level, 1)):
        of_place = level if level.ndim == 2 else level.amax(2)
        top, where = of_place.topk(torch.sym_min(top_n, level.shape[1]), 1)
        label = torch.zeros_like(where)
        if level.ndim == 3:
            # The best pairs of place and class are at the best places: far fewer to sort.
            num_classes = level.shape[2]
            pairs = level.gather(1, where[..., None].expand(-1, -1, num_classes)).flatten(1)
            top, pair = pairs.topk(torch.sym_min(top_n, pairs.shape[1]), 1)
            where, label = where.gather(1, pair // num_classes), pair % num_classes
        index.append(first + where)
        labels.append(label)
        best.append(top)
        levels.append(torch.full_like(label, number))
        first += level.shape[1]
    chosen = torch.cat(index, 1)
    boxes = places.boxes(offsets.gather(1, chosen[..., None].expand(-1, -1, 4)), chosen)
    return Best(boxes, torch.cat(labels, 1), torch.cat(best, 1), torch.cat(levels, 1), chosen)


def cells_first(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C) in float32."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2).float()


def init_small(conv: nn.Conv2d) -> None:
    """The initial values that Lin et al. 2017 give the convolutions of such heads."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def prior_bias(prior: float) -> float:
    """Bias under which each class begins with the probability `prior` (Lin et al. 2017)."""
    return -math.log((1 - prior) / prior)
