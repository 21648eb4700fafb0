"""A multi-label run from a CSV file: training, metrics, and what a prediction names."""

import csv
import json
import math

from support.small_runs import config
from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.data.datasets.shapes import generate_shapes
from visionkit.engine.progress import default_best
from visionkit.engine.train import train


def shapes_csv(folder, seed):
    """A CSV file of which shapes occur in generated images; the first class is not known once."""
    generate_shapes(folder, images=8, size=32, seed=seed)
    data = json.loads((folder / "annotations.json").read_text())
    names = {one["id"]: one["name"] for one in data["categories"]}
    shown = {(one["image_id"], one["category_id"]) for one in data["annotations"]}
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *names.values()])
        for i, image in enumerate(data["images"]):
            cells = [int((image["id"], id_) in shown) for id_ in names]
            writer.writerow([image["file_name"], *(cells if i else ["", *cells[1:]])])
    return {"type": "Csv", "root": str(folder / "labels.csv")}, [*names.values()]


def test_a_run_from_a_csv_file(tmp_path):
    data = {}
    for seed, part in enumerate(("train", "val")):
        data[part], names = shapes_csv(tmp_path / part, seed)
    spec = config("classification", "Classification", data=data, multilabel=True)
    run = train(spec, {"output": str(tmp_path / "run")})
    assert {f"classification/AP/{name}" for name in names} < run.metrics.keys()
    assert 0 < run.metrics["classification/mAP"] <= 1
    assert default_best(load_config(run.directory / "config.yaml")) == "classification/mAP"
    assert math.isfinite(run.metrics["classification/loss/total"])
    image, out = tmp_path / "val" / "images" / "000001.jpg", tmp_path / "out"
    arguments = [str(run.directory), str(image), "--out", str(out)]
    assert main(["predict", *arguments, "--threshold", "0.000001"]) == 0
    (record,) = json.loads((out / "predictions.json").read_text())
    assert sorted(record["present"]) == sorted(names) and record["present"][0] in record["top"]
