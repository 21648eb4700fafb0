"""Memory: that of two million objects is bounded, and a coordinate that is not finite, or absurdly
far away, is refused at once: pycocotools alone would take all there is for a polygon with NaN."""

import json
import subprocess
import sys

import pytest

from support.coco_files import save, small

LIMIT = 200 << 20  # bytes beyond those of the imports
SECONDS = 1.0

# Imports are done before the limit is set: torch alone maps more than that.
PROGRAM = """
import json, resource, sys, time
import visionkit.cli.reports, visionkit.engine.check, visionkit.metrics.coco.evaluator
from visionkit.cli.main import main
folder, limit = sys.argv[1], int(sys.argv[2])
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + limit, mapped + limit))
for name in sys.argv[3:]:
    gt = f"{folder}/{name}.json"
    for words in (
        ["check", gt],
        ["check", gt, "--images", f"{folder}/images"],
        ["eval", "--gt", gt, "--pred", f"{folder}/pred.json", "--type", "segm"],
    ):
        began = time.process_time()
        code = main(words)
        print(json.dumps([name, words[0], code, time.process_time() - began]), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_absurd_coordinates_are_refused_in_a_second_and_little_memory(tmp_path):
    save(tmp_path, small())
    values = {"nan": "NaN", "inf": "Infinity", "e400": "1e400", "e9": "1e9", "minus": "-1e9"}
    for name, value in values.items():
        content = small()
        content["annotations"][0]["segmentation"] = [[1, 1, "VALUE", 5, 5, 5]]
        text = json.dumps(content).replace('"VALUE"', value)
        (tmp_path / f"{name}.json").write_text(text)
    mask = {"size": [10, 20], "counts": [0, 200]}
    record = {"image_id": 70, "category_id": 90, "score": 0.5, "segmentation": mask}
    (tmp_path / "pred.json").write_text(json.dumps([record]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(LIMIT), *values],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr  # neither killed nor out of memory
    print(done.stderr)
    results = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('["')]
    assert len(results) == 3 * len(values)
    for name, verb, code, seconds in results:
        assert code == 3, (name, verb, done.stderr)
        assert seconds < SECONDS, (name, verb)
    told = done.stdout + done.stderr
    assert told.count("annotations[0] (id 0)") >= len(results) and "'segmentation'" in told


OPEN = """
import resource, sys
from visionkit.data.datasets.coco import Coco
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = Coco(sys.argv[1], sys.argv[2])
print(data.num_objects, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_the_memory_of_two_million_objects_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONKIT_CACHE", str(tmp_path / "cache"))
    save(tmp_path, small())
    record = '{"id": %d, "image_id": 70, "category_id": 1, "bbox": [%d, 1, 2.5, 3.5], "area": 5}'
    path, count = tmp_path / "large.json", 2_000_000
    rest = {key: value for key, value in small().items() if key != "annotations"}
    with path.open("w") as file:
        file.write(json.dumps(rest)[:-1] + ', "annotations": [')
        file.writelines(record % (k, k % 17) + "," for k in range(count - 1))
        file.write(record % (count, 3) + "]}")
    command = [sys.executable, "-c", OPEN, str(tmp_path / "images"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    objects, peak = done.stdout.split()
    assert int(objects) == count
    assert float(peak) < 256 * count / 2**20  # MB
