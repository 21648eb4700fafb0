"""The two backbones that are meant for reading: the perceptron and the tiny CNN."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import visionkit
from support.backbones import pixels
from support.losses import losses_of
from support.paths import ROOT
from visionkit.config.components import components
from visionkit.errors import ConfigError, DataError
from visionkit.models.backbones.plain import ACTIVATIONS, MLP, TinyCNN
from visionkit.models.heads.classification import Classification
from visionkit.models.model import VisionModel
from visionkit.models.necks.fpn import FPN
from visionkit.types import Batch, Level

CONFIG = ROOT / "configs" / "mlp_mnist.yaml"
SHAPES_OF_ACTIVATIONS = {
    "relu": lambda x: max(0.0, x),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "none": lambda x: x,
}


def classified(backbone, *, size=28, count=4, classes=3):
    """A classifier on that backbone, and a batch of images of that side padded to 32."""
    head = Classification(backbone.levels, [f"k{i}" for i in range(classes)])
    targets = [{"size": (size, size), "class_id": torch.tensor(i % classes)} for i in range(count)]
    batch = Batch(pixels(count, 3, 32, 32), targets)
    return VisionModel(backbone, None, {"head": head}, {"head": 1.0}), batch


def loss_of(model, batch):
    return losses_of(model.heads["head"], model.features(batch), batch)["classification"]


def probs_of(model, batch):
    found = model.predictions(model.features(batch), batch, ["head"])["head"]
    return torch.stack([prediction["probs"] for prediction in found])


# --- what both promise ---


def test_both_are_found_by_name():
    found = components("backbones")
    assert found["MLP"] is MLP and found["TinyCNN"] is TinyCNN


@pytest.fixture(params=[MLP, TinyCNN], ids=["mlp", "tiny"])
def plain(request):
    return request.param()


def test_levels_tell_channels_and_strides(plain):
    features = plain(pixels(2, 3, 32, 32), [(28, 28)] * 2)
    assert list(features) == list(plain.levels)
    for name, x in features.items():
        channels, stride = plain.levels[name]
        assert x.shape[:2] == (2, channels)
        assert x.shape[-1] in (math.ceil(28 / stride), math.ceil(32 / stride))


def test_what_lies_in_the_padding_has_no_effect(plain):
    plain.eval()
    images = pixels(1, 3, 32, 32)
    other = images.clone()
    other[..., 28:], other[..., 28:, :] = 7, 9
    a, b = (plain(x, [(28, 28)]) for x in (images, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_pixels_are_left_alone_and_every_parameter_trains(plain):
    model, batch = classified(plain)
    before = batch.images.clone()
    loss_of(model, batch).backward()
    assert torch.equal(batch.images, before)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_bfloat16_and_channels_last(plain):
    model, batch = classified(plain)
    with torch.no_grad():
        want = probs_of(model.eval(), batch)
        got = probs_of(model.to(memory_format=torch.channels_last), batch)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.parametrize(
    "backbone",
    [
        MLP,
        lambda: MLP(hidden=(64, 32), dropout=0.0, activation="tanh", gray=False),
        TinyCNN,
        lambda: TinyCNN(norm="batch", pool="avg", activation="silu"),
        lambda: TinyCNN(norm="group", activation="leaky_relu"),
    ],
    ids=["mlp", "mlp-deep", "tiny", "tiny-batch", "tiny-group"],
)
def test_it_learns_to_tell_lying_bars_from_standing_ones(backbone):
    model, batch = classified(backbone(), count=24, classes=2)
    batch.images //= 2
    for image, target in zip(batch.images, batch.targets, strict=True):
        bars = image if target["class_id"] else image.mT
        bars[:, :, 4:24:8] = 255
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    start = loss_of(model, batch).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    assert loss.item() < 0.3 * start
    truth = torch.stack([target["class_id"] for target in batch.targets])
    with torch.no_grad():
        assert (probs_of(model.eval(), batch).argmax(1) == truth).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_the_function_of_its_name(name):
    x = torch.linspace(-3, 3, 13)
    want = [SHAPES_OF_ACTIVATIONS[name](float(value)) for value in x]
    torch.testing.assert_close(ACTIVATIONS[name]()(x), torch.tensor(want))
    mlp = MLP(size=2, hidden=(3,), activation=name)
    assert type(mlp.layers[1]) is type(TinyCNN(activation=name).stages[0][2]) is ACTIVATIONS[name]


# --- the perceptron ---


def test_gray_takes_the_mean_of_the_colors_scaled_to_minus_one_to_one():
    mlp = MLP(size=2, hidden=())
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, :, 0, 1] = torch.tensor([255, 255, 255])
    image[0, :, 1, 0] = torch.tensor([255, 0, 0])
    got = mlp(image)["flat"].flatten()
    torch.testing.assert_close(got, torch.tensor([-1.0, 1.0, -1 / 3, -1.0]))


def test_colors_are_normalized_each_by_its_own():
    mlp = MLP(size=1, hidden=(), gray=False, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    got = mlp(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))["flat"]
    torch.testing.assert_close(got.flatten(), torch.tensor([1.0, 1.0, 0.0]))
    assert mlp.levels == {"flat": Level(3, 1)}


def test_it_is_dense_layers_and_a_linear_softmax_classifier():
    model, batch = classified(MLP(hidden=(7, 5), activation="sigmoid"))
    model.eval()
    x = (batch.images[:, :, :28, :28].double() / 255 * 2 - 1).mean(1).flatten(1)
    first, second = model.backbone.layers[0], model.backbone.layers[3]
    for layer in (first, second):
        x = torch.sigmoid(x @ layer.weight.double().T + layer.bias.double())
    linear = model.heads["head"].linear
    logits = x @ linear.weight.double().T + linear.bias.double()
    torch.testing.assert_close(
        probs_of(model, batch).double(), logits.softmax(1), atol=1e-5, rtol=0
    )


def test_number_of_parameters():
    def count(mlp):
        return sum(p.numel() for p in mlp.parameters())

    assert count(MLP()) == 784 * 512 + 512
    assert count(MLP(hidden=(256, 10), gray=False)) == 3 * 784 * 256 + 256 + 256 * 10 + 10
    assert count(MLP(hidden=())) == 0 and MLP(hidden=()).levels["flat"].channels == 784


def test_dropout_drops_its_share_in_training_only():
    mlp = MLP(hidden=(4000,), dropout=0.25, activation="none")
    image = pixels(1, 3, 28, 28)
    whole = mlp.eval()(image)["flat"]
    assert whole.all()
    dropped = mlp.train()(image)["flat"]
    assert 0.22 < float((dropped == 0).float().mean()) < 0.28
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)


@pytest.mark.parametrize("sizes", [[(28, 28), (28, 27)], [(32, 32)] * 2, None])
def test_images_of_another_size_are_an_error_with_a_remedy(sizes):
    with pytest.raises(DataError, match=r"data\.image_size=28"):
        MLP()(pixels(2, 3, 32, 32), sizes)


# --- the tiny CNN ---


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_a_stage_is_convolution_norm_activation_pooling(norm, pool):
    cnn = TinyCNN(channels=(6, 8), norm=norm, pool=pool, activation="tanh", kernel=5)
    images = pixels(3, 3, 16, 20)
    features = cnn(images)
    x = cnn.normalize(images, None, like=cnn)
    for (conv, own_norm, _, _), got in zip(cnn.stages, features.values(), strict=True):
        x = F.conv2d(x, conv.weight, conv.bias, padding=2)
        if norm == "batch":
            x = F.batch_norm(x, None, None, own_norm.weight, own_norm.bias, training=True)
        if norm == "group":
            x = F.group_norm(x, own_norm.num_groups, own_norm.weight, own_norm.bias)
        x = (F.max_pool2d if pool == "max" else F.avg_pool2d)(x.tanh(), 2)
        torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-5)
    assert [tuple(x.shape[1:]) for x in features.values()] == [(6, 8, 10), (8, 4, 5)]


def test_as_many_levels_as_stages():
    assert TinyCNN().levels == {"c1": Level(16, 2), "c2": Level(32, 4), "c3": Level(64, 8)}
    assert TinyCNN(channels=(5,)).levels == {"c1": Level(5, 2)}
    with pytest.raises(ConfigError, match="at least one stage"):
        TinyCNN(channels=())


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_sides_are_rounded_up_and_an_edge_counts_what_is_there(pool):
    cnn = TinyCNN(channels=(1,), kernel=1, pool=pool, activation="none", mean=(0.0,) * 3)
    with torch.no_grad():
        cnn.stages[0][0].weight.zero_()
        cnn.stages[0][0].bias.fill_(2.0)
    assert torch.equal(cnn(pixels(1, 3, 7, 5))["c1"], torch.full((1, 1, 4, 3), 2.0))


def test_the_mean_beyond_a_images_edge_is_zero():
    cnn = TinyCNN()
    x = cnn.normalize(pixels(1, 3, 32, 32), [(20, 28)], like=cnn)
    assert x[..., :20, :28].any() and not x[..., 20:, :].any() and not x[..., 28:].any()


def test_a_pyramid_stands_on_it():
    cnn = TinyCNN(channels=(8, 16, 16))
    neck = FPN(cnn.levels, channels=8, extra_levels="none")
    maps = neck(cnn(pixels(1, 3, 64, 64)))
    assert {name: x.shape[-1] for name, x in maps.items()} == {"p1": 32, "p2": 16, "p3": 8}


# --- the shipped config ---


def short(tmp_path, **settings):
    given = {"train.steps": 3, "data.train.num_images": 12, "data.val.num_images": 6}
    given |= {"data.batch_size": 6, "data.workers": 0, "train.plots": False}
    return visionkit.train(CONFIG, given | {"output": str(tmp_path / "run")} | settings)


@pytest.mark.parametrize("backbone", ["MLP", "TinyCNN"])
def test_the_shipped_config_trains_either(tmp_path, backbone):
    run = short(tmp_path, **{"backbone.type": backbone})
    assert 0 <= run.metrics["classification/top1"] <= 1


def test_a_wrong_image_size_is_told(tmp_path):
    with pytest.raises(DataError, match=r"32x32.*data\.image_size=28"):
        short(tmp_path, **{"data.image_size": 32})
