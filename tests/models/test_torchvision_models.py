"""torchvision's whole detectors against ours, built from the shipped configs: the weights load
through `weights:`, parameters are equally many, and the outputs are the same."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.mask import decode
from torchvision import models
from torchvision.models import detection as tv

from support.paths import ROOT
from visionkit.config import load_config
from visionkit.data.image_io import read_image
from visionkit.engine.torch_model import Predictor
from visionkit.models.build import build_model
from visionkit.types import Classes

CONFIGS = ROOT / "configs/torchvision"
MODELS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
)
NUM_CLASSES = 7  # in torchvision's count, background included
SIDE = 160
PROPOSALS = 100  # fewer than published, since the box heads of `v2` take long


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images whose longer side is SIDE, so that neither side resizes them."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    files = []
    for number, (h, w) in enumerate([(SIDE, 118), (125, SIDE)]):
        coarse = Image.fromarray(rng.integers(0, 255, (h // 16, w // 16, 3), np.uint8))
        files.append(folder / f"{number}.png")
        coarse.resize((w, h), Image.Resampling.BICUBIC).save(files[-1])
    return files


def torchvision_model(name, norm_eps):
    """Random weights, with predictors scaled up until there are many detections. MobileNet's norms
    get statistics of noise: with the initial ones its features do not depend on the image, and all
    scores are equal."""
    torch.manual_seed(1)
    build = getattr(tv, name)
    counts = {"rpn_post_nms_top_n_test": PROPOSALS} if "rcnn" in name else {}
    model = build(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES,
        min_size=SIDE, max_size=SIDE, **counts,
    )  # fmt: skip
    model.eval()
    for norm in model.backbone.body.modules():
        if isinstance(norm, torch.nn.BatchNorm2d) and norm_eps is not None:
            norm.eps = norm_eps  # as torchvision sets it in models with published weights
    with torch.no_grad():
        if "mobilenet" in name:
            for norm in model.modules():
                if isinstance(norm, torch.nn.BatchNorm2d):
                    norm.momentum = None  # takes the statistics of the next pass
            model.train().backbone(torch.randn(4, 3, SIDE, SIDE))
            model.eval()
        gains = {"rpn.head.cls_logits": 5, "mask_fcn_logits": 5}
        if name.startswith("fcos"):
            gains = {"classification_head.cls_logits": 20, "bbox_reg": 5}
        for layer, gain in gains.items():
            for key, value in model.named_parameters():
                if key.endswith(f"{layer}.weight"):
                    value *= gain
                if key.endswith("classification_head.cls_logits.bias"):
                    value.fill_(-1.0)
        if name.startswith("retinanet"):
            heads = model.head.classification_head, model.head.regression_head
            spread(model, heads[0].cls_logits, -3.0, 1.5)
            spread(model, heads[1].bbox_reg, 0.0, 0.3)
        elif "rcnn" in name:
            spread(model, model.roi_heads.box_predictor.cls_score, 0.0, 4.0)
    return model


def spread(model, layer, mean, std):
    """Give the outputs of a layer that mean and spread: a random network's are nearly constant, or
    so large that scores are equal."""
    outputs = []
    hook = layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    model([torch.rand(3, SIDE, SIDE) for _ in range(2)])
    hook.remove()
    values = torch.cat([output.flatten() for output in outputs])
    factor = std / values.std()
    layer.weight *= factor
    layer.bias.sub_(values.mean()).mul_(factor).add_(mean)


def count(model):
    return sum(t.numel() for key, t in model.state_dict().items() if "num_batches" not in key)


def same_order(prediction, labels, theirs):
    """For each detection of a prediction the nearest of theirs, each of which comes once."""
    boxes = torch.cdist(prediction.boxes, theirs["boxes"])
    distances = boxes + 1e4 * (prediction.labels[:, None] != labels)
    order = distances.argmin(1)
    assert len(order.unique()) == len(order)
    return order


@pytest.mark.parametrize(
    "name",
    [  # its parts are compared in test_torchvision_rcnn.py
        pytest.param(name, marks=[pytest.mark.slow] * ("rcnn_resnet50" in name or "v2" in name))
        for name in MODELS
    ],
)
def test_a_torchvision_checkpoint_gives_the_same_predictions(name, images, tmp_path):
    words = [f"weights={tmp_path / 'weights.pth'}", f"data.image_size={SIDE}",
             "train.precision=fp32", "train.device=cpu", "train.channels_last=false"]  # fmt: skip
    words += [f"head.rpn_post_nms_test={PROPOSALS}"] * ("rcnn" in name)
    config = load_config(CONFIGS / f"{name}.yaml", words)
    theirs = torchvision_model(name, config.backbone.get("norm_eps"))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    head = next(iter(config.heads))
    shift = 0 if name.startswith(("fcos", "retinanet")) else 1  # labels count from the background
    slots = NUM_CLASSES - shift
    classes = {head: Classes(tuple(f"class {i}" for i in range(slots)), tuple(range(slots)))}
    ours = build_model(config, classes).eval()

    assert count(ours) == count(theirs)

    tensors = [read_image(file) for file in images]
    with torch.inference_mode():
        expected = theirs([tensor.float() / 255 for tensor in tensors])
    predictor = Predictor(ours, config, classes, fold=False)
    found = predictor.predict_batch(images)
    for theirs_in_image, prediction in zip(expected, found, strict=True):
        assert len(prediction.labels) == len(theirs_in_image["labels"]) > 5
        scores = theirs_in_image["scores"]
        torch.testing.assert_close(prediction.scores, scores, atol=1e-4, rtol=0)
        # Rounding may swap neighbors of nearly the same score.
        order = same_order(prediction, theirs_in_image["labels"] - shift, theirs_in_image)
        assert torch.equal(prediction.labels, (theirs_in_image["labels"] - shift)[order])
        torch.testing.assert_close(prediction.scores, scores[order], atol=1e-4, rtol=0)
        # In pixels: rounding grows on its way through a random, deep network.
        boxes = theirs_in_image["boxes"][order]
        torch.testing.assert_close(prediction.boxes, boxes, atol=1e-3, rtol=1e-4)
        masks = theirs_in_image.get("masks", torch.zeros(0))
        for rle, at in zip(
            prediction.heads[head].get("masks", ()), order[: len(masks)], strict=True
        ):
            same = decode(rle).astype(bool) == (masks[at][0] > 0.5).numpy()
            assert same.mean() > 0.99  # a box corner on a pixel's edge shifts a mask by a pixel


def old_name(key):
    """As in files from before each convolution got a module of its own, such as the published ones
    of the first models."""
    key = re.sub(r"^(head\.\w+\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)
    key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
    return re.sub(r"^(rpn\.head\.conv)\.0\.0|(_blocks\.\d)\.0", r"\1\2", key)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_files_with_old_names_load(name, tmp_path):
    torch.manual_seed(0)
    state = getattr(tv, name)(weights=None, weights_backbone=None, num_classes=91).state_dict()
    old = {old_name(key): tensor for key, tensor in state.items()}
    assert len(old.keys() - state.keys()) >= 16
    torch.save(old, tmp_path / "old.pth")
    config = load_config(CONFIGS / f"{name}.yaml", [f"weights={tmp_path / 'old.pth'}"])
    (head,) = config.heads
    build_model(config, {head: Classes(("zebra", "person"), (24, 1))})  # nothing is missing


def test_the_rows_of_each_anchor_are_selected_by_class_name(tmp_path):
    torch.manual_seed(0)
    theirs = tv.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    layer = theirs.head.classification_head.cls_logits
    torch.nn.init.normal_(layer.bias)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    config = load_config(
        CONFIGS / "retinanet_resnet50_fpn.yaml", [f"weights={tmp_path / 'coco.pth'}"]
    )
    model = build_model(config, {"detection": Classes(("zebra", "unicorn", "person"), (24, 95, 1))})
    ours = model.heads["detection"].head["classification_head"].cls_logits
    rows = [anchor * 91 + slot for anchor in range(9) for slot in (24, 1)]
    kept = [anchor * 3 + k for anchor in range(9) for k in (0, 2)]
    assert torch.equal(ours.bias[kept], layer.bias[rows])
    assert torch.equal(ours.weight[kept], layer.weight[rows])


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


@pytest.mark.slow
def test_names_of_pascal_voc_are_those_of_coco(tmp_path, caplog):
    """Published detectors have COCO's names, segmentation models those of Pascal VOC."""
    torch.manual_seed(0)
    caplog.set_level("INFO", "visionkit")
    theirs = tv.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    words = [f"weights={tmp_path / 'coco.pth'}"]
    names = ("aeroplane", "motorbike", "diningtable", "pottedplant", "tvmonitor", "sofa")
    slots = [5, 4, 67, 64, 72, 63]  # of COCO's airplane, motorcycle, dining table, ...

    def rows(classes, *more):
        config = load_config(CONFIGS / "fasterrcnn_resnet50_fpn.yaml", [*words, *more])
        model = build_model(config, {"detection": Classes.numbered(classes)})
        return model.heads["detection"].roi_heads.box_predictor.cls_score.weight

    reference = theirs.roi_heads.box_predictor.cls_score.weight
    assert torch.equal(rows(names), reference[[0, *slots]])
    assert "aeroplane is 'airplane' there" in caplog.text
    assert torch.equal(rows(["tv", "tvmonitor"])[:2], reference[[0, 72]])  # the file's own name
    renamed = rows(["sofa", "aeroplane"], "rename={couch: aeroplane}")
    assert torch.equal(renamed[[0, 2]], reference[[0, 63]])

    theirs = models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=21
    )
    torch.save(theirs.state_dict(), tmp_path / "voc.pth")
    config = load_config("lraspp_mobilenet_v3_large", [f"weights={tmp_path / 'voc.pth'}"])
    (name,) = config.heads
    model = build_model(config, {name: Classes.numbered(("background", "tv", "couch"))})
    head = model.head(name)
    expected = theirs.classifier.low_classifier.weight[[0, 20, 18]]
    assert torch.equal(head.classifier["low_classifier"].weight, expected)


def test_classes_that_a_file_does_not_name_start_at_random(tmp_path, caplog):
    torch.manual_seed(0)
    theirs = tv.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "five.pth")
    words = [f"weights={tmp_path / 'five.pth'}"]
    config = load_config(CONFIGS / "fasterrcnn_resnet50_fpn.yaml", words)
    model = build_model(config, {"detection": Classes(("a", "b"), (1, 2))})
    assert "2 classes new (a, b): nothing of the classes is kept" in caplog.text
    assert torch.equal(model.backbone.body.conv1.weight, theirs.backbone.body.conv1.weight)
