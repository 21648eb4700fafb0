"""Typed decoding of plain COCO annotations by msgspec (extra `fast`); without it, importing fails.

Decoding fails on any annotation with another key, a missing one or a value of another type, which
the slower path of `reader` then reads and reports.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, MsgspecError, Struct, UnsetType
from msgspec.json import Decoder

from visionkit.data.coco.tables import LARGEST, LARGEST_AREA

Id = Annotated[int, Meta(ge=-LARGEST, le=LARGEST)]
Area = Annotated[float, Meta(gt=-LARGEST_AREA, lt=LARGEST_AREA)]


class Annotation(Struct, forbid_unknown_fields=True, gc=False):
    """One annotation with nothing but the keys of COCO."""

    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    id: Id | UnsetType = UNSET
    area: Area | UnsetType = UNSET
    iscrowd: Literal[0, 1] | UnsetType = UNSET
    segmentation: list[list[float]] | dict[str, Any] | UnsetType = UNSET


_DECODER = Decoder(list[Annotation])


def decode(text: bytes) -> list[Annotation] | None:
    """The annotations in the text of a list, or None."""
    try:
        return _DECODER.decode(b"[" + text + b"]")
    except (MsgspecError, UnicodeDecodeError, RecursionError):
        return None
