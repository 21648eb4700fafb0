"""`visionkit check` runs the first batch of each source through a step and its evaluators."""

import math

import pytest
import torch

import visionkit
from support.small_runs import SMALL_RUNS, joint
from visionkit.metrics.accuracy import Accuracy
from visionkit.models.backbones.plain import TinyCNN
from visionkit.models.heads.classification import Classification

ERROR = "heads.classification: fails on the first batch (RuntimeError: no such size)"


def failing(*_, **__):
    raise RuntimeError("no such size\nand more")


def messages(spec, **overrides):
    return [f.message for f in visionkit.check(spec, overrides).findings if f.severity == "error"]


@pytest.mark.parametrize(
    "name", ["classification", "faster_rcnn", "mask_rcnn", "semantic", "embedding", "vae"]
)
def test_a_sound_config_has_no_errors_and_leaves_no_trace(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    assert messages(SMALL_RUNS[name]) == []
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cls", "method", "key"),
    [
        (TinyCNN, "forward", "backbone"),
        (Classification, "loss", "heads.classification"),
        (Classification, "predict", "heads.classification"),
        (Accuracy, "update", "heads.classification: its evaluator"),
    ],
)
def test_the_part_that_fails_is_named(cls, method, key, monkeypatch):
    monkeypatch.setattr(cls, method, failing)
    found = messages(SMALL_RUNS["classification"])
    assert found == [f"{key}: fails on the first batch (RuntimeError: no such size)"]


def test_every_source_is_checked(monkeypatch):
    monkeypatch.setattr(Classification, "loss", failing)
    spec = joint()
    assert messages(spec) == ["heads.scene: fails on the first batch (RuntimeError: no such size)"]


def test_generated_images_replace_data_that_cannot_be_read(tmp_path, monkeypatch):
    missing = {"type": "ImageFolder", "root": str(tmp_path / "nowhere")}
    spec = SMALL_RUNS["classification"]
    spec = {**spec, "data": {**spec["data"], "train": missing}}
    (found,) = messages(spec)
    assert "data.train.root" in found
    monkeypatch.setattr(Classification, "loss", failing)
    assert ERROR in messages(spec)


def test_a_loss_that_is_not_finite_is_an_error(monkeypatch):
    loss = Classification.loss

    def infinite(self, features, batch):
        terms = loss(self, features, batch)
        return {name: term._replace(sum=term.sum * math.inf) for name, term in terms.items()}

    monkeypatch.setattr(Classification, "loss", infinite)
    (found,) = messages(SMALL_RUNS["classification"])
    assert "classification/classification, total of the first batch not finite" in found


def test_an_error_with_a_known_fix_keeps_it(monkeypatch):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classification, "loss", exhausted)
    (found,) = messages(SMALL_RUNS["classification"])
    assert "out of memory with data.main: batch_size 6" in found
