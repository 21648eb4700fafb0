"""Build the model of a checked config, or a published one."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from visionkit.config import Config, load_config
from visionkit.config.components import arguments_of, build, components, head_class, resolve
from visionkit.config.config import fixed_size
from visionkit.config.shipped import list_configs, shipped_configs
from visionkit.errors import ConfigError, VisionkitError, listed
from visionkit.models.architectures import published_for
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD
from visionkit.models.contracts import checked_levels
from visionkit.models.model import VisionModel
from visionkit.models.published import NO_CLASS, Published, entries, fetch, find, of_file
from visionkit.models.weights import config_kind, load_model_weights
from visionkit.runs.checkpoint import COUNTER
from visionkit.runs.files import means_file
from visionkit.types import Batch, Classes

log = logging.getLogger("visionkit")

COCO = "coco"  # `weights: coco`: those that are published for the architecture of the config
DEFAULT = "default"  # `backbone.weights: default`: those that are published for the backbone
USUAL = (COCO, DEFAULT, "imagenet", "pretrained")  # what one may write for either
GIVE_PATH = "give its path (weights=PATH)"
BACKBONE = ("norm", "norm_eps", "mean", "std")  # settings of a backbone that weights depend on
SOME = Classes.numbered(("background", "thing"))  # for a model whose classes do not matter


def build_model(
    config: Config, classes: dict[str, Classes], *, pretrained: bool = True
) -> VisionModel:
    """The model of a config. `pretrained=False` reads no file with weights, for a model that a
    checkpoint is loaded into."""
    if pretrained:
        config = with_published(config)
        _warn_of_frozen_noise(config)
    model = _build(config, classes, pretrained)
    if pretrained and config.weights:
        _load(model, config, classes, instead=f"{GIVE_PATH}, or start at random (weights: null)")
    return model


def _load(model: VisionModel, config: Config, classes: dict[str, Classes], *, instead: str) -> None:
    """Load `weights`; `instead` says what to do without a download."""
    path = str(config.weights)
    if not means_file(path):
        path = str(fetch(find(path), instead=instead))
    rename, partial = config.rename, config.partial_weights
    load_model_weights(model, path, classes, rename=rename, partial=partial)


def _warn_of_frozen_noise(config: Config) -> None:
    """The configs of published models freeze layers that only their weights make useful."""
    spec = config.backbone
    frozen = [
        (f"{key}={spec[key]}", f"backbone.{key}={instead}")
        for key, instead, is_frozen in (
            ("freeze_at", "0", spec.get("freeze_at", 0) != 0),
            ("norm", "batch", spec.get("norm") == "frozen"),
        )
        if is_frozen
    ]
    if frozen and not (config.weights or spec.get("weights")):
        found, instead = (" ".join(words) for words in zip(*frozen, strict=True))
        log.warning(
            "backbone: %s keeps layers as they are, and they are random: give weights, such as "
            "weights=coco, or %s",
            found,
            instead,
        )


def _build(config: Config, classes: dict[str, Classes], pretrained: bool) -> VisionModel:
    backbone = build("backbones", _backbone_spec(config.backbone, pretrained), key="backbone")
    levels, neck = checked_levels("backbone", backbone), None
    if config.neck is not None:
        neck = build("necks", config.neck, levels, key="neck")
        levels = checked_levels("neck", neck)
    heads, weights = {}, {}
    for name, spec in config.heads.items():
        arguments = {key: value for key, value in spec.items() if key != "weight"}
        heads[name] = build("heads", arguments, levels, classes[name].names, key=f"heads.{name}")
        weights[name] = spec.get("weight", 1.0)
    learned = config.train.weighting == "uncertainty"
    model = VisionModel(backbone, neck, heads, weights, learned_weights=learned)
    model.kind = config_kind(vars(config))
    model.class_names = {name: classes[name].names for name in heads}
    return model


def check_parts(config: Config) -> None:
    """Raise ConfigError if backbone, neck and heads do not fit each other or `data.image_size`.

    Nothing is computed and no file is read: the model has no memory, where it can be built so.
    Custom classes, whose code may need memory, are left to `visionkit check`.
    """
    parts = [("backbones", config.backbone), *([("necks", config.neck)] if config.neck else [])]
    if any(spec["type"] not in components(section) for section, spec in parts):
        return
    heads = {n: spec for n, spec in config.heads.items() if spec["type"] in components("heads")}
    ours, classes = replace(config, heads=heads), dict.fromkeys(heads, SOME)
    try:
        with torch.device("meta"):
            model = _build(ours, classes, pretrained=False)
    except Exception:  # either a misfit or a module that cannot be built so
        model = _build(ours, classes, pretrained=False)
    model = model.to("meta").eval()
    for name, source in config.data.items():
        size = source.image_size
        sides: Any = fixed_size(size) or (size if isinstance(size, tuple) else (size, size))
        images = torch.zeros(1, 3, *sides, dtype=torch.uint8, device="meta")
        target: Any = {"size": sides}
        try:
            with torch.no_grad():
                model.features(Batch(images, [target]))
        except VisionkitError as error:
            where = "data" if len(config.data) == 1 else f"data.{name}"
            raise ConfigError(f"{where}.image_size: {error}") from error
        except Exception as error:  # computing may need the values, of which there are none
            log.debug("%s is not checked: %s", config.architecture, error)


def _backbone_spec(spec: dict[str, Any], pretrained: bool) -> dict[str, Any]:
    if pretrained or not spec.get("weights"):
        return spec
    spec = {**spec, "weights": None}
    arguments = inspect.signature(resolve("backbones", spec["type"])).parameters
    if "norm" in arguments and spec.get("norm", "auto") == "auto":
        spec["norm"] = "frozen"  # the meaning of `auto` with weights
    return spec


def with_published(config: Config) -> Config:
    """The config with what follows from published `weights`: the member of the enum that is meant,
    and the norms and pixels of the backbone as those weights were trained with.

    Batch norms are frozen if `norm` is `auto`; settings that are given stay. Raises ConfigError for
    a name that is not published, and for `coco` if nothing is published for the architecture.
    Nothing is downloaded.
    """
    named = config.backbone.get("weights") if config.backbone["type"] == "Torchvision" else None
    if named and not means_file(named):
        arch = config.backbone.get("name", arguments_of("backbones", "Torchvision")["name"].default)
        name = arch if named == "default" else named
        pixels = _located("backbone.weights", name, "backbone").pixels
        usual = pixels == {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        config = replace(config, backbone={**({} if usual else pixels), **config.backbone})
    if not config.weights:
        return config
    if means_file(config.weights):
        one = of_file(config.weights)
    elif config.weights == COCO:
        one = _published_for(config)
    else:
        one = _located("weights", config.weights, "model")
        if len(config.heads) > 1:
            raise _several_heads(config)
    if one is None:
        return config
    weights = config.weights if means_file(config.weights) else one.member
    published = load_config(shipped_configs()[one.name]).backbone
    if config.backbone["type"] != published["type"]:
        return replace(config, weights=weights)
    taken = {key: published[key] for key in BACKBONE if key in published}
    given = {key: v for key, v in config.backbone.items() if (key, v) != ("norm", "auto")}
    backbone = {**taken, "norm": "frozen", **given}
    return replace(config, weights=weights, backbone=backbone)


def build_published(
    name: str, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> tuple[Config, dict[str, Classes], VisionModel]:
    """The config, classes and model of published weights, such as `maskrcnn_resnet50_fpn`.

    Classes are the published ones without `N/A`; their ids are those of COCO's categories. The
    config is the shipped one of the model with the overrides, without its generated images.
    """
    one = find(name, "model")
    config = load_config(shipped_configs()[one.name], overrides)
    data = {
        source: replace(spec, train=_real(spec.train), val=_real(spec.val))
        for source, spec in config.data.items()
    }
    config = with_published(replace(config, data=data, weights=config.weights or one.member))
    (head,) = config.heads
    first = 1 if head_class(config, head).class_key == "labels" else 0  # 0 is the background
    names = {n: name for n, name in enumerate(one.classes) if n >= first and name != NO_CLASS}
    classes = {head: Classes(tuple(names.values()), tuple(names))}
    model = _build(config, classes, pretrained=True)
    _load(model, config, classes, instead=GIVE_PATH)
    return config, classes, model


def _real(dataset: dict[str, Any] | None) -> dict[str, Any] | None:
    """The dataset, unless it is of generated images."""
    return None if dataset is None or dataset["type"] == "Shapes" else dataset


def _published_for(config: Config) -> Published:
    """The weights that `coco` means for a model with these tensors."""
    if len(config.heads) > 1:
        raise _several_heads(config)
    model = _build(config, dict.fromkeys(config.heads, SOME), pretrained=False)
    found = published_for(model, config) or _of_hub_for(model, config)
    if found is None:
        like = [f"  {line}" for line in _alternatives(config)]
        raise ConfigError(f"weights: none are published on COCO for {model.kind}", *like)
    log.info("weights: coco are %s", found.member)
    return found


def _of_hub_for(model: VisionModel, config: Config) -> Published | None:
    """The first of the hub's models that has these tensors; None if there is none."""
    (spec,), own = config.heads.values(), _shapes(model)
    for one in (one for one in entries() if one.on_hub):
        other = load_config(shipped_configs()[one.name])
        (theirs,), same = other.heads.values(), ("type", "name")
        if theirs["type"] != spec["type"] or any(
            other.backbone.get(key) != config.backbone.get(key) for key in same
        ):
            continue  # at once: building a model takes a second
        if _shapes(_build(other, dict.fromkeys(other.heads, SOME), pretrained=False)) == own:
            return one
    return None


def _shapes(model: VisionModel) -> list[tuple[int, ...]]:
    """The shapes of all tensors, in their order; the name of the head does not matter."""
    return [tuple(t.shape) for n, t in model.state_dict().items() if not n.endswith(COUNTER)]


def _several_heads(config: Config) -> ConfigError:
    return ConfigError(
        "weights: published models have one head, and this one has "
        f"{len(config.heads)}: {listed(config.heads)}",
        f"  {_of_the_backbone(config)}",
        "  or start from a run with these heads: weights: RUN/checkpoints/best.pt",
    )


def _alternatives(config: Config) -> Iterator[str]:
    """What can be started from instead: models with that head, or of that task, and the weights of
    the backbone. One line each."""
    (spec,) = config.heads.values()
    labels = resolve("heads", spec["type"]).required_targets
    whole = {one.name: one for one in entries() if one.kind == "model" and one.default}
    shipped = [one for one in list_configs() if one.name in whole]
    alike = [one.name for one in shipped if one.heads == (spec["type"],)]
    related = [
        one.name
        for one in shipped
        if resolve("heads", one.heads[0]).required_targets == labels and one.name not in alike
    ]
    if alike:
        yield f"with {spec['type']} there are those of the shipped configs {', '.join(alike)}:"
        yield "start from one of them, or load what fits: weights: NAME, partial_weights: true"
    elif related:
        yield f"with {spec['type']} there are none, but for the same labels:"
        yield f"those of the shipped configs {', '.join(related)}"
    else:
        yield f"with {spec['type']} there are none"
    yield _of_the_backbone(config)


def _of_the_backbone(config: Config) -> str:
    """A clause on the weights that the backbone can start from."""
    spec = config.backbone
    if "weights" not in arguments_of("backbones", spec["type"]):
        return f"backbone: {spec['type']} has no published weights, Torchvision and Timm have some"
    return "for ImageNet features give backbone.weights: default"


def _located(key: str, name: str, kind: str) -> Published:
    """The published weights of that name, for that key of the config."""
    if name.lower() in USUAL:
        whole = ", or for a whole model `weights: coco`" if name.lower() == COCO else ""
        usual = repr(COCO) if kind == "model" else f"{DEFAULT!r}{whole}"
        raise ConfigError(f"{key}: got {name!r}; did you mean {usual}?")
    try:
        return find(name, kind)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
