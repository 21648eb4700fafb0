"""Custom datasets and transforms that break the contract: the error says what and where."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from visionkit.cli.main import main
from visionkit.data.build import build_sources, check_custom
from visionkit.data.classes import ClassMappedDataset
from visionkit.data.coco.ground_truth import GroundTruth
from visionkit.data.contracts import check_dataset, checked_sample, read_sample
from visionkit.data.datasets.shapes import Shapes
from visionkit.data.loading.source import Source
from visionkit.data.masks import Polygons
from visionkit.data.sample import Sample
from visionkit.errors import ConfigError, DataError
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.types import Classes

CLASSES = {
    "labels": Classes.numbered(["cat", "dog"]),
    "class_id": Classes.numbered(["day", "night"]),
    "semantic": Classes.numbered(["road", "sky"]),
    "attributes": Classes.numbered(["open", "red", "wet"]),
}


def sound(**changes):
    """A 20x30 sample with a label of each kind, in dtypes close to those of `Sample`."""
    square = Polygons(np.array([[2.0, 2.0], [9.0, 2.0], [9.0, 9.0]]), np.array([3]))
    sample = Sample(
        torch.zeros((3, 20, 30), dtype=torch.uint8),
        7,
        (40, 60),
        boxes=np.array([[2, 2, 10, 12], [0, 0, 30, 20]]),
        labels=np.array([0, 1], np.int32),
        attributes=np.array([[0, 1, np.nan], [1, 1, 0]]),
        segmentations=[square, square],
        semantic=torch.full((20, 30), 255, dtype=torch.uint8),
        class_id=1,
        identity=3,
    )
    return replace(sample, **changes)


def test_a_sound_sample_gets_the_dtypes_crowds_and_areas_of_a_sample():
    found = checked_sample("it", sound(), CLASSES)
    dtypes = {key: getattr(found, key).dtype for key in ("boxes", "labels", "attributes", "area")}
    assert dtypes == {"boxes": "f4", "labels": "i8", "attributes": "f4", "area": "f4"}
    assert found.iscrowd.tolist() == [False, False]
    assert found.area.tolist() == [8 * 10 * 4, 30 * 20 * 4]  # in original pixels, twice as many
    target = found.target()
    assert target["labels"].dtype == torch.int64 and target["masks"].shape == (2, 20, 30)


def test_a_crowd_region_may_have_no_class():
    crowd = np.array([True, False])
    found = checked_sample("it", sound(labels=np.array([-1, 0]), iscrowd=crowd), CLASSES)
    assert found.labels.tolist() == [-1, 0]
    with pytest.raises(DataError, match="labels: got -1; expected 0 to 1"):
        checked_sample("it", sound(labels=np.array([0, -1]), iscrowd=crowd), CLASSES)


def test_samples_of_visionkit_are_sound():
    shapes = Shapes(num_images=6, size=64, seed=3)
    for sample in shapes:
        found = checked_sample("it", sample, shapes.classes)
        assert vars(found).keys() == vars(sample).keys()
        assert all(np.array_equal(getattr(found, k), getattr(sample, k)) for k in ("boxes", "area"))
    assert read_sample(shapes, 0).image_id == 1


NOTHING = np.zeros((0, 4))
WRONG = {
    "None": (None, "got None; expected a visionkit.Sample; is a `return` missing?"),
    "a pair": ((1, 2), "got a tuple of 2 (int); expected a visionkit.Sample"),
    "floats": ({"image": torch.rand(3, 20, 30)}, "image: got a tensor float32 (3, 20, 30); exp"),
    "gray": ({"image": torch.zeros((20, 30), dtype=torch.uint8)}, "a tensor uint8 (3, h, w), RGB"),
    "channels last": ({"image": torch.zeros((20, 30, 3)).byte()}, "got a tensor uint8 (20, 30, 3)"),
    "sparse": ({"image": torch.zeros((3, 9, 9)).byte().to_sparse()}, "got a sparse_coo tensor on "),
    "elsewhere": ({"image": torch.zeros((3, 9, 9), device="meta").byte()}, "on meta; expected a d"),
    "no pixels": ({"image": torch.zeros((3, 0, 9)).byte()}, "image: got a tensor uint8 (3, 0, 9)"),
    "an array": ({"image": np.zeros((3, 2, 2), np.uint8)}, "image: got a numpy array uint8"),
    "text id": ({"image_id": "7"}, "image_id: got '7'; expected an int"),
    "numpy id": ({"image_id": np.int64(7)}, "image_id: got np.int64(7); expected an int"),
    "list size": ({"orig_size": [20, 30]}, "orig_size: got a list of 2 (int); expected a tuple"),
    "no size": ({"orig_size": None}, "orig_size: got None; expected a tuple of two ints, (h, w)"),
    "class": ({"class_id": 2}, "class_id: got 2; expected an int, 0 to 1 (day, night)"),
    "class below": ({"class_id": -1}, "class_id: got -1; expected an int, 0 to 1 (day, night)"),
    "class name": ({"class_id": "day"}, "class_id: got 'day'; expected an int, 0 to 1"),
    "classes": ({"class_id": [1.0]}, "class_id: got a list of 1 (float); expected 2 numbers"),
    "part": ({"class_id": [1.0, 0.5]}, "class_id: got a list of 2 (float); expected 2 numbers"),
    "identity": ({"identity": 1.0}, "identity: got 1.0; expected an int"),
    "tensor boxes": ({"boxes": torch.zeros(2, 4)}, "boxes: got a tensor float32 (2, 4); expected"),
    "list boxes": ({"boxes": [[0, 0, 1, 1]]}, "boxes: got a list of 1 (list); expected a numpy"),
    "flat boxes": ({"boxes": np.zeros(8)}, "boxes: got a numpy array float64 (8,); expected"),
    "five": ({"boxes": np.zeros((2, 5))}, "boxes: got a numpy array float32 (2, 5); expected"),
    "NaN": ({"boxes": np.full((2, 4), np.nan)}, "boxes: [nan, nan, nan, nan] is not finite; exp"),
    "xywh": (
        {"boxes": np.array([[2, 2, 10, 12], [20, 10, 8, 9]])},
        "boxes: [20.0, 10.0, 8.0, 9.0] ends before it begins (is it x, y, width, height?); "
        "expected x1, y1, x2, y2 in pixels of an image of 30x20",
    ),
    "far": ({"boxes": np.array([[2, 2, 60, 12]] * 2)}, "boxes: [2.0, 2.0, 60.0, 12.0] is outside"),
    "0..1": ({"boxes": np.full((2, 4), 0.5)}, "boxes: [0.5, 0.5, 0.5, 0.5] looks relative (0..1)"),
    "label": ({"labels": np.array([0, 2])}, "labels: got 2; expected 0 to 1 (cat, dog)"),
    "negative": ({"labels": np.array([-1, 0])}, "labels: got -1; expected 0 to 1 (cat, dog)"),
    "float labels": ({"labels": np.zeros(2)}, "labels: got a numpy array float64 (2,); expected a"),
    "few labels": ({"labels": np.array([0])}, "labels: got a numpy array int64 (1,); expected as"),
    "no labels": ({"labels": None}, "objects need both 'boxes' and 'labels'"),
    "no boxes": ({"boxes": None}, "objects need both 'boxes' and 'labels'"),
    "crowd": ({"iscrowd": np.zeros(2)}, "iscrowd: got a numpy array float64 (2,); expected a"),
    "area": ({"area": np.zeros(3)}, "area: got a numpy array float32 (3,); expected as many as"),
    "masks": ({"segmentations": torch.zeros(2, 20, 30)}, "segmentations: got a tensor float32 (2"),
    "arrays": ({"segmentations": [NOTHING, NOTHING]}, "segmentations: got a list of 2 (ndarray)"),
    "few masks": ({"segmentations": []}, "segmentations: got a list of 0 (empty); expected as"),
    "attributes": ({"attributes": np.zeros((2, 2))}, "attributes: got a numpy array float32 (2, 2"),
    "percent": ({"attributes": np.full((2, 3), 50)}, "attributes: expected 1 (yes), 0 (no) or"),
    "map size": ({"semantic": torch.zeros((9, 9)).byte()}, "semantic: got a tensor uint8 (9, 9)"),
    "map dtype": ({"semantic": torch.zeros(20, 30)}, "semantic: got a tensor float32 (20, 30)"),
    "map value": (
        {"semantic": torch.full((20, 30), 2, dtype=torch.uint8)},
        "semantic: got the values 2; expected 0 to 1 (road, sky), or 255 for pixels without",
    ),
    "labeled": ({"labeled": np.ones(3, bool)}, "labeled: got a numpy array bool (3,); expected a"),
    "list": ({"semantic_labeled": [True, True]}, "semantic_labeled: got a list of 2 (bool); expec"),
    "extra": ({"extra": {"boxes": NOTHING}}, "extra: boxes belong in the sample's own attributes"),
    "extra list": ({"extra": [1]}, "extra: got a list of 1 (int); expected a dict of tensors"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_sample(fault):
    given, message = WRONG[fault]
    sample = sound(**given) if isinstance(given, dict) else given
    with pytest.raises(DataError) as error:
        checked_sample("Mine[3]", sample, CLASSES)
    assert str(error.value).startswith("Mine[3]: ") and message in str(error.value)


def test_all_faults_of_a_sample_are_told_together():
    sample = sound(class_id=9, labels=np.array([5, 0]), semantic=torch.zeros(1))
    with pytest.raises(DataError) as error:
        checked_sample("it", sample, CLASSES)
    assert all(f"{key}: got" in str(error.value) for key in ("class_id", "labels", "semantic"))


def test_a_sample_of_a_class_list_that_the_dataset_lacks():
    with pytest.raises(DataError, match=r"class_id: got 1; .* `classes` of the dataset has no"):
        checked_sample("it", sound(), {key: CLASSES[key] for key in CLASSES if key != "class_id"})


class Mine:
    """A dataset of sound samples, and whatever attributes a test gives."""

    keys = ("boxes", "labels", "class_id")
    classes: ClassVar = CLASSES

    def __init__(self, make=sound, **attributes):
        self.make = make
        vars(self).update(attributes)

    def __len__(self):
        return self.count if hasattr(self, "count") else 3

    def __getitem__(self, index):
        return self.make()


def fails(*_):
    raise KeyError("gone")


BAD = {
    "length": ({"count": -1}, "len() raised ValueError"),
    "text length": ({"count": "3"}, "len() raised TypeError"),
    "keys": ({"keys": "boxes"}, "keys: got 'boxes'; expected a tuple of target keys, such"),
    "no keys": ({"keys": None}, "keys: got None; expected a tuple"),
    "key": ({"keys": (3,)}, "keys: got a tuple of 1 (int); expected a tuple of target keys"),
    "class list": ({"classes": ["cat"]}, "classes: got a list of 1 (str); expected a dict with a"),
    "no classes": ({"classes": {}}, "got {}; expected class lists of labels, class_id, as"),
    "names": ({"classes": {"labels": ("a", "b")}}, "classes['labels']: got a tuple of 2 (str)"),
    "blank": ({"classes": {"labels": Classes((" ",), (0,))}}, "a tuple of strings that are not em"),
    "twice": ({"classes": {"labels": Classes.numbered(["a", "a"])}}, "'a' more than once; name ea"),
    "nameless": ({"classes": {"labels": Classes((), ())}}, "got a tuple of 0 (empty); expected at"),
    "ids": ({"classes": {"labels": Classes(("a", "b"), (1, 1))}}, "classes['labels'].ids: got"),
    "few ids": ({"classes": {"labels": Classes(("a", "b"), (1,))}}, "another int for each name"),
    "image ids": ({"image_ids": [1, 2]}, "image_ids: got a list of 2 (int); expected a list of 3"),
    "same ids": ({"image_ids": [1, 2, 2]}, "image_ids: got a list of 3 (int); expected a"),
    "sizes": ({"sizes": [(1, 2)] * 3}, "sizes: got a list of 3 (tuple); expected a numpy array"),
    "no size": ({"sizes": np.zeros((3, 2), int)}, "sizes: got 0; expected heights and widths of"),
    "objects": ({"num_objects": "3"}, "num_objects: got '3'; expected an int"),
    "names of files": ({"file_names": ["a"]}, "file_names: got a list of 1 (str); expected a list"),
    "fingerprint": ({"fingerprint": 3}, "fingerprint: got 3; expected a string"),
    "findings": ({"findings": lambda: [3]}, "findings(): got a list of 1 (int); expected visionki"),
    "failing findings": ({"findings": fails}, "findings() raised KeyError: 'gone'"),
    "dict of counts": ({"counts": lambda: {"kept": {}}}, "counts(): got {'kept': {}}; expected a "),
    "identities": ({"identities": np.zeros(2, int)}, "identities: got a numpy array int64 (2,)"),
    "no identities": ({"keys": ("identity",)}, "identities: got None; expected a numpy"),
    "path": ({"image_path": lambda index: "a.png"}, "image_path(0): got 'a.png'; expected a pa"),
    "failing path": ({"image_path": fails}, "image_path(0) raised KeyError: 'gone'"),
    "map path": ({"map_path": lambda index: "a.png"}, "map_path(0): got 'a.png'; expected a pa"),
    "method": ({"ground_truth": 3}, "ground_truth: got 3; expected a method"),
    "counts": ({"class_counts": lambda: {"labels": np.ones(9)}}, "class_counts(): got {'labels':"),
    "counts key": ({"class_counts": lambda: {"l": np.ones(2)}}, "class_counts(): got {'l': a"),
    "float counts": ({"class_counts": lambda: {"labels": np.ones(2)}}, "(): got {'labels': a nump"),
    "failing counts": ({"class_counts": fails}, "class_counts() raised KeyError: 'gone'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_a_wrong_dataset(fault):
    given, message = BAD[fault]
    with pytest.raises(ConfigError) as error:
        check_dataset("my.Mine", Mine(**given))
    assert str(error.value).startswith("my.Mine: ") and message in str(error.value)


def test_attributes_that_cannot_be_read():
    class Evil(Mine):
        def __getattr__(self, name):
            raise RuntimeError(f"no {name}")

    with pytest.raises(ConfigError, match="image_path raised RuntimeError: no image_path"):
        check_dataset("my.Evil", Evil())


def test_sound_datasets_pass():
    check_dataset("my.Mine", Mine())
    check_dataset("my.Mine", Mine(map_path=lambda index: None, image_path=lambda index: Path("a")))
    check_dataset("Shapes", Shapes(num_images=2, size=64))


def test_labels_are_checked_before_their_classes_are_matched():
    dataset = ClassMappedDataset(
        Mine(lambda: sound(labels=np.array([0, 7]))), {"labels": ("dog", "cat")}, None
    )
    with pytest.raises(DataError, match=r"^Mine\[1\]: labels: got 7; expected 0 to 1 \(cat, dog\)"):
        dataset[1]


def source(dataset, *transforms, **settings):
    return Source("main", ["x"], dataset, dataset, 2, 30, transforms, **settings)


def error_of_loading(made):
    with pytest.raises(DataError) as error:
        next(made.train_batches(seed=0, start=0, workers=0))
    return str(error.value)


def test_ids_of_samples_are_those_of_the_dataset():
    with pytest.raises(
        DataError, match=r"Mine\[1\]: image_id: got 7; expected 5, as in `image_ids`"
    ):
        read_sample(Mine(image_ids=[7, 5, 6]), 1)


def test_a_class_out_of_range_names_dataset_index_key_value_and_range():
    text = error_of_loading(source(Mine(lambda: sound(class_id=2), image_ids=[4, 5, 6])))
    assert "(id " in text
    assert "]: class_id: got 2; expected an int, 0 to 1 (day, night) (visionkit.Sample)" in text


def test_a_broken_contract_is_no_unreadable_image():
    """`on_unreadable_image: skip` does not replace it."""
    text = error_of_loading(source(Mine(lambda: sound(class_id=2)), skip_unreadable=True))
    assert "class_id: got 2" in text


class Own:
    """A transform that does what a test says."""

    def __init__(self, call):
        self.call = call

    def __call__(self, sample, rng, size):
        return self.call(sample, rng)


class Resizing(Own):
    resizes = True


def test_a_transform_needs_no_resizes():
    made = source(Mine(), Own(lambda sample, rng: sample.hflip()))
    batch = next(made.train_batches(seed=0, start=0, workers=0))
    assert batch.sizes == [(20, 30)] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda sample, rng: None, "Own: got None; expected a visionkit.Sample; is a `return` m"),
        (lambda sample, rng: sample.image, "Own: got uint8 (3, 20, 30); expected a visionkit.Sam"),
        (lambda sample, rng: replace(sample, image=sample.image / 2), "Own: image: got a tensor f"),
        (
            lambda sample, rng: replace(sample, image=sample.image[:, ::2, ::2]),
            "boxes: [2.0, 2.0, 10.0, 12.0] is outside the image (clip it; does a transform move "
            "the image alone?); expected x1, y1, x2, y2 in pixels of an image of 15x10",
        ),
        (lambda sample, rng: replace(sample, boxes=sample.boxes[:1]), "labels: got a numpy arra"),
        (lambda sample, rng: sample.no_such_method(), "Own: AttributeError: "),
    ],
)
def test_a_wrong_transform(call, message):
    assert message in error_of_loading(source(Mine(), Own(call)))


def test_a_transform_that_says_it_resizes_and_does_not():
    made = source(Mine(lambda: sound().resize((40, 60))), Resizing(lambda sample, rng: sample))
    text = error_of_loading(made)
    assert "Resizing: got an image of 60x40; expected one that fits into image_size 30" in text
    made.image_size = "60x39"
    text = error_of_loading(made)
    assert "Resizing: got an image of 60x40; expected one that fits into image_size 60x39" in text


class Counter:
    """A dataset whose samples change each time."""

    keys = ()
    classes: ClassVar = {}
    times = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.times += 1
        image = torch.full((3, 8, 8), self.times, dtype=torch.uint8)
        return Sample(image, index, (8, 8))


def darken(sample, rng):
    sample.image.sub_(1)
    return sample


def truth(boxes, labels, classes=CLASSES["labels"], ids=(7,)):
    return lambda: GroundTruth.of_boxes(classes, ids, [np.array(boxes)], [np.array(labels)])


def test_the_ground_truth_is_compared_with_the_first_sample():
    """Sound samples are half as large as their images: boxes there are [4, 4, 20, 24] and
    [0, 0, 60, 40]."""
    good = [[4, 4, 20, 24], [0, 0, 60, 40]]
    check_custom(source(Mine(ground_truth=truth(good, [0, 1]))))
    check_custom(source(Mine(ground_truth=truth([*good, [1, 1, 9, 9]], [0, 1, 1]))))
    swapped = Classes.numbered(["dog", "cat"])
    for given, message in (
        (truth([[2, 2, 10, 12], [0, 0, 30, 20]], [0, 1]), "image 7 has no box [4.0, 4.0, 20.0, 24"),
        (
            truth([[4, 4, 16, 20], [0, 0, 60, 40]], [0, 1]),
            "of class 'cat', which sample 0 has (x1,",
        ),
        (truth(good, [1, 1]), "has no box [4.0, 4.0, 20.0, 24.0] of class 'cat'"),
        (truth(good, [0, 1], ids=(8,)), "image 7 is missing, the image_id of sample 0"),
        (truth(good, [0, 1], classes=swapped), "got the classes dog, cat; expected those of `clas"),
    ):
        with pytest.raises(DataError) as error:
            check_custom(source(Mine(ground_truth=given)))
        assert str(error.value).startswith("data.val: Mine.ground_truth(): ")
        assert message in str(error.value)


def test_the_semantic_truth_is_of_the_size_of_the_image_with_known_classes():
    keys = ("semantic",)
    check_custom(source(Mine(keys=keys, semantic_truth=lambda i: None)))
    check_custom(source(Mine(keys=keys, semantic_truth=lambda i: torch.ones((40, 60)).byte())))
    for given, message in (
        (lambda i: torch.ones((20, 30)).byte(), "(7): got a tensor uint8 (20, 30); expected the"),
        (lambda i: np.ones((40, 60), np.uint8), "(7): got a numpy array uint8 (40, 60); expected"),
        (lambda i: torch.full((40, 60), 9).byte(), "(7): got the values 9; expected 0 to 1 (road,"),
        (fails, "(7) raised KeyError: 'gone'"),
    ):
        with pytest.raises(DataError) as error:
            check_custom(source(Mine(keys=keys, semantic_truth=given)))
        assert f"data.val: Mine.semantic_truth{message}" in str(error.value)


def test_what_differs_when_it_is_made_again_is_refused():
    with pytest.raises(DataError, match=r"data\.train: Counter: gives another image when "):
        check_custom(source(Counter()))
    global_rng = np.random.default_rng(0)
    noisy = Own(lambda sample, rng: replace(sample, image=sample.image + global_rng.integers(99)))
    with pytest.raises(DataError, match="Own: gives another image when image 0 is read again"):
        check_custom(source(Mine(), noisy))
    kept = sound(image=torch.full((3, 20, 30), 200, dtype=torch.uint8))
    with pytest.raises(DataError, match="change no sample in place"):
        check_custom(source(Mine(lambda: kept), Own(darken)))


def test_an_unreadable_first_image_may_be_skipped():
    class Holed(Mine):
        def __getitem__(self, index):
            if index == 0:
                raise DataError("image 0 is corrupt")
            return sound()

    check_custom(Source("main", ["x"], Holed(), None, 2, 30, skip_unreadable=True))
    with pytest.raises(DataError, match=r"data\.train: image 0 is corrupt"):
        check_custom(source(Holed()))


def test_methods_inherited_from_visionkit_are_not_tried():
    class Large(Shapes):
        def findings(self):
            raise AssertionError("own")

    class Larger(Shapes):
        pass

    with pytest.raises(ConfigError, match=r"findings\(\) raised AssertionError: own"):
        check_dataset("my.Large", Large(num_images=2, size=64))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Shapes, "findings", fails)
        check_dataset("my.Larger", Larger(num_images=2, size=64))


def test_what_is_random_by_its_generator_passes():
    noisy = Own(lambda sample, rng: replace(sample, image=sample.image + rng.integers(99)))
    check_custom(source(Mine(lambda: sound()), noisy))
    check_custom(source(Shapes(num_images=2, size=64), noisy))


def test_boxes_without_a_ground_truth_cannot_be_scored():
    for dataset in (Mine(), ClassMappedDataset(Mine(), {}, ["cat"])):
        with pytest.raises(ConfigError, match=r"Mine\.ground_truth\(\): missing; scoring boxes"):
            CocoEvaluator(dataset).compute()
    with pytest.raises(ConfigError, match=r"Mine\.ground_truth\(\): got a list; expected a Ground"):
        CocoEvaluator(Mine(ground_truth=list)).compute()
    with pytest.raises(ConfigError, match=r"Mine\.ground_truth\(\) raised KeyError: 'gone'"):
        CocoEvaluator(Mine(ground_truth=fails)).compute()


def test_a_ground_truth_of_boxes():
    boxes = [np.array([[1, 2, 4, 8]]), np.zeros((0, 4)), np.array([[0, 0, 2, 2], [1, 1, 9, 5]])]
    labels = [np.array([1]), np.array([]), np.array([0, 1])]
    truth = GroundTruth.of_boxes(Classes(("cat", "dog"), (3, 8)), [10, 11, 12], boxes, labels)
    assert truth.image.tolist() == [0, 2, 2] and truth.category.tolist() == [1, 0, 1]
    assert truth.boxes.tolist() == [[1, 2, 3, 6], [0, 0, 2, 2], [1, 1, 8, 4]]
    assert truth.areas.tolist() == [18, 4, 32]
    assert truth.category_ids.tolist() == [3, 8] and not truth.iscrowd.any()
    two = Classes.numbered(["cat", "dog"])
    for wrong in ((boxes[:2], labels[:2]), (boxes, labels[::-1]), (boxes, [labels[0] + 5] * 3)):
        with pytest.raises(ConfigError, match=r"of_boxes: expected boxes \(n, 4\) and n labels"):
            GroundTruth.of_boxes(two, [10, 11, 12], *wrong)


CODE = """
import numpy, torch
from visionkit import Classes, Sample
class Faulty:
    keys, classes = ("class_id",), {"class_id": Classes.numbered(["a", "b"])}
    def __len__(self): return 4
    def __getitem__(self, index):
        image = torch.zeros((3, 32, 32), dtype=torch.uint8)
        return Sample(image, index, (32, 32), class_id=2)
class Shade:
    def __init__(self, *, fault: str = ""):
        if fault: raise KeyError(fault)
    def __call__(self, sample, rng, size): sample.brightness
class Uncalled: ...
class More:
    def __call__(self, sample, rng, size, strength): ...
def shade(sample, rng, size): ...
class Positional(Faulty):
    def __init__(self, root, /): ...
"""


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (
            ["data.train={type: faulty.Faulty}"],
            3,
            ": class_id: got 2; expected an int, 0 to 1 (a, b)",
        ),
        (["data.transforms=[{type: faulty.Shade}]"], 3, "Shade: AttributeError: 'Sample' object"),
        (
            ["data.transforms=[{type: faulty.Shade, fault: gone}]"],
            2,
            "data.main.transforms: faulty.Shade: its __init__ raised KeyError: 'gone'",
        ),
        (["data.transforms=[{type: faulty.Uncalled}]"], 2, "Uncalled: it has no __call__()"),
        (
            ["data.transforms=[{type: faulty.More}]"],
            2,
            "its __call__() does not take (sample, rng, ",
        ),
        (["data.transforms=[{type: faulty.shade}]"], 2, "shade is a function; expected a class"),
        (["data.train={type: faulty.Positional}"], 2, "its argument 'root' is positional-only"),
    ],
)
def test_at_the_command_line_at_start_and_in_check(
    settings, code, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("faulty.py").write_text(CODE)
    shapes = {"type": "Shapes", "num_images": 4, "size": 32}
    config = {
        "task": "classification",
        "backbone": {"type": "TinyCNN", "channels": [4]},
        "data": {"train": shapes, "image_size": 32, "batch_size": 4, "workers": 0},
        "train": {"steps": 1, "plots": False, "best_metric": None},
    }
    Path("c.yaml").write_text(json.dumps(config))
    for command in ("train", "check"):
        assert main([command, "c.yaml", "output=run", *settings]) == code
        told = capsys.readouterr()
        text = told.out + told.err
        assert message in text and "report it" not in text and "unexpected" not in text
    assert not Path("run").exists()


def test_a_dataset_that_cannot_be_opened_is_located(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "closed.py").write_text(
        "class Closed:\n    def __init__(self): open('nowhere.txt')\n    __len__ = len\n"
        "    def __getitem__(self, index): ...\n"
    )
    from visionkit.config import load_config

    config = load_config(
        {"task": "classification", "backbone": {"type": "MLP"},
         "data": {"train": {"type": "closed.Closed"}}}
    )  # fmt: skip
    with pytest.raises(DataError, match=r"data\.train: closed\.Closed: its __init__ raised FileNo"):
        build_sources(config, ("train",))


def test_numbered_classes_have_plain_strings():
    """A checkpoint holds them, and it takes no numpy type."""
    assert {type(name) for name in Classes.numbered(np.unique(["b", "a"])).names} == {str}
