"""SSD: default boxes, which of them detects what, hard negatives, crowds and partial labels; and
the extra levels of its neck."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.losses import losses_of
from visionkit.errors import ConfigError
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.heads.matching import BACKGROUND, IGNORED, GroundTruth
from visionkit.models.heads.ssd import SSD
from visionkit.models.necks.ssd import SSDExtra
from visionkit.ops.boxes import box_iou, encode
from visionkit.ops.layers import HalvingConv
from visionkit.types import Batch, Level

LEVELS = {"c3": Level(8, 8), "c4": Level(16, 16)}
CLASSES = ["cat", "dog", "fox"]
SIZE = (64, 64)


def features_of(count=1, size=SIZE):
    return {
        name: torch.randn(count, level.channels, *(-(-side // level.stride) for side in size))
        for name, level in LEVELS.items()
    }


def batch_of(*targets):
    for target in targets:
        target |= {"size": SIZE, "orig_size": SIZE}
    return Batch(torch.zeros(len(targets), 3, *SIZE, dtype=torch.uint8), list(targets))


def objects(*boxes, labels=None, **more):
    labels = torch.zeros(len(boxes)) if labels is None else torch.tensor(labels)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": labels.long(), **more}


# --- default boxes ---


def test_default_boxes_by_hand():
    head = SSD(LEVELS, CLASSES, box_sizes=[16, 36, 64], box_ratios=[[4], []], max_box=40)
    assert head.boxes.per_cell == [4, 2]
    corners = head.boxes(features_of()).corners
    assert corners.shape == (8 * 8 * 4 + 4 * 4 * 2, 4)
    # The second cell of the first row: around (12, 4), sides 16, 24 = sqrt(16 * 36), 32 x 8.
    expected = [[4, -4, 20, 12], [0, -8, 24, 16], [-4, 0, 28, 8], [8, -12, 16, 20]]
    assert torch.allclose(corners[4:8], torch.tensor(expected).float())
    # The first cell of the coarse level: sides 36, and 48 = sqrt(36 * 64), limited to 40.
    expected = [[-10, -10, 26, 26], [-12, -12, 28, 28]]
    assert torch.allclose(corners[256:258], torch.tensor(expected).float())


def test_steps_and_the_default_sizes():
    head = SSD(LEVELS, CLASSES, steps=[10, 20])
    corners = head.boxes(features_of(size=(80, 80))).corners
    sides = corners[:, 2:] - corners[:, :2]
    assert torch.allclose(sides[:2], torch.tensor([[32.0, 32], [math.sqrt(32 * 64)] * 2]))
    centers = (corners[:, 2:] + corners[:, :2]) / 2
    assert torch.allclose(centers[::6][:2], torch.tensor([[5.0, 5], [15, 5]]))
    spread = SSD(LEVELS, CLASSES).boxes(features_of(size=(40, 72))).corners  # 2.5 cells of 16
    centers = (spread[-1] + spread[-1].roll(2))[:2] / 2
    assert torch.allclose(centers, torch.tensor([72 * 0.9, 40 * 5 / 6]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"box_sizes": [16, 32]}, r"box_sizes: got 2; .* levels \['c3', 'c4'\] and one more"),
        ({"box_ratios": [[2]]}, "box_ratios: got 1; expected one for each of the 2 levels"),
        ({"steps": [8, 16, 32]}, "steps: got 3; expected one for each of the 2 levels"),
    ],
)
def test_lists_of_another_length_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        SSD(LEVELS, CLASSES, **wrong)


# --- which box detects what ---

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [20, 20, 30, 30], [50, 50, 60, 60]])


def matches(boxes, crowds=()):
    truth = objects(*boxes)
    crowd_boxes = torch.tensor([*crowds]).reshape(-1, 4)
    found = GroundTruth(truth["boxes"], truth["labels"], crowd_boxes, None)
    return SSD(LEVELS, CLASSES)._match(ANCHORS, found).tolist()


def test_a_box_detects_what_it_overlaps_most_and_each_object_has_its_best_box():
    none = BACKGROUND
    assert matches([[0, 0, 10, 10]]) == [0, 0, none, none]  # IoU 1 and 0.83
    assert matches([[20, 20, 60, 60]]) == [
        none,
        none,
        0,
        none,
    ]  # the first of two with 0.06
    assert matches([[28, 28, 40, 40]]) == [none, none, 0, none]
    # The first box overlaps object 0 more, but is the best that object 1 has.
    assert matches([[0, 0, 10, 12], [0, 0, 6, 6]]) == [1, 0, none, none]
    assert matches([[0, 0, 10, 10], [0, 0, 10, 10]]) == [1, 0, none, none]  # the last has it
    assert matches([[40, 0, 44, 4]]) == [none] * 4  # overlaps none
    assert matches([], crowds=[[0.0, 0, 10, 7]]) == [IGNORED, IGNORED, none, none]
    assert matches([[0, 0, 10, 10]], crowds=[[0.0, 0, 64, 64]]) == [0, 0, IGNORED, IGNORED]


# --- the loss ---


def naive_losses(head, features, targets):
    """Box by box."""
    logits, offsets = (outputs.detach() for outputs in head.outputs(features))
    anchors = head.boxes(features).corners
    classification, box_reg, found = 0.0, 0.0, 0
    for image, target in enumerate(targets):
        overlap = box_iou(target["boxes"], anchors)
        owner = [-1] * len(anchors)
        for p in range(len(anchors)):
            best = int(overlap[:, p].argmax()) if len(overlap) else -1
            if best >= 0 and overlap[best, p] >= 0.5:
                owner[p] = best
        for n in range(len(overlap)):
            owner[int(overlap[n].argmax())] = n
        negatives = []
        for p, n in enumerate(owner):
            cls = 0 if n < 0 else int(target["labels"][n]) + 1
            loss = float(F.cross_entropy(logits[image, p], torch.tensor(cls)))
            if n < 0:
                negatives.append(loss)
                continue
            found += 1
            classification += loss
            wanted = encode(target["boxes"][n], anchors[p], (10.0, 10.0, 5.0, 5.0))
            box_reg += float(F.smooth_l1_loss(offsets[image, p], wanted, reduction="sum"))
        count = max(3, 3 * sum(n >= 0 for n in owner))
        classification += sum(sorted(negatives, reverse=True)[:count])
    return classification / max(1, found), box_reg / max(1, found)


def test_losses_equal_a_naive_loop():
    torch.manual_seed(0)
    head, features = SSD(LEVELS, CLASSES), features_of(3)
    boxes = [[4, 4, 38, 30], [30, 20, 62, 63], [10, 40, 22, 50]]
    targets = [objects(*boxes, labels=[0, 2, 1]), objects(), objects(boxes[1], labels=[1])]
    losses = losses_of(head, features, batch_of(*targets))
    classification, box_reg = naive_losses(head, features, targets)
    assert float(losses["classification"].detach()) == pytest.approx(classification, rel=1e-4)
    assert float(losses["box_reg"].detach()) == pytest.approx(box_reg, rel=1e-4)


def test_an_image_without_objects_teaches_its_hardest_background():
    torch.manual_seed(0)
    features, batch = features_of(), batch_of(objects())
    head = SSD(LEVELS, CLASSES)
    logits, _ = head.outputs(features)
    hardest = (logits.logsumexp(2) - logits[..., 0]).flatten().topk(3).values.sum()
    losses = losses_of(head, features, batch)
    torch.testing.assert_close(losses["classification"], hardest)
    assert losses["box_reg"] == 0
    paper = SSD(LEVELS, CLASSES, min_negatives=0)
    assert losses_of(paper, features, batch)["classification"] == 0


def test_boxes_in_a_crowd_are_not_background():
    torch.manual_seed(0)
    features, head = features_of(), SSD(LEVELS, CLASSES, min_negatives=1000)
    everything = objects([0, 0, 64, 64], iscrowd=torch.tensor([True]))
    losses = losses_of(head, features, batch_of(everything))
    corners = head.boxes(features).corners
    inside = corners.clamp(0, 64)
    share = (inside[:, 2:] - inside[:, :2]).prod(1) / (corners[:, 2:] - corners[:, :2]).prod(1)
    logits, _ = head.outputs(features)
    background = (logits.logsumexp(2) - logits[..., 0])[0]
    assert 0 < (share <= 0.5).sum() < len(share)
    torch.testing.assert_close(losses["classification"], background[share <= 0.5].sum())


def test_a_box_without_an_object_may_show_a_class_that_is_not_labeled():
    """Of an image that labels cats alone: where dog is more probable than background, the loss is
    that of showing no cat, elsewhere that of showing background."""
    torch.manual_seed(0)
    features, head = features_of(), SSD(LEVELS, CLASSES, min_negatives=1000)
    cats = objects(labeled=torch.tensor([True, False, False]))
    losses = losses_of(head, features, batch_of(cats))
    logits, _ = head.outputs(features)
    probs = logits[0].softmax(1)
    unlabeled = probs[:, 2:].amax(1) > probs[:, 0]
    assert 10 < unlabeled.sum() < len(probs) - 10
    expected = torch.where(unlabeled, -(1 - probs[:, 1]).log(), -probs[:, 0].log()).sum()
    torch.testing.assert_close(losses["classification"], expected)


# --- predictions ---


def test_each_class_keeps_its_own_best():
    """Two cells at most of each class, whatever level they are on."""
    torch.manual_seed(0)
    head, features = SSD(LEVELS, CLASSES, pre_nms_top_n=2).eval(), features_of(2)
    logits, offsets = head.outputs(features)
    probs, anchors = logits.softmax(2), head.boxes(features)
    outputs = head(features)
    assert outputs["boxes"].shape == (2, 6, 4)
    assert outputs["labels"].tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    for image in range(2):
        for k in range(3):
            scores, index = probs[image, :, k + 1].topk(2)
            row = slice(2 * k, 2 * k + 2)
            torch.testing.assert_close(outputs["scores"][image, row], scores)
            boxes = anchors.boxes(offsets[image])[index].clamp(0, 64)
            torch.testing.assert_close(outputs["boxes"][image, row], boxes)


def test_boxes_of_a_stretched_image_are_moved_back():
    torch.manual_seed(0)
    head, features = SSD(LEVELS, CLASSES).eval(), features_of()
    batch = batch_of({})
    (before,) = head.predict(features, batch)
    batch.targets[0]["orig_size"] = (32, 320)
    (after,) = head.predict(features, batch)
    torch.testing.assert_close(after["boxes"], before["boxes"] * torch.tensor([5, 0.5, 5, 0.5]))


def test_lite_predictors_are_depthwise_separable():
    head = SSD(LEVELS, CLASSES, lite=True)
    depthwise, pointwise = head.head["classification_head"].module_list[1]
    assert depthwise[0].groups == 16 and depthwise[1].momentum == 0.03
    assert pointwise.out_channels == 6 * 4
    assert set(head.class_layers) == {
        f"head.classification_head.module_list.{i}.1" for i in range(2)
    }
    assert sum(p.numel() for p in head.parameters()) < sum(
        p.numel() for p in SSD(LEVELS, CLASSES).parameters()
    )


# --- the neck ---


def test_each_extra_level_has_half_the_size():
    neck = SSDExtra(LEVELS, channels=(12, 6), lite=True)
    assert neck.levels == {**LEVELS, "e1": Level(12, 32), "e2": Level(6, 64)}
    features = features_of(2, (96, 64))
    maps = neck(features)
    assert [*maps] == ["c3", "c4", "e1", "e2"]
    assert [tuple(x.shape[1:]) for x in maps.values()][2:] == [(12, 3, 2), (6, 2, 1)]
    assert maps["c3"] is features["c3"] and maps["c4"] is features["c4"]
    neck = SSDExtra(LEVELS, in_features=["c4"], channels=(12,))
    assert [*neck.levels] == ["c4", "e1"] and [*neck(features)] == ["c4", "e1"]


def test_the_strides_of_unpadded_levels_are_those_at_300_pixels():
    levels = {"c3": Level(8, 8), "c4": Level(16, 16)}
    neck = SSDExtra(levels, channels=(8, 8, 8, 8), unpadded=2, conv7=24)
    assert [level.stride for level in neck.levels.values()] == [8, 16, 32, 64, 100, 300]
    assert neck.levels["c4"].channels == 24
    maps = neck({"c3": torch.randn(1, 8, 38, 38), "c4": torch.randn(1, 16, 19, 19)})
    assert [x.shape[-1] for x in maps.values()] == [38, 19, 10, 5, 3, 1]
    # A map of fewer than three cells gets zeros around it.
    maps = neck({"c3": torch.randn(1, 8, 8, 8), "c4": torch.randn(1, 16, 4, 4)})
    assert [x.shape[-1] for x in maps.values()] == [8, 4, 2, 1, 1, 1]
    with pytest.raises(ConfigError, match=r"got 2 and images of 512 pixels; expected at most 448"):
        neck({"c3": torch.randn(1, 8, 64, 64), "c4": torch.randn(1, 16, 32, 32)})


def test_cells_are_rescaled_to_a_length():
    neck = SSDExtra(LEVELS, channels=(4,), rescale=20)
    maps = neck({name: 7 * x for name, x in features_of().items()})
    torch.testing.assert_close(maps["c3"].norm(dim=1), torch.full((1, 8, 8), 20.0))
    neck.scale_weight.data[3] = 5
    torch.testing.assert_close(neck(maps)["c3"][:, 3], maps["c3"][:, 3] / 4)


@pytest.mark.parametrize("lite", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_neck_and_head_can_be_exported(lite):
    torch.manual_seed(0)
    more = {"lite": True} if lite else {"unpadded": 2, "conv7": 8, "rescale": 20.0}
    neck = SSDExtra(LEVELS, channels=(8, 8, 8), **more)
    network = Sequence(neck, SSD(neck.levels, CLASSES, lite=lite)).eval()
    sizes = torch.tensor([SIZE, (40, 50)])
    batch = torch.export.Dim("batch")
    shapes = ({name: {0: batch} for name in LEVELS}, {0: batch})
    with torch.no_grad():
        program = torch.export.export(network, (features_of(2), sizes), dynamic_shapes=shapes)
        features = features_of(3)
        sizes = torch.cat([sizes, sizes[:1]])
        found, expected = program.module()(features, sizes), network(features, sizes)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


class Sequence(nn.Module):
    def __init__(self, neck, head):
        super().__init__()
        self.neck, self.head = neck, head

    def forward(self, features, sizes):
        return self.head(self.neck(features), sizes)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"in_features": ["c9"]}, "in_features: got"),
        ({"unpadded": 5}, "unpadded: got 5; expected at most 4, the number of channels"),
        ({"unpadded": 1, "lite": True}, "unpadded: got 1; expected 0 with lite"),
    ],
)
def test_impossible_arguments_of_the_neck(wrong, message):
    with pytest.raises(ConfigError, match=message):
        SSDExtra(LEVELS, **wrong)


@pytest.mark.parametrize("lite", [False, True])
def test_a_single_cell_can_be_trained_in_bfloat16(lite):
    """With a stale gradient, torch leaves parts of it as they were in memory."""
    torch.manual_seed(0)
    neck = SSDExtra({"c5": Level(32, 32)}, channels=(32, 32), lite=lite)
    x = torch.randn(4, 32, 1, 1)
    grads = []
    for enabled in (False, True):
        neck.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            neck({"c5": x})["e2"].float().square().sum().backward()
        grads.append([p.grad.clone() for p in neck.parameters()])
    for exact, rounded in zip(*grads, strict=True):
        assert (exact - rounded).norm() <= 0.1 * exact.norm() + 1e-6


@pytest.mark.parametrize("lite", [False, True])
def test_no_gradient_of_a_single_cell_is_left_uninitialized(lite):
    """Free memory is full of NaN; whether torch takes it is chance, hence the types."""
    neck = SSDExtra({"c5": Level(32, 32)}, channels=(128,), lite=lite)
    halving = [x for x in neck.modules() if isinstance(x, nn.Conv2d) and x.stride == (2, 2)]
    assert len(halving) == 1 and isinstance(halving[0], HalvingConv)
    for _ in range(20):
        neck.zero_grad()
        sizes = (16, 64, 576, 1024, 4096, 73728)
        stale = [torch.full((size,), math.nan) for size in sizes for _ in range(20)]
        del stale
        with torch.autocast("cpu", torch.bfloat16):
            neck({"c5": torch.randn(2, 32, 1, 1)})["e1"].float().sum().backward()
        assert all(p.grad.isfinite().all() for p in neck.parameters() if p.grad is not None)


# --- the backbones ---


@pytest.mark.parametrize("option", ["reduced_tail", "expanded"])
def test_options_of_mobilenets_are_theirs_alone(option):
    with pytest.raises(ConfigError, match=f"{option}: got true for resnet18; only a MobileNetV3"):
        Torchvision(name="resnet18", **{option: True})
    with pytest.raises(ConfigError, match="out_indices: got both it and expanded"):
        Torchvision(name="mobilenet_v3_small", expanded=True, out_indices=[3])


def test_momentum_of_norms():
    backbone = Torchvision(name="resnet18", norm_momentum=0.03)
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.03}
    with pytest.raises(ConfigError, match=r"norm_momentum=0\.03, but this backbone has no batch"):
        Torchvision(name="squeezenet1_0", norm_momentum=0.03)
