"""`visionkit check CONFIG`: all that training would stumble over, at once; data against data."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from support.coco_files import save, small
from visionkit.cli.main import main
from visionkit.data.datasets.shapes import generate_shapes


def coco(root, **arguments):
    return {"images": str(root / "images"), "annotations": str(root / "a.json"), **arguments}


def config(task, train, val, kind="Coco", **data):
    return {
        "task": task,
        "backbone": {"type": "TinyCNN"},
        "neck": None,
        "data": {
            "train": {"type": kind, **train},
            "val": val if val is None else {"type": kind, **val},
            "image_size": 32,
            "batch_size": 2,
            "workers": 0,
            **data,
        },
        "train": {"steps": 1, "plots": False, "precision": "fp32", "device": "cpu"},
    }


@pytest.fixture
def check(tmp_path, capsys):
    """Write a config and check it: exit code, findings by kind, the report."""

    def run(spec, *words):
        spec = {key: value for key, value in spec.items() if value is not None}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(spec))
        out = tmp_path / "out.json"
        code = main(["check", str(tmp_path / "c.yaml"), "--json", str(out), *words])
        report = json.loads(out.read_text())
        kinds = {}
        for found in report["findings"]:
            kinds.setdefault(found["kind"], []).append(found)
        return code, kinds, report

    return run


def two_sets(tmp_path, val=None):
    """A training and a validation set with images of their own."""
    for name, content in (("train", small()), ("val", val or small())):
        (tmp_path / name).mkdir()
        save(tmp_path / name, small())
        (tmp_path / name / "a.json").write_text(json.dumps(content))
    for i, path in enumerate(sorted((tmp_path / "val").rglob("*.png"))):
        Image.new("L", (20, 10), 90 + i).save(path)
    return tmp_path / "train", tmp_path / "val"


def test_everything_that_is_wrong_is_told_at_once(tmp_path, check):
    faulty = small()
    faulty["annotations"][0]["bbox"] = [1]
    train, val = two_sets(tmp_path, faulty)
    spec = config("localization", coco(train), coco(val))
    spec["train"]["device"] = "cuda:99"
    spec["data"]["train"]["on_fault"] = {"coordinate-range": "drop"}
    code, kinds, _ = check(spec)
    assert code == 2 and kinds.keys() == {"config", "value"}
    texts = " ".join(f["message"] for f in kinds["config"])
    assert "cuda:99" in texts and "'coordinate-range' has no policy" in texts
    assert kinds["value"][0]["file"] == str(val / "a.json")

    del spec["data"]["train"]["on_fault"]
    spec["data"]["train"]["images"] = str(tmp_path / "none")
    code, kinds, _ = check(spec, "train.device=cpu")
    assert code == 2 and "data.train.images" in kinds["config"][0]["message"]
    assert len(kinds["value"]) == 1
    assert check(spec, "train.device=cpu", f"data.train.images={train / 'images'}")[0] == 3
    code, kinds, _ = check(spec, "train.lr=no", "train.ema=2")
    assert code == 2 and len(kinds["config"]) == 2


def test_the_model_and_its_weights_are_built(tmp_path, check):
    train, val = two_sets(tmp_path)
    spec = config("localization", coco(train), coco(val))
    code, kinds, report = check(spec)
    assert code == 0 and not {"config", "weights"} & kinds.keys()
    assert report["data"]["sources"]["main"]["val"]["objects"] == 1
    (tmp_path / "w.pt").write_bytes(b"nothing")
    code, kinds, _ = check({**spec, "weights": str(tmp_path / "w.pt")})
    assert code == 4 and "w.pt" in kinds["weights"][0]["message"]
    code, kinds, _ = check(spec, "train.best_metric=accuracy")
    assert code == 2 and "train.best_metric" in kinds["config"][0]["message"]
    code, kinds, _ = check(config("semantic_segmentation", coco(train), None))
    assert "gives no 'semantic'" in kinds["config"][0]["message"]


def test_images_of_both_splits_are_found_by_path_and_by_content(tmp_path, check):
    train, val = two_sets(tmp_path)
    spec = config("localization", coco(train), coco(val))
    assert not {"train-val-overlap", "same-content", "same-data"} & check(spec)[1].keys()
    shutil.copy(train / "images/a.png", val / "images/sub/b.png")
    (found,) = check(spec)[1]["same-content"]
    assert "train/images/a.png and" in found["message"] and found["value"].endswith("sub/b.png")
    spec["data"]["val"]["images"] = str(train / "images" / ".." / "images")
    code, kinds, _ = check(spec, "--strict")
    assert code == 3 and "same-content" not in kinds
    assert kinds["same-data"][0]["message"] == "validation data are the training data"
    other = small()
    other["images"] = other["images"][:1]
    (val / "a.json").write_text(json.dumps(other))
    kinds = check(spec)[1]
    assert [f["value"] for f in kinds["train-val-overlap"]] == [str(train / "images/a.png")]
    assert "same-data" not in kinds


def test_classes_that_only_validation_data_have(tmp_path, check):
    content = small()
    content["annotations"].append({**content["annotations"][0], "id": 9, "category_id": 0})
    train, val = two_sets(tmp_path, content)
    (found,) = check(config("localization", coco(train), coco(val)))[1]["untrained-class"]
    assert found["value"] == "cat" and found["severity"] == "warning"


def test_classes_that_another_source_trains_are_trained(tmp_path, check):
    """One source labels cats, another dogs, and a third, with both, validates."""
    content = small()
    content["annotations"].append({**content["annotations"][0], "id": 9, "category_id": 0})
    both, val = two_sets(tmp_path, content)
    (both / "a.json").write_text(json.dumps(content))

    def source(labeled):
        train = {"type": "Coco", **coco(both)}
        return {"feeds": ["one"], "labeled_classes": labeled, "train": train, "image_size": 32}

    spec = config("localization", coco(both), coco(val))
    spec["heads"] = {"one": {"type": "Localization"}}
    spec["data"] = {
        "workers": 0,
        "cats": source(["cat"]),
        "dogs": source(["dog"]),
        "all": {"feeds": ["one"], "val": {"type": "Coco", **coco(val)}, "image_size": 32},
    }
    del spec["task"], spec["neck"]
    kinds = check(spec)[1]
    assert "config" not in kinds and "untrained-class" not in kinds
    spec["data"]["cats"]["labeled_classes"] = ["dog"]  # not cats
    (found,) = check(spec)[1]["untrained-class"]
    assert found["value"] == "cat"
    spec["data"]["cats"]["labeled_classes"] = ["cat"]
    (both / "a.json").write_text(json.dumps(small()))
    (found,) = check(spec)[1]["untrained-class"]
    assert found["value"] == "cat"
    assert found["file"] == "data.cats.train and data.dogs.train and data.all.val"


def test_training_images_that_may_be_skipped_are_no_errors(tmp_path, check):
    train, val = two_sets(tmp_path)
    (train / "images/a.png").write_bytes(b"garbage")
    spec = config("localization", coco(train), coco(val))
    assert check(spec)[0] == 3
    code, kinds, _ = check(spec, "data.on_unreadable_image=skip")
    (found,) = kinds["image-damaged"]
    assert code == 0 and (found["severity"], found["action"]) == ("warning", "drop")
    (val / "images/a.png").write_bytes(b"garbage")
    assert check(spec, "data.on_unreadable_image=skip")[0] == 3


def test_a_class_that_nobody_has_is_a_fault_of_class_lists(tmp_path, check):
    train, val = two_sets(tmp_path)
    spec = config("localization", coco(train), coco(val), labeled_classes=["catt"])
    code, kinds, _ = check(spec)
    assert code == 3 and "catt" in kinds["classes"][0]["message"]
    assert "by `classes`" in kinds["classes"][0]["hint"]


def test_images_without_one_object_are_named_to_who_localizes(tmp_path, check):
    content = small()
    content["annotations"].append({**content["annotations"][0], "id": 9, "bbox": [1, 1, 3, 3]})
    train, val = two_sets(tmp_path, content)
    kinds = check(config("localization", coco(train), coco(val)))[1]
    assert [(f["file"], f["value"]) for f in kinds["no-object"]] == [
        ("data.train", "sub/b.png"), ("data.val", "sub/b.png"),
    ]  # fmt: skip
    assert [(f["file"], f["message"]) for f in kinds["many-objects"]] == [
        ("data.val", "a.png has 2 objects")
    ]
    spec = config("detection", coco(train), coco(val)) | {"neck": {"type": "FPN"}}
    assert "no-object" not in check({**spec, "head": {"type": "FCOS"}})[1]


def folders(root, counts, value=0):
    """Class folders with so many images, all different."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            value += 1
            Image.new("L", (40, 30), value).save(root / name / f"{i}.png")
    return {"root": str(root)}


def test_folders(tmp_path, check):
    train = folders(tmp_path / "t", {"cat": 11, "Cat": 2, "dog": 1, "._junk": 1})
    val = folders(tmp_path / "v", {"dog": 1}, 50)
    (tmp_path / "t/dog/photo.xyz").write_text("x")
    (tmp_path / "t/dog/.hidden").write_text("x")
    spec = config("classification", train, val, "ImageFolder")
    code, kinds, report = check(spec)
    assert code == 0
    assert [f["value"] for f in kinds["rare-class"][:2]] == ["Cat", "dog"]
    assert "'Cat', 'cat' differ in case alone" in kinds["class-name-case"][0]["message"]
    assert "dog/photo.xyz" in kinds["other-file"][0]["message"]
    used = report["data"]["sources"]["main"]["train"]
    assert used["images"] == 14 and used["dropped"] == {"other-file": 1}
    assert used["classes"]["class_id"] == {"Cat": 0, "cat": 1, "dog": 2}
    kinds = check(config("classification", train, train, "ImageFolder"))[1]
    assert len(kinds["same-data"]) == 1
    (tmp_path / "t/ant").mkdir()
    (tmp_path / "t/bee").mkdir()
    code, kinds, _ = check(spec)
    assert code == 3 and [f["value"] for f in kinds["missing-file"]] == ["ant", "bee"]


def test_identities(tmp_path, check):
    train = folders(tmp_path / "t", {"a": 3, "b": 1, "c": 2})
    spec = config("embedding", train, train, "ImageFolder", images_per_identity=2, batch_size=6)
    code, kinds, _ = check(spec)
    assert code == 0 and kinds["singleton-identity"][0]["value"] == "1"
    assert "b/0.png" in kinds["singleton-identity"][0]["message"]
    assert "2 identities of at least two images for 3 places" in kinds["few-identities"][0][
        "message"
    ]  # fmt: skip
    one = folders(tmp_path / "one", {"a": 3})
    spec = config("embedding", one, one, "ImageFolder", images_per_identity=2, batch_size=4)
    code, kinds, _ = check(spec)
    assert code == 3 and "1 known identity" in kinds["file"][0]["message"]
    assert check(spec, "data.batch_size=3")[0] == 2


def test_label_maps(tmp_path, check):
    for name, size in dict.fromkeys("abcdef", (8, 6)).items():
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / f"images/{name}.png")
        Image.new("L", size, 1).save(tmp_path / f"labels/{name}.png")
    Image.new("L", (8, 6), 9).save(tmp_path / "labels/b.png")
    Image.new("L", (6, 8), 1).save(tmp_path / "labels/c.png")
    Image.new("RGB", (8, 6), 1).save(tmp_path / "labels/e.png")
    (tmp_path / "labels/f.png").write_bytes(b"")
    Image.fromarray(np.full((6, 8), 255, np.uint8)).save(tmp_path / "labels/d.png")
    data = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}
    data["classes"] = ["x", "y"]
    spec = config("semantic_segmentation", data, None, "LabelMaps")
    spec["head"] = {"type": "FCN"}
    code, kinds, _ = check(spec)
    assert code == 3
    assert "class-map" not in kinds  # the same is found by inspection
    values, colors = kinds["image-values"]
    assert "no class has the value 9" in values["message"] and values["index"] == 1
    assert "e.png has mode RGB" in colors["message"] and colors["index"] == 4
    assert [fault["index"] for fault in kinds["image-empty"]] == [5]
    (found,) = kinds["image-size"]
    assert "c.png is 6x8, but its image" in found["message"]
    assert [f["value"] for f in kinds["unlabeled-map"]] == ["d.png"]


def test_a_run_says_what_it_used(tmp_path, caplog):
    generate_shapes(tmp_path / "s", images=4, size=32)
    annotations = json.loads((tmp_path / "s/annotations.json").read_text())
    first = annotations["annotations"][0]
    annotations["annotations"] += [{**first, "id": 900, "bbox": [1, 1, 0, 3]}, {**first, "id": 901}]
    (tmp_path / "s/a.json").write_text(json.dumps(annotations))
    data = coco(tmp_path / "s")
    spec = config("classification", data, data)
    spec["output"] = str(tmp_path / "run")
    spec = {key: value for key, value in spec.items() if value is not None}
    from visionkit.engine.train import train

    with caplog.at_level("INFO", logger="visionkit"):
        train(spec)
    said = json.loads((tmp_path / "run/data.json").read_text())
    used = said["sources"]["main"]["train"]
    assert used == said["sources"]["main"]["val"] and said["version"] == 1
    assert used["images"] == 4 and used["dropped"] == {"empty-box": 1}
    assert used["objects"] == len(annotations["annotations"]) - 1
    assert used["kept"]["duplicate-box"] == 1 and len(used["fingerprint"]) == 64
    assert said["cross_split"] == {"same-data": 1}
    lines = [record.getMessage() for record in caplog.records]
    assert any(
        line.startswith("data.train: 4 images, ") and "dropped: boxes without area (1)" in line
        for line in lines
    )
    assert any("validation data are the training data" in line for line in lines)


def test_a_long_list_of_faults_goes_to_a_file_that_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VISIONKIT_CACHE", str(tmp_path / "cache"))
    train, _ = two_sets(tmp_path)
    content = small()
    content["annotations"] = [{**content["annotations"][0], "bbox": [1]} for _ in range(30)]
    (train / "a.json").write_text(json.dumps(content))
    spec = config("localization", coco(train), None)
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({key: value for key, value in spec.items() if value is not None})
    )
    assert main(["train", str(tmp_path / "c.yaml"), f"output={tmp_path / 'run'}"]) == 3
    (written,) = (tmp_path / "cache/findings").iterdir()
    printed = capsys.readouterr().err
    assert f"all 30 are in {written}" in printed and printed.count("annotations[") == 20
    findings = json.loads(written.read_text())["findings"]
    assert [found["index"] for found in findings] == list(range(30))
    assert not (tmp_path / "run").exists()
