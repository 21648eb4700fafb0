"""The checkpoints of a run: at every moment a whole one is there, and a damaged one is found."""

import errno
import logging
import os

import pytest
import torch

import visionkit
from support.runs import config, lines, read_status, same, state
from visionkit.engine.train import train
from visionkit.errors import CheckpointError
from visionkit.runs import checkpoint


def of_step(step):
    """The least that is a checkpoint of a run."""
    return {"step": step, "config": {}, "classes": {}, "model": {}}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in (1, 2):
        checkpoint.save_last(tmp_path, of_step(step))
    return tmp_path


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def steps(run):
    return [state_step(run, name) for name in ("last.pt", "prev.pt")]


def state_step(run, name):
    return checkpoint.load(run / "checkpoints" / name)["step"]


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped bit":
        data[data.index(b"step")] ^= 1
    path.write_bytes({"cut short": data[:-20], "empty": b"", "not ours": b"<html>"}.get(how, data))


def test_the_newest_two_are_kept(run):
    assert steps(run) == [2, 1]
    checkpoint.save_last(run, of_step(3))
    assert steps(run) == [3, 2] and names(run) == ["last.pt", "prev.pt"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_at_no_moment_is_there_no_checkpoint(run, links, monkeypatch):
    """A crash before each of the calls that change the folder."""
    seen = []
    for name in ("link", "replace", "unlink"):
        call = getattr(os, name)

        def looked(*args, call=call, name=name, **kwargs):
            path, _ = checkpoint.load_latest(run, resume=True)
            seen.append((name, path.name, state_step(run, path.name)))
            if name == "link" and not links:
                raise OSError(errno.EPERM, "Operation not permitted")
            return call(*args, **kwargs)

        monkeypatch.setattr(os, name, looked)
    checkpoint.save_last(run, of_step(3))
    calls = ["link", "replace", "replace"]
    assert [name for name, _, _ in seen][:3] == calls
    found = [(file, step) for _, file, step in seen][:3]
    assert found == [("last.pt", 2), ("last.pt", 2), ("last.pt", 3) if links else ("prev.pt", 2)]
    assert steps(run) == [3, 2] and names(run) == ["last.pt", "prev.pt"]


@pytest.mark.parametrize("call", ["link", "replace", "fsync"])
def test_a_call_that_fails_leaves_what_was_there(run, call, monkeypatch):
    """As on a network mount that refuses to rename."""

    def failing(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        if call == "link":  # which is not needed
            checkpoint.save_last(run, of_step(3))
        else:
            with pytest.raises(CheckpointError, match=r"last\.pt: cannot be written: Input/output"):
                checkpoint.save_last(run, of_step(3))
    assert steps(run) == ([3, 2] if call == "link" else [2, 1])
    assert names(run) == ["last.pt", "prev.pt"]


@pytest.mark.parametrize("how", ["cut short", "flipped bit", "empty", "not ours"])
def test_a_damaged_one_is_replaced_by_the_one_before_with_a_warning(run, how, caplog):
    last = run / "checkpoints/last.pt"
    damage(last, how)
    for resume in (True, False):
        caplog.clear()
        path, content = checkpoint.load_latest(run, resume=resume)
        assert (path.name, content["step"]) == ("prev.pt", 1)
        first, second = [record.getMessage() for record in caplog.records]
        assert str(last) in first and ("damaged" in first or "cannot be read" in first)
        assert "prev.pt of step 1 instead" in second
    damage(run / "checkpoints/prev.pt", "cut short")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_latest(run, resume=True)
    assert "last.pt: " in str(caught.value) and "prev.pt: cannot be read" in str(caught.value)


def test_any_flipped_bit_is_found_or_harmless(tmp_path):
    """Every fifth byte of a file: damage is told, or what is loaded is the same."""
    path = tmp_path / "x.pt"
    content = {"w": torch.arange(50.0), "step": 7, "names": ["a", "b"]}
    checkpoint.save(content, path)
    whole, told = path.read_bytes(), 0
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            found = checkpoint.load(path)
        except CheckpointError:
            told += 1
        else:
            assert same(found, {"format": 1, **content}), place
    assert told > 100


def test_a_newer_format_is_no_damage(run):
    torch.save({"format": checkpoint.FORMAT + 1}, run / "checkpoints/last.pt")
    with pytest.raises(CheckpointError, match="upgrade"):
        checkpoint.load_latest(run, resume=True)


def test_what_a_run_is_loaded_from(tmp_path, run, caplog):
    with pytest.raises(CheckpointError, match="not found; expected a run"):
        checkpoint.load_latest(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no .*prev\.pt; start again"):
        checkpoint.load_latest(tmp_path / "checkpoints", resume=True)
    assert checkpoint.load_latest(run)[0].name == "last.pt"
    assert "best.pt missing: " in caplog.text and "last.pt of step 2" in caplog.text
    checkpoint.save(of_step(1), run / "checkpoints/best.pt")
    assert checkpoint.load_latest(run)[0].name == "best.pt"
    assert checkpoint.load_latest(run, resume=True)[0].name == "last.pt"
    caplog.clear()
    (run / "checkpoints/last.pt").unlink()
    assert checkpoint.load_latest(run, resume=True)[0].name == "prev.pt"
    assert "last.pt missing: " in caplog.text and "prev.pt of step 1 instead" in caplog.text


def test_a_run_goes_on_from_prev_to_the_same_end(tmp_path, caplog):
    """last.pt and best.pt are damaged; resuming says so and ends as if nothing had happened."""
    whole = train(config(tmp_path / "whole", save_every=0)).directory
    spec = config(tmp_path / "run", save_every=0)
    train({**spec, "train": {**spec["train"], "steps": 3}})
    run = tmp_path / "run"
    for step in (1, 2):  # a last.pt and a prev.pt of a run that is not finished
        checkpoint.save({**partial(tmp_path, step), "step": step}, file(run, step))
    damage(file(run, 2), "flipped bit")
    damage(run / "checkpoints/best.pt", "cut short")
    caplog.set_level(logging.WARNING, "visionkit")
    train(spec, resume=True)
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "last.pt: is damaged" in told and "best.pt: cannot be read" in told
    assert same(state(run), state(whole)) and same(state(run, "best.pt"), state(whole, "best.pt"))
    assert lines(run) == lines(whole)
    assert "last.pt.damaged" in names(run) and "best.pt.damaged" in names(run)
    assert read_status(run)["state"] == "finished"
    (run / "checkpoints/best.pt").write_bytes(b"")
    visionkit.load(run)
    assert "best.pt: cannot be read" in caplog.records[-2].getMessage()


def file(run, step):
    return run / "checkpoints" / ("last.pt" if step == 2 else "prev.pt")


def partial(folder, step):
    """The checkpoint after that step of a run of four."""
    from visionkit.engine.progress import Progress

    spec = config(folder / f"until-{step}", save_every=0)
    advance = Progress.advance

    class Enough(Exception):
        pass

    def stop(self, *args, **kwargs):
        if self.step == step:
            raise Enough
        advance(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "advance", stop)
        with pytest.raises(Enough):
            train(spec)
    return checkpoint.load(folder / f"until-{step}" / "checkpoints/last.pt")
