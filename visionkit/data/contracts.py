"""Check custom datasets, their samples and custom transforms against their contracts.

The contracts are `visionkit.types.Dataset`, `visionkit.data.sample.Sample` and
`visionkit.types.Transform`. An error names the class, the method, what it gave and what is
expected, so that no later code fails on it. visionkit's own classes are not checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionkit.data.checks.findings import DONE, Finding, finding
from visionkit.data.coco.ground_truth import ground_truth_of
from visionkit.data.datasets.part import Part
from visionkit.data.masks import Bitmap, Polygons
from visionkit.data.sample import Sample
from visionkit.errors import ConfigError, DataError, listed, shorten
from visionkit.types import IGNORE, Classes, Target

CLASS_KEYS = ("labels", "class_id", "semantic", "attributes")  # target keys with a class list
TRIED = 4  # samples of which one has boxes, to be compared with the ground truth
OVERHANG = 1.0  # pixels by which a box may reach out of its image: rounding
# The columns of objects: kinds of dtype that are taken, the dtype they get, dimensions.
COLUMNS: dict[str, tuple[str, Any, int]] = {
    "boxes": ("fiu", np.float32, 2),
    "labels": ("iu", np.int64, 1),
    "iscrowd": ("b", bool, 1),
    "area": ("fiu", np.float32, 1),
    "attributes": ("fiu", np.float32, 2),
    "cut": ("b", bool, 1),
}
OPTIONAL_METHODS = (
    "ground_truth",
    "semantic_truth",
    "image_path",
    "map_path",
    "findings",
    "counts",
    "class_counts",
    "examine",
)
OPTIONAL = (
    *OPTIONAL_METHODS,
    *("image_ids", "sizes", "identities", "num_objects", "file_names", "fingerprint"),
)


def is_custom(component: object) -> bool:
    """Whether the object's class is not one of visionkit's."""
    if isinstance(component, Part):
        return is_custom(component.whole)
    return not type(component).__module__.startswith("visionkit.")


def original(dataset: Any) -> Any:
    """The dataset that a `ClassMappedDataset` is of, else the dataset itself."""
    return dataset if is_custom(dataset) else getattr(dataset, "dataset", dataset)


def shown(value: Any) -> str:
    """A short text; tensors and arrays by their dtype and shape."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a numpy array {value.dtype} {value.shape}"
    if isinstance(value, np.generic):
        return f"np.{type(value).__name__}({value})"  # NumPy 1 shows the number alone
    if isinstance(value, dict):
        return shorten(f"{{{', '.join(f'{k!r}: {shown(v)}' for k, v in value.items())}}}", 300)
    if isinstance(value, list | tuple):
        kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in value))
        return f"a {type(value).__name__} of {len(value)} ({kinds or 'empty'})"
    return shorten(repr(value), 83)


class Faults:
    """Collects what is wrong with one thing, to raise all of it together."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, name: str, value: Any, wanted: str) -> None:
        kind = "a tensor " if isinstance(value, Tensor) else ""
        self.found.append(f"{name}: got {kind}{shown(value)}; expected {wanted}")

    def call(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        """The result; an exception is a fault, and the result None."""
        try:
            return method(*arguments)
        except Exception as error:  # custom code raises anything
            self.found.append(f"{name} raised {type(error).__name__}: {error}")
            return None


def check_dataset(name: str, dataset: Any) -> None:
    """Raise ConfigError with all that is wrong with a custom dataset, the class `name`, as far as
    it shows without reading an image."""
    if not is_custom(dataset):
        return
    faults = Faults()
    count = faults.call("len()", len, dataset)
    keys, classes, *others = (
        faults.call(name, getattr, dataset, name, None) for name in ("keys", "classes", *OPTIONAL)
    )
    if not isinstance(keys, tuple | list) or not all(isinstance(key, str) for key in keys):
        faults.add("keys", keys, "a tuple of target keys, such as ('boxes', 'labels')")
        keys = ()
    if isinstance(classes, dict):
        for key, found in classes.items():
            _check_classes(faults, f"classes[{key!r}]", found)
        missing = [key for key in keys if key in CLASS_KEYS and key not in classes]
        if missing:
            faults.add("classes", classes, f"class lists of {listed(missing)}, as in `keys`")
    else:
        faults.add("classes", classes, "a dict with a `Classes` for each key of classes, or {}")
    for attribute, value in zip(OPTIONAL, others, strict=True):
        if value is not None and attribute in OPTIONAL_METHODS and not callable(value):
            faults.add(attribute, value, "a method")
    if count and not faults.found:
        _check_details(faults, dataset, count, keys)
    if faults.found:
        raise ConfigError(f"{name}: {'; '.join(faults.found)} (visionkit.types.Dataset)")


def _check_classes(faults: Faults, what: str, classes: Any) -> None:
    if not isinstance(classes, Classes):
        faults.add(what, classes, "visionkit.Classes, such as Classes.numbered(['cat', 'dog'])")
        return
    names, ids = classes
    if not isinstance(names, tuple) or not all(type(n) is str and n.strip() for n in names):
        faults.add(f"{what}.names", names, "a tuple of strings that are not empty")
    elif not names:
        faults.add(f"{what}.names", names, "at least one class")
    elif len(set(names)) < len(names):
        repeated = listed(sorted({repr(name) for name in names if names.count(name) > 1}))
        faults.found.append(f"{what}.names: {repeated} more than once; name each class once")
    if not _are_ids(ids, len(names)):
        faults.add(f"{what}.ids", ids, "a tuple with another int for each name")


def _are_ids(ids: Any, count: int) -> bool:
    ints = isinstance(ids, Sequence) and all(type(one) is int for one in ids)
    return ints and len(ids) == len({*ids}) == count


def _check_details(faults: Faults, dataset: Any, count: int, keys: Sequence[str]) -> None:
    """What a dataset may have besides, and must be sound then."""
    if hasattr(dataset, "image_ids") and not _are_ids(dataset.image_ids, count):
        faults.add("image_ids", dataset.image_ids, f"a list of {count} different ints")
    for name, shape in (("sizes", (count, 2)), ("identities", (count,))):
        value = getattr(dataset, name, None)
        needed = name == "identities" and "identity" in keys
        if (needed or value is not None) and not (
            isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.shape == shape
        ):
            faults.add(name, value, f"a numpy array int64 {shape}")
        elif name == "sizes" and value is not None and (value < 1).any():
            faults.add(name, int(value.min()), "heights and widths of at least 1")
    if hasattr(dataset, "num_objects") and type(dataset.num_objects) is not int:
        faults.add("num_objects", dataset.num_objects, "an int")
    if hasattr(dataset, "fingerprint") and not isinstance(dataset.fingerprint, str | None):
        faults.add("fingerprint", dataset.fingerprint, "a string")
    names = getattr(dataset, "file_names", None)
    if names is not None and not (
        isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names)
    ):
        faults.add("file_names", names, f"a list of {count} strings")
    _check_reports(faults, dataset)
    for name in ("image_path", "map_path"):
        if (method := getattr(dataset, name, None)) is not None:
            path = faults.call(f"{name}(0)", method, 0)
            if not isinstance(path, Path) and not (path is None and name == "map_path"):
                faults.add(f"{name}(0)", path, "a pathlib.Path")
    if _is_own(dataset, "class_counts"):
        counts = faults.call("class_counts()", dataset.class_counts)
        if not isinstance(counts, dict) or not all(
            key in dataset.classes
            and isinstance(one, np.ndarray)
            and one.dtype.kind in "iu"
            and one.shape == (len(dataset.classes[key].names),)
            for key, one in counts.items()
        ):
            faults.add("class_counts()", counts, "a dict with int arrays (K,) by key of `classes`")


def _is_own(dataset: Any, name: str) -> bool:
    """Whether the dataset has this method and did not inherit it from one of visionkit's, which may
    take long for a large file."""
    owner = next((cls for cls in type(dataset).__mro__ if name in vars(cls)), type(dataset))
    ours = owner.__module__.startswith("visionkit.")
    return not ours and getattr(dataset, name, None) is not None


def _check_reports(faults: Faults, dataset: Any) -> None:
    """What the dataset itself says about its faults."""
    if _is_own(dataset, "findings"):
        found = faults.call("findings()", lambda: [*dataset.findings()])
        if not all(isinstance(one, Finding) for one in found or ()):
            faults.add("findings()", found, "visionkit.data.checks.findings.Finding each")
    if _is_own(dataset, "counts"):
        counts = faults.call("counts()", dataset.counts)
        kinds = [counts.get(done) for done in DONE.values()] if isinstance(counts, dict) else [None]
        if not all(isinstance(one, dict) for one in kinds):
            wanted = f"a dict with a dict of counts by kind for {listed(DONE.values())}"
            faults.add("counts()", counts, wanted)


def check_ground_truth(dataset: Any) -> None:
    """Raise DataError if a custom dataset is scored against other classes than its own, or if its
    first sample with boxes has one that is not scored."""
    if not _is_own(dataset, "ground_truth") or "boxes" not in dataset.keys:
        return
    truth, name = ground_truth_of(dataset), f"{type(dataset).__name__}.ground_truth()"
    classes = Classes(tuple(truth.names), tuple(np.asarray(truth.category_ids).tolist()))
    if "labels" in dataset.classes and classes != dataset.classes["labels"]:
        wanted = "those of `classes['labels']`, with their ids"
        raise broken_contract(f"{name}: got the classes {listed(classes.names)}; expected {wanted}")
    for index in range(min(len(dataset), TRIED)):
        sample = read_sample(dataset, index)
        if sample.boxes is None or sample.labels is None or not len(sample.boxes):
            continue
        image = f"{name}: image {sample.image_id}"
        place = np.flatnonzero(truth.image_ids == sample.image_id)
        if not len(place):
            raise broken_contract(f"{image} is missing, the image_id of sample {index}")
        rows = truth.image == place[0]
        corners = truth.boxes[rows] + np.pad(truth.boxes[rows, :2], ((0, 0), (2, 0)))
        stretch = np.array(sample.orig_size[::-1]) / sample.size[::-1]
        boxes, far = sample.boxes * np.tile(stretch, 2), 1 + 0.01 * max(sample.orig_size)
        for box, label in zip(boxes, sample.labels.tolist(), strict=True):
            alike = (np.abs(corners - box) <= far).all(1) & (truth.category[rows] == label)
            if label >= 0 and not alike.any():
                text = f"has no box {box.round(1).tolist()} of class {classes.names[label]!r}"
                raise broken_contract(f"{image} {text}, which sample {index} has (x1, y1, x2, y2)")
        return


def check_semantic_truth(dataset: Any) -> None:
    """Raise DataError unless the semantic map that the first sample of a custom dataset is scored
    against is one of its image."""
    if not _is_own(dataset, "semantic_truth") or "semantic" not in dataset.keys:
        return
    sample, faults = read_sample(dataset, 0), Faults()
    name = f"{type(dataset).__name__}.semantic_truth({sample.image_id})"
    found = faults.call(name, dataset.semantic_truth, sample.image_id)
    if found is not None:
        h, w = sample.orig_size
        image = torch.zeros((3, h, w), dtype=torch.uint8)
        scored = replace(sample, image=image, semantic=found)
        _check_semantic(faults, scored, dataset.classes)
    if faults.found:
        texts = [text.replace("semantic: ", f"{name}: ") for text in faults.found]
        raise broken_contract(f"{'; '.join(texts)} (visionkit.types.Dataset)")


def read_sample(dataset: Any, index: int) -> Sample:
    """The sample at that index, checked if the dataset is custom."""
    sample = dataset[index]
    if not is_custom(dataset):
        return sample
    what = f"{type(getattr(dataset, 'whole', dataset)).__name__}[{index}]"
    sample = checked_sample(what, sample, dataset.classes)
    ids = getattr(dataset, "image_ids", None)
    if ids is not None and sample.image_id != ids[index]:
        text = f"image_id: got {sample.image_id}; expected {ids[index]}, as in `image_ids`"
        raise broken_contract(f"{what}: {text} (visionkit.Sample)")
    return sample


def checked_sample(what: str, sample: Any, classes: Mapping[str, Classes]) -> Sample:
    """The sample, its arrays with the dtypes of `Sample`, objects with `iscrowd` and `area`.

    Raises DataError, which begins with `what`, with all that is wrong. `classes` by target key.
    """
    if not isinstance(sample, Sample):
        wanted = "a visionkit.Sample" + ("; is a `return` missing?" if sample is None else "")
        raise broken_contract(f"{what}: got {shown(sample)}; expected {wanted}")
    faults = Faults()
    image = sample.image
    if (
        not isinstance(image, Tensor)
        or image.dtype != torch.uint8
        or image.ndim != 3
        or image.shape[0] != 3
        or 0 in image.shape
    ):
        faults.add("image", image, "a tensor uint8 (3, h, w), RGB")
    elif image.layout != torch.strided or image.device.type != "cpu":
        where = f"a {str(image.layout).removeprefix('torch.')} tensor on {image.device}"
        faults.found.append(f"image: got {where}; expected a dense one on the CPU")
    if type(sample.image_id) is not int:
        faults.add("image_id", sample.image_id, "an int")
    if not (
        isinstance(sample.orig_size, tuple)
        and len(sample.orig_size) == 2
        and all(type(side) is int and side > 0 for side in sample.orig_size)
    ):
        faults.add("orig_size", sample.orig_size, "a tuple of two ints, (h, w)")
    changed: dict[str, Any] = {}
    if not faults.found:  # the others are compared with the image
        _check_scalars(faults, sample, classes)
        _check_semantic(faults, sample, classes)
        changed = _checked_objects(faults, sample, classes)
    _check_extra(faults, sample.extra)
    if faults.found:
        raise broken_contract(f"{what}: {'; '.join(faults.found)} (visionkit.Sample)")
    return replace(sample, **changed)


def broken_contract(text: str) -> DataError:
    """The error to raise for a custom class that is wrong."""
    return DataError(text, findings=[finding("contract", text)])


def breaks_contract(error: DataError) -> bool:
    """Whether the custom class is wrong, and not an image."""
    return any(found.kind == "contract" for found in error.findings)


def _range(names: Sequence[str]) -> str:
    if not names:
        return "nothing, as `classes` of the dataset has no list for it"
    return f"0 to {len(names) - 1} ({listed(names, 5)})"


def _names(classes: Mapping[str, Classes], key: str) -> tuple[str, ...]:
    return classes[key].names if key in classes else ()


def _check_scalars(faults: Faults, sample: Sample, classes: Mapping[str, Classes]) -> None:
    names = _names(classes, "class_id")
    class_id, identity = sample.class_id, sample.identity
    if isinstance(class_id, list | tuple):  # of a head with `multilabel`, or of mixed images
        known = [value for value in class_id if value == value]  # not NaN
        mixed = isinstance(class_id, tuple)
        if len(class_id) != len(names) or not all(
            0 <= value <= 1 if mixed else value in (0, 1) for value in known
        ):
            faults.add("class_id", class_id, f"{len(names)} numbers, each 0., 1. or NaN (unknown)")
    elif class_id is not None and (type(class_id) is not int or not 0 <= class_id < len(names)):
        faults.add("class_id", class_id, f"an int, {_range(names)}")
    if identity is not None and type(identity) is not int:
        faults.add("identity", identity, "an int")


def _check_semantic(faults: Faults, sample: Sample, classes: Mapping[str, Classes]) -> None:
    semantic, names = sample.semantic, _names(classes, "semantic")
    _check_mask(faults, "semantic_labeled", sample.semantic_labeled, len(names))
    if semantic is None:
        return
    if not isinstance(semantic, Tensor) or semantic.dtype != torch.uint8:
        faults.add("semantic", semantic, "a tensor uint8 (h, w)")
    elif tuple(semantic.shape) != sample.size:
        faults.add("semantic", semantic, f"the size of its image, {sample.size}")
    else:
        wrong = semantic[(semantic >= len(names)) & (semantic != IGNORE)].unique().tolist()
        if wrong:
            wanted = f"{_range(names)}, or {IGNORE} for pixels without a label"
            faults.found.append(f"semantic: got the values {listed(wrong)}; expected {wanted}")


def _check_mask(faults: Faults, name: str, mask: Any, count: int) -> None:
    if mask is not None and not (
        isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (count,)
    ):
        faults.add(name, mask, f"a numpy array bool ({count},), one for each class")


def _checked_objects(
    faults: Faults, sample: Sample, classes: Mapping[str, Classes]
) -> dict[str, Any]:
    """The columns of the objects with their dtypes; missing `iscrowd` and `area` are added."""
    found: dict[str, Any] = {}
    names = _names(classes, "labels")
    _check_mask(faults, "labeled", sample.labeled, len(names))
    before = len(faults.found)
    for key, (kinds, dtype, dimensions) in COLUMNS.items():
        value = getattr(sample, key)
        if value is None:
            continue
        if (
            not isinstance(value, np.ndarray)
            or value.dtype.kind not in kinds
            or value.ndim != dimensions
        ):
            shape = {1: "(N,)", 2: "(N, 4)" if key == "boxes" else "(N, A)"}[dimensions]
            faults.add(key, value, f"a numpy array {np.dtype(dtype)} {shape}")
            continue
        found[key] = value.astype(dtype, copy=False)
    if len(faults.found) > before:
        return found
    others = [key for key in (*found, "segmentations") if getattr(sample, key) is not None]
    if others and not {"boxes", "labels"} <= found.keys():
        faults.found.append(f"{listed(others)}: objects need both 'boxes' and 'labels'")
    elif others:
        _check_rows(faults, sample, found, classes)
        count = len(found["boxes"])
        found.setdefault("iscrowd", np.zeros(count, bool))
        if "area" not in found and not faults.found:
            sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
            scale = np.prod(sample.orig_size) / np.prod(sample.size)
            found["area"] = (sides.prod(1) * scale).astype(np.float32)
    return found


def _check_rows(
    faults: Faults, sample: Sample, found: dict[str, Any], classes: Mapping[str, Classes]
) -> None:
    """The numbers of objects, and their values."""
    boxes, outlines = found["boxes"], sample.segmentations
    for key, value in found.items():
        if len(value) != len(boxes):
            faults.add(key, value, f"as many as boxes, {len(boxes)}")
    labels, names = found["labels"], _names(classes, "labels")
    lowest = np.zeros(len(labels), np.int64)
    if found.get("iscrowd", lowest).shape == lowest.shape:
        lowest -= found.get("iscrowd", lowest)  # -1: a crowd region of no class
    wrong = np.unique(labels[(labels < lowest) | (labels >= len(names))]).tolist()
    if wrong:
        faults.found.append(f"labels: got {listed(wrong)}; expected {_range(names)}")
    if outlines is not None and not (
        isinstance(outlines, list) and all(isinstance(one, Polygons | Bitmap) for one in outlines)
    ):
        faults.add(
            "segmentations", outlines, "a list of Polygons or Bitmap of visionkit.data.masks"
        )
    elif outlines is not None and len(outlines) != len(boxes):
        faults.add("segmentations", outlines, f"as many as boxes, {len(boxes)}")
    if "attributes" in found:
        values, count = found["attributes"], len(_names(classes, "attributes"))
        if values.shape[1] != count:
            faults.add("attributes", values, f"one column for each of {count} classes")
        elif not (np.isnan(values) | (values == 0) | (values == 1)).all():
            faults.found.append("attributes: expected 1 (yes), 0 (no) or NaN (unknown)")
    if boxes.shape[1] != 4:
        faults.add("boxes", boxes, "a numpy array float32 (N, 4) of x1, y1, x2, y2")
    else:
        _check_boxes(faults, boxes, sample.size)


def _check_boxes(faults: Faults, boxes: np.ndarray, size: tuple[int, int]) -> None:
    """Boxes that are not corners in pixels of an image of `size`; the first is shown."""
    h, w = size
    wanted = f"x1, y1, x2, y2 in pixels of an image of {w}x{h}"
    with np.errstate(invalid="ignore"):
        outside = (boxes < -OVERHANG) | (boxes > np.array([w, h, w, h]) + OVERHANG)
        backwards = (boxes[:, :2] > boxes[:, 2:]).any(1)
    faulty = {
        "is not finite": ~np.isfinite(boxes).all(1),
        "ends before it begins (is it x, y, width, height?)": backwards,
        "is outside the image (clip it; does a transform move the image alone?)": outside.any(1),
    }
    for what, rows in faulty.items():
        if rows.any():
            box = shorten(str(boxes[rows.argmax()].tolist()))
            faults.found.append(f"boxes: {box} {what}; expected {wanted}")
            return
    if len(boxes) and max(h, w) > 2 and boxes.max() <= 1:
        box = shorten(str(boxes[0].tolist()))
        faults.found.append(f"boxes: {box} looks relative (0..1); expected {wanted}")


def _check_extra(faults: Faults, extra: Any) -> None:
    if not isinstance(extra, dict) or not all(isinstance(key, str) for key in extra):
        faults.add("extra", extra, "a dict of tensors by name")
    elif taken := [key for key in extra if key in Target.__annotations__]:
        faults.found.append(f"extra: {listed(taken)} belong in the sample's own attributes")
