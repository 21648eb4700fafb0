"""Training reads labels of other formats than COCO as if they were COCO's."""

import json

import pytest

from support.small_runs import SMALL_RUNS
from visionkit.data.formats.convert import convert
from visionkit.data.formats.writing import IDS, OBJECT_IDS
from visionkit.engine.train import train

NAMES = ["WBC", "RBC", "Platelets"]  # in the order of the COCO file


def losses(tmp_path, name, data):
    """The loss of each step, and the last metrics."""
    spec = SMALL_RUNS["fcos"] | {"output": str(tmp_path / name)}
    spec["data"] = {**spec["data"], **data, "image_size": 64, "batch_size": 4}
    run = train(spec)
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    return [step["train/total"] for step in steps if "train/total" in step], run.metrics


@pytest.mark.slow
def test_the_same_loss_curve_from_each_format(tmp_path, real_data):
    """Boxes of BCCD are whole pixels, so that only ids are lost."""
    images, files = real_data / "bccd" / "images", real_data / "bccd" / "annotations"
    parts = {"train": "test", "val": "val"}  # small ones
    coco = {
        part: {"type": "Coco", "images": str(images), "annotations": str(files / f"{file}.json")}
        for part, file in parts.items()
    }
    expected = losses(tmp_path, "coco", coco)
    assert len(expected[0]) == 3 and len(set(expected[0])) == 3
    for kind in ("Voc", "LabelMe", "Cvat"):
        for part, file in parts.items():
            out = tmp_path / kind / part
            out.parent.mkdir(exist_ok=True)
            done = convert(files / f"{file}.json", out, to=kind.lower(), images=images)
            assert [loss["kind"] for loss in done.losses] in ([IDS], [OBJECT_IDS])
        data = {part: {"type": kind, "root": str(tmp_path / kind / part)} for part in parts}
        for one in data.values():
            one |= {"names": NAMES} if kind == "Voc" else {}
        assert losses(tmp_path, f"run-{kind}", data) == expected
