import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from support.losses import losses_of
from visionkit.errors import ConfigError
from visionkit.models.heads.fcos import FCOS
from visionkit.ops.boxes import box_iou
from visionkit.types import Batch, Level

LEVELS = {"p3": Level(32, 8), "p4": Level(32, 16), "p5": Level(32, 32)}
CLASSES = ["circle", "square", "star"]


def target(boxes, labels, *, size=(64, 64), orig_size=None, iscrowd=None):
    count = len(labels)
    return {
        "image_id": 1,
        "size": size,
        "orig_size": orig_size or size,
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(count, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "iscrowd": torch.tensor(iscrowd or [False] * count, dtype=torch.bool),
    }


def batch_of(*targets, size=(64, 64)):
    return Batch(torch.zeros(len(targets), 3, *size, dtype=torch.uint8), list(targets))


def features_for(levels, count, size=(64, 64), **kwargs):
    return {
        name: torch.randn(count, level.channels, *(-(-s // level.stride) for s in size), **kwargs)
        for name, level in levels.items()
    }


def random_target(count, size, generator):
    h, w = size
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([w, h]) * 0.7
    extent = 8 + torch.rand(count, 2, generator=generator) * torch.tensor([w, h]) * 0.4
    boxes = torch.cat([corner, corner + extent], 1).clamp(max=min(h, w))
    labels = torch.randint(0, 6, (count,), generator=generator)
    return target(boxes.tolist(), labels.tolist(), size=size)


# --- The same as torchvision ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision_case():
    """torchvision's model with weights under which there are many detections, no two with the
    same score, and its features of two images of different size in one padded batch."""
    torch.manual_seed(3)
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=6).eval()
    branches = model.head
    for predictor, std in [
        (branches.classification_head.cls_logits, 0.05),
        (branches.regression_head.bbox_reg, 0.3),
        (branches.regression_head.bbox_ctrness, 0.05),
    ]:
        torch.nn.init.normal_(predictor.weight, std=std)
        torch.nn.init.normal_(predictor.bias, std=1)
    pixels = torch.randn(2, 3, 256, 320)
    with torch.no_grad():
        features = model.backbone(pixels)
        outputs = model.head(list(features.values()))
    images = ImageList(pixels, [(200, 320), (256, 190)])
    anchors = model.anchor_generator(images, list(features.values()))
    levels = {name: Level(256, 8 * 2**i) for i, name in enumerate(features)}
    ours = FCOS(levels, [f"class {i}" for i in range(6)]).eval()
    ours.load_state_dict({f"head.{name}": value for name, value in model.head.state_dict().items()})
    return model, ours, features, outputs, images, anchors


def test_detections_equal_torchvisions(torchvision_case):
    model, ours, features, outputs, images, anchors = torchvision_case
    per_level = [feature.shape[-2:].numel() for feature in features.values()]
    split = {name: list(value.split(per_level, 1)) for name, value in outputs.items()}
    with torch.no_grad():
        expected = model.postprocess_detections(
            split, [list(a.split(per_level)) for a in anchors], images.image_sizes
        )
        batch = batch_of(
            target([], [], size=(200, 320), orig_size=(400, 640)),
            target([], [], size=(256, 190)),
            size=(256, 320),
        )
        found = ours.predict(features, batch)
    for ours_one, theirs, scale in zip(found, expected, (2, 1), strict=True):
        assert len(theirs["boxes"]) == 100
        torch.testing.assert_close(ours_one["boxes"], theirs["boxes"] * scale, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours_one["scores"], theirs["scores"], atol=1e-4, rtol=0)
        assert torch.equal(ours_one["labels"], theirs["labels"])
        assert theirs["labels"].unique().numel() > 1


def test_losses_equal_torchvisions(torchvision_case):
    model, ours, features, outputs, images, anchors = torchvision_case
    generator = torch.Generator().manual_seed(1)
    targets = [random_target(12, size, generator) for size in images.image_sizes]
    per_level = [feature.shape[-2:].numel() for feature in features.values()]
    with torch.no_grad():
        expected = model.compute_loss(targets, outputs, anchors, per_level)
        losses = losses_of(ours, features, batch_of(*targets, size=(256, 320)))
    names = {
        "classification": "classification",
        "box_reg": "bbox_regression",
        "centerness": "bbox_ctrness",
    }
    assert set(losses) == set(names)
    for name, theirs in names.items():
        assert expected[theirs] > 0.1
        torch.testing.assert_close(losses[name], expected[theirs], atol=1e-4, rtol=1e-5)


def test_the_loss_is_the_same_in_training_and_evaluation_mode():
    torch.manual_seed(0)
    head = FCOS(LEVELS, CLASSES, num_convs=1)
    features, batch = features_for(LEVELS, 1), batch_of(target([[5, 5, 40, 50]], [1]))
    trained = losses_of(head.train(), features, batch)
    assert trained == losses_of(head.eval(), features, batch)


# --- Contracts -----------------------------------------------------------------------------------


def test_losses_are_finite_and_reach_every_parameter():
    torch.manual_seed(0)
    head = FCOS(LEVELS, CLASSES, num_convs=1)
    features = features_for(LEVELS, 2, requires_grad=True)
    batch = batch_of(target([[5, 5, 40, 50], [30, 2, 60, 20]], [1, 2]), target([], []))
    losses = losses_of(head, features, batch)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(feature.grad is not None for feature in features.values())


@pytest.mark.parametrize("labeled", [True, False])
def test_images_without_objects_or_labels_give_losses_with_a_graph(labeled):
    head = FCOS(LEVELS, CLASSES, num_convs=1)
    empty = target([], [])
    if not labeled:
        del empty["boxes"]
    losses = losses_of(head, features_for(LEVELS, 2), batch_of(empty, empty))
    sum(losses.values()).backward()
    assert losses["box_reg"] == 0 and losses["centerness"] == 0
    assert (losses["classification"] > 0) == labeled  # background is learned, the unlabeled not
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_an_unlabeled_image_does_not_change_the_loss():
    torch.manual_seed(0)
    head = FCOS(LEVELS, CLASSES, num_convs=1)
    features = features_for(LEVELS, 2)
    labeled = target([[5, 5, 40, 50]], [1])
    unlabeled = {"image_id": 2, "size": (64, 64), "orig_size": (64, 64)}
    both = losses_of(head, features, batch_of(unlabeled, labeled))
    alone = losses_of(head, {k: f[1:] for k, f in features.items()}, batch_of(labeled))
    assert {k: v.item() for k, v in both.items()} == pytest.approx(
        {k: v.item() for k, v in alone.items()}
    )


def test_a_crowd_region_is_neither_object_nor_background():
    head = FCOS(LEVELS, CLASSES, num_convs=1)
    features = features_for(LEVELS, 1)
    crowd = batch_of(target([[-1, -1, 65, 65]], [1], iscrowd=[True]))
    assert losses_of(head, features, crowd) == {"classification": 0, "box_reg": 0, "centerness": 0}
    box = [20, 20, 40, 40]
    alone = losses_of(head, features, batch_of(target([box], [2])))
    within = losses_of(
        head, features, batch_of(target([box, [-1, -1, 65, 65]], [2, 1], iscrowd=[0, 1]))
    )
    assert within["box_reg"] == alone["box_reg"] > 0
    assert 0 < within["classification"] < alone["classification"]


def test_runs_under_bf16_autocast():
    torch.manual_seed(0)
    head = FCOS(LEVELS, CLASSES, num_convs=1, score_threshold=0.01)
    batch = batch_of(target([[5, 5, 40, 50]], [1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(head, features_for(LEVELS, 1), batch)
        prediction = head.predict(features_for(LEVELS, 1), batch)[0]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert prediction["boxes"].dtype == prediction["scores"].dtype == torch.float32
    assert len(prediction["boxes"]) > 0


@pytest.mark.slow
def test_two_images_are_overfitted():
    torch.manual_seed(0)
    head = FCOS(LEVELS, CLASSES, num_convs=1)
    features = features_for(LEVELS, 2, requires_grad=True)
    boxes = [[[4, 6, 30, 40], [34, 30, 60, 60]], [[10, 10, 54, 50]]]
    labels = [[0, 2], [1]]
    targets = [target(b, c, orig_size=(128, 128)) for b, c in zip(boxes, labels, strict=True)]
    batch = batch_of(*targets)
    optimizer = torch.optim.Adam([*head.parameters(), *features.values()], lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        sum(losses_of(head, features, batch).values()).backward()
        optimizer.step()
    with torch.no_grad():
        predictions = head.predict(features, batch)
    for prediction, box, label in zip(predictions, boxes, labels, strict=True):
        order = prediction["labels"].argsort()
        assert prediction["labels"][order].tolist() == label
        truth = 2 * torch.tensor(box, dtype=torch.float32)
        assert box_iou(prediction["boxes"][order], truth).diagonal().min() > 0.8
        assert prediction["scores"].tolist() == sorted(prediction["scores"].tolist(), reverse=True)


def test_levels_of_unequal_channels_are_refused_with_a_hint():
    with pytest.raises(ConfigError, match=r"equal channels.*type: FPN"):
        FCOS({"c3": Level(64, 8), "c4": Level(128, 16)}, CLASSES)


def test_channels_that_are_no_multiple_of_32_and_no_normalization_work():
    levels = {"p3": Level(24, 8)}
    features, batch = features_for(levels, 1), batch_of(target([[5, 5, 40, 50]], [1]))
    grouped = FCOS(levels, CLASSES, num_convs=1)
    plain = FCOS(levels, CLASSES, num_convs=1, norm="none")
    assert all(loss.isfinite() for loss in losses_of(grouped, features, batch).values())
    assert all(loss.isfinite() for loss in losses_of(plain, features, batch).values())
    assert any("conv.1.weight" in name for name in grouped.state_dict())
    assert not any("conv.1" in name for name in plain.state_dict())


def test_the_number_of_detections_is_limited():
    torch.manual_seed(0)
    features, batch = features_for(LEVELS, 1), batch_of(target([], []))
    arguments = {"num_convs": 1, "prior": 0.5, "nms_iou": 1.0, "score_threshold": 0.0}
    three_at_most = FCOS(LEVELS, CLASSES, max_detections=3, **arguments)
    assert len(three_at_most.predict(features, batch)[0]["boxes"]) == 3
    two_per_level = FCOS(LEVELS, CLASSES, pre_nms_top_n=2, **arguments)
    assert len(two_per_level.predict(features, batch)[0]["boxes"]) == 2 * len(LEVELS)
    strict = FCOS(LEVELS, CLASSES, **{**arguments, "score_threshold": 0.99})
    assert strict.predict(features, batch)[0]["boxes"].shape == (0, 4)
