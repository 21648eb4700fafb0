"""Compare COCO evaluation of pycocotools and visionkit at the size of COCO val2017.

    python scripts/bench/coco_eval.py [--rounds 3] [--types bbox,segm] [--data DIR]

Every number comes from a fresh process. `process` is a whole one, start to exit: reading both
files, evaluation, summary; pycocotools does it by its own calls COCO, loadRes, evaluate,
accumulate, summarize, visionkit by `visionkit eval --gt --pred` with an empty cache. The other
three run in one process, after its imports, on the result of json.load, and end with the twelve
metrics:

- `call`: createIndex, loadRes, evaluate, accumulate, summarize; `evaluate_coco(truth, results)`,
  which reads and checks the truth, checks the results and computes the same;
- `later call`: a truth that is open, as where one model after another is scored. In it: loadRes,
  evaluate, accumulate, summarize on a COCO object that an evaluation before this has used, which
  has put masks in the place of its polygons; `evaluate_coco(opened, results)`, where `opened` is
  `read_truth(truth).rasterized()`, which has done the same;
- `matching`: the results are loaded, too. In it: evaluate, accumulate, summarize;
  `compute_metrics`.

Prints medians, ratios, peak memory and the largest difference of any of the twelve metrics as
JSON, and the same for CPU seconds, which other programs on the machine change less. The files are
made by scripts/bench/coco_scale.py, in a temporary folder unless --data names one that has them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from arguments import count, start

PYCOCOTOOLS_PROCESS = """
import json, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
truth = COCO(sys.argv[1])
evaluation = COCOeval(truth, truth.loadRes(sys.argv[2]), sys.argv[3])
evaluation.evaluate()
evaluation.accumulate()
evaluation.summarize()
print(json.dumps({"metrics": evaluation.stats.tolist()}))
"""

PYCOCOTOOLS_CALL = """
import json, sys, time
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
truth, results = (json.load(open(path)) for path in sys.argv[1:3])
clock = lambda: (time.perf_counter(), time.process_time())
again = [dict(record) for record in results]  # loadRes adds to those it gets
def score(results):
    opened = clock()
    found = coco.loadRes(results)
    loaded = clock()
    evaluation = COCOeval(coco, found, sys.argv[3])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return opened, loaded, clock()
start = clock()
coco = COCO()
coco.dataset = truth
coco.createIndex()
_, loaded, end = score(results)
times = {"call": (start, end), "matching": (loaded, end), "later call": score(again)[::2]}
print(json.dumps({
    f"{name} {unit}": end[i] - start[i]
    for name, (start, end) in times.items() for i, unit in enumerate(("s", "cpu s"))
}))
"""

VISIONKIT_CALL = """
import importlib, json, sys, time
from visionkit.metrics.coco.detections import DetectionChecker
from visionkit.metrics.coco.evaluator import compute_metrics, evaluate_coco
from visionkit.metrics.coco.ground_truth import read_truth
truth, results = (json.load(open(path)) for path in sys.argv[1:3])
iou_type, engine, what = sys.argv[3:]
importlib.import_module(engine)
clock = lambda: (time.perf_counter(), time.process_time())
if what == "later call":
    truth = read_truth(truth, iou_type).rasterized()
if what == "matching":
    checker = DetectionChecker(read_truth(truth, iou_type))
    checker.add(results)
    truth, results = checker.truth, checker.detections()
start = clock()
if what == "matching":
    compute_metrics(truth, results, engine)
else:
    evaluate_coco(truth, results, iou_type, engine)
end = clock()
print(json.dumps({f"{what} s": end[0] - start[0], f"{what} cpu s": end[1] - start[1]}))
"""


def run(command: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """The JSON in the last line that a process prints, and what the process took."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "VISIONKIT_CACHE": cache},
        )
        assert process.stdout is not None
        printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:3]} ended with code {process.returncode}")
    return json.loads(printed.splitlines()[-1]), {
        "process s": seconds,
        "process cpu s": usage.ru_utime + usage.ru_stime,
        "peak MB": usage.ru_maxrss / 1000,
    }


def compare(folder: Path, iou_type: str, rounds: int, engine: str) -> dict[str, Any]:
    """Everything measured of one kind of results."""
    files = [str(folder / "truth.json"), str(folder / f"{iou_type}.json")]
    python = [sys.executable, "-c"]
    cli = [sys.executable, "-m", "visionkit", "eval", "--gt", files[0], "--pred", files[1]]
    cli += ["--type", iou_type, "--engine", engine, "--json"]
    measured: dict[str, list[float]] = {}
    worst = 0.0

    def note(who: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            measured.setdefault(f"{who} {name}", []).append(value)

    for _ in range(rounds):
        theirs, taken = run([*python, PYCOCOTOOLS_PROCESS, *files, iou_type])
        note("pycocotools", taken)
        ours, taken = run(cli)
        note("visionkit", taken)
        expected, found = theirs["metrics"], list(ours.values())[:12]
        pairs = [(a, -1 if b is None else b) for a, b in zip(expected, found, strict=True)]
        worst = max(worst, *(abs(a - b) for a, b in pairs))
        note("pycocotools", run([*python, PYCOCOTOOLS_CALL, *files, iou_type])[0])
        for what in ("call", "later call", "matching"):  # each the first work of its process
            command = [*python, VISIONKIT_CALL, *files, iou_type, engine, what]
            note("visionkit", run(command)[0])
    medians = {name: round(statistics.median(values), 3) for name, values in measured.items()}
    ratios = {
        f"{name} ratio": round(medians[f"pycocotools {name}"] / medians[f"visionkit {name}"], 1)
        for name in (name.removeprefix("visionkit ") for name in medians if "visionkit" in name)
    }
    return {**medians, **ratios, "largest difference": worst, "engine": ours["coco_engine"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--types", default="bbox,segm")
    parser.add_argument("--engine", choices=["hotcoco", "pycocotools"], default="hotcoco")
    parser.add_argument(
        "--data", type=Path, help="folder of coco_scale.py, made if it is not there"
    )
    args = parser.parse_args()
    types = args.types.split(",")
    if not {*types} <= {"bbox", "segm"}:
        parser.error(f"--types: got {args.types}; expected bbox, segm or both with a comma")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.data or Path(temporary)
        if not (folder / "segm.json").exists():
            # In a process of its own: what starts others from a large one is counted as theirs.
            subprocess.run(
                [sys.executable, Path(__file__).with_name("coco_scale.py"), folder], check=True
            )
        for iou_type in types:
            measured = compare(folder, iou_type, args.rounds, args.engine)
            print(json.dumps({iou_type: measured}, indent=2), flush=True)


if __name__ == "__main__":
    start(main)
