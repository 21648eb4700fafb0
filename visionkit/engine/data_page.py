"""The result of `visionkit data stats` as a page with charts and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionkit.data.coco.annotations import Annotations
from visionkit.data.tools.object_stats import Objects
from visionkit.data.tools.stats import Part, near_places
from visionkit.errors import package_version, plural, printable
from visionkit.metrics.parts import Bars, Chart, Gallery, Mark, Series, Shown, Table, Text
from visionkit.metrics.parts import Part as PagePart
from visionkit.runs.files import write_new
from visionkit.visualization.draw import as_image
from visionkit.visualization.html import Headline, Page, Section, render

CLASSES = 40  # of a bar chart
IMAGES = 12  # of a gallery
MARKS = 60  # boxes of an image
NEIGHBORS = 4  # images of a group of near duplicates
PERCENT = np.arange(11) * 10
Record = Mapping[str, Any]


def write_page(path: Path, record: Record, parts: Sequence[Part]) -> None:
    """Write the page of a result of `data_stats` to a new file. FileExistsError if it exists."""
    write_new(path, render(data_page(record, parts), package_version()))


def data_page(record: Record, parts: Sequence[Part]) -> Page:
    """A page: suggestions, then a section for each part of the data."""
    data = record["data"]
    found = [f"{one['where']}: {one['text']}." for one in record["suggestions"]]
    sections = [
        Section(
            "Suggestions",
            [Text("What the numbers suggest", found or ["There is nothing to suggest."])],
        )
    ]
    sections += [_section(part, data[part.name]) for part in parts]
    across = [
        [*one["parts"], *pair] for one in record["near_duplicates_across"] for pair in one["pairs"]
    ]
    if across:
        columns = ["data", "other data", "image", "near duplicate"]
        sections.append(Section("Near duplicates across", [Table("Pairs", columns, across)]))
    headline = [
        Headline(part.name, plural(data[part.name]["images"], "image"), _counts(data[part.name]))
        for part in parts
    ]
    return Page("Data: " + ", ".join(Path(part.name).name for part in parts), sections, headline)


def _counts(described: Record) -> str:
    if "objects" not in described:
        return ""
    classes = plural(len(described["classes"]), "class", "classes")
    return f"{plural(described['objects'], 'object')} of {classes}"


def _section(part: Part, described: Record) -> Section:
    parts = [*_facts(described)]
    if described.get("objects"):
        parts += _objects(described)
    if described["image_classes"]:
        parts.append(_bars("Images by class", described["image_classes"]))
    if "semantic" in described:
        shares = {one["name"]: one["share"] for one in described["semantic"]["classes"]}
        parts.append(_bars("Share of the labeled pixels by class", shares))
    if any(one is not None and not one.fault for one in part.looks):
        parts += _galleries(part, described)

    def image(index: int) -> Image.Image:
        return as_image(part.inner[index].image)

    return Section(part.name, parts, "", image, part.image_name)


def _facts(described: Record) -> Iterator[PagePart]:
    sizes = described["image_sizes"]
    rows: list[list[Any]] = [["images", described["images"]]]
    if "objects" in described:
        rows += [
            ["objects", described["objects"]],
            ["crowd regions", described["crowds"]],
            ["images without an object", described["empty_images"]],
        ]
        rows += [[f"not counted: {what}", n] for what, n in described["dropped"].items()]
    rows += [["missing images", described["missing"]], ["damaged images", described["damaged"]]]
    if (near := described["near_duplicates"]) is not None:
        rows.append(["images with a near duplicate here", near["images"]])
    yield Table("Counts", ["", ""], rows)
    if sizes["known"]:
        common = [[f"{o['width']}x{o['height']}", o["images"]] for o in sizes["most_common"]]
        note = f"The most frequent of {sizes['distinct']}."
        yield Table("Image sizes", ["width x height", "images"], common, note)
    if described["unreadable"]:
        yield Text("Images that cannot be read", described["unreadable"])


def _objects(described: Record) -> Iterator[PagePart]:
    classes = described["classes"]
    yield _bars("Objects by class", {one["name"]: one["objects"] for one in classes})
    yield _bars("Images by class", {one["name"]: one["images"] for one in classes})
    yield Bars("Objects by area", described["sizes"], note="COCO's: below 32x32, 96x96, above.")
    sides = [Series("as annotated", described["side"], PERCENT)]
    sides += [
        Series(f"image_size {size}", at["side"], PERCENT)
        for size, at in described["at_image_size"].items()
    ]
    yield _cumulative("Shorter sides of objects", "pixels", sides, "objects")
    ratios = [Series("objects", described["aspect_ratio"], PERCENT)]
    ratios.append(Series("images", described["image_sizes"]["aspect_ratio"], PERCENT))
    yield _cumulative("Aspect ratios", "width / height", ratios, "objects, images")
    counts = [Series("images", described["objects_per_image"]["deciles"], PERCENT)]
    yield _cumulative("Objects per image", "objects", counts, "images")
    rows = [
        [
            one["name"],
            one["objects"],
            one["images"],
            *one["sizes"].values(),
            *((one["side"][d] for d in (1, 5, 9)) if one["side"] else (None,) * 3),
            one["aspect_ratio"][5] if one["aspect_ratio"] else None,
            one["at_border"],
            *one["overlapping"].values(),
            *one["overlapping_same_class"].values(),
        ]
        for one in classes
    ]
    columns = [
        "class",
        "objects",
        "images",
        "small",
        "medium",
        "large",
        "side 10 %",
        "50 %",
        "90 %",
    ]
    columns += ["width / height 50 %", "at the border", "IoU > 0.5", "IoU > 0.7"]
    columns += ["same class > 0.5", "same class > 0.7"]
    yield Table("Classes", columns, rows, "Sides are the shorter ones, in pixels as annotated.")


def _bars(title: str, values: Mapping[str, float]) -> Bars:
    most = sorted(values, key=lambda name: -values[name])[:CLASSES]
    note = f"The largest {CLASSES} of {len(values)}." if len(values) > CLASSES else ""
    return Bars(title, {printable(name): values[name] for name in most}, note=note)


def _cumulative(title: str, x_label: str, series: Sequence[Series], what: str) -> Chart:
    """Which share of the objects or images is at most so large."""
    return Chart(title, x_label, f"% of {what}", series, y_range=(0.0, 100.0))


def _galleries(part: Part, described: Record) -> Iterator[Gallery]:
    """Images, those of the rarest classes first, and the first near duplicates."""
    here = [i for i, one in enumerate(part.looks) if one is not None and not one.fault]
    inner, captions = part.inner, dict[int, str]()
    has_objects = isinstance(inner, Annotations) and bool(inner.index.categories)
    objects = Objects.of(inner) if has_objects else None
    if objects is not None:
        counts, readable = np.bincount(objects.labels), np.isin(objects.image, here)
        for label in np.argsort(counts, kind="stable").tolist():
            images = objects.image[(objects.labels == label) & readable]
            if len(images) and len(captions) < IMAGES:
                captions.setdefault(int(images[0]), f"with {objects.names[label]}")
    for index in here[:: max(1, len(here) // IMAGES)]:
        if len(captions) < IMAGES:
            captions.setdefault(index, "")
    shown = [
        Shown(index, f"{part.image_name(index)} {caption}", [*_marks(objects, index)])
        for index, caption in captions.items()
    ]
    yield Gallery("Images", shown)
    if groups := near_places(part)[:IMAGES]:
        near = [
            Shown(first, ", ".join(map(part.image_name, (first, *others))), neighbors=others)
            for first, *others in (group[:NEIGHBORS] for group in groups)
        ]
        yield Gallery("Near duplicates", near)


def _marks(objects: Objects | None, index: int) -> Iterator[Mark]:
    """The boxes of an image."""
    if objects is not None:
        for row in np.flatnonzero(objects.image == index)[:MARKS].tolist():
            name = objects.names[objects.labels[row]]
            yield Mark("truth", objects.boxes[row].tolist(), name)
