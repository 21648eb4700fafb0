"""The two-stage heads against torchvision's models: same weights and features, same results."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models import detection as tv
from torchvision.models.detection.image_list import ImageList

from support.losses import losses_of
from visionkit.models.heads.detection import FasterRCNN, MaskRCNN
from visionkit.types import Batch, Level

NUM_CLASSES = 5
CLASSES = [f"class {k}" for k in range(NUM_CLASSES)]
PADDED = (192, 256)
SIZES = [(192, 200), (160, 256), (130, 130)]  # each image has its own padding
ORIG_SIZES = [(192, 200), (320, 512), (100, 91)]
MOBILENET = {
    "rpn_pre_nms_test": 150,
    "rpn_post_nms_test": 150,
    "rpn_score_threshold": 0.05,
    "anchor_sizes": [[32, 64, 128, 256, 512]] * 3,
}


def pyramid(strides):
    return {name: Level(256, stride) for name, stride in strides.items()}


V2 = {"rpn_convs": 2, "box_convs": 4, "box_norm": "batch"}
RESNET_LEVELS = pyramid({"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64})
# Smaller counts than the default, to be quick
SMALL = {"max_detections": 30, "rpn_post_nms_test": 200, "box_batch_size": 64}
TV_SMALL = {
    "box_detections_per_img": 30,
    "rpn_post_nms_top_n_test": 200,
    "box_batch_size_per_image": 64,
}
MODELS = {
    "fasterrcnn_resnet50_fpn": (FasterRCNN, RESNET_LEVELS, {}, {}),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (
        FasterRCNN,
        pyramid({"0": 32, "1": 32, "pool": 64}),
        MOBILENET,
        {},
    ),
    "maskrcnn_resnet50_fpn": (MaskRCNN, RESNET_LEVELS, SMALL, TV_SMALL),
    "maskrcnn_resnet50_fpn_v2": (
        MaskRCNN,
        RESNET_LEVELS,
        {**SMALL, **V2, "mask_norm": "batch"},
        TV_SMALL,
    ),
}
# An R-CNN of the same backbone with masks does all that one without does.
SLOW = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
CHOSEN = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]


@functools.cache
def setting(name):
    """torchvision's model with lively random weights, our head with the same, and features."""
    torch.manual_seed(1)
    build = getattr(tv, name)
    head_class, levels, arguments, their_arguments = MODELS[name]
    classes = NUM_CLASSES + 1
    theirs = build(
        weights=None, weights_backbone=None, num_classes=classes, **their_arguments
    ).eval()
    ours = head_class(levels, CLASSES, **arguments).eval()
    with torch.no_grad():
        features = theirs.backbone(torch.randn(len(SIZES), 3, *PADDED))
        features = {key: standardized(cells) for key, cells in features.items()}
        enliven(theirs, features)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("backbone.")}
    ours.load_state_dict(state)
    return theirs, ours, features


def standardized(cells):
    """An untrained backbone says much the same of every place: bring the differences out."""
    mean, std = cells.mean((0, 2, 3), keepdim=True), cells.std((0, 2, 3), keepdim=True)
    return (cells - mean) / std.clamp(min=1e-12)


def enliven(model, features):
    """Predictors that differ from region to region, with scores of all sizes for all classes."""
    init, rpn, roi_heads = torch.nn.init.normal_, model.rpn.head, model.roi_heads
    init(rpn.cls_logits.weight, std=0.2)
    init(rpn.bbox_pred.weight, std=0.02)
    proposals, _ = model.rpn(image_list(), features)
    hidden = roi_heads.box_head(roi_heads.box_roi_pool(features, proposals, SIZES))
    for predictor, spread in (
        (roi_heads.box_predictor.cls_score, 4.0),
        (roi_heads.box_predictor.bbox_pred, 0.5),
    ):
        init(predictor.weight, std=1.0)
        outputs = predictor(hidden)
        factor = spread / outputs.std(0)
        predictor.weight.mul_(factor[:, None])
        predictor.bias.copy_(-outputs.mean(0) * factor)


def batch_of(targets=None):
    targets = targets or [{} for _ in SIZES]
    for target, size, orig_size in zip(targets, SIZES, ORIG_SIZES, strict=True):
        target |= {"size": size, "orig_size": orig_size}
    return Batch(torch.zeros(len(SIZES), 3, *PADDED, dtype=torch.uint8), targets)


def image_list():
    return ImageList(torch.zeros(len(SIZES), 3, *PADDED), SIZES)


@pytest.mark.parametrize("name", CHOSEN)
@torch.no_grad()
def test_same_predictions(name):
    theirs, ours, features = setting(name)
    proposals, _ = theirs.rpn(image_list(), features)
    detections, _ = theirs.roi_heads(features, proposals, SIZES)
    detections = theirs.transform.postprocess(detections, SIZES, ORIG_SIZES)
    found = ours.predict(features, batch_of())
    assert sum(len(d["labels"]) for d in detections) > 50
    assert len(torch.cat([d["labels"] for d in detections]).unique()) == NUM_CLASSES
    for mine, other, orig_size in zip(found, detections, ORIG_SIZES, strict=True):
        assert mine["labels"].equal(other["labels"] - 1)
        torch.testing.assert_close(mine["scores"], other["scores"], atol=1e-4, rtol=0)
        torch.testing.assert_close(mine["boxes"], other["boxes"], atol=1e-4, rtol=1e-5)
        if "masks" in other:
            check_masks(mine["masks"], other["masks"], orig_size)


def check_masks(rles, probs, size):
    expected = (probs[:, 0] > 0.5).numpy()
    decoded = np.stack([coco_mask.decode(rle) for rle in rles]).astype(bool)
    assert decoded.shape == (len(probs), *size)
    assert expected.any() and not expected.all()
    tie = (probs[:, 0] - 0.5).abs().numpy() < 1e-4
    assert (decoded == expected)[~tie].all()
    assert tie.mean() < 1e-3


@pytest.mark.parametrize("name", CHOSEN)
@torch.no_grad()
def test_same_proposals_within_each_image(name):
    theirs, ours, features = setting(name)
    expected, _ = theirs.rpn(image_list(), features)
    proposals, counts = ours.rpn.propose(ours.rpn(features), torch.tensor(SIZES), ours.rpn.test_top)
    for found, count, other, (h, w) in zip(proposals, counts, expected, SIZES, strict=True):
        mine = found[:count]
        assert not found[count:].any()
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-5)
        assert mine[:, 2].max() == w
        assert mine[:, 3].max() == h


def random_targets():
    targets = []
    for (h, w), count in zip(SIZES, (4, 9, 0), strict=True):
        corner = torch.rand(count, 2) * torch.tensor([w, h]) * 0.6
        extent = (torch.rand(count, 2) * 0.38 + 0.02) * torch.tensor([w, h])
        targets.append(
            {
                "boxes": torch.cat([corner, corner + extent], 1),
                "labels": torch.randint(NUM_CLASSES, (count,)),
                "masks": torch.rand(count, h, w) > 0.5,
            }
        )
    return targets


@pytest.mark.parametrize("name", CHOSEN)
def test_same_losses_and_gradients(name):
    theirs, ours, features = setting(name)
    targets = random_targets()
    their_targets = [{**t, "labels": t["labels"] + 1} for t in targets]
    theirs.rpn.train(), theirs.roi_heads.train()
    torch.manual_seed(5)
    proposals, expected = theirs.rpn(image_list(), features, their_targets)
    _, more = theirs.roi_heads(features, proposals, SIZES, their_targets)
    theirs.rpn.eval(), theirs.roi_heads.eval()
    expected = {key.removeprefix("loss_"): value for key, value in (expected | more).items()}
    expected["rpn_box"] = expected.pop("rpn_box_reg")

    torch.manual_seed(5)  # both draw in the same order, so they draw the same
    losses = losses_of(ours.train(), features, batch_of(targets))
    ours.eval()
    assert losses.keys() == expected.keys() == set(ours.terms)
    assert all(value > 0 for value in losses.values())
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)

    theirs.zero_grad(), ours.zero_grad()
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    their_parameters = dict(theirs.named_parameters())
    tolerance = 1e-2 if "v2" in name else 1e-3  # batch norms magnify what rounding changes
    for key, parameter in ours.named_parameters():
        reference = their_parameters[key].grad
        assert (parameter.grad - reference).norm() <= tolerance * reference.norm(), key


@pytest.mark.parametrize("name", CHOSEN)
def test_as_many_parameters(name):
    theirs, ours, _ = setting(name)
    head_of_theirs = [p for k, p in theirs.named_parameters() if not k.startswith("backbone.")]
    assert sum(map(torch.numel, ours.parameters())) == sum(map(torch.numel, head_of_theirs))
