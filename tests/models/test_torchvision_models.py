"""torchvision's whole detectors against ours, built from the shipped configs: the weights load
through `weights:`, parameters are equally many, and the outputs are the same."""

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.mask import decode
from torchvision.models import detection as tv

from support.paths import ROOT
from visionkit.config import load_config
from visionkit.data.image_io import read_image
from visionkit.engine.predict import Predictor
from visionkit.models.build import build_model
from visionkit.types import Classes

CONFIGS = ROOT / "configs/torchvision"
MODELS = (
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "fcos_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
NUM_CLASSES = 7  # in torchvision's count, background included


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images whose longer side is 256, so that neither side resizes them."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    files = []
    for number, (h, w) in enumerate([(256, 190), (201, 256)]):
        coarse = Image.fromarray(rng.integers(0, 255, (h // 24, w // 24, 3), np.uint8))
        files.append(folder / f"{number}.png")
        coarse.resize((w, h), Image.Resampling.BICUBIC).save(files[-1])
    return files


def torchvision_model(name, norm_eps):
    """Random weights, with predictors scaled up until there are many detections. MobileNet's norms
    get statistics of noise: with the initial ones its features do not depend on the image, and all
    scores are equal."""
    torch.manual_seed(1)
    build = getattr(tv, name)
    model = build(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, min_size=256, max_size=256
    )
    model.eval()
    for norm in model.backbone.body.modules():
        if isinstance(norm, torch.nn.BatchNorm2d) and norm_eps is not None:
            norm.eps = norm_eps  # as torchvision sets it in models with published weights
    with torch.no_grad():
        if "mobilenet" in name:
            for norm in model.modules():
                if isinstance(norm, torch.nn.BatchNorm2d):
                    norm.momentum = None  # takes the statistics of the next pass
            model.train().backbone(torch.randn(4, 3, 256, 256))
            model.eval()
        for layer, gain in {
            "box_predictor.cls_score": 6 if "mobilenet" in name else 20,
            "box_predictor.bbox_pred": 1, "rpn.head.cls_logits": 5,
            "rpn.head.bbox_pred": 1, "mask_fcn_logits": 5,
            "classification_head.cls_logits": 20, "bbox_reg": 5,
        }.items():  # fmt: skip
            for key, value in model.named_parameters():
                if key.endswith(f"{layer}.weight"):
                    value *= gain
        for key, value in model.named_parameters():
            if key.endswith("cls_logits.bias") and "classification" in key:
                value.fill_(-1.0)
    return model


def count(model):
    return sum(t.numel() for key, t in model.state_dict().items() if "num_batches" not in key)


@pytest.mark.parametrize("name", MODELS)
def test_a_torchvision_checkpoint_gives_the_same_predictions(name, images, tmp_path):
    words = [f"weights={tmp_path / 'weights.pth'}", "data.image_size=256",
             "train.precision=fp32", "train.device=cpu", "train.channels_last=false"]  # fmt: skip
    config = load_config(CONFIGS / f"{name}.yaml", words)
    theirs = torchvision_model(name, config.backbone.get("norm_eps"))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    head = next(iter(config.heads))
    slots = NUM_CLASSES if name.startswith("fcos") else NUM_CLASSES - 1
    classes = {head: Classes(tuple(f"class {i}" for i in range(slots)), tuple(range(slots)))}
    ours = build_model(config, classes).eval()

    assert count(ours) == count(theirs)

    tensors = [read_image(file) for file in images]
    with torch.inference_mode():
        expected = theirs([tensor.float() / 255 for tensor in tensors])
    predictor = Predictor(ours, config, classes, fold=False)
    found = predictor.predict_batch(images)
    shift = 0 if name.startswith("fcos") else 1
    for theirs_in_image, prediction in zip(expected, found, strict=True):
        assert len(prediction.labels) == len(theirs_in_image["labels"]) > 5
        assert torch.equal(prediction.labels, theirs_in_image["labels"] - shift)
        torch.testing.assert_close(prediction.scores, theirs_in_image["scores"], atol=1e-4, rtol=0)
        # In pixels: rounding grows on its way through a random, deep network.
        torch.testing.assert_close(prediction.boxes, theirs_in_image["boxes"], atol=1e-3, rtol=1e-4)
        for rle, mask in zip(
            prediction.heads[head].get("masks", ()), theirs_in_image.get("masks", ()), strict=True
        ):
            same = decode(rle).astype(bool) == (mask[0] > 0.5).numpy()
            assert same.mean() > 0.99  # a box corner on a pixel's edge shifts a mask by a pixel


def test_the_rows_of_a_coco_model_are_selected_by_class_name(tmp_path):
    torch.manual_seed(0)
    theirs = tv.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    words = [f"weights={tmp_path / 'coco.pth'}"]
    config = load_config(CONFIGS / "fasterrcnn_resnet50_fpn.yaml", words)
    classes = {"detection": Classes(("zebra", "person"), (24, 1))}  # COCO's slots 24 and 1
    predictor = build_model(config, classes).heads["detection"].roi_heads.box_predictor
    reference = theirs.roi_heads.box_predictor
    assert torch.equal(predictor.cls_score.weight, reference.cls_score.weight[[0, 24, 1]])
    rows = [*range(4), *range(96, 100), *range(4, 8)]
    assert torch.equal(predictor.bbox_pred.bias, reference.bbox_pred.bias[rows])


def test_classes_that_a_file_does_not_name_start_at_random(tmp_path, caplog):
    torch.manual_seed(0)
    theirs = tv.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "five.pth")
    words = [f"weights={tmp_path / 'five.pth'}"]
    config = load_config(CONFIGS / "fasterrcnn_resnet50_fpn.yaml", words)
    model = build_model(config, {"detection": Classes(("a", "b"), (1, 2))})
    assert "2 classes new (a, b): nothing of the classes is kept" in caplog.text
    assert torch.equal(model.backbone.body.conv1.weight, theirs.backbone.body.conv1.weight)
