"""The kinds of faults that data can have: what each is called, and what is done about it.

docs/check.md shows this table; a test keeps the two alike.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
Action = Literal["error", "drop", "fix", "keep"]


class Kind(NamedTuple):
    """`default` is what is done where `on_fault` says nothing. Texts of `fix`, `drop` and `keep`
    tell what these mean; without any of them a kind has no policy."""

    title: str  # behind a number: "3 boxes without extent"
    severity: Severity  # unless it is an error by policy
    remedy: str
    default: Action = "error"
    fix: str = ""
    drop: str = ""
    keep: str = ""
    slow: bool = False  # looked for by `visionkit check` alone

    @property
    def choices(self) -> list[str]:
        """What `on_fault` may say of it."""
        given = {"keep": self.keep, "fix": self.fix, "drop": self.drop}
        chosen = [action for action, text in given.items() if text]
        return [*chosen, "error"] if chosen else []


_LEFT = "the object is not trained on"

FINDING_KINDS: dict[str, Kind] = {
    # Structure: always an error.
    "config": Kind("faults of the config", "error", "correct the config"),
    "weights": Kind("unusable files of weights", "error", "name another file"),
    "file": Kind("files that cannot be read", "error", "replace the file"),
    "classes": Kind(
        "class lists that do not agree", "error", "name the same classes, or pick by `classes`"
    ),
    "value": Kind("missing or wrong values", "error", "correct the value"),
    "repeated": Kind("ids or names given twice", "error", "make them unique"),
    "unknown-category": Kind(
        "objects of unknown categories", "error", "remove it or add the category"
    ),
    "coordinate-range": Kind(
        "coordinates not finite or far away",
        "error",
        "must be finite, and not farther from the image than ten times its size",
    ),
    "path": Kind("unsafe file names", "error", "must name a file below the folder of images"),
    "missing-file": Kind("missing files", "error", "add the file or remove its record"),
    "class-map": Kind("wrong class maps", "error", "correct the map", slow=True),
    "nothing-to-learn": Kind("data sets without objects", "error", "annotate some objects"),
    # Quality, by policy.
    "unknown-image": Kind(
        "objects of unknown images",
        "warning",
        "remove it or add the image",
        drop="the object is left out, in evaluation too: pycocotools does not see it either",
    ),
    "negative-area": Kind(
        "negative areas",
        "warning",
        "must be at least 0, or left out",
        "fix",
        fix="computed from the mask, or the box if there is none, in evaluation too",
    ),
    "bad-mask": Kind(
        "malformed segmentations",
        "warning",
        "outline it again, or set the data set's `on_fault: {bad-mask: fix}`",
        fix="the object stays; its mask counts as not known, and where masks are scored its box "
        "is a region to ignore",
        drop=f"{_LEFT}; where masks are scored its box is a region to ignore",
    ),
    "empty-box": Kind(
        "boxes without extent", "warning", "width and height must be above 0", "drop", drop=_LEFT
    ),
    "outside-box": Kind(
        "boxes outside their image", "warning", "correct or remove it", "drop", drop=_LEFT
    ),
    "overhanging-box": Kind(
        "boxes reaching more than a pixel out of their image",
        "warning",
        "end it at the image's border",
        "fix",
        fix="clipped to the image",
        drop=_LEFT,
    ),
    "crowd-value": Kind(
        'iscrowd that is true, false, "0" or "1"',
        "warning",
        "write 0 or 1",
        "fix",
        fix="taken for 0 or 1, in evaluation too",
    ),
    "missing-area": Kind(
        "objects without an area",
        "note",
        "write the mask's area, or the box's",
        "fix",
        fix="computed from the mask, or the box if there is none, in evaluation too",
    ),
    "missing-mask": Kind(
        "objects without a segmentation among others",
        "warning",
        "outline it, or set the data set's `masks: false`",
        "fix",
        fix="the object gets an empty mask, which counts as not known; where masks are scored its "
        "box is a region to ignore",
        drop=_LEFT,
    ),
    "duplicate-box": Kind(
        "exact duplicates of boxes",
        "warning",
        "remove all but one",
        "keep",
        keep="all are used",
        drop="the first stays; the others are not trained on",
    ),
    "duplicate-id": Kind(
        "annotation ids given twice",
        "warning",
        "number the annotations again",
        "fix",
        fix="numbered again inside; visionkit depends on no annotation's id",
    ),
    "duplicate-name": Kind(
        "images with several image records",
        "warning",
        "keep one record of the image, with all its objects",
        "keep",
        keep="each record is an image of its own",
    ),
    # Left out because the data set's arguments ask for it.
    "other-class": Kind(
        "objects of other classes", "note", "`other_classes: ignore` asks for it", "drop"
    ),
    "small-object": Kind("objects smaller than min_size", "note", "lower min_size", "drop"),
    "unlabeled-class": Kind(
        "objects of classes not labeled here", "note", "`labeled_classes` asks for it", "drop"
    ),
    "other-file": Kind(
        "files that are no images by their name", "note", "convert them if they are", "drop"
    ),
    # Quality, only told.
    "xyxy-boxes": Kind(
        "data sets whose boxes look like corners",
        "warning",
        "boxes are [x, y, width, height], not [x1, y1, x2, y2]",
        "keep",
    ),
    "tiny-box": Kind(
        "boxes narrower or lower than a pixel",
        "note",
        "correct it; an object smaller than a pixel for the network is not trained on",
        "keep",
    ),
    "wrong-area": Kind(
        "areas more than a tenth off their mask, or larger than their box",
        "warning",
        "write the mask's area; evaluation uses the file's, as pycocotools does",
        "keep",
    ),
    "empty-mask": Kind(
        "outlines without an area",
        "warning",
        "outline it again; it counts as not known",
        "keep",
        slow=True,
    ),
    "mask-box-mismatch": Kind(
        "masks elsewhere than their box (IoU of bounds below 0.5)",
        "warning",
        "correct the box or the mask",
        "keep",
        slow=True,
    ),
    "all-crowd": Kind(
        "data sets of nothing but crowd regions",
        "warning",
        "crowd regions are neither trained on nor scored: annotate single objects",
        "keep",
    ),
    "unused-class": Kind(
        "classes without any object or image", "warning", "add some, or remove the class", "keep"
    ),
    "rare-class": Kind(
        "classes of fewer than 10 objects or images", "note", "add some", "keep"
    ),
    "no-annotations": Kind(
        "images without objects", "note", "right if they show none: it is background", "keep"
    ),
    "unlabeled-map": Kind(
        "class maps without any labeled pixel", "warning", "label some, or remove it", "keep",
        slow=True,
    ),
    "class-name-case": Kind(
        "groups of class names that differ in case alone",
        "warning",
        "merge them if they are one",
        "keep",
    ),
    "singleton-identity": Kind(
        "identities with a single image",
        "warning",
        "add a second one: alone it has no partner and is left out",
        "keep",
    ),
    "few-identities": Kind(
        "batches with more places than identities",
        "warning",
        "lower batch_size or raise images_per_identity: identities come several times in a batch",
        "keep",
    ),
    "no-object": Kind(
        "images without the object to localize", "warning", "it is left out of the loss", "keep"
    ),
    "many-objects": Kind(
        "images with several objects to localize", "note", "the largest counts", "keep"
    ),
    # Training against validation data.
    "same-data": Kind(
        "validation sets that are the training set", "warning", "validate on other data", "keep"
    ),
    "train-val-overlap": Kind(
        "images in training and validation data",
        "warning",
        "remove it from one of them: figures on it say little",
        "keep",
    ),
    "same-content": Kind(
        "images in training and validation data under two names",
        "warning",
        "remove one of the two: figures on it say little",
        "keep",
        slow=True,
    ),
    "untrained-class": Kind(
        "classes that validation data have and training data have not",
        "warning",
        "add training data of it: nothing can be learned about it",
        "keep",
    ),
}  # fmt: skip

IMAGES = {  # what a look at each image finds, see `image_check`
    "image-missing": "images that are not there",
    "image-damaged": "damaged images",
    "image-size": "images of another size than annotated",
    "image-alpha": "images whose alpha is dropped",
    "image-bits": "images whose 16 bits are scaled to 8",
    "image-frames": "animations of which the first image counts",
    "image-exif": "images with an EXIF orientation",
    "image-suffix": "images of another format than their name says",
}


def title(kind: str) -> str:
    """What a kind is called behind a number."""
    if kind in FINDING_KINDS:
        return FINDING_KINDS[kind].title
    return IMAGES.get(kind, f"unusable images ({kind.removeprefix('image-')})")


Policies = Mapping[str, Action]


def policies(on_fault: Mapping[str, str] | None) -> dict[str, Action]:
    """What is done about each kind that has a policy. ValueError if `on_fault` says anything else
    than `FINDING_KINDS` allows."""
    chosen = {name: kind.default for name, kind in FINDING_KINDS.items() if kind.choices}
    for name, action in (on_fault or {}).items():
        if name not in chosen:
            near = difflib.get_close_matches(name, chosen, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(chosen)}"
            raise ValueError(f"on_fault: {name!r} is no kind of fault with a choice; {hint}")
        if action not in FINDING_KINDS[name].choices:
            raise ValueError(
                f"on_fault: {name}: {action!r}; expected {' or '.join(FINDING_KINDS[name].choices)}"
            )
        chosen[name] = action
    return chosen
