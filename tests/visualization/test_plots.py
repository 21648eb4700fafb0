"""Curves at their limits: of no point and of one, of one class and of five hundred."""

import json

import pytest
from PIL import Image

from visionkit.visualization.plots import write_plots

pytest.importorskip("matplotlib")


def record(kind, step, **values):
    return {"kind": kind, "step": step, "epoch": 0.1 * step, **values}


def classes(count):
    """A validation with so many classes, as detection and class maps have them."""
    ap = {f"objects/bbox/AP/class {i}": i / count for i in range(count)}
    iou = {f"map/IoU/$class_{i}^": 1 - i / count for i in range(count)}
    return {"objects/bbox/AP": 0.5, "map/mIoU": 0.5, **ap, **iou}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], set()),
        ([record("val", 3)], set()),
        ([record("val", 3, **{"objects/bbox/AP": None})], set()),
        ([record("val", 3, **{"objects/bbox/AP": 0.0})], {"metrics"}),
        ([record("train", 1, **{"train/total": 1.0}, lr=0.1)], {"losses", "progress"}),
        ([record("train", 1, **{"train/total": 1.0}), record("val", 1, **classes(1))], None),
        ([record("val", step, **classes(500)) for step in (1, 2)], {"metrics"}),
    ],
    ids=["nothing", "no metric", "null", "one point", "one step", "one class", "500 classes"],
)
def test_images_are_there_and_readable(records, expected, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    write_plots(file, tmp_path / "plots")
    found = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert found == ({"losses", "metrics"} if expected is None else expected)
    for path in (tmp_path / "plots").iterdir():
        with Image.open(path) as image:
            image.load()
            assert 300 < image.width < 3000 and 200 < image.height < 3000
            light, dark = image.convert("L").getextrema()[::-1]
            assert light == 255 and dark < 100  # something is drawn
