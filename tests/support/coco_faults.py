"""A sound COCO file, and faults to inject into it, alone or in pairs."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

NAN, INFINITY = math.nan, math.inf
SIZE = (48, 64)  # h, w of all images
Content = dict[str, Any]


def sound() -> Content:
    """Six images with two objects each, of three classes, with polygons or run lengths."""
    images, annotations = [], []
    for i in range(6):
        images.append({"id": 10 + i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]})
        for k, (x, y, w, h) in enumerate([(4 + i, 5, 20, 16), (36, 20 + i, 18.5, 17.5)]):
            mask: Any = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            if i % 2:
                mask = coco_mask.merge(coco_mask.frPyObjects(mask, *SIZE))
                mask = {"size": list(SIZE), "counts": mask["counts"].decode()}
            annotations.append(
                {
                    "id": 100 + 2 * i + k,
                    "image_id": 10 + i,
                    "category_id": 3 + (i + k) % 3,
                    "iscrowd": 0,
                }
                | {"bbox": [x, y, w, h], "area": w * h, "segmentation": mask}
            )
    categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 5, "name": "ox"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(folder: Path, content: Any) -> None:
    """The file and its images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "a.json").write_bytes(text)


class Fault(NamedTuple):
    """One kind of fault: how it is injected and how it must be told.

    `inject(content, row)` changes the record in that row, or the file as a whole. `kinds` are the
    kinds of finding that name it, with `key` if that is not None; none: it has one meaning and is
    taken. `scored`: the types of evaluation that must refuse it.
    """

    inject: Callable[[Content, int], Any]
    kinds: tuple[str, ...] = ()
    key: str | None = None
    scored: tuple[str, ...] = ()
    is_error: bool = False
    stops: bool = False  # nothing else is read


BOTH = ("bbox", "segm")


def _set(part: str, scored: tuple[str, ...] = (), kinds: Any = ("value",), **change: Any) -> Fault:
    """A change of keys of one record; `...` removes a key."""

    def inject(content: Content, row: int) -> None:
        record = content[part][row % len(content[part])]
        for key, value in change.items():
            if value is ...:
                record.pop(key, None)
            else:
                record[key] = copy.deepcopy(value)

    return Fault(inject, kinds, next(iter(change)), scored, is_error=True)


def _taken(part: str, *kinds: str, **change: Any) -> Fault:
    """A change that is no error."""
    return _set(part, kinds=kinds, **change)._replace(is_error=False)


def _everywhere(part: str, key: str, change: Callable[[Any, Content], Any], **told: Any) -> Fault:
    def inject(content: Content, row: int) -> None:
        for record in content[part]:
            if key in record:
                record[key] = change(record[key], record)

    return Fault(inject, key=key, **told)


def _parts(box: list[float], record: Content) -> list[float]:
    sides = (SIZE[1], SIZE[0]) * 2
    return [v / s if type(v) is not str else v for v, s in zip(box or (), sides, strict=False)]


def _copy(part: str, key: str) -> Callable[[Content, int], None]:
    """The value of another record."""

    def inject(content: Content, row: int) -> None:
        records = content[part]
        records[row % len(records)][key] = records[row % len(records) - 1].get(key)

    return inject


def _root(content: Content, row: int) -> None:
    content["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})


def _twin(content: Content, row: int) -> None:
    content["annotations"][row] = {**content["annotations"][row - 1], "id": 999}


def _top(key: str, value: Any) -> Callable[[Content, int], None]:
    return lambda content, row: content.__setitem__(key, value)


def _drop(key: str) -> Callable[[Content, int], Any]:
    return lambda content, row: content.pop(key, None)


def _append(key: str, value: Any) -> Callable[[Content, int], None]:
    def inject(content: Content, row: int) -> None:
        if isinstance(content.get(key), list):
            content[key].append(value)

    return inject


_PATH = ("path",)
_RANGE = ("coordinate-range",)
_BAD = ("bad-mask",)
_STOP: dict[str, Any] = {"kinds": ("file",), "is_error": True, "stops": True, "scored": BOTH}

FAULTS: dict[str, Fault] = {
    # images
    "image without id": _set("images", BOTH, id=...),
    "image id true": _set("images", BOTH, id=True),
    "image id beyond 64 bits": _set("images", BOTH, id=10**30),
    "text image ids": _everywhere(
        "images", "id", lambda v, r: str(v), kinds=("value",), is_error=True, scored=BOTH
    ),
    "image id twice": Fault(_copy("images", "id"), ("repeated",), "id", BOTH, is_error=True),
    "file name null": _set("images", file_name=None),
    "file name a number": _set("images", file_name=5),
    "file name leaves": _set("images", kinds=_PATH, file_name="../images/5.png"),
    "file name elsewhere": _set("images", kinds=_PATH, file_name="/etc/passwd"),
    "file name a URL": _set("images", kinds=_PATH, file_name="http://x.org/a.png"),
    "file name with a zero byte": _set("images", kinds=_PATH, file_name="a\0.png"),
    "file missing": _set("images", kinds=("missing-file",), file_name="none.png"),
    "file named twice": Fault(
        _copy("images", "file_name"), ("duplicate-name", "image-size"), "file_name"
    ),
    "file name of Windows": _taken("images", file_name=".\\1.png"),
    "file name with the folder": _taken("images", file_name="images/1.png"),
    "coco_url": _taken("images", file_name=None, coco_url="http://x.org/val/1.png"),
    "height zero": _set("images", ("segm",), height=0),
    "width text": _set("images", ("segm",), width="64"),
    "width missing": _set("images", ("segm",), width=...),
    "huge image": _set("images", ("segm",), width=10**6, height=10**6),
    "class_id without classes": _set("images", class_id=3),
    "identity negative": _set("images", identity=-1),
    "semantic leaves": _set("images", kinds=_PATH, semantic="../a.png"),
    "semantic missing": _set("images", kinds=("missing-file",), semantic="no.png"),
    "negatives unknown": _set("images", neg_category_ids=[77]),
    "negatives no list": _set("images", neg_category_ids="cat"),
    # annotations
    "unknown image": _set("annotations", BOTH, ("unknown-image",), image_id=777),
    "image_id text": _set("annotations", BOTH, image_id="10"),
    "image_id missing": _set("annotations", BOTH, image_id=...),
    "unknown category": _set("annotations", BOTH, ("unknown-category",), category_id=77),
    "category null": _set("annotations", BOTH, category_id=None),
    "text category ids": _everywhere(
        "annotations",
        "category_id",
        lambda v, r: str(v),
        kinds=("value",),
        is_error=True,
        scored=BOTH,
    ),
    "box nan": _set("annotations", ("bbox",), _RANGE, bbox=[1, NAN, 3, 4]),
    "box infinite": _set("annotations", ("bbox",), _RANGE, bbox=[1, 1, INFINITY, 4]),
    "box far away": _set("annotations", ("bbox",), _RANGE, bbox=[1, 1, 1e7, 4]),
    "box of three": _set("annotations", ("bbox",), bbox=[1, 2, 3]),
    "box of text": _set("annotations", ("bbox",), bbox=["1", "2", "3", "4"]),
    "box missing": _taken("annotations", "missing-box", bbox=...),
    "box empty": _taken("annotations", "empty-box", bbox=[3, 3, 0, 5]),
    "box outside": _taken("annotations", "outside-box", bbox=[300, 3, 5, 5]),
    "box over the border": _taken("annotations", "overhanging-box", bbox=[30, 3, 60, 30]),
    "box tiny": _taken("annotations", "tiny-box", bbox=[3.5, 3, 0.5, 5]),
    "boxes in parts": _everywhere(
        "annotations", "bbox", _parts, kinds=("relative-boxes",), is_error=True, scored=("bbox",)
    ),
    "area text": _set("annotations", BOTH, area="12"),
    "area nan": _set("annotations", BOTH, area=NAN),
    "area negative": _taken("annotations", "negative-area", area=-4),
    "area missing": _taken("annotations", "missing-area", area=...),
    "area zero": _taken("annotations", "wrong-area", area=0),
    "crowd": _taken("annotations", iscrowd=1),
    "crowd text": _taken("annotations", "crowd-value", iscrowd="1"),
    "crowd two": _set("annotations", BOTH, iscrowd=2),
    "ignored": _taken("annotations", "ignore-region", ignore=1)._replace(key=None),
    "ignored text": _set("annotations", BOTH, ignore="yes"),
    "group": _taken("annotations", "ignore-region", isgroupof=True)._replace(key=None),
    "polygon of five": _set("annotations", ("segm",), _BAD, segmentation=[[1, 2, 3, 4, 5]]),
    "polygon nan": _set("annotations", ("segm",), _RANGE, segmentation=[[1, 2, NAN, 4, 5, 9]]),
    "polygon of text": _set("annotations", ("segm",), _BAD, segmentation=[["1", 2, 3, 4, 5, 9]]),
    "mask true": _set("annotations", ("segm",), _BAD, segmentation=True),
    "mask of another size": _set(
        "annotations", ("segm",), _BAD, segmentation={"size": [9, 9], "counts": [0, 81]}
    ),
    "mask damaged": _set(
        "annotations", ("segm",), _BAD, segmentation={"size": list(SIZE), "counts": "o" * 9}
    ),
    "mask empty": _taken("annotations", "missing-mask", segmentation=[]),
    "mask an empty object": _taken("annotations", "missing-mask", segmentation={}),
    "mask an empty text": _taken("annotations", "missing-mask", segmentation=""),
    "mask an empty polygon": _taken("annotations", "missing-mask", segmentation=[[]]),
    "mask missing": _taken("annotations", "missing-mask", segmentation=...),
    "id twice": Fault(_copy("annotations", "id"), ("duplicate-id",), "id"),
    "id text": _taken("annotations", id="a"),
    "object twice": Fault(_twin, ("duplicate-box",), "bbox"),
    "attributes of a tool": _taken("annotations", "unread-attribute", attributes={"rotation": 1.5}),
    "attributes a list": _taken("annotations", "unread-attribute", attributes=[1]),
    # categories
    "category id text": _set("categories", BOTH, id="3"),
    "category without id": _set("categories", BOTH, id=...),
    "category id twice": Fault(_copy("categories", "id"), ("repeated",), "id", BOTH, is_error=True),
    "category name empty": _set("categories", BOTH, name=""),
    "category name missing": _set("categories", BOTH, name=...),
    "category name twice": Fault(
        _copy("categories", "name"), ("repeated",), "name", BOTH, is_error=True
    ),
    "root category": Fault(_root, ("spare-category",)),
    "unused category": Fault(_append("categories", {"id": 9, "name": "emu"}), ("unused-class",)),
    # the file
    "image_classes no list": Fault(
        _top("image_classes", "cat"), ("value",), scored=BOTH, is_error=True
    ),
    "extra keys": Fault(_top("info", {"a": [NAN]})),
    "no categories": Fault(_drop("categories"), **_STOP),
    "images null": Fault(_top("images", None), **_STOP),
    "annotations an object": Fault(_top("annotations", {}), **_STOP),
    "an annotation that is a number": Fault(_append("annotations", 7), **_STOP),
}
