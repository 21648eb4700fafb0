"""RetinaNet: the same as torchvision's, against a naive loop, crowds and partial labels by hand."""

import pytest
import torch
from torchvision.models import detection as tv
from torchvision.models.detection.image_list import ImageList

from support.losses import losses_of
from visionkit.errors import ConfigError
from visionkit.models.heads.matching import ground_truth_of
from visionkit.models.heads.retinanet import RetinaNet
from visionkit.ops.boxes import box_iou
from visionkit.types import Batch, Level

LEVELS = {"p3": Level(32, 8), "p4": Level(32, 16), "p5": Level(32, 32)}
CLASSES = ["circle", "square", "star"]
NUM_CLASSES = 6  # of torchvision's models
SIZES = [(100, 160), (128, 96), (60, 60)]


def target(boxes, labels, *, size=(64, 64), iscrowd=None, labeled=None):
    count = len(labels)
    found = {
        "image_id": 1,
        "size": size,
        "orig_size": size,
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(count, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "iscrowd": torch.tensor(iscrowd or [False] * count, dtype=torch.bool),
    }
    return found | ({} if labeled is None else {"labeled": torch.tensor(labeled)})


def batch_of(*targets, size=(64, 64)):
    return Batch(torch.zeros(len(targets), 3, *size, dtype=torch.uint8), list(targets))


def features_for(levels, count, size=(64, 64), **kwargs):
    return {
        name: torch.randn(count, level.channels, *(-(-s // level.stride) for s in size), **kwargs)
        for name, level in levels.items()
    }


def small(**arguments):
    torch.manual_seed(0)
    return RetinaNet(LEVELS, CLASSES, **{"num_convs": 1, **arguments})


# --- The same as torchvision ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"])
def torchvision_case(request):
    """torchvision's head with weights under which outputs differ from place to place, and features
    of three images of different size in one padded batch."""
    torch.manual_seed(3)
    model = getattr(tv, request.param)(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES
    ).eval()
    levels = {f"p{i}": Level(256, 2**i) for i in range(3, 8)}
    features = features_for(levels, len(SIZES), (128, 160))
    with torch.no_grad():
        heads = model.head.classification_head, model.head.regression_head
        for layer, mean, std in ((heads[0].cls_logits, -4, 1.5), (heads[1].bbox_reg, 0, 0.5)):
            branch = heads[0] if layer is heads[0].cls_logits else heads[1]
            values = torch.cat([layer(branch.conv(x)).flatten() for x in features.values()])
            layer.weight *= std / values.std()
            layer.bias.fill_(mean)
    v2 = {"norm": "group", "box_loss": "giou"} if request.param.endswith("v2") else {}
    names = [f"class {i}" for i in range(NUM_CLASSES)]
    ours = RetinaNet(levels, names, max_detections=300, **v2).eval()
    ours.load_state_dict({f"head.{name}": value for name, value in model.head.state_dict().items()})
    images = ImageList(torch.zeros(len(SIZES), 3, 128, 160), SIZES)
    anchors = model.anchor_generator(images, list(features.values()))
    return model, ours, features, anchors


def test_detections_equal_torchvisions(torchvision_case):
    model, ours, features, anchors = torchvision_case
    per_level = [feature.shape[-2:].numel() * 9 for feature in features.values()]
    with torch.no_grad():
        outputs = model.head(list(features.values()))
        split = {name: list(value.split(per_level, 1)) for name, value in outputs.items()}
        boxes = [list(of_image.split(per_level)) for of_image in anchors]
        expected = model.postprocess_detections(split, boxes, SIZES)
        batch = batch_of(*(target([], [], size=size) for size in SIZES), size=(128, 160))
        found = ours.predict(features, batch)
    for mine, theirs in zip(found, expected, strict=True):
        assert len(theirs["boxes"]) > 50
        torch.testing.assert_close(mine["boxes"], theirs["boxes"], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(mine["scores"], theirs["scores"], atol=1e-5, rtol=0)
        assert torch.equal(mine["labels"], theirs["labels"])
        assert theirs["labels"].unique().numel() > 3


def random_targets():
    generator = torch.Generator().manual_seed(1)
    targets = []
    for (h, w), count in zip(SIZES, (12, 3, 0), strict=True):  # the last is background alone
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([w, h]) * 0.6
        extent = 4 + torch.rand(count, 2, generator=generator) * torch.tensor([w, h]) * 0.3
        labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        targets.append(target(torch.cat([corner, corner + extent], 1).tolist(), labels.tolist()))
    return targets


def test_losses_and_gradients_equal_torchvisions(torchvision_case):
    model, ours, features, anchors = torchvision_case
    targets = random_targets()
    outputs = model.head(list(features.values()))
    expected = model.compute_loss(targets, outputs, anchors)
    losses = losses_of(ours, features, batch_of(*targets, size=(128, 160)))
    names = {"classification": "classification", "box_reg": "bbox_regression"}
    assert set(losses) == set(names)
    for name, theirs in names.items():
        assert expected[theirs] > 0.1
        torch.testing.assert_close(losses[name], expected[theirs], atol=1e-5, rtol=1e-4)

    ours.zero_grad(), model.zero_grad()
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    theirs = dict(model.head.named_parameters())
    for key, parameter in ours.head.named_parameters():
        reference = theirs[key].grad
        assert (parameter.grad - reference).norm() <= 1e-3 * reference.norm(), key


def test_parameters_start_as_torchvisions():
    torch.manual_seed(0)
    ours = RetinaNet({"p3": Level(64, 8)}, CLASSES, norm="group")
    for name, parameter in ours.named_parameters():
        if name.endswith("cls_logits.bias"):
            assert torch.allclose(parameter.detach().sigmoid(), torch.tensor(0.01))
        elif parameter.ndim == 4:
            assert parameter.detach().std().item() == pytest.approx(0.01, rel=0.1)
        else:
            assert parameter.unique().tolist() == [1.0 if name.endswith("1.weight") else 0.0]


def test_default_anchors_by_hand():
    """Sizes of the finest level 32, 32 * 2^(1/3) = 40.3 and 32 * 2^(2/3) = 50.8, cut to pixels; of
    ratio 1 the halves are 16, 20 and 25."""
    head = RetinaNet(LEVELS, CLASSES)
    squares = head.anchors.shapes[:, 3:6]  # ratio by ratio
    assert squares[0].tolist() == [[-16, -16, 16, 16], [-20, -20, 20, 20], [-25, -25, 25, 25]]
    assert squares[1, 0].tolist() == [-32, -32, 32, 32]
    few = RetinaNet(LEVELS, CLASSES, anchor_sizes=[[8], [16], [32]], anchor_ratios=(1.0,))
    assert few.anchors.per_cell == 1
    for wrong in ([[8]], []):
        with pytest.raises(ConfigError, match="anchor_sizes: got lists of"):
            RetinaNet(LEVELS, CLASSES, anchor_sizes=wrong)


# --- The loss, one anchor at a time --------------------------------------------------------------


def naive_losses(head, features, batch):
    """Lin et al. 2017: the focal loss of every anchor that is positive or negative, and the L1
    distance of the offsets of positive ones, each divided by the number of positive ones."""
    output, anchors = head.outputs(features), head.anchors(features)
    totals = {"classification": 0.0, "box_reg": 0.0}
    for image, truth in enumerate(batch.targets):
        crowd = truth["iscrowd"]
        boxes, labels = truth["boxes"][~crowd], truth["labels"][~crowd]
        iou = box_iou(anchors.corners, boxes)  # (P, N)
        probs, cls, box, positives = output.class_logits[image].sigmoid(), 0.0, 0.0, 0
        for p, anchor in enumerate(anchors.corners):
            best = max(range(len(boxes)), key=lambda n: float(iou[p, n]), default=None)
            overlap = float(iou[p, best]) if len(boxes) else 0.0
            is_best = any(iou[p, n] == iou[:, n].max() > 0 for n in range(len(boxes)))
            positive = overlap >= head.matcher.fg_iou or is_best
            if not positive and overlap >= head.matcher.bg_iou:
                continue
            if not positive and in_crowd(anchor, truth["boxes"][crowd]):
                continue
            for k, prob in enumerate(probs[p]):
                if positive and k == labels[best]:
                    cls = cls - 0.25 * (1 - prob) ** 2 * prob.log()
                elif "labeled" not in truth or truth["labeled"][k]:
                    cls = cls - 0.75 * prob**2 * (1 - prob).log()
            if positive:
                positives += 1
                (x1, y1, x2, y2), (a, b, c, d) = boxes[best], anchor
                wanted = torch.stack([
                    ((x1 + x2) - (a + c)) / 2 / (c - a), ((y1 + y2) - (b + d)) / 2 / (d - b),
                    ((x2 - x1) / (c - a)).log(), ((y2 - y1) / (d - b)).log(),
                ])  # fmt: skip
                box = box + (output.offsets[image, p] - wanted).abs().sum()
        totals["classification"] += cls / max(1, positives)
        totals["box_reg"] += box / max(1, positives)
    return {name: value / len(batch.targets) for name, value in totals.items()}


def in_crowd(anchor, crowds):
    for region in crowds:
        low, high = torch.maximum(anchor[:2], region[:2]), torch.minimum(anchor[2:], region[2:])
        if (high - low).clamp(min=0).prod() > 0.5 * (anchor[2:] - anchor[:2]).prod():
            return True
    return False


@pytest.mark.parametrize("labeled", [None, [True, False, True]])
def test_losses_equal_a_loop_over_anchors(labeled):
    head = small(anchor_sizes=[[12], [24], [48]], focal_gamma=2.0)
    features = features_for(LEVELS, 2)
    first = target([[5, 5, 30, 40], [40, 8, 60, 20], [0, 40, 64, 64]], [1, 2, 0],
                   iscrowd=[False, False, True], labeled=labeled)  # fmt: skip
    second = target([[10, 10, 54, 50]], [2])
    batch = batch_of(first, second)
    with torch.no_grad():
        expected = naive_losses(head, features, batch)
        losses = losses_of(head, features, batch)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], torch.as_tensor(value), atol=1e-5, rtol=1e-4)


def test_images_count_equally():
    """As in torchvision: the loss is a mean over images, each a mean over its own anchors."""
    head, features = small(), features_for(LEVELS, 2)
    one = target([[5, 5, 40, 50]], [1])
    many = target([[8 * i, 8 * j, 8 * i + 24, 8 * j + 24] for i in range(5) for j in range(5)],
                  [0] * 25)  # fmt: skip
    both = losses_of(head, features, batch_of(one, many))
    alone = [
        losses_of(head, {k: f[i : i + 1] for k, f in features.items()}, batch_of(t))
        for i, t in enumerate((one, many))
    ]
    for name in both:
        assert both[name].item() == pytest.approx(sum(a[name].item() for a in alone) / 2, rel=1e-5)
    loss = head.loss(features, batch_of(one, many))["box_reg"]
    assert loss.count == 2


# --- Partial labels and crowds -------------------------------------------------------------------


def test_an_unlabeled_image_does_not_change_the_loss():
    head, features = small(), features_for(LEVELS, 2)
    labeled = target([[5, 5, 40, 50]], [1])
    unlabeled = {"image_id": 2, "size": (64, 64), "orig_size": (64, 64)}
    both = losses_of(head, features, batch_of(unlabeled, labeled))
    alone = losses_of(head, {k: f[1:] for k, f in features.items()}, batch_of(labeled))
    assert {k: v.item() for k, v in both.items()} == pytest.approx(
        {k: v.item() for k, v in alone.items()}
    )


def test_a_class_that_is_not_labeled_learns_from_its_objects_alone():
    head, features = small(), features_for(LEVELS, 1)
    head.head["classification_head"].cls_logits.weight.data.zero_()
    bias = head.head["classification_head"].cls_logits.bias
    losses = losses_of(head, features, batch_of(target([], [], labeled=[True, False, True])))
    losses["classification"].backward()
    of_classes = bias.grad.view(9, 3)  # of each anchor
    assert (of_classes[:, [0, 2]] > 0).all() and (of_classes[:, 1] == 0).all()
    bias.grad = None
    one = target([[5, 5, 40, 50]], [1], labeled=[True, False, True])
    losses_of(head, features, batch_of(one))["classification"].backward()
    of_classes = bias.grad.view(9, 3)
    assert of_classes[:, 1].min() < 0  # raised where the object is
    assert of_classes[:, 1].max() <= 0  # and nowhere lowered


def test_a_crowd_region_is_neither_object_nor_background():
    head = small(anchor_sizes=[[8], [16], [32]])
    features = features_for(LEVELS, 1)
    everywhere = [-64, -64, 128, 128]
    crowd = losses_of(head, features, batch_of(target([everywhere], [1], iscrowd=[True])))
    assert crowd == {"classification": 0, "box_reg": 0}
    box = [20, 20, 40, 40]
    alone = losses_of(head, features, batch_of(target([box], [2])))
    within = batch_of(target([box, everywhere], [2, 1], iscrowd=[0, 1]))
    found = losses_of(head, features, within)
    assert found["box_reg"] == alone["box_reg"] > 0
    assert 0 < found["classification"] < alone["classification"]


def test_an_object_smaller_than_every_anchor_is_learned():
    head = small()
    assert head.cell is None  # so that it is not reported as too small for its cells
    truth = batch_of(target([[9, 9, 11, 12]], [1])).targets[0]
    anchors = head.anchors(features_for(LEVELS, 1)).corners
    assert (head.matcher(anchors, ground_truth_of(truth)) == 0).any()


# --- Contracts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_losses_are_finite_and_reach_every_parameter(norm, box_loss):
    head = small(norm=norm, box_loss=box_loss)
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
    head, empty = small(), target([], [])
    if not labeled:
        del empty["boxes"]
    losses = losses_of(head, features_for(LEVELS, 2), batch_of(empty, empty))
    sum(losses.values()).backward()
    assert losses["box_reg"] == 0
    assert (losses["classification"] > 0) == labeled  # background is learned, the unlabeled not
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.slow
def test_two_images_are_overfitted():
    head = small()
    features = features_for(LEVELS, 2, requires_grad=True)
    boxes = [[[4, 6, 30, 40], [34, 30, 60, 60]], [[10, 10, 54, 50]]]
    labels = [[0, 2], [1]]
    batch = batch_of(*(target(b, c) for b, c in zip(boxes, labels, strict=True)))
    optimizer = torch.optim.Adam([*head.parameters(), *features.values()], lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        sum(losses_of(head, features, batch).values()).backward()
        optimizer.step()
    with torch.no_grad():
        predictions = head.predict(features, batch)
    for prediction, box, label in zip(predictions, boxes, labels, strict=True):
        assert set(prediction["labels"][prediction["scores"] > 0.5].tolist()) == {*label}
        for one, k in zip(box, label, strict=True):
            best = prediction["boxes"][prediction["labels"] == k][:1]
            assert box_iou(best, torch.tensor([one]).float()) > 0.8


def test_extreme_outputs_give_finite_losses_and_boxes():
    """Logits of 1e4 and offsets that exp() cannot take, as a diverging network gives them."""
    for box_loss in ("l1", "giou"):
        head = small(box_loss=box_loss)
        for branch in head.head.values():
            branch.get_submodule(branch.predictor).bias.data.fill_(1e4)
        features, batch = features_for(LEVELS, 1), batch_of(target([[5, 5, 40, 50]], [1]))
        losses = losses_of(head, features, batch)
        assert all(loss.isfinite() for loss in losses.values())
        prediction = head.predict(features, batch)[0]
        assert prediction["boxes"].isfinite().all()
