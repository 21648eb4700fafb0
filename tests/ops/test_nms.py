"""Non-maximum suppression within a class and over all classes, by hand.

Four detections, in an image of 64 x 64. B overlaps A by 4/5; C overlaps A by 1/2, and B by
20/32 = 0.625; D overlaps none. At an IoU of 0.6, A suppresses B if their classes do not matter. C
stays in any case: a detection that is suppressed suppresses none.
"""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import batched_nms

from visionkit.ops.boxes import box_iou
from visionkit.ops.nms import suppress, vote

A, B, C, D = [0, 0, 40, 40], [0, 0, 40, 32], [0, 0, 40, 20], [44, 44, 60, 60]
NAMES = {tuple(box): name for box, name in zip((A, B, C, D), "ABCD", strict=True)}
BOXES, LABELS = torch.tensor([B, D, A, C], dtype=torch.float32), torch.tensor([1, 1, 0, 0])
SCORES = torch.tensor([0.8, 0.6, 0.9, 0.7])


def kept(among, iou, scores=SCORES, count=4):
    found = suppress(BOXES[None], scores[None], LABELS[None], iou=iou, among=among, count=count)
    number = int(found["count"])
    assert found["boxes"].shape == (1, min(4, count), 4)
    for rows in (found["boxes"], found["scores"], found["labels"]):
        assert not rows[0, number:].any()
    return "".join(NAMES[tuple(box)] for box in found["boxes"][0, :number].int().tolist())


def test_which_of_four_detections_stay():
    assert kept("class", 0.6) == "ABCD" and kept("all", 0.6) == "ACD"
    assert kept("class", 0.45) == "ABD" and kept("all", 0.45) == "AD"
    # Only what overlaps more than that goes.
    assert kept("class", 0.5) == "ABCD" and kept("all", 0.5) == "ACD"


def test_at_most_count_stay():
    assert kept("class", 0.6, count=2) == "AB"
    assert kept("all", 0.6, count=2) == "AC"


def test_a_negative_score_is_not_a_candidate():
    without_a = torch.tensor([0.8, 0.0, -1, 0.7])  # zero is a score
    assert kept("all", 0.6, without_a) == "BD"
    assert kept("all", 0.6, torch.full((4,), -1.0)) == ""


def test_images_do_not_suppress_each_other():
    found = suppress(
        BOXES.repeat(2, 1, 1),
        torch.stack([SCORES, SCORES.flip(0)]),
        LABELS.repeat(2, 1),
        iou=0.6,
        among="all",
        count=3,
    )
    assert found["boxes"].int().tolist() == [[A, C, D], [D, C, A]]  # C suppresses B in the second
    assert found["labels"].tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("size", [(2, 0), (1, 3)])
def test_nothing_to_suppress(size):
    found = suppress(
        torch.zeros(*size, 4),
        torch.full(size, -1.0),
        torch.zeros(size, dtype=torch.int64),
        iou=0.5,
        among="class",
        count=100,
    )
    assert found["boxes"].shape == (*size, 4)
    assert not found["count"].any()


def test_equals_torchvision_on_many_boxes():
    corner = torch.rand(2, 1500, 2) * 100
    boxes = torch.cat([corner, corner + torch.rand(2, 1500, 2) * 40], -1)
    scores = torch.stack([torch.randperm(1500), torch.randperm(1500)]) / 1500
    labels = torch.randint(3, (2, 1500))
    found = suppress(boxes, scores, labels, iou=0.5, among="class", count=200)
    for image in range(2):
        best = batched_nms(boxes[image], scores[image], labels[image], 0.5)[:200]
        assert found["count"][image] == len(best)
        assert found["boxes"][image].equal(boxes[image, best])
        assert found["labels"][image].equal(labels[image, best])


def test_it_exports_with_any_batch():
    class Suppress(torch.nn.Module):
        def forward(self, boxes, scores, labels):
            return suppress(boxes, scores, labels, iou=0.5, among="class", count=10)

    def example(batch):
        corner = torch.rand(batch, 50, 2) * 20
        boxes = torch.cat([corner, corner + torch.rand(batch, 50, 2) * 20], -1)
        return boxes, torch.rand(batch, 50), torch.randint(3, (batch, 50))

    dynamic = [{0: torch.export.Dim("batch")}] * 3
    exported = torch.export.export(Suppress(), example(2), dynamic_shapes=dynamic).module()
    for batch in (1, 3):
        inputs = example(batch)
        torch.testing.assert_close(exported(*inputs), Suppress()(*inputs), atol=0, rtol=0)


def test_the_number_of_rows_follows_the_boxes_in_an_exported_model():
    """That of the example would be the number of all sizes."""

    class Suppress(torch.nn.Module):
        def forward(self, boxes, scores, labels):
            return suppress(boxes, scores, labels, iou=0.5, among="class", count=4)

    def rows(number):
        return torch.rand(2, number, 4), torch.rand(2, number), torch.zeros(2, number).long()

    boxes = torch.export.Dim("boxes", min=2)
    program = torch.export.export(Suppress(), rows(7), dynamic_shapes=({1: boxes},) * 3)
    (made,) = (node for node in program.graph.nodes if "nms" in str(node.target))
    assert isinstance(made.meta["val"].shape[1], torch.SymInt)
    for number in (2, 3, 30):
        found = program.module()(*rows(number))
        assert found["boxes"].shape == (2, min(number, 4), 4)


def voted(boxes, scores, labels, count=4):
    """What stays at an IoU of 0.6, before and after the vote."""
    found = suppress(boxes, scores, labels, iou=0.6, among="class", count=count)
    return found, vote(found, boxes, scores, labels)


def test_a_box_is_the_mean_of_the_candidates_around_it_by_hand():
    boxes, scores = BOXES[None, [0, 2]], SCORES[None, [0, 2]]  # B and A, which overlap by 4/5
    before, after = voted(boxes, scores, torch.zeros(1, 2, dtype=torch.int64))
    assert before["count"].tolist() == [1] and before["boxes"][0, 0].tolist() == A
    share = 0.8 * math.exp(-(0.2**2) / 0.01)  # 0.8 x 0.018 of B, against 0.9 of A
    height = (0.9 * 40 + share * 32) / (0.9 + share)
    torch.testing.assert_close(after["boxes"][0, 0], torch.tensor([0, 0, 40, height]))
    assert not after["boxes"][0, 1:].any()  # the rows behind
    assert all(after[key] is before[key] for key in ("scores", "labels", "count"))


def test_other_classes_and_candidates_below_the_threshold_do_not_vote():
    _, after = voted(BOXES[None], SCORES[None], torch.tensor([[1, 1, 0, 2]]))
    assert after["boxes"][0].round().int().tolist() == [A, B, C, D]
    _, after = voted(BOXES[None], torch.tensor([[-1.0, 0.6, 0.9, -1.0]]), LABELS[None])
    assert after["boxes"][0].round().int().tolist() == [A, D, [0] * 4, [0] * 4]
    before, after = voted(BOXES[None], torch.full((1, 4), -1.0), LABELS[None])
    assert not before["count"].any() and not after["boxes"].any()


def test_voting_equals_a_loop_and_stays_in_the_image(seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(3, 60, 2, generator=generator) * 8
    boxes = torch.cat([corner, corner + 40 + torch.rand(3, 60, 2, generator=generator) * 8], 2)
    boxes = boxes.clamp(max=50)
    scores = torch.rand(3, 60, generator=generator) - 0.2
    labels = torch.randint(0, 2, (3, 60), generator=generator)
    before, after = voted(boxes, scores, labels, count=20)
    for image in range(3):
        for row in range(int(before["count"][image])):
            box, label = before["boxes"][image, row], before["labels"][image, row]
            total, weighted = 0.0, torch.zeros(4, dtype=torch.float64)
            for other, score, its_label in zip(
                boxes[image], scores[image], labels[image], strict=True
            ):
                if score >= 0 and its_label == label:
                    iou = box_iou(box[None], other[None]).item()
                    weight = score.item() * math.exp(-((1 - iou) ** 2) / 0.01)
                    total += weight
                    weighted += weight * other.double()
            torch.testing.assert_close(
                after["boxes"][image, row].double(), weighted / total, rtol=1e-5, atol=1e-5
            )
    assert after["boxes"].min() >= 0 and after["boxes"].max() <= 50
    assert (after["boxes"] - before["boxes"]).abs().max() > 1
