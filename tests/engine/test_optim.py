"""Schedules against values worked out by hand; parameter groups and the moving average."""

import copy
import math

import pytest
import torch
from torch import nn

from visionkit.config import TrainConfig
from visionkit.engine.optim import (
    Learner,
    ModelEMA,
    build_optimizer,
    check_patterns,
    freeze,
    lr_factor,
    set_lr,
)
from visionkit.errors import ConfigError
from visionkit.models.model import VisionModel


def test_cosine_after_linear_warmup():
    config = TrainConfig(schedule="cosine", warmup_steps=4)
    factors = [lr_factor(step, 24, config) for step in range(24)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[14] == pytest.approx(0.5)
    assert factors[23] == pytest.approx(0.5 * (1 + math.cos(math.pi * 19 / 20)))


def test_multistep_drops_at_its_milestones():
    config = TrainConfig(schedule="multistep", milestones=[0.5, 0.9], gamma=0.1, warmup_steps=0)
    factors = [lr_factor(step, 10, config) for step in range(10)]
    assert factors == pytest.approx([1] * 5 + [0.1] * 4 + [0.01])


def test_constant_and_default_warmup():
    config = TrainConfig(schedule="constant")
    assert lr_factor(0, 1000, config) == pytest.approx(1 / 101)
    assert lr_factor(100, 1000, config) == 1


def model():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def test_groups_scale_by_name_and_do_not_decay_biases():
    config = TrainConfig(lr=0.1, weight_decay=0.01, lr_scale={"^0": 0.5, "bias": 2.0})
    net = model()
    optimizer = build_optimizer(net, config)
    set_lr(optimizer, 0.1)
    found = {
        id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    assert found[id(net[0].weight)] == pytest.approx((0.05, 0.01))
    assert found[id(net[0].bias)] == pytest.approx((0.1, 0.0))
    assert found[id(net[1].weight)] == pytest.approx((0.1, 0.0))
    assert found[id(net[2].bias)] == pytest.approx((0.2, 0.0))
    assert len(found) == 6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_settings_of_the_groups_change_on_resume_and_each_parameter_keeps_its_state(optimizer):
    def learner(**settings):
        torch.manual_seed(0)
        model = nn.ModuleDict({"backbone": nn.Linear(3, 3), "head": nn.Linear(3, 2)})
        model.log_variances = nn.ParameterDict()
        config = TrainConfig(optimizer=optimizer, momentum=0.9, **settings)
        return Learner(model, config, 10, torch.float32)

    def step(learner):
        learner.set_lr(5)
        x = learner.model["backbone"](torch.arange(6.0).view(2, 3))
        learner.model["head"](x).square().sum().backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad()

    first = learner()
    step(first)
    changed = {"lr_scale": {"backbone": 0.0}, "weight_decay": 0.0}
    resumed = learner(**changed)  # other groups, in another order
    resumed.model.load_state_dict(first.model.state_dict())
    resumed.restore(copy.deepcopy(first.state()))
    for name, parameter in resumed.model.named_parameters():
        before = first.optimizer.state[first.model.get_parameter(name)]
        assert before and before.keys() == resumed.optimizer.state[parameter].keys()
        for key, value in resumed.optimizer.state[parameter].items():
            assert torch.equal(value, before[key])
    weights = {name: p.detach().clone() for name, p in resumed.model.named_parameters()}
    step(resumed)
    moved = {n for n, p in resumed.model.named_parameters() if not torch.equal(p, weights[n])}
    assert moved == {"head.weight", "head.bias"}
    assert {group["weight_decay"] for group in resumed.optimizer.param_groups} == {0.0}


def test_a_first_step_that_the_scaler_of_fp16_skips_leaves_no_trace():
    """torch's fused SGD then keeps memory that holds anything as the momentum."""
    net = nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()
    torch.use_deterministic_algorithms(True)  # fills such memory with NaN
    try:
        optimizer = build_optimizer(net, TrainConfig(lr=0.1, weight_decay=0.0))
        scaler = torch.amp.GradScaler("cpu", enabled=True)
        for gradient in (math.inf, 3.0):
            net.weight.grad = torch.full_like(net.weight, gradient) * scaler.scale(torch.ones(()))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(net.weight.detach(), before - 0.3)


def test_sgd_is_the_plain_update():
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(2.0)
    optimizer = build_optimizer(net, TrainConfig(lr=0.1, momentum=0.0, weight_decay=0.0))
    set_lr(optimizer, 0.1)
    net(torch.tensor([[3.0]])).sum().backward()
    optimizer.step()
    assert net.weight.item() == pytest.approx(2.0 - 0.1 * 3.0)


def test_freezing_by_name_and_its_mistakes():
    net = model()
    freeze(net, ["^0\\."])
    assert [p.requires_grad for p in net[0].parameters()] == [False, False]
    assert all(p.requires_grad for p in net[2].parameters())
    with pytest.raises(ConfigError) as error:
        check_patterns(net, {"train.freeze": ["^0", "backbone"], "train.lr_scale": {"neck": 2.0}})
    told = "no parameter matches {}; one name is '0.weight'"
    assert str(error.value).splitlines() == [
        f"train.freeze: {told.format(['backbone'])}",
        f"train.lr_scale: {told.format(['neck'])}",
    ]
    with pytest.raises(ConfigError, match="no parameter to train"):
        freeze(net, ["."])


def test_moving_average_follows_slowly_and_copies_statistics():
    net = model()
    average = ModelEMA(net, decay=0.9)
    start = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight += 1.0
        net[1].running_mean += 5.0
    average.update(step=10**6)
    assert torch.allclose(average.model[0].weight, start + 0.1)
    assert torch.equal(average.model[1].running_mean, net[1].running_mean)
    average.update(step=0)  # decay 1/10 at the start
    assert torch.allclose(average.model[0].weight, start + 1 - 0.9 * 0.1)


def test_frozen_batch_norms_keep_their_statistics():
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    vision = VisionModel(body, None, {}, {})
    freeze(vision, ["backbone.1", "backbone.0.bias"])
    before = body[1].running_mean.clone()
    vision.train()
    body(torch.rand(2, 3, 4, 4))
    assert torch.equal(body[1].running_mean, before)
    body[1].requires_grad_(True)
    vision.train()
    body(torch.rand(2, 3, 4, 4))
    assert not torch.equal(body[1].running_mean, before)
