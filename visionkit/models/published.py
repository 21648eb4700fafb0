"""Published weights by name: what there is, where its files are, and how they get here.

An entry is a member of one of torchvision's weight enums, or a repository of the Hugging Face Hub
(`HUB`). Of the first, names, addresses, checksums, sizes and metrics are those of the enum; nothing
is copied. Whole models are those for which visionkit ships a config of the same name; the others
are classifiers, whose layers a backbone uses.

    one = find("maskrcnn_resnet50_fpn_v2")  # or "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1"
    path = fetch(one)  # searched in `folders()`, else downloaded; compared to its SHA-256

`weights: NAME` of a config, `backbone.weights: NAME`, `visionkit.load(NAME)` and `visionkit
weights` are built on these two. Addresses `hf://` are those of files, see `runs.hub`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from torchvision import models
from torchvision.models import WeightsEnum, get_model_weights, list_models
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from visionkit.config.shipped import shipped_configs
from visionkit.errors import CheckpointError, ConfigError
from visionkit.runs import checkpoint, download, files, hub
from visionkit.runs.download import SETTING, without_login
from visionkit.runs.files import means_file

NO_CLASS = "N/A"  # the name of an output that was never trained
NEAREST = 3  # names in the answer to an unknown one
# The metrics that torchvision publishes, by their names here
METRICS = {
    "box_map": "box AP",
    "mask_map": "mask AP",
    "miou": "mIoU",
    "pixel_acc": "pixel accuracy",
    "acc@1": "top-1",
    "acc@5": "top-5",
}
# Models of the Hugging Face Hub by name: the box AP on COCO val2017 that their authors state
# (github.com/lyuwenyu/RT-DETR), and megabytes. License: Apache-2.0. The best comes first.
HUB_OWNER = "PekingU"
HUB = {
    "rtdetr_v2_r18vd": (48.1, 77.1),
    "rtdetr_v2_r34vd": (49.9, 120.1),
    "rtdetr_v2_r50vd": (53.4, 164.1),
    "rtdetr_v2_r101vd": (54.3, 293.0),
    "rtdetr_r18vd": (46.5, 77.1),
    "rtdetr_r34vd": (48.9, 120.1),
    "rtdetr_r50vd": (53.1, 164.1),
    "rtdetr_r101vd": (54.3, 293.0),
    "rtdetr_r18vd_coco_o365": (49.2, 77.1),
    "rtdetr_r50vd_coco_o365": (55.3, 164.1),
    "rtdetr_r101vd_coco_o365": (56.2, 293.0),
}


@dataclass(frozen=True)
class Published:
    """Weights that torchvision publishes, or that are in a repository of the Hugging Face Hub.

    name: torchvision's name of the model, such as `resnet50`; for a whole model that of its config.
    member: the member of the enum, such as `ResNet50_Weights.IMAGENET1K_V2`; or `hf://` and the
        repository.
    default: whether `name` alone means these weights.
    checksum: hex digits that begin the SHA-256 of the file, from its name; empty for the hub, whose
        package compares it itself.
    size: of the file, in megabytes (1024 * 1024 bytes).
    license: empty where torchvision states none.
    metrics: by name (see METRICS), in percent, on `dataset`.
    classes: the names of the outputs, in their order; `N/A` where an output is of no class.
    pixels: `mean` and `std` of the pixels that a classifier was trained with; empty for a model.
    """

    name: str
    member: str
    kind: Literal["model", "backbone"]
    default: bool
    url: str
    checksum: str
    size: float
    license: str
    dataset: str
    metrics: dict[str, float]
    classes: tuple[str, ...]
    pixels: dict[str, tuple[float, ...]]

    @property
    def on_hub(self) -> bool:
        return hub.is_hub(self.url)

    @property
    def file(self) -> str:
        """The name of its file; for the hub with the repository before it."""
        if self.on_hub:
            address = hub.parse(self.url)
            return f"{address.repo}/{address.file}"
        return Path(urlsplit(self.url).path).name

    def has_name(self, name: str) -> bool:
        return name == self.member or (self.default and name == self.name)


@cache
def entries() -> tuple[Published, ...]:
    """All published weights that load, whole models first, by name."""
    from visionkit.models.backbones.torchvision import NAMES  # which imports this module

    shipped = shipped_configs()
    whole = [n for m in (models.detection, models.segmentation) for n in list_models(m)]
    found = [
        _entry(name, weights, kind)
        for kind, names in (("model", [n for n in whole if n in shipped]), ("backbone", NAMES))
        for name in sorted(names)
        for weights in get_model_weights(name)
    ]
    first = next(number for number, one in enumerate(found) if one.kind == "backbone")
    return (
        *found[:first],
        *(_of_hub(name, *values) for name, values in HUB.items()),
        *found[first:],
    )


def _of_hub(name: str, box_ap: float, size: float) -> Published:
    return Published(
        name=name,
        member=f"hf://{HUB_OWNER}/{name}",
        kind="model",
        default=True,
        url=f"hf://{HUB_OWNER}/{name}",
        checksum="",
        size=size,
        license="Apache-2.0",
        dataset="COCO-val2017",
        metrics={"box AP": box_ap},
        classes=_names(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]),
        pixels={},
    )


def _names(categories: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.replace("__background__", "background") for name in categories)


def _entry(name: str, weights: WeightsEnum, kind: Any) -> Published:
    meta = weights.meta
    dataset, values = next(iter(meta.get("_metrics", {}).items()), ("", {}))
    file, used = Path(urlsplit(weights.url).path), weights.transforms()
    pixels = {key: tuple(getattr(used, key)) for key in ("mean", "std") if kind == "backbone"}
    return Published(
        name=name,
        member=str(weights),
        kind=kind,
        default=weights is get_model_weights(name).DEFAULT,
        url=weights.url,
        checksum=file.stem.rpartition("-")[2],
        size=meta.get("_file_size", 0.0),
        license=meta.get("license", ""),
        dataset=dataset,
        metrics={METRICS[key]: value for key, value in values.items() if key in METRICS},
        classes=_names(meta["categories"] or ()),
        pixels=pixels,
    )


def find(name: str, kind: str | None = None) -> Published:
    """The weights of that name, of a model or a member of an enum. ConfigError with the nearest
    names for an unknown one."""
    for one in entries():
        if kind in (None, one.kind) and one.has_name(name):
            return one
    if kind is not None and is_published(name):
        other = "a backbone: give it as backbone.weights" if kind == "model" else "a whole model"
        hint = "" if kind == "model" else ": give it as weights"
        raise ConfigError(f"{name!r} is of {other}{hint}")
    raise ConfigError(f"no weights are published as {name!r}; {nearest(name, kind)}")


def list_weights() -> tuple[Published, ...]:
    """All published weights that load, whole models first, by name; nothing is downloaded."""
    return entries()


def fetch_weights(name: str) -> Path:
    """The file of published weights, by the name of a model or of the weights: one at hand, or
    else downloaded. Its SHA-256 is checked.

    Raises ConfigError with the nearest names for an unknown one; CheckpointError if the file at
    hand is another, or if no download works, with why.
    """
    return fetch(find(name))


def is_published(name: str, kind: str | None = None) -> bool:
    return any(kind in (None, one.kind) and one.has_name(name) for one in entries())


def is_model_name(run: str | Path) -> bool:
    """Whether what should be a run or a checkpoint is the name of a published model instead; a path
    that exists wins. CheckpointError for another name, which is none of the three."""
    if isinstance(run, str) and hub.is_hub(run) and is_published(run, "model"):
        return True
    if not isinstance(run, str) or not run or means_file(run) or Path(run).exists():
        return False
    try:
        return bool(find(run, "model"))
    except ConfigError as error:
        if run in shipped_configs():
            raise CheckpointError(
                f"{run}: is a config without published weights, not a trained model; train it "
                f"(visionkit train {run}) and name its run, or choose from `visionkit weights list`"
            ) from error
        raise CheckpointError(
            f"{run}: not found; expected a run directory, a checkpoint file or the name of a "
            f"published model{checkpoint.nearest(run)}; {nearest(run, 'model')}"
        ) from error


def of_file(path: str | Path) -> Published | None:
    """The whole model whose file has that name, which has a part of its checksum, or whose address
    it is."""
    name = Path(path).name
    whole = [one for one in entries() if one.kind == "model"]
    return next((e for e in whole if e.file == name or e.has_name(str(path))), None)


def nearest(name: str, kind: str | None = None) -> str:
    """A clause with the published names that are most like an unknown one."""
    found = [one for one in entries() if kind in (None, one.kind)]
    names = {n.lower(): n for one in found for n in (one.name, one.member)}
    close = difflib.get_close_matches(name.lower(), names, n=NEAREST, cutoff=0.0)
    listed = ", ".join(names[one] for one in close)
    return f"nearest: {listed}; `visionkit weights list` shows all"


def folders() -> list[Path]:
    """Where files of weights are searched, in this order. ConfigError if VISIONKIT_WEIGHTS is
    neither a folder nor a URL."""
    given = os.environ.get(SETTING, "")
    own = [] if not given or download.is_url(given) else [Path(given)]
    for folder in own:
        if not folder.is_dir():
            raise ConfigError(f"{SETTING}: got {given!r}; expected a folder, or a URL of one")
    return [*own, hub_folder()]


def mirror() -> str:
    """The URL that VISIONKIT_WEIGHTS names, which is asked before torchvision's; or empty."""
    given = os.environ.get(SETTING, "")
    return given if download.is_url(given) else ""


def hub_folder() -> Path:
    """torch's own folder of downloaded weights, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def at_hand(one: Published) -> Path | None:
    """Its file, if it is in one of `folders()` or the cache of the hub; the content is not
    checked."""
    if one.on_hub:
        return hub.at_hand(one.url)
    return next((f / one.file for f in folders() if (f / one.file).is_file()), None)


def fetch(one: Published, *, instead: str = "") -> Path:
    """Its file, whose SHA-256 is right: one at hand, or else downloaded. `instead` is what its user
    can do without, for the error.

    Raises CheckpointError if the file at hand is another, or if no download works, with why.
    """
    if one.on_hub:
        return hub.fetch(one.url)
    if path := at_hand(one):
        return _verified(one, path)
    target = hub_folder() / one.file
    if download.is_offline():
        raise CheckpointError(
            f"{one.member}: {one.file} is not at hand, and downloads are off (--offline or "
            f"{download.OFFLINE})",
            *_hints(one, instead),
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reasons = [f"{target.parent} cannot be made: {files.reason(error)}"]
        raise _failed(one, reasons, instead) from error
    with download.one_process(target.parent):
        if not target.is_file():  # another process may have fetched it meanwhile
            download.remove_strays(target)
            _download(one, target, instead)
    return _verified(one, target)


def _download(one: Published, target: Path, instead: str) -> None:
    """From the mirror, then from torchvision."""
    own = [f"{mirror().rstrip('/')}/{one.file}"] if mirror() else []
    reasons = []
    for url in (*own, one.url):
        try:
            return download.download(url, target, one.checksum, one.size)
        except CheckpointError as error:
            reasons.append(f"{without_login(url)}: {error}")
    raise _failed(one, reasons, instead)


def _failed(one: Published, reasons: list[str], instead: str) -> CheckpointError:
    text = f"{one.member}: {one.file} could not be downloaded"
    return CheckpointError(text, *(f"  {reason}" for reason in reasons), *_hints(one, instead))


def _hints(one: Published, instead: str) -> list[str]:
    """What to do without a download: lines of an error."""
    places = f"put it there, or into a folder that {SETTING} names"
    return [
        f"  searched: {', '.join(map(str, folders()))}",
        f"  fetch {one.url} elsewhere and {places}{instead and f', or {instead}'}",
    ]


def _verified(one: Published, path: Path) -> Path:
    try:
        found = download.sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {files.reason(error)}") from error
    if not found.startswith(one.checksum):
        raise CheckpointError(
            f"{one.member}: {path} is damaged (its SHA-256 begins with "
            f"{found[: len(one.checksum)]}, expected {one.checksum}); delete it to download it "
            "again"
        )
    return path
