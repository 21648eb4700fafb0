"""`from: DIR` of a source: the datasets of a folder whose format is recognized."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from visionkit.config.components import recognized, resolve
from visionkit.config.schema import ConfigProblems, mismatch
from visionkit.config.yaml import Key
from visionkit.errors import ConfigError, DataError, listed, printable

log = logging.getLogger("visionkit")

HOLDOUT = 0.2  # of the images, where there is no part to validate with


def with_folders(long: dict[str, Any], problems: ConfigProblems) -> dict[str, Any]:
    """The long form with `train` and `val` instead of `from` in each source. Raises ConfigError
    for a folder that is not recognized, or that cannot feed the heads of its source."""
    data, heads = long.get("data"), long.get("heads")
    if not isinstance(data, dict) or not isinstance(heads, dict):
        return long
    if "from" in data:
        names = [name for name in data if name not in ("from", "workers")]
        what = "names one folder, but there are several sources: give one of them its folder, "
        problems.add(("data", "from"), f"{what}for example data.{names[0] if names else 'a'}.from")
        problems.raise_found()
    grown = {
        name: _expanded(source, heads, ("data", name), problems)
        if isinstance(source, dict) and "from" in source
        else source
        for name, source in data.items()
    }
    return {**long, "data": grown}


def _expanded(
    source: dict[str, Any], heads: Mapping[str, Any], key: Key, problems: ConfigProblems
) -> dict[str, Any]:
    rest = {name: value for name, value in source.items() if name != "from"}
    folder, key = source["from"], (*key, "from")
    if folder is None:
        return rest
    if not isinstance(folder, str):
        problems.add(key, mismatch(folder, str))
        problems.raise_found()
    if both := [split for split in ("train", "val") if rest.get(split) is not None]:
        what = f"is one folder for training and validation, but {both[0]!r} is given too"
        problems.add(key, f"{what}; give `from`, or `train` and `val` (data.from=null)")
        problems.raise_found()
    try:
        found = recognized(folder)
        needed = _needed(source.get("feeds"), heads)
        train, val = _suited(found, needed)
    except DataError as error:
        problems.add(key, error)
        problems.raise_found()
    log.info("data: %s is taken for %s", folder, found.words)
    if val is not None:
        return {**rest, "train": train, "val": val}
    rest.setdefault("holdout", HOLDOUT)
    if rest["holdout"] is not None:
        log.info(
            "data: %s has no part for validation: %s of its training images validate "
            "(data.holdout)",
            folder,
            rest["holdout"],
        )
    return {**rest, "train": train}


def _needed(feeds: Any, heads: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """By fed head, the target keys that it needs; heads that are wrong are reported elsewhere."""
    needed = {}
    for name in feeds if isinstance(feeds, list) else ():
        spec = heads.get(name) if isinstance(name, str) else None
        try:
            cls = resolve("heads", spec.get("type") if isinstance(spec, dict) else None)
        except ConfigError:
            continue
        needed[name] = tuple(cls.required_targets)
    return needed


def _suited(
    found: Any, needed: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The datasets to train on and to validate with, if there is one. DataError if the data lack
    what a head needs."""
    for head, keys in needed.items():
        if missing := [key for key in keys if key not in found.gives]:
            given = f"it gives {listed(found.gives)}" if found.gives else "it has no labels"
            raise DataError(
                f"{printable(found.words)} cannot feed head {head!r}, which needs "
                f"{listed(missing)}: {given}; {found.fits}"
            )
    train = found.parts.get("train") or found.parts.get("all")
    if train is None:
        raise DataError(
            f"{found.words} has no part to train on: give data.train and data.val, for example "
            f"data.train={next(iter(found.parts.values()))}"
        )
    paints = "masks" in found.gives and any("semantic" in keys for keys in needed.values())
    more = {"semantic": "paint"} if paints else {}
    val = found.parts.get("val")
    return {**train, **more}, None if val is None else {**val, **more}
