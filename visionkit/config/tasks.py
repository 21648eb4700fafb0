"""The short form of a config, one `task:`, and how it becomes the long form.

A new task is one more entry of TASKS.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from visionkit.config.components import head_base, resolve
from visionkit.config.renamed import ELSEWHERE, renamed_key
from visionkit.config.schema import ConfigProblems
from visionkit.errors import ConfigError, unknown

SECTIONS = (
    *("version", "base", "name", "backbone", "neck", "data", "train"),
    *("weights", "partial_weights", "rename", "init_from", "output"),
)
SOURCE = "main"  # name of the only source of a short form


@dataclass(frozen=True)
class Task:
    """The defaults of a short form: types of components."""

    head: str
    dataset: str
    neck: str | None = None
    backbone: str = "Torchvision"
    images_per_identity: int | None = None


TASKS = {
    "classification": Task("Classification", "ImageFolder"),
    "localization": Task("Localization", "Coco"),
    "detection": Task("FasterRCNN", "Coco", neck="FPN"),
    "instance_segmentation": Task("MaskRCNN", "Coco", neck="FPN"),
    "semantic_segmentation": Task("SemanticFPN", "LabelMaps", neck="FPN"),
    "embedding": Task("Embedding", "ImageFolder", images_per_identity=4),
    "autoencoder": Task("Autoencoder", "Images"),
}


def to_long_form(config: dict[str, Any], problems: ConfigProblems) -> dict[str, Any]:
    """The same config with `heads:` and named sources.

    If the task is unknown, `heads` and `data` are missing from the result.
    """
    if "heads" in config and "task" in config:
        at = problems.place(("task",))
        problems.add(
            ("heads",), f"conflicts with 'task' ({at}), which is one head; give one of them"
        )
        problems.raise_found()
    is_long = "heads" in config
    valid = (*SECTIONS, "heads") if is_long else (*SECTIONS, "task", "head")
    for key in config:
        if key not in valid:
            renamed = renamed_key(key, {*valid} - {"name"})  # not that of a backbone
            problems.add((str(key),), renamed or unknown(key, valid, meant=ELSEWHERE.get(key)))
    long = {key: config[key] for key in config if key in SECTIONS}
    if is_long:
        return {**long, "heads": config["heads"]}

    name = config.get("task")
    task = TASKS.get(name) if isinstance(name, str) else None
    if "task" not in config:
        problems.add((), f"missing 'task' ({', '.join(TASKS)}) or, for several heads, 'heads'")
    elif task is None:
        problems.add(("task",), unknown(name, TASKS, f"unknown task {name!r}"))
    if task is None or not isinstance(name, str):
        long.pop("data", None)
        return {**long, "backbone": _with_type(config.get("backbone"), Task.backbone)}
    problems.renamed(("heads", name), ("head",))
    problems.renamed(("data", SOURCE), ("data",))
    if "init_from" not in config:
        long["backbone"] = _with_type(config.get("backbone"), task.backbone)
        if "neck" in config or task.neck:
            given = config.get("neck", {})  # `neck: null` means no neck
            if isinstance(given, dict) and task.neck:
                given = _with_type(given, task.neck)
            long["neck"] = given
    head = _with_type(config.get("head"), task.head)
    long["heads"] = {name: head}
    long["data"] = _long_data(config.get("data"), name, task, head)
    return long


def default_transforms(head_types: Iterable[Any]) -> list[dict[str, Any]]:
    """The transforms that suit all of these heads, as their classes say."""
    suited = [_transforms_of(head_type) or () for head_type in head_types]
    shared = [name for name in suited[0] if all(name in o for o in suited)] if suited else []
    return [{"type": name} for name in shared]


def _transforms_of(head_type: Any) -> tuple[str, ...] | None:
    """The `default_transforms` of a head's class; None if neither it nor a base sets them."""
    try:
        cls = resolve("heads", head_type)
    except ConfigError:  # which the check of the head reports
        return None
    own = [base for base in cls.__mro__ if base is not head_base()]
    is_set = any("default_transforms" in vars(base) for base in own)
    return cls.default_transforms if is_set else None


def _long_data(given: Any, name: str, task: Task, head: Any) -> Any:
    if not isinstance(given, dict | None):
        return given
    source = {"feeds": [name], **(given or {})}
    workers = {"workers": source.pop("workers")} if "workers" in source else {}
    for split in ("train", "val"):
        if source.get(split) is not None:
            source[split] = _with_type(source[split], task.dataset)
    if task.images_per_identity:
        source.setdefault("images_per_identity", task.images_per_identity)
    if source.get("transforms") is None:
        own = head["type"] if isinstance(head, dict) else None
        suited = task.head if _transforms_of(own) is None else own
        source["transforms"] = default_transforms([suited])
    return {**workers, SOURCE: source}


def _with_type(section: Any, default: str) -> Any:
    if section is None:
        return {"type": default}
    return {"type": default, **section} if isinstance(section, dict) else section
