"""What the numbers of data suggest, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from visionkit.config.config import fixed_size
from visionkit.data.resize import ImageSize
from visionkit.data.tools.object_stats import ELONGATED
from visionkit.errors import listed, plural, shorten

Record = Mapping[str, Any]

LEAST_SIDE = 16  # pixels at image_size: two cells of 8 pixels, the finest of most detectors
LARGEST_SIZE = 1344  # an image_size above it takes long: about that of COCO models
ENLARGED = 1.25  # image_size by the images' own longest side
STRETCHED = 1.5  # aspect ratio in the network by that of the image
IMBALANCE = 10  # objects of the most frequent class by those of another
FEW = 50  # objects or images of a class
OVERLAPPING = 0.01  # share of the objects that overlap another of their class
ANCHORS = ("FasterRCNN", "MaskRCNN", "RetinaNet", "SSD")
SHARE_ELONGATED = 0.05
RARE_PIXELS = 0.002  # share of a class in semantic maps


class Suggestion(NamedTuple):
    """One suggestion: what was measured and what follows."""

    kind: str
    where: str  # the part of the data
    text: str
    value: float  # that was measured

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def suggestions(
    record: Record,
    sizes: Mapping[str, ImageSize | None],
    heads: Mapping[str, Sequence[str]],
) -> Iterator[Suggestion]:
    """What the result of `stats.data_stats` suggests. `sizes` and `heads`: by the name of each part
    its image_size, and the types of the heads that it feeds."""
    for found in record["near_duplicates_across"]:
        yield _leak(found)
    for where, part in record["data"].items():
        for kind, text, value in _of_part(part, sizes.get(where), heads.get(where, ())):
            yield Suggestion(kind, where, text, value)
    yield from _absent_classes(record["data"])


def _leak(found: Record) -> Suggestion:
    one, other = found["parts"]
    first = "; ".join(f"{a} and {b}" for a, b in found["pairs"][:3])
    text = (
        f"{plural(found['images'], 'image is', 'images are')} near duplicates of images of {one} "
        f"(such as {first}): what is measured on them is too good; divide the data again with "
        "`visionkit data split --images DIR`, which keeps near duplicates together"
    )
    if found["images"] == 1:
        text = text.replace("near duplicates of images", "a near duplicate of an image", 1)
    return Suggestion("near-duplicates-across", other, text, found["images"])


Found = Iterator[tuple[str, str, float]]


def _of_part(part: Record, image_size: ImageSize | None, heads: Sequence[str]) -> Found:
    if unread := part["missing"] + part["damaged"]:
        what = f"{plural(part['missing'], 'image is', 'images are')} missing and {part['damaged']}"
        text = f"{what} damaged (such as {shorten(part['unreadable'][0], 160)}): replace them"
        yield "unreadable", text, unread
    near = part["near_duplicates"]
    if near and near["groups"]:
        count = len(near["groups"])
        first = " and ".join(near["groups"][0][:2])
        text = (
            f"{near['images']} images are near duplicates of each other, in "
            f"{plural(count, 'group')} (such as {first}): {near['images'] - count} of them add "
            "little; keep one of each group"
        )
        yield "near-duplicates", text, near["images"]
    yield from _image_size(part, image_size)
    if part.get("objects"):
        yield from _objects(part, heads)
        counts = {one["name"]: one["objects"] for one in part["classes"]}
        yield from _classes(counts, "object")
    if part["image_classes"]:
        yield from _classes(part["image_classes"], "image")
    if "semantic" in part:
        yield from _semantic(part["semantic"])


def _image_size(part: Record, image_size: ImageSize | None) -> Found:
    longest, ratios = part["image_sizes"]["longest_side"], part["image_sizes"]["aspect_ratio"]
    measured = part["at_image_size"] if part.get("objects") else {}
    small = False
    for size, at in measured.items():
        side = at["side"][1]
        if side >= LEAST_SIDE or (image_size is None and size != next(iter(measured))):
            continue
        small = True
        yield "small-objects", _larger(side, int(size) if size.isdecimal() else size), side
    if image_size is None or longest is None:
        return
    fixed = fixed_size(image_size)
    if fixed is None and not small:
        high = image_size if isinstance(image_size, int) else max(image_size)
        if high > ENLARGED * longest[9]:
            text = (
                f"nine of ten images are at most {longest[9]:g} px long: image_size {image_size} "
                f"enlarges them {high / longest[9]:.1f} times, which adds time and no detail; "
                f"use image_size {_rounded(longest[9])}"
            )
            yield "enlarged-images", text, longest[9]
    elif fixed is not None:
        wanted = fixed[1] / fixed[0]
        apart = max(wanted / ratios[5], ratios[5] / wanted)
        if apart > STRETCHED:
            text = (
                f"half of the images have a width of {ratios[5]:.2f} heights or more: image_size "
                f"{image_size} stretches them {apart:.1f} times; use one number, which keeps the "
                "aspect ratio"
            )
            yield "stretched-images", text, ratios[5]


def _larger(side: float, image_size: Any) -> str:
    factor = LEAST_SIDE / max(side, 1e-9)
    text = f"the tenth percentile of object sides is {side:.3g} px at image_size {image_size}"
    if not isinstance(image_size, int):
        return f"{text}: use one {factor:.1f} times as large, or cut the images into tiles"
    if (wanted := _rounded(image_size * factor)) > LARGEST_SIZE:
        return f"{text}: cut the images into tiles (image_size {wanted} is what they would need)"
    return f"{text}: use image_size {wanted} or tiles"


def _rounded(pixels: float) -> int:
    return math.ceil(pixels / 32) * 32


def _objects(part: Record, heads: Sequence[str]) -> Found:
    total = part["objects"]
    if empty := part["empty_images"]:
        share = empty / part["images"]
        text = (
            f"{empty} of {plural(part['images'], 'image')} ({share:.1%}) have no object: right if "
            "there is none to see; else annotate or remove them, as all is learned as background"
        )
        yield "empty-images", text, empty
    same = part["overlapping_same_class"]["0.5"]
    if same / total > OVERLAPPING:
        most = part["overlapping_classes"][0]
        text = (
            f"{same} of {total} objects ({same / total:.1%}) overlap another of their class with "
            f"an IoU above 0.5, most often {' and '.join(most['classes'])}: non-maximum "
            "suppression at 0.5 drops one of two; try 0.6 or 0.7 (`nms_iou`, of R-CNNs "
            "`box_nms_iou`)"
        )
        yield "overlaps", text, same / total
    share = part["elongated"] / total
    with_anchors = [head for head in heads if head in ANCHORS]
    if share > SHARE_ELONGATED and (with_anchors or not heads):
        text = (
            f"{share:.1%} of the objects are more than {ELONGATED:g} times as long as wide: "
            "anchors of up to 1:2 overlap them with an IoU below 0.5; set `anchor_ratios`, or use "
            "a head without anchors (TaskAligned, FCOS)"
        )
        yield "elongated-objects", text, share


def _classes(counts: Mapping[str, int], noun: str) -> Found:
    present = {name: count for name, count in counts.items() if count}
    if not present:
        return
    most = max(present, key=present.__getitem__)
    least = min(present, key=present.__getitem__)
    ratio = present[most] / present[least]
    if ratio > IMBALANCE:
        weights = "class_weights" if noun == "image" else "the AP of each class"
        advice = f"set `{weights}`" if noun == "image" else f"judge by {weights}"
        text = (
            f"{most!r} has {plural(present[most], noun)}, {ratio:.3g} times as many as {least!r} "
            f"({present[least]}): add {noun}s of rare classes, and {advice}"
        )
        yield "imbalance", text, ratio
    few = sorted((count, name) for name, count in present.items() if count < FEW)
    if few:
        shown = listed([f"{name!r} ({count})" for count, name in few], 5)
        what = f"{plural(len(few), 'class has', 'classes have')} fewer than {FEW} {noun}s: {shown}"
        yield "few", f"{what}; what is measured of them is uncertain: add some", len(few)


def _semantic(maps: Record) -> Found:
    rare = [
        (one["share"], one["name"]) for one in maps["classes"] if 0 < one["share"] < RARE_PIXELS
    ]
    if rare:
        shown = listed([f"{name!r} ({share:.3%})" for share, name in sorted(rare)], 5)
        what = plural(len(rare), "class covers", "classes cover")
        text = f"{what} less than {RARE_PIXELS:.1%} of the labeled pixels: {shown}; set `dice: 1.0`"
        yield "rare-pixels", text + " or `class_weights`", min(rare)[0]
    if maps["unreadable"]:
        text = f"{plural(maps['unreadable'], 'semantic map')} cannot be read: {maps['first'][0]}"
        yield "unreadable-maps", text, maps["unreadable"]


def _absent_classes(data: Mapping[str, Record]) -> Iterator[Suggestion]:
    """Classes of one part that another part lists and does not have."""
    counts = {
        where: {one["name"]: one["objects"] for one in part.get("classes", ())}
        | (part["image_classes"] or {})
        for where, part in data.items()
    }
    for where, own in counts.items():
        absent = [
            name
            for name, count in own.items()
            if not count and any(other.get(name) for other in counts.values())
        ]
        if absent:
            names = listed([repr(name) for name in absent], 5)
            what = plural(
                len(absent), "class of the other data has", "classes of the other data have"
            )
            text = f"{what} no example here: {names}; `visionkit data split` keeps class shares"
            yield Suggestion("absent-classes", where, text, len(absent))
