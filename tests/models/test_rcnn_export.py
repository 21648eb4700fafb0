"""Both two-stage heads under torch.export: any batch, and the same results as without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visionkit.models.backbones import Torchvision
from visionkit.models.heads import FasterRCNN, MaskRCNN
from visionkit.models.necks.fpn import FPN

CLASSES = ["square", "bar", "star"]
SMALL = {
    "rpn_pre_nms_test": 60,
    "rpn_post_nms_test": 50,
    "rpn_score_threshold": 0.5,  # some images have fewer proposals
    "box_hidden": 16,
    "box_score_threshold": 0.3,
    "max_detections": 40,
}
NORMS = {"box_convs": 1, "box_norm": "batch", "mask_norm": "batch"}
HEADS = {
    FasterRCNN: SMALL,
    MaskRCNN: {**SMALL, **NORMS, "mask_pool_size": 7, "mask_channels": 8, "mask_convs": 1},
}


class Pipeline(nn.Module):
    def __init__(self, head_class):
        super().__init__()
        self.backbone = Torchvision(name="resnet18", norm="group")
        self.neck = FPN(self.backbone.levels, channels=16)
        self.head = head_class(self.neck.levels, CLASSES, **HEADS[head_class])

    def forward(self, images, sizes):
        return self.head(self.neck(self.backbone(images)), sizes)


def pipeline(head_class):
    torch.manual_seed(0)
    model = Pipeline(head_class).eval()
    nn.init.normal_(model.head.roi_heads.box_predictor.cls_score.weight, std=3.0)
    nn.init.normal_(model.head.rpn.head.cls_logits.weight, std=1.0)
    return model


def images_and_sizes(batch, seed=1):
    torch.manual_seed(seed)
    images = torch.randint(256, (batch, 3, 64, 96), dtype=torch.uint8)
    return images, torch.tensor([[64, 96], [50, 96], [64, 41], [33, 64], [20, 20]])[:batch]


@pytest.mark.parametrize("head_class", [pytest.param(FasterRCNN, marks=pytest.mark.slow), MaskRCNN])
@torch.no_grad()
def test_an_exported_model_takes_any_batch_and_finds_the_same(head_class):
    model = pipeline(head_class)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        model, images_and_sizes(2), dynamic_shapes=({0: batch}, {0: batch})
    ).module()
    numbers = []
    for size in (1, 3, 5):
        inputs = images_and_sizes(size, seed=size)
        expected, found = model(*inputs), exported(*inputs)
        assert expected["boxes"].shape == (size, 40, 4)
        torch.testing.assert_close(found["count"], expected["count"])
        torch.testing.assert_close(found["labels"], expected["labels"])
        for key in set(expected) - {"count", "labels"}:
            torch.testing.assert_close(found[key], expected[key], atol=1e-4, rtol=1e-4)
        numbers += expected["count"].tolist()
    assert 0 < min(numbers) < max(numbers)


@pytest.mark.parametrize("head_class", HEADS)
@torch.no_grad()
def test_rows_without_detections_are_zero(head_class):
    model = pipeline(head_class)
    shapes = {key: rows.shape for key, rows in model(*images_and_sizes(5)).items()}
    model.head.roi_heads.score_threshold = 1.0
    outputs = model(*images_and_sizes(5))
    assert not outputs["count"].any()
    assert {key: rows.shape for key, rows in outputs.items()} == shapes
    model.head.roi_heads.score_threshold = 0.3
    outputs = model(*images_and_sizes(5))
    for image, count in enumerate(outputs.pop("count").tolist()):
        assert count < 40
        for rows in outputs.values():
            assert rows.shape[:2] == (5, 40)
            assert not rows[image, count:].any()
        assert (outputs["scores"][image, :count] > 0.3).all()


@torch.no_grad()
def test_without_sizes_all_of_the_batch_is_valid():
    model = pipeline(FasterRCNN)
    images, _ = images_and_sizes(2)
    whole = model(images, torch.tensor([[64, 96]] * 2))
    torch.testing.assert_close(model(images, None), whole, atol=0, rtol=0)
