"""What an exported file says about its model: all that reading it takes, in one JSON object.

It stands under the key `visionkit` of the metadata of an ONNX file. Torch is not imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from visionkit.config.config import SourceConfig
from visionkit.config.schema import convert
from visionkit.data.resize import ImageSize
from visionkit.errors import CheckpointError, package_version, shorten, upgrade_hint
from visionkit.metrics.thresholds import Thresholds, saved_thresholds
from visionkit.types import Classes, Size

KEY = "visionkit"  # of the metadata of a file
FORMAT = 1
DECODES = ("full", "raw")
PRECISIONS = ("fp32", "fp16", "int8")
MULTIPLE = 32  # of the sides of an input
LARGEST_ID = 2**63 - 1  # of a class
# What a head with boxes has, and a head that describes them.
OF_OBJECTS = {"boxes", "scores", "labels", "count"}
OF_BOXES = {"attributes"}


@dataclass(frozen=True)
class HeadInfo:
    """One head of an exported model.

    type: the type of the config, such as `TaskAligned`.
    image_size: the rule of the config by which images are resized for it.
    outputs: the names of its outputs, without the prefix `<head>_`.
    boxes_from: the head whose boxes it describes.
    draw_threshold: the score from which its objects are drawn, where no better one is known.
    threshold: of a multi-label head, the probability from which a class counts as present.
    """

    type: str
    classes: Classes
    image_size: ImageSize
    outputs: tuple[str, ...]
    boxes_from: str | None = None
    draw_threshold: float = 0.5
    threshold: float | None = None


@dataclass(frozen=True)
class ModelInfo:
    """An exported model.

    config: the whole config of the run.
    decode: `full`: outputs are predictions; `raw`: they are what the heads' `forward` returns.
    precision: `fp32`, `fp16` or `int8`.
    checkpoint: SHA-256 of the file of the weights.
    size: the (h, w) of its input; None: any, both a multiple of `multiple`.
    batch: how many images its input has; None: any number.
    value_range: of the pixels of images of more than 8 bits.
    thresholds: found by the validation, by head.
    visionkit, torch: the versions that wrote it.
    """

    name: str
    heads: dict[str, HeadInfo]
    config: dict[str, Any]
    decode: str = "full"
    precision: str = "fp32"
    checkpoint: str | None = None
    size: Size | None = None
    batch: int | None = None
    multiple: int = MULTIPLE
    value_range: tuple[float, float] | None = None
    thresholds: dict[str, Thresholds] = field(default_factory=dict)
    visionkit: str = field(default_factory=package_version)
    torch: str | None = None

    def to_json(self) -> str:
        """The text under `KEY`."""
        heads = {
            name: {**vars(head), "classes": head.classes._asdict()}
            for name, head in self.heads.items()
        }
        own = ("size", "batch", "multiple", "value_range")
        record = {key: value for key, value in vars(self).items() if key not in own}
        record |= {"input": {key: getattr(self, key) for key in own}, "heads": heads}
        record["thresholds"] = {head: one.to_dict() for head, one in self.thresholds.items()}
        return json.dumps({"format": FORMAT, **record}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: object) -> ModelInfo:
        """The inverse of `to_json`. CheckpointError, which begins with the file `where`, for a text
        that is not of visionkit, is damaged, or is of a newer format."""
        try:
            record = json.loads(text)
            found = record["format"]
            if type(found) is not int or found < 1:
                raise ValueError(f"format: got {found!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(where, error) from error
        if found > FORMAT:
            raise CheckpointError(
                f"{where}: has format {found}, this visionkit reads up to {FORMAT}; run: "
                f"{upgrade_hint()}"
            )
        try:
            info = _read(record)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise _damaged(where, error) from error
        return info


def read_info(metadata: Mapping[str, str], where: object) -> ModelInfo:
    """The model of a file with that metadata. CheckpointError, which begins with the file `where`,
    if it is not of visionkit, is damaged, or is of a newer format."""
    if KEY not in metadata:
        raise CheckpointError(
            f"{where}: was not exported by visionkit: its metadata has no {KEY!r}; expected a file "
            "that `visionkit export` wrote"
        )
    return ModelInfo.from_json(metadata[KEY], where)


def _damaged(where: object, error: Exception) -> CheckpointError:
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return CheckpointError(
        f"{where}: its metadata {KEY!r} is damaged ({shorten(what, 100)}): export it again"
    )


def _read(record: dict[str, Any]) -> ModelInfo:
    """From parsed JSON; any of Python's errors for what does not fit."""
    given = record["input"]
    heads = {name: _read_head(name, one) for name, one in record["heads"].items()}
    if not heads:
        raise ValueError("heads: it has none")
    for name, head in heads.items():
        if head.boxes_from is not None and head.boxes_from not in heads:
            raise ValueError(f"{name}: boxes_from: unknown head {head.boxes_from!r}")
        if record["decode"] == "full" and (missing := _missing_outputs(head, heads)):
            raise ValueError(f"{name}: outputs: no {', '.join(sorted(missing))}")
    size, value_range = given["size"], given["value_range"]
    multiple = _whole(given["multiple"], "multiple")
    if multiple > MULTIPLE:  # no graph of this format needs more padding
        raise ValueError(f"multiple: got {multiple}; expected at most {MULTIPLE}")
    return ModelInfo(
        name=_text(record["name"], "name"),
        heads=heads,
        config=_mapping(record["config"], "config"),
        decode=_one_of(record["decode"], DECODES, "decode"),
        precision=_one_of(record["precision"], PRECISIONS, "precision"),
        checkpoint=_text_or_none(record["checkpoint"], "checkpoint"),
        size=None if size is None else _pair(size, "size", _whole),
        batch=None if given["batch"] is None else _whole(given["batch"], "batch"),
        multiple=multiple,
        value_range=None if value_range is None else _pair(value_range, "value_range", _number),
        thresholds=_read_thresholds(record["thresholds"]),
        visionkit=_text(record["visionkit"], "visionkit"),
        torch=_text_or_none(record["torch"], "torch"),
    )


def _missing_outputs(head: HeadInfo, heads: Mapping[str, HeadInfo]) -> set[str]:
    """Outputs without which predictions of a head cannot be read; those of a custom head may have
    any name."""
    own = {*head.outputs}
    if head.boxes_from is not None:
        return OF_BOXES - own | {"boxes", "scores", "count"} - {*heads[head.boxes_from].outputs}
    is_custom = "." in head.type
    if "boxes" in own and ("count" in own or not is_custom):
        return OF_OBJECTS - own
    return set() if own else {"output"}


def _read_head(name: str, record: dict[str, Any]) -> HeadInfo:
    names = tuple(_text(one, f"{name}: a class") for one in _list(record["classes"]["names"]))
    ids = tuple(_list(record["classes"]["ids"]))
    whole = all(type(one) is int and abs(one) <= LARGEST_ID for one in ids)
    if len(ids) != len(names) or not whole:
        raise ValueError(f"{name}: its classes are not names, each with an id")
    threshold = record["threshold"]
    annotation = get_type_hints(SourceConfig, include_extras=True)["image_size"]
    try:
        size = convert(record["image_size"], annotation)
    except ValueError as error:
        raise ValueError(f"{name}: image_size: got {record['image_size']!r}") from error
    outputs = tuple(_text(one, f"{name}: an output") for one in _list(record["outputs"]))
    return HeadInfo(
        type=_text(record["type"], f"{name}: type"),
        classes=Classes(names, ids),
        image_size=size,
        outputs=outputs,
        boxes_from=_text_or_none(record["boxes_from"], f"{name}: boxes_from"),
        draw_threshold=_number(record["draw_threshold"], f"{name}: draw_threshold"),
        threshold=None if threshold is None else _number(threshold, f"{name}: threshold"),
    )


def _read_thresholds(record: dict[str, Any]) -> dict[str, Thresholds]:
    """JSON has no keys that are numbers."""
    return saved_thresholds(
        {
            "thresholds": {
                head: {
                    "common": _number(one["common"], "thresholds"),
                    "classes": {k: _number(v, "thresholds") for k, v in one["classes"].items()},
                    "precision": {
                        name: {int(p): _number(v, "thresholds") for p, v in table.items()}
                        for name, table in one["precision"].items()
                    },
                }
                for head, one in record.items()
            }
        }
    )


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what}: got {value!r}; expected a text")
    return value


def _text_or_none(value: Any, what: str) -> str | None:
    return None if value is None else _text(value, what)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"got {value!r}; expected a list")
    return value


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: got {value!r}; expected an object")
    return value


def _one_of(value: Any, valid: tuple[str, ...], what: str) -> str:
    if value not in valid:
        raise ValueError(f"{what}: got {value!r}; expected one of {', '.join(valid)}")
    return value


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{what}: got {value!r}; expected an integer >= 1")
    return value


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{what}: got {value!r}; expected a finite number")
    return float(value)


def _pair(value: Any, what: str, check: Any) -> tuple[Any, Any]:
    first, second = (check(one, what) for one in value)
    return first, second
