"""Checkpoints: whole or not at all, safe to read, and clear about what is wrong."""

import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from visionkit import checkpoint
from visionkit.errors import CheckpointError


def test_round_trip(tmp_path):
    state = {"model": {"w": torch.arange(5.0)}, "step": 3, "metrics": {"a/b": float("nan")}}
    checkpoint.save(state, tmp_path / "last.pt")
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


class Poison:
    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save({"step": 2, "bad": Poison()}, path)
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)
    script = textwrap.dedent(f"""
        import resource, signal, torch
        from pathlib import Path
        from visionkit import checkpoint
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        checkpoint.save({{"w": torch.zeros(1_000_000)}}, Path({str(path)!r}))
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "CheckpointError" in result.stderr
    assert "cannot be written: File too large (errno 27)" in result.stderr
    assert checkpoint.load(path)["step"] == 1


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
