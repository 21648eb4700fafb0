"""Panoptic COCO files: ids in three channels, stuff and crowds, and what is refused."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from visionkit.data.formats.convert import convert
from visionkit.errors import DataError

IDS = np.array([[0, 256, 256], [3, 66051, 3]])  # 66051 = 3 + 256 * 2 + 65536 * 1


def written(folder, change=None, ids=IDS):
    """A panoptic file of one image with three segments."""
    data = {
        "images": [{"id": 9, "file_name": "a.jpg", "height": 2, "width": 3}],
        "annotations": [
            {"image_id": 9, "file_name": "a.png", "segments_info": [
                {"id": 256, "category_id": 1, "iscrowd": 0, "area": 2, "bbox": [1, 0, 2, 1]},
                {"id": 3, "category_id": 7, "iscrowd": 0},
                {"id": 66051, "category_id": 1, "iscrowd": 1},
            ]},
        ],
        "categories": [
            {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
            {"id": 7, "name": "sky", "isthing": 0},
        ],
    }  # fmt: skip
    if change:
        change(data)
    (folder / "panoptic_val").mkdir(exist_ok=True)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], 2).astype(np.uint8)
    Image.fromarray(rgb).save(folder / "panoptic_val" / "a.png")
    path = folder / "panoptic_val.json"
    path.write_text(json.dumps(data))
    return path


def test_each_segment_becomes_an_object(tmp_path):
    done = convert(written(tmp_path), tmp_path / "o.json", format="coco")
    assert done.format == "COCO panoptic" and done.losses == []
    assert done.notes == ["1 object of 3 are regions of stuff (isthing 0)"]
    assert "1 object of 3 are regions of stuff (isthing 0)" in done.lines()
    read = json.loads((tmp_path / "o.json").read_text())
    assert read["categories"][0]["color"] == [220, 20, 60] and read["categories"][1]["isthing"] == 0
    keys = ("category_id", "iscrowd", "area", "bbox")
    found = [tuple(one[key] for key in keys) for one in read["annotations"]]
    assert found == [(1, 0, 2, [1, 0, 2, 1]), (7, 0, 2, [0, 1, 3, 1]), (1, 1, 1, [1, 1, 1, 1])]
    assert [one["id"] for one in read["annotations"]] == [1, 2, 3]


def change(path, value):
    """A function that sets or (None) removes what lies at that path."""

    def apply(data):
        *inner, last = path
        for key in inner:
            data = data[key]
        if value is None:
            del data[last]
        else:
            data[last] = value

    return apply


SEGMENTS = ("annotations", 0, "segments_info")


@pytest.mark.parametrize(
    "path, value, message",
    [
        ((*SEGMENTS, 0), None, "annotations[0]: its PNG has segments that are not listed: 256"),
        ((*SEGMENTS, 0, "id"), 5, "annotations[0]: segment 5 has no pixel in its PNG, or is there"),
        ((*SEGMENTS, 0, "category_id"), 4, "segment 256: 'category_id' 4 is not in 'categories'"),
        ((*SEGMENTS, 0), 3, "'segments_info' must be a list of objects"),
        (("images", 0, "width"), 4, "annotations[0]: its PNG is 3x2, but its image '4x2'"),
        (("images", 0, "id"), 8, "annotations[0]: its image 9 is not in 'images'"),
        (("images", 0, "id"), "9", "images[0]: 'id' is '9': must be an integer, once"),
        (("annotations", 0, "image_id"), None, "'image_id' is None: must be an integer, once"),
        (("annotations", 0, "file_name"), "../a.png", "is not in"),
        (("categories", 0, "id"), "1", "categories[0]: 'id' is '1': must be an integer"),
        (("images",), {}, "'images' must be a list of objects"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, path, value, message):
    with pytest.raises(DataError, match=re.escape(message)):
        convert(written(tmp_path, change(path, value)), tmp_path / "o.json", format="coco")
    assert not (tmp_path / "o.json").exists()


def test_pngs_are_found_and_do_not_lead_out(tmp_path):
    path = written(tmp_path)
    (tmp_path / "panoptic_val" / "a.png").rename(tmp_path / "a.png")
    assert convert(path, tmp_path / "o.json", format="coco").objects == 3
    (tmp_path / "a.png").rename(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match=r"the PNG 'a.png' is not in .*panoptic_val"):
        convert(path, tmp_path / "p.json", format="coco")
    (tmp_path / "panoptic_val" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="leads out"):
        convert(path, tmp_path / "p.json", format="coco")
