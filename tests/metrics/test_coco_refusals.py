"""What must not be scored is refused, by name and place, whichever engine would score it."""

import math

import pytest

from support.coco_scenes import PERFECT, SQUARE, rectangle, single_object
from visionkit.errors import DataError
from visionkit.metrics.coco.evaluator import evaluate_coco


@pytest.fixture(params=["pycocotools", "hotcoco"])
def engine(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bbox": [10, 10, float("nan"), 30]}, "bbox"),
        ({"bbox": [10, 10, -4, 30]}, "bbox"),
        ({"bbox": [10, 10, 4]}, "bbox"),
        ({"score": float("nan")}, "score"),
        ({"score": 1.5}, "score"),
        ({"image_id": 99}, "image_id 99 is not in"),
        ({"category_id": 7}, "category_id 7"),
        ({"image_id": 1.5}, "image_id 1.5 is not in"),
        ({"image_id": [1]}, r"image_id \[1\] is not in"),
        ({"image_id": 10**30}, "image_id 10+ is not in"),
        ({"category_id": None}, "category_id None"),
        ({"score": "0.5"}, "score '0.5'"),
        ({"score": None}, "score None"),
        ({"bbox": ["1", 2, 3, 4]}, "bbox"),
        ({"bbox": None}, "bbox None"),
        ({"bbox": [10, 10, 10**400, 3]}, "bbox"),
    ],
)
def test_what_the_engines_score_wrongly_is_refused(engine, change, says):
    with pytest.raises(DataError, match=says) as caught:
        evaluate_coco(single_object(), [PERFECT, {**PERFECT, **change}], "bbox", engine)
    assert "result 1" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": True}, "image_id True is not in the annotations"),
        ({"image_id": "1"}, "image_id '1' is not in the annotations.*without quotes"),
        ({"category_id": True}, "category_id True"),
        ({"category_id": "1"}, "category_id '1'.*without quotes"),
        ({"score": True}, "score True"),
        ({"score": -0.1}, "score -0.1"),
        ({"score": math.inf}, "score inf"),
        ({"bbox": [True, 10, 40, 30]}, "bbox .True"),
        ({"bbox": [10, 10, 40, -1e-9]}, "bbox"),
        ({"bbox": [-1e308, 10, 1e308, 30]}, "bbox"),
        ({"bbox": {"x": 1, "y": 2, "w": 3, "h": 4}}, "bbox"),
    ],
)
def test_numbers_of_another_kind_and_far_away_are_refused(engine, change, says):
    for records in ([{**PERFECT, **change}], [PERFECT] * 30 + [{**PERFECT, **change}]):
        with pytest.raises(DataError, match=f"result {len(records) - 1} (.|\n)*{says}"):
            evaluate_coco(single_object(), records, "bbox", engine)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"iscrowd": "no"}, "'iscrowd' is 'no': must be 0 or 1"),
        ({"iscrowd": 2}, "'iscrowd' is 2"),
        ({"iscrowd": math.nan}, "'iscrowd' is nan"),
        ({"image_id": True}, "'image_id' is True"),
        ({"area": True}, "'area' is True"),
        ({"bbox": [True, 10, 40, 30]}, "'bbox' is .True"),
        ({"bbox": [0, 0, 1e300, 1e300]}, "'bbox' is"),
        ({"segmentation": "x"}, "'segmentation': must be a list of polygons"),
        ({"segmentation": 0}, "'segmentation': must be a list of polygons"),
        ({"segmentation": [[1, 2, True, 4, 5, 6]]}, "has True where a number must be"),
    ],
)
def test_annotations_of_another_kind_are_refused(engine, change, says):
    iou_type = "segm" if "segmentation" in change else "bbox"
    with pytest.raises(DataError, match=says) as caught:
        evaluate_coco(single_object(**change), [], iou_type, engine)
    assert "annotations[0] (id 1)" in str(caught.value)


def test_a_crowd_in_quotes_is_a_crowd_and_a_zero_in_quotes_is_none(engine):
    for text, figure in (("0", 1.0), ("1", math.nan)):
        found = evaluate_coco(single_object(iscrowd=text), [PERFECT], "bbox", engine)["AP"]
        assert found == pytest.approx(figure, nan_ok=True)


def test_categories_need_names():
    for name in (None, "", 7):
        truth = single_object()
        truth["categories"][0]["name"] = name
        with pytest.raises(DataError, match=r"categories\[0\] \(id 1\): 'name' is"):
            evaluate_coco(truth, [], "bbox")


def test_all_that_is_wrong_is_listed_by_its_number_in_the_order_of_the_file(engine):
    results = [PERFECT] * 40
    for i in (3, 17):
        results[i] = {**PERFECT, "score": 2}
    results[20] = {k: v for k, v in PERFECT.items() if k != "score"}
    results[21] = "nonsense"
    with pytest.raises(DataError) as caught:
        evaluate_coco(single_object(), results, "bbox", engine)
    said = str(caught.value)
    assert "4 of 40 detections cannot be scored" in said
    assert "result 20 (image_id 1): lacks" in said
    order = [said.index(f"result {i}") for i in (3, 17, 20, 21)]
    assert order == sorted(order)
    with pytest.raises(DataError, match=r"40 detections(.|\n)*result 19 (.|\n)* and 20 more"):
        evaluate_coco(single_object(), [{**PERFECT, "image_id": 9}] * 40, "bbox", engine)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (rectangle([10, 10, 40, 30], (100, 80)), r"mask of size \[100, 80\] on an image of"),
        ({**SQUARE, "size": "80x100"}, "mask of size '80x100'"),
        ({**SQUARE, "size": None}, "mask of size None"),
        ({**SQUARE, "counts": SQUARE["counts"][:-1]}, "damaged"),
        ({**SQUARE, "counts": SQUARE["counts"][:-3]}, "damaged"),  # ends with the object
        ({**SQUARE, "counts": ""}, "damaged"),
        ({**SQUARE, "counts": SQUARE["counts"] + "1"}, "damaged"),
        ({**SQUARE, "counts": "\x01" + SQUARE["counts"]}, "damaged"),
        ({**SQUARE, "counts": "é" + SQUARE["counts"]}, "damaged"),
        ({**SQUARE, "counts": "€" + SQUARE["counts"]}, "damaged"),
        ({**SQUARE, "counts": b"\xe9" + SQUARE["counts"].encode()}, "damaged"),
        ({**SQUARE, "counts": bytearray(SQUARE["counts"].encode())}, "compressed string"),
        ({**SQUARE, "counts": [10, 20]}, "compressed string"),
        ([[10, 10, 50, 10, 50, 40]], "not a run-length code"),
        ({"size": [80, 100]}, "not a run-length code"),
        (None, "not a run-length code"),
    ],
)
def test_masks_that_the_engines_score_wrongly_or_never_end_with_are_refused(engine, mask, says):
    truth = single_object(segmentation=SQUARE)
    found = {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": SQUARE}
    assert evaluate_coco(truth, [found], "segm", engine)["AP"] == pytest.approx(1)
    with pytest.raises(DataError, match=says) as caught:
        evaluate_coco(truth, [found, {**found, "segmentation": mask}, found], "segm", engine)
    assert "1 of 3 detections" in str(caught.value)
    assert "result 1 (image_id 1)" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bbox": [10, 10, float("nan"), 30]}, "'bbox' is"),
        ({"bbox": [10, 10, 4]}, "'bbox' is"),
        ({"bbox": None}, "'bbox' is None"),
        ({"image_id": 99}, "'image_id' is 99, which is not in 'images'"),
        ({"image_id": "1"}, "'image_id' is '1': must be an integer"),
        ({"category_id": 7}, "'category_id' 7 is not in 'categories'"),
        ({"area": float("nan")}, "'area' is nan"),
        ({"area": "12"}, "'area' is '12'"),
    ],
)
def test_wrong_annotations_are_refused(engine, change, says):
    for iou_type in ("bbox", "segm"):
        with pytest.raises(DataError, match=says) as caught:
            evaluate_coco(single_object(**change), [], iou_type, engine)
        assert "annotations[0] (id 1)" in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([[1, 2, 3, 4]], "4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, 1e6]], "not within 10x the image size"),
        ([[1, 2, 3, 4, 5, "6"]], "has '6' where a number must be"),
        ([1, 2, 3, 4, 5, 6], "list of polygons"),
        ("no", "list of polygons"),
        ({"size": [8, 10], "counts": SQUARE["counts"]}, "RLE counts add up to 8000"),
        ({"size": [80, 100], "counts": [10, 20]}, "add up to 30"),
        ({"size": [80, 100], "counts": [-10, 8010]}, "RLE counts must be"),
        ({"size": [80, 100], "counts": SQUARE["counts"][:-1]}, "RLE counts are damaged"),
        ({"size": [80, 100]}, "RLE counts must be"),
    ],
)
def test_wrong_masks_of_annotations_are_refused(engine, mask, says):
    with pytest.raises(DataError, match=says):
        evaluate_coco(single_object(segmentation=mask), [], "segm", engine)


def test_repeated_ids_and_names_are_refused():
    for kind, change in (("images", {}), ("categories", {}), ("categories", {"id": 2})):
        truth = single_object()
        truth[kind].append({**truth[kind][0], **change})
        other = {"category_id": truth["categories"][-1]["id"]}  # both names have objects
        truth["annotations"].append({**truth["annotations"][0], **other})
        with pytest.raises(DataError, match=rf"{kind}\[1\].*must be unique"):
            evaluate_coco(truth, [], "bbox")
