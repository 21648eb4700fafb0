"""Unlabeled is not negative: what the losses of the detectors make of partly labeled images."""

import re

import pytest
import torch

from support.heads import HEADS
from visionkit.config.components import components
from visionkit.data.datasets.shapes import Shapes
from visionkit.data.loading.source import collate
from visionkit.distributed.collectives import loss_values
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.heads.dense import AnchorGenerator, Anchors
from visionkit.models.heads.detection import FasterRCNN
from visionkit.models.heads.matching import GroundTruth, Matcher, Sampler, marginal_targets
from visionkit.models.heads.rcnn.rpn import RPN, RPNOutput, TopN
from visionkit.models.heads.ssd import SSD
from visionkit.models.model import VisionModel
from visionkit.models.necks.fpn import FPN
from visionkit.ops.losses import marginal_cross_entropy
from visionkit.types import Level

CLASS_LAYERS = {head: case.class_layer for head, case in HEADS.items() if case.class_layer}


def test_the_marginal_loss_by_hand():
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log()
    one = marginal_cross_entropy(logits, torch.tensor([[False, True, False]]))
    two = marginal_cross_entropy(logits, torch.tensor([[True, True, False]]))
    assert one.item() == pytest.approx(-torch.tensor(0.2).log().item(), abs=1e-6)
    assert two.item() == pytest.approx(-torch.tensor(0.3).log().item(), abs=1e-6)


def test_the_marginal_loss_does_not_choose_among_what_is_possible():
    logits = torch.zeros(1, 3, requires_grad=True)
    marginal_cross_entropy(logits, torch.tensor([[True, True, False]])).sum().backward()
    a, b, c = logits.grad[0].tolist()
    assert a == pytest.approx(b) and a < 0 < c


@pytest.fixture(scope="module")
def dataset():
    return Shapes(num_images=6, size=96, seed=3)


def model_of(name, dataset):
    torch.manual_seed(0)
    backbone = Torchvision(name="resnet18", norm="group")
    neck = FPN(backbone.levels, channels=32)
    names, small = dataset.classes["labels"].names, HEADS[name].contract
    head = components("heads")[name](neck.levels, names, **small)
    return VisionModel(backbone, neck, {"head": head}, {"head": 1.0})


def batch_of(dataset, labeled=None):
    """Two images; with `labeled`, only the objects of those classes are known."""
    batch = collate([(s.image, s.target()) for s in (dataset[0], dataset[1])])
    if labeled is not None:
        known = torch.zeros(len(dataset.classes["labels"].names), dtype=torch.bool)
        known[labeled] = True
        for target in batch.targets:
            keep = known[target["labels"]]
            for key in ("boxes", "labels", "masks", "iscrowd", "area"):
                target[key] = target[key][keep]
            target["labeled"] = known
    return batch


def losses_of(model, batch):
    torch.manual_seed(1)
    return loss_values(model.losses(model.features(batch), batch, ["head"]))["head"]


@pytest.mark.parametrize("name", CLASS_LAYERS)
def test_all_classes_labeled_is_the_usual_loss(name, dataset):
    model = model_of(name, dataset)
    usual = losses_of(model, batch_of(dataset))
    marked = losses_of(model, batch_of(dataset, [0, 1, 2, 3, 4]))
    for term, value in usual.items():
        assert torch.equal(value, marked[term]), term


@pytest.mark.parametrize("name", CLASS_LAYERS)
def test_class_logits_of_unlabeled_classes_are_not_lowered(name, dataset):
    """With nothing but class 0 labeled and no object of it, the biases of each other class get no
    push downwards where the network expects these classes; without the mark it does."""
    pushes, num_classes = {}, len(dataset.classes["labels"].names)
    head_class = components("heads")[name]
    softmax = issubclass(head_class, (FasterRCNN, SSD))  # of background, and then the classes
    for marked in (True, False):
        model = model_of(name, dataset)
        layer = f"{CLASS_LAYERS[name]}.bias$"
        biases = [p for n, p in model.named_parameters() if re.search(layer, n)]
        if softmax:
            for bias in biases:
                bias.data[:: num_classes + 1] = -5
        batch = batch_of(dataset, [0])
        for target in batch.targets:
            for key in ("boxes", "labels", "masks", "iscrowd", "area"):
                target[key] = target[key][:0]
            if not marked:
                del target["labeled"]
        sum(losses_of(model, batch).values()).backward()
        rows = [bias.grad.view(-1, num_classes + softmax)[:, softmax:] for bias in biases]
        if issubclass(head_class, SSD):  # of the hardest default boxes alone
            rows = [torch.cat(rows).sum(0, keepdim=True)]
        pushes[marked] = torch.cat(rows)
    assert (pushes[False] > 0).all()  # a positive gradient lowers the logit
    assert (pushes[True][:, 0] > 0).all() and (pushes[True][:, 1:] <= 0).all()
    if not softmax:
        assert (pushes[True][:, 1:] == 0).all()


def test_a_region_is_background_unless_an_unlabeled_class_is_more_probable():
    """Classes: background, 1 (labeled), 2 and 3 (not labeled)."""
    possible = torch.tensor([[True, False, True, True]] * 3 + [[False, True, False, False]])
    logits = torch.tensor([[1.0, 9, 0, 0], [1.0, 9, 2, 0], [1.0, 9, 0, 1.5], [5.0, 0, 0, 0]])
    expected = possible.clone()
    expected[0, 2:] = False
    assert torch.equal(marginal_targets(logits, possible), expected)


def test_an_anchor_that_looks_like_an_object_is_not_background_where_classes_are_unlabeled():
    rpn = RPN(
        AnchorGenerator({"c": Level(8, 8)}, None, [1.0]),
        Matcher(0.5, 0.5, best_for_each=False),
        Sampler(batch_size=8, positive_fraction=0.5),
        convs=1,
        train=TopN(1, 1),
        test=TopN(1, 1),
        nms_iou=0.7,
        score_threshold=0.0,
    )
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    outputs = RPNOutput(
        torch.tensor([[1.0, 1, -1]]), torch.zeros(1, 3, 4), Anchors(boxes, [3], (64, 64))
    )
    objects = GroundTruth(boxes[:1], torch.zeros(1).long(), boxes[:0], None)
    assert rpn.loss(outputs, [objects])["objectness"].count == 3
    partly = objects._replace(labeled=torch.tensor([True, False]))
    assert rpn.loss(outputs, [partly])["objectness"].count == 2
