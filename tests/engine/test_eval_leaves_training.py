"""Validation changes nothing of a training that goes on afterwards."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from test_training import equal

from golden.recipes import RECIPES, config
from visionkit.config import load_config
from visionkit.distributed.collectives import loss_values
from visionkit.engine.evaluate import evaluate_model
from visionkit.engine.optim import build_optimizer
from visionkit.engine.setup import build_training
from visionkit.engine.train import train
from visionkit.runs import checkpoint


def with_validation(task, output, images=5):
    spec = config(task, output)
    source = spec["data"]["main"]
    source["train"] = source["train"] | {"num_images": 12}
    source["val"] = source["train"] | {"num_images": images, "seed": 1}
    return spec


def generators():
    numpy_state = np.random.get_state(legacy=False)
    return torch.get_rng_state(), random.getstate(), pickle.dumps(numpy_state)


def step(model, optimizer, batch):
    optimizer.zero_grad()
    losses = loss_values(model.losses(model.features(batch), batch, list(model.heads)))
    sum(model.weighted(losses).values()).backward()
    optimizer.step()


def state(model, optimizer):
    """All that a training goes on from."""
    return {
        "weights": copy.deepcopy(model.state_dict()),  # and batch statistics
        "gradients": {n: copy.deepcopy(p.grad) for n, p in model.named_parameters()},
        "trained": {n: p.requires_grad for n, p in model.named_parameters()},
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "modes": {name: module.training for name, module in model.named_modules()},
        "generators": generators(),
        "settings": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
    }


@pytest.fixture(params=RECIPES)
def training(request, tmp_path):
    """A model of each task after a step, with some parts switched to `eval` by hand."""
    checked = load_config(with_validation(request.param, tmp_path / "run"))
    model, sources, _ = build_training(checked, device=torch.device("cpu"))
    optimizer = build_optimizer(model, checked.train)
    batch = next(sources[0].train_batches(seed=0, start=0, workers=0))
    model.train()
    step(model, optimizer, batch)
    next(model.heads.children()).eval()
    next(model.backbone.children()).eval()
    return model, sources, optimizer, batch


def test_validation_leaves_all_as_it_was(training):
    model, sources, optimizer, batch = training
    before = state(model, optimizer)
    assert len(set(before["modes"].values())) == 2
    metrics, _ = evaluate_model(model, sources, dtype=torch.float32, workers=0)
    assert metrics
    equal(before, state(model, optimizer))
    step(model, optimizer, batch)  # nothing computed without gradients was kept

    def worse(*args):
        raise KeyboardInterrupt

    before = state(model, optimizer)
    model.features = worse
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(model, sources, dtype=torch.float32, workers=0)
    equal(before, state(model, optimizer))


@pytest.mark.parametrize("task", ["vae"])  # draws numbers in each step
def test_a_run_learns_the_same_with_and_without_validation(task, tmp_path):
    runs = []
    for validate in (1, False):
        settings = {"train.steps": 5, "train.validate": validate, "train.ema": 0.9}
        run = train(with_validation(task, tmp_path / str(validate)), settings).directory
        runs.append(checkpoint.load(run / "checkpoints/last.pt"))
        validated = (run / "metrics.jsonl").read_text().count('"kind": "val"')
        assert validated == (2 if validate else 0)
    for key in ("model", "average", "optimizer", "scaler"):
        equal(runs[0][key], runs[1][key], key)
