"""Every head of the package is in the lists by which heads are tested.

The contract tests and the export test find the heads by themselves.
"""

import pytest
from test_partial_labels import CLASS_LAYERS
from test_semantic import HEADS as SEMANTIC_HEADS

from golden.recipes import HEADS as GOLDEN
from support import small_runs
from visionkit.config import load_config
from visionkit.models import heads


def types(configs):
    """The types of all heads of some configs."""
    return {head["type"] for config in configs for head in config.values()}


@pytest.fixture(params=heads.__all__)
def head_class(request):
    return getattr(heads, request.param)


def test_it_has_golden_losses(head_class):
    assert head_class.__name__ in types(GOLDEN.values()), "add a recipe to tests/golden/recipes.py"


@pytest.fixture(scope="module")
def small_types():
    configs = [*small_runs.HEADS.values(), small_runs.joint()]
    return types(load_config(config).heads for config in configs)


def test_it_has_a_small_run(head_class, small_types):
    assert head_class.__name__ in small_types, "add a run to tests/support/small_runs.py"


def test_its_losses_are_tested_with_partial_labels(head_class):
    name = head_class.__name__
    if head_class.class_key == "labels" and not head_class.single_object:
        assert name in CLASS_LAYERS, "add its class layer to tests/models/test_partial_labels.py"
    if head_class.class_key == "semantic":
        assert head_class in SEMANTIC_HEADS, "add it to HEADS of tests/models/test_semantic.py"
