"""The parts of the two-stage heads, and what both heads promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from torchvision.ops import box_iou

from visionkit.errors import ConfigError
from visionkit.heads.detection import FasterRCNN
from visionkit.heads.instance import MaskRCNN
from visionkit.heads.rcnn.anchors import Anchors
from visionkit.heads.rcnn.masks import encode_masks, encode_patch, mask_targets, paste
from visionkit.heads.rcnn.matching import BACKGROUND, IGNORED, Objects, Sampler, objects_of
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
HEADS = {
    FasterRCNN: SMALL,
    MaskRCNN: {**SMALL, "mask_pool_size": 7, "mask_channels": 16, "mask_convs": 2},
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


def objects(boxes, crowds=()):
    boxes, crowds = torch.tensor(boxes).view(-1, 4), torch.tensor(crowds).view(-1, 4)
    return Objects(boxes, torch.zeros(len(boxes), dtype=torch.int64), crowds, None)


# --- anchors ---


def test_anchors_by_hand():
    anchors = Anchors(LEVELS, None, [0.25, 1.0])
    cells = [torch.zeros(1, 8, 2, 3), torch.zeros(1, 8, 1, 2)]
    result = anchors(cells, (16, 24))
    assert result.shape == (2 * (6 + 2), 4)
    assert result[0].tolist() == [-64, -16, 64, 16]  # size 8 * 8, height / width = 1/4
    assert result[1].tolist() == [-32, -32, 32, 32]
    assert result[3].tolist() == [8 - 32, -32, 8 + 32, 32]  # next column
    assert result[7].tolist() == [-32, 8 - 32, 32, 8 + 32]  # next row
    assert result[13].tolist() == [-64, -64, 64, 64]  # size 8 * 16
    assert result[15].tolist() == [12 - 64, -64, 12 + 64, 64]  # 24 pixels in 2 cells


def test_anchors_are_not_part_of_a_checkpoint():
    assert not Anchors(LEVELS, None, [1.0]).state_dict()


@pytest.mark.parametrize("sizes", [[[8]], [[8], [8, 16]], [[], []]])
def test_anchor_sizes_must_fit_the_levels(sizes):
    with pytest.raises(ConfigError, match="anchor_sizes"):
        Anchors(LEVELS, sizes, [1.0])


# --- matching and sampling ---


def match_naively(sampler, boxes, objects):
    iou = box_iou(boxes, objects.boxes)
    matched = []
    for row in iou:
        best = row.max().item()
        known = best >= sampler.fg_iou
        if sampler.best_for_each:
            known |= any(0 < row[m] == iou[:, m].max() for m in range(len(row)))
        unsure = IGNORED if best >= sampler.bg_iou else BACKGROUND
        matched.append(int(row.argmax()) if known else unsure)
    return matched


@pytest.mark.parametrize("best_for_each", [True, False])
def test_matching_equals_a_naive_loop(best_for_each):
    sampler = Sampler(0.6, 0.3, best_for_each, 10, 0.5)
    corner = torch.rand(300, 2) * 50
    boxes = torch.cat([corner, corner + torch.rand(300, 2) * 30 + 1], 1)
    truth = Objects(boxes[:7] + 2, torch.zeros(7), boxes[:0], None)
    matched = sampler.match(boxes, truth)
    assert matched.tolist() == match_naively(sampler, boxes, truth)
    assert {BACKGROUND, IGNORED} < set(matched.tolist())


def test_an_object_that_no_box_touches_matches_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    sampler = Sampler(0.7, 0.3, True, 10, 0.5)
    far = objects([[100.0, 100, 110, 110]])
    assert sampler.match(boxes, far).tolist() == [BACKGROUND, BACKGROUND]


def test_background_in_a_crowd_is_ignored_but_objects_there_are_not():
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [14, 0, 24, 10], [16, 0, 26, 10], [0, 12, 4, 16], [50, 50, 60, 60]]
    )
    truth = objects([[0.0, 0, 10, 10]], crowds=[[0.0, 0, 20, 20]])
    matched = Sampler(0.5, 0.5, False, 10, 0.5).match(boxes, truth)
    assert matched.tolist() == [0, IGNORED, BACKGROUND, IGNORED, BACKGROUND]


def test_crowds_are_not_objects():
    target = make_target(*OBJECTS[0])
    target["iscrowd"] = torch.tensor([True, False])
    truth = objects_of(target)
    assert truth.boxes.tolist() == [OBJECTS[0][0][1]]
    assert truth.labels.tolist() == [1]
    assert truth.crowds.tolist() == [OBJECTS[0][0][0]]
    assert truth.masks.equal(target["masks"][1:])
    target["iscrowd"][:] = False
    assert len(objects_of(target).boxes) == 2


def test_sampling_counts_and_randomness():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(100, 1)
    boxes[30:] += 200
    truth = objects([[0.0, 0, 10, 10]])

    def draw(batch_size, fraction):
        torch.manual_seed(3)
        _, positive, negative = Sampler(0.5, 0.5, False, batch_size, fraction)(boxes, truth)
        assert (positive < 30).all()
        assert (negative >= 30).all()
        assert len({*positive.tolist(), *negative.tolist()}) == len(positive) + len(negative)
        return positive.tolist(), negative.tolist()

    positive, negative = draw(20, 0.25)
    assert (len(positive), len(negative)) == (5, 15)
    assert draw(20, 0.25) == (positive, negative)
    assert sorted(positive) != list(range(5))
    assert [len(part) for part in draw(90, 0.5)] == [30, 60]  # too few positives: more negatives
    assert [len(part) for part in draw(1000, 0.5)] == [30, 70]


def test_thresholds_must_be_in_order():
    with pytest.raises(ConfigError, match="bg_iou"):
        FasterRCNN(LEVELS, CLASSES, box_fg_iou=0.4, box_bg_iou=0.5)


# --- masks ---


def paste_whole(probs, box, size):
    patch, top, left = paste(probs, box, size)
    whole = torch.zeros(size)
    whole[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return whole


@pytest.mark.parametrize(
    "box",
    [
        [10.0, 12, 50, 40],
        [10.3, 12.7, 11.1, 12.9],  # under a pixel
        [0.0, 0, 90, 60],
        [-20.5, -30.2, 40, 35.5],
        [70.0, 50, 200, 300],
        [-300.0, -200, 700, 500],  # far greater than the picture
        [5.0, 5, 5, 5],
    ],
)
def test_paste_equals_torchvision(box):
    probs, size = torch.rand(28, 28), (60, 90)
    expected = paste_masks_in_image(probs[None, None], torch.tensor([box]), size)[0, 0]
    torch.testing.assert_close(paste_whole(probs, torch.tensor(box), size), expected)
    assert expected.any()


@pytest.mark.parametrize("box", [[200.0, 10, 240, 30], [-50.0, -50, -10, -10], [10, 90, 30, 99]])
def test_paste_outside_of_the_picture_is_empty(box):
    (mask,) = encode_masks(torch.ones(1, 28, 28), torch.tensor([box]), (60, 90))
    assert mask["size"] == [60, 90]
    assert coco_mask.area(mask) == 0


@pytest.mark.parametrize(
    ("top", "left", "shape"), [(0, 0, (7, 9)), (2, 3, (4, 5)), (6, 8, (1, 1)), (0, 8, (7, 1))]
)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_encoded_patch_equals_pycocotools(top, left, shape, density):
    patch = np.random.default_rng(0).random(shape) < density
    whole = np.zeros((7, 9), np.uint8, order="F")
    whole[top : top + shape[0], left : left + shape[1]] = patch
    assert encode_patch(patch, top, left, (7, 9)) == coco_mask.encode(whole)


def test_mask_targets_equal_torchvision():
    masks = [torch.rand(3, 40, 50) > 0.5, torch.rand(1, 64, 32) > 0.5, torch.rand(0, 9, 9) > 0]
    boxes = [torch.rand(5, 4) * 20, torch.rand(2, 4) * 20, torch.zeros(0, 4)]
    boxes = [torch.cat([b[:, :2], b[:, 2:] + 21], 1) for b in boxes]
    matched = [torch.tensor([2, 0, 1, 2, 2]), torch.tensor([0, 0]), torch.zeros(0).long()]
    targets = mask_targets(boxes, matched, masks, 28)
    expected = [
        project_masks_on_boxes(m, b, i, 28) for m, b, i in zip(masks, boxes, matched, strict=True)
    ]
    torch.testing.assert_close(targets, torch.cat(expected))


# --- heads ---


@pytest.fixture(params=HEADS, ids=lambda head: head.__name__)
def head(request):
    return request.param(LEVELS, CLASSES, **HEADS[request.param])


def test_every_parameter_and_feature_gets_a_gradient(head):
    features = random_features()
    losses = head.loss(features, two_images())
    assert losses.keys() == set(head.terms)
    assert all(loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, tensor in [*head.named_parameters(), *features.items()]:
        assert tensor.grad.any(), name


def test_images_without_objects_give_finite_losses(head):
    batch = make_batch([make_target([], []), make_target([], [])])
    features = random_features()
    losses = head.loss(features, batch)
    sum(losses.values()).backward()
    assert losses["objectness"] > 0
    assert losses["classifier"] > 0
    assert all(losses[term] == 0 for term in head.terms if term not in ("objectness", "classifier"))
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_where_all_is_crowd_nothing_is_learned(head):
    target = make_target([], [])
    assert head.loss(random_features(1), make_batch([target]))["classifier"] > 0
    crowd = torch.tensor([[-100.0, -100, 164, 164]])  # beyond the picture, as anchors are
    target |= {"boxes": crowd, "labels": torch.tensor([0]), "iscrowd": torch.tensor([True])}
    target["masks"] = torch.ones(1, 64, 64, dtype=torch.bool)
    losses = head.loss(random_features(1), make_batch([target]))
    assert all(loss == 0 for loss in losses.values())


def test_unlabelled_images_are_left_out(head):
    batch = two_images()
    features = random_features()
    first = {name: cells[:1] for name, cells in features.items()}
    torch.manual_seed(0)
    expected = head.loss(first, make_batch(batch.targets[:1]))
    del batch.targets[1][head.needs[-1]]
    torch.manual_seed(0)
    torch.testing.assert_close(head.loss(features, batch), expected)


def test_nothing_labelled_gives_zeros_with_a_graph(head):
    batch = make_batch([{"size": (64, 64), "orig_size": (64, 64)}] * 2)
    features = random_features()
    losses = head.loss(features, batch)
    assert losses.keys() == set(head.terms)
    sum(losses.values()).backward()
    for tensor in [*head.parameters(), *features.values()]:
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_validation_loss_is_the_training_loss(head):
    features, batch = random_features(), two_images()
    torch.manual_seed(0)
    expected = head.train().loss(features, batch)
    torch.manual_seed(0)
    with torch.inference_mode():
        losses = head.eval().loss(features, batch)
    torch.testing.assert_close(losses, {k: v.detach() for k, v in expected.items()})


def test_losses_are_float32_under_autocast(head):
    with torch.autocast("cpu", torch.bfloat16):
        features, batch = random_features(), two_images()
        losses = head.loss(features, batch)
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


def test_levels_of_unequal_channels_are_refused():
    with pytest.raises(ConfigError, match="put a neck"):
        FasterRCNN({"a": Level(8, 8), "b": Level(16, 16)}, CLASSES)


def test_unknown_roi_level_is_refused():
    with pytest.raises(ConfigError, match="'p9'"):
        FasterRCNN(LEVELS, CLASSES, roi_levels=["p9"])


def test_two_images_are_learned_and_found_in_original_pixels(head):
    batch = two_images()
    features = telling_features(batch)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(250):
        loss = sum(head.loss(features, batch).values())
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
