"""N steps equal k steps and a resumption, bit by bit: weights, moving average, optimizer, best
score, counters, the log. For every head, at every kind of step, however the run was cut off.

Here each value of a setting meets each one of every other setting, and every head is there.
Every head at every step, in each way, without and with workers, takes some minutes:

    python -m pytest -m slow tests/test_resume.py
"""

import itertools
import random

import pytest
from runs import HEADS, HOW, STEPS, equal, outcome, read_status, spec, train, train_until

WEIGHTINGS = ("fixed", "uncertainty", "pcgrad")
MODELS = [(name, "fixed") for name in HEADS if name != "attributes"]  # that one needs another
MODELS += [("joint", weighting) for weighting in WEIGHTINGS]
FACTORS = {
    "stop_after": (1, 2, 3, 4),  # an epoch's first, mid and last step, and the next one's first;
    "accumulate": (1, 2),  # with 2, an epoch has two steps
    "how": HOW,
    "workers": (0, 2),
    "precision": ("fp32", "bf16"),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "multistep", "constant"),
    "ema": (0.0, 0.9),
    "log_every": (1, 3),
    "best": ("metric", "loss"),
}


def every_pair(factors):
    """Rows in which any two values of two settings stand together at least once."""
    rng = random.Random(21)  # a seed with few rows
    names = list(factors)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(factors[a], factors[b])
    }

    def covered(row):
        return missing & set(itertools.combinations(row.items(), 2))

    rows = []
    while missing:
        tries = [{name: rng.choice(factors[name]) for name in names} for _ in range(200)]
        rows.append(max(tries, key=lambda row: len(covered(row))))
        missing -= covered(rows[-1])
    return rows


def settings(heads, weighting, row):
    """What to train and to where it goes: the settings of `spec`."""
    names = ("accumulate", "precision", "optimizer", "schedule", "ema", "log_every")
    loss = "objects/fcos/loss/total" if heads == "joint" else f"{heads}/loss/total"
    return {
        "weighting": weighting,
        "early_stop": 3,
        "lr": 0.02 if row["optimizer"] == "sgd" else 0.002,
        "best": loss if row["best"] == "loss" else None,
        **{name: row[name] for name in names},
    }


def check_resuming(heads, weighting, row, folder):
    chosen = settings(heads, weighting, row)
    whole = folder / "whole"
    if not whole.exists():
        train(spec(heads, whole, **chosen))
    parts = spec(heads, folder / "parts", workers=row["workers"], **chosen)
    train_until(parts, row["stop_after"], row["how"])
    run = train(parts, resume=True)
    equal(outcome(whole), outcome(run))
    assert read_status(run)["step"] == STEPS


CASES = list(zip(itertools.cycle(MODELS), every_pair(FACTORS)))


@pytest.mark.parametrize(
    ("model", "row"), CASES, ids=["-".join(map(str, (*m, *r.values()))) for m, r in CASES]
)
def test_a_run_that_is_cut_off_goes_on_bit_for_bit(model, row, tmp_path):
    check_resuming(*model, row, tmp_path)


def test_every_head_is_among_the_cases():
    assert {model for model, _ in CASES} == set(MODELS)
