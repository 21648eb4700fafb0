"""torchvision's SSD300 and SSDLite against ours, built from the shipped configs: weights, outputs,
losses and settings."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import detection as tv
from torchvision.models import get_model_weights

from support.losses import losses_of
from support.paths import CONFIGS
from visionkit.config import load_config
from visionkit.engine.torch_model import Predictor
from visionkit.errors import CheckpointError
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.build import build_model
from visionkit.ops.boxes import OFFSET_WEIGHTS, box_iou
from visionkit.types import Batch, Classes

MODELS = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
NUM_CLASSES = 7  # in torchvision's count, background included
BACKGROUND = {300: 9.0, 320: 14.0}  # its mean logit: few enough detections to keep all
CLASSES = {"detection": Classes.numbered(f"class {k}" for k in range(NUM_CLASSES - 1))}


def count(model):
    return sum(t.numel() for key, t in model.state_dict().items() if "num_batches" not in key)


@pytest.fixture(scope="module", autouse=True)
def quick_dense_layers():
    """Those of VGG-16 are 100 million numbers that are not used, and take seconds to draw."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "kaiming_uniform_"):
            fill = getattr(nn.init, name)
            patch.setattr(nn.init, name, functools.partial(_fill_small, fill))
        yield


def _fill_small(fill, tensor, *args, **kwargs):
    return tensor if tensor.numel() > 2**24 else fill(tensor, *args, **kwargs)


def images(side):
    """One for SSD300, which takes long, two for SSDLite."""
    rng = np.random.default_rng(0)
    count = 1 if side == 300 else 2
    coarse = [Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)) for _ in range(count)]
    fine = [np.array(image.resize((side, side), Image.Resampling.BICUBIC)) for image in coarse]
    return torch.from_numpy(np.stack(fine)).permute(0, 3, 1, 2)


@functools.cache
def torchvision_model(name):
    """Random weights, with outputs spread until there are many detections of all classes. Norms get
    statistics of the images: with the initial ones features hardly depend on them."""
    torch.manual_seed(1)
    build = getattr(tv, name)
    model = build(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)
    norms = {m: m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    for norm in norms:
        norm.momentum = None  # takes the statistics of the next pass
    with torch.no_grad():
        pixels, _ = model.transform([image / 255 for image in images(MODELS[name])])
        features = [*model.train(bool(norms)).backbone(pixels.tensors).values()]
        model.head(features)
        model.eval()
        if norms:
            features = [*model.backbone(pixels.tensors).values()]
        for branch, spread in (("classification_head", 2.0), ("regression_head", 0.5)):
            layers = model.head.get_submodule(branch).module_list
            for layer, feature in zip(layers, features, strict=True):
                last = layer[-1] if isinstance(layer, nn.Sequential) else layer
                values = layer(feature)
                last.weight *= spread / values.std()
                last.bias -= values.mean((0, 2, 3)) * spread / values.std()
                if branch == "classification_head":
                    last.bias[::NUM_CLASSES] += BACKGROUND[MODELS[name]]
    for norm, momentum in norms.items():
        norm.momentum = momentum
    return model


def our_model(name, path, classes=CLASSES):
    words = [f"weights={path}", "train.precision=fp32", "train.device=cpu",
             "train.channels_last=false"]  # fmt: skip
    config = load_config(CONFIGS / "torchvision" / f"{name}.yaml", words)
    return config, build_model(config, classes).eval()


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    """torchvision's model and ours with its weights."""
    theirs = torchvision_model(request.param)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    return theirs, *our_model(request.param, tmp_path / "weights.pth")


def test_a_torchvision_checkpoint_gives_the_same_predictions(pair):
    theirs, config, ours = pair
    assert count(ours) == count(theirs)
    tensors = images(theirs.transform.fixed_size[0])
    with torch.inference_mode():
        expected = theirs([*(tensors / 255)])
    found = Predictor(ours, config, CLASSES, fold=False).predict_batch([*tensors])
    for wanted, prediction in zip(expected, found, strict=True):
        most = config.heads["detection"]["max_detections"]
        assert 20 < len(wanted["labels"]) == len(prediction.labels) < most
        assert len(wanted["labels"].unique()) == NUM_CLASSES - 1
        # The same, each once; equal scores but for rounding may change places.
        apart = (prediction.boxes[:, None] - wanted["boxes"]).abs().amax(2)
        apart += 1000 * (prediction.labels[:, None] != wanted["labels"] - 1)
        index = apart.argmin(1)
        assert len(index.unique()) == len(index)
        assert torch.equal(prediction.labels, wanted["labels"][index] - 1)
        scores, boxes = wanted["scores"][index], wanted["boxes"][index]
        torch.testing.assert_close(prediction.scores, scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(prediction.boxes, boxes, atol=1e-3, rtol=1e-4)


def test_same_losses_and_gradients(pair):
    theirs, _, ours = pair
    head, side = ours.head("detection"), theirs.transform.fixed_size[0]
    torch.manual_seed(0)
    levels = ours.neck.levels
    cells = {name: -(-side // level.stride) for name, level in levels.items()}
    features = {k: torch.randn(3, levels[k].channels, n, n) for k, n in cells.items()}
    targets = []
    for number in (4, 9, 1):
        corner = torch.rand(number, 2) * 0.6 * side
        boxes = torch.cat([corner, corner + (torch.rand(number, 2) * 0.38 + 0.02) * side], 1)
        targets.append({"boxes": boxes, "labels": torch.randint(NUM_CLASSES - 1, (number,))})
    pixels = torch.zeros(3, 3, side, side, dtype=torch.uint8)
    batch = Batch(pixels, [{**t, "size": (side, side), "orig_size": (side, side)} for t in targets])
    outputs = theirs.head([*features.values()])
    # Ours for both: which of several boxes around an object overlaps it most, rounding decides
    anchors = [head.boxes(features).corners] * 3
    matches = [
        theirs.proposal_matcher(box_iou(t["boxes"], a))
        for t, a in zip(targets, anchors, strict=True)
    ]
    their_targets = [{**t, "labels": t["labels"] + 1} for t in targets]
    expected = theirs.compute_loss(their_targets, outputs, anchors, matches)
    losses = losses_of(head, features, batch)
    assert losses.keys() == {"classification", "box_reg"}
    expected["box_reg"] = expected.pop("bbox_regression")
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)

    theirs.zero_grad(), ours.zero_grad()
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    their_parameters = dict(theirs.named_parameters())
    for key, parameter in head.named_parameters():
        reference = their_parameters[key].grad
        assert (parameter.grad - reference).norm() <= 1e-3 * reference.norm() + 1e-6, key


class Images:
    """What torchvision's generators of anchors take."""

    def __init__(self, tensors, sizes):
        self.tensors, self.image_sizes = tensors, sizes


def test_the_rows_of_a_coco_model_are_selected_by_class_name(tmp_path):
    torch.manual_seed(0)
    theirs = tv.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    classes = {"detection": Classes(("zebra", "person"), (24, 1))}  # COCO's slots 24 and 1
    _, ours = our_model("ssdlite320_mobilenet_v3_large", tmp_path / "coco.pth", classes)
    found = ours.head("detection").head["classification_head"].module_list
    for own, reference in zip(found, theirs.head.classification_head.module_list, strict=True):
        slots = torch.tensor([0, 24, 1])
        rows = (torch.arange(6)[:, None] * 91 + slots).flatten()  # of each of the six boxes
        assert torch.equal(own[1].weight, reference[1].weight[rows])
        assert torch.equal(own[1].bias, reference[1].bias[rows])
        assert torch.equal(own[0][0].weight, reference[0][0].weight)


def test_weights_of_the_other_ssd_are_refused(tmp_path):
    torch.save(torchvision_model("ssd300_vgg16").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="looks like torchvision's ssd300_vgg16; this"):
        our_model("ssdlite320_mobilenet_v3_large", tmp_path / "weights.pth")


@pytest.mark.parametrize("name", MODELS)
def test_the_config_sets_what_torchvision_sets(name, monkeypatch):
    weights = get_model_weights(name).DEFAULT
    with monkeypatch.context() as patch:
        patch.setattr(type(weights), "get_state_dict", lambda *args, **kwargs: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
        theirs = getattr(tv, name)(weights=weights)
    config = load_config(CONFIGS / "torchvision" / f"{name}.yaml")
    ours = build_model(config, {"detection": Classes.numbered(map(str, range(90)))})
    assert sum(p.numel() for p in ours.parameters()) == weights.meta["num_params"]
    head, side = ours.head("detection"), MODELS[name]
    assert (head.score_threshold, head.nms_iou, head.pre_nms_top_n, head.max_detections) == (
        *(theirs.score_thresh, theirs.nms_thresh),
        *(theirs.topk_candidates, theirs.detections_per_img),
    )
    assert (head.nms, head.negative_ratio) == ("class", theirs.neg_to_pos_ratio)
    assert head.matcher.fg_iou == theirs.proposal_matcher.high_threshold
    assert theirs.box_coder.weights == OFFSET_WEIGHTS
    cells = {k: -(-side // level.stride) for k, level in ours.neck.levels.items()}
    features = {k: torch.zeros(1, 1, number, number) for k, number in cells.items()}
    batch = Images(torch.zeros(1, 3, side, side), [(side, side)])
    (expected,) = theirs.anchor_generator(batch, [*features.values()])
    torch.testing.assert_close(head.boxes(features).corners, expected, atol=1e-4, rtol=0)
    assert config.data["main"].image_size == f"{side}x{side}"
    assert theirs.transform.fixed_size == (side, side)
    mean, std = (torch.tensor(getattr(theirs.transform, f"image_{key}")) for key in ("mean", "std"))
    torch.testing.assert_close(ours.backbone.normalize.scale.flatten(), 1 / (255 * std))
    torch.testing.assert_close(ours.backbone.normalize.shift.flatten(), -mean / std)
    frozen = [sum(not p.requires_grad for p in m.parameters()) for m in (ours, theirs)]
    assert frozen[0] == frozen[1] == (4 if name == "ssd300_vgg16" else 0)
    norms = [
        [(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for model in (ours, theirs)
    ]
    assert sorted(norms[0]) == sorted(norms[1])


def test_an_expanded_mobilenet_splits_the_blocks_with_a_stride():
    backbone = Torchvision(name="mobilenet_v3_small", expanded=True).eval()
    plain = Torchvision(name="mobilenet_v3_small").eval()
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(backbone.state_dict())
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        found, expected = backbone(images), plain(images)
    torch.testing.assert_close(found["c5"], expected["c5"])
    block = plain.body.get_submodule("9.block")
    torch.testing.assert_close(found["c4"], block[0](expected["c4"]))
