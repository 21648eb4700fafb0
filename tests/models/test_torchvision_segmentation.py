"""torchvision's segmentation models against ours, built from configs: the weights load through
`weights:`, and the logits and semantic maps are the same; and the dilated backbones that they need.
"""

import logging

import pytest
import torch
from torch import nn
from torchvision.models import segmentation as tv
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.mobilenetv3 import mobilenet_v3_small

from support.backbones import assert_same_features, pixels, randomize_norms
from support.losses import losses_of
from support.paths import CONFIGS
from visionkit.config import load_config
from visionkit.errors import CheckpointError, ConfigError
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.build import build_model
from visionkit.models.heads.pixel_loss import at_pixels
from visionkit.types import Batch, Classes

MODELS = (
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
)
HEAD = "semantic_segmentation"
CLASSES = Classes(("background", *(f"class {k}" for k in range(1, 21))), tuple(range(21)))
SIZE = (64, 96)


def torchvision_model(name, aux):
    """Random weights. The logits get mean 0 by class and spread 1: no class wins everywhere, and
    rounding does not grow with the depth of a random network."""
    torch.manual_seed(1)
    more = {} if name.startswith("lraspp") else {"aux_loss": aux}
    model = getattr(tv, name)(weights=None, weights_backbone=None, num_classes=21, **more)
    randomize_norms(model).eval()
    with torch.no_grad():
        for key, logits in model(torch.randn(2, 3, *SIZE)).items():
            layers = getattr(model, {"out": "classifier", "aux": "aux_classifier"}[key])
            last = [m for m in layers.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
            last[-1].bias -= logits.mean((0, 2, 3))
            for layer in last:  # the two that LR-ASPP adds up
                layer.weight /= logits.std()
                layer.bias /= logits.std()
    return model


def our_model(name, path, aux, **more_heads):
    """From the shipped config, which has the auxiliary classifier of the published weights."""
    config = load_config(CONFIGS / "torchvision" / f"{name}.yaml", {"weights": str(path)})
    if not aux:
        config.heads[HEAD].pop("aux_weight", None)
    config.heads.update(more_heads)
    return build_model(config, dict.fromkeys(config.heads, CLASSES)).eval()


def count(model):
    return sum(t.numel() for key, t in model.state_dict().items() if "num_batches" not in key)


@pytest.mark.parametrize(
    ("name", "aux"),
    [
        *(  # a ResNet-101 is built as a ResNet-50 is
            pytest.param(
                name,
                not name.startswith("lraspp"),
                marks=[pytest.mark.slow] * ("resnet101" in name or name == "fcn_resnet50"),
            )
            for name in MODELS
        ),
        ("deeplabv3_mobilenet_v3_large", False),
    ],
)
def test_a_torchvision_checkpoint_gives_the_same_logits_and_map(name, aux, tmp_path, caplog):
    theirs = torchvision_model(name, aux)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.WARNING, "visionkit"):
        ours = our_model(name, tmp_path / "weights.pth", aux)
    assert "21 classes kept" in caplog.text and "by position" in caplog.text
    assert len(caplog.records) == 1  # every tensor found its place
    assert count(ours) == count(theirs)

    images = pixels(2, 3, *SIZE)
    batch = Batch(images, [{"size": SIZE, "orig_size": SIZE} for _ in images])
    head = ours.heads[HEAD]
    with torch.inference_mode():
        expected = theirs(ours.backbone.normalize(images, None, like=ours.backbone.body))
        features = ours.features(batch)
        maps = {"out": head(features, batch.size_tensor)["logits"]}
        if aux:
            maps["aux"] = head.aux_classifier(features[head.aux_level])
        found = ours.predictions(features, batch, [HEAD])[HEAD]
    for key, logits in maps.items():
        full = torch.stack([at_pixels(image, SIZE, SIZE) for image in logits])
        assert full.std() > 0.01
        torch.testing.assert_close(full, expected[key], atol=1e-4, rtol=1e-4)
    wanted = expected["out"].argmax(1)
    assert len(wanted.unique()) > 1
    first, second = expected["out"].topk(2, dim=1).values.unbind(1)
    clear = first - second > 1e-3
    assert clear.float().mean() > 0.5
    for prediction, labels, sure in zip(found, wanted, clear, strict=True):
        assert torch.equal(prediction["semantic"].long()[sure], labels[sure])


def test_losses_and_gradients_of_lraspp_are_torchvisions(tmp_path):
    """Those of the cross-entropy that torchvision trains with."""
    name = "lraspp_mobilenet_v3_large"
    theirs = torchvision_model(name, aux=False)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = our_model(name, tmp_path / "weights.pth", aux=False)
    images, truth = pixels(2, 3, *SIZE), torch.randint(21, (2, *SIZE), dtype=torch.uint8)
    truth[0, :20] = 255
    targets = [{"size": SIZE, "orig_size": SIZE, "semantic": one} for one in truth]
    batch = Batch(images, targets)
    loss = losses_of(ours.heads[HEAD], ours.features(batch), batch)["semantic"]
    logits = theirs(ours.backbone.normalize(images, None, like=ours.backbone.body))["out"]
    expected = nn.functional.cross_entropy(logits, truth.long(), ignore_index=255)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward(), expected.backward()
    layers = dict(theirs.classifier.named_parameters())
    for key, parameter in ours.heads[HEAD].classifier.named_parameters():
        torch.testing.assert_close(parameter.grad, layers[key].grad, atol=1e-5, rtol=1e-3)


def test_what_does_not_fit_is_said(tmp_path, caplog):
    theirs = torchvision_model("deeplabv3_mobilenet_v3_large", aux=True)
    torch.save(theirs.state_dict(), tmp_path / "aux.pth")
    our_model("deeplabv3_mobilenet_v3_large", tmp_path / "aux.pth", aux=False)
    assert "not in the model: heads.semantic_segmentation.aux_classifier.0.weight" in caplog.text
    two = {"other": {"type": "FCN"}}
    with pytest.raises(CheckpointError, match="need a model with one head, got 2 heads"):
        our_model("deeplabv3_mobilenet_v3_large", tmp_path / "aux.pth", aux=False, **two)


# --- dilated backbones ---


def test_dilated_resnet_keeps_the_names_of_its_levels():
    backbone = Torchvision(name="resnet50", dilated=True)
    strides = {name: level.stride for name, level in backbone.levels.items()}
    assert strides == {"c2": 4, "c3": 8, "c4": 8, "c5": 8}
    features = backbone.eval()(pixels(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in features.values()] == [(16, 24)] + [(8, 12)] * 3
    assert backbone.state_dict().keys() == Torchvision(name="resnet50").state_dict().keys()
    for wrong in ("resnet18", "resnet34", "mobilenet_v2", "vgg11"):
        with pytest.raises(ConfigError, match=f"dilated: got true, which {wrong} cannot be"):
            Torchvision(name=wrong, dilated=True)
    with pytest.raises(ConfigError, match="stem: got 'small'; expected 'imagenet' for resnet50"):
        Torchvision(name="resnet50", stem="small", dilated=True)


@pytest.mark.parametrize("size", ["large", "small"])
def test_dilated_mobilenet_keeps_the_names_of_its_levels(size):
    name = f"mobilenet_v3_{size}"
    plain, dilated = Torchvision(name=name), Torchvision(name=name, dilated=True)
    assert list(dilated.levels) == list(plain.levels) == ["c2", "c3", "c4", "c5"]
    assert [level.stride for level in dilated.levels.values()] == [4, 8, 16, 16]
    assert [level.channels for level in dilated.levels.values()] == [
        level.channels for level in plain.levels.values()
    ]
    assert dilated.state_dict().keys() == plain.state_dict().keys()


def test_dilated_features_are_torchvisions():
    ours = Torchvision(name="mobilenet_v3_small", dilated=True).eval()
    reference = mobilenet_v3_small(weights=None, dilated=True)
    randomize_norms(reference).eval()
    ours.body.load_state_dict(reference.features.state_dict())
    layers = {"1": "c2", "3": "c3", "8": "c4", "12": "c5"}
    getter = IntermediateLayerGetter(reference.features, layers)
    assert_same_features(ours, getter, pixels(2, 3, 64, 96))


def test_stages_of_a_dilated_backbone_are_frozen_one_by_one():
    backbone = Torchvision(name="resnet50", dilated=True, freeze_at=3)
    frozen = {n.split(".")[1] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1", "layer2"}
