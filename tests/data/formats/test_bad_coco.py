"""COCO files with faults are converted, and outputs that would change the source are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support import exports
from visionkit.data.formats.convert import convert
from visionkit.errors import ArgumentError, ConfigError, DataError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    polygons = [[0, 0, 9, 9], [0, 0, 10, 0, 10, 10]]  # of two points and of three
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "segmentation": [each]}
        for i, each in enumerate(polygons, 1)
    ]
    image = {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}
    categories = [{"id": 1, "name": "cat"}]
    path = tmp_path / "a.json"
    record = {"images": [image], "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("to", ["coco", "yolo", "voc", "labelme", "cvat", "masks", "csv"])
def test_an_object_with_a_bad_mask_is_an_error_or_dropped(source, tmp_path, to):
    with pytest.raises(DataError, match=r"annotations\[0\] \(id 1\).*a polygon has 4 numbers"):
        convert(source, tmp_path / "out", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    done = convert(source, tmp_path / "out", to=to, skip_bad=True)
    assert (done.objects, done.dropped) == (1, {"bad-mask": 1})


def test_an_output_in_the_source_is_refused(source, tmp_path):
    convert(source, tmp_path / "labels", to="labelme", skip_bad=True)
    before = sorted(tmp_path.rglob("*"))
    for out, to in ("labels/a.json", "coco"), ("labels/sub", "yolo"), ("labels/../labels/x", "voc"):
        with pytest.raises(ConfigError, match="lies in the source"):
            convert(tmp_path / "labels", tmp_path / out, to=to)
    assert sorted(tmp_path.rglob("*")) == before


def test_boxes_with_a_negative_side_are_dropped_and_counted(source, tmp_path):
    content = json.loads(source.read_text())
    for one in content["annotations"]:
        del one["segmentation"]
    content["annotations"][0]["bbox"] = [20, 20, -5, 3]
    source.write_text(json.dumps(content))
    done = convert(source, tmp_path / "out", to="cvat")
    assert {"kind": "objects whose boxes have a negative side", "count": 1,
            "first": ["annotations[0]"]} in done.losses  # fmt: skip
    assert done.objects == 1


def test_parts_that_one_file_joins_are_named(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            exports.images(tmp_path / "in" / part / name, 1, part)
    done = convert(tmp_path / "in", tmp_path / "out.json")
    assert done.notes == ["the parts train and val are joined; --split NAME converts one"]
    assert convert(tmp_path / "in", tmp_path / "val.json", split="val").notes == []


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="SRC is empty"):
        convert("", tmp_path / "out.json")
