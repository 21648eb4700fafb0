"""Names of visionkit 0.1 and of other programs, so that a key or a type is answered with its name
here.

Most tables are those of CHANGELOG.md under 0.2.0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

KEYS = {  # an old key means the new one only where the new one is accepted
    "on_broken_picture": "on_unreadable_image",
    "check_pictures": "check_images",
    "labelled": "labeled_classes",
    "per_identity": "images_per_identity",
    "group_shapes": "group_by_aspect_ratio",
    "best": "best_metric",
    "no_worse_than": "best_constraints",
    "accumulate": "accumulate_grad_batches",
    **dict.fromkeys(("depth", "variant", "size", "width", "version", "batch_norm"), "name"),
    "taps": "out_indices",
    "inputs": "in_features",
    "extra": "extra_levels",
    "on": "boxes_from",
}
OPPOSITE = {"weights_strict": "partial_weights"}  # of another name and the other way round
USUAL = {  # arguments of datasets under other names, and what may be meant; the first accepted one
    **dict.fromkeys(("maps", "masks", "segmentations"), ("labels",)),
    **dict.fromkeys(("labels", "ann_file", "annFile", "annotation", "json"), ("annotations",)),
    **dict.fromkeys(("path", "dir", "folder", "img_dir", "data_root"), ("root", "images")),
}
ELSEWHERE = {  # where a key is that some look for in another section, or by another name
    name: f"{section}.{key}"
    for section, keys in {
        "data": {
            "batch_size": "batch",
            "image_size": "imgsz img_size input_size",
            "workers": "num_workers",
            "transforms": "augmentations",
        },
        "train": {
            "epochs": "num_epochs max_epochs",
            "lr": "lr0 learning_rate",
            "weight_decay": "",
            "warmup_steps": "",
            "optimizer": "",
            "device": "",
            "seed": "",
            "precision": "amp",
        },
    }.items()
    for key, others in keys.items()
    for name in (key, *others.split())
}
REMOVED = {"cache_gb": "decoded images are not cached; delete this key"}
FREEZE = {"old heads": "init_heads"}  # patterns of `train.freeze`

MODULES = (  # of the components of 0.1
    "attributes autoencoder classification coco convnext crops densenet detection "
    "efficientnet embedding folder fpn idx instance label_maps light localization mlp "
    "mobilenet pictures regnet resnet semantic shapes shufflenet squeezenet timm tiny "
    "transforms vgg"
)
TYPES = {"Pictures": "Images"}  # the other classes keep their names
TORCHVISION: dict[str, Callable[[Mapping[str, Any]], str]] = {  # old type -> torchvision's name
    "ResNet": lambda spec: f"resnet{spec.get('depth', 18)}",
    "ResNeXt": lambda spec: f"resnext{spec.get('variant', '50_32x4d')}",
    "WideResNet": lambda spec: f"wide_resnet{spec.get('depth', 50)}_2",
    "MobileNetV2": lambda spec: "mobilenet_v2",
    "MobileNetV3": lambda spec: f"mobilenet_v3_{spec.get('size', 'large')}",
    "EfficientNet": lambda spec: f"efficientnet_{spec.get('variant', 'b0')}",
    "ConvNeXt": lambda spec: f"convnext_{spec.get('variant', 'tiny')}",
    "RegNet": lambda spec: f"regnet_{spec.get('variant', 'y_400mf')}",
    "ShuffleNetV2": lambda spec: f"shufflenet_v2_{spec.get('width', 'x1_0')}",
    "SqueezeNet": lambda spec: f"squeezenet{str(spec.get('version', 'v1_1')).lstrip('v')}",
    "DenseNet": lambda spec: f"densenet{spec.get('depth', 121)}",
    "VGG": lambda spec: f"vgg{spec.get('depth', 11)}{'_bn' * spec.get('batch_norm', True)}",
}


def renamed_key(name: str, accepted: Collection[str]) -> str | None:
    """What became of a key of 0.1; None if it was none, or none of this section."""
    if name in REMOVED:
        return f"removed in 0.2: {REMOVED[name]}"
    if (other := OPPOSITE.get(name)) in accepted:
        return f"is called {other!r} and means the opposite: {name}: false is {other}: true"
    return f"renamed to {KEYS[name]!r} in 0.2" if KEYS.get(name) in accepted else None


def usual_key(name: str, accepted: Collection[str]) -> str:
    """The accepted argument of a dataset that a name of another program means; else the name."""
    return next((key for key in USUAL.get(name, ()) if key in accepted), name)


def renamed_type(spec: Mapping[str, Any], valid: Collection[str]) -> str | None:
    """What became of a `type:` of 0.1 with its arguments; None if it was none."""
    module, _, name = str(spec.get("type")).rpartition(".")
    if module and module not in MODULES.split():
        return None
    if name in TORCHVISION:
        return f"renamed to 'type: Torchvision, name: {TORCHVISION[name](spec)}' in 0.2"
    new = TYPES.get(name, name)
    return f"renamed to 'type: {new}' in 0.2" if new in valid and new != spec["type"] else None
