"""Results that mean something else than they say are refused, with what they look like."""

import copy
import json

import numpy as np
import pytest

from support.coco_scenes import (
    PERFECT,
    H,
    W,
    only,
    rectangle,
    results_of,
    scene,
    single_object,
    truth_of_six,
    wild,
)
from visionkit.cli.main import main
from visionkit.errors import DataError
from visionkit.metrics.coco.evaluator import evaluate_coco, evaluate_files


def boxes(read):
    return {"bbox": lambda annotation: read(*annotation["bbox"])}


def weak(truth, seed):
    """What a weak model finds: some objects roughly, and many boxes at random."""
    rng = np.random.default_rng(seed)
    results = []
    for a in truth["annotations"]:
        if rng.random() < rng.random():
            x, y, w, h = a["bbox"]
            near = [x + rng.normal(0, w / 4), y + rng.normal(0, h / 4), w * rng.random(), h]
            results.append({**PERFECT, **{k: a[k] for k in ("image_id", "category_id")}})
            results[-1] |= {"bbox": [*map(float, near)], "score": float(rng.random())}
    for image in truth["images"]:
        for _ in range(rng.integers(0, 15)):
            w, h = rng.integers(5, 90), rng.integers(5, 60)
            box = [int(rng.integers(0, W - w)), int(rng.integers(0, H - h)), int(w), int(h)]
            category = int(rng.integers(1, 3))
            results.append({"image_id": image["id"], "category_id": category, "bbox": box})
            results[-1]["score"] = float(rng.random())
    return results


def large(truth, factor, seed=0):
    """What a model finds whose boxes are too large or too small by a factor, in the image."""
    rng = np.random.default_rng(seed)
    results = []
    for record in results_of(truth):
        x, y, w, h = record["bbox"]
        w2, h2 = w * factor * rng.uniform(0.9, 1.1), h * factor * rng.uniform(0.9, 1.1)
        x1, y1 = max(0, x + (w - w2) / 2), max(0, y + (h - h2) / 2)
        box = [x1, y1, min(W, x1 + w2) - x1, min(H, y1 + h2) - y1]
        results.append({**record, "bbox": box})
    return results


OTHER_BOXES = {
    "corners": (lambda x, y, w, h: [x, y, x + w, y + h], r"corners \[x1, y1, x2, y2\], not"),
    "relative": (lambda x, y, w, h: [x / W, y / H, w / W, h / H], r"height\] relative .0 to 1"),
    "relative corners": (
        lambda x, y, w, h: [x / W, y / H, (x + w) / W, (y + h) / H],
        r"corners \[x1, y1, x2, y2\] relative .0 to 1",
    ),
    "YOLO": (
        lambda x, y, w, h: [(x + w / 2) / W, (y + h / 2) / H, w / W, h / H],
        r"\[center x, center y, width, height\] relative",
    ),
    "centers": (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], r"\[center x, center y"),
    "percent": (lambda x, y, w, h: [100 * x / W, 100 * y / H, 100 * w / W, 100 * h / H], "percent"),
    "language models": (
        lambda x, y, w, h: [1000 * v / s for v, s in zip([y, x, y + h, x + w], [H, W] * 2)],  # noqa: B905
        r"corners \[y1, x1, y2, x2\] from 0 to 1000",
    ),
    "exchanged axes": (lambda x, y, w, h: [y, x, h, w], r"\[y, x, height, width\]"),
    "half sides": (lambda x, y, w, h: [x + w / 2, y + h / 2, w / 2, h / 2], "y, width / 2, height"),
    "ranges": (lambda x, y, w, h: [x, x + w, y, y + h], r"\[x1, x2, y1, y2\]"),
    "mirrored": (lambda x, y, w, h: [W - x - w, y, w, h], "x from the right"),
    "other origin": (lambda x, y, w, h: [x, H - y - h, w, h], "y from the bottom"),
    "half": (
        lambda x, y, w, h: [x / 2, y / 2, w / 2, h / 2],
        r"resized (by 0\.5,|to about 48 x 32)",
    ),
    "resized": (
        lambda x, y, w, h: [x * 640 / W, y * 640 / H, w * 640 / W, h * 640 / H],
        "images resized",
    ),
}


@pytest.mark.parametrize("name", OTHER_BOXES)
def test_boxes_in_another_form_are_refused(name):
    read, says = OTHER_BOXES[name]
    truth = truth_of_six()
    results = results_of(truth, **boxes(read))
    with pytest.raises(DataError, match=says.replace("relative .", "relative to the image .")):
        evaluate_coco(truth, results, "bbox")
    assert evaluate_coco(truth, results, "bbox", trust=True)["AP"] < 0.5


def test_boxes_with_exchanged_sides_are_refused():
    truth = truth_of_six()
    for annotation in truth["annotations"]:
        annotation["bbox"][3] /= 3
    results = results_of(truth, **boxes(lambda x, y, w, h: [x, y, h, w]))
    with pytest.raises(DataError, match=r"boxes look like \[x, y, height, width\], not like"):
        evaluate_coco(truth, results, "bbox")


def test_annotations_with_corners_are_recognized(caplog):
    truth = truth_of_six()
    results = results_of(truth)
    for annotation in truth["annotations"]:
        annotation["bbox"] = OTHER_BOXES["corners"][0](*annotation["bbox"])
    with pytest.raises(DataError, match=r"boxes of the annotations look like corners \[x1"):
        evaluate_coco(truth, results, "bbox")
    evaluate_coco(truth, results_of(truth), "bbox", trust=True)  # both have corners
    assert "boxes reach far beyond their image; are they [x, y, width, height]?" in caplog.text


def test_relative_boxes_are_recognized_where_no_size_is_known():
    truth = truth_of_six()
    for image in truth["images"]:
        del image["width"], image["height"]
    results = results_of(truth, **boxes(lambda x, y, w, h: [x / W, y / H, w / W, h / H]))
    with pytest.raises(DataError, match="boxes look relative to the image"):
        evaluate_coco(truth, results, "bbox")
    assert evaluate_coco(truth, results_of(truth), "bbox")["AP"] == pytest.approx(1)


def test_what_is_sound_or_weak_is_scored():
    truth = truth_of_six()
    assert evaluate_coco(truth, results_of(truth), "bbox")["AP"] == pytest.approx(1)
    for seed in range(15):
        evaluate_coco(truth, weak(truth, seed), "bbox", "pycocotools")
        other, results = scene(seed)
        for iou_type in ("bbox", "segm"):
            evaluate_coco(other, only(results, iou_type), iou_type, "pycocotools")


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.7, 1.3, 1.6, 2, 4])
def test_boxes_that_are_too_large_or_too_small_are_scored(factor):
    for place in ([2, 2], [8, 6], [30, 16]):  # also where boxes would fit better as corners
        truth = truth_of_six()
        rng = np.random.default_rng(0)
        for annotation in truth["annotations"]:
            x, y = (np.array(place) + rng.integers(0, 6, 2)).tolist()
            annotation["bbox"] = [x, y, 40, 30]
        for seed in range(5):
            evaluate_coco(truth, large(truth, factor, seed), "bbox")


def test_wild_scenes_are_scored():
    for seed in range(40):
        truth, results = wild(seed)
        for iou_type in ("bbox", "segm"):
            evaluate_coco(truth, only(results, iou_type), iou_type)


SCENES = {  # size of images, objects in each, and the box of one in parts of the image
    "free": (640, 480, 3, lambda r: [*r.uniform(0, 0.5, 2), *r.uniform(0.05, 0.5, 2)]),
    "two images": (640, 480, 3, lambda r: [*r.uniform(0, 0.5, 2), *r.uniform(0.05, 0.5, 2)]),
    "one object": (640, 480, 1, lambda r: [*r.uniform(0.1, 0.4, 2), *r.uniform(0.4, 0.6, 2)]),
    "whole image": (640, 480, 1, lambda r: [0, 0, 1, 1]),
    "same place": (640, 480, 1, lambda r: [*r.normal(0.35, 0.01, 2), 0.3, 0.3]),
    "lower corner": (480, 640, 2, lambda r: [0.8, 0.8, *r.uniform(0.1, 0.2, 2)]),
    "tiny": (8, 8, 2, lambda r: [*r.uniform(0, 0.5, 2), *r.uniform(0.05, 0.5, 2)]),
    "huge": (20000, 15000, 2, lambda r: [*r.uniform(0, 0.5, 2), *r.uniform(0.05, 0.5, 2)]),
}
WEAK = {  # what a weak model finds for the boxes of an image
    "random": lambda r, own, s: [
        s * [*r.uniform(0, 0.5, 2), *r.uniform(0, 0.6, 2)] for _ in "12345"
    ],
    "constant": lambda r, own, s: [s * [0.2, 0.3, 0.4, 0.3]],
    "upper corner": lambda r, own, s: [s * [0, 0, 0.25, 0.25]],
    "whole": lambda r, own, s: [s * [0, 0, 1, 1]],
    "half": lambda r, own, s: [np.r_[b[:2] + b[2:] / 4, b[2:] / 2] for b in own],
    "offset": lambda r, own, s: [np.r_[b[:2] + 0.4 * b[2:], b[2:]] for b in own],
    "double": lambda r, own, s: [np.r_[b[:2] - b[2:] / 2, 2 * b[2:]] for b in own],
    "anchors": lambda r, own, s: [np.r_[r.integers(0, 8, 2) * 16, 32, 32] for _ in range(20)],
    "points": lambda r, own, s: [np.r_[b[:2] + b[2:] / 2, 1, 1] for b in own],
    "first part": lambda r, own, s: [np.r_[b[:2], 0.4 * b[2:]] for b in own],
    "last part": lambda r, own, s: [np.r_[b[:2] + 0.6 * b[2:], 0.4 * b[2:]] for b in own],
    "noisy": lambda r, own, s: [(b + r.normal(0, 0.3, 4) * np.tile(b[2:], 2)).clip(0) for b in own],
    "grid": lambda r, own, s: [s * [0.02 * j, 0.02 * j, 0.1, 0.1] for j in range(8)],
}


@pytest.mark.parametrize("name", SCENES)
def test_weak_models_are_scored_in_all_scenes(name):
    width, height, count, draw = SCENES[name]
    rng = np.random.default_rng(0)
    scale = np.array([width, height] * 2, float)
    for weak_model in [*WEAK.values()] * 4:
        truth = {"images": [], "annotations": [], "categories": truth_of_six()["categories"]}
        results = []
        for i in range(2 if name == "two images" else 10):
            truth["images"].append({"id": i, "width": width, "height": height})
            own = [scale * draw(rng) for _ in range(count)]
            for boxes_, records in (
                (own, truth["annotations"]),
                (weak_model(rng, own, scale), results),
            ):
                for box in boxes_:
                    record = {"image_id": i, "category_id": int(rng.integers(1, 3))}
                    record |= {"bbox": box.tolist(), "id": len(records) + 1}
                    records.append(record | {"score": float(rng.random())})
        evaluate_coco(truth, results, "bbox")


def test_what_may_be_another_form_is_told(caplog):
    truth = truth_of_six()
    results = results_of(truth, **boxes(OTHER_BOXES["centers"][0]))
    truth["annotations"] = truth["annotations"][:4]  # of two images: too few to be certain
    evaluate_coco(truth, results[:4], "bbox")
    assert "boxes look like [center x, center y, width, height], not like" in caplog.text


CLASSES = {
    "exchanged": ([], lambda id_: 3 - id_, "looks exchanged.*'cat' as 'dog'"),
    "one too low": ([0], lambda id_: id_ - 1, "seems to be one too low: of 12 .*, 0 are .* and 12"),
    "one too high": ([3], lambda id_: id_ + 1, "seems to be one too high"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_are_exchanged_are_refused(name):
    more, change, says = CLASSES[name]
    truth = truth_of_six()
    truth["categories"] += [{"id": id_, "name": "other"} for id_ in more]
    results = results_of(truth, category_id=lambda a: change(a["category_id"]))
    with pytest.raises(DataError, match=f"category_id {says}"):
        evaluate_coco(truth, results, "bbox")
    assert evaluate_coco(truth, results, "bbox", trust=True)["AP"] == 0


def with_classes(ids):
    """A truth whose objects have these categories in turn, and as many categories."""
    truth = truth_of_six()
    truth["categories"] = [{"id": id_, "name": f"class {id_}"} for id_ in sorted(set(ids))]
    copies = [
        {**image, "id": image["id"] + 6 * k} for k in range(1, 5) for image in truth["images"]
    ]
    objects = truth["annotations"]
    truth["annotations"] = [
        {**a, "image_id": a["image_id"] + 6 * k} for k in range(5) for a in objects
    ]
    truth["images"] += copies
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number + 1
        annotation["category_id"] = ids[number % len(ids)]
    return truth


def test_places_in_a_list_with_gaps_are_recognized_though_some_agree():
    """As the 80 classes of COCO, whose ids go up to 90: those before the first gap agree."""
    ids = [1, 1, 1, 2, 4, 5, 6, 7]  # 3 is missing: the places of 4, 5, 6, 7 are 3, 4, 5, 6
    truth = with_classes(ids)
    truth["categories"].insert(3, {"id": 3, "name": "not annotated"})
    results = results_of(truth, category_id=lambda a: a["category_id"] - (a["category_id"] > 3))
    truth["categories"] = [c for c in truth["categories"] if c["id"] != 3]
    results = [r for r in results if r["category_id"] != 3]
    with pytest.raises(DataError, match=r"category_id seems to be .*list, from 1: of .* if it is"):
        evaluate_coco(truth, results, "bbox")


def test_two_exchanged_classes_among_many_are_refused():
    truth = with_classes([1, 2, 3, 4, 5, 6])
    change = {2: 5, 5: 2}
    results = results_of(
        truth, category_id=lambda a: change.get(a["category_id"], a["category_id"])
    )
    with pytest.raises(DataError, match="'class 2' as 'class 5', 'class 5' as 'class 2'"):
        evaluate_coco(truth, results, "bbox")
    one_way = results_of(
        truth, category_id=lambda a: 5 if a["category_id"] == 2 else a["category_id"]
    )
    assert evaluate_coco(truth, one_way, "bbox")["AP"] > 0.5


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_classes_in_another_order_are_refused_though_some_have_no_objects(order):
    truth = with_classes([*range(1, 13)])
    others = {id_: 41 - id_ for id_ in range(1, 41)}
    if order == "shuffled":
        others = dict(zip(others, np.random.default_rng(0).permutation([*others]).tolist()))  # noqa: B905
    truth["categories"] = [{"id": id_, "name": f"class {id_}"} for id_ in others]
    results = results_of(truth, category_id=lambda a: others[a["category_id"]])
    with pytest.raises(DataError, match=r"category_id looks exchanged: of \d+ .*, \d are found"):
        evaluate_coco(truth, results, "bbox")


def test_a_model_that_confuses_classes_is_scored():
    truth = truth_of_six()
    all_cats = results_of(truth, category_id=lambda a: 1)
    assert evaluate_coco(truth, all_cats, "bbox")["AP"] < 0.6
    some = results_of(truth, category_id=lambda a: 1 + (a["image_id"] + a["category_id"]) % 2)
    assert evaluate_coco(truth, some, "bbox")["AP"] < 0.6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"category_id": lambda a: a["category_id"] - 1}, "category_id: .*all are one too low"),
        ({"category_id": lambda a: a["category_id"] + 1}, "category_id: .*all are one too high"),
        ({"category_id": lambda a: a["category_id"] + 5}, "category_id: .*0 are in both"),
        ({"image_id": lambda a: a["image_id"] - 1}, "image_id: .*from 0 to 5.*one too low"),
        ({"image_id": lambda a: a["image_id"] + 100}, "image_id: .*is it the right annotation"),
        ({"score": lambda a: 85 + a["category_id"]}, "scores reach from 86 to 87: percent"),
        ({"score": lambda a: 3.0 - a["category_id"] * 2}, "scores reach from -1 to 1: logits"),
    ],
)
def test_the_message_says_what_unknown_ids_and_scores_look_like(change, says):
    truth = truth_of_six()
    with pytest.raises(DataError, match=f"(?s)cannot be scored.*{says}"):
        evaluate_coco(truth, results_of(truth, **change), "bbox")


def test_ids_that_are_places_in_the_list():
    truth = truth_of_six()
    for record in truth["categories"]:
        record["id"] *= 10
    for record in truth["annotations"]:
        record["category_id"] *= 10
    results = results_of(truth, category_id=lambda a: a["category_id"] // 10)
    with pytest.raises(DataError, match="places in the list, counted from 1, instead of ids"):
        evaluate_coco(truth, results, "bbox")


def test_image_ids_that_are_shifted_where_all_are_known():
    truth = truth_of_six()
    rng = np.random.default_rng(0)
    for annotation in truth["annotations"]:
        annotation["bbox"] = [int(v) for v in [*rng.integers(0, [60, 30]), 30, 28]]
    truth["images"].append({**truth["images"][0], "id": 0})
    results = results_of(truth, image_id=lambda a: a["image_id"] - 1)
    with pytest.raises(DataError, match="image_id seems to be one too low"):
        evaluate_coco(truth, results, "bbox")


def test_image_ids_that_are_shifted_so_that_no_image_with_objects_has_results():
    truth = truth_of_six()
    images = [{**image, "id": 2 * image["id"]} for image in truth["images"]]
    truth["images"] = images + [{**image, "id": image["id"] + 1} for image in images]
    for annotation in truth["annotations"]:
        annotation["image_id"] *= 2
    results = results_of(truth, image_id=lambda a: a["image_id"] + 1)
    with pytest.raises(DataError, match="image_id seems to be one too high"):
        evaluate_coco(truth, results, "bbox")


def test_trust_takes_scores_of_any_size():
    truth = truth_of_six()
    for scale in (100, -1):
        results = results_of(truth)
        for record in results:
            record["score"] = scale * record["score"] + min(0, scale)
        expected = evaluate_coco(truth, results_of(truth), "bbox")["AP"]
        assert evaluate_coco(truth, results, "bbox", trust=True)["AP"] == expected
    results[3]["score"] = float("nan")
    with pytest.raises(DataError, match="result 3 "):
        evaluate_coco(truth, results, "bbox", trust=True)


@pytest.mark.parametrize(
    ("moved", "text"),
    [
        (lambda x, y, w, h: [y, x, h, w], "masks with x and y exchanged"),
        (lambda x, y, w, h: [96 - x - w, y, w, h], "masks mirrored left to right"),
        (lambda x, y, w, h: [x, 96 - y - h, w, h], "masks upside down"),
    ],
)
def test_masks_with_other_axes_are_refused(moved, text):
    truth = truth_of_six()
    for image in truth["images"]:
        image["width"] = image["height"] = 96
    for annotation in truth["annotations"]:
        annotation["segmentation"] = rectangle(annotation["bbox"], (96, 96))
    good = results_of(truth, segmentation=lambda a: a["segmentation"])
    bad = results_of(truth, segmentation=lambda a: rectangle(moved(*a["bbox"]), (96, 96)))
    assert evaluate_coco(truth, only(good, "segm"), "segm")["AP"] == pytest.approx(1)
    with pytest.raises(DataError, match=text):
        evaluate_coco(truth, only(bad, "segm"), "segm")


def test_boxes_outside_their_images_are_told(caplog):
    truth = truth_of_six()
    results = results_of(truth)
    results += [{**results[0], "bbox": [300, 5, 20, 20], "score": 0.1}]
    assert evaluate_coco(truth, results, "bbox")["AP"] == pytest.approx(1)
    assert "1 of 13 boxes lie outside their image (result 12" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda results: [r | {"score": 0.5} for r in results], "all 12 scores are 0.5"),
        (lambda results: results + results[:3], "3 results repeat another one exactly"),
        (lambda results: results + results[:1], "1 result repeats another one exactly"),
        (
            lambda results: [r for r in results if r["category_id"] == 1],
            "no result is of class 'dog': all 6 objects count as missed",
        ),
        (lambda results: results[:3], "4 of 6 images with objects have no result"),
        (lambda results: [], "there are no results"),
    ],
)
def test_what_lowers_metrics_is_told(caplog, change, says):
    truth = truth_of_six()
    results = change(results_of(truth, segmentation=lambda a: a["segmentation"]))
    for iou_type in ("bbox", "segm"):
        caplog.clear()
        evaluate_coco(truth, only(results, iou_type), iou_type)
        assert says in caplog.text


def test_sound_results_cause_no_remark(caplog):
    truth = truth_of_six()
    evaluate_coco(truth, results_of(truth), "bbox")
    assert not [r for r in caplog.records if "results" in r.getMessage()]


def test_a_file_of_corners_is_refused_and_scored_with_trust(tmp_path, capsys):
    truth = truth_of_six()
    read, _ = OTHER_BOXES["corners"]
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "pred.json").write_text(json.dumps(results_of(truth, **boxes(read))))
    words = ["eval", "--gt", str(tmp_path / "gt.json"), "--pred", str(tmp_path / "pred.json")]
    assert main(words) == 3
    printed = capsys.readouterr()
    assert not printed.out and "pred.json: the results seem to mean something else" in printed.err
    assert main([*words, "--trust"]) == 0
    assert "count as missed" in capsys.readouterr().out
    found = evaluate_files(tmp_path / "gt.json", tmp_path / "pred.json", "bbox", trust=True)
    expected = evaluate_coco(truth, results_of(truth, **boxes(read)), "bbox", trust=True)
    assert found == pytest.approx(expected, nan_ok=True)


def test_the_truth_is_not_changed():
    truth = single_object()
    before = copy.deepcopy(truth)
    evaluate_coco(truth, [PERFECT], "bbox")
    assert truth == before
