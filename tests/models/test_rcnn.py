"""What both two-stage heads promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.ops import box_iou

from support.losses import losses_of
from visionkit.config.components import INJECTED
from visionkit.config.schema import ConfigProblems, check_arguments, signature_arguments
from visionkit.errors import ConfigError
from visionkit.models.heads.detection import FasterRCNN, MaskRCNN
from visionkit.types import Batch, Level

LEVELS = {"fine": Level(8, 8), "coarse": Level(8, 16)}
CLASSES = ["square", "bar"]
SMALL = {
    "anchor_sizes": [[16], [32]],
    "rpn_pre_nms_train": 100,
    "rpn_post_nms_train": 60,
    "rpn_post_nms_test": 40,
    "rpn_batch_size": 64,
    "box_batch_size": 32,
    "box_hidden": 32,
    "box_pool_size": 4,
}
MASKS = {"mask_pool_size": 7, "mask_channels": 16, "mask_convs": 2}
NORMS = {"box_convs": 2, "box_norm": "batch", "mask_norm": "batch", "rpn_convs": 2}
HEADS = {
    "FasterRCNN": (FasterRCNN, SMALL),
    "MaskRCNN": (MaskRCNN, {**SMALL, **MASKS}),
    "MaskRCNN with norms": (MaskRCNN, {**SMALL, **MASKS, **NORMS}),
}
OBJECTS = [
    ([[8.0, 8, 28, 28], [30, 40, 62, 50]], [0, 1]),
    ([[20.0, 10, 36, 26], [4, 40, 36, 48]], [0, 1]),
]


def make_target(boxes, labels, size=(64, 64), orig_size=(128, 256)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "size": size,
        "orig_size": orig_size,
    }


def make_batch(targets):
    return Batch(torch.zeros(len(targets), 3, 64, 64, dtype=torch.uint8), targets)


def two_images():
    return make_batch([make_target(*objects) for objects in OBJECTS])


def random_features(batch_size=2):
    return {
        name: torch.randn(batch_size, channels, 64 // stride, 64 // stride, requires_grad=True)
        for name, (channels, stride) in LEVELS.items()
    }


def telling_features(batch):
    """Each label's pixels averaged into the cells of a channel of its own, and their edges."""
    features = {}
    for name, (channels, stride) in LEVELS.items():
        cells = torch.zeros(len(batch), channels, 64 // stride, 64 // stride)
        for image, target in zip(cells, batch.targets, strict=True):
            for mask, label in zip(target["masks"].float(), target["labels"].tolist(), strict=True):
                image[label] += torch.nn.functional.avg_pool2d(mask[None], stride)[0]
            image[2:4] = image[:2] - image[:2].roll(1, 1)
            image[4:6] = image[:2] - image[:2].roll(1, 2)
        features[name] = cells
    return features


@pytest.fixture(params=HEADS)
def head(request):
    head_class, arguments = HEADS[request.param]
    return head_class(LEVELS, CLASSES, **arguments)


def test_every_parameter_and_feature_gets_a_gradient(head):
    features = random_features()
    losses = losses_of(head, features, two_images())
    assert losses.keys() == set(head.terms)
    assert all(loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, tensor in [*head.named_parameters(), *features.items()]:
        assert tensor.grad.any(), name


def test_images_without_objects_give_finite_losses(head):
    batch = make_batch([make_target([], []), make_target([], [])])
    features = random_features()
    losses = losses_of(head, features, batch)
    sum(losses.values()).backward()
    assert losses["objectness"] > 0
    assert losses["classifier"] > 0
    assert all(losses[term] == 0 for term in head.terms if term not in ("objectness", "classifier"))
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert all(tensor.isfinite().all() for tensor in head.buffers())  # statistics of no region


def test_where_all_is_crowd_nothing_is_learned(head):
    target = make_target([], [])
    assert losses_of(head, random_features(1), make_batch([target]))["classifier"] > 0
    crowd = torch.tensor([[-100.0, -100, 164, 164]])  # beyond the image, as anchors are
    target |= {"boxes": crowd, "labels": torch.tensor([0]), "iscrowd": torch.tensor([True])}
    target["masks"] = torch.ones(1, 64, 64, dtype=torch.bool)
    losses = losses_of(head, random_features(1), make_batch([target]))
    assert all(loss == 0 for loss in losses.values())


def test_unlabeled_images_are_left_out(head):
    batch = two_images()
    features = random_features()
    first = {name: cells[:1] for name, cells in features.items()}
    torch.manual_seed(0)
    expected = losses_of(head, first, make_batch(batch.targets[:1]))
    del batch.targets[1][head.required_targets[-1]]
    torch.manual_seed(0)
    torch.testing.assert_close(losses_of(head, features, batch), expected)


def test_nothing_labeled_gives_zeros_with_a_graph(head):
    batch = make_batch([{"size": (64, 64), "orig_size": (64, 64)}] * 2)
    features = random_features()
    losses = losses_of(head, features, batch)
    assert losses.keys() == set(head.terms)
    sum(losses.values()).backward()
    for tensor in [*head.parameters(), *features.values()]:
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_validation_loss_is_the_training_loss(head):
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in head.modules()):
        pytest.skip("batch norms have other statistics in training")
    features, batch = random_features(), two_images()
    torch.manual_seed(0)
    expected = losses_of(head.train(), features, batch)
    torch.manual_seed(0)
    with torch.inference_mode():
        losses = losses_of(head.eval(), features, batch)
    torch.testing.assert_close(losses, {k: v.detach() for k, v in expected.items()})


def test_losses_are_float32_under_autocast(head):
    with torch.autocast("cpu", torch.bfloat16):
        features, batch = random_features(), two_images()
        losses = losses_of(head, features, batch)
        predictions = head.eval().predict(features, batch)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert predictions[0]["boxes"].dtype == predictions[0]["scores"].dtype == torch.float32


def test_nothing_found_gives_empty_predictions(head):
    torch.nn.init.constant_(head.roi_heads.box_predictor.cls_score.bias[0:1], 100.0)
    with torch.no_grad():
        predictions = head.predict(random_features(), two_images())
    for found in predictions:
        assert found["boxes"].shape == (0, 4)
        assert found["scores"].shape == (0,)
        assert found["labels"].dtype == torch.int64
        assert found.get("masks", []) == []


def test_thresholds_must_be_in_order():
    with pytest.raises(ConfigError, match="bg_iou"):
        FasterRCNN(LEVELS, CLASSES, box_fg_iou=0.4, box_bg_iou=0.5)


def test_a_norm_of_the_box_head_needs_convolutions():
    with pytest.raises(ConfigError, match=r"box_norm: got .batch. without .*; give box_convs"):
        FasterRCNN(LEVELS, CLASSES, box_norm="batch")


def test_layers_of_the_box_head_are_those_asked_for():
    """A convolution has a bias unless a norm follows; with convolutions one hidden layer, else two,
    as in torchvision."""
    shapes = {name: tuple(t.shape) for name, t in _box_head(box_convs=1).state_dict().items()}
    assert shapes == {
        "0.0.weight": (8, 8, 3, 3), "0.0.bias": (8,), "2.weight": (32, 8 * 4 * 4), "2.bias": (32,),
    }  # fmt: skip
    assert {"0.0.weight", "0.1.weight", "0.1.bias", "2.weight"} == {
        name for name, _ in _box_head(box_convs=1, box_norm="group").named_parameters()
    } - {"2.bias"}
    assert {"fc6", "fc7"} == {name for name, _ in _box_head().named_children()}


def _box_head(**arguments):
    return FasterRCNN(LEVELS, CLASSES, **SMALL, **arguments).roi_heads.box_head


def test_levels_of_unequal_channels_are_refused():
    with pytest.raises(ConfigError, match="put a neck"):
        FasterRCNN({"a": Level(8, 8), "b": Level(16, 16)}, CLASSES)


def test_unknown_roi_level_is_refused():
    with pytest.raises(ConfigError, match="'p9'"):
        FasterRCNN(LEVELS, CLASSES, roi_levels=["p9"])


@pytest.mark.slow
def test_two_images_are_learned_and_found_in_original_pixels(head):
    batch = two_images()
    features = telling_features(batch)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(250):
        loss = sum(losses_of(head, features, batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        predictions = head.eval().predict(features, batch)
    for found, (boxes, labels) in zip(predictions, OBJECTS, strict=True):
        assert (found["scores"].diff() <= 0).all()
        sure = found["scores"] > 0.7
        wanted = torch.tensor(boxes) * torch.tensor([4.0, 2, 4, 2])  # (64, 64) to (128, 256)
        iou, which = box_iou(wanted, found["boxes"][sure]).max(1)
        assert iou.min() > 0.8
        assert found["labels"][sure][which].tolist() == labels
        assert sure.sum() == len(labels)
        if "masks" in found:
            check_masks(found["masks"], which, wanted)


def check_masks(masks, which, boxes):
    truth = np.zeros((128, 256, len(boxes)), np.uint8, order="F")
    for k, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        truth[y1:y2, x1:x2, k] = 1
    overlaps = coco_mask.iou(
        coco_mask.encode(truth), [masks[i] for i in which], [False] * len(which)
    )
    assert overlaps.diagonal().min() > 0.75


# Four proposals, exactly right. B overlaps A by 4/5; C overlaps A by 1/2, and B by 0.625; D
# overlaps none. C stays in any case: a detection that is suppressed suppresses none.
A, B, C, D = [0, 0, 40, 40], [0, 0, 40, 32], [0, 0, 40, 20], [44, 44, 60, 60]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [(A, 0), (B, 1), (C, 0), (D, 1)]),
        ({"nms": "class"}, [(A, 0), (B, 1), (C, 0), (D, 1)]),
        ({"nms": "all"}, [(A, 0), (C, 0), (D, 1)]),
    ],
)
@pytest.mark.parametrize("head_class", [FasterRCNN, MaskRCNN])
def test_suppression_within_a_class_or_among_all(head_class, arguments, expected):
    head = head_class(LEVELS, CLASSES, box_nms_iou=0.6, **arguments).eval()
    boxes, labels = torch.tensor([B, D, A, C], dtype=torch.float32), torch.tensor([1, 1, 0, 0])
    scores = torch.tensor([0.8, 0.6, 0.9, 0.7])
    probs = torch.full((4, 3), 1e-9)
    probs[:, 0] = 1 - scores
    probs[range(4), labels + 1] = scores
    head.rpn.propose = lambda outputs, sizes, top: (boxes[None], torch.tensor([4]))
    head.roi_heads.forward = lambda features, boxes, image: (probs.log(), torch.zeros(4, 3, 4))
    with torch.no_grad():
        target = make_target([], [], orig_size=(64, 64))
        (found,) = head.predict(random_features(1), make_batch([target]))
    rounded = found["boxes"].round().int().tolist()
    assert list(zip(rounded, found["labels"].tolist(), strict=True)) == expected
    assert len(found.get("masks", rounded)) == len(expected)


def test_a_config_may_set_the_arguments_of_both_classes():
    base = signature_arguments(FasterRCNN, INJECTED["heads"])
    found = signature_arguments(MaskRCNN, INJECTED["heads"])
    assert set(found) == {*base, "mask_pool_size", "mask_channels", "mask_convs", "mask_norm"}
    assert found["box_batch_size"] == base["box_batch_size"]
    problems = ConfigProblems("c.yaml", {})
    given = {"box_batch_size": 64, "rpn_pre_nms_train": 500, "nms": "one", "mask_convs": 0}
    fitting = check_arguments(given, found, (), problems)
    assert fitting == {"box_batch_size": 64, "rpn_pre_nms_train": 500}
    with pytest.raises(ConfigError, match=r"mask_convs: got 0.*\n.*'class' or 'all'"):
        problems.raise_found()
