"""Runs with images made of several go on bit for bit, also where these end and sizes change."""

import itertools

import pytest

from support.runs import STEPS, equal, outcome, spec, train, train_until

CLOSED = 3  # of five steps: the first without images of several


def mixed(folder, workers=0, close_last=0.4, **settings):
    config = spec("fcos", folder, workers=workers, **settings)
    source = config["data"]["main"]
    source["transforms"] = [
        {"type": "ScaleJitter"},
        {"type": "Mosaic"},
        {"type": "Affine"},
        {"type": "CopyPaste", "share": 0.8, "p": 0.7},
        {"type": "HorizontalFlip"},
    ]
    source |= {"close_last": close_last, "multi_scale": [0.75, 2.0]}
    source["train"] = {**source["train"], "masks": True}
    return config


def check(folder, stop_after, how, workers, **settings):
    whole = outcome(train(mixed(folder / "whole", **settings)))
    parts = mixed(folder / "parts", workers, **settings)
    train_until(parts, stop_after, how)
    equal(whole, outcome(train(parts, resume=True)))
    return whole


def test_a_run_with_mosaics_goes_on_bit_for_bit(tmp_path):
    whole = check(tmp_path, CLOSED - 1, "signal", workers=0)
    open_to_the_end = outcome(train(mixed(tmp_path / "open", close_last=0.0)))
    with pytest.raises(AssertionError):
        equal(whole, open_to_the_end)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop_after", "how", "workers"),
    [*itertools.product(range(1, STEPS), ("signal", "kill"), (0, 2))],
)
def test_it_does_so_at_every_step(stop_after, how, workers, tmp_path):
    check(tmp_path, stop_after, how, workers, optimizer="adamw", lr=0.002, ema=0.9)
