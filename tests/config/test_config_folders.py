"""`data: DIR` in a config: the datasets of a folder, and how other keys go with it."""

import logging

import pytest

from support import exports
from visionkit.config import load_config
from visionkit.errors import ConfigError

TINY = {"type": "TinyCNN", "channels": [8, 16]}


@pytest.fixture
def coco(tmp_path):
    return str(exports.roboflow_coco(tmp_path / "pets"))


@pytest.fixture
def folders(tmp_path):
    return str(exports.class_folders(tmp_path / "classes"))


def source(config, overrides=()):
    (one,) = load_config(config, overrides).data.values()
    return one


def test_a_folder_becomes_the_datasets_of_its_parts(coco, caplog):
    caplog.set_level(logging.INFO, "visionkit")
    own = source({"task": "detection", "data": coco})
    for spec, part in ((own.train, "train"), (own.val, "valid")):
        annotations = f"{coco}/{part}/_annotations.coco.json"
        assert spec == {"type": "Coco", "images": f"{coco}/{part}", "annotations": annotations}
    assert own.holdout is None and own.batch_size == 8
    (line,) = caplog.messages
    assert line == (
        f"data: {coco} is taken for a COCO dataset (in each part _annotations.coco.json; parts "
        "train, val and test)"
    )


def test_a_share_is_held_out_where_no_part_validates(folders, caplog):
    caplog.set_level(logging.INFO, "visionkit")
    own = source({"task": "classification", "data": folders})
    assert own.train == own.val == {"type": "ImageFolder", "root": folders}
    assert own.holdout == 0.2
    assert "has no part for validation: 0.2 of its training images validate" in caplog.text
    own = source({"task": "classification", "data": {"from": folders, "holdout": 0.4}})
    assert own.holdout == 0.4
    own = source({"task": "classification", "data": {"from": folders, "holdout": None}})
    assert own.val is None and own.holdout is None


@pytest.mark.parametrize("order", [1, -1])
def test_overrides_work_in_any_order_and_keep_the_other_settings(coco, order):
    words = [f"data={coco}", "data.image_size=96", "data.batch_size=4", "head.num_convs=1"]
    own = source("detection_fcos", words[::order])
    assert own.train["images"] == f"{coco}/train"
    assert (own.image_size, own.batch_size) == (96, 4)
    shipped = source("detection_fcos")
    assert own.transforms == shipped.transforms
    own = source("detection_fcos", {"data": coco})
    assert (own.image_size, own.batch_size) == (320, shipped.batch_size)  # 160: of the Shapes
    assert source("detection_finetune", {"data": coco}).image_size == 320  # it says so


def test_a_file_a_base_and_a_long_form_name_a_folder(tmp_path, coco):
    path = tmp_path / "a.yaml"
    path.write_text(f"task: detection\ndata: {coco}\n")
    first = source(path, ["data.batch_size=2"])
    assert first.train["images"] == f"{coco}/train" and first.batch_size == 2
    (tmp_path / "b.yaml").write_text(f"base: detection_small\ndata: {coco}\n")
    assert source(tmp_path / "b.yaml").train == first.train
    (tmp_path / "c.yaml").write_text(f"base: a.yaml\ndata: {coco}/valid\n")
    assert source(tmp_path / "c.yaml").train["images"] == f"{coco}/valid"
    heads = {"objects": {"type": "FCOS"}, "areas": {"type": "SemanticFPN"}}
    neck = {"type": "FPN"}
    data = {"street": {"feeds": [*heads], "from": coco}}
    own = source({"backbone": TINY, "neck": neck, "heads": heads, "data": data})
    assert own.train["semantic"] == own.val["semantic"] == "paint"


def test_a_checked_config_has_the_long_form(folders):
    config = load_config({"task": "classification", "data": folders})
    assert load_config(config.to_dict()) == config
    assert "from" not in config.to_dict()["data"]["main"]
    more = load_config(config.to_dict(), [f"data={folders}/../classes", "data.holdout=0.5"])
    assert more.data["main"].train["root"] == f"{folders}/../classes"
    assert more.data["main"].holdout == 0.5


def test_masks_are_painted_or_read_for_a_semantic_task(tmp_path, coco):
    own = source({"task": "semantic_segmentation", "data": coco})
    assert own.train["semantic"] == "paint"
    maps = str(exports.masks(tmp_path / "maps"))
    own = source({"task": "semantic_segmentation", "data": maps})
    assert own.train == {"type": "LabelMaps", "images": f"{maps}/images", "labels": f"{maps}/masks"}


def errors(config, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    return str(caught.value)


def test_a_folder_that_cannot_feed_a_task_is_answered_with_the_tasks_that_fit(coco, folders):
    says = errors("classification", [f"data={coco}"])
    assert says.startswith("override data=") and ": data.from: a COCO dataset (" in says
    assert "cannot feed head 'classification', which needs class_id" in says
    assert says.endswith(
        "tasks that fit: detection, instance_segmentation, localization, semantic_segmentation"
    )
    says = errors({"task": "detection", "data": folders})
    assert "class folders (2: cat, dog) cannot feed head 'detection', which needs boxes" in says
    assert says.endswith("it gives class_id, identity; tasks that fit: classification, embedding")
    exports.images(images := exports.Path(folders) / ".." / "plain", 1)
    says = errors({"task": "embedding", "data": str(images)})
    assert "images without labels (*.jpg) cannot feed" in says
    assert says.endswith("it has no labels; tasks that fit: autoencoder")
    assert source({"task": "autoencoder", "data": str(images)}).train["type"] == "Images"


def test_what_goes_wrong_names_the_key(tmp_path, coco, folders):
    assert errors({"task": "detection", "data": f"{coco}/none"}).endswith("none does not exist")
    both = {"from": coco, "val": {"images": "x", "annotations": "y"}}
    says = errors({"task": "detection", "data": both})
    assert "data.from: is one folder for training and validation, but 'val' is given too" in says
    assert "data.from: got 3; expected a string" in errors(
        {"task": "detection", "data": {"from": 3}}
    )
    says = errors("joint_two_sources", [f"data={coco}"])
    assert "several sources: give one of them its folder, for example data.boxes.from" in says
    alone = exports.roboflow_coco(tmp_path / "alone", ("valid",))
    says = errors({"task": "detection", "data": str(alone)})
    assert "part val) has no part to train on" in says
