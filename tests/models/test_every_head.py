"""Every head of the package has an entry in the registry by which heads are tested.

The contract tests and the export tests find the heads by themselves.
"""

import json

import pytest

from golden import recipes
from support import small_runs
from support.heads import HEADS
from support.paths import ROOT
from visionkit.models import heads

FILE = "tests/support/heads.py"
LOSSES = "tests/golden/losses.json"


def test_the_registry_has_the_heads_of_the_package():
    missing, old = set(heads.__all__) - HEADS.keys(), HEADS.keys() - set(heads.__all__)
    assert not missing, f"add {sorted(missing)} to HEADS of {FILE}"
    assert not old, f"remove {sorted(old)} from HEADS of {FILE}"


def types(models):
    """The types of all heads of some models."""
    return {head["type"] for model in models for head in model.values()}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_has_a_golden_recipe_and_a_small_run(name):
    case = HEADS[name]
    small = [{"head": config["head"]} for config in small_runs.SMALL_RUNS.values()]
    small.append(small_runs.joint()["heads"])
    where = f"{FILE}: give {name} a `task`, or add it to"
    assert name in types(recipes.RECIPES.values()), f"{where} `joint` of tests/golden/recipes.py"
    assert name in types(small), f"{where} `joint` of tests/support/small_runs.py"
    stored = json.loads((ROOT / LOSSES).read_text())["losses"]
    assert case.task is None or case.name in stored, f"run tests/golden/write.py {case.name}"


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_finds_objects_is_tested_with_partial_labels(name):
    head = getattr(heads, name)
    if head.class_key == "labels" and not head.single_object:
        assert HEADS[name].class_layer, f"{FILE}: give {name} its `class_layer`"
