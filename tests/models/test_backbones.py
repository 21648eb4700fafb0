"""Every backbone found in the package: its levels, its pixels, and the maps that one may choose."""

import pytest
import torch
from torchvision import models
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from support.backbones import assert_equal_but_for_rounding, pixels, randomize_norms
from visionkit.config.components import components
from visionkit.config.schema import convert, expected, mismatch, signature_arguments
from visionkit.errors import ConfigError
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD
from visionkit.models.backbones.torchvision import FAMILIES, Torchvision
from visionkit.models.backbones.torchvision import NAMES as ALL

NAMES = [  # one of each family
    "resnet18",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "densenet121",
    "vgg11_bn",
]
ROUNDED_DOWN = ("convnext_tiny", "densenet121")
STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}


# --- every backbone of the package ---

ARGUMENTS = {"Timm": {"name": "resnet18"}}  # that a class requires


@pytest.mark.parametrize("type_name", components("backbones"))
def test_a_backbone_keeps_the_contract(type_name):
    if type_name == "Timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    cls, arguments = components("backbones")[type_name], ARGUMENTS.get(type_name, {})
    backbone = cls(**arguments).train()
    side = getattr(backbone, "size", 64)  # the only one that an MLP takes
    images = pixels(4, 3, side, side)
    features = backbone(images)
    assert list(features) == list(backbone.levels)
    strides = [level.stride for level in backbone.levels.values()]
    assert strides == sorted(strides)
    for name, x in features.items():
        assert x.shape[:2] == (4, backbone.levels[name].channels)
        assert x.shape[2] == x.shape[3] == -(-side // backbone.levels[name].stride)
    sum(x.square().mean() for x in features.values()).backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]

    backbone.eval()
    again = cls(**arguments).eval()
    again.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        want, got = backbone(images), again(images)
        assert all(torch.equal(want[name], got[name]) for name in want)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(x.isfinite().all() for x in backbone(images).values())


# --- every family of torchvision ---


def test_all_families_are_found():
    families = {name for name in ALL if any(name.startswith(f) for f in FAMILIES)}
    assert families == set(ALL) and {*NAMES} <= families
    assert {f for f in FAMILIES if any(name.startswith(f) for name in NAMES)} == set(FAMILIES)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(name):
    torch.manual_seed(0)
    return Torchvision(name=name)


@pytest.mark.parametrize("height, width", [(64, 96), (99, 135)])
def test_levels_tell_channels_and_strides(name, backbone, height, width):
    backbone.eval()
    with torch.no_grad():
        features = backbone(pixels(2, 3, height, width))
    last = "c4" if name == "squeezenet1_1" else "c5"
    assert list(features) == list(backbone.levels) == [n for n in STRIDES if n <= last]
    for level, x in features.items():
        channels, stride = backbone.levels[level]
        assert stride == STRIDES[level]
        assert x.shape[:2] == (2, channels)
        full = [-(-height // stride), -(-width // stride)]
        most = 2 if name == "squeezenet1_1" else int(name in ROUNDED_DOWN)
        assert all(0 <= f - side <= most for f, side in zip(full, x.shape[2:], strict=True))


def test_every_parameter_gets_a_gradient_and_reaches_the_last_level(backbone):
    backbone.train()
    backbone.zero_grad(set_to_none=True)
    features = backbone(pixels(2, 3, 64, 64), [(64, 50), (40, 64)])
    sum(x.square().mean() for x in features.values()).backward()
    parameters = dict(backbone.named_parameters())
    assert not [name for name, p in parameters.items() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in parameters.values())
    assert next(iter(parameters.values())).grad.abs().sum() > 0
    backbone.zero_grad(set_to_none=True)


def test_a_vgg_starts_as_torchvisions():
    """It is built without its dense layers. The spread of a convolution's weights, biases of 0."""
    ours = Torchvision(name="vgg11_bn").body.state_dict()
    theirs = models.vgg11_bn().features.state_dict()
    assert ours.keys() == {key for key in theirs if key in ours} and len(ours) > 50
    for key, value in ours.items():
        if value.ndim == 4:
            assert float(value.std() / theirs[key].std()) == pytest.approx(1, abs=0.1), key
        else:
            assert torch.equal(value, theirs[key]), key


def test_parameter_names_and_count_are_those_of_torchvision(name, backbone):
    """All of the classifier but its last part, under `body`."""
    state = models.get_model(name).state_dict()
    theirs = {key.removeprefix("features."): value.shape for key, value in state.items()}
    theirs = {k: s for k, s in theirs.items() if not k.startswith(("fc.", "classifier."))}
    assert {k.removeprefix("body."): v.shape for k, v in backbone.state_dict().items()} == theirs


def test_an_unknown_name_gets_the_nearest_and_the_list():
    annotation = signature_arguments(Torchvision)["name"].annotation
    with pytest.raises(ValueError):
        convert("resnt50", annotation)
    for text in (mismatch("resnt50", annotation), error_of(name="resnt50")):
        assert "got 'resnt50'; did you mean 'resnet50'? valid: convnext_base, " in text
        assert text.endswith("wide_resnet50_2")
    assert "alexnet" not in expected(annotation)  # its maps have no strides of powers of two


def error_of(**arguments):
    with pytest.raises(ConfigError) as caught:
        Torchvision(**arguments)
    return str(caught.value)


# --- normalization of the pixels ---


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixels_are_normalized_as_by_torchvision_and_padding_is_zero(layout):
    backbone = Torchvision(name="resnet18").to(memory_format=layout)
    images = pixels(2, 3, 20, 30)
    before = images.clone()
    sizes = [(20, 17), (11, 30)]
    got = backbone.normalize(images, sizes, like=backbone.body)
    reference = GeneralizedRCNNTransform(1, 1, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert got.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)
    for x, image, (h, w) in zip(got, images, sizes, strict=True):
        want = reference.normalize(image.float() / 255)
        torch.testing.assert_close(x[:, :h, :w], want[:, :h, :w], rtol=0, atol=2e-6)
        assert not x[:, h:].any() and not x[:, :, w:].any()


def test_what_lies_in_the_padding_has_no_effect():
    backbone = Torchvision(name="mobilenet_v3_small").eval()
    images = pixels(1, 3, 64, 64)
    other = images.clone()
    other[:, :, :, 40:] = 7
    with torch.no_grad():
        a, b = backbone(images, [(64, 40)]), backbone(other, [(64, 40)])
        assert not torch.equal(backbone(images)["c5"], backbone(other)["c5"])
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_mean_and_std_are_arguments():
    backbone = Torchvision(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    got = backbone.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), None, backbone.body)
    torch.testing.assert_close(got[0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))
    with pytest.raises(ConfigError, match="std"):
        Torchvision(std=(0.0, 1.0, 1.0))


def test_channels_last_gives_the_same_features():
    backbone = Torchvision(name="resnet18").eval()
    images = pixels(2, 3, 64, 64)
    with torch.no_grad():
        want = backbone(images)
        got = backbone.to(memory_format=torch.channels_last)(images)
    assert got["c4"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


# --- levels by choice ---


def test_out_indices_give_these_features_and_drop_the_rest():
    backbone = Torchvision(name="mobilenet_v3_large", out_indices=[13, 6])
    assert list(backbone.levels) == ["f6", "f13"]
    assert backbone.levels["f6"] == (40, 8) and backbone.levels["f13"] == (160, 32)
    assert len(backbone.body) == 14
    assert backbone(pixels(2, 3, 64, 64))["f13"].shape == (2, 160, 2, 2)


@pytest.mark.parametrize("out_indices", [[], [17], [-1]])
def test_impossible_out_indices_are_an_error(out_indices):
    with pytest.raises(ConfigError, match="out_indices"):
        Torchvision(name="mobilenet_v3_large", out_indices=out_indices)


def test_a_chosen_map_is_not_overwritten_by_the_next_module():
    backbone = Torchvision(name="vgg11", out_indices=[0, 1]).eval()
    features = backbone(pixels(1, 3, 32, 32))
    assert (features["f0"] < 0).any()
    assert torch.equal(features["f0"].relu(), features["f1"])


def test_out_indices_count_the_layers_of_a_resnet():
    backbone = Torchvision(name="resnet18", out_indices=[7, 4])
    assert backbone.levels == {"f4": (64, 4), "f7": (512, 32)}
    assert {n: x.shape[-1] for n, x in backbone(pixels(2, 3, 64, 64)).items()} == {
        "f4": 16,
        "f7": 2,
    }


def test_small_stem_for_tiny_images():
    with pytest.raises(ConfigError, match="stem"):
        Torchvision(name="vgg11", stem="small")
    backbone = Torchvision(stem="small").eval()
    features = backbone(pixels(2, 3, 28, 28))
    assert {name: level.stride for name, level in backbone.levels.items()} == {
        "c0": 1,
        "c1": 2,
        "c2": 4,
        "c3": 8,
    }
    assert [x.shape[-1] for x in features.values()] == [28, 14, 7, 4]


def test_a_resnet_vd_is_timms_resnet_d(tmp_path):
    """Stem, shortcuts and names of parameters: a classifier of timm loads."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = randomize_norms(timm.create_model("resnet50d", num_classes=3)).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = Torchvision(name="resnet50", vd=True, weights=str(tmp_path / "w.pth")).eval()
    images = pixels(1, 3, 64, 96)
    with torch.no_grad():
        found = ours(images)["c5"]
        expected = theirs.forward_features(ours.normalize(images, None, like=ours.body))
    assert_equal_but_for_rounding(found, expected)


@pytest.mark.parametrize(
    "arguments", [{"name": "vgg16"}, {"stem": "small"}, {"name": "resnet50", "dilated": True}]
)
def test_only_a_usual_resnet_has_a_variant_vd(arguments):
    with pytest.raises(ConfigError, match=r"vd: got true for"):
        Torchvision(vd=True, **arguments)
    with pytest.raises(ConfigError, match=r"no weights are published as 'resnet18vd'"):
        Torchvision(vd=True, weights="default")
