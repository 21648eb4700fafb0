"""Which published model a file or a model of ours is; norms and classes of published weights."""

import logging
import re

import pytest
import torch
from torchvision import models

from support.published import empty_hub, publish, save_as_published
from visionkit.config import load_config
from visionkit.config.shipped import shipped_configs
from visionkit.errors import CheckpointError, ConfigError
from visionkit.models.architectures import models_like
from visionkit.models.build import build_model, with_published
from visionkit.models.published import entries
from visionkit.types import Classes

WHOLE = [one.name for one in entries() if one.kind == "model" and not one.on_hub]
SMALL = "lraspp_mobilenet_v3_large"  # 12 MB


def shaped(name, classes):
    """torchvision's model without memory."""
    more = {"aux_loss": True} if re.match("fcn|deeplab", name) else {}
    with torch.device("meta"):
        return models.get_model(
            name, weights=None, weights_backbone=None, num_classes=classes, **more
        )


def classes_of(config, names=("person", "zebra")):
    return {head: Classes.numbered(names) for head in config.heads}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return empty_hub(monkeypatch, tmp_path / "hub")


@pytest.fixture
def published(tmp_path, hub, monkeypatch):
    """The published weights of a model, at hand, with random numbers; the entry and the numbers."""

    def make(name):
        torch.manual_seed(1)
        classes = len(next(one.classes for one in entries() if one.name == name))
        more = {"aux_loss": True} if re.match("fcn|deeplab", name) else {}
        model = models.get_model(
            name, weights=None, weights_backbone=None, num_classes=classes, **more
        )
        file = save_as_published(model.state_dict(), tmp_path / "published", name)
        monkeypatch.setenv("VISIONKIT_WEIGHTS", str(tmp_path / "published"))
        return publish(monkeypatch, name, file), model.state_dict()

    return make


# --- which architecture ---


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_is_known_by_its_tensors(name):
    found = models_like(shaped(name, 7).state_dict())
    twins = {"fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"}
    assert {*found} == (twins if name in twins else {name})


def test_other_files_are_none():
    state = shaped("fcos_resnet50_fpn", 7).state_dict()
    assert models_like({**state, "backbone.body.conv1.weight": torch.empty(32, 3, 7, 7)}) == []
    assert models_like({**state, "head.more": torch.empty(1)}) == []
    assert models_like(models.resnet18().state_dict()) == []
    assert models_like({}) == []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * ("resnet" in n)) for n in WHOLE]
)
def test_coco_means_the_weights_of_that_config(name):
    found = with_published(load_config(name, ["weights=coco"]))
    (entry,) = (one for one in entries() if one.name == name)
    assert found.weights == entry.member
    again = with_published(found)
    assert (again.weights, again.backbone) == (found.weights, found.backbone)


def test_coco_is_found_for_a_config_of_ones_own():
    words = ["backbone.name=resnet50", "neck.channels=256", "weights=coco"]
    found = with_published(load_config("detection", words))
    assert found.weights == "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"
    # as those weights were trained
    assert (found.backbone["norm"], found.backbone["norm_eps"]) == ("frozen", 0.0)
    given = ["backbone.norm=batch", "backbone.norm_eps=1e-4"]
    kept = with_published(load_config("detection", [*words, *given])).backbone
    assert (kept["norm"], kept["norm_eps"]) == ("batch", 1e-4)
    found = with_published(load_config("instance_segmentation", words))
    assert found.weights == "MaskRCNN_ResNet50_FPN_Weights.COCO_V1"


def refused(name, *words):
    with pytest.raises(ConfigError) as caught:
        with_published(load_config(name, ["weights=coco", *words]))
    return str(caught.value)


def test_without_weights_for_the_architecture_those_with_its_head_are_named():
    said = refused("detection", "backbone.name=resnet18")
    assert said.startswith("weights: none are published on COCO for detection (FasterRCNN) on ")
    assert "Torchvision resnet18" in said and "weights: NAME, partial_weights: true" in said
    assert "with FasterRCNN there are those of the shipped configs fasterrcnn_mobilenet_" in said
    assert "maskrcnn" not in said and "deeplabv3" not in said
    assert "for ImageNet features give backbone.weights: default" in said
    given = ["weights=fasterrcnn_resnet50_fpn", "partial_weights=true", "backbone.name=resnet18"]
    assert with_published(load_config("detection", given)).weights  # what the message advises


@pytest.mark.parametrize(
    ("name", "head", "others", "no"),
    [
        ("detection_small", "TaskAligned", "fasterrcnn_", "deeplabv3"),
        ("semantic_segmentation", "SemanticFPN", "deeplabv3_", "fasterrcnn"),
        ("classification", "Classification", "", "shipped configs"),
    ],
)
def test_without_weights_for_its_head_those_of_the_task_and_of_the_backbone_are_named(
    name, head, others, no
):
    said = refused(name)
    assert f"with {head} there are none" in said and others in said
    assert no not in said and "partial_weights" not in said
    backbone = load_config(name).backbone["type"]
    own = "backbone: LightResNet has no published weights, Torchvision and Timm have some"
    assert (own if backbone == "LightResNet" else "backbone.weights: default") in said


@pytest.mark.parametrize("weights", ["coco", "maskrcnn_resnet50_fpn"])
def test_several_heads_have_no_published_weights(weights, hub):
    said = refused("joint_two_sources", f"weights={weights}")
    assert said.startswith("weights: published models have one head, and this one has 2: ")
    assert "weights: RUN/checkpoints/best.pt" in said and not hub.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights=maskrcnn_resnet"], "weights: no weights are published as 'maskrcnn_resnet'; ne"),
        (["weights=COCO"], "weights: got 'COCO'; did you mean 'coco'\\?$"),
        (["weights=default"], "weights: got 'default'; did you mean 'coco'\\?$"),
        (["backbone.weights=imagenet"], "backbone.weights: got 'imagenet'; did you mean 'default'"),
        (["backbone.weights=coco"], "did you mean 'default', or for a whole model `weights: coco`"),
        (["weights=resnet50"], "weights: .*'resnet50' is of a backbone: give it as backbone.weigh"),
        (["backbone.weights=resnet_50"], "backbone.weights: no weights are .*; nearest: resnet50,"),
        (["backbone.weights=fcos_resnet50_fpn"], "backbone.weights: .*is of a whole model: give i"),
    ],
)
def test_unknown_names_are_found_before_anything_is_built(words, message, hub):
    with pytest.raises(ConfigError, match=message):
        with_published(load_config("detection", words))


def test_a_published_file_is_known_by_its_name():
    words = ["weights=x/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "backbone.name=resnet50"]
    found = with_published(load_config("detection", words))
    assert found.weights == words[0][8:] and found.backbone["norm_eps"] == 0.0
    words[0] = "weights=x/mine.pth"
    config = load_config("detection", words)
    assert with_published(config) == config


def test_pixels_are_normalized_as_the_weights_of_a_backbone_expect():
    words = ["backbone.name=efficientnet_v2_l", "backbone.weights=default"]
    backbone = with_published(load_config("detection", words)).backbone
    assert backbone["mean"] == backbone["std"] == (0.5, 0.5, 0.5)
    backbone = with_published(load_config("detection", [*words, "backbone.mean=[0,0,0]"])).backbone
    assert backbone["mean"] == (0.0, 0.0, 0.0)
    words = ["backbone.name=resnet50", "backbone.weights=ResNet50_Weights.IMAGENET1K_V1"]
    assert "mean" not in with_published(load_config("detection", words)).backbone


# --- loading ---


@pytest.mark.parametrize("weights", ["coco", SMALL, "member"])
def test_published_weights_load_by_name(weights, published, caplog):
    one, state = published(SMALL)
    names = ("background", "dog", "horse", "unicorn")
    value = one.member if weights == "member" else weights
    config = load_config(SMALL, [f"weights={value}"])
    with caplog.at_level(logging.INFO, "visionkit"):
        model = build_model(config, classes_of(config, names))
    head = model.state_dict()
    theirs = state["classifier.low_classifier.weight"]
    rows = head["heads.semantic_segmentation.classifier.low_classifier.weight"]
    for row, name in enumerate(names[:3]):
        assert torch.equal(rows[row], theirs[one.classes.index(name)])
    assert not torch.equal(rows[3], theirs[0])
    assert "3 classes kept (background, dog, horse), 1 class new (unicorn)" in caplog.text
    norms = {type(m).__name__ for m in model.backbone.modules() if "BatchNorm" in type(m).__name__}
    assert norms == {"FrozenBatchNorm"}


def test_the_background_of_published_weights_is_kept_with_other_classes(published, caplog):
    _, state = published(SMALL)
    config = load_config(SMALL, ["weights=coco"])
    model = build_model(config, classes_of(config, ("background", "unicorn")))
    rows = model.state_dict()["heads.semantic_segmentation.classifier.low_classifier.weight"]
    assert torch.equal(rows[0], state["classifier.low_classifier.weight"][0])
    assert "nothing of the classes is kept" not in caplog.text


def test_a_file_of_another_architecture_names_its_config(tmp_path):
    state = models.get_model("fcos_resnet50_fpn", weights=None, weights_backbone=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    words = ["backbone.name=resnet50", "neck.channels=256", f"weights={tmp_path / 'w.pth'}"]
    config = load_config("detection", words)
    with pytest.raises(
        CheckpointError, match="file looks like torchvision's fcos_resnet50_fpn"
    ) as e:
        build_model(config, classes_of(config))
    assert f"visionkit train fcos_resnet50_fpn weights={tmp_path / 'w.pth'}" in str(e.value)
    assert "this model is detection (FasterRCNN)" in str(e.value)
    assert "partial_weights: true" in str(e.value)


def test_a_partial_load_counts_and_lists_what_is_random(tmp_path, caplog):
    state = models.get_model("fcos_resnet50_fpn", weights=None, weights_backbone=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    words = ["backbone.name=resnet50", "neck.channels=256", f"weights={tmp_path / 'w.pth'}"]
    config = load_config("detection", [*words, "partial_weights=true"])
    model = build_model(config, classes_of(config))
    count = int(re.search(r"partly loaded, (\d+) tensors at random", caplog.text)[1])
    missing = re.search(r"(\d+) missing: (.*)", caplog.text)
    shapes = re.search(r"(\d+) of another shape: (.*)", caplog.text)
    assert int(missing[1]) + int(shapes[1]) == count
    assert len(missing[2].split(", ")) == int(missing[1])
    assert "heads.detection.rpn.head.conv.0.0.weight" in missing[2]
    assert "neck.inner_blocks.0.0.weight (256, 512, 1, 1) instead of" in shapes[2]
    assert "kept" not in caplog.text  # no class is
    assert torch.equal(model.backbone.body.conv1.weight, state["backbone.body.conv1.weight"])


def test_weights_for_gray_images_are_named(tmp_path):
    state = models.get_model(SMALL, weights=None, weights_backbone=None).state_dict()
    state["backbone.0.0.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(state, tmp_path / "gray.pth")
    config = load_config(SMALL, [f"weights={tmp_path / 'gray.pth'}"])
    with pytest.raises(CheckpointError, match=r"it is for images of 1 channel, not RGB"):
        build_model(config, classes_of(config))
    backbone = models.squeezenet1_1().state_dict()
    backbone["features.0.weight"] = torch.zeros(64, 4, 3, 3)
    torch.save(backbone, tmp_path / "four.pth")
    words = ["backbone.name=squeezenet1_1", f"backbone.weights={tmp_path / 'four.pth'}"]
    config = load_config("detection", words)
    with pytest.raises(CheckpointError, match=r"it is for images of 4 channels, not RGB"):
        build_model(config, classes_of(config))


def test_a_file_without_an_auxiliary_classifier(tmp_path):
    name = "deeplabv3_mobilenet_v3_large"
    state = models.get_model(name, weights=None, weights_backbone=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    config = load_config(name, [f"weights={tmp_path / 'w.pth'}"])
    names = ("background", "dog")
    with pytest.raises(CheckpointError, match=r"no auxiliary classifier: set head\.aux_weight: 0"):
        build_model(config, classes_of(config, names))
    config = load_config(name, [f"weights={tmp_path / 'w.pth'}", "head.aux_weight=0"])
    build_model(config, classes_of(config, names))


def test_each_shipped_config_of_torchvision_has_published_weights():
    of_torchvision = {n for n, p in shipped_configs().items() if p.parts[-2] == "torchvision"}
    assert of_torchvision == {*WHOLE}
