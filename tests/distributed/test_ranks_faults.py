"""Whatever happens to one process, all end together, and say what happened."""

import json
import math
import os
import signal
import time
from unittest.mock import patch

import pytest

from support.ranks import on_ranks
from support.small_runs import SMALL_RUNS
from visionkit.data.datasets.shapes import Shapes
from visionkit.distributed import collectives
from visionkit.engine import train
from visionkit.engine.progress import Progress
from visionkit.errors import CheckpointError, DataError
from visionkit.models.heads.classification import Classification
from visionkit.runs import checkpoint
from visionkit.runs import directory as rundir


def run_with(fault, folder, settings):
    """Train with something that befalls this process; the seconds that it took, and the error."""
    os.environ["VISIONKIT_TIMEOUT"] = "2"
    collectives.setup()
    os.environ["TORCHELASTIC_ERROR_FILE"] = f"{folder}/error{collectives.rank()}.json"
    begin = time.monotonic()
    spec = SMALL_RUNS["classification"]
    spec = {
        **spec,
        "train": {**spec["train"], "steps": 6, "eval_batch_size": 2, **settings},
        "output": f"{folder}/run",
    }
    result = {"error": None, "text": ""}
    with fault(collectives.rank()):
        try:
            train.train(spec)
        except Exception as error:
            result = {"error": type(error).__name__, "text": str(error)}
    return result | {"seconds": time.monotonic() - begin}


def at_step(number, work):
    """Do that when that step has been made."""
    advance = Progress.advance

    def advance_and_more(self, *args, **kwargs):
        advance(self, *args, **kwargs)
        if self.step == number:
            work()

    return patch.object(Progress, "advance", advance_and_more)


def raising(error):
    def work(*_, **__):
        raise error

    return work


def nothing():
    return patch.dict(os.environ)


def loading(rank):
    fault = raising(DataError("images/7.png: cannot be read"))
    return patch.object(Shapes, "__getitem__", fault) if rank == 1 else nothing()


def loading_later(rank):
    """The other process then waits for the gradients of this one."""
    loss, calls = Classification.loss, []

    def broken(self, features, batch):
        calls.append(self.training)
        if rank == 1 and sum(calls) == 4:  # the fourth step
            raise DataError("images/7.png: cannot be read")
        return loss(self, features, batch)

    return patch.object(Classification, "loss", broken)


def evaluating(rank):
    fault = raising(ZeroDivisionError("no boxes"))
    return patch.object(Classification, "predict", fault) if rank == 1 else nothing()


def saving(rank):
    fault = raising(CheckpointError("last.pt: cannot be written: disk full"))
    return patch.object(checkpoint, "save", fault) if rank == 0 else nothing()


def dying(rank):
    return at_step(3, lambda: os._exit(9)) if rank == 1 else nothing()


def killed(rank):
    return at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL)) if rank == 1 else nothing()


def hanging(rank):
    return at_step(3, lambda: time.sleep(6)) if rank == 1 else nothing()


def told_to_stop(rank):
    return at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM)) if rank == 1 else nothing()


def infinite(rank):
    loss, calls = Classification.loss, []

    def broken(self, features, batch):
        calls.append(self.training)
        terms = loss(self, features, batch)
        bad = rank == 1 and self.training and sum(calls) == 4  # the fourth step
        factor = math.inf if bad else 1
        return {name: term._replace(sum=term.sum * factor) for name, term in terms.items()}

    return patch.object(Classification, "loss", broken)


def without_a_term(rank):
    """A head with two terms, one of which it drops on rank 1."""
    loss = Classification.loss

    def broken(self, features, batch):
        terms = loss(self, features, batch)
        return terms if rank == 1 else {**terms, "extra": terms["classification"]}

    return patch.object(Classification, "loss", broken)


FAULTS = {
    "loading": (loading, "DataError", "images/7.png: cannot be read", "failed"),
    "loading later": (loading_later, "DataError", "images/7.png: cannot be read", "failed"),
    "evaluating": (evaluating, "VisionkitError", "ZeroDivisionError: no boxes", "failed"),
    "without a term": (
        without_a_term,
        "ConfigError",
        "rank 1 has heads.classification: loss() with the terms ['classification'], "
        "rank 0 has ['classification', 'extra']; a head must return all its terms",
        "failed",
    ),
    "saving": (saving, "CheckpointError", "disk full", "failed"),
    "dying": (dying, "VisionkitError", "rank 1 has gone", "failed"),
    "killed": (killed, "VisionkitError", "rank 1 has gone", "failed"),
    "hanging": (hanging, "VisionkitError", "rank 1 hangs or is too slow", "failed"),
    "told_to_stop": (told_to_stop, "Preempted", "after step 3", "preempted"),
    "infinite": (infinite, "DivergedError", "rank 1", "diverged"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_all_processes_end_and_tell_the_cause(name, tmp_path):
    fault, kind, text, state = FAULTS[name]
    results = on_ranks(2, run_with, fault, str(tmp_path), {}, folder=tmp_path)
    at_fault = 0 if name == "saving" else 1
    living = results[:1] if name in ("dying", "killed", "hanging") else results
    for rank, result in enumerate(living):
        same = rank == at_fault and name == "evaluating"
        assert result["error"] == ("ZeroDivisionError" if same else kind)
        assert ("no boxes" if same else text) in result["text"]
        assert result["seconds"] < 2 + 3 + 6  # the timeout, the wait for last words, the work
        if name in ("loading", "loading later", "evaluating", "saving") and rank != at_fault:
            assert result["text"].startswith(f"rank {at_fault}: ")
        shown = tmp_path / f"error{rank}.json"
        assert shown.exists() == (name != "told_to_stop")
        if shown.exists():  # what torchrun prints
            assert text in json.loads(shown.read_text())["message"]["message"]
    status = rundir.read_status(tmp_path / "run")
    assert status["state"] == state
    if name in ("loading later", "dying", "killed", "hanging", "told_to_stop"):
        assert checkpoint.load(tmp_path / "run/checkpoints/last.pt")["step"] == 3
    if name == "told_to_stop":
        assert status["reason"] == "SIGTERM to rank 1"
    if name == "infinite":
        assert results[0]["text"] == results[1]["text"]
        assert "step 4 (epoch 1.5, learning rate 0.0" in results[0]["text"]
        assert "classification/classification" in results[0]["text"]
    elif name != "told_to_stop":
        assert text in status["reason"]


def different(folder):
    spec = {**SMALL_RUNS["classification"], "output": f"{folder}/run"}
    collectives.setup()
    if collectives.rank() == 1:
        fewer = {**spec["data"]["train"], "num_images": 11}
        spec = {**spec, "data": {**spec["data"], "train": fewer}}
    train.train(spec)


def test_processes_with_other_data_are_told(tmp_path):
    for result in on_ranks(2, different, str(tmp_path), folder=tmp_path):
        assert result["error"] == "ConfigError"
        assert "rank 1 has data.main.train with 11 images, rank 0 has with 12" in (result["text"])


def other_seed(folder):
    collectives.setup()
    seed = collectives.rank()
    train.train(SMALL_RUNS["classification"], {"output": f"{folder}/run", "train.seed": seed})


def test_processes_with_other_settings_are_told(tmp_path):
    for result in on_ranks(2, other_seed, str(tmp_path), folder=tmp_path):
        assert result["error"] == "ConfigError"
        assert "rank 1 has train.seed 1, rank 0 has 0" in result["text"]


def skipping(folder):
    """One bad step of one process, and what each has afterwards."""
    with patch.object(train, "save_train_samples"):
        result = run_with(infinite, folder, {"on_nonfinite": "skip", "ema": 0.9})
    return result


def test_a_step_is_left_out_by_all(tmp_path):
    results = on_ranks(2, skipping, str(tmp_path), folder=tmp_path)
    assert [result["error"] for result in results] == [None, None]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    train = [r for r in map(json.loads, lines) if r["kind"] == "train"]
    assert [r.get("skipped_steps", 0) for r in train] == [0, 0, 0, 1, 1, 1]
    assert "train/total" not in train[3] and "train/total" in train[4]
    assert rundir.read_status(tmp_path / "run")["skipped_steps"] == 1
    saved = checkpoint.load(tmp_path / "run/checkpoints/last.pt")
    assert all(value.isfinite().all() for value in saved["model"].values())
