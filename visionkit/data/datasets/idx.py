"""Images and labels in IDX files, the format of MNIST, plain or gzip-compressed."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib

import numpy as np
import torch

from visionkit.config.schema import InputPath
from visionkit.data.checks.findings import (
    FindingCounts,
    check_classes,
    count_findings,
)
from visionkit.data.datasets.folder import kept_classes
from visionkit.data.files import diagnose
from visionkit.data.sample import Sample
from visionkit.errors import DataError, check_names, plural
from visionkit.runs.files import open_regular
from visionkit.types import Classes

_UNSIGNED_BYTE = 0x08
_MAX_BYTES = 2**33
_MAX_RATIO, _SMALL = 100, 2**26  # from that size on, more is a decompression bomb; MNIST has 5


class Idx:
    """Gray images of one size with their classes, from a file of images and a file of labels.

    Without `labels` there are no classes. For embeddings the class is also the image's identity.
    Raises DataError if a file is damaged or of another kind, or if the two do not match.

    classes: names in label order; by default the numbers from 0 to the highest label.
    only: the classes whose images are used; they become the class list, in this order, and their
        ids are the labels in the file.
    """

    def __init__(
        self,
        images: InputPath,
        labels: InputPath | None = None,
        *,
        classes: list[str] | None = None,
        only: list[str] | None = None,
    ):
        check_names(classes=classes, only=only)
        self.file = str(labels or images)
        self._images = _read(images, dims=3)  # (n, h, w) uint8
        self.keys: tuple[str, ...] = ()
        self.classes: dict[str, Classes] = {}
        self.identities = np.full(len(self._images), -1)  # (N,) int64
        self.image_ids = list(range(len(self._images)))  # the place of each image in the file
        if labels is None:
            if classes is not None or only is not None:
                raise DataError(f"{images}: classes and only need labels; give that file too")
            return

        found = _read(labels, dims=1)
        if not len(self._images) or len(self._images) != len(found):
            raise DataError(
                f"{images} has {plural(len(self._images), 'image')} and {labels} has "
                f"{plural(len(found), 'label')}: expected the same number, at least one"
            )
        highest = int(found.max())
        names = [str(number) for number in range(highest + 1)] if classes is None else classes
        check_classes(str(labels), names, names, missing_ok=False, unknown_ok=False)
        if highest >= len(names):
            raise DataError(
                f"{labels} has the label {highest}, but classes has {plural(len(names), 'name')}: "
                f"give {highest + 1}"
            )
        ids = list(range(len(names))) if only is None else kept_classes(str(labels), names, only)
        class_of = np.full(max(256, len(names)), -1, np.int64)  # of a byte
        class_of[ids] = np.arange(len(ids))
        class_ids = class_of[found]
        rows = np.flatnonzero(class_ids >= 0)
        self.keys = ("class_id", "identity")
        self.identities = class_ids[rows]
        self.classes = {"class_id": Classes(tuple(names[i] for i in ids), tuple(ids))}
        self.image_ids = rows.tolist()

    @property
    def fingerprint(self) -> str:
        """A hash of the images and labels that are used."""
        digest = hashlib.sha256(self._images[self.image_ids].data)
        digest.update(self.identities.data)
        return digest.hexdigest()

    def counts(self) -> FindingCounts:
        """The number of images of other classes."""
        others = len(self._images) - len(self)
        return {**count_findings(), "dropped": {"other-class": others} if others else {}}

    def class_counts(self) -> dict[str, np.ndarray]:
        """The number of images of each class."""
        if not self.keys:
            return {}
        size = len(self.classes["class_id"].names)
        return {"class_id": np.bincount(self.identities, minlength=size)}

    def occurrences(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By class_key, the images and their classes."""
        return {"class_id": (np.arange(len(self)), self.identities)} if self.keys else {}

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        row = self.image_ids[index]
        class_id = int(self.identities[index]) if self.keys else None
        image = torch.from_numpy(self._images[row]).repeat(3, 1, 1)
        size = (image.shape[1], image.shape[2])
        return Sample(image, row, orig_size=size, class_id=class_id, identity=class_id)


def _read(path: str, dims: int) -> np.ndarray:
    """The array of unsigned bytes with `dims` dimensions in an IDX file."""
    if os.path.isdir(path):
        raise DataError(
            f"IDX file {path} is a folder; give a file, or a folder of images as `root` instead of "
            "`images` (types ImageFolder, with a folder for each class, and Images)"
        )
    try:
        with open_regular(path) as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            magic = file.read(4)
            if len(magic) < 4:
                raise EOFError("no header")
            if magic != bytes([0, 0, _UNSIGNED_BYTE, dims]):
                raise DataError(
                    f"IDX file {path}: expected 0x000008{dims:02x} (bytes in "
                    f"{plural(dims, 'dimension')}) at its start, got 0x{magic.hex()}; are images "
                    "and labels swapped?"
                )
            shape = struct.unpack(f">{dims}I", file.read(4 * dims))
            size = math.prod(shape)
            packed = os.path.getsize(path)
            if size > _MAX_BYTES or (is_gzip and size > max(_SMALL, _MAX_RATIO * packed)):
                raise DataError(
                    f"IDX file {path} of {packed} bytes claims to hold {size}: too many"
                )
            data = bytearray(file.read(size))
            if len(data) < size or file.read(1):
                raise DataError(
                    f"IDX file {path}: expected {size} bytes ({'x'.join(map(str, shape))}) after "
                    f"its header, got {'more' if len(data) == size else len(data)}"
                )
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"IDX file {path} {diagnose(path)} [{error}]") from error
    return np.frombuffer(data, np.uint8).reshape(shape)
