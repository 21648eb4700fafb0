"""Two kinds of faults at once in a sound COCO file: nothing crashes, and both are named.

Each pair of `FAULTS` is injected at random places, then checked, trained on, and scored.
"""

import itertools
import json
import random

import pytest

from support.coco_faults import FAULTS, sound, write
from support.small_runs import config
from visionkit.engine.check import check, check_annotations
from visionkit.engine.train import train
from visionkit.errors import DataError
from visionkit.metrics.coco.evaluator import evaluate_files

IDS = ("id", "image_id", "category_id", "name")
BAD_SIZES = ("height zero", "width text", "width missing", "huge image")
OF_IMAGE = {
    *("area zero", "box empty", "box far away", "box outside", "box over the border", "box tiny"),
    *("mask of another size", "ignored", "group"),
}
MASKS = {name for name, fault in FAULTS.items() if fault.key == "segmentation"}


def hides(name):
    """What cannot be told because it is in doubt: which objects there are of a class, whether an
    object is another one, has that image or category, where the border of its image is."""
    fault = FAULTS[name]
    found = {"unused category", "object twice"} if fault.is_error else set()
    if name == "id text":
        found |= {"id twice"}
    if fault.is_error and fault.key in IDS:
        found |= OF_IMAGE
    if name in ("category id text", "category without id", "text category ids"):
        found |= {"unknown category", "category id twice"}
    if fault.key == "file_name":  # what is the same is that there is no name
        found |= {"file named twice"}
    if fault.key == "name":
        found |= {"category name twice", "root category"}
    if "image" in name and fault.key in ("id", "image_id"):
        found |= {"unknown image", "image id twice"} | MASKS
    return found | (OF_IMAGE if name in (*BAD_SIZES, "boxes in parts") else set())


def injected(names, seed):
    """The sound file with those faults, each in a record of its own."""
    rng, content = random.Random(seed), sound()
    firsts = rng.sample(range(3), len(names))  # apart in lists of 3, 6 and 12
    rows = [first + 3 * rng.randrange(4) for first in firsts]
    for name, row in sorted(zip(names, rows, strict=True), key=lambda pair: FAULTS[pair[0]].stops):
        FAULTS[name].inject(content, row)
    return content


def told(name, findings):
    fault = FAULTS[name]
    return not fault.kinds or any(
        found.kind in fault.kinds and fault.key in (None, found.key) for found in findings
    )


def hidden(name, names):
    """Whether another one of the faults makes it impossible to tell this one."""
    others = [other for other in names if other != name]
    stopped = any(FAULTS[other].stops for other in others) and not FAULTS[name].stops
    return stopped or any(name in hides(other) for other in others)


def try_pair(folder, names, seed):
    """Check, train and score; every fault is named wherever it matters."""
    write(folder, injected(names, seed))
    data = {"type": "Coco", "images": f"{folder}/images", "annotations": f"{folder}/a.json"}
    spec = config("detection", "FCOS", pyramid=True, data={"train": data, "val": data})
    spec["data"] |= {"image_size": 32, "batch_size": 2}
    spec["train"] |= {"steps": 1, "validate": 1}
    spec["output"] = str(folder / "run")
    check_annotations(folder / "a.json")  # without the images
    findings = check(spec).findings
    visible = [name for name in names if not hidden(name, names)]
    for name in visible:
        assert told(name, findings), f"check does not name {name!r}"
    wrong = [name for name in visible if FAULTS[name].is_error]
    try:
        train(spec)
    except DataError as error:
        assert wrong, f"refused: {error}"
        for name in wrong:
            assert told(name, error.findings), f"train does not name {name!r}"
    else:
        assert not wrong, "trained on a file with errors"
    kept = ("image_id", "category_id", "bbox")
    results = [{"score": 0.9} | {key: a[key] for key in kept} for a in sound()["annotations"]]
    (folder / "results.json").write_text(json.dumps(results))
    for iou_type in ("bbox", "segm"):
        scored = [name for name in visible if iou_type in FAULTS[name].scored]
        try:
            evaluate_files(folder / "a.json", folder / "results.json", iou_type)
        except DataError as error:
            for name in scored if error.findings else ():
                assert told(name, error.findings), f"eval ({iou_type}) does not name {name!r}"
        else:
            assert not scored, f"eval ({iou_type}) scores {scored}"


PAIRS = list(itertools.combinations(FAULTS, 2))


@pytest.mark.parametrize("seed", range(12))
def test_two_faults_are_both_named(tmp_path, seed):
    try_pair(tmp_path, random.Random(seed).choice(PAIRS), seed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_thousand_pairs_of_faults(tmp_path):
    """About a quarter of an hour: `pytest -m slow tests/engine/test_fault_pairs.py`."""
    rng = random.Random(2000)
    for number, names in enumerate(rng.sample(PAIRS, 2000)):
        try:
            try_pair(tmp_path / str(number), names, number)
        except Exception as error:
            raise AssertionError(f"{names}, seed {number}: {error!r}") from error
