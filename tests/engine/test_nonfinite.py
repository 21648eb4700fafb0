"""A loss, a gradient or a metric that is not finite: what stops, what is left out, what is told."""

import json
import math
import os
import signal
from unittest.mock import patch

import pytest
import torch

from support.small_runs import SMALL_RUNS
from visionkit.config import load_config
from visionkit.engine import setup, train
from visionkit.engine.progress import Progress
from visionkit.engine.setup import build_training
from visionkit.engine.state import MAX_SKIPPED_IN_A_ROW
from visionkit.errors import ConfigError, DivergedError, Preempted
from visionkit.models.heads.classification import Classification
from visionkit.runs import checkpoint
from visionkit.runs import directory as rundir
from visionkit.types import Loss

LOSS = Classification.loss


def spec(folder, **settings):
    base = SMALL_RUNS["classification"]
    backbone = {**base["backbone"], "norm": "batch"}
    settings = {"steps": 6, "validate": False, "schedule": "constant", "ema": 0.9, **settings}
    settings = {**base["train"], **settings}
    data = {**base["data"], "group_by_aspect_ratio": False}  # so that image 13 is in the third step
    spec = {**base, "backbone": backbone, "data": data}
    return {**spec, "train": settings, "output": str(folder)}


@pytest.fixture(autouse=True)
def _no_images(monkeypatch):
    monkeypatch.setattr(train, "save_train_samples", lambda *_, **__: None)
    monkeypatch.setattr(train, "save_val_samples", lambda *_, **__: None)


def spoiling(spoil, positions=(13,)):
    """Losses of the batches in which one of those images is."""

    def loss(self, features, batch):
        terms = LOSS(self, features, batch)
        bad = any(target["position"] in positions for target in batch.targets)
        if not bad or not self.training:
            return terms
        return {name: term._replace(sum=spoil(term.sum)) for name, term in terms.items()}

    return patch.object(Classification, "loss", loss)


def states(folder, fault, **settings):
    """The state after each step: weights with statistics, average, optimizer."""
    found, built = [], []
    state_of, advance = setup.TrainingState, Progress.advance

    def build(*arguments):
        built.append(state_of(*arguments))
        return built[-1]

    def snapshot(*_, **__):
        state = built[-1]
        parts = {
            "model": state.learner.model.state_dict(),
            "optimizer": state.learner.optimizer.state_dict(),
        }
        parts["average"] = state.learner.ema.model.state_dict()
        parts["optimizer"] = parts["optimizer"]["state"]
        found.append([value.clone() for value in tensors(parts)])

    def advanced(self, *arguments, **details):
        advance(self, *arguments, **details)
        snapshot()

    with (
        fault,
        patch.object(setup, "TrainingState", build),
        patch.object(Progress, "advance", advanced),
    ):
        try:
            train.train(spec(folder, **settings))
            return found, None
        except DivergedError as error:
            snapshot()
            return found, error


def tensors(value):
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


def equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


def statistics(folder):
    """Where in a state the statistics of batch norms are, which a step's forward moves: those of
    the model, not those of the average."""
    model = build_training(load_config(spec(folder)), device=torch.device("cpu"))[0]
    buffers = dict(model.named_buffers())
    return {k for k, name in enumerate(model.state_dict()) if name in buffers}


def nan_gradient(value):
    """Adds zero, of which the gradient is not a number."""
    return value + (value * 0).sqrt()


SPOILS = {
    "nan": (lambda value: value * math.nan, "the loss classification/classification"),
    "gradient": (nan_gradient, "the gradient is not finite"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_it_stops_before_the_update(name, tmp_path):
    spoil, text = SPOILS[name]
    clean, _ = states(tmp_path / "clean", spoiling(lambda value: value))
    found, error = states(tmp_path / "run", spoiling(spoil))
    assert len(found) == 3  # two steps, and what the error left
    changed = {k for k, value in enumerate(found[2]) if not torch.equal(value, clean[1][k])}
    assert changed == statistics(tmp_path / "run")
    assert "step 3 (epoch 1.0, learning rate 0.02)" in str(error)
    assert text in str(error) and "image ids [" in str(error)
    assert rundir.read_status(tmp_path / "run")["state"] == "diverged"


@pytest.mark.parametrize("name", SPOILS)
def test_a_step_left_out_changes_nothing(name, tmp_path):
    """Not the weights, the average, the optimizer, nor the statistics of batch norms."""
    found, error = states(tmp_path / "run", spoiling(SPOILS[name][0]), on_nonfinite="skip")
    assert error is None and len(found) == 6
    assert [k for k in range(1, 6) if equal(found[k], found[k - 1])] == [2]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    skipped = [json.loads(line).get("skipped_steps", 0) for line in lines]
    assert skipped == [0, 0, 1, 1, 1, 1]
    assert rundir.read_status(tmp_path / "run")["skipped_steps"] == 1


def test_too_many_in_a_row_have_diverged(tmp_path):
    always = spoiling(SPOILS["nan"][0], range(1000))
    found, error = states(tmp_path / "run", always, on_nonfinite="skip", steps=20)
    assert len(found) - 1 == MAX_SKIPPED_IN_A_ROW
    assert "11 steps in a row were skipped" in str(error)
    others = spoiling(SPOILS["nan"][0], range(0, 1000, 13))  # every second or third batch
    found, error = states(tmp_path / "other", others, on_nonfinite="skip", steps=30)
    assert error is None
    assert rundir.read_status(tmp_path / "other")["skipped_steps"] > MAX_SKIPPED_IN_A_ROW


def test_a_run_that_left_steps_out_resumes_bit_for_bit(tmp_path):
    bad = spoiling(SPOILS["nan"][0], (2, 13, 25))
    with bad:
        train.train(spec(tmp_path / "whole", on_nonfinite="skip"))
    advance = Progress.advance

    def stopped(self, *arguments, **details):
        advance(self, *arguments, **details)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    parts = spec(tmp_path / "parts", on_nonfinite="skip")
    with bad:
        with patch.object(Progress, "advance", stopped), pytest.raises(Preempted):
            train.train(parts)
        train.train(parts, resume=True)
    whole, parts = (
        checkpoint.load(tmp_path / name / "checkpoints/last.pt") for name in ("whole", "parts")
    )
    assert whole["skipped"] == parts["skipped"] and whole["skipped"][0] >= 2
    for part in ("model", "average", "optimizer", "window"):
        assert equal(tensors(whole[part]), tensors(parts[part]))


def test_steps_that_the_scaler_of_fp16_leaves_out_are_counted_only(tmp_path):
    """A loss that is finite but whose scaled gradients are not."""
    large = spoiling(lambda value: value * 1e34)
    found, error = states(tmp_path / "run", large, precision="fp16")
    assert error is None
    status = rundir.read_status(tmp_path / "run")
    assert status["scaler_skipped_steps"] == 1 and "skipped_steps" not in status
    assert all(value.isfinite().all() for value in found[-1])


def test_a_metric_that_is_not_a_number_is_never_the_best(tmp_path):
    scores = iter([0.5, math.nan, math.nan, 0.9])

    def evaluate(*_, **__):
        return {"classification/top1": next(scores)}, {}

    with patch.object(train, "evaluate_model", evaluate):
        train.train(spec(tmp_path / "run", steps=20, validate=True, early_stop=2))
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    values = [r["classification/top1"] for r in records if r["kind"] == "val"]
    assert values == [0.5, None, None]  # NaN counts as not improved
    best = checkpoint.load(tmp_path / "run/checkpoints/best.pt")
    assert best["metrics"] == {"classification/top1": 0.5}


def test_losses_that_depend_on_nothing_trained_are_told(tmp_path):
    with (
        patch.object(
            Classification, "loss", lambda *_: {"a": Loss(torch.zeros(()), torch.ones(()))}
        ),
        pytest.raises(ConfigError, match="have no trainable parameters"),
    ):
        train.train(spec(tmp_path / "run"))
