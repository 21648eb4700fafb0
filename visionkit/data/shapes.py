"""Generated pictures as a real COCO-format data set on disk that fills every target key."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from visionkit.cache import cache_folder
from visionkit.data.coco import Coco
from visionkit.data.shapes_drawing import (
    COLORS,
    SHAPES,
    TEXTURES,
    Shape,
    color_name,
    draw,
    random_place,
)
from visionkit.errors import DataError
from visionkit.types import Count, Natural, Range

VERSION = 2  # of the files: raise it whenever the same seed gives other ones

_PARTS = {"images", "semantic", "annotations.json"}
_PICTURES_PER_IDENTITY = 8
_MAX_OBJECTS = 5


class Shapes(Coco):
    """Generated pictures of shapes on textures, the same for the same arguments.

    They are drawn once, into the cache folder. Objects are shapes, the
    class of a picture is its background's texture, and pictures with the same `identity` show
    the same place: texture, coarseness, direction and colors. Attributes of an object are its
    `color`, whether another one hides a part of it (`covered`), and the kinds of shape that it
    `overlaps`, above or below.
    """

    def __init__(
        self,
        *,
        num_images: Count = 800,
        size: Annotated[int, Range(low=32)] = 160,
        seed: Natural = 0,
        classes: list[str] | None = None,
        masks: bool | None = None,
    ):
        folder = cache_folder() / f"shapes-v{VERSION}-{num_images}x{size}-{seed}"
        if not (folder / "annotations.json").exists():
            generate_shapes(folder, images=num_images, size=size, seed=seed)
        super().__init__(
            str(folder / "images"), str(folder / "annotations.json"), classes=classes, masks=masks
        )


def generate_shapes(out: str | Path, *, images: int, size: int = 160, seed: int = 0) -> None:
    """Write OUT/images/*.jpg, OUT/semantic/*.png and OUT/annotations.json (COCO format).

    The bytes depend on the arguments alone. OUT appears only when complete; an earlier data set
    of this kind there is replaced. Raises `DataError` if OUT holds anything else.
    """
    if images < 1 or not 32 <= size <= 8192 or seed < 0:
        raise DataError(
            f"shapes: got {images} images of size {size} and the seed {seed}; expected at least 1 "
            f"image, a size from 32 to 8192 and a seed >= 0"
        )
    out = Path(out)
    _refuse_other_content(out)
    replaces = out.exists()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            new = Path(scratch) / "new"
            _write(new, images, size, seed)
            if replaces:
                out.rename(Path(scratch) / "old")
            try:
                new.rename(out)
            except OSError:
                if not _is_shapes(out):  # else another process was faster
                    raise
    except OSError as error:
        raise DataError(f"shapes cannot be written to {out}: {error}") from error


def _refuse_other_content(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())) or _is_shapes(out):
        return
    raise DataError(f"{out} exists and is no generated shapes data set: choose a new folder")


def _is_shapes(out: Path) -> bool:
    try:
        info = json.loads((out / "annotations.json").read_bytes())["info"]
        return "visionkit_shapes" in info and {entry.name for entry in out.iterdir()} <= _PARTS
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(folder: Path, images: int, size: int, seed: int) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "semantic").mkdir()
    identities = -(-images // _PICTURES_PER_IDENTITY)
    places = [
        random_place(np.random.default_rng((seed, 0, i)), i % len(TEXTURES))
        for i in range(identities)
    ]
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(images):
        identity = index % identities
        rng = np.random.default_rng((seed, 1, index))
        picture, shapes = draw(rng, places[identity], size, _MAX_OBJECTS)
        name = f"{index + 1:06d}"
        picture.save(folder / "images" / f"{name}.jpg", quality=92, subsampling=0)
        _semantic(shapes, size).save(folder / "semantic" / f"{name}.png", compress_level=1)
        records.append(
            {
                "id": index + 1,
                "file_name": f"{name}.jpg",
                "width": size,
                "height": size,
                "class_id": places[identity].texture,
                "identity": identity,
                "semantic": f"semantic/{name}.png",
            }
        )
        for shape in shapes:
            annotations.append(_annotation(len(annotations) + 1, index + 1, shape, shapes))
    data = {
        "info": {"visionkit_shapes": VERSION, "images": images, "size": size, "seed": seed},
        "images": records,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(SHAPES)],
        "image_classes": TEXTURES,
        "semantic_classes": ["background", *SHAPES],
        # Else a small data set would lack the classes that happen not to occur.
        "attribute_classes": [
            *(f"color={name}" for name in COLORS),
            "covered",
            *(f"overlaps:{name}" for name in SHAPES),
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(data))


def _annotation(
    annotation_id: int, image_id: int, shape: Shape, shapes: list[Shape]
) -> dict[str, Any]:
    """A polygon where one outline says it all; run lengths where there are holes or cuts.

    `shapes` are all those of the picture.
    """
    rle = coco_mask.encode(np.asfortranarray(shape.visible, np.uint8))
    if shape.is_plain:
        segmentation: Any = [shape.outlines[0].ravel().tolist()]
    else:
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": shape.label + 1,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(shape.visible.sum()),
        "iscrowd": 0,
        "segmentation": segmentation,
        "attributes": _attributes(shape, shapes),
    }


def _attributes(shape: Shape, shapes: list[Shape]) -> dict[str, Any]:
    others = [s for s in shapes if s is not shape and (s.mask & shape.mask).any()]
    return {
        "color": color_name(shape.color),
        "covered": bool((shape.mask != shape.visible).any()),
        "overlaps": sorted({SHAPES[other.label] for other in others}),
    }


def _semantic(shapes: list[Shape], size: int) -> Image.Image:
    classes = np.zeros((size, size), np.uint8)
    for shape in shapes:
        classes[shape.visible] = shape.label + 1
    return Image.fromarray(classes)
