"""RT-DETR: detection by a transformer, without non-maximum suppression (Zhao et al. 2023, arXiv
2304.08069; v2: Lv et al. 2024, arXiv 2407.17140).

The best cells of the feature maps become queries. A decoder refines each into the box and the class
of one object, and each object trains one query, found by the Hungarian method. Parameter names,
outputs and losses are those of the package transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visionkit.config.schema import Count, Fraction, Natural, NonNegative
from visionkit.errors import ConfigError
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.models.head import Head
from visionkit.models.heads.denoising import (
    PADDING,
    Denoising,
    attention_mask,
    denoising_queries,
)
from visionkit.models.heads.dense import Prior, padded_size
from visionkit.models.heads.matching import GroundTruth, ground_truth_of, labeled, zero_losses
from visionkit.models.heads.rtdetr_decoder import (
    Decoder,
    Memory,
    Queries,
    anchors_of,
    box_logits,
    box_mlp,
    class_layer,
)
from visionkit.ops.assignment import assign
from visionkit.ops.attention import Sampling
from visionkit.ops.boxes import box_ioa, centers_of, clip, corners_of, paired_iou
from visionkit.ops.layers import BatchNorm
from visionkit.ops.losses import giou_loss, varifocal_loss
from visionkit.ops.nms import detections
from visionkit.types import Batch, Dataset, Evaluator, Features, HeadPrediction, Level, Loss, Size

TERMS = ("classification", "l1", "giou", "auxiliary", "denoising")
# Weights of the costs by which objects choose queries (Zhao et al. 2023): class, L1, GIoU
COSTS = (2.0, 5.0, 2.0)
FOCAL = (0.25, 2.0)  # alpha and gamma of the cost of the class


class Matches(NamedTuple):
    """Pairs of a prediction and an object, R in all."""

    place: tuple[Tensor, Tensor, Tensor]  # set, image and query of each prediction, each (R,)
    boxes: Tensor  # (R, 4) of the objects, center and extent in 0..1
    labels: Tensor  # (R,)


class RTDETR(Head):
    """Detection by a transformer, without non-maximum suppression (Zhao et al. 2023).

    Levels may differ in channels; those of the neck `HybridEncoder` are meant. It learns slowly
    from random weights: start from published ones. Boxes are relative to the batch with its
    padding: use images of one size.

    channels: of the decoder.
    num_queries: objects that are found in an image, at most.
    num_layers, attention_heads, feed_forward: layers of the decoder, the heads of each, and the
        width of its hidden layer.
    points: for each level, the places that an attention head reads; by default 4.
    sampling: values between cells are `bilinear`, or those of the `nearest` cell (in v2
        `discrete`), with places that do not learn.
    prior: the class probability at the start.
    denoising: pairs of denoising queries in the loss of each image; 0: none.
    label_noise, box_noise: twice the share of their wrong labels; their boxes' largest move, as a
        multiple of half the extent.
    class_weight, l1_weight, giou_weight: of the losses.
    score_threshold, max_detections: detections must score higher, and how many stay in an image.
    """

    required_targets = ("boxes", "labels")
    class_key = "labels"
    main_metric = "bbox/AP"
    default_transforms = ("HorizontalFlip", "ScaleJitter")

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        channels: Count = 256,
        num_queries: Count = 300,
        num_layers: Count = 3,
        attention_heads: Count = 8,
        feed_forward: Count = 1024,
        points: list[Count] | None = None,
        sampling: Sampling = "bilinear",
        prior: Prior = 0.01,
        denoising: Natural = 100,
        label_noise: Fraction = 0.5,
        box_noise: NonNegative = 1.0,
        class_weight: NonNegative = 1.0,
        l1_weight: NonNegative = 5.0,
        giou_weight: NonNegative = 2.0,
        score_threshold: Fraction = 0.001,
        max_detections: Count = 300,
    ) -> None:
        super().__init__()
        points = points or [4] * len(levels)
        if len(points) != len(levels):
            raise ConfigError(
                f"points: got {len(points)} numbers; expected one for each of the {len(levels)} "
                f"levels {[*levels]}"
            )
        if channels % attention_heads:
            raise ConfigError(
                f"channels: got {channels}; expected a multiple of attention_heads="
                f"{attention_heads}"
            )
        self.levels, self.num_queries, self.num_classes = levels, num_queries, len(classes)
        self.denoising, self.label_noise, self.box_noise = denoising, label_noise, box_noise
        self.weights = class_weight, l1_weight, giou_weight
        self.score_threshold, self.max_detections = score_threshold, max_detections
        self.decoder_input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(level.channels, channels, 1, bias=False), BatchNorm(channels))
            for level in levels.values()
        )
        self.enc_output = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        self.enc_score_head = class_layer(channels, len(classes), prior)
        self.enc_bbox_head = box_mlp(channels)
        self.decoder = Decoder(
            channels,
            len(classes),
            num_layers=num_layers,
            heads=attention_heads,
            hidden=feed_forward,
            points=points,
            sampling=sampling,
            prior=prior,
        )
        rows = ["enc_score_head", *(f"decoder.class_embed.{n}" for n in range(num_layers))]
        if denoising:
            self.denoising_class_embed = nn.Embedding(len(classes), channels)
            rows.append("denoising_class_embed")
        self.class_layers = dict.fromkeys(rows, 1)  # type: ignore[misc]  # by number of layers

    def memory(self, features: Features) -> Memory:
        maps = [
            project(features[name])
            for name, project in zip(self.levels, self.decoder_input_proj, strict=True)
        ]
        cells = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
        sizes = [(level.shape[-2], level.shape[-1]) for level in maps]
        return Memory(cells, sizes, [level.stride for level in self.levels.values()])

    def select(self, memory: Memory) -> Queries:
        """The cells whose best class scores highest, as many as there are queries."""
        anchors, used = anchors_of(memory)
        content = self.enc_output(memory.cells * used)
        logits = self.enc_score_head(content).float()
        count = torch.sym_min(self.num_queries, logits.shape[1])
        best = logits.amax(2).topk(count, 1).indices[..., None]  # (B, N, 1)
        content = content.gather(1, best.expand(-1, -1, content.shape[2]))
        boxes = self.enc_bbox_head(content).float() + anchors[best[..., 0]]
        logits = logits.gather(1, best.expand(-1, -1, logits.shape[2]))
        return Queries(content.detach(), boxes.sigmoid(), logits)

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """For each of the N queries the `boxes` (B, N, 4) in input pixels and the `scores` (B, N,
        K) of the classes. N is `num_queries`, or fewer where the levels have fewer cells."""
        memory = self.memory(features)
        queries = self.select(memory)
        contents, boxes = self.decoder(queries.content, queries.boxes, memory)
        logits = self.decoder.class_embed[-1](contents[-1]).float()
        image_size = padded_size(self.levels, features)
        h, w = image_size
        corners = corners_of(boxes[-1]) * boxes[-1].new_tensor([w, h, w, h])
        corners = clip(corners, image_size if sizes is None else sizes)
        return {"boxes": corners, "scores": logits.sigmoid()}

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """The best pairs of a query and a class of each image, best first, as
        `visionkit.ops.nms.suppress` returns detections."""
        boxes, scores = outputs["boxes"], outputs["scores"]
        num_classes = scores.shape[2]
        flat = scores.flatten(1)
        best, pair = flat.topk(torch.sym_min(self.max_detections, flat.shape[1]), 1)
        query, label = pair // num_classes, pair % num_classes
        padding = best <= self.score_threshold
        boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
        return {
            "boxes": boxes.masked_fill(padding[..., None], 0),
            "scores": best.masked_fill(padding, 0),
            "labels": label.masked_fill(padding, 0),
            "count": (~padding).sum(1),
        }

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `boxes` (N, 4), `scores` (N,) and `labels` (N,), best first."""
        return detections(self.postprocess(outputs, batch.padded_size), batch)

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox",))

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        """Sums over the predictions; the count is the number of objects.

        Of the last layer `classification`, the varifocal loss (Zhang et al. 2021, arXiv
        2008.13367), `l1`, of center and extent in 0..1, and `giou`, 1 - GIoU; `auxiliary` is the
        sum of all three over the other layers and the selection of queries, `denoising` that over
        all layers of the denoising queries. Predictions in a crowd region do not learn that they
        are background, and none learns anything about a class that is not labeled in its image,
        but from an object of that class.
        """
        features, batch = labeled(features, batch, self.required_targets)
        if not len(batch):
            return zero_losses(self, features, TERMS)
        image_size = padded_size(self.levels, features)
        truths = [_relative(ground_truth_of(target), image_size) for target in batch.targets]
        memory = self.memory(features)
        queries = self.select(memory)
        noisy = self._denoising(truths, batch)
        logits, boxes = self._layers(queries, memory, noisy)
        first = 0 if noisy is None else noisy.group.shape[1]
        own_logits = torch.cat([logits[:, :, first:], queries.logits[None]])
        own_boxes = torch.cat([boxes[:, :, first:], queries.boxes[None]])
        matches = match(own_logits, own_boxes, truths)
        known = self._known(own_boxes, truths)
        sums = self._sums(own_logits, own_boxes, matches, known)  # (3, sets)
        last = len(logits) - 1
        count = sums.new_tensor(float(sum(len(truth.labels) for truth in truths)))
        terms = dict(zip(TERMS[:3], sums[:, last], strict=True))
        terms["auxiliary"] = sums.sum() - sums[:, last].sum()
        losses = {name: Loss(value, count) for name, value in terms.items()}
        if noisy is None:
            zero = sums.sum() * 0.0
            if self.denoising:
                zero = zero + self.denoising_class_embed.weight[:0].sum()
            losses["denoising"] = Loss(zero, torch.zeros_like(count))
        else:
            restored = _restored(noisy, truths, len(logits))
            known = self._known(boxes[:, :, :first], truths) & (noisy.group >= 0)[..., None]
            weights = noisy.weights[:, None, None]
            total = self._sums(
                logits[:, :, :first], boxes[:, :, :first], restored, known, weights
            ).sum()
            losses["denoising"] = Loss(total, torch.full_like(count, noisy.num_objects))
        return losses

    def _denoising(self, truths: Sequence[GroundTruth], batch: Batch) -> Denoising | None:
        if not self.denoising:
            return None
        return denoising_queries(
            [(corners_of(truth.boxes), truth.labels) for truth in truths],
            batch.targets,
            self.num_classes,
            total=self.denoising,
            label_noise=self.label_noise,
            box_noise=self.box_noise,
        )

    def _layers(
        self, queries: Queries, memory: Memory, noisy: Denoising | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (L, B, D + N, K) and boxes (L, B, D + N, 4) of all layers, those of the D
        denoising queries first."""
        content, boxes, allowed = queries.content, queries.boxes, None
        if noisy is not None:
            embedded = self.denoising_class_embed(noisy.labels)
            content = torch.cat([embedded.to(content.dtype), content], 1)
            boxes = torch.cat([box_logits(centers_of(noisy.boxes)).sigmoid(), boxes], 1)
            allowed = attention_mask(noisy.group, queries.content.shape[1])
        contents, found = self.decoder(content, boxes, memory, allowed)
        logits = [
            layer(x).float() for layer, x in zip(self.decoder.class_embed, contents, strict=True)
        ]
        return torch.stack(logits), torch.stack(found)

    @torch.no_grad()
    def _known(self, boxes: Tensor, truths: Sequence[GroundTruth]) -> Tensor:
        """Of which classes it is known that the predictions with `boxes` (S, B, N, 4), if they are
        of no object, show none: bool (S, B, N, K), or a shape that broadcasts to it."""
        every = torch.ones(self.num_classes, dtype=torch.bool, device=boxes.device)
        classes = torch.stack([every if t.labeled is None else t.labeled for t in truths])
        if not any(len(truth.crowds) for truth in truths):
            return classes[None, :, None]
        outside = torch.ones(boxes.shape[:3], dtype=torch.bool, device=boxes.device)
        for image, truth in enumerate(truths):
            if len(truth.crowds):
                corners = corners_of(boxes[:, image]).flatten(0, 1)
                share = box_ioa(corners, corners_of(truth.crowds)).amax(1)
                outside[:, image] = (share <= 0.5).view(outside[:, image].shape)
        return outside[..., None] & classes[None, :, None]

    def _sums(
        self,
        logits: Tensor,
        boxes: Tensor,
        matches: Matches,
        known: Tensor,
        weights: Tensor | float = 1.0,
    ) -> Tensor:
        """The weighted sums of the class, L1 and GIoU losses (3, S) of the predictions (S, B, N,
        ...). `weights` (B, 1, 1) are of the images."""
        found = boxes[matches.place]
        corners, truth = corners_of(found), corners_of(matches.boxes)
        quality = paired_iou(corners.detach(), truth)
        at = (*matches.place, matches.labels)
        target = torch.zeros_like(logits).index_put(at, quality)
        positive = torch.zeros_like(logits, dtype=torch.bool).index_put(
            at, torch.ones_like(quality, dtype=torch.bool)
        )
        losses = varifocal_loss(logits, target, positive) * (known | positive) * weights
        of_class = losses.flatten(1).sum(1)
        box_losses = torch.stack([(found - matches.boxes).abs().sum(1), giou_loss(corners, truth)])
        if isinstance(weights, Tensor):
            box_losses = box_losses * weights[matches.place[1], 0, 0]
        of_boxes = box_losses.new_zeros(2, len(logits)).index_add(1, matches.place[0], box_losses)
        return torch.cat([of_class[None], of_boxes]) * of_class.new_tensor(self.weights)[:, None]


def _relative(truth: GroundTruth, image_size: Size) -> GroundTruth:
    """The same with boxes as center and extent in 0..1."""
    h, w = image_size
    scale = truth.boxes.new_tensor([w, h, w, h])
    return truth._replace(
        boxes=centers_of(truth.boxes / scale), crowds=centers_of(truth.crowds / scale)
    )


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, truths: Sequence[GroundTruth]) -> Matches:
    """For each set of predictions, logits (S, B, N, K) and boxes (S, B, N, 4), and each image the
    pairs of least total cost; all problems are solved at once."""
    costs = [
        matching_cost(logits[:, image], boxes[:, image], truth.boxes, truth.labels)
        for image, truth in enumerate(truths)
    ]
    flat = torch.cat([cost.flatten() for cost in costs]).cpu()  # one copy
    parts = flat.split([cost.numel() for cost in costs])
    problems = [
        problem
        for part, cost in zip(parts, costs, strict=True)
        for problem in part.view(cost.shape).numpy()
    ]
    sets, images, queries, objects = [], [], [], []
    first = 0
    pairs = iter(assign(problems))
    for image, truth in enumerate(truths):
        for number in range(len(logits)):
            query, of_image = (torch.from_numpy(part) for part in next(pairs))
            sets.append(torch.full_like(query, number))
            images.append(torch.full_like(query, image))
            queries.append(query)
            objects.append(of_image + first)
        first += len(truth.labels)
    index = [torch.cat(part).to(logits.device) for part in (sets, images, queries, objects)]
    every_box = torch.cat([truth.boxes for truth in truths])
    every_label = torch.cat([truth.labels for truth in truths])
    return Matches((index[0], index[1], index[2]), every_box[index[3]], every_label[index[3]])


def matching_cost(logits: Tensor, boxes: Tensor, truth: Tensor, labels: Tensor) -> Tensor:
    """What it costs (S, N, M) that predictions, logits (S, N, K) and boxes (S, N, 4), take each of
    the objects, boxes (M, 4) with `labels` (M,). Boxes are center and extent in 0..1."""
    alpha, gamma = FOCAL
    probs = logits.float().sigmoid()[..., labels]
    tiny = 1e-8
    found = alpha * (1 - probs) ** gamma * -(probs + tiny).log()
    missed = (1 - alpha) * probs**gamma * -(1 - probs + tiny).log()
    distance = (boxes[:, :, None] - truth).abs().sum(3)
    apart = giou_loss(corners_of(boxes)[:, :, None], corners_of(truth)) - 1
    of_class, of_distance, of_overlap = COSTS
    return of_class * (found - missed) + of_distance * distance + of_overlap * apart


def _restored(noisy: Denoising, truths: Sequence[GroundTruth], layers: int) -> Matches:
    """The object of each denoising query that has to restore one, in each of so many layers."""
    image, query = (noisy.objects != PADDING).nonzero(as_tuple=True)
    objects = noisy.objects[image, query]
    boxes = torch.cat([truth.boxes for truth in truths])
    labels = torch.cat([truth.labels for truth in truths])
    firsts = torch.tensor([0, *(len(truth.labels) for truth in truths)], device=image.device)
    objects = objects + firsts.cumsum(0)[image]
    layer = torch.arange(layers, device=image.device).repeat_interleave(len(image))
    index = layer, image.repeat(layers), query.repeat(layers)
    return Matches(index, boxes[objects].repeat(layers, 1), labels[objects].repeat(layers))
