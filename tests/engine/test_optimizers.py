"""`train.optimizer`: those of torch by name, custom ones by import path, and their mistakes."""

import sys

import pytest
import torch
import yaml
from torch import nn

from support.runs import STEPS, equal, outcome, spec, train, train_until
from visionkit.config import TrainConfig, load_config
from visionkit.config.components import components
from visionkit.engine.optim import build_optimizer
from visionkit.errors import CheckpointError, ConfigError

LION = '''
import torch


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv 2302.06675."""

    def __init__(self, params, lr=1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    fast, slow = group["betas"]
                    p.mul_(1 - group["lr"] * group["weight_decay"] / group["k"])
                    p.sub_(mean.lerp(p.grad, 1 - fast).sign_(), alpha=group["lr"])
                    mean.lerp_(p.grad, 1 - slow)


class NotOne:
    pass
'''


@pytest.fixture
def lion(tmp_path, monkeypatch):
    (tmp_path / "lions.py").write_text(LION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lions", raising=False)


@pytest.mark.parametrize("name", components("optimizers"))
def test_every_optimizer_of_torch_takes_a_step(name):
    net = nn.Linear(3, 2)
    before = net.weight.detach().clone()
    optimizer = build_optimizer(net, TrainConfig(optimizer=name.lower(), lr=0.1))
    assert type(optimizer) is getattr(torch.optim, name)
    for _ in range(2):
        net(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(net.weight, before) and net.weight.isfinite().all()


def test_arguments_are_those_of_the_class():
    net = nn.Linear(3, 2)
    given = {"type": "adam", "betas": [0.5, 0.9], "amsgrad": True}
    config = load_config({**spec("vae", "x", optimizer=given)}).train
    assert config.optimizer == {"type": "Adam", "betas": (0.5, 0.9), "amsgrad": True}
    optimizer = build_optimizer(net, config)
    assert optimizer.defaults["betas"] == (0.5, 0.9) and optimizer.defaults["amsgrad"]
    sgd = build_optimizer(net, TrainConfig(optimizer={"type": "SGD", "nesterov": True}))
    assert sgd.defaults["nesterov"] and sgd.defaults["momentum"] == 0.9


@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_custom_one_trains_and_resumes_bit_for_bit(lion, tmp_path, stop_after):
    chosen = {"optimizer": {"type": "lions.Lion", "betas": [0.8, 0.9]}, "lr": 1e-3}
    whole = train(spec("vae", tmp_path / "whole", **chosen))
    parts = spec("vae", tmp_path / "parts", **chosen)
    train_until(parts, stop_after, "signal")
    equal(outcome(train(parts, resume=True)), outcome(whole))
    saved = outcome(whole)["last"]["optimizer"]
    assert {group["betas"] for group in saved["param_groups"]} == {(0.8, 0.9)}
    assert {group["k"] for group in saved["param_groups"]} == {STEPS}
    changed = {**parts, "train": {**parts["train"], "optimizer": "adamw", "steps": 9}}
    with pytest.raises(CheckpointError, match=r"is 'adamw', but the run's is 'lions\.Lion'"):
        train(changed, resume=True)


@pytest.mark.parametrize(
    "given, told",
    [
        ("lino", r"train\.optimizer: got 'lino'.*valid: ASGD"),
        ("lions.Lino", r"train\.optimizer: unknown type 'lions\.Lino'; did you mean 'lions\.Lion'"),
        ("nothing.Lion", r"train\.optimizer: unknown type 'nothing\.Lion' \(a custom class must"),
        ("lions.NotOne", r"train\.optimizer: lions\.NotOne: it must derive from torch\.optim"),
        ("{type: lions.Lion, beta: 1}", r"train\.optimizer\.beta: .*betas"),
        ("{type: lions.Lion, betas: 1}", r"train\.optimizer\.betas: got 1; expected a list of 2"),
        ("{type: lions.Lion, lr: 0.1}", r"train\.optimizer\.lr: .*betas"),
        ("{type: Adam, betas: [2.0, 0.9]}", r"train\.optimizer: Adam: Invalid beta parameter"),
        ("{betas: [0.9, 0.9]}", r"train\.optimizer: missing 'type'"),
        ("5", r"train\.optimizer: got 5; expected a string or a mapping"),
    ],
)
def test_mistakes_are_told_with_their_line(lion, tmp_path, given, told):
    config = spec("vae", "x")
    config["train"] = {"steps": 2}
    text = yaml.safe_dump(config, sort_keys=False) + f"  optimizer: {given}\n"
    text = text.replace("output: x\n", "")  # so that `train` is last
    path = tmp_path / "a.yaml"
    path.write_text(text)
    line = len(text.splitlines())
    with pytest.raises(ConfigError, match=rf"a\.yaml:{line}: {told}"):
        load_config(path)


def test_a_checkpoint_may_not_name_one_unless_allowed(lion):
    config = spec("vae", "x", optimizer="lions.Lion")
    with pytest.raises(ConfigError, match=r"train\.optimizer\.type: lions\.Lion.*--allow-plugins"):
        load_config(config, origin="last.pt")
    assert load_config(config, origin="last.pt", allow_plugins=True).train.optimizer == "lions.Lion"
