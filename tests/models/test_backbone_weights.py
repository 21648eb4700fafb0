"""Backbones with the weights of torchvision's classifiers and detectors, and of timm's models."""

import logging
import sys

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor

from support.backbones import (
    assert_equal_but_for_rounding,
    assert_same_features,
    pixels,
    randomize_norms,
    saved_classifier,
)
from visionkit.errors import CheckpointError, ConfigError
from visionkit.models.backbones.timm import Timm
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.necks.fpn import FPN

# --- weights ---


@pytest.mark.parametrize(
    "name, nodes",
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("regnet_y_400mf", [f"trunk_output.block{i}" for i in (1, 2, 3, 4)]),
        ("shufflenet_v2_x1_0", ["maxpool", "stage2", "stage3", "conv5"]),
        ("densenet121", [f"features.denseblock{i}" for i in (1, 2, 3)] + ["relu"]),
        (
            "mobilenet_v3_small",
            ["features.1", "features.3", "features.8", "features.12"],
        ),
        ("efficientnet_b0", [f"features.{i}" for i in (2, 3, 5, 8)]),
    ],
)
def test_a_file_of_torchvision_weights_gives_its_features(tmp_path, caplog, name, nodes):
    model, path = saved_classifier(tmp_path, name)
    with caplog.at_level(logging.WARNING, logger="visionkit"):
        backbone = Torchvision(name=name, weights=path).eval()
    assert not caplog.records
    assert_same_features(backbone, create_feature_extractor(model, nodes), pixels(1, 3, 75, 64))


def test_old_names_in_densenet_files_are_understood(tmp_path, caplog):
    model, path = saved_classifier(tmp_path, "densenet121")
    old = {
        key.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1"): value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(old, path)
    backbone = Torchvision(name="densenet121", weights=path)
    assert not caplog.records
    name = "denseblock1.denselayer2.norm1.running_mean"
    want = model.features.get_buffer(name)
    assert torch.equal(backbone.body.get_buffer(name), want)


def test_a_partial_file_loads_if_that_is_allowed_and_tells_what_did_not_fit(tmp_path, caplog):
    model, path = saved_classifier(tmp_path, "resnet18")
    state = model.state_dict()
    del state["layer1.0.bn1.weight"]
    state["attention.weight"] = torch.zeros(1)
    state |= {f"more.{i}": torch.zeros(1) for i in range(20)}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"1 missing: layer1\.0\.bn1\.weight") as error:
        Torchvision(weights=path)
    assert "backbone.partial_weights: true" in str(error.value)
    with caplog.at_level(logging.WARNING, logger="visionkit"):
        backbone = Torchvision(weights=path, partial_weights=True)
    assert torch.equal(backbone.body.conv1.weight, model.conv1.weight)
    message = caplog.text
    assert path in message and "99 of 100 tensors fit" in message
    assert "1 missing: layer1.0.bn1.weight" in message
    assert "21 unexpected: attention.weight" in message and "more.19" in message
    assert "fc." not in message and "num_batches_tracked" not in message


def test_parts_that_the_backbone_does_not_have_are_a_warning(tmp_path, caplog):
    model, path = saved_classifier(tmp_path, "resnet18")
    torch.save(model.state_dict() | {"attention.weight": torch.zeros(1)}, path)
    Torchvision(weights=path)
    assert "100 of 100 tensors fit this backbone; 1 unexpected: attention.weight" in caplog.text


@pytest.mark.parametrize("ours, theirs", [("resnet18", "resnet34"), ("resnet34", "resnet18")])
def test_a_deeper_or_shallower_network_is_another_architecture(tmp_path, ours, theirs):
    """All tensors of the smaller one are in the larger one, in the same shapes."""
    _, path = saved_classifier(tmp_path, theirs)
    with pytest.raises(CheckpointError, match="looks like a ResNet-") as error:
        Torchvision(name=ours, weights=path)
    assert f"a ResNet-{theirs.removeprefix('resnet')}" in str(error.value)


@pytest.mark.parametrize("key", [None, "state_dict"])
def test_wrapped_state_dicts_are_understood(tmp_path, key):
    model, path = saved_classifier(tmp_path, "resnet18")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({key: state} if key else state, path)
    assert torch.equal(Torchvision(weights=path).body.conv1.weight, model.conv1.weight)


def test_a_tensor_of_another_shape_is_that_of_another_variant(tmp_path):
    model, path = saved_classifier(tmp_path, "resnet18")
    torch.save(model.state_dict() | {"layer4.1.conv2.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(CheckpointError, match="same architecture and variant") as error:
        Torchvision(weights=path)
    assert "layer4.1.conv2.weight (3, 3) instead of (512, 512, 3, 3)" in str(error.value)


def test_unusable_files_are_errors(tmp_path):
    _, unrelated = saved_classifier(tmp_path, "squeezenet1_1")
    with pytest.raises(CheckpointError, match=r"(?s)0 of 100 tensors fit .*conv1.weight"):
        Torchvision(weights=unrelated)
    with pytest.raises(CheckpointError, match="not found"):
        Torchvision(weights=str(tmp_path / "absent.pth"))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"broken\.pth"):
        Torchvision(weights=str(broken))
    torch.save({"model": {}, "epoch": 3}, broken)
    with pytest.raises(CheckpointError, match="a dict with model, epoch, not a state_dict"):
        Torchvision(weights=str(broken))
    torch.save(torch.zeros(3), broken)
    with pytest.raises(CheckpointError, match="Tensor"):
        Torchvision(weights=str(broken))


def test_real_imagenet_weights_load(real_data, caplog):
    path = real_data / "weights" / "squeezenet1_0_imagenet_torchvision.pth"
    backbone = Torchvision(name="squeezenet1_0", weights=str(path)).eval()
    assert not caplog.records
    model = models.squeezenet1_0().eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    nodes = {"5": "c2", "10": "c3", "12": "c4"}
    assert_same_features(
        backbone, IntermediateLayerGetter(model.features, nodes), pixels(1, 3, 96, 96)
    )


# --- torchvision's detection backbones ---


def parameters_of(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (
            lambda: Torchvision(name="resnet50", norm="frozen"),
            lambda: resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5),
        ),
        (
            lambda: Torchvision(
                name="mobilenet_v3_large", out_indices=[13, 16], norm="frozen", norm_eps=1e-5
            ),
            lambda: mobilenet_backbone(
                backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6
            ),
        ),
    ],
    ids=["resnet50", "mobilenet_v3_large"],
)
def test_detection_backbones_of_torchvision_map_one_to_one(ours, theirs):
    reference = randomize_norms(theirs()).eval()
    backbone = ours().eval()
    neck = FPN(backbone.levels).eval()
    assert isinstance(reference.body, IntermediateLayerGetter)
    assert parameters_of(backbone, neck) == parameters_of(reference)

    backbone.body.load_state_dict(reference.body.state_dict())
    neck.load_state_dict(reference.fpn.state_dict())
    images = pixels(1, 3, 100, 130)
    with torch.no_grad():
        got = neck(backbone(images))
        want = reference(backbone.normalize(images, None, like=backbone.body))
    assert list(got)[-1] == "p6" and list(want)[-1] == "pool"
    for name, mine, other in zip(got, got.values(), want.values(), strict=True):
        assert mine.shape[1] == neck.levels[name].channels
        assert_equal_but_for_rounding(mine, other)


# --- timm ---


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r'pip install "visionkit-torch\[timm\]"'):
        Timm(name="resnet18")


def test_a_timm_backbone(tmp_path, caplog):
    timm = pytest.importorskip("timm")
    model = randomize_norms(timm.create_model("convnext_atto")).eval()
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    backbone = Timm(name="convnext_atto", weights=str(path)).eval()
    assert not caplog.records
    assert {name: level.stride for name, level in backbone.levels.items()} == {
        "c2": 4,
        "c3": 8,
        "c4": 16,
        "c5": 32,
    }
    images = pixels(1, 3, 64, 96)
    with torch.no_grad():
        features = backbone(images, [(64, 96)])
        want = model.forward_features(backbone.normalize(images, None, like=backbone.body))
    assert all(x.shape[1] == backbone.levels[name].channels for name, x in features.items())
    torch.testing.assert_close(features["c5"], want)

    chosen = Timm(name="convnext_atto", out_indices=[3, 1], weights=str(path)).eval()
    assert list(chosen.levels) == ["f1", "f3"]
    with torch.no_grad():
        torch.testing.assert_close(chosen(images)["f3"], want)
    for wrong in ([], [4]):
        with pytest.raises(ConfigError, match=r"out_indices|feature maps"):
            Timm(name="convnext_atto", out_indices=wrong)

    frozen = Timm(name="resnet18", norm="frozen").train()
    assert not [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    with pytest.raises(ConfigError, match="resnet18"):
        Timm(name="resnet188")
