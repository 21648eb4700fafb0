"""Every head with images and labels at their limits, in training and prediction."""

import inspect

import pytest
import torch
from test_contracts import HEADS, Truth

import support.heads
from golden.recipes import BACKBONE, NECK
from support.heads import GOLDEN_RCNN
from visionkit.data.loading.source import collate
from visionkit.distributed.collectives import loss_values
from visionkit.models.backbones.plain import TinyCNN
from visionkit.models.model import VisionModel
from visionkit.models.necks.fpn import FPN

IDENTITIES = 2
ATTRIBUTES = ("color: red", "color: blue", "covered")


def signature_arguments(spec):
    return {key: value for key, value in spec.items() if key != "type"}


def small_model(cls, num_classes):
    torch.manual_seed(0)
    backbone = TinyCNN(**signature_arguments(BACKBONE))
    neck = FPN(backbone.levels, **signature_arguments(NECK))
    classes = [f"class {i}" for i in range(num_classes)]
    if cls.class_key is None:
        classes = []
    elif cls.class_key == "attributes":
        classes = ATTRIBUTES
    known = inspect.signature(cls).parameters
    if "boxes_from" in known:
        heads = {"head": cls(neck.levels, classes, boxes_from="truth"), "truth": Truth()}
    else:
        small = {key: value for key, value in GOLDEN_RCNN.items() if key in known}
        small |= support.heads.HEADS[cls.__name__].contract
        heads = {"head": cls(neck.levels, classes, **small)}
    return VisionModel(backbone, neck, heads, {"head": 1.0})


def image(size, boxes, identity=0, semantic=None):
    """An image and all of its labels, of class 0."""
    h, w = size
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ys, xs = torch.arange(h)[:, None] + 0.5, torch.arange(w) + 0.5
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    target = {
        "image_id": identity,
        "size": size,
        "orig_size": size,
        "class_id": torch.tensor(0),
        "boxes": boxes,
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
        "masks": (xs >= x1) & (xs < x2) & (ys >= y1) & (ys < y2),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.bool),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
        "attributes": torch.ones(len(boxes), len(ATTRIBUTES)),
        "semantic": torch.zeros(size, dtype=torch.uint8),
        "identity": torch.tensor(identity),
    }
    if semantic is not None:
        target["semantic"].fill_(semantic)
    generator = torch.Generator().manual_seed(identity)
    return torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8), target


BOX = [8, 8, 40, 30]
MANY = [[i % 40, i // 40, i % 40 + 9, i // 40 + 12] for i in range(2000)]
CASES = {
    "one image": [image((48, 64), [BOX])],
    "no object in one of two": [image((48, 64), []), image((48, 64), [BOX], 1)],
    "nothing labeled": [image((48, 64), [], 0, 255), image((64, 48), [], 1, 255)],
    "one pixel": [image((1, 1), [[0, 0, 1, 1]])],
    "tiny next to large": [
        image((1, 1), [[0, 0, 1, 1]]),
        image((1, 64), [[0, 0, 64, 1]]),
        image((48, 64), [BOX], 1),
    ],
    "boxes as the image, of 0.3 pixels, twice": [
        image((48, 64), [[0, 0, 64, 48]]),
        image((48, 64), [[8.1, 8.2, 8.4, 8.5]]),
        image((48, 64), [BOX, BOX], 1),
    ],
    "2,000 boxes": [image((64, 64), MANY)],
}


@pytest.fixture(scope="module", params=sorted(HEADS))
def models(request):
    return {count: small_model(HEADS[request.param], count) for count in (1, 3)}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_finite_and_predictions_come(models, case):
    check(models[3], CASES[case])


@pytest.mark.parametrize("case", ["one image", "nothing labeled"])
def test_one_class_is_enough(models, case):
    check(models[1], CASES[case])


def check(model, items):
    model.train().zero_grad()
    batch = collate([(image, dict(target)) for image, target in items])
    losses = loss_values(model.losses(model.features(batch), batch, ["head"]))
    loss = model.weighted(losses)["head"]
    assert all(term.shape == () and term.isfinite() for term in losses["head"].values())
    loss.backward()
    parameters = dict(model.heads["head"].named_parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())

    with torch.inference_mode():
        found = model.eval().predictions(model.features(batch), batch, ["head"])["head"]
    assert len(found) == len(items)
    for prediction, (_, target) in zip(found, items, strict=True):
        for value in prediction.values():
            assert not torch.is_tensor(value) or value.isfinite().all()
        if "boxes" in prediction and len(prediction["boxes"]):
            h, w = target["orig_size"]
            assert prediction["boxes"].min() >= 0
            assert (prediction["boxes"] <= torch.tensor([w, h, w, h])).all()


def test_what_is_all_ignored_has_no_loss():
    """Cross-entropy of nothing is NaN."""
    batch = collate([(image, dict(target)) for image, target in CASES["nothing labeled"]])
    for name in [name for name, cls in HEADS.items() if cls.class_key == "semantic"]:
        model = small_model(HEADS[name], 3)
        losses = loss_values(model.losses(model.features(batch), batch, ["head"]))["head"]
        assert {float(loss.detach()) for loss in losses.values()} == {0.0}
