"""Models of timm of many families as backbones: sizes of images, maps, frozen stages, layers, and a
training step under a detector and a segmentation head."""

import pytest
import torch
from torch import nn

from support.backbones import pixels
from visionkit.config import TrainConfig, load_config
from visionkit.config.components import arguments_of
from visionkit.data.build import build_sources
from visionkit.engine.optim import Learner, build_optimizer
from visionkit.engine.setup import build_initial_model
from visionkit.engine.train import train_step
from visionkit.errors import ConfigError, DataError
from visionkit.models.backbones.layers import layers_of
from visionkit.models.backbones.timm import Timm
from visionkit.models.build import build_model
from visionkit.models.model import VisionModel
from visionkit.ops.layers import SkippingConv
from visionkit.types import Classes

timm = pytest.importorskip("timm")

# The smallest model of each family, with what its config needs
FAMILIES = {
    "vit_tiny_patch16_224": {"neck": "SimpleFPN"},
    "vit_small_patch14_dinov2": {"neck": "SimpleFPN"},
    "vit_small_patch16_dinov3": {"neck": "SimpleFPN"},
    "eva02_tiny_patch14_224": {"neck": "SimpleFPN"},
    "beit_base_patch16_224": {"neck": "SimpleFPN", "image_size": 96},
    "xcit_nano_12_p16_224": {"neck": "SimpleFPN"},
    "swin_tiny_patch4_window7_224": {},
    "swinv2_tiny_window8_256": {},
    "maxvit_nano_rw_256": {"image_size": 96},
    "coatnet_nano_rw_224": {"image_size": 96},
    "hiera_tiny_224": {"image_size": 96},
    "mvitv2_tiny": {"image_size": 96},
    "pvt_v2_b0": {},
    "efficientvit_b0": {},
    "mobilevit_xxs": {},
    "mambaout_femto": {},
    "convnext_atto": {},
    "regnetx_002": {},
    "mobilenetv4_conv_small": {},
    "hrnet_w18_small": {},
    "resnet10t": {},
    "repvit_m0_9": {},
    "fastvit_t8": {},
}
FAST = {  # models of timm that are made for tests
    "test_vit": {"neck": "SimpleFPN"},
    "test_maxvit": {"image_size": 96},
    "test_mambaout": {},
}


def config(name, side=96, neck="FPN", **backbone):
    data = {"type": "Shapes", "num_images": 4, "size": side}
    return {
        "backbone": {"type": "Timm", "name": name, **backbone},
        "neck": {"type": neck, "channels": 32, "extra_levels": "none"},
        "heads": {
            "objects": {"type": "TaskAligned"},
            "map": {"type": "SemanticFPN", "channels": 32},
        },
        "data": {
            "workers": 0,
            "main": {
                **{"feeds": ["objects", "map"], "batch_size": 2, "image_size": side},
                **{"train": data, "val": {**data, "seed": 1}},
            },
        },
        "train": {"steps": 1, "precision": "fp32"},
    }


def one_step(name, **settings):
    """Losses of a step, and the parameters without a gradient."""
    loaded = load_config(config(name, **settings))
    sources = build_sources(loaded, ("train", "val"), {})
    device = torch.device("cpu")
    model, _ = build_initial_model(loaded, sources, {}, None, device=device)
    learner = Learner(model, loaded.train, 1, torch.float32)
    stream = sources[0].train_batches(seed=0, start=0, workers=0)
    batch = next(stream)
    stream.close()
    before = [p.detach().clone() for p in learner.parameters]
    result = train_step(learner, [(["objects", "map"], batch)], 0)
    unreached = [name for name, p in model.named_parameters() if p.grad is None]
    learner.update(result.norm, 0)
    assert all(p.isfinite().all() for p in learner.parameters)
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))
    model.eval()
    found, _ = model.infer(batch, ["objects", "map"], torch.float32)
    assert [one["semantic"].shape for one in found["map"]] == [
        t["orig_size"] for t in batch.targets
    ]
    return result.losses, unreached


def check(name, settings):
    losses, unreached = one_step(name, **settings)
    assert all(value.isfinite() for value in losses.values()) and losses["total"] > 0
    assert not [key for key in unreached if not key.startswith("backbone.body.model.norm")]


@pytest.mark.parametrize("name", FAST)
def test_a_training_step_of_three_families(name):
    check(name, FAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_of_every_family(name):
    check(name, FAMILIES[name])


def test_thin_convolutions_with_a_stride_train_in_channels_last_order():
    """Those of FastViT's stem end the process as torch computes their gradient."""
    with torch.device("meta"):
        body = Timm(name="fastvit_t8").body
    thin = [m for m in body.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    assert {type(m) for m in thin if m.kernel_size == (1, 1)} == {SkippingConv}
    assert {type(m) for m in thin if m.kernel_size == (3, 3)} == {nn.Conv2d}

    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 30)
    usual = nn.Conv2d(3, 8, 1, stride=2)
    skipping = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2))
    skipping.load_state_dict({f"0.{key}": value for key, value in usual.state_dict().items()})
    SkippingConv.replace_in(skipping)
    skipping = skipping.to(memory_format=torch.channels_last)
    expected = usual(images)
    got = skipping(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(got, expected, atol=1e-6)
    expected.square().sum().backward()
    got.square().sum().backward()
    assert torch.allclose(skipping[0].weight.grad, usual.weight.grad, rtol=1e-4)


# --- sizes of images ---


@pytest.mark.parametrize(
    "name, levels",
    [
        ("test_vit", {"c4": (64, 16)}),
        ("eva02_tiny_patch14_224", {"s14": (192, 14)}),
        ("test_mambaout", {"c2": (16, 4), "c3": (32, 8), "c4": (48, 16), "c5": (64, 32)}),
    ],
)
def test_images_of_several_sizes_in_one_run(name, levels):
    """Patches that divide no side, and maps with the channels last in timm."""
    torch.manual_seed(0)
    backbone = Timm(name=name).eval()
    assert backbone.levels == levels
    for height, width in ((64, 96), (160, 32), (50, 70)):
        images = pixels(2, 3, height, width)
        with torch.no_grad():
            got = backbone(images, [(height, width), (30, 20)])
        for level, x in got.items():
            channels, stride = levels[level]
            assert x.shape == (2, channels, -(-height // stride), -(-width // stride))


def test_padding_to_patches_is_black_and_cut_off():
    torch.manual_seed(0)
    backbone = Timm(name="eva02_tiny_patch14_224").eval()
    images = pixels(1, 3, 32, 64)
    wide = torch.full((1, 3, 42, 70), 99, dtype=torch.uint8)
    wide[..., :32, :64] = images
    with torch.no_grad():
        got = backbone(images)["s14"]
        assert torch.equal(got, backbone(wide, [(32, 64)])["s14"])
        pixels_ = backbone.normalize(wide, [(32, 64)], like=backbone.body)
        assert torch.equal(got, backbone.body(pixels_)[-1])


def test_maps_with_the_channels_last_are_turned():
    torch.manual_seed(0)
    backbone = Timm(name="test_mambaout").eval()
    images = pixels(1, 3, 64, 64)
    with torch.no_grad():
        raw = backbone.body(backbone.normalize(images, None, like=backbone.body))
        got = [*backbone(images).values()]
    for mine, theirs in zip(got, raw, strict=True):
        assert torch.equal(mine, theirs.permute(0, 3, 1, 2))


def test_windows_that_do_not_fit_are_padded():
    """MaxViT divides its maps into windows of 3 cells at 96 pixels, so it takes multiples of 96."""
    backbone = Timm(name="test_maxvit", image_size=96).eval()
    with torch.no_grad():
        got = backbone(pixels(1, 3, 64, 128))
    assert [tuple(x.shape[2:]) for x in got.values()] == [(16, 32), (8, 16), (4, 8), (2, 4)]


def test_a_model_of_one_size_takes_smaller_images_and_refuses_larger_ones():
    backbone = Timm(name="test_coatnet", image_size=96).eval()
    with torch.no_grad():
        got = backbone(pixels(2, 3, 64, 96), [(60, 90), (50, 96)])
        assert [tuple(x.shape[2:]) for x in got.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert backbone(pixels(1, 3, 128, 96), [(96, 96)])["c5"].shape[2:] == (3, 3)
        with pytest.raises(DataError, match=r"97x64 .*test_coatnet takes at most 96x96; set back"):
            backbone(pixels(1, 3, 128, 96), [(97, 64)])


def test_what_cannot_work_is_refused_with_the_config():
    def error(**backbone):
        with pytest.raises(ConfigError) as caught:
            load_config(config(backbone.pop("name"), side=256, **backbone))
        return str(caught.value)

    told = error(name="test_coatnet")
    assert told == (
        "config: data.main.image_size: got 256, but test_coatnet takes images of at most 160x160 "
        "pixels; set it to 160, or build the backbone for larger ones (backbone.image_size=256)"
    )
    assert "backbone.name: timm has no model 'test_coatnett'; nearest" in error(
        name="test_coatnett"
    )
    assert (
        "backbone.image_size: got 64, but timm's 'test_efficientnet' is not built for one size"
        in error(name="test_efficientnet", image_size=64)
    )
    assert load_config(config("test_coatnet", side=256, image_size=256))


def test_the_state_of_random_numbers_is_as_before():
    torch.manual_seed(3)
    wanted = torch.rand(())
    torch.manual_seed(3)
    Timm.largest_side(name="test_efficientnet")
    assert torch.rand(()) == wanted


# --- weights of transformers ---


def test_weights_of_a_transformer_load_by_timms_names(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", dynamic_img_size=True).eval()
    path = tmp_path / "vit.pth"
    torch.save(model.state_dict(), path)
    backbone = Timm(name="test_vit", weights=str(path)).eval()
    images = pixels(1, 3, 64, 96)
    with torch.no_grad():
        got = backbone(images)["c4"]
        x = backbone.normalize(images, None, like=backbone.body)
        want = model.forward_intermediates(x, indices=1, intermediates_only=True, norm=False)[0]
    torch.testing.assert_close(got, want)


def test_weights_are_resized_to_another_size_as_by_timm(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "v.pth"
    torch.save(timm.create_model("test_vit").state_dict(), path)
    backbone = Timm(name="test_vit", weights=str(path), image_size=96)
    assert backbone.body.model.pos_embed.shape == (1, 37, 64)


# --- frozen stages, and layers by depth ---


@pytest.mark.parametrize(
    "name, freeze_at, trains_from",
    [
        ("test_vit", 1, "model.blocks.0."),
        ("test_vit", 5, "model.blocks.4."),
        ("test_resnet", 2, "layer2."),
        ("test_efficientnet", 3, "blocks.2."),
    ],
)
def test_leading_stages_do_not_train(name, freeze_at, trains_from):
    backbone = Timm(name=name, freeze_at=freeze_at).train()
    parameters = [*backbone.body.named_parameters()]
    first = next(n for n, (name, _) in enumerate(parameters) if name.startswith(trains_from))
    assert [p.requires_grad for _, p in parameters] == [n >= first for n in range(len(parameters))]
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(pixels(2, 3, 64, 64))
    frozen = {
        key.rpartition(".")[0] for key, p in backbone.named_parameters() if not p.requires_grad
    }
    for key, value in backbone.state_dict().items():
        if key.rpartition(".")[0] in frozen:
            assert torch.equal(value, before[key]), key  # statistics too
    for module in backbone.modules():
        parameters = [*module.parameters()]
        if parameters and not any(p.requires_grad for p in parameters):
            assert not any(child.training for child in module.modules())
    with pytest.raises(ConfigError, match="freeze_at: got 99; this backbone has"):
        Timm(name=name, freeze_at=99)


@pytest.mark.parametrize(
    "name, count, last",
    [
        ("test_vit", 7, "body.model.blocks.5.mlp.fc2.bias"),
        ("test_resnet", 5, "body.layer4.0.downsample.2.bias"),
        ("test_mambaout", 7, "body.stages_3.blocks.0.ls.gamma"),
    ],
)
def test_layers_are_those_of_timm(name, count, last):
    backbone = Timm(name=name)
    layers = layers_of(backbone)
    assert sorted(n for layer in layers for n in layer) == sorted(
        n for n, _ in backbone.named_parameters()
    )
    assert last in layers[-1]
    assert len(layers) == count


def test_every_backbone_with_parts_can_freeze_them():
    for name in ("Timm", "Torchvision", "EfficientNetLite0", "LightResNet", "TinyCNN"):
        assert "freeze_at" in arguments_of("backbones", name), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "test_mambaout"])
def test_it_exports(name):
    loaded = load_config(config(name, **FAST[name]))
    classes = Classes.numbered(("background", "thing"))
    model = build_model(loaded, {"objects": classes, "map": classes}).eval()
    images = pixels(1, 3, 96, 96)

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = model.backbone

        def forward(self, images, sizes):
            return self.backbone(images, sizes)

    sizes = torch.tensor([[96, 90]])
    with torch.no_grad():
        exported = torch.export.export(Graph(), (images, sizes)).module()(images, sizes)
        want = model.backbone(images, [(96, 90)])
    for key, value in want.items():
        torch.testing.assert_close(exported[key], value, rtol=1e-4, atol=1e-4)


# --- weight decay ---


def undecayed(name):
    """The parameters of a backbone that the optimizer does not decay."""
    with torch.device("meta"):
        model = VisionModel(Timm(name=name), None, {}, {})
    optimizer = build_optimizer(model, TrainConfig(optimizer="adamw", weight_decay=0.1))
    spared = [g for g in optimizer.param_groups if g["weight_decay"] == 0]
    return {key.removeprefix("backbone.body.") for g in spared for key in g["param_names"]}


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_what_timm_does_not_decay_is_not_decayed(name):
    optim = pytest.importorskip("timm.optim")
    with torch.device("meta"):
        theirs, body = timm.create_model(name), Timm(name=name).body
    listed = theirs.no_weight_decay()
    spared, _ = optim.param_groups_weight_decay(theirs, 0.1, no_weight_decay_list=listed)
    names = {id(parameter): key for key, parameter in theirs.named_parameters()}
    expected = {names[id(parameter)] for parameter in spared["params"]}
    own = {
        key: key.removeprefix("model.").replace("layers_", "layers.")
        for key, _ in body.named_parameters()
    }
    assert undecayed(name) == {key for key, in_file in own.items() if in_file in expected}
    assert any("pos" in key or "relative" in key for key in undecayed(name))


def test_factors_of_channels_are_not_decayed_and_all_weights_are():
    spared = undecayed("fastvit_t8")
    assert "stages_0.blocks.0.token_mixer.layer_scale.gamma" in spared  # (48, 1, 1)
    with torch.device("meta"):
        named = dict(Timm(name="fastvit_t8").body.named_parameters())
    assert not [key for key in spared if key.endswith("weight") and named[key].ndim > 1]
