"""Data sets that label only some of the classes of a run, and what is scored of them."""

import json
import math

import numpy as np
import pytest
import torch

from visionkit.config import load_config
from visionkit.data.build import build_sources, head_classes
from visionkit.data.classes import ClassMappedDataset
from visionkit.data.coco.ground_truth import ground_truth
from visionkit.data.coco.index import index_of
from visionkit.data.datasets.coco import Coco
from visionkit.data.datasets.shapes import Shapes
from visionkit.errors import DataError
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.metrics.coco.truths import DatasetTruth

NAMES = ("circle", "ring", "square", "star", "triangle")


@pytest.fixture(scope="module")
def shapes():
    return Shapes(num_images=6, size=64, seed=3)


def test_labels_are_matched_by_name_and_the_missing_marked(shapes):
    names = ("star", "hexagon", *NAMES[:3], "triangle")
    seen = ClassMappedDataset(shapes, {"labels": names}, None)
    assert seen.classes["labels"].names == names
    assert len(set(seen.classes["labels"].ids)) == len(names)
    for before, after in zip(shapes, seen, strict=True):
        old = [NAMES[label] for label in before.labels]
        assert [names[label] for label in after.labels] == old
        assert after.labeled.tolist() == [True, False, True, True, True, True]
        target = after.target()
        assert torch.equal(target["labeled"], torch.from_numpy(after.labeled))
    assert seen.unlabeled == {"labels": ["hexagon"]}


def test_labeled_leaves_out_the_objects_of_other_classes(shapes):
    seen = ClassMappedDataset(shapes, {}, ["circle", "star"])
    for before, after in zip(shapes, seen, strict=True):
        keep = np.isin(before.labels, [0, 3])
        assert after.labels.tolist() == before.labels[keep].tolist()
        assert np.array_equal(after.boxes, before.boxes[keep])
        assert len(after.segmentations) == len(after.area) == len(after.iscrowd) == keep.sum()
        assert after.labeled.tolist() == [True, False, False, True, False]
        assert after.semantic_labeled.tolist() == [False, True, False, False, True, False]
    truth, whole = seen.ground_truth(), shapes.ground_truth()
    assert truth.names == ("circle", "star") and truth.category_ids.tolist() == [1, 4]
    kept = np.isin(whole.category_ids[whole.category], [1, 4])
    assert truth.boxes.tolist() == whole.boxes[kept].tolist()
    assert [truth.names[k] for k in truth.category] == [
        whole.names[k] for k in whole.category[kept]
    ]


def test_semantic_maps_are_renumbered(shapes):
    names = ("star", "background", "circle", "ring", "square", "triangle")
    own = shapes.classes["semantic"].names
    seen = ClassMappedDataset(shapes, {"semantic": names}, None)
    for before, after in zip(shapes, seen, strict=True):
        expected = torch.tensor([names.index(n) for n in own], dtype=torch.uint8)
        assert torch.equal(after.semantic, expected[before.semantic.long()])
        assert after.semantic_labeled is None
        assert torch.equal(seen.semantic_truth(after.image_id), after.semantic)


def test_numbered_classes_are_matched_by_position():
    from visionkit.data.sample import Sample
    from visionkit.types import Classes

    class Numbered:
        keys = ("class_id",)

        def __init__(self):
            self.classes = {"class_id": Classes(("0", "1"), (0, 1))}

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), 0, (8, 8), class_id=1)

    seen = ClassMappedDataset(Numbered(), {"class_id": ("shirt", "shoe", "bag")}, None)
    assert seen[0].class_id == 1 and seen.classes["class_id"].names[1] == "shoe"


def test_unknown_classes_are_an_error(shapes):
    with pytest.raises(DataError, match="not expected: 'triangle'"):
        ClassMappedDataset(shapes, {"labels": NAMES[:4]}, None)
    with pytest.raises(
        DataError, match="labeled_classes: unknown class 'cirle'; did you mean 'circle'"
    ):
        ClassMappedDataset(shapes, {}, ["cirle"])


def two_sources(**changes):
    spec = {
        "backbone": {"type": "Torchvision", "name": "resnet18"},
        "neck": {"type": "FPN", "channels": 32},
        "heads": {"objects": {"type": "FCOS"}},
        "data": {
            "workers": 0,
            **{
                name: {
                    "feeds": ["objects"],
                    "image_size": 64,
                    "batch_size": 2,
                    "train": {"type": "Shapes", "num_images": 6, "size": 64, "seed": 3},
                    **more,
                }
                for name, more in changes.items()
            },
        },
    }
    return load_config(spec)


def write_coco(folder, names, image_ids=(1, 2)):
    """A COCO file of two images with one object of each class."""
    from PIL import Image

    folder.mkdir()
    images, annotations = [], []
    for image_id in image_ids:
        Image.new("RGB", (64, 64)).save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": 64, "height": 64})
        for number, _ in enumerate(names):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": number + 1,
                    "bbox": [8 + 4 * number, 8, 16, 16],
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "data.json").write_text(json.dumps(data))
    return {"type": "Coco", "images": str(folder), "annotations": str(folder / "data.json")}


def test_a_head_has_the_classes_of_all_its_sources(tmp_path):
    cats = write_coco(tmp_path / "cats", ["cat", "horse"])
    dogs = write_coco(tmp_path / "dogs", ["dog", "horse"])
    config = two_sources(first={"train": cats, "val": cats}, second={"train": dogs})
    sources = build_sources(config, ("train", "val"))
    classes = head_classes(config, sources)["objects"]
    assert classes.names == ("cat", "horse", "dog")
    assert classes.ids == (1, 2, 3)  # the files do not agree on them
    first, second = sources
    assert first.train[0].labels.tolist() == [0, 1]
    assert first.train[0].labeled.tolist() == [True, True, False]
    assert second.train[0].labels.tolist() == [2, 1]
    assert first.val.classes["labels"].names == classes.names
    batch = next(second.train_batches(seed=0, start=0, workers=0))
    assert batch.targets[0]["labeled"].tolist() == [False, True, True]


def test_a_checkpoint_fixes_the_classes_and_data_may_lack_some(tmp_path):
    from visionkit.types import Classes

    cats = write_coco(tmp_path / "cats", ["cat", "horse"])
    config = two_sources(first={"train": None, "val": cats})
    known = {"objects": Classes(("dog", "horse", "cat"), (1, 2, 3))}
    (source,) = build_sources(config, ("val",), known)
    assert source.val[0].labels.tolist() == [2, 1]
    with pytest.raises(DataError, match=r"(?s)data\.first\.val: .*not expected: 'cat'"):
        build_sources(config, ("val",), {"objects": Classes(("dog", "horse"), (1, 2))})


def detections(dataset, boxes, labels):
    n = len(labels)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels),
        "scores": torch.linspace(0.9, 0.8, n),
    }


def test_detections_of_unlabeled_classes_are_not_scored(tmp_path):
    cats = Coco(**{k: v for k, v in write_coco(tmp_path / "c", ["cat"]).items() if k != "type"})
    seen = ClassMappedDataset(cats, {"labels": ("cat", "dog")}, None)
    from visionkit.types import Batch

    evaluator = CocoEvaluator(seen)
    for image_id in (1, 2):
        target = {"image_id": image_id, "size": (64, 64), "orig_size": (64, 64)}
        found = detections(seen, [[8, 8, 24, 24], [40, 40, 60, 60]], [0, 1])
        evaluator.update([found], Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [target]))
    metrics = evaluator.compute()
    assert metrics["bbox/AP"] == pytest.approx(1.0)
    assert "bbox/AP/dog" not in metrics
    # The same detections count as false where the class is labeled and has no object there.
    naive = ClassMappedDataset(cats, {"labels": ("cat", "dog")}, None)
    data = json.loads((tmp_path / "c" / "data.json").read_text())
    data["categories"].append({"id": 2, "name": "dog"})
    data["annotations"].append(
        {"id": 99, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    )
    index = index_of(data, "truth")
    truth = ground_truth(index, index.classes, index.objects.masks, index.objects.area)
    naive.ground_truth = lambda: truth
    evaluator.truth = DatasetTruth(naive)
    assert evaluator.compute()["bbox/AP/dog"] == 0


class TestFederated:
    """`neg_category_ids` and `not_exhaustive_category_ids`, as in LVIS."""

    @pytest.fixture
    def dataset(self, tmp_path):
        spec = write_coco(tmp_path / "lvis", ["cat", "dog", "fox", "owl"], image_ids=(1,))
        path = tmp_path / "lvis" / "data.json"
        data = json.loads(path.read_text())
        data["annotations"] = data["annotations"][:2]  # a cat and a dog
        data["images"][0] |= {"neg_category_ids": [3], "not_exhaustive_category_ids": [2]}
        path.write_text(json.dumps(data))
        return Coco(**{key: value for key, value in spec.items() if key != "type"})

    def test_samples_say_what_is_labeled(self, dataset):
        # cat: present; dog: present, but some may lack a label; fox: checked; owl: not checked
        assert dataset[0].labeled.tolist() == [True, False, True, False]
        assert dataset[0].labels.tolist() == [0, 1]

    def test_only_what_is_known_is_scored(self, dataset):
        from visionkit.types import Batch

        def score(boxes, labels):
            evaluator = CocoEvaluator(dataset)
            target = {"image_id": 1, "size": (64, 64), "orig_size": (64, 64)}
            images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
            evaluator.update([detections(dataset, boxes, labels)], Batch(images, [target]))
            return evaluator.compute()

        cat, dog, other = [8, 8, 24, 24], [12, 8, 28, 24], [40, 40, 60, 60]
        perfect = score([cat, dog], [0, 1])
        assert perfect["bbox/AP"] == pytest.approx(1.0)
        # A better scored second dog may be a real one; an owl may be too; a second cat may not.
        assert score([other, dog, cat], [1, 1, 0])["bbox/AP/dog"] == pytest.approx(1.0)
        assert math.isnan(score([other, dog, cat], [3, 1, 0])["bbox/AP/owl"])
        assert score([other, dog, cat], [0, 1, 0])["bbox/AP/cat"] < 0.6

    def test_bad_lists_are_reported_with_their_place(self, dataset):
        path = dataset.annotations
        data = json.loads(path.read_text())
        data["images"][0]["neg_category_ids"] = [17]
        path.write_text(json.dumps(data))
        with pytest.raises(DataError, match=r"images\[0\] \(id 1\): 'neg_category_ids' is \[17\]"):
            Coco(str(dataset.images), str(path))


def test_maps_are_painted_from_masks(shapes):
    painted = Coco(str(shapes.images), str(shapes.annotations), semantic="paint")
    assert painted.classes["semantic"].names == ("background", *NAMES)
    for files, masks in zip(shapes, painted, strict=True):
        same = (files.semantic == masks.semantic).float().mean()
        assert same > 0.99  # a polygon's border pixels may differ from what was drawn
    assert torch.equal(painted.semantic_truth(painted.image_ids[0]), painted[0].semantic)


def test_painting_puts_the_smaller_on_top_and_ignores_what_has_no_outline():
    from visionkit.data.datasets.coco import paint_classes
    from visionkit.data.masks import Polygons

    def square(x, y, side):
        corners = [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]
        return Polygons(np.array(corners, float), np.array([4]))

    nothing = Polygons(np.zeros((0, 2)), np.zeros(0, int))
    boxes = np.array([[2, 2, 4, 4], [0, 0, 6, 6], [4, 4, 8, 8]], np.float32)
    classes = paint_classes(
        [square(2, 2, 2), square(0, 0, 6), nothing], np.array([0, 1, 0]), boxes, (8, 8)
    )
    assert classes[3, 3] == 1 and classes[1, 1] == 2 and classes[5, 5] == 2
    assert classes[7, 7] == 255 and classes[7, 0] == 0
    left_out = [square(0, 2, 6), nothing]  # behind the object that has a label
    boxes = np.array([[2, 2, 4, 4], [0, 2, 6, 8], [6, 0, 8, 2]], np.float32)
    classes = paint_classes([square(2, 2, 2), *left_out], np.array([0]), boxes, (8, 8))
    assert classes[3, 3] == 1 and classes[7, 0] == 255 and classes[0, 7] == 255
    assert classes[0, 0] == classes[7, 7] == 0
