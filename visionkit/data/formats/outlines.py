"""Outlines of objects on their way between formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.coco.segmentations import (
    LONGEST,
    find_fault,
    mask_area,
    mask_box,
    plain_mask,
    to_rle,
)
from visionkit.data.formats.base import Losses, Record
from visionkit.data.image_io import Size

CORNERS = 64  # of a polygon that replaces a circle: 99.8 % of its area
EXACT = 0.01  # pixels by which the box of a mask may differ from the one that it replaces


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> list[float]:
    """A polygon [x, y, ...] of `CORNERS` points on an ellipse, turned clockwise as seen."""
    angles = np.arange(CORNERS) * (2 * np.pi / CORNERS)
    points = np.stack([rx * np.cos(angles), ry * np.sin(angles)], 1)
    return turned(points, (x, y), degrees).ravel().tolist()


def turned(points: np.ndarray, center: tuple[float, float], degrees: float) -> np.ndarray:
    """Points (P, 2) around the origin, turned clockwise as seen and moved to `center`."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[cos, sin], [-sin, cos]]) + np.array(center)


def fault_of(polygon: Sequence[float], size: Size) -> str:
    """What is wrong with a polygon [x, y, ...] in an image of `size` (h, w); "" if nothing is."""
    if len(polygon) < 6:
        return f"a polygon has {len(polygon) // 2} points: needs at least 3"
    points = np.array(polygon, np.float64).reshape(-1, 2)
    if not np.abs(points).max() <= 10 * max(size):
        return f"a point is not within 10x the image size ({size[1]}x{size[0]})"
    if np.abs(points - np.roll(points, 1, 0)).max(1).sum() > LONGEST:
        return f"the outline is longer than {LONGEST} pixels"
    return ""


def window_rle(bitmap: np.ndarray, left: int, top: int, size: Size) -> Record:
    """A mask (h, w), whose upper left pixel is (left, top) in an image of `size` (h, w), as an RLE.
    ValueError if it does not lie in the image."""
    height, width = bitmap.shape
    if min(left, top) < 0 or left + width > size[1] or top + height > size[0]:
        where = f"{width}x{height} pixels at ({left}, {top})"
        raise ValueError(f"a mask of {where} is not within the image {size[1]}x{size[0]}")
    canvas = np.zeros(size, np.uint8, order="F")
    canvas[top : top + height, left : left + width] = bitmap
    return coco_mask.encode(canvas)


def outlined(polygons: list[list[float]], rles: list[Record], size: Size) -> Record:
    """`segmentation`, `bbox` and `area` of an object of sound polygons and RLEs, all of which are
    its parts, in an image of `size` (h, w)."""
    mask: Any = polygons
    if rles:
        parts = coco_mask.frPyObjects(polygons, *size) if polygons else []
        counts = coco_mask.merge([*rles, *parts])["counts"]
        mask = {"size": list(size), "counts": counts.decode("ascii")}
    box = [round(value, 6) for value in mask_box(mask)]
    return {"segmentation": mask, "bbox": box, "area": mask_area(mask, size)}


def boxed(left: float, top: float, right: float, bottom: float) -> Record:
    """`bbox` and `area` of a box that has no outline."""
    width, height = round(right - left, 6), round(bottom - top, 6)
    return {"bbox": [left, top, width, height], "area": width * height}


class Part(NamedTuple):
    """A shape of an image: one of a box (left, top, right, bottom), a polygon [x, y, ...] and an
    RLE. Those with one label and `group` are one object."""

    label: str
    group: Any  # None: an object by itself
    box: Sequence[float] | None
    polygon: list[float] | None
    rle: Record | None
    attributes: Record
    more: Record  # other keys of the annotation
    source: str


def joined(parts: Sequence[Part], size: Size, crowd: str) -> list[Record]:
    """The records of the objects that these shapes of an image of `size` (h, w) are, with their
    `category`. Attributes are those of all parts, the first part's above others; the attribute
    `crowd` is true for crowd regions."""
    groups: dict[Any, list[Part]] = {}
    for i, part in enumerate(parts):
        groups.setdefault(i if part.group is None else (part.label, part.group), []).append(part)
    return [_record(own, size, crowd) for own in groups.values()]


def _record(parts: list[Part], size: Size, crowd: str) -> Record:
    first = parts[0]
    if len(parts) == 1 and first.box is not None:
        record = boxed(*first.box)
    else:
        polygons = [part.polygon for part in parts if part.polygon is not None]
        boxes = [part.box for part in parts if part.box is not None]
        polygons += [[x, y, right, y, right, bottom, x, bottom] for x, y, right, bottom in boxes]
        record = outlined(polygons, [part.rle for part in parts if part.rle is not None], size)
    attributes: Record = {}
    for part in reversed(parts):
        attributes |= part.attributes
    record |= {"category": first.label, "iscrowd": int(attributes.pop(crowd, False) is True)}
    if attributes:
        record["attributes"] = attributes
    return record | first.more | {"source": first.source}


def window_of(rle: Record) -> tuple[np.ndarray, int, int] | None:
    """The pixels (h, w) uint8 of a mask within its bounds, and the left and top of these; None if
    it has no pixel."""
    bitmap = coco_mask.decode(to_rle(rle, rle["size"]))
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    if not len(rows):
        return None
    (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    return np.ascontiguousarray(bitmap[top : bottom + 1, left : right + 1]), left, top


def outline_of(record: Record, image: Record) -> tuple[Any, list[float]]:
    """The mask of an annotation, None without one, and its box x, y, w, h, by default that of the
    mask. What has a fault, which the reader reports, is None, and zeros."""
    mask, box = plain_mask(record.get("segmentation")), record.get("bbox")
    size = mask.get("size") if isinstance(mask, dict) else None
    try:
        if size not in (None, [image["height"], image["width"]]) or find_fault(mask):
            mask = None
        found = np.array(box or mask_box(mask), np.float64)
    except (TypeError, ValueError, OverflowError):
        return None, [0.0] * 4
    is_sound = found.shape == (4,) and bool(np.isfinite(found).all())
    return (mask, found.tolist()) if is_sound else (None, [0.0] * 4)


def note_other_box(mask: Any, box: list[float], losses: Losses, place: str) -> None:
    """Count a box that is not that of the object's mask, in a format that has one of the two."""
    if np.abs(np.subtract(mask_box(mask), box)).max() > EXACT:
        losses.add("boxes that become those of their masks", place)
