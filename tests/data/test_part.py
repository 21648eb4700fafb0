"""A share of the images is held out for validation: both parts are datasets of their own."""

import json
import pickle

import numpy as np
import pytest

from support import exports
from visionkit.config import load_config
from visionkit.data.build import build_sources
from visionkit.data.checks.findings import count_findings
from visionkit.data.checks.summary import cross_split_findings, dataset_summary, fingerprint
from visionkit.data.contracts import check_ground_truth, is_custom, original, read_sample
from visionkit.data.datasets import Coco, Crops, Idx, ImageFolder, LabelMaps, Shapes
from visionkit.data.datasets.part import Part, held_out
from visionkit.errors import ConfigError, DataError
from visionkit.types import Classes


def save(root, names, **changes):
    """A COCO file of those images with a crowd, a dropped box and an empty image."""
    content = exports.coco(names)
    extra = {"id": 100, "image_id": 0, "category_id": 1, "area": 9, "iscrowd": 0}
    content["annotations"] += [
        {**extra, "bbox": [1, 1, 3, 0]},
        {**extra, "id": 101, "bbox": [1, 1, 3, 3], "iscrowd": 1},
    ]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 1]
    content.update(changes)
    path = exports.text(root / "a.json", content)
    return Coco(str(root), str(path))


@pytest.fixture
def whole(tmp_path):
    return save(tmp_path, exports.images(tmp_path, 10))


def chosen(dataset, share=0.3):
    return [[part.file_names[i] for i in range(len(part))] for part in held_out(dataset, share)]


def test_the_parts_are_disjoint_and_have_all_images(whole):
    train, val = held_out(whole, 0.3)
    assert (len(train), len(val)) == (7, 3)
    assert sorted([*train.file_names, *val.file_names]) == sorted(whole.file_names)
    assert train.rows.tolist() == sorted(train.rows)
    for part in (train, val):
        for i in range(len(part)):
            sample, same = part[i], whole[int(part.rows[i])]
            assert sample.image_id == same.image_id == part.image_ids[i]
            assert np.array_equal(sample.boxes, same.boxes)
            assert part.image_path(i) == whole.image_path(int(part.rows[i]))


def test_columns_and_counts_are_those_of_the_images_of_a_part(whole):
    parts = held_out(whole, 0.3)
    for part in parts:
        samples = [part[i] for i in range(len(part))]
        labels = np.concatenate([s.labels[~s.iscrowd] for s in samples])
        assert part.num_objects == len(labels)
        counts = part.class_counts()["labels"]
        assert counts.tolist() == np.bincount(labels, minlength=2).tolist()
        assert part.sizes.tolist() == [list(s.orig_size) for s in samples]
        image, boxes, found, rows = part.objects()
        assert np.array_equal(found, labels) and len(boxes) == len(rows) == len(image)
        assert image.tolist() == [i for i, s in enumerate(samples) for _ in s.labels[~s.iscrowd]]
        truth = part.ground_truth()
        assert truth.image_ids.tolist() == part.image_ids
        assert len(truth) == sum(len(s.labels) for s in samples) + (0 in part.image_ids)
    assert sum(part.num_objects for part in parts) == whole.num_objects
    assert sum(part.class_counts()["labels"] for part in parts).tolist() == [5, 4]


def test_each_finding_belongs_to_one_part(whole):
    parts = held_out(whole, 0.3)
    found = [[*part.findings()] for part in parts]
    assert sorted(map(str, [*found[0], *found[1]])) == sorted(map(str, whole.findings()))
    for part, own in zip(parts, found, strict=True):
        assert part.counts() == count_findings(own)
        rows = {whole.row_of(one) for one in own}
        assert rows <= {*part.rows.tolist()}
    total = {kind for part in parts for kind in part.counts()["dropped"]}
    assert total == {*whole.counts()["dropped"]} == {"empty-box"}
    examined = [str(one) for part in parts for one in part.examine(lambda rows, _: rows)]
    assert sorted(examined) == sorted(map(str, whole.examine(lambda rows, _: rows)))


def test_the_choice_depends_on_names_and_classes_alone(tmp_path, whole):
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "moved").mkdir()
    for name in whole.file_names:
        (tmp_path / name).rename(tmp_path / "moved" / name)
    content["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    for one in content["annotations"]:
        one.update(category_id=3 - one["category_id"], id=200 - one["id"])
    for image in content["images"]:
        image["id"] = 100 - image["id"]
    for one in content["annotations"]:
        one["image_id"] = 100 - one["image_id"]
    content["images"].reverse()
    path = exports.text(tmp_path / "moved" / "a.json", content)
    moved = Coco(str(tmp_path / "moved"), str(path))
    assert moved.file_names == [*reversed(whole.file_names)]
    assert [{*one} for one in chosen(moved)] == [{*one} for one in chosen(whole)]


def test_versions_of_a_photo_and_crops_of_an_image_stay_together(tmp_path):
    names = [
        exports.image(tmp_path / f"a{i}_jpg.rf.{k}0123456789abcdef.jpg", 3 * i + k).name
        for i in range(6)
        for k in range(3)
    ]
    train, val = chosen(save(tmp_path, names))
    photos = [{name.split(".rf.")[0] for name in part} for part in (train, val)]
    assert len(train) + len(val) == 18 and not photos[0] & photos[1] and len(photos[1]) == 2
    content = exports.coco(names)
    content["annotations"] *= 2
    for i, one in enumerate(content["annotations"]):
        content["annotations"][i] = {**one, "id": i, "bbox": [4 - i // 18, 4, 20, 18]}
    path = exports.text(tmp_path / "b.json", content)
    crops = held_out(Crops(str(tmp_path), str(path)), 0.3)
    files = [{part.image_path(i) for i in range(len(part))} for part in crops]
    assert not files[0] & files[1] and sum(map(len, crops)) == 36
    assert sum(p.class_counts()["class_id"] for p in crops).tolist() == [18, 18]


def test_other_datasets_have_parts(tmp_path):
    folders = ImageFolder(str(exports.class_folders(tmp_path / "a", 5)))
    train, val = held_out(folders, 0.2)
    assert sum(p.class_counts()["class_id"] for p in (train, val)).tolist() == [5, 5]
    assert [train[i].identity for i in range(len(train))] == train.identities.tolist()
    assert fingerprint(train) != fingerprint(val) and not hasattr(train, "sizes")
    root = exports.masks(tmp_path / "m", 5)
    maps = LabelMaps(str(root / "images"), str(root / "masks"))
    train, val = held_out(maps, 0.2)
    assert (len(train), len(val)) == (4, 1)
    own = val[0]
    assert (val.semantic_truth(own.image_id) == own.semantic).all()
    assert val.map_path(0).stem == val.image_path(0).stem
    shapes = Shapes(num_images=5, size=32)
    assert [len(part) for part in held_out(shapes, 0.2)] == [4, 1]


def test_each_class_has_its_share(tmp_path):
    names = exports.images(tmp_path, 40)
    content = exports.coco(names)
    for i, one in enumerate(content["annotations"]):  # 10 of one class, 30 of the other
        one["category_id"] = 1 if i % 4 == 0 else 2
    path = exports.text(tmp_path / "a.json", content)
    train, val = held_out(Coco(str(tmp_path), str(path)), 0.2)
    assert val.class_counts()["labels"].tolist() == [2, 6]
    assert train.class_counts()["labels"].tolist() == [8, 24]
    root = exports.class_folders(tmp_path / "c", 10)
    assert held_out(ImageFolder(str(root)), 0.3)[1].class_counts()["class_id"].tolist() == [3, 3]


def test_a_part_survives_pickling(whole):
    part = pickle.loads(pickle.dumps(held_out(whole, 0.3)[1]))
    assert isinstance(part, Part) and part[0].image_id == part.image_ids[0]


def test_one_group_cannot_be_divided(tmp_path):
    with pytest.raises(DataError, match="holdout: 1 image cannot be divided"):
        held_out(save(tmp_path, exports.images(tmp_path, 1)), 0.2)
    two = save(tmp_path, exports.images(tmp_path, 2), annotations=[])
    for share in (0.01, 0.9):
        assert [len(part) for part in held_out(two, share)] == [1, 1]


class Custom:
    """Only what must be there."""

    keys = ("class_id",)

    def __init__(self, wrong: bool = False):
        self.classes = {"class_id": Classes.numbered(["a", "b"])}
        self.wrong = wrong
        self.inner = Shapes(num_images=6, size=32)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        sample = self.inner[index]
        return type(sample)(sample.image, index, sample.orig_size, class_id=7 if self.wrong else 1)


def test_a_custom_dataset_stays_one():
    train, _ = held_out(Custom(), 0.3)
    assert is_custom(train) and original(train) is train and len(train) == 4
    assert not hasattr(train, "ground_truth") and not hasattr(train, "class_counts")
    check_ground_truth(train)
    assert read_sample(train, 0).class_id == 1
    with pytest.raises(DataError, match=r"Custom\[0\].*class_id"):
        read_sample(held_out(Custom(wrong=True), 0.3)[0], 0)


def config(root, **data):
    head = {"task": "detection", "backbone": {"type": "TinyCNN"}, "head": {"type": "FCOS"}}
    return load_config({**head, "data": {"workers": 0, "image_size": 32, **data}})


def coco_spec(root):
    save(root, exports.images(root, 10))
    return {"type": "Coco", "images": str(root), "annotations": str(root / "a.json")}


def test_holdout_in_a_config(tmp_path):
    spec = coco_spec(tmp_path)
    one = config(tmp_path, train=spec, holdout=0.3)
    assert one.data["main"].val == spec
    assert load_config(one.to_dict()) == one
    (source,) = build_sources(one, ("train", "val"))
    assert (len(source.train), len(source.val)) == (7, 3)
    (alone,) = build_sources(one, ("val",))
    assert alone.val.image_ids == source.val.image_ids
    assert fingerprint(alone.val) == fingerprint(source.val)
    summary = [dataset_summary(part) for part in (source.train, source.val)]
    assert [one["images"] for one in summary] == [7, 3]
    assert [*cross_split_findings(one, [source], contents=True)] == []
    dropped = [one["dropped"].get("empty-box", 0) for one in summary]
    assert sum(dropped) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"val": None}, "data.holdout: takes 0.3 of the training images, but 'val' is null"),
        ({"val": {"type": "Shapes"}}, "'val' is another dataset; remove one of the two"),
        ({"train": None}, "but there is no 'train'"),
        ({"holdout": 1}, "data.holdout: got 1; expected a number > 0 and <= 0.9"),
        ({"holdout": 0}, "data.holdout: got 0; expected a number > 0"),
    ],
)
def test_a_holdout_that_does_not_fit_is_an_error(tmp_path, data, says):
    spec = coco_spec(tmp_path)
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **{"train": spec, "holdout": 0.3, **data})
    assert says in str(caught.value)


def test_idx_files_have_parts(tmp_path):
    images = bytes([0, 0, 8, 3, 0, 0, 0, 6, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes(range(24))
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 6]) + bytes([0, 1] * 3)
    (tmp_path / "i").write_bytes(images)
    (tmp_path / "l").write_bytes(labels)
    train, val = held_out(Idx(str(tmp_path / "i"), str(tmp_path / "l")), 0.5)
    assert sorted([*train.image_ids, *val.image_ids]) == [*range(6)]
    assert sum(p.class_counts()["class_id"] for p in (train, val)).tolist() == [3, 3]
    assert json.dumps(train.image_ids) and train.fingerprint != val.fingerprint
