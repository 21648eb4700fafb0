"""Whole runs on generated images: what they write, that they resume exactly, how they end."""

import json
import math
import os
import signal
from pathlib import Path

import pytest

import visionkit
from support.runs import equal
from visionkit.engine.train import train
from visionkit.errors import CheckpointError, ConfigError, DivergedError, Preempted
from visionkit.runs import checkpoint

SHAPES = {"type": "Shapes", "num_images": 12, "size": 64}
MAIN = {
    "classification": "classification/top1",
    "localization": "localization/loc50",
    "detection": "detection/bbox/AP",
    "instance_segmentation": "instance_segmentation/segm/AP",
    "semantic_segmentation": "semantic_segmentation/mIoU",
    "embedding": "embedding/recall@1",
    "autoencoder": "autoencoder/psnr",
}
TASKS = list(MAIN)


def config(task, output, **settings):
    small = {"steps": 4, "log_every": 1, "precision": "fp32", "plots": False, "ema": 0.9}
    spec = {
        "task": task,
        "backbone": {"type": "LightResNet"},
        "data": {
            "train": {**SHAPES, "seed": 0},
            "val": {**SHAPES, "num_images": 5, "seed": 1},
            "image_size": 64,
            "batch_size": 4,
            "workers": 0,
        },
        "train": {**small, **settings},
        "output": str(output),
    }
    if task in ("detection", "instance_segmentation", "semantic_segmentation"):
        spec["neck"] = {"type": "FPN", "channels": 32}
    if task == "embedding":
        spec["data"]["images_per_identity"] = 2
    if task == "autoencoder":
        spec["head"] = {"type": "VAE", "latent": 2}
    return spec


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


QUICK = ("classification", "instance_segmentation")


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=[pytest.mark.slow] * (task not in QUICK)) for task in TASKS],
)
def test_a_run_leaves_what_it_promises(task, tmp_path):
    result = train(config(task, tmp_path / "run"))
    run = result.directory
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.pt", "prev.pt", "best.pt"}
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished" and status["step"] == 4
    logged = [line for line in lines(run) if line["kind"] == "train"]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert {"epoch", "lr", "images_per_second", "train/total"} <= logged[0].keys()
    terms = [key for key in logged[0] if key.startswith(f"train/{task}/")]
    assert terms and all(math.isfinite(logged[0][key]) for key in terms)
    last = [line for line in lines(run) if line["kind"] == "val"][-1]
    assert last["step"] == 4
    assert MAIN[task] in last
    assert f"{task}/loss/{terms[0].split('/')[-1]}" in last

    metrics = visionkit.evaluate(run)
    assert repr(metrics) == repr(result.metrics)  # NaN is not equal to itself
    stored = json.loads((run / "eval/metrics.json").read_text())
    assert stored.keys() - {"coco_engine", "scoring", "classes"} == metrics.keys()
    assert ("coco_engine" in stored) == ("scoring" in stored) == any("/AP" in n for n in metrics)
    classes = stored.get("classes", {})
    assert classes.keys() <= metrics.keys()
    assert bool(classes) == (task not in ("embedding", "autoencoder"))

    image = next(Path(os.environ["VISIONKIT_CACHE"]).rglob("images/*"))
    prediction = visionkit.load(run).predict(image)
    assert prediction.heads.keys() == {task}
    assert prediction.draw().size[0] >= 64
    again = visionkit.load_config(run / "config.yaml")
    assert again.to_dict() == checkpoint.load(run / "checkpoints/last.pt")["config"]


def without_time(run):
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines(run)]


def interrupt_after(monkeypatch, steps):
    """Ask the process to stop, as a scheduler would, when that many steps are done."""
    from visionkit.engine.progress import Progress

    advance = Progress.advance

    def advance_then_signal(self, *args, **kwargs):
        advance(self, *args, **kwargs)
        if self.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", advance_then_signal)


def test_a_stopped_run_says_how_to_go_on_and_does_so_bit_for_bit(tmp_path, monkeypatch):
    """With a backbone of usual size; test_resume has all tasks and settings."""
    settings = {"steps": 5, "log_every": 2, "accumulate_grad_batches": 2}
    whole = train(config("classification", tmp_path / "whole", **settings)).directory

    spec = config("classification", tmp_path / "parts", **settings)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Preempted, match="--resume") as caught:
            train(spec)
    parts = tmp_path / "parts"
    assert caught.value.exit_code == 75
    assert json.loads((parts / "status.json").read_text())["state"] == "preempted"
    assert checkpoint.load(parts / "checkpoints/last.pt")["step"] == 3
    train(spec, resume=True)

    final = [checkpoint.load(run / "checkpoints/last.pt") for run in (whole, parts)]
    for state in final:
        del state["config"]
    equal(*final)
    assert without_time(whole) == without_time(parts)


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path, monkeypatch):
    from visionkit.models.heads.classification import Classification

    loss = Classification.loss
    calls = []

    def poisoned(self, features, batch):
        calls.append(1)
        terms = loss(self, features, batch)
        factor = math.nan if len(calls) == 3 else 1
        return {name: term._replace(sum=term.sum * factor) for name, term in terms.items()}

    monkeypatch.setattr(Classification, "loss", poisoned)
    with pytest.raises(DivergedError, match=r"step 3.*image ids \["):
        train(config("classification", tmp_path / "run", validate=False))
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "diverged"


def test_training_without_validation_and_for_epochs(tmp_path):
    spec = config("classification", tmp_path / "run", validate=False, epochs=2)
    del spec["train"]["steps"]
    run = train(spec).directory
    assert {line["kind"] for line in lines(run)} == {"train"}
    assert lines(run)[-1]["step"] == 6 and lines(run)[-1]["epoch"] == 2.0
    assert (run / "checkpoints/best.pt").exists()


def test_a_run_without_validation_images_has_no_report(tmp_path, caplog):
    spec = config("classification", tmp_path / "run", steps=1)
    spec["data"]["val"] = None
    run = train(spec).directory
    assert not (run / "report.html").exists() and "report failed" not in caplog.text


def test_the_rate_in_the_log_is_the_one_that_is_scaled(tmp_path):
    """Whatever group of parameters comes first."""
    rates = []
    for name, scale in (("plain", {}), ("scaled", {"backbone": 0.0, "heads": 0.5})):
        spec = config("classification", tmp_path / name, steps=2, log_every=1, lr_scale=scale)
        train(spec)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rates.append([record["lr"] for record in map(json.loads, lines) if "lr" in record])
    assert rates[0] == rates[1] and rates[0][0] > 0


def test_early_stopping(tmp_path, caplog):
    caplog.set_level("INFO", "visionkit")
    spec = config("classification", tmp_path / "run", lr=1e-12, steps=60, early_stop=2)
    train(spec)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["step"] == 9
    told = "ended by train.early_stop at step 9: classification/top1 did not improve for 2"
    assert status["reason"].startswith(told) and told in caplog.text
    caplog.clear()
    train(spec, resume=True)
    assert told in caplog.text


@pytest.mark.slow
def test_evaluating_a_run_gives_the_figures_of_its_validation_in_bfloat16_too(tmp_path):
    result = train(config("semantic_segmentation", tmp_path / "run", precision="bf16"))
    assert repr(visionkit.evaluate(tmp_path / "run")) == repr(result.metrics)


def test_a_finished_run_is_not_replaced_and_can_be_resumed_without_harm(tmp_path):
    spec = config("classification", tmp_path / "run")
    train(spec)
    files = [tmp_path / "run" / name for name in ("metrics.jsonl", "config.yaml")]
    before = [file.read_text() for file in files]
    with pytest.raises(ConfigError, match="already holds a run"):
        train(spec)
    train(config("classification", tmp_path / "run", lr=0.5), resume=True)  # what is not used
    assert [file.read_text() for file in files] == before  # is not written down either
    with pytest.raises(CheckpointError, match="not found; expected a run"):
        train(config("classification", tmp_path / "other"), resume=True)


def test_a_best_metric_that_does_not_exist_is_told_before_training(tmp_path):
    spec = config("classification", tmp_path / "run", best_metric="classification/top2")
    with pytest.raises(ConfigError, match="classification/top1"):
        train(spec)
    assert not (tmp_path / "run/metrics.jsonl").exists()
