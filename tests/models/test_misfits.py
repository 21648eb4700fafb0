"""Backbone, neck, heads and image size that do not fit are refused without building the model."""

import pytest
import torch

from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.config.shipped import shipped_configs
from visionkit.errors import ConfigError
from visionkit.models.backbones import LightResNet
from visionkit.models.build import check_parts

VIT = {"type": "Timm", "name": "test_vit"}


class NeedsMemory(LightResNet):
    """A custom backbone whose code reads values."""

    def __init__(self):
        super().__init__()
        assert float(torch.ones(1)) == 1


@pytest.mark.parametrize(
    "config, changes, problems",
    [
        (
            "detection_small",
            {"backbone": {"type": "TinyCNN", "channels": [8]}},
            ["neck: in_features", "'c3', 'c4', 'c5'", "expected some of c1", "{type: SimpleFPN}"],
        ),
        (
            "detection_small",
            {"neck": {"type": "PAN", "in_features": ["c3", "c7"]}},
            ["neck: in_features", "'c7'", "expected some of c2, c3, c4, c5"],
        ),
        ("detection_small", {"neck": None}, ["heads.detection: ", "add `neck: {type: FPN}`"]),
        ("detection", {"neck": None}, ["heads.detection: ", "put a neck such as FPN between"]),
        ("embedding", {"head.level": "c9"}, ["heads.embedding: level", "'c9'", "'c5'"]),
        ("mlp_mnist", {"data.image_size": 32}, ["data.image_size: MLP", "32x32", "=28"]),
        ("ssd300_vgg16", {"data.image_size": 640}, ["data.image_size: neck.unpadded", "448"]),
    ],
)
def test_a_misfit_is_refused_with_its_key_and_what_to_do(config, changes, problems):
    loaded = load_config(config, changes)
    with pytest.raises(ConfigError) as raised:
        check_parts(loaded)
    assert str(raised.value).startswith(problems[0])
    assert all(part in str(raised.value) for part in problems)


def test_a_transformer_of_one_level_wants_another_neck(capsys):
    pytest.importorskip("timm")
    few = [f"data.{split}.num_images=2" for split in ("train", "val")]
    words = ["detection_small", *few, f"backbone={VIT}".replace("'", "")]
    for command in ("config", "check", "train"):
        assert main([command, *words]) == 2
        shown = "".join(capsys.readouterr())
        assert "neck: in_features: got ['c3', 'c4', 'c5']; expected some of c4, the only" in shown
        assert "SimpleFPN" in shown
    assert main(["config", *words, "neck={type: SimpleFPN}"]) == 0


@pytest.mark.parametrize("name", ["detection_small", "joint_two_sources", "detection_rtdetr"])
def test_what_fits_passes_and_draws_no_random_number(name):
    state = torch.get_rng_state()
    check_parts(load_config(name))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_fits(name):
    check_parts(load_config(name))


def test_custom_classes_are_not_built():
    changes = {"backbone": {"type": f"{__name__}.NeedsMemory"}, "neck": None}
    check_parts(load_config("detection_small", changes))
