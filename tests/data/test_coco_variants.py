"""What other programs write into COCO files: taken where it has one meaning, else named."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from support.coco_files import SQUARE, save, small
from support.coco_scenes import truth_records
from support.small_runs import PYRAMID, SHAPES, TINY
from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.data.build import build_sources
from visionkit.data.classes import ClassMappedDataset
from visionkit.data.coco.index import index_of
from visionkit.data.datasets.coco import Coco, Crops
from visionkit.errors import DataError
from visionkit.metrics.coco.evaluator import CocoEvaluator, evaluate_coco
from visionkit.models.heads.matching import ground_truth_of
from visionkit.types import Batch


def two(**changes):
    """One class and two objects with masks; the second has the changes."""
    content = small()
    content["categories"] = [{"id": 1, "name": "ox"}]
    base = {"image_id": 70, "category_id": 1, "bbox": [2, 2, 6, 6], "segmentation": SQUARE}
    second = base | {"id": 2, "bbox": [10, 2, 5, 5]} | changes
    second = {key: value for key, value in second.items() if value is not ...}
    content["annotations"] = [{"id": 1, **base}, second]
    return content


def errors(tmp_path, content, **options):
    with pytest.raises(DataError) as caught:
        save(tmp_path, content, **options)
    return caught.value


def kinds(dataset):
    return [found.kind for found in dataset.findings() if found.kind not in USUAL]


USUAL = ("rare-class", "no-annotations", "missing-area", "unused-class")


@pytest.mark.parametrize("empty", [{}, "", [], [[]], [[], []], None])
def test_empty_segmentations_beside_real_ones(tmp_path, empty):
    data = save(tmp_path, two(segmentation=empty))
    assert kinds(data) == ["missing-mask"]
    assert data[0].target()["masks"].sum((1, 2)).tolist() == [36, 0]
    assert evaluate_coco(two(segmentation=empty), [], "segm")["AP"] == 0.0


def test_an_empty_polygon_beside_others_of_an_object(tmp_path):
    data = save(tmp_path, two(segmentation=[[], *SQUARE, []]))
    assert kinds(data) == []
    assert data[0].target()["masks"].sum((1, 2)).tolist() == [36, 36]


@pytest.mark.parametrize("value", [True, False, 0, 1, "yes"])
def test_a_segmentation_that_is_no_mask(tmp_path, value):
    error = errors(tmp_path, two(segmentation=value))
    assert [found.kind for found in error.findings] == ["bad-mask"]
    assert save(tmp_path, two(segmentation=value), masks=False).num_objects == 2


@pytest.mark.parametrize("missing", [None, ..., []])
@pytest.mark.parametrize("form", ["polygons", "rle", "counts"])
def test_the_box_of_a_mask_without_one(tmp_path, missing, form):
    pixels = np.zeros((10, 20), np.uint8, order="F")
    pixels[3:8, 4:9] = 1
    rle = coco_mask.encode(pixels)
    mask = {
        "polygons": [[4, 3, 9, 3, 9, 8, 4, 8]],
        "rle": {"size": [10, 20], "counts": rle["counts"].decode()},
        "counts": {"size": [10, 20], "counts": [43, 5, 5, 5, 5, 5, 5, 5, 5, 5, 112]},
    }[form]
    content = two(bbox=missing, segmentation=mask)
    data = save(tmp_path, content)
    assert data[0].boxes.tolist() == [[2, 2, 8, 8], [4, 3, 9, 8]]
    assert kinds(data) == ["missing-box"] and data.counts()["fixed"]["missing-box"] == 1
    assert truth_records(data.ground_truth())[1]["bbox"] == [4, 3, 5, 5]
    perfect = [
        {"image_id": 70, "category_id": 1, "score": 0.9, "bbox": box}
        for box in ([2, 2, 6, 6], [4, 3, 5, 5])
    ]
    assert evaluate_coco(content, perfect, "bbox")["AP"] == pytest.approx(1)


def test_a_mask_without_a_box_that_is_bad_has_one_error(tmp_path):
    for mask in ([[1, 2, 3]], [[1, 1, float("nan"), 5, 3, 3]]):
        (found,) = errors(tmp_path, two(bbox=None, segmentation=mask)).findings
        assert found.key == "segmentation"


@pytest.mark.parametrize("objects", [True, False])
def test_a_root_category_with_the_name_of_a_class(tmp_path, objects):
    content = small()
    content["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "ox", "supercategory": "cat"},
        {"id": 90, "name": "cat", "supercategory": "cat"},
    ]
    content["annotations"] = content["annotations"][: 2 if objects else 0]
    data = save(tmp_path, content)
    assert data.classes["labels"] == (("ox", "cat"), (1, 90))
    assert kinds(data) == ["spare-category"] and data.counts()["dropped"] == {"spare-category": 1}
    assert index_of(content, "x").spare == ["cat"]

    content["annotations"] = small()["annotations"]
    content["annotations"][1]["category_id"] = 0  # it has objects: two classes of one name
    assert "'name' 'cat' is also that of" in str(errors(tmp_path, content))


def test_a_root_category_is_left_out_of_evaluation_too():
    content = two()
    content["categories"] = [{"id": 0, "name": "ox"}, {"id": 1, "name": "ox"}]
    found = [{"image_id": 70, "category_id": 1, "score": 0.9, "bbox": [2, 2, 6, 6]}]
    metrics = evaluate_coco(content, found, "bbox")
    assert [name for name in metrics if "/" in name] == ["AP/ox"]
    assert metrics["AP50"] == pytest.approx(0.5, abs=0.01)  # one of two objects


def test_text_ids_are_one_error_and_cause_no_other(tmp_path):
    content = two()
    for record in content["images"]:
        record["id"] = str(record["id"])
    for record in content["annotations"]:
        record["image_id"], record["category_id"] = "70", "1"
    content["categories"] = [{"id": "1", "name": "ox"}, {"id": 2, "name": "cow"}]
    found = errors(tmp_path, content).findings
    assert [(f.place.list, f.place.index, f.key) for f in found] == [
        ("images", 0, "id"),
        ("annotations", 0, "image_id"),
        ("annotations", 0, "category_id"),
        ("categories", 0, "id"),
    ]
    assert "'id' is '70', and text in 1 more of the images: must be an integer" in str(found[0])
    with pytest.raises(DataError, match="4 problems"):
        evaluate_coco(content, [], "bbox")


@pytest.mark.parametrize("key", ["ignore", "isgroupof", "IsGroupOf"])
@pytest.mark.parametrize(("value", "crowd"), [(1, True), (True, True), ("1", True), (0, False)])
def test_objects_to_ignore_are_crowd_regions(tmp_path, key, value, crowd):
    content = two(**{key: value, "iscrowd": 0})
    data = save(tmp_path, content)
    assert data[0].iscrowd.tolist() == [False, crowd]
    assert data.ground_truth().iscrowd.tolist() == [False, crowd]
    assert kinds(data) == ["ignore-region"] * crowd
    found = [{"image_id": 70, "category_id": 1, "score": 0.9, "bbox": [2, 2, 6, 6]}]
    found.append({**found[0], "bbox": [10, 2, 2, 2]})  # a part of the region
    assert evaluate_coco(content, found, "bbox")["AP"] == pytest.approx(1 if crowd else 0.504950495)
    assert save(tmp_path, two(**{key: None})).num_objects == 2
    assert f"'{key}' is 'x': must be 0 or 1" in str(errors(tmp_path, two(**{key: "x"})))


def regions(second=2):
    """An ox, a region to ignore, and a cow in another image."""
    content = small()
    content["categories"] = [
        {"id": 7, "name": "ignored"},
        {"id": 1, "name": "ox"},
        {"id": 2, "name": "cow"},
    ]
    base = {"image_id": 70, "category_id": 1, "bbox": [2, 2, 6, 6], "segmentation": SQUARE}
    region = [[10, 0, 20, 0, 20, 10, 10, 10]]
    content["annotations"] = [
        {"id": 1, **base},
        {"id": 2, **base, "category_id": 7, "bbox": [10, 0, 10, 10], "segmentation": region},
        {"id": 3, **base, "image_id": 3, "category_id": second},
    ]
    return content


def test_categories_to_ignore_are_regions_of_no_class(tmp_path):
    data = save(tmp_path, regions(), ignore_categories=["ignored"])
    assert data.classes["labels"] == (("ox", "cow"), (1, 2)) and data.num_objects == 2
    assert data.class_counts()["labels"].tolist() == [1, 1]
    assert kinds(data) == ["ignore-region"]
    target = data[0].target()
    assert target["labels"].tolist() == [0, 0] and target["iscrowd"].tolist() == [False, True]
    truth = ground_truth_of(target)  # as heads see it
    assert truth.boxes.tolist() == [[2, 2, 8, 8]] and truth.crowds.tolist() == [[10, 0, 20, 10]]
    assert [len(column) for column in data.objects()] == [2, 2, 2, 2]
    crops = Crops(
        str(data.images), str(data.annotations), ignore_categories=["ignored"], min_size=1
    )
    assert len(crops) == 2 and crops.classes["class_id"].names == ("ox", "cow")


def test_detections_in_a_region_to_ignore_are_not_scored(tmp_path):
    data = save(tmp_path, regions(), ignore_categories=["ignored"])
    without = save(tmp_path, regions(), classes=["ox", "cow"], other_classes="ignore")
    target = {"image_id": 70, "orig_size": (10, 20), "size": (10, 20)}
    other = {**target, "image_id": 3}
    batch = Batch(torch.zeros(2, 3, 10, 20, dtype=torch.uint8), [target, other])
    boxes = torch.tensor([[2.0, 2, 8, 8], [12, 2, 18, 8], [11, 1, 15, 5]])
    scores = torch.tensor([0.8, 0.9, 0.7])
    first = {"boxes": boxes, "scores": scores, "labels": torch.tensor([0, 0, 1])}
    second = {"boxes": boxes[:1], "scores": scores[:1], "labels": torch.tensor([1])}
    for dataset, expected in ((data, (1, 1)), (without, (0.5, 1))):
        evaluator = CocoEvaluator(dataset)
        evaluator.update([first, second], batch)
        metrics = evaluator.compute()
        found = metrics["bbox/AP/ox"], metrics["bbox/AP/cow"]
        assert found == pytest.approx(expected, abs=0.01)


def test_result_files_are_scored_with_regions_to_ignore(tmp_path, capsys):
    save(tmp_path, regions())
    found = [
        {"image_id": 70, "category_id": 1, "score": 0.8, "bbox": [2, 2, 6, 6]},
        {"image_id": 70, "category_id": 1, "score": 0.9, "bbox": [12, 2, 6, 6]},
        {"image_id": 3, "category_id": 2, "score": 0.9, "bbox": [2, 2, 6, 6]},
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    arguments = ["eval", "--gt", str(tmp_path / "a.json"), "--pred", str(tmp_path / "found.json")]
    arguments += ["--trust", "--json"]
    for extra, names in ((["--ignore-categories", "ignored"], 2), ([], 3)):
        assert main([*arguments, *extra]) == 0
        metrics = json.loads(capsys.readouterr().out)
        assert len([name for name in metrics if name.startswith("AP/")]) == names
        assert metrics["AP/ox"] == pytest.approx(1 if extra else 0.5, abs=0.01)
    assert main([*arguments, "--ignore-categories", "x"]) == 3
    assert "ignore_categories: unknown category 'x'" in capsys.readouterr().err


def test_regions_to_ignore_where_classes_are_mapped_painted_or_listed(tmp_path):
    data = save(tmp_path, regions(), ignore_categories=["ignored"])
    mapped = ClassMappedDataset(data, {"labels": ["cow", "ox"]}, ["cow"])[0]
    assert mapped.labels.tolist() == [-1] and mapped.iscrowd.tolist() == [True]
    painted = save(tmp_path, regions(), ignore_categories=["ignored"], semantic="paint")
    semantic = painted[0].semantic
    assert semantic[4, 4] == 1 and semantic[0, 0] == 0 and (semantic[:, 10:] == 255).all()
    assert painted.classes["semantic"].names == ("background", "ox", "cow")

    content = regions()
    content["images"][0]["neg_category_ids"] = []  # cow was not looked for there
    truth = save(tmp_path, content, ignore_categories=["ignored"]).ground_truth()
    assert truth.category[truth.iscrowd].tolist() == [0]

    chosen = {"classes": ["ox", "cow"], "ignore_categories": ["ignored"]}
    assert save(tmp_path, regions(), **chosen).num_objects == 2
    message = str(errors(tmp_path, regions(), ignore_categories=["ignore"]))
    assert "unknown category 'ignore'; did you mean 'ignored'?" in message


@pytest.mark.parametrize(
    ("content", "name", "todo"),
    [
        ({"version": "5.0", "shapes": [], "imagePath": "a.png"}, "LabelMe", "type: LabelMe"),
        ({"_via_img_metadata": {}}, "VGG Image Annotator", "Export Annotations (COCO"),
        ({"a.png123": {"filename": "a.png", "regions": []}}, "VGG Image Annotator", "COCO"),
        ([{"image": "a.png", "annotations": []}], "CreateML", "export COCO or YOLO"),
        ([{"id": 1, "data": {}, "annotations": []}], "Label Studio", "format COCO or YOLO"),
        ([{"name": "a.png", "labels": []}], "BDD100K", "bdd100k.label.to_coco"),
        ({"imgHeight": 1, "imgWidth": 1, "objects": []}, "Cityscapes", "type: LabelMaps"),
        ({"type": "FeatureCollection", "features": []}, "GeoJSON", "in pixels"),
        ("<annotation>\n<folder>x</folder></annotation>", "Pascal VOC", "type: Voc"),
        ("<?xml version='1.0'?>\n<annotations><version>1.1", "CVAT", "type: Cvat"),
        ("0 0.5 0.5 0.25 0.125\n3 0.1 0.2 0.3 0.4\n", "YOLO", "--from yolo"),
    ],
)
def test_other_formats_are_named(tmp_path, content, name, todo):
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=name) as caught:
        Coco(str(tmp_path), str(path))
    assert todo in str(caught.value)


def test_panoptic_and_captions_are_named(tmp_path):
    content = small()
    content["annotations"] = [{"image_id": 70, "file_name": "a.png", "segments_info": [{"id": 1}]}]
    assert "format of COCO panoptic" in str(errors(tmp_path, content))
    content["annotations"] = [{"image_id": 70, "id": 1, "caption": "an ox"}]
    assert "format of COCO captions" in str(errors(tmp_path, content))
    content = two(caption="an ox")
    assert save(tmp_path, content).num_objects == 2


@pytest.mark.parametrize(
    ("suffix", "name"), [(".xml", "VOC"), (".json", "LabelMe"), (".txt", "YOLO")]
)
def test_folders_of_other_formats_are_named(tmp_path, suffix, name):
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(DataError, match=name):
        Coco(str(tmp_path), str(tmp_path))


def test_boxes_in_parts_of_the_image_are_refused(tmp_path):
    def relative(box):
        content = two(bbox=box)
        content["annotations"][0]["bbox"] = [0.1, 0.2, 0.3, 0.4]
        return content

    (found,) = errors(tmp_path, relative([0.5, 0.25, 0.5, 0.75])).findings
    assert found.kind == "relative-boxes" and found.value == "[0.1, 0.2, 0.3, 0.4]"
    assert "2 of 2 objects lies within 0..1" in str(found) and "multiply x and width by" in str(
        found
    )
    with pytest.raises(DataError, match=r"within 0\.\.1"):
        evaluate_coco(relative([0.5, 0.25, 0.5, 0.75]), [], "bbox")
    assert "tiny-box" in kinds(save(tmp_path, relative([10, 2, 5, 5])))  # half of them
    whole = two(bbox=[0, 0, 1, 1])
    whole["annotations"] = whole["annotations"][1:]
    assert save(tmp_path, whole).num_objects == 1  # an object of one pixel


def test_polygons_in_parts_of_the_image_are_refused_where_masks_are_used(tmp_path):
    content = two(segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.75]])
    content["annotations"][0]["segmentation"] = [[0, 0, 1, 0, 1, 1]]
    (found,) = errors(tmp_path, content).findings
    assert (found.kind, found.key) == ("relative-boxes", "segmentation")
    with pytest.raises(DataError, match=r"'segmentation' of 2 of 2 objects lies within 0\.\.1"):
        evaluate_coco(content, [], "segm")
    assert save(tmp_path, content, masks=False).num_objects == 2
    assert evaluate_coco(content, [], "bbox")["AP"] == 0


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([[0.5, 0.25, 0.9, 0.75], [0.1, 0.2, 0.3, 0.4], [0.6, 0.6, 1, 1]], "like corners"),
        ([[0.7, 0.7, 0.5, 0.5], [0.1, 0.2, 0.2, 0.4]], "like centers"),
        ([[0, 0, 1.02, 1.0]], "y and height by its height"),
    ],
)
def test_numbers_in_0_to_1_are_relative_whatever_the_last_two_mean(tmp_path, boxes, says):
    content = two()
    base = content["annotations"][0]
    content["annotations"] = [base | {"id": i, "bbox": box} for i, box in enumerate(boxes)]
    (found,) = errors(tmp_path, content).findings
    assert found.kind == "relative-boxes" and says in str(found)
    with pytest.raises(DataError, match=says):
        evaluate_coco(content, [], "bbox")


def test_boxes_within_0_to_1_are_pixels_in_an_image_of_few(tmp_path):
    content = two()
    content["images"] = [image | {"height": 8, "width": 8} for image in content["images"]]
    content["annotations"] = [content["annotations"][0] | {"bbox": [0.5, 0.25, 0.5, 0.5]}]
    assert save(tmp_path, content, masks=False).num_objects == 1


def test_file_names_may_repeat_slashes_and_other_capitals_are_told(tmp_path):
    content = small()
    data = save(tmp_path, content)
    for name in ("a.png", "A.png"):
        content["images"][0]["file_name"] = f".//{name}"
        content["images"][1]["file_name"] = "sub//b.png"
        (tmp_path / "again.json").write_text(json.dumps(content))
        if name == "a.png":
            assert Coco(str(data.images), str(tmp_path / "again.json")).image_path(1).is_file()
    with pytest.raises(DataError, match=r"'A\.png', but .*but 'a\.png', with other capitals, is"):
        Coco(str(data.images), str(tmp_path / "again.json"))


ODD = {"rotation": 12.5, "track_id": 7, "occluded": False}


def test_attributes_that_no_head_reads_are_a_note(tmp_path):
    data = save(tmp_path, two(attributes=ODD))
    assert [(f.kind, f.severity) for f in data.findings() if f.kind not in USUAL] == [
        ("unread-attribute", "note")
    ]
    assert data.classes["attributes"].names == ("occluded", "track_id=7")
    assert "attribute 'rotation' is 12.5" in str(
        errors(tmp_path, two(attributes=ODD), attributes=["rotation"])
    )
    for value in ([1, 2], "text"):
        assert kinds(save(tmp_path, two(attributes=value))) == ["unread-attribute"]


def test_attributes_that_a_head_reads_are_an_error(tmp_path):
    save(tmp_path, two(attributes=ODD))
    paths = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "a.json")}
    looks = {"type": "Attributes", "boxes_from": "objects", "hidden": 16}
    spec = {
        "backbone": dict(TINY),
        "neck": dict(PYRAMID),
        "heads": {"objects": {"type": "FCOS"}, "looks": looks},
        "data": {"main": {"feeds": ["objects"], "train": {"type": "Coco", **paths}, "val": None}},
        "output": str(tmp_path / "run"),
    }
    main = spec["data"]["main"] | {"batch_size": 2, "image_size": 32}
    spec["data"] = {"main": main, "shapes": {**main, "feeds": ["looks"], "train": dict(SHAPES)}}
    assert len(build_sources(load_config(spec), ("train",))) == 2
    main["feeds"] = ["objects", "looks"]
    with pytest.raises(DataError) as caught:
        build_sources(load_config(spec), ("train",))
    assert "attribute 'rotation' is 12.5" in str(caught.value)
    assert "list the attributes to read in `attributes`" in str(caught.value)
    assert "needed by head 'looks'" in str(caught.value)


def test_an_unsafe_name_of_an_image_without_objects_is_named(tmp_path):
    content = small()
    content["images"][1]["file_name"] = "../images/b.png"
    (tmp_path / "images").mkdir()
    save(tmp_path, small())
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        Coco(str(tmp_path / "images"), str(tmp_path / "a.json"))
    (found,) = caught.value.findings
    assert found.kind == "path" and found.place.index == 1
