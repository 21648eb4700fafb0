"""Results that mean something else than they say are refused, with what they look like."""

import copy
import json

import numpy as np
import pytest

from support.coco_scenes import PERFECT, only, rectangle, scene, single_object, wild
from visionkit.cli.main import main
from visionkit.errors import DataError
from visionkit.metrics.coco.evaluator import evaluate_coco, evaluate_files

W, H = 96, 64


def truth_of_six():
    """Six images, each with a cat and a dog at other places."""
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": W, "height": H} for i in range(1, 7)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [],
    }
    for i in range(1, 7):
        for category, box in ((1, [8 + i, 12, 30, 28]), (2, [50, 20 + 2 * i, 28, 26])):
            truth["annotations"].append(
                {
                    **{"id": 2 * i + category, "image_id": i, "category_id": category},
                    **{"bbox": box, "area": box[2] * box[3], "iscrowd": 0},
                    "segmentation": rectangle(box, (H, W)),
                }
            )
    return truth


def results_of(truth, **changes):
    """Perfect results; each change is a function of the annotation."""
    results = []
    for number, annotation in enumerate(truth["annotations"]):
        record = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        record["score"] = 0.9 - number / 100
        results.append(record | {key: change(annotation) for key, change in changes.items()})
    return results


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
    "half": (lambda x, y, w, h: [x / 2, y / 2, w / 2, h / 2], "resized by 0.5 x 0.5"),
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


def test_nothing_but_boxes_outside_their_image_is_refused_in_wild_scenes():
    for seed in range(40):
        truth, results = wild(seed)
        evaluate_coco(truth, only(results, "segm"), "segm")
        try:
            evaluate_coco(truth, only(results, "bbox"), "bbox")
        except DataError as error:
            assert "boxes lie outside their image" in str(error)


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


def test_masks_with_exchanged_axes_are_refused():
    truth = truth_of_six()
    for image in truth["images"]:
        image["width"] = image["height"] = 96
    for annotation in truth["annotations"]:
        annotation["segmentation"] = rectangle(annotation["bbox"], (96, 96))
    good = results_of(truth, segmentation=lambda a: a["segmentation"])
    bad = results_of(
        truth, segmentation=lambda a: rectangle([a["bbox"][i] for i in (1, 0, 3, 2)], (96, 96))
    )
    assert evaluate_coco(truth, only(good, "segm"), "segm")["AP"] == pytest.approx(1)
    with pytest.raises(DataError, match="masks with x and y exchanged"):
        evaluate_coco(truth, only(bad, "segm"), "segm")


def test_boxes_outside_their_images_are_refused():
    truth = truth_of_six()
    results = results_of(truth)
    results += [{**results[0], "bbox": [300, 5, 20, 20], "score": 0.1}]
    with pytest.raises(DataError, match=r"1 of 13 boxes lie outside their image .result 12"):
        evaluate_coco(truth, results, "bbox")
    assert evaluate_coco(truth, results, "bbox", trust=True)["AP"] == pytest.approx(1)


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


NAMES = {
    "category_name": {"category_name": "dog"},
    "unknown name": {"category_name": "horse"},
    "label": {"label": "Dog", "note": ""},
    "class": {"class": "dog", "note": ""},
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_contradict_the_ids_are_refused(tmp_path, capsys, name):
    truth = truth_of_six()
    results = results_of(truth)
    for number in (4, 6):  # both cats
        results[number] |= NAMES[name]
    results[0] |= {
        "category_name": "CAT",
        "label": "an animal",
        "name": "result",
    }  # no contradiction
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "pred.json").write_text(json.dumps(results))
    words = ["eval", "--gt", str(tmp_path / "gt.json"), "--pred", str(tmp_path / "pred.json")]
    assert main(words) == 3
    told = capsys.readouterr().err
    assert "result 4: " in told and "category_id 1 is 'cat' in the annotations" in told
    assert "(and 1 more)" in told and "--trust" in told
    assert main([*words, "--trust", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["AP"] == pytest.approx(1)


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
