"""Custom heads that break the contract: the error names the head and what it returned."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from support.small_runs import SMALL_RUNS
from visionkit.config.components import resolve
from visionkit.engine.evaluate import coverage_of, metric_names
from visionkit.engine.progress import Best
from visionkit.engine.train import train
from visionkit.errors import ConfigError
from visionkit.metrics.report import Coverage
from visionkit.models import contracts
from visionkit.models.head import Head
from visionkit.models.heads.classification import Classification
from visionkit.models.model import VisionModel
from visionkit.types import Batch, Loss

BOXES, SCORES = torch.zeros(2, 4), torch.ones(2)
LABELS = torch.zeros(2, dtype=torch.int64)
GOOD = {"boxes": BOXES, "scores": SCORES, "labels": LABELS, "masks": [{}, {}]}
BATCH = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [{"size": (8, 8), "orig_size": (8, 8)}])


class Gives(Head):
    """A head whose methods return what the test sets."""

    required_targets = ()
    main_metric = "score"

    def __init__(self, given=None, boxes_from=None):
        super().__init__()
        self.given, self.boxes_from = given, boxes_from

    def loss(self, features, batch):
        return self.given

    def forward(self, features, sizes=None, boxes=None):
        return {}

    def decode(self, outputs, batch):
        return self.given

    def evaluator(self, dataset):
        return self.given


class Scorer:
    """An evaluator whose metrics are what the test says."""

    def __init__(self, metrics):
        self.metrics = metrics

    def update(self, predictions, batch):
        raise NotImplementedError

    state = merge = update

    def compute(self):
        if isinstance(self.metrics, Exception):
            raise self.metrics
        return self.metrics


def model(**heads):
    return VisionModel(nn.Identity(), None, heads, dict.fromkeys(heads, 1.0))


ONE = torch.ones(())


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, ": got {}; expected a dict with a Loss(sum, count)"),
        (None, ": got None; expected a dict"),
        (torch.zeros(()), ": got float32 (); expected a dict"),
        ({"total": Loss(ONE, ONE)}, ": got 'total'; expected names of terms, not 'total'"),
        ({3: Loss(ONE, ONE)}, ": got 3; expected names of terms"),
        ({"a": ONE}, "term 'a': got float32 (); expected Loss(sum, count)"),
        ({"a": Loss(torch.zeros(2), ONE)}, "term 'a': sum: got float32 (2,); expected a float"),
        ({"a": Loss(ONE.long(), ONE)}, "term 'a': sum: got int64 (); expected a float tensor"),
        ({"a": Loss(ONE, 1)}, "term 'a': count: got 1; expected a tensor of shape ()"),
        ({"a": Loss(ONE, torch.ones(2))}, "term 'a': count: got float32 (2,); expected"),
        ({"a": Loss(ONE, ONE.clone().requires_grad_())}, "without a gradient"),
    ],
)
def test_losses(terms, message):
    with pytest.raises(ConfigError) as error:
        model(mine=Gives(terms)).losses({}, BATCH, ["mine"])
    assert str(error.value).startswith("heads.mine: loss()") and message in str(error.value)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "None; expected a list with a dict for each of the 1 images"),
        ({"boxes": BOXES}, "{'boxes': float32 (2, 4)}; expected a list"),
        ([], "a list of 0 (empty); expected a list"),
        ([{}, {}], "a list of 2 (dict); expected a list"),
        ([torch.zeros(3)], "float32 (3,); expected a dict"),
        ([{1: 2}], "{1: 2}; expected a dict of results by name"),
        ([{**GOOD, "boxes": torch.zeros(2, 5)}], "{'boxes': float32 (2, 5)}; expected a tensor (N"),
        ([{**GOOD, "boxes": [[0, 0, 1, 1]]}], "{'boxes': a list of 1 (list)}; expected a tensor"),
        ([{**GOOD, "boxes": torch.zeros(4)}], "{'boxes': float32 (4,)}; expected a tensor of 2"),
        ([{**GOOD, "scores": torch.ones(3)}], "{'scores': float32 (3,), 'boxes': float32 (2, 4)}"),
        ([{**GOOD, "masks": [{}]}], "{'masks': a list of 1 (dict), 'boxes': float32 (2, 4)}"),
        (
            [{**GOOD, "masks": torch.rand(2, 8, 8)}],
            "{'masks': float32 (2, 8, 8)}; expected a list of run-length codes",
        ),
        ([{"boxes": BOXES, "scores": SCORES}], "expected 'labels' next to 'boxes'"),
        ([{"boxes": BOXES, "labels": LABELS}], "expected 'scores' next to 'boxes'"),
        ([{**GOOD, "labels": [0, 1]}], "{'labels': a list of 2 (int)}; expected a tensor of 1 "),
        ([{"box": torch.zeros(4)}], "expected 'probs' next to 'box'"),
        ([{"probs": 0.5}], "{'probs': 0.5}; expected a tensor of 1 dimensions"),
        ([{"semantic": torch.zeros(1, 8, 8)}], "{'semantic': float32 (1, 8, 8)}; expected"),
    ],
)
def test_predictions(found, message):
    with pytest.raises(ConfigError) as error:
        model(mine=Gives(found)).predictions({}, BATCH, ["mine"])
    assert str(error.value).startswith("heads.mine: decode(): got ")
    assert message in str(error.value)


def test_sound_predictions_pass_as_they_are():
    found = [{**GOOD, "of_my_own": {"anything": ...}}]
    assert model(mine=Gives(found)).predictions({}, BATCH, ["mine"])["mine"] is found
    found = [{"scores": torch.zeros(2, 3)}]  # something else than scores of boxes
    assert model(mine=Gives(found)).predictions({}, BATCH, ["mine"])["mine"] is found
    assert model(mine=Gives([{}])).predictions({}, BATCH, ["mine"]) == {"mine": [{}]}


def test_a_head_on_boxes_of_one_that_gives_none():
    class Finder(Gives):
        required_targets = ("boxes",)

    both = model(mine=Finder([{}]), other=Gives([{}], boxes_from="mine"))
    with pytest.raises(ConfigError, match=r"heads\.mine: .*expected 'boxes': 'other' is on them"):
        both.predictions({}, BATCH, ["other"])


def test_an_evaluator_that_lacks_methods():
    evaluator = Scorer({})
    evaluator.merge = None
    with pytest.raises(ConfigError, match=r"heads\.mine: evaluator\(\): got .* has no merge "):
        model(mine=Gives(evaluator)).evaluator("mine", None)
    with pytest.raises(ConfigError, match=r": got None; .* no update, state, merge, compute "):
        model(mine=Gives()).evaluator("mine", None)


@pytest.mark.parametrize("bad", ["0.5", None, [0.5], torch.zeros(1), 1j])
def test_metrics_that_are_no_numbers(bad):
    with pytest.raises(ConfigError, match=r"heads\.mine: compute\(\) of its evaluator: got \{'a'"):
        contracts.checked_metrics("mine", {"a": bad})
    with pytest.raises(
        ConfigError, match=r": got \{'loss/a': 0.5\}; expected .*, not loss/\.\.\., "
    ):
        contracts.checked_metrics("mine", {"loss/a": 0.5})
    with pytest.raises(ConfigError, match="expected a dict of names"):
        contracts.checked_metrics("mine", bad)


def test_every_kind_of_number_becomes_a_float():
    given = {"a": np.float32(0.5), "b": torch.tensor(0.5), "c": 1, "d": math.nan}
    found = contracts.checked_metrics("mine", given)
    assert [type(value) for value in found.values()] == [float] * 4
    assert found["a"] == found["b"] == 0.5
    assert math.isnan(found["d"])


class Feeding:
    """As much of a source as `metric_names` looks at."""

    name, feeds, val = "data", ("mine",), ()


def test_an_evaluator_that_cannot_bear_to_have_seen_nothing():
    with pytest.raises(
        ConfigError, match=r"before it has seen an image \(ZeroDivisionError: by zero\)"
    ):
        metric_names(model(mine=Gives(Scorer(ZeroDivisionError("by zero")))), [Feeding])


def test_a_class_is_told_all_that_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from visionkit import Head\n"
        "class Bare(Head):\n    def loss(self, features, batch): ...\n"
        "class Text(Bare):\n    required_targets, main_metric, class_key = 'labels', 'a', 'label'\n"
        "    forward = decode = evaluator = Bare.loss\n"
        "    def __init__(self, levels, *, classes): ...\n"
        "class Known(Text):\n    required_targets, class_key = ('label',), 'labels'\n"
        "    def __init__(self, levels, classes): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as error:
        resolve("heads", "mine.Bare")
    for part in (
        "'required_targets' is None",
        "'main_metric' is None",
        "no forward()",
        "no decode()",
        "no evaluator()",
    ):
        assert part in str(error.value)
    assert "no loss()" not in str(error.value)
    with pytest.raises(
        ConfigError, match="its 'required_targets' is 'labels'; expected a tuple"
    ) as error:
        resolve("heads", "mine.Text")
    assert "its 'class_key' is 'label'; expected None or one of " in str(error.value)
    assert "its __init__ does not take (levels, classes, " in str(error.value)
    with pytest.raises(
        ConfigError, match=r"mine\.Known: its 'required_targets' is \('label',\); expected a"
    ):
        resolve("heads", "mine.Known")


def test_a_main_metric_that_is_never_computed_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Classification, "main_metric", "topp1")
    config = SMALL_RUNS["classification"] | {"output": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"main_metric .*/topp1'; did you mean '.*/top1'"):
        train(config)


def test_a_metric_that_is_missing_later():
    with pytest.raises(ConfigError, match=r"has no metric 'mine/score'.* valid: mine/other"):
        Best("mine/score", {}).score({"mine/other": 1.0})


@pytest.mark.parametrize("given", [None, [1], {"AP": 3}, {7: Coverage(1, 1, ())}])
def test_a_coverage_of_another_kind_is_named(given):
    scorer = Scorer({})
    scorer.coverage = lambda: given
    with pytest.raises(ConfigError, match=r"heads.mine: coverage\(\) of its evaluator: got"):
        coverage_of({"mine": scorer})


def test_an_evaluator_needs_no_coverage():
    assert coverage_of({"mine": Scorer({})}) == {}
