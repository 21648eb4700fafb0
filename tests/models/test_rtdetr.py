"""RT-DETR's losses: against transformers, and what they make of crowds and partial labels."""

import pytest
import torch

from support.losses import losses_of
from support.rtdetr import transformers_model
from visionkit.models.heads import rtdetr
from visionkit.models.heads.denoising import PADDING, attention_mask, denoising_queries
from visionkit.models.heads.matching import GroundTruth
from visionkit.models.heads.rtdetr import RTDETR, match, matching_cost
from visionkit.ops.boxes import centers_of, corners_of, paired_iou
from visionkit.types import Batch, Level

LEVELS = {"p3": Level(8, 8), "p4": Level(8, 16), "p5": Level(8, 32)}
SIDE = 64


def head_of(num_classes=3, **more):
    torch.manual_seed(0)
    small = {"channels": 16, "attention_heads": 2, "num_layers": 2, "feed_forward": 16}
    return RTDETR(
        LEVELS, [f"{k}" for k in range(num_classes)], **{**small, "num_queries": 12, **more}
    )


def features_of(batch=2):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(batch, 8, SIDE // level.stride, SIDE // level.stride, generator=generator)
        for name, level in LEVELS.items()
    }


def batch_of(*targets):
    size = {"size": (SIDE, SIDE), "orig_size": (SIDE, SIDE)}
    full = [{**size, "position": 7 + n, **target} for n, target in enumerate(targets)]
    return Batch(torch.zeros(len(full), 3, SIDE, SIDE, dtype=torch.uint8), full)


def objects(boxes, labels, **more):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), **more}


ONE = objects([[8, 8, 40, 30]], [1])
TWO = objects([[4, 6, 20, 60], [30, 30, 60, 50]], [0, 2])


# --- against transformers ---


def targets_of(counts, num_classes):
    found = []
    for n in counts:
        corner = torch.rand(n, 2) * 0.6
        boxes = torch.cat([corner, corner + 0.05 + torch.rand(n, 2) * 0.35], 1)
        found.append({"class_labels": torch.randint(num_classes, (n,)), "boxes": centers_of(boxes)})
    return found


def truths_of(targets):
    return [GroundTruth(t["boxes"], t["class_labels"], t["boxes"][:0], None) for t in targets]


def test_costs_and_pairs_are_those_of_transformers():
    pytest.importorskip("scipy")
    reference = pytest.importorskip("transformers.loss.loss_rt_detr")
    config = transformers_model(1, 5).config
    torch.manual_seed(0)
    targets = targets_of([4, 0, 7, 30], 5)
    logits = torch.randn(2, 4, 20, 5)
    boxes = torch.rand(2, 4, 20, 4) * 0.4 + 0.1
    found = match(logits, boxes, truths_of(targets))
    for number in range(2):
        outputs = {"logits": logits[number], "pred_boxes": boxes[number]}
        expected = reference.RTDetrHungarianMatcher(config)(outputs, targets)
        for image, (queries, of_image) in enumerate(expected):
            own = (found.place[0] == number) & (found.place[1] == image)
            order = found.place[2][own].argsort()
            assert torch.equal(found.place[2][own][order], queries)
            assert torch.equal(found.labels[own][order], targets[image]["class_labels"][of_image])


def test_the_cost_by_hand():
    """Probability 0.5; the box is the left half of the object."""
    logits, boxes = torch.zeros(1, 1, 1), torch.tensor([[[0.25, 0.5, 0.5, 1.0]]])
    truth = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    log2 = 0.6931472
    of_class = 0.25 * 0.25 * log2 - 0.75 * 0.25 * log2
    expected = 2 * of_class + 5 * (0.25 + 0.5) - 2 * 0.5
    found = matching_cost(logits, boxes, truth, torch.tensor([0]))
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_losses_and_gradients_are_those_of_transformers():
    pytest.importorskip("scipy")
    reference = transformers_model(2, 5)
    torch.manual_seed(0)
    targets = targets_of([3, 1, 6], 5)
    head = RTDETR(
        {name: Level(32, level.stride) for name, level in LEVELS.items()},
        list("abcde"), channels=32, num_layers=2, feed_forward=64, num_queries=20, denoising=0,
    ).eval()  # fmt: skip
    own = {k.removeprefix("model."): v for k, v in reference.state_dict().items()}
    assert not head.load_state_dict(own, strict=False).missing_keys
    maps = {}
    reference.model.encoder.register_forward_hook(lambda m, i, o: maps.update(enumerate(o[0])))
    out = reference(torch.rand(3, 3, SIDE, SIDE), labels=targets)
    features = {name: maps[n].detach() for n, name in enumerate(LEVELS)}
    batch = batch_of(
        *({"boxes": corners_of(t["boxes"]) * SIDE, "labels": t["class_labels"]} for t in targets)
    )
    losses = losses_of(head, features, batch)
    expected = {
        "classification": out.loss_dict["loss_vfl"],
        "l1": out.loss_dict["loss_bbox"],
        "giou": out.loss_dict["loss_giou"],
        "auxiliary": sum(v for k, v in out.loss_dict.items() if "aux" in k),
        "denoising": torch.zeros(()),
    }
    assert losses.keys() == expected.keys()
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)
    out.loss.backward()
    sum(losses.values()).backward()
    theirs = {k.removeprefix("model."): p.grad for k, p in reference.named_parameters()}
    for name, parameter in head.named_parameters():
        close = (parameter.grad - theirs[name]).norm() <= 1e-3 * theirs[name].norm() + 1e-5
        assert close, name


# --- terms, crowds, partial labels ---


def test_the_same_terms_for_any_batch_and_in_evaluation():
    head, features = head_of(), features_of()
    batches = [(ONE, TWO), (objects([], []), objects([], [])), ({}, {}), (ONE, {})]
    for targets in batches:
        losses = head.loss(features, batch_of(*targets))
        assert [*losses] == [*rtdetr.TERMS]
        assert all(loss.value.isfinite() for loss in losses.values())
    one = {k: v.value for k, v in head.loss(features, batch_of(ONE, TWO)).items()}
    head.eval()
    norms = [m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    other = {k: v.value for k, v in head.loss(features, batch_of(ONE, TWO)).items()}
    assert one.keys() == other.keys() and other["denoising"] > 0


def test_counts_are_objects_apart_from_crowds():
    head = head_of()
    crowd = {**TWO, "iscrowd": torch.tensor([False, True])}
    losses = head.loss(features_of(), batch_of(ONE, crowd))
    assert {float(loss.count) for loss in losses.values()} == {2.0}


def test_images_are_independent():
    """The sums of two images are those of each alone, denoising included."""
    head, features = head_of().eval(), features_of()
    both = head.loss(features, batch_of(ONE, TWO))
    parts = []
    for n, target in enumerate((ONE, TWO)):
        own = {name: level[n : n + 1] for name, level in features.items()}
        parts.append(head.loss(own, batch_of({**target, "position": 7 + n})))
    for name, loss in both.items():
        total = sum(part[name].sum for part in parts)
        torch.testing.assert_close(loss.sum, total, rtol=1e-4, atol=1e-4, msg=name)
        assert loss.count == sum(part[name].count for part in parts)


def test_a_prediction_in_a_crowd_is_not_background():
    """All of the image is one crowd: nothing is learned. Without it, predictions are lowered."""
    head, features = head_of(denoising=0), features_of(1)
    crowd = objects([[0, 0, SIDE, SIDE]], [0], iscrowd=torch.tensor([True]))
    losses = head.loss(features, batch_of(crowd))
    inside = sum(float(loss.sum) for loss in losses.values())
    outside = sum(
        float(loss.sum) for loss in head.loss(features, batch_of(objects([], []))).values()
    )
    assert inside < 0.7 * outside  # boxes beyond the image's edge are in it by less than half
    known = head._known(torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [1.2, 0.5, 0.9, 0.2]]]]), [
        GroundTruth(ONE["boxes"][:0], ONE["labels"][:0], torch.tensor([[0.5, 0.5, 1, 1]]), None)
    ])  # fmt: skip
    assert known[0, 0, :, 0].tolist() == [False, True]


def test_classes_that_are_not_labeled_learn_from_their_own_objects_alone():
    head, features = head_of(), features_of(1)
    labeled = torch.tensor([False, True, False])
    head.loss(features, batch_of({**ONE, "labeled": labeled}))["classification"].sum.backward()
    grad = head.decoder.class_embed[-1].bias.grad
    assert grad[0] == grad[2] == 0 and grad[1] != 0


# --- denoising ---


def queries_of(targets, **more):
    given = {"total": 10, "label_noise": 0.5, "box_noise": 1.0, **more}
    truths = [(t["boxes"] / SIDE, t["labels"]) for t in targets]
    return denoising_queries(truths, batch_of(*targets).targets, 3, **given)


def test_denoising_queries_by_hand():
    found = queries_of([ONE, TWO], label_noise=0.0)
    assert found.group.shape == (2, 20) and found.num_objects == 3
    assert found.group[1].tolist() == [n for n in range(5) for _ in range(4)]
    assert found.objects[1, :4].tolist() == [0, 1, PADDING, PADDING]
    assert found.objects[0, :4].tolist() == [0, PADDING, 0, PADDING]
    assert found.weights.tolist() == pytest.approx([1 / 10, 1 / 5])
    assert found.labels[1, :4].tolist() == [0, 2, 0, 2]


def test_boxes_to_reject_have_more_noise_than_those_to_restore():
    box = objects([[24, 24, 40, 40]], [1])
    found = queries_of([box], total=400, label_noise=0.5)
    moves = (found.boxes[0] * SIDE - box["boxes"]).abs() / 8  # of half the extent
    restore = found.objects[0] != PADDING
    assert moves[restore].max() <= 1 < moves[restore].max() + 0.05
    assert moves[~restore].min() >= 1 and moves[~restore].max() <= 2
    wrong = (found.labels[0] != 1).float().mean()
    assert wrong == pytest.approx(0.25 * 2 / 3, abs=0.05)  # the new label may be the old one


def test_denoising_is_keyed_by_the_image_and_bounded():
    again = [queries_of([ONE, TWO]) for _ in range(2)]
    assert torch.equal(again[0].boxes, again[1].boxes)
    many = objects([[i, i, i + 9, i + 9] for i in range(40)], [0] * 40)
    found = queries_of([many, ONE])
    assert found.group.shape == (2, 20) and found.num_objects == 11
    assert queries_of([objects([], [])]) is None


def test_groups_see_themselves_and_the_queries_alone():
    allowed = attention_mask(torch.tensor([[0, 0, 1, PADDING]]), 2)[0].int().tolist()
    assert allowed == [
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [0, 0, 1, 0, 1, 1],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]


def test_denoising_does_not_change_the_other_terms():
    head, features = head_of().eval(), features_of()
    with_noise = losses_of(head, features, batch_of(ONE, TWO))
    head.denoising = 0
    without = losses_of(head, features, batch_of(ONE, TWO))
    for name in rtdetr.TERMS[:-1]:
        torch.testing.assert_close(with_noise[name], without[name], rtol=1e-4, atol=1e-5)


def test_paired_iou_by_hand():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3]])
    others = torch.tensor([[1.0, 0, 3, 2], [2, 2, 3, 3], [3, 3, 3, 3]])
    assert paired_iou(boxes, others).tolist() == pytest.approx([1 / 3, 0, 0])
