"""From a config to sources: what does not fit is told with what may help; the value range."""

import json
import re
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from visionkit.config import load_config
from visionkit.data.build import build_sources, open_sources
from visionkit.data.checks.findings import check_classes
from visionkit.data.datasets.coco import Coco
from visionkit.engine.torch_model import Predictor
from visionkit.errors import ConfigError, DataError
from visionkit.models.build import build_model
from visionkit.types import Classes

TINY = {
    "backbone": {"type": "TinyCNN", "channels": [4, 8, 8], "norm": "batch"},
    "neck": {"type": "FPN", "channels": 8, "in_features": ["c2", "c3"], "extra_levels": "none"},
}


def coco(folder, names, dtype=np.uint8, highest=255, suffix="png"):
    """Two images with a box of each class, from black to `highest`."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i in range(2):
        values = np.linspace(0, highest, 64 * 64).reshape(64, 64).astype(dtype)
        Image.fromarray(values).save(folder / f"{i}.{suffix}")
        images.append({"id": i, "file_name": f"{i}.{suffix}", "width": 64, "height": 64})
        for number, _ in enumerate(names):
            entry = {"id": len(annotations), "image_id": i, "category_id": number}
            annotations.append({**entry, "bbox": [8, 8, 32, 32], "area": 1024, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(data))
    return {"type": "Coco", "images": str(folder), "annotations": str(folder / "a.json")}


def config(head, train, val=None, **source):
    data = {"feeds": ["x"], "image_size": 64, "train": train, "val": val, **source}
    neck = None if head == "Classification" else TINY["neck"]
    return load_config(
        {
            "backbone": TINY["backbone"],
            "neck": neck,
            "heads": {"x": {"type": head}},
            "data": {"workers": 0, "main": data},
        }
    )


def errors_of(config):
    _, errors = open_sources(config, ("train", "val"))
    return "\n".join(map(str, errors))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("MaskRCNN", "no 'masks' .*`type: FasterRCNN` \\(`task: detection`\\), or feed 'x' from"),
        ("SemanticFPN", "no 'semantic' .*`semantic: paint`"),
        ("Classification", "no 'class_id' .*folder for each class"),
        ("Embedding", "no 'identity' .*ImageFolder, Crops"),
    ],
)
def test_a_head_without_its_labels_says_what_may_help(tmp_path, head, says):
    told = errors_of(config(head, coco(tmp_path / "a", ["cat"])))
    assert re.search(says, told), told


def test_more_classes_in_the_validation_data_say_how_to_drop_them(tmp_path):
    train, val = coco(tmp_path / "a", ["cat"]), coco(tmp_path / "b", ["cat", "dog"])
    told = errors_of(config("FCOS", train, val))
    assert "not expected: 'dog'" in told and "set data.val.other_classes=ignore" in told
    val["other_classes"] = "ignore"
    (source,) = build_sources(config("FCOS", train, val), ("train", "val"))
    assert source.val[0].labels.tolist() == [0]
    crops = [{**one, "type": "Crops"} for one in (train, coco(tmp_path / "c", ["cat", "dog"]))]
    assert "set data.val.other_classes=ignore" in errors_of(config("Classification", *crops))
    crops[1]["other_classes"] = "ignore"
    assert errors_of(config("Classification", *crops)) == ""


def test_more_class_folders_in_the_validation_data_say_how_to_choose(tmp_path):
    folders = []
    for split, names in (("train", ["cat", "ox"]), ("val", ["cat", "dog", "ox"])):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "a.png")
        folders.append({"type": "ImageFolder", "root": str(tmp_path / split)})
    assert "name these in data.val.only" in errors_of(config("Classification", *folders))
    folders[1]["only"] = ["cat", "ox"]
    assert errors_of(config("Classification", *folders)) == ""


def test_class_names_in_two_unicode_forms_are_told_apart(tmp_path):
    one, two = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
    told = errors_of(config("FCOS", coco(tmp_path / "a", [one]), coco(tmp_path / "b", [two])))
    assert "not expected: " in told
    with pytest.raises(DataError, match=r"another Unicode form .*: '\\xc4pfel'"):
        check_classes("file", [two, "Birne"], [one, "Birne"], missing_ok=False, unknown_ok=False)


def test_a_value_range_holds_for_training_and_prediction(tmp_path):
    given = coco(tmp_path / "a", ["cat"], np.uint16, 4095)
    checked = config("FCOS", given, given, value_range=[0, 4095])
    (source,) = build_sources(checked, ("train", "val"))
    read = source.val[0].image
    assert read.min() == 0 and read.max() == 255
    assert Coco(given["images"], given["annotations"])[0].image.max() == 16
    assert load_config(checked.to_dict()) == checked
    (batch,) = source.val_batches(workers=0)
    assert batch.images[0].max() == 255

    classes = {"x": Classes.numbered(["cat"])}
    predictor = Predictor(build_model(checked, classes, pretrained=False), checked, classes)
    path = tmp_path / "a" / "0.png"
    with Image.open(path) as image:
        values = np.asarray(image)
        ways = [path, str(path), image, values, torch.from_numpy(values.astype(np.int32))]
        found = predictor.predict_batch(ways)
    assert all(torch.equal(one.image, read) for one in found)
    assert all(torch.equal(one.scores, found[0].scores) for one in found)


def test_crops_and_class_folders_have_a_value_range(tmp_path):
    given = {**coco(tmp_path / "a", ["cat"], np.float32, 1, "tif"), "type": "Crops"}
    (source,) = build_sources(config("Classification", given, value_range=[0, 1]), ("train",))
    assert source.train[0].image.max() > 100
    (tmp_path / "d" / "cat").mkdir(parents=True)
    (tmp_path / "a" / "0.tif").rename(tmp_path / "d" / "cat" / "0.tif")
    folder = {"type": "ImageFolder", "root": str(tmp_path / "d")}
    (source,) = build_sources(config("Classification", folder, value_range=[0, 1]), ("train",))
    assert source.train[0].image.max() == 255


def test_a_value_range_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "images").write_bytes(b"\0\0\x08\x03" + bytes([0, 0, 0, 1] * 3) + b"\7")
    idx = {"type": "Idx", "images": str(tmp_path / "images")}
    told = errors_of(config("Autoencoder", idx, value_range=[0, 4095]))
    assert "value_range: Idx reads no pixels of more than 8 bits; remove this key" in told
    given = coco(tmp_path / "a", ["cat"])
    for wrong in ([1, 1], [4095, 0], [0], "12 bits"):
        with pytest.raises(ConfigError, match=r"data\.main\.value_range: got"):
            config("FCOS", given, value_range=wrong)


def test_a_path_in_another_unicode_form_is_told(tmp_path):
    given = coco(tmp_path / "caf\u00e9", ["cat"])  # one character
    given["images"] = str(tmp_path / "cafe\u0301")  # two
    with pytest.raises(ConfigError, match=r"not found .*, but the same name in another .*\(NFC\)"):
        build_sources(config("FCOS", given), ("train",))
