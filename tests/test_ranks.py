"""Two processes train to what one does, whatever the head."""

import json

import pytest
import torch
from ranks import on_ranks
from small_runs import HEADS, joint

from visionkit import checkpoint
from visionkit.training import train

WEIGHTS, LOSSES = 2e-5, 1e-5  # largest difference; relative difference
BATCH_NORM = {"type": "tiny.TinyCNN", "channels": [8, 16], "norm": "batch"}


def cases():
    found = {
        **HEADS,
        "joint": joint(),
        "pcgrad": joint(weighting="pcgrad"),
        "uncertainty": joint(weighting="uncertainty", accumulate=2, ema=0.9),
        "sync": {**HEADS["fcn"], "backbone": BATCH_NORM},
        "unsync": {**HEADS["fcn"], "backbone": BATCH_NORM},
    }
    settings = {**HEADS["fcn"]["train"], "sync_batchnorm": True}
    found["sync"] = {**found["sync"], "train": settings}
    return found


def train_all(folder):
    """Every case into a folder of its own; the state of the last process' model is kept aside."""
    for name, spec in cases().items():
        train(spec, {"output": f"{folder}/{name}"})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    assert on_ranks(2, train_all, str(two), folder=two) == [None, None]
    train_all(one)
    return one, two


def weights(run):
    return checkpoint.load(run / "checkpoints/last.pt")["model"]


def records(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def difference(first, second):
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)


@pytest.mark.parametrize("name", [name for name in cases() if name != "unsync"])
def test_two_processes_train_to_the_weights_of_one(name, runs):
    one, two = (run / name for run in runs)
    assert difference(weights(one), weights(two)) < WEIGHTS
    for kind in ("train", "val"):
        first, second = records(one, kind), records(two, kind)
        assert len(first) == len(second) == {"train": 3, "val": 1}[kind]  # written once
        for a, b in zip(first, second, strict=True):
            losses = [key for key in a if "loss" in key or key.startswith("train/")]
            assert {k: b[k] for k in losses} == pytest.approx(
                {k: a[k] for k in losses}, rel=1e-4, abs=LOSSES
            )
