"""What is scored, in result files and in runs alike: labels in part, objects that nothing can
match, more objects than detections are scored."""

import json
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from support.coco_files import save
from support.coco_scenes import (
    PERFECT,
    only,
    raw_pycocotools,
    rectangle,
    scene,
    single_object,
    tidy,
    wild,
)
from visionkit.cli.main import main
from visionkit.metrics.coco.evaluator import CocoEvaluator, evaluate_coco, evaluate_files
from visionkit.metrics.coco.ground_truth import log_once
from visionkit.types import Batch


def run(capsys, folder, truth, results, *words):
    for name, content in (("gt", truth), ("pred", results)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    paths = ["--gt", str(folder / "gt.json"), "--pred", str(folder / "pred.json")]
    code = main(["eval", *paths, *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def as_a_run(folder, truth, results, types=("bbox",)):
    """The metrics of a run that finds the same, with its own evaluator."""
    dataset = save(folder, truth)
    evaluator = CocoEvaluator(dataset, types)
    ids = dataset.classes["labels"].ids
    for image_id in dataset.image_ids:
        mine = [r for r in results if r["image_id"] == image_id]
        boxes = torch.tensor([r["bbox"] for r in mine], dtype=torch.float64).reshape(-1, 4)
        prediction = {
            "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            "scores": torch.tensor([r["score"] for r in mine], dtype=torch.float64),
            "labels": torch.tensor([ids.index(r["category_id"]) for r in mine], dtype=torch.int64),
        }
        if "segm" in types:
            masks = [r["segmentation"] for r in mine]
            prediction["masks"] = [m | {"counts": m["counts"].encode()} for m in masks]
        evaluator.update([prediction], Batch(torch.zeros(1, 3, 8, 8), [{"image_id": image_id}]))
    return evaluator.compute(), evaluator


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_files_labeled_in_part_are_scored_as_in_a_run(tmp_path, seed):
    """With LVIS's lists; the scenes differ in what they ignore."""
    truth, results = scene(seed, num_images=8)
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in truth["categories"]]
    plain = evaluate_coco(truth, only(results, "bbox"), "bbox")["AP"]
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [i for i in ids if rng.random() < 0.3]
    run, evaluator = as_a_run(tmp_path, truth, results, ("bbox", "segm"))
    for iou_type in ("bbox", "segm"):
        (tmp_path / "pred.json").write_text(json.dumps(only(results, iou_type)))
        found = evaluate_files(tmp_path / "a.json", tmp_path / "pred.json", iou_type)
        # Boxes of a run are float64 xyxy, whose differences are not the same bits.
        assert {f"{iou_type}/{name}": x for name, x in found.items()} == pytest.approx(
            {name: x for name, x in run.items() if name.startswith(iou_type)}, nan_ok=True
        )
        assert found == evaluate_coco(truth, only(results, iou_type), iou_type)
    assert evaluate_coco(truth, only(results, "bbox"), "bbox")["AP"] > plain
    assert "labeled in an image (LVIS)" in evaluator.rule


def test_detections_of_classes_that_are_not_labeled_in_an_image_do_not_count(tmp_path, capsys):
    """By hand: `dog` is not looked for, `cat` is annotated, `fox` is known to be absent."""
    truth = single_object()
    truth["categories"] += [{"id": 2, "name": "dog"}, {"id": 3, "name": "fox"}]
    truth["images"].append({"id": 2, "width": 100, "height": 80})
    for category in (2, 3):  # each found in the second image alone, in vain in the first
        box = {"bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
        truth["annotations"].append({"id": category, "image_id": 2, "category_id": category, **box})
    results = [PERFECT]
    for category in (2, 3):
        found = {**PERFECT, "category_id": category}
        results += [found, {**found, "image_id": 2, "bbox": [5, 5, 20, 20], "score": 0.5}]
    counted = evaluate_coco(truth, results, "bbox")
    assert counted["AP/dog"] == counted["AP/fox"] == pytest.approx(0.5)
    truth["images"][0]["neg_category_ids"] = [3]
    code, printed, _ = run(capsys, tmp_path, truth, results, "--json")
    counted = json.loads(printed)
    assert code == 0 and counted["AP/dog"] == pytest.approx(1)
    assert counted["AP/fox"] == pytest.approx(0.5) and "LVIS" in counted["scoring"]
    del truth["images"][0]["neg_category_ids"]
    truth["images"][0]["not_exhaustive_category_ids"] = [2]
    _, printed, _ = run(capsys, tmp_path, truth, results, "--json")
    counted = json.loads(printed)
    assert counted["AP/dog"] == pytest.approx(1) and "LVIS" in counted["scoring"]
    assert counted["AP/fox"] == pytest.approx(0.5)
    truth["images"][0]["neg_category_ids"] = [3, 9]
    code, _, told = run(capsys, tmp_path, truth, results)
    assert code == 3 and "'neg_category_ids' is [3, 9]: must be a list of category ids" in told


EMPTY = rectangle([0, 0, 0, 0], (100, 120))
LOST = {
    "no width": ("bbox", {"bbox": [10, 10, 0, 20]}, "a box without area"),
    "negative height": ("bbox", {"bbox": [10, 10, 20, -5]}, "a box without area"),
    "emptied": ("bbox", {"bbox": [0, 0, 0, 0], "segmentation": []}, "a box without area"),
    "outside": ("bbox", {"bbox": [130, 10, 20, 20]}, "outside their image"),
    "no pixel": ("segm", {"segmentation": EMPTY}, "a mask without a pixel"),
    "a line": ("segm", {"segmentation": [[5, 5, 60, 60, 5, 5]]}, "a mask without a pixel"),
    "a point": ("segm", {"segmentation": [[5, 5, 5, 5, 5, 5]]}, "a mask without a pixel"),
    "outside, as polygon": (
        "segm",
        {"segmentation": [[130, 5, 150, 5, 150, 40]]},
        "a mask without a pixel or outside",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_objects_that_nothing_can_match_are_ignored_in_files_and_in_runs(tmp_path, caplog, name):
    """Half of the objects; perfect results of the others score 1, with --trust about 0.5."""
    log_once.cache_clear()
    iou_type, change, says = LOST[name]
    truth, _ = scene(3, num_images=10, detections=False, crowds=False)
    results = []
    for number, annotation in enumerate(truth["annotations"]):
        keys = ("image_id", "category_id", "bbox", "segmentation")
        if number % 2:
            results.append({key: annotation[key] for key in keys} | {"score": 0.9 - number / 100})
        else:
            annotation |= change
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
    run, _ = as_a_run(tmp_path, truth, results, (iou_type,))
    (tmp_path / "pred.json").write_text(json.dumps(only(results, iou_type)))
    paths = tmp_path / "a.json", tmp_path / "pred.json"
    assert run[f"{iou_type}/AP"] == pytest.approx(1)
    assert evaluate_files(*paths, iou_type)["AP"] == pytest.approx(1)
    lost = (len(truth["annotations"]) + 1) // 2
    assert f"{lost} of {len(truth['annotations'])} annotated objects have" in caplog.text
    assert says in caplog.text
    trusted = evaluate_files(*paths, iou_type, trust=True)["AP"]
    assert 0.2 < trusted < 0.8


def test_small_masks_with_a_pixel_are_objects():
    """What is thin or tiny is looked at pixel by pixel, and most of it is not empty."""
    for points in ([[5, 5, 7, 5, 7, 7, 5, 7]], [[5, 5, 60, 6, 60, 7, 5, 6]], [[1, 1, 5, 1, 5, 2]]):
        truth = single_object(segmentation=points)
        mask = coco_mask.merge(coco_mask.frPyObjects(points, 80, 100))
        assert coco_mask.area(mask) > 0
        mask["counts"] = mask["counts"].decode()
        found = {**PERFECT, "segmentation": mask}
        assert evaluate_coco(truth, only([found], "segm"), "segm")["AP"] == pytest.approx(1)


def crowded(count):
    """One image with that many objects, all of them found."""
    truth = single_object()
    boxes = [[5 * (i % 15), 5 * (i // 15), 4, 4] for i in range(count)]
    truth["annotations"] = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 16, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    truth["images"][0] |= {"width": 200, "height": 200}
    return truth, [{**PERFECT, "bbox": b, "score": 0.9 - i / 1000} for i, b in enumerate(boxes)]


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_more_objects_than_are_scored_are_told_and_can_be_scored(tmp_path, capsys, caplog, engine):
    pytest.importorskip(engine)
    log_once.cache_clear()
    truth, results = crowded(250)
    words = ["--json", "--engine", engine]
    code, printed, _ = run(capsys, tmp_path, truth, results, *words)
    assert code == 0 and json.loads(printed)["AP"] == pytest.approx(41 / 101)  # recall 0.4
    assert "image_id 1: 250 'cat'" in caplog.text and "--max-detections 250" in caplog.text
    caplog.clear()
    code, printed, _ = run(capsys, tmp_path, truth, results, *words, "--max-detections", "250")
    found = json.loads(printed)
    assert code == 0 and found["AP"] == found["AR250"] == pytest.approx(1)
    assert found["AR10"] == pytest.approx(0.04) and "AR100" not in found
    assert "at most 250 detections" in found["scoring"] and "--max-detections" not in caplog.text


@pytest.mark.parametrize("most", [1, 5, 20, 300])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_with_another_number_of_detections_metrics_are_those_of_pycocotools(iou_type, most):
    truth, results = wild(4)
    for seed in (1, 2, 3):
        truth, results = wild(seed)
        results = only(results, iou_type)
        expected = raw_pycocotools(
            tidy(truth, iou_type), results, iou_type, [1, min(10, most), most]
        )
        for engine in ("pycocotools", "hotcoco"):
            pytest.importorskip(engine)
            options = {"max_detections": most, "trust": True}
            found = evaluate_coco(truth, results, iou_type, engine, **options)
            recalls = expected.eval["recall"][:, :, 0, :]
            for k, name in enumerate(("AR1", "AR10", f"AR{most}")):
                known = recalls[..., k][recalls[..., k] > -1]
                assert found[name] == (known.mean() if known.size else pytest.approx(math.nan))
            precision = expected.eval["precision"][..., 0, 2]
            assert found["AP"] == precision[precision > -1].mean()
