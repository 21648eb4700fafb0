"""Which published model a state_dict or a model of ours is, by the names and shapes of its tensors.

The tensors of a published model are those of torchvision's own, built on the meta device: without
memory, weights or a file. Layers whose shape depends on the number of classes are not compared.
visionkit keeps torchvision's parameter names inside the backbone, the neck and the heads, so that
names differ in their prefix alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchvision import models

from visionkit.config import Config, load_config
from visionkit.config.shipped import shipped_configs
from visionkit.models.model import VisionModel
from visionkit.models.published import Published, entries
from visionkit.runs.checkpoint import COUNTER
from visionkit.runs.foreign import architecture, resnet_name

# Names in older torchvision files, before each convolution got a module of its own; and the neck.
LEGACY = (
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    *((rf"^(roi_heads\.mask_head\.)mask_fcn{n}\.", rf"\g<1>{n - 1}.0.") for n in (1, 2, 3, 4)),
    (r"^backbone\.fpn\.", "neck."),
)
# RetinaNet's; in FCOS, which has the same names, norms stand between the convolutions
LEGACY_RETINANET = tuple(
    (rf"^(head\.\w+_head\.conv\.){2 * n}\.(weight|bias)$", rf"\g<1>{n}.0.\2") for n in range(4)
)
# SSD's, whose backbones include our neck
LEGACY_SSD = (
    (r"^backbone\.scale_weight$", "neck.scale_weight"),
    # VGG-16, cut after its layer 22, the ReLU of conv4_3
    (r"^backbone\.features\.(\d+)\.(weight|bias)$", r"backbone.body.\1.\2"),
    *(
        (rf"^backbone\.extra\.0\.{n}\.(weight|bias)$", rf"backbone.body.{23 + n}.\1")
        for n in (1, 3, 5)
    ),
    (r"^backbone\.extra\.0\.7\.", "neck.conv7."),
    *(
        (rf"^backbone\.extra\.{n}\.([02])\.(weight|bias)$", rf"neck.extra.{n - 1}.\1.\2")
        for n in (1, 2, 3, 4)
    ),
    # MobileNetV3, cut after the first layer of its block 13
    (r"^backbone\.features\.0\.13\.", "backbone.body.13.block.0."),
    (r"^backbone\.features\.0\.", "backbone.body."),
    (r"^backbone\.features\.1\.0\.", "backbone.body.13.block."),
    *((rf"^backbone\.features\.1\.{n}\.", f"backbone.body.{13 + n}.") for n in (1, 2, 3)),
    (r"^backbone\.extra\.", "neck.extra."),
)
# Classifiers of torchvision, by a part of `foreign.architecture`. RegNets cannot be built on the
# meta device.
CLASSIFIERS = {
    "ResNet": r"(wide_)?resne[tx]",
    "ShuffleNet": "shufflenet",
    "DenseNet": "densenet",
    "SqueezeNet": "squeezenet",
    "ConvNeXt": "convnext",
    "MobileNet or EfficientNet": "(mobile|efficient)net",
    "VGG": "vgg",
}
AUXILIARY = "aux_classifier."  # which files and models of segmentation may lack
HEAD = "head"  # its name, where it does not matter
Shapes = dict[str, tuple[int, ...]]


def is_torchvisions(state: Mapping[str, Tensor]) -> bool:
    """Whether it is of a detector or a segmentation model of torchvision."""
    return _is_detector(state) or {"backbone", "classifier"} <= {n.partition(".")[0] for n in state}


def _is_detector(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("rpn.", "head.", "backbone.fpn.")) for name in state)


def our_names(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The tensors of such a model under the names that they have in ours, whose head has that
    name."""
    if not _is_detector(state):
        state = {re.sub(r"^backbone\.", "backbone.body.", name): t for name, t in state.items()}
    legacy: list[tuple[str, str]] = [*LEGACY, *LEGACY_SSD]
    if not any(".bbox_ctrness." in name for name in state):
        legacy += LEGACY_RETINANET
    return {_our_name(name, head, legacy): tensor for name, tensor in state.items()}


def _our_name(name: str, head: str, legacy: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in legacy:
        name = re.sub(pattern, replacement, name)
    return name if name.startswith(("backbone.", "neck.")) else f"heads.{head}.{name}"


def models_like(state: Mapping[str, Tensor]) -> list[str]:
    """torchvision's names of the detectors and segmentation models that have these tensors, which
    may have their names or ours."""
    found = our_names(state, HEAD) if is_torchvisions(state) else _renamed(state)
    if not found:
        return []
    names = [n for m in (models.detection, models.segmentation) for n in models.list_models(m)]
    return [name for name in names if _agrees(_shapes(found), name)]


def classifiers_like(state: Mapping[str, Tensor]) -> list[str]:
    """torchvision's names of the classifiers that have these tensors, for any number of classes."""
    kind, found = architecture(state), _shapes(state)
    families = [names for part, names in CLASSIFIERS.items() if kind.startswith(f"a {part}")]
    return [
        name
        for family in families
        for name in models.list_models(models)
        if re.match(family, name) and _is_classifier(found, name)
    ]


def _is_classifier(found: Shapes, name: str) -> bool:
    with torch.device("meta"):
        theirs = _shapes(models.get_model(name, weights=None).state_dict())
    of_classes = [*theirs][-2:]  # weight and bias of the last layer
    return found.keys() == theirs.keys() and all(
        found[key][key in of_classes :] == shape[key in of_classes :]
        for key, shape in theirs.items()
    )


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model of ours as if its head were HEAD; nothing if it has several heads."""
    heads = {name.split(".")[1] for name in state if re.match(r"heads\.[^.]+\.", name)}
    if len(heads) != 1:
        return {}
    prefix = f"heads.{heads.pop()}."
    return {name.replace(prefix, f"heads.{HEAD}.", 1): tensor for name, tensor in state.items()}


def published_for(model: VisionModel, config: Config) -> Published | None:
    """The weights that torchvision publishes for a model with these tensors; None if there are
    none. Of several models that differ in settings alone, the one whose settings are most like
    `config`."""
    own = _shapes(_renamed(model.state_dict()))
    found = [one for one in entries() if one.kind == "model" and one.default and not one.on_hub]
    fitting = [one for one in found if own and _agrees(own, one.name)]
    return min(fitting, key=lambda one: _differences(config, one.name), default=None)


def _differences(config: Config, name: str) -> int:
    """How many settings of the shipped config of that name are others."""
    other = load_config(shipped_configs()[name])

    def settings(one: Config) -> dict[str, Any]:
        (head,), (source, *_) = one.heads.values(), one.data.values()
        return {**head, "image_size": source.image_size}

    mine, theirs = settings(config), settings(other)
    return sum(mine.get(key) != theirs.get(key) for key in mine | theirs)


def _agrees(found: Shapes, name: str) -> bool:
    """Whether these are the tensors of torchvision's model."""
    resnet = resnet_name(found).replace("-", "").lower()
    if resnet not in name or (not resnet and "resnet" in name):
        return False  # at once: building the others takes seconds
    theirs = _built(name, 2)
    if found.keys() != theirs.keys():
        optional = f"heads.{HEAD}.{AUXILIARY}"
        differ = found.keys() ^ theirs.keys()
        if not all(key.startswith(optional) for key in differ):
            return False
    of_classes = {key for key, shape in _built(name, 3).items() if shape != theirs[key]}
    shared = found.keys() & theirs.keys()
    return all(found[k] == theirs[k] or (k in of_classes and found[k][1:] == theirs[k][1:])
               for k in shared)  # fmt: skip


@cache
def _built(name: str, num_classes: int) -> Shapes:
    """The shapes of torchvision's model for that many classes."""
    more = {"aux_loss": True} if name in models.list_models(models.segmentation) else {}
    if "lraspp" in name:
        more = {}  # it has none
    with torch.device("meta"):
        model = models.get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes, **more
        )
    return _shapes(our_names(model.state_dict(), HEAD))


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(t.shape) for key, t in state.items() if not key.endswith(COUNTER)}
