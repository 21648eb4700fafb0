"""`train.unfreeze_after` and `train.layer_decay`: what trains at which step and how fast."""

import pytest
import torch
from torch import nn

from support.runs import STEPS, equal, outcome, spec, train, train_until
from visionkit.config import TrainConfig
from visionkit.engine.optim import Learner, build_optimizer, first_steps, layer_scales, set_lr
from visionkit.errors import ConfigError
from visionkit.models.backbones.layers import layers_of
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.model import VisionModel


def model():
    body = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    return VisionModel(body, None, {}, {})


def learner(net, **settings):
    config = TrainConfig(unfreeze_after={"^backbone": 2}, ema=0.5, lr=0.1, **settings)
    return Learner(net, config, 10, torch.float32, steps_per_epoch=2)


def state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def step(learner, number):
    learner.unfreeze(number)
    learner.set_lr(number)
    learner.optimizer.zero_grad(set_to_none=True)
    net = learner.model
    (net.scale * net.backbone(torch.rand(2, 3, 4, 4))).square().mean().backward()
    learner.update(torch.ones(()), number)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_nothing_of_it_changes_before_its_epochs_are_over(optimizer):
    torch.manual_seed(0)
    net = model()
    net.scale = nn.Parameter(torch.ones(()))
    trained = learner(net, optimizer=optimizer)
    start = state(net)
    for number in range(4):
        step(trained, number)
    changed = {name for name, tensor in state(net).items() if not torch.equal(tensor, start[name])}
    assert changed == {"scale"}  # no statistics, no decay
    assert not trained.statistics and trained.parameters == [net.scale]
    for name, tensor in trained.ema.model.state_dict().items():
        assert name == "scale" or torch.equal(tensor, start[name])
    step(trained, 4)
    now = state(net)
    assert not [name for name, tensor in now.items() if torch.equal(tensor, start[name])]
    assert len(trained.statistics) == 2 and len(trained.parameters) == 6


def test_it_is_a_function_of_the_step():
    net = model()
    net.scale = nn.Parameter(torch.ones(()))
    trained = learner(net)
    for number, trains in ((7, True), (3, False), (4, True), (0, False)):
        trained.unfreeze(number)
        assert all(p.requires_grad == trains for p in net.backbone.parameters())
        assert net.backbone[1].training == trains


def test_the_latest_of_several_counts_and_mistakes_are_told():
    net = model()
    starts = first_steps(net, {"backbone": 1, r"backbone\.0": 2.5}, 10, 100)
    names = {name: starts[parameter] for name, parameter in net.named_parameters()}
    assert names.pop("backbone.0.weight") == 25 and {*names.values()} == {10}
    with pytest.raises(ConfigError, match="'backbone': got 10 epochs of 10 steps; the run ends"):
        first_steps(net, {"backbone": 10}, 10, 100)
    with pytest.raises(ConfigError, match="leaves no parameter to train at first"):
        learner(net)
    net.backbone.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"never trains, as train\.freeze or backbone\.freeze_at"):
        first_steps(net, {"backbone": 1}, 10, 100)


@pytest.mark.parametrize("stop_after", [2, 4])
def test_a_run_that_is_cut_off_before_or_after_it_goes_on_bit_for_bit(tmp_path, stop_after):
    chosen = {"unfreeze_after": {"^backbone": 1}, "ema": 0.9, "optimizer": "adamw"}
    whole = train(spec("vae", tmp_path / "whole", **chosen))
    parts = spec("vae", tmp_path / "parts", **chosen)
    train_until(parts, stop_after, "signal")
    equal(outcome(train(parts, resume=True)), outcome(whole))
    assert stop_after < STEPS


# --- layer_decay ---


def test_layers_of_a_resnet_are_its_stem_and_blocks():
    layers = layers_of(Torchvision(name="resnet18"))
    assert len(layers) == 9
    assert layers[0] == ["body.conv1.weight", "body.bn1.weight", "body.bn1.bias"]
    assert layers[3][0] == "body.layer2.0.conv1.weight"
    assert "body.layer2.0.downsample.1.bias" in layers[3]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_every_parameter_is_in_one_layer(name):
    backbone = Torchvision(name=name)
    names = [name for layer in layers_of(backbone) for name in layer]
    assert sorted(names) == sorted(name for name, _ in backbone.named_parameters())


def test_rates_fall_towards_the_images_as_by_timm():
    optim = pytest.importorskip("timm.optim._param_groups")
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", num_classes=3)
    groups = optim.param_groups_layer_decay(theirs, weight_decay=0.1, layer_decay=0.5)
    known = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    want = {name: known[id(p)] for name, p in theirs.named_parameters()}
    vision = VisionModel(Torchvision(name="resnet18"), None, {}, {})
    got = layer_scales(vision, 0.5)
    assert got == {f"backbone.body.{n}": s for n, s in want.items() if not n.startswith("fc.")}
    assert want["fc.weight"] == 1 and got["backbone.body.conv1.weight"] == 0.5**9


def test_the_rate_of_a_group_is_the_product_of_all_factors():
    net = model()
    net.scale = nn.Parameter(torch.ones(1, 1))
    config = TrainConfig(lr=0.1, layer_decay=0.5, lr_scale={r"backbone\.2": 0.1})
    optimizer = build_optimizer(net, config)
    set_lr(optimizer, 0.1)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    got = {name: rates[id(p)] for name, p in net.named_parameters()}
    assert got == pytest.approx(
        {
            "scale": 0.1,
            "backbone.0.weight": 0.025,  # two layers, and the norm belongs to the first
            "backbone.1.weight": 0.025,
            "backbone.1.bias": 0.025,
            "backbone.2.weight": 0.005,
            "backbone.2.bias": 0.005,
        }
    )
    assert layer_scales(net, 1.0) == {}
