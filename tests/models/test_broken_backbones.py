"""Custom backbones and necks that break the contract: the error names the part and the method."""

import pytest
import torch
from torch import nn

from visionkit.config import load_config
from visionkit.engine.check import check
from visionkit.errors import ConfigError
from visionkit.models.build import build_model
from visionkit.models.contracts import checked_features, checked_levels
from visionkit.models.model import VisionModel
from visionkit.types import Batch, Classes, Level

IMAGES = torch.zeros((2, 3, 64, 96), dtype=torch.uint8)
LEVELS = {"c2": Level(8, 4), "c3": Level(16, 8)}


def maps(**changes):
    return {"c2": torch.zeros(2, 8, 16, 24), "c3": torch.zeros(2, 16, 8, 12)} | changes


class Gives(nn.Module):
    """A backbone, or a neck, with these levels and maps."""

    def __init__(self, levels, found=None):
        super().__init__()
        self.levels, self.found = levels, found

    def forward(self, images, sizes=None):
        return self.found


class No(nn.Module):
    pass


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (No(), "levels of No: got None; expected a dict with a Level(channels, stride) for each f"),
        (Gives({}), "levels of Gives: got {}; expected a dict with a Level"),
        (Gives([Level(8, 4)]), "got a list of 1 (Level); expected a dict"),
        (Gives({"c2": (8, 4)}), "got {'c2': a tuple of 2 (int)}; expected Level(channels, stride)"),
        (Gives({"c2": Level(8, 4.0)}), "expected Level(channels, stride) of two ints by name"),
        (Gives({"c2": Level(0, 4)}), "expected Level(channels, stride) of two ints by name"),
        (Gives({2: Level(8, 4)}), "expected Level(channels, stride) of two ints by name"),
        (Gives(dict(reversed(LEVELS.items()))), "expected levels from fine to coarse, with rising"),
    ],
)
def test_levels(module, message):
    with pytest.raises(ConfigError) as error:
        checked_levels("backbone", module)
    assert str(error.value).startswith("backbone: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "got None; expected a dict with a map for each of its levels, ['c2', 'c3']"),
        ([*maps().values()], "got a list of 2 (Tensor); expected a dict with a map"),
        (torch.zeros(2, 8, 16, 24), "got float32 (2, 8, 16, 24); expected a dict"),
        ({"c2": maps()["c2"]}, "got {'c2': float32 (2, 8, 16, 24)}; expected a dict with a map"),
        (maps(c4=maps()["c3"]), "'c4': float32 (2, 16, 8, 12)}; expected a dict with a map for"),
        (maps(c3=None), "got {'c3': None}; expected a float tensor (2, 16, h, w)"),
        (maps(c3=maps()["c3"].long()), "got {'c3': int64 (2, 16, 8, 12)}; expected a float tensor"),
        (maps(c3=torch.zeros(2, 9, 8, 12)), "got {'c3': float32 (2, 9, 8, 12)}; expected a float"),
        (maps(c3=torch.zeros(1, 16, 8, 12)), "got {'c3': float32 (1, 16, 8, 12)}; expected"),
        (maps(c3=torch.zeros(2, 16)), "got {'c3': float32 (2, 16)}; expected"),
        (maps(c3=torch.zeros(2, 16, 16, 8)), "with about 64/8 x 96/8 cells"),
        (
            maps(c2=torch.zeros(2, 8, 32, 48)),
            "got {'c2': float32 (2, 8, 32, 48)}; expected a",
        ),
    ],
)
def test_features(found, message):
    with pytest.raises(ConfigError) as error:
        checked_features("neck", Gives(LEVELS), found, IMAGES)
    assert str(error.value).startswith("neck: Gives.forward(): ") and message in str(error.value)


def test_sound_features_pass_as_they_are():
    for found in (maps(), maps(c3=torch.zeros(2, 16, 7, 11, dtype=torch.bfloat16))):
        assert checked_features("backbone", Gives(LEVELS), found, IMAGES) is found


def test_a_model_checks_the_maps_of_both():
    batch = Batch(IMAGES, [{"size": (64, 96)}] * 2)
    wrong = maps(c2=torch.zeros(1))
    for backbone, neck, part in (
        (Gives(LEVELS, wrong), None, "backbone"),
        (Gives(LEVELS, maps()), Gives(LEVELS, wrong), "neck"),
    ):
        with pytest.raises(ConfigError, match=rf"^{part}: Gives\.forward\(\): got \{{'c2'"):
            VisionModel(backbone, neck, {}, {}).features(batch)


class Learns(nn.Module):
    """A backbone with a parameter, whose maps a test gives."""

    def __init__(self, call):
        super().__init__()
        self.levels, self.call = {"c2": LEVELS["c2"]}, call
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images, sizes=None):
        return {"c2": self.call(self, images)}


def features_of(call):
    batch = Batch(IMAGES.clone(), [{"size": (64, 96)}] * 2)
    return VisionModel(Learns(call), None, {}, {}).features(batch)


def test_maps_through_which_nothing_learns():
    found = maps()["c2"]
    assert features_of(lambda self, images: found * self.scale)["c2"].requires_grad
    with pytest.raises(ConfigError, match="expected maps with a gradient, so that 'scale' and"):
        features_of(lambda self, images: found * self.scale.detach())
    with torch.inference_mode():
        features_of(lambda self, images: found * self.scale)


def test_images_must_stay_as_they_are():
    with pytest.raises(
        ConfigError, match=r"backbone: Learns\.forward\(\) changes `images` in plac"
    ):
        features_of(lambda self, images: maps()["c2"] * self.scale + 0 * images.add_(1).sum())


CODE = """
from torch import nn
from visionkit import Level
class Flat(nn.Module):
    def __init__(self, levels=None):
        super().__init__()
        self.levels = None
        self.conv = nn.Conv2d(3, 4, 1)
    def forward(self, images, sizes=None): return {"c1": self.conv(images)}
class Raw(Flat):
    def __init__(self):
        super().__init__()
        self.levels = {"c1": Level(4, 1)}
class Unmasked(Raw):
    def forward(self, images, sizes=None): return {"c1": self.conv(images / 255)}
class Masked(Raw):
    def forward(self, images, sizes=None):
        images = images / 255
        for image, (h, w) in zip(images, sizes):
            image[:, h:], image[:, :, w:] = 0, 0
        return {"c1": self.conv(images)}
class Odd(nn.Module):
    def __init__(self): raise KeyError("gone")
    def forward(self, images, sizes=None): ...
"""


def config(**sections):
    data = {"train": {"type": "Shapes", "num_images": 4, "size": 32}, "image_size": 32}
    return {
        "task": "classification",
        "backbone": {"type": "TinyCNN", "channels": [4]},
        "data": {**data, "batch_size": 4, "workers": 0},
        "train": {"best_metric": None, "device": "cpu"},
        **sections,
    }


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "flat.py").write_text(CODE)


@pytest.mark.parametrize(
    ("section", "cls", "message"),
    [
        ("backbone", "Flat", "backbone: levels of Flat: got None; expected a dict with a Level"),
        ("neck", "Flat", "neck: levels of Flat: got None; expected a dict with a Level"),
        ("backbone", "Odd", "backbone: flat.Odd: its __init__ raised KeyError: 'gone'"),
    ],
)
def test_models_are_checked_when_they_are_built(section, cls, message):
    spec = config(**{section: {"type": f"flat.{cls}"}})
    with pytest.raises(ConfigError) as error:
        build_model(load_config(spec), {"classification": Classes.numbered(["a"])})
    assert str(error.value).startswith(message)
    assert any(found.message.startswith(message) for found in check(spec).findings)


def test_maps_that_depend_on_the_padding_are_a_warning_of_check():
    found = [f for f in check(config(backbone={"type": "flat.Unmasked"})).findings]
    (text,) = [one.message for one in found if one.kind == "contract"]
    assert "Unmasked.forward(): its maps depend on the pixels beyond `sizes`" in text
    assert [one.severity for one in found if one.kind == "contract"] == ["warning"]
    masked = check(config(backbone={"type": "flat.Masked"})).findings
    assert not [one for one in masked if one.kind == "contract"]


def test_an_exception_in_forward_is_named_by_check():
    found = [f for f in check(config(backbone={"type": "flat.Raw"})).findings if f.kind == "config"]
    (text,) = [one.message for one in found]
    assert text.startswith("backbone: ") and "RuntimeError" in text
