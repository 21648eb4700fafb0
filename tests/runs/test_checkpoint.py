"""Checkpoints: whole or not at all, safe to read, and clear about what is wrong."""

import multiprocessing
import os
import pickle
import re
import resource

import numpy as np
import pytest
import torch
from torch import nn

from visionkit.errors import CheckpointError
from visionkit.runs import checkpoint


def test_round_trip(tmp_path):
    state = {"model": {"w": torch.arange(5.0)}, "step": 3, "metrics": {"a/b": float("nan")}}
    checkpoint.save(state, tmp_path / "last.pt")
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


class Poison(torch.Tensor):
    def __reduce_ex__(self, protocol):
        raise OSError(28, "No space left on device")


def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)
    poison = torch.zeros(2).as_subclass(Poison)
    with pytest.raises(CheckpointError, match="cannot be written: disk full: No space left"):
        checkpoint.save({"step": 2, "bad": poison}, path)
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)
    for bad in (np.float64(0.5), tmp_path, {1: [object()]}):
        with pytest.raises(TypeError, match=r"last\.pt/metrics/AP.*: is a .*, which a checkpoint"):
            checkpoint.save({"metrics": {"AP": bad}}, path)
    assert checkpoint.load(path)["step"] == 1


def test_a_file_system_that_takes_only_a_part_is_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)

    def save_too_much():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(CheckpointError, match=r"File too large \(errno 27\)"):
            checkpoint.save({"w": torch.zeros(1_000_000)}, path)

    child = multiprocessing.get_context("fork").Process(target=save_too_much)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_weights_that_do_not_fit_are_named(tmp_path):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    checkpoint.load_weights(model, weights, "x.pt")  # of another precision
    assert model[0].weight.dtype == torch.float32
    wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_weights(model, wrapped, "x.pt")
    text = str(caught.value)
    assert "x.pt: does not fit" in text and "12 missing: 0.weight, 0.bias" in text
    assert "12 unexpected: module.0.weight" in text and "5.bias" not in text
    weights["0.bias"] = torch.zeros(3)
    del weights["1.bias"]
    with pytest.raises(
        CheckpointError, match=r"1 missing: 1.bias\s.*0.bias \(3,\) instead of \(2,\)"
    ):
        checkpoint.load_weights(model, weights, "x.pt")


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save({"w": torch.zeros(10_000)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>", b"PK\x03\x04garbage"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt: cannot be read"):
        checkpoint.load(path)


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_loading_never_runs_code(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"format": 1, "x": Attack(marker)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"format": 1, "x": Attack(marker)}))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError):
            checkpoint.load(tmp_path / name)
    assert not marker.exists()


def test_newer_formats_and_other_files_are_refused(tmp_path):
    torch.save({"format": checkpoint.FORMAT + 1}, tmp_path / "new.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="upgrade"):
        checkpoint.load(tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="not a visionkit checkpoint"):
        checkpoint.load(tmp_path / "weights.pt")


def test_a_folder_is_not_said_to_be_missing(tmp_path):
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}: is a folder; give"):
        checkpoint.load_tensors(tmp_path)
