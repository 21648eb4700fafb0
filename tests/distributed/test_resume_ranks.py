"""Runs that are really killed, and runs on two ranks, go on bit for bit as test_resume has it."""

import json
import os
import subprocess
import sys

import pytest

from support.paths import ROOT
from support.runs import MODELS, equal, outcome

CASES = {
    "killed": {"what": "vae", "ranks": 1, "cuts": [(2, "kill", 0)]},
    "one is told to stop": {
        **{"what": "joint", "ranks": 2, "cuts": [(2, "signal", 0)]},
        "weighting": "uncertainty",
    },
    "both are killed": {
        **{"what": "embedding", "ranks": 2, "cuts": [(4, "kill", 2)]},
        **{"precision": "bf16", "ema": 0.9, "unfreeze_after": {"^backbone": 1}},
    },
    "both are killed in validation": {
        **{"what": "pair", "ranks": 2, "cuts": [(3, "kill in validation", 0)]},
        **{"weighting": "pcgrad", "optimizer": "adamw", "accumulate_grad_batches": 2},
    },
}


def run_all(cases, folder):
    """The folders of all cases, by their names."""
    folders = {name: folder / str(number) for number, name in enumerate(cases)}
    listed = [{"folder": str(folders[name]), **case} for name, case in cases.items()]
    (folder / "cases.json").write_text(json.dumps(listed))
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests/support/forked_runs.py"), str(folder / "cases.json")],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        },
    )
    assert result.returncode == 0, result.stderr
    return folders


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run_all(CASES, tmp_path_factory.mktemp("forked"))


def check(folder, case):
    whole = outcome(folder / "whole")
    for number, (_, how, _) in enumerate(case["cuts"]):
        codes = json.loads((folder / f"codes {number}.json").read_text())
        if how == "signal":
            assert codes == [75] * case["ranks"]  # all stop, whichever was told
        else:
            assert -9 in codes and 0 not in codes
        equal(whole, outcome(folder / f"parts {number}"))


@pytest.mark.parametrize("name", CASES)
def test_a_run_on_ranks_goes_on_bit_for_bit(name, done):
    check(done[name], CASES[name])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("what", "weighting"), MODELS)
def test_every_head_on_two_ranks(what, weighting, tmp_path):
    """13 models, each cut off at each of 4 steps: 52 cases."""
    cuts = [(1, "kill", 2), (2, "signal", 0), (3, "kill in validation", 2), (4, "signal", 2)]
    case = {"what": what, "ranks": 2, "cuts": cuts, "weighting": weighting, "ema": 0.9}
    check(run_all({"": case}, tmp_path)[""], case)
