"""The kinds of findings about data: title, severity, hint, and what is done about each.

docs/guide/data-checks.md shows this table; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from visionkit.errors import unknown

Severity = Literal["error", "warning", "note"]
Action = Literal["error", "drop", "fix", "keep"]


class FindingKind(NamedTuple):
    """`fix`, `drop` and `keep` describe the actions that `on_fault` may choose for this kind;
    a kind without any of them always has its default action."""

    title: str  # follows a count: "3 boxes without area"
    severity: Severity  # unless the action is "error"
    hint: str
    default: Action = "error"
    fix: str = ""
    drop: str = ""
    keep: str = ""
    slow: bool = False  # only `visionkit check` looks for it

    @property
    def choices(self) -> list[str]:
        """The actions that `on_fault` may choose."""
        described = {"keep": self.keep, "fix": self.fix, "drop": self.drop}
        chosen = [action for action, text in described.items() if text]
        return [*chosen, "error"] if chosen else []


_STRUCTURE = {  # always an error: title, hint
    "config": ("errors of the config", "correct the config"),
    "contract": ("custom classes that break their contract", "correct the class"),
    "weights": ("unusable files of weights", "name another file"),
    "file": ("unreadable files", "replace the file"),
    "classes": ("class lists that do not agree", "name the same classes, or select by `classes`"),
    "value": ("missing or wrong values", "correct the value"),
    "repeated": ("ids or names given twice", "make them unique"),
    "unknown-category": (
        "objects of unknown categories",
        "add the category or remove the annotation",
    ),
    "coordinate-range": (
        "coordinates not finite or far outside the image",
        "coordinates must be finite and within 10x the image size",
    ),
    "relative-boxes": (
        "datasets whose boxes or masks are parts of their image",
        "write pixels: multiply x and width by the width of the image, y and height by its height",
    ),
    "path": ("unsafe file names", "name a file below the folder of images"),
    "missing-file": ("missing files", "add the file or remove its record"),
    "class-map": ("invalid semantic maps", "correct the map"),
    "nothing-to-learn": ("datasets without objects", "annotate some objects"),
}

_UNUSED = "the object is not used in training"
_UNSCORED = f"{_UNUSED}, and not scored"
_IGNORED = "where masks are scored its box is an ignore region"
_COMPUTED = "computed from the mask, or the box if there is none, in evaluation too"
_QUALITY = {  # by policy: `on_fault` of the dataset
    "unknown-image": FindingKind(
        "objects of unknown images",
        "warning",
        "add the image or remove the annotation",
        drop="the object is dropped, in evaluation too: pycocotools does not see it either",
    ),
    "negative-area": FindingKind(
        "negative areas", "warning", "an area must be at least 0 or absent", "fix", fix=_COMPUTED
    ),
    "bad-mask": FindingKind(
        "malformed segmentations",
        "warning",
        "re-annotate it, or set on_fault: {bad-mask: fix} on the dataset",
        fix=f"the object stays; its mask counts as unknown, and {_IGNORED}",
        drop=f"{_UNUSED}; {_IGNORED}",
    ),
    "empty-box": FindingKind(
        "boxes without area", "warning", "width and height must be above 0", "drop", drop=_UNSCORED
    ),
    "outside-box": FindingKind(
        "boxes outside their image", "warning", "correct or remove it", "drop", drop=_UNSCORED
    ),
    "overhanging-box": FindingKind(
        "boxes reaching more than a pixel out of their image",
        "warning",
        "end it at the image's border",
        "fix",
        fix="clipped to the image",
        drop=_UNUSED,
    ),
    "crowd-value": FindingKind(
        'iscrowd that is true, false, "0" or "1"',
        "warning",
        "write 0 or 1",
        "fix",
        fix="read as 0 or 1, in evaluation too",
    ),
    "missing-box": FindingKind(
        "masks without a box",
        "note",
        "write the box of the mask",
        "fix",
        fix="the box is that of the mask, in evaluation too",
        drop=_UNUSED,
    ),
    "missing-area": FindingKind(
        "objects without an area",
        "note",
        "write the area of the mask or the box",
        "fix",
        fix=_COMPUTED,
    ),
    "missing-mask": FindingKind(
        "objects without a segmentation among others",
        "warning",
        "annotate it, or set masks: false on the dataset",
        "fix",
        fix=f"the object gets an empty mask, which counts as unknown; {_IGNORED}",
        drop=_UNUSED,
    ),
    "duplicate-box": FindingKind(
        "exact duplicates of boxes",
        "warning",
        "remove all but one",
        "keep",
        keep="all are used",
        drop="the first stays; the others are not used in training",
    ),
    "duplicate-id": FindingKind(
        "annotation ids given twice",
        "warning",
        "renumber the annotations",
        "fix",
        fix="renumbered internally; visionkit depends on no annotation id",
    ),
    "duplicate-name": FindingKind(
        "images with several image records",
        "warning",
        "keep one record of the image, with all its objects",
        "keep",
        keep="each record is an image of its own",
    ),
}

_DROPPED = {  # because the arguments of the dataset say so: title, hint
    "spare-category": (
        "categories without objects whose name another one has",
        "Roboflow writes such a root category",
    ),
    "other-class": ("objects of other classes", "`other_classes: ignore` drops them"),
    "small-object": ("objects smaller than min_size", "lower min_size"),
    "unlabeled-class": ("objects of classes not labeled here", "`labeled_classes` drops them"),
    "other-file": ("files that are not images by their name", "convert them if they are images"),
}

_ONE_SPLIT = "remove it from one split: metrics on images of the training set mean little"
_REPORTED = {  # never an error: title, hint
    "below-cell": (
        "datasets with objects smaller than a cell of a head or than one pixel",
        "use a larger image_size, or a neck with a finer level",
    ),
    "xyxy-boxes": (
        "datasets whose boxes look like corners",
        "boxes are [x, y, width, height], not [x1, y1, x2, y2]",
    ),
    "tiny-box": (
        "boxes with a side below one pixel",
        "correct it; an object below one pixel of the network's input is not used in training",
    ),
    "wrong-area": (
        "areas more than a tenth off their mask, or larger than their box",
        "write the mask's area; evaluation uses the file's, as pycocotools does",
    ),
    "empty-mask": ("masks without an area", "re-annotate it; it counts as unknown"),
    "mask-box-mismatch": (
        "masks elsewhere than their box (IoU of bounds below 0.5)",
        "correct the box or the mask",
    ),
    "ignore-region": (
        "datasets with objects marked as regions to ignore",
        "right if they are regions of many or of unclear objects",
    ),
    "unread-attribute": (
        "attributes that cannot be classes",
        "right if no head reads them; else see docs/tasks/attributes.md",
    ),
    "all-crowd": (
        "datasets of nothing but crowd regions",
        "annotate single objects: crowd regions are neither used in training nor scored",
    ),
    "unused-class": ("classes that never occur", "add some, or remove the class"),
    "single-class": (
        "datasets with a single class",
        "add other classes: where nothing can be confused, a perfect metric says nothing",
    ),
    "rare-class": ("classes of fewer than 10 objects or images", "add some"),
    "no-annotations": ("images without objects", "right if the image is background"),
    "unlabeled-map": (
        "semantic maps without any labeled pixel",
        "label some pixels, or remove the map",
    ),
    "class-name-case": (
        "groups of class names that differ in case alone",
        "merge them if they mean the same",
    ),
    "singleton-identity": (
        "identities with a single image",
        "add a second image: without a partner it is not used in training",
    ),
    "few-identities": (
        "batches with more places than identities",
        "lower batch_size or raise images_per_identity: a batch repeats identities",
    ),
    "no-object": ("images without the object to localize", "the loss ignores the image"),
    "many-objects": ("images with several objects to localize", "the largest is used"),
    "same-data": ("validation sets that are the training set", "validate on other data"),
    "train-val-overlap": ("images in training and validation data", _ONE_SPLIT),
    "same-content": ("images in training and validation data under two names", _ONE_SPLIT),
    "untrained-class": (
        "classes that validation data have and training data do not",
        "add training data of the class",
    ),
}
# The others are warnings.
_NOTES = {
    "tiny-box",
    "ignore-region",
    "unread-attribute",
    "rare-class",
    "no-annotations",
    "many-objects",
}
_SLOW = {"class-map", "empty-mask", "mask-box-mismatch", "unlabeled-map", "same-content"}

FINDING_KINDS: dict[str, FindingKind] = {
    **{name: FindingKind(title, "error", hint) for name, (title, hint) in _STRUCTURE.items()},
    **_QUALITY,
    **{name: FindingKind(title, "note", to, "drop") for name, (title, to) in _DROPPED.items()},
    **{
        name: FindingKind(title, "note" if name in _NOTES else "warning", to, "keep")
        for name, (title, to) in _REPORTED.items()
    },
}
FINDING_KINDS |= {name: FINDING_KINDS[name]._replace(slow=True) for name in _SLOW}

IMAGES = {  # kinds of `visionkit.data.checks.images`
    "image-missing": "missing images",
    "image-damaged": "corrupt images",
    "image-size": "images of another size than annotated",
    "image-alpha": "images whose alpha is dropped",
    "image-bits": "images whose 16 bits are scaled to 8",
    "image-range": "datasets whose 16-bit images use a part of the range",
    "image-bands": "images with a band that is not used",
    "image-format": "images of a format that cannot be read here",
    "image-frames": "animations of which the first frame is used",
    "image-exif": "images with an EXIF orientation",
    "image-suffix": "images of another format than their name says",
}


def title(kind: str) -> str:
    """The text that follows a count of findings of that kind."""
    if kind in FINDING_KINDS:
        return FINDING_KINDS[kind].title
    return IMAGES.get(kind, f"unusable images ({kind.removeprefix('image-')})")


def policies(on_fault: Mapping[str, str] | None) -> dict[str, Action]:
    """The action for each kind that has a choice. ValueError if `on_fault` names another kind or
    an action that its kind does not have."""
    chosen = {name: kind.default for name, kind in FINDING_KINDS.items() if kind.choices}
    for name, action in (on_fault or {}).items():
        if name not in chosen:
            raise ValueError(unknown(name, chosen, f"on_fault: {name!r} has no policy"))
        if action not in FINDING_KINDS[name].choices:
            expected = " or ".join(FINDING_KINDS[name].choices)
            raise ValueError(f"on_fault: {name}: expected {expected}, got {action!r}")
        chosen[name] = action  # type: ignore[assignment]  # one of the choices
    return chosen
