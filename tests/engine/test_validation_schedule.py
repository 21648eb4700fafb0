"""After which steps a run is validated."""

import copy

import pytest

from support.small_runs import SMALL_RUNS
from visionkit.config import load_config
from visionkit.engine.progress import LONG, Progress


def validated(total, per_epoch, tmp_path, validate=True):
    """The steps of a run of `total` steps after which it is validated."""
    spec = copy.deepcopy(SMALL_RUNS["classification"])
    spec["train"] |= {"steps": total, "validate": validate}
    progress = Progress(load_config(spec), tmp_path, total, per_epoch)
    steps = []
    for step in range(total + 1):
        progress.step = step
        if progress.validation_due:
            steps.append(step)
            progress.metrics, progress.validated_at = {"top1": 0.0}, step
            assert not progress.validation_due  # once is enough
    return steps


@pytest.mark.parametrize(
    ("total", "per_epoch", "expected"),
    [
        (80, 10, [10, 20, 30, 40, 50, 60, 70, 80]),  # each epoch
        (95, 10, [10, 20, 30, 40, 50, 60, 70, 80, 90, 95]),  # and at the end
        (16, 16, [2, 4, 6, 8, 10, 12, 14, 16]),  # of one epoch
        (30, 10, [4, 8, 12, 15, 19, 23, 27, 30]),
        (3, 3, [1, 2, 3]),  # there are no more
    ],
)
def test_by_default_every_epoch_and_at_least_eight_times(total, per_epoch, expected, tmp_path):
    assert validated(total, per_epoch, tmp_path) == expected


def test_a_long_run_is_also_validated_before_its_first_step(tmp_path):
    assert validated(LONG, LONG // 10, tmp_path)[:2] == [0, LONG // 10]
    assert validated(LONG - 1, LONG // 10, tmp_path)[0] > 0
    assert validated(LONG, LONG // 10, tmp_path, validate=1)[0] > 0


def test_a_number_means_epochs(tmp_path):
    assert validated(30, 10, tmp_path, validate=1) == [10, 20, 30]
    assert validated(35, 10, tmp_path, validate=2) == [20, 35]
    assert validated(35, 10, tmp_path, validate=False) == []
