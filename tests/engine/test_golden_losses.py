"""Twenty steps of every task against stored losses: no change goes unseen into what is learned.

If one of these fails because of a change that is meant, `python tests/golden/write.py` writes the
file again; its diff belongs to that change.
"""

import json
import math

import pytest

from golden.recipes import RECIPES, STEPS, losses, machine
from support.paths import ROOT

STORED = json.loads((ROOT / "tests/golden/losses.json").read_text())
SAME_MACHINE = STORED["machine"] == machine()

# On others: at least 5 times what AVX2, SSE4.1 and plain code of torch, oneDNN and MKL changed.
RELATIVE, ABSOLUTE, RELATIVE_NORM = 5e-4, 1e-4, 2e-3


def close(name, stored, found):
    relative = RELATIVE_NORM if name == "grad_norm" else RELATIVE
    return math.isclose(stored, found, rel_tol=relative, abs_tol=ABSOLUTE)


def difference(stored, found, exact):
    """The first difference as a text, or None."""
    if stored.keys() != found.keys():
        return f"other terms: {sorted(stored.keys() ^ found.keys())}"
    for step in range(STEPS):
        for name in stored:
            old, new = stored[name][step], found[name][step]
            if not (old == new if exact else close(name, old, new)):
                return f"step {step + 1}: {name} is {new!r}, was {old!r}"
    return None


@pytest.mark.parametrize("task", RECIPES)
def test_losses_are_the_stored_ones(task):
    """To the last digit where processor and libraries are those of the file, else nearly."""
    found = losses(task)
    assert {len(column) for column in found.values()} == {STEPS}
    assert difference(STORED["losses"][task], found, exact=SAME_MACHINE) is None


def test_every_recipe_is_stored_and_trains():
    assert STORED["losses"].keys() == RECIPES.keys(), "run python tests/golden/write.py TASK"
    for columns in STORED["losses"].values():
        assert all(math.isfinite(x) for column in columns.values() for x in column)
        assert min(columns["grad_norm"]) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"train.lr": 0.0202},
        {"heads.scene.weight": 1.01},
        {"heads.scene.label_smoothing": 0.01},
    ],
    ids=str,
)
def test_small_changes_are_noticed_on_every_machine(change):
    """A negative control: the tolerance for other machines is not too wide."""
    found = losses("classification", change)
    assert difference(STORED["losses"]["classification"], found, exact=False)


def test_one_digit_is_noticed_where_equality_is_asked_for():
    stored = STORED["losses"]["vae"]
    changed = {name: list(column) for name, column in stored.items()}
    assert difference(stored, changed, exact=True) is None
    changed["total"][-1] = math.nextafter(changed["total"][-1], 0)
    assert "step 20: total is" in difference(stored, changed, exact=True)
    assert difference(stored, changed, exact=False) is None
    del changed["total"]
    assert difference(stored, changed, exact=False) == "other terms: ['total']"
