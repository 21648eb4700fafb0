"""What `visionkit weights` prints: a list of what is published, files fetched and files checked."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from visionkit.config.shipped import shipped_configs
from visionkit.errors import CheckpointError, ConfigError, listed, plural
from visionkit.models import architectures, published
from visionkit.models.backbones.timm import timm_module
from visionkit.models.backbones.torchvision import NAMES
from visionkit.models.published import Published
from visionkit.models.weights import config_kind
from visionkit.runs import checkpoint, download, files, foreign, hub

HEADER = ("name", "config", "published", "MB", "at hand", "license")
UNSTATED = "not stated"  # instead of a license
NOTE = (
    "torchvision states no license for most of its weights; it says that they may have licenses or "
    "terms derived from the dataset that they were trained on"
)
OTHERS = (
    "others: backbone.type=EfficientNetLite0 (a Python package, Apache-2.0), backbone.type=Timm "
    "(visionkit weights list --timm), each with backbone.weights=default"
)
CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")  # in the name of a file


def show_list(args: argparse.Namespace) -> None:
    if args.timm:
        show_timm(args)
        return
    found = [one for one in published.entries() if _matches(args.pattern, one.name, one.member)]
    if args.pattern and not found:
        raise ConfigError(
            f"weights list: none match {args.pattern!r}; {published.nearest(args.pattern)}"
        )
    if args.json:
        print(files.to_json([record(one) for one in found]))
    else:
        print("\n".join([*_table(found), NOTE, OTHERS]))


def _matches(pattern: str | None, *names: str) -> bool:
    return pattern is None or any(pattern in n or fnmatch(n, pattern) for n in names)


def show_timm(args: argparse.Namespace) -> None:
    """Names and licenses as timm states them; it has no metrics and no sizes."""
    timm = timm_module()
    found = []
    for name in timm.list_pretrained():
        if _matches(args.pattern, name):
            trained = timm.get_pretrained_cfg(name)
            where = f"hf://{trained.hf_hub_id}" if trained.hf_hub_id else trained.url
            found.append({"name": name, "license": trained.license, "from": where})
    if args.json:
        print(files.to_json(found))
        return
    print("backbones: backbone.type=Timm backbone.name=NAME backbone.weights=default")
    rows = [(one["name"], one["license"] or UNSTATED, one["from"]) for one in found]
    print("\n".join(_columns([("name", "license", "from"), *rows])))


def record(one: Published) -> dict[str, Any]:
    """An entry as a dict for JSON; `file` is null unless it is at hand."""
    path = published.at_hand(one)
    return {
        "name": one.name if one.default else one.member,
        "weights": one.member,
        "kind": one.kind,
        "config": one.name if one.kind == "model" else None,
        "license": one.license or None,
        "dataset": one.dataset or None,
        "metrics": one.metrics,
        "size_mb": one.size,
        "url": one.url,
        "checksum": one.checksum,
        "file": None if path is None else str(path),
    }


def _table(found: Sequence[Published]) -> Iterator[str]:
    titles = {
        "model": "whole models: visionkit predict NAME, visionkit train NAME weights=coco",
        "backbone": "backbones: backbone.name=NAME backbone.weights=default, or the full name",
    }
    for kind, title in titles.items():
        rows = [_row(one) for one in found if one.kind == kind]
        if rows:
            yield title
            yield from _columns([HEADER, *rows])
            yield ""


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells).rstrip()}"


def _row(one: Published) -> tuple[str, ...]:
    main = {key: v for key, v in one.metrics.items() if key not in ("top-5", "pixel accuracy")}
    return (
        one.name if one.default else one.member,
        one.name if one.kind == "model" else "(a backbone)",
        ", ".join(f"{name} {value:.1f}" for name, value in main.items() if value == value),
        f"{one.size:.0f}",
        "yes" if published.at_hand(one) else "no",
        one.license or UNSTATED,
    )


def fetch(args: argparse.Namespace) -> None:
    # All names are checked before any download.
    found = [hub.parse(n) if hub.is_hub(n) else published.find(n) for n in args.names]
    for one in found:
        if isinstance(one, Published):
            print(f"{one.member}: {published.fetch(one)}", flush=True)
        else:
            print(f"{one}: {hub.fetch(str(one))}", flush=True)


def where(args: argparse.Namespace) -> None:
    folders, mirror = published.folders(), published.mirror()
    facts = {
        "folders": [str(folder) for folder in folders],
        "mirror": download.without_login(mirror) or None,
        "offline": download.is_offline(),
    }
    if args.json:
        print(files.to_json(facts))
        return
    print("searched for files of weights, in this order:")
    for folder in folders:
        state = "" if folder.is_dir() else " (not there yet)"
        print(f"  {folder}{state}")
    if mirror:
        print(f"downloaded from {facts['mirror']}, then from torchvision's address")
    print("downloads are off" if facts["offline"] else f"downloads go to {folders[-1]}")


def verify(args: argparse.Namespace) -> None:
    """CheckpointError, after the output, if the checksum is another than the published one, or if
    some values are not numbers."""
    facts = examine(hub.fetch(args.file) if hub.is_hub(args.file) else Path(args.file))
    if args.json:
        print(files.to_json(facts))
    else:
        print("\n".join(f"{key + ':':<14}{value}" for key, value in _words(facts)))
    if facts["checksum"] == "wrong":
        raise CheckpointError(
            f"{args.file}: is not the file that is published under this name: its SHA-256 begins "
            f"with {facts['sha256'][:8]}; delete it and fetch it again"
        )
    if bad := facts["not_finite"]:
        raise CheckpointError(
            f"{args.file}: has NaN or infinite values in {plural(len(bad), 'tensor')}: "
            f"{listed(bad)}; use a file from before that, such as an earlier checkpoint"
        )


def examine(path: Path) -> dict[str, Any]:
    """What a file of weights is: its kind, its architecture and what loads it, whether its values
    are finite, and whether its SHA-256 is the published one. CheckpointError for a file that has no
    weights."""
    state, content = checkpoint.load_state_dict(path)
    sha256 = download.sha256(path)
    named = CHECKSUM.search(path.name)
    known = [one for one in published.entries() if one.checksum]
    same = [one for one in known if sha256.startswith(one.checksum)]
    expected = [one for one in published.entries() if one.file == path.name]
    verdict = "unknown"
    if same or named:
        right = bool(same) or (named is not None and sha256.startswith(named[1]))
        verdict = "ok" if right else "wrong"
    is_run = checkpoint.is_run(content)
    one = next(iter(same or expected), None)
    like = [] if is_run else architectures.models_like(state)
    like = like or ([] if is_run else architectures.classifiers_like(state))
    if one is not None and one.name not in like:
        like = [*like, one.name]
    kind = foreign.content_kind(content)
    return {
        "file": str(path),
        "kind": f"{kind} of {config_kind(content['config'])}" if is_run else kind,
        "architecture": like,
        "config": [name for name in like if name in shipped_configs()],
        "load_with": _loaders(str(path), like, kind, is_run=is_run),
        "published_as": one.member if one else None,
        "checksum": verdict,
        "sha256": sha256,
        "tensors": len(state),
        "numbers": sum(tensor.numel() for tensor in state.values()),
        "not_finite": [name for name, tensor in state.items() if not checkpoint.is_finite(tensor)],
    }


def _loaders(path: str, like: Sequence[str], kind: str, *, is_run: bool) -> list[str]:
    """Commands and overrides that load the file."""
    if is_run:
        return [f"visionkit predict {path} IMAGES --out DIR", f"weights={path}"]
    shipped = [
        f"visionkit train {name} weights={path}" for name in like if name in shipped_configs()
    ]
    backbones = [
        f"backbone.type=Torchvision backbone.name={name} backbone.weights={path}"
        for name in like
        if name in NAMES
    ]
    if found := shipped + backbones:
        return found
    return [f"weights={path}"] if kind == foreign.VISIONKIT_MODEL else []


def _words(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", facts["file"]
    yield "looks like", facts["kind"]
    if facts["architecture"]:
        yield "architecture", " or ".join(facts["architecture"])
    unknown = "not known; as backbone.weights if it is of a classifier that is your backbone"
    yield "load it with", " or ".join(facts["load_with"]) or unknown
    yield "published as", facts["published_as"] or "nothing known"
    words = {
        "ok": "ok",
        "wrong": "WRONG: the file is damaged or another one",
        "unknown": "none is known for this file",
    }
    yield "checksum", words[facts["checksum"]]
    yield "SHA-256", facts["sha256"]
    yield "tensors", f"{plural(facts['tensors'], 'tensor')} with {facts['numbers']:,} numbers"
    bad = facts["not_finite"]
    yield "values", f"NaN or infinite in {plural(len(bad), 'tensor')}" if bad else "finite"
