"""Numbers for the classes of formats that have names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from visionkit.data.checks.findings import short
from visionkit.data.coco.image_classes import class_id_record
from visionkit.data.formats.base import Reader, Record
from visionkit.errors import unknown


def numbered(
    reader: Reader, records: Iterable[tuple[Record, list[Record]]], names: list[str] | None = None
) -> Iterator[tuple[Record, list[Record]]]:
    """The records with ids, and with category ids instead of the names in `category`, and sets
    `reader.categories`.

    The classes are those that were given to the reader, of which objects of others are bad records;
    else `names` without those of images alone, then others that occur, sorted. `image_classes` of
    images, a list of names, becomes `class_id`: a number if no image has several. Records wait in
    memory, packed, until all classes are known.
    """
    found: set[str] = set()
    of_images: set[str] = set()
    packed, most = [], 0
    for image, own in records:
        found.update(one["category"] for one in own)
        of_images.update(image.get("image_classes", ()))
        most = max(most, len(image.get("image_classes", ())))
        packed.append(json.dumps((image, own)).encode())
    classes = reader.given_classes
    if classes is None:
        of_objects = [name for name in names or () if name in found or name not in of_images]
        classes = [*(of_objects or names or ()), *sorted(found - set(names or ()))]
    reader.categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    id_of = {name: i + 1 for i, name in enumerate(classes)}
    order = [name for name in names or () if name in of_images]
    order += sorted(of_images - set(order))
    if order:
        reader.lists["image_classes"] = order
    count = 0
    for i, data in enumerate(packed):
        image, own = json.loads(data)
        image.setdefault("id", i + 1)
        if "image_classes" in image:
            places = [order.index(name) for name in image.pop("image_classes")]
            image |= {"class_id": places[0]} if most == 1 else class_id_record(places)
        kept = []
        for one in own:
            name = one.pop("category")
            if name not in id_of:
                what = unknown(name, classes, f"class {short(name)} is not among the classes")
                reader.bad(one["source"], what, kind="class")
                continue
            count += 1
            kept.append({"id": count, "image_id": image["id"], "category_id": id_of[name]} | one)
        yield image, kept
