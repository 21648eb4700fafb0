"""Errors in the midst of training: what was reached is saved, and the message says what to do."""

import os
import resource
from pathlib import Path

import pytest
import torch

from support.runs import config, lines, read_status, same, start, state
from visionkit.config import load_config
from visionkit.data.datasets.coco import Coco
from visionkit.engine.failures import explain_errors
from visionkit.engine.train import train
from visionkit.errors import ConfigError, DataError, ResourceError
from visionkit.models.heads.classification import Classification
from visionkit.models.model import VisionModel
from visionkit.runs import files

SETTINGS = {"accumulate_grad_batches": 2, "steps": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(config(tmp_path_factory.mktemp("whole") / "run", **SETTINGS)).directory


def failing(monkeypatch, where, name, error, call):
    """The `call`-th call of a function raises `error`, after it has done its work."""
    function, calls = getattr(where, name), []

    def called(*args, **kwargs):
        result = function(*args, **kwargs)
        calls.append(1)
        if len(calls) == call:
            raise error
        return result

    monkeypatch.setattr(where, name, called)


CALL = 8 * 3 + 5 + 6
ERRORS = {  # in step 4, with two batches of four images to a step, and five to validate
    "a broken image": (Coco, "__getitem__", DataError("7.png: is broken"), CALL, DataError),
    "no memory for data": (Coco, "__getitem__", MemoryError(), CALL, ResourceError),
    "no memory to compute": (
        *(Classification, "loss"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        *(10, ResourceError),
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_the_state_after_the_last_whole_step_is_saved(case, whole, tmp_path, monkeypatch, caplog):
    """Also of batch norm, which the step has passed through already when memory runs out."""
    where, name, error, call, kind = ERRORS[case]
    run, spec = tmp_path / "run", config(tmp_path / "run", **SETTINGS)
    with monkeypatch.context() as patch:
        failing(patch, where, name, error, call)
        with pytest.raises(kind) as caught:
            train(spec)
    assert state(run)["step"] == 3, "step 2 was validated, and saved before"
    found = read_status(run)
    assert (found["state"], found["step"], found["checkpoint_step"]) == ("failed", 3, 3)
    assert found["exit_code"] == kind.exit_code and type(caught.value).__name__ in found["reason"]
    command = f"continue with: visionkit train --resume {run}"
    assert f"of step 3; when the problem is fixed, {command}" in caplog.records[-1].getMessage()
    if name == "loss":
        assert "batch_size 4, image_size 32" in str(caught.value)
        assert "smaller batch_size" in str(caught.value)
    train(spec, resume=True)
    equal = [same(state(run, file), state(whole, file)) for file in ("last.pt", "best.pt")]
    assert all(equal) and lines(run) == lines(whole)


def test_an_error_in_the_first_step_leaves_nothing_that_blocks(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, VisionModel, "features", DataError("7.png: is broken"), 1)
        with pytest.raises(DataError):
            train(config(tmp_path))
    assert read_status(tmp_path)["state"] == "failed"
    train(config(tmp_path, steps=1))


def test_a_head_that_raises(tmp_path, monkeypatch):
    """The run is failed, its checkpoint kept, and the traceback shows whose fault it is."""
    failing(monkeypatch, Classification, "loss", KeyError("speling"), 3)
    with pytest.raises(KeyError, match="speling") as caught:
        train(config(tmp_path, save_every=0))
    assert caught.traceback[-1].path == Path(__file__)
    found = read_status(tmp_path)
    assert (found["state"], found["exit_code"], found["step"]) == ("failed", 1, 2)
    assert found["reason"] == "KeyError: 'speling'" and state(tmp_path)["step"] == 2


def test_a_disk_that_cannot_save_what_is_left_does_not_hide_the_error(tmp_path, monkeypatch):
    failing(monkeypatch, Classification, "loss", MemoryError(), 3)
    failing(monkeypatch, os, "fsync", OSError(28, "No space left on device"), 3)
    with pytest.raises(ResourceError, match="out of memory"):
        train(config(tmp_path, validate=False))
    assert state(tmp_path)["step"] == 1


TEXTS = {
    "unable to open shared memory object </torch_7>: Too many open files (24)": "ulimit -n",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.": "batch_size",
    "Expected more than 1 value per channel when training, got [1, 8, 1, 1]": "norm: frozen",
}


@pytest.mark.parametrize("text", TEXTS)
def test_errors_with_a_known_remedy(text):
    kind = ConfigError if "per channel" in text else ResourceError
    with pytest.raises(kind, match=TEXTS[text]), explain_errors(load_config(config("x"))):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match=r"^another$"), explain_errors(load_config(config("x"))):
        raise RuntimeError("another")


def test_too_few_open_files(tmp_path):
    """A real limit of 64, and loader workers that need more."""
    spec = config(tmp_path / "run", workers=16)
    files.write_text(tmp_path / "c.yaml", files.to_json(spec))

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    child = start(["train", tmp_path / "c.yaml"], tmp_path / "log", limit)
    child.join(60)
    told = (tmp_path / "log").read_text()
    assert child.exitcode == 1 and "ulimit -n" in told and "data.workers" in told, told
    assert "Traceback" not in told
    assert read_status(tmp_path / "run")["state"] == "failed"


def test_data_sets_and_batches_of_one_image(tmp_path):
    """A batch larger than the data set is filled again from its start; one image with batch
    normalization and a single cell has no variance, which is said."""
    spec = config(tmp_path / "small", steps=2)
    spec["data"]["train"]["num_images"] = spec["data"]["val"]["num_images"] = 1
    train(spec)
    assert state(tmp_path / "small")["step"] == 2
    spec = config(tmp_path / "one", steps=2)
    spec["data"]["batch_size"] = 1
    train(spec)  # 64 cells: enough
    spec["backbone"]["channels"], spec["output"] = [4, 4, 4, 4, 4, 4], str(tmp_path / "cell")
    with pytest.raises(ConfigError, match=r"batch_size: .* use a larger batch_size"):
        train(spec)
