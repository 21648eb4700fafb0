"""Weights of a whole model from a file: a visionkit checkpoint, or a state_dict of visionkit,
torchvision or, of RT-DETR, transformers.

Rows of classes go by the names of the classes, whatever their order in the file. All other tensors
go by name, and all of the model's must be in the file, in their shape.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.segmentation import FCN_ResNet50_Weights

from visionkit.config.shipped import shipped_configs
from visionkit.errors import CheckpointError, ConfigError, listed, plural, unknown
from visionkit.models import rtdetr_files
from visionkit.models.architectures import AUXILIARY, is_torchvisions, models_like, our_names
from visionkit.models.model import VisionModel
from visionkit.models.published import NO_CLASS, of_file
from visionkit.runs.checkpoint import COUNTER, MOST, compare, has_values, is_run, load_state_dict
from visionkit.runs.foreign import content_kind
from visionkit.types import Classes

log = logging.getLogger("visionkit")

HINT = (
    "give weights of this architecture and variant (a classifier's as backbone.weights), or set "
    "partial_weights: true to load the tensors that fit and start the others at random"
)
# The classes of torchvision's files, by their number of outputs
TORCHVISION_CLASSES = {
    len(names): ("background", *names[1:])
    for names in (
        FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"],
        FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"],
    )
}
COCO_CLASSES = tuple(name for name in TORCHVISION_CLASSES[91][1:] if name != NO_CLASS)
# Classes that have another name in COCO than in Pascal VOC, and so in torchvision's files
VOC_NAMES = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}
ALIASES = VOC_NAMES | {voc: coco for coco, voc in VOC_NAMES.items()}


@dataclass
class Origin:
    """Weights to start from, under the model's names, and what is known about them.

    classes: by head the names of its classes in the file; a head whose names are not known lacks.
    kind: what the file looks like.
    """

    path: str
    state: dict[str, Tensor]
    classes: dict[str, Sequence[str]]
    kind: str


def load_model_weights(
    model: VisionModel,
    path: str,
    classes: Mapping[str, Classes],
    *,
    rename: Mapping[str, str] | None = None,
    partial: bool = False,
) -> None:
    """Load a file into the whole model. Raise CheckpointError, with nothing loaded, if a tensor of
    the model is not in it; with `partial`, such tensors stay as they are and are logged.

    `rename` gives classes of the file the names that they have in the model.
    """
    state, content = load_state_dict(path)
    kind = content_kind(content)
    names: dict[str, Sequence[str]] = {}
    if is_torchvisions(state):
        head = _only_head(model, path)
        state = our_names(state, head)
        sure = of_file(path) is not None
        names = _torchvision_classes(
            model, head, state, classes[head].names, rename or {}, sure=sure
        )
    elif rtdetr_files.is_rtdetr(state):
        head = _only_head(model, path)
        state = rtdetr_files.our_names(state, head)
        names = _rtdetr_classes(head, path, state, classes[head].names, rename or {})
    origin = Origin(path, state, names, kind)
    if is_run(content):
        origin = checkpoint_origin(path, content)
    fill(model, origin, classes, rename=rename, partial=partial)


def checkpoint_origin(path: str, content: Mapping[str, Any]) -> Origin:
    """The weights of a visionkit checkpoint, that `checkpoint.is_run` accepts."""
    names = {head: lists["names"] for head, lists in content["classes"].items()}
    kind = "a visionkit checkpoint of " + config_kind(content["config"])
    return Origin(path, content["model"], names, kind)


def config_kind(config: Mapping[str, Any]) -> str:
    """`detection (FCOS) on Torchvision resnet18 and FPN`, from a config in the long form."""
    given = [config.get("backbone"), config.get("neck")]
    parts = [part for part in given if isinstance(part, Mapping)]  # it may be of any file
    found = [f"{part.get('type')} {part.get('name', '')}".strip() for part in parts]
    named = config.get("heads")
    specs = named.items() if isinstance(named, Mapping) else ()
    heads = [f"{name} ({spec.get('type')})" for name, spec in specs if isinstance(spec, Mapping)]
    return f"{' and '.join(heads)} on {' and '.join(found)}"


def _only_head(model: VisionModel, path: str) -> str:
    if len(model.heads) != 1:
        raise CheckpointError(
            f"{path}: weights of a torchvision model need a model with one head, got "
            f"{len(model.heads)} heads: {', '.join(model.heads)}; a backbone can start from "
            "published weights: backbone.weights: default"
        )
    return next(iter(model.heads))


def _torchvision_classes(
    model: VisionModel,
    head: str,
    state: Mapping[str, Tensor],
    ours: Sequence[str],
    rename: Mapping[str, str],
    *,
    sure: bool,
) -> dict[str, Sequence[str]]:
    """The classes of a file that torchvision published, found by its number of outputs; none if no
    class of the model is among them, as in a file for other classes, unless it is `sure`."""
    own = model.state_dict()
    for layer, rows in model.head(head).class_layers.items():
        key = f"heads.{head}.{layer}.bias"
        rows *= model.head(head).class_groups.get(layer, 1)
        if key in state and key in own:
            names = TORCHVISION_CLASSES.get(len(state[key]) // rows, ())
            aliases = _aliases(names, ours, rename)
            names = tuple(aliases.get(name, name) for name in names)
            background = len(own[key]) // rows - len(ours)  # 1 where it is not one of the classes
            called = {rename.get(name, name) for name in names}
            known = {rename.get(name, name) for name in names[1:]} & {*ours}
            if len(state[key]) == len(own[key]) and not {*ours} <= called:
                known = set()  # equally many classes, and others: more likely those of the model
            if not (sure or known):
                return {}
            if aliases:
                pairs = [f"{new} is {old!r} there" for old, new in aliases.items()]
                log.info("heads.%s: classes of another name: %s", head, listed(pairs))
            return {head: names[background:]}
    return {}


def _rtdetr_classes(
    head: str,
    path: str,
    state: Mapping[str, Tensor],
    ours: Sequence[str],
    rename: Mapping[str, str],
) -> dict[str, Sequence[str]]:
    """The classes of a file of transformers' RT-DETR; none if they are not known."""
    count = len(state[f"heads.{head}.enc_score_head.weight"])
    names = rtdetr_files.class_names(path, count, COCO_CLASSES)
    aliases = _aliases(names, ours, rename)
    return {head: [aliases.get(name, name) for name in names]} if names else {}


def _aliases(
    theirs: Sequence[str], ours: Sequence[str], rename: Mapping[str, str]
) -> dict[str, str]:
    """The names in a file of which the model has the other one of `ALIASES`, and that one. What
    `rename` names is left to it."""
    taken = {*theirs, *rename, *rename.values()}
    found = {name: ALIASES[name] for name in theirs if name in ALIASES}
    return {
        old: new
        for old, new in found.items()
        if new in ours and new not in taken and old not in {*ours, *rename}
    }


def fill(
    model: VisionModel,
    origin: Origin,
    classes: Mapping[str, Classes],
    *,
    rename: Mapping[str, str] | None = None,
    partial: bool = False,
    may_be_new: Iterable[str] = (),
) -> None:
    """Load `origin` into the model; heads in `may_be_new` may lack in it. As
    `load_model_weights`."""
    _check_rename(rename or {}, origin, classes)
    ours = model.state_dict()
    state = dict(origin.state)
    reports: list[tuple[str, Sequence[str], Sequence[str] | None, Sequence[str]]] = []
    for name in model.heads:
        names, layers = classes[name].names, model.head(name).class_layers
        groups = model.head(name).class_groups
        theirs = _renamed(name, origin.classes.get(name), rename or {})
        if any(_fits(f"heads.{name}.{layer}.weight", state, ours) for layer in layers):
            layout = {layer: (rows, groups.get(layer, 1)) for layer, rows in layers.items()}
            kept = _fill_class_rows(state, ours, f"heads.{name}", layout, names, theirs)
            reports.append((name, names, theirs, kept))
        elif not layers and theirs is not None and theirs != [*names]:  # a custom head
            reports.append((name, names, None, names))
    own_names = [name for name in ours if not name.endswith(COUNTER)]
    optional = ("log_variances.", *(f"heads.{name}." for name in may_be_new))
    fit = compare(ours, state, optional)
    if not fit.fitting or not (fit.is_whole or partial):
        text = f"{origin.path}: {len(fit.fitting)} of {len(own_names)} tensors fit the model"
        kind, hint = _other_architecture(origin, [*fit.missing, *fit.shapes, *fit.surplus])
        looks = f"{text}: the file looks like {kind}; this model is {model.kind}"
        raise CheckpointError(looks, *fit.lines(), f"  {hint}")
    counters = [n for n in ours if n.endswith(COUNTER) and n in state and not state[n].shape]
    model.load_state_dict({name: state[name] for name in (*fit.fitting, *counters)}, strict=False)
    log.info("%s: loaded %d of %d tensors", origin.path, len(fit.fitting), len(own_names))
    if not fit.is_whole:
        random = len(fit.missing) + len(fit.shapes) + len(fit.unusable)
        log.warning("%s: partly loaded, %s at random", origin.path, plural(random, "tensor"))
        for line in fit._replace(others=[]).lines(MOST):
            log.warning("%s: %s", origin.path, line.strip())
    if fit.others:
        log.warning("%s: not in the model: %s", origin.path, listed(fit.others))
    for report in reports:
        _report_classes(origin.path, *report)


def _other_architecture(origin: Origin, missing: list[str]) -> tuple[str, str]:
    """What the file looks like, and what to do with it."""
    if all(f".{AUXILIARY}" in name for name in missing):
        return origin.kind, "the file has no auxiliary classifier: set head.aux_weight: 0"
    like = models_like(origin.state)
    if not like:
        return origin.kind, HINT
    configs = [name for name in like if name in shipped_configs()]
    words = " or ".join(f"visionkit train {name} weights={origin.path}" for name in configs)
    config = f"its config is shipped: {words}; or {HINT}" if configs else HINT
    return f"torchvision's {' or '.join(like)}", config


def _check_rename(
    rename: Mapping[str, str], origin: Origin, classes: Mapping[str, Classes]
) -> None:
    known = {name for names in origin.classes.values() for name in names}
    wanted = {name for one in classes.values() for name in one.names}
    for old, new in rename.items():
        if old not in known:
            what = f"rename: {old!r} is not a class in {origin.path}"
            raise ConfigError(unknown(old, known, what))
        if new not in wanted:
            raise ConfigError(unknown(new, wanted, f"rename: {new!r} is not a class of this model"))


def _renamed(head: str, names: Sequence[str] | None, rename: Mapping[str, str]) -> list[str] | None:
    if names is None:
        return None
    found = [rename.get(name, name) for name in names]
    for name in rename.values():
        if found.count(name) > 1:
            raise ConfigError(f"rename: gives two classes of heads.{head} the name {name!r}")
    return found


def _fits(key: str, state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> bool:
    """Whether a layer of classes is in both, for the same features."""
    found = key in state and key in ours and has_values(state[key])
    return found and state[key].shape[1:] == ours[key].shape[1:]


def _fill_class_rows(
    state: dict[str, Tensor],
    ours: Mapping[str, Tensor],
    head: str,
    layers: Mapping[str, tuple[int, int]],
    names: Sequence[str],
    theirs: Sequence[str] | None,
) -> list[str]:
    """Replace the tensors of the class layers in `state` by those of the model with the rows of the
    classes that both have; returns the names of these. Where the names are not known, equally many
    rows keep their place. `layers` have so many rows for each class in so many groups."""
    kept = [name for name in names if theirs is None or name in theirs]
    for key in [f"{head}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]:
        if not _fits(key, state, ours):
            continue  # it does not fit, which is an error
        rows, groups = layers[key.removeprefix(f"{head}.").rpartition(".")[0]]
        if len(state[key]) % groups or (theirs is None and len(state[key]) == len(ours[key])):
            continue
        old, new = (x.unflatten(0, (groups, -1)) for x in (state[key], ours[key].clone()))
        front = new.shape[1] - rows * len(names)  # rows of the background
        new[:, :front] = old[:, :front]
        if theirs is None:
            kept = []
        else:
            first = old.shape[1] - rows * len(theirs)
            if first != front:  # of other anchors: none is known to be at its place
                del state[key]
                continue
            for name in kept:
                to, at = front + rows * names.index(name), first + rows * theirs.index(name)
                new[:, to : to + rows] = old[:, at : at + rows]
        state[key] = new.flatten(0, 1)
    return kept


def _report_classes(
    path: str, head: str, names: Sequence[str], theirs: Sequence[str] | None, kept: Sequence[str]
) -> None:
    new = [name for name in names if name not in kept]
    dropped = [name for name in theirs or () if name not in (*kept, NO_CLASS)]
    parts = [
        f"{plural(len(found), 'class', 'classes')} {what} ({listed(found)})"
        for what, found in (("kept", kept), ("new", new), ("dropped", dropped))
        if found
    ]
    text = f"{path}: heads.{head}: {', '.join(parts)}"
    if names and not kept:
        log.warning(
            "%s: nothing of the classes is kept, and their rows start at random; if a class has "
            "another name in the file, give rename: {old: new}",
            text,
        )
    elif theirs is None:
        log.warning("%s by position, since it is not known which rows are of which class", text)
    else:
        log.info("%s", text)
