"""The shared losses, against hand-worked values and torchvision's."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from visionkit.ops.losses import giou_loss, quality_focal_loss, sigmoid_focal_loss


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.5)])
def test_focal_loss_equals_torchvision(alpha, gamma):
    logits = (torch.randn(50, 7) * 4).requires_grad_()
    targets = (torch.rand(50, 7) > 0.7).float()
    ours = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    theirs = torchvision_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(ours, theirs)
    (grad,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(grad, torch.autograd.grad(theirs.sum(), logits)[0])


def test_focal_loss_by_hand():
    loss = sigmoid_focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    expected = [0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)]
    assert loss.tolist() == pytest.approx(expected)


def test_focal_loss_stays_finite_for_large_logits():
    logits = torch.tensor([200.0, -200.0, 200.0, -200.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert loss.tolist() == pytest.approx([0, 0, 150, 50])
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_giou_loss_by_hand():
    box = torch.tensor([[0.0, 0, 10, 10]])
    same, half, apart = box, torch.tensor([[0.0, 0, 10, 5]]), torch.tensor([[20.0, 0, 30, 10]])
    assert giou_loss(box, same).item() == pytest.approx(0)
    assert giou_loss(box, half).item() == pytest.approx(0.5)
    # No overlap; a third of the hull of both is empty.
    assert giou_loss(box, apart).item() == pytest.approx(1 + 1 / 3)


def test_giou_loss_equals_torchvision():
    boxes, targets = (torch.rand(2, 60, 4) * 50).unbind()
    boxes[:, 2:] += boxes[:, :2]
    targets[:, 2:] += targets[:, :2]
    boxes.requires_grad_()
    ours, theirs = giou_loss(boxes, targets), generalized_box_iou_loss(boxes, targets)
    torch.testing.assert_close(ours, theirs)
    (grad,) = torch.autograd.grad(ours.sum(), boxes)
    torch.testing.assert_close(grad, torch.autograd.grad(theirs.sum(), boxes)[0])


def test_losses_are_float32_in_half_precision():
    empty = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = giou_loss(empty, empty.detach())
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert sigmoid_focal_loss(empty, empty.detach()).dtype == torch.float32
    loss.sum().backward()
    assert empty.grad.isfinite().all()


def test_quality_focal_loss_by_hand():
    logits, targets = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.8, 0.0, 1.0])
    expected = []
    for logit, wanted in zip(logits.tolist(), targets.tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        entropy = -wanted * math.log(p) - (1 - wanted) * math.log(1 - p)
        expected.append(abs(p - wanted) ** 2 * entropy)
    torch.testing.assert_close(quality_focal_loss(logits, targets), torch.tensor(expected))


def test_quality_focal_loss_of_hard_targets_is_the_focal_loss_without_balance():
    logits = torch.randn(50)
    targets = (torch.rand(50) > 0.5).float()
    balanced = sigmoid_focal_loss(logits, targets, alpha=0.5)
    torch.testing.assert_close(quality_focal_loss(logits, targets), 2 * balanced)


def test_quality_focal_loss_is_least_where_the_score_is_the_target():
    scores = torch.linspace(0.01, 0.99, 99)
    losses = quality_focal_loss(scores.logit(), torch.full_like(scores, 0.7))
    assert scores[losses.argmin()].item() == pytest.approx(0.7, abs=0.005)
    assert losses.min() < 1e-4
