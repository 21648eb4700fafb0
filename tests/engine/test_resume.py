"""N steps equal k steps and a resumption, bit by bit: weights, moving average, optimizer, best
score, counters, the log. For every head, at every kind of step, however the run was cut off.

Here each value of a setting meets each one of every other setting, and every head is there.
Every head at every step, in each way, with more settings, takes some minutes:

    python -m pytest -m slow tests/test_resume.py tests/test_resume_ranks.py
"""

import itertools
import random

import pytest

from support.runs import (
    HOW,
    MODELS,
    STEPS,
    equal,
    outcome,
    read_status,
    spec,
    train,
    train_until,
)

FACTORS = {
    "stop_after": (1, 2, 3, 4),  # an epoch's first, mid and last step, and the next one's first;
    "accumulate_grad_batches": (1, 2),  # with 2, an epoch has two steps
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
    names = ("accumulate_grad_batches", "precision", "optimizer", "schedule", "ema", "log_every")
    loss = "objects/fcos/loss/total" if heads == "joint" else f"{heads}/loss/total"
    return {
        "weighting": weighting,
        "early_stop": 3,
        "lr": 0.02 if row["optimizer"] == "sgd" else 0.002,
        "best_metric": loss if row["best"] == "loss" else None,
        **{name: row[name] for name in names},
    }


def check_resuming(heads, weighting, row, folder, parts="parts"):
    chosen = settings(heads, weighting, row)
    whole = folder / "whole"
    if not whole.exists():
        train(spec(heads, whole, **chosen))
    config = spec(heads, folder / parts, workers=row["workers"], **chosen)
    train_until(config, row["stop_after"], row["how"])
    run = train(config, resume=True)
    equal(outcome(whole), outcome(run))
    assert read_status(run)["step"] == STEPS


ROWS = every_pair(FACTORS)
ENDLESS = zip(itertools.cycle(MODELS), itertools.cycle(ROWS))
CASES = list(itertools.islice(ENDLESS, max(len(MODELS), len(ROWS))))


@pytest.mark.parametrize(
    ("model", "row"),
    [
        pytest.param(
            m, r, marks=[pytest.mark.slow] * (i >= 5), id="-".join(map(str, (*m, *r.values())))
        )
        for i, (m, r) in enumerate(CASES)
    ],
)
def test_a_run_that_is_cut_off_goes_on_bit_for_bit(model, row, tmp_path):
    check_resuming(*model, row, tmp_path)


def test_every_head_is_among_the_cases():
    assert {model for model, _ in CASES} == set(MODELS)


@pytest.mark.parametrize("stop_after", [4, 6])
def test_the_count_for_early_stopping_goes_on(stop_after, tmp_path):
    """No validation is better than the first, at step 3: the run ends after that of step 9."""
    settings = {"steps": 30, "lr": 1e-12, "early_stop": 2, "best_metric": "classification/top5"}
    whole = train(spec("classification", tmp_path / "whole", **settings))
    parts = spec("classification", tmp_path / "parts", **settings)
    train_until(parts, stop_after, "signal")
    equal(outcome(whole), outcome(train(parts, resume=True)))
    assert read_status(whole)["step"] == 9


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_the_number_of_workers_changes_nothing(tmp_path):
    runs = [
        train(spec("pair", tmp_path / str(count), workers=count, steps=3)) for count in (0, 1, 2, 4)
    ]
    first, *others = map(outcome, runs)
    for other in others:
        equal(first, other)


# --- every head, at every step, in every way ---

ALL_SETTINGS = {name: FACTORS[name] for name in FACTORS if name not in ("stop_after", "how")}
ROWS = every_pair({**ALL_SETTINGS, "precision": ("fp32", "bf16", "fp16")})
FULL = [(*m, ROWS[(4 * i + k) % len(ROWS)]) for i, m in enumerate(MODELS) for k in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "weighting", "row"), FULL)
def test_every_head_at_every_step_in_every_way(heads, weighting, row, tmp_path):
    """13 models, for each 4 rows of settings, for each 12 ways to cut off: 624 cases."""
    ways = itertools.product(FACTORS["stop_after"], HOW)
    for number, (stop_after, how) in enumerate(ways):
        cut = {"stop_after": stop_after, "how": how, "workers": 2 * (number % 2)}
        check_resuming(heads, weighting, {**row, **cut}, tmp_path, parts=f"parts {number}")
