"""Names of 0.1 are answered with those of 0.2: every row of the tables in CHANGELOG.md."""

import re

import pytest

from support.paths import ROOT
from visionkit.config import load_config
from visionkit.config.components import components
from visionkit.config.renamed import KEYS, TORCHVISION, renamed_key, renamed_type
from visionkit.errors import ConfigError
from visionkit.models.backbones.torchvision import NAMES


def rows(heading):
    """The cells of a table of CHANGELOG.md."""
    section = (ROOT / "CHANGELOG.md").read_text().partition(f"### {heading}\n")[2]
    lines = [line for line in section.partition("\n### ")[0].splitlines() if line[:2] == "| "]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


def config(**sections):
    return {
        "backbone": {"type": "Torchvision"},
        "neck": {"type": "FPN"},
        "heads": {
            "objects": {"type": "FCOS"},
            "color": {"type": "Attributes", "boxes_from": "objects"},
        },
        "data": {"street": {"feeds": ["objects", "color"], "train": {"type": "Shapes"}}},
        **sections,
    }


def problems(spec):
    with pytest.raises(ConfigError) as caught:
        load_config(spec)
    return str(caught.value).splitlines()


CHANGED = rows("Changed: configs")


@pytest.mark.parametrize(("old", "new"), CHANGED, ids=[quoted(old)[0] for old, _ in CHANGED])
def test_an_old_key_is_answered_with_the_new_one(old, new):
    spec = config()
    sections = {"backbone": spec["backbone"], "neck": spec["neck"],
                "head": spec["heads"]["color"], "data": spec["data"]["street"]}  # fmt: skip
    answer = quoted(new)[0].rpartition(".")[2]
    for key in quoted(old):
        if "freeze" in key:
            spec["train"] = {"freeze": ["old heads"]}
            assert problems(spec) == [
                "config: train.freeze.0: got 'old heads', renamed to 'init_heads' in 0.2"
            ]
            return
        section, _, key = key.rpartition(".")
        section = section or old.split()[0]
        target = spec.setdefault("train", {}) if section == "train" else sections[section]
        target[key] = 1
        found = problems(spec)
        assert any(line.endswith(f".{key}: renamed to '{answer}' in 0.2") for line in found), found
        del target[key]


def test_an_old_key_next_to_the_sources_is_answered_too():
    spec = config()
    spec["data"]["per_identity"] = 2
    assert problems(spec) == ["config: data.per_identity: renamed to 'images_per_identity' in 0.2"]


def test_every_key_of_the_table_is_in_the_changelog():
    listed = {key.rpartition(".")[2] for old, _ in CHANGED for key in quoted(old)}
    assert {*KEYS} <= listed
    assert renamed_key("best", ["worst"]) is None  # of another section
    assert renamed_key("cache_gb", []) == "removed in 0.2: decoded images are not cached; " \
        "delete this key"  # fmt: skip


VALID = [
    name
    for section in ("backbones", "necks", "heads", "datasets", "transforms")
    for name in components(section)
]
OLD_TYPES = [
    (name, quoted(new))
    for old, new in rows("Changed: `type:` names")
    for name in quoted(old)
    if "." in name
]


@pytest.mark.parametrize(("old", "new"), OLD_TYPES, ids=[old for old, _ in OLD_TYPES])
def test_an_old_type_is_answered_with_the_new_one(old, new):
    names = list(TORCHVISION) if old.endswith(".*") else [old.rpartition(".")[2]]
    for name in names:
        answer = renamed_type({"type": f"{old.rpartition('.')[0]}.{name}"}, VALID)
        assert any(f"type: {word}" in answer for word in new), answer


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"type": "resnet.ResNet", "depth": 50}, "resnet50"),
        ({"type": "ResNet", "depth": 18}, "resnet18"),
        ({"type": "ResNet"}, "resnet18"),
        ({"type": "resnet.ResNeXt", "variant": "101_64x4d"}, "resnext101_64x4d"),
        ({"type": "resnet.WideResNet"}, "wide_resnet50_2"),
        ({"type": "mobilenet.MobileNetV2"}, "mobilenet_v2"),
        ({"type": "mobilenet.MobileNetV3", "size": "small"}, "mobilenet_v3_small"),
        ({"type": "efficientnet.EfficientNet", "variant": "v2_s"}, "efficientnet_v2_s"),
        ({"type": "convnext.ConvNeXt"}, "convnext_tiny"),
        ({"type": "regnet.RegNet", "variant": "x_8gf"}, "regnet_x_8gf"),
        ({"type": "shufflenet.ShuffleNetV2", "width": "x0_5"}, "shufflenet_v2_x0_5"),
        ({"type": "squeezenet.SqueezeNet", "version": "v1_0"}, "squeezenet1_0"),
        ({"type": "densenet.DenseNet"}, "densenet121"),
        ({"type": "vgg.VGG", "depth": 16}, "vgg16_bn"),
        ({"type": "vgg.VGG", "batch_norm": False}, "vgg11"),
    ],
)
def test_an_old_backbone_is_answered_with_torchvisions_name(spec, name):
    expected = f"renamed to 'type: Torchvision, name: {name}' in 0.2"
    assert problems(config(backbone=spec)) == [f"config: backbone.type: {expected}"]
    assert name in NAMES


def test_other_types_are_none_of_0_1():
    for other in ("Coco", "my.Coco", "coco.Cocoa", "mine.resnet.ResNet", 3):
        assert renamed_type({"type": other}, VALID) is None


def test_an_untrusted_config_of_0_1_is_named_and_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "coco.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    spec = config()
    spec["data"]["street"]["train"] = {"type": "coco.Coco", "images": "a", "annotations": "b"}
    with pytest.raises(ConfigError, match=r"last\.pt: its config is of visionkit 0\.1: data\.street"
                       r"\.train\.type: coco\.Coco: renamed to 'type: Coco'"):  # fmt: skip
        load_config(spec, origin="last.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.batch_size=4", "data.batch_size"),
        ("batch=4", "data.batch_size"),
        ("data.num_workers=2", "data.workers"),
        ("workers=2", "data.workers"),
        ("imgsz=320", "data.image_size"),
        ("data.train.image_size=320", "data.image_size"),
        ("epochs=3", "train.epochs"),
        ("data.lr=0.1", "train.lr"),
        ("train.learning_rate=0.1", "train.lr"),
    ],
)
def test_a_key_of_another_section_or_program_is_answered_with_its_place(override, meant):
    with pytest.raises(ConfigError) as caught:
        load_config("detection_small", [override])
    key = override.partition("=")[0]
    text = f"override {override}: {key}: unknown key; did you mean '{meant}'? valid: "
    assert str(caught.value).startswith(text)


def test_a_key_of_another_section_beside_several_sources():
    with pytest.raises(ConfigError) as caught:
        load_config("joint_two_sources", ["data.num_workers=2"])
    text = "data.num_workers: unknown key; did you mean 'data.workers'?"
    assert str(caught.value) == f"override data.num_workers=2: {text}"
