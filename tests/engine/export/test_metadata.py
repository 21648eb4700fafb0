"""What an exported file says about its model survives, and nothing else is taken for it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from visionkit.engine.export.metadata import FORMAT, HeadInfo, ModelInfo, read_info
from visionkit.errors import CheckpointError
from visionkit.metrics.thresholds import Thresholds
from visionkit.types import Classes

OBJECTS = HeadInfo(
    "TaskAligned",
    Classes(("cat", "größer"), (3, 1)),
    (480, 640),
    ("boxes", "scores", "labels", "count"),
    draw_threshold=0.4,
)
MODEL = ModelInfo(
    "street",
    {
        "objects": OBJECTS,
        "state": HeadInfo(
            "Attributes", Classes(("wet",), (0,)), "64x32", ("attributes",), "objects"
        ),
        "tags": HeadInfo("Classification", Classes.numbered("ab"), 320, ("probs",), threshold=0.25),
    },
    {"version": 1, "heads": {"objects": {"type": "TaskAligned"}}},
    precision="int8",
    checkpoint="0" * 64,
    size=(32, 64),
    batch=2,
    value_range=(0.0, 4095.0),
    thresholds={"objects": Thresholds(0.3, {"cat": 0.5}, {"": {50: 0.1, 90: 0.7}, "cat": {}})},
    torch="2.14.1",
)


def test_the_text_gives_the_same_model_again():
    assert ModelInfo.from_json(MODEL.to_json(), "a.onnx") == MODEL
    bare = ModelInfo("a", {"objects": OBJECTS}, {}, "raw")
    again = read_info({"visionkit": bare.to_json(), "other": "x"}, "a.onnx")
    assert again == bare and again.size is again.batch is again.value_range is None


def test_the_text_has_the_documented_keys():
    record = json.loads(MODEL.to_json())
    assert record["format"] == 1 and record["decode"] == "full" and record["torch"] == "2.14.1"
    assert record["input"] == {
        "size": [32, 64],
        "batch": 2,
        "multiple": 32,
        "value_range": [0.0, 4095.0],
    }
    assert record["heads"]["objects"] == {
        "type": "TaskAligned",
        "classes": {"names": ["cat", "größer"], "ids": [3, 1]},
        "image_size": [480, 640],
        "outputs": ["boxes", "scores", "labels", "count"],
        "boxes_from": None,
        "draw_threshold": 0.4,
        "threshold": None,
    }
    assert record["thresholds"]["objects"]["precision"][""] == {"50": 0.1, "90": 0.7}
    assert record["config"] == MODEL.config


def test_a_file_of_another_tool_is_refused():
    with pytest.raises(CheckpointError, match=r"^b\.onnx: was not exported by visionkit"):
        read_info({"names": "{0: 'cat'}"}, "b.onnx")


def test_a_newer_format_is_refused_with_what_to_do():
    newer = json.dumps({"format": FORMAT + 1, "heads": "of a form that is not known yet"})
    with pytest.raises(CheckpointError, match=r"has format 2, .* reads up to 1; run: pip install"):
        ModelInfo.from_json(newer, "b.onnx")


def without(*path):
    record = json.loads(MODEL.to_json())
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return record


def with_(value, *path):
    record = json.loads(MODEL.to_json())
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return record


@pytest.mark.parametrize(
    "record",
    [
        *([], 3, None, "text", {}, {"format": 1}, {"format": "1"}, {"format": True}),
        *(without(key) for key in ("heads", "input", "config", "thresholds", "decode", "name")),
        *(without("heads", "objects", key) for key in ("classes", "outputs", "image_size")),
        with_({}, "heads"),
        with_([], "heads"),
        with_("nobody", "heads", "state", "boxes_from"),
        with_([1], "heads", "objects", "classes", "ids"),
        with_([1.5, 2], "heads", "objects", "classes", "ids"),
        with_([1, 2], "heads", "objects", "classes", "names"),
        with_("some", "decode"),
        with_("int4", "precision"),
        with_(0, "input", "batch"),
        with_([32], "input", "size"),
        with_([32, -32], "input", "size"),
        with_("low", "heads", "tags", "threshold"),
        with_(1e400, "heads", "objects", "draw_threshold"),
        with_("x", "config"),
        with_("abc", "heads", "objects", "classes", "names"),
        with_([10**40, 1], "heads", "objects", "classes", "ids"),
        with_([], "heads", "objects", "outputs"),
        with_(["boxes"], "heads", "objects", "outputs"),
        with_(["boxes", "count"], "heads", "objects", "outputs"),
        with_(["probs"], "heads", "state", "outputs"),
        with_("state", "heads", "state", "boxes_from"),
        with_("tags", "heads", "state", "boxes_from"),
        *(with_(one, "heads", "objects", "image_size") for one in ("foo", "64x", 10**7, [3, 2])),
        with_(10**6, "input", "multiple"),
        with_({"objects": {"common": 0.5}}, "thresholds"),
    ],
    ids=str,
)
def test_damaged_metadata_is_refused_in_one_line(record):
    with pytest.raises(CheckpointError, match=r"^b\.onnx: its metadata .* is damaged") as caught:
        ModelInfo.from_json(json.dumps(record), "b.onnx")
    assert len(caught.value.lines) == 1 and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["", "{", "\x00", "[" * 100_000, MODEL.to_json()[:-20]], ids=lambda t: t[:5]
)
def test_what_is_not_json_is_damaged(text):
    with pytest.raises(CheckpointError, match="is damaged"):
        ModelInfo.from_json(text, "b.onnx")


def test_numbers_that_json_does_not_have_are_not_written():
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(MODEL, value_range=(0.0, float("inf"))).to_json()


def test_torch_is_not_imported():
    code = "import sys; sys.modules['torch'] = None; import visionkit.engine.export.metadata"
    subprocess.run([sys.executable, "-c", code], check=True)
