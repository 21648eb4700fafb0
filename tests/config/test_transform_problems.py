"""What a list of transforms cannot be is said with its line before anything is built."""

import pytest

from visionkit.config.load import load_config
from visionkit.errors import ConfigError

TEXT = """\
task: detection
backbone: {type: TinyCNN}
data:
  train: {type: Shapes}
  val: {type: Shapes}
  image_size: 64
  transforms:
    - {type: HorizontalFlip}
    - %s
    - %s
train: {steps: 1}
"""
LAST = "{type: HorizontalFlip}"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems(tmp_path, first, second=LAST):
    (tmp_path / "c.yaml").write_text(TEXT % (first, second))
    with pytest.raises(ConfigError) as caught:
        load_config("c.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{type: Affine, degrees: 200}", "1.degrees: got 200; expected a number >= 0 and <= 180"),
        ("{type: Affine, scale: [2, 1]}", "1: scale: got [2.0, 1.0]; expected [low, high]"),
        ("{type: Affine, shear: 80}", "1.shear: got 80; expected a number >= 0 and <= 45"),
        ("{type: Affine, fill: 256}", "1.fill: got 256; expected an integer >= 0 and <= 255"),
        ("{type: Perspective, distortion: 1}", "1.distortion: got 1; expected a number >= 0"),
        ("{type: Jpeg, quality: [90, 30]}", "1: quality: got [90, 30]; expected [low, high]"),
        ("{type: Jpeg, quality: [0, 30]}", "1.quality: got [0, 30]; expected a list of 2"),
        ("{type: Noise, std: [3, 1]}", "1: std: got [3.0, 1.0]; expected [low, high]"),
        ("{type: GaussianBlur, sigma: [0, 1]}", "1.sigma: got [0, 1]; expected a list of 2"),
        ("{type: RandomErasing, value: white}", "1.value: got 'white'; expected"),
        ("{type: RandomErasing, scale: [0.5, 0.1]}", "1: scale: got [0.5, 0.1]"),
        ("{type: RandAugment, magnitude: 31}", "1: magnitude: got 31; expected at most bins - 1"),
        ("{type: ColorJitter, hue: [0.2, 0.1]}", "1: hue: got [0.2, 0.1]; expected [low, high]"),
        ("{type: ColorJitter, hue: 0.6}", "1.hue: got 0.6; expected a number >= 0 and <= 0.5"),
        ("{type: ScaleJitter, low: 2, high: 1}", "1: low must be at most high"),
    ],
)
def test_arguments_out_of_range_have_their_line(tmp_path, spec, message):
    assert f"c.yaml:9: data.transforms.{message}" in problems(tmp_path, spec)


@pytest.mark.parametrize("second", ["ScaleJitter", "RandomResizedCrop", "Letterbox"])
def test_nothing_resizes_after_letterbox(tmp_path, second):
    found = problems(tmp_path, "{type: Letterbox}", f"{{type: {second}}}")
    assert f"c.yaml:10: data.transforms.2: {second} resizes what Letterbox (1) made" in found


def test_other_orders_are_fine(tmp_path):
    for first, second in (("RandomCrop", "Letterbox"), ("Letterbox", "Affine")):
        text = TEXT % (f"{{type: {first}}}", f"{{type: {second}}}")
        (tmp_path / "c.yaml").write_text(text)
        config = load_config("c.yaml")
        assert [t["type"] for t in config.data["main"].transforms][1:] == [first, second]
