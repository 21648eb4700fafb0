"""Only regular files are opened, and a file of a run never through a link."""

import os
import signal
import socket

import pytest

import visionkit
from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.data.coco.index import open_index
from visionkit.data.datasets.idx import Idx
from visionkit.data.datasets.label_maps import LabelMaps
from visionkit.data.datasets.shapes import generate_shapes
from visionkit.data.image_io import read_image
from visionkit.errors import VisionkitError
from visionkit.metrics.coco.evaluator import evaluate_files
from visionkit.models.backbones.weights import read
from visionkit.runs import directory, files
from visionkit.visualization.curves import read_records


@pytest.fixture(autouse=True)
def no_hang():
    """Opening a pipe would wait for ever: SIGALRM ends the test, and with it the run of tests."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def not_regular(folder):
    """A path of each kind that is not a regular file."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
    (folder / "link").symlink_to(folder / "pipe")
    return {
        "pipe": "a named pipe",
        "link": "a named pipe",
        "folder": "a directory",
        "socket": "a device or socket",
        "/dev/zero": "a device or socket",
    }


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, what in not_regular(tmp_path).items():
        with pytest.raises(OSError, match=f"it is {what}, not a regular file"):
            files.open_regular(name)
    (tmp_path / "real").write_text("x")
    (tmp_path / "to-real").symlink_to("real")
    for name in ("real", "to-real"):
        with files.open_regular(name) as file:
            assert file.read() == b"x"
    with pytest.raises(OSError, match="it is a link"):
        files.open_regular("to-real", follow=False)
    with pytest.raises(FileNotFoundError):
        files.open_regular("missing")


def write_names(path):
    """`path` as the list of names of label maps."""
    folder = path.parent / "maps"
    (folder / "labels").mkdir(parents=True)
    (folder / "images").mkdir()
    return LabelMaps(str(folder / "images"), str(folder / "labels"), split=str(path), classes=["a"])


READERS = {
    "config": lambda path: load_config(path.rename(path.with_suffix(".yaml"))),
    "annotations": open_index,
    "truth": lambda path: evaluate_files(path, path, "bbox", "pycocotools"),
    "image": read_image,
    "weights": lambda path: read(str(path)),
    "checkpoint": visionkit.load,
    "init_from": lambda path: load_config({"task": "detection", "init_from": str(path)}),
    "IDX": lambda path: Idx(str(path), str(path)),
    "list of names": write_names,
}


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_no_reader_waits_for_a_pipe_or_reads_a_device(what, kind, tmp_path):
    path = tmp_path / "path"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(VisionkitError, match=r"path|pipe"):
        READERS[what](path)


def test_predict_and_eval_of_pipes_have_a_message(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.pt")
    assert main(["predict", str(tmp_path / "pipe.pt"), str(tmp_path), "--out", "x"]) == 4
    assert "pipe.pt: is a pipe or device" in capsys.readouterr().err


def test_a_pipe_or_link_among_the_files_of_a_run_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "status.json")
    assert directory.read_status(tmp_path) == {}
    os.mkfifo(tmp_path / "metrics.jsonl")
    for read_them in (lambda: read_records(tmp_path / "metrics.jsonl"),
                      lambda: directory.truncate_metrics(tmp_path, 1, 1, 1)):  # fmt: skip
        with pytest.raises(OSError, match="named pipe"):
            read_them()
    (tmp_path / "status.json").unlink()
    (tmp_path / "theirs.json").write_text('{"state": "running"}')
    (tmp_path / "status.json").symlink_to("theirs.json")
    assert directory.read_status(tmp_path) == {}


def test_nothing_is_written_through_a_link(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    for name in ("status.json", "metrics.jsonl"):
        (tmp_path / name).symlink_to(theirs)
    files.write_text(tmp_path / "status.json", "{}")
    assert not (tmp_path / "status.json").is_symlink()
    with pytest.raises(OSError, match="it is a link"):
        files.append_lines(tmp_path / "metrics.jsonl", "x\n")
    with files.replacing(tmp_path / "a.json") as file:
        temporary = next(tmp_path.glob("a.json.tmp.*"))
        file.write("1")
    temporary.symlink_to(theirs)  # where the next one would be
    files.write_text(tmp_path / "a.json", "2")
    assert (tmp_path / "a.json").read_text() == "2" and theirs.read_text() == "theirs"


def test_generated_data_replaces_no_folder_with_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "annotations.json")
    with pytest.raises(VisionkitError, match="not a generated shapes dataset"):
        generate_shapes(tmp_path, images=1)


def test_a_new_file_is_written_whole_or_not_at_all(tmp_path):
    files.write_new(tmp_path / "new", "text")
    assert (tmp_path / "new").read_text() == "text"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("new", "link"):
        with pytest.raises(FileExistsError):
            files.write_new(tmp_path / name, "other")
    assert (tmp_path / "new").read_text() == "text" and not (tmp_path / "nowhere").exists()
    with pytest.raises(UnicodeEncodeError):
        files.write_new(tmp_path / "half", "text" * 10_000 + "\ud800")
    assert not (tmp_path / "half").exists()
