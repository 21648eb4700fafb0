"""Draw images of data with their labels on one sheet: as stored, or as training sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visionkit.config import Config, load_config
from visionkit.config.components import head_class
from visionkit.data.build import build_sources, head_classes
from visionkit.data.coco.annotations import Annotations
from visionkit.data.contracts import original, read_sample
from visionkit.data.datasets.folder import ImageFolder
from visionkit.data.datasets.idx import Idx
from visionkit.data.loading.source import Source, split_key
from visionkit.data.tools.opened import LabeledFile, open_parts
from visionkit.data.tools.stats import is_config
from visionkit.engine.setup import load_init_from, reused_classes, splits_read
from visionkit.errors import ArgumentError, DataError, check_counts, plural, printable, unknown
from visionkit.types import Batch, Target, as_numpy
from visionkit.visualization.draw import CELL, contact_sheet, draw_target, save_image
from visionkit.visualization.plots import draw_for_heads

LARGEST = 64_000_000  # pixels of a sheet, about: of more than 100 images each is smaller
SMALLEST_CELL = 64
REASONS = 5  # why images cannot be read, in an error
SUFFIXES = (".jpg", ".jpeg", ".png")
TITLE = 44  # pixels
CAPTION = 26


class Sheet(NamedTuple):
    """What `show` has drawn."""

    out: str
    shown: dict[str, int]  # images by part of the data
    unreadable: list[str]

    def lines(self) -> list[str]:
        """What to print."""
        lines = [f"not shown: {one}" for one in self.unreadable]
        parts = [f"{plural(count, 'image')} of {name}" for name, count in self.shown.items()]
        return [*lines, f"wrote {self.out}: {', '.join(parts)}"]


class Group(NamedTuple):
    """The images of one part of the data."""

    title: str
    images: list[Image.Image]
    captions: list[str]


def show_data(
    target: str | Path,
    out: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    n: int = 16,
    augmented: bool = False,
    class_name: str | None = None,
    images: str | Path | None = None,
    allow_plugins: bool = False,
) -> Sheet:
    """Draw `n` images of each source of a config, or of a file of annotations, with their labels.

    target: a config, or a file or folder of annotations of any format.
    out: a new .jpg or .png file.
    augmented: the first batches of training with the config's seed, as the network gets them; else
        the first images of the training data as stored.
    class_name: only images with this class, or attribute.
    images: the folder of the images of a file, where it is not found.

    Images that are missing or damaged are listed in the result, and others are shown instead;
    augmented ones are a DataError, as in training.
    """
    check_counts(n=n)
    path = _checked(Path(out))
    if is_config(target):
        if images is not None:
            raise ArgumentError("data show: --images needs a file; a config names its images")
        config = load_config(target, overrides, allow_plugins=allow_plugins)
        groups, unreadable = _of_config(config, n, class_name, augmented=augmented)
    else:
        if augmented or overrides:
            raise ArgumentError("data show: --augmented and overrides apply to a config only")
        files, unreadable = [*open_parts(target, images).values()], list[str]()
        if class_name is not None:
            names = [known.names for data in files for known in data.classes.values()]
            _check_class(class_name, chain.from_iterable(names))
        groups = [_of_file(data, n, class_name, unreadable) for data in files]
    if not any(group.images for group in groups):
        which = "" if class_name is None else f" with {class_name!r}"
        raise DataError(f"{printable(target)}: no image{which} to show", *unreadable[:REASONS])
    save_image(_sheet(groups, n), path, quality=90)
    return Sheet(str(out), {one.title: len(one.images) for one in groups}, unreadable)


def _checked(out: Path) -> Path:
    if out.suffix not in SUFFIXES:
        raise ArgumentError(f"--out: got {printable(out)}; expected the suffix .jpg or .png")
    if out.exists() or out.is_symlink():
        raise ArgumentError(f"--out: {printable(out)} already exists; name a new file")
    if not out.absolute().parent.is_dir():
        raise ArgumentError(f"--out: the folder of {printable(out)} does not exist")
    return out


def _of_config(
    config: Config, n: int, class_name: str | None, *, augmented: bool
) -> tuple[list[Group], list[str]]:
    has_training = any(spec.train for spec in config.data.values())
    if augmented and not has_training:
        raise ArgumentError("--augmented: the config has no training data")
    split = "train" if has_training else "val"
    reused = reused_classes(config, load_init_from(config))
    sources = build_sources(config, splits_read(config) if augmented else (split,), reused)
    classes = {**head_classes(config, sources), **reused}
    groups, unreadable = [], list[str]()
    known: dict[str, tuple[str, ...]] = {}
    chosen = [source for source in sources if getattr(source, split) is not None]
    for source in chosen:
        for name in source.feeds:
            if head_class(config, name).class_key:
                known[name] = classes[name].names
    if class_name is not None:
        _check_class(class_name, chain.from_iterable(known.values()))
    for source in chosen:
        heads = {name: head_class(config, name) for name in source.feeds}
        key = split_key(source.name, split)
        names = {h.class_key: classes[k].names for k, h in heads.items() if h.class_key}
        if class_name is not None and not any(class_name in found for found in names.values()):
            continue
        if augmented:
            title = f"{key}, as training sees it from step 0 on (seed {config.train.seed})"
            found = _augmented(source, config.train.seed, n, class_name, names)
        else:
            title = f"{key}, as stored"
            found = _stored(getattr(source, split), n, class_name, names, unreadable)
        captions = _captions(getattr(source, split))
        group = Group(title, [], [])
        for image, target in found:
            group.images.append(draw_for_heads(image, target, heads, classes))
            group.captions.append(captions(target))
        groups.append(group)
    return groups, unreadable


Names = Mapping[str, Sequence[str]]  # of classes, by class_key
Drawn = Iterator[tuple[Any, Target]]  # an image (3, h, w) and its labels


def first_batches(source: Source, seed: int) -> Iterator[Batch]:
    """The batches of a source that training with that seed begins with: those of one epoch."""
    with closing(source.train_batches(seed=seed, start=0, workers=0)) as batches:
        for _ in range(source.steps_per_epoch):
            yield next(batches)


def _augmented(source: Source, seed: int, n: int, class_name: str | None, names: Names) -> Drawn:
    count = 0
    for batch in first_batches(source, seed):
        for image, target in zip(batch.images, batch.targets, strict=True):
            if count < n and (class_name is None or _has(target, class_name, names)):
                count += 1
                yield image, target
        if count == n:
            return


def _stored(
    dataset: Any, n: int, class_name: str | None, names: Names, unreadable: list[str]
) -> Drawn:
    """The first images without change; those that cannot be read are added to `unreadable`."""
    count, absent = 0, getattr(dataset, "absent", {})
    for index in _candidates(dataset, class_name):
        if count == n:
            return
        try:
            if index in absent:
                raise DataError(absent[index])
            sample = read_sample(dataset, index)
            target = sample.target()
        except DataError as error:
            unreadable.append(str(error))
            continue
        if class_name is None or _has(target, class_name, names):
            count += 1
            yield sample.image, target


def _of_file(data: LabeledFile, n: int, class_name: str | None, unreadable: list[str]) -> Group:
    if not data.has_images:
        raise DataError(
            f"{printable(data.source)}: its images are not found near it; name their folder with "
            "--images DIR"
        )
    names = {key: classes.names for key, classes in data.classes.items()}
    group, captions = Group(data.source, [], []), _captions(data)
    for image, target in _stored(data, n, class_name, names, unreadable):
        group.images.append(draw_target(image, target, names))
        group.captions.append(captions(target))
    return group


def _check_class(name: str, known: Any) -> None:
    found = [*dict.fromkeys(known)]
    if name not in found:
        raise ArgumentError(unknown(name, found, f"--class: unknown class {name!r}"))


def _has(target: Target, name: str, names: Names) -> bool:
    """Whether an image has objects, pixels or an attribute of that class, or is of it."""
    for key, known in names.items():
        if name not in known or key not in target:
            continue
        label, values = [*known].index(name), as_numpy(target[key])  # type: ignore[literal-required]  # a class_key
        if key == "attributes" or (key == "class_id" and values.ndim):
            if (values[..., label] > 0).any():
                return True
        elif (values == label).any():
            return True
    return False


def _candidates(dataset: Any, class_name: str | None) -> Sequence[int]:
    """The indices of the images that may have that class: reading all would take long."""
    inner = original(dataset)
    if class_name is not None and isinstance(inner, Annotations):
        names = inner.classes["labels"].names if "labels" in inner.classes else ()
        others = [known for key, known in inner.classes.items() if key != "labels"]
        if class_name in names and not any(class_name in one.names for one in others):
            chosen = inner.selected
            image = np.repeat(np.arange(len(inner)), np.diff(chosen.starts))
            return np.unique(image[chosen.labels == names.index(class_name)]).tolist()
    if isinstance(inner, ImageFolder | Idx) and "class_id" in inner.classes:
        names = inner.classes["class_id"].names
        if class_name in names:
            return np.flatnonzero(inner.identities == names.index(class_name)).tolist()
    return range(len(dataset))


def _captions(dataset: Any) -> Any:
    """The name of the image of a target."""
    inner = original(dataset)
    ids = getattr(inner, "image_ids", None)
    places = None if ids is None else {id_: place for place, id_ in enumerate(ids)}

    def caption(target: Target) -> str:
        id_ = target["image_id"]
        place = id_ if places is None else places.get(id_)
        if place is not None and hasattr(inner, "image_path"):
            return printable(inner.image_path(place).name)
        return f"image {id_}"

    return caption


def _sheet(groups: Sequence[Group], n: int) -> Image.Image:
    """The images of each group below its title, each with its name."""
    total = max(1, sum(len(one.images) for one in groups))
    cell = max(SMALLEST_CELL, min(CELL, int(math.sqrt(LARGEST / total))))
    font = ImageFont.load_default(size=TITLE // 2)
    strips = []
    for group in groups:
        columns = math.ceil(math.sqrt(min(n, max(1, len(group.images)))))
        pairs = zip(group.images, group.captions, strict=True)
        named = [_captioned(image, text, cell) for image, text in pairs]
        strips.append((group.title, contact_sheet(named, columns, cell + CAPTION)))
    width = max(600, *(sheet.width for _, sheet in strips))
    height = sum(sheet.height + TITLE for _, sheet in strips)
    whole, top = Image.new("RGB", (width, height), "white"), 0
    pen = ImageDraw.Draw(whole)
    for title, sheet in strips:
        pen.text((8, top + TITLE // 4), printable(title), fill="black", font=font)
        whole.paste(sheet, (0, top + TITLE))
        top += sheet.height + TITLE
    return whole


def _captioned(image: Image.Image, text: str, cell: int) -> Image.Image:
    """The image at the size of a cell, above its name."""
    image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    font = ImageFont.load_default(size=CAPTION * 0.6)
    while text and font.getlength(text) > image.width:
        text = text[1:]  # the end of a name differs most
    whole = Image.new("RGB", (image.width, image.height + CAPTION), "white")
    whole.paste(image, (0, 0))
    ImageDraw.Draw(whole).text((0, image.height + 3), text, fill="black", font=font)
    return whole
