"""Runs that are really killed, and runs on two ranks, go on bit for bit as test_resume has it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import equal, outcome

HERE = Path(__file__).parent
CASES = {
    "killed": {"what": "vae", "ranks": 1, "stop_after": 2, "how": "kill", "workers": 2},
    "one is told to stop": {
        **{"what": "joint", "ranks": 2, "stop_after": 2, "how": "signal", "workers": 0},
        "weighting": "uncertainty",
    },
    "both are killed": {
        **{"what": "embedding", "ranks": 2, "stop_after": 4, "how": "kill", "workers": 2},
        **{"precision": "bf16", "ema": 0.9},
    },
    "both are killed in validation": {
        **{"what": "pair", "ranks": 2, "stop_after": 3, "how": "kill in validation", "workers": 0},
        **{"weighting": "pcgrad", "optimizer": "adamw", "accumulate": 2},
    },
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folders of all cases, by their names."""
    folder = tmp_path_factory.mktemp("forked")
    folders = {name: folder / str(number) for number, name in enumerate(CASES)}
    cases = [{"folder": str(folders[name]), **case} for name, case in CASES.items()]
    (folder / "cases.json").write_text(json.dumps(cases))
    result = subprocess.run(
        [sys.executable, str(HERE / "forked_runs.py"), str(folder / "cases.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
    )
    assert result.returncode == 0, result.stderr
    return folders


@pytest.mark.parametrize("name", CASES)
def test_a_run_on_ranks_goes_on_bit_for_bit(name, done):
    codes = json.loads((done[name] / "codes.json").read_text())
    if CASES[name]["how"] == "signal":
        assert codes == [75] * CASES[name]["ranks"]  # all stop, whichever was told
    else:
        assert -9 in codes and 0 not in codes
    equal(outcome(done[name] / "whole"), outcome(done[name] / "parts"))
