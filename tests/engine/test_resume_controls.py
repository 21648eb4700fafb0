"""Negative controls of the comparison in test_resume: whatever part of the saved state is lost or
wrong, the resumed run differs from the whole one. A part that changed nothing would be needless, or
the comparison blind."""

import shutil

import pytest

from support.runs import equal, outcome, spec, train, train_until
from visionkit.data.loading.source import Source
from visionkit.engine import optim
from visionkit.engine import train as training
from visionkit.engine.optim import ModelEMA, PCGrad
from visionkit.runs import checkpoint, directory

SETTINGS = {
    "steps": 7,  # epochs of 3 steps
    "ema": 0.9,
    "weighting": "uncertainty",
    "log_every": 2,
    "lr": 0.02,
    "best_metric": "classification/top5",  # 1 from the start: no later one is better
}
STOP_AFTER = 5  # in the middle of an epoch, and of what the log averages over


class Half:
    """A run that was cut off, the whole one, and copies of the first to break and to go on with."""

    def __init__(self, folder, heads, stop_after, how="signal", **settings):
        self.folder, self.heads, self.settings = folder, heads, settings
        self.whole = outcome(train(spec(heads, folder / "whole", **settings)))
        self.run = train_until(spec(heads, folder / "half", **settings), stop_after, how)

    def resumed(self, name, damage=lambda state: None):
        """What the run leaves that goes on from the damaged state."""
        run = self.folder / name
        shutil.copytree(self.run, run)
        state = checkpoint.load(run / "checkpoints" / "last.pt")
        damage(state)
        checkpoint.save(state, run / "checkpoints" / "last.pt")
        return outcome(train(spec(self.heads, run, **self.settings), resume=True))


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return Half(tmp_path_factory.mktemp("pair"), "pair", STOP_AFTER, **SETTINGS)


def zero(tensors):
    for tensor in tensors:
        tensor.zero_()


def of(state, group, word):
    found = [value for name, value in state[group].items() if word in name]
    assert found, word
    return found


DAMAGES = {
    "a weight": lambda s: zero(of(s, "model", "backbone.stages.0.0.weight")),
    "the statistics of batch norms": lambda s: zero(of(s, "model", "running_mean")),
    "the learned weights": lambda s: zero(of(s, "model", "log_variances")),
    "the average": lambda s: s["average"].update(s["model"]),
    "the optimizer": lambda s: zero(
        [v for slot in s["optimizer"]["state"].values() for v in slot.values()]
    ),
    "the step": lambda s: s.update(step=s["step"] - 1),
    "the log's sums": lambda s: zero(s["window"]["sums"].values()),
    "the log's steps": lambda s: s["window"].update(steps=s["window"]["steps"] + 1),
    "the best score": lambda s: s["best"].update(score=None),
    "the validations since": lambda s: s["best"].update(stale=s["best"]["stale"] + 1),
    "the metrics of the best": lambda s: s.update(metrics={}),
    "the steps left out": lambda s: s.update(skipped=[1, *s["skipped"][1:]]),
    "the last validation": lambda s: s.update(validated_at=0),
}


def test_the_undamaged_run_goes_on_as_the_whole_one(half):
    equal(half.whole, half.resumed("undamaged"))


@pytest.mark.parametrize("part", DAMAGES)
def test_each_part_of_the_state_is_needed_and_compared(part, half):
    with pytest.raises(AssertionError):
        equal(half.whole, half.resumed(part, DAMAGES[part]))


def test_every_part_of_the_state_has_its_control(half):
    """What a checkpoint holds beside what it is of."""
    state = checkpoint.load(half.run / "checkpoints" / "last.pt")
    known = {"model", "average", "optimizer", "step", "window", "best", "metrics", "validated_at"}
    known |= {"scaler", "skipped"}  # the scaler has a test of its own
    known |= {"thresholds"}  # so have they
    identity = {"format", "config", "name", "classes", "world_size", "images", "fingerprints"}
    assert state.keys() - identity == known
    assert state["window"].keys() == {"sums", "steps"}
    assert state["best"].keys() == {"score", "stale"}


# --- what is not saved, because it is a function of the step ---


def forgetful(function, place, stop_after=STOP_AFTER):
    """The function as if the run began where it was resumed: `step` is its argument `place`."""

    def forgets(*args, **kwargs):
        args = list(args)
        if place in kwargs:
            kwargs[place] = 0
        else:
            args[place] -= stop_after
        return function(*args, **kwargs)

    return forgets


FORGOTTEN = {
    "the place in the stream": (Source, "train_batches", "start"),
    "the seed of a step": (training, "seed_step", 1),
    "the schedule": (optim, "lr_factor", 0),
    "the growing decay of the average": (ModelEMA, "update", 1),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_depends_on_the_step_is_compared(what, half, monkeypatch):
    owner, name, place = FORGOTTEN[what]
    monkeypatch.setattr(owner, name, forgetful(getattr(owner, name), place))
    with pytest.raises(AssertionError):
        equal(half.whole, half.resumed(what))


def test_the_order_of_gradient_surgery_is_compared(tmp_path, monkeypatch):
    half = Half(tmp_path, "three", 3, steps=7, lr=0.02, weighting="pcgrad")
    equal(half.whole, half.resumed("undamaged"))
    monkeypatch.setattr(PCGrad, "finish", forgetful(PCGrad.finish, 1, 3))
    with pytest.raises(AssertionError):
        equal(half.whole, half.resumed("forgotten"))


def test_lines_of_the_log_beyond_the_checkpoint_are_compared(tmp_path, monkeypatch):
    half = Half(tmp_path, "classification", 4, how="kill")
    monkeypatch.setattr(directory, "truncate_metrics", lambda *args: None)
    with pytest.raises(AssertionError, match="lines"):
        equal(half.whole, half.resumed("not truncated"))


def test_the_scaler_of_fp16_is_needed_and_compared(tmp_path):
    half = Half(tmp_path, "classification", 3, precision="fp16")
    equal(half.whole, half.resumed("undamaged"))
    for key in ("scale", "_growth_tracker"):
        with pytest.raises(AssertionError):
            equal(half.whole, half.resumed(key, lambda s, key=key: s["scaler"].update({key: 1})))
