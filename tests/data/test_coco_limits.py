"""Files that make pycocotools crash, take all memory or read memory that nobody wrote: refused in
no time and little memory. In a process of its own, whose memory is limited."""

import json
import subprocess
import sys

import pytest

from support.coco_scenes import rectangle

CODE = """
import json, resource, sys
import numpy, pycocotools.cocoeval, visionkit.metrics.coco.evaluator as files
from visionkit.errors import DataError

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20,) * 2)
cases, folder, engine = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]
told = []
for number, (truth, results) in enumerate(cases):
    for name, contents in (("truth", truth), ("results", results)):
        with open(f"{folder}/{name}.json", "w") as file:
            json.dump(contents, file)
    try:
        found = files.evaluate_files(
            f"{folder}/truth.json", f"{folder}/results.json", "segm", engine
        )
        told.append(found["AP"])
    except DataError as error:
        told.append(str(error))
print(json.dumps(told))
"""

SQUARE = rectangle([10, 10, 40, 30], (80, 100))
SOUND = {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": SQUARE}
OBJECT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30]}


def case(mask=SQUARE, found=SQUARE, size=(80, 100), **more):
    truth = {
        "images": [{"id": 1, "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{**OBJECT, "segmentation": mask, **more}],
    }
    return truth, [{**SOUND, "segmentation": found}]


def zigzag(count, size):
    return [[v for i in range(count) for v in (i % 2 * size, (i // 2) % 2 * size)]]


NAN, INF = float("nan"), float("inf")
HUGE = {"size": [100_000, 100_000], "counts": "0"}
CASES = {
    "sound": (case(), 1.0),
    "sound, drawn": (case([[10, 10, 50, 10, 50, 40, 10, 40]]), 1.0),
    "NaN in a polygon": (case([[1, 1, NAN, 5, 5, 5]]), "annotations[0] (id 1): 'segmentation': "),
    "infinity in a polygon": (case([[1, 1, INF, 5, 5, 5]]), "annotations[0] (id 1): "),
    "a far corner": (case([[1, 1, 1e9, 5, 5, 1e9]]), "annotations[0] (id 1): "),
    "an endless outline": (case(zigzag(10**4, 1000)), "a polygon's outline is 1e+07 pixels"),
    "a box to ignore as large as a country": (
        case(None, bbox=[0, 0, 9e8, 9e8]),
        "'bbox' is [0.0, ",
    ),
    "more pixels than 32 bits": (case(HUGE, HUGE, (100_000, 100_000)), "too many pixels"),
    "a size that overflows": (
        case([[1, 1, 9, 1, 9, 9]], size=(2**32, 2**32)),
        "images[0]",
    ),
    "a code for a huge image": (case(SQUARE, HUGE), "mask of size [100000, 100000] on an image"),
    "run lengths that are no image": (case({**SQUARE, "counts": [5]}), "counts add up to 5"),
    "no run lengths": (case({**SQUARE, "counts": []}), "RLE counts add up to 0"),
    "a negative run length": (case({**SQUARE, "counts": [8010, -10]}), "RLE counts must be"),
    "an empty text": (case(SQUARE, {**SQUARE, "counts": ""}), "result 0 (image_id 1): "),
    "text that never ends": (case(SQUARE, {**SQUARE, "counts": "o" * 10**5}), "damaged"),
    "a text cut off": (case(SQUARE, {**SQUARE, "counts": SQUARE["counts"][:-1]}), "damaged"),
    "a size that is a number": (case({**SQUARE, "size": 5}), "RLE size is 5"),
    "a size that is no whole number": (case({**SQUARE, "size": [80.0, 100.0]}), "RLE size is [80"),
    "another one": (case(SQUARE, {**SQUARE, "size": [80.0, 100.0]}), "mask of size [80.0"),
    "a point": (case([[5, 5]]), "2 numbers"),
    "a box as a polygon": (case([[5, 5, 9, 9]]), "4 numbers"),
}


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_they_are_refused_with_little_memory(tmp_path, engine):
    pytest.importorskip(engine)
    (tmp_path / "cases.json").write_text(json.dumps([case for case, _ in CASES.values()]))
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "cases.json"), str(tmp_path), engine],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    for (name, (_, says)), told in zip(CASES.items(), json.loads(run.stdout), strict=True):
        if isinstance(says, str):
            assert isinstance(told, str) and says in told, (name, told)
            assert "truth.json" in told or "results.json" in told, name
        else:
            assert told == pytest.approx(says), name
