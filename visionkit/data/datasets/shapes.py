"""Generated images as a COCO-format dataset on disk, with labels for every target key."""

from __future__ import annotations

import colorsys
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco_mask

from visionkit.config.schema import Count, Natural, Range
from visionkit.data.datasets.coco import Coco
from visionkit.data.loading.cache import cache_folder, staging
from visionkit.errors import ConfigError, DataError, listed
from visionkit.runs.files import open_regular

SHAPES = ("circle", "ring", "square", "star", "triangle")
TEXTURES = ("blobs", "checks", "dots", "stripes", "waves", "weave")
COLORS = ("red", "yellow", "green", "cyan", "blue", "magenta", "gray")  # hues 60 degrees apart

_LEAST_CHROMA = 0.3  # a color with less difference between its channels is called gray
_SMOOTH = 4  # edges are drawn at this multiple of the size and averaged
_MIN_VISIBLE = 0.7  # of an object, and at least `_MIN_PIXELS`
_MIN_PIXELS = 24


@dataclass(frozen=True)
class Scene:
    """What the images of an identity share: a texture, its period and direction, two colors."""

    texture: int
    period: float  # relative to the image's size
    angle: float
    colors: np.ndarray  # (2, 3) RGB in 0..1


@dataclass
class Shape:
    """One object of an image."""

    label: int
    outlines: list[np.ndarray]  # (P, 2) x, y; a second one is a hole
    mask: np.ndarray  # (h, w) bool, of the whole shape
    visible: np.ndarray  # (h, w) bool, what later shapes do not cover
    color: np.ndarray  # (3,) RGB in 0..1

    @property
    def is_plain(self) -> bool:
        """Whether one outline inside the image describes all that is visible."""
        height, width = self.mask.shape
        inside = (self.outlines[0] >= 0).all() and (self.outlines[0] <= [width, height]).all()
        return len(self.outlines) == 1 and bool(inside and (self.mask == self.visible).all())


def random_scene(rng: np.random.Generator, texture: int) -> Scene:
    """A random scene with a texture, an index into `TEXTURES`."""
    hue = rng.random()
    tones = [(0, rng.uniform(0.55, 0.9)), (rng.uniform(-0.2, 0.2), rng.uniform(0.25, 0.5))]
    pair = [
        colorsys.hsv_to_rgb((hue + turn) % 1, rng.uniform(0.15, 0.6), value)
        for turn, value in tones
    ]
    period, angle = rng.uniform(0.07, 0.16), rng.uniform(0, math.pi)
    return Scene(texture, period, angle, np.array(pair, np.float32))


def draw(
    rng: np.random.Generator, scene: Scene, size: int, max_objects: int
) -> tuple[Image.Image, list[Shape]]:
    """A `size` x `size` RGB image of the scene with 1 to `max_objects` shapes, back to front."""
    canvas = _background(rng, scene, size)
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(1, max_objects + 1))):
        color = _new_color(rng, [*scene.colors, *(shape.color for shape in shapes)])
        shape = _free_shape(rng, size, shapes, color)
        if shape is None:
            continue
        for other in shapes:
            other.visible = other.visible & ~shape.mask
        shapes.append(shape)
        _fill(canvas, rng, shape)
    return _with_noise(canvas, rng), shapes


def _background(rng: np.random.Generator, scene: Scene, size: int) -> np.ndarray:
    """(size, size, 3) float32 in 0..1: a random part of the scene's texture, unevenly lit."""
    light, dark = scene.colors
    image = dark + (light - dark) * _pattern(rng, scene, size)[..., None]
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    slope = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
    return (image * (1 + slope[0] * y + slope[1] * x)[..., None]).astype(np.float32)


def _pattern(rng: np.random.Generator, scene: Scene, size: int) -> np.ndarray:
    """(size, size) in 0..1."""
    angle = scene.angle + rng.normal(0, 0.1)
    period = scene.period * size * rng.uniform(0.9, 1.1)
    start = rng.uniform(0, size, 2).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32) + start[:, None, None]
    u = (x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period
    v = (y * math.cos(angle) - x * math.sin(angle)) * 2 * math.pi / period
    texture = TEXTURES[scene.texture]
    if texture == "stripes":
        wave = 4 * np.sin(u)
    elif texture == "checks":
        wave = 12 * np.sin(u / 2) * np.sin(v / 2)
    elif texture == "dots":
        wave = 6 * (np.cos(u) + np.cos(v) - 0.9)
    elif texture == "waves":
        wave = 4 * np.sin(u + 1.5 * np.sin(v / 2))
    elif texture == "weave":
        wave = 2 * np.sin(u) + 2 * np.sin(v)
    else:
        coarse = rng.normal(0, 1, (max(2, round(1.6 * size / period)),) * 2).astype(np.float32)
        smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        wave = 3 * np.asarray(smooth)
    return 1 / (1 + np.exp(-wave))


def _free_shape(
    rng: np.random.Generator, size: int, shapes: list[Shape], color: np.ndarray
) -> Shape | None:
    """A random shape that leaves enough of the others visible; None after some tries."""
    for _ in range(8):
        shape = _random_shape(rng, size, color)
        if shape.mask.sum() < _MIN_PIXELS:
            continue
        if all(
            (other.visible & ~shape.mask).sum() >= max(_MIN_PIXELS, _MIN_VISIBLE * other.mask.sum())
            for other in shapes
        ):
            return shape
    return None


def _random_shape(rng: np.random.Generator, size: int, color: np.ndarray) -> Shape:
    label = int(rng.integers(len(SHAPES)))
    radius = math.exp(rng.uniform(math.log(0.1), math.log(0.3))) * size
    aspect = math.exp(rng.uniform(-0.2, 0.2))
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    margin = min(0.8 * radius, size / 2)
    center = rng.uniform(margin, size - margin, 2)
    stretch = [radius * aspect, radius / aspect]
    outlines = [
        ((points * stretch) @ turn + center).round(2) for points in _OUTLINES[SHAPES[label]]
    ]
    mask = _inside(outlines[0], size)
    for hole in outlines[1:]:
        mask = mask & ~_inside(hole, size)
    return Shape(label, outlines, mask, mask, color)


def _inside(outline: np.ndarray, size: int) -> np.ndarray:
    (rle,) = coco_mask.frPyObjects([outline.ravel()], size, size)
    return coco_mask.decode(rle).astype(bool)


def _ring(count: int, *radii: float, start: float = 0.0) -> np.ndarray:
    """(count, 2): points around the origin, at these distances in turn."""
    angles = start + np.arange(count) * 2 * math.pi / count
    distances = np.resize(radii, count)
    return np.stack([distances * np.cos(angles), distances * np.sin(angles)], 1)


_OUTLINES = {
    "circle": [_ring(40, 0.95)],
    "ring": [_ring(40, 1.0), _ring(40, 0.55)],
    "square": [_ring(4, 1.1, start=math.pi / 4)],
    "star": [_ring(10, 1.1, 0.45)],
    "triangle": [_ring(3, 1.15)],
}


def _fill(canvas: np.ndarray, rng: np.random.Generator, shape: Shape) -> None:
    """Paint the shape on the canvas in its color, shaded, with smooth edges."""
    size = len(canvas)
    points = np.concatenate(shape.outlines)
    left, top = np.clip(np.floor(points.min(0)).astype(int) - 1, 0, size - 1).tolist()
    right, bottom = np.clip(np.ceil(points.max(0)).astype(int) + 1, 1, size).tolist()
    window = Image.new("L", (_SMOOTH * (right - left), _SMOOTH * (bottom - top)))
    pen = ImageDraw.Draw(window)
    for outline, ink in zip(shape.outlines, (255, 0), strict=False):
        corners = (outline - [left, top]) * _SMOOTH - 0.5
        pen.polygon(corners.ravel().tolist(), fill=ink)
    alpha = np.asarray(window.reduce(_SMOOTH), np.float32)[..., None] / 255
    middle = np.array([top + bottom, left + right])[:, None, None] / 2
    y, x = np.mgrid[top:bottom, left:right] - middle
    slope = rng.uniform(-0.3, 0.3, 2) / max(right - left, bottom - top)
    shaded = shape.color * (1 + slope[0] * y + slope[1] * x)[..., None]
    part = canvas[top:bottom, left:right]
    part += alpha * (shaded - part)


def _new_color(rng: np.random.Generator, taken: list[np.ndarray]) -> np.ndarray:
    """A random color that differs from the `taken` ones."""
    candidates = [
        np.array(colorsys.hsv_to_rgb(*rng.uniform([0, 0.3, 0.3], [1, 1, 1])), np.float32)
        for _ in range(8)
    ]
    return max(candidates, key=lambda color: min(np.abs(color - t).sum() for t in taken))


def color_name(color: np.ndarray) -> str:
    """The nearest of six hues, or gray, for an RGB color (3,) in 0..1."""
    *hues, gray = COLORS
    if color.max() - color.min() < _LEAST_CHROMA:
        return gray
    hue, _, _ = colorsys.rgb_to_hsv(*color.tolist())
    return hues[round(hue * len(hues)) % len(hues)]


def _with_noise(canvas: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """The image with noise and, at random, a slight blur."""
    noise = rng.standard_normal(canvas.shape, np.float32) * rng.uniform(0.01, 0.05)
    image = Image.fromarray(((canvas + noise).clip(0, 1) * 255 + 0.5).astype(np.uint8))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0)))
    return image


VERSION = 2  # of the files: raise it when the same seed gives other files

_PARTS = {"images", "semantic", "annotations.json"}
_IMAGES_PER_IDENTITY = 8
MAX_SIZE = 8192  # pixels
_MAX_OBJECTS = 5


class Shapes(Coco):
    """Generated images of shapes on textures, the same for the same arguments.

    They are drawn once, into the cache folder. Objects are shapes. The class of an image is the
    texture of its background. Images with the same `identity` show the same scene: texture,
    period, direction and colors. Attributes of an object are its `color`, whether another object
    hides a part of it (`covered`), and the kinds of shapes that it `overlaps`, above or below.
    """

    def __init__(
        self,
        *,
        num_images: Count = 800,
        size: Annotated[int, Range(32, MAX_SIZE)] = 160,
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

    The bytes depend only on the arguments. OUT appears only when complete; an earlier dataset of
    this kind is replaced. Raises ConfigError if OUT contains any other file or is the current
    folder, DataError if it cannot be written.
    """
    if images < 1 or not 32 <= size <= MAX_SIZE or seed < 0:
        raise ConfigError(
            f"shapes: expected at least 1 image, a size from 32 to {MAX_SIZE} and a seed >= 0; got "
            f"images={images}, size={size}, seed={seed}"
        )
    out = Path(out)
    if Path.cwd().is_relative_to(out.resolve()):  # which cannot be replaced as a whole
        raise ConfigError(f"{out} is the current folder or holds it: choose another folder")
    try:
        _refuse_foreign(out)
        with staging(out) as scratch:
            new = scratch / "new"
            _write(new, images, size, seed)
            _refuse_foreign(out)  # again: drawing takes a while
            if out.exists():
                out.rename(scratch / "old")
            try:
                new.rename(out)
            except OSError:
                if _size_of_shapes(out) is None:  # else another process was faster
                    raise
    except OSError as error:
        raise DataError(f"shapes cannot be written to {out}: {error}") from error


def _refuse_foreign(out: Path) -> None:
    """Raise ConfigError unless `out` is missing, empty or holds a generated dataset and no more."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    count = _size_of_shapes(out)
    if count is None:
        raise ConfigError(
            f"{out} already exists and is not a generated shapes dataset: choose another folder"
        )
    names = (entry.relative_to(out).as_posix() for entry in out.rglob("*"))
    if foreign := sorted(name for name in names if not _is_part(name, count)):
        raise ConfigError(
            f"{out} holds files that do not belong to its generated dataset ({listed(foreign)}): "
            "move them, or choose another folder"
        )


def _size_of_shapes(out: Path) -> int | None:
    """The number of images of a generated dataset; None if `out` is something else."""
    try:
        with open_regular(out / "annotations.json") as file:
            info = json.load(file)["info"]
        return int(info["images"]) if "visionkit_shapes" in info else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _is_part(name: str, count: int) -> bool:
    """Whether a generated dataset of `count` images has a file or folder of that name."""
    numbered = re.fullmatch(r"images/([0-9]{6,18})\.jpg|semantic/([0-9]{6,18})\.png", name)
    if numbered is None:
        return name in _PARTS
    digits = numbered[1] or numbered[2]
    return 1 <= int(digits) <= count and digits == f"{int(digits):06d}"


def _write(folder: Path, images: int, size: int, seed: int) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "semantic").mkdir()
    identities = -(-images // _IMAGES_PER_IDENTITY)
    scenes = [
        random_scene(np.random.default_rng((seed, 0, i)), i % len(TEXTURES))
        for i in range(identities)
    ]
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(images):
        identity = index % identities
        rng = np.random.default_rng((seed, 1, index))
        image, shapes = draw(rng, scenes[identity], size, _MAX_OBJECTS)
        name = f"{index + 1:06d}"
        image.save(folder / "images" / f"{name}.jpg", quality=92, subsampling=0)
        classes = np.zeros((size, size), np.uint8)
        for shape in shapes:
            classes[shape.visible] = shape.label + 1
        semantic = Image.fromarray(classes)
        semantic.save(folder / "semantic" / f"{name}.png", compress_level=1)
        records.append(
            {
                "id": index + 1,
                "file_name": f"{name}.jpg",
                "width": size,
                "height": size,
                "class_id": scenes[identity].texture,
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
        # Otherwise a small dataset would lack the classes that do not occur.
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
    """The annotation of one of the `shapes` of an image: a polygon if one outline describes it,
    otherwise run lengths."""
    others = [s for s in shapes if s is not shape and (s.mask & shape.mask).any()]
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
        "attributes": {
            "color": color_name(shape.color),
            "covered": bool((shape.mask != shape.visible).any()),
            "overlaps": sorted({SHAPES[other.label] for other in others}),
        },
    }
