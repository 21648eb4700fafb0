"""What only torchrun itself can show: restarts, and the cause that it prints."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from support.paths import ROOT
from support.ranks import on_ranks
from support.small_runs import SMALL_RUNS
from visionkit.distributed import collectives
from visionkit.engine.train import train
from visionkit.runs import checkpoint

SCRIPT = """
import os, sys
from visionkit.cli.main import main
from visionkit.errors import DataError
from visionkit.engine.progress import Progress

advance = Progress.advance

def advance_and_more(self, *args, **kwargs):
    advance(self, *args, **kwargs)
    if self.step == 3 and os.environ["RANK"] == "1":
        if os.environ["FAULT"] == "raise":
            raise DataError("images/7.png: cannot be read")
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os._exit(9)

Progress.advance = advance_and_more
sys.exit(main(sys.argv[1:]))
"""


def torchrun(folder, fault, *options):
    (folder / "script.py").write_text(SCRIPT)
    spec = SMALL_RUNS["classification"]
    settings = {**spec["train"], "steps": 5, "validate": 1}
    spec = {**spec, "backbone": {**spec["backbone"], "norm": "batch"}, "train": settings}
    (folder / "run.yaml").write_text(json.dumps(spec))  # which is YAML too
    command = [sys.executable, "-m", "torch.distributed.run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAULT": fault}
    environment["PYTHONPATH"] = str(ROOT)
    result = subprocess.run(
        [*command, "--nproc-per-node", "2", *options, "script.py", "train", "run.yaml"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return spec, result


def trained(folder):
    return checkpoint.load(folder / "checkpoints/last.pt")


def uninterrupted(spec, output):
    collectives.setup()
    train(spec, {"output": output})


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", ["--standalone", "--master-port"])
def test_a_restarted_run_ends_with_the_weights_of_an_uninterrupted_one(rendezvous, tmp_path):
    """Also where nobody named its directory, and where torchrun's store keeps dead ranks."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = [] if rendezvous == "--standalone" else [str(free.getsockname()[1])]
    spec, result = torchrun(tmp_path, "die", rendezvous, *port, "--max-restarts", "1")
    assert result.returncode == 0, result.stderr
    assert "rank 1 has gone" in result.stderr
    assert "restarted by torchrun: runs/run-001 continues" in result.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run-001"]
    on_ranks(2, uninterrupted, spec, str(tmp_path / "whole"), folder=tmp_path)
    first, second = trained(tmp_path / "runs/run-001"), trained(tmp_path / "whole")
    assert first["step"] == second["step"] == 5
    for name, value in second["model"].items():
        assert torch.equal(value, first["model"][name]), name
    for file in (tmp_path / "runs/run-001", tmp_path / "whole"):
        steps = [json.loads(line) for line in (file / "metrics.jsonl").read_text().splitlines()]
        assert [s["step"] for s in steps if s["kind"] == "train"] == [1, 2, 3, 4, 5]
    lines = result.stderr.splitlines()
    assert sum(line.startswith("run runs/run-001") for line in lines) == 2  # by rank 0 alone


@pytest.mark.slow
def test_torchrun_shows_the_cause_without_a_traceback_of_ours(tmp_path):
    _, result = torchrun(tmp_path, "raise", "--standalone")
    assert result.returncode == 1
    cause = result.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in cause and "exitcode  : 3" in cause
    assert "traceback : images/7.png: cannot be read" in cause
    assert "error: rank 1: images/7.png: cannot be read" in result.stderr
    assert "visionkit/engine/train.py" not in result.stderr
    status = json.loads((tmp_path / "runs/run-001/status.json").read_text())
    assert status["state"] == "failed"
    assert status["reason"] == "DataError: rank 1: images/7.png: cannot be read"
